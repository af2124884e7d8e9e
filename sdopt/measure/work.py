"""The work of one picture, in counts that are the same on every machine."""

from __future__ import annotations

import inspect
import json
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from sdopt.measure.gpu_activity import GpuActivity
from sdopt.measure.observation import PARTS, Call, Observation, Shapes, parts

if TYPE_CHECKING:
    from sdopt.pipeline import LevelPipeline


WHOLE = ""
"""The name of a whole call among those of its blocks."""


@dataclass(frozen=True, kw_only=True)
class Work:
    """Counts of one picture after warm-up.

    `unet_evaluations` counts samples, so a guided step counts 2; `tflop` is 1e12 floating-point
    operations, a multiplication and an addition counted apart; `recompiles` and `graph_breaks` have
    to be 0. `calls` counts those of each part; `tflop_by_module` splits `tflop` by the blocks of
    the parts, such as 'unet.down_blocks.0'. The rest is None without CUDA, see `GpuActivity`.
    """

    unet_evaluations: int
    tflop: float
    recompiles: int
    graph_breaks: int
    calls: dict[str, int]
    tflop_by_module: dict[str, float]
    kernels_by_part: dict[str, int] | None = None
    kernel_launches: int | None = None
    gpu_busy_ms: float | None = None
    host_syncs: int | None = None


def work_of(pipeline: LevelPipeline, seen: Observation) -> Work:
    """The counts behind an observation of that pipeline."""
    by_module: Counter[str] = Counter()
    for call in seen.calls:
        by_module.update(_flop_of_call(pipeline, call))
    total = by_module.pop(WHOLE)
    return Work(
        unet_evaluations=sum(seen.unet_batches),
        tflop=total / 1e12,
        recompiles=seen.new_graphs,
        graph_breaks=sum(max(call.graphs - 1, 0) for call in seen.calls),
        calls=dict(Counter(call.part for call in seen.calls)),
        tflop_by_module={name: flops / 1e12 for name, flops in sorted(by_module.items())},
        **_gpu_counts(seen.gpu),
    )


def _gpu_counts(gpu: GpuActivity | None) -> dict[str, Any]:
    if gpu is None:
        return {}
    kernels = Counter(dict.fromkeys(PARTS, 0))
    for call in gpu.calls:
        kernels[call.part] += call.kernels
    kernels["between"] = gpu.kernel_launches - kernels.total()
    names = ("kernel_launches", "gpu_busy_ms", "host_syncs")
    return {"kernels_by_part": dict(kernels), **{name: getattr(gpu, name) for name in names}}


def _flop_of_call(pipeline: LevelPipeline, call: Call) -> dict[str, int]:
    """FLOP of the call under WHOLE, and of each of its blocks under '<part>.<block>'."""
    owner = {"decoder": pipeline.vae, **_owners(pipeline)}[call.part]
    config = owner.config
    fields = config.to_dict() if hasattr(config, "to_dict") else _init_arguments(owner)
    kind: Any = type(owner)
    counted = flop_by_block(kind, json.dumps(fields, sort_keys=True, default=str), call.shapes)
    return {name if name == WHOLE else f"{call.part}.{name}": n for name, n in counted.items()}


def _init_arguments(model: Any) -> dict[str, Any]:
    """A diffusers configuration without what it records besides the constructor's arguments."""
    known = inspect.signature(type(model).__init__).parameters
    return {name: value for name, value in model.config.items() if name in known}


def _owners(pipeline: LevelPipeline) -> dict[str, Any]:
    return {name: module for name, module in parts(pipeline).items() if name != "decoder"}


@lru_cache(maxsize=256)
def flop_by_block(kind: Callable[..., Any], config_json: str, shapes: Shapes) -> dict[str, int]:
    """Floating-point operations of one call of a model of that class and configuration.

    Under WHOLE those of the call, and those of each block: 'conv_in', 'mid_block.resnets.0',
    'up_blocks.0'. Counted on the meta device, because the counter does not see the CPU's fused
    attention and would give another figure there. `shapes` are the call's tensor arguments'.
    """
    config = json.loads(config_json)
    counter = FlopCounterMode(display=False)
    with torch.device("meta"), torch.no_grad():
        call = _call_on_meta(kind, config, shapes)
        with counter:
            call()
    counts = {_path(name): sum(ops.values()) for name, ops in counter.flop_counts.items()}
    numbered = {path[:-1] for path in counts if path and path[-1].isdigit()}
    blocks = {path for path in counts if _is_block(path, numbered)}
    return {
        WHOLE: int(counter.get_total_flops()),
        **{".".join(path): int(counts[path]) for path in blocks},
    }


def _path(name: str) -> tuple[str, ...]:
    """('up_blocks', '0') for 'UNet2DConditionModel.up_blocks.0'."""
    return tuple(name.split(".")[1:])


def _is_block(path: tuple[str, ...], numbered: set[tuple[str, ...]]) -> bool:
    """Whether this is the first numbered module on its way, or a top one without numbered ones."""
    if not path:
        return False
    if path[-1].isdigit():
        return not any(part.isdigit() for part in path[:-1])
    return len(path) == 1 and not any(other[:1] == path for other in numbered)


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
