"""What is measured side by side: other people's recipes as their documentation gives them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from sdopt.levels import get_level

Sampler = Literal["dpm-solver++2m", "euler-ancestral", "pndm"]
SAMPLERS: tuple[Sampler, ...] = ("dpm-solver++2m", "euler-ancestral", "pndm")
CompileMode = Literal["max-autotune", "reduce-overhead"]


@dataclass(frozen=True, kw_only=True)
class Ground:
    """A sampler and its steps; on the same ground times and images can be compared."""

    sampler: Sampler
    steps: int

    def __str__(self) -> str:
        return f"{self.sampler}, {self.steps}"


COMMON = Ground(sampler="dpm-solver++2m", steps=20)
"""That of sdopt's fast levels; deterministic, so an image differs by what the recipe costs."""
PUBLISHED = Ground(sampler="euler-ancestral", steps=30)
"""That of `baseline`."""
DOCUMENTED = Ground(sampler="pndm", steps=50)
"""What the peers' documentation runs: Stable Diffusion 1.5's scheduler, diffusers' 50 steps."""


def leave(pipeline: Any) -> None:
    """Plain diffusers."""


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """One thing to measure: a peer, or a level of this project for comparison.

    `work` says which of an image's work it does, `docs` where the recipe stands, `package` the
    distribution that it needs. `apply` turns plain diffusers into the peer, before its first
    image; a `level` is built by this project instead.
    """

    name: str
    work: str
    docs: str = ""
    package: str | None = None
    grounds: tuple[Ground, ...] = (COMMON, DOCUMENTED)
    apply: Callable[[Any], object] = leave
    level: str | None = None

    def __str__(self) -> str:
        return self.name

    @property
    def rows_file(self) -> str:
        """The file that its process writes."""
        return f"rows-{self.name}.json"

    def row_name(self, ground: Ground) -> str:
        """What the row of this recipe on that ground is called."""
        return f"{self.name} ({ground})"


def apply_deepcache(pipeline: Any) -> object:
    """DeepCache (https://arxiv.org/abs/2312.00858) with the parameters of its README."""
    from DeepCache import DeepCacheSDHelper

    helper = DeepCacheSDHelper(pipe=pipeline)
    helper.set_params(cache_interval=3, cache_branch_id=0)
    helper.enable()
    return helper


def apply_tomesd(pipeline: Any) -> object:
    """Token merging (https://arxiv.org/abs/2303.17604) with the ratio of its README."""
    import tomesd

    return tomesd.apply_patch(pipeline, ratio=0.5)


def apply_compile_max(pipeline: Any) -> None:
    """diffusers' page on faster inference, with its compiler flags and fused projections."""
    import torch._inductor.config as inductor

    inductor.conv_1x1_as_mm = True
    inductor.coordinate_descent_tuning = True
    inductor.epilogue_fusion = False
    inductor.coordinate_descent_check_all_directions = True
    pipeline.fuse_qkv_projections()
    _compile(pipeline, "max-autotune")


def apply_compile(pipeline: Any) -> None:
    """The same page's `torch.compile` in the mode that searches for nothing."""
    _compile(pipeline, "reduce-overhead")


def _compile(pipeline: Any, mode: CompileMode) -> None:
    import torch

    for module in (pipeline.unet, pipeline.vae):
        module.to(memory_format=torch.channels_last)
    pipeline.unet = torch.compile(pipeline.unet, mode=mode, fullgraph=True)
    pipeline.vae.decode = torch.compile(pipeline.vae.decode, mode=mode, fullgraph=True)


def level_recipe(name: str) -> Recipe:
    """A level of this project, on its own ground."""
    level = get_level(name)
    ground = Ground(sampler=level.scheduler, steps=level.steps)
    return Recipe(name=f"sdopt-{name}", work=level.why, grounds=(ground,), level=name)


SHOWN_LEVELS = ("baseline", "final", "hoisted", "express", "turbo")
"""The levels that the peers are shown next to; any name of the ladder."""
OURS = tuple(level_recipe(name) for name in SHOWN_LEVELS)

_DOCS = "https://huggingface.co/docs/diffusers/optimization"
_ALL = (COMMON, PUBLISHED, DOCUMENTED, *(ground for ours in OURS for ground in ours.grounds))

PLAIN = Recipe(
    name="diffusers",
    work="eager: every step in full, full VAE",
    docs=f"{_DOCS}/fp16",
    grounds=tuple(dict.fromkeys(_ALL)),
)
"""The reference of every other recipe on the same ground, in time and in images."""

PEERS = (
    PLAIN,
    Recipe(
        name="tomesd",
        work="eager: half of the tokens of the largest self-attentions merged",
        docs=f"{_DOCS}/tome",
        package="tomesd",
        apply=apply_tomesd,
    ),
    Recipe(
        name="DeepCache",
        work="eager: every 3rd step in full, the others in the outermost block alone",
        docs=f"{_DOCS}/deepcache",
        package="DeepCache",
        apply=apply_deepcache,
    ),
    Recipe(
        name="compile-reduce-overhead",
        work="every step in full, full VAE; Inductor and CUDA graphs",
        docs=f"{_DOCS}/fp16",
        apply=apply_compile,
    ),
    Recipe(
        name="compile-max-autotune",
        work="the same, with Inductor's search for the fastest kernels",
        docs=f"{_DOCS}/fp16",
        apply=apply_compile_max,
    ),
)

RECIPES = (*PEERS, *OURS)
