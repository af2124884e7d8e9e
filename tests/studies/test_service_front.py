"""What the front takes, with workers that only wait: a real service, its clients, its page."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from sdopt.bench.report.results import marks
from studies import service_front
from studies.service_clients import LOOP, Load
from studies.service_front import MARK, main


def test_a_real_front_passes_on_what_waiting_workers_make(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    file, page = tmp_path / "front.json", tmp_path / "page.md"
    page.write_text("\n".join(marks(MARK)))
    given = ["--workers", "2", "--clients", "2", "--ms", "20", "--images", "24"]
    assert main([*given, "--json", str(file), "--page", str(page)]) == 0
    [row] = json.loads(file.read_text())["rows"]
    assert (row["workers"], row["clients"], row["workers_images_per_s"]) == (2, 4, 400)
    assert 0 < row["images_per_s"] <= 400
    host = row["cpu_s_per_image"]
    assert 0 < host[LOOP] < host["front"]
    bound = round(1 / host[LOOP])
    assert f"alone would allow {bound} to {bound} images a second." in page.read_text()
    shown = page.read_text()
    assert main(["--show", "--json", str(file), "--page", str(page)]) == 0
    assert page.read_text() == shown
    assert "| 2 | 4 | 400 |" in capsys.readouterr().out


def test_a_lost_answer_is_no_row(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def lost(*_: Any) -> Load:
        return Load(
            clients=1,
            answered=7,
            lost=1,
            errors=("503: busy",),
            images_per_s=1.0,
            p50_ms=1.0,
            p95_ms=1.0,
            images_a_batch=1.0,
        )

    monkeypatch.setattr(service_front, "under_load", lost)
    assert main(["--workers", "1", "--clients", "1", "--images", "8"]) == 2
    assert "error: 1 of 8 requests were lost: 503: busy" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (["--workers", "0"], "0 is too few; give 1 or more"),
        (["--ms", "0"], "0 ms is no batch's time; give 1 to 10000"),
        (["--ms", "nan"], "nan ms is no batch's time"),
    ],
)
def test_numbers_that_cannot_be_are_refused(
    given: list[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(given)
    assert says in capsys.readouterr().err


def test_show_needs_a_file(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--show"]) == 2
    assert "--show needs --json FILE" in capsys.readouterr().err
