"""How far one tree's images and latents are apart under other conditions: what limits are set by.

    python -m studies.latent_spread OUT [--source NAME] [--conditions NAME...] [-k EXPRESSION]

Each condition is a fresh run of the suite that stores all images and latents below
OUT/<condition>; `sdopt.bench.stored.limits` then compares them. Two machines are compared by
running this on both and giving it both folders.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from sdopt.errors import UnknownNameError
from sdopt.util.children import python_path

ROOT = Path(__file__).resolve().parents[1]
WITHOUT_ONEDNN = "import torch; torch.backends.mkldnn.enabled = False"


@dataclass(frozen=True, kw_only=True)
class Condition:
    """Environment variables of a run, and what it does before pytest begins.

    `compiles_anew` gives it a folder of compiled code of its own: Inductor generates other code
    for other instructions or numbers of threads, and would find headers that were precompiled.
    """

    variables: Mapping[str, str] = field(default_factory=dict)
    before: str = ""
    compiles_anew: bool = False


CPU: Mapping[str, Condition] = {
    "as-it-is": Condition(),
    "one-thread": Condition(variables={"OMP_NUM_THREADS": "1"}, compiles_anew=True),
    "three-threads": Condition(variables={"OMP_NUM_THREADS": "3"}, compiles_anew=True),
    "default": Condition(
        variables={"ATEN_CPU_CAPABILITY": "default", "ONEDNN_MAX_CPU_ISA": "SSE41"},
        compiles_anew=True,
    ),
    "avx2": Condition(
        variables={"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2"}, compiles_anew=True
    ),
    "avx512": Condition(
        variables={"ATEN_CPU_CAPABILITY": "avx512", "ONEDNN_MAX_CPU_ISA": "AVX512_CORE"},
        compiles_anew=True,
    ),
    "mkl-compatible": Condition(variables={"MKL_CBWR": "COMPATIBLE"}),
    "mkl-avx2": Condition(variables={"MKL_CBWR": "AVX2"}),
    "without-onednn": Condition(before=WITHOUT_ONEDNN, compiles_anew=True),
}
"""Threads, instruction sets, modes of MKL, and another library for convolutions."""
CUDA: Mapping[str, Condition] = {
    "as-it-is": Condition(),
    "again": Condition(),
    "cublas": Condition(variables={"CUBLAS_WORKSPACE_CONFIG": ":16:8"}),
    "cudnn-v7": Condition(variables={"TORCH_CUDNN_V8_API_DISABLED": "1"}),
}
"""Fresh processes, in which cuDNN's search may end otherwise, and other choices of the libraries.

What two models of cards differ by needs both of them.
"""


def run_condition(name: str, condition: Condition, out: Path, options: Sequence[str]) -> int:
    """Store what the suite generates under that condition below `out`; pytest's exit code."""
    folder = out / name
    environment = {
        "OMP_WAIT_POLICY": "PASSIVE",  # threads that spin take the cores from other work
        **os.environ,
        **condition.variables,
        "PYTHONPATH": python_path(),
    }
    if condition.compiles_anew:
        environment["TORCHINDUCTOR_CACHE_DIR"] = str(out / "compiled" / name)
    arguments = ["benchmarks/", "--sdopt-accept", f"--sdopt-baselines={folder}", *options]
    program = f"{condition.before}\nimport sys, pytest\nsys.exit(pytest.main({arguments!r}))"
    command = (sys.executable, "-c", program)
    return subprocess.run(command, cwd=ROOT, env=environment, check=False).returncode


def main(arguments: Sequence[str] | None = None) -> int:
    """Run each condition; 2 if one of them failed."""
    import torch

    conditions = CUDA if torch.cuda.is_available() else CPU
    parser = argparse.ArgumentParser(prog="python -m studies.latent_spread", description=__doc__)
    parser.add_argument("out", type=Path, metavar="OUT")
    parser.add_argument("--source", default="embedded", help="as --sdopt-source")
    parser.add_argument("--conditions", nargs="+", default=list(conditions), metavar="NAME")
    parser.add_argument("-k", dest="keyword", default="", metavar="EXPRESSION", help="levels")
    options = parser.parse_args(arguments)
    if unknown := [name for name in options.conditions if name not in conditions]:
        parser.error(str(UnknownNameError("condition", unknown[0], conditions)))
    keyword = f"test_drift and ({options.keyword})" if options.keyword else "test_drift"
    own = (f"--sdopt-source={options.source}", "-k", keyword)
    out = options.out.resolve()
    codes = {name: run_condition(name, conditions[name], out, own) for name in options.conditions}
    failed = [name for name, code in codes.items() if code]
    for name in failed:
        print(f"error: {name} ended with exit code {codes[name]}", file=sys.stderr)
    return 2 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
