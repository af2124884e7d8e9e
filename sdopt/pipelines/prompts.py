"""Prompts: words that a textual inversion taught, and the text encoder by its former name."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


def without_learnt_words(text: str, tokenizer: Any) -> str:
    """The text without the tokens that a textual inversion added, which it taught the model.

    A tokenizer finds them in lower case, and within words too.
    """
    if tokenizer is None:
        return text
    learnt = set(tokenizer.added_tokens_encoder) - set(tokenizer.all_special_tokens)
    for token in sorted(learnt, key=len, reverse=True):  # "<cat>_1" before "<cat>"
        text = re.sub(re.escape(token), " ", text, flags=re.IGNORECASE)
    return text


@contextmanager
def named_as_diffusers_does(text_encoder: Any) -> Iterator[None]:
    """`text_encoder.text_model`, which transformers had until 5 and diffusers 0.42 still asks for.

    It asks for it where `clip_skip` is given, or the scale of a LoRA without peft.
    """
    if text_encoder is None or hasattr(text_encoder, "text_model"):
        yield
        return
    vars(text_encoder)["text_model"] = text_encoder  # past Module's own: it is no part of itself
    try:
        yield
    finally:
        del vars(text_encoder)["text_model"]
