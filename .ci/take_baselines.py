"""Copy measured baselines into a checkout: `python3 .ci/take_baselines.py FROM INTO`.

They come from another machine, and a job that may write to the repository takes them: so histories,
images, latents and counts, by the names that they are stored under, and nothing else.
"""

from __future__ import annotations

import re
import shutil
import sys
from pathlib import Path

WORD = r"[A-Za-z0-9_][A-Za-z0-9._-]*"
STORED = re.compile(
    rf"history/{WORD}/{WORD}/\d{{4,}}_{WORD}\.json"
    rf"|images/{WORD}/(limits\.json|{WORD}/{WORD}\.png)"
    rf"|latents/{WORD}/{WORD}/(float64/)?{WORD}\.safetensors"
    rf"|work/{WORD}\.json"
    r"|README\.md"
)
MOST_BYTES = 64 * 2**20
MOST_FILES = 20_000


def take(source: Path, target: Path) -> list[Path]:
    """Copy every file whose content is new. Raises ValueError before anything is written."""
    files = []
    for path in sorted(source.rglob("*")):
        name = path.relative_to(source).as_posix()
        if path.is_symlink():
            raise ValueError(f"{name} is a link")
        if path.is_dir():
            continue
        if not STORED.fullmatch(name):
            raise ValueError(f"{name} is nothing that is stored below baselines/")
        if path.stat().st_size > MOST_BYTES:
            raise ValueError(f"{name} is larger than {MOST_BYTES} bytes")
        files.append(path.relative_to(source))
    if len(files) > MOST_FILES:
        raise ValueError(f"{len(files)} files are more than {MOST_FILES}")
    new = [one for one in files if _differ(source / one, target / one)]
    for one in new:
        (target / one).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source / one, target / one)
    return new


def _differ(one: Path, other: Path) -> bool:
    return not other.is_file() or one.read_bytes() != other.read_bytes()


if __name__ == "__main__":
    try:
        taken = take(Path(sys.argv[1]), Path(sys.argv[2]))
    except ValueError as error:
        sys.exit(f"error: {error}; nothing was taken")
    print(f"{len(taken)} files are new")
