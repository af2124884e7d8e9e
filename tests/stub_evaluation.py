"""An evaluation whose images are made of nothing: `python stub_evaluation.py OUT COUNT LOG [KILL]`.

As a script it logs every image that it makes, and kills itself before the KILLth.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sdopt.bench.evaluation.crew import Crew
from sdopt.bench.evaluation.evaluate import evaluate
from sdopt.bench.evaluation.places import Folder, Place
from sdopt.bench.evaluation.plan import Evaluation, evaluation_of
from sdopt.bench.evaluation.prompts import Prompts
from sdopt.bench.evaluation.work import Build, Generate
from sdopt.levels import Level, get_level
from sdopt.pipelines.workload import Request
from sdopt.weights.sources import Source

SIDE = 16
SOURCE = Source(name="stub", why="a test", kind="random", size_px=SIDE, guidance_scale=1.0)
PART = 4


def of(count: int, **settings: Any) -> Evaluation:
    """`turbo` against `hoisted` over that many prompts."""
    texts = tuple(f"prompt {index}" for index in range(count))
    given = {"part": PART, "batch": 2, **settings}
    levels = [get_level("turbo")]
    prompts = Prompts(texts=texts, origin="a stub")
    return evaluation_of(SOURCE, prompts, get_level("hoisted"), levels, **given)


def image(level: Level, request: Request) -> NDArray[np.float32]:
    """Of the level and the seed alone: noise, and other noise beside it for another level."""
    noise = np.random.default_rng(request.seed).random((SIDE, SIDE, 3))
    own = np.random.default_rng((request.seed, level.steps, level.feature_cache)).random()
    return np.clip(noise * (0.8 + 0.2 * own), 0, 1).astype(np.float32)


def images(made: Callable[[Level, Request], None] = lambda level, request: None) -> Build:
    """A level's stub; `made` is told of each image before it is there."""

    @contextmanager
    def build(level: Level) -> Iterator[Generate]:
        def generate(requests: Sequence[Request]) -> NDArray[np.float32]:
            for request in requests:
                made(level, request)
            return np.stack([image(level, request) for request in requests])

        yield generate

    return build


def run(
    evaluation: Evaluation, place: Place | Path, build: Build | None = None, **more: Any
) -> Any:
    """In this process, alone."""
    there = Folder(place) if isinstance(place, Path) else place
    given = {"say": lambda line: None, "patience_s": 0.0, **more}
    return evaluate(evaluation, there, Crew(), build=build or images(), **given)


def harm(folder: Path, words: Sequence[str], *names: str) -> None:
    """Put words, and levels of such names, wherever a summary's schema leaves them free."""
    file, text = folder / "summary.json", " ".join(words)
    data = json.loads(file.read_text())
    turbo = data["levels"]["turbo"]
    turbo["worst"][0]["prompt"] = turbo["ranked_by"] = text
    data["run"]["origin"] = data["run"]["torch"] = text
    data["run"]["cards"] = [text]
    data["verdicts"][0].update(level=text, reason=text, outcome=text)
    data["levels"] |= dict.fromkeys((text, *names), turbo)
    file.write_text(json.dumps(data))


def main(out: str, count: str, log: str, kill: str = "0") -> None:
    """See the module."""
    number = 0

    def made(level: Level, request: Request) -> None:
        nonlocal number
        number += 1
        if number == int(kill) and os.environ.get("RANK", "0") == "0":
            os.kill(os.getpid(), signal.SIGKILL)
        with Path(log).open("a") as file:
            file.write(f"{level.name} {request.seed} {os.environ.get('RANK', '0')}\n")

    run(of(int(count), batch=1), Path(out), images(made), patience_s=3.0)


if __name__ == "__main__":
    main(*sys.argv[1:])
