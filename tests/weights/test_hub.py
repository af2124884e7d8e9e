"""Weights of the hub: downloaded once, pinned, read from the cache, refused with what to do."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hub_server import FakeHub, serving

from sdopt.levels import FINAL
from sdopt.pipelines.pipeline import build
from sdopt.pipelines.workload import Request, generate
from sdopt.weights.hub import PINNED, PIPELINE_FILES, STABLE_DIFFUSION_15, TAESD, parse
from sdopt.weights.sources import resolve

REPO = "someone/model"
NO_WAITING = "import time; time.sleep = lambda seconds: None; "
"""The hub's client asks five times where nobody answers, and waits 23 s in between."""
OLD, NEW = "a" * 40, "b" * 40
SHOW = (
    "import sys, sdopt.weights.sources as s; x = s.resolve(sys.argv[1]); "
    "print(x.name, x.folder, x.why)"
)


@dataclass(kw_only=True)
class Client:
    """Fresh processes with a hub cache of their own."""

    endpoint: str
    home: Path

    def run(self, *arguments: str, code: str = SHOW) -> subprocess.CompletedProcess[str]:
        environment = {
            **{k: v for k, v in os.environ.items() if not k.startswith(("HF_", "SDOPT_"))},
            "HF_ENDPOINT": self.endpoint,
            "HF_HOME": str(self.home),
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
            "HF_HUB_DISABLE_XET": "1",
        }
        command = (sys.executable, "-c", code, *arguments)
        return subprocess.run(command, capture_output=True, text=True, env=environment)

    def resolve(self, name: str) -> str:
        done = self.run(name)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def refusal(self, name: str, code: str = SHOW) -> str:
        """The last line of a run that fails."""
        done = self.run(name, code=code)
        assert done.returncode == 1, done.stdout
        return done.stderr.strip().splitlines()[-1]


@pytest.fixture
def hub() -> Iterator[FakeHub]:
    with serving() as fake:
        yield fake


@pytest.fixture
def client(hub: FakeHub, tmp_path: Path) -> Client:
    return Client(endpoint=hub.url, home=tmp_path / "hf")


def copied(micro: Path, folder: Path) -> Path:
    shutil.copytree(micro, folder)
    return folder


def test_names_are_pinned_where_a_pin_is_known() -> None:
    assert parse(STABLE_DIFFUSION_15.repo_id) == STABLE_DIFFUSION_15
    assert parse("a/b").revision == "main"
    assert parse("a/b@refs/pr/1").revision == "refs/pr/1"
    assert [len(repository.revision) for repository in PINNED.values()] == [40, 40]


def test_a_repository_is_downloaded_once(hub: FakeHub, client: Client, micro: Path) -> None:
    hub.add(REPO, micro, NEW)
    first = client.resolve(REPO)
    assert first.startswith(f"someone--model--{NEW[:7]} ")
    assert f"the repository {REPO}@main" in first
    assert len(hub.fetched()) == len([path for path in micro.rglob("*") if path.is_file()])
    hub.log.clear()
    assert client.resolve(REPO) == first
    assert hub.fetched() == []


def test_only_what_a_pipeline_needs_is_downloaded(
    hub: FakeHub, client: Client, micro: Path, tmp_path: Path
) -> None:
    folder = copied(micro, tmp_path / "more")
    for name in ("big.ckpt", "unet/diffusion_pytorch_model.fp16.safetensors", "README.md"):
        (folder / name).write_bytes(b"x")
    hub.add(REPO, folder, NEW)
    client.resolve(REPO)
    assert [name for name in hub.fetched() if name.endswith((".ckpt", "fp16.safetensors"))] == []


def test_a_revision_is_that_commit_whatever_main_is(
    hub: FakeHub, client: Client, micro: Path, tmp_path: Path
) -> None:
    old = copied(micro, tmp_path / "old")
    config = old / "unet" / "config.json"
    config.write_text(config.read_text().replace('"sample_size": 8', '"sample_size": 16'))
    hub.add(REPO, old, OLD, branch="v1")
    hub.add(REPO, micro, NEW)
    code = SHOW.replace("x.folder, x.why", "x.size_px")
    found = [client.run(f"{REPO}@{rev}", code=code).stdout for rev in (OLD, "v1", "main", NEW)]
    of_old, of_new = f"someone--model--{OLD[:7]} 128\n", f"someone--model--{NEW[:7]} 64\n"
    assert found == [of_old, of_old, of_new, of_new]


def test_the_default_model_is_taken_at_its_pinned_commit(
    hub: FakeHub, client: Client, micro: Path
) -> None:
    hub.add(STABLE_DIFFUSION_15.repo_id, micro, STABLE_DIFFUSION_15.revision, branch="other")
    client.resolve(STABLE_DIFFUSION_15.repo_id)
    asked = [path for _, path in hub.log if STABLE_DIFFUSION_15.repo_id in path]
    assert asked
    assert all(STABLE_DIFFUSION_15.revision in path for path in asked)


@pytest.mark.parametrize(
    "missing", [name for name in PIPELINE_FILES if name.startswith(("unet/", "vae/"))]
)
def test_a_repository_without_a_file_names_it(
    missing: str, hub: FakeHub, client: Client, micro: Path, tmp_path: Path
) -> None:
    folder = copied(micro, tmp_path / "part")
    (folder / missing).unlink()
    hub.add(REPO, folder, NEW)
    assert missing in client.refusal(REPO)


def test_a_download_that_breaks_off_says_so_and_goes_on_next_time(
    hub: FakeHub, client: Client, micro: Path
) -> None:
    hub.add(REPO, micro, NEW)
    hub.cut_short.add("diffusion_pytorch_model.safetensors")
    refusal = client.refusal(REPO)
    assert f"{REPO}@main could not be downloaded" in refusal
    assert "run it again" in refusal
    hub.cut_short.clear()
    hub.log.clear()
    client.resolve(REPO)
    assert [Path(path).suffix for path in hub.fetched()] == [".safetensors"] * len(hub.fetched())


