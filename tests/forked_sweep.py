"""python -m experiment.sweep, with its runs forked from a process that has imported jax, which saves seconds for each.

Forked they are before this process has used a device, by a server of its own as that of tests/commands.py. It ends with
this process and kills what it started: the worst that can befall a run.
"""

import os
import runpy
import signal
import sys
from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

from tests import commands


class Forked:
    """A run of a sweep, as a command of tests/commands.py."""

    def __init__(self, planned: Any, run: Any, environment: Mapping[str, str]):
        self._command, self._log = commands.Command(*planned.command(run)), planned.log(run)

    def poll(self) -> int | None:
        if self._command.running():
            return None
        done = self._command.wait()
        with open(self._log, "a") as log:
            log.write(done.out + done.err)
        return done.status

    def terminate(self) -> None:
        self._command.send(signal.SIGTERM)


def own_server() -> Any:
    """The pipes of a server that is forked from this process."""
    asked, answered = os.pipe(), os.pipe()
    if os.fork() == 0:
        os.dup2(asked[0], 0)
        os.dup2(answered[1], 1)
        for pipe in (*asked, *answered):
            os.close(pipe)
        runpy.run_module("tests.fork_commands", run_name="__main__")
        os._exit(0)
    os.close(asked[0])
    os.close(answered[1])
    return SimpleNamespace(stdin=open(asked[1], "w"), stdout=open(answered[0]))


if __name__ == "__main__":
    server = own_server()
    commands._server = lambda: server  # type: ignore[assignment]
    import experiment.training.sweep

    experiment.training.sweep.start_process = Forked  # type: ignore[assignment]
    sys.argv[0] = str(commands.ROOT / "experiment" / "sweep.py")
    runpy.run_module("experiment.sweep", run_name="__main__", alter_sys=True)
