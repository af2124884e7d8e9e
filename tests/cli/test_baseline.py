"""`sdopt history` and `sdopt baseline`: what they show, ask, refuse and write."""

from __future__ import annotations

import errno
import io
import json
import re
from pathlib import Path

import pytest
from command import plain, refusal
from submitted import KEY, LEVEL_NAMES, SET, a_run, a_store, history, state, submit

from sdopt.bench.stored.accepting import digest, journal_path
from sdopt.bench.stored.history import run_paths, save_run
from sdopt.cli.app import main
from sdopt.util.files import write_whole

SLOWER = {"baseline": 100.0, "final": 200.0}


@pytest.fixture
def clone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder: baselines, a CHANGELOG, and a run that is slower and of other images."""
    folder = tmp_path / "clone"
    a_store(folder / "baselines")
    (folder / "CHANGELOG.md").write_text("# Changelog\n\n- One.\n")
    submit(folder, a_run(SLOWER), seed=9)
    monkeypatch.chdir(folder)
    return folder


class Keyboard(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_dry_run_shows_all_and_writes_nothing(
    clone: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = state(clone)
    assert main(["baseline", "accept", "run.json", "--dry-run"]) == 0
    told = capsys.readouterr().out
    assert "final              latency_ms" in told
    assert "+100.00 %  regression" in told
    assert "image final/red-star: " in told
    assert "latents baseline/blue-ring: 64 of 64 values" in told
    assert told.endswith("nothing was written (--dry-run)\n")
    assert state(clone) == before


def test_for_programs(clone: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["baseline", "accept", "run.json", "--dry-run", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["needs_reason"] is True
    outcomes = {(v["level"], v["metric"]): v["outcome"] for v in told["verdicts"]}
    assert outcomes["final", "latency_ms"] == "regression"
    assert len(told["files"]) == 8


def test_a_reason_and_a_yes_are_needed(clone: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = state(clone)
    for given in ((), ("--yes",), ("--reason", " ")):
        assert main(["baseline", "accept", "run.json", *given]) == 2
        assert "--reason" in capsys.readouterr().err
    assert main(["baseline", "accept", "run.json", "--reason", "meant"]) == 2
    assert "give --yes" in capsys.readouterr().err
    assert state(clone) == before
    assert main(["baseline", "accept", "run.json", "--reason", "meant", "--yes"]) == 0
    assert "CHANGELOG.md: - **Moved baseline**" in capsys.readouterr().out
    assert (clone / "CHANGELOG.md").read_text().count("Reason: meant") == 1


@pytest.mark.parametrize(("answer", "code"), [("y\n", 0), ("n\n", 1), ("\n", 1)])
def test_somebody_at_the_keyboard_is_asked(
    answer: str, code: int, clone: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin", Keyboard(answer))
    assert main(["baseline", "accept", "run.json", "--reason", "meant"]) == code
    assert len(run_paths(history(clone / "baselines"))) == (7 if code == 0 else 6)


def test_without_a_changelog_the_line_is_shown(
    clone: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (clone / "CHANGELOG.md").unlink()
    accept = ["baseline", "accept", "run.json", "--reason", "meant", "--yes"]
    assert main(accept) == 0
    assert "no CHANGELOG: - **Moved baseline**" in capsys.readouterr().out
    assert not (clone / "CHANGELOG.md").exists()


def test_another_changelog_is_named(clone: Path) -> None:
    (clone / "docs").mkdir()
    more = ("--changelog", "docs/NEWS.md", "--reason", "meant", "--yes")
    assert main(["baseline", "accept", "run.json", *more]) == 0
    assert (clone / "docs" / "NEWS.md").read_text().endswith("Reason: meant\n")
    assert (clone / "CHANGELOG.md").read_text() == "# Changelog\n\n- One.\n"


def test_what_a_file_says_is_shown_in_one_line(
    clone: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = json.loads((clone / "run.json").read_text())
    data["datetime"] = "\x1b[31m2026\n"
    (clone / "run.json").write_text(json.dumps(data))
    assert main(["baseline", "accept", "run.json", "--dry-run"]) == 0
    assert "\x1b" not in capsys.readouterr().out


def test_old_numbers_precisions_and_all_that_is_not_fine_are_told(
    clone: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save_run(history(clone / "baselines"), "new", a_run(SLOWER, ssim_drift=0.875))
    submit(clone, a_run(SLOWER, ssim_drift=0.5), seed=9)
    assert main(["baseline", "accept", "run.json", "--dry-run"]) == 0
    told = capsys.readouterr().out
    assert re.search(r"final +ssim_drift +0\.875 +-?0\.\d+ ", told)
    assert "float32 latents final/red-star: 64 of 64 values" in told
    refused = refused_accept(capsys)
    number, named = re.search(r"(\d+) verdicts are not fine: (.*); say why", refused).groups()
    more = re.search(r"; and (\d+) more, which --dry-run shows", named)
    assert int(number) == 3 + int(more[1])


def refused_accept(capsys: pytest.CaptureFixture[str], *more: str) -> str:
    capsys.readouterr()
    assert main(["baseline", "accept", "run.json", "--yes", *more]) == 2
    return capsys.readouterr().err


def test_a_reason_stays_text_in_the_changelog(clone: Path) -> None:
    evil = "<img src=x> for @octocat [x](http://e.example) `a` *b* \x1b[31m &amp; latency_ms"
    assert main(["baseline", "accept", "run.json", "--reason", evil, "--yes"]) == 0
    from markdown_it import MarkdownIt

    parsed = MarkdownIt("commonmark").parse((clone / "CHANGELOG.md").read_text())
    tokens = [inner for one in parsed for inner in (one, *(one.children or ()))]
    assert not {"html_inline", "link_open", "em_open", "html_block"} & {one.type for one in tokens}
    shown = "".join(one.content for one in tokens if one.type == "text")
    assert (
        "<img src=x> for @\u200boctocat [x](http://e.example) `a` *b*  [31m &amp; latency_ms"
        in shown
    )


def test_a_disk_that_is_full_or_read_only_is_named(
    clone: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    before = state(clone)

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr("os.fsync", full)
        told = refused_accept(capsys, "--reason", "meant")
    assert "No space left on device; make room there" in told
    assert str(Path("baselines") / "unfinished") in told
    (clone / "CHANGELOG.md").chmod(0o444)
    told = refused_accept(capsys, "--reason", "meant")
    assert "CHANGELOG.md cannot be written: it is read-only; make it writable" in told
    assert state(clone) == before


# list, show, prune


def test_what_is_stored_is_listed(clone: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["baseline", "list"]) == 0
    told = capsys.readouterr().out
    assert f"{KEY}, {SET}: 6 runs, " in told
    assert "newest 0006_nightly.json; 0 judge nothing" in told
    assert f"{SET}: 4 images and 4 latents of 2 levels, " in told
    assert main(["baseline", "list", "--json"]) == 0
    listed = json.loads(capsys.readouterr().out)
    assert listed["histories"][0]["runs"] == 6
    assert listed["unfinished"] == []


def test_a_run_is_shown(clone: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["baseline", "show", "3"]) == 0
    told = capsys.readouterr().out
    assert "0003_nightly.json" in told
    assert "commit       0123456789ab" in told
    assert "accepted     no" in told
    assert "judges       baseline, final" in told
    assert main(["baseline", "show", "run.json", "--json"]) == 0
    levels = json.loads(capsys.readouterr().out)["levels"]
    assert levels["final"]["latency_ms"] == pytest.approx(200.0)
    assert "no run '77'" in refusal(capsys, "baseline", "show", "77")
    save_run(clone / "baselines/history/gpu/embedded", "a", a_run(SLOWER, {"hardware": "gpu"}))
    assert "--hardware gpu --source embedded" in refusal(capsys, "baseline", "show", "3")


def test_what_a_run_judges_is_shown(clone: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """By the rule of the gate: an accepted run of some levels judges them at once."""
    folder = history(clone / "baselines")
    save_run(folder, "a", a_run({"final": 80.0}, {"accepted": True}), partial=True)
    save_run(folder, "b", a_run({"baseline": 90.0}), partial=True)
    for number, judges in ((6, "baseline"), (7, "final"), (8, "nothing")):
        assert main(["baseline", "show", str(number)]) == 0
        assert f"judges       {judges}\n" in capsys.readouterr().out
    assert main(["history", "--hardware", KEY, "--metric", "latency_ms"]) == 0
    told = capsys.readouterr().out
    assert "(90 ms)  0008_b_partial.json" in told
    assert "   80 ms  0007_a_partial.json" in told


def test_an_interrupted_accept_names_what_is_in_its_way(
    clone: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = clone / "baselines"
    journal = journal_path(root, SET, "baseline-accept")
    about = {"before": digest(b"old"), "after": digest(b"new")}
    entries = {"../CHANGELOG.md": about, "images/a.png": {**about, "before": None}}
    write_whole(journal, json.dumps({"levels": ["final"], "files": entries}).encode())
    write_whole(root / "images" / "a.png", b"new")
    assert main(["baseline", "accept", "run.json", "--dry-run"]) == 2
    assert f"git checkout -- {clone / 'CHANGELOG.md'}" in capsys.readouterr().err
    (clone / "CHANGELOG.md").write_bytes(b"old")
    assert main(["baseline", "accept", "run.json", "--reason", "meant", "--yes"]) == 0
    assert "undid the rest of an accept" in capsys.readouterr().err
    assert not journal.exists()


def test_pruning_asks_and_needs_git(clone: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["baseline", "prune"]) == 0
    assert "0 runs of 0.00 MiB may go, 6 stay" in capsys.readouterr().out
    save_run(history(clone / "baselines"), "new", a_run(SLOWER, {"accepted": True}))
    assert main(["baseline", "prune", "--dry-run"]) == 0
    assert "6 runs of " in capsys.readouterr().out
    assert main(["baseline", "prune", "--yes"]) == 2
    assert "not in git as they are" in capsys.readouterr().err
    assert main(["baseline", "prune", "--unsaved"]) == 2
    assert "give --yes" in capsys.readouterr().err
    assert len(run_paths(history(clone / "baselines"))) == 7
    assert main(["baseline", "prune", "--unsaved", "--yes", "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)["removed"]) == 6
    assert len(run_paths(history(clone / "baselines"))) == 1
    assert "--keep is 2" in refusal(capsys, "baseline", "prune", "--keep", "2")


# history


def test_the_history_of_a_machine(clone: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["history", "--hardware", KEY]) == 0
    told = capsys.readouterr().out
    assert "final              latency_ms" in told
    assert "6 judge, 6 stored" in told
    assert "0123456789ab" not in told
    assert main(["history", "--hardware", KEY, "--level", "final"]) == 0
    told = capsys.readouterr().out
    assert told.count("0123456789ab") == 6
    assert "baseline  " not in told
    assert main(["history", "--hardware", "all", "--metric", "latency_ms", "--json"]) == 0
    listed = json.loads(capsys.readouterr().out)
    assert listed["hardware"] == [KEY]
    (found,) = listed["histories"]
    assert [line["level"] for line in found["lines"]] == [*LEVEL_NAMES]
    assert found["lines"][0]["median"] == pytest.approx(100.0)


def test_without_runs_of_this_machine_the_keys_are_named(
    clone: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    told = refusal(capsys, "history")
    assert "no run of this machine (cpu-" in told
    assert KEY in told
    assert "unknown hardware key 'h100'" in refusal(capsys, "history", "--hardware", "h100")


def test_without_the_suite_they_say_what_they_need() -> None:
    for command in ("history", "baseline list"):
        done = plain(*command.split())
        assert done.returncode == 2
        assert "the suite needs " in done.stderr
        assert "pip install sdopt[bench]" in done.stderr
