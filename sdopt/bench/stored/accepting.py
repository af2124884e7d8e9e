"""Baselines of one level stored together: a journal says what an interrupted accept left behind.

Images and latents are many files, and no file system replaces them at once. So `Accepting` first
writes down what each file is and what it will be; the next run finds them all as they were, all as
they were to be, or a mixture, which it names.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from sdopt.bench.stored.baselines import SCHEMA
from sdopt.errors import BrokenFileError
from sdopt.util.files import damaged, read_json, write_whole
from sdopt.util.partial_files import held, is_held

FOLDER = "unfinished"


def journal_path(root: Path, baseline_set: str, level: str) -> Path:
    """Where it stands while the baselines of a level are stored, and after an accept was killed."""
    return root / FOLDER / baseline_set / f"{level}.json"


def store_together(root: Path, baseline_set: str, level: str, files: Mapping[Path, bytes]) -> None:
    """Write these files of a level, each whole, with a journal of them until all are written."""
    journal = journal_path(root, baseline_set, level)
    entries = {
        str(path.relative_to(root)): {"before": _digest_of(path), "after": _digest(content)}
        for path, content in files.items()
    }
    for name, earlier in _interrupted(root, journal).items():
        if name in entries:  # or an accept killed at once would make a mixture what there was
            entries[name]["before"] = earlier["before"]
    content = {"schema": SCHEMA, "level": level, "files": entries}
    write_whole(journal, (json.dumps(content, indent=1) + "\n").encode())
    with held(journal):
        for path, content_of_file in files.items():
            write_whole(path, content_of_file)
        _remove(journal, root)


def mixture(root: Path, baseline_set: str, level: str) -> dict[str, BrokenFileError]:
    """The errors of a level whose accept was interrupted, by folder; empty if none was.

    Each has the folder as its `path`, whose files git can bring back.
    """
    journal = journal_path(root, baseline_set, level)
    try:
        files = _files(journal) if journal.exists() else {}
    except BrokenFileError as error:
        return {str(journal): error}
    if _is_settled(root, files):
        return {}
    what = (
        f"an --sdopt-accept of level {level!r} was interrupted, or is under way: {journal} says "
        "that files are partly new and partly old"
    )
    return {folder: _error(f"{what} in {folder}", root / folder) for folder in _folders(files)}


def check_settled(root: Path, baseline_set: str) -> None:
    """Raise BrokenFileError if an accept of any level of a set was interrupted."""
    for journal in sorted((root / FOLDER / baseline_set).glob("*.json")):
        if errors := mixture(root, baseline_set, journal.stem):
            paths = " ".join(str(error.path) for error in errors.values())
            raise BrokenFileError(
                f"{next(iter(errors.values()))}; git checkout -- {paths} brings back what was "
                "stored, and --sdopt-accept stores the level again"
            )


def _error(message: str, path: Path) -> BrokenFileError:
    error = BrokenFileError(message)
    error.path = path
    return error


def _folders(files: Iterable[str]) -> list[str]:
    """The folders that hold these files, without those within another one."""
    parents = sorted({str(Path(name).parent) for name in files})
    return [one for one in parents if not any(Path(o) in Path(one).parents for o in parents)]


def _interrupted(root: Path, journal: Path) -> dict[str, dict[str, str | None]]:
    """The files of an earlier accept that left a mixture."""
    if not journal.exists():
        return {}
    with suppress(BrokenFileError):
        files = _files(journal)
        return {} if _is_settled(root, files) else files
    return {}


def forget_settled(root: Path) -> list[Path]:
    """Remove journals whose files are all old or all new; the journals of mixtures, which stay."""
    left = []
    for journal in sorted((root / FOLDER).rglob("*.json")):
        try:
            settled = not is_held(journal) and _is_settled(root, _files(journal))
        except FileNotFoundError:  # its run has just ended
            continue
        except BrokenFileError:
            settled = False
        if settled:
            _remove(journal, root)
        elif not is_held(journal):
            left.append(journal)
    return left


def _files(journal: Path) -> dict[str, dict[str, str | None]]:
    """Digests before and after by path. Raises BrokenFileError for a journal that holds none."""
    files: Any = read_json(journal).get("files")
    if isinstance(files, dict) and all(
        isinstance(one, dict) and {"before", "after"} == set(one) for one in files.values()
    ):
        return files
    raise damaged(journal, "holds no files with what they were; accept the level again")


def _is_settled(root: Path, files: Mapping[str, Mapping[str, str | None]]) -> bool:
    now = {name: _digest_of(root / name) for name in files}
    return any(
        all(now[name] == one[side] for name, one in files.items()) for side in ("before", "after")
    )


def _digest_of(path: Path) -> str | None:
    return _digest(path.read_bytes()) if path.is_file() else None


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _remove(journal: Path, root: Path) -> None:
    journal.unlink(missing_ok=True)
    for folder in (journal.parent, root / FOLDER):
        with suppress(OSError):  # other journals are in it
            folder.rmdir()
