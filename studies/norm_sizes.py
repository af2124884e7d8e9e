"""Sizes of the norms' kernels on this card: `python -m studies.norm_sizes --json norms.json`.

Products and convolutions have tiles; norms have a few constants in `sdopt.engine.launch`. Each norm
of Stable Diffusion 1.5 is timed with them, and with one of them another one at a time, between
short kernels as `sdopt tune` times tiles.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from torch import Tensor

from sdopt.bench.report.results import markdown_table
from sdopt.bench.session import RunContext, Settings
from sdopt.engine import ops
from sdopt.engine.cards import card_of
from sdopt.engine.decoders import FusedDecoder
from sdopt.engine.dependent import launches
from sdopt.engine.modules import hoist
from sdopt.engine.tiles import LIBRARY, Tile
from sdopt.engine.unet import FusedUNet
from sdopt.errors import SdoptError
from sdopt.util.progress import Progress
from sdopt.util.replaced import replaced
from sdopt.weights import sd15
from studies.rows import Row, Rows, continue_rows, heading, read_rows

VARIED: Mapping[str, Mapping[str, Sequence[Any]]] = {
    "group_norm": {
        "SMALL_NORM_PIXELS": (0, 256, 1024),
        "STATISTICS": ((2, 2048, 4), (2, 4096, 4), (4, 4096, 4), (8, 8192, 8)),
        "LARGE_STATISTICS": ((2, 2048, 2), (8, 4096, 4), (8, 8192, 8)),
        "MOST_CHUNKS": (8, 32),
        "LARGEST_CHUNK": (512, 2048, 4096),
        "PIECES": ((2048, 64, 4), (4096, 32, 4), (4096, 64, 4), (8192, 128, 8)),
    },
    "layer_norm": {"LAYER_NORM_ENTRIES": (1024, 2048, 8192)},
}
"""Constants of `sdopt.engine.launch` by what they are for, and values that are tried in each."""
FIELDS = ("us", "others", "times")
STEPS = {"a guided step": 2, "a step": 1}
LATENT_SIDE = 64
LEAST_GAIN = 0.03
"""A smaller one may be noise."""


@dataclass(frozen=True, kw_only=True)
class Norm:
    """One norm's shapes: x of `sizes`, continued by `more` channels; what is done beside it."""

    kind: str
    sizes: tuple[int, ...]
    more: int = 0
    groups: int = 1
    shifted: bool = False
    silu: bool = False

    @property
    def name(self) -> str:
        """'group_norm 2x64x64x640+320 silu'."""
        shape = "x".join(map(str, self.sizes)) + (f"+{self.more}" if self.more else "")
        words = [word for word in ("shifted", "silu") if getattr(self, word)]
        return " ".join([self.kind, shape, *words])


