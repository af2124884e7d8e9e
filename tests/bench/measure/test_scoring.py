"""A true drawing scores full marks, and each wrong attribute is caught."""

from dataclasses import replace

import numpy as np
import pytest

from sdopt.bench.measure.scoring import JUDGED, attribute_accuracy, judge, mean_ssim
from sdopt.miniature import GUIDANCE_SCALE
from sdopt.miniature.scenes import held_out_scenes, parse_caption, render
from studies.miniature_quality.findings import (
    BEGIN,
    END,
    TARGETS,
    Findings,
    GuidanceRow,
    section,
    write_section,
)

SCENE = parse_caption(
    "a large striped red star at the top left and a small blue ring at the bottom center "
    "on a yellow background"
)
ROW = GuidanceRow(
    scale=GUIDANCE_SCALE, attributes=0.95, truth=0.9, solver=0.99, cutoff=0.98, tiny=0.97
)
FOUND = Findings(
    scenes=2,
    vae=0.96,
    tiny=0.92,
    attributes=dict.fromkeys((*JUDGED, "texture"), 1.0),
    dpm_truth=0.9,
    guidance=[ROW],
    machine="a test",
)


def test_true_drawings_score_full_marks():
    scenes = held_out_scenes(4)
    images = np.stack([render(scene) for scene in scenes])
    assert set(attribute_accuracy(images, scenes).values()) == {1.0}
    assert mean_ssim(images, images) == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("attribute", "wrong"),
    [
        ("shape", "circle"),
        ("colour", "green"),
        ("position", "right"),
        ("size", "small"),
        ("texture", "dotted"),
    ],
)
def test_a_wrong_attribute_is_caught(attribute, wrong):
    star, ring = SCENE.objects
    drawn = render(replace(SCENE, objects=(replace(star, **{attribute: wrong}), ring)))
    verdicts = judge(drawn, SCENE)
    assert (attribute, False) in verdicts[1:6], "the star's"
    assert all(right for _, right in verdicts[6:]), "the ring is as it should be"


def test_a_wrong_background_is_caught():
    verdicts = judge(render(replace(SCENE, background="green")), SCENE)
    assert verdicts[0] == ("background", False)


def test_judged_counts_four_attributes():
    star, ring = SCENE.objects
    drawn = render(replace(SCENE, objects=(replace(star, colour="green"), ring)))
    shares = attribute_accuracy(drawn[None], [SCENE])
    assert shares["colour"] == 0.5
    assert shares["judged"] == pytest.approx(6 / 7)


def test_targets():
    assert FOUND.missed() == []
    assert replace(FOUND, vae=0.9).missed() == ["vae: measured 0.9000, least accepted 0.95"]
    assert len(replace(FOUND, tiny=float("nan")).missed()) == 1
    weak = replace(ROW, solver=0.5)
    assert len(replace(FOUND, guidance=[weak]).missed()) == 1
    poor_colours = replace(FOUND, attributes=FOUND.attributes | {"colour": 0.75})
    assert poor_colours.missed() == ["colour: measured 0.7500, least accepted 0.9"]
    assert set(TARGETS) == {"vae", "tiny", *JUDGED, "solver"}


def test_report_replaces_only_its_section(tmp_path):
    page = tmp_path / "page.md"
    page.write_text(f"before\n{BEGIN}\nold\n{END}\nafter\n")
    write_section(FOUND, page)
    assert page.read_text() == f"before\n{section(FOUND)}\nafter\n"
    assert "0.9600" in page.read_text()
    assert list(tmp_path.iterdir()) == [page]


def test_report_needs_its_place(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("nothing here\n")
    with pytest.raises(ValueError, match="has no lines"):
        write_section(FOUND, page)
