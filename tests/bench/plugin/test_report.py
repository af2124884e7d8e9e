"""A run ends with the ladder table and with what it wrote."""

from __future__ import annotations

import re

import pytest
from micro import Rung
from project import Project

from sdopt.levels import LEVELS, Level
from studies.peers.recipes import RECIPES


def lines_after_the_ladder(result: pytest.RunResult) -> list[str]:
    start = next(n for n, line in enumerate(result.outlines) if "ladder: micro on " in line)
    return result.outlines[start + 1 :]


def table(result: pytest.RunResult) -> dict[str, dict[str, str]]:
    """The cells of each level by their column's heading."""
    heading, *lines = [re.split(" {2,}", line) for line in lines_after_the_ladder(result)]
    rows = [cells for cells in lines if len(cells) == len(heading)]
    return {cells[0]: dict(zip(heading, cells, strict=True)) for cells in rows}


def test_the_ladder_table_is_the_last_section(stored: Project) -> None:
    result = stored.run("--benchmark-compare")
    lines = lines_after_the_ladder(result)
    row = table(result)["baseline"]
    assert next(iter(row)) == "level"
    assert float(row.pop("ms")) > 0
    expected = {
        "speed-up": "1.00x",
        "UNet evals": "6",
        "drift": "1.000000",
        "cost": "-",
        "ground truth": "-",
    }
    assert {heading: row[heading] for heading in expected} == expected
    # The times of the stored run are ten times what was measured, which a busy machine may need.
    assert row["verdict"] in ("pass (better than stored: latency_ms)", "pass")
    assert [line for line in lines[1:] if line.startswith("===")] == lines[-1:]


def test_no_table_without_a_benchmark(project: Project) -> None:
    result = project.run("-k", "nothing")
    assert result.ret == pytest.ExitCode.NO_TESTS_COLLECTED
    assert not [line for line in result.outlines if "ladder: " in line]


def test_the_cost_builds_the_reference_if_this_run_did_not(project: Project) -> None:
    result = project.run(tests="benchmarks/test_quality.py::test_cost", level="tuned")
    result.assert_outcomes(passed=1)
    assert float(table(result)["tuned"]["cost"]) > 0.99


def test_a_level_that_took_no_effect_fails(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    from sdopt.pipelines import pipeline

    kept = tuple(apply for apply in pipeline.APPLY if apply is not pipeline.apply_channels_last)
    monkeypatch.setattr(pipeline, "APPLY", kept)
    result = project.run("--sdopt-accept", tests="benchmarks/test_work.py", level="tuned")
    result.assert_outcomes(failed=1, passed=1)
    result.stdout.fnmatch_lines(
        ["*[[]tuned] effect: regression: the level did not take effect: memory format: *"]
    )
    result.stdout.fnmatch_lines(["tuned*FAIL effect"])


def full_evaluations(level: Level) -> int:
    """Samples of the steps that evaluate all of the UNet."""
    batches = level.unet_batches()
    return sum(batches[step] for step in level.full_steps())


@pytest.mark.slow
def test_the_whole_ladder(project: Project, ladder: dict[str, Rung]) -> None:
    for name, rung in ladder.items():
        LEVELS[name] = rung.level  # the project fixture put quicker ones there, and undoes this
    source = ("--sdopt-source", str(project.source))
    result = project.pytester.runpytest(
        "benchmarks", "--sdopt-accept", "--benchmark-autosave", *source
    )
    # Memory and truth need CUDA and the embedded source; `baseline` has no reference; peers are not
    # installed.
    levels = len(LEVELS)
    result.assert_outcomes(passed=8 * levels - 1, skipped=2 * levels + 1 + len(RECIPES))
    rows = table(result)
    assert list(rows) == list(LEVELS)
    evaluations = [str(full_evaluations(level)) for level in LEVELS.values()]
    assert [row["UNet evals"] for row in rows.values()] == evaluations
    assert {row["verdict"] for row in rows.values()} == {"pass (latency recorded)"}
    assert len(list(project.images.parent.rglob("*.png"))) == 2 * levels
    assert len(project.histories()) == 1
