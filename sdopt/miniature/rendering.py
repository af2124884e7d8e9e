"""Draws many scenes at once, on any device, from analytic signed distances."""

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sdopt.miniature.attributes import COLOURS, POSITIONS, SHAPES, SIZES
from sdopt.miniature.rows import (
    BACKGROUND,
    EXTRA_OBJECTS,
    FIRST_OBJECT,
    OBJECT_FIELDS,
    Rows,
    column,
)

_DESIGN_PX = 128
_SHADOW_OFFSET_PX = (2.5, 3.5)
_SHADOW_BLUR_PX = 5.0
_SHADOW_STRENGTH = 0.4
_LIGHT_TOP, _LIGHT_BOTTOM = 1.04, 0.78


@dataclass(frozen=True, kw_only=True)
class Tables:
    """Every drawing a scene is composed of; a scene is then a few look-ups and blends."""

    cover: Tensor
    """shape x size x position x H x W: how much of each pixel the object covers, 0 to 1."""
    shadow: Tensor
    """As `cover`, for the soft shadow the object throws."""
    texture: Tensor
    """texture x H x W: 0 where the object has its colour, 1 where it has its second tone."""
    colour: Tensor
    """colour x 3, 0 to 1."""
    tone: Tensor
    """colour x 3: the second tone of each colour."""
    light: Tensor
    """H x 1: brightness from the top to the bottom of the image."""


