"""The gate: numbers in, verdicts out; no files, no pytest, no torch."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any

from sdopt.bench.judge.rules import (
    PRIORS,
    at_least,
    at_most,
    by_history,
    exactly,
    is_sound,
    noise_class,
)
from sdopt.bench.judge.statistics import Prior
from sdopt.bench.judge.verdict import Outcome, Verdict, fault, first_failure, recorded, void
from sdopt.levels import UNREPEATABLE, Level, cost_is_comparable, get_level

if TYPE_CHECKING:  # for annotations only: measuring imports torch, judging does not
    from sdopt.bench.measure import Comparison, FirstCall, Latency, Memory, Work
    from sdopt.bench.measure.repeat import Repeat
    from sdopt.errors import BrokenFileError

MEMORY_METRICS = ("peak_allocated_mib", "peak_reserved_mib", "device_used_mib")
GATED_MEMORY = "peak_allocated_mib"
RUN = "pytest benchmarks/"
ZERO_WORK = ("recompiles", "graph_breaks")
ZERO_COUNTS = (*ZERO_WORK, "graphs_in_rounds")
EXACT_COUNTS = ("unet_evaluations", "tflop")
"""The same on every machine: compared with the stored counts in every run."""
WORK_DETAILS = ("calls", "tflop_by_module")
"""What says where a count of work changed."""


@dataclass(frozen=True, kw_only=True)
class Limits:
    """The lowest SSIM that passes, per level; None where nothing is gated.

    `drift` is for the worst prompt, `cost` and `truth` for the mean over the prompts. `latents` is
    the largest relative L2 distance that passes, of the worst prompt, `float64` that of latents
    drawn in float64; None is the default.
    """

    drift: float
    cost: float | None = None
    truth: float | None = None
    latents: float | None = None
    float64: float | None = None


DEFAULT_LIMITS = Limits(drift=0.99)
"""For sources whose own spread between machines nobody measured yet."""
DEFAULT_LATENT_LIMITS = {"latent_drift": 0.02, "latent_drift_float64": 1e-6}
"""The same for the relative L2 of final latents."""
GROWTH_LIMIT_MIB = {"cpu": 1.5, "cuda": 1.0}
"""What each image may leave in use: resident memory on a CPU, allocated on a GPU, where a healthy
level leaves exactly nothing. docs/explanation/verdicts.md has the CPU's noise."""
BLOCK_DRIFT_LIMIT = 0.1
"""Of the full range. Float16 on a GPU differs from float32 on a CPU by 0.034 at most, in five
pictures of fifteen levels; a white spot of one block by 0.14 to 0.9."""


