"""The gate: numbers in, verdicts out; no files, no pytest, no torch."""

from __future__ import annotations

import enum
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any

from sdopt.levels import Level, cost_is_comparable, get_level

if TYPE_CHECKING:  # for annotations only: measuring imports torch, judging does not
    from sdopt.measure import Comparison, FirstCall, Latency, Memory, Work

LATENCY_TOLERANCE = {"cuda": 0.10, "cuda, eager": 0.30, "cpu": 0.50}
"""By device. Eager pictures on a fast GPU wait for the host's launches, which vary like its own
work; unchanged runs on shared CPU cores differed by up to 31 %: see docs/pitfalls.md.
"""
MEMORY_TOLERANCE = 0.02
UNITS = {"latency_ms": "ms", "tflop": "1e12"}
MEMORY_METRICS = ("peak_allocated_mib", "peak_reserved_mib", "device_used_mib")
GATED_MEMORY = "peak_allocated_mib"
RUN = "pytest benchmarks/"
EXACT_COUNTS = ("unet_evaluations", "tflop")
ZERO_COUNTS = ("recompiles", "graph_breaks")


class Outcome(enum.Enum):
    """What a verdict says.

    RECORDED passes, because nothing was there to judge against. IMPROVEMENT passes and says that
    the stored run should be renewed: whatever made it so much worse would hide a loss.
    """

    PASS = "pass"
    IMPROVEMENT = "improvement"
    RECORDED = "recorded"
    REGRESSION = "regression"
    FAULT = "fault"


@dataclass(frozen=True, kw_only=True, repr=False)
class Verdict:
    """One judgement of one metric of one level, with all that a reader needs to act on it.

    `stored` and `limit` are None where nothing was stored; `next_step` is a command line.
    """

    level: str
    metric: str
    outcome: Outcome
    reason: str
    measured: float | None = None
    stored: float | None = None
    limit: float | None = None
    file: str | None = None
    next_step: str = ""

    def __repr__(self) -> str:
        # Short, because pytest prints it below the message of a failed assertion.
        return f"<Verdict [{self.level}] {self.metric}: {self.outcome.value}>"

    @property
    def passed(self) -> bool:
        """Whether the test that carries this verdict passes."""
        return self.outcome in (Outcome.PASS, Outcome.IMPROVEMENT, Outcome.RECORDED)

    @property
    def message(self) -> str:
        """The verdict in a few lines: what, measured, stored, limit, file, next command."""
        unit = UNITS.get(self.metric, "MiB" if self.metric.endswith("_mib") else "")
        numbers = [
            f"{name} {value:.6g}{' ' + unit if unit else ''}"
            for name, value in (
                ("measured", self.measured),
                ("stored", self.stored),
                ("limit", self.limit),
            )
            if value is not None
        ]
        lines = [
            f"[{self.level}] {self.metric}: {self.outcome.value}: {self.reason}",
            ", ".join(numbers),
            f"file: {self.file}" if self.file else "",
            f"next: {self.next_step}" if self.next_step else "",
        ]
        return "\n  ".join(line for line in lines if line)


def at_most(
    level: str, metric: str, measured: float | None, stored: float | None, tolerance: float
) -> Verdict:
    """Pass up to stored x (1 + tolerance), an improvement below stored / (1 + tolerance).

    A fault if either number is missing, NaN or not > 0.
    """
    if measured is None or stored is None:
        side = "measured" if measured is None else "stored"
        return fault(level, metric, f"there is no {side} value", measured, stored)
    for side, value in (("measured", measured), ("stored", stored)):
        if not _is_sound(value):
            return fault(level, metric, f"the {side} value is {value!r}", measured, stored)
    limit = stored * (1 + tolerance)
    change = 100 * (measured / stored - 1)
    better = Outcome.IMPROVEMENT if measured < stored / (1 + tolerance) else Outcome.PASS
    return Verdict(
        level=level,
        metric=metric,
        outcome=better if measured <= limit else Outcome.REGRESSION,
        reason=f"{change:+.1f} % against the stored run, {100 * tolerance:g} % are allowed",
        measured=measured,
        stored=stored,
        limit=limit,
    )


