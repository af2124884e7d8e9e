"""The program that generates and measures in one revision; `process` beside it runs it.

    worker.py TREE SOURCE PROMPTS

It is always the head's file, so that both revisions are measured by the same code, while the
package `sdopt` that it imports is that of TREE; of that it uses only what `Station` names. It
answers each JSON line on stdin with one on stdout, {"error": ...} if it cannot, and ends with
stdin.
"""

from __future__ import annotations

import gc
import json
import os
import sys
import time
import traceback
from dataclasses import asdict
from importlib import import_module
from pathlib import Path
from typing import IO, Any

WARMUP_IMAGES = 2
MIB = 2**20


class Station:
    """One revision's package, and at most one of its pipelines; each method is a command."""

    def __init__(self, tree: Path, source: str, prompts: Path | None) -> None:
        self.tree = tree
        self.source_name = source
        self.prompts = prompts
        self.pipeline: Any = None
        self.undo: Any = None

    def hello(self) -> dict[str, Any]:
        """Import the package; its levels and the device that it would generate on."""
        check_origin(self.tree)
        from sdopt.levels import LEVELS

        self.device = part("pipelines.pipeline").default_device()
        self.source = part("weights.sources").resolve(self.source_name)
        workload = part("pipelines.workload").load_workload(self.source, self.prompts)
        self.request = workload.requests[0]
        return {"levels": list(LEVELS), "device": self.device.type}

    def load(self, level: str) -> dict[str, Any]:
        """Build the level and warm it up; its definition and the seconds of its first image."""
        from sdopt.levels import LEVELS

        if level not in LEVELS:
            raise ValueError(f"unknown level {level!r}; choose from: {', '.join(LEVELS)}")
        self.pipeline = part("pipelines.pipeline").build(self.source, LEVELS[level], self.device)
        first_ms, *_ = [self._image_ms() for _ in range(WARMUP_IMAGES)]
        return {"level": LEVELS[level].as_dict(), "first_call_s": first_ms / 1e3}

    def identity(self) -> dict[str, Any]:
        """For the self-test: what the numbers are of."""
        place = part("util.hardware")
        hardware = place.hardware_of(self.device)
        return {
            "hardware": str(hardware),
            "hardware_key": hardware.key,
            "source": self.source.name,
            "environment": place.versions(),
        }

    def rounds(self, count: int) -> dict[str, Any]:
        """Wall times of whole images."""
        return {"ms": [self._image_ms() for _ in range(count)]}

    def inject(self, fault: str, image_ms: float | None = None) -> dict[str, Any]:
        """For the self-test: take the last fault out, and put this one in; 'none' is none.

        Its size is a share of `image_ms`, which is measured here if it is not given.
        """
        if self.undo is not None:
            self.undo()
            self.undo = None
        if fault != "none":
            whole_ms = image_ms or sorted(self._image_ms() for _ in range(3))[1]
            self.undo = part("bench.ab.slowdowns").inject(self.pipeline, fault, whole_ms)
        return {}

    def memory(self) -> dict[str, Any]:
        """The peak of one image, or null where there is no such figure."""
        if self.device.type != "cuda":
            return {"peak_allocated_mib": None}
        import torch

        torch.cuda.synchronize(self.device)
        torch.cuda.reset_peak_memory_stats(self.device)
        self._image_ms()
        return {"peak_allocated_mib": torch.cuda.max_memory_allocated(self.device) / MIB}

    def work(self) -> dict[str, Any]:
        """The counts of one image."""
        measure = part("bench.measure")
        seen = measure.observe(self.pipeline, self.request)
        return {"work": asdict(measure.work_of(self.pipeline, seen))}

    def free(self) -> dict[str, Any]:
        """Give the pipeline's memory back; no other one is in this process."""
        import torch

        self.pipeline.__dict__.clear()
        self.pipeline = None
        gc.collect()
        if self.device.type == "cuda":
            torch._C._cuda_clearCublasWorkspaces()
            torch.cuda.empty_cache()
        return {}

    def _image_ms(self) -> float:
        generate = part("pipelines.workload").generate
        self._synchronize()
        start = time.perf_counter()
        generate(self.pipeline, self.request)
        self._synchronize()
        return 1e3 * (time.perf_counter() - start)

    def _synchronize(self) -> None:
        if self.device.type == "cuda":
            import torch

            torch.cuda.synchronize(self.device)


BEFORE = {
    "pipelines.pipeline": "pipeline",
    "pipelines.workload": "workload",
    "weights.sources": "sources",
    "util.hardware": "baselines",
    "bench.ab.slowdowns": "ab.slowdowns",
    "bench.measure": "measure",
}
"""Where revisions before the move into three rooms have these modules."""


def part(name: str) -> Any:
    """A module of the tree's package, wherever its revision has it.

    The tree's files decide: an editable installation would find what they lack elsewhere.
    """
    import sdopt

    place = Path(sdopt.__file__ or "nowhere").parent / name.replace(".", "/")
    is_there = place.is_dir() or place.with_suffix(".py").is_file()
    return import_module(f"sdopt.{name if is_there else BEFORE[name]}")


COMMANDS = ("hello", "load", "identity", "rounds", "inject", "memory", "work", "free")


def check_origin(tree: Path) -> None:
    """Import `sdopt` and refuse any but the tree's: an installed one may stand in its way."""
    import sdopt

    found = Path(sdopt.__file__ or "nowhere").resolve()
    if found != tree.resolve() / "sdopt" / "__init__.py":
        raise ImportError(f"sdopt was imported from {found}, not from {tree}, which may hold none")


def serve(station: Station, commands: IO[str], answers: IO[str]) -> None:
    """Answer each line until 'quit' or the end."""
    for line in commands:
        command = json.loads(line)
        do = command.pop("do")
        answer = {} if do == "quit" else perform(station, do, command)
        answers.write(json.dumps(answer) + "\n")
        answers.flush()
        if do == "quit":
            return


def perform(station: Station, do: str, arguments: dict[str, Any]) -> dict[str, Any]:
    """The command's answer; the traceback of one that fails goes to stderr."""
    try:
        if do not in COMMANDS:
            raise ValueError(f"unknown command {do!r}; choose from: {', '.join(COMMANDS)}, quit")
        answer: dict[str, Any] = getattr(station, do)(**arguments)
    except Exception as error:
        traceback.print_exc()
        return {"error": f"{type(error).__name__}: {error}"}
    return answer


def own_streams() -> tuple[IO[str], IO[str]]:
    """Stdin and stdout for the protocol alone: prints go to stderr, readers find nothing."""
    commands = os.fdopen(os.dup(0), "r", encoding="utf-8")
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    os.dup2(2, 1)
    return commands, answers


def main(arguments: list[str]) -> None:
    """Serve one coordinator."""
    tree, source, prompts = arguments
    beside = str(Path(__file__).resolve().parent)
    # Python puts a script's own folder first; its files are no modules to be found by name.
    sys.path[:] = [entry for entry in sys.path if os.path.realpath(entry or ".") != beside]
    commands, answers = own_streams()
    with commands, answers:
        station = Station(Path(tree), source, Path(prompts) if prompts else None)
        serve(station, commands, answers)


if __name__ == "__main__":
    main(sys.argv[1:])
