"""What stands in a stored run or image, checked once when it is read: types, numbers, agreement."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import MISSING, fields
from statistics import fmean, median
from typing import Any

from sdopt.bench.metrics import LIMIT_RULES, METRICS
from sdopt.bench.metrics.metric import Measured
from sdopt.levels import Level
from sdopt.util.hardware import slug

STATISTICS = ("min", "max", "mean", "median", "rounds", "total")
"""What pytest-benchmark stores beside the rounds that it was computed from."""
TIMER = "perf_counter"
TEXTS = ("level", "source", "device", "dtype", "compile_cache")
COUNTS = ("steps", "size_px")
SIGNED = ("temperature_c", "guidance_scale")
"""What may be below 0 besides metrics that say so."""
MEASURED = ("repeat_latents", "first_call_s")
"""Numbers that are stored beside the metrics."""
GROUPS = ("stage_ms", "gpu", "calls", "kernels_by_part", "tflop_by_module")
"""Measurements by name."""
NUMBERS = frozenset({*METRICS, *SIGNED, *MEASURED})
LONGEST_S = 1e6
"""No round takes eleven days."""
LEAST = {m.rule.kind: m.least for m in METRICS.values() if isinstance(m.rule, Measured)}
"""The lowest value of each kind of limit's metric."""


class Unsound(ValueError):
    """A stored value that cannot be what it says; the message names it and says why."""


def statistics_of(rounds: Sequence[float]) -> dict[str, Any]:
    """The statistics that go with these rounds, which follow as `data`."""
    return {
        "min": min(rounds),
        "max": max(rounds),
        "mean": fmean(rounds),
        "median": median(rounds),
        "rounds": len(rounds),
        "total": math.fsum(rounds),
        "data": list(rounds),
    }


def check_run(data: Mapping[str, Any], block: Mapping[str, Any]) -> None:
    """Raise Unsound for the first value of a run that is not sound; KeyError if one is missing.

    `block` is what this suite added to the run of pytest-benchmark.
    """
    for name in ("hardware", "baseline_set", "source"):
        if name in block:
            _text(block[name], f"its {name}")
    judged, environment = block["judged"], block["environment"]
    if not isinstance(judged, list) or not all(isinstance(test, str) for test in judged):
        raise Unsound("its list of judged tests holds something else than names")
    if not isinstance(environment, dict):
        raise Unsound(f"its environment is {environment!r}, not versions by name")
    for name, value in environment.items():
        _text(value, f"its environment's {name}")
    if not isinstance(block.get("accepted", False), bool):
        raise Unsound(f"accepted is {block['accepted']!r}, not true or false")
    if not isinstance(data.get("commit_info") or {}, dict):
        raise Unsound(f"its commit_info is {data['commit_info']!r}")
    levels = [_checked_entry(entry) for entry in data["benchmarks"]]
    if twice := sorted({level for level in levels if levels.count(level) > 1}):
        raise Unsound(f"it holds the levels {twice} more than once")
    _check_machine(data["machine_info"], block)
    for entry in data["benchmarks"]:
        _check_device(entry["extra_info"], block["hardware"])


def _checked_entry(entry: Mapping[str, Any]) -> str:
    """The level of one benchmark, whose values are sound."""
    info, stats, options = entry["extra_info"], entry["stats"], entry.get("options", {})
    where = f"[{info['level']}]"
    try:
        check_settings(info)
        _check_statistics(stats)
        if options.get("timer", TIMER) != TIMER or options.get("disable_gc", False) is not False:
            raise Unsound(f"it was measured otherwise than this suite does: {dict(options)}")
    except Unsound as error:
        raise Unsound(f"{where} {error}") from error
    if entry.get("params", info).get("level") != info["level"]:
        raise Unsound(f"{where} its parameters are of another level: {entry['params']}")
    return str(info["level"])


def check_settings(info: Mapping[str, Any]) -> None:
    """Raise Unsound for a setting or a measurement of a level that is null, NaN or of a wrong type.

    A setting that is missing is of a time before there was such a one.
    """
    for name, value in info.items():
        if name == "level_fields":
            _check_level_fields(value)
        elif name in TEXTS:
            _text(value, name)
        elif name in COUNTS:
            _check_type(name, value, int)
            if value < 1:
                raise Unsound(f"{name} is {value!r}, not 1 or more")
        elif name in GROUPS and not isinstance(value, dict):
            raise Unsound(f"{name} is {value!r}, not numbers by name")
        elif name == "cost_is_comparable":
            _check_type(name, value, bool)
        else:
            _check_measured(name, value, is_known=name in NUMBERS or name in GROUPS)


def check_limit(kind: str, row: Any) -> float:
    """The limit in a row of limits.json. Raises Unsound for one that lets everything pass."""
    if not isinstance(row, dict) or "limit" not in row:
        raise Unsound(f"{kind} is {row!r}, and has no limit")
    limit, measured = row["limit"], row.get("measured", 0.0)
    above, most = LIMIT_RULES[kind].above, LIMIT_RULES[kind].most
    if not is_number(limit) or not above < limit <= most:
        raise Unsound(
            f"{kind}.limit is {limit!r}, not a number above {above:g} and at most {most:g}"
        )
    least = LEAST[kind]
    if not is_number(measured) or not least <= measured <= most:
        raise Unsound(f"{kind}.measured is {measured!r}, not a number from {least:g} to {most:g}")
    return float(limit)


