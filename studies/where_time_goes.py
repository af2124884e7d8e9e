"""Where an image's time goes, by families of kernels: `python -m studies.where_time_goes`.

- `record LEVEL... --json FILE`, on a GPU: one image of each level under torch.profiler, as the time
  and number of each kernel.
- `page --profile FILE --page PAGE`, anywhere: how much arithmetic and memory each family needs, its
  floor on that card, what its measured tiles say, and what the profile says.

Arithmetic and bytes are counted from the shapes of the level's operations, on the meta device.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import cache
from math import prod
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, AutoencoderTiny, UNet2DConditionModel
from torch.autograd import DeviceType  # type: ignore[attr-defined]
from transformers import CLIPTextConfig, CLIPTextModel

from sdopt.bench.report.results import markdown_table, write_table
from sdopt.engine import float8, ops
from sdopt.engine.cards import H100
from sdopt.engine.decoders import fused_decoder
from sdopt.engine.modules import Hoisted
from sdopt.engine.predictor import FusedPredictor
from sdopt.engine.tables import shipped_table
from sdopt.engine.text import encode_text, joined_attentions
from sdopt.engine.unet import FusedUNet
from sdopt.errors import BrokenFileError, SdoptError
from sdopt.levels import LEVELS, Level, get_level
from sdopt.tuning.jobs import CONVOLUTIONS, job_of_key
from sdopt.util.files import given, read_json, write_whole
from sdopt.util.replaced import replaced
from sdopt.weights import sd15
from studies.predict_a100 import MEASURED_ON, Peak
from studies.rows import is_number_from_0, wrong

SCHEMA = "sdopt-profile/1"
MARK = "where-time-goes"
SIDE = 64
"""Of the latents, that of 512 pixels."""
HALF, EIGHTH = 2, 1
"""Bytes of an entry in float16 and in float8."""
CONVOLUTION, PRODUCT, ATTENTION = "convolutions", "products", "attention"
BOTH = "convolutions and products"
GROUP_NORM, LAYER_NORM, REST = "GroupNorm", "LayerNorm", "the rest"
NO_TILES = ("norms", REST)
FAMILIES = (CONVOLUTION, PRODUCT, ATTENTION, GROUP_NORM, LAYER_NORM, REST)
NAMES: tuple[tuple[str, tuple[str, ...]], ...] = (
    (GROUP_NORM, ("sdopt_group", "sdopt_combine")),
    (LAYER_NORM, ("sdopt_layer_norm",)),
    (ATTENTION, ("sdopt_attention", "fmha", "flash", "sdpa")),
    (BOTH, ("sdopt_convolution", "sdopt_product", "sdopt_matrix", "sdopt_narrow", "sdopt_sum")),
    (BOTH, ("sdopt_geglu",)),
    (BOTH, ("gemm", "nvjet", "conv", "cutlass", "cudnn", "splitk")),
)
"""Parts of kernels' names, the first that fits."""
HEADINGS = (
    "kernels of",
    "operations",
    "TFLOP",
    "GB",
    "floor, ms",
    "by its tiles, ms",
    "measured, ms",
    "kernels",
)


@dataclass(frozen=True, kw_only=True)
class Work:
    """What operations need: arithmetic, bytes of operands and results once, seconds of floor."""

    operations: int = 0
    flop: float = 0.0
    moved: float = 0.0
    floor_s: float = 0.0
    tiles_s: float = 0.0
    untimed: int = 0

    def __add__(self, other: Work) -> Work:
        return Work(**{name: value + getattr(other, name) for name, value in vars(self).items()})


Counts = Mapping[tuple[str, str], tuple[int, float]]
"""By family and key: how many operations, and the bytes of one where no key tells."""


@cache
def operations(level: Level) -> Counts:
    """Those of one guided image of 512 pixels. Raises SdoptError without kernels of our own."""
    if not (level.fused and level.hoisted):
        raise SdoptError(
            f"level {level.name!r} does not run on the engine's kernels alone; choose one of "
            f"{', '.join(name for name, one in LEVELS.items() if one.fused and one.hoisted)}"
        )
    found: Counter[tuple[str, str]] = Counter()
    moved: dict[tuple[str, str], float] = {}
    with torch.device("meta"), torch.no_grad(), _watched(found, moved):
        _image(level)
    return {key: (count, moved.get(key, 0.0)) for key, count in found.items()}


