"""The bare engine that `studies.service_load` compares with, and the devices that it counts for."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from statistics import median
from typing import Any

PROMPT = "a large red star at the center on a blue background"
"""That every source can generate, the embedded one too."""


def engine_rates(options: argparse.Namespace) -> dict[str, Any]:
    """Images a second of the bare pipeline by batch size, and what they were measured on."""
    from sdopt.bench.measure import rounds_of
    from sdopt.bench.session import RunContext, Settings
    from sdopt.levels import get_level
    from sdopt.pipelines.pipeline import build
    from sdopt.util.progress import Progress

    settings = Settings(source=options.source, baselines_root=Path("baselines"))
    run = RunContext(settings=settings, progress=Progress(sys.stderr))
    pipeline = build(run.source, get_level(options.level), run.device)
    sides = _sides(options.size) or (run.source.size_px, run.source.size_px)
    given = {"width": sides[0], "height": sides[1], "output_type": "np"}
    given |= {"num_inference_steps": options.steps} if options.steps else {}
    rates = {}
    for images in sorted({batch_of(count, options) for count in options.clients}):

        def call(images: int = images) -> object:
            import torch

            seeds = [torch.Generator().manual_seed(seed) for seed in range(images)]
            texts = {"prompt": [PROMPT] * images, "negative_prompt": [""] * images}
            return pipeline(**texts, generator=seeds, **given)

        rounds = rounds_of(call, run.device)
        rates[str(images)] = 1e3 * images / median(rounds)
    return {"made_on": dict(run.made_on()), "images_per_s": rates}


def devices_of(text: str) -> str:
    """'cuda:0,cuda:1' for '2', or 'cpu,cpu' where there is no GPU; names as they are."""
    if not text.isdecimal() or int(text) < 1:
        return text
    import torch

    cuda = torch.cuda.is_available()
    return ",".join(f"cuda:{number}" if cuda else "cpu" for number in range(int(text)))


def batch_of(clients: int, options: argparse.Namespace) -> int:
    """The most images that a device can have at once, if all of them have the same."""
    return min(int(options.max_batch), max(1, clients // device_count(options)))


def device_count(options: argparse.Namespace) -> int:
    """Workers of the service."""
    return len(str(options.devices).split(","))


def _sides(size: str | None) -> tuple[int, int] | None:
    if size is None:
        return None
    width, _, height = size.partition("x")
    return int(width), int(height)
