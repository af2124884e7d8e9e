"""Files that are written whole or not at all, and read with a named error."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from sdopt.errors import BrokenFileError
from sdopt.util.whole_file import write_whole as write_whole


def cause(error: BaseException) -> str:
    """What an error says, without its number and the file's name: its reader has named that."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return re.sub(r" ?<\S*BytesIO object at \w+>", "", str(error))


def damaged(path: Path, what: str) -> BrokenFileError:
    """The error of a stored file that is not what was stored, with the next step."""
    error = BrokenFileError(
        f"{path} {what}; it was left as it is; git checkout -- {path} brings back what git has"
    )
    error.path = path
    return error


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file. Raises BrokenFileError if it is missing, broken or no object."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise BrokenFileError(f"{path} is missing") from error
    except (OSError, ValueError, RecursionError) as error:
        raise damaged(path, f"cannot be read: {cause(error)}") from error
    if not isinstance(data, dict):
        raise damaged(path, "holds no JSON object")
    return data
