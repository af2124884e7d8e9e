"""Faults of time and memory that a pipeline carries until they are taken out again.

`loop:0.03`, `decoder:0.03` and `host:0.03` make a picture 3 % longer, in the denoising loop (spread
over its UNet calls), in the decoder or on the host. On a GPU the first two keep the device busy,
since a waiting host would hide behind it. `memory:0.01` holds 1 % of the picture's peak meanwhile,
`leak:64` lets 64 MiB of each picture stay.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from sdopt.errors import UnknownNameError

if TYPE_CHECKING:
    import torch

    from sdopt.pipeline import LevelPipeline

    Undo = Callable[[], None]

MIB = 2**20
CALIBRATION_CYCLES = 10_000_000
MEMORY_PLACES = ("memory", "leak")
"""Faults that take memory of a CUDA device instead of time."""


def inject(pipeline: LevelPipeline, fault: str, picture_ms: float) -> Undo:
    """Put the fault into the pipeline, whose pictures take `picture_ms`; the result undoes it.

    Raises UnknownNameError for a fault that does not exist.
    """
    place, _, size = fault.partition(":")
    if place not in FAULTS:
        raise UnknownNameError("fault", place, FAULTS)
    return FAULTS[place](pipeline, float(size), picture_ms)


def _in_loop(pipeline: LevelPipeline, size: float, picture_ms: float) -> Undo:
    each_ms = size * picture_ms / pipeline.level.steps
    return _after(pipeline.unet, "forward", _waiting(pipeline.device, each_ms))


def _in_decoder(pipeline: LevelPipeline, size: float, picture_ms: float) -> Undo:
    return _after(pipeline.vae.decoder, "forward", _waiting(pipeline.device, size * picture_ms))


def _on_host(pipeline: LevelPipeline, size: float, picture_ms: float) -> Undo:
    return _after(pipeline, "encode_prompt", lambda: _spin(size * picture_ms))


def _held(pipeline: LevelPipeline, size: float, picture_ms: float) -> Undo:
    """Memory that the text encoder's end takes and the decoder's end gives back.

    A share of the peak since that was last reset.
    """
    import torch

    held: list[torch.Tensor] = []
    amount = int(size * torch.cuda.max_memory_allocated(pipeline.device))

    def take() -> None:
        held.append(torch.empty(amount, dtype=torch.uint8, device=pipeline.device))

    undo = (
        _after(pipeline, "encode_prompt", take),
        _after(pipeline.vae.decoder, "forward", held.clear),
    )

    def give_back() -> None:
        for one in undo:
            one()
        held.clear()

    return give_back


def _leaked(pipeline: LevelPipeline, size: float, picture_ms: float) -> Undo:
    import torch

    kept: list[torch.Tensor] = []

    def keep() -> None:
        kept.append(torch.empty(int(size * MIB), dtype=torch.uint8, device=pipeline.device))

    undo = _after(pipeline, "encode_prompt", keep)

    def forget() -> None:
        undo()
        kept.clear()

    return forget


FAULTS: dict[str, Callable[[LevelPipeline, float, float], Undo]] = {
    "loop": _in_loop,
    "decoder": _in_decoder,
    "host": _on_host,
    "memory": _held,
    "leak": _leaked,
}


def _after(owner: Any, method: str, action: Callable[[], None]) -> Undo:
    """Act after each call of the method; the result restores it."""
    own, original = method in vars(owner), getattr(owner, method)

    def followed(*args: Any, **kwargs: Any) -> Any:
        result = original(*args, **kwargs)
        action()
        return result

    object.__setattr__(owner, method, followed)

    def undo() -> None:
        if own:
            object.__setattr__(owner, method, original)
        else:
            object.__delattr__(owner, method)

    return undo


def _waiting(device: torch.device, milliseconds: float) -> Callable[[], None]:
    """Something that keeps the device busy for that long."""
    if device.type != "cuda":
        return lambda: _spin(milliseconds)
    import torch

    cycles = int(milliseconds * _cycles_per_ms(device))
    return lambda: torch.cuda._sleep(cycles)  # type: ignore[no-untyped-call]


def _cycles_per_ms(device: torch.device) -> float:
    import torch

    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
    torch.cuda._sleep(CALIBRATION_CYCLES)  # type: ignore[no-untyped-call]
    begin.record()
    torch.cuda._sleep(CALIBRATION_CYCLES)  # type: ignore[no-untyped-call]
    end.record()
    end.synchronize()
    return CALIBRATION_CYCLES / float(begin.elapsed_time(end))


def _spin(milliseconds: float) -> None:
    """Keep the host busy for that long; to sleep would give the core away."""
    until = time.perf_counter() + milliseconds / 1e3
    while time.perf_counter() < until:
        pass
