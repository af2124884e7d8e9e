"""Scores that need weights of their own are computed where these lie, else absent with a reason."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import stub_evaluation as stub
import torch

from sdopt.bench.evaluation import distance, scores
from sdopt.bench.evaluation import evaluate as module
from sdopt.bench.evaluation.pixels import to_png
from sdopt.bench.evaluation.places import Folder
from sdopt.bench.metrics import lpips
from sdopt.miniature import MODEL_DIR
from sdopt.miniature.scenes import held_out_scenes, render


@pytest.fixture
def clip(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A CLIP of next to no weights, where the hub's cache would have the true one."""
    from transformers import (
        CLIPConfig,
        CLIPImageProcessorPil,
        CLIPModel,
        CLIPProcessor,
        CLIPTokenizer,
    )

    tokenizer = CLIPTokenizer.from_pretrained(MODEL_DIR / "tokenizer")
    small = {"intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    text = {**small, "hidden_size": 16, "vocab_size": len(tokenizer) + 2}
    text["max_position_embeddings"] = 77
    vision = {**small, "hidden_size": 16, "image_size": 32, "patch_size": 8}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=16))
    model.save_pretrained(tmp_path / "clip")
    size = {"shortest_edge": 32}
    images = CLIPImageProcessorPil(size=size, crop_size=32)
    CLIPProcessor(images, tokenizer).save_pretrained(tmp_path / "clip")
    monkeypatch.setattr(scores, "clip_folder", lambda: tmp_path / "clip")
    for cached in (scores.clip_absence, scores._clip):
        cached.cache_clear()
    yield tmp_path / "clip"
    for cached in (scores.clip_absence, scores._clip):
        cached.cache_clear()


def test_a_clip_score_is_of_image_and_prompt(clip: Path) -> None:
    scene = held_out_scenes(1)[0]
    image = render(scene, 64)
    value = scores.clip_score(image, scene.caption())
    assert 0 <= value <= 100
    assert value == scores.clip_score(image, scene.caption())
    assert value != scores.clip_score(image[:, ::-1] // 2, scene.caption())
    assert "clip_score" in scores.learned_scores(image, scene.caption(), None)


def test_what_is_not_there_says_why(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(lpips, "absence", lambda: "no weights of LPIPS")
    monkeypatch.setattr(distance, "find_spec", lambda name: None)
    found = scores.absences()
    assert found["lpips_cost"] == "no weights of LPIPS"
    assert found["fid"] == "it needs torchmetrics and torch_fidelity, not installed"
    monkeypatch.setattr(distance, "find_spec", lambda name: object())
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    absence = distance.fid_absence()
    assert absence is not None
    assert f"there are no weights {tmp_path}/checkpoints/" in absence


def test_lpips_is_a_score_where_it_can_be_had(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lpips, "absence", lambda: None)
    monkeypatch.setattr(
        lpips, "lpips", lambda one, other: SimpleNamespace(value=float(np.mean(one != other)))
    )
    image = render(held_out_scenes(1)[0], 32)
    assert scores.learned_scores(image, "", to_png(image))["lpips_cost"] == 0.0


class Distance:
    """Stands for torchmetrics': the distance of the mean grey."""

    def __init__(self, normalize: bool) -> None:
        assert not normalize
        self.seen: dict[bool, list[float]] = {True: [], False: []}

    def to(self, device: torch.device) -> Distance:
        return self

    def update(self, images: torch.Tensor, real: bool) -> None:
        assert images.dtype == torch.uint8
        assert images.shape[1] == 3
        self.seen[real] += images.float().mean((1, 2, 3)).tolist()

    def compute(self) -> torch.Tensor:
        assert len(self.seen[True]) == len(self.seen[False]) == 22
        return torch.tensor(abs(np.mean(self.seen[True]) - np.mean(self.seen[False])))


def test_fid_reads_every_part_and_has_a_column(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake: Any = SimpleNamespace(FrechetInceptionDistance=Distance)
    monkeypatch.setattr(distance, "import_module", lambda name: fake)
    monkeypatch.setattr(module, "fid_absence", lambda: None)
    summary, _ = stub.run(stub.of(22), tmp_path)
    assert summary["levels"]["turbo"]["fid"] > 0
    assert "fid" not in summary["levels"]["hoisted"]
    head = (tmp_path / "summary.md").read_text().splitlines()[2]
    assert head.endswith("| FID |")
    own = distance.fid(Folder(tmp_path), "hoisted", "hoisted", torch.device("cpu"))
    assert own == 0
