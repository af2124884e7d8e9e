"""PSNR is that of the full range, capped, shown in a column of its own and never judged."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from sdopt.bench.judge.gate import Gate
from sdopt.bench.measure import compare
from sdopt.bench.metrics.metric import Subject
from sdopt.bench.metrics.psnr import PSNR_CAP_DB, psnr
from sdopt.bench.report.terminal import ladder_table
from sdopt.bench.stored.soundness import Unsound, check_settings
from sdopt.levels import BASELINE

FLAT = np.full((16, 16, 3), 100, np.uint8)
HISTORY = Path(__file__).parents[3] / "baselines" / "history"


def test_psnr_is_that_of_the_full_range() -> None:
    """10 log10(255^2 / 1): every pixel is off by one, up or down."""
    assert psnr(FLAT, FLAT + np.uint8(1)).value == pytest.approx(48.1308, abs=1e-4)
    assert psnr(FLAT + np.uint8(1), FLAT).value == pytest.approx(48.1308, abs=1e-4)


def test_psnr_is_that_of_scikit_image() -> None:
    from skimage.metrics import peak_signal_noise_ratio

    one, other = np.random.default_rng(0).integers(0, 256, (2, 16, 16, 3), np.uint8)
    assert psnr(one, other).value == pytest.approx(peak_signal_noise_ratio(one, other))


def test_psnr_is_capped() -> None:
    """Equal, and one step in one of 196,608 values, which is 101.1 dB."""
    image = np.zeros((256, 256, 3), np.uint8)
    other = image.copy()
    other[0, 0, 0] = 1
    assert psnr(image, image).value == psnr(image, other).value == PSNR_CAP_DB


def drifted() -> Gate:
    """A gate that judged two prompts, the second of them off by one step everywhere."""
    image = np.random.default_rng(0).integers(0, 255, (16, 16, 3), np.uint8)
    images = {name: image.astype(np.float32) / 255 for name in ("a", "b")}
    gate = Gate()
    gate.drift(BASELINE, compare(images, {"a": image, "b": image + np.uint8(1)}))
    gate.ground_truth(
        BASELINE, compare(images, {"a": image, "b": image + np.uint8(1)}, Subject.GROUND_TRUTH)
    )
    return gate


def test_the_worst_prompt_is_recorded_and_nothing_is_judged() -> None:
    gate = drifted()
    row = gate.measured["baseline"]
    assert row["psnr_drift_db"] == pytest.approx(48.1308, abs=1e-4)
    assert row["psnr_ground_truth_db"] == pytest.approx((48.1308 + PSNR_CAP_DB) / 2, abs=1e-4)
    assert [verdict.metric for verdict in gate.verdicts if "psnr" in verdict.metric] == []


def test_it_has_a_column_where_it_was_measured() -> None:
    heading, line = ladder_table(["baseline"], drifted().measured, [])
    assert "drift  PSNR dB" in heading
    assert "48.1" in line
    assert "PSNR" not in ladder_table(["baseline"], {"baseline": {"latency_ms": 1.0}}, [])[0]


def test_the_stored_runs_of_before_hold_it_under_the_same_name() -> None:
    runs = [json.loads(path.read_text()) for path in HISTORY.rglob("*.json")]
    values = [entry["extra_info"]["psnr_drift_db"] for run in runs for entry in run["benchmarks"]]
    assert 42.9 < min(values) < max(values) == PSNR_CAP_DB


@pytest.mark.parametrize("value", ["3", None, {"a": 1.0}])
def test_a_stored_one_is_a_number_of_either_sign(value: object) -> None:
    check_settings({"psnr_cost_db": -1.0})
    with pytest.raises(Unsound, match="psnr_cost_db"):
        check_settings({"psnr_cost_db": value})
