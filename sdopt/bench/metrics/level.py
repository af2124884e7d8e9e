"""What holds of a level as a whole or not at all: whoever measures it says which."""

from __future__ import annotations

from sdopt.bench.metrics.metric import AGAIN, Metric, Proven, Subject

EFFECT = Metric(name="effect", of=Subject.LEVEL, rule=Proven(), remedy=AGAIN)
REPEAT = Metric(name="repeat", of=Subject.LEVEL, rule=Proven(), remedy=AGAIN)
PIPELINE = Metric(name="pipeline", of=Subject.LEVEL, rule=Proven(), remedy=AGAIN)
METRICS = (EFFECT, REPEAT, PIPELINE)
