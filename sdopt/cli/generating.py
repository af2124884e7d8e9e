"""Images from recipes: what decides an image, the pipelines that make it, its time and memory."""

from __future__ import annotations

import hashlib
import resource
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sdopt.cli.progress import Steps, progress
from sdopt.errors import BrokenFileError, MissingToolError, SdoptError, SourceError
from sdopt.util.files import cause, read_plain
from sdopt.util.precision import chosen_dtype, usual_dtype
from sdopt.util.unsaid import unsaid

if TYPE_CHECKING:
    from PIL.Image import Image

    from sdopt.pipelines.pipeline import LevelPipeline
    from sdopt.weights.sources import Source

MIB = 2**20
MOST_LORA_BYTES = 2**32
LORA_LOGGERS = ("diffusers.loaders.lora_base", "diffusers.loaders.peft")


@dataclass(frozen=True, kw_only=True)
class Lora:
    """A file of adapters, and its SHA-256."""

    file: str
    sha256: str


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """All that decides one image on one machine. `source` is a name that finds it again.

    `dtype` is what was asked for; None is the device's usual one, float16 or float32.
    """

    level: str
    source: str
    prompt: str
    negative_prompt: str
    seed: int
    width: int
    height: int
    steps: int
    guidance_scale: float
    lora: Lora | None = None
    dtype: str | None = None


@dataclass(frozen=True, kw_only=True)
class Made:
    """An image, the time of its call, and the most memory that was in use meanwhile.

    `once` names what the first image of such a pipeline includes: compiling, capturing, or nothing
    of its own. `memory_of` says whose memory it is: reserved on the GPU (with the pools of CUDA
    graphs), or the process on a CPU.
    """

    recipe: Recipe
    image: Image
    ms: float
    peak_memory_mib: float
    memory_of: str
    once: str


def lasting_name(given: str, source: Source) -> str:
    """The name that finds this source again: what 'auto' chose, and a repository's commit."""
    from sdopt.weights import hub

    if source.is_embedded:
        return "embedded"
    if source.kind == "random":
        return "sd15-random"
    if source.kind == "folder" and source.tiny_vae is not None and source.folder is not None:
        found = hub.STABLE_DIFFUSION_15 if given == "auto" else hub.parse(given)
        return f"{found.repo_id}@{source.folder.name}"
    return given


def read_lora(file: Path) -> tuple[Lora, dict[str, Any]]:
    """A file of adapters, safetensors alone: what else holds weights can run as code."""
    from safetensors import SafetensorError
    from safetensors.torch import load

    try:
        content = read_plain(file, MOST_LORA_BYTES)
    except (OSError, ValueError) as error:
        raise BrokenFileError(f"--lora {file} cannot be read: {cause(error)}") from error
    try:
        weights = load(content)
    except SafetensorError as error:
        raise BrokenFileError(
            f"--lora {file} is not a whole safetensors file: {error}; weights are read from "
            "safetensors alone: download or convert it again"
        ) from error
    return Lora(file=str(file), sha256=hashlib.sha256(content).hexdigest()), weights


def lasting_dtype(given: str | None) -> str | None:
    """What a recipe says of the dtype that is asked for, or that $SDOPT_DTYPE names.

    Raises UnknownNameError for one that this machine's device does not offer.
    """
    kind = _device_type()
    return None if (chosen := chosen_dtype(kind, given)) == usual_dtype(kind) else chosen


def _device_type() -> str:
    """Of the device that images are made on; `pipeline.default_device` imports diffusers."""
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def loaded(recipe: Recipe, weights: dict[str, Any] | None = None) -> LevelPipeline:
    """The pipeline of a recipe's level and source, with its adapters."""
    import sdopt

    with progress(f"loading {recipe.level}", None):
        dtype = recipe.dtype or usual_dtype(_device_type())
        pipeline = sdopt.load_pipeline(recipe.level, source=recipe.source, dtype=dtype)
        if weights is not None and recipe.lora is not None:
            _put_on(pipeline, recipe.lora.file, weights)
    return pipeline


