"""LPIPS is measured where its packages and weights are, and else said to be absent."""

from __future__ import annotations

import sys
from functools import cache
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from sdopt.bench.judge.gate import Gate
from sdopt.bench.measure import compare
from sdopt.bench.metrics import lpips
from sdopt.bench.report.terminal import absence_note, ladder_table
from sdopt.levels import BASELINE

WEIGHTS = "alexnet-owt-7be5be79.pth"
IMAGE = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)


def module(name: str, **content: Any) -> ModuleType:
    made = ModuleType(name)
    made.__spec__ = SimpleNamespace()  # type: ignore[assignment]
    made.__dict__.update(content)
    return made


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Stand-ins of the packages, whose distance is the mean difference; AlexNet's weights."""

    class Distance:
        def __init__(self, net: str, verbose: bool) -> None:
            assert (net, verbose) == ("alex", False)

        def eval(self) -> Distance:
            return self

        def __call__(self, one: Any, other: Any, normalize: bool) -> Any:
            assert normalize
            assert one.shape == (1, 3, 64, 64)
            return (one - other).abs().mean().reshape(1, 1, 1, 1)

    url = f"https://example.org/models/{WEIGHTS}"
    weights = SimpleNamespace(IMAGENET1K_V1=SimpleNamespace(url=url))
    monkeypatch.setitem(sys.modules, "torchvision", module("torchvision"))
    models = module("torchvision.models", AlexNet_Weights=weights)
    monkeypatch.setitem(sys.modules, "torchvision.models", models)
    monkeypatch.setitem(sys.modules, "lpips", module("lpips", LPIPS=Distance))
    monkeypatch.setattr(lpips, "find_spec", lambda name: name != "torchmetrics")
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setattr(lpips, "model", cache(lpips.model.__wrapped__))
    path = tmp_path / "checkpoints" / WEIGHTS
    path.parent.mkdir()
    path.touch()
    return path


def drifted() -> Gate:
    """A gate that judged one image which is a tenth darker than the stored one."""
    gate = Gate()
    gate.drift(BASELINE, compare({"a": (IMAGE / 255 * 0.9).astype(np.float32)}, {"a": IMAGE}))
    return gate


@pytest.mark.usefixtures("installed")
def test_it_is_shown_and_not_judged_where_it_can_be_measured() -> None:
    gate = drifted()
    assert 0.04 < gate.measured["baseline"]["lpips_drift"] < 0.06
    assert "lpips_drift" not in {verdict.metric for verdict in gate.verdicts}
    heading, _ = ladder_table(["baseline"], gate.measured, [])
    assert "LPIPS" in heading
    assert not [line for line in absence_note() if "lpips" in line]


def test_without_its_weights_it_is_absent_and_nothing_is_downloaded(
    installed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    installed.unlink()
    monkeypatch.setattr(lpips, "model", lambda: pytest.fail("it was built"))
    gate = drifted()
    assert "lpips_drift" not in gate.measured["baseline"]
    (note,) = (line for line in absence_note() if "lpips" in line)
    assert note.endswith(f"there are no weights {installed}, and none are downloaded")


@pytest.mark.usefixtures("installed")
def test_a_torchvision_that_cannot_be_imported_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torchvision.models", None)
    assert (lpips.absence() or "").startswith("torchvision cannot be imported: ")


@pytest.mark.parametrize("there", [(), ("torchvision",), ("torchmetrics",), ("lpips",)])
def test_without_its_packages_it_is_absent(
    there: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lpips, "find_spec", lambda name: name in there or None)
    assert lpips.absence() == (
        "it needs torchvision and torchmetrics or lpips, which are not installed"
    )
    heading, _ = ladder_table(["baseline"], drifted().measured, [])
    assert "LPIPS" not in heading
