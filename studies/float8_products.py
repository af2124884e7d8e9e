"""What each kind of the UNet's products costs in float8, and which kinds are chosen for it.

    python -m studies.float8_products [--scenes N] [--tiles FILE] [--out FILE]

Generates held-out scenes of the miniature with `express` and with one kind of products in float8 at
a time, then with all chosen ones. A kind is chosen if its images are close enough to `express`'s,
and if it takes less time in Stable Diffusion 1.5 than in float16, by the times of its shapes that
`sdopt tune` measured: those of --tiles in float8, and the shipped table's in float16. The result is
data of the engine: which kinds `express-float8` and `turbo-float8` round.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import UNet2DConditionModel
from numpy.typing import NDArray

from sdopt.bench.evaluation.prompts import scene_prompts
from sdopt.bench.measure.quality import to_uint8
from sdopt.bench.metrics.images import ssim
from sdopt.engine import float8, modules, ops
from sdopt.engine.cards import H100
from sdopt.engine.float8 import CHOICE, FLOAT8_KINDS
from sdopt.engine.modules import hoist
from sdopt.engine.tables import shipped_table
from sdopt.engine.tiles import FLOAT8
from sdopt.engine.unet import FusedUNet
from sdopt.levels import EXPRESS, EXPRESS_FLOAT8, Level
from sdopt.pipelines.pipeline import build
from sdopt.pipelines.workload import Request, generate
from sdopt.util.files import write_whole
from sdopt.util.replaced import replaced
from sdopt.weights import sd15
from sdopt.weights.sources import resolve

SCENES = 16
LEAST_SSIM = 0.995
"""To `express`'s own images, the mean of all scenes, for a kind to be chosen."""


def images_of(level: Level, kinds: Collection[str], scenes: int) -> list[NDArray[Any]]:
    """Of a level whose products of these kinds are in float8."""
    source = resolve("embedded")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    with replaced(modules, "chosen_kinds", lambda: frozenset(kinds)):
        pipeline = build(source, level, device)
    return [
        to_uint8(generate(pipeline, Request(name=f"scene-{seed}", prompt=text, seed=seed)))
        for seed, text in enumerate(scene_prompts(scenes, source).texts)
    ]


def costs(found: Sequence[NDArray[Any]], wanted: Sequence[NDArray[Any]]) -> dict[str, float]:
    """Mean and worst SSIM."""
    each = [ssim(one, other).value for one, other in zip(found, wanted, strict=True)]
    return {"mean_ssim": round(float(np.mean(each)), 6), "worst_ssim": round(min(each), 6)}


def products_of(kind: str, images: int) -> Counter[str]:
    """How often one step of Stable Diffusion 1.5 computes each float8 shape of that kind."""
    counted: Counter[str] = Counter()
    with (
        torch.device("meta"),
        torch.no_grad(),
        replaced(float8, "factor_of", lambda norm: 1.0),
        replaced(ops, "_note", lambda key, *operands: counted.update([key])),
    ):
        unet = UNet2DConditionModel(**sd15.UNET)
        fused = FusedUNet(unet=unet, kinds=(kind,))
        text = torch.empty(images, sd15.MAX_TOKENS, sd15.UNET["cross_attention_dim"])
        ready = hoist(fused, 1, text)
        fused(torch.empty(images, 64, 64, 4), ready.shift, ready.context)
    return Counter({key: n for key, n in counted.items() if key.startswith(FLOAT8)})


def saved_us(kind: str, images: int, tiles: Mapping[str, Any]) -> float:
    """Microseconds that a step takes less with that kind in float8, the norms' own not counted."""
    wide: Mapping[str, Any] = json.loads(shipped_table(H100).read_text())["measured"]
    small: Mapping[str, Any] = tiles["measured"]
    products = products_of(kind, images)
    saved = 0.0
    for key, count in products.items():
        saved += count * (wide[key.removeprefix(FLOAT8)]["us"] - small[key]["us"])
    return round(saved, 1)


def measure(scenes: int, tiles: Mapping[str, Any]) -> dict[str, Any]:
    """The whole of what is stored."""
    wanted = images_of(EXPRESS, (), scenes)
    kinds: dict[str, dict[str, float]] = {}
    for kind in FLOAT8_KINDS:
        kinds[kind] = {
            **costs(images_of(EXPRESS_FLOAT8, {kind}, scenes), wanted),
            "saved_us_guided": saved_us(kind, 2, tiles),
            "saved_us_unguided": saved_us(kind, 1, tiles),
        }
        print(kind, kinds[kind], flush=True)
    chosen = [kind for kind in FLOAT8_KINDS if is_chosen(kinds[kind])]
    together = costs(images_of(EXPRESS_FLOAT8, chosen, scenes), wanted)
    return {
        "made_by": f"python -m studies.float8_products --scenes {scenes} --tiles FILE",
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU",
        "least_ssim": LEAST_SSIM,
        "kinds": kinds,
        "together": together,
        "chosen": chosen,
    }


def is_chosen(kind: Mapping[str, float]) -> bool:
    """Close enough, and faster with guidance and without."""
    gains = kind["saved_us_guided"], kind["saved_us_unguided"]
    return kind["mean_ssim"] >= LEAST_SSIM and min(gains) > 0


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and write; exit code 0."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--scenes", type=int, default=SCENES)
    parser.add_argument("--tiles", type=Path, default=shipped_table(H100))
    parser.add_argument("--out", type=Path, default=CHOICE)
    given = parser.parse_args(argv)
    found = measure(given.scenes, json.loads(given.tiles.read_text(encoding="utf-8")))
    write_whole(given.out, json.dumps(found, indent=1).encode() + b"\n")
    print(f"together {found['together']}; wrote {given.out}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
