"""The cutoff drops the unconditional branch once, at its step, and only where there is one."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from sdopt.pipelines.cfg_cutoff import cutoff_callback, in_turn


def a_pipeline(steps: int, guided: bool = True) -> Any:
    return SimpleNamespace(
        num_timesteps=steps, do_classifier_free_guidance=guided, _guidance_scale=7.5
    )


def run(fraction: float, steps: int, guided: bool = True) -> list[int]:
    """The batch size of the text embeddings after each step."""
    pipeline, callback = a_pipeline(steps, guided), cutoff_callback(fraction)
    embeds = torch.zeros(2, 3, 4)
    sizes = []
    for step in range(steps):
        embeds = callback(pipeline, step, None, {"prompt_embeds": embeds})["prompt_embeds"]
        pipeline.do_classifier_free_guidance = guided and pipeline._guidance_scale > 1
        sizes.append(len(embeds))
    return sizes


@pytest.mark.parametrize(
    ("fraction", "steps", "guided_after"),
    [(0.4, 20, 8), (0.4, 5, 2), (0.0, 3, 0), (0.99, 3, 2), (0.5, 1, 0)],
)
def test_it_acts_after_one_fixed_step(fraction: float, steps: int, guided_after: int) -> None:
    assert run(fraction, steps) == [2] * guided_after + [1] * (steps - guided_after)


def test_it_leaves_an_unguided_run_alone() -> None:
    assert run(0.4, 5, guided=False) == [2] * 5


def test_it_keeps_the_conditional_half_in_storage_of_its_own() -> None:
    embeds = torch.arange(8.0).reshape(4, 1, 2)
    pipeline = a_pipeline(steps=1)
    kept = cutoff_callback(0.0)(pipeline, 0, None, {"prompt_embeds": embeds})["prompt_embeds"]
    assert torch.equal(kept, embeds[2:])
    assert (kept.storage_offset(), pipeline._guidance_scale) == (0, 0.0)


def test_in_turn_lets_the_second_see_what_the_first_changed() -> None:
    def first(pipeline: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        return {"latents": tensors["latents"] + 1}

    def second(pipeline: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        return {"latents": tensors["latents"] * 10}

    both = in_turn(first, second)
    assert both(None, 0, None, {"latents": 1, "text": "kept"}) == {"latents": 20, "text": "kept"}
