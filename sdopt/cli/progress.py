"""Progress with the time left: on stderr, and only where somebody looks at it."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

Advance = Callable[[float], None]
"""Says how much of the whole is done by now."""


@contextmanager
def progress(what: str, total: float | None) -> Iterator[Advance]:
    """A bar with the time left; without a total, which nobody knows, the time so far."""
    if not sys.stderr.isatty():
        yield lambda done: None
        return
    from rich import progress as bars
    from rich.console import Console
    from rich.text import Text

    class Left(bars.TimeElapsedColumn):
        """The time left; as long as nobody can know that, the time so far."""

        def render(self, task: bars.Task) -> Text:
            left = task.time_remaining
            if left is None:
                return super().render(task)
            return Text(f"{timedelta(seconds=int(left))} left", style="progress.remaining")

    columns: list[Any] = [bars.TextColumn("{task.description}", markup=False)]
    if total is None:
        columns += [bars.SpinnerColumn(), bars.TimeElapsedColumn()]
    else:
        columns += [bars.BarColumn(), Left()]
    with bars.Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(what, total=total)
        yield lambda done: bar.update(task, completed=done)


class Steps:
    """Stands for diffusers' own bar, whose steps it hands on."""

    def __init__(self, advance: Advance, before: int) -> None:
        self.advance, self.done = advance, before

    def __call__(self, *_: Any, **__: Any) -> Steps:
        """As `pipeline.progress_bar(total=...)`."""
        return self

    def __enter__(self) -> Steps:
        return self

    def __exit__(self, *_: Any) -> None:
        """Nothing has to be closed."""

    def update(self, steps: int = 1) -> None:
        """So many further steps are done."""
        self.done += steps
        self.advance(self.done)
