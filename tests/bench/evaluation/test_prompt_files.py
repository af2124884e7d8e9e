"""Prompt files of four kinds; what cannot be read is named with file and line."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from stub_evaluation import SOURCE

from sdopt.bench.evaluation.prompts import read_prompts, scene_prompts
from sdopt.errors import BrokenFileError, SdoptError
from sdopt.miniature.scenes import parse_caption
from sdopt.weights.sources import resolve

TEXTS = ("a cat, sitting", 'a "dog"', "ein Vogel\u2028über dem Haus")


def written(folder: Path, suffix: str, column: str = "prompt") -> Path:
    file = folder / f"prompts{suffix}"
    if suffix == ".txt":
        file.write_text("\n\n".join(TEXTS) + "\n", encoding="utf-8")
    elif suffix == ".jsonl":
        rows = [json.dumps({column: text, "other": 1}, ensure_ascii=False) for text in TEXTS]
        file.write_text("\r\n".join(rows), encoding="utf-8")
    elif suffix == ".csv":
        rows = ['"{}",1'.format(text.replace('"', '""')) for text in TEXTS]
        file.write_text("\n".join([f"\ufeff{column},other", *rows]), encoding="utf-8")
    else:
        pq.write_table(pa.table({"other": [1, 2, 3], column: list(TEXTS)}), file)
    return file


@pytest.mark.parametrize("suffix", [".txt", ".jsonl", ".csv", ".parquet"])
def test_a_file_of_each_kind_holds_the_same_prompts(tmp_path: Path, suffix: str) -> None:
    prompts = read_prompts(written(tmp_path, suffix), SOURCE)
    assert prompts.texts == TEXTS
    assert prompts.origin == f"prompts{suffix}"


@pytest.mark.parametrize("suffix", [".jsonl", ".csv", ".parquet"])
def test_another_column_is_read_and_a_wrong_one_is_named(tmp_path: Path, suffix: str) -> None:
    file = written(tmp_path, suffix, column="caption")
    assert read_prompts(file, SOURCE, "caption").texts == TEXTS
    with pytest.raises(BrokenFileError) as caught:
        read_prompts(file, SOURCE)
    message = str(caught.value)
    assert "the column 'prompt' is missing; the columns are: " in message
    assert "caption" in message
    assert str(file) in message


def test_a_csv_row_may_go_over_several_lines(tmp_path: Path) -> None:
    file = tmp_path / "p.csv"
    file.write_text('prompt\n"one\ntwo"\nthree\n')
    assert read_prompts(file, SOURCE).texts == ("one\ntwo", "three")


@pytest.mark.parametrize(
    ("name", "content", "where"),
    [
        ("p.txt", b"a cat\na \xff dog\n", ":2: cannot be read as UTF-8 text"),
        ("p.jsonl", b'{"prompt": "a"}\n\n{"prompt": \n', ":3: not JSON"),
        ("p.jsonl", b"[1]\n", ":1: not a JSON object"),
        ("p.jsonl", b'{"prompt": 7}\n', ":1: the column 'prompt' is 7, not a string"),
        ("p.jsonl", b'{"prompt": " "}\n', ":1: the prompt is empty"),
        ("p.csv", b'prompt,b\n"a cat"x,1\n', ":2: not CSV"),
        ("p.csv", b"a,prompt\n1,x\n2\n", ":3: 1 field in a row, and 2 in the header (a, prompt);"),
        ("p.csv", b"prompt,b\na cat,1\na dog\n", ":3: 1 field in a row, and 2 in the header"),
        (
            "p.csv",
            b'prompt\n"one\ntwo"\na red star, and a green ring\n',
            ":4: 2 fields in a row, and 1 in the header (prompt); put the prompt in quotes if",
        ),
        ("p.csv", b"a,prompt,b\n1,x,y,2\n", ":2: 4 fields in a row, and 3 in the header"),
        ("p.csv", b"prompt,prompt\nx,y\n", ":1: the column 'prompt' is there 2 times"),
        ("p.parquet", b"PAR1 and no more", " cannot be read as Parquet"),
    ],
)
def test_a_line_that_cannot_be_read_is_named(
    tmp_path: Path, name: str, content: bytes, where: str
) -> None:
    file = tmp_path / name
    file.write_bytes(content)
    with pytest.raises(BrokenFileError) as caught:
        read_prompts(file, SOURCE)
    assert str(caught.value).startswith(f"{file}{where}")


def test_a_row_of_parquet_without_text_is_named(tmp_path: Path) -> None:
    file = tmp_path / "p.parquet"
    pq.write_table(pa.table({"prompt": ["a", None]}), file)
    with pytest.raises(BrokenFileError, match="row 2: prompt is None, not a string"):
        read_prompts(file, SOURCE)


@pytest.mark.parametrize("name", ["p.txt", "p.jsonl", "p.csv"])
@pytest.mark.parametrize("content", ["", "\n \n"])
def test_an_empty_file_is_named(tmp_path: Path, name: str, content: str) -> None:
    file = tmp_path / name
    file.write_text(content)
    with pytest.raises(BrokenFileError, match="holds no prompt"):
        read_prompts(file, SOURCE)


def test_a_file_that_is_not_there_or_of_no_kind_is_named(tmp_path: Path) -> None:
    with pytest.raises(BrokenFileError, match="cannot be read: No such file"):
        read_prompts(tmp_path / "none.txt", SOURCE)
    with pytest.raises(SdoptError, match=r"ends in \.txt, \.jsonl, \.csv, \.parquet, or captions"):
        read_prompts(tmp_path / "p.xlsx", SOURCE)


def test_a_word_that_the_miniature_never_saw_is_named_with_its_line(tmp_path: Path) -> None:
    file = tmp_path / "p.txt"
    file.write_text("a red star at the center on a blue background\na red cat\n")
    with pytest.raises(BrokenFileError, match=r"p\.txt:2: unknown prompt word 'cat'"):
        read_prompts(file, resolve("embedded"))


def test_scenes_are_captions_of_the_miniature_alone() -> None:
    prompts = scene_prompts(20, resolve("embedded"))
    assert len({parse_caption(text) for text in prompts.texts}) == 20
    assert scene_prompts(20, resolve("embedded")).digest == prompts.digest
    with pytest.raises(SdoptError, match="--scenes is for the source 'embedded'"):
        scene_prompts(20, SOURCE)
    for count in (0, 100_000_000):
        with pytest.raises(SdoptError, match=f"--scenes is {count}; give 1 to 100000"):
            scene_prompts(count, resolve("embedded"))
