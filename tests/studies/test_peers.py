"""Each peer runs in a process of its own; one that breaks or hangs is shown with what it said."""

from __future__ import annotations

import io
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from sdopt.bench.session import RunContext, Settings
from sdopt.errors import SdoptError, UnknownNameError
from sdopt.levels import LEVELS
from sdopt.pipelines.workload import Request
from sdopt.util.progress import Progress
from sdopt.weights.sources import Source
from studies.peers import contest as contests
from studies.peers import recipes
from studies.peers.contest import Contest, limit_s
from studies.peers.recipes import COMMON, DOCUMENTED, OURS, PEERS, PLAIN, PUBLISHED, RECIPES, Ground

SHORT = Ground(sampler="pndm", steps=2)
WRITE_A_ROW = """
import json, pathlib, sys
folder = pathlib.Path(sys.argv[4])
row = {"name": "diffusers (dpm-solver++2m, 20)", "rounds_ms": [1.0], "first_call_s": 1.0}
(folder / f"rows-{sys.argv[1]}.json").write_text(json.dumps([row]))
"""


@pytest.fixture
def contest(micro: Path, tmp_path: Path) -> Contest:
    settings = Settings(source=str(micro), baselines_root=tmp_path)
    run = RunContext(settings=settings, progress=Progress(io.StringIO()))
    return Contest(run=run, folder=tmp_path / "peers")


def running(contest: Contest, code: str) -> Contest:
    contest.program = ("-c", code)
    return contest


def test_the_recipes_have_names_and_grounds_of_their_own() -> None:
    names = [recipe.name for recipe in RECIPES]
    assert len(set(names)) == len(names)
    rows = [recipe.row_name(ground) for recipe in RECIPES for ground in recipe.grounds]
    assert len(set(rows)) == len(rows)


def test_plain_diffusers_runs_first_and_on_every_ground() -> None:
    assert RECIPES[0] == PLAIN
    grounds = {ground for recipe in RECIPES for ground in recipe.grounds}
    assert set(PLAIN.grounds) == grounds >= {COMMON, PUBLISHED, DOCUMENTED}


def test_a_shown_level_is_on_its_own_ground() -> None:
    for recipe in OURS:
        level = LEVELS[recipe.level or ""]
        (ground,) = recipe.grounds
        assert (ground.sampler, ground.steps) == (level.scheduler, level.steps)
    # `-k "[final]"` picks the level's benchmarks and not this one.
    assert not any(recipe.name in LEVELS for recipe in RECIPES)


