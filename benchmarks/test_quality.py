"""Every level keeps generating its stored images, the same twice, close to reference and truth."""

import pytest

from sdopt.bench import measure
from sdopt.bench.metrics.metric import Subject


def test_drift(level, generated, images, store, gate):
    """Each image against the level's own stored one."""
    store.accept(level, generated)
    stored, unusable = store.images(level, images)
    verdict = gate.drift(level, measure.compare(images, stored), unusable)
    assert verdict.passed, verdict.message


def test_latents(level, generated, latents, store, gate):
    """What each image was decoded from against the level's own stored latents."""
    store.accept(level, generated)
    stored, unusable = store.latents(level, latents)
    verdict = gate.latents(level, measure.compare_latents(latents, stored), unusable)
    assert verdict.passed, verdict.message


def test_latents_float64(level, generated, double, store, gate):
    """The same in float64 with the level's own modules and weights: rounding hides nothing."""
    if not double:
        pytest.skip("needs the CPU, and a level that generates in float64")
    store.accept(level, generated)
    stored, unusable = store.latents(level, double, double=True)
    comparison = measure.compare_latents(double, stored, Subject.FLOAT64)
    verdict = gate.latents_float64(level, comparison, unusable)
    assert verdict.passed, verdict.message


def test_repeat(level, repeat, gate):
    """The first image generated twice: every bit of it and of its latents."""
    verdict = gate.repeat(level, repeat)
    assert verdict.passed, verdict.message


def test_cost(level, images, reference_images, gate):
    """Each image against that of the level this one differs from by one change."""
    if reference_images is None:
        pytest.skip("the first level of the ladder has no reference")
    verdict = gate.cost(level, measure.compare(images, reference_images, Subject.REFERENCE))
    assert verdict.passed, verdict.message


def test_ground_truth(level, images, ground_truth_images, gate):
    """Each image against the true rendering of its caption."""
    if not ground_truth_images:
        pytest.skip("needs prompts with a true rendering: captions of the embedded source")
    verdict = gate.ground_truth(
        level, measure.compare(images, ground_truth_images, Subject.GROUND_TRUTH)
    )
    assert verdict.passed, verdict.message
