"""Faults of the harness: each is a run of pytest in a folder of its own, which must not pass.

The runs measure one level with few steps and rounds: what is tested is what surrounds the numbers.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sdopt.bench.faults.fault import Finding
from sdopt.bench.judge.verdict import ExitCode
from sdopt.bench.stored.history import RUN_NAME
from sdopt.bench.stored.soundness import statistics_of
from sdopt.util.children import python_path

LEVEL = "baseline"
PATIENCE = 100.0
"""How many times longer than measured the stored time is: other work on the machine must not fail
what has to pass."""
TIMEOUT_S = 600
CONFTEST = '''"""Few steps, rounds and prompts: these runs test the harness, not the pipeline."""

import gc
from dataclasses import replace

from sdopt.bench.measure import timing
from sdopt.levels import LEVELS
from sdopt.pipelines import workload

pytest_plugins = ("sdopt.bench.plugin",)
timing.ROUNDS = dict.fromkeys(timing.ROUNDS, 2)
timing.STAGE_ROUNDS = 1
workload.EMBEDDED_REQUESTS = workload.EMBEDDED_REQUESTS[:1]
LEVELS["baseline"] = replace(LEVELS["baseline"], steps=2)
gc.freeze()  # pytest ends with five full collections: a tenth of such a run
'''
INI = "[pytest]\naddopts = --strict-markers --tb=short -p no:cacheprovider\n"

Change = Callable[["Folder"], None]


@dataclass(frozen=True, kw_only=True)
class Folder:
    """A folder with benchmarks/, baselines/ and one stored run."""

    path: Path

    @property
    def run_file(self) -> Path:
        """The one stored run."""
        return next(iter(self.path.glob("baselines/history/*/*/*.json")))

    def edit_run(self, change: Callable[[dict[str, Any]], None]) -> None:
        """Change the stored run."""
        data = json.loads(self.run_file.read_text(encoding="utf-8"))
        change(data)
        self.run_file.write_text(json.dumps(data), encoding="utf-8")

    def edit_latency(self, old: str, new: str) -> None:
        """Change the latency benchmark."""
        path = self.path / "benchmarks" / "test_latency.py"
        path.write_text(path.read_text(encoding="utf-8").replace(old, new), encoding="utf-8")

    def pytest(self, *options: str) -> subprocess.CompletedProcess[str]:
        """Run the latency and the work benchmarks of one level, to the end; or another `-k`."""
        process = self.start(*options)
        (output,) = outputs_of(process)
        return subprocess.CompletedProcess(process.args, process.returncode, output)

    def start(self, *options: str, **variables: str) -> subprocess.Popen[str]:
        """Begin such a run, with these environment variables."""
        command = (
            *(sys.executable, "-m", "pytest", "benchmarks/", "--sdopt-source=embedded"),
            *("-k", f"[{LEVEL}] and (latency or work)", *options),
        )
        environment = {
            "OMP_WAIT_POLICY": "PASSIVE",  # threads that spin take the cores from other runs
            **os.environ,
            "PYTHONPATH": python_path(),
            "PYTHONDONTWRITEBYTECODE": "1",
            **variables,
        }
        return subprocess.Popen(
            command,
            cwd=self.path,
            env=environment,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )


def outputs_of(*processes: subprocess.Popen[str]) -> list[str]:
    """What each wrote, when all have ended; none is left if this one is interrupted.

    It would go on, and write into a folder that is removed.
    """
    try:
        return [process.communicate(timeout=TIMEOUT_S)[0] for process in processes]
    except BaseException:
        for process in processes:
            process.kill()
            process.communicate()
        raise


@dataclass(frozen=True, kw_only=True)
class HarnessFault:
    """A change of the folder or of the command, the exit code it must lead to, and what it says."""

    name: str
    code: ExitCode
    says: str
    change: Change = field(default=lambda folder: None)
    options: tuple[str, ...] = ("--benchmark-compare",)

    @property
    def id(self) -> str:
        """How the self-test's table and pytest call it."""
        return f"harness: {self.name}"


def _scaled(factor: float) -> Change:
    def change(data: dict[str, Any]) -> None:
        for entry in data["benchmarks"]:
            rounds = [factor * seconds for seconds in entry["stats"]["data"]]
            entry["stats"] |= statistics_of(rounds)

    return lambda folder: folder.edit_run(change)


def _of_another_gpu(data: dict[str, Any]) -> None:
    data["sdopt"]["hardware"] = "nvidia-a100-80gb-500-w"


def _foreign(data: dict[str, Any]) -> None:
    del data["sdopt"]


def _of_other_rounds(data: dict[str, Any]) -> None:
    data["benchmarks"][0]["stats"]["mean"] *= 2


def _of_another_machine(data: dict[str, Any]) -> None:
    data["machine_info"]["sdopt"] = "nvidia-a100-80gb-500-w"


def _without_settings(data: dict[str, Any]) -> None:
    data["benchmarks"][0]["extra_info"]["level_fields"] = None


def _truncated(folder: Folder) -> None:
    path = folder.run_file
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def harness_faults() -> list[HarnessFault]:
    """Every one."""
    return [*_faults_of_the_run(), *_faults_of_the_history()]


