"""Judges images against the ground truth of their scenes; needs no model."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from sdopt.miniature.attributes import COLOURS
from sdopt.miniature.rows import OBJECT_FIELDS, Rows
from sdopt.miniature.scenes import Scene

Images = NDArray[np.uint8]
"""N x H x W x 3, RGB, 0 to 255."""

JUDGED = ("background", "shape", "colour", "position")
"""The attributes that acceptance counts; size and texture are told beside them."""
ALL = ("background", *OBJECT_FIELDS)


def mean_ssim(first: Images, second: Images) -> float:
    """Mean SSIM of N pairs of images (scikit-image, RGB, range 255)."""
    from skimage.metrics import structural_similarity

    pairs = zip(first, second, strict=True)
    values = [structural_similarity(a, b, channel_axis=2, data_range=255) for a, b in pairs]
    return float(np.mean(values))


def attribute_accuracy(images: Images, scenes: list[Scene]) -> dict[str, float]:
    """Share of scenes' attributes drawn right, per attribute, and over all `JUDGED` ones.

    An attribute is right when, of the ground truths that differ only in it, the right one is
    nearest to the image by mean squared error.
    """
    verdicts: dict[str, list[bool]] = {"background": [], **{name: [] for name in OBJECT_FIELDS}}
    for image, scene in zip(images, scenes, strict=True):
        for name, right in judge(image, scene):
            verdicts[name].append(right)
    shares = {name: float(np.mean(rights)) for name, rights in verdicts.items()}
    judged = [right for name in JUDGED for right in verdicts[name]]
    return shares | {"judged": float(np.mean(judged))}


def judge(
    image: NDArray[np.uint8], scene: Scene, names: Sequence[str] = ALL
) -> list[tuple[str, bool]]:
    """(attribute, right) for the background and every object's attributes, of those named."""
    verdicts = []
    if "background" in names:
        verdicts.append(("background", _nearest(image, _other_backgrounds(scene)) == scene))
    for item in range(len(scene.objects)):
        for field in OBJECT_FIELDS:
            if field in names:
                right = _nearest(image, _alternatives(scene, item, field)) == scene
                verdicts.append((field, right))
    return verdicts


def _other_backgrounds(scene: Scene) -> list[Scene]:
    return [replace(scene, background=colour) for colour in COLOURS]


def _alternatives(scene: Scene, item: int, field: str) -> list[Scene]:
    """`scene` with each choice for one field of one object, the true one among them."""
    thing, things = scene.objects[item], scene.objects
    return [
        replace(
            scene,
            objects=(*things[:item], replace(thing, **{field: choice}), *things[item + 1 :]),
        )
        for choice in OBJECT_FIELDS[field]
    ]


def _nearest(image: NDArray[np.uint8], scenes: list[Scene]) -> Scene:
    from sdopt.miniature.rendering import render_uint8

    rows: Rows = np.stack([scene.row() for scene in scenes])
    drawings = render_uint8(rows, image.shape[0]).astype(np.float32)
    errors = np.square(drawings - image.astype(np.float32)).mean((1, 2, 3))
    return scenes[int(errors.argmin())]
