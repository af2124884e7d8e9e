"""One run of the suite: its context, its pipelines, its baselines, and the gate that judges."""

from sdopt.bench.session.context import RunContext, Settings
from sdopt.bench.session.pool import PipelinePool
from sdopt.bench.session.session import Session
from sdopt.bench.session.store import BaselineStore

__all__ = ["BaselineStore", "PipelinePool", "RunContext", "Session", "Settings"]
