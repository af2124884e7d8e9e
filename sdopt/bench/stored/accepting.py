"""Baselines that are stored together: all of them or none, however the process ends.

Images and latents are many files, and no file system replaces them at once. So the new files are
written first, beside a journal of what each is and what it will be. Until the journal is there
nothing has changed; from then on whoever comes next can bring the new files to their places.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sdopt.bench.stored.baselines import SCHEMA
from sdopt.errors import BrokenFileError, BusyError, SdoptError
from sdopt.util.files import cause, damaged, read_json, write_whole
from sdopt.util.writing import writing

FOLDER = "unfinished"
Entries = Mapping[str, Mapping[str, str | None]]
"""Digests before and after, by path below the root; None where no file is."""


def journal_path(root: Path, baseline_set: str, name: str) -> Path:
    """Where it stands while baselines are stored, and after an accept was killed.

    `name` is that of the level, or of what accepts several.
    """
    return root / FOLDER / baseline_set / f"{name}.json"


def store_together(root: Path, baseline_set: str, level: str, files: Mapping[Path, bytes]) -> None:
    """Store these files of a level: all of them, or none if the process is killed before."""
    with writing(root):
        store_held(root, baseline_set, level, files, [level])


def store_held(
    root: Path,
    baseline_set: str,
    name: str,
    files: Mapping[Path, bytes],
    levels: Sequence[str],
) -> None:
    """The same of several levels for whoever holds the root; `name` is the journal's.

    Raises SdoptError, before anything is written, for a file that cannot be replaced, or that
    `recover` would not touch.
    """
    _recover_held(root)
    for place, content in files.items():
        _check_place(root, place, content)
    journal = journal_path(root, baseline_set, name)
    entries = {
        os.path.relpath(path, root): {"before": digest_of(path), "after": digest(content)}
        for path, content in files.items()
    }
    for path, earlier in _interrupted(root, journal).items():
        if path in entries:  # or an accept killed at once would make a mixture what there was
            entries[path]["before"] = earlier["before"]
    for number, content in enumerate(files.values()):
        write_whole(_staged(journal, number), content)
    told = {"schema": SCHEMA, "levels": [*levels], "files": entries}
    write_whole(journal, (json.dumps(told, indent=1) + "\n").encode())
    try:
        _bring(root, journal, entries)
    except OSError as error:
        raise SdoptError(
            f"{error.filename} cannot be written: {cause(error)}; the files are partly new: mend "
            f"that, and the next run or `sdopt baseline accept` completes them from {journal}"
        ) from error
    _remove(journal, root)


def mixture(root: Path, baseline_set: str, level: str) -> dict[str, BrokenFileError]:
    """The errors of a level whose accept was interrupted, by folder; empty if none was.

    Each has the folder as its `path`, whose files git can bring back.
    """
    for journal in sorted((root / FOLDER / baseline_set).glob("*.json")):
        try:
            files, levels = _read(journal)
        except FileNotFoundError:  # its run has just ended
            continue
        except BrokenFileError as error:
            return {str(journal): error}
        if level in levels and not _is_settled(root, files):
            what = (
                f"an --sdopt-accept of level {level!r} was interrupted, or is under way: {journal} "
                "says that files are partly new and partly old"
            )
            folders = _folders(files)
            return {one: _error(f"{what} in {one}", root / one) for one in folders}
    return {}


def check_settled(root: Path, baseline_set: str) -> None:
    """Raise BrokenFileError if an accept of any level of a set was interrupted."""
    for journal in sorted((root / FOLDER / baseline_set).glob("*.json")):
        for level in _read(journal)[1]:
            if errors := mixture(root, baseline_set, level):
                paths = " ".join(str(error.path) for error in errors.values())
                raise BrokenFileError(
                    f"{next(iter(errors.values()))}; git checkout -- {paths} brings back what was "
                    "stored, and --sdopt-accept stores the level again"
                )


@dataclass(frozen=True, kw_only=True)
class Recovered:
    """What became of the journals of accepts that were killed.

    `completed` are those whose new files are all in their places now; `undone` those whose old
    files somebody had brought back, so that the other new ones were removed; `left` those that
    somebody has to look at.
    """

    completed: list[Path] = field(default_factory=list)
    undone: list[Path] = field(default_factory=list)
    left: list[Path] = field(default_factory=list)


def recover(root: Path) -> Recovered:
    """Complete what was killed on its way, and forget what had not begun or had ended.

    Nothing is done where a file is neither the old nor the new one, or while another process
    writes.
    """
    if not (root / FOLDER).exists():
        return Recovered()
    try:
        with writing(root, patience_s=0):
            return _recover_held(root)
    except BusyError:
        return Recovered()


def _recover_held(root: Path) -> Recovered:
    found = Recovered()
    for journal in sorted((root / FOLDER).glob("*/*.json")):
        try:
            files, _ = _read(journal)
            into = _recovered(root, journal, files, found)
        except (BrokenFileError, OSError):
            into = found.left
        if into is found.left:
            found.left.append(journal)
            continue
        if into is not None:
            into.append(journal)
        _remove(journal, root)
    for staging in sorted((root / FOLDER).glob("*/*/")):
        if not staging.with_suffix(".json").exists():  # killed before it had begun
            _remove(staging.with_suffix(".json"), root)
    return found


def _recovered(root: Path, journal: Path, files: Entries, found: Recovered) -> list[Path] | None:
    """Make the files all new, or all old; to which journals this one belongs, None to neither."""
    if _is_settled(root, files):
        return None
    if _can_be_brought(root, journal, files):
        _bring(root, journal, files)
        return found.completed
    if not _is_old_but_for_new_files(root, files):
        return found.left
    for name, entry in files.items():
        if entry["before"] is None:
            _place(root, name).unlink(missing_ok=True)
    return found.undone


def _is_old_but_for_new_files(root: Path, files: Entries) -> bool:
    """Whether each file is the old one again, or is one that there was not before."""
    return all(
        _may_lie_at(root, _place(root, name))
        and digest_of(_place(root, name))
        in (entry["before"], None if entry["before"] else entry["after"])
        for name, entry in files.items()
    )


def _place(root: Path, name: str) -> Path:
    """The path of a journal's name: where the root is a link, '..' is what holds the link."""
    return Path(os.path.normpath(root.absolute() / name))


