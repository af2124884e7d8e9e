"""The plans that the study of feature caching compares, their search, and what they would cost."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

from sdopt.levels import even_full_steps, full_steps, guided_steps
from studies.feature_caching.cached_generation import Plan
from studies.miniature_quality.studio import CUTOFF

FULL_MS = {True: 4.6, False: 2.9}
"""One full UNet step of Stable Diffusion 1.5 on an H100 with guidance (batch 2) and without."""
SHALLOW_SHARE = {0: 0.0, 1: 0.10, 2: 0.25, 3: 0.41}
"""Of a full step, by layers recomputed: 0.08, 0.22 and 0.38 of the FLOP, and a little more."""
LAUNCH_MS, FIXED_MS = 0.15, 3.5
"""Of each shallow step beside its share; of an image for text encoder, decoder and host."""


def predicted_ms(plan: Plan) -> float:
    """An image of Stable Diffusion 1.5 on an H100 with this plan, by the figures above."""
    guided, total = guided_steps(CUTOFF, plan.steps), FIXED_MS
    for index in range(plan.steps):
        full_ms = FULL_MS[index < guided]
        if index in plan.full:
            total += full_ms
        elif plan.layers:
            total += SHALLOW_SHARE[plan.layers] * full_ms + LAUNCH_MS
    return total


def families(steps: int = 20) -> dict[str, Plan]:
    """Named plans: evenly spaced ones, and uneven ones with three to six full steps."""
    cutoff, last = guided_steps(CUTOFF, steps), steps - 1
    named = {f"every {n}": tuple(range(0, steps, n)) for n in (2, 3, 4, 5)}
    named |= {
        "quadratic": tuple(max(item, int(steps * (item / 5) ** 2)) for item in range(5)),
        "dense at the start": (0, 1, 2, 3, cutoff),
        "dense at the cutoff": (0, cutoff - 2, cutoff - 1, cutoff, cutoff + 1),
        "dense at the end": (0, last - 7, last - 4, last - 2, last),
        "every 4, last": (*range(0, steps, 4), last),
        "every 5, last": (*range(0, steps, 5), last),
        "every 7, last": (*range(0, last - 3, 7), last),
        "halves, last": (0, cutoff // 2, cutoff, (cutoff + last) // 2, last),
        "start and guided, last": (0, 3, 6, (cutoff + last) // 2 - 1, last),
        "guided only, last": (*range(0, cutoff, 4), last),
        "by the rule": full_steps(steps, cutoff),
    }
    return {name: Plan(full=full, steps=steps) for name, full in named.items()}


def half_families(steps: int = 20) -> dict[str, Plan]:
    """Named plans with half of the steps full: evenly spaced ones, and uneven ones."""
    cutoff, last, count = guided_steps(CUTOFF, steps), steps - 1, steps // 2
    half, guided = count // 2, tuple(range(0, cutoff, 2))
    named = {
        "every 2": tuple(range(0, steps, 2)),
        "even, first to last": even_full_steps(steps, 0.5),
        "odd, first": (0, *range(3, steps, 2)),
        "dense at the start": (*range(half), *spread(half + 2, last, count - half)),
        "dense while guided": (*spread(0, cutoff - 1, 7), *spread(cutoff + 4, last, count - 7)),
        "all guided, last": (*range(cutoff), *spread(cutoff + half, last, count - cutoff)),
        "at the cutoff": (*guided, *spread(cutoff, last, count - len(guided))),
        "dense after the cutoff": (*spread(0, cutoff - 1, 4), *spread(cutoff + 1, last, count - 4)),
        "dense at the end": (
            *spread(0, last - half - 2, count - half),
            *range(steps - half, steps),
        ),
    }
    return {name: Plan(full=full, steps=steps) for name, full in named.items()}


def spread(first: int, last: int, count: int) -> tuple[int, ...]:
    """So many steps, evenly from the first to the last of them; a single one is the last."""
    if count == 1:
        return (last,)
    return tuple(round(first + item * (last - first) / (count - 1)) for item in range(count))


def variants(name: str, plan: Plan) -> Iterator[tuple[str, Plan]]:
    """The plan with other boundaries and with extrapolation."""
    for layers, what in ((2, "2 layers"), (0, "reusing noise")):
        yield f"{name}, {what}", replace(plan, layers=layers)
    for slope in (0.5, 1.0):
        yield f"{name}, slope {slope:g}", replace(plan, slope=slope)


def fewer_steps() -> dict[str, Plan]:
    """The control: no caching, but fewer steps of the solver."""
    return {
        f"{steps} steps, none cached": Plan(full=tuple(range(steps)), steps=steps)
        for steps in (4, 5, 6, 8, 10)
    }


def eliminate(
    full: tuple[int, ...], score: Callable[[tuple[int, ...]], float]
) -> Iterator[tuple[int, ...]]:
    """From these full steps down to the first alone: each time the one that is missed least goes.

    `score` says how good a choice of full steps is. What it said of a step in an earlier round
    bounds what it would say now, as long as fewer full steps are never better; so most are not
    asked again (Minoux's accelerated greedy algorithm, 1978).
    """
    bounds = dict.fromkeys(full[1:], float("inf"))
    while bounds:
        asked: set[int] = set()
        while (gone := max(bounds, key=lambda step: bounds[step])) not in asked:
            bounds[gone] = score(tuple(step for step in full if step != gone))
            asked.add(gone)
        del bounds[gone]
        full = tuple(step for step in full if step != gone)
        yield full
