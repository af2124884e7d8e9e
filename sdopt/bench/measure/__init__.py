"""Measurements of a pipeline; each returns plain frozen data."""

from sdopt.util.startup import collector_paused

with collector_paused():  # here a run of pytest imports PyTorch and diffusers
    from sdopt.bench.measure.cuda_memory import Memory, memory, memory_of
    from sdopt.bench.measure.effect import missing_effects
    from sdopt.bench.measure.observation import Observation, observe
    from sdopt.bench.measure.promise import Promise, broken_promises, promise_of
    from sdopt.bench.measure.quality import Comparison, compare, compare_latents, image_faults
    from sdopt.bench.measure.timing import FirstCall, Latency, first_call, latency, rounds_of
    from sdopt.bench.measure.work import Work, work_of

__all__ = [
    "Comparison",
    "FirstCall",
    "Latency",
    "Memory",
    "Observation",
    "Promise",
    "Work",
    "broken_promises",
    "compare",
    "compare_latents",
    "first_call",
    "image_faults",
    "latency",
    "memory",
    "memory_of",
    "missing_effects",
    "observe",
    "promise_of",
    "rounds_of",
    "work_of",
]
