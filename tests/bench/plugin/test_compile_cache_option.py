"""--sdopt-compile-cache takes compiled code from a file, and renews it after a run that passed."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from project import Project

from sdopt.compile_cache import archive, place
from sdopt.compile_cache.identity import made_here
from sdopt.util.files import write_whole

COMPILING = """
import os
from pathlib import Path

def test_compiling(level):
    kernel = Path(os.environ["TRITON_CACHE_DIR"]) / "ABC" / "{name}.cubin"
    print("found" if kernel.exists() else "compiled", kernel)
    kernel.parent.mkdir(parents=True, exist_ok=True)
    kernel.write_text("binary")
    inductor = Path(os.environ["TORCHINDUCTOR_CACHE_DIR"])
    assert {passes}
"""
Run = Callable[..., pytest.RunResult]


@pytest.fixture
def file(project: Project, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(project.path / "xdg"))
    monkeypatch.delenv("TRITON_CACHE_DIR", raising=False)
    return project.path / "kept" / "cache.tar.xz"


@pytest.fixture
def run(project: Project, file: Path) -> Run:
    """One run of a benchmark that compiles a kernel unless it finds it."""

    def run(*options: str, name: str = "one", passes: bool = True) -> pytest.RunResult:
        text = COMPILING.format(name=name, passes=passes)
        write_whole(project.path / "benchmarks" / "test_compiling.py", text.encode())
        return project.run(
            f"--sdopt-compile-cache={file}", "-rP", *options, tests="benchmarks/test_compiling.py"
        )

    return run


def folders() -> list[str]:
    return sorted(path.name for path in place.root().iterdir())


def test_a_missing_file_is_told_of_and_written_after_the_run(run: Run, file: Path) -> None:
    result = run()
    assert result.ret == 0
    result.stdout.fnmatch_lines(
        [
            f"sdopt: compile cache {file} does not exist: refused, it will be rebuilt if *",
            "compiled *fresh-*/triton/ABC/one.cubin",
            f"stored compile cache {file}: 0.0 MB, 1 files, 1 of them new",
        ]
    )
    assert list(archive.read(file)[0].files) == ["triton/ABC/one.cubin"]
    assert archive.read(file)[0].made_for == made_here()
    assert folders() == []
    assert "TRITON_CACHE_DIR" not in os.environ


def test_a_file_that_fits_is_used_and_left_as_it_is(run: Run, file: Path) -> None:
    run()
    before = file.stat()
    result = run()
    assert result.ret == 0
    result.stdout.fnmatch_lines(
        [
            f"sdopt: compile cache {file}: 0.0 MB, 1 files of 0.0 MB, in {place.root()}/*",
            f"found {place.root()}/*/triton/ABC/one.cubin",
        ]
    )
    result.stdout.no_fnmatch_line("stored compile cache*")
    assert file.stat() == before or file.stat().st_mtime_ns == before.st_mtime_ns
    assert folders() == [archive.read(file)[0].digest]


def test_what_was_compiled_meanwhile_is_added(run: Run, file: Path) -> None:
    run()
    run(name="two").stdout.fnmatch_lines([f"stored compile cache {file}: *, 2 files, 1 of them *"])
    assert sorted(archive.read(file)[0].files) == ["triton/ABC/one.cubin", "triton/ABC/two.cubin"]


def test_a_foreign_file_is_refused_by_name_and_rebuilt(run: Run, file: Path) -> None:
    stale = made_here() | {"triton": "3.5.0"}
    archive.pack(file, {"triton/OLD/k.cubin": b"old"}, made_for=stale, levels=(), source="micro")
    result = run()
    here = made_here()["triton"]
    result.stdout.fnmatch_lines(
        [
            f"sdopt: compile cache {file} is of triton 3.5.0, this is {here}: refused, it will be "
            "rebuilt if this run passes",
            f"stored compile cache {file}: *",
        ]
    )
    assert list(archive.read(file)[0].files) == ["triton/ABC/one.cubin"]


def test_a_truncated_file_is_refused_by_name_and_rebuilt(run: Run, file: Path) -> None:
    run()
    file.write_bytes(file.read_bytes()[:-9])
    result = run()
    result.stdout.fnmatch_lines(
        [f"*compile cache {file} is truncated or no tar.xz file*: refused*"]
    )
    assert list(archive.read(file)[0].files) == ["triton/ABC/one.cubin"]


def test_a_run_that_failed_leaves_the_file_as_it_is(run: Run, file: Path) -> None:
    run()
    truncated = file.read_bytes()[:-9]
    file.write_bytes(truncated)
    result = run(passes=False)
    assert result.ret != 0
    result.stdout.fnmatch_lines([f"compile cache {file} was left as it is: this run did not pass"])
    assert file.read_bytes() == truncated


def test_a_file_that_is_no_compile_cache_is_never_replaced(run: Run, file: Path) -> None:
    file.parent.mkdir()
    file.write_text("my notes")
    result = run()
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines([f"*{file} is no compile cache*name another file, or delete it*"])
    assert file.read_text() == "my notes"
    assert not place.root().exists()


def test_a_folder_is_refused(run: Run, file: Path) -> None:
    file.mkdir(parents=True)
    result = run()
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines([f"*{file} is a folder; name a file in it"])


def test_a_run_that_compiled_nothing_writes_no_file(run: Run, file: Path) -> None:
    result = run("--collect-only")
    assert result.ret == 0
    result.stdout.fnmatch_lines([f"compile cache {file} was not written: nothing was compiled"])
    assert not file.exists()


def test_a_place_that_cannot_be_written_is_a_warning(run: Run, file: Path) -> None:
    file.parent.write_text("a file, where a folder has to be")
    result = run()
    assert result.ret == 0
    result.stdout.fnmatch_lines([f"warning: compile cache {file} could not be written (*"])


def test_a_read_only_place_is_a_warning(
    run: Run, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def read_only(path: Path, content: bytes) -> None:
        raise OSError(30, "Read-only file system", str(path))

    monkeypatch.setattr(archive, "write_whole", read_only)
    result = run()
    assert result.ret == 0
    result.stdout.fnmatch_lines(["warning: compile cache * (*Read-only file system*); the next *"])
    assert not file.exists()


def test_without_a_private_folder_the_run_is_refused(run: Run, project: Project) -> None:
    (project.path / "xdg").write_text("a file")
    result = run()
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["*no private folder can be made in*let $XDG_CACHE_HOME name*"])


@pytest.mark.parametrize("mode", ["--sdopt-ab=main", "--sdopt-selftest"])
def test_modes_with_caches_of_their_own_refuse_it(run: Run, mode: str) -> None:
    result = run(mode)
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["*cannot be combined with --sdopt-compile-cache; drop one"])


def test_distributed_runs_refuse_it(run: Run) -> None:
    pytest.importorskip("xdist")
    result = run("-n", "2")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["*--sdopt-compile-cache cannot be combined with -n; drop one"])


def test_without_the_option_nothing_is_touched(project: Project, file: Path) -> None:
    project.run("--collect-only")
    assert not place.root().exists()