@dataclass(kw_only=True)
class Gate:
    """Judges the measurements of one run and keeps them and the verdicts.

    `comparing` is whether a stored run was asked for. `stored` is then that run, as metrics per
    level, and `history` its file; `refusal` says why there is none, and `refusal_hint` what to run.
    `redefined` says for a level of the stored run in what it was another one. `command` is what
    started this run, for the commands that verdicts suggest. `device` is 'cuda' or 'cpu'.

    `series` holds, by level and metric, the values of all stored runs that this one is judged by,
    oldest first, and `commit` what the newest of them ran. `work_stored` holds the stored counts of
    work by level, whether comparing or not, and `work_file` where they stand.
    """

    comparing: bool = False
    device: str = "cuda"
    command: str = RUN
    stored: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    history: str | None = None
    refusal: str | None = None
    refusal_hint: str | None = None
    redefined: Mapping[str, str] = field(default_factory=dict)
    series: Mapping[str, Mapping[str, Sequence[float]]] = field(default_factory=dict)
    commit: str | None = None
    work_stored: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    work_file: str | None = None
    limits: Mapping[str, Limits] = field(default_factory=dict)
    limits_file: str | None = None
    measured: dict[str, dict[str, Any]] = field(default_factory=dict)
    verdicts: list[Verdict] = field(default_factory=list)

    def latency(self, level: Level, record: Latency, first: FirstCall) -> Verdict:
        """Judge the median round of one picture, and what the rounds must not do.

        No round at all is a fault when comparing.
        """
        self._record(
            level,
            latency_ms=record.median_ms,
            stage_ms=record.stage_ms,
            first_call_s=first.seconds,
            compile_cache=first.compile_cache,
            **({"gpu": asdict(record.gpu)} if record.gpu else {}),
        )
        if record.disturbances:
            verdict = void(level.name, "latency_ms", record.disturbances)
        else:
            prior = PRIORS["latency_ms"][noise_class(self.device, level)]
            verdict = self._against_history(level, "latency_ms", prior)
        return self._keep([verdict, *self._of_rounds(level, record)])

    def _of_rounds(self, level: Level, record: Latency) -> list[Verdict]:
        """Judge by fixed limits, in every run."""
        verdicts = []
        if record.graphs_in_rounds is not None:
            self._record(level, graphs_in_rounds=record.graphs_in_rounds)
            verdicts.append(self._zero(level, "graphs_in_rounds"))
        if record.growth_mib is not None:
            self._record(level, growth_mib=record.growth_mib)
            what = "left behind by each image, the median over the timed rounds"
            limit = GROWTH_LIMIT_MIB[self.device]
            verdicts.append(at_most(level.name, "growth_mib", record.growth_mib, limit, what))
        return verdicts

    def memory(self, level: Level, record: Memory) -> Verdict:
        """Judge the allocated peak; the reserved and the device-wide one are recorded."""
        self._record(level, **{name: getattr(record, name) for name in MEMORY_METRICS})
        if record.disturbances:
            return self._keep([void(level.name, GATED_MEMORY, record.disturbances)])
        prior = PRIORS[GATED_MEMORY]["cuda"]
        return self._keep([self._against_history(level, GATED_MEMORY, prior)])

    def work(self, level: Level, record: Work) -> Verdict:
        """Judge the counts: no recompile and no graph break ever, the rest as stored."""
        self._record(level, **{k: v for k, v in asdict(record).items() if v is not None})
        zero = [self._zero(level, metric) for metric in ZERO_WORK]
        exact = [self._same_work(level, metric) for metric in EXACT_COUNTS]
        on_gpu = self._gpu_work(level) if record.kernel_launches is not None else []
        verdicts = [*zero, *exact, *on_gpu]
        speaking = first_failure(verdicts)
        kept = [*self._complete_all([*zero, *on_gpu]), *self._complete_all(exact, self.work_file)]
        self.verdicts.extend(kept)
        return next(v for v in kept if v.metric == speaking.metric)

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
        self, level: Level, comparison: Comparison, unusable: Mapping[str, Any] | None = None
    ) -> Verdict:
        """Judge the worst prompt against the level's own stored pictures, as a whole and by blocks.

        `unusable` holds, by prompt, the error of a picture that cannot be compared with; its `path`
        is that of a damaged file.
        """
        if unusable:
            verdict = fault(level.name, "ssim_drift", "; ".join(map(str, unusable.values())))
            step = self._mended(level, unusable)
            return self._keep([replace(verdict, next_step=step)])
        if comparison.faults:
            return self._broken(level, "ssim_drift", comparison)
        ssim = comparison.ssim
        worst = min(ssim, key=lambda name: (not math.isnan(ssim[name]), ssim[name]))
        blocks = comparison.worst_block
        spotted = max(blocks, key=lambda name: (math.isnan(blocks[name]), blocks[name]))
        self._record(
            level,
            ssim_drift=ssim[worst],
            psnr_drift_db=min(comparison.psnr_db.values()),
            block_drift=blocks[spotted],
        )
        limits = self.limits.get(level.name)
        what = f"worst of {len(ssim)} prompts: {worst}"
        if limits is None:
            what += " (default limit: none was measured for this level)"
        limit = (limits or DEFAULT_LIMITS).drift
        verdict = at_least(level.name, "ssim_drift", ssim[worst], limit, what)
        column, row = comparison.likeness[spotted].worst_block_at
        spot = f"mean difference of the worst block, at column {column}, row {row} of {spotted}"
        block = at_most(level.name, "block_drift", blocks[spotted], BLOCK_DRIFT_LIMIT, spot)
        spoken = self._keep([verdict, block], file=self.limits_file)
        if spoken.metric == "ssim_drift" and not block.passed:  # one message for both
            also = f"block_drift {blocks[spotted]:.6g} (limit {block.limit}): {spot}"
            return replace(spoken, reason=f"{spoken.reason}; {also}")
        return spoken

    def latents(
        self,
        level: Level,
        distances: Mapping[str, float],
        unusable: Mapping[str, BrokenFileError] | None = None,
    ) -> Verdict:
        """Judge the prompt whose final latents are furthest from the level's own stored ones.

        `unusable` says, by prompt, why there are no stored ones to compare with.
        """
        limits = self.limits.get(level.name)
        limit = limits.latents if limits else None
        return self._distance(level, "latent_drift", distances, limit, unusable or {})

    def latents_float64(
        self,
        level: Level,
        distances: Mapping[str, float],
        unusable: Mapping[str, BrokenFileError] | None = None,
    ) -> Verdict:
        """Judge the latents that were drawn in float64 in the same way."""
        limits = self.limits.get(level.name)
        limit = limits.float64 if limits else None
        return self._distance(level, "latent_drift_float64", distances, limit, unusable or {})

    def _distance(
        self,
        level: Level,
        metric: str,
        distances: Mapping[str, float],
        limit: float | None,
        unusable: Mapping[str, BrokenFileError],
    ) -> Verdict:
        if unusable:
            verdict = fault(level.name, metric, "; ".join(map(str, unusable.values())))
            next_step = self._mended(level, unusable)
            return self._keep([replace(verdict, next_step=next_step)])
        worst = max(distances, key=lambda name: (math.isnan(distances[name]), distances[name]))
        self._record(level, **{metric: distances[worst]})
        what = f"relative L2 of the final latents, worst of {len(distances)} prompts: {worst}"
        if limit is None:
            limit = DEFAULT_LATENT_LIMITS[metric]
            what += " (default limit: none was measured for this level)"
        verdict = at_most(level.name, metric, distances[worst], limit, what)
        if math.isinf(distances[worst]):
            what = f"NaN or infinite values in the final latents of {worst}"
            verdict = replace(verdict, outcome=Outcome.REGRESSION, reason=what)
        return self._keep([verdict], file=self.limits_file)

    def repeat(self, level: Level, repeat: Repeat) -> Verdict:
        """Judge two drawings of one request: not a bit may differ, unless a library forbids it."""
        self._record(level, repeat_latents=repeat.latents_apart)
        outcome = Outcome.PASS if repeat.is_exact else Outcome.REGRESSION
        reason = str(repeat)
        if not repeat.is_exact and level.name in UNREPEATABLE:
            outcome = Outcome.RECORDED
            reason += f"; not judged: {UNREPEATABLE[level.name]}"
        differing = repeat.latents_differing + repeat.pixels_differing
        verdict = Verdict(
            level=level.name,
            metric="repeat",
            outcome=outcome,
            reason=reason,
            measured=differing,
            limit=0,
        )
        return self._keep([verdict])

    def _mended(self, level: Level, unusable: Mapping[str, Any]) -> str:
        """Git's before this run's: on a regressed tree those would be the wrong ones."""
        accept = f"{self._again(level.name)} --sdopt-accept  # stores this run's images and latents"
        paths = [path for error in unusable.values() if (path := getattr(error, "path", None))]
        if not paths:
            return accept
        checkout = f"git checkout -- {' '.join(map(str, paths))}  # brings back what was stored"
        return f"{checkout}\n  or:   {accept}, if git has none that is whole"

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

    def raised(self, level: str, what: str) -> Verdict:
        """A pipeline that raised: a failure of the level, whatever was being measured."""
        reason = f"its pipeline raised {what}"
        verdict = Verdict(level=level, metric="pipeline", outcome=Outcome.REGRESSION, reason=reason)
        return self._keep([verdict])

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
        verdict = Verdict(
            level=level.name,
            metric=metric,
            outcome=Outcome.REGRESSION,
            reason=reason,
            next_step=f"{self._again(level.name)}  # once the pictures are sound: these are not "
            "accepted",
        )
        return self._keep([verdict], file=self.limits_file)

    def _record(self, level: Level, **values: Any) -> None:
        self.measured.setdefault(level.name, {}).update(values)

    def _against_history(self, level: Level, metric: str, prior: Prior | None) -> Verdict:
        """Judge one metric by the stored runs; without a prior it has to equal the newest one."""
        measured = self.measured[level.name].get(metric)
        if not self.comparing:
            return recorded(level.name, metric, measured)
        if self.refusal:
            return fault(level.name, metric, self.refusal, measured)
        if level.name in self.redefined:
            reason = f"the stored run measured another level: {self.redefined[level.name]}"
            return fault(level.name, metric, reason, measured)
        if prior is None:
            newest = self.stored.get(level.name, {})
            changes = ", ".join(changed_work(newest, self.measured[level.name]))
            return exactly(level.name, metric, measured, newest.get(metric), changes)
        stored = self.series.get(level.name, {}).get(metric, ())
        return by_history(level.name, metric, measured, stored, prior, self.comparisons)

    @property
    def comparisons(self) -> int:
        """How many judgements by history a whole run makes: they share one error rate."""
        metrics = sum(self.device in _devices(classes) for classes in PRIORS.values())
        return max(1, len(self.stored)) * metrics

    def _same_work(self, level: Level, metric: str) -> Verdict:
        """Compare a count with the stored one, which holds for every machine."""
        measured, stored = self.measured[level.name], self.work_stored.get(level.name, {})
        changes = ", ".join(changed_work(stored, measured)) if stored else ""
        verdict = exactly(level.name, metric, measured[metric], stored.get(metric), changes)
        if verdict.outcome is Outcome.FAULT:
            accept = f"{self._again(level.name)} --sdopt-accept  # stores this run's counts"
            return replace(verdict, next_step=accept)
        return verdict

    def _gpu_work(self, level: Level) -> list[Verdict]:
        """Judge what the GPU did by the runs of this hardware.

        cuDNN's search for the fastest algorithm does not always end with the same one, and their
        numbers of kernels differ: only without it is their count exact.
        """
        kernels = PRIORS["kernel_launches"]["cuda"] if level.tf32 else None
        return [
            self._against_history(level, "gpu_busy_ms", PRIORS["gpu_busy_ms"]["cuda"]),
            self._against_history(level, "kernel_launches", kernels),
            self._against_history(level, "host_syncs", None),
        ]

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
        completed = self._complete_all(verdicts, file)
        self.verdicts.extend(completed)
        return first_failure(completed)

    def _complete_all(self, verdicts: Sequence[Verdict], file: str | None = None) -> list[Verdict]:
        return [self._complete(verdict, file) for verdict in verdicts]

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
        if verdict.metric in ("effect", "repeat", "pipeline", "growth_mib"):
            return f"{again}  # once it is repaired"
        if verdict.metric in EXACT_COUNTS:
            return f"{again} --sdopt-accept  # if the new work is meant"
        if verdict.metric in ("ssim_drift", "block_drift", *DEFAULT_LATENT_LIMITS):
            return f"{again} --sdopt-accept  # if meant"
        if verdict.metric.startswith("ssim_"):
            return f"{again} --sdopt-accept, then python -m sdopt.bench.stored.limits  # if meant"
        return self._next_step_of_history(verdict, again, store)

    def _next_step_of_history(self, verdict: Verdict, again: str, store: str) -> str:
        if self.refusal:
            return self.refusal_hint or f"{store}  # stores a run to compare with"
        if verdict.outcome is Outcome.INSUFFICIENT:
            return f"{again} --benchmark-compare  # on a device that nothing else uses"
        if verdict.outcome is Outcome.FAULT and not _is_measured(verdict):
            return f"{again} --benchmark-compare  # measures it again"
        if verdict.outcome is Outcome.FAULT and verdict.stored is not None:
            anew = "leaves the unsound value behind, and stores pictures and counts anew"
            return f"{store} --sdopt-accept  # {anew}"
        if verdict.outcome is Outcome.FAULT:
            return f"{store}  # stores a run to compare with"
        settle = f"{again} --sdopt-ab={self.commit or 'BASE'}  # settles it in pairs of runs"
        return f"{settle}\n  or:   {store} --sdopt-accept  # if the new value is meant"


