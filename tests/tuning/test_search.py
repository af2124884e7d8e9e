"""A search of `sdopt tune` by its clock: what is compiled, timed, stored, kept and proved."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from concurrent.futures import wait
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from sdopt.engine.cards import A100, H100
from sdopt.engine.tables import own_table, tuned
from sdopt.engine.tiles import Tile
from sdopt.errors import BrokenFileError, SdoptError
from sdopt.tuning import compiling, programs
from sdopt.tuning.compiling import Compilers
from sdopt.tuning.jobs import Job, job_of_key
from sdopt.tuning.table import NUMBERS, read_table, tiles_of
from sdopt.util.places import TILES

LINEAR = job_of_key("linear 512x5120-1280")
SHIPPED_KEYS = [*tuned()]
FOUND = Tile(columns=128)


def compiled_at_once(job: Job, tile: Tile, card: object) -> tuple[str, list[Any]]:
    return "", []


def test_what_is_not_compiled_in_time_is_left_out_and_compiled_later(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(compiling, "compiled", compiled_at_once)
    tiles = [Tile(columns=16 * number) for number in range(1, 17)]
    asked_for_the_time = iter(range(1, 100))
    given: list[int] = []
    done: list[int] = []

    def waited(left: set[Any], **options: Any) -> Any:
        given.append(len(left))
        return wait(left, **options)

    monkeypatch.setattr(compiling, "wait", waited)
    with Compilers(1, H100) as compilers:
        clock = SimpleNamespace(monotonic=lambda: next(asked_for_the_time))
        monkeypatch.setattr(compiling, "time", clock)
        compilers.check([(LINEAR, tiles)], lambda: done.append(1), until=3)
        assert compilers.knows(LINEAR, tiles[:2])  # its process had one, and the next at hand
        assert not compilers.knows(LINEAR, tiles[:3])
        assert len(compilers.verdicts) == len(done) == 2
        compilers.check([(LINEAR, tiles)], lambda: done.append(1))
        assert compilers.knows(LINEAR, tiles)
        assert len(done) == len(tiles)
    assert max(given) == 2


ANEW_EACH_TIME = "tiles of before stay; all are measured anew each time: give more --seconds"
NONE_IN_TIME = "none was timed in 0.5 s; what was compiled is kept: give more --seconds"
AGAIN = "run the same command again"
INSTEAD = "run it again with --missing instead of --force"
OUT, OTHERS, BROKEN = "a card's.json", "another's.json", "broken.json"


@dataclass
class Search:
    """Twenty shapes; each second one is compiled or timed, one is compiled at the third try."""

    jobs: Sequence[Job]
    clock: float = 0.0
    tries: Counter[Job] = field(default_factory=Counter)
    compiled: set[Job] = field(default_factory=set)

    def check(self, work: Iterable[tuple[Job, object]], *, until: float) -> None:
        for job, _ in work:
            if self.clock < until and job not in self.compiled:
                self.clock += 1
                self.tries[job] += 1
                if job is not self.jobs[3] or self.tries[job] == 3:
                    self.compiled.add(job)

    def tune(self, some: Sequence[Job], until: float, *_: object) -> dict[str, Any]:
        assert self.compiled.issuperset(some)
        found = {}
        for job in some:
            if self.clock <= until:
                self.clock += 1
                found[job.key] = {
                    "tile": vars(FOUND),
                    "proof": None,
                    **dict.fromkeys(NUMBERS, 1.0),
                }
        return found


@pytest.fixture
def search(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Search:
    made = Search(sorted(map(job_of_key, SHIPPED_KEYS[:20]), key=lambda job: -job.flop))
    clock = SimpleNamespace(monotonic=lambda: made.clock)
    for name, value in {
        "this_card": lambda: H100,
        "jobs_of_levels": lambda *_: made.jobs,
        "circumstances": dict,
        "tune": made.tune,
        "time": clock,
    }.items():
        monkeypatch.setattr(programs, name, value)
    monkeypatch.setattr(Compilers, "check", lambda _, *given, **named: made.check(*given, **named))
    monkeypatch.setattr(Compilers, "knows", lambda _, job, __: job in made.compiled)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: H100.name)
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", False)
    monkeypatch.setenv(TILES, str(tmp_path))
    return made


@pytest.mark.parametrize(
    ("arguments", "known", "stored", "next_step"),
    [
        ({}, 0, 11, AGAIN),
        ({}, 0, 0, NONE_IN_TIME),
        ({"anew": True}, 0, 11, INSTEAD),
        ({"anew": True}, 12, 11, ANEW_EACH_TIME),
        ({"anew": True, "missing": True}, 1, 12, AGAIN),
        ({"out": OUT}, 0, 11, "run it again with --missing"),
        ({"out": OUT, "missing": True}, 1, 12, AGAIN),
        ({"out": OUT, "known": True}, 20, 11, ANEW_EACH_TIME),
        ({"out": OUT, "known": True, "missing": True}, 1, 12, AGAIN),
        ({"out": OUT, "anew": True}, 20, 11, ANEW_EACH_TIME),
        ({"out": OUT, "anew": True}, 4, 11, ANEW_EACH_TIME),
        ({"out": OTHERS, "anew": True}, 20, 11, INSTEAD),
        ({"out": OTHERS, "missing": True}, 1, 12, AGAIN),
        ({"out": BROKEN, "anew": True}, 20, 11, INSTEAD),
        ({"out": BROKEN, "anew": True}, 20, 0, NONE_IN_TIME),
    ],
)
def test_a_search_that_runs_out_of_time_stores_what_it_measured_and_loses_nothing(
    arguments: dict[str, Any],
    known: int,
    stored: int,
    next_step: str,
    search: Search,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    name = arguments.get("out", own_table(H100).name)
    out = tmp_path / name
    slow_first = sorted(search.jobs, key=lambda job: job is not search.jobs[3])
    had = {job.key: vars(Tile()) for job in slow_first[:known]}
    device = H100.name if name == OUT else "a card"
    table = json.dumps({"device": device, "tiles": had, "measured": {}})
    if known:
        out.write_text("{" if name == BROKEN else table)
    if "out" in arguments:
        arguments = {**arguments, "out": out}
    seconds = 24.0 if stored else 0.5
    options = programs.Tuning(processes=1, seconds=seconds, **arguments)
    assert programs.tune_levels(options) == 1
    told = capsys.readouterr().out
    asked = 20 - len(had) * ("missing" in arguments)
    left = f"the time is over: {asked - stored} shapes are left; {next_step}"
    assert told.splitlines()[-1] == left
    replaced = name in (OTHERS, BROKEN) and "anew" in arguments
    assert (f"nothing of {out} is kept: " in told) == replaced
    if not stored:
        assert not out.exists() or out.read_text() == "{"
        return
    tiles = tiles_of(read_table(out))
    new = {key for key, tile in tiles.items() if tile == FOUND}
    assert len(new) == stored
    assert new == {job.key for job in search.compiled}
    assert set(tiles) == new | (set() if replaced else set(had))


@pytest.mark.parametrize("own", [True, False])
def test_a_search_goes_on_to_compile_and_time_until_all_shapes_are_stored(
    own: bool, search: Search, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = None if own else tmp_path / OUT
    assert programs.tune_levels(programs.Tuning(processes=1, seconds=1000, out=out)) == 0
    tiles = tiles_of(read_table(out or own_table(H100)))
    assert tiles == dict.fromkeys((job.key for job in search.jobs), FOUND)
    assert search.tries[search.jobs[3]] == 3
    told = capsys.readouterr().out
    assert ("is whole; pipelines of this user take it" in told) == own


def test_a_broken_own_table_is_named_before_anything_is_measured(search: Search) -> None:
    own_table(H100).write_text("{")
    for anew in (True, False):
        with pytest.raises(BrokenFileError, match=r"no table of tiles.*remove it, and `sdopt tune"):
            programs.tune_levels(programs.Tuning(processes=1, anew=anew))
    assert search.clock == 0


def test_each_tile_that_is_used_is_proved_in_the_table_that_has_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Once: that of one's own, not the one which ships for that shape."""
    first, second = [key for key, tile in tuned().items() if not tile.library][:2]
    tiles = {"own": {first: vars(FOUND)}, "ships": {first: vars(Tile()), second: vars(Tile())}}
    paths = [tmp_path / f"{name}.json" for name in tiles]
    for path in paths:
        table = {"device": "a card", "tiles": tiles[path.stem], "measured": {}}
        path.write_text(json.dumps(table))
    proved: list[tuple[str, Tile]] = []

    def prove(job: Job, tile: Tile, device: object) -> SimpleNamespace:
        proved.append((job.key, tile))
        return SimpleNamespace(passed=job.key == first, fields=dict)

    monkeypatch.setattr(programs, "this_card", lambda: H100)
    monkeypatch.setattr(programs, "used_tables", lambda _: paths)
    monkeypatch.setattr(programs, "circumstances", dict)
    monkeypatch.setattr(programs, "prove", prove)
    begun: list[int] = []  # forks, which the device does not survive
    enter = Compilers.__enter__
    monkeypatch.setattr(
        Compilers, "__enter__", lambda self: begun.append(len(proved)) or enter(self)
    )
    monkeypatch.setattr(Compilers, "check", lambda *_: None)
    monkeypatch.setattr(Compilers, "of", lambda *_: "")
    assert programs.prove_stored(programs.Tuning(processes=1)) == 1
    assert proved == [(first, FOUND), (second, Tile())]
    assert begun == [0]
    assert [set(read_table(path)["proof"]) for path in paths] == [{first}, set()]
    told = capsys.readouterr().out
    assert f"{paths[0]}: 1 tiles, 0 failed" in told
    assert f"{paths[1]}: 1 tiles, 1 failed" in told


def test_without_a_table_there_is_nothing_to_prove(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(programs, "this_card", lambda: A100)
    with pytest.raises(SdoptError, match="has no table of tiles to prove; run `sdopt tune` first"):
        programs.prove_stored(programs.Tuning(processes=1))
