"""Every value of a body is checked, and what is wrong is named in OpenAI's words."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sdopt.cli.options import check_prompt
from sdopt.errors import SdoptError
from sdopt.service import requests
from sdopt.service.failures import ApiError
from sdopt.service.queueing import Job
from sdopt.service.settings import Facts, Limits, Settings
from sdopt.weights.sources import any_prompt, check_embedded_prompt

FACTS = Facts(
    source="fake",
    embedded=False,
    size_px=512,
    guidance_scale=7.5,
    steps=20,
    multiple_px=64,
    compiles=True,
    device="a GPU",
)


def limits(*, compiles: bool = True, **fields: Any) -> Limits:
    facts = Facts(**{**vars(FACTS), "compiles": compiles})
    return Limits.of(Settings(**fields), facts)


def jobs(body: Any, given: Limits | None = None, *, embedded: bool = False) -> list[Job]:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()

    async def parsed() -> list[Job]:
        check = check_embedded_prompt if embedded else any_prompt
        return requests.jobs_of(requests.parsed(content), given or limits(), check)

    return asyncio.run(parsed())


def refused(body: Any, given: Limits | None = None, *, embedded: bool = False) -> ApiError:
    with pytest.raises(ApiError) as raised:
        jobs(body, given, embedded=embedded)
    error = raised.value
    told = json.loads(error.body)["error"]
    assert set(told) == {"message", "type", "param", "code"}
    assert told["type"] == "invalid_request_error"
    return error


def test_defaults_are_those_of_level_and_source() -> None:
    [job] = jobs({"prompt": "a cat"})
    kind = job.kind
    assert (kind.width, kind.height, kind.steps, kind.guidance_scale) == (512, 512, 20, 7.5)
    assert (job.prompt, job.negative_prompt) == ("a cat", "")
    assert 0 <= job.seed < 2**32


def test_every_image_has_a_seed_of_its_own() -> None:
    made = jobs({"prompt": "a cat", "n": 3, "seed": 2**63 - 2})
    assert [job.seed for job in made] == [2**63 - 2, 2**63 - 1, 0]
    unseeded = {job.seed for _ in range(8) for job in jobs({"prompt": "a cat"})}
    assert len(unseeded) == 8


def test_everything_openai_s_clients_may_send_that_means_what_is_done() -> None:
    body = {
        "prompt": "a cat",
        "model": "turbo",
        "n": 2,
        "size": "512x512",
        "response_format": "b64_json",
        "output_format": "png",
        "quality": "standard",
        "background": "auto",
        "user": "somebody",
        "style": None,
    }
    assert len(jobs(body)) == 2
    assert len(jobs({"prompt": "a cat", "size": "auto"})) == 1


@pytest.mark.parametrize(
    ("body", "param", "words"),
    [
        (b"", None, "not JSON"),
        (b"{", None, "not JSON"),
        (b'{"prompt": "a cat"', None, "not JSON"),
        (b"\xff\xfe", None, "not JSON"),
        (b'{"prompt": "\xff"}', None, "not JSON"),
        (b'{"prompt": "\\ud800"}', None, "not JSON"),
        (b"[" * 10_000, None, "not JSON"),
        (b"[]", None, "no JSON object"),
        (b'"a cat"', None, "no JSON object"),
        (b"null", None, "no JSON object"),
        (b"{}", "prompt", "there is no prompt"),
        ({"prompt": None}, "prompt", "None"),
        ({"prompt": 3}, "prompt", "3"),
        ({"prompt": ["a cat"]}, "prompt", "string"),
        ({"prompt": ""}, "prompt", "at least 1"),
        ({"prompt": " "}, "prompt", "empty or blank"),
        ({"prompt": "\u3000\n\t"}, "prompt", "empty or blank"),
        ({"prompt": "x" * 1001}, "prompt", "1001 characters; at most 1000"),
        ({"prompt": "a", "negative_prompt": "x" * 1001}, "negative_prompt", "1001"),
        ({"prompt": "a", "n": 0}, "n", "greater than or equal to 1"),
        ({"prompt": "a", "n": -1}, "n", "-1"),
        ({"prompt": "a", "n": 11}, "n", "at most 10"),
        ({"prompt": "a", "n": 1.0}, "n", "1.0"),
        ({"prompt": "a", "n": "1"}, "n", "'1'"),
        ({"prompt": "a", "n": True}, "n", "True"),
        ({"prompt": "a", "n": 10**40}, "n", "at most 10"),
        ({"prompt": "a", "n": 10**4200}, "n", "at most 10"),
        (b'{"prompt": "a", "n": %s}' % (b"9" * 6000), None, "out of range"),
        ({"prompt": "a", "num_inference_steps": 10**4200}, "num_inference_steps", "at most 50"),
        ({"prompt": "a", "seed": 10**4200}, "seed", "seed"),
        ({"prompt": "a", "guidance_scale": 10**4200}, "guidance_scale", "guidance_scale"),
        ({"prompt": "a", "size": "9" * 9000}, "size", "WIDTHxHEIGHT"),
        ({"prompt": "a", "model": "x" * 9000}, "model", "this is 'turbo'"),
        ({"prompt": "a", "size": "512"}, "size", "WIDTHxHEIGHT"),
        ({"prompt": "a", "size": "-512x512"}, "size", "WIDTHxHEIGHT"),
        ({"prompt": "a", "size": "0x0"}, "size", "multiples of 64"),
        ({"prompt": "a", "size": "500x512"}, "size", "multiples of 64"),
        ({"prompt": "a", "size": "1024x1024"}, "size", "to 512"),
        ({"prompt": "a", "size": "999999999x512"}, "size", "WIDTHxHEIGHT"),
        ({"prompt": "a", "size": "\uff15\uff11\uff12x512"}, "size", "WIDTHxHEIGHT"),
        ({"prompt": "a", "size": 512}, "size", "string"),
        ({"prompt": "a", "seed": -1}, "seed", "-1"),
        ({"prompt": "a", "seed": 2**63}, "seed", "less than"),
        ({"prompt": "a", "seed": 1.5}, "seed", "1.5"),
        ({"prompt": "a", "num_inference_steps": 0}, "num_inference_steps", "0"),
        ({"prompt": "a", "num_inference_steps": 51}, "num_inference_steps", "at most 50"),
        (b'{"prompt": "a", "guidance_scale": NaN}', "guidance_scale", "finite"),
        (b'{"prompt": "a", "guidance_scale": Infinity}', "guidance_scale", "finite"),
        (b'{"prompt": "a", "guidance_scale": 1e999}', "guidance_scale", "guidance_scale"),
        ({"prompt": "a", "guidance_scale": -1}, "guidance_scale", "-1"),
        ({"prompt": "a", "guidance_scale": "7"}, "guidance_scale", "'7'"),
        ({"prompt": "a", "response_format": "url"}, "response_format", "'url' is not supported"),
        ({"prompt": "a", "quality": "hd"}, "quality", "'hd' is not supported"),
        ({"prompt": "a", "style": "vivid"}, "style", "leave it out"),
        ({"prompt": "a", "stream": True}, "stream", "True is not supported"),
        ({"prompt": "a", "output_format": {"a": []}}, "output_format", "not supported"),
        ({"prompt": "a", "loras": []}, "loras", "unknown field"),
        ({"prompt": "a", "model": "dall-e-3"}, "model", "this is 'turbo'"),
        ({"prompt": "a", "model": 3}, "model", "string"),
    ],
)
def test_what_is_wrong_is_named(body: Any, param: str | None, words: str) -> None:
    error = refused(body)
    assert error.param == param
    assert words in error.message
    assert len(error.message) < 400


def test_another_model_is_not_found() -> None:
    error = refused({"prompt": "a", "model": "dall-e-3"})
    assert (error.status, error.code) == (404, "model_not_found")


@pytest.mark.parametrize("text", ["ein Käfer", "猫", "🐈‍⬛", "a\u202ecat", "a\ncat", "\0", "'; --"])
def test_any_text_is_a_prompt(text: str) -> None:
    [job] = jobs({"prompt": text, "negative_prompt": text})
    assert job.prompt == job.negative_prompt == text


def test_the_embedded_source_names_a_word_that_it_cannot_draw() -> None:
    error = refused({"prompt": "a red cat"}, embedded=True)
    assert error.param == "prompt"
    assert "unknown prompt word 'cat'" in error.message
    assert len(refused({"prompt": "x" * 1000}, embedded=True).message) < 400


def test_a_blank_negative_prompt_is_none_and_a_blank_prompt_is_refused_as_by_the_command() -> None:
    assert len(jobs({"prompt": "a", "negative_prompt": " "})) == 1
    with pytest.raises(SdoptError, match="empty"):
        check_prompt(" ")


def test_no_request_is_larger_than_the_queue() -> None:
    """It would be told to come again for ever."""
    error = refused({"prompt": "a", "n": 5}, limits(max_images=10, max_queue=4))
    assert (error.status, error.param) == (400, "n")
    assert "at most 4 images" in error.message
    assert len(jobs({"prompt": "a", "n": 4}, limits(max_images=10, max_queue=4))) == 4


@pytest.mark.parametrize(
    ("more", "param"),
    [
        ({"size": "256x256"}, "size"),
        ({"num_inference_steps": 10}, "num_inference_steps"),
        ({"guidance_scale": 1}, "guidance_scale"),
    ],
)
def test_no_request_compiles_unless_that_was_allowed(more: dict[str, Any], param: str) -> None:
    body = {"prompt": "a cat", **more}
    error = refused(body)
    assert (error.param, error.code) == (param, "not_warm")
    assert "--cold" in error.message
    assert len(jobs(body, limits(cold=True))) == 1
    assert len(jobs(body, limits(compiles=False))) == 1


def test_the_level_s_own_steps_are_never_too_many() -> None:
    assert len(jobs({"prompt": "a cat"}, limits(max_steps=5))) == 1


@settings(max_examples=200, deadline=None)
@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
        max_leaves=8,
    ),
    st.sampled_from([*requests.ImagesRequest.model_fields, ""]),
)
def test_any_json_is_a_request_or_a_named_error(value: Any, name: str) -> None:
    body = {"prompt": "a cat", name: value} if name else value
    error = None
    try:
        assert jobs(json.dumps(body).encode())
    except ApiError as raised:
        error = raised
    assert error is None or (400 <= error.status < 500 and json.loads(error.body))


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=60))
def test_any_bytes_are_a_request_or_a_named_error(content: bytes) -> None:
    with pytest.raises(ApiError):
        jobs(content)
