"""Dynamic CFG cutoff: no unconditional branch once guidance has set the layout.

Source: the dynamic classifier-free guidance of the diffusers documentation,
https://huggingface.co/docs/diffusers/using-diffusers/callback
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from sdopt.levels import guided_steps

StepCallback = Callable[[Any, int, Any, dict[str, Any]], dict[str, Any]]


def cutoff_callback(fraction: float) -> StepCallback:
    """A `callback_on_step_end` that drops the unconditional half after the guided steps.

    `prompt_embeds`, of shape (2 * images, tokens, width), keeps its conditional half.
    """

    def drop_unconditional(
        pipeline: Any, step: int, timestep: Any, tensors: dict[str, Any]
    ) -> dict[str, Any]:
        at_cutoff = step + 1 == guided_steps(fraction, pipeline.num_timesteps)
        if at_cutoff and pipeline.do_classifier_free_guidance:
            # Cloned: a view would keep its storage offset and cost compiled code a recompile.
            tensors["prompt_embeds"] = tensors["prompt_embeds"].chunk(2)[-1].clone()
            pipeline._guidance_scale = 0.0
        return tensors

    return drop_unconditional


def in_turn(first: StepCallback, second: StepCallback) -> StepCallback:
    """One callback that calls both; the second sees what the first changed."""

    def call_both(
        pipeline: Any, step: int, timestep: Any, tensors: dict[str, Any]
    ) -> dict[str, Any]:
        tensors = {**tensors, **first(pipeline, step, timestep, tensors)}
        return {**tensors, **second(pipeline, step, timestep, tensors)}

    return call_both
