"""A project's own levels: each a function that returns a diffusers pipeline, and how it is called.

`pytest_sdopt_ladder` in the project's conftest.py returns them, see
docs/how-to/gate-your-own-pipeline.md.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from sdopt.errors import SdoptError, UnknownNameError
from sdopt.levels import Level
from sdopt.pipelines.workload import NAME_PATTERN
from sdopt.weights.sources import Source

DECLARED = ("name", "why", "reference", "compiled", "steps")
"""The fields of a level of this package that an own one has as well."""
VARIED = ("prompt", "negative prompt", "seed", "guidance", "number of steps", "size")
"""What a second request changes, to see that each is used and nothing is kept."""
DTYPES = ("float32", "float16", "bfloat16")
Proof = Callable[[Any, Any], Iterable[str]]
"""Pipeline and `Observation` in, one sentence out for each thing that did not take effect."""


@dataclass(frozen=True, kw_only=True)
class OwnLevel(Level):
    """One pipeline of a project.

    `build` returns it, on the device that it is to run on. `call` are arguments of every call
    besides prompts, seed, `steps`, size and guidance scale. `compiled` says whether the denoiser
    runs Inductor's code, `dtype` what it computes in (float16 on CUDA, float32 on a CPU): both are
    proven. `proof` may prove more. `fixed` names what of VARIED a request cannot change.

    `same_noise` is whether its images can be compared with the reference's. `float64` asks for
    latents in float64 on a CPU; by default a StableDiffusionPipeline is asked. Without
    `counts_flop` its arithmetic is not counted: for modules that cannot run on the meta device.
    """

    build: Callable[[], Any]
    call: Mapping[str, Any] = field(default_factory=dict)
    dtype: str | None = None
    proof: Proof | None = None
    fixed: tuple[str, ...] = ()
    same_noise: bool = True
    float64: bool | None = None
    counts_flop: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if not NAME_PATTERN.fullmatch(self.name):
            raise SdoptError(
                f"level {self.name!r}: its name has to match {NAME_PATTERN.pattern}: it names files"
            )
        if not callable(self.build):
            raise SdoptError(
                f"level {self.name!r}: build is {self.build!r}; it is a function that returns a "
                "diffusers pipeline"
            )
        for one in self.fixed:
            if one not in VARIED:
                raise UnknownNameError(f"thing that is fixed in level {self.name!r}", one, VARIED)
        if self.dtype is not None and self.dtype not in DTYPES:
            raise UnknownNameError(f"dtype of level {self.name!r}", self.dtype, DTYPES)
        for other in fields(Level):
            if other.name not in DECLARED and getattr(self, other.name) != other.default:
                raise SdoptError(
                    f"level {self.name!r}: {other.name} would do nothing: what build returns runs "
                    "as it is; do that in build"
                )

    def compares_with(self, reference: Level) -> bool:
        """Whether the SSIM to the reference's images says what the change costs."""
        return self.same_noise

    def as_dict(self) -> dict[str, Any]:
        """What is stored beside a measurement; another `call` makes another level of it."""
        call = json.dumps(dict(self.call), sort_keys=True, default=repr)
        declared = {name: getattr(self, name) for name in DECLARED}
        return {**declared, **({"dtype": self.dtype} if self.dtype else {}), "call": call}


@dataclass(frozen=True, kw_only=True)
class Ladder:
    """The levels of a project, and what all of them are asked for.

    `name` is the folder of its stored images, latents, counts and runs. `prompts` is a file of JSON
    lines; without one, four prompts of photographs are used. Images are `size_px` on each side.
    """

    name: str
    levels: Sequence[OwnLevel]
    size_px: int = 512
    guidance_scale: float = 7.5
    prompts: Path | None = None

    def __post_init__(self) -> None:
        if not NAME_PATTERN.fullmatch(self.name):
            raise SdoptError(f"ladder {self.name!r}: its name has to match {NAME_PATTERN.pattern}")
        if not self.levels or not all(isinstance(level, OwnLevel) for level in self.levels):
            raise SdoptError(f"ladder {self.name!r}: levels holds no OwnLevel, or something else")
        names = [level.name for level in self.levels]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise SdoptError(f"ladder {self.name!r}: the levels {twice} are there more than once")
        for level in self.levels:
            if level.reference is not None and level.reference not in names:
                raise UnknownNameError(f"reference of level {level.name!r}", level.reference, names)

    @property
    def by_name(self) -> dict[str, Level]:
        """The levels, in order."""
        return {level.name: level for level in self.levels}

    @property
    def source(self) -> Source:
        """What stands for the weights, which the levels bring themselves."""
        return Source(
            name=self.name,
            why="levels of this project's conftest.py",
            kind="own",
            size_px=self.size_px,
            guidance_scale=self.guidance_scale,
        )
