"""Build a working diffusers pipeline for one level: one small `apply_*` per field, in order."""

from __future__ import annotations

import copyreg
from collections.abc import Callable
from typing import Any

import torch
from diffusers import (
    AutoencoderTiny,
    DPMSolverMultistepScheduler,
    EulerAncestralDiscreteScheduler,
    StableDiffusionPipeline,
)
from diffusers.callbacks import MultiPipelineCallbacks, PipelineCallback

from sdopt.engine.image import ImageEngine
from sdopt.engine.modules import Fused, fuse_modules
from sdopt.engine.unet import FusedUNet
from sdopt.errors import SdoptError, SourceError, UnknownNameError
from sdopt.levels import Level, get_level
from sdopt.pipelines.arguments import (
    DEFAULTS,
    arguments_of,
    known_to_processors,
    without_defaults,
)
from sdopt.pipelines.cfg_cutoff import cutoff_callback, in_turn
from sdopt.pipelines.compilation import compile_decoder, compile_unet
from sdopt.pipelines.components import check_components
from sdopt.pipelines.device_limits import (
    check_capability,
    check_dtype,
    naming_the_hungry,
    warn_of_rules,
)
from sdopt.pipelines.engine_call import generated_whole
from sdopt.pipelines.loading import load_tiny_vae, quiet_loading, reading
from sdopt.pipelines.nested import leaving_the_outer_call
from sdopt.pipelines.no_pickles import WithoutPickles
from sdopt.pipelines.prompts import named_as_diffusers_does, without_learnt_words
from sdopt.pipelines.saving import plainly_laid_out
from sdopt.pipelines.settings import process_settings
from sdopt.util.precision import chosen_dtype
from sdopt.weights.sd15 import random_parts
from sdopt.weights.sources import Source, resolve

HOW_TO_LOAD = (
    "load it with sdopt.load_pipeline(LEVEL, source=FOLDER), or use StableDiffusionPipeline for "
    "plain diffusers"
)


class LevelPipeline(WithoutPickles, StableDiffusionPipeline):  # type: ignore[misc]
    """A StableDiffusionPipeline whose defaults are those of one level and one source.

    Every argument of `StableDiffusionPipeline.__call__` works and overrides the level's own:
    `num_inference_steps` and `guidance_scale` too. A `callback_on_step_end` runs
    before the level's own. `each_image` happens in each call, before its loop: the bench lets a
    fault take time or memory there.
    """

    level: Level
    source: Source
    each_image: Callable[[], None] | None = None
    step_callback: Any = None
    engine: ImageEngine | None = None
    generating: bool = False
    fused: Fused | None = None

    @property
    def fused_unet(self) -> FusedUNet | None:
        """The engine's forward pass of the UNet as it is now, of a level with our kernels."""
        return self.fused.unet if self.fused is not None else None

    @property
    def device(self) -> torch.device:
        """Where the UNet is; diffusers' own property walks all modules, milliseconds an image."""
        if self.unet is None or self.unet.conv_in.weight.is_meta:  # gone, or offloaded
            return super().device  # type: ignore[no-any-return]
        device: torch.device = self.unet.conv_in.weight.device
        return device

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Generate as StableDiffusionPipeline does, with the level's settings in force.

        Calls of one process take turns, whatever threads and pipelines they come from.
        """
        self._check_level()
        given = without_defaults(arguments_of(self, args, kwargs), but=self._defaults())
        arguments = {**self._defaults(), **given}
        check_components(self, arguments)
        self._check_prompts(arguments)
        with (
            process_settings(self.level, self.device),
            naming_the_hungry(self.level, self.device),
            leaving_the_outer_call(self),
        ):
            if self.each_image is not None:
                self.each_image()
            if self.engine is not None:
                return generated_whole(self, self.engine, arguments)
            if self.level.compiled and arguments.get("cross_attention_kwargs"):
                own = known_to_processors(self.unet, arguments["cross_attention_kwargs"])
                arguments["cross_attention_kwargs"] = own or None
            if self.step_callback is not None:
                self._add_step_callback(arguments)
            return super().__call__(**arguments)

    def encode_prompt(self, *args: Any, **kwargs: Any) -> Any:
        """As StableDiffusionPipeline's, which asks for `text_encoder.text_model` now and then."""
        with named_as_diffusers_does(self.text_encoder):
            return super().encode_prompt(*args, **kwargs)

    def save_pretrained(self, *args: Any, **kwargs: Any) -> None:
        """Save as StableDiffusionPipeline does; it can load the folder, and `load_pipeline` too."""
        parts = [part for part in self.components.values() if isinstance(part, torch.nn.Module)]
        with plainly_laid_out(parts):
            super().save_pretrained(*args, **kwargs)

    @classmethod
    def from_pipe(cls, *_: Any, **__: Any) -> Any:
        """Refuse: a level's fields are applied to the weights of a source, not of a pipeline."""
        raise SdoptError(f"LevelPipeline.from_pipe gives no level; {HOW_TO_LOAD}")

    def __copy__(self) -> LevelPipeline:
        """Another pipeline of the same parts, with an engine of its own."""
        twin = object.__new__(type(self))
        twin.__dict__.update(vars(self))
        if self.engine is not None:
            twin.engine = ImageEngine(pipeline=twin, level=self.engine.level)
        return twin

    def __reduce__(self) -> Any:
        """For `copy.deepcopy` and pickle: the parts, and a fast path that is made anew."""
        if self.fused is not None:
            self.fused.refresh()  # refuses what a new one would not notice
        state = {name: value for name, value in vars(self).items() if name not in FAST_PATHS}
        return copyreg.__newobj__, (type(self),), state  # type: ignore[attr-defined]

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        if "level" in state:
            for apply in (apply_cfg_cutoff, apply_compiled, apply_fused, apply_whole_graph):
                apply(self, self.level)

    def _check_level(self) -> None:
        if "level" not in vars(self):
            raise SdoptError(
                "this LevelPipeline has no level: from_pretrained, from_single_file and components "
                f"give it parts alone; {HOW_TO_LOAD}"
            )

    def _defaults(self) -> dict[str, Any]:
        return {
            "num_inference_steps": self.level.steps,
            "guidance_scale": self.source.guidance_scale,
        }

    def _check_prompts(self, arguments: dict[str, Any]) -> None:
        for name in ("prompt", "negative_prompt"):
            given = arguments.get(name)
            for text in given if isinstance(given, list) else [given]:
                if isinstance(text, str) and text:  # what is no text is refused further on
                    self.source.check_prompt(without_learnt_words(text, self.tokenizer))

    def _add_step_callback(self, arguments: dict[str, Any]) -> None:
        own = arguments.get("callback_on_step_end")
        name = "callback_on_step_end_tensor_inputs"
        tensors = list(arguments.get(name, DEFAULTS[name]))
        if isinstance(own, (PipelineCallback, MultiPipelineCallbacks)):
            tensors = list(own.tensor_inputs)  # as diffusers does, for its own callback objects
        arguments["callback_on_step_end"] = (
            in_turn(own, self.step_callback) if own else self.step_callback
        )
        arguments[name] = [*tensors, *({"prompt_embeds"} - set(tensors))]


