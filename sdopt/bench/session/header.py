"""The lines that say on what, with which weights and against what a run works."""

from __future__ import annotations

from pathlib import Path

from sdopt.bench.session.context import RunContext
from sdopt.bench.session.store import BaselineStore
from sdopt.bench.stored.compared import Compared, NotCompared, Refused

WITHOUT_CUDA = (
    "sdopt: without CUDA graphs run step by step, PyTorch's operations stand for Triton's kernels, "
    "and memory and kernel figures are missing"
)


def header(run: RunContext, store: BaselineStore) -> list[str]:
    """What every run begins with."""
    source, settings = run.source, run.settings
    return [
        f"sdopt: {run.hardware}, {run.dtype}",
        f"sdopt: kernels for {kernels(run)}" if run.device.type == "cuda" else WITHOUT_CUDA,
        f"sdopt: source {source.name} ({source.why}), {source.size_px} x {source.size_px}, "
        f"guidance scale {source.guidance_scale:g}, {len(run.workload.requests)} prompts",
        f"sdopt: baselines {settings.baselines_root}, set {run.baseline_set}, "
        f"hardware key {run.hardware.key}",
        *_compared_with(run, store),
    ]


def kernels(run: RunContext) -> str:
    """How the engine reads and cuts its work on the run's GPU, and who measured that."""
    from sdopt.engine.cards import card_of
    from sdopt.engine.tables import described

    return described(card_of(run.device))


def _compared_with(run: RunContext, store: BaselineStore) -> list[str]:
    match store.history:
        case NotCompared():
            return []
        case Refused(reason=reason):
            lines = [f"sdopt: comparing with nothing: {reason}"]
            if not any(store.history_folder.glob("*.json")):
                lines.append("sdopt: latency will fail; --benchmark-autosave stores a first run")
            return lines
        case Compared() as found:
            others = {str(path): path for path in found.files.values()}
            earlier = len(found.runs) - len(others) - 1
            changes = found.changes(run.environment)
            return [
                f"sdopt: comparing with {found.newest.path}"
                + (f" and {earlier} earlier" if earlier else "")
                + "".join(
                    f", and {_levels_of(found, path)} with {path}" for path in others.values()
                ),
                *([f"sdopt: changed since then: {', '.join(changes)}"] if changes else []),
            ]


def _levels_of(found: Compared, path: Path) -> str:
    return ", ".join(name for name, one in found.files.items() if one == path)
