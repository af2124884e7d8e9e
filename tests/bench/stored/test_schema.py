"""Each stored file is of the published schema, and what is not is named with its place."""

from __future__ import annotations

import json
import math
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator
from submitted import a_run

import sdopt
from sdopt.bench.judge.verdict import ExitCode, Outcome, Verdict
from sdopt.bench.metrics import METRICS
from sdopt.bench.report.verdicts import as_dict, write_verdicts
from sdopt.bench.stored import schema
from sdopt.bench.stored.baselines import load_work, read_image, read_limits
from sdopt.bench.stored.history import read_run
from sdopt.bench.stored.latents import FLOAT64, read_latents
from sdopt.errors import BrokenFileError
from sdopt.levels import Level
from sdopt.util.files import read_json
from studies.power.samples import read_samples

ROOT = Path(sdopt.__file__).parents[1]
STORED = ROOT / "baselines"
PUBLISHED = ROOT / "docs" / "reference" / "schemas"


@pytest.mark.parametrize("name", schema.NAMES)
def test_a_schema_is_one_and_is_published_as_it_is(name: str) -> None:
    Draft202012Validator.check_schema(schema.load(name))
    assert schema.load(name)["$schema"].endswith("2020-12/schema")
    told = (PUBLISHED / f"{name}.json").read_text(encoding="utf-8")
    assert told == schema.published(name), "python docs/tables.py writes it anew"


def test_each_schema_is_published_and_shipped() -> None:
    assert schema.NAMES == ("evaluation", "run", "verdicts")
    assert {path.stem for path in PUBLISHED.iterdir()} == {*schema.NAMES}
    packaged = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    assert '"sdopt.bench.stored" = ["schemas/*.json"]' in packaged


def test_metrics_and_fields_of_a_level_are_those_of_the_code() -> None:
    told = schema.load("run")["$defs"]["measured"]["properties"]
    for name, metric in METRICS.items():
        if name != "latency_ms":  # made from the rounds
            least, most = told[name].get("minimum", -math.inf), told[name].get("maximum", math.inf)
            assert (least, most) == (metric.least, metric.most), name
    assert set(told["level_fields"]["properties"]) == {field.name for field in fields(Level)}
    verdict = Verdict(level="final", metric="effect", outcome=Outcome.PASS, reason="why")
    assert set(schema.load("verdicts")["$defs"]["verdict"]["properties"]) == set(as_dict(verdict))


# What is stored


def stored(pattern: str) -> list[Path]:
    found = sorted(STORED.glob(pattern))
    assert found
    return found


@pytest.mark.parametrize("path", stored("history/*/*/*.json"), ids=lambda path: path.name)
def test_each_stored_run_loads(path: Path) -> None:
    run, _ = read_run(path)
    assert run.metrics


def test_all_else_that_is_stored_loads() -> None:
    seen = 0
    for path in stored("images/*/limits.json"):
        rows = read_limits(path)["levels"]
        assert "truth" not in {kind for kinds in rows.values() for kind in kinds}
        assert '"truth"' not in path.read_text(encoding="utf-8")
        seen += 1
    for path in stored("work/*.json"):
        assert load_work(path)
        seen += 1
    for path in stored("images/*/*/*.png"):
        read_image(path)
        seen += 1
    for path in stored("latents/**/*.safetensors"):
        read_latents(path, FLOAT64 if path.parent.name == FLOAT64 else "float32")
        seen += 1
    others = {"README.md", *(path.name for path in stored("history/*/*/*.json"))}
    files = [path for path in STORED.rglob("*") if path.is_file() and path.name not in others]
    assert seen == len([path for path in files if path.name != ".lock"])


def test_each_recorded_sample_loads() -> None:
    for path in sorted((ROOT / "docs" / "samples").glob("*.json")):
        data = json.loads(path.read_text(encoding="utf-8"))
        if str(data.get("schema", "")).startswith("sdopt-samples"):
            assert read_samples([path]).pairs


# What is not of the schema


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"datetime": 5}, "$.datetime is 5, expected string"),
        ({"machine_info": []}, "its machine_info is []"),
        ({"commit_info": {"dirty": "no"}}, '$.commit_info.dirty is "no", expected boolean'),
        ({"sdopt.partial": "yes"}, '$.sdopt.partial is "yes", expected boolean'),
        ({"sdopt.hardware": "A B"}, '$.sdopt.hardware is "A B", expected text like ^[a-z0-9]'),
        ({"sdopt.reason": ""}, '$.sdopt.reason is "", expected at least 1 characters'),
    ],
)
def test_the_place_the_value_and_what_was_expected_are_named(
    change: dict[str, Any], says: str, tmp_path: Path
) -> None:
    run = a_run({"final": 100.0})
    for place, value in change.items():
        *outer, last = place.split(".")
        inner = run
        for name in outer:
            inner = inner[name]
        inner[last] = value
    path = tmp_path / "0001_a.json"
    path.write_text(json.dumps(run))
    with pytest.raises(BrokenFileError) as caught:
        read_run(path)
    assert str(path) in str(caught.value)
    assert says in str(caught.value)


def test_a_long_value_is_shortened(tmp_path: Path) -> None:
    with pytest.raises(BrokenFileError, match=r"\$\.datetime is \[.{56}\.\.\., expected string"):
        schema.check(tmp_path / "x", {**a_run({"final": 1.0}), "datetime": [*range(999)]}, "run")


def verdict(**values: Any) -> Verdict:
    return Verdict(level="final", metric="latency_ms", outcome=Outcome.FAULT, reason="x", **values)


def read_verdicts(path: Path) -> dict[str, Any]:
    """The file, of the schema that the docs have."""
    data = read_json(path)
    schema.check(path, data, "verdicts")
    return data


def test_verdicts_are_read_back(tmp_path: Path) -> None:
    path = tmp_path / "verdicts.json"
    verdicts = [verdict(measured=math.nan, stored=math.inf), verdict(measured=3, runs=2)]
    write_verdicts(path, verdicts, ExitCode.FAULT, ["a::b"], {"hardware": "gpu"})
    found = read_verdicts(path)
    assert [one["measured"] for one in found["verdicts"]] == ["nan", 3]
    assert (found["exit_code"], found["run"]) == (2, {"hardware": "gpu"})


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ('"outcome": "fault"', '"outcome": "fine"', '"fine", expected one of'),
        ('"passed": false', '"passed": 0', "$.verdicts[0].passed is 0, expected boolean"),
        ('"measured": "nan"', '"measured": "lots"', '"lots", expected text like ^(nan|-?inf)$'),
        ('"reason": "x"', '"because": "x"', "$.verdicts[0]: "),
        ("sdopt-verdicts/2", "sdopt-verdicts/3", "expected 'sdopt-verdicts/2'"),
        ("{", "", "cannot be read"),
    ],
)
def test_broken_verdicts_are_named(old: str, new: str, says: str, tmp_path: Path) -> None:
    path = tmp_path / "verdicts.json"
    write_verdicts(path, [verdict(measured=math.nan)], ExitCode.FAULT, [], {})
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))
    with pytest.raises(BrokenFileError) as caught:
        read_verdicts(path)
    assert str(path) in str(caught.value)
    assert says in str(caught.value)


def test_an_unfinished_run_is_of_the_schema(tmp_path: Path) -> None:
    content = {
        "schema": "sdopt-verdicts/2",
        "exit_code": None,
        "outcome": "unfinished",
        "run": {},
        "failed_without_verdict": [],
        "verdicts": [],
    }
    path = tmp_path / "verdicts.json"
    path.write_text(json.dumps(content))
    assert read_verdicts(path)["outcome"] == "unfinished"
