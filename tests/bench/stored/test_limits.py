"""SSIM limits follow from images made on different machines."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sdopt.bench.metrics import LIMIT_RULES
from sdopt.bench.metrics.images import ssim
from sdopt.bench.metrics.latents import LATENT_MARGIN
from sdopt.bench.stored import baselines, latent_limits, limits
from sdopt.bench.stored import latents as stored
from sdopt.bench.stored.latent_limits import measured_latent_limits
from sdopt.errors import BrokenFileError
from sdopt.levels import LEVELS
from sdopt.miniature.scenes import parse_caption, render

CAPTION = "a red star at the center on a blue background"
GROUND_TRUTH = render(parse_caption(CAPTION), 32)


def noisy(strength: int, seed: int = 0) -> np.ndarray:
    """The true image with uniform noise of that many steps of 255."""
    noise = np.random.default_rng(seed).integers(-strength, strength + 1, GROUND_TRUTH.shape)
    return np.clip(GROUND_TRUTH.astype(int) + noise, 0, 255).astype(np.uint8)


def save(folder: Path, level: str, image: np.ndarray, prompt: str = CAPTION) -> None:
    baselines.save_image(folder / level / "star.png", image, {"prompt": prompt})


@pytest.fixture
def folders(tmp_path: Path) -> list[Path]:
    """Two machines' images of baseline and tuned, which differ by a little noise."""
    here, there = tmp_path / "here", tmp_path / "there"
    for folder, strength in ((here, 3), (there, 5)):
        save(folder, "baseline", noisy(strength))
        save(folder, "tuned", noisy(strength + 8, seed=1))
    return [here, there]


def test_the_drift_limit_is_the_largest_spread_times_the_margin(folders: list[Path]) -> None:
    rows = limits.measured_limits(folders)
    spreads = [1 - ssim(noisy(s, seed), noisy(s + 2, seed)).value for s, seed in ((3, 0), (11, 1))]
    assert rows["baseline"]["drift"]["measured"] == pytest.approx(1 - spreads[0], abs=1e-6)
    for row in rows.values():
        expected = 1 - LIMIT_RULES["drift"].margin * max(spreads)
        assert row["drift"]["limit"] == pytest.approx(expected, abs=1e-6)


def test_levels_in_float8_do_not_set_the_limits_of_others(folders: list[Path]) -> None:
    before = limits.measured_limits(folders)
    level: str | None = "turbo"
    while level and level != "euler-20":  # and all that it is compared with
        for folder in folders:
            save(folder, level, noisy(3))
        level = LEVELS[level].reference
    for folder, strength in zip(folders, (3, 90), strict=True):
        save(folder, "turbo-float8", noisy(strength))
    rows = limits.measured_limits(folders)
    for level in ("baseline", "tuned", "turbo"):
        assert rows[level]["drift"]["limit"] == before["baseline"]["drift"]["limit"]
    assert rows["turbo-float8"]["drift"]["limit"] < 0.9


def test_equal_images_keep_a_little_room(folders: list[Path]) -> None:
    drift = limits.measured_limits([folders[0], folders[0]])["baseline"]["drift"]
    assert drift["limit"] == pytest.approx(1 - LIMIT_RULES["drift"].least, abs=1e-6)
    assert drift["limit"] < drift["measured"] == 1


def test_a_project_s_own_level_gets_limits_of_drift(folders: list[Path]) -> None:
    for folder, strength in zip(folders, (3, 5), strict=True):
        save(folder, "quick", noisy(strength))
    rows = limits.measured_limits(folders)
    assert list(rows) == ["baseline", "tuned", "quick"]
    assert set(rows["quick"]) == {"drift"}


@pytest.fixture
def equal_folders(folders: list[Path]) -> list[Path]:
    """Machines that generate the very same images, so that drift allows next to nothing."""
    return [folders[0], folders[0]]


def test_cost_and_truth_allow_a_tenth_of_the_loss_on_top(equal_folders: list[Path]) -> None:
    rows = limits.measured_limits(equal_folders)["tuned"]
    cost = ssim(noisy(11, seed=1), noisy(3)).value
    truth = ssim(noisy(11, seed=1), GROUND_TRUTH).value
    assert rows["cost"]["limit"] == pytest.approx(1 - 1.1 * (1 - cost), abs=1e-6)
    assert rows["ground_truth"]["limit"] == pytest.approx(1 - 1.1 * (1 - truth), abs=1e-6)


