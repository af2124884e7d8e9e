"""The pytest plugin: options, fixtures and hooks; glue between pytest and the suite.

PYTEST_DONT_REWRITE: it asserts nothing, and `-p sdopt.bench.plugin.carry` imports it before
any conftest.
"""

from sdopt.bench.plugin.fixtures import (
    double,
    dtype,
    first_call,
    gate,
    generated,
    ground_truth_images,
    image_request,
    images,
    kept_state,
    latents,
    level,
    observation,
    own_proof,
    pipeline,
    pool,
    promise,
    pytest_generate_tests,
    reference_images,
    repeat,
    run,
    store,
    warm_pipeline,
)
from sdopt.bench.plugin.outcome import (
    pytest_collection_finish,
    pytest_runtest_call,
    pytest_runtest_protocol,
    pytest_sessionfinish,
)
from sdopt.bench.plugin.selection import pytest_collection_modifyitems
from sdopt.bench.plugin.start import (
    pytest_addhooks,
    pytest_addoption,
    pytest_configure,
    pytest_report_header,
)
from sdopt.bench.plugin.storage import (
    pytest_benchmark_update_json,
    pytest_benchmark_update_machine_info,
    pytest_sessionstart,
)
from sdopt.bench.plugin.summary import pytest_terminal_summary

__all__ = [
    "double",
    "dtype",
    "first_call",
    "gate",
    "generated",
    "ground_truth_images",
    "image_request",
    "images",
    "kept_state",
    "latents",
    "level",
    "observation",
    "own_proof",
    "pipeline",
    "pool",
    "promise",
    "pytest_addhooks",
    "pytest_addoption",
    "pytest_benchmark_update_json",
    "pytest_benchmark_update_machine_info",
    "pytest_collection_finish",
    "pytest_collection_modifyitems",
    "pytest_configure",
    "pytest_generate_tests",
    "pytest_report_header",
    "pytest_runtest_call",
    "pytest_runtest_protocol",
    "pytest_sessionfinish",
    "pytest_sessionstart",
    "pytest_terminal_summary",
    "reference_images",
    "repeat",
    "run",
    "store",
    "warm_pipeline",
]
