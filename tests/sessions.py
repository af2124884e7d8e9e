"""Sessions of the bench outside of a run of pytest, and made-up images for them."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from sdopt.bench.measure.generated import Generated
from sdopt.bench.measure.repeat import Repeat
from sdopt.bench.session import RunContext, Session, Settings
from sdopt.util.progress import Progress

EXACT = Repeat(
    request="castle", latents_differing=0, latents_apart=0.0, pixels_differing=0, pixels_apart=0.0
)


def session_of(micro: Path, baselines: Path, **settings: Any) -> Session:
    """A session on the micro source."""
    chosen = Settings(source=str(micro), baselines_root=baselines, **settings)
    return Session.of(RunContext(settings=chosen, progress=Progress(io.StringIO())))


def with_settings(session: Session, **changes: Any) -> Session:
    """A fresh session that was asked for something else."""
    run = session.run
    settings = replace(run.settings, **changes)
    return Session.of(RunContext(settings=settings, progress=run.progress))


def made_up(session: Session, **changes: Any) -> Generated:
    """A ramp for each request, and latents of ones."""
    ramp = np.linspace(0, 1, 64 * 64 * 3, dtype=np.float32).reshape(64, 64, 3)
    names = [request.name for request in session.run.workload.requests]
    return replace(
        Generated(
            images=dict.fromkeys(names, ramp),
            latents=dict.fromkeys(names, np.ones((4, 8, 8), np.float32)),
            doubles={},
            repeat=EXACT,
        ),
        **changes,
    )


def stored_files(session: Session) -> list[Path]:
    """Every file and folder below the baselines."""
    return sorted(session.store.root.rglob("*"))
