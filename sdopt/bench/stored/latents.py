"""Final latents on disk: `latents/<set>/<level>/<prompt>.safetensors`, with how they were made.

Those that were generated in float64 lie in `float64/` beside them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sdopt.bench.stored.baselines import redefinition, request_fields
from sdopt.bench.stored.old_names import with_current_names
from sdopt.errors import BrokenFileError
from sdopt.levels import Level
from sdopt.pipelines.workload import Request
from sdopt.util.files import cause, write_whole

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

TENSOR = "latents"
MADE_BY = "sdopt"
FLOAT64 = "float64"
SAME = ("source", "dtype", "size_px", "generated_steps")
"""What else stored latents share with this run's; another device generates about the same."""


def latents_path(
    root: Path, baseline_set: str, level: str, prompt: str, *, double: bool = False
) -> Path:
    """Where the final latents of a level and prompt are kept, or those generated in float64."""
    folder = root / "latents" / baseline_set / level
    return (folder / FLOAT64 if double else folder) / f"{prompt}.safetensors"


def latents_beside(images: Path) -> Path:
    """The folder of the latents that belong to a folder of images, `images/<set>`."""
    return images.parent.parent / "latents" / images.name


def save_latents(path: Path, latents: NDArray[Any], made_by: Mapping[str, Any]) -> None:
    """Write latents of shape (4, height / 8, width / 8) with how they were made."""
    write_whole(path, latents_content(latents, made_by))


def latents_content(latents: NDArray[Any], made_by: Mapping[str, Any]) -> bytes:
    """What `save_latents` writes."""
    from safetensors.numpy import save

    about = {MADE_BY: json.dumps(dict(made_by), sort_keys=True)}
    return save({TENSOR: latents}, metadata=about)


def load_latents(
    path: Path,
    request: Request,
    level: Level,
    guidance_scale: float,
    generated: NDArray[Any],
    identity: Mapping[str, Any],
) -> NDArray[Any]:
    """The stored latents of a request, to compare with those that were generated.

    Raises BrokenFileError if they are missing, damaged, or of another request, guidance scale,
    shape or definition of the level, or of something else than `identity` in one of SAME.
    """
    if not path.is_file():
        raise BrokenFileError(f"no baseline latents {path}")
    latents, made_by = read_latents(path, generated.dtype)
    here = {**request_fields(request), **{name: identity[name] for name in SAME}}
    stored = {name: made_by.get(name) for name in here}
    if stored != here:
        raise BrokenFileError(f"{path} was made for another request: {stored}, not {here}")
    if changes := redefinition(made_by, level, guidance_scale):
        raise BrokenFileError(f"{path} was made with other settings: {changes}")
    if latents.shape != generated.shape:
        raise BrokenFileError(
            f"{path} has the shape {latents.shape}, this run's is {generated.shape}"
        )
    return latents


def read_latents(
    path: Path, dtype: np.dtype[Any] | str = "float32"
) -> tuple[NDArray[Any], dict[str, Any]]:
    """Stored latents of that dtype, and how they were made.

    Raises BrokenFileError, with `path`, if they cannot be read or are not what is stored there.
    """
    import numpy as np
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="np") as file:
            names = list(file.keys())
            made_by = json.loads((file.metadata() or {}).get(MADE_BY, "null"))
            latents = file.get_tensor(TENSOR) if names == [TENSOR] else None
    except (OSError, ValueError, SafetensorError) as error:
        raise _damaged(path, f"cannot be read: {cause(error)}") from error
    if latents is None:
        raise _damaged(path, f"holds the tensors {names}, not {TENSOR!r} alone")
    if latents.dtype != dtype or latents.ndim != 3:
        found = f"{latents.dtype} of {latents.ndim} axes"
        raise _damaged(path, f"holds {found}, not {np.dtype(dtype)} of 3")
    if not np.isfinite(latents).all():
        raise _damaged(path, "holds NaN or infinite values")
    if not isinstance(made_by, dict) or not isinstance(made_by.get("level_fields"), dict):
        raise _damaged(path, "says nothing about how it was made")
    return latents, with_current_names(made_by)


def _damaged(path: Path, what: str) -> BrokenFileError:
    error = BrokenFileError(f"{path} {what}; it was left as it is")
    error.path = path
    return error
