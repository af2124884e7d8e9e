"""A metric is one entry of the registry: measured, judged, stored and shown from there."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from sdopt.bench import metrics
from sdopt.bench.judge.gate import Gate
from sdopt.bench.judge.verdict import Outcome
from sdopt.bench.measure import compare
from sdopt.bench.metrics import HISTORY_RULES, LIMIT_RULES, METRICS, PAIRED, metrics_of
from sdopt.bench.metrics.metric import (
    Better,
    ByHistory,
    Column,
    Measured,
    Metric,
    Seen,
    Subject,
)
from sdopt.bench.report import terminal
from sdopt.bench.stored.baselines import limits_path, load_limits
from sdopt.levels import BASELINE

BASELINES = Path(__file__).parents[3] / "baselines"
REDNESS = Metric(
    name="redness",
    of=Subject.STORED,
    better=Better.HIGHER,
    compare=lambda image, other: Seen(float(image[..., 0].mean() / 255)),
    rule=Measured(kind="redness", margin=2.0, perfect=1.0, default=0.5),
    what="reddest of {count}: {prompt}",
    remedy="{again}  # repaint",
    columns=(Column(heading="red", form=".2f", place=1, optional=True),),
)


@pytest.fixture
def redness(monkeypatch: pytest.MonkeyPatch) -> Metric:
    """One more metric, known to nothing but the registry."""
    monkeypatch.setitem(METRICS, REDNESS.name, REDNESS)
    column = (REDNESS, REDNESS.columns[0])
    monkeypatch.setattr(terminal, "COLUMNS", [column, *terminal.COLUMNS])
    return REDNESS


@pytest.mark.parametrize(("limit", "outcome"), [(0.2, Outcome.PASS), (0.4, Outcome.REGRESSION)])
def test_a_metric_of_the_registry_is_measured_judged_and_shown(
    limit: float, outcome: Outcome, redness: Metric
) -> None:
    image = np.random.default_rng(0).random((16, 16, 3), np.float32)
    image[..., 0] = 0.3
    stored = (image * 255).round().astype(np.uint8)
    gate = Gate(limits={"baseline": {"drift": 0.9, "redness": limit}}, limits_file="limits.json")
    gate.drift(BASELINE, compare({"a": image}, {"a": stored}))
    (verdict,) = (verdict for verdict in gate.verdicts if verdict.metric == redness.name)
    assert (verdict.outcome, verdict.limit, verdict.file) == (outcome, limit, "limits.json")
    assert verdict.reason == "reddest of 1: a"
    assert verdict.next_step.endswith("# repaint") is (outcome is Outcome.REGRESSION)
    heading, line = terminal.ladder_table(["baseline"], gate.measured, gate.verdicts)
    assert (heading.split()[1], line.split()[1]) == ("red", "0.30")


def test_what_cannot_be_measured_here_is_left_out_and_said(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    absent = dataclasses.replace(REDNESS, missing=lambda: "paint is not installed")
    monkeypatch.setitem(METRICS, REDNESS.name, absent)
    image = np.random.default_rng(0).random((16, 16, 3), np.float32)
    seen = compare({"a": image}, {"a": (image * 255).astype(np.uint8)}).seen
    assert "redness" not in seen
    assert "redness is not measured: paint is not installed" in terminal.absence_note()


def test_two_metrics_of_one_name_are_refused() -> None:
    with pytest.raises(ValueError, match="two metrics 'redness'"):
        metrics._by_name(iter((REDNESS, REDNESS)))


def test_a_history_judges_what_is_better_the_lower_it_is() -> None:
    with pytest.raises(ValueError, match="images_per_s"):
        Metric(name="images_per_s", of=Subject.LATENCY, rule=ByHistory(), better=Better.HIGHER)


def test_every_metric_that_is_compared_says_how() -> None:
    compared = (
        Subject.STORED,
        Subject.REFERENCE,
        Subject.GROUND_TRUTH,
        Subject.LATENTS,
        Subject.FLOAT64,
    )
    for subject in compared:
        assert metrics_of(subject)
        assert all(metric.compare for metric in metrics_of(subject))


def test_pairs_are_judged_in_the_noise_classes_of_the_history() -> None:
    assert set(PAIRED) == {"latency_ms", "peak_allocated_mib"}
    for name, pairs in PAIRED.items():
        assert set(pairs.matters) == set(HISTORY_RULES[name].priors)


def test_no_two_columns_share_a_place_or_a_heading() -> None:
    columns = [column for metric in METRICS.values() for column in metric.columns]
    for name in ("place", "heading"):
        values = [getattr(column, name) for column in columns]
        assert len(values) == len(set(values))


@pytest.mark.parametrize("source", ["embedded", "embedded-float16", "sd15-random"])
def test_the_shipped_limits_are_of_metrics_of_the_registry(source: str) -> None:
    limits = load_limits(limits_path(BASELINES, source))
    assert limits
    assert {kind for row in limits.values() for kind in row} <= set(LIMIT_RULES)
