"""`--sdopt-selftest`: every fault that needs no statistics, as a test that fails if missed."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from sdopt.bench.faults.between import (
    judge_request_fault,
    judge_round_fault,
    request_faults,
    round_faults,
)
from sdopt.bench.faults.engine import engine_faults, float8_faults
from sdopt.bench.faults.fault import Finding
from sdopt.bench.faults.harness import (
    Folder,
    harness_faults,
    judge_harness_fault,
    judge_saving_at_once,
    prepared,
)
from sdopt.bench.faults.images import image_faults
from sdopt.bench.faults.judging import (
    judge_image_fault,
    judge_numeric_fault,
    judge_optimization_fault,
    judge_repeat_fault,
)
from sdopt.bench.faults.matrix import matrix, totals
from sdopt.bench.faults.numerics import (
    RACING_KEY,
    numeric_faults,
    racing_faults,
    racing_tile_fault,
)
from sdopt.bench.faults.optimizations import optimization_faults
from sdopt.errors import UnsupportedCardError
from sdopt.levels import Level, get_level

if TYPE_CHECKING:
    from sdopt.bench.session import RunContext, Session
    from sdopt.pipelines.pipeline import LevelPipeline

LEVEL = "final"
"""It has every optimization of diffusers and Inductor, so every such fault can be put into it."""
ENGINE_LEVEL = "turbo"
"""It has every optimization of the engine that keeps float16."""
FLOAT8_LEVEL = "turbo-float8"


class Bench:
    """What the faults of one session share: warm pipelines, and a folder for harness runs."""

    def __init__(self, session: Session, benchmarks: Path) -> None:
        self.session, self.benchmarks = session, benchmarks
        self.findings: list[Finding] = []
        self._stack = ExitStack()
        self._folder: Folder | None = None
        self._no_folder: Exception | None = None

    def pipeline(self, level: Level) -> LevelPipeline:
        """The level's pipeline, warm."""
        return self.session.pool.keep(level)

    @property
    def folder(self) -> Folder:
        """A folder with benchmarks and one stored run; where none can be made, it is tried once."""
        if self._no_folder is not None:
            raise self._no_folder
        if self._folder is None:
            temporary = tempfile.TemporaryDirectory(prefix="sdopt-selftest-")
            root = Path(self._stack.enter_context(temporary))
            try:
                with self.session.run.progress.during("a folder with one stored run"):
                    self._folder = prepared(root / "template", self.benchmarks)
            except Exception as error:
                self._no_folder = error
                raise
        return self._folder

    def close(self) -> None:
        """Free the pipelines, remove the folder."""
        self._stack.close()
        self.session.pool.close()


class FaultItem(pytest.Item):
    """One fault."""

    def __init__(self, *, bench: Bench, find: Callable[[], Finding], **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.bench, self.find = bench, find

    def runtest(self) -> None:
        """Fail if the fault was not caught, or a control was."""
        try:
            finding = self.find()
        except Exception as error:
            told = Finding(
                id=self.name, caught=False, expected="a verdict", seen=_first_line(error)
            )
            self.bench.findings.append(told)
            raise
        self.bench.findings.append(finding)
        self.user_properties.append(("sdopt caught", finding.caught))
        if not finding.caught:
            raise Missed(f"{finding.id}: expected {finding.expected}, seen {finding.seen}")

    def repr_failure(self, excinfo: Any, style: Any = None) -> str:
        """The message alone."""
        if isinstance(excinfo.value, Missed):
            return str(excinfo.value)
        return str(super().repr_failure(excinfo, style))

    def reportinfo(self) -> tuple[Path, None, str]:
        """Where pytest says that this fault stands."""
        return self.config.rootpath, None, self.name


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)


class Missed(Exception):
    """A fault that the suite did not catch, or a control that it did."""


