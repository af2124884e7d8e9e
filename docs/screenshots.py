"""The images of docs/how-to/make-a-report.md: `python docs/screenshots.py` makes them anew.

It needs Chromium (Debian's package `chromium`) and `pip install -e '.[dev]'`.
"""

from __future__ import annotations

import io
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from sdopt.cli.app import main as sdopt
from sdopt.util.files import write_whole

DOCS = Path(__file__).parent
ROOT = DOCS.parent
sys.path.append(str(ROOT / "tests" / "browser"))
import chromium  # noqa: E402

OUT = DOCS / "how-to"
SAMPLES = DOCS / "samples" / "report"
H100 = "baselines/history/nvidia-h100-80gb-hbm3-79gib-700-w/sd15-random/0015_h100-15.json"
CPU = "docs/samples/report/0002_embedded-cpu.json"
MOST_BYTES = 300_000
COLORS = 256
WIDE, PHONE = 1180, 390
GAP_PX = 16


@dataclass(frozen=True, kw_only=True)
class Shot:
    """A file of the docs: some sections of a report, below each other."""

    name: str
    run: str
    sections: Sequence[str]
    scheme: str
    width: int = WIDE


SHOTS = (
    Shot(
        name="report-h100",
        run=H100,
        sections=("header", "#verdicts", "#ladder"),
        scheme="light",
    ),
    Shot(
        name="report-h100-charts",
        run=H100,
        sections=("#quality", "#stages-of-time", "#history-of-levels"),
        scheme="light",
    ),
    Shot(
        name="report-cpu",
        run=CPU,
        sections=("header", "#verdicts", "#quality", "#images"),
        scheme="dark",
    ),
    Shot(
        name="report-phone",
        run=CPU,
        sections=("header", "#verdicts", "#images"),
        scheme="dark",
        width=PHONE,
    ),
)


def report(run: str, out: Path) -> Path:
    """The report of a run of this repository."""
    against = ["--against", str(SAMPLES / "0001_embedded-cpu.json")] if run == CPU else []
    if sdopt(["report", str(ROOT / run), "-o", str(out), "--force", *against]):
        raise SystemExit(f"there is no report of {run}")
    return out


def taken(browser: Any, file: Path, shot: Shot) -> bytes:
    """The PNG of one shot, with as few colors as look the same."""
    view = {"width": shot.width, "height": 900}
    page = chromium.opened(browser, file, viewport=view, color_scheme=shot.scheme)
    page.wait_for_timeout(500)
    parts = [
        Image.open(io.BytesIO(page.locator(section).first.screenshot()))
        for section in shot.sections
    ]
    background = page.evaluate("getComputedStyle(document.body).backgroundColor")
    page.close()
    height = sum(part.height + GAP_PX for part in parts) + GAP_PX
    rgb = tuple(int(one) for one in background[4:-1].split(","))
    sheet = Image.new("RGB", (shot.width, height), rgb)
    top = GAP_PX
    for part in parts:
        sheet.paste(part, ((shot.width - part.width) // 2, top))
        top += part.height + GAP_PX
    buffer = io.BytesIO()
    few = sheet.quantize(COLORS, method=Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE)
    few.save(buffer, format="PNG", optimize=True)
    return buffer.getvalue()


def main() -> int:
    """Make every image; 1 if one is too large to be committed."""
    too_large = 0
    with tempfile.TemporaryDirectory() as folder, chromium.browser() as browser:
        files = {
            run: report(run, Path(folder) / f"{number}.html")
            for number, run in enumerate(dict.fromkeys(shot.run for shot in SHOTS))
        }
        for shot in SHOTS:
            content = taken(browser, files[shot.run], shot)
            write_whole(OUT / f"{shot.name}.png", content)
            print(f"wrote {OUT / shot.name}.png, {len(content) // 1000} kB")
            too_large += len(content) > MOST_BYTES
    return min(1, too_large)


if __name__ == "__main__":
    sys.exit(main())
