"""`sdopt compare`: one prompt by several levels, side by side with difference maps."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sdopt.cli import options
from sdopt.cli.generating import Made, Recipe, lasting_dtype, lasting_name, loaded, make
from sdopt.cli.options import (
    check_numbers,
    check_out,
    check_prompt,
    checked_levels,
    checked_size,
    print_json,
    shown,
)
from sdopt.errors import SdoptError
from sdopt.levels import get_level

if TYPE_CHECKING:
    from PIL.Image import Image


def compare(
    prompt: Annotated[str, typer.Argument(metavar="PROMPT", help="What the images show.")],
    levels: Annotated[
        str,
        typer.Option(
            "--levels", metavar="LEVEL,...", help="Two or more; the first is the reference."
        ),
    ],
    source: options.Source = "auto",
    seed: options.Seed = 0,
    size: options.Size = None,
    guidance: options.Guidance = None,
    negative: options.Negative = "",
    dtype: options.Dtype = None,
    out: Annotated[Path, typer.Option("--out", "-o", metavar="OUT", help="PNG to write.")] = Path(
        "compare.png"
    ),
    force: options.Force = False,
    as_json: options.Json = False,
) -> int:
    """Generate one prompt with several levels: images, difference maps and SSIM in one PNG.

    A map shows how far a level's image is from the first level's, 8 times as bright.
    SSIM needs scikit-image.
    """
    names = checked_levels(levels)
    if len(names) < 2 or len({*names}) < len(names):
        raise SdoptError(f"--levels is {levels!r}; name two or more different ones: baseline,final")
    check_prompt(prompt)
    check_numbers(seed=seed, guidance=guidance)
    pixels = checked_size(size) if size else None

    kind = lasting_dtype(dtype)

    from sdopt.cli.images import store
    from sdopt.cli.stamp import Stamp, png_of, versions_here
    from sdopt.weights.sources import may_download, resolve

    if may_download(source):
        check_out(out, force=force)
    found = resolve(source)
    for text in (prompt, negative):
        found.check_prompt(text)
    check_out(out, force=force)
    width, height = pixels or (found.size_px, found.size_px)
    recipes = [
        Recipe(
            level=name,
            source=lasting_name(source, found),
            prompt=prompt,
            negative_prompt=negative,
            seed=seed,
            width=width,
            height=height,
            steps=get_level(name).steps,
            guidance_scale=found.guidance_scale if guidance is None else guidance,
            dtype=kind,
        )
        for name in names
    ]
    made = _all_made(recipes)
    likeness = [None, *(_ssim(made[0].image, one.image) for one in made[1:])]
    stamp = Stamp(recipes=tuple(recipes), versions=versions_here())
    store(out, png_of(_sheet(made, likeness), stamp), force=force)
    _tell(out, made, likeness, as_json)
    return 0


def _all_made(recipes: list[Recipe]) -> list[Made]:
    """One pipeline after the other: each has to fit alone."""
    from sdopt.util.hardware import free_memory

    found = []
    for number, recipe in enumerate(recipes, start=1):
        pipeline = loaded(recipe)
        found += make(pipeline, [recipe], f"{recipe.level}, {number} of {len(recipes)}")
        device = pipeline.device
        pipeline.__dict__.clear()
        del pipeline
        free_memory(device)
    return found


def _sheet(made: list[Made], likeness: list[float | None]) -> Image:
    """The images in one row, and below each the map of its difference to the first."""
    from sdopt.cli.images import DIFFERENCE_TIMES, difference, largest_difference, side_by_side

    reference = made[0].image
    images = [(f"{one.recipe.level}\n{one.recipe.steps} steps", one.image) for one in made]
    maps = []
    for one, ssim in zip(made, likeness, strict=True):
        _, most = largest_difference(reference, one.image)
        words = [f"difference x{DIFFERENCE_TIMES}", f"at most {most} of 255"]
        words += [f"SSIM {ssim:.4f}"] if ssim is not None else []
        is_reference = one is made[0]
        name = "the reference" if is_reference else "\n".join(words)
        maps.append((name, difference(reference, one.image)))
    return side_by_side([*images, *maps], per_row=len(made))


def _ssim(image: Image, other: Image) -> float | None:
    """The suite's; None where scikit-image is not installed, or the image is too small for it."""
    from importlib.util import find_spec

    if find_spec("skimage") is None or min(image.size) < 7:
        return None
    import numpy as np

    from sdopt.bench.metrics.images import ssim

    return ssim(np.asarray(image), np.asarray(other)).value


def _tell(out: Path, made: list[Made], likeness: list[float | None], as_json: bool) -> None:
    rows: list[dict[str, Any]] = [
        {
            **asdict(one.recipe),
            "ms": one.ms,
            "ms_includes": one.once,
            "peak_memory_mib": one.peak_memory_mib,
            "ssim": ssim,
        }
        for one, ssim in zip(made, likeness, strict=True)
    ]
    if as_json:
        print_json({"file": str(out), "reference": made[0].recipe.level, "images": rows})
        return
    print(shown(made[0].recipe.prompt))
    for row in rows:
        ssim = "" if row["ssim"] is None else f"  SSIM {row['ssim']:.4f}"
        memory = f"{row['peak_memory_mib']:.0f} MiB"
        once = f"with {row['ms_includes']}" if row["ms_includes"] else ""
        print(f"{row['level']:18s} {row['ms']:9.1f} ms {once:14s}  {memory}{ssim}")
    if likeness[1] is None:
        print("no SSIM: it needs scikit-image; pip install scikit-image")
    print(f"wrote {out}; its reference is {made[0].recipe.level}")