def at_least(level: str, metric: str, measured: float, limit: float | None, what: str) -> Verdict:
    """Pass from `limit` on; recorded without one; a fault if it is NaN. For SSIM."""
    if not math.isfinite(measured):
        outcome, what = Outcome.FAULT, f"the measured value is {measured}, {what}"
    elif limit is None:
        outcome = Outcome.RECORDED
    else:
        outcome = Outcome.PASS if measured >= limit else Outcome.REGRESSION
    return Verdict(
        level=level, metric=metric, outcome=outcome, reason=what, measured=measured, limit=limit
    )


def exactly(level: str, metric: str, measured: float | None, stored: float | None) -> Verdict:
    """Pass if equal; a fault if either number is missing."""
    if measured is None or stored is None:
        side = "measured" if measured is None else "stored"
        return fault(level, metric, f"there is no {side} value", measured, stored)
    # Sums of exact counts in 1e12 differ in the last digits with their order.
    same = math.isclose(measured, stored, rel_tol=1e-12)
    return Verdict(
        level=level,
        metric=metric,
        outcome=Outcome.PASS if same else Outcome.REGRESSION,
        reason="equal" if same else "has to equal the stored run",
        measured=measured,
        stored=stored,
        limit=stored,
    )


def fault(
    level: str,
    metric: str,
    reason: str,
    measured: float | None = None,
    stored: float | None = None,
) -> Verdict:
    """A verdict that could not be reached, which fails."""
    return Verdict(
        level=level,
        metric=metric,
        outcome=Outcome.FAULT,
        reason=reason,
        measured=measured,
        stored=stored,
    )


def void(level: str, metric: str, disturbances: Sequence[str]) -> Verdict:
    """A measurement that something disturbed: it fails, because nothing can be said of it."""
    return fault(level, metric, f"the measurement is void: {'; '.join(disturbances)}")


def recorded(level: str, metric: str, measured: float | None) -> Verdict:
    """A value with nothing to judge it against, which passes."""
    reason = "no comparison was asked for (--benchmark-compare)"
    return Verdict(
        level=level, metric=metric, outcome=Outcome.RECORDED, reason=reason, measured=measured
    )


def first_failure(verdicts: Sequence[Verdict]) -> Verdict:
    """The first verdict that fails, else the first judged one, else the first."""
    ranked = (
        Outcome.FAULT,
        Outcome.REGRESSION,
        Outcome.IMPROVEMENT,
        Outcome.PASS,
        Outcome.RECORDED,
    )
    return min(verdicts, key=lambda verdict: ranked.index(verdict.outcome))


@dataclass(frozen=True, kw_only=True)
class Limits:
    """The lowest SSIM that passes, per level; None where nothing is gated.

    `drift` is for the worst prompt, `cost` and `truth` for the mean over the prompts.
    """

    drift: float
    cost: float | None = None
    truth: float | None = None


DEFAULT_LIMITS = Limits(drift=0.99)
"""For sources whose own spread between machines nobody measured yet."""


