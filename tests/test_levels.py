"""The ladder begins as published, each level is one change, and no wrong row can be made."""

from __future__ import annotations

from dataclasses import FrozenInstanceError
from typing import Any

import pytest

from sdopt.errors import SdoptError, UnknownNameError
from sdopt.levels import (
    LEVELS,
    Level,
    changed_settings,
    cost_is_comparable,
    get_level,
    guided_steps,
)

FULL, TINY, EULER, DPM = "full-vae", "tiny-vae", "euler-ancestral", "dpm-solver++2m"

# level: compiled, channels-last, TF32, decoder, scheduler, fewer steps, CFG cutoff, reference.
# Which steps and cutoff is the level's alone to say: whoever changes one edits no test.
TABLE: dict[str, tuple[Any, ...]] = {
    "baseline": (False, False, False, FULL, EULER, False, False, None),
    "tuned": (False, True, True, FULL, EULER, False, False, "baseline"),
    "compiled": (True, True, True, FULL, EULER, False, False, "tuned"),
    "compiled-tiny-vae": (True, True, True, TINY, EULER, False, False, "compiled"),
    "euler-20": (True, True, True, FULL, EULER, True, False, "compiled"),
    "dpm-20": (True, True, True, FULL, DPM, True, False, "euler-20"),
    "euler-20-cutoff": (True, True, True, FULL, EULER, True, True, "euler-20"),
    "dpm-20-cutoff": (True, True, True, FULL, DPM, True, True, "dpm-20"),
    "final": (True, True, True, TINY, DPM, True, True, "dpm-20-cutoff"),
}

ENGINE = [
    *("one-graph", "fused", "hoisted", "hoisted-cutoff", "express", "swift", "turbo"),
    *("express-float8", "turbo-float8"),
]
"""The levels past the published table, in order."""

# What each level changes in its reference. `tuned` is a pair because the published table has
# channels-last and TF32 as one column, `fused` because its kernels take the place of Inductor's,
# `swift` because its second field says which steps the first leaves whole.
CHANGES = {
    "tuned": {"channels_last", "tf32"},
    "compiled": {"compiled"},
    "compiled-tiny-vae": {"decoder"},
    "euler-20": {"steps"},
    "dpm-20": {"scheduler"},
    "euler-20-cutoff": {"cfg_cutoff"},
    "dpm-20-cutoff": {"cfg_cutoff"},
    "final": {"decoder"},
    "one-graph": {"whole_graph"},
    "fused": {"compiled", "fused"},
    "hoisted": {"hoisted"},
    "hoisted-cutoff": {"cfg_cutoff"},
    "express": {"decoder"},
    "swift": {"feature_cache", "full_share"},
    "turbo": {"feature_cache"},
    "express-float8": {"float8"},
    "turbo-float8": {"float8"},
}
CACHED = LEVELS["turbo"].then("mine", why="to test the rule", steps=20, cfg_cutoff=0.4)
HALF = CACHED.then("half", why="to test the other rule", full_share=0.5)


def row(level: Level) -> tuple[Any, ...]:
    """The level as a line of TABLE."""
    return (
        level.compiled,
        level.channels_last,
        level.tf32,
        level.decoder,
        level.scheduler,
        level.steps < LEVELS["baseline"].steps,
        level.cfg_cutoff is not None,
        level.reference,
    )


def changed_fields(level: Level, reference: Level) -> set[str]:
    """The fields in which two levels differ, but for what merely names them."""
    before, after = reference.as_dict(), level.as_dict()
    return {f for f in after if after[f] != before[f]} - {"name", "why", "reference"}


def a_level(**fields: Any) -> Level:
    return Level(**{"name": "mine", "why": "to test it", **fields})


def test_the_ladder_has_the_nine_published_levels_and_then_the_engines() -> None:
    assert list(LEVELS) == [*TABLE, *ENGINE]
    assert set(CHANGES) == set(LEVELS) - {"baseline"}


@pytest.mark.parametrize("name", TABLE)
def test_a_level_is_its_published_row(name: str) -> None:
    level = get_level(name)
    assert (level.name, row(level)) == (name, TABLE[name])


@pytest.mark.parametrize("name", CHANGES)
def test_a_level_is_one_change_away_from_its_reference(name: str) -> None:
    level = get_level(name)
    assert level.reference is not None
    assert changed_fields(level, get_level(level.reference)) == CHANGES[name]


