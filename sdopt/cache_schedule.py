"""Which steps of a level with feature caching are full; the others reuse deep features."""

from __future__ import annotations

GUIDED_SHARE, UNGUIDED_SHARE = 0.2, 0.3
"""The largest distance between full steps with guidance and without, as a share of all steps."""


def full_steps(steps: int, guided_steps: int) -> tuple[int, ...]:
    """The indices of the full steps, ascending, of `steps` of which the first are guided.

    While guided, every 0.2 of the way from the first step on: guidance multiplies the errors of
    reused features. After that every 0.3 of the way, counted back from the last step, which is
    always full: its prediction is the picture. 20 steps, 9 of them guided: 0, 4, 8, 13, 19. No two
    are further apart than 0.3 of the steps, rounded, whatever the cutoff.
    """
    guided = [0, *range(0, guided_steps, max(1, round(GUIDED_SHARE * steps)))]
    unguided = range(steps - 1, guided[-1], -max(1, round(UNGUIDED_SHARE * steps)))
    return tuple(sorted({*guided, *unguided}))
