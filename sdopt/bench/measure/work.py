"""The work of one image, in counts that are the same on every machine."""

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

from sdopt.bench.measure import own_work
from sdopt.bench.measure.gpu_activity import GpuActivity
from sdopt.bench.measure.observation import PARTS, SHALLOW, Call, Observation, Shapes, parts
from sdopt.bench.own.pipeline import OwnPipeline

if TYPE_CHECKING:
    from sdopt.pipelines.pipeline import LevelPipeline


MODULE = "module"
CONTEXT = "context"
TEXT = 2
"""Where the encoded prompts stand among a UNet call's shapes, after sample and timestep."""
WHOLE = ""
"""The name of a whole call among those of its blocks."""


@dataclass(frozen=True, kw_only=True)
class Work:
    """Counts of one image after warm-up.

    `unet_evaluations` counts samples, so a guided step counts 2, and a shallow one, which reuses
    deep features, nothing; `tflop` is 1e12 floating-point operations, a multiplication and an
    addition counted apart, of the arithmetic that is done: the engine does less for the same
    image (its time embeddings, a millionth, are not counted); `recompiles` and `graph_breaks`
    have to be 0. `calls` counts those of each part; `tflop_by_module` splits `tflop` by the
    blocks of the parts, such as 'unet.down_blocks.0'. `float8_products` is None for a level that
    has none. The rest is None without CUDA, see `GpuActivity`.
    """

    unet_evaluations: int
    tflop: float
    recompiles: int
    graph_breaks: int
    calls: dict[str, int]
    tflop_by_module: dict[str, float]
    float8_products: int | None = None
    kernels_by_part: dict[str, int] | None = None
    kernel_launches: int | None = None
    gpu_busy_ms: float | None = None
    host_syncs: int | None = None