def test_cost_and_truth_count_the_worst_machine_and_allow_its_drift(folders: list[Path]) -> None:
    rows = limits.measured_limits(folders)["tuned"]
    worst = ssim(noisy(13, seed=1), GROUND_TRUTH).value
    assert rows["ground_truth"]["measured"] == pytest.approx(worst, abs=1e-6)
    assert rows["ground_truth"]["limit"] == pytest.approx(
        worst - (1 - rows["drift"]["limit"]), abs=1e-6
    )


def test_a_level_of_another_sampler_has_no_cost_limit(folders: list[Path]) -> None:
    for folder in folders:
        save(folder, "euler-20", noisy(3))
        save(folder, "dpm-20", noisy(3))
    assert "cost" not in limits.measured_limits(folders)["dpm-20"]


def test_prompts_that_are_no_captions_have_no_truth(folders: list[Path]) -> None:
    for folder in folders:
        save(folder, "baseline", noisy(3), prompt="a photograph of a cat")
    assert set(limits.measured_limits(folders)["baseline"]) == {"drift"}


def run(*arguments: Any) -> int:
    return limits.main([*map(str, arguments), "--made-by", "two machines"])


def test_the_written_file_is_what_the_gate_reads(folders: list[Path]) -> None:
    assert run(*folders) == 0
    file = folders[0] / "limits.json"
    read = baselines.load_limits(file)
    assert set(read) == {"baseline", "tuned"}
    assert json.loads(file.read_text())["made_by"] == "two machines"


def test_a_level_without_images_is_named(
    folders: list[Path], capsys: pytest.CaptureFixture[str]
) -> None:
    (folders[1] / "tuned" / "star.png").unlink()
    assert run(*folders) == 2
    assert "tuned holds no images; make them with" in capsys.readouterr().err
    assert not (folders[0] / "limits.json").exists()


@pytest.mark.parametrize("machine", [0, 1])
def test_an_image_that_only_one_machine_has_is_named(
    machine: int, folders: list[Path], capsys: pytest.CaptureFixture[str]
) -> None:
    baselines.save_image(folders[machine] / "tuned" / "ring.png", noisy(3), {"prompt": CAPTION})
    assert run(*folders) == 2
    assert "images ['ring'] are in one folder but not in another" in capsys.readouterr().err


def test_one_folder_is_not_enough(folders: list[Path]) -> None:
    with pytest.raises(SystemExit):
        run(folders[0])


def test_a_truncated_image_is_named(folders: list[Path]) -> None:
    image = folders[1] / "baseline" / "star.png"
    image.write_bytes(image.read_bytes()[:200])
    with pytest.raises(BrokenFileError, match=r"star\.png cannot be decoded"):
        limits.measured_limits(folders)


def save_latents(
    folder: Path, level: str, off_by: float, name: str = "star", *, double: bool = False
) -> None:
    """Latents of length 2 whose first value is off by so much."""
    values = np.ones((4, 1, 1), np.float64 if double else np.float32)
    values[0] += off_by
    beside = stored.latents_beside(folder)
    path = stored.latents_path(beside.parent.parent, beside.name, level, name, double=double)
    stored.save_latents(path, values, {"level_fields": {}})


@pytest.fixture
def machines(tmp_path: Path) -> list[Path]:
    """Three machines' folders: the second has both levels, the third the last alone."""
    folders = [tmp_path / name / "images" / "set" for name in ("here", "there", "elsewhere")]
    for folder, off_by in zip(folders, (0.0, 1e-3, 4e-3), strict=True):
        for level in ("baseline", "tuned"):
            if off_by < 4e-3 or level == "tuned":
                save(folder, level, noisy(3))
                save_latents(folder, level, off_by)
                save_latents(folder, level, off_by * 1e-9, double=True)
    return folders


