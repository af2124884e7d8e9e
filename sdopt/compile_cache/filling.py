"""The process whose compiled code is packed: one image of each level, generated where told to.

    python -m sdopt.compile_cache.filling SOURCE LEVEL...

It compiles into the folders that its environment names (`place.variables`).
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence


def fill(source_name: str, levels: Sequence[str]) -> None:
    """Print the seconds of each level's first image."""
    from sdopt.levels import get_level
    from sdopt.pipelines.pipeline import build, default_device
    from sdopt.pipelines.workload import generate, load_workload
    from sdopt.util.hardware import free_memory
    from sdopt.weights.sources import resolve

    source, device = resolve(source_name), default_device()
    request = load_workload(source).requests[0]
    for level in levels:
        pipeline = build(source, get_level(level), device)
        start = time.perf_counter()
        generate(pipeline, request)
        print(f"  {level}: first image {time.perf_counter() - start:.1f} s", flush=True)
        pipeline.__dict__.clear()
        del pipeline
        free_memory(device)


if __name__ == "__main__":
    fill(sys.argv[1], sys.argv[2:])