def _image(level: Level) -> None:
    """As the engine generates one, over modules without values."""
    encoder = CLIPTextModel(CLIPTextConfig(**sd15.TEXT))
    text = encode_text(
        encoder, joined_attentions(encoder), torch.zeros(2, sd15.MAX_TOKENS, dtype=torch.long)
    )
    unet = UNet2DConditionModel(**sd15.UNET)
    fused = FusedUNet(unet=unet, kinds=float8.chosen_kinds() if level.float8 else ())
    guided = level.guided_steps()
    full = set(level.full_steps()) if level.feature_cache else None

    def module(x: Any, *_: Any, hoisted: Hoisted, deep: Any = None, **__: Any) -> list[Any]:
        x = x.permute(0, 2, 3, 1)
        if deep is not None:
            noise, more = fused.shallow(x, deep, hoisted.shift, hoisted.context), []
        else:
            noise, kept = fused.store(x, hoisted.shift, hoisted.context, twins=hoisted.twins)
            more = [] if full is None else [kept]
        return [noise.permute(0, 3, 1, 2), *more]

    predictor = FusedPredictor(
        module, torch.empty(level.steps), text, images=1, fused=fused, full=full
    )
    sample, before = torch.empty(1, SIDE, SIDE, 4), torch.empty(1, SIDE, SIDE, 4)
    for step in range(level.steps):
        if step >= guided:
            predictor.drop_unconditional(1)
        images = 2 if step < guided else 1
        noise = predictor.predict(torch.empty(images, SIDE, SIDE, 4), step)
        ops.solver_step(noise, sample, before, torch.empty(6), 1)
    tiny = level.decoder == "tiny-vae"
    vae = AutoencoderTiny(**sd15.TINY_VAE) if tiny else AutoencoderKL(**sd15.VAE)
    fused_decoder(vae)(sample)


@contextmanager
def _watched(
    found: Counter[tuple[str, str]], moved: dict[tuple[str, str], float]
) -> Iterator[None]:
    def keyed(key: str, *_: Any) -> None:
        job = job_of_key(key)
        family = CONVOLUTION if job.kind in CONVOLUTIONS else PRODUCT
        found[ATTENTION if job.kind == "attention" else family, key] += 1

    def wrapped(name: str, family: str) -> Callable[..., Any]:
        real = getattr(ops, name)

        def watched(*given: Any, **more: Any) -> Any:
            result = real(*given, **more)
            tensors = [t for t in (*given, *more.values(), result) if isinstance(t, torch.Tensor)]
            size = HALF * sum(prod(t.shape) for t in tensors)
            found[family, f"{name} {size}"] += 1
            moved[family, f"{name} {size}"] = size
            return result

        return watched

    others = {
        "group_norm": GROUP_NORM,
        "layer_norm": LAYER_NORM,
        "solver_step": REST,
        "quick_gelu": REST,
    }
    with ExitStack() as stack:
        stack.enter_context(replaced(ops, "_note", keyed))
        stack.enter_context(replaced(float8, "factor_of", lambda norm: 1.0))
        for name, family in others.items():
            stack.enter_context(replaced(ops, name, wrapped(name, family)))
        yield


def work_of(counts: Counts, peak: Peak, tiles: Mapping[str, Any]) -> dict[str, Work]:
    """By family. The floor of an operation is its arithmetic at the peak, or its bytes once."""
    found = dict.fromkeys(FAMILIES, Work())
    for (family, key), (count, size) in counts.items():
        one = Work(operations=1, moved=size)
        if family in (CONVOLUTION, PRODUCT, ATTENTION):
            one = _product(key, peak, tiles)
        memory_s = one.moved / (peak.tb_per_s * 1e12)
        one = replace(one, floor_s=max(one.floor_s, memory_s))
        found[family] += Work(**{name: count * value for name, value in vars(one).items()})
    return found


