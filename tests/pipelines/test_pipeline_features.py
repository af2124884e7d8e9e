"""What docs/reference/pipelines.md says of each feature is what happens, per family of levels."""

from __future__ import annotations

import copy
import gc
import pickle
import re
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import wraps
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import peft
import pytest
import torch
from accelerate import cpu_offload
from diffusers import (
    AutoPipelineForImage2Image,
    ControlNetModel,
    EulerDiscreteScheduler,
    StableDiffusionAdapterPipeline,
    StableDiffusionControlNetPipeline,
    StableDiffusionImg2ImgPipeline,
    StableDiffusionPipeline,
    T2IAdapter,
)
from diffusers.image_processor import VaeImageProcessor
from diffusers.models.attention_processor import AttnProcessor, AttnProcessor2_0
from lora import ATTENTION, CONVOLUTIONS, PRODUCTS, TEXT, lora
from own_code import own_code
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from sdopt.errors import SdoptError
from sdopt.levels import DPM_20, HOISTED, Level
from sdopt.pipelines import shapes
from sdopt.pipelines.arguments import DEFAULTS
from sdopt.pipelines.pipeline import LevelPipeline, build
from sdopt.weights.sources import Source, resolve

PAGE = Path(__file__).parents[2] / "docs" / "reference" / "pipelines.md"
FAMILIES: dict[str, Level] = {
    "eager": replace(DPM_20, name="eager", compiled=False),
    "compiled": DPM_20,
    "engine": HOISTED,
}
"""One level of each, lossless, with the same sampler: stock diffusers generates the same."""
CPU = torch.device("cpu")
STEPS = 2
PROMPT: dict[str, Any] = {"prompt": "a cat", "negative_prompt": "a dog"}
UNCHECKED: dict[str, Any] = {"safety_checker": None, "requires_safety_checker": False}
SAME, CHANGED = 1e-4, 1e-3
"""The largest difference of a pixel by another order of sums, and the least of a change."""


@dataclass(kw_only=True)
class Trial:
    """A level's pipeline that has generated, and stock diffusers with the same weights."""

    pipeline: LevelPipeline
    stock: StableDiffusionPipeline
    source: Source
    first: Any

    @property
    def both(self) -> tuple[Any, Any]:
        return self.pipeline, self.stock

    def generate(self, **arguments: Any) -> tuple[Any, Any]:
        """The images of both with these arguments."""
        return image(self.pipeline, **arguments), image(self.stock, **arguments)

    def is_as_stock(self, *, changed: bool = True, **arguments: Any) -> Any:
        """Both generate the same now: that image. `changed` says whether it is the first one."""
        found, wanted = self.generate(**arguments)
        assert np.abs(found - wanted).max() < SAME
        assert found.shape != self.first.shape or differs(found, self.first) == changed
        return found

    def each(self, change: Callable[[Any], Any]) -> list[Any]:
        """Do something to both pipelines."""
        return [change(pipeline) for pipeline in self.both]

    def load(self, targets: Any, *, adapter_name: str = "one", **matrices: Any) -> None:
        """Load a LoRA into both."""
        weights = lora(self.stock, targets, **matrices)
        self.each(lambda p: p.load_lora_weights(dict(weights), adapter_name=adapter_name))

    def unload(self) -> None:
        """Take all LoRA out of both."""
        self.each(lambda pipeline: pipeline.unload_lora_weights())

    def other(self, made_of: Callable[[Any], Any], **arguments: Any) -> None:
        """Pipelines made of both generate the same, and something else than these."""
        found, wanted = (image(made_of(pipeline), **arguments) for pipeline in self.both)
        assert np.abs(found - wanted).max() < SAME
        assert differs(found, self.first)


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


def differs(found: Any, wanted: Any) -> bool:
    return bool(np.abs(found - wanted).max() > CHANGED)


def image(pipeline: Any, **arguments: Any) -> Any:
    """One image of a pipeline, with its own defaults for what is not given."""
    seed = torch.Generator().manual_seed(1)
    given = {**PROMPT, "num_inference_steps": STEPS, "guidance_scale": 3.0, "generator": seed}
    return pipeline(**{**given, "output_type": "np", **arguments}).images[0]


@feature("`load_lora_weights`, `unload_lora_weights`")
def lora_of_attention(trial: Trial) -> None:
    """Afterwards the image is the first one, to the last bit."""
    trial.load(ATTENTION)
    trial.is_as_stock()
    trial.unload()
    trial.is_as_stock(changed=False)
    assert np.array_equal(image(trial.pipeline), trial.first)


@feature("a LoRA of the text encoder")
def lora_of_text(trial: Trial) -> None:
    trial.load((*TEXT, "fc1", "fc2"))
    trial.is_as_stock()
    trial.unload()
    assert np.array_equal(image(trial.pipeline), trial.first)


@feature("a LoRA of convolutions and of other products")
def lora_of_convolutions(trial: Trial) -> None:
    trial.load((*CONVOLUTIONS, *PRODUCTS[:5]), size=0.1)
    trial.is_as_stock()
    trial.unload()
    assert np.array_equal(image(trial.pipeline), trial.first)


