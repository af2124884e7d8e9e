"""The norms of an image are counted by shape; sizes are tried one at a time and told in a table."""

from __future__ import annotations

import ast
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from sdopt import engine
from studies import norm_sizes
from studies.norm_sizes import VARIED, Norm, norms_of_an_image, sizes_table

HERE = {"device": "NVIDIA Test", "source": "sd15-random"}
ROW: dict[str, Any] = {
    "name": "group_norm 1x8x8x32 silu",
    "us": 4.0,
    "others": {"PIECES (4096, 64, 4)": 3.9, "STATISTICS (8, 8192, 8)": 7.25},
    "times": {"a step": 2, "the decoder": 1},
}


def test_they_are_those_of_stable_diffusion() -> None:
    found = norms_of_an_image()
    counts = {where: norms.total() for where, norms in found.items()}
    # 22 residual blocks of two, 16 transformers of one and three, and the last one.
    assert counts == {"a guided step": 109, "a step": 109, "the decoder": 30}
    joined = Norm(kind="group_norm", sizes=(2, 64, 64, 640), more=320, groups=32, silu=True)
    assert found["a guided step"][joined] == 1
    assert joined.name == "group_norm 2x64x64x640+320 silu"
    assert found["a step"][Norm(kind="layer_norm", sizes=(4096, 320))] == 15


def constants() -> dict[str, Any]:
    """Of `sdopt.engine.launch`, which cannot be imported without triton."""
    tree = ast.parse((Path(engine.__file__).parent / "launch.py").read_text())
    named = [
        (getattr(target, "elts", [target]), node.value)
        for node in tree.body
        if isinstance(node, ast.Assign)
        for target in node.targets
    ]
    found = {}
    for targets, value in named:
        values = ast.literal_eval(value)
        each = values if len(targets) > 1 else (values,)
        found |= {target.id: one for target, one in zip(targets, each, strict=True)}
    return found


@pytest.mark.parametrize(
    ("sizes", "count"),
    [
        ((8192, 320), 3),
        ((2, 8, 8, 1280), 2),  # one program for each group, or two kernels
        ((2, 32, 32, 640), 2 + 4 + 2 + 4),
        ((2, 64, 64, 320), 4 + 2 + 4),
        ((1, 512, 512, 128), 3 + 3 + 4),
    ],
)
def test_one_constant_is_another_at_a_time(
    sizes: tuple[int, ...], count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    kind = "layer_norm" if len(sizes) == 2 else "group_norm"
    launch: Any = ModuleType("launch")
    vars(launch).update(constants())
    monkeypatch.setattr(engine, "launch", launch, raising=False)
    monkeypatch.setitem(sys.modules, "sdopt.engine.launch", launch)
    seen = []

    def time_us(compute: Any, tile: Any) -> float:
        compute(tile, 0)
        return float(len(seen))

    def look() -> torch.Tensor:
        seen.append({name: getattr(launch, name) for name in VARIED[kind]})
        return torch.empty(0)

    monkeypatch.setattr(norm_sizes, "on_gpu", lambda norm: look)
    before = {name: getattr(launch, name) for name in VARIED[kind]}
    row = norm_sizes.timed(Norm(kind=kind, sizes=sizes), time_us)
    assert seen[0] == before == {name: getattr(launch, name) for name in VARIED[kind]}
    changes = [{n: v for n, v in one.items() if v != before[n]} for one in seen[1:]]
    assert all(len(change) == 1 for change in changes)
    assert len(row["others"]) == len(changes) == count
    assert row["us"] == 1.0


def test_a_table_names_what_is_faster_and_nothing_within_noise() -> None:
    *_, near = sizes_table([ROW])
    assert near == "| group_norm 1x8x8x32 silu | 2 in a step, 1 in the decoder | 4.0 | - |"
    *_, line = sizes_table([{**ROW, "others": {"PIECES (4096, 64, 4)": 3.0}}])
    assert line.endswith("| 4.0 | PIECES (4096, 64, 4): 3.0 |")


def test_rows_are_shown_without_a_gpu(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "norms.json"
    content = {"schema": "sdopt-rows/1", "made_on": HERE, "rows": [ROW]}
    path.write_text(json.dumps(content))
    assert norm_sizes.main(["--show", "--json", str(path)]) == 0
    assert "NVIDIA Test, source sd15-random" in capsys.readouterr().out


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_nothing_is_timed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "norms.json"
    assert norm_sizes.main(["--json", str(path)]) == 2
    assert "there is none; --show needs none" in capsys.readouterr().err
    assert not path.exists()
