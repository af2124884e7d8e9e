"""Levels that a project brings: its own pipelines, gated like those of the ladder."""

from sdopt.bench.own.ladder import Ladder, OwnLevel

__all__ = ["Ladder", "OwnLevel"]
