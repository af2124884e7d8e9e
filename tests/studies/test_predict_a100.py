"""The A100's times are computed as they say, from a pair of histories that belongs together."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from sdopt.bench.report.results import marks
from sdopt.bench.stored.soundness import statistics_of
from sdopt.errors import SdoptError, UnknownNameError
from studies import predict_a100
from studies.predict_a100 import A100, History, Peak, predict

H200 = predict_a100.MEASURED_ON["nvidia-h200"]
KEY, SET = "nvidia-h200-140gib-700-w", "sd15-random"
HISTORIES = Path(__file__).parents[2] / "baselines" / "history"


def history(hardware: str = KEY, **levels: dict[str, float]) -> History:
    return History(hardware=hardware, baseline_set=SET, levels=levels)


HOISTED = {"latency_ms": 100.0, "gpu_busy_ms": 90.0, "tflop": 32.7}
SLOWER = {"latency_ms": 150.0, "gpu_busy_ms": 140.0, "tflop": 32.7}
FINAL = {"latency_ms": 145.0, "gpu_busy_ms": 100.0, "tflop": 23.5}


def test_both_ends_scale_what_was_measured() -> None:
    found = predict("hoisted", HOISTED, H200)
    assert found is not None
    assert found.efficiency == pytest.approx(32.7 / 0.1 / 989)
    assert found.ranges[40] == pytest.approx((100 * 4.8 / 1.55, 100 * 989 / 312))
    assert found.ranges[80] == pytest.approx((100 * 4.8 / 2.0, 100 * 989 / 312))


def test_where_the_host_is_waited_for_the_gpu_s_time_is_scaled() -> None:
    found = predict("final", FINAL, H200)
    assert found is not None
    assert (found.ms, found.ranges[80][0]) == (100.0, pytest.approx(240.0))


def test_no_end_is_below_the_a100_s_own_peak() -> None:
    wide = Peak(tflop_per_s=312, tb_per_s=1.0, multiprocessors=1)
    found = predict("hoisted", {"latency_ms": 1.0, "tflop": 31.2}, wide)
    assert found is not None
    assert found.ranges[80] == pytest.approx((100.0, 100.0))


def test_without_counted_operations_there_is_no_figure() -> None:
    assert predict("hoisted", {"latency_ms": 1.0}, H200) is None
    assert predict("baseline", {"latency_ms": 1.0, "tflop": 1.0}, H200) is None


def row(lines: list[str], level: str) -> list[str]:
    line = next(line for line in lines if line.startswith(f"| `{level}`"))
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_the_engine_s_levels_are_computed_from_the_pointer_history() -> None:
    own = history(hoisted=HOISTED, final=FINAL)
    pointers = history(f"{KEY}-pointers", hoisted=SLOWER, final={**FINAL, "gpu_busy_ms": 999.0})
    lines = predict_a100.table(own, pointers)
    assert row(lines, "hoisted")[1:] == [
        "100",
        "150",
        "32.7",
        "22 %",
        "465 to 475",
        "360 to 475",
        "-",
    ]
    assert row(lines, "final")[2:] == [
        *("the same kernels", "23.5", "24 %", "310 to 317", "240 to 317", "297"),
    ]
    assert "**Computed, never run on the card**" in lines[0]
    assert predict_a100.COMMAND in lines
    assert any("0 of 1 lie in the range of 40 GB, 1 of 1 lie" in line for line in lines)


def test_without_a_pointer_history_the_engine_s_levels_have_no_figure() -> None:
    lines = predict_a100.table(history(hoisted=HOISTED), None)
    assert row(lines, "hoisted")[2:] == ["-", "32.7", *("-",) * (2 + len(A100))]


@pytest.mark.parametrize(
    "pointers", [history(), history("nvidia-h100-80gb-hbm3-79gib-700-w-pointers")]
)
def test_histories_that_are_no_pair_are_refused(pointers: History) -> None:
    with pytest.raises(SdoptError, match="has to be of nvidia-h200-140gib-700-w-pointers"):
        predict_a100.check_pair(history(), pointers)


@pytest.mark.parametrize("hardware", ["nvidia-l4-22gib-72-w", "cpu-any"])
def test_a_card_whose_peak_is_not_known_is_refused(hardware: str) -> None:
    with pytest.raises(UnknownNameError, match=r"nvidia-h100-80gb-hbm3, nvidia-h200"):
        predict_a100.check_pair(history(hardware), None)


def test_the_history_through_pointers_is_told_where_it_belongs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stored(tmp_path / "a", "0001_a", 100.0, hardware=f"{KEY}-pointers")
    assert predict_a100.main(["--history", str(tmp_path / "a")]) == 2
    assert capsys.readouterr().err.startswith(
        f"error: --history is of {KEY}-pointers: that is the history through pointers; "
        "give it as --pointers-history"
    )


def stored(folder: Path, name: str, ms: float, **fields: Any) -> None:
    info = {"level": "hoisted", "dtype": "float16", "tflop": 32.7, **fields.pop("info", {})}
    block = {"schema": 1, "hardware": KEY, "baseline_set": SET, "judged": [], "environment": {}}
    run = {
        "sdopt": {**block, **fields},
        "machine_info": {},
        "benchmarks": [{"extra_info": info, "stats": statistics_of([ms / 1e3] * 3)}],
    }
    folder.mkdir(exist_ok=True)
    (folder / f"{name}.json").write_text(json.dumps(run))


def test_a_folder_s_runs_are_the_median_since_the_last_accepted_one(tmp_path: Path) -> None:
    folder = tmp_path / "history"
    stored(folder, "0001_a", 900.0)
    stored(folder, "0002_b", 110.0, accepted=True)
    stored(folder, "0003_c", 100.0)
    found = predict_a100.read_history(folder)
    assert found.levels["hoisted"]["latency_ms"] == pytest.approx(105.0)
    assert predict_a100.read_history(folder / "0003_c.json").levels["hoisted"]["tflop"] == 32.7


def test_runs_of_another_dtype_or_of_two_machines_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stored(tmp_path / "a", "0001_a", 100.0, info={"dtype": "bfloat16"})
    assert predict_a100.main(["--history", str(tmp_path / "a")]) == 2
    assert "'hoisted' was not measured in float16" in capsys.readouterr().err
    stored(tmp_path / "b", "0001_a", 100.0)
    stored(tmp_path / "b", "0002_b", 100.0, hardware="another")
    assert predict_a100.main(["--history", str(tmp_path / "b")]) == 2
    said = capsys.readouterr().err
    assert f"more than one machine or source: {SET} on another, {SET} on {KEY}; give a" in said
    (tmp_path / "c").mkdir()
    assert predict_a100.main(["--history", str(tmp_path / "c")]) == 2


def test_what_is_not_there_holds_no_run(tmp_path: Path) -> None:
    with pytest.raises(SdoptError, match="none holds no stored run; give history/"):
        predict_a100.read_history(tmp_path / "none")


def test_levels_of_another_ladder_are_left_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stored(tmp_path / "a", "0001_a", 100.0, info={"level": "own"})
    assert predict_a100.main(["--history", str(tmp_path / "a")]) == 2
    assert "holds no level of this ladder, only own" in capsys.readouterr().err
    stored(tmp_path / "a", "0002_b", 100.0)
    assert predict_a100.main(["--history", str(tmp_path / "a")]) == 0
    assert "`hoisted`" in capsys.readouterr().out


def test_the_page_has_every_level_of_a_real_history(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("{}\n{}\n".format(*marks(predict_a100.MARK)))
    assert predict_a100.main(["--history", str(HISTORIES / KEY / SET), "--page", str(page)]) == 0
    lines = page.read_text().splitlines()
    assert row(lines, "final")[-1] == "297"
    assert row(lines, "baseline")[-1] == "1300"
