"""What a service was started with, and what its workers tell of the level and the source."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

MAKER = "sdopt.service.generator:load"
"""What a worker generates with: a module and a function in it; tests name another one."""


@dataclass(frozen=True, kw_only=True, order=True)
class Shape:
    """Width and height in pixels, and steps: what is compiled and captured before it is served."""

    width: int
    height: int
    steps: int

    def __str__(self) -> str:
        return f"{self.width}x{self.height} at {self.steps} steps"


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Options of `sdopt serve`.

    `sizes` are made ready at the start; none is the source's own. `max_size` is the longest side
    in pixels, by default the longest of `sizes`. `cold` allows what was not made ready even where
    it has to be compiled first.
    """

    level: str = "turbo"
    source: str = "auto"
    devices: tuple[str, ...] = ("auto",)
    host: str = "127.0.0.1"
    port: int = 8000
    sizes: tuple[tuple[int, int], ...] = ()
    max_batch: int = 4
    wait_ms: float = 10.0
    max_queue: int = 64
    max_size: int | None = None
    max_steps: int = 50
    max_prompt_length: int = 1000
    max_images: int = 10
    cold: bool = False
    grace_s: float = 30.0
    stuck_s: float = 120.0
    api_keys: tuple[str, ...] = field(default=(), repr=False)
    maker: str = MAKER


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What a loaded worker tells: of the source, and what the level can do on its device.

    `compiles` says whether a new size, number of steps or of images costs seconds or minutes once.
    """

    source: str
    embedded: bool
    size_px: int
    guidance_scale: float
    steps: int
    multiple_px: int
    compiles: bool
    device: str

    @classmethod
    def of(cls, told: dict[str, Any]) -> Facts:
        """From a message of a worker."""
        return cls(**told)


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What may be asked for; known once the first worker has loaded."""

    level: str
    facts: Facts
    shapes: tuple[Shape, ...]
    max_side_px: int
    max_steps: int
    max_prompt_length: int
    max_images: int
    cold: bool

    @classmethod
    def of(cls, settings: Settings, facts: Facts) -> Limits:
        """The first of `shapes` is what a request gets that names no size."""
        sizes = settings.sizes or ((facts.size_px, facts.size_px),)
        return cls(
            level=settings.level,
            facts=facts,
            shapes=tuple(Shape(width=w, height=h, steps=facts.steps) for w, h in sizes),
            max_side_px=settings.max_size or max(max(size) for size in sizes),
            max_steps=settings.max_steps,
            max_prompt_length=settings.max_prompt_length,
            max_images=min(settings.max_images, settings.max_queue),
            cold=settings.cold,
        )

    @property
    def slot_bytes(self) -> int:
        """Of the largest image, three bytes a pixel."""
        return 3 * self.max_side_px**2
