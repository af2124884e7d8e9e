"""What an evaluation found, and the section of docs/evidence/miniature.md that tells it."""

from dataclasses import dataclass
from pathlib import Path

from sdopt.bench.measure.scoring import JUDGED
from sdopt.miniature import GUIDANCE_SCALE

BEGIN, END = "<!-- measured: begin -->", "<!-- measured: end -->"

TARGETS: dict[str, float] = {
    "vae": 0.95,
    "tiny": 0.90,
    "background": 0.90,
    "shape": 0.90,
    "colour": 0.90,
    "position": 0.90,
    "solver": 0.95,
}
"""Least accepted values, see `Findings.missed`; each attribute has to reach its own."""


@dataclass(frozen=True, kw_only=True)
class GuidanceRow:
    """What one guidance scale gives; all but `attributes` are mean SSIM values."""

    scale: float
    attributes: float
    """Share of background, shape, colour and position that Euler Ancestral 30 generates right."""
    truth: float
    """Euler Ancestral 30 against the true drawings."""
    solver: float
    """DPM-Solver++ 20 steps against 50."""
    cutoff: float
    """DPM-Solver++ 20 with guidance cut off at 0.4 against the same without."""
    tiny: float
    """DPM-Solver++ 20 through the Tiny VAE against the same through the VAE."""


@dataclass(frozen=True, kw_only=True)
class Findings:
    """Everything measured over the same held-out scenes; SSIM values are means."""

    scenes: int
    vae: float
    tiny: float
    attributes: dict[str, float]
    """Euler Ancestral 30 at `GUIDANCE_SCALE`: share generated right, per attribute."""
    dpm_truth: float
    """DPM-Solver++ 20 at `GUIDANCE_SCALE` against the true drawings."""
    guidance: list[GuidanceRow]
    machine: str

    def chosen(self) -> GuidanceRow:
        """The row of `GUIDANCE_SCALE`."""
        return next(row for row in self.guidance if row.scale == GUIDANCE_SCALE)

    def missed(self) -> list[str]:
        """A line for each target that is not met; NaN meets none."""
        values = {
            **self.attributes,
            "vae": self.vae,
            "tiny": self.tiny,
            "solver": self.chosen().solver,
        }
        return [
            f"{name}: measured {values[name]:.4f}, least accepted {least}"
            for name, least in TARGETS.items()
            if not values[name] >= least
        ]


def section(found: Findings) -> str:
    """The Markdown between `BEGIN` and `END`."""
    return "\n".join([BEGIN, "", *_summary(found), "", *_guidance(found), "", END])


def write_section(found: Findings, page: Path) -> None:
    """Puts `section(found)` in place of the old one; ValueError if `page` has no place for it."""
    text = page.read_text()
    if BEGIN not in text or END not in text:
        raise ValueError(f"{page} has no lines {BEGIN!r} and {END!r} to write between")
    before, after = text.split(BEGIN)[0], text.split(END)[1]
    temporary = page.with_name(f".{page.name}.new")
    temporary.write_text(before + section(found) + after)
    temporary.rename(page)


def _summary(found: Findings) -> list[str]:
    chosen = found.chosen()
    shares = ", ".join(f"{name} {100 * share:.1f} %" for name, share in found.attributes.items())
    return [
        f"{found.scenes} held-out captions, guidance scale {GUIDANCE_SCALE}, {found.machine}.",
        "",
        "| what | measured | least accepted |",
        "|---|---|---|",
        f"| VAE reconstruction, SSIM to the ground truth | {found.vae:.4f} | {TARGETS['vae']} |",
        f"| Tiny VAE decoding the VAE's latents, SSIM | {found.tiny:.4f} | {TARGETS['tiny']} |",
        *(
            f"| Euler Ancestral 30, {name} right | {100 * found.attributes[name]:.1f} % "
            f"| {100 * TARGETS[name]:.0f} % |"
            for name in JUDGED
        ),
        f"| DPM-Solver++ 2M, 20 steps against 50, SSIM "
        f"| {chosen.solver:.4f} | {TARGETS['solver']} |",
        f"| Euler Ancestral 30, SSIM to the ground truth | {chosen.truth:.4f} | |",
        f"| DPM-Solver++ 2M 20, SSIM to the ground truth | {found.dpm_truth:.4f} | |",
        f"| cost of the CFG cutoff at 0.4 (`dpm-20`), SSIM | {chosen.cutoff:.4f} | |",
        f"| cost of the Tiny VAE (`dpm-20`), SSIM | {chosen.tiny:.4f} | |",
        "",
        f"Right by attribute: {shares}.",
    ]


def _guidance(found: Findings) -> list[str]:
    head = "| guidance | attributes right | SSIM to truth | 20 against 50 | cutoff | Tiny VAE |"
    lines = [head, "|---|---|---|---|---|---|"]
    for row in found.guidance:
        values = (row.truth, row.solver, row.cutoff, row.tiny)
        shown = " | ".join(f"{value:.4f}" for value in values)
        lines.append(f"| {row.scale} | {100 * row.attributes:.1f} % | {shown} |")
    return lines
