"""A generator of a worker that generates nothing: prompts say how it behaves, the source how fast.

`source` is JSON: `ms` of a batch, `size_px`, `compiles`, `fail` (at loading), `log` (a file that
each batch is noted in), `until` (a file without which no batch ends).
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sdopt.errors import SdoptError
from sdopt.service.queueing import Kind
from sdopt.service.settings import Facts, Shape
from sdopt.service.worker import Finish, Pixels, Wanted

MAKER = "fake_generator:load"


def load(level: str, source: str, device: str | None) -> FakeGenerator:
    options = json.loads(source)
    if options.get("fail") == "named":
        raise SdoptError("there are no such weights")
    if options.get("fail") == "exit":
        os._exit(3)
    return FakeGenerator(options, str(device))


class FakeGenerator:
    def __init__(self, options: dict[str, Any], device: str) -> None:
        self.options, self.device = options, device
        size_px = options.get("size_px", 16)
        self.noise = os.urandom(3 * size_px**2) if options.get("noise") else b""
        self.facts = Facts(
            source="fake",
            embedded=False,
            size_px=size_px,
            guidance_scale=7.5,
            steps=20,
            multiple_px=8,
            compiles=options.get("compiles", False),
            device=device,
        )

    def warm(self, shapes: Sequence[Shape], max_batch: int, memory: Pixels) -> float:
        return float(1e3 * max_batch / max(self.options.get("ms", 1), 1))

    def begin(self, kind: Kind, wanted: Sequence[Wanted]) -> Finish:
        begin = time.perf_counter()
        if log := self.options.get("log"):
            note = {"images": len(wanted), "kind": vars(kind), "first": wanted[0].prompt}
            with Path(log).open("a", encoding="utf-8") as file:
                file.write(json.dumps(note) + "\n")
        prompts = [one.prompt for one in wanted]
        if "die" in prompts:
            os._exit(9)
        if "break" in prompts:
            raise RuntimeError("CUDA error: an illegal memory access was encountered")
        if "refused" in prompts:
            raise SdoptError("this cannot be generated")

        def finish() -> Sequence[bool]:
            seconds = 30.0 if "hang" in prompts else self.options.get("ms", 1) / 1e3
            time.sleep(max(begin + seconds - time.perf_counter(), 0))
            while (until := self.options.get("until")) and not Path(until).exists():
                time.sleep(0.01)
            for one in wanted:
                self._fill(one)
            return [prompt != "nan" for prompt in prompts]

        return finish

    def _fill(self, one: Wanted) -> None:
        import numpy as np

        if self.noise:
            one.pixels[:] = np.frombuffer(self.noise, dtype=np.uint8).reshape(one.pixels.shape)
        else:
            one.pixels[:] = one.seed % 256
