"""Scenes and their captions: each is made from the other, and a scene can be drawn."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from sdopt.miniature import rows as scene_rows
from sdopt.miniature.attributes import (
    COLOURS,
    GRAMMAR_WORDS,
    MAX_OBJECTS,
    POSITION_WORDS,
    POSITIONS,
    SHAPES,
    SIZES,
    TEXTURES,
)

if TYPE_CHECKING:
    from sdopt.miniature.rows import Rows

VOCABULARY: tuple[str, ...] = tuple(
    sorted({*GRAMMAR_WORDS, *COLOURS, *SHAPES, *SIZES, *TEXTURES, *POSITION_WORDS})
)
"""Every word the model knows; the tokenizer gives each exactly one token."""

_HELD_OUT_SEED = 2026
_GRAMMAR = (
    "'a [size] [texture] <colour> <shape> at the <position>' once or twice, joined by 'and', "
    "then 'on a <colour> background'"
)


@dataclass(frozen=True, kw_only=True)
class SceneObject:
    """One thing in a scene; a word that is no choice of its field raises ValueError."""

    shape: str
    colour: str
    position: str
    size: str = "medium"
    texture: str = "plain"

    def __post_init__(self) -> None:
        for field, choices in scene_rows.OBJECT_FIELDS.items():
            _check(field, getattr(self, field), choices)

    def caption(self) -> str:
        """For example "a small striped red star at the top left"; "plain" stays unsaid."""
        texture = "" if self.texture == "plain" else f"{self.texture} "
        return f"a {self.size} {texture}{self.colour} {self.shape} at the {self.position}"


@dataclass(frozen=True, kw_only=True)
class Scene:
    """One or two objects, the second drawn over the first, on a background of one colour."""

    objects: tuple[SceneObject, ...]
    background: str

    def __post_init__(self) -> None:
        _check("background", self.background, COLOURS)
        if not 1 <= len(self.objects) <= MAX_OBJECTS:
            raise ValueError(f"a scene has 1 to {MAX_OBJECTS} objects, not {len(self.objects)}")

    def caption(self) -> str:
        """The sentence that `parse_caption` turns back into this scene."""
        things = " and ".join(thing.caption() for thing in self.objects)
        return f"{things} on {with_article(self.background)} background"

    def row(self) -> "Rows":
        """This scene as one row of 12 integers, see `rows.Rows`."""
        row = np.zeros(scene_rows.ROW_LENGTH, np.int64)
        row[scene_rows.BACKGROUND] = list(COLOURS).index(self.background)
        row[scene_rows.EXTRA_OBJECTS] = len(self.objects) - 1
        for item, thing in enumerate(self.objects):
            for field, choices in scene_rows.OBJECT_FIELDS.items():
                row[scene_rows.column(item, field)] = choices.index(getattr(thing, field))
        return row


def scene_from_row(row: "Rows") -> Scene:
    """The scene that `Scene.row` wrote as these 12 integers."""
    objects = [
        SceneObject(
            **{
                field: choices[row[scene_rows.column(item, field)]]
                for field, choices in scene_rows.OBJECT_FIELDS.items()
            }
        )
        for item in range(int(row[scene_rows.EXTRA_OBJECTS]) + 1)
    ]
    return Scene(objects=tuple(objects), background=list(COLOURS)[row[scene_rows.BACKGROUND]])


def with_article(word: str) -> str:
    """ "an orange", "a red"."""
    return f"{'an' if word[0] in 'aeiou' else 'a'} {word}"


def held_out_scenes(count: int) -> list[Scene]:
    """`count` scenes that training never sees, always the same ones for the same count."""
    return [scene_from_row(r) for r in scene_rows.sample_held_out_rows(_HELD_OUT_SEED, count)]


def render(scene: Scene, size: int = 128) -> NDArray[np.uint8]:
    """The true image of `scene`: size x size x 3, RGB, 0 to 255. Imports torch."""
    from sdopt.miniature.rendering import render_uint8

    image: NDArray[np.uint8] = render_uint8(scene.row()[None], size)[0]
    return image


def unknown_words(text: str) -> list[str]:
    """The words of `text` that the model has never seen, in order, each once."""
    return list(dict.fromkeys(word for word in text.split() if word not in VOCABULARY))


def parse_caption(text: str) -> Scene:
    """The scene a caption describes; size and texture may be left out (medium, plain).

    Raises ValueError that names the unknown word, or the place where the sentence ends being a
    caption, and the choices there.
    """
    words = _Words(text)
    things = [_parse_object(words)]
    while len(things) < MAX_OBJECTS and words.skip("and"):
        things.append(_parse_object(words))
    words.expect("on")
    words.article()
    background = words.choice("background colour", COLOURS)
    words.expect("background")
    words.end()
    return Scene(objects=tuple(things), background=background)


def _parse_object(words: "_Words") -> SceneObject:
    words.article()
    size = words.optional(SIZES, "medium")
    texture = words.optional(TEXTURES, "plain")
    colour = words.choice("colour", COLOURS)
    shape = words.choice("shape", SHAPES)
    words.expect("at")
    words.expect("the")
    return SceneObject(
        shape=shape, colour=colour, position=words.position(), size=size, texture=texture
    )


class _Words:
    """The words of a caption, taken from the left."""

    def __init__(self, text: str) -> None:
        if unknown := unknown_words(text):
            raise ValueError(
                f"unknown word {unknown[0]!r} in caption {text!r}; "
                f"the words are: {', '.join(VOCABULARY)}"
            )
        self.text = text
        self.left = text.split()

    def skip(self, word: str) -> bool:
        found = self.left[:1] == [word]
        if found:
            del self.left[0]
        return found

    def optional(self, choices: Iterable[str], default: str) -> str:
        return self.left.pop(0) if self.left and self.left[0] in choices else default

    def choice(self, what: str, choices: Iterable[str]) -> str:
        if not self.left or self.left[0] not in choices:
            raise self.error(f"{with_article(what)} ({', '.join(choices)})")
        return self.left.pop(0)

    def expect(self, word: str) -> None:
        self.choice("word", (word,))

    def article(self) -> None:
        self.choice("article", ("a", "an"))

    def position(self) -> str:
        for length in (2, 1):
            name = " ".join(self.left[:length])
            if name in POSITIONS:
                del self.left[:length]
                return name
        raise self.error(f"a position ({', '.join(POSITIONS)})")

    def end(self) -> None:
        if self.left:
            raise self.error("the end")

    def error(self, expected: str) -> ValueError:
        found = repr(self.left[0]) if self.left else "the end"
        return ValueError(
            f"caption {self.text!r}: expected {expected}, found {found}; a caption is {_GRAMMAR}"
        )


def _check(field: str, value: str, choices: Iterable[str]) -> None:
    if value not in choices:
        raise ValueError(f"unknown {field} {value!r}; the choices are: {', '.join(choices)}")
