"""Scenes as rows of integers, so that millions can be sampled, filtered and drawn at once."""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from sdopt.miniature.attributes import COLOURS, MAX_OBJECTS, POSITIONS, SHAPES, SIZES, TEXTURES

Rows = NDArray[np.int64]
"""N x 12: background, number of objects - 1, then per object its five `OBJECT_FIELDS`.

Crowded rows are wider, see `sample_crowded_rows`.
"""

OBJECT_FIELDS: dict[str, tuple[str, ...]] = {
    "size": tuple(SIZES),
    "texture": TEXTURES,
    "colour": tuple(COLOURS),
    "shape": SHAPES,
    "position": tuple(POSITIONS),
}
"""Field name to its choices, in the order of a row's columns."""

BACKGROUND, EXTRA_OBJECTS, FIRST_OBJECT = 0, 1, 2
_CHOICES = tuple(len(choices) for choices in OBJECT_FIELDS.values())
_RADIX = (len(COLOURS), MAX_OBJECTS, *_CHOICES * MAX_OBJECTS)
ROW_LENGTH = len(_RADIX)

_TWO_OBJECTS = 0.6
_RADII_PX = np.array(list(SIZES.values()))
_CENTRES_PX = np.array(list(POSITIONS.values()))


def column(item: int, field: str) -> int:
    """The column that holds `field` of object number `item`."""
    return FIRST_OBJECT + item * len(OBJECT_FIELDS) + list(OBJECT_FIELDS).index(field)


def sample_rows(seed: int, count: int) -> Rows:
    """`count` x 12 random scenes whose objects stand clear of the background and each other."""
    generator = np.random.Generator(np.random.PCG64(seed))
    return _first(count, (rows[_drawable(rows)] for rows in _draws(generator, count)))


def sample_held_out_rows(seed: int, count: int) -> Rows:
    """As `sample_rows`, but only scenes that training never sees."""
    generator = np.random.Generator(np.random.PCG64(seed))
    draws = _draws(generator, 32 * count)
    return _first(count, (rows[_drawable(rows) & held_out(rows)] for rows in draws))


def sample_crowded_rows(seed: int, count: int) -> Rows:
    """`count` x 47 images with four to nine objects, for the autoencoders only.

    In a scene most pixels are background; where these learn to draw objects, objects should be.
    """
    generator = np.random.Generator(np.random.PCG64(seed))
    most = len(POSITIONS)
    columns = [generator.integers(0, len(COLOURS), count), generator.integers(3, most, count)]
    places = generator.random((count, most)).argsort(1)
    for item in range(most):
        columns += [generator.integers(0, choices, count) for choices in _CHOICES[:-1]]
        columns.append(places[:, item])
    return np.stack(columns, 1)


def held_out(rows: Rows) -> NDArray[np.bool_]:
    """N booleans: about one scene in 16, chosen by a hash of everything that defines it."""
    number = np.zeros(len(rows), np.int64)
    for values, radix in zip(rows.T, _RADIX, strict=True):
        number = number * radix + values
    # Knuth's multiplicative hash: its top four bits depend on every digit of the number.
    chosen: NDArray[np.bool_] = (number * 2654435761) % 2**32 >> 28 == 0
    return chosen


def _draws(generator: np.random.Generator, count: int) -> Iterator[Rows]:
    while True:
        rows = np.stack([generator.integers(0, radix, 2 * count + 16) for radix in _RADIX], 1)
        rows[:, EXTRA_OBJECTS] = generator.random(len(rows)) < _TWO_OBJECTS
        # An absent object is all zeros: the same scene must always be the same number.
        rows[rows[:, EXTRA_OBJECTS] == 0, FIRST_OBJECT + len(OBJECT_FIELDS) :] = 0
        yield rows


def _first(count: int, batches: Iterator[Rows]) -> Rows:
    found = [next(batches)]
    while sum(map(len, found)) < count:
        found.append(next(batches))
    return np.concatenate(found)[:count]


def _drawable(rows: Rows) -> NDArray[np.bool_]:
    """An object in the background's colour, or under its neighbour, could not be seen."""
    background, two = rows[:, BACKGROUND], rows[:, EXTRA_OBJECTS] == 1
    clear = rows[:, column(0, "colour")] != background
    clear &= ~two | (rows[:, column(1, "colour")] != background)
    centres = [_CENTRES_PX[rows[:, column(item, "position")]] for item in range(MAX_OBJECTS)]
    radii = [_RADII_PX[rows[:, column(item, "size")]] for item in range(MAX_OBJECTS)]
    apart = np.linalg.norm(centres[0] - centres[1], axis=1) >= radii[0] + radii[1]
    drawable: NDArray[np.bool_] = clear & (~two | apart)
    return drawable
