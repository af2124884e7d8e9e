"""Prompts that are too long are told once for a level, whoever cuts them."""

from __future__ import annotations

import logging

import pytest
import torch

from sdopt.bench.evaluation.truncation import UNSAID, truncation_told_once
from sdopt.bench.evaluation.work import pipeline_of
from sdopt.levels import get_level
from sdopt.pipelines.engine_call import TRUNCATED
from sdopt.pipelines.engine_call import logger as engine_logger
from sdopt.pipelines.workload import Request
from sdopt.weights.sources import resolve

LONG = "a large red circle at the center on a blue background " * 9
OTHER = "a small green ring at the top left on a white background " * 9
SHORT = "a large red star on a blue background"


def requests_of(*prompts: str) -> list[Request]:
    return [Request(name="one", prompt=prompt, seed=1) for prompt in prompts]


@pytest.mark.parametrize("level", ["tuned", "turbo"])
def test_two_batches_of_long_prompts_are_told_in_one_line(
    level: str, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    source = resolve("embedded")
    with pipeline_of(source, torch.device("cpu"), get_level(level)) as generate:
        for _ in range(2):
            assert generate(requests_of(LONG, OTHER, SHORT)).shape[0] == 3
    told = [record.getMessage() for record in caplog.records if "tokens" in record.getMessage()]
    longest = f"of the prompt {LONG!r} and of 1 more only the first 32 tokens are used"
    assert told == [f"{level}: {longest}"]
    told = capfd.readouterr().err
    assert not any(words in told for words in ("<|endoftext|>", "indexing errors"))


def test_short_prompts_and_other_warnings_are_left_alone(caplog: pytest.LogCaptureFixture) -> None:
    with truncation_told_once("final"):
        engine_logger.warning("the clock is slow")
    assert [record.getMessage() for record in caplog.records] == ["the clock is slow"]


@pytest.mark.parametrize(("name", "words"), UNSAID.items())
def test_all_speak_again_afterwards(name: str, words: str) -> None:
    said: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: said.append(record.name)  # type: ignore[method-assign]
    theirs = logging.getLogger(name)
    for logger in (theirs, engine_logger):
        logger.addHandler(handler)
    try:
        with truncation_told_once("final"):
            theirs.warning(f"it {words} ...")
        assert said == []
        theirs.warning(f"it {words} ...")
        engine_logger.warning(TRUNCATED, LONG, 77)
        assert said == [name, engine_logger.name]
    finally:
        for logger in (theirs, engine_logger):
            logger.removeHandler(handler)
