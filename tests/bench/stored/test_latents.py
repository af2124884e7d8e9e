"""Final latents are taken beside the image, stored with how they were made, and judged."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import save
from sessions import made_up, session_of, with_settings

from sdopt.bench.judge.gate import Gate
from sdopt.bench.judge.verdict import Outcome
from sdopt.bench.measure import Comparison, compare_latents, double, observe
from sdopt.bench.measure.double import STEPS, double_latents
from sdopt.bench.measure.generated import Generated
from sdopt.bench.measure.latents import generate_with_latents, latent_faults
from sdopt.bench.measure.observation import is_channels_last
from sdopt.bench.measure.repeat import Repeat
from sdopt.bench.metrics.latents import relative_distance
from sdopt.bench.metrics.metric import Seen, Subject
from sdopt.bench.session import Session
from sdopt.bench.stored import latents as stored
from sdopt.errors import BrokenFileError, SdoptError
from sdopt.levels import BASELINE, FINAL, HOISTED, LEVELS, TURBO, Level
from sdopt.pipelines import workload
from sdopt.pipelines.pipeline import LevelPipeline, build
from sdopt.pipelines.workload import Request, generate
from sdopt.weights.sources import Source

PLAIN = replace(BASELINE, steps=2)
EAGER_FINAL = replace(FINAL, compiled=False, steps=5, cfg_cutoff=0.4)
SHORT = [PLAIN, EAGER_FINAL, replace(HOISTED, steps=2), replace(TURBO, steps=5, cfg_cutoff=0.4)]


def rebuilt(pipeline: LevelPipeline, latents: np.ndarray) -> np.ndarray:
    """The image of those latents by the pipeline's decoder, as diffusers makes it."""
    with torch.no_grad():
        decoded = pipeline.vae.decode(torch.from_numpy(latents)[None], return_dict=False)[0]
    image = (decoded * 0.5 + 0.5).clamp(0, 1)[0].permute(1, 2, 0)
    return np.asarray(image)


def apart(metric: str = "latent_drift", **distances: float) -> Comparison:
    """Prompts whose latents are so far from the stored ones."""
    return Comparison(seen={metric: {k: Seen(v) for k, v in distances.items()}}, faults={})


@pytest.mark.parametrize("level", SHORT, ids=lambda level: str(level.name))
def test_the_latents_are_those_that_became_the_image(
    level: Level, micro_source: Source, micro_request: Request
) -> None:
    pipeline = build(micro_source, level)
    generated = generate_with_latents(pipeline, micro_request)
    assert generated.latents.shape == (4, 8, 8)
    assert generated.latents.dtype == np.float32
    assert np.array_equal(generated.image, generate(pipeline, micro_request))
    assert np.allclose(rebuilt(pipeline, generated.latents), generated.image, atol=1e-5)
    assert "decode" not in vars(pipeline.vae)


@pytest.mark.parametrize("level", SHORT, ids=lambda level: str(level.name))
def test_float64_leaves_nothing_behind(
    level: Level, micro_source: Source, micro_request: Request
) -> None:
    pipeline = build(micro_source, level)
    before = generate_with_latents(pipeline, micro_request)
    double = double_latents(pipeline, micro_request)
    assert double is not None
    assert double.dtype == np.float64
    again = double_latents(pipeline, micro_request)
    assert again is not None
    assert np.array_equal(double, again)
    after = generate_with_latents(pipeline, micro_request)
    assert np.array_equal(before.latents, after.latents)
    assert np.array_equal(before.image, after.image)
    assert is_channels_last(pipeline.unet) is level.channels_last
    assert observe(pipeline, micro_request).new_graphs == 0
    assert "decode" not in vars(pipeline.vae)


def test_float64_sees_what_float32_cannot(micro_source: Source, micro_request: Request) -> None:
    pipeline = build(micro_source, EAGER_FINAL)
    before = double_latents(pipeline, micro_request)
    weight = pipeline.unet.mid_block.attentions[0].transformer_blocks[0].attn1.to_q.weight
    with torch.no_grad():
        weight.mul_(1 + 1e-6)
    after = double_latents(pipeline, micro_request)
    assert before is not None
    assert after is not None
    assert 0 < relative_distance(after, before) < 1e-6


