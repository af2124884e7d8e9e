"""Each value of a stored run is checked when it is read, and the file is named."""

from __future__ import annotations

import copy
import functools
import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from sdopt.bench.report import results
from sdopt.bench.stored.history import load_run, read_runs
from sdopt.bench.stored.soundness import statistics_of
from sdopt.errors import BrokenFileError
from sdopt.levels import BASELINE
from sdopt.util.hardware import Hardware

CPU = Hardware(name="cpu AMD EPYC", memory_gib=24, detail="2 cores")
STORED = Path(__file__).parents[3] / "baselines" / "history"


def a_run() -> dict[str, Any]:
    """A run on a CPU as pytest-benchmark and the plugin write it."""
    info = {
        "level": "baseline",
        "level_fields": BASELINE.as_dict(),
        "guidance_scale": 7.5,
        "device": CPU.name,
        "steps": 30,
        "stage_ms": {"text": 1.0},
        "ssim_drift": 1.0,
        "cost_is_comparable": True,
    }
    return {
        "sdopt": {
            "schema": 1,
            "hardware": CPU.key,
            "baseline_set": "embedded",
            "source": "embedded",
            "judged": ["benchmarks/test_latency.py::test_latency[baseline]"],
            "environment": {"python": "3.11.7", "torch": "2.13.0"},
        },
        "machine_info": {
            "python_version": "3.11.7",
            "machine": "x86_64",
            "sdopt": CPU.key,
            "cpu": {"brand_raw": "AMD EPYC", "count": 2},
        },
        "benchmarks": [
            {
                "params": {"level": "baseline"},
                "extra_info": info,
                "options": {"timer": "perf_counter", "disable_gc": False},
                "stats": {**statistics_of([0.3, 0.1]), "iterations": 1},
            }
        ],
    }


def test_a_sound_run_is_read(tmp_path: Path) -> None:
    path = tmp_path / "0001_a.json"
    path.write_text(json.dumps(a_run()))
    assert load_run(path, CPU, "embedded").metrics["baseline"]["latency_ms"] == pytest.approx(200)


def test_a_cpu_without_a_name_is_filed_under_its_architecture(tmp_path: Path) -> None:
    nameless = Hardware(name="cpu x86_64", memory_gib=24, detail="2 cores")
    run = a_run()
    run["sdopt"]["hardware"] = run["machine_info"]["sdopt"] = nameless.key
    run["benchmarks"][0]["extra_info"]["device"] = nameless.name
    path = tmp_path / "0001_a.json"
    path.write_text(json.dumps(run))
    assert load_run(path, nameless, "embedded").metrics


@pytest.mark.parametrize(
    "folder", sorted(STORED.glob("*/*")), ids=lambda folder: folder.parent.name
)
def test_every_run_of_this_repository_is_sound(folder: Path) -> None:
    assert read_runs(folder)


def of_another_machine(data: dict[str, Any]) -> None:
    data["machine_info"]["cpu"]["brand_raw"] = "Another CPU"


def of_fewer_cores(data: dict[str, Any]) -> None:
    data["machine_info"]["cpu"]["count"] = 0


def of_another_key(data: dict[str, Any]) -> None:
    data["machine_info"]["sdopt"] = "nvidia-h100-80gb-hbm3-80gib-700w"


def of_another_device(data: dict[str, Any]) -> None:
    data["benchmarks"][0]["extra_info"]["device"] = "NVIDIA H200"


def of_another_python(data: dict[str, Any]) -> None:
    data["machine_info"]["python_version"] = "3.1.4"


def of_another_timer(data: dict[str, Any]) -> None:
    data["benchmarks"][0]["options"]["timer"] = "process_time"


def of_another_level(data: dict[str, Any]) -> None:
    data["benchmarks"][0]["params"]["level"] = "final"


def held_twice(data: dict[str, Any]) -> None:
    data["benchmarks"] *= 2


def with_stat(name: str, value: Any) -> Callable[[dict[str, Any]], None]:
    return lambda data: data["benchmarks"][0]["stats"].update({name: value})


def with_setting(value: Any, *names: str) -> Callable[[dict[str, Any]], None]:
    def change(data: dict[str, Any]) -> None:
        info = data["benchmarks"][0]["extra_info"]
        for name in names[:-1]:
            info = info[name]
        info[names[-1]] = value

    return change


def with_block(name: str, value: Any) -> Callable[[dict[str, Any]], None]:
    return lambda data: data["sdopt"].update({name: value})


LESSER: dict[str, Any] = {
    "first_call_s": 3.0,
    "growth_mib": -0.5,
    "peak_allocated_mib": 10.0,
    "kernel_launches": 5,
    "host_syncs": 0,
    "latent_drift": 0.0,
    "calls": {"unet": 3},
    "gpu": {"power_w": 30.0, "temperature_c": -4},
    "of_a_later_version": "a word",
}
WRONG = (None, "3", "", True, -1, -1.5, math.nan, math.inf, 10**400, 1e308, [], [1], {}, {"a": "b"})


