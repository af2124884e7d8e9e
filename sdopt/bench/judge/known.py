"""What the numbers of a run are judged by: what is stored, and how the run was started."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from sdopt.bench.metrics import HISTORY_RULES
from sdopt.bench.metrics.metric import AsAccepted, Fixed, Measured, Metric
from sdopt.levels import LEVELS, Level

RUN = "pytest benchmarks/"


@dataclass(kw_only=True)
class Known:
    """What a verdict is reached from besides the number itself.

    `comparing` is whether a stored run was asked for. `stored` is then that run, as metrics per
    level, `history` its file, and `files` by level that of another run's values; `refusal` says
    why there is none, and `refusal_hint` what to run.
    `redefined` says for a level of the stored run in what it was another one. `command` is what
    started this run, for the commands that verdicts suggest. `device` is 'cuda' or 'cpu'. `levels`
    are those that there are.

    `series` holds, by level and metric, the values of all stored runs that this one is judged by,
    oldest first, and `commit` what the newest of them ran. `work_stored` holds the stored counts of
    work by level, whether comparing or not, and `work_file` where they stand. `limits` are by level
    and kind, as `limits_file` has them; means over `own_prompts` are not judged by them, since they
    were measured with the built-in ones.
    """

    comparing: bool = False
    device: str = "cuda"
    levels: Mapping[str, Level] = field(default_factory=lambda: LEVELS)
    command: str = RUN
    stored: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    history: str | None = None
    files: Mapping[str, str] = field(default_factory=dict)
    refusal: str | None = None
    refusal_hint: str | None = None
    redefined: Mapping[str, str] = field(default_factory=dict)
    series: Mapping[str, Mapping[str, Sequence[float]]] = field(default_factory=dict)
    commit: str | None = None
    work_stored: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    work_file: str | None = None
    limits: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    limits_file: str | None = None
    own_prompts: bool = False

    @property
    def comparisons(self) -> int:
        """How many judgements by history a whole run makes: they share one error rate."""
        metrics = sum(rule.is_for(self.device) for rule in HISTORY_RULES.values())
        return max(1, len(self.stored)) * metrics

    def file_of(self, metric: Metric, level: str) -> str | None:
        """Where that which a level's metric is judged by stands; a fixed limit is in no file."""
        match metric.rule:
            case Measured():
                return self.limits_file
            case AsAccepted():
                return self.work_file
            case Fixed():
                return None
            case _:
                return self.files.get(level, self.history)

    def again(self, level: str) -> str:
        """The command that runs this level once more."""
        return f'{self.command} -k "[{level}]"'
