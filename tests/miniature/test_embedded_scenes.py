"""Captions say what scenes are, and scenes are drawn the same everywhere."""

import subprocess
import sys

import numpy as np
import pytest
import torch

from sdopt.miniature import SIZE_PX
from sdopt.miniature.attributes import COLOURS, POSITIONS
from sdopt.miniature.rendering import render_rows, render_uint8, tables, to_uint8
from sdopt.miniature.rows import held_out, sample_crowded_rows, sample_rows
from sdopt.miniature.scenes import (
    VOCABULARY,
    Scene,
    SceneObject,
    held_out_scenes,
    parse_caption,
    render,
    scene_from_row,
    unknown_words,
)
from studies.training.bank import build_bank, training_caption

STAR = SceneObject(shape="star", colour="red", position="top left", size="large")


def sample_scene(seed: int) -> Scene:
    return scene_from_row(sample_rows(seed, 1)[0])


@pytest.mark.parametrize("seed", range(50))
def test_caption_round_trip(seed):
    scene = sample_scene(seed)
    assert parse_caption(scene.caption()) == scene
    assert scene_from_row(scene.row()) == scene
    assert not unknown_words(scene.caption())


def test_caption_wording():
    ring = SceneObject(shape="ring", colour="blue", position="center", texture="dotted")
    scene = Scene(objects=(STAR, ring), background="orange")
    assert scene.caption() == (
        "a large red star at the top left and a medium dotted blue ring at the center "
        "on an orange background"
    )


def test_size_and_texture_may_be_left_out():
    scene = parse_caption("an orange cross at the bottom center on a white background")
    thing = SceneObject(shape="cross", colour="orange", position="bottom center", size="medium")
    assert scene == Scene(objects=(thing,), background="white")


@pytest.mark.parametrize(
    ("caption", "complaint"),
    [
        ("a large mauve star at the top left on a blue background", "unknown word 'mauve'.*green"),
        ("a large red star on a blue background", "expected a word .at., found 'on'"),
        ("a red star at the top left on a large background", "expected a background colour"),
        ("a red star at the top left", "expected a word .on., found the end"),
        ("a star at the top left on a blue background", r"expected a colour \(red.*found 'star'"),
        ("a red star at the blue on a blue background", r"expected a position \(top left"),
        ("a red star at the top center on a blue background and", "expected the end, found 'and'"),
        ("", "expected an article"),
    ],
)
def test_bad_captions_say_what_is_wrong(caption, complaint):
    with pytest.raises(ValueError, match=complaint):
        parse_caption(caption)


def test_bad_objects_name_the_choices():
    with pytest.raises(ValueError, match=r"unknown shape 'blob'; the choices are: circle"):
        SceneObject(shape="blob", colour="red", position="center")
    with pytest.raises(ValueError, match="unknown background 'mauve'"):
        Scene(objects=(STAR,), background="mauve")
    with pytest.raises(ValueError, match="1 to 2 objects, not 3"):
        Scene(objects=(STAR, STAR, STAR), background="blue")


def test_unknown_words():
    assert unknown_words("a mauve star on mauve sand") == ["mauve", "sand"]
    assert list(VOCABULARY) == sorted(set(VOCABULARY))


def test_captions_need_no_torch():
    code = "import sys, sdopt.miniature.scenes; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_drawing_is_deterministic_and_sized():
    scene = sample_scene(3)
    image = render(scene)
    assert image.shape == (SIZE_PX, SIZE_PX, 3)
    assert image.dtype == np.uint8
    assert np.array_equal(image, render(scene))
    assert render(scene, 64).shape == (64, 64, 3)


def test_drawing_shows_what_the_caption_says():
    image = render(parse_caption("a large red star at the top left on a blue background"))
    star = image[26, 26].astype(int)
    corner = image[120, 120].astype(int)
    assert star[0] > 150 > star[2]
    assert corner[2] > 150 > corner[0]


def test_edges_are_antialiased():
    image = render(parse_caption("a large white circle at the center on a black background"))
    between = (image[30:98, 30:98, 0] > 60) & (image[30:98, 30:98, 0] < 170)
    assert 50 < np.count_nonzero(between) < 400, "the edge is one pixel of middle tones"
    small = render(parse_caption("a large white circle at the center on a black background"), 64)
    halved = image.reshape(64, 2, 64, 2, 3).mean((1, 3))
    assert np.abs(halved - small).mean() < 1.0


@pytest.mark.parametrize("texture", ["striped", "dotted", "checkered"])
def test_textures_are_fine_detail(texture):
    image = render(
        parse_caption(f"a large {texture} red square at the center on a blue background")
    )
    row = image[60, 48:80, 0].astype(int)
    assert np.ptp(row) > 50
    middle = (row.min() + row.max()) / 2
    swings = np.count_nonzero(np.diff(row > middle + 5))
    assert 6 <= swings <= 14, "32 pixels hold four to seven periods"


def test_batches_draw_as_single_scenes():
    rows = sample_rows(11, 6)
    together = render_rows(torch.from_numpy(rows), tables())
    assert together.shape == (6, 3, SIZE_PX, SIZE_PX)
    for row, image in zip(rows, render_uint8(rows, SIZE_PX), strict=True):
        assert np.array_equal(image, render(scene_from_row(row)))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA: drawing on the GPU")
def test_cuda_draws_as_the_cpu_does():
    rows = sample_rows(5, 64)
    there = render_rows(torch.from_numpy(rows).cuda(), tables(device="cuda"))
    apart = to_uint8(there).astype(int) - render_uint8(rows, SIZE_PX)
    assert np.abs(apart).max() <= 1


def test_one_scene_in_sixteen_is_held_out():
    rows = sample_rows(1, 20000)
    assert held_out(rows).mean() == pytest.approx(1 / 16, abs=0.005)
    scenes = held_out_scenes(20)
    assert held_out(np.stack([scene.row() for scene in scenes])).all()
    assert scenes == held_out_scenes(20)
    assert len(set(scenes)) == 20


def test_objects_are_visible():
    for seed in range(100):
        scene = sample_scene(seed)
        assert all(thing.colour != scene.background for thing in scene.objects)
        assert len({thing.position for thing in scene.objects}) == len(scene.objects)


def test_training_never_sees_a_held_out_scene():
    bank = build_bank(500, 0, "cpu")
    assert 400 < len(bank.rows) < 500
    assert not held_out(bank.rows.numpy()).any()
    assert bank.mixed_images(4).shape == (4, 3, SIZE_PX, SIZE_PX)


def test_crowded_rows_are_no_scenes():
    rows = sample_crowded_rows(0, 50)
    assert rows.shape == (50, 2 + 5 * len(POSITIONS))
    assert rows[:, 1].min() >= 3
    assert rows[:, 0].max() < len(COLOURS)


def test_some_training_captions_are_fragments():
    generator = np.random.Generator(np.random.PCG64(0))
    captions = [training_caption(sample_scene(seed), generator) for seed in range(300)]
    alone = [
        caption for caption in captions if caption.endswith("background") and " at " not in caption
    ]
    fragments = [caption for caption in captions if "background" not in caption]
    assert 10 < len(alone) < 60
    assert 10 < len(fragments) < 60
    assert not any(unknown_words(caption) for caption in captions)