def changed_work(stored: Mapping[str, Any], measured: Mapping[str, Any]) -> list[str]:
    """'unet called 20 -> 19 times' and the like for each part and module whose work changed."""
    changes = []
    for name, before, now in _pairs(stored.get("calls"), measured.get("calls")):
        if before != now:
            changes.append(f"{name} called {before} -> {now} times")
    for name, before, now in _pairs(stored.get("tflop_by_module"), measured.get("tflop_by_module")):
        if not math.isclose(before, now, rel_tol=1e-9):
            changes.append(f"{name} {before:.6g} -> {now:.6g} TFLOP")
    for name, before, now in _pairs(stored.get("kernels_by_part"), measured.get("kernels_by_part")):
        if before != now:
            changes.append(f"{name} {before} -> {now} kernels")
    return changes


def _pairs(
    stored: Mapping[str, float] | None, measured: Mapping[str, float] | None
) -> Iterator[tuple[str, float, float]]:
    """Name, stored and measured value of what either side holds; nothing without both sides."""
    if stored is None or measured is None:
        return
    for name in {**stored, **measured}:
        yield name, stored.get(name, 0), measured.get(name, 0)


def _is_measured(verdict: Verdict) -> bool:
    """Whether the run itself did its part; a loop that never waits has 0 `host_syncs`."""
    return is_sound(verdict.measured) or (verdict.metric, verdict.measured) == ("host_syncs", 0)


def _devices(classes: Mapping[str, Prior]) -> set[str]:
    """'cuda' for the noise classes 'cuda' and 'cuda, eager'."""
    return {name.split(",")[0] for name in classes}


def _mean(values: Mapping[str, float]) -> float:
    return sum(values.values()) / len(values)
