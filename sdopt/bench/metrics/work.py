"""The work of one image: counts that are the same on every machine, and what a GPU did for it."""

from __future__ import annotations

from sdopt.bench.metrics.metric import (
    AsAccepted,
    Better,
    ByHistory,
    Column,
    Metric,
    Never,
    Prior,
    Subject,
)
from sdopt.bench.metrics.time import WHERE_IT_COMPILES
from sdopt.levels import Level

WORK_DETAILS = ("calls", "tflop_by_module")
"""What says where a count of work changed; stored with the counts."""
ACCEPT = "{again} --sdopt-accept  # if the new work is meant"


def search_class(device: str, level: Level) -> str:
    """Whether cuDNN searches for the fastest algorithm: the search does not always end alike.

    The algorithms' numbers of kernels differ: only without it is their count exact.
    """
    return device if level.searches else "exact"


METRICS = (
    Metric(
        name="recompiles",
        about="recompilations after warm-up",
        of=Subject.WORK,
        rule=Never(),
        remedy=WHERE_IT_COMPILES,
    ),
    Metric(
        name="graph_breaks",
        about="graph breaks after warm-up",
        of=Subject.WORK,
        rule=Never(),
        remedy=WHERE_IT_COMPILES,
    ),
    Metric(
        name="unet_evaluations",
        about="whole UNets for one image",
        of=Subject.WORK,
        rule=AsAccepted(),
        better=Better.NEITHER,
        remedy=ACCEPT,
        columns=(Column(heading="UNet evals", form="d", place=80),),
    ),
    Metric(
        name="tflop",
        about="floating-point operations of one image, counted on the meta device",
        unit="1e12",
        of=Subject.WORK,
        rule=AsAccepted(),
        better=Better.NEITHER,
        remedy=ACCEPT,
    ),
    Metric(
        name="float8_products",
        about="products in float8 for one image",
        of=Subject.WORK,
        rule=AsAccepted(),
        better=Better.NEITHER,
        remedy=ACCEPT,
    ),
    Metric(
        name="gpu_busy_ms",
        about="time in which the GPU is busy for one image",
        unit="ms",
        of=Subject.WORK,
        rule=ByHistory(priors={"cuda": Prior(spread=0.005, least_effect=0.01)}),
        columns=(Column(heading="GPU ms", form=".1f", place=30, optional=True),),
    ),
    Metric(
        name="kernel_launches",
        about="kernels of one image, on a GPU",
        of=Subject.WORK,
        rule=ByHistory(priors={"cuda": Prior(spread=0.005, least_effect=0.02)}, noise=search_class),
        columns=(Column(heading="kernels", form="d", place=40, optional=True),),
    ),
    Metric(
        name="host_syncs",
        about="times the host waits for the GPU",
        of=Subject.WORK,
        rule=ByHistory(),
    ),
)
ACCEPTED_COUNTS = tuple(m.name for m in METRICS if isinstance(m.rule, AsAccepted))
"""What is stored of the work of one image, for all machines."""
