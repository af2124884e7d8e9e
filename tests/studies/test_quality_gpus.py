"""What is run on GPUs for the docs: the launches, the factors, and one that fails."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import stub_evaluation as stub

from sdopt.bench.evaluation import evaluate as module
from sdopt.bench.evaluation.here import Here
from sdopt.bench.report.results import marks
from sdopt.errors import SdoptError
from sdopt.levels import LEVELS, cost_is_comparable
from studies import quality_gpus, quality_runs
from studies.quality_gpus import add_factors, check_gpus, command, main
from studies.quality_runs import LOSSY, SCALED, Few, counts_of

LOSSY_FIELDS = ("decoder", "cfg_cutoff", "feature_cache", "full_share", "float8")


def stubbed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every pipeline makes its images of nothing."""
    where = Here(commit=None, card=None, date="2026-11-29")
    monkeypatch.setattr(module, "here_of", lambda device: where)  # git is a subprocess
    monkeypatch.setattr(module, "pipeline_of", lambda source, device, level: stub.images()(level))


def here(monkeypatch: pytest.MonkeyPatch, code: int = 0) -> list[list[str]]:
    """Launches are of this process alone; the commands that were asked for."""
    asked: list[list[str]] = []
    stubbed(monkeypatch)

    def run(given: list[str], env: dict[str, str], check: bool) -> Any:
        asked.append(given)
        arguments = given[given.index("studies.quality_runs") + 1 :]
        return SimpleNamespace(returncode=code or quality_runs.main(arguments))

    monkeypatch.setattr(quality_gpus.subprocess, "run", run)
    return asked


def test_scaling_compares_one_process_with_all_of_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = here(monkeypatch)
    file, page = tmp_path / "scaling.json", tmp_path / "page.md"
    page.write_text("\n".join(marks("quality-scaling")))
    given = ["--out", str(tmp_path / "out"), "--json", str(file), "--page", str(page)]
    more = ["--processes", "1", "--source", "embedded", "--scenes", "40"]
    assert main(["scaling", *given, *more]) == 0
    rates = [row["images_per_s"] for row in json.loads(file.read_text())["rows"]]
    for level, rate in zip(("turbo", "final"), rates, strict=True):
        assert f"| `{level}` | 1 | {rate:.2f} | {rate:.2f} | 1.00 |" in page.read_text()
    assert "cpu s / image | PNG ms / image | ms to write an image's part |" in page.read_text()
    assert len(asked) == 1
    rows = json.loads(file.read_text())["rows"]
    assert [row["level"] for row in rows] == ["turbo", "final"]
    assert min(rows[0]["host"][name] for name in ("cpu_s", "png_s", "write_s")) > 0
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"scaling-1"}  # no warm one
    assert "process 0 of 1 begins" in capsys.readouterr().err


def test_captions_are_the_first_ones_and_a_part_warms_each_process() -> None:
    options = argparse.Namespace(
        source="sd15-random", captions=40, scenes=2000, steps=None, levels=SCALED
    )
    assert quality_runs.scaling(options).count == 40
    assert quality_runs.scaling(options, 32).blocks == 2


def test_a_crew_of_one_does_all_of_it() -> None:
    alone = Few(1)
    assert (alone.size, alone.share([3, 1, 4])) == (1, [3, 1, 4])
    assert alone.told_by_main(lambda: "word") == "word"


def test_a_few_share_all_of_it_and_the_others_do_not_work(monkeypatch: pytest.MonkeyPatch) -> None:
    shares, works = [], []
    for number in range(4):
        monkeypatch.setattr(Few, "number", number)
        few = Few(3)
        works.append(few.works)
        shares += few.share(range(8)) if few.works else []
    assert shares == list(range(8))
    assert works == [True, True, True, False]


@pytest.mark.parametrize(
    ("processes", "counts"), [(1, [1]), (2, [1, 2]), (3, [1, 2, 3]), (4, [1, 2, 4])]
)
def test_powers_of_two_up_to_all_processes(processes: int, counts: list[int]) -> None:
    assert counts_of(processes) == counts


def test_a_factor_is_of_the_same_level() -> None:
    rows: list[dict[str, Any]] = [
        {"level": "turbo", "processes": 1, "images_per_s": 40.0},
        {"level": "final", "processes": 1, "images_per_s": None},
        {"level": "turbo", "processes": 2, "images_per_s": 78.0},
        {"level": "final", "processes": 2, "images_per_s": 20.0},
    ]
    add_factors(rows)
    assert [row["factor"] for row in rows] == [1.0, None, 1.95, None]
    assert [row["efficiency"] for row in rows] == [1.0, None, 0.975, None]
    assert list(map(quality_gpus.goal_of, (2, 4))) == [1.9, 3.7]


