"""A part of another level or other settings, or with impossible numbers, is named, not merged."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import stub_evaluation as stub

from sdopt.bench.evaluation import evaluate as module
from sdopt.bench.evaluation.pixels import to_png
from sdopt.errors import BrokenFileError
from sdopt.levels import get_level

pytestmark = pytest.mark.fast
COUNT = 10
Change = Callable[[pa.Table], pa.Table]


@pytest.fixture
def out(tmp_path: Path) -> Path:
    stub.run(stub.of(COUNT), tmp_path / "out")
    return tmp_path / "out"


def part(out: Path, level: str = "turbo", block: int = 1) -> Path:
    return out / "parts" / level / f"{block:08}.parquet"


def refused(out: Path, **settings: Any) -> str:
    """What both the start of another run and the merge say."""
    evaluation = stub.of(COUNT, **settings)
    with pytest.raises(BrokenFileError) as caught:
        stub.run(evaluation, out)
    return str(caught.value)


def merged(out: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """What the merge says of a part that came while the work was done."""
    monkeypatch.setattr(module, "missing_blocks", lambda place, evaluation, made_with: {})
    monkeypatch.setattr(module.Worker, "work", lambda self, missing, ours, batch: None)
    return refused(out)


def changed(file: Path, change: Change) -> None:
    table = pq.read_table(file)
    pq.write_table(change(table), file)


def with_column(name: str, values: list[Any]) -> Change:
    def change(table: pa.Table) -> pa.Table:
        return table.set_column(table.column_names.index(name), name, pa.array(values))

    return change


def test_a_part_of_another_level_is_named_at_the_start_and_at_the_merge(
    out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copy(part(out, "hoisted"), part(out))
    message = refused(out)
    assert f"{part(out)} is of another evaluation: it was made with level hoisted" in message
    assert "(here turbo); delete it and run the same command again" in message
    assert merged(out, monkeypatch) == message
    monkeypatch.undo()
    part(out).unlink()
    stub.run(stub.of(COUNT), out)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"steps": 5}, r"hoisted: steps 5 \(here 20\), turbo: steps 5 \(here 20\)"),
        ({"guidance": 2.0}, r"guidance_scale 2.0 \(here 1.0\)"),
    ],
)
def test_a_part_of_other_settings_is_named_with_both_values(
    out: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, settings: Any, words: str
) -> None:
    stub.run(stub.of(COUNT, **settings), tmp_path / "other")
    shutil.copy(part(tmp_path / "other"), part(out))
    assert re.search(f"made with {words}; delete it", refused(out))
    assert re.search(f"made with {words}; delete it", merged(out, monkeypatch))


def test_a_part_of_other_prompts_noise_or_packages_is_named(out: Path) -> None:
    def edit(table: pa.Table) -> pa.Table:
        told = json.loads(table.schema.metadata[b"sdopt_made_with"])
        told |= {"prompts": "f" * 64, "noise": "of the device", "torch": "2.11.0"}
        return table.replace_schema_metadata({b"sdopt_made_with": json.dumps(told)})

    changed(part(out, "hoisted"), edit)
    message = refused(out)
    for words in ("prompts ffffffffffff (here ", "noise of the devi", "torch 2.11.0 (here "):
        assert words in message


@pytest.mark.parametrize("text", [b"{", b"[]", b"[" * 100_000])
def test_metadata_that_is_broken_is_named(out: Path, text: bytes) -> None:
    changed(part(out), lambda table: table.replace_schema_metadata({b"sdopt_made_with": text}))
    assert f"{part(out)} has broken metadata" in refused(out)


def test_an_older_part_is_named_with_the_next_step(out: Path) -> None:
    changed(part(out), lambda table: table.replace_schema_metadata(None))
    message = refused(out)
    assert f"{part(out)} does not say what it was made with: an older sdopt wrote it" in message
    assert message.endswith("or name another --out to keep it")


def test_a_short_part_is_named_and_made_anew_once_it_is_gone(out: Path) -> None:
    changed(part(out), lambda table: table.slice(0, 3))
    message = refused(out)
    assert f"{part(out)} holds 3 of 4 prompts, and by its name it holds prompts 4 to 7" in message
    assert "delete it and run the same command again: that part alone is made anew" in message
    part(out).unlink()
    made: list[int] = []
    stub.run(stub.of(COUNT), out, stub.images(lambda level, request: made.append(request.seed)))
    assert made == [4, 5, 6, 7]


def test_swapped_names_are_told(out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one, two = part(out, block=0), part(out, block=1)
    content = one.read_bytes()
    one.write_bytes(two.read_bytes())
    two.write_bytes(content)
    words = f"{one} holds prompt 4, and by its name it holds prompts 0 to 3, each once"
    assert words in refused(out)
    assert words in merged(out, monkeypatch)


@pytest.mark.parametrize(
    ("column", "values", "words"),
    [
        ("ssim_cost", [0.5, 1.5, 0.5, 0.5], "ssim_cost of prompt 5 is 1.5, and it can only be -1 "),
        ("psnr_cost_db", [-1.0, 9, 9, 9], "psnr_cost_db of prompt 4 is -1, and it can only be 0 "),
        ("ssim_cost", [0.5, 0.5, float("inf"), 0.5], "ssim_cost of prompt 6 is inf, and it can"),
        ("ssim_cost", [0.5, 0.5, 0.5, float("nan")], "ssim_cost of prompt 7 is not a number"),
        ("ssim_cost", [0.5, 0.5, None, 0.5], "ssim_cost of prompt 6 is not a number (NaN)"),
        ("ssim_cost", ["a", "b", "c", "d"], "has 'a' in the column ssim_cost of prompt 4, not num"),
        ("fault", [1, 2, 3, 4], "has 1 in the column fault of prompt 4, not text"),
        ("fault", ["", None, "", ""], "has nothing in the column fault of prompt 5, not text"),
        ("generate_s", ["a"] * 4, "has 'a' in the column generate_s of prompt 4, not numbers"),
    ],
)
def test_a_number_that_cannot_be_is_named_with_index_and_column(
    out: Path, column: str, values: list[Any], words: str
) -> None:
    changed(part(out), with_column(column, values))
    message = refused(out)
    assert message.startswith(str(part(out)))
    assert words in message


@pytest.mark.parametrize(
    ("values", "words"),
    [
        (["4", "5", "6", "7"], "has '4' in the column index in row 0, not integers"),
        ([4, None, 6, 7], "has nothing in the column index in row 1, not integers"),
    ],
)
def test_indices_that_are_none_are_named(out: Path, values: list[Any], words: str) -> None:
    changed(part(out), with_column("index", values))
    assert words in refused(out)


def test_a_part_without_its_likeness_is_named(out: Path) -> None:
    changed(part(out), lambda table: table.drop_columns(["ssim_cost"]))
    assert "ssim_cost of prompt 4 is not a number (NaN)" in refused(out)


@pytest.mark.parametrize("level", ["hoisted", "turbo"])
def test_a_worthless_image_may_lack_its_scores(tmp_path: Path, level: str) -> None:
    class Broken:
        def __init__(self, of: Any) -> None:
            self.of = of

        def __enter__(self) -> Any:
            def generate(requests: Any) -> Any:
                images = np.stack([stub.image(self.of, request) for request in requests])
                if self.of.name == level:
                    images[[request.seed == 7 for request in requests]] = 0
                return images

            return generate

        def __exit__(self, *_: Any) -> None:
            """Nothing was held."""

    for _ in range(2):
        summary, _ = stub.run(stub.of(COUNT), tmp_path, Broken)
        assert summary["levels"]["turbo"]["scores"]["ssim_cost"]["count"] == COUNT - 1
    assert get_level(level).name in summary["levels"]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('{"levels": {"hoisted": 3}}', "says 3 of the level hoisted, not its fields"),
        ('{"levels": [1]}', "is not what an evaluation wrote: it names no levels"),
        ("[]", "is not what an evaluation wrote: it names no levels"),
        ("{", "is not JSON"),
        ("[" * 100_000, "is not JSON"),
    ],
)
def test_a_run_that_is_none_is_named(out: Path, text: str, words: str) -> None:
    (out / "run.json").write_text(text)
    message = refused(out)
    assert message.startswith(f"{out}/run.json {words}")
    assert message.endswith("put back what was there, or name another --out")


def with_images(change: Callable[[bytes], bytes]) -> Change:
    def changed_images(table: pa.Table) -> pa.Table:
        images = [change(one) for one in table.column("png").to_pylist()]
        column = pa.array(images, pa.binary())
        return table.set_column(table.column_names.index("png"), "png", column)

    return changed_images


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda png: png[:200], "its PNG cannot be decoded"),
        (lambda png: b"no image", "its PNG is no PNG file"),
        (lambda png: b"", "its PNG cannot be decoded: it is empty"),
    ],
)
@pytest.mark.parametrize("level", ["hoisted", "turbo"])
def test_a_broken_image_is_named_with_file_and_prompt(
    out: Path, level: str, change: Callable[[bytes], bytes], words: str
) -> None:
    changed(part(out, level, block=0), with_images(change))
    message = refused(out)  # a worst prompt's sheet needs it
    assert re.match(f"{part(out, level, block=0)} has a broken image of prompt [0-3]: ", message)
    assert words in message
    assert message.endswith("that part alone is made anew")


def test_a_broken_image_of_the_reference_is_named_when_a_level_is_compared(out: Path) -> None:
    changed(part(out, "hoisted", block=2), with_images(lambda png: png[:200]))
    shutil.rmtree(out / "parts" / "turbo")
    file = part(out, "hoisted", block=2)
    assert refused(out).startswith(f"{file} has a broken image of prompt 8: its PNG cannot be")
    other = to_png(np.zeros((8, 8, 3), np.uint8))
    changed(file, with_images(lambda png: other))
    assert "prompt 8: its PNG is of shape (8, 8, 3), not (16, 16, 3)" in refused(out)
