"""Where the seconds before a first image go: `python -m studies.cold_start LEVEL`."""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import TYPE_CHECKING

from sdopt.errors import SdoptError
from sdopt.levels import LEVELS, Level, get_level
from sdopt.pipelines.workload import generate, load_workload
from sdopt.util.progress import Progress
from sdopt.util.startup import collector_paused
from sdopt.weights.sources import Source, resolve

if TYPE_CHECKING:
    from sdopt.bench.measure import FirstCall
    from sdopt.pipelines.pipeline import LevelPipeline
    from sdopt.pipelines.workload import Request

COMPILING = "_compile.compile_inner"
IN_BACKEND = "OutputGraph.call_user_compiler"
"""Dynamo's own names of its times: of whole compilations, and of what Inductor took of them."""
PROCESS_STATUS = Path("/proc/self/stat")
PACKAGES_NAMED = 6
"""Of all that were imported: those with the most modules."""


@dataclass(frozen=True, kw_only=True)
class Imports:
    """What was imported: modules by package, most first, and how many Python had to compile.

    Compiling costs more than all the rest of an import: Python stores the outcome beside the
    module, unless PYTHONDONTWRITEBYTECODE is set or nothing can be written there.
    """

    modules: dict[str, int]
    compiled: int


@dataclass(frozen=True, kw_only=True)
class Breakdown:
    """Seconds of every part of a process's first image, in order, and of its second.

    `compile_cache` is that of `sdopt.bench.measure.FirstCall`. The processor's time is that of all
    threads: far more than the wall time says that threads spin, less that files were waited for.
    """

    level: str
    source: str
    device: str
    compile_cache: str
    seconds: dict[str, float]
    processor_s: dict[str, float]
    imports: Imports
    second_image_s: float
    second_image_processor_s: float

    @property
    def first_image_s(self) -> float:
        """From the start of the process to its first image."""
        return sum(self.seconds.values())


