"""Runs commands for tests/commands.py: imports jax once, then forks for every command, before any device is used.

A line on stdin is a JSON object: {"argv", "env", "out", "err"} starts a command and answers its process id; {"poll":
pid} and {"wait": pid} answer its exit status, or null while it runs.
"""

import json
import os
import runpy
import signal
import sys
import traceback
from typing import Any

import tensorboardX  # noqa: F401

import experiment.training.loop  # noqa: F401


def run(argv: list[str], env: dict[str, str], out: str, err: str) -> int:
    for number, path, flags in ((0, os.devnull, os.O_RDONLY), (1, out, os.O_WRONLY), (2, err, os.O_WRONLY)):
        os.dup2(os.open(path, flags | os.O_CREAT), number)
    os.environ.update(env)
    sys.argv = argv
    before = sys.stdin, sys.stdout, sys.stderr  # noqa: F841 - of a forked server's own they would close their files
    sys.stdin, sys.stdout, sys.stderr = open(0), open(1, "w"), open(2, "w", buffering=1)
    try:
        runpy.run_path(argv[0], run_name="__main__")
    except SystemExit as exit_:
        return int(exit_.code or 0)
    except BaseException:
        traceback.print_exc()
        return 1
    finally:
        sys.stdout.flush()
    return 0


def answer(ask: dict[str, Any]) -> int | None:
    if "poll" in ask:
        done, status = os.waitpid(ask["poll"], os.WNOHANG)
        if done:
            started.remove(done)
        return os.waitstatus_to_exitcode(status) if done else None
    pid = os.fork()
    if pid == 0:
        os._exit(run(**ask))
    started.add(pid)
    return pid


started: set[int] = set()
for line in sys.stdin:
    print(json.dumps(answer(json.loads(line))), flush=True)
for pid in started:  # the tests were cut short
    os.kill(pid, signal.SIGKILL)
