"""Another project's pipeline gets every verdict, and a fault in it fails by its name."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from third_party import ThirdParty

JUDGED = {
    "block_drift",
    "effect",
    "graph_breaks",
    "latency_ms",
    "latent_drift",
    "latent_drift_float64",
    "recompiles",
    "repeat",
    "ssim_drift",
    "tflop",
    "unet_evaluations",
}


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> ThirdParty:
    """The project after one accepted run, whose times are made ten times what they were.

    So no noise of a shared machine fails a run that is to pass.
    """
    project = ThirdParty(path=tmp_path_factory.mktemp("third") / "project")
    project.path.mkdir()
    project.write()
    done = project.run("--sdopt-accept --benchmark-autosave")
    assert done.returncode == 0, done.stdout
    project.scale_history(10)
    return project


@pytest.fixture
def project(kept: ThirdParty, tmp_path: Path) -> ThirdParty:
    shutil.copytree(kept.path, tmp_path / "project")
    return ThirdParty(path=tmp_path / "project")


def test_what_is_stored_is_judged_and_passes(project: ThirdParty) -> None:
    baselines = project.path / "baselines"
    images = sorted(path.name for path in baselines.glob("images/studio/quick/*.png"))
    assert images == ["cat.png", "dog.png"]
    assert len(list(baselines.glob("latents/studio/*/*.safetensors"))) == 4
    counts = json.loads((baselines / "work" / "studio.json").read_text())["levels"]
    assert counts["careful"]["calls"] == {"text_encoder": 2, "unet": 4, "decoder": 1}
    assert counts["careful"]["unet_evaluations"] == 8
    assert counts["careful"]["tflop"] > counts["quick"]["tflop"] > 0
    assert "unet.mid_block.resnets.0" in counts["careful"]["tflop_by_module"]
    done = project.run("--benchmark-compare")
    assert done.returncode == 0, done.stdout
    told = project.verdicts()
    assert told["outcome"] == "pass"
    assert {row["metric"] for row in told["verdicts"] if row["level"] == "careful"} >= JUDGED
    cost = [row for row in told["verdicts"] if row["metric"] == "ssim_cost"]
    assert [row["level"] for row in cost] == ["quick"]
    assert "source studio (levels of this project's conftest.py), 64 x 64" in done.stdout


@pytest.mark.parametrize(
    ("fault", "metrics"),
    [
        ("another call of the text encoder", {"tflop"}),
        ("another image", {"ssim_drift", "block_drift"}),
        ("another seed", {"ssim_drift", "latent_drift", "latent_drift_float64", "effect"}),
        ("raises", {"pipeline"}),
    ],
)
def test_a_fault_fails_by_its_name(fault: str, metrics: set[str], project: ThirdParty) -> None:
    done = project.run('--benchmark-compare -k "[quick]"', fault)
    assert done.returncode == 1, done.stdout
    assert project.failed() >= {f"quick: {metric}" for metric in metrics}
    for metric in metrics - {"pipeline"}:
        assert f"\n[quick] {metric}: regression: " in done.stdout
    assert "AssertionError" not in done.stdout
    assert "+  where" not in done.stdout
    assert "quick: latency_ms" not in project.failed()
    if fault == "another image":
        assert "quick: latent_drift" not in project.failed()
    if fault == "another call of the text encoder":
        assert "text_encoder called 2 -> 3 times" in done.stdout
    if fault == "another seed":
        assert "its seed was not used" in done.stdout


def test_a_level_without_a_pipeline_is_one_line(project: ThirdParty) -> None:
    done = project.run('-k "[quick] and drift"', "returns nothing")
    assert done.returncode == 2, done.stdout
    said = "level 'quick': build returned None; let it end with `return pipeline`"
    assert f"\n{said}\n" in done.stdout
    assert "Traceback" not in done.stdout
    assert ".py:" not in done.stdout.split("= ERRORS")[1].split("short test summary")[0]


def test_tb_long_shows_the_whole_traceback(project: ThirdParty) -> None:
    done = project.run('-k "[quick] and test_drift" --tb=long', "another image")
    assert "AssertionError" in done.stdout


def test_a_slowdown_fails_by_its_name(project: ThirdParty) -> None:
    project.scale_history(1 / 1000)
    done = project.run('--benchmark-compare -k "[quick] and test_latency"')
    assert done.returncode == 1, done.stdout
    assert project.failed() == {"quick: latency_ms"}


def test_what_is_for_the_levels_of_this_package_is_refused(project: ThirdParty) -> None:
    done = project.run("--sdopt-ab=HEAD --sdopt-source=embedded")
    assert done.returncode == 4
    assert "--sdopt-source (or $SDOPT_SOURCE), --sdopt-ab: that is for the levels of" in done.stderr
    done = project.run('-k "[final]"')
    assert done.returncode == 4
    assert "unknown level 'final'; choose from: careful, quick" in done.stderr + done.stdout


def test_a_level_that_was_changed_is_not_compared_with_what_it_was(project: ThirdParty) -> None:
    conftest = project.path / "conftest.py"
    conftest.write_text(conftest.read_text().replace("steps=3", "steps=2"))
    done = project.run('--benchmark-compare -k "[quick] and test_drift"')
    assert done.returncode == 2, done.stdout
    assert "made with other settings: steps 3 -> 2" in done.stdout
