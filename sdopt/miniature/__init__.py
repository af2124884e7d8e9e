"""A true miniature of Stable Diffusion 1.5, trained by this repository on images it generates."""

from pathlib import Path

MODEL_DIR: Path = Path(__file__).parent / "model"
"""Plain diffusers folder; beside the pipeline's parts it holds `tiny_vae/`."""

SIZE_PX: int = 128
"""Height and width of the images the model was trained on, in pixels."""

GUIDANCE_SCALE: float = 3.0
"""Classifier-free guidance, the best that `studies.miniature_quality.evaluate` measured."""

__all__ = ["GUIDANCE_SCALE", "MODEL_DIR", "SIZE_PX"]
