"""Stands for `sdopt.bench.ab.worker`: answers its protocol with what the tree's script.json says.

    {"levels": {NAME: {"definition": {...}, "ms": [...] or null, "peak_mib": ...}}, "device": "cpu",
     "faults": {COMMAND: "crash" | "hang" | "garbage" | "list" | "error" | "two lines"}}

The times are given out in order, and again from the start. Each command is noted in the file
`journal` beside the two trees, which all workers share.
"""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
import time
from pathlib import Path

TREE = Path(sys.argv[1])
SCRIPT = json.loads((TREE / "script.json").read_text())
FAULTS = SCRIPT.get("faults", {})


def note(what: str) -> None:
    with (TREE.parent / "journal").open("a") as journal:
        journal.write(f"{TREE.name} {what}\n")


def fail(fault: str) -> None:
    if fault == "crash":
        print("Traceback of the crash", file=sys.stderr)
        sys.exit(3)
    if fault == "hang":
        child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
        note(f"child {child.pid}")
        time.sleep(600)
    answers = {
        "garbage": "lorem ipsum",
        "list": "[1]",
        "error": json.dumps({"error": "ValueError: no such thing"}),
        "two lines": "{}\n{}",
    }
    print(answers[fault], flush=True)


level: dict = {}
times = iter([])
VARIABLES = [os.environ[name] for name in ("TORCHINDUCTOR_CACHE_DIR", "OMP_WAIT_POLICY")]
if threads := os.environ.get("TORCHINDUCTOR_COMPILE_THREADS"):
    note(f"compiles with {threads}")
note(f"starts {os.getpid()} {' '.join(sys.argv[2:])}|{'|'.join(VARIABLES)}")
for line in sys.stdin:
    command = json.loads(line)
    do = command["do"]
    note(" ".join(str(value) for value in command.values()))
    answer: dict = {}
    if do == "load":
        level = SCRIPT["levels"][command["level"]]
        times = itertools.cycle(level["ms"])
        answer = {"level": level.get("definition", {}), "first_call_s": 1.5}
    elif do == "hello":
        answer = {"levels": list(SCRIPT["levels"]), "device": SCRIPT.get("device", "cpu")}
    elif do == "rounds":
        answer = {"ms": [next(times) for _ in range(command["count"])]}
    elif do == "memory":
        answer = {"peak_allocated_mib": level.get("peak_mib")}
    elif do == "identity":
        answer = {"hardware": "a fake", "source": sys.argv[2]}
    elif do == "work":
        answer = {"work": {"unet_evaluations": 60}}
    if do in FAULTS:
        fail(FAULTS[do])
    else:
        print(json.dumps(answer), flush=True)
    if do == "quit":
        break
