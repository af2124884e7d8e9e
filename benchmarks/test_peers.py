"""Other people's recipes for the same pipeline, beside levels of ours; shown, never judged."""

import pytest

from studies.peers import RECIPES


@pytest.mark.parametrize("recipe", RECIPES, ids=str)
def test_peer(recipe, contest):
    """One recipe in a process of its own; its rows go into the table at the end."""
    if missing := contest.missing(recipe):
        pytest.skip(missing)
    failure = contest.measure(recipe)
    if failure and not recipe.level:
        pytest.skip(f"{recipe}: {failure}")
    assert failure is None, failure
