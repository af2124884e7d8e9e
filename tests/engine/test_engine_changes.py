"""The engine sees what changed: weights by content, adapters by their product, modules by name."""

from __future__ import annotations

import copy
import gc
import inspect
import re
import subprocess
import sys
import weakref
from collections.abc import Callable
from functools import wraps
from typing import Any, cast

import numpy as np
import pytest
import torch
from diffusers import DPMSolverMultistepScheduler, StableDiffusionPipeline
from diffusers.models.attention_processor import AttnProcessor2_0
from diffusers.models.resnet import Downsample2D, ResnetBlock2D
from lora import ATTENTION, CONVOLUTIONS, PRODUCTS, lora
from torch import Tensor
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from sdopt.engine.adapters import engine_view
from sdopt.engine.captured import Inputs, Kind
from sdopt.engine.fingerprint import SAMPLES, Fingerprint, differing
from sdopt.engine.image import ImageEngine
from sdopt.engine.modules import Fused
from sdopt.engine.stock import foreign, is_stock
from sdopt.engine.watch import Watch
from sdopt.errors import SdoptError
from sdopt.levels import LEVELS
from sdopt.pipelines.pipeline import LevelPipeline, build
from sdopt.weights.sources import Source

CPU = torch.device("cpu")


@pytest.fixture
def pipeline(micro_source: Source) -> LevelPipeline:
    return build(micro_source, LEVELS["hoisted"], CPU)


def generate(pipeline: LevelPipeline, **more: Any) -> Any:
    seed = torch.Generator().manual_seed(1)
    given = {"num_inference_steps": 2, "generator": seed, "output_type": "np"}
    return pipeline("a cat", **{**given, **more}).images


def differs(weights: list[Tensor], change: Callable[[], Any]) -> bool:
    fingerprint = Fingerprint(weights)
    assert not differing([fingerprint])
    change()
    return bool(differing([fingerprint]))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.float64, torch.int64])
@pytest.mark.parametrize("shape", [(), (3,), (SAMPLES,), (64, 64), (8, 16, 3, 3)], ids=str)
def test_a_fingerprint_sees_a_write_to_all_of_a_weight(
    shape: tuple[int, ...], dtype: torch.dtype
) -> None:
    weight = torch.ones(shape, dtype=dtype)
    if len(shape) == 4:
        weight = weight.to(memory_format=torch.channels_last)
    other = torch.ones(5)
    assert differs([other, weight], lambda: weight.data.mul_(2))


@pytest.mark.parametrize("where", [(3, slice(None)), (slice(None), 3)], ids=["row", "column"])
def test_a_fingerprint_sees_a_write_to_a_row_or_a_column(where: Any) -> None:
    weight = torch.ones(32, 32)
    assert differs([weight], lambda: weight.data[where].mul_(2))


def test_what_a_fingerprint_cannot_see_is_a_write_between_its_samples() -> None:
    """As docs/reference/pipelines.md says."""
    weight = torch.ones(64, 64)
    seen = sum(
        differs([weight], lambda index=index: weight.data.view(-1)[index].mul_(2))  # type: ignore[misc]
        for index in range(64 * 64)
    )
    assert seen == SAMPLES


def test_a_fingerprint_of_a_view_between_others_sees_its_own_values_alone() -> None:
    joined = torch.ones(3, 40, 7)
    part = joined[1]
    assert not differs([part], lambda: joined[::2].mul_(2))
    assert differs([part], lambda: part.data.add_(1))


def test_not_a_number_is_no_change() -> None:
    weight = torch.full((9,), float("nan"))
    assert not differs([weight], lambda: None)


def folded_is_applied(layer: Any, x: Tensor) -> None:
    view: Any = engine_view(layer, "fused", "layer")
    assert type(view) is type(layer.base_layer)
    torch.testing.assert_close(view(x), layer(x), rtol=1e-4, atol=1e-5)
    assert not torch.allclose(view(x), layer.base_layer(x))


def adapted(layer: Any, **settings: Any) -> Any:
    from peft import LoraConfig, inject_adapter_in_model

    parent = torch.nn.Sequential(layer)
    config = LoraConfig(
        **{"r": 3, "lora_alpha": 5, "target_modules": ["0"], "init_lora_weights": False, **settings}
    )
    inject_adapter_in_model(config, parent, adapter_name="one")
    return parent.eval()[0]


