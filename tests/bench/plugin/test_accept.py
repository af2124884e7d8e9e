"""--sdopt-accept stores images; without it they are compared with the stored ones."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from project import Project

from sdopt.bench.judge.verdict import ExitCode
from sdopt.cli.app import main

QUALITY = "benchmarks/test_quality.py"
COMMAND = 'pytest benchmarks/ --sdopt-source=*micro -k "[[]baseline]" --sdopt-accept'


def test_accepting_stores_the_images_and_says_so(project: Project) -> None:
    result = project.run("--sdopt-accept", tests=QUALITY)
    result.assert_outcomes(passed=4, skipped=2)
    result.stdout.fnmatch_lines([f"stored 2 baseline images in {project.images.parent}"])
    assert sorted(path.name for path in project.images.iterdir()) == ["astronaut.png", "castle.png"]
    with Image.open(project.images / "castle.png") as image:
        assert (image.size, image.mode) == ((64, 64), "RGB")
        assert '"level": "baseline"' in image.text["sdopt"]


def test_the_same_images_pass(stored: Project) -> None:
    before = {path: path.read_bytes() for path in stored.images.iterdir()}
    result = stored.run(tests=QUALITY)
    result.assert_outcomes(passed=4, skipped=2)
    result.stdout.fnmatch_lines(["baseline*1.000000*pass"])
    assert {path: path.read_bytes() for path in stored.images.iterdir()} == before


def repaint(path: Path) -> None:
    """Another image under the same request."""
    with Image.open(path) as image:
        image.load()
        text = PngInfo()
        text.add_text("sdopt", image.text["sdopt"])
        image.rotate(180).save(path, pnginfo=text)


def test_a_drifted_image_fails_by_name(stored: Project) -> None:
    repaint(stored.images / "castle.png")
    result = stored.run(tests=QUALITY)
    result.assert_outcomes(failed=1, passed=3, skipped=2)
    assert result.ret == ExitCode.REGRESSION
    result.stdout.fnmatch_lines(
        [
            "*[[]baseline] ssim_drift: regression: worst of 2 prompts: castle*",
            "*measured 0.*, limit 0.99*",
            f"*next: {COMMAND}*",
            "baseline*FAIL ssim_drift, block_drift",
        ]
    )


def test_accepting_again_replaces_the_image(stored: Project) -> None:
    repaint(stored.images / "castle.png")
    stored.run("--sdopt-accept", tests=QUALITY).assert_outcomes(passed=4, skipped=2)
    stored.run(tests=QUALITY).assert_outcomes(passed=4, skipped=2)


def remove(path: Path) -> str:
    path.unlink()
    return "*no baseline image*castle.png*"


def truncate(path: Path) -> str:
    os.truncate(path, path.stat().st_size // 2)
    return "*castle.png cannot be decoded: *; it was left as it is*"


def empty(path: Path) -> str:
    os.truncate(path, 0)
    return "*castle.png cannot be decoded: *; it was left as it is*"


def make_foreign(path: Path) -> str:
    Image.new("RGB", (64, 64), "red").save(path)
    return "*castle.png says nothing about how it was made*"


def change_request(path: Path) -> str:
    with Image.open(path) as image:
        image.load()
        text = PngInfo()
        text.add_text("sdopt", image.text["sdopt"].replace('"seed": 2', '"seed": 3'))
        image.save(path, pnginfo=text)
    return "*castle.png was made for another request*"


DAMAGED = {truncate, empty, make_foreign}


@pytest.mark.parametrize("damage", [remove, truncate, empty, make_foreign, change_request])
def test_an_image_that_cannot_be_used_fails_and_is_left_alone(
    damage: object, stored: Project
) -> None:
    assert callable(damage)
    path = stored.images / "castle.png"
    complaint = damage(path)
    before = path.read_bytes() if path.exists() else None
    result = stored.run(tests=QUALITY)
    result.assert_outcomes(failed=1, passed=3, skipped=2)
    assert result.ret == ExitCode.FAULT
    result.stdout.fnmatch_lines([complaint])
    first = (
        f"git checkout -- {path}  # brings back what was stored" if damage in DAMAGED else COMMAND
    )
    result.stdout.fnmatch_lines([f"*next: {first}*"])
    result.stdout.fnmatch_lines([f"*{COMMAND}*", "baseline*FAIL ssim_drift"])
    assert "Traceback" not in result.stdout.str()
    assert (path.read_bytes() if path.exists() else None) == before


def test_an_image_of_another_size_fails(stored: Project) -> None:
    path = stored.images / "castle.png"
    with Image.open(path) as image:
        image.load()
        text = PngInfo()
        text.add_text("sdopt", image.text["sdopt"])
        image.resize((32, 32)).save(path, pnginfo=text)
    result = stored.run(tests=QUALITY)
    result.assert_outcomes(failed=1, passed=3, skipped=2)
    result.stdout.fnmatch_lines(
        ["*castle.png has the shape (32, 32, 3), this run's is (64, 64, 3)*"]
    )


WORK = "benchmarks/test_work.py"


def test_accepting_stores_the_counts_of_work(project: Project) -> None:
    assert project.run(tests=WORK).ret == ExitCode.FAULT
    assert not project.baselines.exists()
    project.run("--sdopt-accept", tests=WORK).assert_outcomes(passed=2)
    counts = project.stored_counts()["baseline"]
    assert set(counts) == {"unet_evaluations", "tflop", "calls", "tflop_by_module"}
    assert (counts["unet_evaluations"], counts["calls"]["unet"]) == (6, 3)
    assert sum(counts["tflop_by_module"].values()) == pytest.approx(counts["tflop"])
    assert project.run(tests=WORK).ret == ExitCode.PASS


def test_accepting_one_level_leaves_the_others_counts(stored: Project) -> None:
    before = stored.stored_counts()
    stored.run("--sdopt-accept", tests=WORK, level="tuned").assert_outcomes(passed=2)
    after = stored.stored_counts()
    assert set(after) == {"baseline", "tuned"}
    assert after["baseline"] == before["baseline"]


def test_accepting_again_replaces_the_counts(stored: Project) -> None:
    before = stored.work_file.read_bytes()
    stored.edit_work(unet_evaluations=5)
    stored.run("--sdopt-accept", tests=WORK).assert_outcomes(passed=2)
    assert stored.work_file.read_bytes() == before


KILLED_IN_BETWEEN = """
import os, signal, sys
from dataclasses import replace
from sdopt.pipelines import workload
from sdopt.levels import BASELINE, LEVELS
pytest_plugins = ["sdopt.bench.plugin", "studies.peers.plugin"]
workload.PHOTO_REQUESTS = workload.PHOTO_REQUESTS[:2]
LEVELS["baseline"] = replace(BASELINE, steps=3)
stored = []
def hook(event, arguments):
    if event == "os.rename" and str(arguments[1]).endswith((".png", ".safetensors")):
        if stored:  # one image; its latents too are another file, if they differ at all
            os.kill(os.getpid(), signal.SIGKILL)
        stored.append(arguments)