def work_of(pipeline: LevelPipeline, seen: Observation) -> Work:
    """The counts behind an observation of that pipeline."""
    by_module: Counter[str] = Counter()
    known: dict[str, dict[str, int]] = {}
    for call in seen.calls:
        own = isinstance(pipeline, OwnPipeline)
        count = _flop_of_own_call(pipeline, call, known) if own else _flop_of_call(pipeline, call)
        by_module.update(count)
    if seen.contexts:
        by_module.update(_flop_of_contexts(pipeline, seen))
    total = by_module.pop(WHOLE, 0)  # a level that ran nothing did no work
    return Work(
        unet_evaluations=sum(call.shapes[0][0] for call in seen.calls_of("unet")),
        tflop=total / 1e12,
        recompiles=seen.new_graphs,
        graph_breaks=sum(max(call.graphs - 1, 0) for call in seen.calls),
        calls=dict(Counter(call.part for call in seen.calls)),
        tflop_by_module={name: flops / 1e12 for name, flops in sorted(by_module.items())},
        float8_products=seen.float8_products if getattr(pipeline.level, "float8", False) else None,
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
    owner = {"decoder": pipeline.vae, SHALLOW: pipeline.unet, **_owners(pipeline)}[call.part]
    how = call.part if call.fused else MODULE
    kind: Any = type(owner)
    counted = flop_by_block(kind, _config_json(owner), call.shapes, how, call.twins)
    return {name if name == WHOLE else f"{call.part}.{name}": n for name, n in counted.items()}


def _flop_of_own_call(
    pipeline: Any, call: Call, known: dict[str, dict[str, int]]
) -> dict[str, int]:
    """The same of a project's own module; `known` are those of calls before."""
    if not pipeline.level.counts_flop or call.inputs is None:
        return {}
    key = f"{call.part} {own_work.signature(call.inputs)}"
    if key not in known:
        what = f"level {pipeline.level.name!r}, {call.part}"
        counter = own_work.counted_flop(what, pipeline.parts[call.part], call.inputs)
        counted = _by_block(counter)
        known[key] = {n if n == WHOLE else f"{call.part}.{n}": of for n, of in counted.items()}
    return known[key]


def _flop_of_contexts(pipeline: LevelPipeline, seen: Observation) -> dict[str, int]:
    """Those of the prompts' keys and values, as often as the engine computed them."""
    kind: Any = type(pipeline.unet)
    config = _config_json(pipeline.unet)
    texts = [call.shapes[TEXT] for call in seen.unet_calls]
    if seen.contexts == 1:
        texts = texts[:1]
    total = 0
    for text in texts:
        total += flop_by_block(kind, config, (text,), CONTEXT)[WHOLE]
    return {WHOLE: total, "unet.context": total}


def _config_json(owner: Any) -> str:
    config = owner.config
    fields = config.to_dict() if hasattr(config, "to_dict") else _init_arguments(owner)
    return json.dumps(fields, sort_keys=True, default=str)


def _init_arguments(model: Any) -> dict[str, Any]:
    """A diffusers configuration without what it records besides the constructor's arguments."""
    known = inspect.signature(type(model).__init__).parameters
    return {name: value for name, value in model.config.items() if name in known}


def _owners(pipeline: LevelPipeline) -> dict[str, Any]:
    return {name: module for name, module in parts(pipeline).items() if name != "decoder"}


@lru_cache(maxsize=256)
def flop_by_block(
    kind: Callable[..., Any],
    config_json: str,
    shapes: Shapes,
    how: str = MODULE,
    twins: bool = False,
) -> dict[str, int]:
    """Floating-point operations of one call of a model of that class and configuration.

    Under WHOLE those of the call, and those of each block: 'conv_in', 'mid_block.resnets.0',
    'up_blocks.0'. Counted on the meta device, because the counter does not see the CPU's fused
    attention and would give another figure there. `shapes` are the call's tensor arguments'. `how`
    is MODULE for the class's own forward pass, else which of the engine's it is: a part's name or
    CONTEXT; those are not split into blocks. `twins` is as a Call's.
    """
    config = json.loads(config_json)
    counter = FlopCounterMode(display=False)
    with torch.device("meta"), torch.no_grad():
        if how == MODULE:
            call = _call_on_meta(kind, config, shapes)
        else:
            call = _fused_call_on_meta(kind, config, shapes, how, twins)
        with counter:
            call()
    if how != MODULE:
        total = int(counter.get_total_flops())
        return {WHOLE: total, "fused": total}
    return _by_block(counter)


def _by_block(counter: FlopCounterMode) -> dict[str, int]:
    """Under WHOLE all that was counted, and that of each block of the module that was called."""
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


def _fused_call_on_meta(
    kind: Any, config: dict[str, Any], shapes: Shapes, how: str, twins: bool
) -> Any:
    from sdopt.engine.decoders import fused_decoder
    from sdopt.engine.text import encode_text, joined_attentions
    from sdopt.engine.unet import FusedUNet

    if how == "text_encoder":
        from transformers import CLIPTextConfig

        encoder = kind(CLIPTextConfig.from_dict(config))
        joined = joined_attentions(encoder)
        return lambda: encode_text(encoder, joined, torch.zeros(shapes[0], dtype=torch.long))
    model = kind.from_config(config)
    if how == "decoder":
        decode = fused_decoder(model)
        return lambda: decode(_pixels(shapes[0]))
    fused = FusedUNet(unet=model)
    if how == CONTEXT:
        return lambda: fused.context(torch.empty(shapes[0]))
    context = fused.context(torch.empty(shapes[TEXT]))
    shift = {module: rows[0] for module, rows in fused.shifts(torch.zeros(1)).items()}
    if how == SHALLOW:
        deep = torch.empty(shapes[-1])
        return lambda: fused.shallow(_pixels(shapes[0]), deep, shift, context)
    return lambda: fused.store(_pixels(shapes[0]), shift, context, twins=twins)


def _pixels(shape: tuple[int, ...]) -> torch.Tensor:
    """Latents of that shape (B, C, H, W) as the engine has them, (B, H, W, C)."""
    batch, channels, height, width = shape
    return torch.empty((batch, height, width, channels))


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
        sample, text = torch.empty(shapes[0]), torch.empty(shapes[TEXT])
        return lambda: model(sample, torch.zeros(1), encoder_hidden_states=text)
    latents = torch.empty(shapes[0])
    return lambda: model.decoder(latents)