FAST_PATHS = ("engine", "fused", "step_callback", "generating")
"""What belongs to one pipeline, and not to a copy of it."""

# diffusers finds relatives by the name of the class: AutoPipelineForImage2Image.from_pipe, and
# whoever loads a folder that names it.
LevelPipeline.__name__ = StableDiffusionPipeline.__name__


def default_device() -> torch.device:
    """The CUDA device if there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def dtype_on(device: torch.device, given: str | torch.dtype | None = None) -> torch.dtype:
    """The given one, $SDOPT_DTYPE's, or float16 on CUDA and float32 on the CPU, which emulates it.

    Raises UnknownNameError for one that is not offered there.
    """
    dtype: torch.dtype = getattr(torch, chosen_dtype(device.type, given))
    return dtype


def load_pipeline(
    level: str = "final",
    *,
    source: str | None = None,
    device: str | None = None,
    dtype: str | torch.dtype | None = None,
) -> LevelPipeline:
    """The pipeline of a level by name; see `sdopt.load_pipeline`."""
    place = named_device(device) if device else default_device()
    kind = dtype_on(place, dtype)  # before a source is looked for, which may be downloaded
    return build(resolve(source), get_level(level), place, kind)


def named_device(name: str) -> torch.device:
    """The CPU or CUDA device of that name. Raises UnknownNameError if there is none."""
    count = torch.cuda.device_count()
    choices = ("cpu", *(("cuda",) if count else ()), *(f"cuda:{index}" for index in range(count)))
    if str(name) not in choices:
        raise UnknownNameError(
            "device", str(name), choices, "leave it out for the first GPU, or the CPU"
        )
    return torch.device(name)


def build(
    source: Source,
    level: Level,
    device: torch.device | None = None,
    dtype: torch.dtype | None = None,
) -> LevelPipeline:
    """Load the source's weights and apply the level's fields to them.

    Raises SourceError if the weights cannot be loaded, OutOfMemoryError if they do not fit.
    """
    device = device or default_device()
    kind = dtype_on(device, dtype)
    check_dtype(level, device, kind)
    with naming_the_hungry(level, device):
        pipeline = load_weights(source, device, kind)
        apply_level(pipeline, source, level, device)
    return pipeline


def apply_level(
    pipeline: LevelPipeline, source: Source, level: Level, device: torch.device
) -> None:
    """Apply the level's fields to an eager pipeline of the source's weights."""
    pipeline.level, pipeline.source = level, source
    for apply in APPLY:
        if apply in BEFORE_THE_MOVE:
            apply(pipeline, level)
    pipeline.to(device)
    for apply in APPLY:
        if apply not in BEFORE_THE_MOVE:
            apply(pipeline, level)
    pipeline.set_progress_bar_config(disable=True)


def load_weights(source: Source, device: torch.device, dtype: torch.dtype) -> LevelPipeline:
    """The source's parts as one eager pipeline; random ones are made on the device."""
    unchecked = {"safety_checker": None, "requires_safety_checker": False}
    if source.kind == "random":
        parts = random_parts(device, dtype)
        return LevelPipeline(**parts, feature_extractor=None, **unchecked)
    local: dict[str, Any] = {"dtype": dtype, "local_files_only": True, **unchecked}
    with quiet_loading(), reading(source):
        pipeline: LevelPipeline
        if source.kind == "checkpoint":
            folder = str(source.folder)
            pipeline = LevelPipeline.from_single_file(source.checkpoint, config=folder, **local)
        else:
            # Another format than safetensors may be a pickle, which runs as code.
            pipeline = LevelPipeline.from_pretrained(source.folder, use_safetensors=True, **local)
    return pipeline