sys.addaudithook(hook)
"""


def accept_and_be_killed(stored: Project) -> Path:
    """The journal that a killed run left; its images are not those that were stored."""
    for path in stored.images.iterdir():
        repaint(path)
    before = {path: path.read_bytes() for path in stored.images.iterdir()}
    conftest = stored.path / "conftest.py"
    own = conftest.read_text()
    conftest.write_text(KILLED_IN_BETWEEN)
    stale = stored.images / "castle.pngabc.partial"
    stale.touch()
    options = ("-k", "[baseline]", "--sdopt-source", str(stored.source), "--sdopt-accept")
    command = [sys.executable, "-m", "pytest", QUALITY, *options]
    paths = {"PYTHONPATH": os.pathsep.join(sys.path)}
    child = subprocess.run(
        command,
        cwd=stored.path,
        env=os.environ | paths,
        check=False,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert child.returncode == -signal.SIGKILL, child.stdout + child.stderr
    assert "removed 1 partial file of a run that was killed" in child.stdout
    assert not stale.exists()
    changed = [path for path, content in before.items() if path.read_bytes() != content]
    assert len(changed) == 1
    conftest.write_text(own)
    return stored.baselines / "unfinished" / "micro" / "baseline.json"


def test_an_accept_that_was_killed_is_completed_by_the_next_run(stored: Project) -> None:
    journal = accept_and_be_killed(stored)
    result = stored.run(tests=QUALITY)
    assert result.ret == ExitCode.PASS
    result.stdout.fnmatch_lines([f"*completed an accept that was killed: {journal}"])
    assert not journal.exists()


def test_one_that_cannot_be_completed_is_named_until_it_is_mended(stored: Project) -> None:
    journal = accept_and_be_killed(stored)
    repaint(stored.images / "castle.png")  # by somebody else, meanwhile
    result = stored.run(tests=QUALITY)
    assert result.ret == ExitCode.FAULT
    result.stdout.fnmatch_lines(
        [
            f"*an interrupted accept left images and latents partly new: {journal}",
            "*ssim_drift: fault: an --sdopt-accept of level 'baseline' was interrupted*",
            f"*next: git checkout -- {stored.images} {stored.baselines}/latents/micro/baseline *",
            f"*or: *{COMMAND}*",
        ]
    )
    stored.run("--sdopt-accept", tests=QUALITY).assert_outcomes(passed=4, skipped=2)
    assert not journal.exists()
    assert stored.run(tests=QUALITY).ret == ExitCode.PASS


def test_a_run_leaves_beside_its_json_what_accepting_it_needs(stored: Project) -> None:
    """Also one that fails: a regression is what has to be accepted."""
    before = {path: path.read_bytes() for path in stored.baselines.rglob("*") if path.is_file()}
    stored.edit_work(unet_evaluations=5)
    before[stored.work_file] = stored.work_file.read_bytes()
    assert stored.run("--benchmark-json=run.json").ret == ExitCode.REGRESSION
    kept = stored.path / "run.kept"
    block = json.loads((stored.path / "run.json").read_text())["sdopt"]
    files = {path.relative_to(kept).as_posix() for path in kept.rglob("*") if path.is_file()}
    assert {*block["kept"]} == files
    assert files == {
        "work/micro.json",
        "images/micro/baseline/astronaut.png",
        "images/micro/baseline/castle.png",
        "latents/micro/baseline/astronaut.safetensors",
        "latents/micro/baseline/castle.safetensors",
        "latents/micro/baseline/float64/astronaut.safetensors",
    }
    assert block["partial"] is True  # of one level
    for name, digest in block["kept"].items():
        assert hashlib.sha256((kept / name).read_bytes()).hexdigest() == digest
    after = {path: path.read_bytes() for path in stored.baselines.rglob("*") if path.is_file()}
    assert after == before


def test_what_a_run_kept_is_accepted_and_passes(
    stored: Project, capsys: pytest.CaptureFixture[str]
) -> None:
    """The whole way: a run that fails, its acceptance, and the same run, which passes."""
    for path in stored.images.iterdir():
        repaint(path)
    stored.edit_work(unet_evaluations=5)
    assert stored.run("--benchmark-json=run.json", "--benchmark-compare").ret == 1
    (stored.path / "CHANGELOG.md").write_text("# Changelog\n")
    accept = ("baseline", "accept", str(stored.path / "run.json"), "--yes")
    accept += ("--baselines", str(stored.baselines))
    capsys.readouterr()
    assert main([*accept]) == 2
    assert "say why that is meant" in capsys.readouterr().err
    assert len(stored.histories()) == 1
    assert main([*accept, "--reason", "images the right way up"]) == 0
    told = capsys.readouterr().out
    assert "image baseline/castle: " in told
    assert "ssim_drift" in told
    assert "counts baseline: " in told
    assert len(stored.histories()) == 2
    block = json.loads(stored.histories()[-1].read_text())["sdopt"]
    assert (block["accepted"], block["reason"]) == (True, "images the right way up")
    (line,) = (stored.path / "CHANGELOG.md").read_text().splitlines()[2:]
    assert line.startswith("- **Moved baseline** of `micro` on `cpu-")
    assert line.endswith("Reason: images the right way up")
    assert stored.run(tests=QUALITY).ret == ExitCode.PASS
    assert stored.run(tests=WORK).ret == ExitCode.PASS
    assert main([*accept, "--reason", "again"]) == 2
    assert "was accepted before: it is " in capsys.readouterr().err