def test_a_corrupt_file_of_the_cache_is_named(hub: FakeHub, client: Client, micro: Path) -> None:
    hub.add(REPO, micro, NEW)
    folder = Path(client.resolve(REPO).split()[1])
    weights = folder / "unet" / "diffusion_pytorch_model.safetensors"
    real = weights.resolve()
    real.write_bytes(b"\xff" * real.stat().st_size)
    code = "import sys, sdopt; sdopt.load_pipeline('baseline', source=sys.argv[1], device='cpu')"
    done = client.run(REPO, code=code)
    assert done.returncode == 1
    last = done.stderr.strip().splitlines()[-1]
    assert "SourceError" in last
    assert str(folder) in last
    assert "delete it and download it again" in last


def test_without_a_network_the_cache_is_enough(hub: FakeHub, client: Client, micro: Path) -> None:
    hub.add(REPO, micro, NEW)
    first = client.resolve(REPO)
    cut_off = replace(client, endpoint="http://127.0.0.1:9")
    assert cut_off.resolve(REPO) == first


@pytest.mark.parametrize("name", [REPO, STABLE_DIFFUSION_15.repo_id])
def test_without_network_and_cache_it_says_what_to_do(name: str, client: Client) -> None:
    cut_off = replace(client, endpoint="http://127.0.0.1:9")
    refusal = cut_off.refusal(name, code=NO_WAITING + SHOW)
    for words in (name, "cannot be reached", "HF_ENDPOINT", "copy the cache"):
        assert words in refusal


def test_a_file_without_a_folder_of_its_own_says_what_the_hub_is_asked_for(
    client: Client, micro: Path, tmp_path: Path
) -> None:
    path = tmp_path / "v1.safetensors"
    shutil.copy(micro / "vae" / "diffusion_pytorch_model.safetensors", path)
    cut_off = replace(client, endpoint="http://127.0.0.1:9")
    refusal = cut_off.refusal(str(path), code=NO_WAITING + SHOW)
    for words in (str(path), "holds weights alone", "configuration and tokenizer", "HF_ENDPOINT"):
        assert words in refusal


def test_a_gated_repository_says_where_to_accept_its_terms(hub: FakeHub, client: Client) -> None:
    hub.gated.add(REPO)
    refusal = client.refusal(REPO)
    for words in (f"{REPO}@main is gated", f"{hub.url}/{REPO}", "hf auth login", "HF_TOKEN"):
        assert words in refusal


def test_an_unknown_repository_and_revision_are_named(
    hub: FakeHub, client: Client, micro: Path
) -> None:
    assert f"the hub has no repository {REPO!r}" in client.refusal(REPO)
    hub.add(REPO, micro, NEW)
    assert f"{REPO} has no revision 'v9'" in client.refusal(f"{REPO}@v9")


AUTO = (
    "import torch, sdopt.weights.sources as s; torch.cuda.is_available = lambda: True; "
    "x = s.resolve('auto'); print(x.name, '|', x.why)"
)


def test_auto_takes_real_weights_from_the_cache_and_never_downloads(
    hub: FakeHub, client: Client, micro: Path
) -> None:
    hub.add(STABLE_DIFFUSION_15.repo_id, micro, STABLE_DIFFUSION_15.revision)
    hub.add(TAESD.repo_id, micro / "tiny_vae", TAESD.revision)
    assert client.run(code=AUTO).stdout.startswith("sd15-random |")
    assert hub.log == []
    client.resolve(STABLE_DIFFUSION_15.repo_id)
    assert client.run(code=AUTO).stdout.startswith("sd15-random |")  # still no Tiny VAE
    fetch = (
        f"import sdopt.weights.hub as h; h.snapshot(h.TAESD, {('config.json', '*.safetensors')!r})"
    )
    assert client.run(code=fetch).returncode == 0
    hub.log.clear()
    found = client.run(code=AUTO).stdout
    assert found.startswith(
        "stable-diffusion-v1-5--stable-diffusion-v1-5--451f4fe | auto: it is in"
    )
    assert hub.log == []


DRAW = """
import sys, numpy, torch
from dataclasses import replace
from sdopt.levels import FINAL
from sdopt.pipelines.pipeline import build
from sdopt.weights.sources import resolve
from sdopt.pipelines.workload import Request, generate
source = resolve(sys.argv[1])
print(source.tiny_vae_folder)
level = replace(FINAL, compiled=False, steps=2)
request = Request(name="cat", prompt="a cat", seed=1)
numpy.save(sys.argv[2], generate(build(source, level, torch.device("cpu")), request))
"""


def test_an_image_from_the_hub_is_that_of_the_folder(
    hub: FakeHub, client: Client, micro: Path, tmp_path: Path
) -> None:
    without_tiny = copied(micro, tmp_path / "model")
    shutil.rmtree(without_tiny / "tiny_vae")
    hub.add(REPO, without_tiny, NEW)
    hub.add(TAESD.repo_id, micro / "tiny_vae", TAESD.revision)
    done = client.run(REPO, str(tmp_path / "image.npy"), code=DRAW)
    assert done.returncode == 0, done.stderr
    assert TAESD.revision in done.stdout
    level, request = (
        replace(FINAL, compiled=False, steps=2),
        Request(name="c", prompt="a cat", seed=1),
    )
    expected = generate(build(resolve(str(micro)), level, torch.device("cpu")), request)
    assert np.allclose(np.load(tmp_path / "image.npy"), expected, atol=1e-4)
