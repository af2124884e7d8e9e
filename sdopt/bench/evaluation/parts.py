"""Parts of results: Parquet files of a few prompts of one level each, with images and scores."""

from __future__ import annotations

import io
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sdopt.bench.evaluation.places import Place
from sdopt.errors import BrokenFileError
from sdopt.util.files import cause

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

PARTS = "parts"
SUFFIX = ".parquet"
NUMBERS = ("index", "process", "batch", "generated_unix_s", "generate_s")
HOST = ("cpu_s", "scorers_cpu_s", "png_s", "score_s", "write_s")
"""What a part cost the host; older parts do not say it."""
TEXTS = ("prompt", "fault", "session")
IMAGE = "png"
ANEW = "delete it and run the same command again: that part alone is made anew"
MADE_WITH = b"sdopt_made_with"
"""Key of a file's metadata: the level and the settings that its images come from, as JSON."""


@dataclass(frozen=True, kw_only=True)
class Scored:
    """One prompt of one level. `fault` says what makes the image worthless, else it is empty."""

    index: int
    prompt: str
    fault: str
    png: bytes
    scores: Mapping[str, float]


@dataclass(frozen=True, kw_only=True)
class Made:
    """Who made a part, when and how fast: `generate_s` is the time of the pipeline alone.

    `cpu_s` is processor time of the process since its part before, and `scorers_cpu_s` that of
    scorers in other processes; `png_s` and `score_s` are the parts of them that went into these.
    `write_s` is the time in which it stored the part before, since this one is not stored yet.
    """

    session: str
    process: int
    batch: int
    generated_unix_s: float
    generate_s: float
    cpu_s: float = math.nan
    scorers_cpu_s: float = math.nan
    png_s: float = math.nan
    score_s: float = math.nan
    write_s: float = math.nan

    @property
    def host_s(self) -> NDArray[np.float64]:
        """Of each of HOST; NaN where the part does not say it."""
        import numpy as np

        return np.array([getattr(self, name) for name in HOST])


@dataclass(frozen=True, kw_only=True)
class Scores:
    """The numbers of a part, by prompt; a score that a prompt does not have is NaN."""

    file: str
    indices: NDArray[np.int64]
    faults: list[str]
    scores: Mapping[str, NDArray[np.float64]]
    made: Made
    made_with: Mapping[str, Any] | None
    """Of an older part None: it does not say what it was made with."""


def part_name(block: int) -> str:
    """'00000012.parquet'."""
    return f"{block:08}{SUFFIX}"


def part_file(level: str, block: int) -> str:
    """The part's name below the place."""
    return f"{PARTS}/{level}/{part_name(block)}"


def write_part(
    place: Place,
    file: str,
    rows: Sequence[Scored],
    made: Made,
    made_with: Mapping[str, Any] | None = None,
) -> None:
    """Write the results of consecutive prompts as one file, which says what it was made with."""
    import pyarrow
    import pyarrow.parquet

    columns: dict[str, Any] = {
        "index": pyarrow.array([row.index for row in rows], pyarrow.int64()),
        "prompt": [row.prompt for row in rows],
        "fault": [row.fault for row in rows],
        IMAGE: pyarrow.array([row.png for row in rows], pyarrow.binary()),
        **{name: [value] * len(rows) for name, value in vars(made).items()},
    }
    for name in dict.fromkeys(name for row in rows for name in row.scores):
        values = [row.scores.get(name, float("nan")) for row in rows]
        columns[name] = pyarrow.array(values, pyarrow.float64())
    content = io.BytesIO()
    table = pyarrow.table(columns)
    if made_with is not None:
        table = table.replace_schema_metadata({MADE_WITH: json.dumps(made_with)})
    # Images are compressed already.
    pyarrow.parquet.write_table(table, content, compression="none")
    place.write(file, content.getvalue())


