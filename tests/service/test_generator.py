"""A worker: its pixels are those of the pipeline, whatever the batch; and its messages."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import fake_generator
import numpy as np
import pytest
import torch

from sdopt.levels import get_level
from sdopt.pipelines.pipeline import build
from sdopt.pipelines.workload import Request, generate
from sdopt.service import messages, worker, workers
from sdopt.service.generator import PipelineGenerator
from sdopt.service.memory import anonymous_file
from sdopt.service.queueing import Kind
from sdopt.service.settings import Shape
from sdopt.service.worker import Wanted
from sdopt.weights.sources import Source

KIND = Kind(width=64, height=64, steps=2, guidance_scale=7.5)


def wanted(seed: int, prompt: str = "a cat", side: int = 64) -> Wanted:
    pixels = np.zeros((side, side, 3), dtype=np.uint8)
    return Wanted(prompt=prompt, negative_prompt="a dog", seed=seed, pixels=pixels)


@pytest.fixture(scope="module", params=["baseline", "turbo"])
def generator(request: pytest.FixtureRequest, micro_source: Source) -> PipelineGenerator:
    pipeline = build(micro_source, get_level(request.param), torch.device("cpu"))
    return PipelineGenerator(pipeline)


def test_pixels_are_those_of_the_pipeline(generator: PipelineGenerator) -> None:
    one = wanted(3)
    assert generator.begin(KIND, [one])() == [True]
    request = Request(name="cat", prompt="a cat", negative_prompt="a dog", seed=3)
    size = {"width": 64, "height": 64, "num_inference_steps": 2, "guidance_scale": 7.5}
    [image] = generator.pipeline.numpy_to_pil(generate(generator.pipeline, request, **size))
    assert np.array_equal(one.pixels, np.asarray(image))


def test_an_image_does_not_depend_on_its_batch_mates_or_its_place(
    generator: PipelineGenerator,
) -> None:
    first, second = [wanted(seed) for seed in (1, 2, 3)], [wanted(seed) for seed in (7, 8, 1)]
    generator.begin(KIND, first)()
    generator.begin(KIND, second)()
    assert np.array_equal(first[0].pixels, second[2].pixels)
    assert not np.array_equal(first[0].pixels, first[1].pixels)


def test_a_batch_is_the_single_images_within_one_of_255(generator: PipelineGenerator) -> None:
    """Other sums, so maybe other last bits: only the number of images may change them."""
    batch = [wanted(seed) for seed in range(3)]
    generator.begin(KIND, batch)()
    for seed, one in enumerate(batch):
        alone = wanted(seed)
        generator.begin(KIND, [alone])()
        apart = np.abs(alone.pixels.astype(int) - one.pixels.astype(int))
        assert apart.max() <= 1


def test_nan_is_told(generator: PipelineGenerator, monkeypatch: pytest.MonkeyPatch) -> None:
    images = torch.stack([torch.zeros(3, 64, 64), torch.full((3, 64, 64), torch.nan)])

    class Broken:
        def __call__(self, *args: Any, **kwargs: Any) -> Any:
            return type("Output", (), {"images": images})

    monkeypatch.setattr(generator, "_pipeline_of", lambda kind: Broken())
    assert generator.begin(KIND, [wanted(1), wanted(2)])() == [True, False]


def test_facts(generator: PipelineGenerator) -> None:
    facts = generator.facts
    level = generator.pipeline.level
    assert (facts.size_px, facts.steps, facts.compiles) == (64, level.steps, False)
    assert facts.multiple_px == (64 if level.name == "turbo" else 8)


def test_warming_up_measures_the_rate(generator: PipelineGenerator) -> None:
    memory = np.zeros(10, dtype=np.uint8)
    assert generator.warm([Shape(width=64, height=64, steps=2)], 2, memory) > 0
    assert generator._pipeline_of(KIND) is generator.pipeline


# The worker's side of the messages, in this process


class Front:
    """The other end of a worker that runs in a thread."""

    def __init__(self) -> None:
        self.ours, theirs = socket.socketpair()
        self.memory = anonymous_file()
        self.worker = worker.Worker(theirs, self.memory)
        self.code: int | None = None
        self.thread = threading.Thread(target=self._run, daemon=True)
        self.thread.start()
        self.file = self.ours.makefile("rb")
        self.lines = iter(messages.lines(self.file))

    def _run(self) -> None:
        self.code = self.worker.run()
        with suppress(OSError):  # its thread that reads is let go
            self.worker.connection.shutdown(socket.SHUT_RDWR)
        self.worker.incoming.close()
        self.worker.connection.close()

    def send(self, kind: str, /, **values: Any) -> None:
        self.ours.sendall(messages.line(kind, **values))

    def load(self, **source: Any) -> Any:
        given = {"maker": fake_generator.MAKER, "level": "turbo", "device": "cpu"}
        self.send("load", **given, source=json.dumps(source))
        return next(self.lines)

    def warm(self) -> Any:
        shape = {"width": 16, "height": 16, "steps": 20}
        self.send("warm", shapes=[shape], max_batch=4, slots=4, slot_bytes=768)
        return next(self.lines)

    def generate(self, *prompts: str) -> Any:
        jobs = [
            {"prompt": prompt, "negative_prompt": "", "seed": slot, "slot": slot}
            for slot, prompt in enumerate(prompts)
        ]
        kind = {"width": 16, "height": 16, "steps": 20, "guidance_scale": 7.5}
        self.send("generate", batch=1, kind=kind, jobs=jobs)
        return next(self.lines)

    def end(self) -> int | None:
        with suppress(OSError):  # the worker has ended already
            self.ours.shutdown(socket.SHUT_RDWR)
        self.thread.join(20)
        return self.code


@pytest.fixture
def front() -> Iterator[Front]:
    one = Front()
    yield one
    one.end()
    one.file.close()
    one.ours.close()


def test_a_worker_loads_warms_up_generates_and_ends_with_its_front(front: Front) -> None:
    assert front.load()["is"] == "loaded"
    assert front.warm()["is"] == "ready"
    done = front.generate("a cat", "nan", "a dog")
    assert (done["is"], done["batch"], done["sound"]) == ("done", 1, [True, False, True])
    assert front.end() == 0


def test_an_image_that_is_refused_does_not_take_its_batch_mates_along(front: Front) -> None:
    front.load()
    front.warm()
    assert front.generate("a cat", "refused")["sound"] == [True, False]
    assert "cannot be generated" in front.generate("refused")["error"]
    assert front.generate("a cat")["sound"] == [True]


def test_an_unknown_error_ends_the_worker(front: Front) -> None:
    front.load()
    front.warm()
    assert "CUDA error" in front.generate("break", "a cat")["error"]
    front.thread.join(20)
    assert front.code == worker.BROKEN


def test_what_cannot_be_loaded_is_named(front: Front) -> None:
    told = front.load(fail="named")
    assert (told["is"], told["error"]) == ("unusable", "there are no such weights")
    front.thread.join(20)
    assert front.code == 2


def test_a_front_that_goes_early_ends_the_worker(front: Front) -> None:
    assert front.end() == 0


# Which GPU a worker sees


@pytest.mark.parametrize(
    ("device", "visible", "own", "name"),
    [
        ("auto", None, None, None),
        ("cpu", "2,3", "2,3", "cpu"),
        ("cuda:1", None, "1", "cuda:0"),
        ("cuda:1", "2,3", "3", "cuda:0"),
        ("cuda:1", "GPU-a,MIG-b", "MIG-b", "cuda:0"),
        ("cuda:5", "2,3", "2,3", "cuda:5"),
    ],
)
def test_a_worker_sees_its_own_gpu(
    device: str, visible: str | None, own: str | None, name: str | None
) -> None:
    given = {"PATH": "/bin"} | ({"CUDA_VISIBLE_DEVICES": visible} if visible else {})
    environment, called = workers.device_environment(device, given)
    assert (environment.get("CUDA_VISIBLE_DEVICES"), called) == (own, name)


def test_shared_memory_has_no_name_and_needs_none() -> None:
    from sdopt.service.memory import Slots

    file = anonymous_file()
    ours, theirs = Slots(file, 2, 48), Slots(file, 2, 48)
    theirs.pixels(1, 4, 4)[:] = 9
    assert (ours.pixels(1, 4, 4) == 9).all()
    assert not ours.pixels(0, 4, 4).any()
    assert not list(Path("/dev/shm").glob("*sdopt*"))
