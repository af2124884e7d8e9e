"""The fused text encoder gives what transformers' CLIPTextModel gives."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from references import error
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModel

from sdopt.engine.text import check_encoder, encode_text, joined_attentions
from sdopt.errors import SdoptError
from sdopt.miniature import MODEL_DIR

EXACT = 1e-5
"""Relative error that float32 may have after a whole encoder."""


def random_encoder(**changes: Any) -> Any:
    config: dict[str, Any] = {
        "vocab_size": 50,
        "hidden_size": 24,
        "intermediate_size": 40,
        "num_hidden_layers": 3,
        "num_attention_heads": 3,
        "max_position_embeddings": 12,
        "eos_token_id": 49,
    }
    with torch.random.fork_rng():
        torch.manual_seed(0)
        encoder = CLIPTextModel(CLIPTextConfig(**{**config, **changes})).eval()
        for weight in encoder.parameters():  # as it starts, attention hardly matters
            torch.nn.init.normal_(weight, 0.0, 0.3)
    return encoder


ENCODERS = {
    "the miniature's": lambda: CLIPTextModel.from_pretrained(MODEL_DIR / "text_encoder"),
    "random": random_encoder,
    "one layer": lambda: random_encoder(num_hidden_layers=1, num_attention_heads=1),
}


@pytest.fixture(autouse=True)
def no_grad() -> Iterator[None]:
    with torch.no_grad():
        yield


@pytest.fixture(scope="module", params=ENCODERS)
def encoder(request: pytest.FixtureRequest) -> Any:
    return ENCODERS[request.param]()


def encoded(encoder: Any, given: Tensor) -> Tensor:
    return encode_text(encoder, joined_attentions(encoder), given)


def ids(encoder: Any, prompts: int, tokens: int) -> Tensor:
    generator = torch.Generator().manual_seed(prompts)
    return torch.randint(encoder.config.vocab_size, (prompts, tokens), generator=generator)


@pytest.mark.parametrize("prompts", [1, 2, 5])
def test_prompts_of_full_length(prompts: int, encoder: Any) -> None:
    given = ids(encoder, prompts, encoder.config.max_position_embeddings)
    assert error(encoded(encoder, given), encoder(given)[0]) < EXACT


def test_shorter_prompts(encoder: Any) -> None:
    given = ids(encoder, 2, 7)
    assert error(encoded(encoder, given), encoder(given)[0]) < EXACT


def test_a_token_depends_on_those_before_it_alone(encoder: Any) -> None:
    given = ids(encoder, 1, 8)
    other = given.clone()
    other[0, 5] = (given[0, 5] + 1) % encoder.config.vocab_size
    one, two = encoded(encoder, given), encoded(encoder, other)
    assert torch.equal(one[0, :5], two[0, :5])
    assert not torch.allclose(one[0, 5:], two[0, 5:])


def test_another_activation_is_refused_by_name() -> None:
    check_encoder(random_encoder())
    with pytest.raises(SdoptError, match="hidden_act='quick_gelu', this is a CLIPTextModel of 'ge"):
        check_encoder(random_encoder(hidden_act="gelu"))


def test_another_class_is_refused_by_name() -> None:
    class T5EncoderModel:
        config = CLIPTextConfig()

    with pytest.raises(SdoptError, match="this is a T5EncoderModel"):
        check_encoder(T5EncoderModel())


def test_joined_weights_stay_the_modules_own() -> None:
    encoder = random_encoder()
    before = {name: weight.clone() for name, weight in encoder.state_dict().items()}
    joined = joined_attentions(encoder)
    assert all(torch.equal(weight, before[name]) for name, weight in encoder.state_dict().items())
    given = ids(encoder, 2, 7)
    for module, (weight, bias) in joined.items():
        assert bias is not None
        module.v_proj.weight.mul_(2.0)
        module.k_proj.bias.add_(0.5)
        width = module.embed_dim
        assert torch.equal(weight[2 * width :], module.v_proj.weight)
        assert torch.equal(bias[width : 2 * width], module.k_proj.bias)
    assert error(encode_text(encoder, joined, given), encoder(given)[0]) < EXACT
