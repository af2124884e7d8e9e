"""Which steps feature caching may skip, measured: `python -m studies.feature_caching.study`."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sdopt.bench.measure.scoring import Images, mean_ssim
from sdopt.miniature import GUIDANCE_SCALE, MODEL_DIR
from sdopt.miniature.scenes import Scene, held_out_scenes
from sdopt.util.files import write_whole
from studies.feature_caching.cached_generation import CachedStudio, Plan
from studies.feature_caching.plans import (
    eliminate,
    families,
    fewer_steps,
    half_families,
    predicted_ms,
    variants,
)
from studies.miniature_quality.evaluate import ground_truth_images
from studies.miniature_quality.studio import Studio

STRESS_SCALE = 7.5
"""Stable Diffusion 1.5's guidance. It burns the miniature's images, so a plan's errors show."""
STEPS = 20
MOST_FOUND = 8
"""Full steps of the plans found that are confirmed; with more there is little left to gain."""
_ALL = Plan(full=tuple(range(STEPS)), steps=STEPS)


@dataclass(frozen=True, kw_only=True)
class Row:
    """One plan, against the same without caching. `stress` values are at `STRESS_SCALE`."""

    name: str
    plan: Plan
    predicted_ms: float
    ssim: float
    ssim_min: float
    psnr_db: float
    truth: float
    stress_ssim: float
    stress_psnr_db: float


class Jury:
    """Scenes, their seeds and the uncached images that plans are compared with."""

    def __init__(self, studio: Studio, scenes: list[Scene], first_seed: int, stressed: int) -> None:
        self.scenes, self.stressed = scenes, stressed
        self.captions = [scene.caption() for scene in scenes]
        self.seeds = list(range(first_seed, first_seed + len(scenes)))
        self.usual, self.hard = CachedStudio(studio), CachedStudio(studio, STRESS_SCALE)
        self.truth = ground_truth_images(scenes)
        self.reference = self.generate(_ALL)

    @cached_property
    def hard_reference(self) -> Images:
        """What `generate_hard` has to match."""
        return self.generate_hard(_ALL)

    def generate(self, plan: Plan) -> Images:
        """All scenes at the miniature's guidance."""
        return self.usual.generate(self.captions, self.seeds, plan)

    def generate_hard(self, plan: Plan) -> Images:
        """The first `stressed` scenes at `STRESS_SCALE`."""
        return self.hard.generate(self.captions[: self.stressed], self.seeds[: self.stressed], plan)

    def row(self, name: str, plan: Plan) -> Row:
        """Generates the plan and judges it."""
        generated, hard = self.generate(plan), self.generate_hard(plan)
        each = [mean_ssim(a[None], b[None]) for a, b in zip(generated, self.reference, strict=True)]
        return Row(
            name=name,
            plan=plan,
            predicted_ms=predicted_ms(plan),
            ssim=float(np.mean(each)),
            ssim_min=min(each),
            psnr_db=mean_psnr_db(generated, self.reference),
            truth=mean_ssim(generated, self.truth),
            stress_ssim=mean_ssim(hard, self.hard_reference),
            stress_psnr_db=mean_psnr_db(hard, self.hard_reference),
        )


def mean_psnr_db(first: Images, second: Images) -> float:
    """Mean PSNR of N pairs of images in dB, at most 100 each."""
    errors = np.square(first.astype(np.float64) - second).mean((1, 2, 3))
    return float(np.mean(10 * np.log10(255**2 / np.maximum(errors, 255**2 / 1e10))))


def search(jury: Jury, start: tuple[int, ...], kept: Path) -> list[Plan]:
    """The plans that `eliminate` finds from `start` on, by SSIM at the miniature's guidance.

    They are kept in a file after each round; delete it to search again.
    """

    def score(full: tuple[int, ...]) -> float:
        return mean_ssim(jury.generate(Plan(full=full, steps=STEPS)), jury.reference)

    found: list[tuple[int, ...]] = []
    for full in eliminate(start, score):
        found.append(full)
        write_whole(kept, (json.dumps(found) + "\n").encode())
        print(*full, flush=True)
    return [Plan(full=full, steps=STEPS) for full in found]


def coarse(every: int) -> tuple[int, ...]:
    """Every so many of the steps, and the last: where a search starts."""
    return tuple(sorted({*range(0, STEPS, every), STEPS - 1}))


