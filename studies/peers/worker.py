"""The process that measures one recipe: `studies.peers.worker NAME SOURCE PROMPTS FOLDER`."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sdopt.errors import UnknownNameError
from sdopt.pipelines.workload import Request, generate, load_workload
from sdopt.util.files import write_whole
from sdopt.weights.sources import Source, resolve
from studies.peers.recipes import PLAIN, RECIPES, SAMPLERS, Ground, Recipe

if TYPE_CHECKING:
    import numpy as np
    import torch
    from numpy.typing import NDArray

    Run = Callable[[Request], NDArray[np.float32]]
    Images = dict[str, NDArray[np.uint8]]

SEED = 0


def measure(recipe: Recipe, source: Source, requests: tuple[Request, ...], folder: Path) -> None:
    """Measure the recipe on each of its grounds; its file has a row more after each."""
    import torch

    from sdopt.pipelines.pipeline import default_device

    # Token merging generates from the process's own generator.
    torch.manual_seed(SEED)
    device = default_device()
    generating = _level(recipe, source, device) if recipe.level else _peer(recipe, source, device)
    rows = []
    for ground in recipe.grounds:
        rows.append(_row(recipe, ground, generating(ground), requests, device, folder))
        write_whole(folder / recipe.rows_file, json.dumps(rows).encode())


def _level(recipe: Recipe, source: Source, device: torch.device) -> Callable[[Ground], Run]:
    from sdopt.levels import get_level
    from sdopt.pipelines.pipeline import build

    pipeline = build(source, get_level(recipe.level or ""), device)
    return lambda ground: lambda request: generate(pipeline, request)


def _peer(recipe: Recipe, source: Source, device: torch.device) -> Callable[[Ground], Run]:
    """Plain diffusers with the recipe applied to it, and nothing of this project's levels."""
    from diffusers import StableDiffusionPipeline

    from sdopt.pipelines.pipeline import dtype_on, load_weights

    parts = load_weights(source, device, dtype_on(device)).components
    pipeline = StableDiffusionPipeline(**parts, requires_safety_checker=False).to(device)
    pipeline.set_progress_bar_config(disable=True)
    config = pipeline.scheduler.config
    recipe.apply(pipeline)

    def on_ground(ground: Ground) -> Run:
        pipeline.scheduler = sampler(config, ground)
        settings = {
            "num_inference_steps": ground.steps,
            "guidance_scale": source.guidance_scale,
        }
        return lambda request: generate(pipeline, request, **settings)

    return on_ground


def sampler(config: Any, ground: Ground) -> Any:
    """The ground's scheduler, made from that of the source. Raises UnknownNameError."""
    import diffusers

    if ground.sampler == "pndm":
        return diffusers.PNDMScheduler.from_config(config)
    if ground.sampler == "euler-ancestral":
        return diffusers.EulerAncestralDiscreteScheduler.from_config(config)
    if ground.sampler == "dpm-solver++2m":
        return diffusers.DPMSolverMultistepScheduler.from_config(
            config, algorithm_type="dpmsolver++", solver_order=2
        )
    raise UnknownNameError("sampler", ground.sampler, SAMPLERS)


def _row(
    recipe: Recipe,
    ground: Ground,
    run: Run,
    requests: tuple[Request, ...],
    device: torch.device,
    folder: Path,
) -> dict[str, Any]:
    """Time, memory and images; the first image is the one that compiles."""
    from sdopt.bench.measure import memory_of, rounds_of
    from sdopt.bench.measure.timing import elapsed_ms

    first, *others = requests
    images = {}

    def generate_and_keep(request: Request) -> None:
        images[request.name] = run(request)

    first_ms = elapsed_ms(lambda: generate_and_keep(first), device)
    for request in others:
        generate_and_keep(request)
    rounds = rounds_of(lambda: run(first), device)
    peaks = memory_of(lambda: run(first), device)
    return {
        "name": recipe.row_name(ground),
        "first_call_s": first_ms / 1e3,
        "rounds_ms": rounds,
        "peak_allocated_mib": peaks and peaks.peak_allocated_mib,
        "peak_reserved_mib": peaks and peaks.peak_reserved_mib,
        **_cost(recipe, ground, images, folder),
    }


def _cost(recipe: Recipe, ground: Ground, images: Any, folder: Path) -> dict[str, Any]:
    """SSIM to plain diffusers on the same ground; plain diffusers keeps its images for that."""
    import numpy as np

    from sdopt.bench.measure.quality import compare, image_faults, to_uint8
    from sdopt.bench.metrics.metric import Subject

    path = folder / f"images-{ground.sampler}-{ground.steps}.npz"
    if recipe == PLAIN:
        kept: dict[str, Any] = {name: to_uint8(image) for name, image in images.items()}
        np.savez(content := io.BytesIO(), **kept)
        write_whole(path, content.getvalue())
        return {"faults": image_faults(images)}
    if not path.exists():
        return {"faults": image_faults(images)}
    with np.load(path) as stored:
        others = {name: stored[name] for name in images}
        found = compare(images, others, Subject.REFERENCE)
    return {"faults": found.faults, "ssim_cost": found.values("ssim_cost")}


def main(arguments: list[str]) -> None:
    """Measure one recipe; what goes wrong ends the process with its traceback."""
    name, source_name, prompts, folder = arguments
    recipes = {recipe.name: recipe for recipe in RECIPES}
    if name not in recipes:
        raise UnknownNameError("recipe", name, recipes)
    source = resolve(source_name)
    workload = load_workload(source, Path(prompts) if prompts else None)
    measure(recipes[name], source, workload.requests, Path(folder))


if __name__ == "__main__":
    main(sys.argv[1:])
