"""The suite's tests for another project, whose benchmarks/ say `from ... import *` of this.

They are those of this repository's own benchmarks/: each file here is a link to the one there.
"""

from sdopt.bench.plugin.suite.test_latency import test_latency
from sdopt.bench.plugin.suite.test_memory import test_memory
from sdopt.bench.plugin.suite.test_quality import (
    test_cost,
    test_drift,
    test_ground_truth,
    test_latents,
    test_latents_float64,
    test_repeat,
)
from sdopt.bench.plugin.suite.test_work import test_effect, test_work

__all__ = [
    "test_cost",
    "test_drift",
    "test_effect",
    "test_ground_truth",
    "test_latency",
    "test_latents",
    "test_latents_float64",
    "test_memory",
    "test_repeat",
    "test_work",
]