@feature("several LoRAs, `set_adapters`, `delete_adapters`")
def several_loras(trial: Trial) -> None:
    trial.load(ATTENTION, adapter_name="one")
    trial.load((*ATTENTION, *PRODUCTS[:3]), adapter_name="two", seed=1, rank=3)
    one = trial.is_as_stock()
    for pipeline in trial.both:
        pipeline.set_adapters(["one", "two"], [0.5, 0.8])
    assert differs(trial.is_as_stock(), one)
    for pipeline in trial.both:
        pipeline.delete_adapters("one")
    trial.is_as_stock()
    for pipeline in trial.both:
        pipeline.delete_adapters("two")
    trial.is_as_stock(changed=False)


@feature("`disable_lora`, `enable_lora`")
def disabled_lora(trial: Trial) -> None:
    trial.load(ATTENTION)
    trial.is_as_stock()
    for pipeline in trial.both:
        pipeline.disable_lora()
    trial.is_as_stock(changed=False)
    for pipeline in trial.both:
        pipeline.enable_lora()
    trial.is_as_stock()


@feature("`fuse_lora`, `unfuse_lora`")
def fused_lora(trial: Trial) -> None:
    trial.load((*ATTENTION, *PRODUCTS[:3], *CONVOLUTIONS), size=0.1)
    loaded = trial.is_as_stock()
    for pipeline in trial.both:
        pipeline.fuse_lora(lora_scale=0.5)
    assert differs(trial.is_as_stock(), loaded)
    for pipeline in trial.both:
        pipeline.unfuse_lora()
    trial.is_as_stock()
    for pipeline in trial.both:
        pipeline.fuse_lora()
        pipeline.unload_lora_weights()
    trial.is_as_stock()


@feature('`cross_attention_kwargs={"scale": 0.3}`')
def scale_of_lora(trial: Trial) -> None:
    trial.load((*ATTENTION, *TEXT))
    full = trial.is_as_stock()
    scaled = trial.is_as_stock(cross_attention_kwargs={"scale": 0.3})
    assert differs(scaled, full)
    assert np.array_equal(trial.is_as_stock(), full)


@feature("DoRA")
def dora(trial: Trial) -> None:
    weights = lora(trial.stock, ["to_q"])
    for name in [name for name in weights if name.endswith("lora_B.weight")]:
        rows = weights[name].shape[0]
        weights[name.replace("lora_B.weight", "lora_magnitude_vector")] = torch.full((rows,), 2.0)
    trial.each(lambda pipeline: pipeline.load_lora_weights(dict(weights)))
    trial.is_as_stock()


def own_adapter(config: Any) -> Feature:
    """A feature: an adapter of peft that is no LoRA, in the attention of the UNet."""

    def use(trial: Trial) -> None:
        def put_in(pipeline: Any) -> None:
            peft.inject_adapter_in_model(config, pipeline.unet)
            random = torch.Generator().manual_seed(0)
            with torch.no_grad():
                for name, weight in pipeline.unet.named_parameters():
                    if any(part in name for part in ("ia3_", "oft_", "boft_")):
                        weight.add_(0.3 * torch.randn(weight.shape, generator=random))

        with pytest.MonkeyPatch.context() as patch:
            # BOFT compiles an extension for CUDA when it is first used, and says if it cannot.
            patch.setattr("peft.tuners.boft.layer.get_fbd_cuda", lambda: None)
            trial.each(put_in)
            trial.is_as_stock()

    return use


feature("IA3")(own_adapter(peft.IA3Config(target_modules=["to_v"], feedforward_modules=[])))
feature("OFT")(own_adapter(peft.OFTConfig(target_modules=["to_v"], oft_block_size=4)))
feature("BOFT")(own_adapter(peft.BOFTConfig(target_modules=["to_v"], boft_block_size=4)))


@feature("textual inversion")
def textual_inversion(trial: Trial) -> None:
    width = trial.stock.text_encoder.config.hidden_size
    learnt = {"<other>": torch.linspace(-9, 9, width)[None]}
    trial.each(lambda pipeline: pipeline.load_textual_inversion(learnt))
    trial.is_as_stock(prompt="a <other>")


@feature("FreeU switched on, then off")
def freeu(trial: Trial) -> None:
    trial.each(lambda pipeline: pipeline.enable_freeu(s1=0.9, s2=0.2, b1=1.2, b2=1.4))
    trial.is_as_stock()
    trial.each(lambda pipeline: pipeline.disable_freeu())
    trial.is_as_stock(changed=False)


@feature("a ControlNet, by `StableDiffusionControlNetPipeline.from_pipe`")
def controlnet(trial: Trial) -> None:
    net = ControlNetModel.from_unet(trial.stock.unet, conditioning_embedding_out_channels=(8,) * 4)
    with torch.no_grad():
        for weight in net.parameters():
            weight.add_(0.05)
    hint = torch.linspace(0, 1, 3 * 64 * 64).reshape(1, 3, 64, 64)
    trial.other(
        lambda pipeline: StableDiffusionControlNetPipeline.from_pipe(pipeline, controlnet=net),
        image=hint,
    )


