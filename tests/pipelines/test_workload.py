"""Prompts come from the source or from a checked file, whose first bad line is named."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from sdopt.errors import BrokenFileError
from sdopt.pipelines.workload import (
    EMBEDDED_REQUESTS,
    NAME_PATTERN,
    PHOTO_REQUESTS,
    Request,
    load_workload,
)
from sdopt.weights import sources
from sdopt.weights.sources import Source

EMBEDDED = sources.resolve("embedded")
PHOTOS = Source(name="sd15", why="to test it", folder=Path("sd15"), size_px=512, guidance_scale=7.5)
GOOD = {"name": "cat", "prompt": "a cat", "seed": 3}


def line(**changes: Any) -> str:
    """A good line with changes; None leaves a field out."""
    fields = {**GOOD, **changes}
    return json.dumps({name: value for name, value in fields.items() if value is not None})


def prompts_file(folder: Path, *lines: str) -> Path:
    path = folder / "mine.jsonl"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def error_of(path: Path, source: Source = PHOTOS) -> str:
    """The message that loading the file ends with."""
    before = path.read_bytes() if path.is_file() else None
    with pytest.raises(BrokenFileError) as caught:
        load_workload(source, path)
    assert (path.read_bytes() if path.is_file() else None) == before
    return str(caught.value)


@pytest.mark.parametrize(
    ("source", "requests"), [(EMBEDDED, EMBEDDED_REQUESTS), (PHOTOS, PHOTO_REQUESTS)]
)
def test_a_source_has_built_in_prompts(source: Source, requests: tuple[Request, ...]) -> None:
    workload = load_workload(source)
    assert (workload.baseline_set, workload.requests) == (source.name, requests)


@pytest.mark.parametrize("requests", [EMBEDDED_REQUESTS, PHOTO_REQUESTS])
def test_built_in_prompts_keep_the_rules_of_a_file(requests: tuple[Request, ...]) -> None:
    names = [request.name for request in requests]
    assert len(set(names)) == len(names)
    assert [name for name in names if not NAME_PATTERN.fullmatch(name)] == []


@pytest.mark.parametrize("request_", EMBEDDED_REQUESTS, ids=lambda request: request.name)
def test_built_in_prompts_of_the_miniature_use_its_words(request_: Request) -> None:
    EMBEDDED.check_prompt(f"{request_.prompt} {request_.negative_prompt}")
    assert request_.prompt


def test_a_file_is_a_baseline_set_of_its_own(tmp_path: Path) -> None:
    path = prompts_file(tmp_path, line(), line(name="dog", negative_prompt="blurry", seed=0))
    workload = load_workload(PHOTOS, path)
    assert workload.baseline_set == "sd15--mine"
    assert workload.requests == (
        Request(name="cat", prompt="a cat", seed=3),
        Request(name="dog", prompt="a cat", negative_prompt="blurry", seed=0),
    )


@pytest.mark.parametrize("gap", ["", "   ", "\r"])
def test_empty_lines_are_skipped(gap: str, tmp_path: Path) -> None:
    path = prompts_file(tmp_path, gap, line(), gap, line(name="dog"), gap)
    assert [request.name for request in load_workload(PHOTOS, path).requests] == ["cat", "dog"]


@pytest.mark.parametrize("separator", ["\u2028", "\u2029", "\u0085"])
def test_a_prompt_may_hold_what_python_takes_for_a_line_end(separator: str, tmp_path: Path) -> None:
    prompt = f"a cat{separator}on a mat"
    path = prompts_file(tmp_path, json.dumps({**GOOD, "prompt": prompt}, ensure_ascii=False))
    assert load_workload(PHOTOS, path).requests[0].prompt == prompt


@pytest.mark.parametrize("seed", [0, 1, 2**63 - 1])
def test_every_seed_of_torch_is_taken(seed: int, tmp_path: Path) -> None:
    path = prompts_file(tmp_path, line(seed=seed))
    assert load_workload(PHOTOS, path).requests[0].seed == seed


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        ("{'name': 'cat'}", ["not JSON"]),
        ('{"name": "cat"', ["not JSON"]),
        ('["cat"]', ["not a JSON object", "name, prompt, negative_prompt, seed"]),
        ("3", ["not a JSON object"]),
        (line(size=512), ["unknown fields ['size']", "name, prompt, negative_prompt, seed"]),
        (line(seed=None), ["missing fields ['seed']"]),
        (line(prompt=None, promt="a"), ["unknown fields ['promt']", "missing fields ['prompt']"]),
        (line(prompt=7), ["prompt is 7, not a string"]),
        (line(negative_prompt=["x"]), ["negative_prompt is ['x'], not a string"]),
        ('{"name": null, "prompt": "a", "seed": 1}', ["name is None, not a string"]),
        (line(name="My Cat"), ["name 'My Cat' must match", NAME_PATTERN.pattern, "file name"]),
        (line(name=""), ["name '' must match"]),
        (line(name="../cat"), ["name '../cat' must match"]),
        (line(name="cat\n"), ["name 'cat\\n' must match"]),
        (line(name="a" * 65), ["must match"]),
        (line(seed=-1), ["seed is -1, not an integer from 0 to 2**63 - 1"]),
        (line(seed=2**63), ["not an integer from 0 to 2**63 - 1"]),
        (line(seed=1.5), ["seed is 1.5"]),
        (line(seed="1"), ["seed is '1'"]),
        (line(seed=True), ["seed is True"]),
        (line(name="first"), ["the name 'first' was used before"]),
    ],
)
def test_a_bad_line_is_named_by_file_and_line(bad: str, words: list[str], tmp_path: Path) -> None:
    path = prompts_file(tmp_path, line(name="first"), "", bad)
    message = error_of(path)
    assert message.startswith(f"{path}:3: ")
    assert [word for word in words if word not in message] == []


@pytest.mark.parametrize("field", ["prompt", "negative_prompt"])
def test_a_word_the_miniature_has_never_seen_is_named_by_file_and_line(
    field: str, tmp_path: Path
) -> None:
    good = line(prompt="a red star")
    bad = json.dumps({"name": "dog", "prompt": "a red star", "seed": 1, field: "a green dog"})
    path = prompts_file(tmp_path, good, "", bad)
    message = error_of(path, EMBEDDED)
    assert message.startswith(f"{path}:3: unknown prompt word 'dog'")
    assert "choose from: a, " in message


@pytest.mark.parametrize("content", [b"", b"\n \n\n"])
def test_a_file_without_prompts_is_refused(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "mine.jsonl"
    path.write_bytes(content)
    message = error_of(path)
    assert str(path) in message
    assert "one JSON object a line" in message


def test_a_file_that_is_not_utf_8_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "mine.jsonl"
    path.write_bytes(line(prompt="caf\xe9").encode("utf-16"))
    message = error_of(path)
    assert message.startswith(f"{path}: cannot be read as UTF-8 text")


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "mine.jsonl"
    message = error_of(path)
    assert message.startswith(f"{path} cannot be read: No such file or directory")
    assert "give a file of JSON lines" in message


def test_a_folder_is_no_prompts_file(tmp_path: Path) -> None:
    assert error_of(tmp_path).startswith(f"{tmp_path} cannot be read")
