"""The rules for full steps: the first and the last, and closer together while guided or even."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest

from sdopt.levels import even_full_steps, full_steps


def test_the_schedule_of_twenty_steps() -> None:
    assert full_steps(20, 9) == (0, 4, 8, 13, 19)


@pytest.mark.parametrize("steps", [1, 2, 5, 8, 20, 25, 30, 50, 100])
def test_it_is_a_schedule_for_any_number_of_steps(steps: int) -> None:
    for guided in range(steps + 1):
        full = full_steps(steps, guided)
        assert list(full) == sorted(set(full))
        assert (full[0], full[-1]) == (0, steps - 1)
        apart = [later - earlier for earlier, later in pairwise(full)]
        assert max(apart, default=1) <= max(1, round(0.3 * steps))


@pytest.mark.parametrize("steps", [20, 30, 50])
def test_guided_steps_lie_closer(steps: int) -> None:
    assert len(full_steps(steps, steps)) > len(full_steps(steps, 0))


@pytest.mark.parametrize("steps", [1, 2, 3, 4])
def test_next_to_no_steps_are_all_full(steps: int) -> None:
    assert full_steps(steps, steps) == tuple(range(steps))


def test_half_of_twenty_steps() -> None:
    assert even_full_steps(20, 0.5) == (0, 2, 4, 6, 8, 11, 13, 15, 17, 19)


@pytest.mark.parametrize("share", [0.05, 0.25, 0.5, 0.9, 0.99])
def test_a_share_of_any_number_of_steps_is_spread_evenly(share: float) -> None:
    for steps in range(1, 101):
        full = even_full_steps(steps, share)
        assert list(full) == sorted(set(full))
        assert (full[0], full[-1]) == (0, steps - 1)
        assert len(full) == min(steps, max(2, math.ceil(share * steps)))
        apart = {later - earlier for earlier, later in pairwise(full)}
        assert max(apart, default=1) - min(apart, default=1) <= 1
