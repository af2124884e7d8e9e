"""Put the engine's forward passes underneath a pipeline's own modules."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import numpy as np
import torch
from diffusers.models.unets.unet_2d_condition import UNet2DConditionOutput
from torch import Tensor, nn
from torch.profiler import record_function
from transformers.modeling_outputs import BaseModelOutputWithPooling

from sdopt.engine.adapters import engine_view
from sdopt.engine.decoders import Decoder, fused_decoder
from sdopt.engine.described import described, difference, unsupported
from sdopt.engine.fingerprint import Fingerprint, differing
from sdopt.engine.float8 import chosen_kinds
from sdopt.engine.placed import check_alike
from sdopt.engine.put_in import PutIn
from sdopt.engine.stock import foreign
from sdopt.engine.text import check_encoder, encode_text, joined_attentions, pooled_text
from sdopt.engine.unet import Context, FusedUNet, Shift
from sdopt.engine.watch import Watch
from sdopt.errors import SdoptError

FUSED_MARK = "sdopt::fused"
"""How each run of a fused forward pass is named in a profile."""
OTHER_LEVEL = "use a level without the engine, such as 'final'"

Made = TypeVar("Made")


@dataclass(frozen=True, kw_only=True)
class Hoisted:
    """What the UNet computes from the timestep and the prompts alone, done before the loop.

    `twins` says that the latents' second half is the first again, the guided one.
    """

    shift: Shift
    context: Context
    twins: bool = False


class FusedPart(Generic[Made]):
    """One part of a pipeline, and what the engine makes of it: `made`, anew after any change.

    `version` counts how often. The part itself is not kept alive: its `forward` leads here. What
    the engine computes is that of the modules' classes with the attributes that they were built
    with; `refresh` takes other weights and LoRA over and refuses everything else by name.
    """

    def __init__(
        self,
        name: str,
        module: nn.Module,
        make: Callable[[Any], Made],
        level: str,
        called: tuple[nn.Module, ...] = (),
    ) -> None:
        self.name, self.level, self.version = name, level, 0
        self._module = weakref.ref(module)
        self._make = make
        self._called = [weakref.ref(inner) for inner in called]
        self._as_built = described({name: module})
        self.check()
        self._take(module)

    def refresh(self) -> None:
        """Make it anew if anything changed. Raises SdoptError for what the engine leaves out."""
        module = self.module
        if self._watch.has_changed() or bool(differing([self.fingerprint])):
            self.check()
            self._take(module)

    @property
    def module(self) -> nn.Module:
        """The part. Raises SdoptError if its pipeline is gone."""
        module = self._module()
        if module is None:
            raise SdoptError(
                f"level {self.level!r}: the {self.name} of a pipeline that is gone; keep the "
                "pipeline as long as you use its parts"
            )
        return module

    def has_changed(self) -> bool:
        """Whether `refresh` would do something, but for what only the fingerprint tells."""
        return self._watch.has_changed()

    @torch.inference_mode(False)  # what is made here serves calls outside of it as well
    @torch.no_grad()  # or what is computed from the weights would keep copies for gradients
    def _take(self, module: nn.Module) -> None:
        self.made = self._make(engine_view(module, self.level, self.name, self._called_now()))
        self.version += 1
        self._watch = Watch([module], self._called_now())
        self.fingerprint = Fingerprint([*module.parameters()], whole=[*module.buffers()])

    def wants_gradients(self) -> bool:
        """Whether any of its weights does."""
        module = self._module()
        return module is not None and any(weight.requires_grad for weight in module.parameters())

    def check(self) -> None:
        """Raise SdoptError for what the engine would leave out."""
        parts = {self.name: self.module}
        if patch := foreign(parts, self._called_now()):
            raise SdoptError(
                f"level {self.level!r} uses graphs and kernels of its own, which would leave "
                f"out {patch}; undo that, or {OTHER_LEVEL}"
            )
        check_alike(parts, self.level)  # what has no memory is not described further
        if problem := unsupported(parts) or difference(described(parts), self._as_built):
            raise SdoptError(
                f"level {self.level!r} computes what the modules were built for: {problem}; undo "
                f"that, or {OTHER_LEVEL}"
            )

    def _called_now(self) -> tuple[nn.Module, ...]:
        return tuple(inner for ref in self._called if (inner := ref()) is not None)


class Fused:
    """The engine's parts of one pipeline, as forward passes of its modules.

    Called from outside, each looks first whether its part changed. The image engine has looked at
    all of them already: while it generates, `looked_at` is set.
    """

    looked_at = False

    def __init__(
        self, text_encoder: Any, unet: Any, vae: Any, level: str, *, float8: bool = False
    ) -> None:
        self.level = level
        check_encoder(text_encoder)
        self.encoder = FusedPart(
            "text_encoder", text_encoder, lambda view: (view, joined_attentions(view)), level
        )
        kinds = chosen_kinds() if float8 else ()
        self.predictor = FusedPart(
            "unet", unet, lambda view: FusedUNet(unet=view, kinds=kinds), level
        )
        make: Callable[[Any], Decoder] = fused_decoder
        self.decoder = FusedPart("vae", vae, make, level, (vae.decoder,))

    @property
    def parts(self) -> tuple[FusedPart[Any], ...]:
        """All three."""
        return self.encoder, self.predictor, self.decoder

    @property
    def unet(self) -> FusedUNet:
        """The UNet's forward pass as it is now."""
        return self.predictor.made

    @property
    def version(self) -> tuple[int, ...]:
        """Another one after each change that was taken over."""
        return tuple(part.version for part in self.parts)

    @property
    def fingerprints(self) -> tuple[Fingerprint, ...]:
        """Of the weights that all parts were made of."""
        return tuple(part.fingerprint for part in self.parts)

    def has_changed(self) -> bool:
        """Whether `refresh` would do something, but for what only the fingerprints tell."""
        return any(part.has_changed() for part in self.parts)

    def refresh(self) -> None:
        """Look at all parts."""
        if self.has_changed():
            for part in self.parts:
                part.check()
            check_alike({part.name: part.module for part in self.parts}, self.level)
        for part in self.parts:
            part.refresh()

    def encode(self, input_ids: Tensor, *more: Any, **named: Any) -> Any:
        """As CLIPTextModel's: the last hidden state, and its values at the end of each text."""
        return_dict = named.pop("return_dict", True)
        self._refuse("text_encoder", more, named)
        self._refuse_gradients(self.encoder, input_ids)
        self._look(self.encoder)
        view, joined = self.encoder.made
        ids = input_ids.reshape(-1, input_ids.shape[-1])
        with record_function(FUSED_MARK):
            hidden = encode_text(view, joined, ids)
        if self.looked_at:  # the image engine, which pools nothing
            return (hidden,)
        pooled = pooled_text(view, hidden, ids)
        if not return_dict:
            return hidden, pooled
        return BaseModelOutputWithPooling(last_hidden_state=hidden, pooler_output=pooled)

    def predict(
        self,
        sample: Tensor,
        timestep: Any,
        encoder_hidden_states: Tensor,
        *more: Any,
        hoisted: Hoisted | None = None,
        deep: Tensor | None = None,
        store: bool = False,
        return_dict: bool = True,
        **named: Any,
    ) -> Any:
        """As UNet2DConditionModel's, which may be given what was hoisted.

        With `store` it also returns its deep features, and given `deep` it computes the last layer
        alone; a tuple in both cases.
        """
        self._refuse("unet", more, named)
        self._refuse_gradients(self.predictor, sample, timestep, encoder_hidden_states)
        self._look(self.predictor)
        fused = self.unet
        if hoisted is None and _count(timestep) > 1:
            return self._predict_apart(sample, timestep, encoder_hidden_states, return_dict)
        with record_function(FUSED_MARK):
            ready = hoisted or hoist(fused, timestep, encoder_hidden_states)
            x = channels_last(sample)
            if deep is not None:
                return (channels_first(fused.shallow(x, deep, ready.shift, ready.context)),)
            noise, features = fused.store(x, ready.shift, ready.context, twins=ready.twins)
        if store:
            return channels_first(noise), features
        first = channels_first(noise)
        return UNet2DConditionOutput(sample=first) if return_dict else (first,)

    def _predict_apart(self, sample: Tensor, timestep: Any, text: Tensor, return_dict: bool) -> Any:
        """Each image at a timestep of its own, which the engine generates one after the other."""
        times = torch.as_tensor(timestep, device=text.device).reshape(-1)
        if not len(times) == len(sample) == len(text):
            raise SdoptError(
                f"level {self.level!r}: the engine's unet got {len(times)} timesteps and "
                f"{len(text)} texts for {len(sample)} images; give one timestep, or one for each"
            )
        each = zip(sample[:, None], times, text[:, None], strict=True)
        first = torch.cat([self.predict(*one, return_dict=False)[0] for one in each])
        return UNet2DConditionOutput(sample=first) if return_dict else (first,)

    def decode(self, sample: Tensor, *more: Any, **named: Any) -> Tensor:
        """As the decoder's of an AutoencoderKL or an AutoencoderTiny."""
        self._refuse("vae.decoder", more, named)
        self._refuse_gradients(self.decoder, sample)
        self._look(self.decoder)
        with record_function(FUSED_MARK):
            return channels_first(self.decoder.made(channels_last(sample)))

    def _look(self, part: FusedPart[Any]) -> None:
        if not self.looked_at:
            part.refresh()

    def _refuse_gradients(self, part: FusedPart[Any], *given: Any) -> None:
        """Raise SdoptError if gradients are asked for, of which kernels and joined weights lose."""
        if not torch.is_grad_enabled():
            return
        if part.wants_gradients() or any(isinstance(t, Tensor) and t.requires_grad for t in given):
            raise SdoptError(
                f"level {self.level!r}: the engine's {part.name} computes no gradients; call it "
                "under torch.no_grad(), or train with a level without the engine, 'baseline'"
            )

    def _refuse(self, part: str, more: tuple[Any, ...], named: Mapping[str, Any]) -> None:
        """Raise SdoptError naming what a forward pass was given and the engine does not compute."""
        arguments = {**dict(zip(_FURTHER[part], more, strict=False)), **named}
        given = [name for name, value in arguments.items() if not _is_unused(name, value)]
        if given:
            raise SdoptError(
                f"level {self.level!r}: the engine's {part} does not compute {', '.join(given)}; "
                f"leave that out, or {OTHER_LEVEL}"
            )