def norms_of(compute: Callable[[], Any]) -> Counter[Norm]:
    """How often the engine computes each norm meanwhile; it computes for real."""
    seen: Counter[Norm] = Counter()
    group_norm, layer_norm = ops.group_norm, ops.layer_norm

    def note_group(x: Tensor, norm: Any, *, x2: Tensor | None = None, **how: Any) -> Tensor:
        more = 0 if x2 is None else x2.shape[3]
        seen[
            Norm(
                kind="group_norm",
                sizes=tuple(x.shape),
                more=more,
                groups=norm.num_groups,
                shifted=how.get("shift") is not None,
                silu=how.get("silu", False),
            )
        ] += 1
        return group_norm(x, norm, x2=x2, **how)

    def note_layer(x: Tensor, *more: Any) -> Tensor:
        seen[Norm(kind="layer_norm", sizes=(x.numel() // x.shape[-1], x.shape[-1]))] += 1
        return layer_norm(x, *more)

    with replaced(ops, "group_norm", note_group), replaced(ops, "layer_norm", note_layer):
        compute()
    return seen


def norms_of_an_image() -> dict[str, Counter[Norm]]:
    """Those of one step of Stable Diffusion 1.5, guided and not, and of its decoder."""
    with torch.device("meta"), torch.no_grad():
        unet = FusedUNet(unet=UNet2DConditionModel(**sd15.UNET))
        decoder = FusedDecoder(AutoencoderKL(**sd15.VAE).decoder)

        def step(images: int) -> Any:
            text = torch.empty(images, sd15.MAX_TOKENS, sd15.UNET["cross_attention_dim"])
            ready = hoist(unet, 1, text)
            latents = torch.empty(images, LATENT_SIDE, LATENT_SIDE, 4)
            return unet(latents, ready.shift, ready.context)

        found = {name: norms_of(partial(step, images)) for name, images in STEPS.items()}
        latents = torch.empty(1, LATENT_SIDE, LATENT_SIDE, sd15.VAE["latent_channels"])
        return {**found, "the decoder": norms_of(partial(decoder, latents))}


def on_gpu(norm: Norm) -> Callable[[], Tensor]:
    """The norm of random operands, launched as within an image."""
    from sdopt.engine import launch

    device = torch.device("cuda")

    def random(*sizes: int) -> Tensor:
        return torch.randn(sizes, device=device, dtype=torch.float16)

    channels = norm.sizes[-1] + norm.more
    x, weight, bias = random(*norm.sizes), random(channels), random(channels)
    x2 = random(*norm.sizes[:-1], norm.more) if norm.more else None
    shift = random(channels) if norm.shifted else None

    def compute() -> Tensor:
        with launches(card_of(device).dependent):
            if norm.kind == "layer_norm":
                return launch.layer_norm(x, weight, bias, 1e-5)
            return launch.group_norm(
                x, weight, bias, norm.groups, 1e-5, silu=norm.silu, x2=x2, shift=shift
            )

    return compute


def others(norm: Norm, in_use: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Each constant that the norm's kernels depend on, with each value that is not in use."""
    for constant, values in VARIED[norm.kind].items():
        if norm.kind == "layer_norm" or matters(constant, norm.sizes[1] * norm.sizes[2], in_use):
            yield from ((constant, value) for value in values if value != in_use[constant])


def matters(constant: str, pixels: int, in_use: Mapping[str, Any]) -> bool:
    """Whether a GroupNorm of so many pixels depends on it, with the others as they are."""
    small = bool(pixels <= in_use["SMALL_NORM_PIXELS"])
    in_large_chunks = bool(pixels > in_use["SMALL_CHUNK"] * in_use["MOST_CHUNKS"])
    if constant == "SMALL_NORM_PIXELS":
        return bool(pixels <= max(VARIED["group_norm"][constant]))
    if constant in ("LARGE_STATISTICS", "LARGEST_CHUNK"):
        return not small and in_large_chunks
    if constant in ("STATISTICS", "MOST_CHUNKS"):
        return not small and not in_large_chunks
    return not small


def timed(norm: Norm, time_us: Callable[[Callable[[Tile, int], Any], Tile], float]) -> Row:
    """Microseconds with the sizes in use and with others."""
    from sdopt.engine import launch

    compute = on_gpu(norm)

    def now() -> float:
        return round(time_us(lambda tile, turn: compute(), LIBRARY), 3)

    us, found = now(), {}
    for constant, value in others(norm, vars(launch)):
        with replaced(launch, constant, value):
            found[f"{constant} {value}"] = now()
    return {"name": norm.name, "us": us, "others": found}


def sizes_table(rows: Sequence[Row]) -> list[str]:
    """A Markdown table: what each norm takes, and the best that another size makes of it."""
    lines = []
    for row in rows:
        name, least = min(row["others"].items(), key=lambda item: item[1])
        better = least < (1 - LEAST_GAIN) * row["us"]
        often = ", ".join(f"{count} in {where}" for where, count in row["times"].items())
        lines.append(
            (row["name"], often, f"{row['us']:.1f}", f"{name}: {least:.1f}" if better else "-")
        )
    return markdown_table(("norm", "how often", "us", "faster by 3 % or more"), lines)


def _time_all(options: argparse.Namespace) -> Rows:
    """Each row is written as soon as it is there."""
    if not torch.cuda.is_available():
        raise SdoptError("norms are timed on a GPU, and there is none; --show needs none")
    from sdopt.tuning.timing import time_us

    run = RunContext(
        settings=Settings(source="sd15-random", baselines_root=Path("baselines")),
        progress=Progress(sys.stderr),
    )
    rows = continue_rows(options.json, run.made_on())
    times: dict[Norm, dict[str, int]] = {}
    for where, counted in norms_of_an_image().items():
        for norm, count in counted.items():
            times.setdefault(norm, {})[where] = count
    for norm, often in times.items():
        rows.put({**timed(norm, time_us), "times": often})
        print(norm.name, flush=True)
    return rows


def main(arguments: Sequence[str] | None = None) -> int:
    """Time and print the table; 2 for a mistake in the options."""
    parser = argparse.ArgumentParser(prog="python -m studies.norm_sizes", description=__doc__)
    parser.add_argument(
        "--json",
        type=Path,
        default=Path("norms.json"),
        help="file of rows, all of the same machine and versions",
    )
    parser.add_argument("--show", action="store_true", help="time nothing: the rows of --json")
    options = parser.parse_args(arguments)
    try:
        rows = read_rows(options.json, *FIELDS) if options.show else _time_all(options)
        above, table = heading(rows), sizes_table(list(rows.rows.values()))
    except SdoptError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print("\n".join([above, "", *table]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
