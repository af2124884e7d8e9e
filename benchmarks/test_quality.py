"""Every level keeps drawing its stored pictures, the same twice, close to reference and truth."""

import pytest

from sdopt.bench import measure
from sdopt.bench.metrics.metric import Subject


def test_drift(level, generated, pictures, store, gate):
    """Each picture against the level's own stored one."""
    store.accept(level, generated)
    stored, unusable = store.images(level, pictures)
    verdict = gate.drift(level, measure.compare(pictures, stored), unusable)
    assert verdict.passed, verdict.message


def test_latents(level, generated, latents, store, gate):
    """What each picture was decoded from against the level's own stored latents."""
    store.accept(level, generated)
    stored, unusable = store.latents(level, latents)
    verdict = gate.latents(level, measure.compare_latents(latents, stored), unusable)
    assert verdict.passed, verdict.message


def test_latents_float64(level, generated, double, store, gate):
    """The same in float64 with the level's own modules and weights: rounding hides nothing."""
    if not double:
        pytest.skip("needs the CPU: on a GPU nothing of this draws in float64")
    store.accept(level, generated)
    stored, unusable = store.latents(level, double, double=True)
    comparison = measure.compare_latents(double, stored, Subject.FLOAT64)
    verdict = gate.latents_float64(level, comparison, unusable)
    assert verdict.passed, verdict.message


def test_repeat(level, repeat, gate):
    """The first picture drawn twice: every bit of it and of its latents."""
    verdict = gate.repeat(level, repeat)
    assert verdict.passed, verdict.message


def test_cost(level, pictures, reference_pictures, gate):
    """Each picture against that of the level this one differs from by one change."""
    if reference_pictures is None:
        pytest.skip("the first level of the ladder has no reference")
    verdict = gate.cost(level, measure.compare(pictures, reference_pictures, Subject.REFERENCE))
    assert verdict.passed, verdict.message


def test_truth(level, pictures, true_pictures, gate):
    """Each picture against the true rendering of its caption."""
    if not true_pictures:
        pytest.skip("needs prompts with a true rendering: captions of the embedded source")
    verdict = gate.truth(level, measure.compare(pictures, true_pictures, Subject.TRUTH))
    assert verdict.passed, verdict.message