def _put_on(pipeline: LevelPipeline, file: str, weights: dict[str, Any]) -> None:
    from diffusers.utils import is_peft_available

    if not is_peft_available():
        raise MissingToolError("--lora needs peft, which is not installed; pip install peft")
    try:
        with unsaid("No LoRA keys associated", *LORA_LOGGERS):  # of the part that it leaves alone
            pipeline.load_lora_weights(dict(weights))
        adapters = pipeline.get_active_adapters()
    except Exception as error:  # peft and diffusers raise nearly anything for what does not fit
        raise SourceError(
            f"--lora {file} does not fit source {pipeline.source.name!r}: {error}; give one for "
            "Stable Diffusion 1.5"
        ) from error
    if not adapters:
        raise SourceError(
            f"--lora {file} holds no adapter for source {pipeline.source.name!r}; give one for "
            "Stable Diffusion 1.5"
        )


def make(pipeline: LevelPipeline, recipes: Sequence[Recipe], what: str) -> list[Made]:
    """The images of one pipeline's recipes, each by a call of its own.

    An image of the engine is one step: of a single one nobody knows the time left.
    """
    made: list[Made] = []
    done, whole = 0, pipeline.engine is not None and len(recipes) == 1
    with progress(what, None if whole else sum(recipe.steps for recipe in recipes)) as advance:
        for recipe in recipes:
            with _stepwise(pipeline, Steps(advance, done)):
                made.append(_made(pipeline, recipe))
            done += recipe.steps
            advance(done)
    return made


def _stepwise(pipeline: LevelPipeline, steps: Steps) -> AbstractContextManager[Any]:
    """The steps of diffusers' own loop are counted inside."""
    from sdopt.util.replaced import replaced

    return nullcontext() if pipeline.engine else replaced(pipeline, "progress_bar", steps)


def _made(pipeline: LevelPipeline, recipe: Recipe) -> Made:
    import numpy as np

    from sdopt.pipelines.workload import Request, generate

    request = Request(
        name="image",
        prompt=recipe.prompt,
        negative_prompt=recipe.negative_prompt,
        seed=recipe.seed,
    )
    settings = {
        "width": recipe.width,
        "height": recipe.height,
        "num_inference_steps": recipe.steps,
        "guidance_scale": recipe.guidance_scale,
    }
    with _peak_memory(pipeline) as peak:
        start = time.perf_counter()
        array = _or_refused(lambda: generate(pipeline, request, **settings))
        ms = 1e3 * (time.perf_counter() - start)
    if not np.isfinite(array).all():
        raise SdoptError(f"level {recipe.level!r} made an image of NaN; try another --guidance")
    image: Image = pipeline.numpy_to_pil(array)[0]
    memory_mib, memory_of = peak()
    return Made(
        recipe=recipe,
        image=image,
        ms=ms,
        peak_memory_mib=memory_mib,
        memory_of=memory_of,
        once=_once(pipeline),
    )


def _once(pipeline: LevelPipeline) -> str:
    if pipeline.level.compiled:
        return "compiling"
    return "capturing" if pipeline.engine and pipeline.device.type == "cuda" else ""


def _or_refused(call: Callable[[], Any]) -> Any:
    """What diffusers refuses is a mistake in the arguments."""
    try:
        return call()
    except SdoptError:
        raise
    except ValueError as error:
        raise SdoptError(str(error)) from error


@contextmanager
def _peak_memory(pipeline: LevelPipeline) -> Iterator[Callable[[], tuple[float, str]]]:
    """The peak of what is inside, in MiB; on a CPU of the process so far."""
    import torch

    device = pipeline.device
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        yield lambda: (torch.cuda.max_memory_reserved(device) / MIB, "reserved on the GPU")
        return
    unit = 1 if sys.platform == "darwin" else 1024
    usage = resource.RUSAGE_SELF
    yield lambda: (resource.getrusage(usage).ru_maxrss * unit / MIB, "of the process")
