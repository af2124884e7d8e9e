"""What each kind of the UNet's products costs in float8, and which kinds are chosen for it.

    python -m studies.float8_products [--scenes N] [--out FILE]

Generates held-out scenes of the miniature with `express` and with one kind of products in float8 at
a time, then with all chosen ones. A kind is chosen if its images are close enough to `express`'s.
The result is data of the engine: which kinds `express-float8` and `turbo-float8` round.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from sdopt.bench.evaluation.prompts import scene_prompts
from sdopt.bench.measure.quality import to_uint8
from sdopt.bench.metrics.images import ssim
from sdopt.engine import modules
from sdopt.engine.float8 import CHOICE
from sdopt.engine.unet import FLOAT8_KINDS
from sdopt.levels import EXPRESS, EXPRESS_FLOAT8, Level
from sdopt.pipelines.pipeline import build
from sdopt.pipelines.workload import Request, generate
from sdopt.util.files import write_whole
from sdopt.util.replaced import replaced
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


def measure(scenes: int) -> dict[str, Any]:
    """The whole of what is stored."""
    wanted = images_of(EXPRESS, (), scenes)
    kinds: dict[str, dict[str, float]] = {}
    for kind in FLOAT8_KINDS:
        kinds[kind] = costs(images_of(EXPRESS_FLOAT8, {kind}, scenes), wanted)
        print(kind, kinds[kind], flush=True)
    chosen = [kind for kind in FLOAT8_KINDS if kinds[kind]["mean_ssim"] >= LEAST_SSIM]
    together = costs(images_of(EXPRESS_FLOAT8, chosen, scenes), wanted)
    return {
        "made_by": f"python -m studies.float8_products --scenes {scenes}",
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU",
        "least_ssim": LEAST_SSIM,
        "kinds": kinds,
        "together": together,
        "chosen": chosen,
    }


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and write; exit code 0."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--scenes", type=int, default=SCENES)
    parser.add_argument("--out", type=Path, default=CHOICE)
    given = parser.parse_args(argv)
    found = measure(given.scenes)
    write_whole(given.out, json.dumps(found, indent=1).encode() + b"\n")
    print(f"together {found['together']}; wrote {given.out}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
