"""Tiles by rule and measured ones are such that the kernels can be launched with them."""

from __future__ import annotations

import json
import os
import re
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sdopt.engine import cards as engine_cards
from sdopt.engine.cards import A100, H100, KNOWN, Card
from sdopt.engine.rules import (
    MOST_KEYS,
    ruled_attention,
    ruled_convolution,
    ruled_product,
    ruled_specialized_convolution,
)
from sdopt.engine.tables import (
    attention_tile,
    convolution_tile,
    described,
    noted,
    own_table,
    product_tile,
    shipped_table,
    tuned,
)
from sdopt.engine.tiles import FLOAT8, LIBRARY, Tile
from sdopt.errors import BrokenFileError, SdoptError
from sdopt.tuning.candidates import shared_bytes
from sdopt.tuning.jobs import CONVOLUTIONS, PRODUCTS
from sdopt.util.hardware import POINTERS, pointers_forced
from sdopt.util.places import TILES

side, channels = st.integers(1, 300), st.integers(8, 2560)
cards = st.sampled_from([*KNOWN.values()])
UNSPECIALIZED = replace(H100, specialized=False)


def is_power(number: int) -> bool:
    return number > 0 and number & (number - 1) == 0


def check(tile: Tile) -> None:
    sides = (tile.images, tile.height, tile.width, tile.columns, tile.depth)
    assert all(is_power(one) and one <= 256 for one in sides), tile
    assert tile.extra == 0 or is_power(tile.extra)
    assert tile.pixels >= 64
    assert tile.splits >= 1
    assert is_power(tile.warps)


def check_specialized(tile: Tile, *, float8: bool = False) -> None:
    """Two consumers of 64 or 128 pixels, whose stages fit into the shared memory.

    A row of a box is 128 bytes: of 64 entries in float16, of 128 in float8.
    """
    check(replace(tile, specialized=False, stationary=False))
    assert tile.pixels in (64, 128)
    assert tile.depth == (128 if float8 else 64)
    if tile.stationary:
        return
    entries = 2 * tile.pixels + tile.columns + tile.extra
    assert 128 * entries * tile.stages <= H100.shared_bytes, tile


def check_attention(key: str, tile: Tile) -> None:
    """Of three roles: two or three shares of the tokens, keys that are whole blocks of a tile's."""
    if tile.library:
        return
    check(replace(tile, specialized=False))
    if not tile.specialized:
        return
    shapes, heads = key.split()[1].rsplit("-", 1)
    keys, size = int(shapes.split("x")[-1]), int(heads.split("x")[-1])
    assert tile.warps in (8, 12)
    assert tile.height * 4 // tile.warps in (64, 128)
    assert keys % (tile.columns * (1 + tile.ahead)) == 0
    assert tile.depth + tile.extra >= size


@given(
    *(st.integers(1, 16), side, side, st.integers(1, 40), st.integers(128, 2560)),
    st.sampled_from(["conv", "plain", "upsample", "downsample"]),
)
def test_a_ruled_specialized_convolution(
    i: int, h: int, w: int, blocks: int, n: int, kind: str
) -> None:
    sizes = (i, 2 * h, 2 * w, 64 * blocks) if kind == "downsample" else (i, h, w, 64 * blocks)
    tile = ruled_specialized_convolution(sizes, n, kind, H100)
    assert tile.specialized
    check_specialized(tile)
    assert kind != "upsample" or tile.splits == 1


def test_only_a_device_that_takes_them_is_given_specialized_tiles() -> None:
    stored = {key: tile for key, tile in tuned().items() if tile.specialized}
    kinds = {key.split()[0] for key in stored}
    assert {"conv", "plain", "upsample", "downsample", "attention", "geglu"} <= kinds
    for key in stored:
        shape, n = key.split()[1].rsplit("-", 1)
        if key.startswith("attention"):
            tokens, heads = (int(one) for one in shape.split("x")[1:]), map(int, n.split("x"))
            sizes = (int(shape.split("x")[0]), *tokens)
            given = (sizes, *heads)
            assert attention_tile(*given, H100) == stored[key]  # type: ignore[arg-type]
            assert not attention_tile(*given, UNSPECIALIZED).specialized  # type: ignore[arg-type]
            continue
        sizes = tuple(map(int, shape.split("x")))
        chosen = convolution_tile if len(sizes) == 4 else product_tile
        kind = key.split()[0]
        assert chosen(*_given(sizes), int(n), kind, H100) == stored[key]  # type: ignore[operator]
        assert not chosen(*_given(sizes), int(n), kind, UNSPECIALIZED).specialized  # type: ignore[operator]
    unknown = (1, 24, 40, 320)
    assert convolution_tile(unknown, 640, "conv", H100).specialized
    assert not convolution_tile(unknown, 640, "conv", UNSPECIALIZED).specialized
    assert not convolution_tile((1, 24, 40, 24), 640, "conv", H100).specialized