def test_only_the_first_level_has_no_reference() -> None:
    assert [level.name for level in LEVELS.values() if level.reference is None] == ["baseline"]


def test_a_reference_stands_before_the_levels_that_name_it() -> None:
    names = list(LEVELS)
    later = [
        level.name
        for level in LEVELS.values()
        if level.reference and names.index(level.reference) >= names.index(level.name)
    ]
    assert later == []


@pytest.mark.parametrize("level", LEVELS.values(), ids=LEVELS)
def test_why_is_one_line(level: Level) -> None:
    assert level.why.strip()
    assert "\n" not in level.why


@pytest.mark.parametrize("level", LEVELS.values(), ids=LEVELS)
def test_a_level_is_guided_up_to_its_cutoff(level: Level) -> None:
    cutoff = level.cfg_cutoff
    guided = level.steps if cutoff is None else guided_steps(cutoff, level.steps)
    assert level.guided_steps() == guided
    assert (guided < level.steps) is (cutoff is not None)
    assert sum(level.unet_batches()) == level.steps + guided


def test_the_unconditional_branch_is_dropped_after_the_guided_steps() -> None:
    level = a_level(steps=20, cfg_cutoff=0.4)
    assert level.guided_steps() == 9
    assert level.unet_batches() == (2,) * 9 + (1,) * 11
    assert a_level(steps=30).unet_batches() == (2,) * 30


@pytest.mark.parametrize(
    ("cutoff", "steps", "guided"),
    [
        (None, 5, 5),
        (0.0, 20, 1),
        (0.4, 1, 1),
        (0.4, 2, 1),
        (0.4, 50, 21),
        (0.99, 20, 20),
    ],
)
def test_the_step_at_the_cutoff_is_still_guided(
    cutoff: float | None, steps: int, guided: int
) -> None:
    level = a_level(cfg_cutoff=cutoff)
    assert level.guided_steps(steps) == guided
    assert level.unet_batches(steps) == (2,) * guided + (1,) * (steps - guided)


def test_a_feature_cache_leaves_few_whole_unets_and_no_other_field_any() -> None:
    assert CACHED.full_steps() == (0, 4, 8, 13, 19)
    for level in LEVELS.values():
        every = tuple(range(level.steps))
        assert (level.full_steps() == every) is not level.feature_cache


def test_full_steps_follow_the_steps_and_the_guidance_of_one_call() -> None:
    assert CACHED.full_steps(5) == (0, 1, 2, 4)
    assert CACHED.full_steps(20, guided=0) == (0, 1, 7, 13, 19)


def test_a_share_of_the_steps_is_full_whatever_is_guided() -> None:
    even = (0, 2, 4, 6, 8, 11, 13, 15, 17, 19)
    assert HALF.full_steps() == HALF.full_steps(20, guided=0) == even
    assert [HALF.full_steps(steps) for steps in (1, 2, 5)] == [(0,), (0, 1), (0, 2, 4)]


def test_then_keeps_every_field_that_it_does_not_name() -> None:
    level = LEVELS["final"].then("final-10", why="fewer steps", steps=10)
    assert (level.name, level.why, level.reference) == ("final-10", "fewer steps", "final")
    assert changed_fields(level, LEVELS["final"]) == {"steps"}


def test_then_leaves_its_base_as_it_was() -> None:
    before = LEVELS["final"].as_dict()
    LEVELS["final"].then("final-10", why="half the steps", steps=10)
    assert LEVELS["final"].as_dict() == before


def test_as_dict_holds_every_field() -> None:
    assert a_level(steps=3).as_dict() == {
        "name": "mine",
        "why": "to test it",
        "reference": None,
        "compiled": False,
        "compile_mode": "default",
        "channels_last": False,
        "tf32": False,
        "decoder": "full-vae",
        "scheduler": "euler-ancestral",
        "steps": 3,
        "cfg_cutoff": None,
        "whole_graph": False,
        "fused": False,
        "hoisted": False,
        "feature_cache": False,
        "full_share": None,
        "float8": False,
    }


def test_a_level_is_frozen() -> None:
    with pytest.raises(FrozenInstanceError):
        LEVELS["final"].steps = 1  # type: ignore[misc]


def test_a_level_takes_keywords_only() -> None:
    with pytest.raises(TypeError, match="positional"):
        Level("mine", "to test it")  # type: ignore[call-arg]


