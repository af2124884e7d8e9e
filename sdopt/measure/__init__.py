"""Measurements of a pipeline; each returns plain frozen data."""

from sdopt.measure.cuda_memory import Memory, memory
from sdopt.measure.effect import missing_effects
from sdopt.measure.observation import Observation, observe
from sdopt.measure.quality import Comparison, Likeness, compare, picture_faults
from sdopt.measure.timing import FirstCall, Latency, first_call, latency
from sdopt.measure.work import Work, work_of

__all__ = [
    "Comparison",
    "FirstCall",
    "Latency",
    "Likeness",
    "Memory",
    "Observation",
    "Work",
    "compare",
    "first_call",
    "latency",
    "memory",
    "missing_effects",
    "observe",
    "picture_faults",
    "work_of",
]
