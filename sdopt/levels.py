"""The ladder: one frozen row per optimization level, each one change away from its reference."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Literal

from sdopt.errors import SdoptError, UnknownNameError

Decoder = Literal["full-vae", "tiny-vae"]
Scheduler = Literal["euler-ancestral", "dpm-solver++2m"]
CompileMode = Literal["default", "max-autotune"]

DECODERS: tuple[Decoder, ...] = ("full-vae", "tiny-vae")
SCHEDULERS: tuple[Scheduler, ...] = ("euler-ancestral", "dpm-solver++2m")
COMPILE_MODES: tuple[CompileMode, ...] = ("default", "max-autotune")

GUIDED_SHARE, UNGUIDED_SHARE = 0.2, 0.3
"""The largest distance between full steps with guidance and without, as a share of all steps."""


WORDS_ONLY = ("name", "why", "reference")
"""Fields of a level that change nothing about its images."""


@dataclass(frozen=True, kw_only=True)
class Level:
    """One optimization level.

    `reference` names the level that this one differs from by one change and against which its
    quality cost is measured. `compile_mode` says how hard Inductor searches for the fastest kernels
    of a `compiled` level. `cfg_cutoff` is the fraction of the steps after which classifier-free
    guidance is dropped; None keeps it to the end.

    `whole_graph` generates an image as one CUDA graph, by `sdopt.engine`; `fused` does so with
    Triton kernels of our own; `hoisted` computes once what depends on the prompts and the timesteps
    alone; `feature_cache` reuses the UNet's deep features at most steps, or at those that
    `full_share` leaves: the share of the steps that evaluate the whole UNet; `float8` rounds the
    operands of the UNet's products after norms to e4m3.
    """

    name: str
    why: str
    reference: str | None = None
    compiled: bool = False
    compile_mode: CompileMode = "default"
    channels_last: bool = False
    tf32: bool = False
    decoder: Decoder = "full-vae"
    scheduler: Scheduler = "euler-ancestral"
    steps: int = 30
    cfg_cutoff: float | None = None
    whole_graph: bool = False
    fused: bool = False
    hoisted: bool = False
    feature_cache: bool = False
    float8: bool = False
    full_share: float | None = None

    def __post_init__(self) -> None:
        if self.decoder not in DECODERS:
            raise UnknownNameError("decoder", self.decoder, DECODERS)
        if self.scheduler not in SCHEDULERS:
            raise UnknownNameError("scheduler", self.scheduler, SCHEDULERS)
        if self.compile_mode not in COMPILE_MODES:
            raise UnknownNameError("compile mode", self.compile_mode, COMPILE_MODES)
        if not isinstance(self.steps, int) or self.steps < 1:
            raise SdoptError(
                f"level {self.name!r}: steps is {self.steps!r}; it is an integer, 1 or more"
            )
        if self.cfg_cutoff is not None and not 0.0 <= self.cfg_cutoff < 1.0:
            raise SdoptError(
                f"level {self.name!r}: cfg_cutoff is {self.cfg_cutoff}; "
                "it is a fraction of the steps, 0 <= cfg_cutoff < 1"
            )
        if self.full_share is not None and not 0.0 < self.full_share < 1.0:
            raise SdoptError(
                f"level {self.name!r}: full_share is {self.full_share}; "
                "it is a fraction of the steps, 0 < full_share < 1"
            )
        self._check_engine()

    def _check_engine(self) -> None:
        """What the engine's fields need of each other and of the rest."""
        needs: dict[str, dict[str, Any]] = {
            "whole_graph": {"scheduler": "dpm-solver++2m", "channels_last": True},
            "fused": {"whole_graph": True, "compiled": False},
            "hoisted": {"fused": True},
            "feature_cache": {"fused": True},
            "float8": {"fused": True},
            "full_share": {"feature_cache": True},
        }
        for field, others in needs.items():
            for other, value in others.items():
                if getattr(self, field) and getattr(self, other) != value:
                    raise SdoptError(
                        f"level {self.name!r}: {field} needs {other}={value!r}, "
                        f"it is {getattr(self, other)!r}"
                    )

    @property
    def searches(self) -> bool:
        """Whether cuDNN times its algorithms in each process and takes the fastest.

        The engine does without: the few convolutions that its tables leave to cuDNN could have
        other bits in one process than in the next.
        """
        return self.tf32 and not self.fused

    def then(self, name: str, *, why: str, **changes: Any) -> Level:
        """This level with the named changes; this level is the new one's reference."""
        return replace(self, name=name, why=why, reference=self.name, **changes)

    def guided_steps(self, steps: int | None = None) -> int:
        """Steps that evaluate both branches of classifier-free guidance."""
        steps = self.steps if steps is None else steps
        return steps if self.cfg_cutoff is None else guided_steps(self.cfg_cutoff, steps)

    def unet_batches(self, steps: int | None = None) -> tuple[int, ...]:
        """UNet batch size at each step of one guided image: 2 while guided, then 1."""
        steps = self.steps if steps is None else steps
        guided = self.guided_steps(steps)
        return (2,) * guided + (1,) * (steps - guided)

    def full_steps(self, steps: int | None = None, guided: int | None = None) -> tuple[int, ...]:
        """The indices of the steps that evaluate the whole UNet; others reuse its deep features."""
        steps = self.steps if steps is None else steps
        guided = self.guided_steps(steps) if guided is None else guided
        if not self.feature_cache:
            return tuple(range(steps))
        if self.full_share is not None:
            return even_full_steps(steps, self.full_share)
        return full_steps(steps, guided)

    def compares_with(self, reference: Level) -> bool:
        """See `cost_is_comparable`."""
        if self.scheduler != reference.scheduler:
            return False
        return self.scheduler != "euler-ancestral" or self.steps == reference.steps

    def as_dict(self) -> dict[str, Any]:
        """Every field, as stored beside a measurement."""
        return asdict(self)

    def changed_since(self, stored: Mapping[str, Any]) -> list[str]:
        """'steps 30 -> 20' for each setting that was another when `as_dict` was stored."""
        now = self.as_dict()
        return changed_settings({name: stored[name] for name in now if name in stored}, now)


