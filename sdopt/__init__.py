"""Fast Stable Diffusion 1.5 inference, and the pytest suite that keeps it fast.

    source -> level -> pipeline -> measure -> gate -> report

A *source* gives the weights, a *level* says which optimizations to apply, `build` makes the
*pipeline*; *measure* returns plain numbers, the *gate* judges them, the *report* prints them.
Earlier boxes never import later ones, and only `sdopt.bench.plugin` imports pytest.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from sdopt.levels import LEVELS, Level, get_level
from sdopt.util.startup import collector_paused
from sdopt.util.unsaid import unsaid

if TYPE_CHECKING:
    from contextlib import AbstractContextManager
    from pathlib import Path

    import torch

    from sdopt.pipelines.pipeline import LevelPipeline

__version__ = "0.1.0"
__all__ = [
    "LEVELS",
    "Level",
    "__version__",
    "load_pipeline",
    "portable_noise",
    "use_compile_cache",
]


def load_pipeline(
    level: str = "final",
    *,
    source: str | None = None,
    device: str | None = None,
    dtype: str | torch.dtype | None = None,
) -> LevelPipeline:
    """A working diffusers pipeline with the optimizations of a level.

    `source` is 'auto' (the default), 'embedded', 'sd15-random', a diffusers folder, a .safetensors
    file or a repository of the Hugging Face hub; `device` is the CUDA device if there is one, else
    the CPU. Images are made in float16 on CUDA, in float32 on the CPU; `dtype` 'bfloat16', or
    $SDOPT_DTYPE, is for weights that overflow in float16. Raises UnknownNameError for a level,
    source, device or dtype that does not exist, SourceError for weights that cannot be loaded and
    OutOfMemoryError for a level that does not fit on the device.
    """
    chosen = get_level(level)  # a misspelt one is refused before the seconds of imports
    # diffusers imports image processors that no level uses, and transformers misses torchvision.
    torchvision = unsaid("requires torchvision", "transformers.utils.import_utils")
    with collector_paused(), torchvision:
        from sdopt.engine.prepare import prepared  # imports torch, which its thread needs whole

        with prepared(chosen, device, dtype):
            from sdopt.pipelines import pipeline

            return pipeline.load_pipeline(level, source=source, device=device, dtype=dtype)


def portable_noise() -> AbstractContextManager[None]:
    """A pipeline that `load_pipeline` made draws its noise in float32 in here, then rounds it.

    So the suite, `sdopt generate`, `compare`, `serve` and `evaluate` draw it: a seed is the same
    noise on every device, in every dtype and with every supported version of PyTorch. Outside, it
    is drawn as diffusers does.
    """
    from sdopt.pipelines import noise

    return noise.portable_noise()


def use_compile_cache(file: str | Path) -> Path:
    """Take compiled code from a file of `sdopt cache pack`, for this process.

    Call it before anything is compiled. It unpacks the file into a folder of the user's cache, lets
    the environment name that folder to Triton and Inductor, and returns it. What the file holds
    runs as code: trust it as you trust code. Raises ForeignCacheError if it is of another machine,
    version or kernels, and BrokenFileError if it is missing or damaged.
    """
    from sdopt import compile_cache

    return compile_cache.use(file)
