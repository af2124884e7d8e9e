"""Arithmetic and floors of an image's kernels add up, and a profile is told by family."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from sdopt.engine.cards import H100
from sdopt.engine.tables import shipped_table
from sdopt.levels import LEVELS
from studies import where_time_goes
from studies.predict_a100 import Peak
from studies.where_time_goes import (
    ATTENTION,
    BOTH,
    CONVOLUTION,
    FAMILIES,
    GROUP_NORM,
    LAYER_NORM,
    PRODUCT,
    REST,
    Work,
    family_of,
    kernels_of,
    main,
    operations,
    table,
    work_of,
)

PEAK = Peak(tflop_per_s=1000, tb_per_s=5, multiprocessors=132)
STORED = json.loads(Path("baselines/work/sd15-random.json").read_text(encoding="utf-8"))["levels"]


@pytest.mark.parametrize("name", ["hoisted", "turbo"])
def test_the_arithmetic_is_that_of_the_stored_counts(name: str) -> None:
    """Theirs are counted by PyTorch, of whole modules; the embeddings of time are not in ours."""
    work = work_of(operations(LEVELS[name]), PEAK, {})
    whole = sum(work.values(), Work())
    assert whole.flop / 1e12 == pytest.approx(STORED[name]["tflop"], rel=3e-3)
    assert all(one.floor_s >= one.moved / 5e12 * 0.999 for one in work.values())
    assert whole.floor_s > whole.flop / 1e15


def test_float8_halves_what_its_products_need() -> None:
    wide = work_of(operations(LEVELS["turbo"]), PEAK, {})
    narrow = work_of(operations(LEVELS["turbo-float8"]), PEAK, {})
    assert narrow[CONVOLUTION].flop == wide[CONVOLUTION].flop
    assert narrow[CONVOLUTION].floor_s < 0.7 * wide[CONVOLUTION].floor_s
    assert narrow[PRODUCT] == wide[PRODUCT]


def test_an_operation_is_bound_by_arithmetic_or_by_memory() -> None:
    counts = {
        (PRODUCT, "linear 8192x8192-8192"): (2, 0.0),
        (PRODUCT, "linear 2x320-1280"): (1, 0.0),
    }
    tiles = {"linear 8192x8192-8192": {"us": 1200.0}}
    product = work_of(counts, PEAK, tiles)[PRODUCT]
    arithmetic = 2 * 2 * 8192**3 / 1e15
    memory = 2 * (2 * 320 + 320 * 1280 + 2 * 1280) / 5e12
    assert product.floor_s == pytest.approx(arithmetic + memory)
    assert (product.operations, product.untimed) == (3, 1)
    assert product.tiles_s == pytest.approx(2400e-6)


def test_a_sum_of_tiles_says_what_it_is_without() -> None:
    work = dict.fromkeys(FAMILIES, Work(operations=1))
    work[ATTENTION] = Work(operations=3, tiles_s=2e-3, untimed=2)
    rows = {line.split(" | ")[0]: line for line in table(work, None)}
    never = "2 operations whose tile was never timed"
    assert f"| 2.0 (without {never}) |" in rows[f"| {ATTENTION}"]
    assert f"| 2.0 (without norms, the rest, {never}) |" in rows["| all"]


def test_each_tile_of_an_image_was_timed() -> None:
    """As docs/evidence/where-time-goes.md says; one product's without the residual that it adds."""
    timed = json.loads(shipped_table(H100).read_text(encoding="utf-8"))["measured"]
    counts = {
        key: count
        for (family, key), (count, _) in operations(LEVELS["hoisted"]).items()
        if family in (CONVOLUTION, PRODUCT, ATTENTION) and key not in timed
    }
    assert counts == {"added 4096x512-512": 1}
    assert "linear 4096x512-512" in timed


@pytest.mark.parametrize(
    ("kernel", "family"),
    [
        ("sdopt_product_float8", BOTH),
        ("sdopt_sum_splits", BOTH),
        ("sdopt_group_norm_apply", GROUP_NORM),
        ("sdopt_combine_statistics", GROUP_NORM),
        ("sdopt_layer_norm", LAYER_NORM),
        ("sdopt_attention", ATTENTION),
        ("cudnn_generated_fort_native_sdpa_sm90_flash_fprop", ATTENTION),
        ("nvjet_hsh_128x256_64x4_2x1", BOTH),
        ("sm90_xmma_fprop_implicit_gemm", BOTH),
        ("sdopt_solver_step", REST),
        ("Memcpy DtoD (Device -> Device)", REST),
        ("memcpy32_post", REST),
    ],
)
def test_a_kernel_has_a_family(kernel: str, family: str) -> None:
    assert family_of(kernel) == family


