"""Fast Stable Diffusion 1.5 inference, and the pytest suite that keeps it fast.

    source -> level -> pipeline -> measure -> gate -> report

A *source* gives the weights, a *level* says which optimizations to apply, `build` makes the
*pipeline*; *measure* returns plain numbers, the *gate* judges them, the *report* prints them.
Earlier boxes never import later ones, and only `sdopt.plugin` imports pytest.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from sdopt.levels import LEVELS, Level

if TYPE_CHECKING:
    from sdopt.pipeline import LevelPipeline

__version__ = "0.1.0"
__all__ = ["LEVELS", "Level", "__version__", "load_pipeline"]


def load_pipeline(
    level: str = "final", *, source: str | None = None, device: str | None = None
) -> LevelPipeline:
    """A working diffusers pipeline with the optimizations of a level.

    `source` is 'auto' (the default), 'embedded' or the path of a diffusers folder; `device` is the
    CUDA device if there is one, else the CPU. Pictures are float16 on CUDA, float32 on the CPU.
    Raises UnknownNameError for a level or source that does not exist and SourceError for weights
    that cannot be loaded.
    """
    from sdopt import pipeline  # torch and diffusers take seconds to import

    return pipeline.load_pipeline(level, source=source, device=device)
