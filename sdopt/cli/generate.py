"""`sdopt generate`: images of prompts, and the same image again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sdopt.cli import options
from sdopt.cli.generating import (
    Made,
    Recipe,
    lasting_dtype,
    lasting_name,
    loaded,
    make,
    read_lora,
)
from sdopt.cli.options import (
    check_numbers,
    check_out,
    check_prompt,
    checked_size,
    print_json,
    shown,
)
from sdopt.errors import BrokenFileError, SdoptError
from sdopt.levels import get_level

if TYPE_CHECKING:
    from PIL.Image import Image

    from sdopt.weights.sources import Source

LEVEL, SOURCE, SEED, OUT = "turbo", "auto", 0, Path("out.png")
NOT_THE_SAME = 1


def generate(
    prompts: Annotated[
        list[str] | None,
        typer.Argument(metavar="[PROMPT]...", help="What the image shows; several make a grid."),
    ] = None,
    file: Annotated[
        Path | None,
        typer.Option(
            "--file",
            metavar="FILE",
            help="More prompts: one a line; of a .jsonl file with seeds, as for --sdopt-prompts.",
        ),
    ] = None,
    level: Annotated[
        str, typer.Option("--level", metavar="LEVEL", help="See `sdopt levels`.")
    ] = LEVEL,
    source: options.Source = SOURCE,
    seed: options.Seed = SEED,
    size: options.Size = None,
    steps: options.Steps = None,
    guidance: options.Guidance = None,
    negative: options.Negative = "",
    lora: Annotated[
        Path | None,
        typer.Option("--lora", metavar="FILE", help="Adapters, a .safetensors file."),
    ] = None,
    dtype: options.Dtype = None,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            "-o",
            metavar="OUT",
            help="PNG to write (default: out.png; with --like its name and -again).",
        ),
    ] = None,
    like: Annotated[
        Path | None,
        typer.Option(
            "--like",
            metavar="PNG",
            help="Make the image of this file again, from what stands in it, and compare the bits. "
            "Only --source and --lora may say where the same weights lie now.",
        ),
    ] = None,
    force: options.Force = False,
    as_json: options.Json = False,
) -> int:
    """Generate an image, or a grid of several; says the time of each and the peak of memory.

    The first image of a level includes compiling and capturing. The PNG says how it was made.
    """
    if like is not None:
        own = (prompts, file, level, seed, size, steps, guidance, negative, dtype)
        if own != (None, None, LEVEL, SEED, None, None, None, "", None):
            raise SdoptError(
                "--like makes the very image again: drop the prompts and all options but --source, "
                "--lora, -o, --force and --json"
            )
        return _again(_Job(like=like, source=source, lora=lora, out=out, force=force), as_json)
    check_numbers(seed=seed, steps=steps, guidance=guidance)
    chosen, pixels = get_level(level), checked_size(size) if size else None
    if not prompts and file is None:
        raise SdoptError('there is no prompt; give one, such as sdopt generate "a red star"')
    for prompt in prompts or []:
        check_prompt(prompt)
    adapters, weights = read_lora(lora) if lora else (None, None)
    kind = lasting_dtype(dtype)

    from sdopt.weights.sources import may_download, resolve

    out = out or OUT
    if may_download(source):
        check_out(out, force=force)
    found = resolve(source)
    width, height = pixels or (found.size_px, found.size_px)
    recipe = Recipe(
        level=level,
        source=lasting_name(source, found),
        prompt="",
        negative_prompt=negative,
        seed=seed,
        width=width,
        height=height,
        steps=chosen.steps if steps is None else steps,
        guidance_scale=found.guidance_scale if guidance is None else guidance,
        lora=adapters,
        dtype=kind,
    )
    recipes = _recipes(recipe, prompts or [], file, found)
    check_out(out, force=force)
    made, image = _made(recipes, weights)
    _store(out, image, recipes, force)
    _tell(out, made, as_json)
    return 0


@dataclass(frozen=True, kw_only=True)
class _Job:
    """What `--like` was called with."""

    like: Path
    source: str
    lora: Path | None
    out: Path | None
    force: bool


def _recipes(
    like: Recipe, prompts: Sequence[str], file: Path | None, source: Source
) -> list[Recipe]:
    """One for each prompt, checked before anything is loaded."""
    recipes = [replace(like, prompt=prompt) for prompt in prompts]
    recipes += _of_file(file, like, source) if file else []
    for recipe in recipes:
        check_prompt(recipe.prompt)
        source.check_prompt(recipe.prompt)
        source.check_prompt(recipe.negative_prompt)
    return recipes


def _of_file(file: Path, first: Recipe, source: Source) -> list[Recipe]:
    if file.suffix != ".jsonl":
        return [replace(first, prompt=prompt) for prompt in options.lines_of(file)]
    from sdopt.pipelines.workload import read_prompts

    return [
        replace(first, prompt=one.prompt, negative_prompt=one.negative_prompt, seed=one.seed)
        for one in read_prompts(file, source)
    ]


def _made(recipes: Sequence[Recipe], weights: dict[str, Any] | None) -> tuple[list[Made], Image]:
    """All of one level and source, and their grid."""
    from sdopt.cli.images import grid

    pipeline = loaded(recipes[0], weights)
    made = make(pipeline, recipes, "generating")
    return made, grid([one.image for one in made])


def _store(out: Path, image: Image, recipes: Sequence[Recipe], force: bool) -> dict[str, str]:
    """Write the image; the versions that stand in it."""
    from sdopt.cli.images import store
    from sdopt.cli.stamp import Stamp, png_of, versions_here

    versions = versions_here()
    stamp = Stamp(recipes=tuple(recipes), versions=versions)
    store(out, png_of(image, stamp), force=force)
    return versions


def _tell(out: Path, made: Sequence[Made], as_json: bool, **more: Any) -> None:
    peak = max(one.peak_memory_mib for one in made)
    if as_json:
        rows = [{**asdict(one.recipe), "ms": one.ms} for one in made]
        memory = {"peak_memory_mib": peak, "memory_of": made[0].memory_of}
        print_json({"file": str(out), "images": rows, **memory, **more})
        return
    for number, one in enumerate(made):
        included = f", includes {one.once}" if one.once else ""
        first = f"  (first image{included})" if number == 0 else ""
        print(f"{one.ms:9.1f} ms  {shown(one.recipe.prompt, 60)}{first}")
    print(f"peak memory {peak:.0f} MiB {made[0].memory_of}; wrote {out}")


def _again(job: _Job, as_json: bool) -> int:
    """Make a file's image again; 1 if a bit of it is another one."""
    from sdopt.cli.images import largest_difference
    from sdopt.cli.stamp import differences, read_png

    before, stamp = read_png(job.like)
    recipes, weights = _recipes_again(job, stamp.recipes)
    out = job.out or job.like.with_name(f"{job.like.stem}-again.png")
    check_out(out, force=job.force)
    made, image = _made(recipes, weights)
    versions = _store(out, image, recipes, job.force)
    if image.size == before.size:
        count, most = largest_difference(image, before)
    else:
        count, most = 3 * before.width * before.height, 255
    differing = differences(stamp.versions, versions)
    seen = {"same_bits": count == 0, "values_differing": count, "largest_difference": most}
    _tell(out, made, as_json, **seen, versions_differing=differing)
    if not as_json:
        for line in differing:
            print(f"{job.like} was made with {shown(line)}")
        print(
            f"the same bits as {job.like}"
            if count == 0
            else f"not the bits of {job.like}: {count} values differ, by {most} of 255 at most"
        )
    return 0 if count == 0 else NOT_THE_SAME


