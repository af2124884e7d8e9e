"""A true miniature of Stable Diffusion 1.5, trained by this repository on images it generates."""

from pathlib import Path

MODEL_DIR: Path = Path(__file__).parent / "model"
"""Plain diffusers folder; beside the pipeline's parts it holds `tiny_vae/`."""

CAPTIONS: Path = Path(__file__).parent / "captions.jsonl"
"""500 captions for Stable Diffusion 1.5, written for this project; not for the miniature."""

SIZE_PX: int = 128
"""Height and width of the images the model was trained on, in pixels."""

GUIDANCE_SCALE: float = 3.0
"""Classifier-free guidance, the best that `studies.miniature_quality.evaluate` measured."""

__all__ = ["CAPTIONS", "GUIDANCE_SCALE", "MODEL_DIR", "SIZE_PX"]
