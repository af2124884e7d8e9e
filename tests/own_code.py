"""Compiled code of some tests alone: what the ladder of other tests has compiled stays."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from sdopt.pipelines import shapes


@contextmanager
def own_code() -> Iterator[None]:
    """Nothing is compiled yet in here, and what will be is dropped at the end."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shapes, "_kept", OrderedDict())
        yield
        shapes.forget()