def is_number(value: Any) -> bool:
    """Whether it is a finite number, and no truth value; a JSON integer may have any length."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:
        return False


def _check_level_fields(value: Any) -> None:
    if not isinstance(value, dict):
        raise Unsound(f"level_fields is {value!r}, not settings by name")
    for field in fields(Level):
        setting = value.get(field.name, field.default)
        if (setting is None and "None" in str(field.type)) or setting is MISSING:
            continue
        words = str(field.type).split(" ")[0]
        _check_type(field.name, setting, {"bool": bool, "int": int, "float": float}.get(words, str))


def _check_type(name: str, value: Any, kind: type) -> None:
    """A number may be an integer, and nothing but true and false is a truth value."""
    right = is_number(value) if kind is float else isinstance(value, kind)
    if not right or (isinstance(value, bool) and kind is not bool):
        raise Unsound(f"{name} is {value!r}, not of the type {kind.__name__}")


def _check_measured(name: str, value: Any, *, is_known: bool) -> None:
    """A finite number, or such by name; of what no version here measures also words and truths."""
    last = name.rsplit(".", 1)[-1]
    if isinstance(value, dict) and name not in NUMBERS:
        for part, inner in value.items():
            _check_measured(f"{name}.{part}", inner, is_known=is_known)
    elif isinstance(value, int | float) and not is_number(value + 0):
        raise Unsound(f"{name} is {value!r}")
    elif is_known and not is_number(value):
        raise Unsound(f"{name} is {value!r}, not a number")
    elif isinstance(value, str):
        return
    elif not isinstance(value, int | float):
        raise Unsound(f"{name} is {value!r}, neither a number nor a word")
    elif name in METRICS and not METRICS[name].least <= value <= METRICS[name].most:
        metric = METRICS[name]
        wanted = "below 0" if not metric.least else f"not from {metric.least:g} to {metric.most:g}"
        raise Unsound(f"{name} is {value!r}, {wanted}")
    elif is_known and last not in SIGNED and name not in METRICS and value < 0:
        raise Unsound(f"{name} is {value!r}, below 0")


def _check_statistics(stats: Mapping[str, Any]) -> None:
    rounds = stats["data"]
    if not isinstance(rounds, list) or not rounds:
        raise Unsound(f"there are no rounds: {rounds!r}")
    for value in rounds:
        if not is_number(value) or not 0 < value < LONGEST_S:
            raise Unsound(f"a round took {value!r} s")
    if stats.get("iterations", 1) != 1:
        raise Unsound(f"a round generated {stats['iterations']!r} images, not one")
    wanted = statistics_of(rounds)
    for name in STATISTICS:
        found = stats[name]
        if not is_number(found) or not math.isclose(found, wanted[name], rel_tol=1e-9):
            raise Unsound(f"its {name} is {found!r}, its rounds make that {wanted[name]!r}")


def _check_machine(machine: Any, block: Mapping[str, Any]) -> None:
    """What pytest-benchmark noted of the machine against what the run is filed under."""
    if not isinstance(machine, dict):
        raise Unsound(f"its machine_info is {machine!r}")
    python = machine.get("python_version")
    if python is not None and python != block["environment"].get("python", python):
        raise Unsound(
            f"its machine_info is of Python {python}, its environment of "
            f"{block['environment']['python']}"
        )
    for what in _contradictions(machine, str(block["hardware"])):
        raise Unsound(f"its machine_info says {what}, its hardware key is {block['hardware']!r}")


def _contradictions(machine: Mapping[str, Any], key: str) -> Iterator[str]:
    """In what the key is of another machine.

    Older runs do not repeat their hardware there: of a GPU they say nothing.
    """
    own = machine.get("sdopt")
    if own is not None and own != key:
        yield repr(own)
    cpu = machine.get("cpu") or {}
    cores = re.fullmatch(r"cpu-(.+)-\d+gib-(\d+)-cores", key)
    if cores is None or not isinstance(cpu, dict):
        return
    names = [cpu.get("brand_raw"), machine.get("machine"), machine.get("processor")]
    known = [slug(str(name)) for name in names if name]
    if cpu.get("brand_raw") and cores.group(1) not in known:
        yield repr(cpu["brand_raw"])
    count = cpu.get("count")
    if isinstance(count, int) and count < int(cores.group(2)):
        yield f"{count} cores"


def _check_device(info: Mapping[str, Any], key: str) -> None:
    device = info.get("device")
    if device is not None and not key.startswith(slug(device) + "-"):
        raise Unsound(f"[{info['level']}] its device is {device!r}, its hardware key is {key!r}")


def _text(value: Any, what: str) -> None:
    if not isinstance(value, str):
        raise Unsound(f"{what} is {value!r}, not a word")