def render_rows(rows: Tensor, tables: Tables) -> Tensor:
    """N x 3 x H x W in 0 to 1 (float32) for N rows (crowded ones too) on the device of `tables`."""
    image = tables.colour[rows[:, BACKGROUND], :, None, None] * tables.light
    for item in range((rows.shape[1] - FIRST_OBJECT) // len(OBJECT_FIELDS)):
        present = (rows[:, EXTRA_OBJECTS] >= item)[:, None, None, None]
        place = tuple(rows[:, column(item, name)] for name in ("shape", "size", "position"))
        shadow = _SHADOW_STRENGTH * tables.shadow[place][:, None] * present
        cover = tables.cover[place][:, None] * present
        image = torch.lerp(image * (1 - shadow), _paint(rows, item, tables), cover)
    return image.clamp(0, 1)


def _paint(rows: Tensor, item: int, tables: Tables) -> Tensor:
    colour = rows[:, column(item, "colour")]
    texture = tables.texture[rows[:, column(item, "texture")]][:, None]
    first, second = (t[colour, :, None, None] for t in (tables.colour, tables.tone))
    return torch.lerp(first, second, texture) * tables.light


def render_uint8(rows: Rows, size: int) -> NDArray[np.uint8]:
    """N x size x size x 3, RGB, 0 to 255, drawn on the CPU."""
    return to_uint8(render_rows(torch.from_numpy(rows), tables(size)))


def to_uint8(images: Tensor) -> NDArray[np.uint8]:
    """N x H x W x 3 in 0 to 255 from N x 3 x H x W in 0 to 1."""
    scaled = images.float().clamp(0, 1).mul(255).round().to(torch.uint8)
    array: NDArray[np.uint8] = scaled.permute(0, 2, 3, 1).cpu().numpy()
    return array


@lru_cache(maxsize=4)
def tables(size: int = _DESIGN_PX, device: str = "cpu") -> Tables:
    """The tables for images of `size` pixels; computed on the CPU so all devices agree."""
    points = (torch.arange(size, dtype=torch.float64) + 0.5) * (_DESIGN_PX / size)
    y, x = torch.meshgrid(points, points, indexing="ij")
    pixel = _DESIGN_PX / size
    colour = torch.tensor(list(COLOURS.values()), dtype=torch.float64) / 255
    made = {
        "cover": _stamps(x, y, (0.0, 0.0), pixel),
        "shadow": _stamps(x, y, _SHADOW_OFFSET_PX, _SHADOW_BLUR_PX),
        "texture": _textures(x, y, pixel),
        "colour": colour,
        "tone": _second_tones(colour),
        "light": _LIGHT_TOP + (_LIGHT_BOTTOM - _LIGHT_TOP) * y[:, :1] / _DESIGN_PX,
    }
    return Tables(**{name: value.to(device, torch.float32) for name, value in made.items()})


def _second_tones(colour: Tensor) -> Tensor:
    """Darker, except that black gets a lighter one."""
    bright = colour.mean(1, keepdim=True) > 0.25
    return torch.where(bright, colour * 0.5, colour * 0.4 + 0.5)


def _stamps(x: Tensor, y: Tensor, offset: tuple[float, float], blur: float) -> Tensor:
    """shape x size x position x H x W: coverage of objects moved by `offset`, edges `blur` wide."""
    dx, dy = offset
    stamps = [
        _coverage(_distance(shape, radius, x - cx - dx, y - cy - dy), blur)
        for shape in SHAPES
        for radius in SIZES.values()
        for cx, cy in POSITIONS.values()
    ]
    return torch.stack(stamps).reshape(len(SHAPES), len(SIZES), len(POSITIONS), *x.shape)


def _coverage(distance: Tensor, width: float) -> Tensor:
    """1 inside, 0 outside, linear over `width` across the edge: antialiasing, or a soft shadow."""
    return (0.5 - distance / width).clamp(0, 1)


def _distance(shape: str, radius: float, x: Tensor, y: Tensor) -> Tensor:
    """Signed distance in pixels to a shape around the origin, negative inside."""
    if shape == "circle":
        return torch.hypot(x, y) - radius
    if shape == "ring":
        return (torch.hypot(x, y) - 0.74 * radius).abs() - 0.26 * radius
    return _polygon_distance([(radius * u, radius * v) for u, v in _outline(shape)], x, y)


def _outline(shape: str) -> list[tuple[float, float]]:
    """The corners of a polygon of radius 1; y points down."""
    if shape == "square":
        return [(-0.85, -0.85), (0.85, -0.85), (0.85, 0.85), (-0.85, 0.85)]
    if shape == "triangle":
        return [(0.0, -1.0), (1.0, 0.8), (-1.0, 0.8)]
    if shape == "star":
        turns = [(k * math.pi / 5, 1.05 if k % 2 == 0 else 0.45) for k in range(10)]
        return [(r * math.sin(a), -r * math.cos(a)) for a, r in turns]
    arm = 0.34
    quarter = [(-arm, -1.0), (arm, -1.0), (arm, -arm)]
    corners = []
    for _ in range(4):
        corners += quarter
        quarter = [(-v, u) for u, v in quarter]
    return corners


def _polygon_distance(corners: list[tuple[float, float]], x: Tensor, y: Tensor) -> Tensor:
    """Exact signed distance to a polygon (Inigo Quilez, "distance to a polygon", 2D functions)."""
    nearest = torch.full_like(x, math.inf)
    inside = torch.zeros_like(x, dtype=torch.bool)
    for (ax, ay), (bx, by) in zip(corners, corners[1:] + corners[:1], strict=True):
        ex, ey, px, py = bx - ax, by - ay, x - ax, y - ay
        along = ((px * ex + py * ey) / (ex * ex + ey * ey)).clamp(0, 1)
        nearest = torch.minimum(nearest, torch.hypot(px - ex * along, py - ey * along))
        crosses = (y >= ay) != (y >= by)
        inside ^= crosses & (px * ey * math.copysign(1, ey) < py * ex * math.copysign(1, ey))
    return torch.where(inside, -nearest, nearest)


def _textures(x: Tensor, y: Tensor, pixel: float) -> Tensor:
    """texture x H x W in the order of TEXTURES, each repeated every 8 pixels across and down.

    That is one latent of the VAE: a texture looks the same in each, wherever the object is.
    """
    striped = _coverage(_wave((x + y) / math.sqrt(2), 8 / math.sqrt(2)), pixel)
    dots = torch.hypot(_centred(x, 8.0), _centred(y, 8.0)) - 2.5
    across, down = (2 * _coverage(_wave(axis, 8.0), pixel) - 1 for axis in (x, y))
    checkered = 0.5 + 0.5 * across * down
    return torch.stack([torch.zeros_like(x), striped, _coverage(dots, pixel), checkered])


def _centred(axis: Tensor, period: float) -> Tensor:
    """The distance, with its sign, to the middle of the period that `axis` lies in."""
    return axis % period - period / 2


def _wave(axis: Tensor, period: float) -> Tensor:
    """Signed distance to bars half a period wide, repeated every `period`."""
    return _centred(axis, period).abs() - period / 4
