"""The least memory of a level is found in few tries, honestly counted, and never measured twice."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable
from dataclasses import replace
from multiprocessing import forkserver
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import tried

from sdopt.bench.report.results import marks
from sdopt.bench.session import RunContext
from sdopt.errors import OutOfMemoryError, WorkerError
from sdopt.levels import LEVELS
from sdopt.pipelines import pipeline as pipelines
from sdopt.pipelines import workload
from sdopt.util.progress import Progress
from studies import capped, memory_needs
from studies.capped import Attempt
from studies.rows import Rows, continue_rows

TURBO = LEVELS["turbo"]
HERE = {"device": "a card", "source": "sd15-random", "dtype": "float16"}


class Card:
    """A level that needs `least` MiB under a cap, takes more if it may, and 500 besides."""

    def __init__(self, least: float, usual: float = 4000.0, held: float = 2000.0) -> None:
        self.least, self.usual, self.held = least, usual, held
        self.caps: list[float | None] = []

    def __call__(self, level: str, cap_mib: float | None) -> Attempt:
        self.caps.append(cap_mib)
        if cap_mib is not None and cap_mib < self.least:
            return {"works": False, "detail": "out of memory"}
        reserved = min(self.usual, cap_mib or math.inf)
        return {
            "works": True,
            "held_mib": self.held,
            "peak_allocated_mib": self.held,
            "peak_reserved_mib": reserved,
            "outside_mib": 500.0,
            "retries": 0,
            "ms": 10.0 * len(level) + 1000 * (reserved < self.usual),
        }


def found(card: Card, **options: Any) -> dict[str, Any]:
    *_, row = memory_needs.search(TURBO, card, **options)
    return dict(row)


@pytest.mark.parametrize("least", [2010.0, 2600.0, 3333.0, 3999.0])
def test_the_need_is_found_within_a_step(least: float) -> None:
    card = Card(least)
    row = found(card, most=20)
    assert row["done"]
    assert row["unsure_mib"] <= memory_needs.STEP_MIB
    assert 0 <= row["need_mib"] - 500 - least <= memory_needs.STEP_MIB
    assert card.caps[0] is None


def test_few_tries_say_how_unsure_they_are_and_never_too_little() -> None:
    card = Card(2100.0)
    row = found(card, most=2)
    assert len(card.caps) == 3
    assert row["unsure_mib"] > memory_needs.STEP_MIB
    assert row["need_mib"] - 500 >= 2100


def test_what_cards_have_is_tried_before_anything_else() -> None:
    card = Card(5000.0, usual=9000.0)
    row = found(card)
    assert card.caps[1:4] == [8 * 1024 - 500, 6 * 1024 - 500, 4 * 1024 - 500]
    assert [memory_needs.fits(row, total) for total in (8, 6, 4)] == [True, True, False]


def test_what_lies_outside_the_allocator_counts() -> None:
    row = found(Card(3999.0))
    assert row["need_mib"] == 4500
    assert not memory_needs.fits(row, 4)


def test_a_killed_study_goes_on_where_it_was_and_done_levels_are_left(tmp_path: Path) -> None:
    path, progress = tmp_path / "needs.json", Progress(SimpleNamespace())  # type: ignore[arg-type]
    card = Card(2600.0)

    def dies(level: str, cap: float | None) -> Attempt:
        if len(card.caps) == 2:
            raise KeyboardInterrupt
        return card(level, cap)

    with pytest.raises(KeyboardInterrupt):
        memory_needs.measure_all([TURBO], continue_rows(path, HERE), dies, progress)
    assert not continue_rows(path, HERE).rows["turbo"]["done"]
    memory_needs.measure_all([TURBO], continue_rows(path, HERE), card, progress)
    assert len(card.caps) == len(set(card.caps)) == 5
    memory_needs.measure_all([TURBO], continue_rows(path, HERE), card, progress)
    assert len(card.caps) == 5
    other = replace(TURBO, steps=8)
    memory_needs.measure_all([other], continue_rows(path, HERE), card, progress)
    assert len(card.caps) == 10


def test_a_level_that_the_card_refuses_is_left_out_by_name(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, progress = tmp_path / "needs.json", Progress(SimpleNamespace())  # type: ignore[arg-type]

    def refuses(level: str, cap: float | None) -> Attempt:
        if level == "fused":
            raise capped.RefusedError("level 'fused': its kernels need another card")
        return Card(2600.0)(level, cap)

    levels = [LEVELS["fused"], TURBO]
    memory_needs.measure_all(levels, continue_rows(path, HERE), refuses, progress)
    assert list(continue_rows(path, HERE).rows) == ["turbo"]
    assert "left out: level 'fused': its kernels" in capsys.readouterr().err


def rows_of(path: Path, **needs: float) -> Rows:
    rows = Rows(path=path, made_on=HERE)
    for name, least in needs.items():
        *_, row = memory_needs.search(LEVELS[name.replace("_", "-")], Card(least, usual=least + 50))
        rows.put(row)
    return rows


def test_the_page_says_what_fits_and_what_to_choose(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page = tmp_path / "page.md"
    page.write_text("{}\n{}\n".format(*marks(memory_needs.MARK)))
    needs = {"hoisted": 4500.0, "turbo": 3000.0, "baseline": 7900.0, "turbo_float8": 2000.0}
    rows = rows_of(tmp_path / "rows.json", **needs)
    rows.rows["turbo-float8"]["tries"][-1]["ms"] = 1.0  # the fastest, but no card of 8 GiB takes it
    assert memory_needs.main(["--show", "--json", str(rows.path), "--page", str(page)]) == 0
    lines = page.read_text().splitlines()
    cells = [line for line in lines if line.startswith("| `")]
    assert [line.split("|")[1].strip() for line in cells] == [
        "`baseline`", "`hoisted`", "`turbo`", "`turbo-float8`",
    ]  # fmt: skip
    assert cells[0].endswith("| no | no | no |")
    assert cells[1].endswith("| yes | yes | no |")
    assert "- 8 GiB: `turbo`, `hoisted` without a loss of quality." in lines
    assert "- 4 GiB: `turbo`." in lines
    assert "a card, source `sd15-random`, float16" in capsys.readouterr().out


def test_where_nothing_fits_the_page_says_so(tmp_path: Path) -> None:
    rows = rows_of(tmp_path / "rows.json", hoisted=5000.0)
    assert memory_needs.choices(list(rows.rows.values()))[-1] == "- 4 GiB: none of these levels."


Damage = Callable[[dict[str, Any]], object]
DAMAGED: tuple[tuple[Damage, str], ...] = (
    (lambda data: data["made_on"].clear(), "made_on: device is missing"),
    (lambda data: data.pop("made_on"), "made_on is missing"),
    (lambda data: data["rows"][0].pop("done"), "row 'turbo': done is missing"),
    (lambda data: data["rows"][0]["tries"].clear(), "row 'turbo': tries is [], no list of tries"),
    (lambda data: data["rows"][0]["tries"].insert(0, 3), "row 'turbo': tries[0]: it is no object"),
    (lambda data: data["rows"][0]["tries"][0].pop("ms"), "row 'turbo': tries[0]: ms is missing"),
    (lambda data: data["rows"][0].update(name="nope"), "it has a row of 'nope', which is no level"),
    (lambda data: data["rows"][0].update(need_mib="much"), 'need_mib is "much", no number'),
    (lambda data: data["rows"][0].update(need_mib=-5), "need_mib is -5, no number from 0 on"),
    (lambda data: data["rows"][0].update(need_mib=math.inf), "need_mib is no finite number"),
    (lambda data: data["rows"][0].update(need_mib=math.nan), "need_mib is no finite number"),
    (lambda data: data["rows"][0]["tries"][0].update(ms=math.nan), "tries[0].ms is no finite"),
    (lambda data: data["rows"][0].update(need_mib=10**400), "need_mib is no finite number"),
    (lambda data: data["rows"][0]["level"].pop("float8"), "row 'turbo': level: float8 is missing"),
    (lambda data: data["rows"].append(data["rows"][0]), "it has two rows of the name 'turbo'"),
    (lambda data: data["rows"].append([]), "rows[1] is no object with a name"),
)


@pytest.mark.parametrize(("damage", "says"), DAMAGED)
def test_damaged_rows_are_told_by_field_and_no_page_is_written(
    damage: Damage, says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page = tmp_path / "page.md"
    page.write_text(before := "{}\n{}\n".format(*marks(memory_needs.MARK)))
    rows = rows_of(tmp_path / "rows.json", turbo=3000.0)
    data = json.loads(rows.path.read_text())
    damage(data)
    rows.path.write_text(json.dumps(data))
    assert memory_needs.main(["--show", "--json", str(rows.path), "--page", str(page)]) == 2
    told = capsys.readouterr().err
    assert told.startswith(f"error: {rows.path} is damaged: ")
    assert says in told
    assert told.endswith("; give another file, or measure\n")  # git has none of it
    assert page.read_text() == before


@pytest.mark.parametrize("empty", [True, False])
def test_without_a_finished_row_there_is_no_table(
    empty: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page = tmp_path / "page.md"
    page.write_text(before := "{}\n{}\n".format(*marks(memory_needs.MARK)))
    rows = rows_of(tmp_path / "rows.json", hoisted=3000.0)
    rows.put({**rows.rows.pop("hoisted"), "done": False})
    if empty:
        rows.path.write_text(json.dumps({**json.loads(rows.path.read_text()), "rows": []}))
    assert memory_needs.main(["--show", "--json", str(rows.path), "--page", str(page)]) == 2
    told = capsys.readouterr()
    assert (told.out, told.err.count("\n")) == ("", 1)
    assert f"error: {rows.path} holds no finished row" in told.err
    assert page.read_text() == before


def test_the_levels_that_are_named_are_shown_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = rows_of(tmp_path / "rows.json", hoisted=3000.0, turbo=3000.0)
    show = ["--show", "--json", str(rows.path)]
    assert memory_needs.main([*show, "--levels", "turbo"]) == 0
    out = capsys.readouterr().out
    assert "| `turbo` |" in out
    assert "hoisted" not in out
    assert memory_needs.main(show) == 0
    assert "| `hoisted` |" in capsys.readouterr().out
    assert memory_needs.main([*show, "--levels", "turbo", "tuned"]) == 2
    told = capsys.readouterr()
    assert told.out == ""
    assert "holds no finished row of tuned, only of hoisted, turbo" in told.err


def test_rows_of_another_card_are_not_thrown_away(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = rows_of(tmp_path / "rows.json", turbo=3000.0)
    before = rows.path.read_bytes()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(RunContext, "made_on", lambda _: {**HERE, "device": "another card"})
    monkeypatch.setattr(memory_needs, "starting_fresh", lambda *_: Card(2600.0))
    assert memory_needs.main(["--json", str(rows.path), "--levels", "turbo"]) == 2
    assert capsys.readouterr().err == (
        f"error: {rows.path} holds rows that were made on device a card; this is device another "
        "card: name another file with --json\n"
    )
    assert rows.path.read_bytes() == before
    other = tmp_path / "other.json"
    assert memory_needs.main(["--json", str(other), "--levels", "turbo"]) == 0
    assert json.loads(other.read_text())["made_on"]["device"] == "another card"


def test_without_cuda_and_with_a_wrong_level_it_ends_with_2(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert memory_needs.main(["--json", str(tmp_path / "none.json")]) == 2
    assert "there is none" in capsys.readouterr().err
    assert memory_needs.main(["--levels", "turboo"]) == 2
    assert "did you mean 'turbo'?" in capsys.readouterr().err


def test_the_levels_measured_by_default_need_no_inductor() -> None:
    assert "turbo" in memory_needs.EAGER_OR_ENGINE
    assert "final" not in memory_needs.EAGER_OR_ENGINE


class StandIn:
    """An allocator whose cap is noted, and enforced by whoever allocates."""

    capped: float | None = None

    def __init__(self) -> None:
        self.asked: list[str] = []

    def cap(self, mib: float | None) -> None:
        self.capped = mib
        self.asked.append("cap")

    def figures(self) -> dict[str, float]:
        return {"peak_allocated_mib": 1.0, "peak_reserved_mib": 2.0, "outside_mib": 3.0}

    def held_mib(self) -> float:
        self.asked.append("held")
        return 1.0

    def synchronize(self) -> None:
        pass


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(LEVELS, "baseline", replace(LEVELS["baseline"], steps=1))


@pytest.mark.usefixtures("quick")
def test_a_level_that_is_built_generates_under_its_cap(micro: Path) -> None:
    allocator = StandIn()
    got = capped.attempt("baseline", str(micro), 3000.0, allocator)
    assert (got["works"], allocator.capped, got["held_mib"]) == (True, 3000.0, 1.0)
    assert allocator.asked == ["held", "cap"]  # how weights are made is no need of the level's
    assert got["ms"] > 0


Raising = Callable[[Exception], None]


@pytest.fixture
def failing(monkeypatch: pytest.MonkeyPatch) -> Raising:
    def fails(error: Exception) -> None:
        def generate(*_: object) -> None:
            raise error

        monkeypatch.setattr(workload, "generate", generate)
        monkeypatch.setattr(pipelines, "build", lambda *_: None)

    return fails


@pytest.mark.parametrize(
    "error",
    [
        OutOfMemoryError("level 'turbo' does not fit on cuda: it held 9 MiB; end what else"),
        RuntimeError("cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_HOST_ALLOC_FAILED"),
        RuntimeError("GET was unable to find an engine to execute this computation"),
    ],
)
def test_no_room_under_a_cap_is_a_result_and_without_one_an_error(
    micro: Path, failing: Raising, error: Exception
) -> None:
    failing(error)
    got = capped.attempt("turbo", str(micro), 3000.0, StandIn())
    assert (got["works"], got["detail"]) == (False, str(error).split("; ")[0])
    with pytest.raises(type(error)):
        capped.attempt("turbo", str(micro), None, StandIn())


def test_any_other_error_is_no_lack_of_room(micro: Path, failing: Raising) -> None:
    failing(RuntimeError("an illegal memory access was encountered"))
    with pytest.raises(RuntimeError, match="illegal"):
        capped.attempt("turbo", str(micro), 3000.0, StandIn())


def test_a_try_has_a_process_of_its_own_whose_end_is_told() -> None:
    try:
        first, second = (capped.in_own_process(tried.answers, "turbo") for _ in range(2))
        assert len({first["pid"], second["pid"], os.getpid()}) == 3
        with pytest.raises(WorkerError, match="'turbo' died with code 7"):
            capped.in_own_process(tried.dies, "turbo")
        with pytest.raises(capped.RefusedError, match="'turbo': not on this card"):
            capped.in_own_process(tried.refuses, "turbo")
    finally:
        forkserver._forkserver._stop()  # type: ignore[attr-defined]


def test_the_cap_is_a_share_of_the_card(monkeypatch: pytest.MonkeyPatch) -> None:
    shares: list[float] = []
    total = SimpleNamespace(total_memory=8192 * 2**20)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: total)
    monkeypatch.setattr(torch.cuda, "set_per_process_memory_fraction", shares.append)
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda: shares.append(0.0))
    for cap in (2048.0, 9999.0, None):
        capped.CudaAllocator(0.0).cap(cap)
    assert shares == [0.0, 0.25, 0.0, 1.0, 0.0]  # peaks of building are forgotten first


def test_the_context_is_what_the_device_lost_besides(monkeypatch: pytest.MonkeyPatch) -> None:
    mib = 2**20
    for name, value in (
        ("mem_get_info", (5000 * mib, 8000 * mib)),
        ("memory_reserved", 2000 * mib),
        ("max_memory_allocated", 1500 * mib),
        ("max_memory_reserved", 2100 * mib),
        ("memory_stats", {"num_alloc_retries": 1}),
    ):
        monkeypatch.setattr(torch.cuda, name, lambda value=value: value)
    assert capped.CudaAllocator(others_mib=400.0).figures() == {
        "peak_allocated_mib": 1500.0,
        "peak_reserved_mib": 2100.0,
        "outside_mib": 600.0,
        "retries": 1,
    }
