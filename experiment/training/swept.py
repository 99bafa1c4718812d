"""The process of one run of a sweep: python swept.py COMMAND FLAGS, a Python file's command that ends with the sweep.

The sweep holds the other end of this process' stdin and writes nothing. Where it ends, however that happens, the pipe
does too, and the command is asked to stop, as by SIGTERM: train.py saves a checkpoint then.
"""

import os
import runpy
import signal
import sys
import threading


def _stop_at_the_end_of(pipe: int) -> None:
    while os.read(pipe, 1):
        pass
    os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    threading.Thread(target=_stop_at_the_end_of, args=(0,), daemon=True).start()
    sys.argv = sys.argv[1:]
    sys.path[0] = os.path.dirname(os.path.abspath(sys.argv[0]))
    runpy.run_path(sys.argv[0], run_name="__main__")
