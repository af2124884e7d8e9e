"""The two predictors ask of a UNet what it can: a module no more than diffusers' own does."""

from __future__ import annotations

import gc
import weakref
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sdopt.engine.modules import Hoisted
from sdopt.engine.predictor import FusedPredictor, ModulePredictor, Predictor

TIMES = torch.tensor([3.0, 2.0, 1.0, 0.0])
TEXT = torch.arange(4.0).reshape(2, 1, 2)
X = torch.arange(2.0 * 2 * 3 * 4).reshape(2, 2, 3, 4)


class Unet:
    """Notes how it is called; its noise is twice the sample, its deep features the step's time."""

    def __init__(self) -> None:
        self.calls: list[dict[str, Any]] = []
        self.samples: list[Tensor] = []

    def __call__(self, sample: Tensor, time: Tensor, **more: Any) -> Any:
        assert more.pop("return_dict") is False
        self.samples.append(sample)
        self.calls.append({"time": float(time), **more})
        deep = torch.full((sample.shape[0], 1), float(time))
        return (2 * sample, deep) if more.get("store") else (2 * sample,)


class Fused:
    """Keys and values, and shifts, of one module each."""

    module = nn.Identity()

    def context(self, text: Tensor) -> Any:
        return {self.module: (text, -text)}

    def shifts(self, times: Tensor) -> Any:
        return {self.module: times[:, None]}


def fused_predictor(unet: Unet, **more: Any) -> FusedPredictor:
    given: Any = {"images": 1, "fused": None, "full": None, **more}
    return FusedPredictor(unet, TIMES, TEXT, **given)


def test_a_module_is_called_as_diffusers_calls_it() -> None:
    unet = Unet()
    predictor = ModulePredictor(unet, TIMES, TEXT)
    assert torch.equal(predictor.predict(X, 1), 2 * X)
    (call,) = unet.calls
    assert set(call) == {"time", "encoder_hidden_states"}
    assert call["time"] == 2.0
    assert unet.samples[0].is_contiguous()


def test_the_engines_own_gets_channels_last_and_nothing_that_its_level_has_not() -> None:
    unet = Unet()
    assert torch.equal(fused_predictor(unet).predict(X, 0), 2 * X)
    assert set(unet.calls[0]) == {"time", "encoder_hidden_states"}
    assert unet.samples[0].permute(0, 2, 3, 1).is_contiguous()


def test_full_steps_store_deep_features_that_the_others_reuse() -> None:
    unet = Unet()
    predictor = fused_predictor(unet, full={0, 2})
    for step in range(4):
        predictor.predict(X, step)
    assert [call.get("store") for call in unet.calls] == [True, None, True, None]
    assert [float(call["deep"][0]) for call in unet.calls if "deep" in call] == [3.0, 1.0]


def test_each_step_gets_what_was_hoisted_for_it() -> None:
    unet = Unet()
    predictor = fused_predictor(unet, fused=Fused())
    for step in (0, 3):
        predictor.predict(X, step)
    found: list[Hoisted] = [call["hoisted"] for call in unet.calls]
    assert [float(one.shift[Fused.module]) for one in found] == [3.0, 0.0]
    assert all(one.context[Fused.module][0] is TEXT for one in found)


@pytest.mark.parametrize("kind", ["module", "fused"])
def test_without_guidance_the_conditional_half_is_kept(kind: str) -> None:
    unet = Unet()
    predictor: Predictor = ModulePredictor(unet, TIMES, TEXT)
    if kind == "fused":
        predictor = fused_predictor(unet, fused=Fused(), full={0})
    predictor.predict(X, 0)
    for step in (1, 2):
        predictor.drop_unconditional(1)  # once, however often it is asked for
        predictor.predict(X[1:], step)
    assert all(torch.equal(call["encoder_hidden_states"], TEXT[1:]) for call in unet.calls[1:])
    if kind == "fused":
        assert [call["deep"].shape for call in unet.calls[1:]] == [(1, 1)] * 2
        contexts = [call["hoisted"].context[Fused.module] for call in unet.calls[1:]]
        assert all(torch.equal(key, TEXT[1:]) and len(value) == 1 for key, value in contexts)


def test_what_a_run_computed_goes_with_it() -> None:
    """A graph's memory is shared with the next: nothing of a capture may stay alive."""
    predictor = fused_predictor(Unet(), fused=Fused(), full={0})
    predictor.predict(X, 0)
    kept = weakref.ref(predictor)
    gc.disable()
    try:
        del predictor
        assert kept() is None
    finally:
        gc.enable()