def apply_decoder(pipeline: LevelPipeline, level: Level) -> None:
    """Swap in the Tiny VAE. Raises SourceError for a full VAE that the source does not have."""
    if level.decoder == "full-vae" and isinstance(pipeline.vae, AutoencoderTiny):
        raise SourceError(
            f"source {pipeline.source.name!r} has no full VAE for level {level.name!r}: the vae/ "
            "that it holds is a Tiny VAE, as a level with the Tiny VAE saves it; give the source "
            "that it was made from, or pick a level with the Tiny VAE, such as 'final'"
        )
    if level.decoder == "tiny-vae":
        unet = pipeline.unet
        tiny = load_tiny_vae(pipeline.source, unet.device, unet.dtype)
        pipeline.register_modules(vae=tiny)


def apply_channels_last(pipeline: LevelPipeline, level: Level) -> None:
    """NHWC weights, which convolutions on tensor cores read without a transposition."""
    if level.channels_last:
        pipeline.unet.to(memory_format=torch.channels_last)
        pipeline.vae.to(memory_format=torch.channels_last)


def apply_scheduler(pipeline: LevelPipeline, level: Level) -> None:
    """Euler Ancestral (k-diffusion) or DPM-Solver++ 2M, https://arxiv.org/abs/2211.01095."""
    config = pipeline.scheduler.config
    if level.scheduler == "dpm-solver++2m":
        scheduler = DPMSolverMultistepScheduler.from_config(
            config, algorithm_type="dpmsolver++", solver_order=2
        )
    else:
        scheduler = EulerAncestralDiscreteScheduler.from_config(config)
    pipeline.register_modules(scheduler=scheduler)


def apply_cfg_cutoff(pipeline: LevelPipeline, level: Level) -> None:
    """Drop the unconditional branch after a fraction of the steps."""
    if level.cfg_cutoff is not None:
        pipeline.step_callback = cutoff_callback(level.cfg_cutoff)


def apply_compiled(pipeline: LevelPipeline, level: Level) -> None:
    """Compile the UNet and the decoder with Inductor; nothing runs until the first call."""
    if level.compiled:
        compile_unet(pipeline.unet, level.compile_mode)
        compile_decoder(pipeline.vae, level.compile_mode)


def apply_fused(pipeline: LevelPipeline, level: Level) -> None:
    """Our own forward passes over Triton kernels; on the CPU over PyTorch's operations."""
    if level.fused:
        check_capability(level, pipeline.device)
        warn_of_rules(level, pipeline.device)
        fuse_modules(pipeline)


def apply_whole_graph(pipeline: LevelPipeline, level: Level) -> None:
    """One CUDA graph for a whole image, captured at the first call with a new kind of one."""
    if level.whole_graph:
        check_capability(level, pipeline.device)
        pipeline.engine = ImageEngine(pipeline=pipeline, level=level)


# Weights are swapped and laid out before they are compiled; steps and TF32 act at each call.
APPLY: tuple[Callable[[LevelPipeline, Level], None], ...] = (
    apply_decoder,
    apply_channels_last,
    apply_scheduler,
    apply_cfg_cutoff,
    apply_compiled,
    apply_fused,
    apply_whole_graph,
)
BEFORE_THE_MOVE = (apply_decoder,)
"""To the device, where a VAE that is swapped for another one need not go."""
