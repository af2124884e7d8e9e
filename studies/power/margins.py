"""By how much each fault of arithmetic misses its limit: `python -m studies.power.margins`.

The rows of a table in docs/evidence: every level that is named generates all prompts with each
fault of `numerics` inside, and is judged by what is stored.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from sdopt.bench.faults.fault import Fault
from sdopt.bench.faults.judging import numeric_verdicts
from sdopt.bench.faults.numerics import numeric_faults
from sdopt.bench.judge.verdict import Verdict
from sdopt.bench.session import RunContext, Session, Settings
from sdopt.errors import SdoptError
from sdopt.levels import get_level
from sdopt.util.progress import Progress

ROOT = Path(__file__).resolve().parents[2]
HEADING = (
    "| fault | level | latents off by | times the limit | in float64 | times the limit "
    "| worst SSIM | seen by |",
    "|---|---|---:|---:|---:|---:|---:|---|",
)
DISTANCES = ("latent_drift", "latent_drift_float64")


def rows(session: Session, names: Sequence[str]) -> list[str]:
    """A line for each fault and level."""
    lines: dict[str, list[str]] = {}
    for name in names:
        level = get_level(name)
        with session.pool.warm(level) as (pipeline, _):
            for fault in numeric_faults(name, session.run.dtype):
                verdicts = numeric_verdicts(fault, session, level, pipeline)
                lines.setdefault(fault.name, []).append(_row(fault, name, verdicts))
    return [line for of_fault in lines.values() for line in of_fault]


def _row(fault: Fault, level: str, verdicts: Sequence[Verdict]) -> str:
    by_metric = {verdict.metric: verdict for verdict in verdicts}
    cells = [fault.name, f"`{level}`"]
    for metric in DISTANCES:
        cells += _distance(by_metric[metric]) if metric in by_metric else ("-", "-")
    ssim = by_metric["ssim_drift"]
    cells.append("-" if ssim.measured is None else f"{ssim.measured:.6f}")
    cells.append(", ".join(v.metric for v in verdicts if not v.passed) or "nothing")
    return f"| {' | '.join(cells)} |"


def _distance(verdict: Verdict) -> tuple[str, str]:
    """The distance, and how many times the limit that is. Raises SdoptError for a fault."""
    if verdict.measured is None or not verdict.limit:
        raise SdoptError(verdict.message)
    return f"{verdict.measured:.2g}", f"{verdict.measured / verdict.limit:.3g}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table; 2 if something is missing."""
    parser = argparse.ArgumentParser(prog="python -m studies.power.margins", description=__doc__)
    parser.add_argument("--levels", nargs="+", default=["dpm-20", "hoisted"], metavar="LEVEL")
    parser.add_argument("--source", default="auto", metavar="NAME")
    parser.add_argument("--baselines", type=Path, default=ROOT / "baselines", metavar="DIR")
    options = parser.parse_args(arguments)
    settings = Settings(source=options.source, baselines_root=options.baselines)
    run = RunContext(settings=settings, progress=Progress(sys.stderr))
    try:
        lines = rows(Session.of(run), options.levels)
    except SdoptError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print("\n".join((*HEADING, *lines)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
