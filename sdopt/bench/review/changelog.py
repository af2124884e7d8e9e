"""One more line in a CHANGELOG."""

from __future__ import annotations

import re
from pathlib import Path

from sdopt.errors import BrokenFileError
from sdopt.util.files import MOST_BYTES, read_plain
from sdopt.util.text import shown

HEAD = "# Changelog\n"
SPECIAL = re.compile(r"[\\`*<>\[\]|~&]|(?<!\w)_|_(?!\w)")
"""What means something to Markdown inside of a line."""
SECTION = re.compile(r"^## ", re.MULTILINE)


def plain(text: str) -> str:
    """The text as Markdown that shows it: no HTML, link or emphasis, and nobody mentioned."""
    return SPECIAL.sub(r"\\\g<0>", shown(text)).replace("@", "@\u200b")


def with_line(path: Path, line: str) -> bytes:
    """The file with that line at the end of its first section; of none, a file with it.

    Raises BrokenFileError for one that is no text.
    """
    try:
        text = read_plain(path, MOST_BYTES).decode() if path.exists() else HEAD
        text = text.replace("\r\n", "\n")
    except (OSError, UnicodeDecodeError) as error:
        what = getattr(error, "strerror", None) or "it is no UTF-8 text"
        raise BrokenFileError(f"{path} cannot be read: {what}; name another --changelog") from error
    sections = [found.start() for found in SECTION.finditer(text)]
    end = sections[1] if len(sections) > 1 else len(text)
    first, rest = text[:end].rstrip("\n"), text[end:]
    gap = "\n" if first.rsplit("\n", 1)[-1].startswith(("-", " ")) else "\n\n"
    return f"{first}{gap}{line}\n{'' if not rest else chr(10)}{rest}".encode()
