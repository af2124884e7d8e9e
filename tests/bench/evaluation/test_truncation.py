"""Prompts that are too long are told once for a level, whoever cuts them."""

from __future__ import annotations

import logging
from dataclasses import replace

import pytest
import torch

from sdopt.bench.evaluation.truncation import UNSAID, truncation_told_once
from sdopt.bench.evaluation.work import pipeline_of
from sdopt.errors import SdoptError
from sdopt.levels import get_level
from sdopt.pipelines.engine_call import TRUNCATED
from sdopt.pipelines.engine_call import logger as engine_logger
from sdopt.pipelines.workload import Request
from sdopt.weights.sources import resolve

LONG = "a large red circle at the center on a blue background " * 9
OTHER = "a small green ring at the top left on a white background " * 9
NEGATIVE = "a large blue square at the bottom left on a yellow background " * 9
SHORT = "a large red star on a blue background"


def requests_of(*prompts: str) -> list[Request]:
    return [Request(name="one", prompt=prompt, seed=1) for prompt in prompts]


@pytest.mark.parametrize("level", ["tuned", "turbo"])
def test_two_batches_of_long_prompts_are_told_in_one_line(
    level: str, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    source = resolve("embedded")
    with (
        truncation_told_once(level),
        pipeline_of(source, torch.device("cpu"), get_level(level)) as generate,
    ):
        assert generate(requests_of(LONG, OTHER, SHORT)).shape[0] == 3
        negative = [replace(one, negative_prompt=NEGATIVE) for one in requests_of(LONG, SHORT)]
        assert generate(negative).shape[0] == 2
    [told] = [record.getMessage() for record in caplog.records if "tokens" in record.getMessage()]
    assert told.startswith(f"{level}: 3 prompts are longer than the 32 tokens that are used: ")
    assert len(told) < 200
    said = capfd.readouterr().err
    assert not any(words in said for words in ("<|endoftext|>", "indexing errors"))


def test_nothing_is_told_of_prompts_that_were_refused(caplog: pytest.LogCaptureFixture) -> None:
    source = resolve("embedded")
    with (
        pytest.raises(SdoptError, match="unknown prompt word"),
        truncation_told_once("tuned"),
        pipeline_of(source, torch.device("cpu"), get_level("tuned")) as generate,
    ):
        generate(requests_of(LONG + "zebra"))
    assert caplog.records == []


def test_one_is_told_by_its_beginning_and_its_own_limit(caplog: pytest.LogCaptureFixture) -> None:
    with truncation_told_once("final"):
        for _ in range(3):
            engine_logger.warning(TRUNCATED, LONG, 77)
    told = f"final: a prompt is longer than the 77 tokens that are used: {LONG[:117]}..."
    assert [record.getMessage() for record in caplog.records] == [told]


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
