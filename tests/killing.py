"""Kills a process before each change that it makes to a folder, in a fresh copy every time."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

SCRIPT = """
import json, os, shutil, signal, sys
from pathlib import Path

template, out, action = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]
names = {}
exec(action, names)  # defines act(folder)
CHANGES = {"os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.chmod", "os.link", "os.truncate"}
WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC


def is_change(event, arguments, folder):
    if event not in CHANGES and not (event == "open" and (arguments[2] or 0) & WRITES):
        return False
    return str(folder) in str(arguments[0])


def child(folder, before):
    seen = 0

    def hook(event, arguments):
        nonlocal seen
        if is_change(event, arguments, folder):
            if seen == before:
                os.kill(os.getpid(), signal.SIGKILL)
            seen += 1

    sys.addaudithook(hook)
    names["act"](folder)


before = 0
while True:
    folder = out / f"{before:03}" / template.name
    shutil.copytree(template, folder)
    process = os.fork()
    if not process:
        try:
            child(folder, before)
        except BaseException as error:
            print(repr(error), file=sys.stderr)
            os._exit(7)
        os._exit(0)
    _, status = os.waitpid(process, 0)
    if os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL:
        before += 1
        continue
    assert os.WEXITSTATUS(status) == 0, status
    break
print(json.dumps(before))
"""


def killed_everywhere(template: Path, out: Path, action: str) -> list[Path]:
    """Copies of a folder in which `act(folder)` of the action's code was killed, one a change.

    The last one is of the process that nobody killed.
    """
    command = (sys.executable, "-W", "ignore", "-c", SCRIPT, str(template), str(out), action)
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    changes = json.loads(done.stdout.splitlines()[-1])
    return [out / f"{number:03}" / template.name for number in range(changes + 1)]