def _product(key: str, peak: Peak, tiles: Mapping[str, Any]) -> Work:
    job = job_of_key(key)
    x, weight = job.first_two
    is_attention = job.kind == "attention"
    inputs = prod(x) + prod(weight) * (2 if is_attention else 1)
    if job.kind == "joined":
        inputs += prod(job.shapes[3] or (0,))
    if job.kind == "added":
        inputs += prod(job.shapes[4] or (0,))
    pixels = job.flop / (2 * prod(weight))  # or rows: how often the weights are applied
    result = prod(x) if is_attention else pixels * weight[0] / (2 if job.kind == "geglu" else 1)
    wide = EIGHTH if job.float8 else HALF
    speed = peak.tflop_per_s * (2e12 if job.float8 else 1e12)
    like = key.replace("added", "linear")  # as the engine takes the tile of one without residual
    us = tiles.get(key, tiles.get(like, {})).get("us")
    return Work(
        operations=1,
        flop=job.flop,
        moved=wide * inputs + HALF * result,
        floor_s=job.flop / speed,
        tiles_s=(us or 0.0) / 1e6,
        untimed=us is None,
    )


def family_of(kernel: str) -> str:
    """The family of a kernel by its name."""
    name = kernel.lower()
    return next((family for family, parts in NAMES if any(p in name for p in parts)), REST)


def record(names: Sequence[str], source: str) -> dict[str, Any]:
    """One image of each level under the profiler, after two others. Needs a GPU."""
    if not torch.cuda.is_available():
        raise SdoptError("record needs a CUDA device; `page` shows what one has recorded")
    import triton

    from sdopt.pipelines.pipeline import load_pipeline
    from sdopt.pipelines.workload import generate, load_workload

    levels: dict[str, Any] = {}
    for name in names:
        pipeline = load_pipeline(name, source=source)
        request = load_workload(pipeline.source).requests[0]
        for _ in range(2):
            generate(pipeline, request)
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
            generate(pipeline, request)
            torch.cuda.synchronize()
        levels[name] = kernels_of(profile.events() or [])
        print(f"{name}: {len(levels[name])} kernels by name", file=sys.stderr, flush=True)
        del pipeline
        torch.cuda.empty_cache()
    return {
        "schema": SCHEMA,
        "device": torch.cuda.get_device_name(),
        "torch": torch.__version__,
        "triton": triton.__version__,
        "source": source,
        "levels": levels,
    }


def kernels_of(events: Sequence[Any]) -> dict[str, list[float]]:
    """Number and microseconds of each kernel by name; copies and clearing are kernels too."""
    found: dict[str, list[float]] = {}
    for event in events:
        if event.device_type == DeviceType.CUDA:
            row = found.setdefault(event.name, [0, 0.0])
            row[0] += 1
            row[1] = round(row[1] + event.device_time, 3)
    return found


RECORD = "`record` writes one, on a GPU"


def read_profile(path: Path) -> dict[str, Any]:
    """What `record` wrote. Raises BrokenFileError for anything else."""
    with given(path, RECORD):
        data: dict[str, Any] = read_json(path)
    if data.get("schema") != SCHEMA:
        raise BrokenFileError(f"{path} is no profile; {RECORD}")
    for what in _faults(data):
        raise BrokenFileError(f"{path} is damaged: {what}; {RECORD}")
    return data


def _faults(data: Mapping[str, Any]) -> Iterator[str]:
    """What cannot be in a profile, by its field; only the first one is sure."""
    if not isinstance(data.get("device"), str):
        yield wrong(data, "device", "no text")
    if not isinstance(data.get("levels"), dict) or not data["levels"]:
        yield wrong(data, "levels", "no object with levels")
    for level, kernels in data["levels"].items():
        if not isinstance(kernels, dict) or not kernels:
            yield f"levels: {wrong(data['levels'], level, 'no object with kernels')}"
        for name, measured in kernels.items():
            if not _is_measured(measured):
                yield f"{level}: {wrong(kernels, name, 'not a count and microseconds')}"


def _is_measured(found: Any) -> bool:
    pair = isinstance(found, list) and len(found) == 2 and all(map(is_number_from_0, found))
    return pair and isinstance(found[0], int)


def peak_of(device: str) -> Peak:
    """By a GPU's name. Raises SdoptError for one whose data sheet is not here."""
    key = device.lower().replace(" ", "-")
    for begin, peak in MEASURED_ON.items():
        if key.startswith(begin):
            return peak
    raise SdoptError(f"no data sheet of {device!r} here; there are {', '.join(MEASURED_ON)}")


