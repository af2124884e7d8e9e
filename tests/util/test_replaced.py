"""An attribute is replaced for a while, on objects, modules, pipelines and classes."""

from __future__ import annotations

import math
from contextlib import suppress
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from sdopt.util.replaced import replaced


class Base:
    """Something with a method to inherit."""

    def method(self) -> str:
        return "own"


class Heir(Base):
    """Has nothing of its own."""


@pytest.mark.parametrize(
    ("owner", "name"),
    [
        (SimpleNamespace(method=None), "method"),
        (Base(), "method"),
        (Base, "method"),
        (Heir, "method"),
        (math, "tau"),
        (torch.nn.Linear(1, 1), "forward"),
        (torch.nn.Sequential(), "training"),
    ],
)
def test_it_is_as_before_afterwards(owner: Any, name: str) -> None:
    before = dict(vars(owner))
    with suppress(ZeroDivisionError), replaced(owner, name, "other") as given:
        assert given is owner
        assert getattr(owner, name) == "other"
        raise ZeroDivisionError
    assert dict(vars(owner)) == before


def test_a_module_in_the_place_of_another_is_not_registered() -> None:
    outer = torch.nn.Module()
    outer.part = None
    with replaced(outer, "part", torch.nn.Linear(1, 1)):
        assert list(outer.parameters()) == []
