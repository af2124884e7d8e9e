"""What a fault is, and a pipeline with one inside."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from sdopt.pipelines.pipeline import LevelPipeline

    Image = NDArray[np.float32]
    Inject = Callable[[LevelPipeline], AbstractContextManager[Any]]


@dataclass(frozen=True, kw_only=True)
class Fault:
    """One fault. `caught_by` is the metric whose verdict has to fail, `says` a word of its reason.

    A control has no `caught_by`: nothing may fail. `and_by` are others that have to fail too,
    and then one of them all `says` that. `or_by` is a count of work that catches it where
    images cannot: in float16 two GPUs differ by more than a step less does. `inject` is entered
    around the images that are made with what it gives.
    """

    group: str
    name: str
    inject: Inject
    caught_by: str | None
    says: str = ""
    or_by: str | None = None
    and_by: tuple[str, ...] = ()

    @property
    def id(self) -> str:
        """How the self-test's table and pytest call it."""
        return f"{self.group}: {self.name}"


@dataclass(frozen=True, kw_only=True)
class Finding:
    """What came of one fault: the failed verdicts as text, and whether the right one is there."""

    id: str
    caught: bool
    expected: str
    seen: str


class Faulty:
    """A pipeline whose arguments or images are changed on the way; all else is the original's."""

    def __init__(
        self,
        pipeline: LevelPipeline,
        *,
        arguments: Mapping[str, Any] | None = None,
        change: Callable[[Image], Image] | None = None,
    ) -> None:
        self.original = pipeline
        self.arguments = dict(arguments or {})
        self.change = change

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Generate with the changed arguments, then change the images."""
        output = self.original(*args, **{**kwargs, **self.arguments})
        if self.change is not None:
            output.images = [self.change(image) for image in output.images]
        return output

    def __getattr__(self, name: str) -> Any:
        return getattr(self.original, name)