def places(value: Any, way: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Ways to every value in a run, at any depth."""
    named = value.items() if isinstance(value, dict) else enumerate(value)
    for key, inner in named:
        yield (*way, key)
        if isinstance(inner, (dict, list)):
            yield from places(inner, (*way, key))


def full_run() -> dict[str, Any]:
    run = a_run()
    run["benchmarks"][0]["extra_info"] |= copy.deepcopy(LESSER)
    return run


@pytest.mark.parametrize("way", [*places(full_run())], ids=lambda way: ".".join(map(str, way)))
def test_a_wrong_value_anywhere_is_named_or_harmless(
    way: tuple[Any, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The table of results prints, or names the file; it never dies of what it read."""
    path = tmp_path / "0001_a.json"
    for value in WRONG:
        run = full_run()
        *outer, last = way
        functools.reduce(lambda inner, key: inner[key], outer, run)[last] = value
        path.write_text(json.dumps(run))
        if results.main([str(tmp_path)]):
            assert f"error: {path} " in capsys.readouterr().err


@pytest.mark.parametrize("name", [name for name in LESSER if name != "of_a_later_version"])
def test_lesser_measurements_are_numbers(name: str, tmp_path: Path) -> None:
    path = tmp_path / "0001_a.json"
    path.write_text(json.dumps(full_run()))
    assert load_run(path, CPU, "embedded")
    signed = name == "growth_mib"
    for value in ("3", None, [1], *(() if signed else (-1,)), *(() if signed else ({"a": "b"},))):
        run = full_run()
        run["benchmarks"][0]["extra_info"][name] = value
        path.write_text(json.dumps(run))
        with pytest.raises(BrokenFileError, match=rf"0001_a\.json is not sound: .*{name}"):
            load_run(path, CPU, "embedded")


UNSOUND = {
    "mean": (with_stat("mean", 1.0), "[baseline] its mean is 1.0, its rounds make that "),
    "median": (with_stat("median", 1e9), "[baseline] its median is "),
    "rounds": (with_stat("rounds", 99), "[baseline] its rounds is 99, its rounds make that 2;"),
    "null mean": (with_stat("mean", None), "[baseline] its mean is None, "),
    "iterations": (with_stat("iterations", 5), "[baseline] a round generated 5 images, not one;"),
    "no rounds": (with_stat("data", []), "[baseline] there are no rounds: []; "),
    **{
        f"a round of {seconds!r}": (
            with_stat("data", [seconds]),
            f"[baseline] a round took {seconds!r} s; ",
        )
        for seconds in (math.nan, 0.0, -1.0, math.inf, None, True, "1")
    },
    "machine": (of_another_machine, "its machine_info says 'Another CPU', its hardware key is "),
    "cores": (of_fewer_cores, "its machine_info says 0 cores, its hardware key is "),
    "key": (
        of_another_key,
        "its machine_info says 'nvidia-h100-80gb-hbm3-80gib-700w', its hardware key is ",
    ),
    "device": (of_another_device, "[baseline] its device is 'NVIDIA H200', its hardware key "),
    "python": (of_another_python, "its machine_info is of Python 3.1.4, its environment of "),
    "timer": (of_another_timer, "[baseline] it was measured otherwise than this suite does: "),
    "level": (of_another_level, "[baseline] its parameters are of another level: "),
    "twice": (held_twice, "it holds the levels ['baseline'] more than once; "),
    "null settings": (with_setting(None, "level_fields"), "[baseline] level_fields is None, "),
    "null steps": (with_setting(None, "level_fields", "steps"), "[baseline] steps is None, "),
    "true steps": (with_setting(True, "level_fields", "steps"), "[baseline] steps is True, "),
    "text for a truth": (
        with_setting("no", "level_fields", "tf32"),
        "[baseline] tf32 is 'no', ",
    ),
    "null guidance": (with_setting(None, "guidance_scale"), "[baseline] guidance_scale is None"),
    "text guidance": (with_setting("7", "guidance_scale"), "[baseline] guidance_scale is '7'"),
    "null device": (with_setting(None, "device"), "[baseline] device is None, not a word; "),
    "NaN SSIM": (with_setting(math.nan, "ssim_drift"), "[baseline] ssim_drift is nan; "),
    "inf inside": (
        with_setting(math.inf, "stage_ms", "text"),
        "[baseline] stage_ms.text is inf; ",
    ),
    "judged": (with_block("judged", [1]), "its list of judged tests holds something else "),
    "null version": (
        with_block("environment", {"torch": None}),
        "its environment's torch is None",
    ),
    "accepted": (with_block("accepted", "false"), "accepted is 'false', not true or false; "),
}


@pytest.mark.parametrize(("change", "complaint"), UNSOUND.values(), ids=UNSOUND)
def test_a_stored_value_that_contradicts_another_or_itself(
    change: Callable[[dict[str, Any]], None], complaint: str, tmp_path: Path
) -> None:
    run = a_run()
    change(run)
    path = tmp_path / "0001_a.json"
    path.write_text(json.dumps(run))
    with pytest.raises(BrokenFileError) as caught:
        load_run(path, CPU, "embedded")
    assert f"{path} is not sound: {complaint}" in str(caught.value)
    assert "left as it is; remove it, or put a sound one there" in str(caught.value)
    assert caught.value.path == path
