"""The shipped captions for SD 1.5 are many, of every kind, and none is another one again."""

from __future__ import annotations

import json
import re
from collections import Counter
from itertools import combinations

from sdopt.bench.evaluation.prompts import read_prompts
from sdopt.miniature import CAPTIONS
from sdopt.weights.sources import Source

ROWS = [json.loads(line) for line in CAPTIONS.read_text(encoding="utf-8").splitlines()]
PROMPTS = [row["prompt"] for row in ROWS]
NUMBERS = r"\b(one|two|three|four|five|six|seven|eight|nine|ten|twins?|dozen|both|\d+)\b"
CLIP_TOKENS = 75
"""That SD 1.5 reads of a prompt, beside its start and end."""


def of(kind: str) -> list[str]:
    return [row["prompt"] for row in ROWS if row["kind"] == kind]


def words(text: str) -> set[str]:
    return set(re.findall(r"[a-z0-9]+", text.lower()))


def test_there_are_500_and_the_first_50_hold_every_kind() -> None:
    assert len(ROWS) == 500
    kinds = Counter(row["kind"] for row in ROWS)
    assert min(kinds.values()) >= 30
    assert {"animal", "people", "place", "object", "style", "text", "count"} <= set(kinds)
    assert {row["kind"] for row in ROWS[:50]} == set(kinds)


def test_none_says_what_another_one_says() -> None:
    assert len({" ".join(sorted(words(prompt))) for prompt in PROMPTS}) == 500
    sets = [words(prompt) for prompt in PROMPTS]
    assert max(len(a & b) / len(a | b) for a, b in combinations(sets, 2)) < 0.5
    assert len(set().union(*sets)) > 1500


def test_each_kind_is_what_it_is_called() -> None:
    assert [prompt for prompt in of("text") if '"' not in prompt and "word" not in prompt] == []
    assert [prompt for prompt in of("count") if not re.search(NUMBERS, prompt)] == []
    assert [prompt for prompt in of("long") if len(prompt.split()) < 30] == []
    assert [prompt for prompt in of("short") if len(prompt.split()) > 3] == []


def test_they_are_plain_text_that_sd_15_reads_whole() -> None:
    for prompt in PROMPTS:
        assert prompt == prompt.strip()
        assert prompt.isascii()
        assert len(re.findall(r"\w+|[^\w\s]", prompt)) <= CLIP_TOKENS


def test_an_evaluation_finds_them_by_name() -> None:
    source = Source(name="any", why="a test", kind="random", size_px=512, guidance_scale=7.5)
    assert read_prompts(type(CAPTIONS)("captions"), source).texts == tuple(PROMPTS)