def _given(sizes: tuple[int, ...]) -> tuple[object, ...]:
    """As the choosers take them: the sizes of an image together, those of a matrix apart."""
    return (sizes,) if len(sizes) == 4 else sizes


def check_for(tile: Tile, card: Card) -> None:
    check(tile)
    assert tile.pointers == card.pointers
    assert shared_bytes(tile) <= card.shared_bytes


@given(
    st.integers(1, 16),
    *(side, side, channels, channels),
    st.sampled_from(["conv", "upsample"]),
    cards,
)
def test_a_ruled_convolution(i: int, h: int, w: int, c: int, n: int, kind: str, card: Card) -> None:
    tile = ruled_convolution((i, h, w, c), n, kind, card)
    check_for(tile, card)
    assert kind == "conv" or tile.splits == 1


@given(
    *(st.integers(1, 20000), channels, channels),
    st.sampled_from(["linear", "joined", "geglu"]),
    cards,
)
def test_a_ruled_product(m: int, k: int, n: int, kind: str, card: Card) -> None:
    tile = ruled_product(m, k, n, kind, card)
    check_for(tile, card)
    assert shared_bytes(tile, gated=kind == "geglu") <= card.shared_bytes
    assert kind != "geglu" or tile.splits == 1


@pytest.mark.parametrize("key", tuned())
def test_a_measured_tile(key: str) -> None:
    tile = tuned()[key]
    float8 = key.startswith(FLOAT8)
    assert tile.specialized or not float8
    if key.startswith("attention"):
        check_attention(key, tile)
    elif tile.specialized:
        check_specialized(tile, float8=float8)
    elif not tile.library:
        check(tile)
    kind = key.removeprefix(FLOAT8).split()[0]
    assert kind in (*CONVOLUTIONS, *PRODUCTS, "geglu", "attention")
    assert tile.splits == 1 or kind not in ("upsample", "geglu")
    if tile.stationary:
        rows, n = key.split()[1].split("-")
        assert kind == "geglu"
        assert tile.keeps(int(rows.split("x")[1]), int(n), H100.shared_bytes)


KEEPING = Tile(
    height=64, width=1, columns=128, extra=128, stages=7, specialized=True, stationary=True
)


@pytest.mark.parametrize(
    "wrong", [{"specialized": False}, {"extra": 0}, {"splits": 2}, {"stages": 2}, {"images": 2}]
)
def test_a_stationary_tile_that_no_kernel_takes_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="a stationary tile is specialized"):
        replace(KEEPING, **wrong)


