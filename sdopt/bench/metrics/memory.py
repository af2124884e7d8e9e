"""The CUDA memory of one steady image."""

from __future__ import annotations

from sdopt.bench.metrics.metric import ByHistory, Column, Metric, Pairs, Prior, Shown, Subject

PEAK_PAIRS = Pairs(matters={"cuda": 0.01}, least_effect=0.005)
PEAK_RULE = ByHistory(priors={"cuda": Prior(spread=0.0005, least_effect=0.005)}, pairs=PEAK_PAIRS)
PEAK = Metric(
    name="peak_allocated_mib",
    about="peak of allocated CUDA memory of one image",
    unit="MiB",
    of=Subject.MEMORY,
    needed=True,
    rule=PEAK_RULE,
    columns=(Column(heading="alloc MiB", form=".0f", place=50, optional=True),),
)
METRICS = (
    PEAK,
    Metric(
        name="peak_reserved_mib",
        about="peak that PyTorch's allocator reserved",
        unit="MiB",
        of=Subject.MEMORY,
        rule=Shown("the allocator's blocks depend on what ran before"),
        columns=(Column(heading="reserved MiB", form=".0f", place=60, optional=True),),
    ),
    Metric(
        name="device_used_mib",
        about="memory in use on the whole device",
        unit="MiB",
        of=Subject.MEMORY,
        rule=Shown("other processes and the driver are in it"),
        columns=(Column(heading="used MiB", form=".0f", place=70, optional=True),),
    ),
)