@pytest.mark.parametrize("more", [{}, {"use_rslora": True}, {"lora_bias": True}], ids=str)
def test_folded_layers_compute_what_peft_computes(more: Any) -> None:
    x = torch.randn(2, 4, generator=torch.Generator().manual_seed(0))
    folded_is_applied(adapted(torch.nn.Linear(4, 6), **more), x)
    image = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    for conv in (
        torch.nn.Conv2d(4, 6, 3, padding=1),
        torch.nn.Conv2d(4, 6, 3, stride=2, padding=1).to(memory_format=torch.channels_last),
        torch.nn.Conv2d(4, 6, 1),
    ):
        folded_is_applied(adapted(conv, **more), image)


def test_a_folded_embedding_gives_what_peft_gives() -> None:
    folded_is_applied(adapted(torch.nn.Embedding(10, 4)), torch.tensor([1, 2, 9]))


def test_a_view_keeps_layouts_and_shares_what_is_not_adapted() -> None:
    conv = torch.nn.Conv2d(4, 6, 3, padding=1).to(memory_format=torch.channels_last)
    layer = adapted(conv)
    view: Any = engine_view(layer, "fused", "layer")
    assert view.weight.stride() == conv.weight.stride()
    assert view.bias is conv.bias
    assert conv.weight is layer.base_layer.weight


@pytest.mark.parametrize(
    ("layer", "settings", "says"),
    [
        (torch.nn.Linear(4, 6), {"use_dora": True}, "is no plain LoRA (DoRA)"),
        (torch.nn.Linear(4, 6, bias=False), {"lora_bias": True}, "adds a bias where"),
        (torch.nn.Conv2d(4, 4, 3, groups=2), {"r": 2}, "a convolution of groups"),
    ],
    ids=["dora", "bias", "groups"],
)
@pytest.mark.filterwarnings("ignore:`lora_bias=True` was passed")
@pytest.mark.filterwarnings("ignore:LoRA adapter added to ConvNd layer with groups")
def test_adapters_that_cannot_be_folded_are_named(layer: Any, settings: Any, says: str) -> None:
    with pytest.raises(SdoptError) as caught:
        engine_view(adapted(copy.deepcopy(layer), **settings), "fused", "unet.conv")
    assert says in str(caught.value)
    assert "adapter 'one' of unet.conv" in str(caught.value)


def test_a_layer_in_training_that_drops_values_is_named() -> None:
    layer = adapted(torch.nn.Linear(4, 6), lora_dropout=0.5).train()
    with pytest.raises(SdoptError, match="drops values at random"):
        engine_view(layer, "fused", "layer")


def test_joined_and_merged_weights_have_the_adapters_in_them(pipeline: LevelPipeline) -> None:
    """What was half applied before: the product of queries, keys and values missed it."""
    before = generate(pipeline)
    fused: Any = pipeline.fused_unet
    joined = {name: tensor.clone() for name, tensor in enumerate(fused.joined.values())}
    targets = (*ATTENTION, *PRODUCTS[:2], *CONVOLUTIONS)
    pipeline.load_lora_weights(lora(pipeline, targets, size=0.1))
    assert not np.array_equal(generate(pipeline), before)
    fused = pipeline.fused_unet
    assert not any(map(torch.equal, fused.joined.values(), joined.values()))
    pipeline.unload_lora_weights()
    assert np.array_equal(generate(pipeline), before)


def test_a_scale_of_a_call_is_of_that_call_to_the_last_bit(pipeline: LevelPipeline) -> None:
    pipeline.load_lora_weights(lora(pipeline), adapter_name="one")
    pipeline.set_adapters("one", 0.7)
    before = generate(pipeline)
    assert not np.array_equal(generate(pipeline, cross_attention_kwargs={"scale": 0.3}), before)
    assert np.array_equal(generate(pipeline), before)
    for wrong in ({"scale": "much"}, {"gligen": {}}, {"scale": float("nan")}):
        with pytest.raises(SdoptError, match="cross_attention_kwargs is"):
            generate(pipeline, cross_attention_kwargs=wrong)


