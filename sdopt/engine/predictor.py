"""What predicts the noise in the denoising loop: a module as it is, or the engine's own UNet."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, Protocol

from torch import Tensor

from sdopt.engine.modules import Hoisted
from sdopt.engine.unet import FusedUNet


class Predictor(Protocol):
    """The UNet in one run of the loop, with the run's timesteps and encoded prompts.

    One is made for each run, and goes with it: it holds what was computed for its steps.
    """

    def predict(self, x: Tensor, step: int) -> Tensor:
        """The noise (B, H, W, 4) in latents x (B, H, W, 4) at a step, (B, H, W, 4)."""

    def drop_unconditional(self, images: int) -> None:
        """Go on without guidance: the conditional half, which comes last, is kept."""


class ModulePredictor:
    """A UNet2DConditionModel as it is, eager or compiled."""

    def __init__(self, unet: Any, times: Tensor, text: Tensor) -> None:
        self._unet, self._times, self._text = unet, times, text

    def predict(self, x: Tensor, step: int) -> Tensor:
        """As Predictor's."""
        sample = as_module_input(x, fused=False)
        (noise,) = self._unet(
            sample, self._times[step], encoder_hidden_states=self._text, return_dict=False
        )
        first: Tensor = noise
        return first.permute(0, 2, 3, 1).contiguous()

    def drop_unconditional(self, images: int) -> None:
        """As Predictor's."""
        if self._text.shape[0] > images:
            self._text = self._text[images:].clone()


class FusedPredictor:
    """A UNet whose forward pass is the engine's.

    `fused` is given if everything that depends on the timesteps and prompts alone is computed
    before the loop. `full` are the steps that compute all of the UNet; the others reuse the deep
    features of the last of them. None is for a level that reuses nothing.

    It calls the module, so that whoever watches a pipeline's modules sees each step; this class
    alone knows what the engine's forward pass takes beyond a UNet2DConditionModel's. Of `images`
    there are twice as many latents while there is guidance, both halves the same.
    """

    def __init__(
        self,
        unet: Any,
        times: Tensor,
        text: Tensor,
        *,
        images: int,
        fused: FusedUNet | None,
        full: Collection[int] | None,
    ) -> None:
        self._unet, self._times, self._text, self._full = unet, times, text, full
        self._hoisted = [] if fused is None else hoisted_steps(fused, times, text, images)
        self._deep: Tensor | None = None

    def predict(self, x: Tensor, step: int) -> Tensor:
        """As Predictor's."""
        if self._full is not None and step in self._full:
            self._deep = None
        more: dict[str, Any] = {"hoisted": self._hoisted[step]} if self._hoisted else {}
        if self._full is not None:
            more |= {"store": True} if self._deep is None else {"deep": self._deep}
        sample = as_module_input(x, fused=True)
        noise, *stored = self._unet(
            sample, self._times[step], encoder_hidden_states=self._text, return_dict=False, **more
        )
        if stored:
            self._deep = stored[0]
        first: Tensor = noise
        return first.permute(0, 2, 3, 1).contiguous()

    def drop_unconditional(self, images: int) -> None:
        """As Predictor's."""
        if self._text.shape[0] > images:
            self._text = self._text[images:].clone()
            self._hoisted = [_without_unconditional(one, images) for one in self._hoisted]
            self._deep = None if self._deep is None else self._deep[images:]


def as_module_input(x: Tensor, *, fused: bool) -> Tensor:
    """(B, H, W, C) as (B, C, H, W), laid out as the graphs of compiled modules know it."""
    first = x.permute(0, 3, 1, 2)
    return first if fused else first.contiguous()


def hoisted_steps(fused: FusedUNet, times: Tensor, text: Tensor, images: int) -> list[Hoisted]:
    """What each step of so many images needs from its timestep and the prompts."""
    context = fused.context(text)
    shifts = fused.shifts(times)
    return [
        Hoisted(
            shift={m: rows[step] for m, rows in shifts.items()},
            context=context,
            twins=len(text) == 2 * images,
        )
        for step in range(len(times))
    ]


def _without_unconditional(hoisted: Hoisted, images: int) -> Hoisted:
    """The conditional half, which comes last."""
    halves = {m: (k[images:], v[images:]) for m, (k, v) in hoisted.context.items()}
    return Hoisted(shift=hoisted.shift, context=halves)