_FURTHER = {
    "text_encoder": ("attention_mask", "position_ids"),
    "unet": (
        *("class_labels", "timestep_cond", "attention_mask", "cross_attention_kwargs"),
        *("added_cond_kwargs", "down_block_additional_residuals", "mid_block_additional_residual"),
        *("down_intrablock_additional_residuals", "encoder_attention_mask"),
    ),
    "vae.decoder": ("latent_embeds",),
}
"""What follows the arguments that the engine takes, by position."""


def _is_unused(name: str, value: Any) -> bool:
    """Whether an argument's value says that it is not used."""
    if name == "cross_attention_kwargs":
        return not value or value == {"scale": 1.0}
    return value is None or value is False


def fuse_modules(pipeline: Any) -> None:
    """Replace the forward passes of text encoder, UNet and decoder, in place, see `Fused`."""
    encoder, unet, vae = pipeline.text_encoder, pipeline.unet, pipeline.vae
    level = getattr(pipeline, "level", None)
    name = getattr(level, "name", "the engine's")
    fused = Fused(encoder, unet, vae, name, float8=getattr(level, "float8", False))
    encoder.forward = PutIn(encoder, fused.encode)
    unet.forward = PutIn(unet, fused.predict)
    vae.decoder.forward = PutIn(vae.decoder, fused.decode)
    pipeline.fused = fused


def hoist(fused: FusedUNet, timestep: Any, text: Tensor) -> Hoisted:
    """What one step needs from its timestep and the encoded prompts."""
    times = torch.as_tensor(timestep, device=text.device).reshape(1)
    shift = {module: rows[0] for module, rows in fused.shifts(times).items()}
    return Hoisted(shift=shift, context=fused.context(text))


def _count(timestep: Any) -> int:
    """How many timesteps: a number is one."""
    return timestep.numel() if isinstance(timestep, Tensor) else int(np.size(timestep))


def channels_last(x: Tensor) -> Tensor:
    """(B, C, H, W) as a contiguous (B, H, W, C); no copy if it is stored so already."""
    return x.permute(0, 2, 3, 1).contiguous()


def channels_first(x: Tensor) -> Tensor:
    """(B, H, W, C) as (B, C, H, W), the same memory."""
    return x.permute(0, 3, 1, 2)
