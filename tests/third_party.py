"""Somebody else's project: its own pipeline, conftest.py, prompts and baselines, in a folder."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sdopt.bench.stored.soundness import statistics_of

ROOT = Path(__file__).parents[1]

PIPELINE = '''
"""A pipeline as projects write them: nothing in here knows the suite."""

import os
from pathlib import Path

import torch
from diffusers import EulerDiscreteScheduler, StableDiffusionPipeline

WEIGHTS = Path(__file__).parent / "weights"
FAULT = os.environ.get("FAULT")


class Studio(StableDiffusionPipeline):
    """Their own class, with a line of their own in the call."""

    def __call__(self, *args, **kwargs):
        if FAULT == "another call of the text encoder":
            self.text_encoder(torch.zeros((1, 8), dtype=torch.long))
        if FAULT == "another seed":
            kwargs["generator"] = torch.Generator("cpu").manual_seed(9)
        return super().__call__(*args, **kwargs)


def load():
    torch.set_num_threads(1)
    pipeline = Studio.from_pretrained(
        WEIGHTS, use_safetensors=True, safety_checker=None, requires_safety_checker=False
    )
    pipeline.scheduler = EulerDiscreteScheduler.from_config(pipeline.scheduler.config)
    if FAULT == "another image":
        with torch.no_grad():
            pipeline.vae.decoder.conv_out.bias.add_(0.2)
    if FAULT == "raises":
        raise RuntimeError("no such model")
    if FAULT == "returns nothing":
        return
    return pipeline
'''
CONFTEST = """
import gc
from pathlib import Path

from studio import load

from sdopt.bench.own import Ladder, OwnLevel

pytest_plugins = ("sdopt.bench.plugin",)
gc.freeze()  # this runs a dozen times, and pytest ends with five full collections
HERE = Path(__file__).parent


def pytest_sdopt_ladder():
    careful = OwnLevel(name="careful", why="as it was", steps=4, build=load)
    return Ladder(
        name="studio",
        size_px=64,
        guidance_scale=5.0,
        prompts=HERE / "prompts.jsonl",
        levels=[careful, careful.then("quick", why="a step less", steps=3)],
    )
"""
BENCHMARKS = "from sdopt.bench.plugin.suite import *  # noqa: F403\n"
PROMPTS = [
    {"name": "cat", "prompt": "a cat", "negative_prompt": "a dog", "seed": 1},
    {"name": "dog", "prompt": "a dog", "seed": 2},
]


@dataclass(frozen=True, kw_only=True)
class ThirdParty:
    """The project's folder, and runs of pytest in it, each a process of its own."""

    path: Path

    def write(self) -> None:
        from micro import save_micro_source

        save_micro_source(self.path / "weights")
        (self.path / "studio.py").write_text(PIPELINE)
        (self.path / "conftest.py").write_text(CONFTEST)
        (self.path / "pytest.ini").write_text("[pytest]\npythonpath = .\n")
        (self.path / "prompts.jsonl").write_text("\n".join(map(json.dumps, PROMPTS)))
        (self.path / "benchmarks").mkdir()
        (self.path / "benchmarks" / "test_gate.py").write_text(BENCHMARKS)

    def run(self, options: str, fault: str = "") -> subprocess.CompletedProcess[str]:
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "FAULT": fault}
        for name in ("SDOPT_SOURCE", "PYTEST_XDIST_WORKER", "PYTEST_ADDOPTS"):
            environment.pop(name, None)
        command = (sys.executable, "-m", "pytest", "benchmarks/", *shlex.split(options))
        return subprocess.run(
            command, cwd=self.path, env=environment, capture_output=True, text=True, check=False
        )

    def verdicts(self) -> dict[str, Any]:
        content: dict[str, Any] = json.loads((self.path / "verdicts.json").read_text())
        return content

    def scale_history(self, factor: float) -> None:
        """As if the machine had been that much slower when the run was stored."""
        [run] = self.path.glob("baselines/history/*/studio/*.json")
        data = json.loads(run.read_text())
        for entry in data["benchmarks"]:
            rounds = [factor * seconds for seconds in entry["stats"]["data"]]
            entry["stats"] |= statistics_of(rounds)
        run.write_text(json.dumps(data))

    def failed(self) -> set[str]:
        """'quick: ssim_drift' for each verdict that failed."""
        rows = self.verdicts()["verdicts"]
        return {f"{row['level']}: {row['metric']}" for row in rows if not row["passed"]}
