"""The gate: numbers in, verdicts out; no files, no pytest, no torch."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any

from sdopt.bench.judge.judging import judged
from sdopt.bench.judge.known import Known
from sdopt.bench.judge.remedies import completed, mended
from sdopt.bench.judge.verdict import Outcome, Verdict, fault, first_failure, void
from sdopt.bench.metrics import metrics_of
from sdopt.bench.metrics.images import SSIM_COST, SSIM_DRIFT, SSIM_TRUTH
from sdopt.bench.metrics.latents import LATENT_DRIFT, LATENT_DRIFT_FLOAT64
from sdopt.bench.metrics.level import EFFECT, PIPELINE, REPEAT
from sdopt.bench.metrics.memory import PEAK
from sdopt.bench.metrics.metric import MEANS, Better, Metric, Seen, Subject
from sdopt.bench.metrics.time import LATENCY
from sdopt.levels import UNREPEATABLE, Level, cost_is_comparable

if TYPE_CHECKING:  # for annotations only: measuring imports torch, judging does not
    from sdopt.bench.measure import Comparison, FirstCall, Latency, Memory, Work
    from sdopt.bench.measure.repeat import Repeat

OWN_PROMPTS = "; limits are of the built-in prompts: reported, not gated"


@dataclass(kw_only=True)
class Gate(Known):
    """Judges the measurements of one run and keeps them and the verdicts.

    Each method takes what was measured of one subject, judges every metric of that subject, and
    gives back the verdict that speaks for them all.
    """

    measured: dict[str, dict[str, Any]] = field(default_factory=dict)
    verdicts: list[Verdict] = field(default_factory=list)

    def latency(self, level: Level, record: Latency, first: FirstCall) -> Verdict:
        """Judge the median round of one image, and what the rounds must not do.

        No round at all is a fault when comparing.
        """
        self._record(
            level,
            stage_ms=record.stage_ms,
            first_call_s=first.seconds,
            compile_cache=first.compile_cache,
            **({"gpu": asdict(record.gpu)} if record.gpu else {}),
        )
        return self._keep(self._judged(level, Subject.LATENCY, record, LATENCY))

    def memory(self, level: Level, record: Memory) -> Verdict:
        """Judge the allocated peak; the reserved and the device-wide one are recorded."""
        return self._keep(self._judged(level, Subject.MEMORY, record, PEAK))

    def work(self, level: Level, record: Work) -> Verdict:
        """Judge the counts: no recompile and no graph break ever, the rest as stored."""
        self._record(level, **{k: v for k, v in asdict(record).items() if v is not None})
        return self._keep(self._judged(level, Subject.WORK, record))

    def effect(self, level: Level, missing: Sequence[str]) -> Verdict:
        """Judge the proof that every field of the level took effect: nothing may be missing."""
        if missing:
            reason = "the level did not take effect: " + "; ".join(missing)
        else:
            reason = "every field of the level took effect"
        outcome = Outcome.REGRESSION if missing else Outcome.PASS
        verdict = Verdict(level=level.name, metric=EFFECT.name, outcome=outcome, reason=reason)
        return self._keep([verdict])

    def drift(
        self, level: Level, comparison: Comparison, unusable: Mapping[str, Any] | None = None
    ) -> Verdict:
        """Judge the worst prompt against the level's own stored images.

        `unusable` holds, by prompt, the error of an image that cannot be compared with; its `path`
        is that of a damaged file.
        """
        return self._compared(level, SSIM_DRIFT, comparison, unusable)

    def latents(
        self, level: Level, comparison: Comparison, unusable: Mapping[str, Any] | None = None
    ) -> Verdict:
        """Judge the prompt whose final latents are furthest from the level's own stored ones."""
        return self._compared(level, LATENT_DRIFT, comparison, unusable)

    def latents_float64(
        self, level: Level, comparison: Comparison, unusable: Mapping[str, Any] | None = None
    ) -> Verdict:
        """Judge the latents that were generated in float64 in the same way."""
        return self._compared(level, LATENT_DRIFT_FLOAT64, comparison, unusable)

    def repeat(self, level: Level, repeat: Repeat) -> Verdict:
        """Judge two images of one request: not a bit may differ, unless a library forbids it."""
        self._record(level, repeat_latents=repeat.latents_apart)
        outcome = Outcome.PASS if repeat.is_exact else Outcome.REGRESSION
        reason = str(repeat)
        if not repeat.is_exact and level.name in UNREPEATABLE:
            outcome = Outcome.RECORDED
            reason += f"; not judged: {UNREPEATABLE[level.name]}"
        verdict = Verdict(
            level=level.name,
            metric=REPEAT.name,
            outcome=outcome,
            reason=reason,
            measured=repeat.latents_differing + repeat.pixels_differing,
            limit=0,
        )
        return self._keep([verdict])

    def cost(self, level: Level, comparison: Comparison) -> Verdict:
        """Judge the mean likeness to the reference level, if it says what the change costs."""
        reference = self.levels[level.reference or level.name]
        comparable = cost_is_comparable(level, reference)
        other = reference.name
        if not comparable:
            other += ", whose sampler draws other noise: reported, not gated"
        elif self.own_prompts:
            other += OWN_PROMPTS
        self._record(level, cost_is_comparable=comparable)
        return self._compared(level, SSIM_COST, comparison, other=other)

    def ground_truth(self, level: Level, comparison: Comparison) -> Verdict:
        """Judge the mean likeness to the true renderings of the prompts."""
        other = f"their ground truth{OWN_PROMPTS if self.own_prompts else ''}"
        return self._compared(level, SSIM_TRUTH, comparison, other=other)

    def raised(self, level: str, what: str) -> Verdict:
        """A pipeline that raised: a failure of the level, whatever was being measured."""
        reason = f"its pipeline raised {what}"
        outcome = Outcome.REGRESSION
        verdict = Verdict(level=level, metric=PIPELINE.name, outcome=outcome, reason=reason)
        return self._keep([verdict])

    def _judged(
        self, level: Level, subject: Subject, record: Any, voided: Metric | None = None
    ) -> list[Verdict]:
        """A verdict on each metric of a record; a disturbed record says nothing of `voided`."""
        taken = [(metric, metric.taken(record)) for metric in metrics_of(subject)]
        here = [(metric, value) for metric, value in taken if metric.needed or value is not None]
        self._record(level, **{metric.name: value for metric, value in here})
        verdicts: list[Verdict] = []
        for metric, _ in here:
            if metric is voided and record.disturbances:
                verdicts.append(void(level.name, metric.name, record.disturbances))
                continue
            row = self.measured[level.name]
            verdict = judged(self, metric, level, row, metric.what)
            verdicts += [verdict] if verdict else []
        return verdicts

    def _compared(
        self,
        level: Level,
        leading: Metric,
        comparison: Comparison,
        unusable: Mapping[str, Any] | None = None,
        other: str = "",
    ) -> Verdict:
        """A verdict on each metric of a comparison; `leading` speaks of what could not be made."""
        if unusable:
            unmade = fault(level.name, leading.name, "; ".join(map(str, unusable.values())))
            next_step = mended(self, level.name, unusable)
            return self._keep([replace(unmade, next_step=next_step)])
        if comparison.faults:
            return self._keep([_broken(level.name, leading, comparison, self.again(level.name))])
        of_subject = [one for one in metrics_of(leading.of) if one.name in comparison.seen]
        verdicts: list[Verdict] = []
        for metric in sorted(of_subject, key=lambda one: one is not leading):
            seen = comparison.seen[metric.name]
            value, prompt = _value_of(metric, seen)
            self._record(level, **{metric.name: value})
            what = metric.what.format(
                count=len(seen), prompt=prompt, where=seen[prompt].where, other=other
            )
            row = self.measured[level.name]
            verdict = judged(self, metric, level, row, what)
            verdicts += [verdict] if verdict else []
        return _telling_all(self._keep(verdicts), verdicts)

    def _record(self, level: Level, **values: Any) -> None:
        self.measured.setdefault(level.name, {}).update(values)

    def _keep(self, verdicts: Sequence[Verdict]) -> Verdict:
        """Complete and store the verdicts; give back the one that speaks for them all."""
        whole = [completed(self, verdict) for verdict in verdicts]
        self.verdicts.extend(whole)
        return first_failure(whole)


