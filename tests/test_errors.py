"""Each error names the bad value, the choices and the next step, and is a ValueError."""

from __future__ import annotations

import re

import pytest

from sdopt import errors
from sdopt.errors import BrokenFileError, SdoptError, SourceError, UnknownNameError

MODULE = errors.__name__
CHOICES = ("red", "green", "blue")


@pytest.mark.parametrize("kind", [UnknownNameError, BrokenFileError, SourceError])
def test_every_error_is_a_value_error_of_this_package(kind: type[Exception]) -> None:
    assert issubclass(kind, SdoptError)
    assert issubclass(kind, ValueError)


def test_the_tree_in_the_docstring_is_complete() -> None:
    generated = re.findall(r"[├└]── (\w+)", errors.__doc__ or "")
    defined = [
        name for name, value in vars(errors).items() if getattr(value, "__module__", "") == MODULE
    ]
    assert sorted(generated) == sorted(defined)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("gren", "unknown colour 'gren' (did you mean 'green'?); choose from: red, green, blue"),
        ("xyz", "unknown colour 'xyz'; choose from: red, green, blue"),
        ("", "unknown colour ''; choose from: red, green, blue"),
        (7, "unknown colour 7; choose from: red, green, blue"),
    ],
)
def test_an_unknown_name_comes_with_the_choices(name: object, message: str) -> None:
    assert str(UnknownNameError("colour", name, CHOICES)) == message


def test_an_unknown_name_ends_with_the_next_step() -> None:
    error = UnknownNameError("colour", "xyz", CHOICES, "or mix one")
    assert str(error).endswith("choose from: red, green, blue; or mix one")


def test_the_choices_of_an_unknown_name_can_be_read_by_code() -> None:
    error = UnknownNameError("colour", "xyz", iter(CHOICES))
    assert error.choices == CHOICES
