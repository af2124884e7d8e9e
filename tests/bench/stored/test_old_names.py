"""Files of before some names were changed are read as if they had today's."""

from __future__ import annotations

import json
from pathlib import Path

from sdopt.bench.metrics import METRICS
from sdopt.bench.stored.baselines import limits_path, read_limits
from sdopt.bench.stored.history import read_runs
from sdopt.bench.stored.latents import latents_path, read_latents
from sdopt.bench.stored.old_names import RENAMED, with_current_names
from sdopt.engine.tiles import current_key
from sdopt.tuning.table import read_table, tiles_of

BASELINES = Path(__file__).parents[3] / "baselines"
RUNS = BASELINES / "history" / "nvidia-h100-80gb-hbm3-79gib-700-w" / "embedded-float16"


def test_the_current_name_of_each_is_used_and_all_else_stays() -> None:
    old = {"ssim_truth": 0.9, "latency_ms": 1.0}
    assert with_current_names(old) == {"ssim_ground_truth": 0.9, "latency_ms": 1.0}
    assert with_current_names({"truth": 1, "ground_truth": 2}) == {"ground_truth": 2}
    assert not {*RENAMED} & {*RENAMED.values()}


def test_a_stored_run_has_the_metrics_of_today() -> None:
    [path] = RUNS.glob("0001_*.json")
    assert "ssim_truth" in json.loads(path.read_text())["benchmarks"][0]["extra_info"]
    metrics = read_runs(RUNS)[0].metrics["final"]
    assert {"ssim_ground_truth", "psnr_ground_truth_db"} <= {*metrics} & {*METRICS}
    assert not {*RENAMED} & {*metrics}


def test_limits_of_before_have_the_kinds_of_today(tmp_path: Path) -> None:
    path, older = limits_path(BASELINES, "embedded"), tmp_path / "limits.json"
    older.write_text(path.read_text().replace('"ground_truth": {', '"truth": {'))
    assert "truth" in json.loads(older.read_text())["levels"]["final"]
    assert read_limits(older)["levels"] == read_limits(path)["levels"]
    assert "ground_truth" in read_limits(older)["levels"]["final"]


def test_stored_latents_say_their_steps() -> None:
    path = latents_path(BASELINES, "embedded", "final", "red-star")
    assert read_latents(path, "float32")[1]["generated_steps"] == 20


def test_a_table_of_tiles_has_the_keys_of_today(tmp_path: Path) -> None:
    table = tmp_path / "tiles.json"
    entries = {"doubled 1x8x8x64-64": {}, "halved 1x8x8x64-64": {}, "linear 2x8-8": {}}
    table.write_text(json.dumps({"tiles": entries, "measured": {}}))
    keys = ["upsample 1x8x8x64-64", "downsample 1x8x8x64-64", "linear 2x8-8"]
    assert [*tiles_of(read_table(table))] == keys == [current_key(key) for key in entries]
