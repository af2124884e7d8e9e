"""What reference/ takes from the code: `python docs/tables.py` writes tables and schemas anew."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import typer

from sdopt.bench import plugin
from sdopt.bench.metrics import METRICS
from sdopt.bench.metrics.metric import (
    AsAccepted,
    Better,
    ByHistory,
    Fixed,
    Measured,
    Metric,
    Shown,
    Subject,
)
from sdopt.bench.report.results import filled, read_page
from sdopt.bench.stored import schema
from sdopt.bench.stored.baselines import read_limits
from sdopt.cli.app import app
from sdopt.errors import SdoptError
from sdopt.levels import LEVELS, Level
from sdopt.util.files import cause, write_whole

DOCS = Path(__file__).parent
REFERENCE = DOCS / "reference"
SCHEMAS = REFERENCE / "schemas"
LIMITS = DOCS.parent / "baselines" / "images" / "embedded" / "limits.json"


def table(head: str, ruler: str, rows: Sequence[Sequence[str]]) -> list[str]:
    """The lines of a Markdown table."""
    return [head, ruler, *(f"| {' | '.join(cells)} |" for cells in rows)]


def levels() -> list[str]:
    """Each level beside the one it differs from."""
    head = "| level | reference | changed against it | UNet evaluations |"
    return table(head, "|---|---|---|---:|", [_row(level) for level in LEVELS.values()])


def _row(level: Level) -> list[str]:
    reference = LEVELS.get(level.reference or "")
    changes = level.changed_since(reference.as_dict()) if reference else []
    batches = level.unet_batches()
    return [
        f"`{level.name}`",
        f"`{reference.name}`" if reference else "-",
        ", ".join(f"`{change}`" for change in changes) or "plain diffusers",
        str(sum(batches[step] for step in level.full_steps())),
    ]


def whys() -> list[str]:
    """Each level's own line."""
    rows = [[f"`{level.name}`", level.why] for level in LEVELS.values()]
    return table("| level | why |", "|---|---|", rows)


def likeness() -> list[str]:
    """What the stored images of each level cost, and how near they are to the ground truth."""
    limits = read_limits(LIMITS)["levels"]
    head = "| level | `ssim_cost` | `ssim_ground_truth` |"
    return table(head, "|---|---:|---:|", [_likeness(name, limits[name]) for name in LEVELS])


def _likeness(name: str, limits: Mapping[str, Any]) -> list[str]:
    none = "not comparable" if LEVELS[name].reference else "-"
    cost = f"{limits['cost']['measured']:.4f}" if "cost" in limits else none
    return [f"`{name}`", cost, f"{limits['ground_truth']['measured']:.4f}"]


BENCHMARKS = {
    Subject.LATENCY: ["test_latency"],
    Subject.MEMORY: ["test_memory"],
    Subject.STORED: ["test_drift"],
    Subject.LATENTS: ["test_latents"],
    Subject.FLOAT64: ["test_latents_float64"],
    Subject.REFERENCE: ["test_cost"],
    Subject.GROUND_TRUTH: ["test_ground_truth"],
    Subject.WORK: ["test_work"],
    Subject.LEVEL: ["test_effect", "test_repeat"],
}
"""What judges the metrics of a subject; of a level as a whole, each its own."""


def _by_subject() -> list[Metric]:
    order = list(BENCHMARKS)
    return sorted(METRICS.values(), key=lambda metric: order.index(metric.of))


def judged() -> list[str]:
    """Each metric that a run can fail by."""
    rows = [
        [f"`{one.name}`", one.unit or "-", one.about, _has_to_be(one), _when(one)]
        for one in _by_subject()
        if not isinstance(one.rule, Shown)
    ]
    return table(
        "| metric | unit | what is measured | has to be | judged |", "|---" * 5 + "|", rows
    )


def _when(metric: Metric) -> str:
    return "with `--benchmark-compare`" if isinstance(metric.rule, ByHistory) else "always"


def _has_to_be(metric: Metric) -> str:
    """What passes, from the metric's rule."""
    rule = metric.rule
    if isinstance(rule, ByHistory):
        return _by_history(rule)
    if isinstance(rule, AsAccepted):
        return "equal to the stored count"
    if isinstance(rule, Measured):
        bound = "least" if metric.better is Better.HIGHER else "most"
        default = "" if rule.default is None else f"{rule.default:g}".replace("e-0", "e-")
        where = f" ({default} for a set that nobody measured)" if default else ""
        return f"at {bound} `{rule.kind}` of `limits.json`{where}"
    if isinstance(rule, Fixed):
        cpu, cuda = (f"{rule.by_device[device]:g}" for device in ("cpu", "cuda"))
        return f"at most {cpu}" if cpu == cuda else f"at most {cpu} on a CPU, {cuda} on CUDA"
    return "none"


def _by_history(rule: ByHistory) -> str:
    spread, exact = "within the spread of the stored runs", "not more than in the newest stored run"
    exacts = {rule.prior("cuda", level) is None for level in LEVELS.values()}
    if len(exacts) == 1:
        return exact if exacts.pop() else spread
    return f"{exact}; {spread} under cuDNN's search"


