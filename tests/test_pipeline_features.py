"""What docs/pipelines.md says of each diffusers feature is what happens, per family of levels."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline

from sdopt.errors import SdoptError
from sdopt.levels import DPM_20, HOISTED, Level
from sdopt.optimizations import compilation
from sdopt.pipeline import LevelPipeline, build
from sdopt.sources import Source

PAGE = Path(__file__).parents[1] / "docs" / "pipelines.md"
FAMILIES: dict[str, Level] = {
    "eager": replace(DPM_20, name="eager", compiled=False),
    "compiled": DPM_20,
    "engine": HOISTED,
}
"""One level of each, lossless and with the same sampler, so that stock diffusers draws the same."""
CPU = torch.device("cpu")
STEPS = 2
PROMPT: dict[str, Any] = {"prompt": "a cat", "negative_prompt": "a dog"}
SAME, CHANGED = 1e-4, 1e-3
"""The largest difference of a pixel by another order of sums, and the least of a change."""


@dataclass(kw_only=True)
class Trial:
    """A level's pipeline that has drawn, and stock diffusers with the same weights."""

    pipeline: LevelPipeline
    stock: StableDiffusionPipeline
    source: Source
    first: Any

    @property
    def both(self) -> tuple[Any, Any]:
        return self.pipeline, self.stock

    def draw(self, **arguments: Any) -> tuple[Any, Any]:
        """The images of both with these arguments."""
        return image(self.pipeline, **arguments), image(self.stock, **arguments)

    def is_as_stock(self, *, changed: bool = True, **arguments: Any) -> None:
        """Both draw the same now; `changed` says whether it is another image than at first."""
        found, wanted = self.draw(**arguments)
        assert np.abs(found - wanted).max() < SAME
        assert (np.abs(found - self.first).max() > CHANGED) == changed


Feature = Callable[[Trial], None]
FEATURES: dict[str, Feature] = {}
"""Row of the table, by its first cell: does what it says, and asserts that it works."""


def feature(row: str) -> Callable[[Feature], Feature]:
    """Register what a row of the table does."""

    def add(function: Feature) -> Feature:
        assert row not in FEATURES
        FEATURES[row] = function
        return function

    return add


def image(pipeline: Any, **arguments: Any) -> Any:
    """One image of a pipeline, with its own defaults for what is not given."""
    seed = torch.Generator().manual_seed(1)
    given = {**PROMPT, "num_inference_steps": STEPS, "guidance_scale": 3.0, "generator": seed}
    return pipeline(**{**given, "output_type": "np", **arguments}).images[0]


@feature("FreeU switched on, then off")
def freeu(trial: Trial) -> None:
    for pipeline in trial.both:
        pipeline.enable_freeu(s1=0.9, s2=0.2, b1=1.2, b2=1.4)
    trial.is_as_stock()
    for pipeline in trial.both:
        pipeline.disable_freeu()
    trial.is_as_stock(changed=False)


@feature("a forward hook on a block")
def hook(trial: Trial) -> None:
    handles = [
        pipeline.unet.mid_block.register_forward_hook(lambda module, args, output: output * 1.5)
        for pipeline in trial.both
    ]
    trial.is_as_stock()
    for handle in handles:
        handle.remove()
    trial.is_as_stock(changed=False)


class ForgetfulTorch:
    """PyTorch with a compiler that sees no change at all of the module that it has compiled.

    It stands for captured graphs too. What real compilation does with such changes is told by
    tests/test_compiled_changes.py.
    """

    def __getattr__(self, name: str) -> Any:
        return getattr(torch, name)

    def compile(self, function: Any, **_: Any) -> Any:
        kept: list[Any] = []

        def run(module: Any, *args: Any, **kwargs: Any) -> Any:
            if not kept:
                kept.append(with_own_structure(module))
            return function(kept[0], *args, **kwargs)

        return run


def with_own_structure(module: torch.nn.Module) -> Any:
    """A copy that shares the weights and nothing else."""
    shared: list[Any] = [*module.parameters(), *module.buffers()]
    memo: dict[int, Any] = {id(tensor): tensor for tensor in shared}
    memo[id(vars(module)["forward"])] = None
    return copy.deepcopy(module, memo)


def rows() -> list[dict[str, str]]:
    """The table's rows, by the names of its columns."""
    lines = [line for line in PAGE.read_text(encoding="utf-8").splitlines() if line[:1] == "|"]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    begin = cells.index(["feature", *FAMILIES])
    return [dict(zip(cells[begin], row, strict=True)) for row in cells[begin + 2 :]]


def test_the_table_has_every_feature_and_no_other() -> None:
    assert [row["feature"] for row in rows()] == list(FEATURES)


def test_every_cell_says_works_or_refused_and_in_which_words() -> None:
    for row in rows():
        for family in FAMILIES:
            assert re.fullmatch(r'works|refused: "[^"]+"', row[family]), row


@pytest.fixture
def trial(
    micro_source: Source, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> Trial:
    monkeypatch.setattr(compilation, "torch", ForgetfulTorch())
    pipeline = build(micro_source, FAMILIES[request.param], CPU)
    parts = build(micro_source, FAMILIES["eager"], CPU)
    stock = StableDiffusionPipeline(**parts.components, requires_safety_checker=False)
    stock.set_progress_bar_config(disable=True)
    first = image(pipeline)
    assert np.abs(first - image(stock)).max() < SAME
    return Trial(pipeline=pipeline, stock=stock, source=micro_source, first=first)


@pytest.mark.parametrize("trial", FAMILIES, indirect=True)
@pytest.mark.parametrize("row", rows(), ids=lambda row: row["feature"])
def test_a_feature_does_what_the_table_says(
    row: dict[str, str], trial: Trial, request: pytest.FixtureRequest
) -> None:
    family = request.node.callspec.params["trial"]
    use = FEATURES[row["feature"]]
    if row[family] == "works":
        use(trial)
    else:
        words = row[family].split('"')[1]
        with pytest.raises(SdoptError, match=re.escape(words)):
            use(trial)