ARGUMENTS: dict[str, Any] = {
    "class_labels": torch.zeros(1),
    "timestep_cond": torch.zeros(1),
    "attention_mask": torch.ones(1, 5),
    "cross_attention_kwargs": {"gligen": {}},
    "added_cond_kwargs": {"image_embeds": []},
    "down_block_additional_residuals": (torch.zeros(1),),
    "mid_block_additional_residual": torch.zeros(1),
    "down_intrablock_additional_residuals": [torch.zeros(1)],
    "encoder_attention_mask": torch.ones(1, 5),
}


@torch.no_grad()
@pytest.mark.parametrize("name", ARGUMENTS)
def test_what_the_unet_is_given_and_does_not_compute_is_named(
    name: str, pipeline: LevelPipeline
) -> None:
    given = (torch.zeros(1, 4, 8, 8), 7, torch.zeros(1, 5, 16))
    says = rf"level 'hoisted': the engine's unet does not compute {name};.*'final'"
    with pytest.raises(SdoptError, match=says):
        pipeline.unet(*given, **{name: ARGUMENTS[name]})
    position = list(ARGUMENTS).index(name)
    with pytest.raises(SdoptError, match=says):
        pipeline.unet(*given, *(None,) * position, ARGUMENTS[name])
    pipeline.unet(*given, **dict.fromkeys(ARGUMENTS))


@torch.no_grad()
@pytest.mark.parametrize("name", ["attention_mask", "position_ids", "output_hidden_states"])
def test_what_the_text_encoder_is_given_and_does_not_compute_is_named(
    name: str, pipeline: LevelPipeline
) -> None:
    ids = torch.zeros(1, 5, dtype=torch.long)
    with pytest.raises(SdoptError, match=f"text_encoder does not compute {name}"):
        pipeline.text_encoder(ids, **{name: torch.ones(1, 5)})
    found = pipeline.text_encoder(ids, **{name: None})
    assert found[0] is found.last_hidden_state
    assert isinstance(pipeline.text_encoder(ids, return_dict=False), tuple)


@torch.no_grad()
def test_what_the_decoder_is_given_and_does_not_compute_is_named(pipeline: LevelPipeline) -> None:
    with pytest.raises(SdoptError, match="decoder does not compute latent_embeds"):
        pipeline.vae.decoder(torch.zeros(1, 4, 8, 8), torch.zeros(1))