def recorded() -> list[str]:
    """Each metric that nothing fails by."""
    shown = [one for one in _by_subject() if isinstance(one.rule, Shown)]
    rows = [[f"`{one.name}`", one.unit or "-", one.about] for one in shown]
    return table("| metric | unit | what |", "|---|---|---|", rows)


def benchmarks() -> list[str]:
    """Which benchmark judges which metrics."""
    judged = [one for one in METRICS.values() if not isinstance(one.rule, Shown)]
    rows = []
    for subject, tests in BENCHMARKS.items():
        names = [one.name for one in judged if one.of is subject]
        for test in tests:
            own = names if len(tests) == 1 else [test.removeprefix("test_")]
            rows.append([f"`{test}`", ", ".join(f"`{name}`" for name in own)])
    return table("| benchmark | metrics |", "|---|---|", rows)


class _Recorder:
    """Stands for pytest's parser and its group, and notes the options."""

    def __init__(self) -> None:
        self.rows: list[list[str]] = []

    def getgroup(self, *_: Any) -> _Recorder:
        """Itself: the options of the group are what is wanted."""
        return self

    def addoption(self, name: str, *, help: str, metavar: str = "", **_: Any) -> None:
        """Note one option."""
        self.rows.append([f"`{name}`", f"`{metavar}`" if metavar else "-", help])


def options() -> list[str]:
    """Each option of the suite with its help."""
    recorder = _Recorder()
    plugin.pytest_addoption(recorder)  # type: ignore[arg-type]
    return table("| option | value | meaning |", "|---|---|---|", recorder.rows)


def commands() -> list[str]:
    """Each command of `sdopt`: what it does, its arguments, an example, its exit codes."""
    return _group("sdopt", typer.main.get_command(app))[1:]


def _group(name: str, group: Any) -> list[str]:
    lines = []
    for own, command in group.commands.items():
        full = f"{name} {own}"
        lines += _group(full, command) if hasattr(command, "commands") else _command(full, command)
    return lines


def _command(name: str, command: Any) -> list[str]:
    example, codes = command.epilog.split("\n\nExit codes: ")
    lines = [line.removeprefix("  ") for line in example.splitlines()[2:]]
    about = [" ".join(part.split()) for part in command.help.split("\n\n")]
    rows = [_parameter(parameter) for parameter in command.params]
    return [
        *("", f"## {name}", ""),
        *(line for part in about for line in (part, "")),
        *("```sh", *lines, "```", ""),
        *table("| option | value | meaning |", "|---|---|---|", rows),
        *("", f"Exit codes: {codes}"),
    ]


def _parameter(parameter: Any) -> list[str]:
    is_option = parameter.opts[0].startswith("-")
    words = parameter.help.strip()
    if is_option and parameter.default not in (None, "") and parameter.default is not False:
        words += f" Default: `{parameter.default}`."
    if not is_option:
        return [f"`{parameter.metavar}`", "-", words]
    value = "-" if parameter.is_flag else f"`{parameter.metavar}`"
    return [", ".join(f"`{name}`" for name in parameter.opts), value, words]


TABLES: dict[str, tuple[Path, Callable[[], list[str]]]] = {
    "levels": (REFERENCE / "levels.md", levels),
    "whys": (REFERENCE / "levels.md", whys),
    "likeness": (REFERENCE / "levels.md", likeness),
    "judged": (REFERENCE / "metrics.md", judged),
    "recorded": (REFERENCE / "metrics.md", recorded),
    "benchmarks": (REFERENCE / "metrics.md", benchmarks),
    "options": (REFERENCE / "options.md", options),
    "commands": (REFERENCE / "commands.md", commands),
}
"""The page of each table, by the name of its marks there."""


def made() -> dict[Path, str]:
    """Every page with its tables of today, and every schema. Raises SdoptError for a broken page.

    All of it is made before any of it is written.
    """
    texts: dict[Path, str] = {}
    for name, (page, lines) in TABLES.items():
        texts[page] = filled(page, texts.get(page) or read_page(page), lines(), name)
    return texts | {SCHEMAS / f"{name}.json": schema.published(name) for name in schema.NAMES}


def stale(texts: Mapping[Path, str]) -> Iterator[Path]:
    """The files that are missing or say something else."""
    for path, text in texts.items():
        if not path.is_file() or read_page(path) != text:
            yield path


def main(arguments: Sequence[str] | None = None) -> int:
    """Write what is stale, or name it; 1 if `--check` named any, 2 for a page that is broken."""
    parser = argparse.ArgumentParser(prog="python docs/tables.py", description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing: name what is stale")
    options = parser.parse_args(arguments)
    try:
        texts = made()
        old = list(stale(texts))
        for path in old:
            if options.check:
                print(f"{path} is stale; python docs/tables.py writes it anew", file=sys.stderr)
            else:
                write_whole(path, texts[path].encode())
                print(f"wrote {path}")
    except (OSError, SdoptError) as error:
        told = f"{error.filename}: {cause(error)}" if isinstance(error, OSError) else error
        print(f"error: {told}", file=sys.stderr)
        return 2
    print(f"{len(texts) - len(old)} of {len(texts)} files were as the code says")
    return int(options.check and bool(old))


if __name__ == "__main__":
    sys.exit(main())