def test_deepcache_gets_the_parameters_of_its_readme(monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[Any] = []
    helper = SimpleNamespace(
        set_params=lambda **parameters: done.append(parameters), enable=lambda: done.append("on")
    )
    package = SimpleNamespace(DeepCacheSDHelper=lambda pipe: helper)
    monkeypatch.setitem(sys.modules, "DeepCache", package)
    recipes.apply_deepcache("pipeline")
    assert done == [{"cache_interval": 3, "cache_branch_id": 0}, "on"]


def test_tomesd_merges_half(monkeypatch: pytest.MonkeyPatch) -> None:
    package = SimpleNamespace(apply_patch=lambda pipeline, ratio: (pipeline, ratio))
    monkeypatch.setitem(sys.modules, "tomesd", package)
    assert recipes.apply_tomesd("pipeline") == ("pipeline", 0.5)


@pytest.mark.parametrize(
    ("apply", "mode"),
    [
        (recipes.apply_compile, "reduce-overhead"),
        (recipes.apply_compile_max, "max-autotune"),
    ],
)
def test_the_compiler_gets_what_the_documentation_says(
    apply: Any, mode: str, micro_source: Source, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch
    import torch._inductor.config as inductor

    from sdopt.pipelines.pipeline import load_weights

    asked: list[Any] = []

    def noted(module: Any, **options: Any) -> Any:
        asked.append(options)
        return module

    monkeypatch.setattr(torch, "compile", noted)
    pipeline = load_weights(micro_source, torch.device("cpu"), torch.float32)
    with inductor.patch({}):
        apply(pipeline)
        assert inductor.coordinate_descent_tuning == (mode == "max-autotune")
    assert asked == [{"mode": mode, "fullgraph": True}] * 2
    kernel = pipeline.unet.conv_in.weight
    assert kernel.is_contiguous(memory_format=torch.channels_last)


def test_a_worker_measures_on_every_ground(
    micro_source: Source,
    micro_request: Request,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import json

    from sdopt.bench.measure import timing
    from studies.peers import worker

    monkeypatch.setattr(timing, "ROUNDS", {"cpu": 2})
    grounds = (SHORT, replace(SHORT, sampler="dpm-solver++2m"))
    plain = replace(PLAIN, grounds=grounds)
    monkeypatch.setattr(worker, "PLAIN", plain)
    peer = replace(PEERS[1], name="same", grounds=grounds[:1], apply=recipes.leave)
    level = replace(OURS[0], grounds=(replace(SHORT, sampler="euler-ancestral"),))
    monkeypatch.setitem(LEVELS, "baseline", replace(LEVELS["baseline"], steps=2))
    for recipe in (plain, peer, level):
        worker.measure(recipe, micro_source, (micro_request,), tmp_path)
    of_plain, of_peer, of_level = (
        json.loads((tmp_path / f"rows-{name}.json").read_text())
        for name in ("diffusers", "same", "sdopt-baseline")
    )
    assert [row["name"] for row in of_plain] == ["diffusers (pndm, 2)", f"diffusers ({grounds[1]})"]
    assert "ssim_cost" not in of_plain[0]
    assert of_peer[0]["ssim_cost"] == {"cat": 1.0}
    assert len(of_peer[0]["rounds_ms"]) == 2
    # Nobody generated plain images on its ground: it has a time and no cost.
    assert "ssim_cost" not in of_level[0]
    assert of_level[0]["faults"] == {}


def test_a_sampler_that_nobody_made_is_refused() -> None:
    from studies.peers.worker import sampler

    unknown: Any = SimpleNamespace(sampler="heun", steps=2)
    with pytest.raises(UnknownNameError, match="unknown sampler 'heun'"):
        sampler({}, unknown)


def test_a_peers_rows_are_kept_with_what_it_is(contest: Contest) -> None:
    assert running(contest, WRITE_A_ROW).measure(PLAIN) is None
    rows = contest.rows.rows
    assert list(rows) == contest.measured == [PLAIN.row_name(g) for g in PLAIN.grounds]
    first, *others = rows.values()
    assert (first["recipe"], first["rounds_ms"]) == ("diffusers", [1.0])
    assert {row["error"] for row in others} == {"no result"}
    again = Contest(run=contest.run, folder=contest.folder)
    assert again.rows.rows == rows


def test_rows_of_an_earlier_stack_are_kept_beside_the_new_ones(
    contest: Contest, monkeypatch: pytest.MonkeyPatch
) -> None:
    running(contest, WRITE_A_ROW).measure(PLAIN)
    before = contest.rows.path.read_bytes()
    monkeypatch.setattr(RunContext, "made_on", lambda _: {"hardware": "another"})
    again = Contest(run=contest.run, folder=contest.folder)
    running(again, WRITE_A_ROW).measure(PLAIN)
    assert (contest.folder / "rows-before-1.json").read_bytes() == before
    assert again.rows.made_on == {"hardware": "another"}
    told = contest.run.progress.stream.getvalue()  # type: ignore[attr-defined]
    assert "rows-before-1.json keeps the rows of other hardware or versions" in told


def test_one_that_breaks_is_shown_with_its_error(contest: Contest) -> None:
    code = "print('before'); raise AttributeError('no attribute to_out')"
    error = running(contest, code).measure(PEERS[3])
    assert error == (
        "status 1: AttributeError: no attribute to_out "
        f"(all of it: {contest.folder / 'compile-reduce-overhead.log'})"
    )
    assert {row["error"] for row in contest.rows.rows.values()} == {error}


def test_one_that_hangs_is_ended_and_keeps_what_it_had(contest: Contest) -> None:
    contest.limit_s = 3.0
    start = time.monotonic()
    error = running(contest, WRITE_A_ROW + "import time; time.sleep(60)").measure(PLAIN)
    assert error == "did not finish in 3 s"
    assert time.monotonic() - start < 30
    first, second, *_ = contest.rows.rows.values()
    assert (first.get("error"), second["error"]) == (None, error)


def test_the_worker_that_is_started_is_this_packages(contest: Contest) -> None:
    contest.program = ("-m", "studies.peers.worker")
    unknown = replace(PEERS[3], name="nobody")
    assert "UnknownNameError: unknown recipe 'nobody'" in str(contest.measure(unknown))


def test_what_is_not_installed_is_said(contest: Contest, monkeypatch: pytest.MonkeyPatch) -> None:
    there: set[str] = set()
    monkeypatch.setattr(contests, "installed", there.__contains__)
    deepcache = next(peer for peer in PEERS if peer.package == "DeepCache")
    assert contest.missing(deepcache) == f"needs DeepCache: {contests.INSTALL}"
    assert contest.missing(PLAIN) == f"needs the peers that it stands beside: {contests.INSTALL}"
    there.add("tomesd")
    assert contest.missing(PLAIN) is None
    assert contest.missing(deepcache) is not None
    unfit = replace(contest.run.settings, unfit="benchmarks are disabled")
    contest.run = RunContext(settings=unfit, progress=contest.run.progress)
    assert contest.missing(PLAIN) == "benchmarks are disabled"


def test_installed_asks_for_the_distribution() -> None:
    assert contests.installed("pytest")
    assert not contests.installed("no-such-distribution")


def test_the_time_limit_is_a_number_of_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SDOPT_PEERS_LIMIT_S", raising=False)
    assert limit_s() == 600.0
    monkeypatch.setenv("SDOPT_PEERS_LIMIT_S", "90")
    assert limit_s() == 90.0
    for wrong in ("soon", "-1", "nan"):
        monkeypatch.setenv("SDOPT_PEERS_LIMIT_S", wrong)
        with pytest.raises(SdoptError, match="SDOPT_PEERS_LIMIT_S"):
            limit_s()
