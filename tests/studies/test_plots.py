"""Charts show the stored runs beside the published table; without matplotlib they say so."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from measured import RUNS, stored

from studies.plots import (
    Point,
    draw_latency,
    draw_quality,
    latency_bars,
    main,
    quality_points,
)
from studies.rows import Rows

PNG = b"\x89PNG"
RECIPE = {"recipe": "one", "ground": "dpm, 20", "work": "all of it"}
MEASURED = {**RECIPE, "first_call_s": 1.0, "peak_allocated_mib": None}
ROWS = {
    "sdopt-final (dpm, 20)": {
        **MEASURED,
        "rounds_ms": [10.0, 12.0, 11.0],
        "ssim_cost": {"a": 0.9, "b": 1.0},
    },
    "DeepCache (dpm, 20)": {**MEASURED, "rounds_ms": [50.0], "ssim_cost": {"a": 0.8}},
    "diffusers (dpm, 20)": {**MEASURED, "rounds_ms": [99.0]},
    "compile-max-autotune (dpm, 20)": {**RECIPE, "error": "did not finish in 600 s"},
}


def test_bars_are_medians_beside_what_was_published() -> None:
    assert latency_bars([*RUNS, {"tuned": {"latency_ms": 5.0}}]) == [
        ("baseline", 1000.0, 1300.0),
        ("tuned", 5.0, None),
        ("final", 105.0, 297.0),
    ]


def test_points_have_a_time_and_an_ssim() -> None:
    assert quality_points(ROWS) == [
        Point(name="sdopt-final (dpm, 20)", latency_ms=11.0, ssim=0.95, ours=True),
        Point(name="DeepCache (dpm, 20)", latency_ms=50.0, ssim=0.8, ours=False),
    ]
    costs = {"DeepCache (dpm, 20)": {"ssim_cost": {"a": 0.5}}}
    assert [point.ssim for point in quality_points(ROWS, costs)] == [0.5]


def test_charts_are_drawn(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="needs matplotlib: pip install -e '.[docs]'")
    draw_latency(latency_bars(RUNS), tmp_path / "bars.png")
    draw_quality(quality_points(ROWS), tmp_path / "points.png")
    for name in ("bars.png", "points.png"):
        assert (tmp_path / name).read_bytes().startswith(PNG)


def test_the_command_writes_both(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("matplotlib", reason="needs matplotlib: pip install -e '.[docs]'")
    rows = Rows(path=tmp_path / "rows.json", made_on={})
    for name, row in ROWS.items():
        rows.put({"name": name, **row})
    arguments = [str(stored(tmp_path / "h")), "--rows", str(rows.path), "--out", str(tmp_path)]
    assert main(arguments) == 0
    assert capsys.readouterr().out.count("wrote ") == 2
    assert (tmp_path / "speed-quality.png").read_bytes().startswith(PNG)


def test_without_matplotlib_it_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    assert main([str(stored(tmp_path / "h")), "--out", str(tmp_path)]) == 2
    assert "pip install -e '.[docs]'" in capsys.readouterr().err
    assert list(tmp_path.glob("*.png")) == []