def guided_steps(cutoff: float, steps: int) -> int:
    """Steps with both branches of guidance if it is cut off after that fraction of them.

    The cutoff acts after the step with index `int(cutoff * steps)`, so that step is still guided:
    0.4 of 20 steps gives 9.
    """
    return min(steps, int(cutoff * steps) + 1)


def changed_settings(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    """'steps 30 -> 20' for each setting in which the fields of two levels differ.

    A field that one of them does not have yet has its default there. Words that only explain do
    not count.
    """
    defaults = {field.name: field.default for field in fields(Level)}
    before, after = {**defaults, **before}, {**defaults, **after}
    return [
        f"{name} {before.get(name)} -> {after.get(name)}"
        for name in dict.fromkeys([*after, *before])
        if name not in WORDS_ONLY and before.get(name) != after.get(name)
    ]


BASELINE = Level(name="baseline", why="plain diffusers: eager, full VAE, Euler Ancestral, 30 steps")
TUNED = BASELINE.then(
    "tuned",
    why="channels-last weights, TF32 and cuDNN's algorithm search, still eager",
    channels_last=True,
    tf32=True,
)
COMPILED = TUNED.then(
    "compiled", why="Inductor fuses the UNet's and the decoder's small kernels", compiled=True
)
COMPILED_TINY_VAE = COMPILED.then(
    "compiled-tiny-vae",
    why="a distilled decoder with a fraction of the VAE's arithmetic",
    decoder="tiny-vae",
)
EULER_20 = COMPILED.then("euler-20", why="a third fewer steps", steps=20)
DPM_20 = EULER_20.then(
    "dpm-20",
    why="a second-order solver, which needs fewer steps for the same image",
    scheduler="dpm-solver++2m",
)
EULER_20_CUTOFF = EULER_20.then(
    "euler-20-cutoff",
    why="no unconditional branch once guidance has set the layout",
    cfg_cutoff=0.4,
)
DPM_20_CUTOFF = DPM_20.then(
    "dpm-20-cutoff",
    why="no unconditional branch once guidance has set the layout",
    cfg_cutoff=0.4,
)
FINAL = DPM_20_CUTOFF.then(
    "final", why="everything above with the Tiny VAE: the published end point", decoder="tiny-vae"
)
ONE_GRAPH = DPM_20.then(
    "one-graph",
    why="text encoder, all steps and the decoder as one CUDA graph: the host launches once",
    whole_graph=True,
)
FUSED = ONE_GRAPH.then(
    "fused",
    why="kernels of our own instead of Inductor's: convolutions over boxes, joined products",
    compiled=False,
    fused=True,
)
HOISTED = FUSED.then(
    "hoisted",
    why="time embeddings and the prompts' keys and values are computed once, not at every step",
    hoisted=True,
)
HOISTED_CUTOFF = HOISTED.then(
    "hoisted-cutoff",
    why="no unconditional branch once guidance has set the layout",
    cfg_cutoff=0.4,
)
EXPRESS = HOISTED_CUTOFF.then(
    "express", why="the algorithm of `final` on the engine: the Tiny VAE", decoder="tiny-vae"
)
SWIFT = EXPRESS.then(
    "swift",
    why="the UNet's deep features are computed at 10 of 20 steps and reused at the others",
    feature_cache=True,
    full_share=0.5,
)
TURBO = EXPRESS.then(
    "turbo",
    why="the UNet's deep features are computed at 5 of 20 steps and reused at the others",
    feature_cache=True,
)
EXPRESS_FLOAT8 = EXPRESS.then(
    "express-float8",
    why="operands of the UNet's convolutions after norms in float8, for Hopper GPUs",
    float8=True,
)
TURBO_FLOAT8 = TURBO.then(
    "turbo-float8",
    why="operands of the UNet's convolutions after norms in float8, for Hopper GPUs",
    float8=True,
)

LEVELS: dict[str, Level] = {
    level.name: level
    for level in (
        BASELINE,
        TUNED,
        COMPILED,
        COMPILED_TINY_VAE,
        EULER_20,
        DPM_20,
        EULER_20_CUTOFF,
        DPM_20_CUTOFF,
        FINAL,
        ONE_GRAPH,
        FUSED,
        HOISTED,
        HOISTED_CUTOFF,
        EXPRESS,
        SWIFT,
        TURBO,
        EXPRESS_FLOAT8,
        TURBO_FLOAT8,
    )
}

UNREPEATABLE: Mapping[str, str] = {}
"""Levels that a library keeps from generating the same image twice, each with the reason.

None is known: cuDNN's search (`tuned` and on) settles on an algorithm once a process, and the
engine's, Inductor's and cuBLAS's sums have a fixed order.
"""


def rounds_coarsely(name: str) -> bool:
    """Whether a level's differences between machines are of float8, not of float32's roundings.

    A value between two of float8 falls to the other one where a machine sums in another order: by
    a sixteenth instead of a millionth. Such levels never set the limits of others.
    """
    return name in LEVELS and LEVELS[name].float8


def get_level(name: str) -> Level:
    """The level of that name. Raises UnknownNameError with the choices."""
    if name not in LEVELS:
        raise UnknownNameError("level", name, LEVELS)
    return LEVELS[name]


def cost_is_comparable(level: Level, reference: Level) -> bool:
    """Whether the SSIM between the two measures what the change costs.

    A stochastic sampler adds fresh noise at every step, so against another sampler or another
    number of its own steps the difference of the images is the sampler's, not a loss.
    """
    return level.compares_with(reference)


def full_steps(steps: int, guided_steps: int) -> tuple[int, ...]:
    """The indices of the full steps, ascending, of `steps` of which the first are guided.

    While guided, every 0.2 of the way from the first step on: guidance multiplies the errors of
    reused features. After that every 0.3 of the way, counted back from the last step, which is
    always full: its prediction is the image. 20 steps, 9 of them guided: 0, 4, 8, 13, 19. No two
    are further apart than 0.3 of the steps, rounded, whatever the cutoff.
    """
    guided = [0, *range(0, guided_steps, max(1, round(GUIDED_SHARE * steps)))]
    unguided = range(steps - 1, guided[-1], -max(1, round(UNGUIDED_SHARE * steps)))
    return tuple(sorted({*guided, *unguided}))


def even_full_steps(steps: int, share: float) -> tuple[int, ...]:
    """The indices of the full steps, ascending, where that share of the steps is full.

    They are spread evenly from the first step to the last, both of which are full, with and
    without guidance alike. Half of 20: 0, 2, 4, 6, 8, 11, 13, 15, 17, 19.
    """
    full = min(steps, max(2, math.ceil(share * steps)))
    return tuple(round(index * (steps - 1) / max(1, full - 1)) for index in range(full))
