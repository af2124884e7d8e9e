"""The prompts of an evaluation: a file of one of four kinds, the shipped captions, or scenes."""

from __future__ import annotations

import csv
import hashlib
import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from sdopt.errors import BrokenFileError, SdoptError
from sdopt.miniature import CAPTIONS
from sdopt.miniature.scenes import held_out_scenes
from sdopt.util.files import cause
from sdopt.weights.sources import Source

CAPTIONS_NAME = "captions"
"""Names the 500 captions that are shipped, where a file is asked for."""
MOST_SCENES = 100_000
"""Drawing them takes 1.2 GiB; more are hardly others."""
Lines = Iterator[tuple[str, str]]
"""Where each text stands, "file:3", and the text."""


@dataclass(frozen=True, kw_only=True)
class Prompts:
    """What is generated: a prompt's place is its index, on which alone its seed depends."""

    texts: tuple[str, ...]
    origin: str

    @property
    def digest(self) -> str:
        """Tells these prompts from all others, in this order."""
        return hashlib.sha256(json.dumps(self.texts).encode()).hexdigest()


def scene_prompts(count: int, source: Source) -> Prompts:
    """Captions of scenes that the miniature's training never saw. Raises SdoptError elsewhere."""
    if not source.is_embedded:
        raise SdoptError(
            f"--scenes is for the source 'embedded', this one is {source.name!r}; give --prompts"
        )
    if not 1 <= count <= MOST_SCENES:
        raise SdoptError(f"--scenes is {count}; give 1 to {MOST_SCENES}")
    captions = tuple(scene.caption() for scene in held_out_scenes(count))
    return Prompts(texts=captions, origin=f"{count} held-out scenes")


def read_prompts(file: Path, source: Source, column: str = "prompt") -> Prompts:
    """The prompts of a .txt, .jsonl, .csv or .parquet file, or of the shipped captions.

    Raises BrokenFileError naming file and line for what cannot be read or generated.
    """
    if str(file) == CAPTIONS_NAME:
        file = CAPTIONS
    if file.suffix not in READERS:
        kinds = ", ".join(READERS)
        raise SdoptError(
            f"--prompts is {str(file)!r}; give a file whose name ends in {kinds}, or "
            f"{CAPTIONS_NAME} for the shipped ones"
        )
    texts = []
    for where, text in READERS[file.suffix](file, column):
        _check(where, text, source)
        texts.append(text.strip())
    if not texts:
        raise BrokenFileError(f"{file} holds no prompt; give a file with one or more")
    return Prompts(texts=tuple(texts), origin=file.name)


def _check(where: str, text: str, source: Source) -> None:
    if not text.strip():
        raise BrokenFileError(f"{where}: the prompt is empty; write one, or take the line out")
    try:
        source.check_prompt(text)
    except SdoptError as error:
        raise BrokenFileError(f"{where}: {error}") from error


def _lines(file: Path) -> Lines:
    """The lines of a text file that hold anything; each is decoded alone, to be named."""
    try:
        content = file.read_bytes()
    except OSError as error:
        raise BrokenFileError(f"{file} cannot be read: {cause(error)}; name another") from error
    # Not splitlines(): a JSON string may hold U+2028 and other line separators.
    for number, line in enumerate(content.removeprefix(b"\xef\xbb\xbf").split(b"\n"), start=1):
        where = f"{file}:{number}"
        try:
            text = line.decode("utf-8")
        except UnicodeDecodeError as error:
            raise BrokenFileError(
                f"{where}: cannot be read as UTF-8 text: {error}; save the file as UTF-8"
            ) from error
        if text.strip():
            yield where, text.rstrip("\r")


def _of_text(file: Path, column: str) -> Lines:
    return _lines(file)


def _of_json(file: Path, column: str) -> Lines:
    for where, line in _lines(file):
        try:
            row = json.loads(line)
        except ValueError as error:
            what = getattr(error, "msg", error)
            raise BrokenFileError(
                f"{where}: not JSON: {what}; give one JSON object a line"
            ) from error
        if not isinstance(row, dict):
            raise BrokenFileError(f"{where}: not a JSON object; give one a line")
        if not isinstance(row.get(column), str):
            what = f"is {row[column]!r}, not a string" if column in row else "is missing"
            raise BrokenFileError(_wrong_column(where, column, what, row))
        yield where, row[column]


def _of_csv(file: Path, column: str) -> Lines:
    lines = _numbered(_lines(file))
    reader = csv.reader((text + "\n" for text in lines), strict=True)
    try:
        header = next(reader, None)
        if header is None:
            return
        if header.count(column) != 1:
            what = f"is there {header.count(column)} times" if column in header else "is missing"
            raise BrokenFileError(_wrong_column(f"{file}:1", column, what, header))
        for row in reader:
            if len(row) != len(header):
                raise BrokenFileError(_wrong_row(lines.where, row, header))
            yield lines.where, row[header.index(column)]
    except csv.Error as error:
        raise BrokenFileError(f"{lines.where}: not CSV: {error}; save the file again") from error


def _wrong_row(where: str, row: list[str], header: list[str]) -> str:
    found = f"{len(row)} {'field' if len(row) == 1 else 'fields'}"
    what = f"{where}: {found} in a row, and {len(header)} in the header ({', '.join(header)})"
    if len(row) > len(header):
        return f'{what}; put the prompt in quotes if it holds a comma: "{",".join(row)[:60]}"'
    return f"{what}; write the missing ones, or close the quotes of the row"


class _numbered:
    """Texts one by one, with where the last one stands: a CSV row may go over several lines."""

    def __init__(self, lines: Lines) -> None:
        self.lines, self.where = lines, ""

    def __iter__(self) -> Iterator[str]:
        for self.where, text in self.lines:  # noqa: B020
            yield text


def _of_parquet(file: Path, column: str) -> Lines:
    import pyarrow
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(file) as rows:
            if column not in rows.schema_arrow.names:
                names = rows.schema_arrow.names
                raise BrokenFileError(_wrong_column(str(file), column, "is missing", names))
            number = 0
            for batch in rows.iter_batches(columns=[column]):
                for text in batch.column(0).to_pylist():
                    number += 1
                    if not isinstance(text, str):
                        raise BrokenFileError(
                            f"{file}, row {number}: {column} is {text!r}, not a string"
                        )
                    yield f"{file}, row {number}", text
    except (OSError, pyarrow.ArrowException) as error:
        raise BrokenFileError(
            f"{file} cannot be read as Parquet: {cause(error)}; save it again"
        ) from error


def _wrong_column(where: str, column: str, what: str, columns: Iterable[str]) -> str:
    found = ", ".join(columns) or "none"
    return f"{where}: the column {column!r} {what}; the columns are: {found}; name one by --column"


READERS: dict[str, Callable[[Path, str], Lines]] = {
    ".txt": _of_text,
    ".jsonl": _of_json,
    ".csv": _of_csv,
    ".parquet": _of_parquet,
}
"""By the end of the file's name."""
