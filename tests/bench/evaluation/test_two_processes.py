"""Two gloo processes on the CPU give the table of one: the miniature, few scenes, two steps."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from sdopt.bench.evaluation.parts import read_rows, read_scores
from sdopt.bench.evaluation.places import Folder

GIVEN = (
    *("--levels", "express", "--reference", "hoisted", "--source", "embedded"),
    *("--scenes", "6", "--steps", "2", "--part", "2", "--limit", "-1"),
)
TWO = ("torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m")
PARTS = [
    f"parts/{level}/0000000{block}.parquet"
    for level in ("hoisted", "express")
    for block in range(3)
]


def evaluated(out: Path, *arguments: str, launcher: tuple[str, ...] = ()) -> Any:
    """What the command wrote; with one thread a process, as of sums in another order."""
    command = (sys.executable, "-m", *launcher, "sdopt.evaluate", *GIVEN, "--out", str(out))
    env = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        (*command, *arguments), env=env, capture_output=True, text=True, check=False, timeout=170
    )
    assert done.returncode == 0, done.stderr
    assert "the cost of `express` over 6 prompts is" in done.stdout
    assert done.stderr.count("evaluate: ends with exit code 0\n") == 1
    return json.loads((out / "summary.json").read_text())["levels"]


def test_two_processes_give_the_table_of_one(tmp_path: Path) -> None:
    one = evaluated(tmp_path / "one", "--batch", "2")
    two = evaluated(tmp_path / "two", "--batch", "2", launcher=TWO)
    makers = {read_scores(Folder(tmp_path / "two"), file).made.process for file in PARTS}
    assert makers == {0, 1}
    for level, told in one.items():
        assert told["scores"] == two[level]["scores"]
        assert told["worst"] == two[level]["worst"]
    assert one["hoisted"]["scores"]["attributes_right"]["count"] == 6
    rows = [read_rows(Folder(tmp_path / name), PARTS[0]) for name in ("one", "two")]
    assert [row.png for row in rows[0]] == [row.png for row in rows[1]]