@dataclass(kw_only=True)
class Gate:
    """Judges the measurements of one run and keeps them and the verdicts.

    `comparing` is whether a stored run was asked for. `stored` is then that run, as metrics per
    level, and `history` its file; `refusal` says why there is none, and `refusal_hint` what to run.
    `redefined` says for a level of the stored run in what it was another one. `command` is what
    started this run, for the commands that verdicts suggest. `device` is 'cuda' or 'cpu'.
    """

    comparing: bool = False
    device: str = "cuda"
    command: str = RUN
    stored: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    history: str | None = None
    refusal: str | None = None
    refusal_hint: str | None = None
    redefined: Mapping[str, str] = field(default_factory=dict)
    limits: Mapping[str, Limits] = field(default_factory=dict)
    limits_file: str | None = None
    measured: dict[str, dict[str, Any]] = field(default_factory=dict)
    verdicts: list[Verdict] = field(default_factory=list)

    def latency(self, level: Level, record: Latency, first: FirstCall) -> Verdict:
        """Judge the median round of one picture; none at all is a fault when comparing."""
        self._record(
            level,
            latency_ms=record.median_ms,
            stage_ms=record.stage_ms,
            first_call_s=first.seconds,
            compile_cache=first.compile_cache,
            **({"gpu": asdict(record.gpu)} if record.gpu else {}),
        )
        if record.disturbances:
            return self._keep([void(level.name, "latency_ms", record.disturbances)])
        bound_by_host = self.device == "cuda" and not level.compiled
        tolerance = LATENCY_TOLERANCE["cuda, eager" if bound_by_host else self.device]
        return self._keep([self._against_history(level, "latency_ms", tolerance)])

    def memory(self, level: Level, record: Memory) -> Verdict:
        """Judge the allocated peak; the reserved and the device-wide one are recorded."""
        self._record(level, **{name: getattr(record, name) for name in MEMORY_METRICS})
        if record.disturbances:
            return self._keep([void(level.name, GATED_MEMORY, record.disturbances)])
        return self._keep([self._against_history(level, GATED_MEMORY, MEMORY_TOLERANCE)])

    def work(self, level: Level, record: Work) -> Verdict:
        """Judge the counts: no recompile and no graph break ever, the rest as stored."""
        self._record(level, **{k: v for k, v in asdict(record).items() if v is not None})
        exact = [self._against_history(level, metric, None) for metric in EXACT_COUNTS]
        return self._keep([*(self._zero(level, metric) for metric in ZERO_COUNTS), *exact])

    def effect(self, level: Level, missing: Sequence[str]) -> Verdict:
        """Judge the proof that every field of the level took effect: nothing may be missing."""
        if missing:
            reason = "the level did not take effect: " + "; ".join(missing)
        else:
            reason = "every field of the level took effect"
        outcome = Outcome.REGRESSION if missing else Outcome.PASS
        verdict = Verdict(level=level.name, metric="effect", outcome=outcome, reason=reason)
        return self._keep([verdict])

    def drift(
        self, level: Level, comparison: Comparison, unusable: Mapping[str, str] | None = None
    ) -> Verdict:
        """Judge the worst prompt against the level's own stored pictures.

        `unusable` says, by prompt, why there is no stored picture to compare with.
        """
        if unusable:
            verdict = fault(level.name, "ssim_drift", "; ".join(unusable.values()))
            accept = f"{self._again(level.name)} --sdopt-accept  # stores this run's pictures"
            return self._keep([replace(verdict, next_step=accept)])
        if comparison.faults:
            return self._broken(level, "ssim_drift", comparison)
        ssim = comparison.ssim
        worst = min(ssim, key=lambda name: (not math.isnan(ssim[name]), ssim[name]))
        self._record(level, ssim_drift=ssim[worst], psnr_drift_db=min(comparison.psnr_db.values()))
        limits = self.limits.get(level.name)
        what = f"worst of {len(ssim)} prompts: {worst}"
        if limits is None:
            what += " (default limit: none was measured for this level)"
        limit = (limits or DEFAULT_LIMITS).drift
        verdict = at_least(level.name, "ssim_drift", ssim[worst], limit, what)
        return self._keep([verdict], file=self.limits_file)

    def cost(self, level: Level, comparison: Comparison) -> Verdict:
        """Judge the mean likeness to the reference level, if it says what the change costs."""
        reference = get_level(level.reference or level.name)
        comparable = cost_is_comparable(level, reference)
        what = f"mean of {len(comparison.ssim)} prompts against {reference.name}"
        if not comparable:
            what += ", whose sampler draws other noise: reported, not gated"
        limits = self.limits.get(level.name)
        limit = limits.cost if limits and comparable else None
        self._record(level, cost_is_comparable=comparable)
        return self._mean_likeness(level, "cost", comparison, limit, what)

    def truth(self, level: Level, comparison: Comparison) -> Verdict:
        """Judge the mean likeness to the true renderings of the prompts."""
        what = f"mean of {len(comparison.ssim)} prompts against their true pictures"
        limits = self.limits.get(level.name)
        limit = limits.truth if limits else None
        return self._mean_likeness(level, "truth", comparison, limit, what)

    def _mean_likeness(
        self, level: Level, kind: str, comparison: Comparison, limit: float | None, what: str
    ) -> Verdict:
        metric = f"ssim_{kind}"
        if comparison.faults:
            return self._broken(level, metric, comparison)
        mean = _mean(comparison.ssim)
        self._record(level, **{metric: mean, f"psnr_{kind}_db": _mean(comparison.psnr_db)})
        verdict = at_least(level.name, metric, mean, limit, what)
        return self._keep([verdict], file=self.limits_file)

    def _broken(self, level: Level, metric: str, comparison: Comparison) -> Verdict:
        """The verdict on pictures that are NaN, black or constant."""
        reason = "; ".join(f"{name}: {what}" for name, what in comparison.faults.items())
        return self._keep([fault(level.name, metric, reason)], file=self.limits_file)

    def _record(self, level: Level, **values: Any) -> None:
        self.measured.setdefault(level.name, {}).update(values)

    def _against_history(self, level: Level, metric: str, tolerance: float | None) -> Verdict:
        """Judge one metric by the stored run; without a tolerance it has to be equal."""
        measured = self.measured[level.name].get(metric)
        if not self.comparing:
            return recorded(level.name, metric, measured)
        if self.refusal:
            return fault(level.name, metric, self.refusal, measured)
        if level.name in self.redefined:
            reason = f"the stored run measured another level: {self.redefined[level.name]}"
            return fault(level.name, metric, reason, measured)
        stored = self.stored.get(level.name, {}).get(metric)
        if tolerance is None:
            return exactly(level.name, metric, measured, stored)
        return at_most(level.name, metric, measured, stored, tolerance)

    def _zero(self, level: Level, metric: str) -> Verdict:
        count = self.measured[level.name][metric]
        return Verdict(
            level=level.name,
            metric=metric,
            outcome=Outcome.PASS if count == 0 else Outcome.REGRESSION,
            reason="none after warm-up" if count == 0 else "there has to be none after warm-up",
            measured=count,
            limit=0,
        )

    def _keep(self, verdicts: Sequence[Verdict], file: str | None = None) -> Verdict:
        """Complete and store the verdicts; give back the one that speaks for them all."""
        completed = [self._complete(verdict, file) for verdict in verdicts]
        self.verdicts.extend(completed)
        return first_failure(completed)

    def _complete(self, verdict: Verdict, file: str | None) -> Verdict:
        next_step = verdict.next_step or self._next_step(verdict)
        return replace(verdict, file=file or self.history, next_step=next_step)

    def _again(self, level: str) -> str:
        return f'{self.command} -k "[{level}]"'

    def _next_step(self, verdict: Verdict) -> str:
        again, store = self._again(verdict.level), f"{self.command} --benchmark-autosave"
        if verdict.passed:
            return ""
        if verdict.metric in ZERO_COUNTS:
            return f"TORCH_LOGS=recompiles,graph_breaks {again} -s  # says where"
        if verdict.metric == "effect":
            return f"{again}  # once it is repaired"
        if verdict.metric.startswith("ssim_"):
            if verdict.outcome is Outcome.FAULT:
                return f"{again}  # once the pictures are sound: these are not accepted"
            limits = "" if verdict.metric == "ssim_drift" else ", then python -m sdopt.limits"
            return f"{again} --sdopt-accept{limits}  # if meant"
        if self.refusal:
            return self.refusal_hint or f"{store}  # stores a run to compare with"
        if verdict.outcome is Outcome.FAULT and not _is_sound(verdict.measured):
            return f"{again} --benchmark-compare  # measures it again"
        if verdict.outcome is Outcome.FAULT:
            return f"{store}  # stores a sound value"
        return f"{store}  # if the new value is meant"


def _is_sound(value: float | None) -> bool:
    return isinstance(value, int | float) and math.isfinite(value) and value > 0


def _mean(values: Mapping[str, float]) -> float:
    return sum(values.values()) / len(values)
