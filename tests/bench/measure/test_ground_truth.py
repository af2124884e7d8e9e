"""Every caption of the embedded source has its true rendering, and nothing else has one."""

from __future__ import annotations

from sdopt.bench.measure.ground_truth import ground_truth
from sdopt.pipelines.workload import EMBEDDED_REQUESTS, PHOTO_REQUESTS, Request
from sdopt.weights.sources import Source, resolve


def test_a_photo_prompt_has_none(micro_source: Source) -> None:
    assert ground_truth(micro_source, PHOTO_REQUESTS) == {}


def test_every_caption_of_the_embedded_source_has_one() -> None:
    images = ground_truth(resolve("embedded"), EMBEDDED_REQUESTS)
    assert list(images) == [request.name for request in EMBEDDED_REQUESTS]
    assert {(image.shape, str(image.dtype)) for image in images.values()} == {
        ((128, 128, 3), "uint8")
    }


def test_a_caption_without_a_whole_scene_has_none() -> None:
    words = Request(name="words", prompt="red star", seed=1)
    assert ground_truth(resolve("embedded"), [words]) == {}