@torch.no_grad()
def test_parts_that_are_called_from_outside_look_for_changes_too(pipeline: LevelPipeline) -> None:
    """As the pipelines do that `from_pipe` makes of this one's parts."""
    given = (torch.ones(1, 4, 8, 8), 7, torch.ones(1, 5, 16))
    before = pipeline.unet(*given).sample
    block = pipeline.unet.mid_block.attentions[0]
    block.proj_out.weight.data.mul_(4)
    changed = pipeline.unet(*given).sample
    own = type(pipeline.unet).forward
    torch.testing.assert_close(changed, own(pipeline.unet, *given).sample, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(changed, before)
    pipeline.unet.mid_block.register_forward_hook(lambda *_: None)
    with pytest.raises(SdoptError, match=r"leave out the forward hook of a module, unet.mid_block"):
        pipeline.unet(*given)


def test_a_part_whose_fast_path_outlived_it_says_so(pipeline: LevelPipeline) -> None:
    fused: Any = pipeline.fused
    parts = fused.parts
    pipeline.unet = None
    with pytest.raises(SdoptError, match="the unet of a pipeline that is gone"):
        parts[1].refresh()


@pytest.mark.parametrize("level", ["one-graph", "fused", "hoisted", "turbo", "dpm-20", "final"])
def test_a_deleted_pipeline_is_gone_at_once(level: str, micro_source: Source) -> None:
    pipeline = build(micro_source, LEVELS[level], CPU)
    if not LEVELS[level].compiled:  # the rest is in tests/pipelines/test_pipeline_features.py
        generate(pipeline)
    parts = [pipeline.unet, pipeline.vae, pipeline.text_encoder]
    gone = [weakref.ref(weight) for part in parts for weight in part.parameters()]
    gc.collect()
    gc.disable()
    try:
        del parts
        del pipeline
        assert not any(ref() is not None for ref in gone)
    finally:
        gc.enable()


def test_padding_of_convolutions_is_looked_at_when_a_level_is_built(
    micro_source: Source, monkeypatch: pytest.MonkeyPatch
) -> None:
    """People patch the constructor before they load a model."""
    make = torch.nn.Conv2d.__init__

    def circular(self: Any, *args: Any, **kwargs: Any) -> None:
        make(self, *args, **{**kwargs, "padding_mode": "circular"})

    monkeypatch.setattr(torch.nn.Conv2d, "__init__", circular)
    with pytest.raises(
        SdoptError, match=r"padding_mode is 'circular'; undo that, or use .*'final'"
    ):
        build(micro_source, LEVELS["hoisted"], CPU)


def test_a_graph_of_compiled_parts_takes_changes_and_refuses_hooks(micro_source: Source) -> None:
    level = LEVELS["one-graph"]
    pipeline = build(micro_source, level.then("eager", why="fast", compiled=False), CPU)
    before = generate(pipeline)
    version = pipeline.engine._parts.version  # type: ignore[union-attr]
    pipeline.enable_freeu(s1=0.9, s2=0.2, b1=1.2, b2=1.4)
    assert not np.array_equal(generate(pipeline), before)
    assert pipeline.engine._parts.version == version + 1  # type: ignore[union-attr]
    pipeline.unet.mid_block.register_forward_hook(lambda *_: None)
    with pytest.raises(SdoptError, match="one graph, which would leave out the forward hook"):
        generate(pipeline)


def test_nothing_of_a_stock_pipeline_is_foreign(pipeline: LevelPipeline) -> None:
    parts: Any = {"unet": pipeline.unet, "vae": pipeline.vae, "text": pipeline.text_encoder}
    assert foreign(parts, [pipeline.vae.decoder]) is None
    assert is_stock(type(pipeline.unet))
    assert not is_stock(Fused)


def wrapped(own: Any) -> Any:
    @wraps(own)
    def other(*args: Any, **kwargs: Any) -> Any:
        return own(*args, **kwargs)

    return other


def own_code_of(function: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Other code in the same function object."""
    monkeypatch.setattr(function, "__code__", (lambda self, x: x * 2).__code__)


PATCHES: dict[str, Callable[[pytest.MonkeyPatch], Any]] = {
    "the forward that was put into the class ResnetBlock2D": lambda m: m.setattr(
        ResnetBlock2D, "forward", wrapped(ResnetBlock2D.forward)
    ),
    "the __call__ that was put into the class AttnProcessor2_0": lambda m: m.setattr(
        AttnProcessor2_0, "__call__", wrapped(AttnProcessor2_0.__call__)
    ),
    "the __call__ that was put into the class ResnetBlock2D": lambda m: m.setattr(
        ResnetBlock2D, "__call__", wrapped(torch.nn.Module.__call__), raising=False
    ),
    "the _call_impl that was put into the class Module": lambda m: m.setattr(
        torch.nn.Module, "_call_impl", wrapped(torch.nn.Module._call_impl)
    ),
    "the forward that was put into the class Downsample2D": lambda m: own_code_of(
        Downsample2D.forward, m
    ),
    "the multistep_dpm_solver_second_order_update that was put into": lambda m: m.setattr(
        DPMSolverMultistepScheduler,
        "multistep_dpm_solver_second_order_update",
        wrapped(DPMSolverMultistepScheduler.multistep_dpm_solver_second_order_update),
    ),
    "the step that was put into the class": lambda m: m.setattr(
        DPMSolverMultistepScheduler, "step", wrapped(DPMSolverMultistepScheduler.step)
    ),
    "the attention 'sdpa' that was put into transformers": lambda m: m.setitem(
        ALL_ATTENTION_FUNCTIONS._local_mapping, "sdpa", wrapped(ALL_ATTENTION_FUNCTIONS["sdpa"])
    ),
    "the encode_prompt that was put into the class LevelPipeline": lambda m: m.setattr(
        LevelPipeline, "encode_prompt", wrapped(LevelPipeline.encode_prompt)
    ),
    "the check_inputs that was put into the class StableDiffusionPipeline": lambda m: m.setattr(
        StableDiffusionPipeline, "check_inputs", wrapped(StableDiffusionPipeline.check_inputs)
    ),
}
"""What is put into classes under the names of what was there, and how the error calls it."""


@pytest.mark.parametrize("says", PATCHES)
def test_what_passes_for_a_classs_own_by_its_name_is_refused_before_and_after_the_build(
    says: str, micro_source: Source
) -> None:
    pipeline = build(micro_source, LEVELS["hoisted"], CPU)
    before = generate(pipeline)
    with pytest.MonkeyPatch.context() as patch:
        PATCHES[says](patch)
        with pytest.raises(SdoptError, match=re.escape(says)):
            generate(pipeline)
        with pytest.raises(SdoptError, match=re.escape(says)):
            generate(build(micro_source, LEVELS["hoisted"], CPU))
    assert np.array_equal(generate(pipeline), before)


def test_a_librarys_own_decorator_is_seen_after_the_first_look(
    pipeline: LevelPipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All of its code stands in PyTorch's files, and yet it computes something else."""
    generate(pipeline)
    own: Any = ResnetBlock2D.forward
    monkeypatch.setattr(ResnetBlock2D, "forward", torch.autocast("cpu", torch.bfloat16)(own))
    with pytest.raises(SdoptError, match="the forward that was put into the class ResnetBlock2D"):
        generate(pipeline)


def test_a_pipeline_of_a_class_of_your_own_is_refused(pipeline: LevelPipeline) -> None:
    class Own(LevelPipeline):
        pass

    pipeline.__class__ = Own
    with pytest.raises(SdoptError, match="leave out the class Own"):
        generate(pipeline)


def test_the_latter_half_of_a_buffer_is_looked_at_too() -> None:
    ids = torch.arange(77)
    fingerprint = Fingerprint([torch.ones(3)], whole=[ids])
    assert not differing([fingerprint])
    ids.data[70] = 3
    assert differing([fingerprint])


@pytest.mark.parametrize("part", ["text_encoder", "unet", "decoder"])
def test_gradients_are_refused_by_name_and_only_where_they_are_wanted(
    part: str, pipeline: LevelPipeline
) -> None:
    given = {
        "text_encoder": (torch.zeros(1, 5, dtype=torch.long),),
        "unet": (torch.ones(1, 4, 8, 8), 7, torch.ones(1, 5, 16)),
        "decoder": (torch.ones(1, 4, 8, 8),),
    }[part]
    module = pipeline.vae.decoder if part == "decoder" else getattr(pipeline, part)
    says = r"computes no gradients; call it under torch.no_grad\(\), or .*'baseline'"
    assert all(weight.requires_grad for weight in module.parameters())
    with pytest.raises(SdoptError, match=says):
        module(*given)
    with torch.no_grad():
        module(*given)
    for one in (pipeline.unet, pipeline.vae, pipeline.text_encoder):
        one.requires_grad_(False)
    module(*given)
    if part != "text_encoder":
        with pytest.raises(SdoptError, match=says):
            module(given[0].requires_grad_(), *given[1:])


def test_a_copy_of_a_pipeline_that_no_engine_can_generate_is_refused(
    pipeline: LevelPipeline,
) -> None:
    """A new engine would take what it finds for what was built."""
    pipeline.unet.mid_block.resnets[0].output_scale_factor = 2.0
    with pytest.raises(SdoptError, match=r"output_scale_factor is 2\.0"):
        copy.deepcopy(pipeline)


def test_a_forward_pass_outlives_no_module(pipeline: LevelPipeline) -> None:
    forward = pipeline.unet.forward
    assert list(inspect.signature(forward).parameters)[:2] == ["sample", "timestep"]
    twin = copy.deepcopy(pipeline.unet)
    assert inspect.signature(twin.forward) == inspect.signature(type(twin).forward.__get__(twin))
    assert copy.deepcopy(twin).forward.module is not twin
    pipeline.unet = None
    with pytest.raises(SdoptError, match="the module of this forward pass is gone"):
        forward.module  # noqa: B018


def test_generating_changes_nothing_that_is_watched(pipeline: LevelPipeline) -> None:
    generate(pipeline)
    parts = (pipeline.text_encoder, pipeline.unet, pipeline.vae)
    watch = Watch(parts, [pipeline.vae.decoder])
    version = pipeline.fused.version  # type: ignore[union-attr]
    for _ in range(2):
        generate(pipeline)
    assert not watch.has_changed()
    assert pipeline.fused.version == version  # type: ignore[union-attr]


SECOND_IMAGE = """
import sys
import torch
from sdopt.engine.image import ImageEngine
from sdopt.engine.solver import settings_of
from sdopt.levels import TURBO
from sdopt.pipelines.pipeline import build
from sdopt.weights.sources import resolve

forgotten = []
pipeline = build(resolve(sys.argv[1]), TURBO, torch.device("cpu"))
pipeline.engine.graphs.forget = lambda: forgotten.append(1)
for _ in range(2):
    pipeline("a cat", num_inference_steps=2, generator=torch.Generator(), output_type="np")
assert "__slotnames__" in vars(type(pipeline.scheduler))
print(len(forgotten))
"""


def test_the_first_image_of_a_process_is_no_change_for_the_second(micro_source: Source) -> None:
    """Making its solver copies the scheduler, whereupon Python notes slot names in its class.

    Taken for other settings, that let the second image of each process capture its graph anew.
    """
    command = [sys.executable, "-c", SECOND_IMAGE, str(micro_source.location)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["0"]


@pytest.mark.parametrize(
    ("part", "method"),
    [("vae", "decode"), ("unet.mid_block.attentions.0", "_operate_on_continuous_inputs")],
)
def test_another_method_of_one_module_is_refused_by_name(
    part: str, method: str, pipeline: LevelPipeline
) -> None:
    before = generate(pipeline)
    name, _, path = part.partition(".")
    module: Any = getattr(pipeline, name).get_submodule(path)
    own = getattr(module, method)
    setattr(module, method, lambda *args, **kwargs: own(*args, **kwargs))
    with pytest.raises(SdoptError, match=f"the {method} that was put into a module, {part}"):
        generate(pipeline)
    delattr(module, method)
    assert np.array_equal(generate(pipeline), before)


def test_an_option_set_as_an_attribute_of_a_configuration_is_seen(pipeline: LevelPipeline) -> None:
    """diffusers reads `config.name`, which may be set beside the item of that name."""
    before = generate(pipeline)
    pipeline.scheduler.config.prediction_type = "v_prediction"
    changed = generate(pipeline)
    assert not np.array_equal(changed, before)
    pipeline.scheduler.config.prediction_type = "epsilon"
    assert np.array_equal(generate(pipeline), before)
    pipeline.scheduler.config.algorithm_type = "sde-dpmsolver++"
    with pytest.raises(SdoptError, match="algorithm_type"):
        generate(pipeline)
    pipeline.scheduler.config.algorithm_type = "dpmsolver++"
    pipeline.unet.config.center_input_sample = True
    with pytest.raises(SdoptError, match=r"config\.center_input_sample is True"):
        generate(pipeline)


def test_what_python_keeps_in_a_class_is_no_change() -> None:
    """A copy of a processor makes Python note the names of its slots, in the class itself."""

    class LayerProcessor:
        pass

    layer = torch.nn.Linear(2, 2)
    layer.processor = LayerProcessor()
    watch = Watch([layer])
    copy.deepcopy(layer)
    assert "__slotnames__" in vars(LayerProcessor)
    assert not watch.structure_changed()
    LayerProcessor.scale = 2
    assert watch.structure_changed()


def test_a_graph_is_not_replayed_after_another_engine_took_a_change_over(
    pipeline: LevelPipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second engine frees the joined weights that the first one's graph reads."""
    first = ImageEngine(pipeline=pipeline, level=pipeline.level)
    second = ImageEngine(pipeline=pipeline, level=pipeline.level)
    kind = Kind(images=1, height=8, width=8, tokens=77, steps=2, guided_steps=2)
    kept: list[int] = []

    def replay(engine: ImageEngine, *_: Any) -> Tensor:
        kept.append(len(engine.graphs))
        return torch.empty(0)

    monkeypatch.setattr(ImageEngine, "_replay", replay)
    monkeypatch.setattr(ImageEngine, "_wrote_unseen", lambda *_: False)
    none = torch.empty(0)
    inputs = Inputs(ids=none, noise=none, factors=none, times=none)
    first.graphs.kept[kind] = cast(Any, object())
    first._replay_checked(inputs, kind)
    with torch.no_grad():
        pipeline.unet.conv_out.weight.mul_(1.5)
    assert second._forget_what_changed()
    first._replay_checked(inputs, kind)
    assert kept == [1, 0]
