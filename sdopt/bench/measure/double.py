"""An image's final latents in float64, where machines agree to 1e-14 and small faults show.

In float32 final latents differ by about 5e-7 for no reason but rounding; an attention of the
miniature's middle block that is 2 % off moves them by less. Copies of the level's very modules and
weights generate here, with PyTorch's operations, in steps enough for each kind that a level has.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from copy import copy, deepcopy
from typing import TYPE_CHECKING, Any

import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from sdopt.bench.own.ladder import OwnLevel
from sdopt.bench.own.pipeline import OwnPipeline, core, denoiser_name
from sdopt.engine.image import ImageEngine
from sdopt.engine.modules import fuse_modules
from sdopt.pipelines.workload import Request, generate
from sdopt.util.replaced import replaced

if TYPE_CHECKING:
    import numpy as np

    from sdopt.pipelines.pipeline import LevelPipeline

STEPS = 5
"""Guided and unguided ones, and with cached features full and shallow ones."""
WAVES_APART = 1e-3
"""Within this, diffusers' float32 time embedding is taken for the exact one: its sines of up to
1000 are off by up to 2e-4, by other amounts on other instruction sets."""
ROUNDED_ONCE = frozenset({torch.ops.aten.sqrt, torch.ops.aten.pow, torch.ops.aten.log})
"""What schedulers compute of float32, and processors round in different ways."""


def double_latents(pipeline: LevelPipeline, request: Request) -> NDArray[np.float64] | None:
    """The request's latents (4, H, W) after STEPS steps, float64; None for a pipeline on a GPU.

    What is compiled runs uncompiled, and noise is drawn in float64: in float32 its last bit depends
    on the instruction set. A copy generates: the pipeline stays as it is.
    """
    if pipeline.device.type != "cpu" or not _is_asked(pipeline):
        return None
    twin = _in_double(pipeline)
    with _exact_waves(), _RoundedOnce():  # type: ignore[no-untyped-call]
        latents = _final_latents(twin, request)[0].detach().contiguous()
    values: NDArray[np.float64] = latents.numpy()
    return values


def _is_asked(pipeline: LevelPipeline | OwnPipeline) -> bool:
    """A project's own code may well not compute in float64."""
    if not isinstance(pipeline, OwnPipeline):
        return True
    from diffusers import StableDiffusionPipeline

    wanted = pipeline.level.float64 if isinstance(pipeline.level, OwnLevel) else None
    return isinstance(pipeline.inner, StableDiffusionPipeline) if wanted is None else wanted


def _final_latents(pipeline: LevelPipeline, request: Request) -> Tensor:
    """Those of an engine, which lets nobody into its decoder, or what the decoder would get."""
    if pipeline.engine is not None:
        generate(pipeline, request, num_inference_steps=STEPS)
        return pipeline.engine.latents
    with _stopped_before_decoding(pipeline.vae) as given, suppress(_Decoding):
        generate(pipeline, request, num_inference_steps=STEPS)
    return given[0]


def _in_double(pipeline: LevelPipeline) -> LevelPipeline:
    """A pipeline with copies of the modules, whose weights are the same values in float64."""
    twin = copy(pipeline)
    for name in _parts_of(pipeline):
        part = _uncompiled_copy(getattr(core(pipeline), name))
        # torch's own method: those of diffusers and transformers warn of what this is about.
        object.__setattr__(core(twin), name, torch.nn.Module.to(part, torch.float64))
    if pipeline.fused_unet is not None:
        fuse_modules(twin)
    if pipeline.engine is not None:
        twin.engine = ImageEngine(pipeline=twin, level=pipeline.engine.level)
    return twin


def _parts_of(pipeline: LevelPipeline | OwnPipeline) -> tuple[str, ...]:
    if isinstance(pipeline, OwnPipeline):
        return (*pipeline.text_encoders, denoiser_name(pipeline.inner), "vae")
    return ("text_encoder", "unet", "vae")


def _uncompiled_copy(part: Any) -> Any:
    """The module without forward passes that were put into it, which belong to the original."""
    part = getattr(part, "_orig_mod", part)
    inner = [module for module in part.modules() if "forward" in vars(module)]
    # What `deepcopy` finds in its notes it does not copy.
    copied = deepcopy(part, {id(vars(module)["forward"]): None for module in inner})
    for module in copied.modules():
        vars(module).pop("forward", None)
    return copied


class _Decoding(Exception):
    """The latents are final."""


@contextmanager
def _stopped_before_decoding(vae: Any) -> Iterator[list[Tensor]]:
    given: list[Tensor] = []

    def decode(latents: Tensor, *args: Any, **kwargs: Any) -> Any:
        given.append(latents)
        raise _Decoding

    with replaced(vae, "decode", decode):
        yield given


class _RoundedOnce(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Roots, powers and logarithms of float32, such as a scheduler's, are float64's, rounded.

    PyTorch has them of MKL, which on Intel's processors is an ulp off what it is on others. So the
    noise levels, and with them the latents, would differ by 5e-8.
    """

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        first = args[0] if args else None
        if (
            getattr(function, "overloadpacket", None) in ROUNDED_ONCE
            and isinstance(first, Tensor)
            and first.dtype == torch.float32
        ):
            return function(first.double(), *args[1:], **kwargs).to(torch.float32)
        return function(*args, **kwargs)


@contextmanager
def _exact_waves() -> Iterator[None]:
    """Time embeddings in float64, where diffusers' are about the same in float32."""
    from diffusers.models import embeddings

    original = embeddings.get_timestep_embedding

    def exact(timesteps: Tensor, embedding_dim: int, *args: Any, **kwargs: Any) -> Tensor:
        rounded: Tensor = original(timesteps, embedding_dim, *args, **kwargs)
        waves = _waves(timesteps, embedding_dim, *args, **kwargs)
        near = waves.shape == rounded.shape and (waves - rounded).abs().max().item() < WAVES_APART
        return waves if near else rounded

    with replaced(embeddings, "get_timestep_embedding", exact):
        yield


def _waves(
    timesteps: Tensor,
    embedding_dim: int,
    flip_sin_to_cos: bool = False,
    downscale_freq_shift: float = 1,
    scale: float = 1,
    max_period: int = 10000,
) -> Tensor:
    """Sines and cosines of the timesteps by falling frequencies, (timesteps, embedding_dim).

    Source: https://arxiv.org/abs/1706.03762, 3.5, with the options of diffusers'
    `get_timestep_embedding`.
    """
    half = embedding_dim // 2
    exponents = torch.arange(half, dtype=torch.float64) / (half - downscale_freq_shift)
    angles = timesteps[:, None].double() * torch.exp(-math.log(max_period) * exponents)[None]
    sines, cosines = torch.sin(scale * angles), torch.cos(scale * angles)
    return torch.cat([cosines, sines] if flip_sin_to_cos else [sines, cosines], dim=-1)