def test_a_profile_is_recorded_and_shown(tmp_path: Path) -> None:
    def event(name: str, us: float, device: object) -> SimpleNamespace:
        return SimpleNamespace(name=name, device_time=us, device_type=device)

    cuda, cpu = torch.autograd.DeviceType.CUDA, torch.autograd.DeviceType.CPU
    kernels = kernels_of(
        [
            event("sdopt_product", 1500.0, cuda),
            event("sdopt_product", 1500.0, cuda),
            event("sdopt_layer_norm", 250.0, cuda),
            event("aten::copy_", 9.0, cpu),
        ]
    )
    assert kernels == {"sdopt_product": [2, 3000.0], "sdopt_layer_norm": [1, 250.0]}
    file, page = tmp_path / "profile.json", tmp_path / "page.md"
    content = {"schema": where_time_goes.SCHEMA, "device": "NVIDIA H200"}
    file.write_text(json.dumps({**content, "levels": {"turbo": kernels}}))
    page.write_text("<!-- where-time-goes: begin -->\n<!-- where-time-goes: end -->\n")
    assert main(["page", "--profile", str(file), "--page", str(page)]) == 0
    rows = {line.split(" | ")[0]: line for line in page.read_text().splitlines()}
    assert rows[f"| {BOTH}"].endswith("| 3.0 | 2 |")
    assert rows["| all"].endswith("| 3.2 | 3 |")
    assert rows[f"| {PRODUCT}"].endswith("| - | - |")


@pytest.mark.parametrize(
    ("device", "levels", "says"),
    [
        ("NVIDIA H200", {}, "levels is {}, no object with levels"),
        (3, {"turbo": {"k": [1, 2.0]}}, "device is 3, no text"),
        (None, {"turbo": {"k": [1, 2.0]}}, "device is null, no text"),
        ("NVIDIA H200", {"turbo": []}, "turbo is [], no object with kernels"),
        ("NVIDIA H200", {"turbo": {}}, "turbo is {}, no object with kernels"),
        *(
            ("NVIDIA H200", {"turbo": {"k": wrong}}, "turbo: k is ")
            for wrong in (3, [1], [1, 2, 3], ["a", 1.0], [1, "a"], [1.5, 2.0], [1, float("nan")])
        ),
    ],
)
def test_a_damaged_profile_is_named_and_no_page_changed(
    device: Any, levels: Any, says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, page = tmp_path / "profile.json", tmp_path / "page.md"
    content = {"schema": where_time_goes.SCHEMA, "device": device, "levels": levels}
    file.write_text(json.dumps(content))
    before = "<!-- where-time-goes: begin -->\nold\n<!-- where-time-goes: end -->\n"
    page.write_text(before)
    assert main(["page", "--profile", str(file), "--page", str(page)]) == 2
    said = capsys.readouterr().err
    assert f"{file} is damaged: " in said
    assert says in said
    assert "`record` writes one" in said
    assert page.read_text() == before


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["page", "--profile", "none.json"], "none.json is missing; `record` writes one, on a GPU"),
        (["page", "--profile", "docs"], "cannot be read: Is a directory; `record` writes one"),
        (["record", "turbo", "--json", "x.json"], "record needs a CUDA device"),
        (["page", "--levels", "final"], "choose one of hoisted"),
        (["page", "--levels", "tubro"], "did you mean 'turbo'"),
        (["page", "--device", "NVIDIA L4", "--levels", "turbo"], "no data sheet of 'NVIDIA L4'"),
        (["page", "--profile", "pyproject.toml"], "pyproject.toml"),
        (["page", "--profile", "docs/samples/quality-scaling.json"], "is no profile"),
    ],
)
def test_what_cannot_be_done_is_told(
    arguments: list[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    if torch.cuda.is_available() and arguments[0] == "record":
        pytest.skip("needs a machine without a GPU")
    assert main(arguments) == 2
    assert says in capsys.readouterr().err
