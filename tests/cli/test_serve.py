"""The options of `sdopt serve`: each wrong one is named before anything is loaded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from command import ROOT, refusal

from sdopt.cli import serve as command
from sdopt.cli.app import main
from sdopt.service import server
from sdopt.service.settings import Settings

_OPTIONS = [
    "--" + name.replace("_", "-")
    for name, kind in command.serve.__annotations__.items()
    if "bool" not in kind and name != "return"
]
"""That take a value."""


def settings_of(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> Settings:
    seen: list[Settings] = []

    def run(settings: Settings, started: Any) -> int:
        seen.append(settings)
        return 0

    monkeypatch.setattr(server, "run", run)
    assert main(["serve", *arguments]) == 0
    return seen[0]


def test_defaults_are_the_settings_own(monkeypatch: pytest.MonkeyPatch) -> None:
    assert settings_of(monkeypatch) == Settings()


def test_options_become_settings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    keys.write_text("one-key\n\nanother-key\n")
    keys.chmod(0o600)
    given = settings_of(
        monkeypatch,
        *("--level", "final", "--source", "embedded", "--host", "::1", "--port", "0"),
        *("--devices", "cuda:0,cuda:1", "--sizes", "512,512x768", "--max-batch", "2", "--wait"),
        *("0", "--max-queue", "9", "--max-size", "1024", "--max-steps", "30", "--grace", "3"),
        *("--max-prompt-length", "77", "--max-images", "2", "--cold", "--stuck", "60"),
        *("--api-key-file", str(keys)),
    )
    assert given == Settings(
        level="final",
        source="embedded",
        host="::1",
        port=0,
        devices=("cuda:0", "cuda:1"),
        sizes=((512, 512), (512, 768)),
        max_batch=2,
        wait_ms=0,
        max_queue=9,
        max_size=1024,
        max_steps=30,
        grace_s=3,
        max_prompt_length=77,
        max_images=2,
        cold=True,
        stuck_s=60,
        api_keys=("one-key", "another-key"),
    )


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--level", "turboo"), "did you mean 'turbo'?"),
        (("--port", "99999"), "--port is 99999"),
        (("--max-batch", "0"), "--max-batch is 0"),
        (("--max-batch", "17"), "16 or less"),
        (("--max-queue", "-1"), "--max-queue is -1"),
        (("--wait", "-1"), "--wait is -1.0 ms; give 0 to 60000"),
        (("--wait", "nan"), "--wait is nan"),
        (("--wait", "1e308"), "--wait is 1e+308 ms; give 0 to 60000"),
        (("--grace", "inf"), "--grace is inf s; give 0 to 86400"),
        (("--stuck", "0"), "--stuck is 0.0 s; give 0.1 to 86400"),
        (
            ("--max-size", "256", "--sizes", "64,512"),
            "--max-size is 256, and --sizes names 512x512",
        ),
        (("--sizes", "500x"), "--sizes is '500x'"),
        (("--sizes", "500x501"), "multiples of 8"),
        (("--max-size", "-8"), "--max-size is '-8'"),
        (("--devices", "gpu"), "--devices names 'gpu'"),
        (("--devices", "cuda:0,auto"), "name each GPU once"),
    ],
)
def test_wrong_options_are_named(
    capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], words: str
) -> None:
    assert words in refusal(capsys, "serve", *arguments)


@pytest.mark.parametrize("value", ["", " "])
@pytest.mark.parametrize("option", sorted(_OPTIONS))
def test_an_empty_value_is_named(
    capsys: pytest.CaptureFixture[str], option: str, value: str
) -> None:
    """An unset variable of a shell: `--host ""` would listen on every address."""
    assert f"{option} " in refusal(capsys, "serve", option, value).replace("'", " ")


@pytest.mark.parametrize("option", sorted({*_OPTIONS} - {"--api-key-file"}))
@pytest.mark.parametrize("value", ["9" * 4000, "-" + "9" * 4000, "9" * 5000, "x" * 4000])
def test_a_long_value_is_not_repeated(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    option: str,
    value: str,
) -> None:
    monkeypatch.setattr(server, "run", lambda settings, started: 2)
    capsys.readouterr()
    assert main(["serve", option, value]) == 2
    assert len(capsys.readouterr().err) < 600


def test_keys_that_others_may_read_are_refused(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    keys = tmp_path / "keys"
    assert "cannot be read" in refusal(capsys, "serve", "--api-key-file", keys)
    keys.write_text("\n")
    assert "holds no key" in refusal(capsys, "serve", "--api-key-file", keys)
    keys.write_text("one key\n")
    keys.chmod(0o644)
    assert f"chmod 600 {keys}" in refusal(capsys, "serve", "--api-key-file", keys)
    keys.chmod(0o600)
    assert "hold blanks" in refusal(capsys, "serve", "--api-key-file", keys)


def test_what_is_not_installed_is_named_with_the_command(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(command, "NEEDED", ("fastapi", "no_such_package"))
    assert "needs no_such_package; in a clone of sdopt, pip install -c" in refusal(capsys, "serve")


def test_the_extra_brings_what_is_needed() -> None:
    import tomllib

    extra = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    named = {
        line.split(">")[0].replace("-", "_") for line in extra["optional-dependencies"]["serve"]
    }
    assert set(command.NEEDED) <= named


def test_a_source_that_is_not_there_ends_the_command(
    capfd: pytest.CaptureFixture[str],
) -> None:
    assert main(["serve", "--source", "./nowhere", "--port", "0"]) == 2
    told = capfd.readouterr()
    assert told.err.splitlines()[-1].startswith(
        "error: sdopt serve cannot go on: auto: there is no"
    )
