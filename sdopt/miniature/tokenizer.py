"""CLIP tokenizer files of a small vocabulary: exactly one token per word."""

import json
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

from sdopt.miniature.scenes import VOCABULARY

if TYPE_CHECKING:
    from transformers import CLIPTokenizer

MAX_TOKENS = 32
"""Length every caption is padded to; the longest one has 27 tokens with its two end marks."""

START, END = "<|startoftext|>", "<|endoftext|>"

_WORD_END = "</w>"
_LETTERS = "abcdefghijklmnopqrstuvwxyz"


def write_tokenizer(
    folder: Path,
    words: Sequence[str] = VOCABULARY,
    *,
    length: int = MAX_TOKENS,
    letters: str = _LETTERS,
    marks: Mapping[str, int] | None = None,
) -> None:
    """Writes vocab.json, merges.txt and tokenizer_config.json to `folder`.

    Each of `words` is one token, others are spelt in `letters`. Captions are padded to `length`
    tokens; `marks` gives START and END other ids than the last two.
    """
    folder.mkdir(parents=True, exist_ok=True)
    merges = learn_merges(words)
    lines = ["#version: 0.2", *(" ".join(pair) for pair in merges)]
    (folder / "merges.txt").write_text("\n".join(lines) + "\n")
    vocabulary = _vocabulary(merges, letters) | dict(marks or {})
    (folder / "vocab.json").write_text(json.dumps(vocabulary, indent=0) + "\n")
    settings = {
        "tokenizer_class": "CLIPTokenizer",
        "model_max_length": length,
        "bos_token": START,
        "eos_token": END,
        "pad_token": END,
        "unk_token": END,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n")


def load_tokenizer(folder: Path) -> "CLIPTokenizer":
    """The tokenizer in `folder`, as diffusers would load it."""
    from transformers import CLIPTokenizer

    tokenizer: CLIPTokenizer = CLIPTokenizer.from_pretrained(str(folder))
    return tokenizer


def vocabulary_size() -> int:
    """Number of tokens: letters, parts of words, words and the two end marks."""
    return len(_vocabulary(learn_merges(VOCABULARY)))


def token_ids() -> dict[str, int]:
    """The id of each word of the vocabulary and of the two end marks."""
    vocabulary = _vocabulary(learn_merges(VOCABULARY))
    words = {word: vocabulary[word + _WORD_END] for word in VOCABULARY}
    return words | {mark: vocabulary[mark] for mark in (START, END)}


def learn_merges(words: Iterable[str]) -> list[tuple[str, str]]:
    """Byte-pair merges after which each word is one token.

    A later merge ranks lower, so it is only tried when no earlier one applies: it cannot take
    apart a word that was finished before.
    """
    merges: list[tuple[str, str]] = []
    for word in words:
        while len(parts := _apply(merges, word)) > 1:
            merges.append((parts[0], parts[1]))
    return merges


def _apply(merges: list[tuple[str, str]], word: str) -> list[str]:
    parts = [*word[:-1], word[-1] + _WORD_END]
    ranks = {pair: rank for rank, pair in enumerate(merges)}
    while pairs := [p for p in pairwise(parts) if p in ranks]:
        parts = _merge(parts, min(pairs, key=ranks.__getitem__))
    return parts


def _merge(parts: list[str], pair: tuple[str, str]) -> list[str]:
    merged: list[str] = []
    for part in parts:
        if merged and (merged[-1], part) == pair:
            merged[-1] += part
        else:
            merged.append(part)
    return merged


def _vocabulary(merges: list[tuple[str, str]], letters: str = _LETTERS) -> dict[str, int]:
    spelt = [*letters, *(letter + _WORD_END for letter in letters)]
    tokens = dict.fromkeys([*spelt, *(left + right for left, right in merges), START, END])
    return {token: number for number, token in enumerate(tokens)}
