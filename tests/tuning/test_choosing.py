"""The fastest tile is stored if it is clear of races and proved."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict
from math import inf
from pathlib import Path
from typing import Any

import pytest
import torch

from sdopt.engine.cards import H100
from sdopt.engine.tables import shipped_table, tuned
from sdopt.engine.tiles import FLOAT8, LIBRARY, Tile
from sdopt.tuning import choosing, repeats, timing
from sdopt.tuning.compiling import make_of
from sdopt.tuning.jobs import (
    Job,
    job_of_key,
    random_operands,
)
from sdopt.tuning.repeats import Proof
from sdopt.tuning.table import cut_of, read_table, write_table

LINEAR = job_of_key("linear 512x5120-1280")
GEGLU = job_of_key("geglu 8192x320-1280")
SHIPPED = shipped_table(H100)
FAST, SLOW = Tile(columns=128), Tile(columns=64)
TIMES = {LIBRARY: 30.0, SLOW: 20.0, FAST: 10.0}
GOOD = Proof(repeats=200, differing=0, error=2.1e-4, library_error=2.0e-4)
DIFFERS = Proof(repeats=200, differing=3, error=2.1e-4, library_error=2.0e-4)
WRONG = Proof(repeats=200, differing=0, error=4.1e-3, library_error=2.0e-4)
NOTHING = Proof(repeats=200, differing=0, error=float("nan"), library_error=2.0e-4)


def test_the_shipped_table_says_how_each_of_its_tiles_was_proved() -> None:
    """All or none: one proof missing is a tile put in by hand."""
    table = read_table(SHIPPED)
    own = {key for key, tile in tuned().items() if not tile.library}
    proofs = table.get("proof", {})
    assert set(proofs) in (own, set())
    for key, fields in proofs.items():
        numbers = {name: fields[name] for name in GOOD.fields()}
        assert Proof(**numbers, float8=key.startswith(FLOAT8)).passed, key
        assert numbers["repeats"] == repeats.REPEATS
        assert {"card", "torch", "triton", "driver", "date"} <= set(fields)


def chosen(
    races: dict[Tile, str], proofs: dict[Tile, Proof], times: dict[Tile, float] = TIMES
) -> tuple[Tile, Proof | None, list[str]]:
    told: list[str] = []
    tile, proof = choosing.chosen(
        times, lambda one: races.get(one, ""), lambda one: proofs.get(one, GOOD), told.append
    )
    return tile, proof, told


def test_the_fastest_tile_is_stored_if_it_is_proved() -> None:
    assert chosen({}, {}) == (FAST, GOOD, [])


@pytest.mark.parametrize("proof", [DIFFERS, WRONG, NOTHING], ids=["differs", "wrong", "NaN"])
def test_a_tile_that_fails_its_proof_is_left_out_by_name(proof: Proof) -> None:
    tile, own, (told,) = chosen({}, {FAST: proof})
    assert (tile, own) == (SLOW, GOOD)
    assert told.startswith(f"  {cut_of(asdict(FAST))} is left out: ")
    assert f"{proof.differing} of 200 repeats differ" in told
    assert chosen({}, {FAST: proof, SLOW: proof})[:2] == (LIBRARY, None)


def test_a_tile_with_a_race_in_another_use_is_not_even_repeated() -> None:
    tile, own, (told,) = chosen({FAST: "races: in convolution"}, {FAST: GOOD})
    assert (tile, own) == (SLOW, GOOD)
    assert "left out: races: in convolution" in told


def test_a_library_that_is_faster_needs_no_proof() -> None:
    assert chosen({}, {}, {LIBRARY: 5.0, FAST: 10.0}) == (LIBRARY, None, [])
    assert chosen({}, {}, {LIBRARY: 5.0}) == (LIBRARY, None, [])


def test_a_tile_with_a_race_is_not_timed(capsys: pytest.CaptureFixture[str]) -> None:
    verdicts = {make_of(LINEAR, FAST): "races: it does", make_of(LINEAR, SLOW): ""}
    assert choosing.clear_tiles(LINEAR, [FAST, SLOW], verdicts) == [SLOW]
    told = capsys.readouterr().err
    cut = cut_of(asdict(FAST))
    assert told == (
        "linear 512x5120-1280: 1 of 2 tiles are not timed, the first of them "
        f"{cut} races: it does\n"
    )


class NothingRaces:
    """Compilers whose every kernel is clear, but one in another use than the timed one."""

    racing = Tile(columns=256)

    def __init__(self) -> None:
        self.asked: list[Tile] = []

    def check(self, work: Iterable[tuple[Job, Sequence[Tile]]]) -> dict[object, str]:
        every = [(job, tile) for job, tiles in work for tile in tiles]
        self.asked += [tile for _, tile in every]
        return {make_of(job, tile): "" for job, tile in every}

    def of(self, job: Job, tile: Tile) -> str:
        return "races: it does" if tile == self.racing else ""


def test_each_operation_is_timed_then_checked_and_proved_until_one_tile_is_left(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    us = {LIBRARY: 40.0, NothingRaces.racing: 10.0, FAST: 20.0, SLOW: 30.0, Tile(columns=16): 1.0}
    proofs = {FAST: WRONG, SLOW: GOOD}
    monkeypatch.setattr(choosing, "operation", lambda job, device: None)
    monkeypatch.setattr(choosing, "try_tile", lambda _, tile: "too large" * (tile.columns == 16))
    monkeypatch.setattr(choosing, "time_us", lambda _, tile: us[tile])
    monkeypatch.setattr(choosing, "times_us", lambda _, tiles: {one: us[one] for one in tiles})
    monkeypatch.setattr(choosing, "prove", lambda job, tile, device: proofs[tile])
    compilers: Any = NothingRaces()
    tiles = [tile for tile in us if not tile.library]
    found = choosing.tune([LINEAR, GEGLU], inf, lambda _: tiles, compilers, {"card": "a card"})
    assert set(found) == {LINEAR.key, GEGLU.key}
    one = found[LINEAR.key]
    assert Tile(**one["tile"]) == SLOW
    assert (one["us"], one["library_us"], one["own_us"]) == (30.0, 40.0, 10.0)
    assert one["proof"] == {**GOOD.fields(), "card": "a card"}
    assert compilers.asked.count(NothingRaces.racing) > 2  # with its other uses
    told = capsys.readouterr().out
    assert told.count("is left out: races: it does") == 2
    assert told.count("is left out: 0 of 200 repeats differ") == 2
    assert choosing.tune([LINEAR], 0, lambda _: tiles, compilers, {}) == {}


def test_only_the_fastest_tiles_are_timed_in_full() -> None:
    tiles = [Tile(columns=16 * number) for number in range(1, 21)]
    rounds: list[tuple[int, int]] = []

    def time_one(compute: object, tile: Tile, times: int) -> float:
        rounds.append((tile.columns, times))
        return float(tile.columns)

    found = timing.times_us(lambda *_: None, tiles, time_one)
    assert list(found) == tiles
    again = [columns for columns, times in rounds if times > 1]
    assert again == [16 * number for number in range(1, timing.MOST_TWICE + 1)]


def test_memory_is_full_of_nan_for_a_proof() -> None:
    was = torch.are_deterministic_algorithms_enabled()
    with repeats.poisoned_memory():
        for made in (torch.empty(99), torch.ones(2).half().new_empty((3, 5))):
            assert bool(made.isnan().all())
    assert torch.are_deterministic_algorithms_enabled() == was


X = torch.linspace(-1, 1, 64, dtype=torch.float16)


def unsteady(every: int) -> Callable[[], torch.Tensor]:
    """A result of which one bit differs every so many times."""
    times = iter(range(10**6))

    def compute() -> torch.Tensor:
        result = X.clone()
        if next(times) % every == every - 1:
            result[3] = torch.nextafter(result[3], result[4])
        return result

    return compute


def test_every_repeat_that_differs_in_a_bit_is_counted() -> None:
    assert repeats.differing_repeats(X.clone, X, 25, beside=False) == 0
    assert repeats.differing_repeats(unsteady(10), X, 25, beside=False) == 2
    assert repeats.differing_repeats(lambda: X.new_empty(64), X, 4, beside=True) == 4


@pytest.mark.parametrize(
    ("tile", "passes"), [("right", True), ("half written", False), ("noisy", False)]
)
def test_a_proof_finds_what_is_wrong(
    tile: str, passes: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = job_of_key("linear 24x64-48")

    def computed(job: Job, operands: list[torch.Tensor], tile_or_library: Tile) -> torch.Tensor:
        x, weight, bias, _, residual = operands
        right = x @ weight.T + bias + residual
        if tile_or_library.library or tile == "right":
            return right
        if tile == "noisy":
            return right + torch.randn_like(right) * 1e-3
        out = torch.empty_like(right)
        out[:20] = right[:20]
        return out

    monkeypatch.setattr(repeats, "computed", computed)
    proof = repeats.prove(job, Tile(), torch.device("cpu"), 16)
    assert proof.repeats == 16
    assert proof.passed == passes
    assert (proof.differing > 8) == (tile == "noisy")
    assert 0 < proof.library_error < 1e-3


def test_operands_of_attention_are_parts_of_one_tensor() -> None:
    q, k, v = random_operands(job_of_key("attention 1x8x8-2x40"), torch.device("cpu"))
    assert q is not None
    assert k is not None
    assert v is not None
    assert q.untyped_storage().data_ptr() == v.untyped_storage().data_ptr()
    assert q.shape == k.shape == (1, 8, 80)
    assert {one.stride(1) for one in (q, k, v)} == {240}


def test_the_table_keeps_what_it_had_and_says_how_new_tiles_were_proved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "a card")
    path = tmp_path / "tuned.json"
    numbers = dict.fromkeys(("us", "library_us", "own_us", "tflops"), 1.0)
    proof = {**GOOD.fields(), "card": "a card", "triton": "3.6.0"}
    a, b, c = (f"linear {rows}x64-64" for rows in (64, 128, 256))
    before = {"tiles": {a: {}, b: {}}, "measured": {a: {}}, "proof": {a: 1, b: 2}}
    found = {
        b: {"tile": {"library": True}, "proof": None, **numbers},
        c: {"tile": {"columns": 128}, "proof": proof, **numbers},
    }
    write_table(path, before, found)
    table = read_table(path)
    assert table["tiles"] == {a: {}, b: {"library": True}, c: {"columns": 128}}
    assert table["proof"] == {a: 1, c: proof}
    assert set(table["measured"]) == {a, b, c}
