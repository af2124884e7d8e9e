"""Every level stays within the CUDA memory of its stored history on this hardware."""

import pytest

from sdopt.bench import measure


def test_memory(level, pipeline, image_request, gate):
    """Peaks of one steady image."""
    record = measure.memory(pipeline, image_request)
    if record is None:
        pytest.skip("needs CUDA: the CPU has no such counter")
    verdict = gate.memory(level, record)
    assert verdict.passed, verdict.message
