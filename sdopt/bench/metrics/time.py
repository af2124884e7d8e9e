"""How long an image takes, and what the timed rounds must not do."""

from __future__ import annotations

import math
from operator import attrgetter

from sdopt.bench.metrics.metric import (
    AGAIN,
    ByHistory,
    Column,
    Fixed,
    Metric,
    Never,
    Pairs,
    Prior,
    Row,
    Subject,
)
from sdopt.levels import Level

WHERE_IT_COMPILES = "TORCH_LOGS=recompiles,graph_breaks {again} -s  # says where"


def noise_class(device: str, level: Level) -> str:
    """What a level's wall time depends on: 'cpu', or on 'cuda' how much of it is the host's."""
    if device != "cuda":
        return device
    if level.whole_graph:
        return "cuda, one graph"
    return "cuda" if level.compiled else "cuda, eager"


def speed_up(row: Row, baseline: Row) -> float | None:
    """The latency of `baseline` in the same run over the level's own."""
    base_ms, own_ms = baseline.get("latency_ms"), row.get("latency_ms")
    return base_ms / own_ms if base_ms and own_ms else None


LATENCY_PAIRS = Pairs(
    matters={"cuda": 0.03, "cuda, one graph": 0.03, "cuda, eager": 0.10, "cpu": 0.05}
)
LATENCY_RULE = ByHistory(
    # From runs of this project. Eager images on a fast GPU wait for the host's launches, which vary
    # like its own work; unchanged runs on shared CPU cores differed by up to 31 %: see
    # docs/lab-notes/pitfalls.md.
    priors={
        "cuda": Prior(spread=0.02, least_effect=0.01),
        "cuda, one graph": Prior(spread=0.0075, least_effect=0.01),
        "cuda, eager": Prior(spread=0.08, least_effect=0.02),
        "cpu": Prior(spread=0.10, least_effect=0.02),
    },
    noise=noise_class,
    pairs=LATENCY_PAIRS,
)
LATENCY = Metric(
    name="latency_ms",
    about="wall time of one whole image, median of the rounds",
    unit="ms",
    of=Subject.LATENCY,
    take=attrgetter("median_ms"),
    needed=True,
    rule=LATENCY_RULE,
    columns=(
        Column(heading="ms", form=".1f", place=10),
        Column(heading="speed-up", form=".2f", place=20, suffix="x", value=speed_up),
    ),
)
GROWTH_LIMIT_MIB = {"cpu": 1.5, "cuda": 1.0}
"""What each image may leave in use: resident memory on a CPU, allocated on a GPU, where a healthy
level leaves exactly nothing. docs/explanation/verdicts.md has the CPU's noise."""

METRICS = (
    LATENCY,
    Metric(
        name="graphs_in_rounds",
        about="graphs compiled or captured in the timed rounds",
        of=Subject.LATENCY,
        rule=Never(),
        remedy=WHERE_IT_COMPILES,
    ),
    Metric(
        name="growth_mib",
        about="memory that each image leaves behind",
        unit="MiB",
        of=Subject.LATENCY,
        rule=Fixed(by_device=GROWTH_LIMIT_MIB),
        least=-math.inf,
        what="left behind by each image, the median over the timed rounds",
        remedy=AGAIN,
    ),
)
