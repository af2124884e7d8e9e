"""Every metric of the suite, one file a family: a new one is a new file here, or a line in one."""

from __future__ import annotations

from collections.abc import Iterator
from importlib import import_module
from pkgutil import iter_modules

from sdopt.bench.metrics.metric import ByHistory, Measured, Metric, Subject


def _found() -> Iterator[Metric]:
    """What the modules of this folder list as METRICS, by the module's name."""
    for module in sorted(iter_modules(__path__)):
        yield from getattr(import_module(f"{__name__}.{module.name}"), "METRICS", ())


def _by_name(metrics: Iterator[Metric]) -> dict[str, Metric]:
    named: dict[str, Metric] = {}
    for metric in metrics:
        if metric.name in named:
            raise ValueError(f"there are two metrics {metric.name!r}; give one another name")
        named[metric.name] = metric
    return named


METRICS = _by_name(_found())


def metrics_of(subject: Subject) -> list[Metric]:
    """The metrics of a subject, in the order of the registry."""
    return [metric for metric in METRICS.values() if metric.of is subject]


HISTORY_RULES = {
    name: metric.rule for name, metric in METRICS.items() if isinstance(metric.rule, ByHistory)
}
"""How each metric is judged that is judged by the stored runs of this hardware."""
PAIRED = {name: rule.pairs for name, rule in HISTORY_RULES.items() if rule.pairs}
"""What pairs of runs may not pass over, for each metric that they are judged by."""
LIMIT_RULES = {
    metric.rule.kind: metric.rule
    for metric in METRICS.values()
    if isinstance(metric.rule, Measured)
}
"""The rule of each kind of limit that `limits.json` may hold of a level."""
