"""By how much each fault of arithmetic misses its limit: `python -m sdopt.selftest.margins`.

The rows of the table in docs/trust.md: every level that is named draws all prompts with each fault
of `numerics` inside, and is judged by what is stored.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from sdopt.errors import SdoptError
from sdopt.levels import get_level
from sdopt.report.progress import Progress
from sdopt.selftest.fault import Fault
from sdopt.selftest.judging import numeric_verdicts
from sdopt.selftest.numerics import numeric_faults
from sdopt.suite import Settings, Suite
from sdopt.verdict import Verdict

ROOT = Path(__file__).resolve().parents[2]
HEADING = (
    "| fault | level | latents are off by | limit | times the limit | worst SSIM | seen by |",
    "|---|---|---:|---:|---:|---:|---|",
)


def rows(suite: Suite, names: Sequence[str]) -> list[str]:
    """A line for each fault and level."""
    lines: dict[str, list[str]] = {}
    for name in names:
        level = get_level(name)
        with suite.warm_pipeline(level) as (pipeline, _):
            for fault in numeric_faults(name, suite.dtype):
                verdicts = numeric_verdicts(fault, suite, level, pipeline)
                lines.setdefault(fault.name, []).append(_row(fault, name, verdicts))
    return [line for of_fault in lines.values() for line in of_fault]


def _row(fault: Fault, level: str, verdicts: Sequence[Verdict]) -> str:
    by_metric = {verdict.metric: verdict for verdict in verdicts}
    latents, ssim = by_metric["latent_drift"], by_metric["ssim_drift"]
    if latents.measured is None or latents.limit is None:
        raise SdoptError(latents.message)
    seen_by = ", ".join(v.metric for v in verdicts if not v.passed) or "nothing"
    cells = (
        *(fault.name, f"`{level}`", f"{latents.measured:.2g}", f"{latents.limit:.2g}"),
        f"{latents.measured / latents.limit:.3g}",
        "-" if ssim.measured is None else f"{ssim.measured:.6f}",
        seen_by,
    )
    return f"| {' | '.join(cells)} |"


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table; 2 if something is missing."""
    parser = argparse.ArgumentParser(prog="python -m sdopt.selftest.margins", description=__doc__)
    parser.add_argument("--levels", nargs="+", default=["dpm-20", "hoisted"], metavar="LEVEL")
    parser.add_argument("--source", default="auto", metavar="NAME")
    parser.add_argument("--baselines", type=Path, default=ROOT / "baselines", metavar="DIR")
    options = parser.parse_args(arguments)
    settings = Settings(source=options.source, baselines_root=options.baselines)
    try:
        lines = rows(Suite(settings=settings, progress=Progress(sys.stderr)), options.levels)
    except SdoptError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print("\n".join((*HEADING, *lines)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
