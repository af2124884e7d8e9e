"""A project's pipeline as the suite measures it: called by the level's arguments, else as it is."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from copy import copy
from typing import Any

from sdopt.bench.own.ladder import OwnLevel
from sdopt.errors import SdoptError
from sdopt.weights.sources import Source

DENOISERS = ("unet", "transformer")
NEEDED = (
    "a denoiser (unet or transformer), a vae with decode and decoder, and a scheduler with step"
)


class OwnPipeline:
    """Stands before the project's pipeline, whose attributes are its own.

    `each_image` happens in each call, before the pipeline's own: a fault may take time there.
    """

    engine = fused = fused_unet = None

    def __init__(self, inner: Any, level: OwnLevel, source: Source) -> None:
        self.inner, self.level, self.source = inner, level, source
        self.each_image: Callable[[], None] | None = None

    def __getattr__(self, name: str) -> Any:
        if "inner" not in vars(self):  # freed, or not yet whole
            raise AttributeError(name)
        return getattr(self.inner, name)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Generate with the level's arguments, of those that the pipeline takes."""
        if self.each_image is not None:
            self.each_image()
        if args:
            kwargs = {"prompt": args[0], **kwargs}
        arguments = {**self._defaults(), **self.level.call, **kwargs}
        return self.inner(**{k: v for k, v in arguments.items() if self.takes(k)})

    def __copy__(self) -> OwnPipeline:
        return OwnPipeline(copy(self.inner), self.level, self.source)

    @property
    def unet(self) -> Any:
        """The denoiser, whatever the pipeline calls it."""
        return getattr(self.inner, denoiser_name(self.inner))

    @property
    def device(self) -> Any:
        """Where the denoiser is."""
        return next(self.unet.parameters()).device

    def takes(self, argument: str) -> bool:
        """Whether a call takes an argument of that name."""
        known = inspect.signature(type(self.inner).__call__).parameters
        return argument in known or any(one.kind is one.VAR_KEYWORD for one in known.values())

    @property
    def text_encoders(self) -> dict[str, Any]:
        """Those that it has, by the names of their attributes."""
        names = ("text_encoder", "text_encoder_2", "text_encoder_3")
        found = {name: getattr(self.inner, name, None) for name in names}
        return {name: encoder for name, encoder in found.items() if encoder is not None}

    @property
    def parts(self) -> dict[str, Any]:
        """The modules whose calls are watched."""
        return {**self.text_encoders, "unet": self.unet, "decoder": self.inner.vae.decoder}

    @property
    def fixed(self) -> set[str]:
        """What a second request cannot vary: as declared, and what the pipeline does not take."""
        guided = self.takes("guidance_scale") and self.source.guidance_scale > 1
        taken = {
            "guidance": guided,
            "negative prompt": guided and self.takes("negative_prompt"),
            "number of steps": self.takes("num_inference_steps"),
            "size": self.takes("height") and self.takes("width") and not self.level.compiled,
        }
        return {*self.level.fixed, *(name for name, is_taken in taken.items() if not is_taken)}

    def _defaults(self) -> dict[str, Any]:
        size = self.source.size_px
        return {
            "num_inference_steps": self.level.steps,
            "guidance_scale": self.source.guidance_scale,
            "height": size,
            "width": size,
        }


def build(level: OwnLevel, source: Source, device: Any) -> OwnPipeline:
    """The level's pipeline. Raises SdoptError for one that cannot be measured on the device."""
    inner = level.build()
    has_parts = denoiser_name(inner) and hasattr(getattr(inner, "vae", None), "decoder")
    if not has_parts or not hasattr(getattr(inner, "scheduler", None), "step"):
        raise SdoptError(f"level {level.name!r}: build returned {_told(inner)}")
    pipeline = OwnPipeline(inner, level, source)
    if pipeline.device.type != device.type:
        raise SdoptError(
            f"level {level.name!r}: its denoiser is on {pipeline.device}, this run measures on "
            f"{device.type}; let build move the pipeline there"
        )
    if hasattr(inner, "set_progress_bar_config"):
        inner.set_progress_bar_config(disable=True)
    return pipeline


def _told(inner: Any) -> str:
    if inner is None:
        return "None; let it end with `return pipeline`"
    return f"{type(inner).__name__}, which does not have what is measured: {NEEDED}"


def denoiser_name(inner: Any) -> str:
    """The attribute of the pipeline that holds its denoiser, '' if none does."""
    return next((name for name in DENOISERS if getattr(inner, name, None) is not None), "")


def core(pipeline: Any) -> Any:
    """The pipeline that runs: the project's own behind an OwnPipeline, else the pipeline itself."""
    return pipeline.inner if isinstance(pipeline, OwnPipeline) else pipeline