def measured_of(kernels: Mapping[str, Sequence[float]]) -> dict[str, tuple[int, float]]:
    """Number and milliseconds by family."""
    found: dict[str, tuple[int, float]] = {}
    for name, (count, us) in kernels.items():
        before = found.get(family_of(name), (0, 0.0))
        found[family_of(name)] = (before[0] + int(count), before[1] + us / 1e3)
    return found


def table(work: Mapping[str, Work], measured: Mapping[str, tuple[int, float]] | None) -> list[str]:
    """Rows by family; a profile knows convolutions and products by one name, hence their sum."""
    rows = [(name, work[name], None) for name in (CONVOLUTION, PRODUCT)]
    both = work[CONVOLUTION] + work[PRODUCT]
    shown: list[tuple[str, Work, str | None]] = [*rows, (BOTH, both, BOTH)]
    shown += [(name, work[name], name) for name in (ATTENTION, GROUP_NORM, LAYER_NORM, REST)]
    whole = sum(work.values(), Work())
    lines = [_row(name, one, (measured or {}).get(key or "")) for name, one, key in shown]
    total = None
    if measured:
        total = (sum(n for n, _ in measured.values()), sum(ms for _, ms in measured.values()))
    return markdown_table(HEADINGS, [*lines, _row("all", whole, total, NO_TILES)])


def _row(
    name: str, one: Work, measured: tuple[int, float] | None, left_out: Sequence[str] = ()
) -> tuple[str, ...]:
    """`left_out` has no tiles: the sum of their times is without them."""
    timed = one.tiles_s > 0
    tiles = f"{one.tiles_s * 1e3:.1f}" if timed else "-"
    if one.untimed:
        left_out = (*left_out, f"{one.untimed} operations whose tile was never timed")
    if timed and left_out:
        tiles += f" (without {', '.join(left_out)})"
    count, ms = ("-", "-") if measured is None else (str(measured[0]), f"{measured[1]:.1f}")
    numbers = (f"{one.flop / 1e12:.2f}", f"{one.moved / 1e9:.1f}", f"{one.floor_s * 1e3:.1f}")
    return (name, str(one.operations), *numbers, tiles, ms, count)


def page(options: argparse.Namespace) -> list[str]:
    """The tables of all levels, written into the page if one is named."""
    profile = read_profile(options.profile) if options.profile else None
    device = profile["device"] if profile else options.device
    stored = json.loads(shipped_table(H100).read_text(encoding="utf-8"))
    lines: list[str] = []
    for name in options.levels or (profile["levels"] if profile else DEFAULT):
        kernels = profile["levels"].get(name) if profile else None
        work = work_of(operations(get_level(name)), peak_of(device), stored["measured"])
        lines += [f"`{name}`, {device}:", ""]
        lines += [*table(work, measured_of(kernels) if kernels else None), ""]
    if options.page:
        write_table(options.page, lines[:-1], MARK)
    return lines


DEFAULT = ("hoisted", "express", "swift", "turbo", "express-float8")


def main(arguments: Sequence[str] | None = None) -> int:
    """Record, or write the tables; 2 for what cannot be done."""
    parser = argparse.ArgumentParser(prog="python -m studies.where_time_goes", description=__doc__)
    parts = parser.add_subparsers(dest="what", required=True)
    recording = parts.add_parser("record", help="on a GPU: profile one image of each level")
    recording.add_argument("levels", nargs="+", metavar="LEVEL")
    recording.add_argument("--source", default="sd15-random", help="(sd15-random)")
    recording.add_argument("--json", type=Path, required=True, help="file to write")
    showing = parts.add_parser("page", help="anywhere: the tables")
    showing.add_argument("--profile", type=Path, metavar="FILE", help="what `record` wrote")
    showing.add_argument("--device", default="NVIDIA H200", help="without one (NVIDIA H200)")
    showing.add_argument("--levels", nargs="*", metavar="LEVEL", help="(those of the profile)")
    showing.add_argument("--page", type=Path, help="page with marks to write them into")
    options = parser.parse_args(arguments)
    try:
        if options.what == "record":
            content = record([get_level(name).name for name in options.levels], options.source)
            write_whole(options.json, json.dumps(content, indent=1).encode() + b"\n")
            print(f"wrote {options.json}")
        else:
            print("\n".join(page(options)))
    except SdoptError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
