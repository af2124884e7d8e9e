"""Draw the recorded evidence: `python -m studies.power.plot --samples FILE --out pairs.svg`.

Left, how often each way of judging calls a slowdown a regression; right, how far unchanged pairs
differ. It needs matplotlib, which `pip install -e '.[docs]'` brings.
"""

from __future__ import annotations

import argparse
import io
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sdopt.bench.faults.matrix import interval
from sdopt.errors import SdoptError
from sdopt.util.files import write_whole
from studies.power.rates import SLOWDOWNS, counts, recorded
from studies.power.samples import Samples, read_samples
from studies.power.shares import UNCHANGED

if TYPE_CHECKING:
    from matplotlib.axes import Axes

STYLES = ("o-", "s-", "^--", "v--", "d:", "x:")


def plot(samples: Samples, trials: int) -> bytes:
    """An SVG file. Raises SdoptError without matplotlib."""
    matplotlib = _matplotlib()
    # The same samples give the same bytes.
    with matplotlib.rc_context({"svg.hashsalt": "sdopt", "svg.fonttype": "none"}):
        figure = matplotlib.figure.Figure(figsize=(10, 5), layout="constrained")
        left, right = figure.subplots(1, 2, width_ratios=(3, 2))
        _draw_detections(left, samples, trials)
        _draw_unchanged(right, samples)
        figure.legend(loc="outside lower center", ncols=3, fontsize="small")
        file = io.BytesIO()
        figure.savefig(file, format="svg", metadata={"Date": None})
    return file.getvalue()


def _matplotlib() -> Any:
    try:
        import matplotlib
        import matplotlib.figure
    except ImportError as error:
        raise SdoptError(
            "a plot needs matplotlib, which is not installed; install it: "
            "pip install -c constraints.txt -e '.[docs]'"
        ) from error
    return matplotlib


def _draw_detections(axes: Axes, samples: Samples, trials: int) -> None:
    runs = recorded(samples)
    sizes = [100 * size for size in SLOWDOWNS]
    for style, (name, row) in zip(STYLES, counts(runs, 1, trials).items(), strict=True):
        shares = [100 * count / trials for count in row]
        bounds = [[100 * bound for bound in interval(count, trials)] for count in row]
        errors = [
            [max(share - low, 0) for share, (low, _) in zip(shares, bounds, strict=True)],
            [max(high - share, 0) for share, (_, high) in zip(shares, bounds, strict=True)],
        ]
        axes.errorbar(sizes, shares, yerr=errors, fmt=style, label=name.replace("`", ""), capsize=2)
    axes.set(
        xlabel="slowdown put in, % of an image (0: unchanged)",
        ylabel="called slower, % of comparisons",
        title=f"{samples.level} on {'a GPU' if samples.device == 'cuda' else 'a CPU'}",
        ylim=(-2, 102),
        xticks=sizes,
    )
    axes.grid(alpha=0.3)


def _draw_unchanged(axes: Axes, samples: Samples) -> None:
    ratios = [100 * (head / base - 1) for base, head in samples.times(UNCHANGED)]
    axes.hist(ratios, bins="doane", edgecolor="white")
    axes.axvline(0, color="black", linewidth=1)
    axes.set(
        xlabel="head over base, %",
        ylabel="pairs",
        title=f"{len(ratios)} unchanged pairs",
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the image; 2 if something is missing."""
    parser = argparse.ArgumentParser(prog="python -m studies.power.plot", description=__doc__)
    parser.add_argument("--samples", type=Path, nargs="+", required=True)
    parser.add_argument("--trials", type=int, default=1000, help="comparisons per point (1000)")
    parser.add_argument("--out", type=Path, required=True, help="an SVG file")
    options = parser.parse_args(arguments)
    try:
        write_whole(options.out, plot(read_samples(options.samples), options.trials))
    except SdoptError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
