"""A hundred thousand prompts are merged within 1 GiB, in hardly more than a tenth of them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from sdopt.bench.evaluation.parts import Made, Scored, part_file, write_part
from sdopt.bench.evaluation.places import Folder

PART = 500
MERGE = r"""
import re, sys
from pathlib import Path
from sdopt.bench.evaluation.merging import merge
from sdopt.bench.evaluation.places import Folder

def peak_mib():
    # Not getrusage's, which counts the process that this one was forked from as well.
    return int(re.search(r"VmHWM:\s*(\d+)", Path("/proc/self/status").read_text())[1]) / 1024

merge(Folder(Path(sys.argv[1])), "few", 10_000, "ssim_cost")
before = peak_mib()
merged = merge(Folder(Path(sys.argv[1])), "many", 100_000, "ssim_cost")
assert merged.bootstrap.count[0] == 100_000
print(before, peak_mib())
"""


def write(folder: Path, level: str, count: int) -> None:
    made = Made(session="1", process=0, batch=1, generated_unix_s=1.0, generate_s=1.0)
    for block in range(count // PART):
        values = np.random.default_rng(block).random((PART, 2))
        rows = [
            Scored(
                index=block * PART + place,
                prompt="a red star",
                fault="",
                png=b"a stub",
                scores={"ssim_cost": cost, "psnr_cost_db": 40 * other},
            )
            for place, (cost, other) in enumerate(values.tolist())
        ]
        write_part(Folder(folder), part_file(level, block), rows, made)


@pytest.fixture
def peaks(tmp_path: Path) -> tuple[float, float]:
    write(tmp_path, "few", 10_000)
    write(tmp_path, "many", 100_000)
    command = (sys.executable, "-W", "ignore", "-c", MERGE, str(tmp_path))
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    few, many = map(float, done.stdout.split())
    return few, many


def test_memory_does_not_grow_with_the_prompts(peaks: tuple[float, float]) -> None:
    few, many = peaks
    print(f"{few:.0f} MiB after 10,000 prompts, {many:.0f} MiB after 100,000")
    assert many < 1024
    assert many - few < 64
