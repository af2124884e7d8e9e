"""Scores of one image: likeness to the reference's, to the scene's true drawing, to its prompt."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from sdopt.bench.evaluation.distance import fid_absence
from sdopt.bench.evaluation.pixels import Image, from_png
from sdopt.bench.measure.scoring import JUDGED, judge
from sdopt.bench.metrics import lpips as perceptual
from sdopt.bench.metrics import metrics_of
from sdopt.bench.metrics.metric import Better, Subject
from sdopt.miniature.scenes import Scene, parse_caption, render
from sdopt.weights.sources import Source

CLIP_MODEL = "openai/clip-vit-base-patch16"
_ONE_AT_A_TIME = threading.Lock()
"""These models use every core by themselves, and LPIPS keeps a state."""


@dataclass(frozen=True, kw_only=True)
class Score:
    """What one number says: `paired` ones are judged by their difference to the reference."""

    name: str
    better: Better
    least: float
    most: float
    paired: bool = False
    unit: str = ""


SCORES: dict[str, Score] = {
    score.name: score
    for score in (
        Score(name="ssim_cost", better=Better.HIGHER, least=-1, most=1),
        Score(name="psnr_cost_db", better=Better.HIGHER, least=0, most=100, unit="dB"),
        Score(name="lpips_cost", better=Better.LOWER, least=0, most=2),
        Score(name="ssim_ground_truth", better=Better.HIGHER, least=-1, most=1, paired=True),
        Score(
            name="psnr_ground_truth_db",
            better=Better.HIGHER,
            least=0,
            most=100,
            paired=True,
            unit="dB",
        ),
        Score(name="attributes_right", better=Better.HIGHER, least=0, most=1, paired=True),
        Score(name="clip_score", better=Better.HIGHER, least=-100, most=100, paired=True),
    )
}
"""In the order of the tables. `*_cost` compares with the reference's image of the same seed."""
OF_SCENES = ("ssim_ground_truth", "psnr_ground_truth_db", "attributes_right")
"""Only of prompts that describe a scene."""
PAIRED = tuple(name for name, score in SCORES.items() if score.paired)


def scene_of(source: Source, prompt: str) -> Scene | None:
    """What the prompt describes, where that is known."""
    if not source.is_embedded:
        return None
    try:
        return parse_caption(prompt)
    except ValueError:
        return None  # words that describe no whole scene


def plain_scores(image: Image, scene: Scene | None, reference: Image | None) -> dict[str, float]:
    """Those that need no weights."""
    found: dict[str, float] = {}
    if reference is not None:
        found |= _likeness(image, reference, Subject.REFERENCE)
    if scene is not None:
        found |= _likeness(image, render(scene, image.shape[0]), Subject.GROUND_TRUTH)
        rights = [right for _, right in judge(image, scene, JUDGED)]
        found["attributes_right"] = sum(rights) / len(rights)
    return found


def learned_scores(image: Image, prompt: str, reference: bytes | None) -> dict[str, float]:
    """Those whose weights are on this machine; nothing is downloaded. `reference` is its PNG."""
    found: dict[str, float] = {}
    if reference is not None and perceptual.absence() is None:
        with _ONE_AT_A_TIME:
            found["lpips_cost"] = perceptual.lpips(image, from_png(reference)).value
    if clip_absence() is None:
        with _ONE_AT_A_TIME:
            found["clip_score"] = clip_score(image, prompt)
    return found


def _likeness(image: Image, other: Image, subject: Subject) -> dict[str, float]:
    return {
        metric.name: metric.compare(image, other).value
        for metric in metrics_of(subject)
        if metric.compare and metric.name in SCORES
    }


def absences() -> dict[str, str]:
    """Why a score that needs weights of its own is not there, by its name."""
    found = {
        "lpips_cost": perceptual.absence(),
        "clip_score": clip_absence(),
        "fid": fid_absence(),
    }
    return {name: why for name, why in found.items() if why is not None}


@cache
def clip_absence() -> str | None:
    """Why a CLIP score cannot be computed here, or None."""
    if clip_folder() is None:
        return f"{CLIP_MODEL} is not in the local cache of the hub, and it is not downloaded"
    return None


def clip_folder() -> Path | None:
    """Where the hub's cache keeps the model, if it is whole."""
    from huggingface_hub import try_to_load_from_cache

    names = ("config.json", "preprocessor_config.json", "model.safetensors")
    files = [try_to_load_from_cache(CLIP_MODEL, name) for name in names]
    there = [Path(file) for file in files if isinstance(file, str)]
    return there[0].parent if len(there) == len(names) else None


@cache
def _clip() -> tuple[Any, Any]:
    """The model and its processor, from the cache alone."""
    from transformers import CLIPModel, CLIPProcessor

    local: dict[str, Any] = {"local_files_only": True}
    model = CLIPModel.from_pretrained(clip_folder(), use_safetensors=True, **local)
    return model.eval(), CLIPProcessor.from_pretrained(clip_folder(), **local)


def clip_score(image: Image, prompt: str) -> float:
    """100 times the cosine of image and prompt, at least 0 (Hessel et al. 2021).

    By transformers itself: torchmetrics 1.9 asks its version 5 for what that no longer answers.
    """
    import torch

    model, processor = _clip()
    given = processor(text=[prompt], images=[image], return_tensors="pt", truncation=True)
    with torch.no_grad():
        found = model(**given)
    cosine = torch.nn.functional.cosine_similarity(found.image_embeds, found.text_embeds)
    return 100 * max(0.0, float(cosine))


def finite(scores: Mapping[str, Any]) -> dict[str, float]:
    """Without those that a prompt does not have."""
    return {name: value for name, value in scores.items() if value is not None and value == value}
