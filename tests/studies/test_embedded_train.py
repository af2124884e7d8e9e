"""Training goes on where it stopped, and ends in a folder that diffusers loads."""

import os

import diffusers
import pytest
import torch
from torch import nn

from studies.training.stages import Stage, alphas_cumprod, mean_ssim, min_snr_weight
from studies.training.train import _parser, main, plan_from
from studies.training.trainer import Schedule, Trainer, rate_factor, save_atomically


def toy_stage(fail_at=None, device="cpu"):
    """Fits a line; raises KeyboardInterrupt at the draw with that number."""
    torch.manual_seed(1)
    model = nn.Linear(3, 1).to(device)
    drawn = [0]

    def draw():
        drawn[0] += 1
        if drawn[0] == fail_at:
            raise KeyboardInterrupt
        return (torch.randn(8, 3, device=device),)

    def loss(inputs):
        return (model(inputs) - inputs.sum(1, keepdim=True)).square().mean()

    return Stage(
        name="toy",
        trained=nn.ModuleList([model]),
        draw=draw,
        loss=loss,
        learning_rate=0.05,
        ema_decay=0.9,
    )


def schedule(tmp_path, **changes):
    values = {"steps": 300, "seconds": None, "checkpoint": tmp_path / "toy.pt"} | changes
    return Schedule(**values)


def error(stage, device="cpu"):
    with torch.no_grad():
        return float(stage.loss(torch.randn(256, 3, device=device)))


def test_a_stage_learns(tmp_path):
    stage = toy_stage()
    before = error(stage)
    Trainer(stage, schedule(tmp_path), seed=0, device="cpu").run()
    assert error(stage) < before / 20


def test_an_interrupted_stage_goes_on(tmp_path):
    plan = schedule(tmp_path, save_every_s=0.0)
    with pytest.raises(KeyboardInterrupt):
        Trainer(toy_stage(fail_at=150), plan, seed=0, device="cpu").run()
    stage = toy_stage()
    resumed = Trainer(stage, plan, seed=0, device="cpu")
    assert resumed.step_number == 149
    resumed.run()
    assert resumed.step_number == 300
    assert error(stage) < 0.1


def test_the_average_keeps_no_history(tmp_path):
    trainer = Trainer(toy_stage(), schedule(tmp_path, steps=5), seed=0, device="cpu")
    trainer.run()
    assert not any(average.requires_grad for average in trainer.average)


def test_a_finished_stage_is_not_run_again(tmp_path):
    Trainer(toy_stage(), schedule(tmp_path), seed=0, device="cpu").run()
    again = toy_stage(fail_at=1)
    Trainer(again, schedule(tmp_path), seed=0, device="cpu").run()
    assert error(again) < 0.1


def test_a_time_budget_cuts_the_steps(tmp_path):
    trainer = Trainer(toy_stage(), schedule(tmp_path, steps=10**6, seconds=0.5), 0, "cpu")
    trainer.run()
    assert 40 <= trainer.steps < 10**6
    assert trainer.step_number == trainer.steps


def test_checkpoints_are_written_whole(tmp_path, monkeypatch):
    path = tmp_path / "state.pt"
    save_atomically({"step": 1}, path)

    def broken(descriptor):
        raise OSError("disk full")

    monkeypatch.setattr(os, "fsync", broken)
    with pytest.raises(OSError, match="disk full"):
        save_atomically({"step": 2}, path)
    monkeypatch.undo()
    assert torch.load(path)["step"] == 1
    assert list(tmp_path.iterdir()) == [path]


def test_smoke_training_writes_a_loadable_folder(tmp_path, capsys):
    out, checkpoints = tmp_path / "model", tmp_path / "checkpoints"
    arguments = ["--smoke", "--device", "cpu", "--out", str(out)]
    arguments += ["--checkpoint-dir", str(checkpoints)]
    main(arguments)
    assert sorted(path.name for path in checkpoints.iterdir()) == ["tiny.pt", "unet.pt", "vae.pt"]
    first = torch.load(checkpoints / "unet.pt")["step"]
    main(arguments)
    assert torch.load(checkpoints / "unet.pt")["step"] == first == 2
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []
    pipeline = diffusers.StableDiffusionPipeline.from_pretrained(out)
    assert pipeline.vae.config.scaling_factor > 0
    assert (out / "tiny_vae" / "config.json").exists()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA: one step as one CUDA graph")
def test_a_captured_stage_learns(tmp_path):
    stage = toy_stage(device="cuda")
    Trainer(stage, schedule(tmp_path), seed=0, device="cuda").run()
    assert error(stage, device="cuda") < 0.1


def test_options_make_a_plan():
    plan = plan_from(_parser().parse_args(["--vae-steps", "0", "--minutes", "5", "--eager"]))
    assert plan.steps["vae"] == 0
    assert plan.minutes == 5
    assert not plan.compiled
    smoke = plan_from(_parser().parse_args(["--smoke", "--vae-steps", "0"]))
    assert smoke.steps == {"vae": 0, "tiny": 2, "unet": 2}
    assert smoke.minutes is None


def test_noise_schedule_is_that_of_stable_diffusion():
    config = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
    theirs = diffusers.DDPMScheduler(**config).alphas_cumprod
    assert torch.allclose(alphas_cumprod(), theirs, atol=1e-5)


def test_min_snr_weight():
    assert min_snr_weight(torch.tensor([0.5])).item() == pytest.approx(1.0)
    assert min_snr_weight(torch.tensor([0.99])).item() == pytest.approx(5 / 99)


def test_learning_rate_rises_then_falls():
    assert rate_factor(0, 5000) < 0.01
    assert rate_factor(199, 5000) > 0.99
    assert rate_factor(5000, 5000) == pytest.approx(0.01)


def test_ssim_of_training_follows_structure():
    image = torch.rand(2, 3, 32, 32) * 2 - 1
    assert mean_ssim(image, image).item() == pytest.approx(1.0, abs=1e-4)
    assert mean_ssim(image, -image).item() < 0
