"""What commands of the suite need that a plain installation does not bring."""

from __future__ import annotations

from importlib.util import find_spec

from sdopt.errors import MissingToolError

NEEDED = ("pytest", "pytest_benchmark", "skimage", "scipy", "jsonschema")


def check_installed() -> None:
    """Raise MissingToolError naming what is not installed."""
    if missing := [name for name in NEEDED if find_spec(name) is None]:
        raise MissingToolError(
            f"the suite needs {', '.join(missing)}; in a clone of sdopt, "
            "pip install -c constraints.txt -e '.[bench]' brings them"
        )