@feature("a T2I-Adapter, by `StableDiffusionAdapterPipeline.from_pipe`")
def t2i_adapter(trial: Trial) -> None:
    adapter = T2IAdapter(channels=[8, 8], num_res_blocks=1, downscale_factor=8)
    hint = torch.linspace(0, 1, 3 * 64 * 64).reshape(1, 3, 64, 64)
    trial.other(
        lambda pipeline: StableDiffusionAdapterPipeline.from_pipe(pipeline, adapter=adapter),
        image=hint,
    )


@feature("an IP-Adapter")
def ip_adapter(trial: Trial) -> None:
    weights = ip_adapter_weights(trial.stock.unet)
    trial.each(lambda pipeline: pipeline.unet._load_ip_adapter_weights([weights]))
    embeds = [torch.ones(2, 1, IP_WIDTH)]
    trial.is_as_stock(ip_adapter_image_embeds=embeds)


@feature("another attention processor, `set_attn_processor`")
def processor(trial: Trial) -> None:
    before = [pipeline.unet.attn_processors for pipeline in trial.both]
    trial.each(lambda pipeline: pipeline.unet.set_attn_processor(AttnProcessor()))
    trial.is_as_stock(changed=False)
    for pipeline, processors in zip(trial.both, before, strict=True):
        pipeline.unet.set_attn_processor(processors)
    trial.is_as_stock(changed=False)


@feature("an attention processor of your own")
def own_processor(trial: Trial) -> None:
    trial.each(lambda pipeline: pipeline.unet.set_attn_processor(CountingProcessor()))
    CountingProcessor.calls = 0
    trial.is_as_stock()
    calls = CountingProcessor.calls
    image(trial.pipeline)
    assert CountingProcessor.calls == calls + calls // 2


@feature("`enable_attention_slicing`")
def slicing(trial: Trial) -> None:
    trial.each(lambda pipeline: pipeline.enable_attention_slicing())
    trial.is_as_stock(changed=False)


@feature("`fuse_qkv_projections`")
def fused_projections(trial: Trial) -> None:
    trial.each(lambda pipeline: pipeline.fuse_qkv_projections(vae=False))
    trial.is_as_stock(changed=False)


@feature("`enable_vae_slicing`, `enable_vae_tiling`")
def vae_slicing(trial: Trial) -> None:
    trial.each(lambda pipeline: pipeline.vae.enable_slicing())
    trial.each(lambda pipeline: pipeline.vae.enable_tiling())
    trial.is_as_stock(height=128, width=64)


@feature("a forward hook on a block")
def hook(trial: Trial) -> None:
    handles = trial.each(
        lambda pipeline: pipeline.unet.mid_block.register_forward_hook(
            lambda module, args, output: output * 1.5
        )
    )
    trial.is_as_stock()
    for handle in handles:
        handle.remove()
    trial.is_as_stock(changed=False)


@feature("a forward pre-hook on a layer of the decoder")
def pre_hook(trial: Trial) -> None:
    trial.each(
        lambda pipeline: pipeline.vae.decoder.mid_block.resnets[0].register_forward_pre_hook(
            lambda module, args: (args[0] * 1.5, *args[1:])
        )
    )
    trial.is_as_stock()


@feature("a hook for all modules")
def global_hook(trial: Trial) -> None:
    def louder(module: Any, args: Any, output: Any) -> Any:
        return output * 1.5 if isinstance(module, torch.nn.SiLU) else None

    handle = torch.nn.modules.module.register_module_forward_hook(louder)
    try:
        trial.is_as_stock()
    finally:
        handle.remove()
    trial.is_as_stock(changed=False)


@feature("another `forward` of one block")
def instance_forward(trial: Trial) -> None:
    def change(pipeline: Any) -> None:
        block = pipeline.unet.mid_block
        own = block.forward
        block.forward = lambda *args, **kwargs: own(*args, **kwargs) * 1.5

    trial.each(change)
    trial.is_as_stock()
    for pipeline in trial.both:
        del pipeline.unet.mid_block.forward
    trial.is_as_stock(changed=False)


@feature("another `forward` of a class")
def class_forward(trial: Trial) -> None:
    kind = type(trial.stock.unet.mid_block)
    own = kind.forward
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kind, "forward", lambda *args, **kwargs: own(*args, **kwargs) * 1.5)
        trial.is_as_stock()
    trial.is_as_stock(changed=False)


@feature("a class's `forward` or `__call__` wrapped by `functools.wraps`")
def wrapped_methods(trial: Trial) -> None:
    """As those that it is about pass for the class's own by their names."""
    kinds = [(type(trial.stock.unet.mid_block), "forward"), (AttnProcessor2_0, "__call__")]
    for kind, name in kinds:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(kind, name, louder(getattr(kind, name)))
            trial.is_as_stock()
        trial.is_as_stock(changed=False)


@feature("another method of a class that a module calls")
def class_method(trial: Trial) -> None:
    kind = type(trial.stock.unet.mid_block.attentions[0])
    name = "_get_output_for_continuous_inputs"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kind, name, louder(getattr(kind, name)))
        trial.is_as_stock()
    trial.is_as_stock(changed=False)


@feature("`module.compile()` of a block")
def compiled_block(trial: Trial) -> None:
    def backend(graph: Any, _: Any) -> Any:
        return lambda *inputs: [one * 1.5 for one in graph.forward(*inputs)]

    trial.each(lambda p: p.unet.mid_block.compile(backend=backend))
    trial.is_as_stock()


