"""What a pipeline notes during a call, kept when a callback of the call generates with it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

CALL_STATE = (
    "_guidance_scale",
    "_guidance_rescale",
    "_clip_skip",
    "_cross_attention_kwargs",
    "_interrupt",
    "_num_timesteps",
)
"""What StableDiffusionPipeline writes at the beginning of a call and reads at each step."""


@contextmanager
def leaving_the_outer_call(pipeline: Any) -> Iterator[None]:
    """If this is a call within a call, the outer one finds pipeline and scheduler as they were.

    Stock diffusers has one set of notes, so that the outer call would go on with the inner one's.
    """
    if not pipeline.generating:
        pipeline.generating = True
        try:
            yield
        finally:
            pipeline.generating = False
        return
    noted = {name: value for name, value in vars(pipeline).items() if name in CALL_STATE}
    scheduler = pipeline.scheduler
    steps = dict(vars(scheduler))
    try:
        yield
    finally:
        vars(pipeline).update(noted)
        vars(scheduler).clear()
        vars(scheduler).update(steps)