def _faults_of_the_run() -> list[HarnessFault]:
    """A control, and runs that leave something out."""
    broken = ExitCode.FAULT
    return [
        HarnessFault(name="none (control)", code=ExitCode.PASS, says=" passed"),
        HarnessFault(
            name="a benchmark removed",
            code=broken,
            says="reached no verdict",
            change=lambda folder: (folder.path / "benchmarks" / "test_latency.py").unlink(),
        ),
        HarnessFault(
            name="a benchmark renamed",
            code=broken,
            says="reached no verdict",
            change=lambda folder: folder.edit_latency("def test_latency", "def test_latency_two"),
        ),
        HarnessFault(
            name="a benchmark skipped",
            code=broken,
            says="reached no verdict",
            change=lambda folder: folder.edit_latency(
                "    record = ", '    import pytest\n    pytest.skip("later")\n    record = '
            ),
        ),
        HarnessFault(
            name="distributed by xdist",
            code=broken,
            says="distributed by xdist",
            options=("--benchmark-compare", "-n", "1"),  # one worker is a worker, too
        ),
        HarnessFault(
            name="benchmarks disabled",
            code=broken,
            says="--benchmark-disable",
            options=("--benchmark-compare", "--benchmark-disable"),
        ),
    ]


def _faults_of_the_history() -> list[HarnessFault]:
    """Stored runs that are missing, broken, foreign or faster."""
    broken = ExitCode.FAULT
    return [
        HarnessFault(
            name="an empty history",
            code=broken,
            says="no stored run",
            change=lambda folder: folder.run_file.unlink(),
        ),
        HarnessFault(
            name="a truncated history", code=broken, says="cannot be read", change=_truncated
        ),
        HarnessFault(
            name="a foreign history",
            code=broken,
            says="was not written by this suite",
            change=lambda folder: folder.edit_run(_foreign),
        ),
        HarnessFault(
            name="another GPU's history",
            code=broken,
            says="is of another hardware",
            change=lambda folder: folder.edit_run(_of_another_gpu),
        ),
        HarnessFault(name="a stored 0", code=broken, says="a round took 0.0 s", change=_scaled(0)),
        HarnessFault(
            name="statistics of other rounds",
            code=broken,
            says="is not sound: [baseline] its mean is",
            change=lambda folder: folder.edit_run(_of_other_rounds),
        ),
        HarnessFault(
            name="another machine's machine_info",
            code=broken,
            says="its machine_info says",
            change=lambda folder: folder.edit_run(_of_another_machine),
        ),
        HarnessFault(
            name="a null in the settings",
            code=broken,
            says="level_fields is None",
            change=lambda folder: folder.edit_run(_without_settings),
        ),
        HarnessFault(
            name="a stored time a hundred times shorter",
            code=ExitCode.REGRESSION,
            says="latency_ms: regression",
            change=_scaled(0.01 / PATIENCE),
        ),
    ]


def prepared(folder: Path, benchmarks: Path) -> Folder:
    """A folder with one stored run, whose time is so long that no noise fails what must pass.

    Raises RuntimeError with the output if that run fails.
    """
    shutil.copytree(benchmarks, folder / "benchmarks", ignore=shutil.ignore_patterns("__pycache__"))
    (folder / "conftest.py").write_text(CONFTEST, encoding="utf-8")
    (folder / "pytest.ini").write_text(INI, encoding="utf-8")
    made = Folder(path=folder)
    run = made.pytest("--sdopt-accept", "--benchmark-autosave")
    if run.returncode:
        raise RuntimeError(f"a run without any fault failed:\n{run.stdout}")
    _scaled(PATIENCE)(made)
    return made


def judge_harness_fault(fault: HarnessFault, template: Folder, folder: Path) -> Finding:
    """Run with the fault in a copy of the prepared folder."""
    shutil.copytree(template.path, folder)
    copy = Folder(path=folder)
    fault.change(copy)
    before = _contents(copy)
    run = copy.pytest(*fault.options)
    untouched = _contents(copy) == before
    right = run.returncode == fault.code and fault.says in run.stdout
    return Finding(
        id=fault.id,
        caught=right and untouched,
        expected=f"exit {int(fault.code)}, {fault.says!r}",
        seen=f"exit {run.returncode}{'' if untouched else ', stored files changed'}"
        + ("" if right else f":\n{run.stdout}"),
    )


def judge_saving_at_once(template: Folder, folder: Path) -> Finding:
    """Two runs that end at about the same time must store two whole runs.

    They run on the CPU, without what is stored for a GPU: on one each would find the other, and
    refuse to measure.
    """
    shutil.copytree(template.path, folder)
    copy = Folder(path=folder)
    shutil.rmtree(copy.path / "baselines")
    options = ("--benchmark-save=twin", "-k", f"[{LEVEL}] and latency")
    both = [copy.start(*options, CUDA_VISIBLE_DEVICES="") for _ in range(2)]
    outputs = outputs_of(*both)
    files = sorted(copy.path.glob("baselines/history/*/*/*"))
    numbers = {match.group(1) for path in files if (match := RUN_NAME.fullmatch(path.name))}
    whole = all(_is_whole(path) for path in files)
    codes = [process.returncode for process in both]
    right = codes == [0, 0] and len(files) == len(numbers) == 2 and whole
    return Finding(
        id="harness: two processes saving at once",
        caught=right,
        expected="two whole runs of different numbers",
        seen=f"exits {codes}, {[path.name for path in files]}"
        + ("" if right else ":\n" + "\n".join(outputs)),
    )


def _is_whole(path: Path) -> bool:
    try:
        return bool(json.loads(path.read_text(encoding="utf-8"))["benchmarks"])
    except (ValueError, KeyError):
        return False


def _contents(folder: Folder) -> Mapping[str, bytes]:
    files = sorted((folder.path / "baselines").rglob("*"))
    return {str(path): path.read_bytes() for path in files if path.is_file()}
