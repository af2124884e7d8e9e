"""A diffusers call drawn by the picture engine."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from contextlib import ExitStack
from typing import Any

import numpy as np
import torch
from diffusers import StableDiffusionPipeline
from diffusers.image_processor import VaeImageProcessor
from diffusers.pipelines.stable_diffusion import StableDiffusionPipelineOutput
from torch import Tensor

from sdopt.engine.cuda_graphs import replaying
from sdopt.engine.picture import PictureEngine
from sdopt.engine.placed import check_placed
from sdopt.engine.stock import changed
from sdopt.errors import SdoptError
from sdopt.pipelines.engine_request import EngineRequest, ModelSize, parse_request

logger = logging.getLogger(__name__)

CALLED = ("prepare_latents", "run_safety_checker")
"""Methods of a pipeline that the engine calls as diffusers does."""


@torch.no_grad()
def drawn_whole(
    pipeline: StableDiffusionPipeline, engine: PictureEngine, arguments: Mapping[str, Any]
) -> Any:
    """What `StableDiffusionPipeline.__call__` returns. Raises SdoptError for other arguments.

    Under `torch.autocast` too it computes in the weights' own precision: what it keeps, such as the
    solver's table, serves later calls that are not.
    """
    level = engine.level.name
    if replaying():  # else somebody watches what is called, and all of it is
        check_methods(pipeline, level)
    request = parse_request(level, size_of(pipeline), arguments)
    check_placed(pipeline, level)
    if engine.level.fused:
        check_additions(pipeline, level)
    with ExitStack() as stack:
        for kind in {"cpu", pipeline.device.type} - {"meta"}:
            if torch.is_autocast_enabled(kind):
                stack.enter_context(torch.autocast(kind, enabled=False))
        return _drawn(pipeline, engine, request)


def size_of(pipeline: StableDiffusionPipeline) -> ModelSize:
    """What of its model a request depends on."""
    config, latent_px = pipeline.unet.config, pipeline.vae_scale_factor
    own = config.sample_size
    height, width = (own, own) if isinstance(own, int) else own
    return ModelSize(
        sides_px=(height * latent_px, width * latent_px),
        latent_px=latent_px,
        channels=config.in_channels,
    )


def _drawn(pipeline: StableDiffusionPipeline, engine: PictureEngine, request: EngineRequest) -> Any:
    ids = token_ids(pipeline, [*request.negatives, *request.prompts])
    noise = first_noise(pipeline, request)
    scale = request.lora_scale
    if scale is not None:
        # As diffusers notes it: a LoRA of the text encoder that is loaded later begins with it.
        pipeline._lora_scale = scale
    picture = engine.draw(
        ids, noise, request.guidance_scale, request.steps, 1.0 if scale is None else scale
    )
    picture, flagged = pipeline.run_safety_checker(picture, pipeline.device, picture.dtype)
    images = finished(pipeline, picture, request.output_type, flagged)
    if not request.return_dict:
        return images, flagged
    return StableDiffusionPipelineOutput(images=images, nsfw_content_detected=flagged)


def first_noise(pipeline: StableDiffusionPipeline, request: EngineRequest) -> Tensor:
    """What diffusers begins with, (pictures, 4, H, W), as it would be on a scale of 1.

    A generator of the host draws it there, and there it stays: one copy fewer.
    """
    generator, latents = request.generator, request.latents
    generators = generator if isinstance(generator, list) else [generator]
    on_host = latents is None and all(one and one.device.type == "cpu" for one in generators)
    noise: Tensor = pipeline.prepare_latents(
        len(request.prompts),
        pipeline.unet.config.in_channels,
        request.height,
        request.width,
        pipeline.unet.conv_in.weight.dtype,
        torch.device("cpu") if on_host else pipeline.device,
        generator,
        latents,
    )
    # That scaled it by what the scheduler starts with, as the engine does itself.
    sigma = pipeline.scheduler.init_noise_sigma
    return noise if sigma == 1 else noise / sigma


def finished(
    pipeline: StableDiffusionPipeline,
    picture: Tensor,
    output_type: str,
    flagged: list[bool] | None = None,
) -> Any:
    """The picture as diffusers returns it; an array is finished on the device, not on the host.

    `flagged` says which ones a safety checker blackened; None is without one.
    """
    processor = pipeline.image_processor
    if output_type != "np" or flagged is not None or not _is_stock_processor(processor):
        safe = [True] * len(picture) if flagged is None else [not bad for bad in flagged]
        return processor.postprocess(picture, output_type=output_type, do_denormalize=safe)
    unit = (picture * 0.5 + 0.5).clamp(0, 1).permute(0, 2, 3, 1).float().contiguous()
    if not unit.is_cuda:
        return unit.numpy()
    # Through pinned memory, which a copy from the device fills four times as fast. The array's own
    # memory is touched, and so made, while the GPU still draws.
    pinned = torch.empty(unit.shape, dtype=unit.dtype, pin_memory=True)
    pinned.copy_(unit, non_blocking=True)
    array = np.empty(tuple(unit.shape), dtype=np.float32)
    array.fill(0)
    torch.cuda.current_stream(unit.device).synchronize()
    torch.from_numpy(array).copy_(pinned)  # by several threads
    return array


def _is_stock_processor(processor: Any) -> bool:
    """Whether it makes arrays as diffusers' VaeImageProcessor does, of whatever configuration."""
    own = any(callable(getattr(type(processor), name, None)) for name in vars(processor))
    return type(processor) is VaeImageProcessor and not own and not changed(VaeImageProcessor)


def check_methods(pipeline: StableDiffusionPipeline, level: str) -> None:
    """Raise SdoptError for a method of the pipeline that is another one, and would not be called.

    The safety checker's and the one that makes the noise are called.
    """
    kind = type(pipeline)
    put_in = [
        name
        for name, value in vars(pipeline).items()
        if callable(value) and name not in CALLED and callable(getattr(kind, name, None))
    ]
    patch = f"the {put_in[0]} that was put into the pipeline" if put_in else changed(kind)
    if patch:
        raise SdoptError(
            f"level {level!r} draws a picture as one graph, which would leave out {patch}; undo "
            "that, or use a level without it, such as 'final'"
        )


def check_additions(pipeline: StableDiffusionPipeline, level: str) -> None:
    """Raise SdoptError for FreeU, which the engine's own kernels do not compute."""
    if any(getattr(block, "s1", None) is not None for block in pipeline.unet.up_blocks):
        raise SdoptError(
            f"level {level!r} does not compute FreeU; call disable_freeu(), or use a level without "
            "the engine, such as 'final'"
        )


def token_ids(pipeline: StableDiffusionPipeline, texts: list[str]) -> Tensor:
    """Their tokens, (prompts, tokens), on the host."""
    tokenizer = pipeline.tokenizer
    if len(tokenizer.added_tokens_encoder) > len(set(tokenizer.all_special_tokens)):
        # Textual inversions are tokens that were added; their search tokenizes every prompt twice.
        texts = [pipeline.maybe_convert_prompt(text, tokenizer) for text in texts]
    # Lists: with return_tensors="pt" it takes twice as long.
    longest = tokenizer.model_max_length
    encoded = tokenizer(texts, padding="max_length", max_length=longest, truncation=True)
    for text, one in zip(texts, encoded.encodings or (), strict=False):
        if one.overflowing:
            logger.warning("of the prompt %r only the first %d tokens are used", text, longest)
    return torch.tensor(encoded.input_ids)
