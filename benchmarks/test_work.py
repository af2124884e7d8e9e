"""Every level does the work it promises, in the way it promises."""

from sdopt import measure


def test_effect(level, observation, dtype, gate):
    """Each field of the level took effect."""
    verdict = gate.effect(level, measure.missing_effects(level, observation, dtype))
    assert verdict.passed, verdict.message


def test_work(level, pipeline, observation, gate):
    """Counts that are the same on every machine."""
    verdict = gate.work(level, measure.work_of(pipeline, observation))
    assert verdict.passed, verdict.message
