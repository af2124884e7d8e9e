"""The engine's tokens are those of the tokenizer's own call, however that was last used."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import CLIPTokenizer

from sdopt.pipelines import engine_call
from sdopt.weights.sd15 import tokenizer as sd15_tokenizer

TEXTS = (
    ["", "a photograph of an astronaut riding a horse on the moon, detailed, 35mm"],
    ["red " * 100],
    ["<|endoftext|> and <|startoftext|>", "Ünïcode 😀", "  two   spaces\n"],
)
USES: tuple[dict[str, Any], ...] = (
    {},
    {"split_special_tokens": True},
    {"padding": "max_length", "max_length": 20, "truncation": True},
    {"padding": True, "pad_to_multiple_of": 8, "padding_side": "left"},
)


@pytest.fixture(scope="module")
def tokenizer() -> CLIPTokenizer:
    return sd15_tokenizer()


def tokens_of(tokenizer: Any, texts: list[str]) -> torch.Tensor:
    pipeline: Any = SimpleNamespace(tokenizer=tokenizer)
    return engine_call.token_ids(pipeline, texts)


@pytest.mark.parametrize("texts", TEXTS)
@pytest.mark.parametrize("before", USES)
def test_they_are_those_of_a_call(
    texts: list[str], before: dict[str, Any], tokenizer: CLIPTokenizer
) -> None:
    tokenizer(["something <|endoftext|> else"], **before)
    found = tokens_of(tokenizer, texts)
    most = tokenizer.model_max_length
    called = tokenizer(texts, padding="max_length", max_length=most, truncation=True)
    assert found.tolist() == called.input_ids


def test_a_tokenizer_that_splits_special_tokens_does_so(tokenizer: CLIPTokenizer) -> None:
    whole = tokens_of(tokenizer, ["<|endoftext|>"])
    tokenizer.split_special_tokens = True
    try:
        assert not torch.equal(tokens_of(tokenizer, ["<|endoftext|>"]), whole)
    finally:
        tokenizer.split_special_tokens = False


class Shouting(CLIPTokenizer):  # type: ignore[misc]
    """A user's own tokenizer."""

    def __call__(self, texts: list[str], **named: Any) -> Any:
        return super().__call__([text.replace("cat", "dog") for text in texts], **named)


def test_another_tokenizer_is_called(
    tokenizer: CLIPTokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    cat, dog = (tokens_of(tokenizer, [f"a {animal}"]) for animal in ("cat", "dog"))
    assert not torch.equal(cat, dog)
    monkeypatch.setattr(tokenizer, "__class__", Shouting)
    assert torch.equal(tokens_of(tokenizer, ["a cat"]), dog)


def test_so_is_one_whose_class_was_patched(
    tokenizer: CLIPTokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    dog, call = tokens_of(tokenizer, ["a dog"]), CLIPTokenizer.__call__

    def shouting(self: Any, texts: list[str], **named: Any) -> Any:
        return call(self, [text.replace("cat", "dog") for text in texts], **named)

    monkeypatch.setattr(CLIPTokenizer, "__call__", shouting)
    assert torch.equal(tokens_of(tokenizer, ["a cat"]), dog)
