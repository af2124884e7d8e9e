"""What a level makes of every request of a run: images, latents, and the first image twice."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from sdopt.bench.measure.double import double_latents
from sdopt.bench.measure.latents import Doubles, Latents, generate_with_latents, latent_faults
from sdopt.bench.measure.quality import Images, image_faults
from sdopt.bench.measure.repeat import Repeat, repeat_of
from sdopt.levels import UNREPEATABLE, Level
from sdopt.pipelines.pipeline import LevelPipeline
from sdopt.pipelines.workload import Request


@dataclass(frozen=True, kw_only=True)
class Generated:
    """Images and the latents that they were decoded from, by prompt name.

    `doubles` holds the first request's latents in float64, and nothing where nothing computes in
    it. `repeat` compares the first image with one of the same request made after all others.
    """

    images: Images
    latents: Latents
    doubles: Doubles
    repeat: Repeat

    def unsound(self, level: Level) -> str | None:
        """Why no baseline may hold this, or None."""
        if faults := {**latent_faults(self.latents), **image_faults(self.images)}:
            return str(faults)
        if not self.repeat.is_exact and level.name not in UNREPEATABLE:
            return str(self.repeat)
        return None


def generate_all(
    pipeline: LevelPipeline, requests: Sequence[Request], advance: Callable[[], None] = lambda: None
) -> Generated:
    """Every request in turn, then the first one again; `advance` is called after each."""
    first = requests[0]
    generated = {}
    for request in requests:
        generated[request.name] = generate_with_latents(pipeline, request)
        advance()
    repeat = repeat_of(first.name, generated[first.name], generate_with_latents(pipeline, first))
    double = double_latents(pipeline, first)
    return Generated(
        images={name: one.image for name, one in generated.items()},
        latents={name: one.latents for name, one in generated.items()},
        doubles={} if double is None else {first.name: double},
        repeat=repeat,
    )