@feature("`unet.compile()` or `torch.compile(unet)`")
def compiled_by_the_user(trial: Trial) -> None:
    trial.each(lambda pipeline: pipeline.unet.compile(backend="eager", fullgraph=True))
    trial.is_as_stock(changed=False)
    for pipeline in trial.both:
        pipeline.unet._compiled_call_impl = None
        pipeline.unet = torch.compile(pipeline.unet, backend="eager", fullgraph=True)
    trial.is_as_stock(changed=False)


@feature("a function of `torch.nn.functional` replaced")
def replaced_function(trial: Trial) -> None:
    own = torch.nn.functional.scaled_dot_product_attention
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            torch.nn.functional,
            "scaled_dot_product_attention",
            lambda *args, **kwargs: own(*args, **kwargs) * 1.5,
        )
        trial.is_as_stock()
    trial.is_as_stock(changed=False)


@feature("a block of a class of your own")
def own_class(trial: Trial) -> None:
    trial.each(lambda p: setattr(p.unet, "mid_block", Louder(p.unet.mid_block)))
    trial.is_as_stock()


@feature("a layer replaced by another of its class")
def replaced_layer(trial: Trial) -> None:
    def change(pipeline: Any) -> None:
        block = pipeline.unet.mid_block.attentions[0]
        block.proj_out = copy.deepcopy(block.proj_out)
        with torch.no_grad():
            block.proj_out.weight.mul_(4)

    trial.each(change)
    trial.is_as_stock()


@feature("a Parameter replaced")
def replaced_parameter(trial: Trial) -> None:
    def change(pipeline: Any) -> None:
        for owner in owners(pipeline):
            owner.weight = torch.nn.Parameter(owner.weight.detach() * 1.5)

    trial.each(change)
    trial.is_as_stock()


@feature("weights written in place, and loaded with `load_state_dict`")
def written_weights(trial: Trial) -> None:
    def write(pipeline: Any) -> None:
        with torch.no_grad():
            for owner in owners(pipeline):
                owner.weight.mul_(1.5)

    def load(pipeline: Any) -> None:
        for owner in owners(pipeline):
            owner.load_state_dict({n: 0.9 * v for n, v in owner.state_dict().items()})

    trial.each(write)
    trial.is_as_stock()
    trial.each(load)
    trial.is_as_stock()


@feature("`weight.data` written, which no version counter tells")
def unseen_writing(trial: Trial) -> None:
    def write(pipeline: Any) -> None:
        for owner in owners(pipeline):
            version = owner.weight._version
            owner.weight.data += 0.2
            owner.weight.data.mul_(1.2)
            assert owner.weight._version == version

    trial.each(write)
    trial.is_as_stock()


@feature("`weight.data` put elsewhere")
def moved_weights(trial: Trial) -> None:
    def move(pipeline: Any) -> None:
        for owner in owners(pipeline):
            owner.weight.data = owner.weight.data * 1.5

    trial.each(move)
    trial.is_as_stock()


@feature("weights made under `torch.inference_mode`")
def inference_weights(trial: Trial) -> None:
    def change(pipeline: Any) -> None:
        with torch.inference_mode():
            for owner in owners(pipeline):
                owner.weight = torch.nn.Parameter(owner.weight * 1.5, requires_grad=False)

    trial.each(change)
    louder = trial.is_as_stock()
    with torch.inference_mode():
        for pipeline in trial.both:
            for owner in owners(pipeline):
                owner.weight.mul_(1.5)
    assert differs(trial.is_as_stock(), louder)


@feature("a call under `torch.inference_mode`, then one without")
def inference_call(trial: Trial) -> None:
    with torch.inference_mode():
        for pipeline in trial.both:
            pipeline.unet.mid_block.attentions[0].proj_out.weight.mul_(4)
        under = trial.is_as_stock()
    assert np.array_equal(trial.is_as_stock(), under)
    written_weights(trial)


@feature("layerwise casting, `enable_layerwise_casting`")
def layerwise_casting(trial: Trial) -> None:
    types = {"storage_dtype": torch.float8_e4m3fn, "compute_dtype": torch.float32}
    trial.each(lambda pipeline: pipeline.unet.enable_layerwise_casting(**types))
    trial.is_as_stock()


@feature("`accelerate.cpu_offload`")
def offloaded(trial: Trial) -> None:
    trial.each(lambda pipeline: cpu_offload(pipeline.unet, CPU))
    trial.is_as_stock(changed=False)


@feature('`padding_mode="circular"` of the convolutions')
def circular(trial: Trial) -> None:
    def change(pipeline: Any) -> None:
        for part in (pipeline.unet, pipeline.vae):
            for layer in part.modules():
                if isinstance(layer, torch.nn.Conv2d):
                    layer.padding_mode = "circular"

    trial.each(change)
    trial.is_as_stock()


@feature("another `eps` or number of groups of a norm")
def other_norm(trial: Trial) -> None:
    def change(pipeline: Any) -> None:
        pipeline.unet.conv_norm_out.eps = 0.5
        pipeline.unet.mid_block.resnets[0].norm1.num_groups = 2
        pipeline.text_encoder.final_layer_norm.eps = 0.5

    trial.each(change)
    trial.is_as_stock()