class Clock:
    """Seconds of laps by name, by the clock on the wall and of the processor."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self.processor_s: dict[str, float] = {}
        self._last = (time.perf_counter(), time.process_time())

    def lap(self, name: str) -> None:
        """What passed since the last lap was for this."""
        now = (time.perf_counter(), time.process_time())
        self.seconds[name], self.processor_s[name] = (
            after - before for after, before in zip(now, self._last, strict=True)
        )
        self._last = now
        print(f"{name}: {self.seconds[name]:.2f} s", file=sys.stderr, flush=True)


def break_down(level: Level, source_name: str | None) -> Breakdown:
    """Generate two images in this process, which should be fresh, and time all that they need.

    Raises UnknownNameError or SourceError for a source that does not exist or cannot be loaded.
    """
    before_s = process_age_s()
    start = time.time() - before_s
    clock = Clock()
    pipeline, request = loaded(level, source_name, clock)
    from sdopt.bench.measure import first_call

    with Progress(sys.stderr).during(f"first image of {level.name}"):
        first = first_call(pipeline, request)
    wall_s, processor_s = second_image(pipeline, request)
    return Breakdown(
        level=level.name,
        source=pipeline.source.name,
        device=str(pipeline.device),
        compile_cache=first.compile_cache,
        seconds={"python": before_s, **clock.seconds, **parts_of(first)},
        processor_s=clock.processor_s,
        imports=imports_since(start),
        second_image_s=wall_s,
        second_image_processor_s=processor_s,
    )


def loaded(level: Level, source_name: str | None, clock: Clock) -> tuple[LevelPipeline, Request]:
    """What `sdopt.load_pipeline` does, in parts."""
    with collector_paused():
        from sdopt.engine.prepare import prepared

        clock.lap("import torch")
        with prepared(level, None):
            clock.lap("begin to prepare")
            import_packages(clock)
            pipeline, request = warm_up(level, resolve(source_name), clock)
        clock.lap("wait until prepared")
    return pipeline, request


def process_age_s() -> float:
    """Since this process began, to 0.01 s; 0 where the system does not say."""
    if not PROCESS_STATUS.exists():
        return 0.0
    after_name = PROCESS_STATUS.read_text(encoding="utf-8").rpartition(")")[2].split()
    started = int(after_name[19]) / os.sysconf("SC_CLK_TCK")
    return time.clock_gettime(time.CLOCK_BOOTTIME) - started


def import_packages(clock: Clock) -> None:
    """Import what an image needs but torch, in parts; diffusers would import all of them."""
    from transformers import CLIPTextModel, CLIPTokenizer  # noqa: F401

    clock.lap("import transformers")
    from diffusers import StableDiffusionPipeline  # noqa: F401

    clock.lap("import diffusers")
    import sdopt.bench.measure
    import sdopt.pipelines.pipeline  # noqa: F401

    clock.lap("import sdopt")


def imports_since(start: float) -> Imports:
    """The modules of this process; `start` is when it began, in seconds since 1970."""
    modules = Counter(name.partition(".")[0] for name in sys.modules)
    specs = [getattr(module, "__spec__", None) for module in list(sys.modules.values())]
    caches = {spec.cached for spec in specs if isinstance(spec, ModuleSpec) and spec.cached}
    compiled = sum(_is_newer(Path(cache), start) for cache in caches)
    return Imports(modules=dict(modules.most_common(PACKAGES_NAMED)), compiled=compiled)


def _is_newer(cache: Path, start: float) -> bool:
    return not cache.exists() or cache.stat().st_mtime >= start


def warm_up(level: Level, source: Source, clock: Clock) -> tuple[LevelPipeline, Request]:
    """What `sdopt.pipelines.pipeline.build` does, in parts."""
    import torch

    from sdopt.pipelines.pipeline import apply_level, default_device, dtype_on, load_weights

    device = default_device()
    torch.zeros(1, device=device)
    clock.lap("device")
    pipeline = load_weights(source, device, dtype_on(device))
    clock.lap("weights")
    if level.compiled:
        import torch._inductor.compile_fx

        clock.lap("import the compiler")
    apply_level(pipeline, source, level, device)
    clock.lap("level")
    return pipeline, load_workload(source, None).requests[0]


def parts_of(first: FirstCall) -> dict[str, float]:
    """Tracing by Dynamo, compiling or loading by Inductor, and the rest of the first image."""
    if first.compile_cache not in ("cold", "warm"):
        return {"first image": first.seconds}
    from torch._dynamo.utils import compilation_time_metrics

    compiling, backend = (sum(compilation_time_metrics[name]) for name in (COMPILING, IN_BACKEND))
    how = "compile" if first.compile_cache == "cold" else "load compiled code"
    return {
        "first image: trace": compiling - backend,
        f"first image: {how}": backend,
        "first image: rest": first.seconds - compiling,
    }


def second_image(pipeline: LevelPipeline, request: Request) -> tuple[float, float]:
    """Wall and processor time of one more image, in seconds."""
    from sdopt.bench.measure.timing import synchronize

    wall, processor = time.perf_counter(), time.process_time()
    generate(pipeline, request)
    synchronize(pipeline.device)
    return time.perf_counter() - wall, time.process_time() - processor


def lines(found: Breakdown) -> list[str]:
    """One line for each part."""
    return [
        f"{found.level}, {found.source}, {found.device}, compile cache: {found.compile_cache}",
        *(line(name, seconds, found.processor_s) for name, seconds in found.seconds.items()),
        f"{found.first_image_s:8.2f} s  from the start to the first image",
        f"{found.second_image_s:8.3f} s  second image, "
        f"{found.second_image_processor_s:.3f} s of processor time",
        "modules: " + ", ".join(f"{n} {name}" for name, n in found.imports.modules.items()),
        f"{found.imports.compiled} modules without stored bytecode, so Python compiled them",
    ]


def line(name: str, seconds: float, processor_s: dict[str, float]) -> str:
    """One part's line, with its processor time where that is known."""
    processor = f" ({processor_s[name]:.2f} s of processor time)" if name in processor_s else ""
    return f"{seconds:8.2f} s  {name}{processor}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the breakdown, and store it if asked to."""
    parser = argparse.ArgumentParser(prog="python -m studies.cold_start")
    parser.add_argument("level", metavar="LEVEL", help=f"one of {', '.join(LEVELS)}")
    parser.add_argument("--source", help="as --sdopt-source of the suite (default: auto)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="store the figures there too")
    options = parser.parse_args(arguments)
    try:
        found = break_down(get_level(options.level), options.source)
    except SdoptError as error:
        parser.error(str(error))
    print("\n".join(lines(found)))
    if options.json:
        from sdopt.util.files import write_whole  # it imports numpy

        write_whole(options.json, (json.dumps(asdict(found), indent=1) + "\n").encode())
    return 0


if __name__ == "__main__":
    sys.exit(main())
