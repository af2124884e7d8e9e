"""Trains the miniature from nothing: `python -m studies.training.train`."""

import argparse
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

from sdopt.miniature import MODEL_DIR
from sdopt.miniature.architecture import Parts, build_parts, load_parts, save_folder
from studies.training.bank import Bank, build_bank, encode_bank
from studies.training.stages import Stage, scaling_factor, tiny_vae_stage, unet_stage, vae_stage
from studies.training.trainer import Schedule, Trainer, freeze

STAGES = ("vae", "tiny", "unet")
_SHARE_OF_TIME = {"vae": 0.42, "tiny": 0.10, "unet": 0.48}
_STEPS = {"vae": 8000, "tiny": 4000, "unet": 30000}
_BATCHES = {"vae": 32, "tiny": 32, "unet": 256}
_SCENES = 500_000
_SMOKE_STEPS, _SMOKE_BATCH, _SMOKE_SCENES = 2, 2, 8


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Everything that `train` is told."""

    out: Path
    checkpoint_dir: Path
    steps: dict[str, int]
    """Per stage; a stage of 0 steps is left out."""
    batches: dict[str, int]
    scenes: int
    minutes: float | None
    from_model: Path | None
    seed: int
    device: str
    compiled: bool


def main(arguments: Sequence[str] | None = None) -> None:
    """Trains as the command line says and writes the folder."""
    train(plan_from(_parser().parse_args(arguments)))


def train(plan: Plan) -> None:
    """The three stages, each from its checkpoint if there is one, then the folder `plan.out`."""
    parts = build_parts(plan.seed) if plan.from_model is None else load_parts(plan.from_model)
    for module in vars(parts).values():
        module.to(plan.device, memory_format=torch.channels_last)
    with _fast_kernels():
        bank = build_bank(plan.scenes, plan.seed, plan.device)
        _run(plan, vae_stage(parts, bank, plan.batches["vae"]))
        freeze(parts.vae)
        _train_on_latents(plan, parts, bank)
    for module in vars(parts).values():
        module.to("cpu")
    save_folder(parts, plan.out)
    print(f"wrote {plan.out}")


def _train_on_latents(plan: Plan, parts: Parts, bank: Bank) -> None:
    latents = encode_bank(bank, parts.vae)
    # A model that goes on from a folder keeps the scale its UNet has learned.
    if plan.from_model is None or plan.steps["vae"]:
        parts.vae.register_to_config(scaling_factor=scaling_factor(latents))
    latents *= parts.vae.config["scaling_factor"]
    _run(plan, tiny_vae_stage(parts, bank, plan.batches["tiny"]))
    _run(plan, unet_stage(parts, bank, latents, plan.batches["unet"]))


def _run(plan: Plan, stage: Stage) -> None:
    if not plan.steps[stage.name]:
        return
    wanted = sum(_SHARE_OF_TIME[name] for name in STAGES if plan.steps[name])
    share = _SHARE_OF_TIME[stage.name] / wanted
    schedule = Schedule(
        steps=plan.steps[stage.name],
        seconds=None if plan.minutes is None else 60 * plan.minutes * share,
        checkpoint=plan.checkpoint_dir / f"{stage.name}.pt",
        compiled=plan.compiled,
    )
    started = time.monotonic()
    Trainer(stage, schedule, plan.seed, plan.device).run()
    print(f"{stage.name}: {time.monotonic() - started:.1f} s")


@contextmanager
def _fast_kernels() -> Iterator[None]:
    """TF32 and cuDNN's search, only while training."""
    precision, benchmark = torch.get_float32_matmul_precision(), torch.backends.cudnn.benchmark
    torch.set_float32_matmul_precision("high")
    torch.backends.cudnn.benchmark = True
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(precision)
        torch.backends.cudnn.benchmark = benchmark


def plan_from(options: argparse.Namespace) -> Plan:
    """The plan that the command line's options describe; `--smoke` shrinks it to seconds."""
    steps = {name: getattr(options, f"{name}_steps") for name in STAGES}
    smoke: bool = options.smoke
    return Plan(
        out=options.out,
        checkpoint_dir=options.checkpoint_dir,
        steps={name: min(n, _SMOKE_STEPS) for name, n in steps.items()} if smoke else steps,
        batches=dict.fromkeys(STAGES, _SMOKE_BATCH) if smoke else _BATCHES,
        scenes=_SMOKE_SCENES if smoke else options.scenes,
        minutes=None if smoke else options.minutes,
        from_model=options.from_model,
        seed=options.seed,
        device=options.device,
        compiled=options.device == "cuda" and not options.eager,
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m studies.training.train",
        description="Trains the embedded miniature of Stable Diffusion 1.5. An interrupted run "
        "goes on from its checkpoints when it is started again with the same options.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add("--out", type=Path, default=MODEL_DIR, help="folder to write; replaced when complete")
    add("--checkpoint-dir", type=Path, default=Path("embedded-checkpoints"))
    for name in STAGES:
        add(f"--{name}-steps", type=int, default=_STEPS[name], help="0 leaves the stage out")
    add("--minutes", type=float, help="fewer steps if they would take longer than this")
    add("--scenes", type=int, default=_SCENES, help="scenes to draw from; 1/16 are held out")
    add("--from-model", type=Path, help="start from the weights in this folder")
    add("--seed", type=int, default=0)
    add("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    add("--eager", action="store_true", help="compile nothing on CUDA: slower steps, no wait")
    add("--smoke", action="store_true", help="a few steps, to see that everything runs")
    return parser


if __name__ == "__main__":
    main()