def read_scores(place: Place, file: str) -> Scores:
    """A part without its images and prompts. Raises BrokenFileError naming the file."""
    table = _read(place, file, lambda name: name not in ("prompt", IMAGE))
    names = [name for name in table.column_names if name not in (*NUMBERS, *HOST, *TEXTS)]
    told = [name for name in Made.__dataclass_fields__ if name in table.column_names]
    first = {name: table.column(name)[0].as_py() for name in told}
    return Scores(
        file=file,
        indices=table.column("index").to_numpy(),
        faults=table.column("fault").to_pylist(),
        scores={name: table.column(name).to_numpy() for name in names},
        made=Made(**first),
        made_with=_made_with(place, file, table),
    )


def read_stamp(place: Place, file: str) -> tuple[NDArray[np.int64], Mapping[str, Any] | None]:
    """A part's indices, and what it was made with. Raises BrokenFileError naming the file."""
    table = _read(place, file, lambda name: name == "index")
    return table.column("index").to_numpy(), _made_with(place, file, table)


def read_rows(place: Place, file: str) -> list[Scored]:
    """A part with its images. Raises BrokenFileError naming the file."""
    table = _read(place, file, lambda name: True)
    known = (*NUMBERS, *HOST, *TEXTS, IMAGE)
    return [
        Scored(
            index=row["index"],
            prompt=row["prompt"],
            fault=row["fault"],
            png=row[IMAGE],
            scores={name: value for name, value in row.items() if name not in known},
        )
        for row in table.to_pylist()
    ]


@contextmanager
def of_image(place: Place, file: str, index: int) -> Iterator[None]:
    """Whoever decodes the image of a prompt in a part: BrokenFileError names both."""
    try:
        yield
    except BrokenFileError as error:
        raise _broken(place, file, f"has a broken image of prompt {index}: {error}") from error


def _read(place: Place, file: str, wanted: Callable[[str], bool]) -> Any:
    import pyarrow
    import pyarrow.parquet

    needed = {*NUMBERS, *TEXTS, IMAGE}
    with place.open(file) as opened:
        try:
            rows = pyarrow.parquet.ParquetFile(opened)
            names = rows.schema_arrow.names
            if lacking := sorted(needed - set(names)):
                raise _broken(place, file, f"has no column {', '.join(lacking)}")
            table = rows.read([name for name in names if wanted(name)])
        except (OSError, pyarrow.ArrowException) as error:
            raise _broken(place, file, f"cannot be read: {cause(error)}") from error
    if not table.num_rows:
        raise _broken(place, file, "holds no row")
    for name in sorted(table.column_names, key=lambda name: name != "index"):
        _check_type(place, file, table, name)
    return table


def _check_type(place: Place, file: str, table: Any, name: str) -> None:
    """Raise BrokenFileError for a column of another type, or a value that is not there."""
    from pyarrow import types

    column, kind = table.column(name), table.column(name).type
    if name in ("index", "process", "batch"):
        word, right = "integers", types.is_integer(kind)
    elif name in TEXTS:
        word, right = "text", types.is_string(kind) or types.is_large_string(kind)
    elif name == IMAGE:
        word, right = "binary", types.is_binary(kind) or types.is_large_binary(kind)
    else:
        word, right = "numbers", types.is_floating(kind)
    is_needed = name in (*NUMBERS, *TEXTS, IMAGE)
    if right and not (is_needed and column.null_count):
        return
    row = column.is_null().index(True).as_py() if right else 0
    index = None if name == "index" else table.column("index")[row].as_py()
    which = f"in row {row}" if index is None else f"of prompt {index}"
    raise _broken(
        place, file, f"has {_shown(column[row].as_py())} in the column {name} {which}, not {word}"
    )


def _shown(value: Any) -> str:
    return "nothing" if value is None else repr(value)[:40]


def _made_with(place: Place, file: str, table: Any) -> Mapping[str, Any] | None:
    text = (table.schema.metadata or {}).get(MADE_WITH)
    if text is None:
        return None
    try:
        told = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise _broken(place, file, f"has broken metadata: {error}") from error
    if not isinstance(told, dict):
        raise _broken(place, file, "has broken metadata: not a JSON object")
    return told


def _broken(place: Place, file: str, what: str) -> BrokenFileError:
    return BrokenFileError(f"{place.name}/{file} {what}; {ANEW}")