def fault_items(session: pytest.Session, bench: Bench) -> list[pytest.Item]:
    """One item for each fault.

    Those of the harness come first. They measure in processes of their own, which refuse to beside
    another one that uses the GPU, as this one does with its first image; the others share its warm
    pipelines.
    """
    own = bench.session
    level, engine_level = get_level(LEVEL), get_level(ENGINE_LEVEL)
    finders: dict[str, Callable[[], Finding]] = {}
    for number, broken in enumerate(harness_faults()):
        finders[broken.id] = lambda broken=broken, number=number: judge_harness_fault(  # type: ignore[misc]
            broken, bench.folder, bench.folder.path.with_name(str(number))
        )
    finders["harness: two processes saving at once"] = lambda: judge_saving_at_once(
        bench.folder, bench.folder.path.with_name("twins")
    )
    for fault in optimization_faults():
        finders[fault.id] = lambda fault=fault: judge_optimization_fault(  # type: ignore[misc]
            fault, own, level, bench.pipeline(level)
        )
    for fault in image_faults():
        finders[fault.id] = lambda fault=fault: judge_image_fault(  # type: ignore[misc]
            fault, own, level, bench.pipeline(level)
        )
    for fault in request_faults():
        finders[fault.id] = lambda fault=fault: judge_request_fault(  # type: ignore[misc]
            fault, own, level, bench.pipeline(level)
        )
    for fault in round_faults():
        finders[fault.id] = lambda fault=fault: judge_round_fault(  # type: ignore[misc]
            fault, own, level, bench.pipeline(level)
        )
    for fault in engine_faults():
        finders[fault.id] = lambda fault=fault: judge_optimization_fault(  # type: ignore[misc]
            fault, own, engine_level, bench.pipeline(engine_level)
        )
    float8_level = get_level(FLOAT8_LEVEL)
    if _runs(float8_level, own.run):
        for fault in float8_faults():
            finders[fault.id] = lambda fault=fault: judge_optimization_fault(  # type: ignore[misc]
                fault, own, float8_level, bench.pipeline(float8_level)
            )
    for name in (LEVEL, ENGINE_LEVEL):
        finders |= _numeric_finders(bench, get_level(name))
    return [
        FaultItem.from_parent(session, name=name, bench=bench, find=find)
        for name, find in finders.items()
    ]


def _numeric_finders(bench: Bench, level: Level) -> dict[str, Callable[[], Finding]]:
    """Faults that need latents, or a second image, to be seen."""
    own = bench.session
    finders: dict[str, Callable[[], Finding]] = {}
    trained = own.run.source.kind != "random"
    for fault in numeric_faults(level.name, own.run.dtype, trained=trained):
        finders[fault.id] = lambda fault=fault: judge_numeric_fault(  # type: ignore[misc]
            fault, own, level, bench.pipeline(level)
        )
    racing = racing_faults(level.name, own.run.device.type)
    if level.name == ENGINE_LEVEL and own.run.device.type == "cuda" and _has_racing_tile(own.run):
        racing = [*racing, racing_tile_fault()]
    for fault in racing:
        finders[fault.id] = lambda fault=fault: judge_repeat_fault(  # type: ignore[misc]
            fault, own, level, bench.pipeline(level)
        )
    return finders


def _runs(level: Level, run: RunContext) -> bool:
    """Whether this card has the kernels of a level."""
    from sdopt.pipelines.device_limits import check_capability

    try:
        check_capability(level, run.device)
    except UnsupportedCardError:
        return False
    return True


def _has_racing_tile(run: RunContext) -> bool:
    """Whether an image of this source has the convolution whose tile raced, on such a card."""
    from sdopt.engine.cards import H100, card_of
    from sdopt.engine.tables import tuned

    card = card_of(run.device) if run.device.type == "cuda" else H100
    races = card.family == H100.family
    return races and not run.source.is_embedded and RACING_KEY in tuned(card)


def summary(bench: Bench) -> list[str]:
    """The matrix and how many were right."""
    return [*matrix(bench.findings), "", *totals(bench.findings)]