@feature("another attribute that arithmetic depends on")
def other_attributes(trial: Trial) -> None:
    def change(pipeline: Any) -> None:
        pipeline.unet.mid_block.resnets[0].output_scale_factor = 2.0

    trial.each(change)
    trial.is_as_stock()


@feature("another activation function")
def other_activation(trial: Trial) -> None:
    trial.each(lambda p: setattr(p.unet, "conv_act", torch.nn.ReLU()))
    trial.is_as_stock()


@feature("a function where a module had None, such as `unet.time_embed_act`")
def inserted_function(trial: Trial) -> None:
    assert trial.stock.unet.time_embed_act is None
    trial.each(lambda p: setattr(p.unet, "time_embed_act", torch.nn.functional.silu))
    trial.is_as_stock()


@feature("a module where another one had None, such as `resnet.upsample`")
def inserted_module(trial: Trial) -> None:
    def change(pipeline: Any) -> None:
        block = pipeline.unet.mid_block.resnets[0]
        assert block.upsample is None
        block.upsample = torch.nn.ReLU()

    trial.each(change)
    trial.is_as_stock()


@feature("other values of a buffer, such as `position_ids`")
def written_buffer(trial: Trial) -> None:
    trial.each(lambda p: p.text_encoder.embeddings.position_ids.data.add_(1).clamp_(max=20))
    trial.is_as_stock()


@feature("`text_encoder.set_attn_implementation`, one of transformers")
def attention_of_transformers(trial: Trial) -> None:
    trial.each(lambda pipeline: pipeline.text_encoder.set_attn_implementation("eager"))
    trial.is_as_stock(changed=False)


@feature("`text_encoder.set_attn_implementation`, one of your own")
def own_attention(trial: Trial) -> None:
    def doubled(*args: Any, **kwargs: Any) -> Any:
        found, weights = sdpa_attention_forward(*args, **kwargs)
        return found * 2, weights

    for kind, own in ((AttentionInterface, doubled), (AttentionMaskInterface, sdpa_mask)):
        kind.register("doubled", own)
    try:
        trial.each(lambda pipeline: pipeline.text_encoder.set_attn_implementation("doubled"))
        trial.is_as_stock()
    finally:
        for kind in (AttentionInterface, AttentionMaskInterface):
            del kind._global_mapping["doubled"]


@feature("`unet.train()`, where nothing is dropped")
def training(trial: Trial) -> None:
    trial.each(lambda pipeline: pipeline.unet.train())
    trial.is_as_stock(changed=False)


@feature("another configuration of the scheduler")
def scheduler_configuration(trial: Trial) -> None:
    def change(pipeline: Any) -> None:
        kind, config = type(pipeline.scheduler), pipeline.scheduler.config
        pipeline.scheduler = kind.from_config(config, use_karras_sigmas=True)

    trial.each(change)
    karras = trial.is_as_stock()
    other = {"use_karras_sigmas": False, "timestep_spacing": "leading", "steps_offset": 200}
    trial.each(lambda pipeline: pipeline.scheduler.register_to_config(**other))
    assert differs(trial.is_as_stock(), karras)


@feature("`scheduler.alphas_cumprod` written")
def scheduler_tables(trial: Trial) -> None:
    def change(pipeline: Any) -> None:
        pipeline.scheduler.alphas_cumprod.mul_(0.8)

    trial.each(change)
    trial.is_as_stock()


@feature("a scheduler of another class")
def other_scheduler(trial: Trial) -> None:
    def change(pipeline: Any) -> None:
        pipeline.scheduler = EulerDiscreteScheduler.from_config(pipeline.scheduler.config)

    trial.each(change)
    trial.is_as_stock()


@feature("another `step` of the scheduler")
def scheduler_step(trial: Trial) -> None:
    def change(pipeline: Any) -> None:
        own = pipeline.scheduler.step
        pipeline.scheduler.step = lambda noise, *args, **kwargs: own(noise * 1.2, *args, **kwargs)

    trial.each(change)
    trial.is_as_stock()


@feature("a method of the scheduler's class, `step` or what it calls")
def scheduler_class(trial: Trial) -> None:
    kind = type(trial.stock.scheduler)
    for name in ("convert_model_output", "step"):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(kind, name, louder(getattr(kind, name)))
            image(trial.pipeline) if name == "step" else trial.is_as_stock()
        trial.is_as_stock(changed=False)


@feature("another `encode_prompt` of the pipeline")
def own_encode_prompt(trial: Trial) -> None:
    def change(pipeline: Any) -> None:
        own = pipeline.encode_prompt
        pipeline.encode_prompt = lambda *args, **kwargs: tuple(2 * x for x in own(*args, **kwargs))

    trial.each(change)
    trial.is_as_stock()


@feature("another method of the pipeline's class")
def pipeline_class(trial: Trial) -> None:
    with pytest.MonkeyPatch.context() as patch:
        own = StableDiffusionPipeline.encode_prompt

        @wraps(own)
        def doubled(*args: Any, **kwargs: Any) -> Any:
            return tuple(2 * one for one in own(*args, **kwargs))

        patch.setattr(StableDiffusionPipeline, "encode_prompt", doubled)
        trial.is_as_stock()
    trial.is_as_stock(changed=False)


