"""Measures the miniature on unseen scenes: `python -m studies.miniature_quality.evaluate`."""

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from sdopt.bench.measure.scoring import Images, attribute_accuracy, mean_ssim
from sdopt.miniature import GUIDANCE_SCALE, MODEL_DIR
from sdopt.miniature.rendering import render_uint8
from sdopt.miniature.scenes import Scene, held_out_scenes
from studies.miniature_quality.findings import Findings, GuidanceRow, section, write_section
from studies.miniature_quality.studio import Studio, to_images, to_latents

_GUIDANCE_SCALES = (1.0, 2.0, 3.0, 5.0, 7.5)

GRID_ROWS = (
    "the true drawing",
    "the VAE's reconstruction of it",
    "the Tiny VAE's decoding of the same latents",
    "Euler Ancestral, 30 steps",
    "DPM-Solver++ 2M, 20 steps",
    "the same with guidance cut off at 0.4",
    "the same through the Tiny VAE",
)


def measure(folder: Path, scenes: list[Scene], device: str, batch: int) -> Findings:
    """Generates and judges `scenes` with the model in `folder`."""
    studio = Studio(folder, device, batch)
    truth = ground_truth_images(scenes)
    latents = to_latents(studio.vae, truth, device)
    rows = [measure_guidance(studio, scenes, truth, scale) for scale in _GUIDANCE_SCALES]
    captions = [scene.caption() for scene in scenes]
    generated = studio.euler(captions, 30, GUIDANCE_SCALE)
    by_solver = to_images(studio.vae, studio.dpm(captions, 20, GUIDANCE_SCALE))
    return Findings(
        scenes=len(scenes),
        vae=mean_ssim(to_images(studio.vae, latents), truth),
        tiny=mean_ssim(to_images(studio.tiny_vae, latents), truth),
        attributes=attribute_accuracy(generated, scenes),
        dpm_truth=mean_ssim(by_solver, truth),
        guidance=rows,
        machine=_machine(device),
    )


def measure_guidance(
    studio: Studio, scenes: list[Scene], truth: Images, scale: float
) -> GuidanceRow:
    """One row of the table of guidance scales."""
    captions = [scene.caption() for scene in scenes]
    euler = studio.euler(captions, 30, scale)
    latents = studio.dpm(captions, 20, scale)
    dpm = to_images(studio.vae, latents)
    return GuidanceRow(
        scale=scale,
        attributes=attribute_accuracy(euler, scenes)["judged"],
        truth=mean_ssim(euler, truth),
        solver=mean_ssim(dpm, to_images(studio.vae, studio.dpm(captions, 50, scale))),
        # A scale of 1 has no guidance to cut off.
        cutoff=1.0 if scale <= 1 else _cutoff_ssim(studio, captions, scale, dpm),
        tiny=mean_ssim(to_images(studio.tiny_vae, latents), dpm),
    )


def _cutoff_ssim(studio: Studio, captions: list[str], scale: float, full: Images) -> float:
    return mean_ssim(to_images(studio.vae, studio.dpm(captions, 20, scale, cutoff=True)), full)


def ground_truth_images(scenes: list[Scene]) -> Images:
    """N x 128 x 128 x 3: the images that the captions of `scenes` describe."""
    return render_uint8(np.stack([scene.row() for scene in scenes]), 128)


def generate_grid(folder: Path, scenes: list[Scene], device: str) -> Images:
    """One image: a column per scene; rows: see `GRID_ROWS`."""
    studio, captions = Studio(folder, device, len(scenes)), [s.caption() for s in scenes]
    truth = ground_truth_images(scenes)
    original = to_latents(studio.vae, truth, device)
    latents = studio.dpm(captions, 20, GUIDANCE_SCALE)
    cut = studio.dpm(captions, 20, GUIDANCE_SCALE, cutoff=True)
    rows = [
        truth,
        to_images(studio.vae, original),
        to_images(studio.tiny_vae, original),
        studio.euler(captions, 30, GUIDANCE_SCALE),
        to_images(studio.vae, latents),
        to_images(studio.vae, cut),
        to_images(studio.tiny_vae, cut),
    ]
    return np.concatenate([np.concatenate(list(row), axis=1) for row in rows], axis=0)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measures, prints, and writes the table and the grid; exits with 1 if a target is missed."""
    options = _parser().parse_args(arguments)
    scenes = held_out_scenes(options.scenes)
    findings = measure(options.model, scenes, options.device, options.batch)
    grid = generate_grid(options.model, scenes[: options.columns], options.device)
    write_section(findings, options.out)
    Image.fromarray(grid).save(options.out.with_suffix(".png"), optimize=True)
    print(section(findings))
    if missed := findings.missed():
        raise SystemExit("targets missed:\n" + "\n".join(missed))


def _machine(device: str) -> str:
    name = torch.cuda.get_device_name() if device == "cuda" else "CPU"
    return f"float32 on {name}, torch {torch.__version__.split('+')[0]}"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m studies.miniature_quality.evaluate",
        description="Measures the embedded model on scenes that training never sees.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add("--model", type=Path, default=MODEL_DIR, help="folder to measure")
    add(
        "--out",
        type=Path,
        default=Path("docs/evidence/miniature.md"),
        help="page whose table is renewed",
    )
    add("--scenes", type=int, default=64, help="number of held-out scenes")
    add("--columns", type=int, default=10, help="scenes in the grid of images")
    add("--batch", type=int, default=16, help="images generated at once")
    add("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    return parser


if __name__ == "__main__":
    main()