def candidates(found: Iterable[Plan]) -> dict[str, Plan]:
    """Every plan of the study by name: families, what was found, variants, and the control."""
    named = {"all full": _ALL, **families(STEPS)}
    named.update({f"found, {len(p.full)} full": p for p in found if len(p.full) <= MOST_FOUND})
    for name in ("every 3", "every 5", "by the rule"):
        named.update(variants(name, named[name]))
    return {**named, **fewer_steps()}


def half_candidates() -> dict[str, Plan]:
    """Plans with half of the steps full, beside those of `turbo` and of as many steps uncached."""
    rule, control = "by the rule", f"{STEPS // 2} steps, none cached"
    return {
        "all full": _ALL,
        **half_families(STEPS),
        rule: families(STEPS)[rule],
        control: fewer_steps()[control],
    }


def table(rows: Iterable[Row]) -> str:
    """The rows as Markdown."""
    lines = [
        "| plan | full steps | full | predicted ms | SSIM | worst | PSNR dB | truth "
        f"| SSIM at guidance {STRESS_SCALE} | PSNR dB |",
        "|---|---|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for row in rows:
        full = "all" if len(row.plan.full) == row.plan.steps else " ".join(map(str, row.plan.full))
        lines.append(
            f"| {row.name} | {full} | {len(row.plan.full)} | {row.predicted_ms:.1f} "
            f"| {row.ssim:.4f} | {row.ssim_min:.4f} | {row.psnr_db:.1f} | {row.truth:.4f} "
            f"| {row.stress_ssim:.4f} | {row.stress_psnr_db:.1f} |"
        )
    return "\n".join(lines) + "\n"


def write(rows: list[Row], out: Path, options: dict[str, Any]) -> None:
    """`out` with ending .json and .md, each written whole."""
    content = {"options": options, "torch": torch.__version__, "rows": [asdict(r) for r in rows]}
    write_whole(out.with_suffix(".json"), (json.dumps(content, indent=1) + "\n").encode())
    write_whole(out.with_suffix(".md"), table(rows).encode())


def found_plans(options: argparse.Namespace, studio: Studio, scenes: list[Scene]) -> list[Plan]:
    """Those of an earlier search if it was kept, else of one now."""
    kept: Path = options.out.with_suffix(".search.json")
    if kept.exists():
        full = json.loads(kept.read_text(encoding="utf-8"))
        return [Plan(full=tuple(steps), steps=STEPS) for steps in full]
    return search(Jury(studio, scenes, 0, 0), coarse(options.search_every), kept)


def main(arguments: Sequence[str] | None = None) -> None:
    """Searches on some scenes, confirms on others, prints and writes the table after each row."""
    options = _parser().parse_args(arguments)
    torch.set_num_threads(options.threads)
    studio = Studio(options.model, "cpu", options.batch)
    scenes = held_out_scenes(options.search_scenes + options.scenes)
    first = options.search_scenes
    found = [] if options.half else found_plans(options, studio, scenes[:first])
    if options.only_search:
        return
    jury = Jury(studio, scenes[first:], first, options.stressed)
    rows: list[Row] = []
    settings = {
        name: getattr(options, name)
        for name in ("search_scenes", "search_every", "scenes", "stressed")
    }
    for name, plan in (half_candidates() if options.half else candidates(found)).items():
        rows.append(jury.row(name, plan))
        print(table(rows[-1:]).splitlines()[-1], flush=True)
        write(rows, options.out, {"guidance": GUIDANCE_SCALE, **settings})


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m studies.feature_caching.study",
        description="Compares schedules of feature caching on scenes that training never sees.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add("--model", type=Path, default=MODEL_DIR, help="folder to measure")
    add("--out", type=Path, default=Path("cache-study"), help="where .json and .md are written")
    add("--search-scenes", type=int, default=16, help="scenes of the search")
    add("--search-every", type=int, default=1, help="it starts from every so many steps full")
    add("--only-search", action="store_true", help="stop after the search, whose result is kept")
    add("--half", action="store_true", help="compare plans with half of the steps full; no search")
    add("--scenes", type=int, default=64, help="other scenes that every plan is judged on")
    add("--stressed", type=int, default=16, help=f"of those, also at guidance {STRESS_SCALE}")
    add("--batch", type=int, default=16, help="images generated at once")
    add("--threads", type=int, default=1, help="CPU threads")
    return parser


if __name__ == "__main__":
    main()
