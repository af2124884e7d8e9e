"""The work of one picture, in counts that are the same on every machine."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from sdopt.measure.gpu_activity import GpuActivity
from sdopt.measure.observation import Call, Observation, Shapes, parts

if TYPE_CHECKING:
    from sdopt.pipeline import LevelPipeline


@dataclass(frozen=True, kw_only=True)
class Work:
    """Counts of one picture after warm-up.

    `unet_evaluations` counts samples, so a guided step counts 2; `tflop` is 1e12 floating-point
    operations, a multiplication and an addition counted apart; `recompiles` and `graph_breaks` have
    to be 0. The rest is None without CUDA, see `GpuActivity`.
    """

    unet_evaluations: int
    tflop: float
    recompiles: int
    graph_breaks: int
    kernel_launches: int | None = None
    gpu_busy_ms: float | None = None
    host_syncs: int | None = None


def work_of(pipeline: LevelPipeline, seen: Observation) -> Work:
    """The counts behind an observation of that pipeline."""
    return Work(
        unet_evaluations=sum(seen.unet_batches),
        tflop=sum(_flop_of_call(pipeline, call) for call in seen.calls) / 1e12,
        recompiles=seen.new_graphs,
        graph_breaks=sum(max(call.graphs - 1, 0) for call in seen.calls),
        **_gpu_counts(seen.gpu),
    )


def _gpu_counts(gpu: GpuActivity | None) -> dict[str, Any]:
    names = ("kernel_launches", "gpu_busy_ms", "host_syncs")
    return {name: getattr(gpu, name) for name in names} if gpu else {}


def _flop_of_call(pipeline: LevelPipeline, call: Call) -> int:
    owner = {"decoder": pipeline.vae, **_owners(pipeline)}[call.part]
    config = owner.config
    fields = config.to_dict() if hasattr(config, "to_dict") else _init_arguments(owner)
    kind: Any = type(owner)
    return flop(kind, json.dumps(fields, sort_keys=True, default=str), call.shapes)


def _init_arguments(model: Any) -> dict[str, Any]:
    """A diffusers configuration without what it records besides the constructor's arguments."""
    known = inspect.signature(type(model).__init__).parameters
    return {name: value for name, value in model.config.items() if name in known}


def _owners(pipeline: LevelPipeline) -> dict[str, Any]:
    return {name: module for name, module in parts(pipeline).items() if name != "decoder"}


@lru_cache(maxsize=256)
def flop(kind: Callable[..., Any], config_json: str, shapes: Shapes) -> int:
    """Floating-point operations of one call of a model of that class and configuration.

    Counted on the meta device, because the counter does not see the CPU's fused attention and
    would give another figure there. `shapes` are the call's tensor arguments'.
    """
    config = json.loads(config_json)
    counter = FlopCounterMode(display=False)
    with torch.device("meta"), torch.no_grad():
        call = _call_on_meta(kind, config, shapes)
        with counter:
            call()
    return int(counter.get_total_flops())


def _call_on_meta(kind: Any, config: dict[str, Any], shapes: Shapes) -> Any:
    if kind.__name__ == "CLIPTextModel":
        from transformers import CLIPTextConfig

        # The fused attention of other implementations is not counted everywhere.
        text_config = CLIPTextConfig.from_dict({**config, "attn_implementation": "eager"})
        ids = torch.zeros(shapes[0], dtype=torch.long)
        encoder = kind(text_config)
        return lambda: encoder(ids)
    model = kind.from_config(config)
    if kind.__name__ == "UNet2DConditionModel":
        sample, text = torch.empty(shapes[0]), torch.empty(shapes[-1])
        return lambda: model(sample, torch.zeros(1), encoder_hidden_states=text)
    latents = torch.empty(shapes[0])
    return lambda: model.decoder(latents)