def test_then_refuses_a_field_that_does_not_exist() -> None:
    with pytest.raises(TypeError, match="stepz"):
        LEVELS["final"].then("mine", why="a slip", stepz=10)


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("decoder", "tiny-vea", ["unknown decoder 'tiny-vea'", "did you mean 'tiny-vae'"]),
        ("decoder", None, ["unknown decoder None", "full-vae, tiny-vae"]),
        ("scheduler", "ddim", ["unknown scheduler 'ddim'", "euler-ancestral, dpm-solver++2m"]),
        ("steps", 0, ["level 'mine'", "steps is 0", "1 or more"]),
        ("steps", -3, ["steps is -3"]),
        ("cfg_cutoff", 1.0, ["level 'mine'", "cfg_cutoff is 1.0", "0 <= cfg_cutoff < 1"]),
        ("cfg_cutoff", -0.1, ["cfg_cutoff is -0.1"]),
        ("cfg_cutoff", float("nan"), ["cfg_cutoff is nan"]),
        ("full_share", 0.0, ["level 'mine'", "full_share is 0.0", "0 < full_share < 1"]),
        ("full_share", 1.0, ["full_share is 1.0"]),
        ("full_share", float("nan"), ["full_share is nan"]),
    ],
)
def test_a_wrong_value_is_named_with_its_choices(field: str, value: Any, words: list[str]) -> None:
    with pytest.raises(SdoptError) as caught:
        a_level(**{field: value})
    assert [word for word in words if word not in str(caught.value)] == []


@pytest.mark.parametrize(
    ("base", "changes", "words"),
    [
        ("final", {"fused": True}, "fused needs whole_graph=True, it is False"),
        ("one-graph", {"fused": True}, "fused needs compiled=False, it is True"),
        ("one-graph", {"hoisted": True}, "hoisted needs fused=True, it is False"),
        ("one-graph", {"feature_cache": True}, "feature_cache needs fused=True, it is False"),
        ("express", {"full_share": 0.5}, "full_share needs feature_cache=True, it is False"),
        ("one-graph", {"channels_last": False}, "whole_graph needs channels_last=True"),
        (
            "express",
            {"scheduler": "euler-ancestral"},
            "whole_graph needs scheduler='dpm-solver++2m', it is 'euler-ancestral'",
        ),
    ],
)
def test_what_the_engine_needs_of_a_level_is_named(
    base: str, changes: dict[str, Any], words: str
) -> None:
    with pytest.raises(SdoptError) as caught:
        LEVELS[base].then("mine", why="to test it", **changes)
    assert "level 'mine'" in str(caught.value)
    assert words in str(caught.value)


def test_an_unknown_level_is_named_with_the_nearest_and_all_choices() -> None:
    with pytest.raises(UnknownNameError) as caught:
        get_level("finel")
    message = str(caught.value)
    assert message.startswith("unknown level 'finel' (did you mean 'final'?)")
    assert message.endswith(", ".join(LEVELS))


@pytest.mark.parametrize(
    ("name", "comparable"),
    [
        ("tuned", True),
        ("compiled", True),
        ("compiled-tiny-vae", True),
        ("euler-20", False),
        ("dpm-20", False),
        ("euler-20-cutoff", True),
        ("dpm-20-cutoff", True),
        ("final", True),
        *((name, True) for name in ENGINE),
    ],
)
def test_a_cost_is_comparable_unless_the_sampler_draws_other_noise(
    name: str, comparable: bool
) -> None:
    level = get_level(name)
    assert cost_is_comparable(level, get_level(level.reference or "")) is comparable


def test_fewer_steps_of_a_deterministic_sampler_are_comparable() -> None:
    fewer = LEVELS["dpm-20"].then("dpm-10", why="half the steps", steps=10)
    assert cost_is_comparable(fewer, LEVELS["dpm-20"])


def test_the_cutoff_leaves_its_own_step_guided() -> None:
    assert [guided_steps(0.4, steps) for steps in (1, 2, 5, 20, 50)] == [1, 1, 3, 9, 21]


def test_a_field_that_one_side_lacks_has_its_default_there() -> None:
    assert changed_settings({}, {"cfg_cutoff": None, "steps": 30}) == []
    assert changed_settings({"steps": 30}, {"cfg_cutoff": 0.4}) == ["cfg_cutoff None -> 0.4"]
