"""Text that a file or a user wrote, before anybody is shown it."""

from __future__ import annotations


def shown(text: str, most: int | None = None) -> str:
    """One line without control characters: text of a file or a user may hold any."""
    line = "".join(one if one.isprintable() else " " for one in text)
    return line if most is None or len(line) <= most else f"{line[: most - 3]}..."


def counted(number: int, what: str) -> str:
    """'1 run', '2 runs'."""
    return f"{number} {what}" if number == 1 else f"{number} {what}s"
