"""What is stored: the histories of each hardware and source, and the images beside them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from sdopt.bench.stored import accepting
from sdopt.bench.stored.accepting import FOLDER
from sdopt.bench.stored.history import run_paths
from sdopt.errors import SdoptError, UnknownNameError

STORE = "`sdopt bench --store` stores one"


@dataclass(frozen=True, kw_only=True)
class Place:
    """The folder of the runs of one hardware and source."""

    hardware: str
    baseline_set: str
    folder: Path


@dataclass(frozen=True, kw_only=True)
class Images:
    """The images, latents and counts of one source."""

    baseline_set: str
    levels: int
    images: int
    latents: int
    has_counts: bool
    has_limits: bool
    bytes: int


def places(root: Path) -> list[Place]:
    """Every history that holds a run. Raises SdoptError if the folder is not there."""
    if not root.is_dir():
        raise SdoptError(f"there is no folder {root}; name that of the baselines with --baselines")
    folders = sorted(path for path in root.glob("history/*/*") if path.is_dir())
    return [
        Place(hardware=folder.parent.name, baseline_set=folder.name, folder=folder)
        for folder in folders
        if run_paths(folder)
    ]


def chosen(root: Path, hardware: str | None, baseline_set: str | None = None) -> list[Place]:
    """Those of a hardware and a source, of all for None. UnknownNameError if there is none."""
    found = places(root)
    for what, name, names in (
        ("hardware key", hardware, [one.hardware for one in found]),
        ("source", baseline_set, [one.baseline_set for one in found]),
    ):
        if name is not None and name not in names:
            if not names:
                raise SdoptError(f"{root} holds no stored run; {STORE}")
            raise UnknownNameError(what, name, dict.fromkeys(names))
    return [
        one
        for one in found
        if hardware in (None, one.hardware) and baseline_set in (None, one.baseline_set)
    ]


def image_sets(root: Path) -> Iterator[Images]:
    """What is stored of each source besides its runs."""
    names = {path.name for path in root.glob("images/*/")} | {
        path.name for path in root.glob("latents/*/")
    }
    for name in sorted(names | {path.stem for path in root.glob("work/*.json")}):
        images = [*root.glob(f"images/{_plain(name)}/*/*.png")]
        latents = [*root.glob(f"latents/{_plain(name)}/**/*.safetensors")]
        yield Images(
            baseline_set=name,
            levels=len({path.parent.name for path in images}),
            images=len(images),
            latents=len(latents),
            has_counts=(root / "work" / f"{name}.json").is_file(),
            has_limits=(root / "images" / name / "limits.json").is_file(),
            bytes=size([*images, *latents]),
        )


def unfinished(root: Path) -> list[Path]:
    """The journals of accepts that are under way or were killed."""
    return sorted((root / FOLDER).glob("*/*.json"))


def in_the_way(root: Path, journal: Path) -> list[Path]:
    """The files of an interrupted accept that are neither the old nor the new ones."""
    return accepting.in_the_way(root, journal)


def size(paths: Iterable[Path]) -> int:
    """Bytes of all of them."""
    return sum(path.stat().st_size for path in paths)


def _plain(name: str) -> str:
    """A folder's name as a pattern that only it matches."""
    from glob import escape

    return escape(name)
