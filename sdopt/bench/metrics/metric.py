"""What a metric is: plain data that measuring, storing, judging and the table all read."""

from __future__ import annotations

import enum
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from operator import attrgetter
from typing import TYPE_CHECKING, Any, NamedTuple

from sdopt.levels import Level

if TYPE_CHECKING:
    from numpy.typing import NDArray

Row = Mapping[str, Any]
"""What was measured of one level, by name."""
AGAIN = "{again}  # once it is repaired"
ROUNDING = 1e-12
"""By which share equal counts may differ: sums of exact counts in 1e12 do, by their order."""


class Better(enum.Enum):
    """Which way is an improvement; NEITHER where another value means another image."""

    LOWER = "lower"
    HIGHER = "higher"
    NEITHER = "neither"


class Subject(enum.Enum):
    """What a metric is of. The images and latents are compared with others of the same prompt."""

    LATENCY = "the timed rounds"
    MEMORY = "the CUDA memory of one image"
    WORK = "the work of one image"
    STORED = "images against the level's own stored ones"
    REFERENCE = "images against those of the reference level"
    GROUND_TRUTH = "images against the ground truth"
    LATENTS = "final latents against the stored ones"
    FLOAT64 = "final latents in float64 against the stored ones"
    LEVEL = "the level as a whole"


MEANS = (Subject.REFERENCE, Subject.GROUND_TRUTH)
"""Judged by the mean over the prompts; whatever else is compared, by the worst prompt."""


class Seen(NamedTuple):
    """What a comparison of two images or latents came to, and maybe where in them."""

    value: float
    where: str = ""


Compare = Callable[["NDArray[Any]", "NDArray[Any]"], Seen]
"""Of ours and of the other, both (height, width, 3), uint8, or both latents."""


@dataclass(frozen=True, kw_only=True)
class Prior:
    """What is assumed of a metric before its spread was measured, as fractions.

    `spread` is the standard deviation between fresh runs; `least_effect` what is never called a
    change, however sure it is.
    """

    spread: float
    least_effect: float


@dataclass(frozen=True, kw_only=True)
class Pairs:
    """The change, as a fraction, that pairs of runs may not pass over, by noise class.

    One below `least_effect` is never called a change.
    """

    matters: Mapping[str, float]
    least_effect: float = 0.01


def by_device(device: str, level: Level) -> str:
    """The noise class of what varies alike in all levels of a device."""
    return device


@dataclass(frozen=True, kw_only=True)
class ByHistory:
    """Judged by the stored runs of this hardware, if a comparison was asked for; less is better.

    `priors` are by noise class, which `noise` says of a device and a level; a class without one is
    exact: its value has to be the newest run's. `pairs` is for what `--sdopt-ab` judges too.
    """

    priors: Mapping[str, Prior] = field(default_factory=dict)
    noise: Callable[[str, Level], str] = by_device
    pairs: Pairs | None = None

    def prior(self, device: str, level: Level) -> Prior | None:
        """What is assumed of the level there, or None where its value is exact."""
        return self.priors.get(self.noise(device, level))

    def is_for(self, device: str) -> bool:
        """Whether it is judged on 'cuda' or 'cpu'; 'cuda, eager' is a noise class of 'cuda'."""
        return any(name.split(",")[0] == device for name in self.priors)


@dataclass(frozen=True)
class AsAccepted:
    """A count that has to be what `--sdopt-accept` stored, in every run and on every machine."""


@dataclass(frozen=True)
class Never:
    """A count that has to be 0, in every run."""


@dataclass(frozen=True, kw_only=True)
class Measured:
    """A limit of that kind in `limits.json`, from the spread between machines; else the default.

    `default` None is for what is not judged without a measured limit. From the value `perfect` on
    it may be `margin` times as far away as the worst that was seen, and always by `least`; of a
    mean it is the share of the loss seen that may come on top. A limit up to `above` would let
    everything pass, and so would one past `most`.
    """

    kind: str
    margin: float
    perfect: float
    least: float = 0.0
    default: float | None = None
    above: float = 0.0
    most: float = 1.0


@dataclass(frozen=True, kw_only=True)
class Fixed:
    """A limit that is the same everywhere, by device."""

    by_device: Mapping[str, float]


@dataclass(frozen=True)
class Proven:
    """No number is judged: whoever measures says whether it holds."""


@dataclass(frozen=True)
class Shown:
    """Measured, stored and shown, never judged; `why` says what keeps it from being judged."""

    why: str


Rule = ByHistory | AsAccepted | Never | Measured | Fixed | Proven | Shown


def _never(row: Row) -> bool:
    return False


@dataclass(frozen=True, kw_only=True)
class Column:
    """A column of the table that a run ends with, in the order of `place`.

    An `optional` one is left out where no level has it. `value` makes it of the level's row and
    that of `baseline`; without it, it is the metric itself.
    """

    heading: str
    form: str
    place: int
    optional: bool = False
    suffix: str = ""
    value: Callable[[Row, Row], float | None] | None = None
    in_parentheses: Callable[[Row], bool] = _never


@dataclass(frozen=True, kw_only=True)
class Metric:
    """One number of a level, from how it is measured to what a reader does about it.

    `name` is its key in stored runs and verdicts, with the unit in it. `about` says what is
    measured, for docs/reference/metrics.md. `take` gets it from the
    record of its subject, by default what has its name there; None means that it is not known
    here, which is a fault of a `needed` one. Of images (height, width, 3), uint8, and of latents
    `compare` makes it instead, of ours and of the other. `what` words the reason: {count} prompts,
    the worst {prompt} and {where} in it. `remedy` is the command that comes after a failure, with
    {again} for this level's own; without it, what a history suggests. `missing` says why this
    installation cannot measure it, or None. A stored value below `least` or above `most` is broken.
    """

    name: str
    of: Subject
    rule: Rule
    about: str = ""
    better: Better = Better.LOWER
    unit: str = ""
    take: Callable[[Any], Any] | None = None
    needed: bool = False
    compare: Compare | None = None
    what: str = ""
    remedy: str = ""
    columns: tuple[Column, ...] = ()
    missing: Callable[[], str | None] | None = None
    least: float = 0.0
    most: float = math.inf

    def __post_init__(self) -> None:
        if isinstance(self.rule, ByHistory) and self.better is not Better.LOWER:
            raise ValueError(f"{self.name}: a history judges what is better the lower it is")

    def taken(self, record: Any) -> Any:
        """Its value in a record of its subject."""
        return (self.take or attrgetter(self.name))(record)

    @property
    def absence(self) -> str | None:
        """Why it cannot be measured in this installation."""
        return self.missing() if self.missing else None
