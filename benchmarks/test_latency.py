"""Every level stays as fast as its stored history on this hardware."""

from sdopt.bench import measure


def test_latency(level, pipeline, first_call, image_request, benchmark, gate):
    """Warm, synchronized, end-to-end time of one image."""
    record = measure.latency(pipeline, image_request, benchmark)
    verdict = gate.latency(level, record, first_call)
    assert verdict.passed, verdict.message
