"""The breakdown of a first image names every part once, and its parts add up."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from dataclasses import replace
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType

import pytest

from sdopt.levels import BASELINE
from studies import cold_start as first_image
from studies.cold_start import (
    Breakdown,
    Imports,
    break_down,
    imports_since,
    lines,
    main,
    parts_of,
)

EAGER_PARTS = [
    "python",
    "import torch",
    "begin to prepare",
    "import transformers",
    "import diffusers",
    "import sdopt",
    "device",
    "weights",
    "level",
    "wait until prepared",
    "first image",
]


def test_an_eager_level_has_every_part_but_the_compilers(micro: Path) -> None:
    found = break_down(replace(BASELINE, steps=2), str(micro))
    assert list(found.seconds) == EAGER_PARTS
    assert min(found.seconds.values()) >= 0
    assert found.first_image_s == sum(found.seconds.values())
    assert (found.level, found.device, found.compile_cache) == ("baseline", "cpu", "eager")
    assert found.second_image_s > 0
    assert found.second_image_processor_s > 0
    assert list(found.processor_s) == EAGER_PARTS[1:-1]
    assert found.imports.modules["torch"] > 1000
    assert list(found.imports.modules.values()) == sorted(
        found.imports.modules.values(), reverse=True
    )


@pytest.mark.parametrize(("cache", "how"), [("cold", "compile"), ("warm", "load compiled code")])
def test_a_compiled_image_is_traced_then_compiled_or_loaded(
    cache: str, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from torch._dynamo import utils

    from sdopt.bench.measure import FirstCall

    times = {first_image.COMPILING: [5.0, 3.0], first_image.IN_BACKEND: [1.0, 1.0]}
    monkeypatch.setattr(utils, "compilation_time_metrics", times)
    parts = parts_of(FirstCall(seconds=10.0, compile_cache=cache))
    assert parts == {
        "first image: trace": 6.0,
        f"first image: {how}": 2.0,
        "first image: rest": 2.0,
    }


def test_dynamo_keeps_its_times_under_the_names_that_are_read() -> None:
    import torch
    from torch._dynamo.utils import compilation_time_metrics

    def twice(x: torch.Tensor) -> torch.Tensor:
        return 2 * x

    torch.compile(twice, backend="eager")(torch.ones(1))
    assert {first_image.COMPILING, first_image.IN_BACKEND} <= set(compilation_time_metrics)


def test_the_age_of_a_process_counts_from_its_start() -> None:
    code = (
        "from studies.cold_start import process_age_s; import time;"
        "age = process_age_s(); time.sleep(0.2); print(age, process_age_s() - age)"
    )
    start = time.perf_counter()
    answer = subprocess.run(
        (sys.executable, "-c", code),
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=True,
    )
    age, slept = map(float, answer.stdout.split())
    assert 0 <= age < time.perf_counter() - start + 0.1
    assert slept >= 0.15 or age == 0


def test_no_package_is_imported_before_it_is_timed() -> None:
    code = "import studies.cold_start, sys; print(*sys.modules)"
    answer = subprocess.run(
        (sys.executable, "-c", code),
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=True,
    )
    assert set(answer.stdout.split()) & {"torch", "diffusers", "transformers"} == set()


def test_modules_whose_bytecode_is_new_or_missing_count_as_compiled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = tmp_path / "cache.pyc"
    module = ModuleType("compiled_once")
    module.__spec__ = ModuleSpec("compiled_once", None)
    module.__spec__.cached = str(cache)
    before = imports_since(time.time() + 60).compiled
    monkeypatch.setitem(sys.modules, "compiled_once", module)
    assert imports_since(time.time() + 60).compiled == before + 1  # it is missing
    cache.touch()
    assert imports_since(time.time() + 60).compiled == before
    assert imports_since(0).compiled > before


def test_the_lines_hold_each_part_and_the_sum() -> None:
    found = Breakdown(
        level="final",
        source="embedded",
        device="cpu",
        compile_cache="warm",
        seconds={"python": 1.0, "import torch": 2.5},
        processor_s={"import torch": 1.5},
        imports=Imports(modules={"torch": 1161, "sympy": 419}, compiled=3),
        second_image_s=0.5,
        second_image_processor_s=0.75,
    )
    assert lines(found) == [
        "final, embedded, cpu, compile cache: warm",
        "    1.00 s  python",
        "    2.50 s  import torch (1.50 s of processor time)",
        "    3.50 s  from the start to the first image",
        "   0.500 s  second image, 0.750 s of processor time",
        "modules: 1161 torch, 419 sympy",
        "3 modules without stored bytecode, so Python compiled them",
    ]


def test_the_command_prints_and_stores(
    micro: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(first_image, "get_level", lambda name: replace(BASELINE, steps=2))
    file = tmp_path / "found.json"
    assert main(["baseline", "--source", str(micro), "--json", str(file)]) == 0
    stored = json.loads(file.read_text(encoding="utf-8"))
    assert list(stored["seconds"]) == EAGER_PARTS
    assert "from the start to the first image" in capsys.readouterr().out


@pytest.mark.parametrize("arguments", [["fastest"], ["baseline", "--source", "no-such-source"]])
def test_a_mistake_is_named(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(arguments)
    assert arguments[-1] in capsys.readouterr().err
