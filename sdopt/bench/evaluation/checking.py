"""What a part has to be before it counts: of this level, its settings and prompts, and sound."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sdopt.bench.evaluation.judging import is_cost
from sdopt.bench.evaluation.merging import DIFFERENCE, NAMES, range_of, score_named
from sdopt.bench.evaluation.parts import ANEW, Scores, part_file, part_name, read_stamp
from sdopt.bench.evaluation.places import Place
from sdopt.bench.evaluation.plan import Evaluation
from sdopt.bench.evaluation.scores import OF_SCENES, scene_of
from sdopt.errors import BrokenFileError
from sdopt.levels import Level

MadeWith = Mapping[str, Mapping[str, Any]]
"""By level: what its parts are made with here, `Evaluation.made_with`."""
LIKENESS = ("ssim_cost", "psnr_cost_db")
"""Every sound image has them, if the reference's is sound."""
ROUNDING = 1e-6
"""Share of a score's range that it may be outside of."""


def missing_blocks(
    place: Place, evaluation: Evaluation, made_with: MadeWith
) -> dict[str, list[int]]:
    """The parts that are not there yet, by level. Raises BrokenFileError for one of another run."""
    missing: dict[str, list[int]] = {}
    for level in evaluation.all_levels():
        there = set(place.files(part_file(level.name, 0).rpartition("/")[0]))
        lacking = missing.setdefault(level.name, [])
        for block in range(evaluation.blocks):
            if part_name(block) not in there:
                lacking.append(block)
                continue
            file = part_file(level.name, block)
            indices, theirs = read_stamp(place, file)
            check_made_with(f"{place.name}/{file}", theirs, made_with[level.name])
            check_indices(f"{place.name}/{file}", indices, evaluation.indices(block))
    return missing


@dataclass(frozen=True, kw_only=True)
class PartCheck:
    """Raises BrokenFileError for a part of `level` that may not be merged.

    `reference_faulty` says of each prompt whether the reference's image is worthless: then nothing
    is compared with it. None for the reference itself.
    """

    place: Place
    evaluation: Evaluation
    level: Level
    made_with: Mapping[str, Any]
    reference_faulty: NDArray[np.bool_] | None

    def __call__(self, part: Scores) -> None:
        """Of one part."""
        where = f"{self.place.name}/{part.file}"
        check_made_with(where, part.made_with, self.made_with)
        name = part.file.rpartition("/")[2]
        number = name.partition(".")[0]
        if number.isdecimal() and part_name(int(number)) == name:
            check_indices(where, part.indices, self.evaluation.indices(int(number)))
        for score in NAMES:
            if score in part.scores:
                self._check_range(where, part, score)
        self._check_all_there(where, part)

    def _check_range(self, where: str, part: Scores, score: str) -> None:
        least, most = range_of(score)
        slack, values = ROUNDING * (most - least), part.scores[score]
        outside = (values < least - slack) | (values > most + slack)
        for row in np.flatnonzero(outside)[:1]:
            raise BrokenFileError(
                f"{where}: {score} of prompt {part.indices[row]} is {values[row]:g}, and it can "
                f"only be {least:g} to {most:g}; {ANEW}"
            )

    def _check_all_there(self, where: str, part: Scores) -> None:
        """No score of a sound image is NaN, but one that it cannot have."""
        likeness = () if self.reference_faulty is None else LIKENESS
        nothing = np.full(len(part.indices), np.nan)
        for score in (one for one in NAMES if one in (*part.scores, *likeness)):
            for row in np.flatnonzero(np.isnan(part.scores.get(score, nothing))):
                index = int(part.indices[row])
                if not part.faults[row] and not self._may_lack(score, index):
                    raise BrokenFileError(
                        f"{where}: {score} of prompt {index} is not a number (NaN), and the image "
                        f"has no fault; {ANEW}"
                    )

    def _may_lack(self, score: str, index: int) -> bool:
        compares = is_cost(score) or score.endswith(DIFFERENCE)
        if compares and (self.reference_faulty is None or self.reference_faulty[index]):
            return True
        text = self.evaluation.prompts.texts[index]
        return score_named(score) in OF_SCENES and scene_of(self.evaluation.source, text) is None


def check_made_with(where: str, theirs: Mapping[str, Any] | None, ours: Mapping[str, Any]) -> None:
    """Raise BrokenFileError, with both values, for a part of another level or other settings."""
    if theirs is None:
        raise BrokenFileError(
            f"{where} does not say what it was made with: an older sdopt wrote it; {ANEW}, or name "
            "another --out to keep it"
        )
    if theirs == ours:
        return
    names = [name for name in (*ours, *theirs) if theirs.get(name) != ours.get(name)]
    if "level" in names:
        names = ["level"]
    told = [
        f"{name} {_short(theirs.get(name))} (here {_short(ours.get(name))})"
        for name in dict.fromkeys(names)
    ]
    raise BrokenFileError(
        f"{where} is of another evaluation: it was made with {', '.join(told)}; {ANEW}"
    )


def check_indices(where: str, indices: NDArray[np.int64], wanted: range) -> None:
    """Raise BrokenFileError for a part of which its name says that it holds other prompts."""
    if indices.tolist() == list(wanted):
        return
    foreign = [index for index in indices.tolist() if index not in wanted]
    which = f"prompt {foreign[0]}" if foreign else f"{len(indices)} of {len(wanted)} prompts"
    told = f"prompts {wanted[0]} to {wanted[-1]}, each once and in order" if wanted else "no prompt"
    raise BrokenFileError(f"{where} holds {which}, and by its name it holds {told}; {ANEW}")


def _short(value: Any) -> str:
    return str(value)[:12] if isinstance(value, str) else repr(value)
