"""Every level does the work it promises, in the way it promises."""

from sdopt.bench import measure


def test_effect(level, observation, promise, dtype, own_proof, kept_state, gate):
    """Each field took effect, on the promised solver and noise; no request leaves anything."""
    missing = measure.missing_effects(level, observation, dtype)
    broken = measure.broken_promises(promise, observation)
    verdict = gate.effect(level, [*missing, *broken, *own_proof, *kept_state])
    assert verdict.passed, verdict.message


def test_work(level, pipeline, observation, store, gate):
    """Counts that are the same on every machine, and on a GPU what it did."""
    record = measure.work_of(pipeline, observation)
    store.accept_work(level, record)
    verdict = gate.work(level, record)
    assert verdict.passed, verdict.message
