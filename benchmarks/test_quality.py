"""Every level keeps drawing its stored pictures, close to its reference and to the truth."""

import pytest

from sdopt import measure


def test_drift(level, pictures, suite, gate):
    """Each picture against the level's own stored one."""
    stored, unusable = suite.stored_pictures(level, pictures)
    verdict = gate.drift(level, measure.compare(pictures, stored), unusable)
    assert verdict.passed, verdict.message


def test_cost(level, pictures, reference_pictures, gate):
    """Each picture against that of the level this one differs from by one change."""
    if reference_pictures is None:
        pytest.skip("the first level of the ladder has no reference")
    verdict = gate.cost(level, measure.compare(pictures, reference_pictures))
    assert verdict.passed, verdict.message


def test_truth(level, pictures, true_pictures, gate):
    """Each picture against the true rendering of its caption."""
    if not true_pictures:
        pytest.skip("needs prompts with a true rendering: captions of the embedded source")
    verdict = gate.truth(level, measure.compare(pictures, true_pictures))
    assert verdict.passed, verdict.message