def _staged(journal: Path, number: int) -> Path:
    """Where the new content of the journal's file of that number waits."""
    return journal.with_suffix("") / str(number)


def _bring(root: Path, journal: Path, files: Entries) -> None:
    """Put each new file into its place, if it is not there yet; a link stays one."""
    for number, (name, entry) in enumerate(files.items()):
        path, staged = _place(root, name).resolve(), _staged(journal, number)
        if digest_of(path) == entry["after"]:
            continue
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            staged.replace(path)
        except OSError as error:
            if error.errno != errno.EXDEV:  # as it is on another file system
                raise
            write_whole(path, staged.read_bytes())


def _check_place(root: Path, path: Path, content: bytes) -> None:
    """Raise SdoptError for a file that could not be brought to its place, now or by `recover`."""
    real = path.resolve()
    if not _may_lie_at(root, path):
        raise SdoptError(
            f"{path} is outside of the clone and the folder that hold {root}: an accept that is "
            "killed could not be completed there; name a file beside the baselines; nothing was "
            "written"
        )
    if real.exists() and not real.is_file():
        raise SdoptError(f"{path} is no file; name another one; nothing was written")
    parent = next(one for one in real.parents if one.exists())
    try:
        if real.exists() and not (real.stat().st_mode & 0o222 and os.access(real, os.W_OK)):
            raise PermissionError(errno.EACCES, "it is read-only", str(path))
        with tempfile.TemporaryFile(dir=parent) as file:
            if os.fstat(file.fileno()).st_dev != root.stat().st_dev:
                file.write(content)  # what waits below the root says nothing of the room there
                file.flush()
    except OSError as error:
        raise SdoptError(
            f"{path} cannot be written: {cause(error)}; make it writable, with room in {parent}, "
            "or name another file; nothing was written"
        ) from error


def _can_be_brought(root: Path, journal: Path, files: Entries) -> bool:
    """Whether each file is new, or old with the new one at hand, and lies where it may."""
    for number, (name, entry) in enumerate(files.items()):
        now = digest_of(_place(root, name))
        if now == entry["after"]:
            continue
        if now != entry["before"] or digest_of(_staged(journal, number)) != entry["after"]:
            return False
        if not _may_lie_at(root, _place(root, name)):
            return False
    return True


def _may_lie_at(root: Path, path: Path) -> bool:
    """Whether it is below the root, the folder that holds it, or its clone, and not git's own.

    Anybody may commit a journal.
    """
    beside, real = root.absolute().parent.resolve(), path.resolve()
    clone = (one for one in (beside, *beside.parents) if (one / ".git").exists())
    homes = (root.resolve(), beside, next(clone, beside))
    return ".git" not in real.parts and any(real.is_relative_to(home) for home in homes)


def _error(message: str, path: Path) -> BrokenFileError:
    error = BrokenFileError(message)
    error.path = path
    return error


def _folders(files: Iterable[str]) -> list[str]:
    """The folders that hold these files, without those within another one."""
    parents = sorted({str(Path(name).parent) for name in files})
    return [one for one in parents if not any(Path(o) in Path(one).parents for o in parents)]


def _interrupted(root: Path, journal: Path) -> Entries:
    """The files of an earlier accept that left a mixture."""
    with suppress(BrokenFileError, FileNotFoundError):
        files, _ = _read(journal)
        return {} if _is_settled(root, files) else files
    return {}


def _read(journal: Path) -> tuple[dict[str, dict[str, str | None]], list[str]]:
    """The files and the levels of a journal. Raises BrokenFileError for one that holds none.

    Raises FileNotFoundError if it has gone meanwhile.
    """
    journal.stat()
    content = read_json(journal)
    files: Any = content.get("files")
    levels: Any = content.get("levels", [journal.stem])  # earlier ones were of one level each
    if (
        isinstance(files, dict)
        and all(isinstance(one, dict) and {"before", "after"} == set(one) for one in files.values())
        and isinstance(levels, list)
    ):
        return files, levels
    raise damaged(journal, "holds no files with what they were; accept the level again")


def in_the_way(root: Path, journal: Path) -> list[Path]:
    """The files of an interrupted accept that are neither the old nor the new ones."""
    files, _ = _read(journal)
    places = {_place(root, name): one for name, one in files.items()}
    return [path for path, one in places.items() if digest_of(path) not in one.values()]


def _is_settled(root: Path, files: Entries) -> bool:
    now = {name: digest_of(_place(root, name)) for name in files}
    return any(
        all(now[name] == one[side] for name, one in files.items()) for side in ("before", "after")
    )


def digest_of(path: Path) -> str | None:
    """The digest of a file's content, or None where none is."""
    return digest(path.read_bytes()) if path.is_file() else None


def digest(content: bytes) -> str:
    """SHA-256, in hexadecimal."""
    return hashlib.sha256(content).hexdigest()


def _remove(journal: Path, root: Path) -> None:
    """First the journal: without it what waits beside it is nothing."""
    journal.unlink(missing_ok=True)
    shutil.rmtree(journal.with_suffix(""), ignore_errors=True)
    for folder in (journal.parent, root / FOLDER):
        with suppress(OSError):  # other journals are in it
            folder.rmdir()