def test_all_levels_share_the_largest_distance_of_latents(machines: list[Path]) -> None:
    beside = [*map(stored.latents_beside, machines)]
    rows = measured_latent_limits(beside)
    assert set(rows) == {"baseline", "tuned"}
    for row in rows.values():
        assert row["measured"] == pytest.approx(2e-3, rel=0.01)
        assert row["limit"] == pytest.approx(LATENT_MARGIN * 2e-3, rel=0.01)
    exact = measured_latent_limits(beside, "float64")["tuned"]
    assert exact["measured"] == pytest.approx(2e-12, rel=0.01)
    assert exact["limit"] == LIMIT_RULES["float64"].least


def test_limits_of_latents_are_renewed_without_the_others(machines: list[Path]) -> None:
    path = machines[0] / "limits.json"
    assert run(*machines[:2]) == 0
    before = json.loads(path.read_text())
    assert before["levels"]["baseline"]["latents"]["limit"] == pytest.approx(2e-3, rel=0.01)
    assert limits.main(["--latents", *map(str, machines), "--made-by", "a third one"]) == 0
    after = json.loads(path.read_text())
    assert after["levels"]["baseline"]["latents"]["limit"] == pytest.approx(8e-3, rel=0.01)
    assert (after["made_by"], after["latents_made_by"]) == ("two machines", "a third one")
    assert after["levels"]["tuned"]["drift"] == before["levels"]["tuned"]["drift"]
    read = baselines.load_limits(path)
    assert read["tuned"]["latents"] == after["levels"]["tuned"]["latents"]["limit"]
    assert read["tuned"]["float64"] == LIMIT_RULES["float64"].least


def test_latents_that_nobody_else_has_are_named(
    machines: list[Path], capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.rmtree(stored.latents_beside(machines[1]))
    assert run(*machines[:2]) == 2
    assert "no float32 latents of a level that another folder has" in capsys.readouterr().err
    save_latents(machines[1], "tuned", 0.0, "ring")
    assert run(*machines[:2]) == 2
    assert "latents ['ring', 'star'] of level 'tuned' are in only one" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("", "cannot be read"),
        ("[]", "holds no JSON object"),
        ("{}", "it holds no levels"),
        ('{"levels": [1]}', "it holds no levels"),
        ('{"levels": {"baseline": 3}}', "level 'baseline' has the limits []"),
        ('{"levels": {"baseline": {"drift": 3}}}', "drift is 3, and has no limit"),
        ('{"levels": {"baseline": {"drift": {"limit": "0.5"}}}}', "drift.limit is '0.5'"),
    ],
)
def test_damaged_limits_are_named_when_those_of_latents_are_renewed(
    content: str, words: str, machines: list[Path], capsys: pytest.CaptureFixture[str]
) -> None:
    path = machines[0] / "limits.json"
    path.write_text(content)
    assert limits.main(["--latents", *map(str, machines), "--made-by", "a third one"]) == 2
    message = capsys.readouterr().err
    assert message.startswith(f"error: {path} ")
    assert words in message
    assert path.read_text() == content


def test_limits_that_let_everything_pass_are_not_written(
    machines: list[Path], capsys: pytest.CaptureFixture[str]
) -> None:
    save_latents(machines[1], "tuned", 5.0)
    assert run(*machines[:2]) == 2
    assert "too far apart: level 'baseline': latents.limit is " in capsys.readouterr().err
    assert not (machines[0] / "limits.json").exists()


def test_images_and_latents_of_two_sizes_are_named(
    machines: list[Path], capsys: pytest.CaptureFixture[str]
) -> None:
    beside = stored.latents_beside(machines[1])
    path = stored.latents_path(beside.parent.parent, beside.name, "tuned", "star")
    stored.save_latents(path, np.ones((4, 2, 1), np.float32), {"level_fields": {}})
    assert run(*machines[:2]) == 2
    assert f"{path} has the shape (4, 2, 1), the baseline's (4, 1, 1)" in capsys.readouterr().err
    save(machines[1], "tuned", noisy(3)[:16])
    assert run(*machines[:2]) == 2
    assert "the images 'star' are of two sizes" in capsys.readouterr().err


@pytest.mark.parametrize(("value", "rounded"), [(0.0, 0.0), (4e-9, 4e-9), (1.2341e-7, 1.24e-7)])
def test_a_limit_has_three_digits(value: float, rounded: float) -> None:
    assert latent_limits._rounded_up(value) == rounded