def _value_of(metric: Metric, seen: Mapping[str, Seen]) -> tuple[float, str]:
    """The metric's value over the prompts, and the worst of them; NaN is the worst of all."""
    sign = 1 if metric.better is Better.HIGHER else -1
    worst = min(seen, key=lambda name: (not math.isnan(seen[name].value), sign * seen[name].value))
    if metric.of in MEANS:
        return sum(one.value for one in seen.values()) / len(seen), worst
    return seen[worst].value, worst


def _broken(level: str, metric: Metric, comparison: Comparison, again: str) -> Verdict:
    """The verdict on images that are NaN, black or constant, and on latents that are not finite."""
    return Verdict(
        level=level,
        metric=metric.name,
        outcome=Outcome.REGRESSION,
        reason="; ".join(f"{name}: {what}" for name, what in comparison.faults.items()),
        next_step=f"{again}  # once the images are sound: these are not accepted",
    )


def _telling_all(spoken: Verdict, verdicts: Sequence[Verdict]) -> Verdict:
    """The verdict that speaks, with what else failed in the same comparison: one message."""
    others = [one for one in verdicts if not one.passed and one.metric != spoken.metric]
    also = (
        f"; {one.metric} {one.measured:.6g} (limit {one.limit}): {one.reason}" for one in others
    )
    return replace(spoken, reason=spoken.reason + "".join(also))
