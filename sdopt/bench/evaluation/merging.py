"""All parts of a level as one: each prompt once, in memory that does not grow with them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from sdopt.bench.evaluation.parts import PARTS, SUFFIX, Scores, read_scores
from sdopt.bench.evaluation.places import Place
from sdopt.bench.evaluation.scores import SCORES
from sdopt.bench.evaluation.statistics import Bootstrap, Histogram, Rates, Worst
from sdopt.errors import BrokenFileError

MOST_NAMED = 10
DIFFERENCE = "_difference"
NAMES = (*SCORES, *(f"{name}{DIFFERENCE}" for name, score in SCORES.items() if score.paired))
"""Every number that a part may hold of a prompt."""


def score_named(name: str) -> str:
    """'ssim_ground_truth' for 'ssim_ground_truth_difference'."""
    return name.removesuffix(DIFFERENCE)


def range_of(name: str) -> tuple[float, float]:
    """The least and the most that a number can be."""
    score = SCORES[score_named(name)]
    span = score.most - score.least
    return (-span, span) if name.endswith(DIFFERENCE) else (score.least, score.most)


@dataclass
class Merged:
    """What is known of a level over all prompts."""

    level: str
    count: int
    ranked_by: str
    bootstrap: Bootstrap = field(default_factory=lambda: Bootstrap(NAMES))
    histograms: dict[str, Histogram] = field(
        default_factory=lambda: {name: Histogram(*range_of(name)) for name in NAMES}
    )
    worst: Worst = field(default_factory=Worst)
    rates: Rates = field(default_factory=Rates)
    faults: dict[str, list[int]] = field(default_factory=dict)
    """The first few indices by what is wrong with the image."""
    fault_count: int = 0
    faulty: NDArray[np.bool_] = field(init=False)
    """Of each prompt."""

    def __post_init__(self) -> None:
        self.faulty = np.zeros(self.count, np.bool_)

    def add(self, block: int, part: Scores) -> None:
        """The next part, in the order of the indices."""
        rows = len(part.indices)
        nothing = np.full(rows, np.nan)
        values = np.stack([part.scores.get(name, nothing) for name in NAMES], axis=1)
        self.bootstrap.add(block, values)
        for name in part.scores:
            if name in self.histograms:
                self.histograms[name].add(part.scores[name])
        self.worst.add(part.scores.get(self.ranked_by, nothing), part.indices, part.file)
        self.rates.add(part.made, rows)
        for index, fault in zip(part.indices.tolist(), part.faults, strict=True):
            if fault:
                self.fault_count += 1
                self.faulty[index] = True
                named = self.faults.setdefault(fault, [])
                if len(named) < MOST_NAMED:
                    named.append(index)


def merge(
    place: Place,
    level: str,
    count: int,
    ranked_by: str,
    check: Callable[[Scores], None] = lambda part: None,
) -> Merged:
    """Read every part of a level. Raises BrokenFileError for indices that are there twice or never.

    `check` raises for a part that does not belong there. Of a prompt only five bytes are kept: the
    number of the file that has it, and whether its image is worthless.
    """
    merged = Merged(level=level, count=count, ranked_by=ranked_by)
    folder = f"{PARTS}/{level}"
    files = [name for name in place.files(folder) if name.endswith(SUFFIX)]
    found_in = np.zeros(count, np.int32)
    for number, name in enumerate(files, start=1):
        part = read_scores(place, f"{folder}/{name}")
        check(part)
        _check(place, part, found_in, files, number)
        found_in[part.indices] = number
        merged.add(int(part.indices[0]), part)
    if lacking := list(_ranges(np.flatnonzero(found_in == 0).tolist())):
        more = f" and {len(lacking) - MOST_NAMED} more" if len(lacking) > MOST_NAMED else ""
        raise BrokenFileError(
            f"{place.name}/{folder} has no result of the prompts {', '.join(lacking[:MOST_NAMED])}"
            f"{more}; run the same command again: it makes what is missing"
        )
    return merged


def _check(place: Place, part: Scores, found_in: np.ndarray, files: list[str], number: int) -> None:
    where = f"{place.name}/{part.file}"
    wrong = part.indices[(part.indices < 0) | (part.indices >= len(found_in))]
    if len(wrong):
        raise BrokenFileError(
            f"{where} holds prompt {wrong[0]}, and there are only {len(found_in)}; delete it"
        )
    twice = part.indices[found_in[part.indices] > 0]
    if not len(twice) and len(np.unique(part.indices)) < len(part.indices):
        twice = part.indices
    if len(twice):
        first = files[max(int(found_in[twice[0]]) - 1, 0)]
        raise BrokenFileError(
            f"prompt {twice[0]} is there twice, in {first} and in {files[number - 1]} of "
            f"{where.rpartition('/')[0]}; delete the one that does not belong there"
        )


def _ranges(indices: list[int]) -> Iterator[str]:
    """'3', '7 to 12'."""
    first = None
    for place, index in enumerate(indices):
        first = index if first is None else first
        if place + 1 == len(indices) or indices[place + 1] != index + 1:
            yield str(first) if first == index else f"{first} to {index}"
            first = None
