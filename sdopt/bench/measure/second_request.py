"""Whether an image depends on the one before it: a second request that differs in all."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from sdopt.pipelines.workload import Request, generate

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from sdopt.pipelines.pipeline import LevelPipeline

    Image = NDArray[np.float32]

STEPS = 3
"""Few: what is kept from an earlier request shows in any number of them."""
GRID_PX = 64
"""Sizes are multiples of this for every level."""
MORE_GUIDANCE = 1.5
STEPS_NAME = "num_inference_steps"
SETTINGS = {"guidance": "guidance_scale", "number of steps": STEPS_NAME}
"""What a project's own pipeline may not let a request change."""
TOLERANCE = {"cpu": 1e-5, "cuda": 5e-4}
"""Mean difference, of the full range, that two images of one request may have. On a CPU they are
equal; on a GPU a fresh pipeline may find other algorithms. docs/explanation/verdicts.md says
what faults do."""


@dataclass(frozen=True, kw_only=True)
class Generation:
    """A request and the arguments that it is generated with."""

    request: Request
    settings: dict[str, Any]

    def by(self, pipeline: LevelPipeline) -> Image:
        """Its image."""
        return generate(pipeline, self.request, **self.settings)


def kept_state(
    pipeline: LevelPipeline,
    requests: Sequence[Request],
    fresh: Callable[[], LevelPipeline] | None = None,
) -> tuple[str, ...]:
    """One sentence for everything that an earlier request left in the pipeline; empty is the proof.

    `fresh` builds a pipeline of the same level that has generated nothing; without it the
    request is generated after two different ones instead.
    """
    first, varied = requests[0], varies_size(pipeline)
    fixed: set[str] = getattr(pipeline, "fixed", set())
    tolerance = TOLERANCE[pipeline.device.type]
    second = second_generation(pipeline, requests, size=varied)
    generate(pipeline, first)
    image = second.by(pipeline)
    missing = [
        f"second request: its {name} was not used"
        for name, other in _each_changed(second, first, pipeline, size=varied).items()
        if name not in fixed and np.array_equal(other.by(pipeline), image)
    ]
    if varied and image.shape[:2] != (second.settings["height"], second.settings["width"]):
        missing.append(f"second request: its size is {image.shape[:2]}")
    missing += _differing("after another request", image, second.by(pipeline), tolerance)
    if fresh is not None:
        missing += _differing("on a fresh pipeline", image, second.by(fresh()), tolerance)
    return tuple(missing)


def varies_size(pipeline: LevelPipeline) -> bool:
    """Whether another size costs no minutes: Inductor would compile for it, anywhere."""
    return not pipeline.level.compiled and "size" not in getattr(pipeline, "fixed", set())


def second_generation(
    pipeline: LevelPipeline, requests: Sequence[Request], *, size: bool
) -> Generation:
    """A request that differs from the first in prompts, seed, guidance, steps and maybe size."""
    first = requests[0]
    # Any source knows the words of its own prompts.
    prompt = requests[1].prompt if len(requests) > 1 else " ".join(first.prompt.split()[:-1])
    source = pipeline.source
    settings: dict[str, Any] = {
        "num_inference_steps": STEPS if pipeline.level.steps != STEPS else STEPS - 1,
        "guidance_scale": source.guidance_scale + MORE_GUIDANCE,
    }
    for name, setting in SETTINGS.items():
        if name in getattr(pipeline, "fixed", set()):
            del settings[setting]
    if size:
        half = source.size_px // 2
        other = half if half and half % GRID_PX == 0 else source.size_px + GRID_PX
        settings |= {"height": source.size_px, "width": other}
    negative = first.prompt if first.prompt != first.negative_prompt else ""
    request = replace(
        first, name="second", prompt=prompt, negative_prompt=negative, seed=first.seed + 1
    )
    return Generation(request=request, settings=settings)


def _each_changed(
    second: Generation, first: Request, pipeline: LevelPipeline, *, size: bool
) -> dict[str, Generation]:
    """The second request with one thing changed: an equal image did not use that thing.

    The last one is as large as the second and has noise that none of the others has, so that
    something of it would show in whatever is generated next.
    """
    settings: dict[str, dict[str, Any]] = {
        "guidance": {"guidance_scale": pipeline.source.guidance_scale},
        "number of steps": {"num_inference_steps": second.settings.get(STEPS_NAME, STEPS) + 1},
    }
    if size:
        settings["size"] = {"width": pipeline.source.size_px}
    words: dict[str, dict[str, Any]] = {
        "prompt": {"prompt": first.prompt},
        "negative prompt": {"negative_prompt": first.negative_prompt},
        "seed": {"seed": second.request.seed + 1},
    }
    return {
        **{
            name: replace(second, settings={**second.settings, **setting})
            for name, setting in settings.items()
        },
        **{
            name: replace(second, request=replace(second.request, **word))
            for name, word in words.items()
        },
    }


def _differing(when: str, image: Image, again: Image, tolerance: float) -> list[str]:
    if image.shape != again.shape:
        return [f"second request: {when} its image is of another shape, {again.shape}"]
    difference = float(np.abs(image - again).mean())
    if difference <= tolerance:  # NaN is no likeness
        return []
    return [
        f"second request: {when} its image differs, by {difference:.2g} "
        f"({tolerance:g} may be): something was kept from an earlier request"
    ]
