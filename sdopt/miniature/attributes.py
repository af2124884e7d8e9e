"""What a scene can be made of: the one table of words that drawing, captions and sampling share."""

# Lengths are pixels of a 128-pixel image; `rendering` scales them to other sizes.

COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (214, 40, 40),
    "orange": (245, 135, 25),
    "yellow": (245, 215, 60),
    "green": (40, 160, 70),
    "blue": (40, 85, 220),
    "purple": (145, 60, 185),
    "white": (240, 240, 240),
    "black": (30, 30, 30),
}
"""Name to sRGB, 0 to 255."""

SHAPES: tuple[str, ...] = ("circle", "square", "triangle", "star", "ring", "cross")

SIZES: dict[str, float] = {"small": 13.0, "medium": 19.0, "large": 25.0}
"""Name to radius in pixels."""

TEXTURES: tuple[str, ...] = ("plain", "striped", "dotted", "checkered")

_ROWS = {"top": 26.0, "": 64.0, "bottom": 102.0}
_COLUMNS = {"left": 26.0, "center": 64.0, "right": 102.0}

POSITIONS: dict[str, tuple[float, float]] = {
    f"{row} {column}".strip(): (x, y) for row, y in _ROWS.items() for column, x in _COLUMNS.items()
}
"""Name ("top left", ..., "center", ..., "bottom right") to centre (x, y) in pixels."""

POSITION_WORDS: frozenset[str] = frozenset(word for name in POSITIONS for word in name.split())

GRAMMAR_WORDS: tuple[str, ...] = ("a", "an", "and", "at", "background", "on", "the")

MAX_OBJECTS: int = 2
