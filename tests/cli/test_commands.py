"""The other commands: what they print, what they end with, and what they need installed."""

from __future__ import annotations

import io
import json
import os
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from command import ROOT, plain, refusal
from PIL import Image

from sdopt.cli import bench, doctor, levels, suite
from sdopt.cli.app import app, main
from sdopt.cli.options import shown
from sdopt.cli.progress import Steps, progress
from sdopt.errors import SdoptError
from sdopt.levels import LEVELS
from sdopt.util.precision import DTYPE

RING = "a small blue ring at the center on a white background"


def commands(group: Any) -> dict[str, Any]:
    found = {}
    for name, command in group.commands.items():
        inner = commands(command) if hasattr(command, "commands") else {"": command}
        found |= {f"{name} {rest}".strip(): one for rest, one in inner.items()}
    return found


def all_commands() -> dict[str, Any]:
    import typer

    return commands(typer.main.get_command(app))


@pytest.mark.parametrize("name", all_commands())
def test_each_command_helps_with_an_example_and_its_exit_codes(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*name.split(), "--help"]) == 0
    told = capsys.readouterr().out
    assert f"Example:\n    sdopt {name} " in told or f"Example:\n    sdopt {name}\n" in told
    assert "Exit codes: " in told


@pytest.mark.parametrize("group", ["", "baseline", "cache"])
def test_no_summary_is_cut_at_80_columns(
    group: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    assert main([*group.split(), "--help"]) == 0
    told = capsys.readouterr().out
    assert "..." not in told.split("Commands:\n")[1]
    assert ("Example:\n" in told and "Exit codes: " in told) or not group


@pytest.mark.parametrize("name", all_commands())
def test_each_option_stands_in_the_reference(name: str) -> None:
    page = (ROOT / "docs" / "reference" / "commands.md").read_text(encoding="utf-8")
    section = page.split(f"\n## sdopt {name}\n")[1].split("\n## ")[0]
    options = [o for p in all_commands()[name].params for o in p.opts if o.startswith("-")]
    assert [option for option in options if f"`{option}`" not in section] == []


def test_without_a_command_there_is_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0
    assert "Commands:" in capsys.readouterr().out
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("sdopt ")


def test_an_unknown_command_is_a_mistake(capsys: pytest.CaptureFixture[str]) -> None:
    told = refusal(capsys, "genrate")
    assert "No such command 'genrate'. Did you mean 'generate'? see sdopt --help" in told
    assert "error: No such command 'x'; see sdopt --help" in refusal(capsys, "x")
    assert "Missing argument 'PROMPT'; see" in refusal(capsys, "compare")


@pytest.mark.parametrize(
    "arguments",
    [
        ("generate", "--file", "none.txt"),
        ("generate", "--file", "none.jsonl", "--source", "embedded"),
        ("generate", "--like", "none.png"),
        ("generate", "--like", "bad.png"),
        ("cache", "check", "bad.png"),
        ("cache", "check", "."),
        ("tune", "--prove", "--out", "none.json"),
        ("baseline", "accept", "none.json"),
        ("baseline", "accept", "."),
        ("baseline", "show", "bad.png"),
    ],
)
def test_no_message_shows_what_python_says_of_an_error(
    arguments: tuple[str, ...],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """No error number, no address of an object, no file's name twice."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bad.png").write_bytes(b"x")
    (tmp_path / "baselines").mkdir()
    told = refusal(capsys, *arguments)
    assert "Errno" not in told
    assert " object at " not in told
    assert f"'{arguments[-1]}'" not in told


@pytest.mark.parametrize("prompt", ["", "  \n"])
@pytest.mark.parametrize("more", [("generate",), ("compare", "--levels", "final,turbo")])
def test_an_empty_prompt_is_refused_by_name(
    prompt: str, more: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    assert "the prompt is empty (an unset variable?)" in refusal(capsys, *more, prompt)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("generate", RING, "--level", "trubo"), "unknown level 'trubo'"),
        (("generate", RING, "--source", "nowhere"), "unknown source 'nowhere'"),
        (("generate", "a red unicorn", "--source", "embedded"), "unknown prompt word"),
        (("compare", RING, "--levels", "final,turbo", "--source", "nowhere"), "unknown source"),
        (("compare", RING, "--levels", "final,turbo", "--seed", "-1"), "--seed is -1"),
    ],
)
def test_a_wrong_option_is_told_before_a_file_that_is_there(
    arguments: tuple[str, ...], says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out.png"
    out.touch()
    assert says in refusal(capsys, *arguments, "-o", out)


def test_a_full_folder_to_unpack_into_is_no_reason_to_pack(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a").touch()
    told = refusal(capsys, "cache", "unpack", "none.tar.xz", tmp_path)
    assert told.endswith("is there and no empty folder; name another one\n")


def test_an_interrupted_command_says_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    def interrupted(arguments: object) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr(bench, "_run", interrupted)
    assert main(["bench", "--folder", str(tmp_path)]) == 130


# levels


def test_levels_for_programs(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["levels", "--json", "--baselines", str(ROOT / "baselines")]) == 0
    told = json.loads(capsys.readouterr().out)
    rows = {row["level"]: row for row in told["levels"]}
    assert list(rows) == list(LEVELS)
    assert rows["baseline"]["published_ms"] == [1300]
    assert rows["compiled"]["published_ms"] == pytest.approx([552, 547])
    assert 20 < rows["turbo"]["measured_ms"] < 60
    assert told["measured_on"]["source"] == "sd15-random"


def test_levels_without_stored_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["levels", "--baselines", str(tmp_path)]) == 0
    told = capsys.readouterr().out
    assert "no stored run" in told
    assert [name for name in LEVELS if name not in told] == []


def test_runs_of_this_hardware_come_first(tmp_path: Path) -> None:
    for place, day in (
        ("a/sd15-random", 2),
        ("b/embedded", 4),
        ("b/sd15-random", 1),
        ("c/sd15-random", 3),
        ("c-pointers/sd15-random", 5),
    ):
        (tmp_path / place).mkdir(parents=True)
        (tmp_path / place / "0001_x.json").write_text(f'{{"datetime": "2026-11-0{day}"}}')
    (tmp_path / "d" / "empty").mkdir(parents=True)
    (tmp_path / "e" / "sd15-random").mkdir(parents=True)
    (tmp_path / "e" / "sd15-random" / "0001_broken.json").write_text("{")
    assert levels.history(tmp_path, "b") == tmp_path / "b" / "sd15-random"
    assert levels.history(tmp_path, "d") == tmp_path / "c" / "sd15-random"


def test_what_keeps_a_level_from_running_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    from sdopt.pipelines import device_limits

    cpu, cuda = torch.device("cpu"), torch.device("cuda")
    monkeypatch.setattr(device_limits.shutil, "which", lambda name: None)
    monkeypatch.setattr(device_limits, "find_spec", lambda name: None)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    assert "install g++" in (levels.hindrance(LEVELS["final"], cpu) or "")
    assert levels.hindrance(LEVELS["turbo"], cpu) is None
    assert "7.5" in (levels.hindrance(LEVELS["turbo"], cuda) or "")
    assert "pip install triton" in (levels.hindrance(LEVELS["final"], cuda) or "")
    assert levels.hindrance(LEVELS["baseline"], cuda) is None


@pytest.mark.parametrize("name", ["one-graph", "fused", "turbo"])
def test_the_engine_s_levels_are_refused_on_other_devices_as_a_pipeline_refuses_them(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    assert "mps is none" in (levels.hindrance(LEVELS[name], torch.device("mps")) or "")
    monkeypatch.setattr(torch.version, "hip", "6.4")
    assert "is one of ROCm" in (levels.hindrance(LEVELS[name], torch.device("cuda")) or "")


def test_a_card_without_triton_takes_no_specialized_kernels(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """`sdopt doctor` says then that there is no Triton; it ended with a traceback."""
    import torch

    from sdopt.engine import cards

    found = SimpleNamespace(
        name="a Hopper", major=9, minor=0, multi_processor_count=132,
        shared_memory_per_block_optin=232448,
    )  # fmt: skip
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: found)
    monkeypatch.setattr(cards, "find_spec", lambda _: None)
    monkeypatch.setattr(cards, "_card_of", cards._card_of.__wrapped__)
    assert not cards.card_of(torch.device("cuda")).specialized


def test_a_damaged_table_of_tiles_is_a_line_of_the_doctor(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    from sdopt.cli import doctor
    from sdopt.engine import cards, tables
    from sdopt.util import hardware

    monkeypatch.setenv("SDOPT_TILES", str(tmp_path))
    tables.own_table(cards.H100).write_text("{")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (9, 0))
    monkeypatch.setattr(cards, "card_of", lambda _: cards.H100)
    monkeypatch.setattr(hardware, "hardware_of", lambda _: "a Hopper")
    found = doctor._device(torch.device("cuda"))
    assert found["hardware"] == "a Hopper"
    assert "sm_90-132.json is no table of tiles" in found["problem"]


# compare


@pytest.mark.parametrize(
    ("names", "reason"),
    [
        ("turbo", "name two or more"),
        ("turbo,turbo", "name two or more different ones"),
        ("turbo,trubo", "unknown level 'trubo'"),
    ],
)
def test_levels_to_compare_are_two_that_exist(
    names: str, reason: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert reason in refusal(capsys, "compare", RING, "--levels", names)


def test_a_comparison_shows_images_and_maps(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "compare.png"
    arguments = ["compare", RING, "--levels", "express,turbo", "--size", "64", "-o", str(out)]
    assert main([*arguments, "--source", "embedded", "--json"]) == 0
    first, second = json.loads(capsys.readouterr().out)["images"]
    assert (first["ssim"], second["level"]) == (None, "turbo")
    assert 0.9 < second["ssim"] < 1
    sheet = Image.open(out)
    left, top = 8, 8 + 64 + 8 + 3 * 14
    assert sheet.crop((left, top, left + 64, top + 64)).getextrema() == ((0, 0),) * 3
    beside = left + 64 + 8
    assert sheet.crop((beside, top, beside + 64, top + 64)).getextrema() != ((0, 0),) * 3
    assert "several levels" in refusal(capsys, "generate", "--like", out)
    assert "is there already" in refusal(capsys, *arguments)


# A plain installation


@pytest.mark.slow
def test_a_plain_installation_runs_all_but_the_suite(tmp_path: Path) -> None:
    out = tmp_path / "compare.png"
    names = ("--levels", "express,turbo", "--source", "embedded")
    done = plain("compare", RING, *names, "--size", "64", "-o", out)
    assert (done.returncode, out.is_file()) == (0, True), done.stderr
    assert "no SSIM: it needs scikit-image; pip install scikit-image" in done.stdout
    for command in ("levels", "doctor"):
        done = plain(command, "--json")
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout)


def test_the_suite_says_what_it_needs(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(suite, "find_spec", lambda name: None if name == "pytest" else name)
    told = refusal(capsys, "bench")
    assert (
        "the suite needs pytest; in a clone of sdopt, pip install -c constraints.txt -e '.[bench]'"
        in told
    )


# bench


@pytest.fixture
def given(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[str]:
    """What pytest would have got."""
    arguments: list[str] = []
    monkeypatch.setattr(bench, "_run", lambda found: arguments.extend(found) or 10)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "benchmarks").mkdir()
    return arguments


def test_the_suite_gets_its_own_options_and_its_code_is_passed_on(given: list[str]) -> None:
    arguments = "bench --level turbo --level final --source embedded --compare --store --accept"
    assert main([*arguments.split(), "--baselines", "mine", "--", "-x"]) == 10
    assert given == [
        "benchmarks",
        "--sdopt-source=embedded",
        "--sdopt-baselines=mine",
        "--benchmark-autosave",
        "--benchmark-compare",
        "--sdopt-accept",
        "-k",
        "[turbo] or [final]",
        "-x",
    ]


def test_pairs_and_the_self_test(given: list[str]) -> None:
    assert main(["bench", "--ab", "origin/main", "--selftest"]) == 10
    assert given == ["benchmarks", "--sdopt-ab=origin/main", "--sdopt-selftest"]


def test_a_level_that_does_not_exist_is_not_an_empty_run(
    given: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert "unknown level 'trubo'" in refusal(capsys, "bench", "--level", "trubo")
    assert "there is no folder none here" in refusal(capsys, "bench", "--folder", "none")
    assert given == []


def test_the_suite_and_its_children_are_told_the_dtype(
    given: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(DTYPE, "float32")
    assert main(["bench", "--dtype", "bfloat16"]) == 10
    assert os.environ[DTYPE] == "bfloat16"
    assert given == ["benchmarks"]
    assert "unknown --dtype 'half'" in refusal(capsys, "bench", "--dtype", "half")
    assert os.environ[DTYPE] == "bfloat16"


def test_wrong_arguments_are_a_mistake(tmp_path: Path) -> None:
    """pytest ends with 4, and 2 is what a mistake is here."""
    (tmp_path / "conftest.py").write_text('pytest_plugins = ["sdopt.bench.plugin"]')
    more = ("--", "-p", "no:cacheprovider", f"--rootdir={tmp_path}", f"--confcutdir={tmp_path}")
    assert main(["bench", "--folder", str(tmp_path), "--source", "nowhere", *more]) == 2


@pytest.mark.parametrize(("body", "code"), [("pass", 0), ("assert False", 1)])
def test_the_exit_code_is_pytest_s(body: str, code: int, tmp_path: Path) -> None:
    (tmp_path / "test_one.py").write_text(f"def test_one():\n    {body}\n")
    assert main(["bench", "--folder", str(tmp_path), "--", "-p", "no:cacheprovider"]) == code


# doctor


def test_the_doctor_for_programs(micro: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["device"]["kind"] == "cpu"
    assert told["auto"]["source"] == "embedded"
    assert told["versions"]["torch"]
    assert {cache["name"] for cache in told["caches"]} >= {"Inductor", "Triton"}
    assert told["weights"][0] == {"source": "embedded", "at_hand": True}
    assert set(told["levels"]) == set(LEVELS)
    assert told["fix"] == []


def test_the_doctor_names_a_dtype_that_is_not_one(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(DTYPE, "bf16")
    assert main(["doctor"]) == 1
    assert "$SDOPT_DTYPE: unknown dtype of a cpu device 'bf16'" in capsys.readouterr().out


def test_a_comparison_is_in_the_dtype_that_is_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    seen: list[Any] = []

    def noted(recipes: list[Any]) -> Any:
        seen.extend(recipe.dtype for recipe in recipes)
        raise SdoptError("enough")

    monkeypatch.setattr("sdopt.cli.compare._all_made", noted)
    given = ["compare", RING, "--levels", "express,turbo", "-o", str(tmp_path / "a.png")]
    assert main([*given, "--dtype", "bfloat16"]) == 2
    monkeypatch.setenv(DTYPE, "bfloat16")
    assert main(given) == 2
    monkeypatch.setenv(DTYPE, "bf16")
    capsys.readouterr()
    assert main(given) == 2
    assert "unknown dtype" in capsys.readouterr().err
    assert seen == ["bfloat16"] * 4


def test_the_doctor_says_what_to_fix_and_ends_with_1(
    micro: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(doctor, "_driver", lambda: "580.1")
    monkeypatch.setattr(doctor, "requires", lambda name: ["torch<2", "peft; extra == 'dev'"])
    assert main(["doctor"]) == 1
    told = capsys.readouterr().out
    assert "fix          there is an NVIDIA driver (580.1)" in told
    assert "pip install 'torch<2'" in told
    assert "nothing to fix" not in told


def test_other_processes_on_the_gpu_are_noted(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    from sdopt.util import hardware

    cuda = torch.device("cuda")
    monkeypatch.setattr(hardware, "nvml_handle", lambda device: "handle")
    monkeypatch.setattr(hardware, "other_processes", lambda handle: {77: 3})
    found = {
        "foreign_gpu_processes": doctor._foreign(cuda),
        "free_memory_mib": {"host": 90_000, "gpu": 100},
        "levels": {"turbo": "needs Hopper", "final": None},
        "weights": [],
    }
    notes = [*doctor._notes(cuda, found)]
    assert notes[:3] == [
        "needs Hopper",
        "process 77 uses the GPU too (3 MiB): times are not to be trusted",
        "100 MiB are free: the full model may not fit",
    ]


def test_a_cache_is_measured_by_its_files(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "file").write_bytes(b"12345")
    (tmp_path / "file").write_bytes(b"123")
    assert doctor._size(tmp_path) == 8
    assert doctor._size(tmp_path / "none") == 0


# What is shown


def test_control_characters_never_reach_the_terminal() -> None:
    assert shown("a\x1b[31m\nb") == "a [31m b"
    assert shown("abcdef", 5) == "ab..."


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(("total", "says"), [(4, "left"), (None, "0:00:0")])
def test_progress_is_shown_on_a_terminal_with_the_time_left(
    total: int | None, says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    stream = Terminal()
    monkeypatch.setattr(sys, "stderr", stream)
    monkeypatch.setenv("TERM", "xterm")
    with progress("[red]generating", total) as advance:
        steps = Steps(advance, 0)
        for _ in range(3):
            time.sleep(0.2)  # a bar is drawn ten times a second
            steps.update()
    assert "[red]generating" in stream.getvalue()
    assert says in stream.getvalue()
    assert "-:--" not in stream.getvalue()  # as long as nobody knows, the time so far


def test_levels_show_that_they_read(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    stream = Terminal()
    monkeypatch.setattr(sys, "stderr", stream)
    monkeypatch.setenv("TERM", "xterm")
    assert main(["levels", "--baselines", str(tmp_path)]) == 0
    assert "reading the stored runs" in stream.getvalue()


def test_tuning_without_a_gpu_is_refused_for_that(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not for the table that is there: another file would help nobody."""
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    for more in ((), ("--force",), ("--known",)):
        assert "there is none; run it on one" in refusal(capsys, "tune", *more)


@pytest.mark.parametrize(
    ("option", "value", "advice"),
    [
        ("--images", "", "give numbers from 1 to 256, as 1,4"),
        ("--images", "0", "give numbers from 1 to 256, as 1,4"),
        ("--images", "1,many", "give numbers from 1 to 256, as 1,4"),
        ("--images", "257", "give numbers from 1 to 256, as 1,4"),
        ("--sizes", "500", "multiples of 8"),
        ("--sizes", "512,", "multiples of 8"),
    ],
)
def test_what_tuning_cannot_generate_is_refused(
    option: str, value: str, advice: str, capsys: pytest.CaptureFixture[str]
) -> None:
    message = refusal(capsys, "tune", option, value)
    assert option in message
    assert advice in message


def test_progress_is_silent_elsewhere(capsys: pytest.CaptureFixture[str]) -> None:
    with progress("generating", 3) as advance:
        advance(1)
    assert capsys.readouterr() == ("", "")


def test_two_choices_of_levels_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    """Pytest takes the last -k, so all levels would run."""
    chosen = ("bench", "--level", "turbo", "--", "-k", "test_latency")
    assert "pytest takes the last one" in refusal(capsys, *chosen)