def test_float64_needs_a_pipeline_on_the_cpu(
    micro_source: Source, micro_request: Request, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(LevelPipeline, "device", torch.device("cuda"))
    assert double_latents(build(micro_source, PLAIN, torch.device("cpu")), micro_request) is None


def test_distances_are_relative_and_nan_is_infinitely_far() -> None:
    ones = np.ones((4, 2, 2), np.float32)
    assert relative_distance(ones * np.float32(1.5), ones) == pytest.approx(0.5)
    assert relative_distance(ones, ones) == 0
    assert relative_distance(ones * np.nan, ones) == np.inf
    assert relative_distance(ones, ones * 0) == np.inf
    seen = compare_latents({"a": ones, "b": ones}, {"a": ones})
    assert seen.values("latent_drift") == {"a": 0.0}
    assert latent_faults({"a": ones, "b": ones * np.inf}) == {"b": "NaN or infinite latents"}
    with pytest.raises(ValueError, match=r"\(4, 2, 2\) and \(4, 4, 1\)"):
        relative_distance(ones, ones.reshape(4, 4, 1))


@pytest.fixture
def session(micro: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Session:
    """Two prompts, two steps of the first level."""
    monkeypatch.setitem(LEVELS, "baseline", PLAIN)
    monkeypatch.setattr(workload, "PHOTO_REQUESTS", workload.PHOTO_REQUESTS[:2])
    return session_of(micro, tmp_path / "baselines")


@pytest.fixture
def made(session: Session) -> Generated:
    """What the first level makes, stored."""
    accepting = with_settings(session, accept=True)
    with accepting.pool.warm(PLAIN) as (pipeline, _):
        generated = accepting.pool.generated(PLAIN, pipeline)
    accepting.store.accept(PLAIN, generated)
    stored_ones, unusable = accepting.store.latents(PLAIN, generated.latents)
    assert unusable == {}
    seen = compare_latents(generated.latents, stored_ones)
    assert seen.values("latent_drift") == {"astronaut": 0.0, "castle": 0.0}
    return generated


def test_latents_are_stored_with_the_images_and_judged_by_a_later_run(
    session: Session, made: Generated
) -> None:
    root = session.store.root
    assert len([*root.glob("images/micro/baseline/*.png")]) == 2
    path = root / "latents/micro/baseline/castle.safetensors"
    _, made_by = stored.read_latents(path)
    assert made_by["prompt"] == session.run.workload.requests[1].prompt
    assert made_by["level_fields"]["steps"] == made_by["generated_steps"] == 2
    assert made_by["environment"] == session.run.environment
    generated = made.latents
    kept, unusable = session.store.latents(PLAIN, generated)
    verdict = session.gate.latents(PLAIN, compare_latents(generated, kept), unusable)
    assert (verdict.outcome, verdict.measured) == (Outcome.PASS, 0.0)


def test_float64_latents_are_stored_for_the_first_prompt(session: Session, made: Generated) -> None:
    doubles = made.doubles
    kept, unusable = session.store.latents(PLAIN, doubles, double=True)
    assert (list(kept), unusable) == (["astronaut"], {})
    assert kept["astronaut"].dtype == np.float64
    path = session.store.root / "latents/micro/baseline/float64/astronaut.safetensors"
    assert stored.read_latents(path, "float64")[1]["generated_steps"] == STEPS
    seen = compare_latents(doubles, kept, Subject.FLOAT64)
    verdict = session.gate.latents_float64(PLAIN, seen, unusable)
    assert verdict.passed


def test_a_set_without_latents_fails_and_names_the_command(session: Session) -> None:
    generated = {
        request.name: np.ones((4, 8, 8), np.float32) for request in session.run.workload.requests
    }
    kept, unusable = session.store.latents(PLAIN, generated)
    verdict = session.gate.latents(PLAIN, compare_latents(generated, kept), unusable)
    assert (kept, verdict.outcome) == ({}, Outcome.FAULT)
    assert "no baseline latents" in verdict.reason
    accept = 'pytest benchmarks/ -k "[baseline]" --sdopt-accept'
    assert verdict.next_step == f"{accept}  # stores this run's images and latents"


def other_made_by(**changes: Any) -> Any:
    """Store the same latents as if they had been made with something else."""

    def change(path: Path) -> None:
        latents, made_by = stored.read_latents(path)
        stored.save_latents(path, latents, {**made_by, **changes})

    return change


def other_values(latents: np.ndarray, name: str = "latents") -> Any:
    def change(path: Path) -> None:
        about = {"sdopt": json.dumps(stored.read_latents(path)[1])}
        path.write_bytes(save({name: latents}, metadata=about))

    return change


GOOD = np.ones((4, 8, 8), np.float32)
BROKEN = [
    (lambda path: path.unlink(), "no baseline latents", False),
    (lambda path: path.write_bytes(b""), "cannot be read", True),
    (lambda path: path.write_bytes(path.read_bytes()[:-50]), "cannot be read", True),
    (lambda path: path.write_bytes(b"\x89PNG" * 99), "cannot be read", True),
    (lambda path: path.write_bytes(save({"latents": GOOD})), "says nothing about how", True),
    (
        lambda path: path.write_bytes(save({"latents": GOOD}, metadata={"sdopt": "{"})),
        "cannot be read",
        True,
    ),
    (other_values(GOOD, "sample"), "holds the tensors ['sample'], not 'latents' alone", True),
    (other_values(GOOD.astype(np.float16)), "holds float16 of 3 axes, not float32 of 3", True),
    (other_values(GOOD[0]), "holds float32 of 2 axes, not float32 of 3", True),
    (other_values(GOOD * np.nan), "holds NaN or infinite values", True),
    (other_values(GOOD[:, :4]), "has the shape (4, 4, 8), this run's is (4, 8, 8)", False),
    (other_made_by(seed=7), "was made for another request", False),
    (other_made_by(source="embedded"), "was made for another request", False),
    (other_made_by(dtype="float16"), "was made for another request", False),
    (other_made_by(guidance_scale=3.0), "guidance_scale 3.0 -> 7.5", False),
    (
        other_made_by(level_fields={**PLAIN.as_dict(), "steps": 3}),
        "was made with other settings: steps 3 -> 2",
        False,
    ),
]


@pytest.mark.parametrize(
    ("change", "says", "damaged"), BROKEN, ids=[f"{n}-{case[1]}" for n, case in enumerate(BROKEN)]
)
def test_a_stored_file_that_cannot_be_used_is_named(
    change: Any, says: str, damaged: bool, session: Session, made: Generated
) -> None:
    path = session.store.root / "latents/micro/baseline/castle.safetensors"
    change(path)
    before = path.read_bytes() if path.exists() else None
    generated = made.latents
    kept, unusable = session.store.latents(PLAIN, generated)
    verdict = session.gate.latents(PLAIN, compare_latents(generated, kept), unusable)
    assert list(kept) == ["astronaut"]
    assert (verdict.outcome, says in verdict.reason) == (Outcome.FAULT, True), verdict.reason
    assert str(path) in verdict.reason
    assert verdict.next_step.startswith(f"git checkout -- {path}") is damaged
    assert verdict.next_step.startswith("pytest") is not damaged
    assert "--sdopt-accept" in verdict.next_step
    assert (path.read_bytes() if path.exists() else None) == before


def test_worthless_latents_are_never_stored(session: Session) -> None:
    worthless = made_up(session, latents={"castle": GOOD * np.nan})
    with pytest.raises(SdoptError, match=r"nothing was stored: .*castle.*NaN or infinite latents"):
        with_settings(session, accept=True).store.accept(PLAIN, worthless)
    assert not session.store.root.exists()


def test_an_image_that_does_not_repeat_is_never_stored(session: Session) -> None:
    repeat = Repeat(
        request="castle",
        latents_differing=3,
        latents_apart=0.1,
        pixels_differing=5,
        pixels_apart=0.2,
    )
    with pytest.raises(SdoptError, match=r"nothing was stored: castle generated twice: 3 values"):
        with_settings(session, accept=True).store.accept(PLAIN, made_up(session, repeat=repeat))
    assert not session.store.root.exists()


@pytest.mark.parametrize(
    ("distance", "limits", "outcome"),
    [
        (1e-6, {"drift": 0.9, "latents": 1e-6}, Outcome.PASS),
        (2e-6, {"drift": 0.9, "latents": 1e-6}, Outcome.REGRESSION),
        (0.9 * 0.02, {"drift": 0.9}, Outcome.PASS),
        (1.1 * 0.02, None, Outcome.REGRESSION),
        (np.inf, {"drift": 0.9, "latents": 1e-6}, Outcome.FAULT),
        (np.nan, {"drift": 0.9, "latents": 1e-6}, Outcome.FAULT),
    ],
)
def test_the_worst_prompt_is_judged_by_the_limit(
    distance: float, limits: dict[str, float] | None, outcome: Outcome
) -> None:
    gate = Gate(limits={} if limits is None else {"baseline": limits}, limits_file="limits.json")
    verdict = gate.latents(BASELINE, apart(a=0.0, b=distance))
    assert (verdict.metric, verdict.outcome) == ("latent_drift", outcome)
    assert (": b" in verdict.reason or "of b" in verdict.reason) is True
    assert (verdict.file, gate.measured["baseline"]["latent_drift"]) == (
        "limits.json",
        pytest.approx(distance, nan_ok=True),
    )
    assert ("default limit" in verdict.reason) is (
        (limits is None or "latents" not in limits) and outcome is not Outcome.FAULT
    )


def test_latents_that_are_not_finite_are_a_regression_that_names_the_prompt() -> None:
    ones = np.ones((4, 2, 2), np.float32)
    comparison = compare_latents({"a": ones, "b": ones * np.nan}, {"a": ones, "b": ones})
    verdict = Gate(limits_file="limits.json").latents(BASELINE, comparison)
    assert (verdict.metric, verdict.outcome) == ("latent_drift", Outcome.REGRESSION)
    assert (verdict.reason, verdict.file) == ("b: NaN or infinite latents", "limits.json")


def test_float64_has_a_limit_of_its_own() -> None:
    limits = {"drift": 0.9, "latents": 1e-3, "float64": 1e-9}
    gate = Gate(limits={"baseline": limits})
    metric = "latent_drift_float64"
    assert not gate.latents_float64(BASELINE, apart(metric, a=1e-8)).passed
    assert gate.latents_float64(BASELINE, apart(metric, a=1e-10)).passed
    missing = {"a": BrokenFileError("no baseline latents x")}
    verdict = gate.latents_float64(BASELINE, apart(metric), missing)
    assert (verdict.metric, verdict.outcome) == ("latent_drift_float64", Outcome.FAULT)


def test_the_shipped_latents_are_of_every_level_and_prompt() -> None:
    root = Path(__file__).parents[3] / "baselines" / "latents" / "embedded"
    prompts = {request.name for request in workload.EMBEDDED_REQUESTS}
    for name in LEVELS:
        assert {path.stem for path in (root / name).glob("*.safetensors")} == prompts
        assert [path.stem for path in (root / name / "float64").glob("*")] == ["red-star"]


def test_roots_and_logarithms_of_a_scheduler_are_rounded_once() -> None:
    """As float64 has them, whatever the processor's library does in float32; others stay."""
    values = torch.linspace(0.001, 200, 5000)
    wide = values.double()
    with double._RoundedOnce():
        found = (values.sqrt(), values**0.5, values.log(), wide.sqrt())
        kept = values.exp()
    assert torch.equal(found[0], wide.sqrt().float())
    assert torch.equal(found[1], wide.sqrt().float())
    assert torch.equal(found[2], wide.log().float())
    assert torch.equal(found[3], wide.sqrt())
    assert found[3].dtype == torch.float64
    assert torch.equal(kept, values.exp())
