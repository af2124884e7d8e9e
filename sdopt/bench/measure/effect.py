"""Proof that a level took effect: what was observed against what its fields promise."""

from __future__ import annotations

from collections.abc import Iterator

from sdopt.bench.measure.gpu_activity import GpuActivity
from sdopt.bench.measure.observation import SHALLOW, Observation
from sdopt.levels import Level

DECODER_CLASSES = {"full-vae": "AutoencoderKL", "tiny-vae": "AutoencoderTiny"}
SCHEDULER_CLASSES = {
    "euler-ancestral": ("EulerAncestralDiscreteScheduler", None, None),
    "dpm-solver++2m": ("DPMSolverMultistepScheduler", "dpmsolver++", 2),
}


def missing_effects(level: Level, seen: Observation, dtype: str) -> tuple[str, ...]:
    """One sentence for each field of the level that did not take effect; empty is the proof.

    `dtype` is what the UNet has to compute in, for example 'float16'.
    """
    return tuple(sentence for proof in PROOFS for sentence in proof(level, seen, dtype))


def _dtype(level: Level, seen: Observation, dtype: str) -> Iterator[str]:
    for part in ("unet", "decoder"):
        found = {call.dtype for call in seen.calls_of(part)}
        if found != {dtype}:
            yield f"dtype: the {part} computed in {sorted(found) or 'nothing'}, not {dtype}"


def _layout(level: Level, seen: Observation, dtype: str) -> Iterator[str]:
    for part, found in seen.channels_last.items():
        if found != level.channels_last:
            yield (
                f"memory format: the {part}'s weights are {'' if found else 'not '}channels-last, "
                f"the level wants channels_last={level.channels_last}"
            )


def _tf32(level: Level, seen: Observation, dtype: str) -> Iterator[str]:
    if set(seen.tf32) != {level.tf32}:
        yield f"TF32: allowed during UNet calls: {set(seen.tf32)}, the level wants {level.tf32}"


def _decoder(level: Level, seen: Observation, dtype: str) -> Iterator[str]:
    wanted = DECODER_CLASSES[level.decoder]
    if seen.decoder_class != wanted:
        yield f"decoder: it is {seen.decoder_class}, the level wants {wanted}"
    if len(seen.calls_of("decoder")) != 1:
        yield f"decoder: it was called {len(seen.calls_of('decoder'))} times, not once"


def _scheduler(level: Level, seen: Observation, dtype: str) -> Iterator[str]:
    wanted = SCHEDULER_CLASSES[level.scheduler]
    found = (seen.scheduler_class, seen.scheduler_algorithm, seen.scheduler_order)
    if found != wanted:
        yield f"scheduler: it is {_solver(*found)}, the level wants {_solver(*wanted)}"
    if seen.scheduler_steps != level.steps:
        yield f"steps: the scheduler made {seen.scheduler_steps}, the level wants {level.steps}"


def _evaluations(level: Level, seen: Observation, dtype: str) -> Iterator[str]:
    if seen.unet_batches != level.unet_batches():
        yield (
            f"UNet evaluations: batch sizes {_runs(seen.unet_batches)}, "
            f"the level wants {_runs(level.unet_batches())}"
        )
    # Another number of calls is named already.
    if len(seen.unet_batches) == level.steps and seen.full_steps != level.full_steps():
        yield (
            f"UNet evaluations: steps {_listed(seen.full_steps)} were full ones, the level wants "
            f"{_listed(level.full_steps())}"
        )


def _engine(level: Level, seen: Observation, dtype: str) -> Iterator[str]:
    """The picture was drawn by the engine, on a GPU as one graph, over its own kernels."""
    if seen.by_engine != level.whole_graph:
        yield f"engine: it drew the picture: {seen.by_engine}, the level wants {level.whole_graph}"
    for part in ("text_encoder", "unet", SHALLOW, "decoder"):
        calls = seen.calls_of(part)
        fused = sum(call.fused > 0 for call in calls)
        wanted = len(calls) if level.fused else 0
        if fused != wanted:
            yield (
                f"fused: the engine's forward pass ran in {fused} of {len(calls)} {part} calls, "
                f"the level wants {wanted}"
            )
    yield from _computed(level, seen)
    if seen.gpu is not None:
        yield from _engine_on_gpu(level, seen.gpu)


def _computed(level: Level, seen: Observation) -> Iterator[str]:
    """What the engine's UNet counted itself, whatever its calls were given."""
    once = (1 if level.hoisted else len(seen.unet_batches)) if level.fused else 0
    counts = {
        "hoisted: keys and values of the prompts were": (seen.contexts, once),
        "hoisted: time embeddings were": (seen.embeddings, once),
        "fused: the whole UNet was": (seen.wholes, len(level.full_steps()) if level.fused else 0),
    }
    for what, (found, wanted) in counts.items():
        if found != wanted:
            yield f"{what} computed {found} times, the level wants {wanted}"


def _engine_on_gpu(level: Level, gpu: GpuActivity) -> Iterator[str]:
    if level.whole_graph and gpu.graph_launches != 1:
        yield f"engine: {gpu.graph_launches} CUDA graphs were launched, the level wants one"
    if level.whole_graph and bool(gpu.fused_kernels) != level.compiled:
        yield f"compile: {gpu.fused_kernels} Inductor kernels ran, compiled={level.compiled}"
    if bool(gpu.own_kernels) != level.fused:
        yield f"fused: {gpu.own_kernels} kernels of the engine ran, the level wants {level.fused}"


def _compiled(level: Level, seen: Observation, dtype: str) -> Iterator[str]:
    yield from _replayed(level, seen)
    for part in ("unet", "decoder"):
        calls = seen.calls_of(part)
        compiled = sum(call.graphs > 0 for call in calls)
        wanted = len(calls) if level.compiled else 0
        if compiled != wanted:
            yield (
                f"compile: Inductor code ran in {compiled} of {len(calls)} {part} calls, "
                f"the level wants {wanted}"
            )


def _replayed(level: Level, seen: Observation) -> Iterator[str]:
    """On CUDA: kernels that Inductor generated really ran, replayed by one graph per call."""
    if seen.gpu is None or level.whole_graph:
        return
    for part in ("unet", "decoder"):
        calls = [call for call in seen.gpu.calls if call.part == part]
        fused = sum(call.fused_kernels > 0 for call in calls)
        replayed = sum(call.graph_launches == 1 for call in calls)
        wanted = len(calls) if level.compiled else 0
        for what, found in (("Inductor kernels", fused), ("one CUDA graph", replayed)):
            if found != wanted:
                yield (
                    f"compile: {what} ran in {found} of {len(calls)} {part} calls on the GPU, "
                    f"the level wants {wanted}"
                )


def _solver(name: str, algorithm: str | None, order: int | None) -> str:
    """For example 'DPMSolverMultistepScheduler (dpmsolver++, order 2)'."""
    return name if algorithm is None else f"{name} ({algorithm}, order {order})"


def _listed(steps: tuple[int, ...]) -> str:
    return ", ".join(map(str, steps)) or "none"


def _runs(batches: tuple[int, ...]) -> str:
    """For example '9 x 2 + 11 x 1' for nine calls of batch 2, then eleven of batch 1."""
    runs: list[list[int]] = []
    for batch in batches:
        if runs and runs[-1][1] == batch:
            runs[-1][0] += 1
        else:
            runs.append([1, batch])
    return " + ".join(f"{count} x {batch}" for count, batch in runs) or "none"


PROOFS = (_dtype, _layout, _tf32, _decoder, _scheduler, _evaluations, _engine, _compiled)
