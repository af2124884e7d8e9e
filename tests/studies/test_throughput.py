"""Images a second are those of whole batches, and a batch that does not fit is a row too."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from sdopt.bench.measure import timing
from sdopt.bench.report.results import marks
from sdopt.errors import OutOfMemoryError
from sdopt.levels import LEVELS
from sdopt.pipelines.workload import EMBEDDED_REQUESTS, Request
from studies import throughput
from studies.rows import Rows, read_rows


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timing, "ROUNDS", {"cpu": 2})
    monkeypatch.setitem(LEVELS, "baseline", replace(LEVELS["baseline"], steps=2))


def run(micro: Path, folder: Path, *arguments: str) -> int:
    options = ("--source", str(micro), "--levels", "baseline", "--json", str(folder / "t.json"))
    return throughput.main([*options, *arguments])


def test_a_batch_takes_the_requests_in_turn_with_other_seeds() -> None:
    batch = throughput.batch_of(EMBEDDED_REQUESTS[:2], 5)
    assert [request.name for request in batch] == [
        "red-star",
        "green-circle",
        "red-star",
        "green-circle",
        "red-star",
    ]
    assert len({request.seed for request in batch}) == 5
    assert batch[:2] == EMBEDDED_REQUESTS[:2]


def test_every_image_of_a_batch_is_that_of_its_request(micro: Path, micro_request: Request) -> None:
    import numpy as np
    import torch

    from sdopt.pipelines.pipeline import build
    from sdopt.pipelines.workload import generate, generate_batch
    from sdopt.weights.sources import resolve

    pipeline = build(resolve(str(micro)), LEVELS["baseline"], torch.device("cpu"))
    requests = throughput.batch_of((micro_request,), 2)
    images = generate_batch(pipeline, requests)
    assert images.shape == (2, 64, 64, 3)
    for image, request in zip(images, requests, strict=True):
        assert np.allclose(image, generate(pipeline, request), atol=1e-4)


def test_each_batch_has_a_row_and_the_file_grows(
    micro: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    begin, end = marks("throughput")
    page = tmp_path / "page.md"
    page.write_text(f"{begin}\n{end}\n")
    assert run(micro, tmp_path, "--batches", "1") == 0
    assert run(micro, tmp_path, "--batches", "2", "--page", str(page)) == 0
    rows = read_rows(tmp_path / "t.json").rows
    assert list(rows) == ["baseline x 1", "baseline x 2"]
    two = rows["baseline x 2"]
    assert (two["batch"], len(two["rounds_ms"]), two["level"]["steps"]) == (2, 2, 2)
    assert two["peak_allocated_mib"] is None
    printed = capsys.readouterr().out
    assert "| `baseline` | 2 |" in printed
    assert "| `baseline` | 1 |" in page.read_text()


def test_images_a_second_are_counted_from_the_median() -> None:
    row = {
        "level": {"name": "final"},
        "batch": 4,
        "rounds_ms": [100.0, 200.0, 400.0],
        "first_call_s": 9.0,
        "peak_allocated_mib": 1000.0,
        "peak_reserved_mib": 2000.0,
    }
    line = throughput.throughput_table([row])[-1]
    assert line == "| `final` | 4 | 20.00 | 200.0 | 100.0 to 400.0 | 9.0 | 1000 / 2000 |"


def test_out_of_memory_is_a_row_by_that_name(
    micro: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def hungry(*_: object) -> None:
        raise OutOfMemoryError("level 'baseline' does not fit on cuda")

    monkeypatch.setattr(throughput, "_measured", hungry)
    assert run(micro, tmp_path, "--batches", "16") == 0
    rows = read_rows(tmp_path / "t.json").rows
    assert rows["baseline x 16"]["error"] == "out of memory"
    line = throughput.throughput_table(list(rows.values()))[-1]
    assert line == "| `baseline` | 16 | out of memory | - | - | - | - |"


def test_a_wrong_level_and_a_wrong_batch_are_refused(
    micro: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(micro, tmp_path, "--levels", "finale") == 2
    assert "did you mean 'final'?" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        run(micro, tmp_path, "--batches", "0")


def test_the_measured_levels_exist() -> None:
    assert set(throughput.MEASURED_LEVELS) <= set(LEVELS)


def test_stored_rows_are_shown_in_the_order_of_the_ladder_and_nothing_is_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = Rows(path=tmp_path / "rows.json", made_on={"device": "a GPU", "source": "embedded"})
    for level, batch in (("turbo", 2), ("final", 8), ("turbo", 1)):
        row = {"level": LEVELS[level].as_dict(), "batch": batch, "error": "out of memory"}
        rows.put({"name": f"{level} x {batch}", **row})
    monkeypatch.setattr(throughput, "measure", None)
    assert throughput.main(["--show", "--json", str(rows.path)]) == 0
    lines = [line[:13] for line in capsys.readouterr().out.splitlines() if "`" in line]
    assert lines == ["| `final` | 8", "| `turbo` | 1", "| `turbo` | 2"]


def test_rows_that_are_not_there_are_an_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert throughput.main(["--show", "--json", str(tmp_path / "none.json")]) == 2
    assert "none.json" in capsys.readouterr().err


def test_rows_of_something_else_are_refused_by_name(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = Rows(path=tmp_path / "peers.json", made_on={"device": "a GPU", "source": "embedded"})
    rows.put({"name": "DeepCache", "recipe": "DeepCache"})
    assert throughput.main(["--show", "--json", str(rows.path)]) == 2
    assert "peers.json has rows of something else, without level, batch" in capsys.readouterr().err