@feature("`image_processor.postprocess`, or another image processor")
def own_postprocess(trial: Trial) -> None:
    def change(pipeline: Any) -> None:
        own = pipeline.image_processor.postprocess
        pipeline.image_processor.postprocess = lambda *args, **kwargs: own(*args, **kwargs) / 2

    trial.each(change)
    half = trial.is_as_stock()
    trial.each(lambda p: setattr(p, "image_processor", Third(vae_scale_factor=8)))
    assert differs(trial.is_as_stock(), half)
    trial.each(lambda p: setattr(p, "image_processor", VaeImageProcessor(do_normalize=False)))
    trial.is_as_stock(changed=False)
    found, wanted = trial.generate(output_type="pt")
    assert (found - wanted).abs().max() < SAME


@feature("`copy.deepcopy` of a part")
def copied_part(trial: Trial) -> None:
    """The copy is plain diffusers, with weights of its own."""
    for name in ("unet", "vae", "text_encoder"):
        twin = copy.deepcopy(getattr(trial.pipeline, name))
        with torch.no_grad():
            for weight in twin.parameters():
                weight.mul_(1.05)
        stock = copy.copy(trial.stock)
        object.__setattr__(stock, name, twin)
        assert differs(image(stock), trial.first)
        trial.is_as_stock(changed=False)


@feature("`copy.deepcopy` or pickle of the pipeline")
def copied_pipeline(trial: Trial) -> None:
    """A copy has the level, and weights of its own."""
    for twin in (copy.deepcopy(trial.pipeline), pickle.loads(pickle.dumps(trial.pipeline))):
        assert np.array_equal(image(twin), trial.first)
        with torch.no_grad():
            for owner in owners(twin):
                owner.weight.mul_(1.5)
        assert differs(image(twin), trial.first)
        trial.is_as_stock(changed=False)


@feature("`copy.copy` of the pipeline, another scheduler in it")
def shallow_copy(trial: Trial) -> None:
    twins = trial.each(copy.copy)
    for twin in twins:
        config = {"use_karras_sigmas": True, "timestep_spacing": "leading"}
        twin.scheduler = type(twin.scheduler).from_config(twin.scheduler.config, **config)
    found, wanted = map(image, twins)
    assert np.abs(found - wanted).max() < SAME
    assert differs(found, trial.first)
    trial.is_as_stock(changed=False)


@feature("gradients of a part's weights")
def gradients(trial: Trial) -> None:
    given = (torch.ones(1, 4, 8, 8), torch.tensor(7.0), torch.ones(1, 5, 16))
    for pipeline in trial.both:
        pipeline.unet(*given).sample.square().sum().backward()
    pairs = zip(*(pipeline.unet.parameters() for pipeline in trial.both), strict=True)
    for found, wanted in pairs:
        torch.testing.assert_close(found.grad, wanted.grad, rtol=1e-3, atol=1e-4)


@feature("`timesteps=` or `sigmas=` of a call")
def own_timesteps(trial: Trial) -> None:
    trial.is_as_stock(timesteps=[900, 300], num_inference_steps=2)


@feature("`vae.config.scaling_factor`")
def scaling_factor(trial: Trial) -> None:
    trial.each(lambda pipeline: pipeline.vae.register_to_config(scaling_factor=0.5))
    trial.is_as_stock()


@feature("`del pipeline` frees its memory, without the garbage collector")
def deleted(trial: Trial) -> None:
    trial.load(ATTENTION)
    trial.is_as_stock()
    pipeline = trial.__dict__.pop("pipeline")
    parts = (pipeline.unet, pipeline.vae, pipeline.text_encoder)
    gone = [weakref.ref(weight) for part in parts for weight in part.parameters()]
    del parts
    gc.collect()
    gc.disable()
    try:
        del pipeline
        assert [ref for ref in gone if ref() is not None] == []
    finally:
        gc.enable()


@feature("many sizes, and several images at once")
def sizes(trial: Trial) -> None:
    """More of them than the eight that Dynamo allows one code object."""
    wanted = {(64 * h, 64 * w): None for h in (1, 2, 3) for w in (1, 2, 3)}
    for height, width in (*wanted, *reversed(wanted)):
        trial.is_as_stock(changed=(height, width) != (64, 64), height=height, width=width)
    trial.is_as_stock(changed=False, num_images_per_prompt=2)


@feature("two threads on one pipeline")
def threads_on_one(trial: Trial) -> None:
    asked = [{"num_inference_steps": steps} for steps in (2, 3, 4, 5)]
    wanted = [image(trial.stock, **one) for one in asked]
    with ThreadPoolExecutor(len(asked)) as pool:
        found = list(pool.map(lambda one: image(trial.pipeline, **one), asked))
    for one, other in zip(found, wanted, strict=True):
        assert np.abs(one - other).max() < SAME


@feature("two threads on pipelines of other settings")
def threads_on_two(trial: Trial) -> None:
    before = torch.backends.cudnn.allow_tf32
    other = build(trial.source, replace(FAMILIES["eager"], tf32=False), CPU)
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(image, [trial.pipeline, other] * 4))
    assert all(np.abs(one - trial.first).max() < SAME for one in found)
    assert torch.backends.cudnn.allow_tf32 == before


