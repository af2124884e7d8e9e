"""A level's images beside its reference's, and how far they are apart, small enough to ship."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sdopt.bench.metrics.images import ssim
from sdopt.bench.report.page.facts import Facts, plain
from sdopt.bench.stored.baselines import read_image
from sdopt.errors import BrokenFileError

DIFFERENCE_TIMES = 8
MOST_BYTES = 560_000
"""Of all images of a page together, before base64 makes them a third larger."""
MOST_PROMPTS = 6
LEAST_SSIM_PX = 7
Form = tuple[int, dict[str, Any], str]
"""Divisor of the size, options of WebP, and how a reader is told."""
FORMS: tuple[Form, ...] = (
    (1, {"lossless": True}, "pixel by pixel as stored"),
    (1, {"quality": 92}, "compressed with losses"),
    (1, {"quality": 75}, "compressed with losses"),
    (2, {"quality": 80}, "at half the size, compressed with losses"),
    (2, {"quality": 50}, "at half the size, compressed with losses"),
    (4, {"quality": 60}, "at a quarter of the size, compressed with losses"),
    (8, {"quality": 40}, "at an eighth of the size, compressed with losses"),
)
"""From the best to the smallest."""


@dataclass(frozen=True, kw_only=True)
class Pair:
    """A level's image of a prompt, its reference's, and the map of their difference, as data URIs.

    The numbers are of the images as they are stored.
    """

    level: str
    reference: str
    prompt: str
    image: str
    other: str
    difference: str
    words: str


@dataclass(frozen=True, kw_only=True)
class Images:
    """All pairs; without any, `note` says why there is none."""

    pairs: Sequence[Pair]
    note: str
    side_px: int = 0


Found = tuple[str, str, str, Any, Any]
"""Level, reference, prompt and the two images."""
Encoded = dict[tuple[str, ...], bytes]


def images_of(facts: Facts, folder: Path | None = None) -> Images:
    """The pairs in `folder`/<level>/<prompt>.png, by default those that are stored for the run.

    Raises BrokenFileError for a folder that was named and holds nothing of the run's levels.
    """
    run = facts.run
    where = folder or facts.root / "images" / run.baseline_set
    if folder is None and not plain(run.baseline_set):
        return Images(pairs=(), note="No images are at hand: the run's source has no plain name.")
    try:
        found = list(_found(facts, where))
    except BrokenFileError as error:
        return Images(pairs=(), note=f"The images cannot be shown: {error}")
    if not found:
        note = f"No images are at hand: {where} holds none of a level of this run and its reference"
        if folder is not None:
            raise BrokenFileError(f"{note}; name a folder with <level>/<prompt>.png")
        return Images(pairs=(), note=f"{note}.")
    of = "These are from" if folder else "A run keeps no images: these are the stored ones, in"
    encoded, form = _encoded(found)
    pairs = [_pair(one, encoded) for one in _told(found)]
    note = f"{of} {where}, shown {form}. SSIM and differences are of the originals."
    return Images(pairs=pairs, note=note, side_px=max(one[3].shape[1] for one in found))


def _found(facts: Facts, where: Path) -> Iterator[Found]:
    for name, level in facts.run.levels.items():
        other = level.reference
        if other is None or not (plain(name) and plain(other)):
            continue
        prompts = [path.name for path in sorted((where / name).glob("*.png"))]
        for prompt in prompts[:MOST_PROMPTS]:
            if not (where / other / prompt).is_file():
                continue
            image, _ = read_image(where / name / prompt)
            reference, _ = read_image(where / other / prompt)
            if image.shape == reference.shape:
                yield name, other, Path(prompt).stem, image, reference


def _told(found: Sequence[Found]) -> Iterator[tuple[Found, str]]:
    """Each with its figures."""
    import numpy as np

    for one in found:
        image, other = one[3], one[4]
        apart = np.abs(image.astype(np.int16) - other)
        words = f"at most {int(apart.max())} of 255 apart"
        if min(image.shape[:2]) >= LEAST_SSIM_PX:
            words = f"SSIM {ssim(image, other).value:.4f}, {words}"
        yield one, words


def _pair(told: tuple[Found, str], encoded: dict[tuple[str, ...], str]) -> Pair:
    (level, reference, prompt, _, _), words = told
    return Pair(
        level=level,
        reference=reference,
        prompt=prompt,
        image=encoded[level, prompt],
        other=encoded[reference, prompt],
        difference=encoded[level, prompt, reference],
        words=words,
    )


def _encoded(found: Sequence[Found]) -> tuple[dict[tuple[str, ...], str], str]:
    """Data URIs in the best form that is small enough, or in the smallest, and which it is.

    An image that stands in several pairs is there once.
    """
    images: dict[tuple[str, ...], Any] = {}
    for level, reference, prompt, image, other in found:
        images[level, prompt] = image
        images[reference, prompt] = other
        images[level, prompt, reference] = _difference(image, other)
    encoded, form = _in_best_form(images, MOST_BYTES)
    return _uris(encoded), form[2]


def uris_of(images: Mapping[str, Any], most_bytes: int) -> dict[str, str]:
    """Images by name as data URIs, in the best form that is small enough, or in the smallest."""
    encoded, _ = _in_best_form({(name,): image for name, image in images.items()}, most_bytes)
    return {name: uri for (name,), uri in _uris(encoded).items()}


def _in_best_form(images: dict[tuple[str, ...], Any], most: float) -> tuple[Encoded, Form]:
    for form in FORMS:
        encoded = _in_form(images, form, most)
        if encoded is not None:
            return encoded, form
    return _in_form(images, FORMS[-1], math.inf) or {}, FORMS[-1]


def _uris(encoded: Encoded) -> dict[tuple[str, ...], str]:
    return {
        name: f"data:image/webp;base64,{base64.b64encode(content).decode()}"
        for name, content in encoded.items()
    }


def _in_form(images: dict[tuple[str, ...], Any], form: Form, most: float) -> Encoded | None:
    """All images in that form; None as soon as they are too large."""
    divisor, options, _ = form
    encoded: Encoded = {}
    for name, image in images.items():
        encoded[name] = _webp(image, divisor, options)
        most -= len(encoded[name])
        if most < 0:
            return None
    return encoded


def _difference(image: Any, other: Any) -> Any:
    """DIFFERENCE_TIMES as bright as the difference, grey: the largest of the three channels."""
    import numpy as np

    apart = np.abs(image.astype(np.int16) - other).max(axis=2)
    return np.minimum(255, DIFFERENCE_TIMES * apart).astype(np.uint8)


def _webp(image: Any, divisor: int, options: dict[str, Any]) -> bytes:
    from PIL import Image

    picture = Image.fromarray(image)
    if divisor > 1:
        size = (max(1, picture.width // divisor), max(1, picture.height // divisor))
        picture = picture.resize(size, Image.Resampling.BOX)
    buffer = io.BytesIO()
    picture.save(buffer, format="WEBP", method=4, **options)
    return buffer.getvalue()
