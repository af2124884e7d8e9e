"""Compiled code of some tests alone: what the ladder of other tests has compiled stays."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from types import FunctionType

import diffusers
import pytest

from sdopt.pipelines import shapes


def of_library(kind: type) -> None:
    """Let a class of a test pass for one of a library.

    In the files of diffusers, since Dynamo traces nothing of those of PyTorch.
    """
    kind.__module__ = "diffusers.of_these_tests"
    for function in vars(kind).values():
        if isinstance(function, FunctionType):
            function.__module__ = kind.__module__
            function.__code__ = function.__code__.replace(co_filename=diffusers.__file__)


@contextmanager
def own_code() -> Iterator[None]:
    """Nothing is compiled yet in here, and what will be is dropped at the end."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shapes, "_kept", OrderedDict())
        yield
        shapes.forget()
