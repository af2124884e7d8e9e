"""What holds of a level as a whole or not at all: whoever measures it says which."""

from __future__ import annotations

from sdopt.bench.metrics.metric import AGAIN, Metric, Proven, Subject

EFFECT = Metric(
    name="effect",
    about=(
        "fields of the level that did not take effect; a solver or noise other than promised; what "
        "a second request kept from the first"
    ),
    of=Subject.LEVEL,
    rule=Proven(),
    remedy=AGAIN,
)
REPEAT = Metric(
    name="repeat",
    about=(
        "values of image and latents that differ, bit by bit, when the first prompt is generated "
        "again after all others"
    ),
    of=Subject.LEVEL,
    rule=Proven(),
    remedy=AGAIN,
)
PIPELINE = Metric(
    name="pipeline",
    about="errors that the pipeline raised",
    of=Subject.LEVEL,
    rule=Proven(),
    remedy=AGAIN,
)
METRICS = (EFFECT, REPEAT, PIPELINE)
