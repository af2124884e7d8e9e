"""`sdopt serve` for real: the embedded model, OpenAI's own client, this repository's weights."""

from __future__ import annotations

import base64
import http.client
import io
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import openai
import pytest
from PIL import Image

import sdopt
from sdopt.pipelines.workload import Request, generate

STAR = "a large red star at the center on a blue background"


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("service") / "log"


@pytest.fixture(scope="module")
def url(log: Path) -> Iterator[str]:
    """Of a service in a process of its own, as a user starts it."""
    given = ("--source", "embedded", "--sizes", "64x64,128x64", "--port", "0", "--max-batch", "2")
    command = (sys.executable, "-m", "sdopt.cli", "serve", *given)
    # One thread each, here and there: else the last bits of a sum may differ.
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with (
        log.open("w") as errors,
        subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=errors, text=True, env=environment
        ) as process,
    ):
        assert process.stdout is not None
        address = process.stdout.readline().split()[2].rstrip(";")
        port = int(address.rpartition(":")[2])
        until = time.monotonic() + 120
        while status(port) != 200:
            assert process.poll() is None
            assert time.monotonic() < until
            time.sleep(0.1)
        yield address
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0


def status(port: int) -> int:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    connection.request("GET", "/healthz/ready")
    answer = connection.getresponse()
    answer.read()
    connection.close()
    return answer.status


@pytest.fixture
def client(url: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as one:
        yield one


def pixels_of(image: openai.types.Image) -> np.ndarray:
    assert image.b64_json is not None
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(image.b64_json))))


def test_openai_s_client_gets_the_pipeline_s_image(client: openai.OpenAI) -> None:
    import torch

    answer = client.images.generate(
        prompt=STAR, model="turbo", size="128x64", n=1, extra_body={"seed": 5}
    )
    assert answer.data is not None
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        pipeline = sdopt.load_pipeline("turbo", source="embedded", device="cpu")
        request = Request(name="star", prompt=STAR, seed=5)
        array = generate(pipeline, request, width=128, height=64)
    finally:
        torch.set_num_threads(threads)
    [image] = pipeline.numpy_to_pil(array)
    assert np.array_equal(pixels_of(answer.data[0]), np.asarray(image))


def example(language: str, words: str, url: str) -> str:
    """The block of the page that holds these words, asking this service."""
    page = (Path(sdopt.__file__).parents[1] / "docs/how-to/serve.md").read_text(encoding="utf-8")
    [found] = [
        block.partition("```")[0]
        for block in page.split(f"```{language}\n")[1:]
        if words in block.partition("```")[0]
    ]
    assert "http://127.0.0.1:8000" in found
    return found.replace("http://127.0.0.1:8000", url)


@pytest.mark.skipif(shutil.which("curl") is None, reason="needs curl")
def test_the_curl_example_of_the_page_works_word_by_word(url: str, tmp_path: Path) -> None:
    subprocess.run(("sh", "-ec", example("sh", "curl", url)), cwd=tmp_path, check=True)
    with Image.open(tmp_path / "star.png") as image:
        assert image.size == (128, 128)


def test_the_python_example_of_the_page_works_word_by_word(url: str, tmp_path: Path) -> None:
    code = example("python", "openai", url)
    subprocess.run((sys.executable, "-c", code), cwd=tmp_path, check=True)
    with Image.open(tmp_path / "star.png") as image:
        assert image.size == (128, 128)


def test_openai_s_client_reads_models_and_errors(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == ["turbo"]
    assert client.models.retrieve("turbo").owned_by == "sdopt"
    with pytest.raises(openai.NotFoundError) as missing:
        client.images.generate(prompt=STAR, model="dall-e-3")
    assert missing.value.code == "model_not_found"
    with pytest.raises(openai.BadRequestError) as unknown:
        client.images.generate(prompt="a red cat")
    assert unknown.value.param == "prompt"
    assert "unknown prompt word 'cat'" in unknown.value.message
    with pytest.raises(openai.BadRequestError, match="'url' is not supported"):
        client.images.generate(prompt=STAR, response_format="url")


def test_a_seed_repeats_an_image_and_the_negative_prompt_counts(client: openai.OpenAI) -> None:
    def image(**fields: object) -> np.ndarray:
        answer = client.images.generate(prompt=STAR, extra_body={"seed": 1, **fields})
        assert answer.data is not None
        return pixels_of(answer.data[0])

    assert np.array_equal(image(), image(negative_prompt=""))
    assert not np.array_equal(image(), image(negative_prompt="a blue background"))
    assert not np.array_equal(image(), image(guidance_scale=2.0))
    assert image(num_inference_steps=3).shape == (64, 64, 3)


def test_a_prompt_of_more_tokens_than_the_model_takes_is_cut_and_stays_out_of_the_log(
    client: openai.OpenAI, log: Path
) -> None:
    prompt = " ".join([STAR] * 12)
    assert client.images.generate(prompt=prompt, extra_body={"seed": 1}).data
    text = log.read_text()
    assert '"event": "request"' in text
    assert "star" not in text
