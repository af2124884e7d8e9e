"""The table of results shows every published row beside what was measured, and nothing else."""

from __future__ import annotations

import errno
import os
import tempfile
import threading
from pathlib import Path

import pytest
from measured import RUNS, stored

from sdopt.bench.report.results import main, marks, published_seconds, results_table
from sdopt.levels import LEVELS

BEGIN, END = marks("measured")


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_every_published_row_is_of_a_level() -> None:
    published = published_seconds()
    assert sum(map(len, published.values())) == 9
    ours = {name for name, level in LEVELS.items() if level.whole_graph} | {"tuned"}
    assert set(published) == set(LEVELS) - ours
    assert published["compiled"] == [0.552, 0.547]
    assert (published["baseline"], published["final"]) == ([1.3], [0.297])


def test_a_row_has_the_median_of_the_runs_and_each_of_them() -> None:
    head, _, baseline, final = results_table(RUNS)
    assert cells(head)[:4] == ["level", "A100, published", "speed-up there", "ms here"]
    assert cells(baseline)[1:6] == ["1300 ms", "1.00x", "1000.0", "1000.0, 900.0, 1100.0", "1.00x"]
    assert cells(final) == [
        "`final`",
        "297 ms",
        "4.38x",
        "105.0",
        "110.0, 100.0",
        "9.52x",
        "100.0",
        "-",
        "2",
        "- / - / -",
        "+79 %",
    ]


def test_a_run_is_blamed_from_less_where_runs_agree_and_there_are_more_of_them() -> None:
    def limit(*times: float) -> float:
        *_, row = results_table([{"turbo": {"latency_ms": time}} for time in times])
        return float(cells(row)[-1].strip("+ %"))

    few, more, apart = limit(35.3, 35.6), limit(*[35.3, 35.6] * 4), limit(35.3, 38.0)
    assert more < few < apart


def test_a_level_nobody_published_has_dashes() -> None:
    *_, row = results_table([{"tuned": {"latency_ms": 5.0}}])
    assert cells(row)[1:6] == ["-", "-", "5.0", "5.0", "-"]


def test_the_table_is_written_between_the_marks(tmp_path: Path) -> None:
    page = tmp_path / "results.md"
    page.write_text(f"before\n{BEGIN}\nold\n{END}\nafter\n")
    assert main([str(stored(tmp_path / "h")), "--page", str(page)]) == 0
    text = page.read_text()
    assert text.startswith(f"before\n{BEGIN}\n\n| level |")
    assert text.endswith(f"|\n\n{END}\nafter\n")
    assert "| 200.0 |" in text
    assert "old" not in text


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("no marks", f"has no {BEGIN}"),
        (BEGIN, f"has no {END}"),
        (f"{END}\nold\n{BEGIN}\n", f"has {END} before {BEGIN}"),
        (f"{BEGIN}\n{END}\nold\n{BEGIN}\n{END}\n", f"has {BEGIN} 2 times"),
        (f"{BEGIN}\nold\n{END}\n{END}\n", f"has {END} 2 times"),
    ],
)
def test_a_page_without_one_pair_of_marks_is_left_alone(
    text: str, says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page = tmp_path / "results.md"
    page.write_text(text)
    assert main([str(stored(tmp_path / "h")), "--page", str(page)]) == 2
    assert f"error: {page} {says}" in capsys.readouterr().err
    assert page.read_text() == text


@pytest.mark.parametrize("line_end", [b"\r\n", b"\n"])
def test_a_page_keeps_its_line_ends(line_end: bytes, tmp_path: Path) -> None:
    page = tmp_path / "results.md"
    page.write_bytes(line_end.join([b"before", BEGIN.encode(), b"old", END.encode(), b"after"]))
    assert main([str(stored(tmp_path / "h")), "--page", str(page)]) == 0
    content = page.read_bytes()
    assert content.startswith(line_end.join([b"before", BEGIN.encode(), b"", b"| level |"]))
    assert content.endswith(line_end.join([b"|", b"", END.encode(), b"after"]))
    assert content.count(b"\r\n") == content.count(b"\n") * (line_end == b"\r\n")


def test_what_is_no_plain_file_is_refused_and_not_waited_for(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page = tmp_path / "pipe"
    os.mkfifo(page)
    runs, pipe = str(stored(tmp_path / "h")), os.fdopen(os.open(page, os.O_RDWR), "rb+", 0)
    writer = threading.Timer(10, pipe.close)  # whoever reads the pipe waits until then
    writer.start()
    assert main([runs, "--page", str(page)]) == 2
    assert pipe.closed is False
    writer.cancel()
    pipe.close()
    assert f"error: {page} cannot be read: it is no plain file" in capsys.readouterr().err
    assert main([runs, "--page", str(tmp_path)]) == 2
    assert f"error: {tmp_path} cannot be read: Is a directory" in capsys.readouterr().err


@pytest.mark.parametrize("number", [errno.EACCES, errno.EROFS, errno.ENOSPC])
def test_a_page_that_cannot_be_written_is_named(
    number: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    page, runs = tmp_path / "results.md", str(stored(tmp_path / "h"))
    page.write_text(before := f"{BEGIN}\n{END}\n")

    def refuses(**_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(tempfile, "mkstemp", refuses)
    assert main([runs, "--page", str(page)]) == 2
    told = capsys.readouterr()
    assert (told.out, told.err) == (
        "",
        f"error: {page} cannot be written: {os.strerror(number)}\n",
    )
    assert page.read_text() == before


def test_a_folder_without_runs_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tmp_path)]) == 2
    assert f"{tmp_path} holds no stored run" in capsys.readouterr().err
