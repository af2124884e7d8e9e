"""What is stored of a level that a run has generated: files by path below a root."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from sdopt.bench.session.context import RunContext
from sdopt.bench.stored import baselines
from sdopt.bench.stored.latents import latents_content, latents_path
from sdopt.levels import Level
from sdopt.pipelines.workload import Request

if TYPE_CHECKING:
    from sdopt.bench.measure.generated import Generated


def contents(run: RunContext, root: Path, level: Level, generated: Generated) -> dict[Path, bytes]:
    """The images and latents of every request, by path."""
    from sdopt.bench.measure.quality import to_uint8

    files = dict[Path, bytes]()
    for request in run.workload.requests:
        made_by = {**baselines.request_fields(request), **run.identity(level)}
        image = to_uint8(generated.images[request.name])
        path = image_at(run, root, level, request)
        files[path] = baselines.image_content(image, made_by)
        files |= _latents(run, root, level, request, generated)
    return files


def _latents(
    run: RunContext, root: Path, level: Level, request: Request, generated: Generated
) -> dict[Path, bytes]:
    files = {}
    for latents, double in ((generated.latents, False), (generated.doubles, True)):
        if request.name in latents:
            made_by = {
                **baselines.request_fields(request),
                **latents_identity(run, level, double),
                "environment": run.environment,
            }
            path = latents_at(run, root, level, request, double)
            files[path] = latents_content(latents[request.name], made_by)
    return files


def image_at(run: RunContext, root: Path, level: Level, request: Request) -> Path:
    """Where the image of a level and request is stored."""
    return baselines.image_path(root, run.baseline_set, level.name, request.name)


def latents_at(run: RunContext, root: Path, level: Level, request: Request, double: bool) -> Path:
    """Where its final latents are, or those of float64."""
    return latents_path(root, run.baseline_set, level.name, request.name, double=double)


def latents_identity(run: RunContext, level: Level, double: bool) -> dict[str, Any]:
    """What stored latents are of."""
    from sdopt.bench.measure.double import STEPS

    return {**run.identity(level), "generated_steps": STEPS if double else level.steps}