def test_weights_stay_where_whole_blocks_of_them_fit() -> None:
    room = H100.shared_bytes
    assert KEEPING.keeps(320, 1280, room)
    assert not KEEPING.keeps(320, 1280, room // 2)
    assert not KEEPING.keeps(328, 1280, room)
    assert not KEEPING.keeps(320, 1344, room)
    assert not KEEPING.keeps(384, 1280, room)
    assert not replace(KEEPING, stationary=False).keeps(320, 1280, room)


def test_a_stored_stationary_tile_is_used_for_geglu_that_it_keeps_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Larger batches too; for anything else it is as if it were not stored."""
    monkeypatch.setenv(TILES, str(tmp_path / "tiles"))
    path = own_table(H100)
    path.parent.mkdir(parents=True)
    keys = ["geglu 64x320-1280", "geglu 64x640-1280", "linear 64x320-1280"]
    keys += ["conv 1x8x8x320-1280"]
    stored = json.loads(json.dumps(asdict(KEEPING)))
    path.write_text(json.dumps({"device": "a card", "tiles": dict.fromkeys(keys, stored)}))
    assert product_tile(64, 320, 1280, "geglu", H100) == KEEPING
    assert product_tile(512, 320, 1280, "geglu", H100) == KEEPING
    assert not product_tile(64, 320, 1280, "geglu", UNSPECIALIZED).stationary
    assert not product_tile(64, 640, 1280, "geglu", H100).stationary
    assert not product_tile(64, 320, 1280, "linear", H100).stationary
    assert not convolution_tile((1, 8, 8, 320), 1280, "conv", H100).stationary


MISFITS = {
    "banana": (Tile(), "'banana' names no operation"),
    "linear 64x64-64": (Tile(height="64"), "height is '64', int is wanted"),  # type: ignore[arg-type]
    "linear 64x64-128": (Tile(columns=-64), "columns is -64, 16 to 256 is wanted"),
    "linear 64x128-64": (Tile(height=48), "height is 48, a power of 2 is wanted"),
    "linear 128x64-64": (Tile(library="no"), "library is 'no', bool is wanted"),  # type: ignore[arg-type]
    "linear 64x64-320": (Tile(splits=100000), "splits is 100000, 1 to 64 is wanted"),
    "geglu 64x96-32": (Tile(splits=2, pointers=True), "geglu has no sum that can be split"),
    "geglu 64x96-64": (Tile(extra=16), "extra is 16: such a tile of GEGLU has 0"),
    "upsample 1x8x8x64-64": (Tile(splits=2), "upsample has no sum that can be split"),
    "float8-conv 1x8x8x64-64": (Tile(), "operands in float8 take a specialized tile"),
    "attention 1x64x64-8x40": (Tile(specialized=True), "specialized attention has 8 or 12"),
    "attention 1x64x77-8x40": (Tile(specialized=True, warps=8), "77 keys are no multiple of 64"),
    "attention 1x64x64-8x80": (Tile(specialized=True, warps=8), "more than 64 + 0"),
    "conv 1x8x8x64-64": (Tile(ahead=True), "ahead and polynomial are attention's"),
    "linear foo": (Tile(), "'linear foo': the shape of linear is written ROWSxK-COLUMNS"),
    "linear 0x64-64": (Tile(), "the shape of linear is written ROWSxK-COLUMNS"),
    "linear -5x64-64": (Tile(), "the shape of linear is written ROWSxK-COLUMNS"),
    "linear 64x64x64-64": (Tile(), "the shape of linear is written ROWSxK-COLUMNS"),
    "linear  64x64-64": (Tile(), "the shape of linear is written ROWSxK-COLUMNS"),
    "linear \u0662x64-64": (Tile(), "the shape of linear is written ROWSxK-COLUMNS"),
    "conv 2x64x320-320": (Tile(), "written IMAGESxHEIGHTxWIDTHxCHANNELS-COLUMNS"),
    "attention 2x64x64-0x40": (Tile(), "written IMAGESxTOKENSxKEYS-HEADSxSIZE"),
    "float8-attention 2x64x64-8x40": (Tile(), "attention is not computed in float8"),
    "linear 96x64-64": (Tile(warps=3), "warps is 3, a power of 2 is wanted"),
    "linear 32x64-64": (Tile(height=128, width=16), "2048 pixels by 64 + 0 columns"),
    "linear 16x64-64": (Tile(height=256, width=1, columns=256), "32768 sums at most"),
}


@pytest.mark.parametrize("key", MISFITS)
def test_a_table_with_a_tile_that_its_kernel_would_compute_wrong_is_refused_by_name(
    key: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(TILES, str(tmp_path / "tiles"))
    tile, reason = MISFITS[key]
    path = own_table(H100)
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps({"device": "a card", "tiles": {key: asdict(tile)}}))
    with pytest.raises(BrokenFileError, match=re.escape(reason)) as told:
        tuned()
    assert str(path) in str(told.value)


def test_more_images_use_the_tile_of_fewer_and_split_it_less() -> None:
    measured = tuned()["conv 2x16x16x1280-1280"]
    assert measured.splits > 1
    assert convolution_tile((2, 16, 16, 1280), 1280, "conv", H100) == measured
    of_two = tuned()["conv 4x16x16x1280-1280"]
    for times in (2, 4, 8):
        found = convolution_tile((4 * times, 16, 16, 1280), 1280, "conv", H100)
        assert found == replace(of_two, splits=max(1, of_two.splits // times))
    unknown = (6, 16, 16, 1280)
    assert convolution_tile(unknown, 1280, "conv", UNSPECIALIZED) == ruled_convolution(
        unknown, 1280, "conv", UNSPECIALIZED
    )


def test_a_product_with_a_residual_has_its_own_tile_or_that_of_one_without(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    linear, added = Tile(columns=64), Tile(columns=128)
    table = {"linear 512x1280-1280": linear, "added 256x1280-1280": added}
    monkeypatch.setattr("sdopt.engine.tables.tuned", lambda card: table)
    assert product_tile(512, 1280, 1280, "linear", H100) == linear
    # Its own of fewer rows comes after one of as many rows.
    assert product_tile(512, 1280, 1280, "added", H100) == linear
    assert product_tile(256, 1280, 1280, "added", H100) == added
    assert product_tile(1024, 1280, 1280, "added", H100) == linear


def test_a_convolution_without_bias_has_its_own_tile_or_that_of_one_with() -> None:
    with_bias = tuned()["conv 2x64x64x320-4"]
    assert "plain 2x64x64x320-4" not in tuned()
    assert convolution_tile((2, 64, 64, 320), 4, "plain", H100) == with_bias


@given(st.integers(1, 5000), st.sampled_from([8, 40, 64, 80, 160]), cards)
def test_a_ruled_attention(keys: int, size: int, card: Card) -> None:
    tile = ruled_attention(keys, size, card)
    assert tile.library == (keys > MOST_KEYS)
    assert is_power(tile.columns)
    if not tile.library:
        assert tile.columns <= (128 if size <= 128 else 64)


@pytest.mark.parametrize("name", [*KNOWN])
def test_a_known_card_is_what_its_properties_make_it(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = KNOWN[name]
    major, minor = divmod(known.capability, 10)
    found = SimpleNamespace(
        name=known.name, major=major, minor=minor, multi_processor_count=known.multiprocessors,
        shared_memory_per_block_optin=known.shared_bytes,
    )  # fmt: skip
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: found)
    monkeypatch.setattr(engine_cards, "_gluon_compiles", lambda: True)
    made = engine_cards._card_of.__wrapped__(torch.device("cuda"), "through pointers" in name)
    assert made == known


def test_a_consumer_card_of_blackwell_reads_as_an_rtx_4090_does() -> None:
    """Its shared memory is not that of a B200, for which tiles through descriptors are made."""
    card = KNOWN["RTX 5090"]
    assert (card.family, card.dependent, card.specialized) == ("sm_120", False, False)
    assert ruled_product(8192, 320, 320, "linear", card).pointers


def test_more_images_use_the_attention_of_fewer() -> None:
    assert attention_tile((2, 4096, 5000), 8, 40, H100) == LIBRARY
    keys = [key for key in tuned() if key.startswith("attention 2x")]
    for key in keys:
        sizes, heads = key.split()[1].split("-")
        tokens, number = int(sizes.split("x")[1]), int(sizes.split("x")[2])
        count, size = map(int, heads.split("x"))
        fewer = (f"attention {images}x{sizes.partition('x')[2]}-{heads}" for images in (8, 4, 2))
        expected = next(tuned()[name] for name in fewer if name in tuned())
        assert attention_tile((8, tokens, number), count, size, H100) == expected


def test_more_rows_use_the_tile_of_fewer() -> None:
    measured = tuned()["linear 512x5120-1280"]
    assert measured.library
    assert product_tile(4096, 5120, 1280, "linear", H100) == measured
    assert product_tile(16384, 5120, 1280, "linear", H100) == ruled_product(
        16384, 5120, 1280, "linear", H100
    )


def test_a_card_without_a_table_is_cut_by_its_rule_alone() -> None:
    assert tuned(A100) == {}
    sizes = (2, 64, 64, 320)
    assert convolution_tile(sizes, 320, "conv", A100) == ruled_convolution(sizes, 320, "conv", A100)
    assert convolution_tile(sizes, 320, "conv", A100).columns == 128
    small = (2, 8, 8, 1280)
    assert convolution_tile(small, 1280, "conv", A100).columns == 64
    assert "cut by rule" in described(A100)
    assert "sdopt tune" in described(A100)


def test_a_table_of_another_card_says_so() -> None:
    assert "measured on NVIDIA H200" in described(H100)
    assert "on such a card" in described(replace(H100, name="NVIDIA H200"))
    assert tuned(H100.through_pointers()) == {}


def test_own_tables_lie_in_the_cache_and_tests_never_read_those(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert not own_table(H100).is_relative_to(Path.home() / ".cache")
    assert not own_table(H100).exists()
    monkeypatch.delenv(TILES)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert own_table(A100) == tmp_path / "sdopt" / "tiles" / "sm_80-108.json"


def test_a_history_says_which_table_was_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert re.fullmatch(r"sm_90\.json [0-9a-f]{8}", noted(H100))
    assert noted(A100) == "by rule"
    monkeypatch.setenv(TILES, str(tmp_path))
    usual = asdict(Tile(pointers=True))
    wide = {"columns": 128, "pointers": True}
    shapes = {"linear 64x64-64": wide, "linear 8x64-64": usual}

    def write(card: Card, tiles: dict[str, Any], **measured: Any) -> str:
        # Another name each time: tables are read once a process.
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        monkeypatch.setenv(TILES, str(folder))
        folder.mkdir()
        table = {"device": card.name, "tiles": tiles, "measured": measured}
        own_table(card).write_text(json.dumps(table))
        return noted(card)

    first = write(A100, shapes)
    assert re.fullmatch(r"own sm_80-108\.json [0-9a-f]{8}", first)
    # How it was measured, what is the default anyway and the order are not the tiles.
    reordered = {"linear 8x64-64": {"pointers": True}, "linear 64x64-64": {**usual, **wide}}
    assert write(A100, reordered, us=1.0) == first
    assert write(A100, {**shapes, "linear 64x64-64": {**wide, "columns": 64}}) != first


def test_a_table_of_ones_own_comes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(TILES, str(tmp_path / "tiles"))
    path = own_table(A100)
    path.parent.mkdir(parents=True)
    tile = replace(ruled_product(64, 64, 64, "linear", A100), stages=4)
    tiles = {"linear 64x64-64": asdict(tile)}
    path.write_text(json.dumps({"device": A100.name, "tiles": tiles, "measured": {}}))
    assert product_tile(64, 64, 64, "linear", A100) == tile
    assert described(A100).endswith(f"tiles of {path}")
    assert tuned(KNOWN["L4"]) == {}


def test_what_ships_is_used_where_ones_own_table_has_no_tile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who tunes one level, or runs out of time, has no slower kernels for the others."""
    shipped, key = dict(tuned()), "linear 512x5120-1280"
    monkeypatch.setenv(TILES, str(tmp_path))
    tile = replace(shipped[key], stages=shipped[key].stages + 1)
    table = {"device": H100.name, "tiles": {key: asdict(tile)}, "measured": {}}
    own_table(H100).write_text(json.dumps(table))
    assert tuned() == {**shipped, key: tile}
    assert product_tile(512, 5120, 1280, "linear", H100) == tile
    told = f"tiles of {own_table(H100)}, and those that ship where it has none"
    assert described(H100).endswith(told)
    assert noted(H100).startswith("own ")


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("", "Expecting value"),
        ("[]", "it has no 'tiles' by shape"),
        ('{"tiles": {"linear 8x8-8": {"high": 3}}, "device": "x"}', "has no field 'high'"),
        ('{"tiles": {"linear 8x8-8": null}, "device": "x"}', "a tile is an object of fields"),
        ('{"tiles": {}}', "it does not say which 'device' it was measured on"),
        ('{"tiles": {}, "device": 5}', "it does not say which 'device' it was measured on"),
    ],
)
def test_a_table_that_is_none_is_named(
    content: str, reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(TILES, str(tmp_path / "tiles"))
    path = own_table(A100)
    path.parent.mkdir(parents=True)
    path.write_text(content)
    with pytest.raises(BrokenFileError, match=re.escape(f"{path} is no table of tiles")) as told:
        tuned(A100)
    assert reason in str(told.value)


def test_a_pipe_in_the_place_of_a_table_is_refused_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(TILES, str(tmp_path))
    os.mkfifo(own_table(A100))
    with pytest.raises(BrokenFileError, match="it is no plain file"):
        tuned(A100)


def test_a_file_in_the_place_of_the_folder_of_tables_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv(TILES, str(tmp_path / "file"))
    with pytest.raises(SdoptError, match=r"lie in a folder, and .*file is none; set \$SDOPT_TILES"):
        tuned(A100)


@pytest.mark.parametrize(("value", "forced"), [("", False), ("0", False), ("1", True)])
def test_pointers_are_forced_by_1_alone(
    value: str, forced: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(POINTERS, value)
    assert pointers_forced() is forced


def test_another_answer_about_pointers_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(POINTERS, "yes")
    with pytest.raises(SdoptError, match=r"unknown \$SDOPT_POINTERS 'yes'.*choose from: 0, 1"):
        pointers_forced()


def test_the_table_of_a_card_that_reads_otherwise_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A Hopper GPU's, under the name of an A10's own."""
    monkeypatch.setenv(TILES, str(tmp_path))
    path = own_table(KNOWN["A10"])
    path.write_bytes(shipped_table(H100).read_bytes())
    with pytest.raises(BrokenFileError, match="one that reads through descriptors, and this card"):
        tuned(KNOWN["A10"])