def _recipes_again(
    job: _Job, recipes: tuple[Recipe, ...]
) -> tuple[tuple[Recipe, ...], dict[str, Any] | None]:
    """The recipes with the weights where they lie now. Raises SdoptError for other ones."""
    first = recipes[0]
    if any(_loaded_of(one) != _loaded_of(first) for one in recipes):
        raise BrokenFileError(
            f"{job.like} names several levels, sources, dtypes or adapters for one grid"
        )
    if job.source == SOURCE:
        _refuse_download(job.like, first.source)
    source = first.source if job.source == SOURCE else job.source
    if first.lora is None:
        if job.lora:
            raise SdoptError(f"{job.like} was made without adapters; drop --lora")
        return tuple(replace(recipe, source=source) for recipe in recipes), None
    file = job.lora or Path(first.lora.file)
    try:
        found, weights = read_lora(file)
    except BrokenFileError as error:
        raise BrokenFileError(f"{error}; say with --lora where the file lies now") from error
    if found.sha256 != first.lora.sha256:
        raise BrokenFileError(
            f"{file} is not the file that {job.like} was made with: its SHA-256 differs; "
            "name the right one with --lora"
        )
    return tuple(replace(recipe, source=source, lora=found) for recipe in recipes), weights


def _loaded_of(recipe: Recipe) -> tuple[object, ...]:
    """What the images of one pipeline share."""
    return recipe.level, recipe.source, recipe.lora, recipe.dtype


def _refuse_download(like: Path, source: str) -> None:
    """Anybody may have written the name: what is not here yet is downloaded only if asked for."""
    from sdopt.weights import hub
    from sdopt.weights.sources import HUB_NAME, NAMED_SOURCES, WEIGHTS

    named = source in NAMED_SOURCES or Path(source).exists() or not HUB_NAME.fullmatch(source)
    if not named and not hub.cached(hub.parse(source), hub.PIPELINE_FILES, WEIGHTS):
        raise SdoptError(
            f"{like} was made with {source}, which is not in the local cache; to download it, add "
            f"--source {source}"
        )