@feature("`callback_on_step_end`")
def callback(trial: Trial) -> None:
    def louder(_: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        return {"latents": tensors["latents"] * 1.1}

    trial.is_as_stock(callback_on_step_end=louder)
    trial.is_as_stock(changed=False)


@feature("a callback that generates with its own pipeline")
def nested(trial: Trial) -> None:
    def again(pipeline: Any, step: int, timestep: Any, tensors: Any) -> dict[str, Any]:
        inner.append(image(pipeline))
        return {}

    inner: list[Any] = []
    found = image(trial.pipeline, callback_on_step_end=again)
    assert len(inner) == STEPS
    assert all(np.array_equal(one, trial.first) for one in (found, *inner))


@feature("every argument given as its own default")
def defaults(trial: Trial) -> None:
    given = {"prompt", "generator", "output_type", "num_inference_steps", "guidance_scale"}
    said = {name: value for name, value in DEFAULTS.items() if name not in given}
    del said["negative_prompt"]
    assert "callback_on_step_end_tensor_inputs" in said
    trial.is_as_stock(changed=False, **said)
    trial.is_as_stock(changed=False, callback_on_step_end_tensor_inputs=None)


@feature("numbers as NumPy and PyTorch wrap them")
def wrapped_numbers(trial: Trial) -> None:
    numbers = {"num_inference_steps": np.int64(STEPS), "guidance_scale": torch.tensor(3.0)}
    sides = {"height": np.array(64), "width": np.int64(64), "num_images_per_prompt": np.array(1)}
    trial.is_as_stock(**numbers, **sides, changed=False)


@feature("`height=` without `width=`, which diffusers leaves aside")
def one_side(trial: Trial) -> None:
    for given in ({"height": 128}, {"width": 128}, {"height": 0, "width": 128}):
        assert trial.is_as_stock(**given, changed=False).shape == trial.first.shape


@feature("`clip_skip`")
def clip_skip(trial: Trial) -> None:
    """Stock diffusers gets the name that it asks for, which transformers has no more."""
    vars(trial.stock.text_encoder)["text_model"] = trial.stock.text_encoder
    trial.is_as_stock(clip_skip=1)
    trial.is_as_stock(changed=False)


@feature("a call under `torch.autocast`, then one without")
def autocast(trial: Trial) -> None:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found, wanted = trial.generate(num_inference_steps=3)
    reduced = trial.pipeline.engine is None
    assert differs(wanted, image(trial.stock, num_inference_steps=3))
    assert np.array_equal(found, image(trial.pipeline, num_inference_steps=3)) != reduced
    trial.is_as_stock(num_inference_steps=3)
    trial.is_as_stock(changed=False)


@feature("the UNet called with a timestep for each image")
def timesteps(trial: Trial) -> None:
    random = torch.Generator().manual_seed(0)
    x, text = torch.randn(3, 4, 8, 8, generator=random), torch.randn(3, 32, 16, generator=random)
    times = torch.tensor([10, 500, 900])
    with torch.no_grad():
        found, wanted = trial.each(lambda p: p.unet(x, times, encoder_hidden_states=text).sample)
    assert (found - wanted).abs().max() < SAME
    assert (found[0] - found[1]).abs().max() > CHANGED


@feature("the text encoder called, with its `pooler_output`")
def pooled(trial: Trial) -> None:
    texts = trial.stock.tokenizer(["a cat", "a"], padding="max_length", return_tensors="pt")
    with torch.no_grad():
        found, wanted = trial.each(lambda pipeline: pipeline.text_encoder(texts.input_ids))
        both = trial.each(lambda p: p.text_encoder(texts.input_ids[0], return_dict=False))
    assert type(found) is type(wanted)
    pairs = [*zip(found.to_tuple(), wanted.to_tuple(), strict=True), *zip(*both, strict=True)]
    assert all((one - other).abs().max() < SAME for one, other in pairs)


@feature("`save_pretrained`, loaded by stock diffusers")
def saved(trial: Trial) -> None:
    with TemporaryDirectory() as folder:
        trial.pipeline.save_pretrained(folder)
        loaded = StableDiffusionPipeline.from_pretrained(folder, **UNCHECKED)
    assert np.abs(image(loaded) - trial.first).max() < SAME


@feature("`save_pretrained`, its folder as a source")
def saved_source(trial: Trial) -> None:
    with TemporaryDirectory() as folder:
        trial.pipeline.save_pretrained(folder)
        again = build(resolve(folder), trial.pipeline.level, CPU)
    assert np.abs(image(again) - trial.first).max() < SAME


@feature("`StableDiffusionPipeline.from_pipe`")
def from_pipe(trial: Trial) -> None:
    derived = StableDiffusionPipeline.from_pipe(trial.pipeline)
    assert np.abs(image(derived) - trial.first).max() < SAME


@feature(
    "`AutoPipelineForImage2Image.from_pipe`, "
    "`StableDiffusionImg2ImgPipeline(**pipeline.components)`"
)
def image_to_image(trial: Trial) -> None:
    begin = torch.linspace(0, 1, 3 * 64 * 64).reshape(1, 3, 64, 64)
    given = {"image": begin, "strength": 0.8, "num_inference_steps": 4}
    trial.other(AutoPipelineForImage2Image.from_pipe, **given)
    trial.other(
        lambda pipeline: StableDiffusionImg2ImgPipeline(
            **pipeline.components, requires_safety_checker=False
        ),
        **given,
    )


@feature("a component that is None, `pipeline.unet = None`")
def missing_component(trial: Trial) -> None:
    trial.pipeline.unet = None
    image(trial.pipeline)


@feature("`LevelPipeline.from_pipe`")
def level_from_pipe(trial: Trial) -> None:
    LevelPipeline.from_pipe(trial.pipeline)


@feature("`LevelPipeline.from_pretrained`")
def level_from_pretrained(trial: Trial) -> None:
    image(LevelPipeline.from_pretrained(trial.source.folder, **UNCHECKED))


def louder(own: Any) -> Any:
    """What `functools.wraps` makes look like it."""

    @wraps(own)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        found = own(*args, **kwargs)
        return (found[0] * 1.5, *found[1:]) if isinstance(found, tuple) else found * 1.5

    return wrapper


class Third(VaeImageProcessor):  # type: ignore[misc]
    """An image processor of somebody's own."""

    def postprocess(self, *args: Any, **kwargs: Any) -> Any:
        return super().postprocess(*args, **kwargs) / 3


IP_WIDTH = 4


def ip_adapter_weights(unet: Any) -> dict[str, dict[str, Tensor]]:
    """An IP-Adapter of one token of IP_WIDTH numbers."""
    width = unet.config.cross_attention_dim
    crossed = [n for n, m in unet.named_modules() if n.endswith("attn2")]
    inner = {n: unet.get_submodule(n).to_k.weight.shape[0] for n in crossed}
    keys = [f"{2 * index + 1}.to_{kind}_ip.weight" for index in range(len(inner)) for kind in "kv"]
    sizes = [size for size in inner.values() for _ in "kv"]
    projection = {
        "proj.weight": torch.ones(4 * width, IP_WIDTH),
        "proj.bias": torch.ones(4 * width),
    }
    norm = {"norm.weight": torch.linspace(-1, 1, width), "norm.bias": torch.ones(width)}
    return {
        "image_proj": {**projection, **norm},
        "ip_adapter": {k: torch.ones(size, width) for k, size in zip(keys, sizes, strict=True)},
    }


def owners(pipeline: Any) -> list[Any]:
    """Layers whose weights are read where they are, and those that others are computed from."""
    block = pipeline.unet.mid_block.attentions[0]
    return [
        pipeline.unet.conv_out,
        block.transformer_blocks[0].attn1.to_v,
        block.proj_out,
        pipeline.unet.up_blocks[0].upsamplers[0].conv,
        pipeline.text_encoder.final_layer_norm,
        pipeline.vae.decoder.up_blocks[0].upsamplers[0].conv,
    ]


class CountingProcessor(AttnProcessor2_0):
    """Python that a graph would leave out."""

    calls = 0

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        CountingProcessor.calls += 1
        return super().__call__(*args, **kwargs) * 1.5


class Louder(torch.nn.Module):
    """A block around another one."""

    def __init__(self, inner: Any) -> None:
        super().__init__()
        self.inner = inner
        self.has_cross_attention = True

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.inner(*args, **kwargs) * 1.5


class ForgetfulTorch:
    """PyTorch with a compiler that sees no change at all of the module that it has compiled.

    It stands for captured graphs too. What real compilation does with such changes is told by
    tests/pipelines/test_compiled_changes.py.
    """

    def __getattr__(self, name: str) -> Any:
        return getattr(torch, name)

    def compile(self, function: Any, **_: Any) -> Any:
        kept: WeakKeyDictionary[Any, Any] = WeakKeyDictionary()

        def run(module: Any, *args: Any, **kwargs: Any) -> Any:
            if module not in kept:
                kept[module] = with_own_structure(module)
            return function(kept[module], *args, **kwargs)

        return run


def with_own_structure(module: torch.nn.Module) -> Any:
    """A copy that shares the weights and nothing else."""
    shared: list[Any] = [*module.parameters(), *module.buffers()]
    memo: dict[int, Any] = {id(tensor): tensor for tensor in shared}
    memo |= {id(inner._parameters): inner._parameters for inner in module.modules()}
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
) -> Iterator[Trial]:
    monkeypatch.setattr(shapes, "torch", ForgetfulTorch())
    with own_code():
        pipeline = build(micro_source, FAMILIES[request.param], CPU)
        parts = build(micro_source, FAMILIES["eager"], CPU)
        stock = StableDiffusionPipeline(**parts.components, requires_safety_checker=False)
        stock.set_progress_bar_config(disable=True)
        first = image(pipeline)
        assert np.abs(first - image(stock)).max() < SAME
        made = Trial(pipeline=pipeline, stock=stock, source=micro_source, first=first)
        del pipeline  # or this frame would keep it
        yield made


@pytest.mark.filterwarnings("ignore:Already found a `peft_config` attribute:UserWarning")
@pytest.mark.filterwarnings("ignore:The decode_latents method is deprecated:FutureWarning")
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
