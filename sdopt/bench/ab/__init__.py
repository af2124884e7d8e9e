"""Paired A/B runs: a base revision against the working tree, image by image in turns.

Single runs on a noisy machine differ by more than a regression does. So the unit is a pair of fresh
processes, one of each revision, both alive at once: they take turns image by image, slow drifts
of the machine hit both alike, and only what differs between the revisions is left in their ratio.

    with checked_out(repository, "origin/main") as base:
        sides = Sides(base=base, head=repository)
        result = run_pairs(Spec(sides=sides, source="embedded"), judge, progress)
"""

from sdopt.bench.ab.pairs import Judge, run_pairs
from sdopt.bench.ab.result import LevelPair, Result, Sides, SideSample, Spec
from sdopt.bench.ab.worktree import checked_out, commit_of

__all__ = [
    "Judge",
    "LevelPair",
    "Result",
    "SideSample",
    "Sides",
    "Spec",
    "checked_out",
    "commit_of",
    "run_pairs",
]
