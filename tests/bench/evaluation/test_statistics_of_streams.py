"""Intervals, histograms, worst prompts and rates of a stream are those of the whole."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.stats import bootstrap

from sdopt.bench.evaluation.parts import Made
from sdopt.bench.evaluation.statistics import Bootstrap, Histogram, Rates, Worst, differences


def made(session: str, process: int, generated: float, **host_s: float) -> Made:
    return Made(
        session=session,
        process=process,
        batch=1,
        generated_unix_s=generated,
        generate_s=1.0,
        **host_s,
    )


VALUES = np.random.default_rng(1).beta(8, 2, 400)


def streamed(values: np.ndarray, part: int) -> Bootstrap:
    found = Bootstrap(["value"])
    for block, first in enumerate(range(0, len(values), part)):
        found.add(block, values[first : first + part, None])
    return found


def test_the_interval_is_that_of_the_usual_bootstrap() -> None:
    mean, low, high = streamed(VALUES, 32).interval("value")
    usual = bootstrap(
        (VALUES,), np.mean, method="percentile", n_resamples=4000, rng=np.random.default_rng(2)
    ).confidence_interval
    assert mean == pytest.approx(VALUES.mean(), abs=1e-12)
    width = usual.high - usual.low
    assert abs(low - usual.low) < 0.1 * width
    assert abs(high - usual.high) < 0.1 * width


def test_the_interval_covers_the_truth_as_often_as_it_says() -> None:
    generator, covered = np.random.default_rng(3), 0
    for _ in range(200):
        sample = generator.beta(8, 2, 200)
        found = Bootstrap(["value"], replicates=400)
        found.add(int(generator.integers(2**31)), sample[:, None])
        _, low, high = found.interval("value")
        covered += low <= 0.8 <= high
    assert 0.90 <= covered / 200 <= 0.98


def test_an_interval_is_the_same_each_time() -> None:
    assert streamed(VALUES, 32).interval("value") == streamed(VALUES, 32).interval("value")


def test_a_value_that_is_not_there_does_not_count() -> None:
    found = Bootstrap(["some", "none"])
    found.add(0, np.array([[1.0, math.nan], [math.nan, math.nan], [3.0, math.nan]]))
    assert found.count.tolist() == [2, 0]
    assert found.interval("some")[0] == 2.0
    assert math.isnan(found.interval("none")[0])


def test_a_histogram_knows_the_worst_share_and_few_bins() -> None:
    histogram = Histogram(0, 1)
    histogram.add(VALUES[:100])
    histogram.add(np.append(VALUES[100:], math.nan))
    ordered = np.sort(VALUES)
    assert histogram.tail_mean(lowest=True) == pytest.approx(ordered[:4].mean(), abs=1e-4)
    assert histogram.tail_mean(lowest=False) == pytest.approx(ordered[-4:].mean(), abs=1e-4)
    shown = histogram.shown()
    assert sum(shown["counts"]) == 400
    assert len(shown["edges"]) == len(shown["counts"]) + 1 <= 21
    assert math.isnan(Histogram(0, 1).tail_mean(lowest=True))
    assert Histogram(0, 1).shown() == {"edges": [], "counts": []}


def test_the_worst_are_the_lowest_and_of_equal_ones_the_first() -> None:
    worst = Worst(most=3)
    keys = np.array([0.5, 0.2, 0.9, 0.2, math.nan, 0.1])
    worst.add(keys[:3], np.arange(3), "a")
    worst.add(keys[3:], np.arange(3, 6), "b")
    assert worst.ranked() == [(0.1, 5, "b"), (0.2, 1, "a"), (0.2, 3, "b")]


def test_a_rate_is_that_of_the_processes_of_one_session_after_their_first_part() -> None:
    rates = Rates()
    rates.add(made("old", 0, 1.0), 8)
    for process in (0, 1):
        for part in range(4):
            rates.add(made("new", process, 100 + 2.0 * part + process), 8)
    told = rates.told()
    assert told["processes"] == 2
    assert told["images"] == 64
    assert told["images_per_s"] == pytest.approx(8.0)
    assert told["images_per_s_of_pipelines"] == pytest.approx(16.0)
    assert Rates().told() == {}


def test_the_rate_of_each_process_is_told_in_their_order() -> None:
    rates = Rates()
    for process, seconds in ((1, 1.0), (0, 2.0)):
        for part in range(3):
            rates.add(made("one", process, seconds * part), 8)
    told = rates.told()
    assert told["images_per_s_of_each"] == pytest.approx([4.0, 8.0])
    assert told["images_per_s"] == pytest.approx(12.0)


def test_a_rate_of_a_single_part_is_unknown() -> None:
    rates = Rates()
    rates.add(made("one", 0, 1.0, cpu_s=1, scorers_cpu_s=1, png_s=1, score_s=1, write_s=1), 8)
    assert rates.told()["images_per_s"] is None
    assert rates.told()["images_per_s_of_each"] is None
    assert "host" not in rates.told()


def test_what_an_image_takes_of_the_host_leaves_out_the_first_part_of_each_process() -> None:
    rates, older = Rates(), Rates()
    for process in (0, 1):
        for part in (2, 0, 1):
            cpu_s = 8.0 if part else 100.0  # it compiled
            given = {"scorers_cpu_s": 4.0, "png_s": 0.8, "score_s": 1.6, "write_s": 0.08 * part}
            rates.add(made("new", process, 2.0 * part, cpu_s=cpu_s, **given), 8)
            older.add(made("new", process, 2.0 * part, **(given if part else {})), 8)
    assert rates.told()["host"] == pytest.approx(
        {"cpu_s": 1.0, "scorers_cpu_s": 0.5, "png_s": 0.1, "score_s": 0.2, "write_s": 0.015}
    )
    assert "host" not in older.told()


def test_differences_are_of_what_both_have() -> None:
    assert differences({"a": 3, "b": 1}, {"a": 1, "c": 2}, ["a", "b", "c"]) == {"a_difference": 2}