def test_fewer_gpus_than_asked_are_refused_by_number(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    with pytest.raises(SdoptError, match=r"4 GPUs were asked for, and there is none here.*: less$"):
        check_gpus(4, "sd15-random", "less")
    assert check_gpus(2, "embedded", "") == []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda number: f"card {number}")
    with pytest.raises(SdoptError, match="there are 2 here; give --processes 2"):
        check_gpus(4, "sd15-random", "less")
    assert check_gpus(2, "sd15-random", "") == ["card 0", "card 1"]


def test_scaling_needs_as_many_gpus_as_processes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = here(monkeypatch)
    assert main(["scaling", "--out", str(tmp_path), "--json", str(tmp_path / "none.json")]) == 2
    assert "2 GPUs were asked for, and there is none here" in capsys.readouterr().err
    assert asked == [*tmp_path.iterdir()] == []


def told(rate: dict[str, Any]) -> dict[str, Any]:
    return {"levels": {"turbo": {"rate": rate}}}


def test_the_rate_of_each_process_is_that_of_the_summary_where_it_has_one() -> None:
    [row] = quality_gpus.rates(
        told({"processes": 2, "images_per_s": 7.0, "images_per_s_of_each": [3.0, 4.0]})
    )
    add_factors([row])
    assert "| 7.00 | 3.00, 4.00 | - |" in quality_gpus.scaling_table([row])[-1]
    [older] = quality_gpus.rates(told({"processes": 2, "images_per_s": 7.0}))
    add_factors([older])
    assert "| 7.00 | - | - |" in quality_gpus.scaling_table([older])[-1]


def test_a_launch_of_too_few_processes_has_no_rate(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that went on with what was left may have had work for one of two."""
    rate = {"processes": 1, "images_per_s": 7.0, "images_per_s_of_each": [7.0]}
    monkeypatch.setattr(quality_gpus, "read_summary", lambda file: {"run": {}, **told(rate)})
    for count in (1, 2):
        (tmp_path / f"scaling-{count}").mkdir()
        (tmp_path / f"scaling-{count}" / "summary.json").touch()
    one, two = quality_gpus.scaled(tmp_path, 2)["rows"]
    assert (one["images_per_s"], one["images_per_s_of_each"]) == (7.0, [7.0])
    assert (two["processes"], two["images_per_s"], two["images_per_s_of_each"]) == (2, None, None)


def test_lossy_keeps_each_summary_and_warms_beside(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = here(monkeypatch)
    beside: list[list[str]] = []

    def begun(given: list[str], **_: Any) -> Any:
        beside.append(given)
        return SimpleNamespace(wait=lambda: 0)

    monkeypatch.setattr(quality_gpus.subprocess, "Popen", begun)
    file = tmp_path / "kept" / "scaling.json"
    given = ["--out", str(tmp_path / "out"), "--json", str(file), "--scenes", "9"]
    assert main(["lossy", *given, "--warm"]) == 0
    assert len(asked) == 1
    assert "warm" in beside[0]
    kept = {path.stem for path in file.parent.iterdir()}
    assert kept == {f"quality-{one.name}" for one in LOSSY}
    guided = json.loads((file.parent / "quality-dpm-guidance-7.5.json").read_text())
    assert guided["run"]["guidance_scale"] == 7.5
    # As each ends, and at the end.
    of_turbo = sum("turbo" in one.levels for one in LOSSY)
    assert (
        capsys.readouterr().out.count("| `turbo` |") == 2 * of_turbo
    )  # as each ends, and at the end


def test_a_single_evaluation_can_be_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here(monkeypatch)
    given = ["--out", str(tmp_path / "out"), "--json", str(tmp_path / "scaling.json")]
    assert main(["lossy", *given, "--scenes", "3", "--only", "euler-20"]) == 0
    assert {path.name for path in tmp_path.glob("*.json")} == {"quality-euler-20.json"}


def test_every_lossy_level_has_a_comparable_reference() -> None:
    told = set()
    for one in LOSSY:
        reference = LEVELS[one.reference]
        for level in map(LEVELS.__getitem__, one.levels):
            if cost_is_comparable(level, reference):
                told.add(level.name)
    assert told >= {
        level.name
        for level in LEVELS.values()
        if any(getattr(level, name) != LEVELS["baseline"].as_dict()[name] for name in LOSSY_FIELDS)
    }


def test_a_launch_that_fails_ends_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    here(monkeypatch, code=7)
    assert main(["scaling", "--source", "embedded", "--out", str(tmp_path)]) == 2
    assert "ended with 7" in capsys.readouterr().err


def test_accelerate_starts_the_processes_of_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    words = " ".join(command(2, ["lossy", "--out", "x"]))
    assert "commands.launch --multi_gpu --main_process_port 0 --num_processes 2" in words
    assert words.endswith("-m studies.quality_runs lossy --out x")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert "torch.distributed.run --standalone" in " ".join(command(2, []))
