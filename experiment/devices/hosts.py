"""Several hosts train one run: how their processes find each other, agree, and leave together.

Each process has devices of its own, and a step of training is computed by all of them at once. So whatever one of them
decides alone, to stop, to fail, to read another checkpoint, leaves the others waiting for it: decisions are made by one
and told to all.
"""

import contextlib
import json
import os
import socket
import sys
import time
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from tqdm import tqdm

from experiment.common.errors import LONGEST, UserError, shown

# How a cluster's environment tells a process that it is one of several; jax finds the rest itself.
_CLUSTERS: dict[str, Callable[[str], bool]] = {
    "SLURM_STEP_NUM_TASKS": lambda value: value.isdigit() and int(value) > 1,
    "OMPI_COMM_WORLD_SIZE": lambda value: value.isdigit() and int(value) > 1,
    # Where jax finds no hosts it writes a sentence there itself.
    "TPU_WORKER_HOSTNAMES": lambda value: "," in value and " " not in value,
}
# Beside them: this process's number, its number on its own machine, how many there are there, and what names the job.
_PLACES = {
    "SLURM_STEP_NUM_TASKS": ("SLURM_PROCID", "SLURM_LOCALID", "SLURM_STEP_TASKS_PER_NODE", "SLURM_JOB_ID"),
    "OMPI_COMM_WORLD_SIZE": (
        *("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_LOCAL_RANK", "OMPI_COMM_WORLD_LOCAL_SIZE"),
        "PMIX_NAMESPACE",
    ),
}
_BY_HAND = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")
_MESSAGE = 2**14  # bytes; one size, so that one program is compiled for all messages


def _by_hand() -> tuple[str, int, int] | None:
    """Read the environment variables that describe the job by hand.

    Returns:
        address: host:port of the first host.
        processes: how many there are.
        process: the number of this one.

    None where none of them is set. Raises UserError for values that cannot be right.
    """
    values = {name: os.environ.get(name, "") for name in _BY_HAND}
    if not any(values.values()):
        return None
    for name, value in values.items():
        if not value:
            given = " and ".join(n for n, v in values.items() if v)
            raise UserError(
                f"{given} is set, and {name} is not: set all of {', '.join(_BY_HAND)} on every host, or none"
            )
    address, processes, process = values.values()
    host, _, port = address.rpartition(":")
    if not (host and port.isdigit() and 0 < int(port) < 2**16):
        raise UserError(f"{_BY_HAND[0]} is {address!r}: give the first host's name and a free port, as in host:1234")
    if not (processes.isdigit() and process.isdigit() and int(process) < int(processes)):
        raise UserError(
            f"{_BY_HAND[1]} is {processes!r} and {_BY_HAND[2]} is {process!r}: number the N processes from 0 to N - 1"
        )
    return address, int(processes), int(process)


def _check_address(address: str, processes: int, process: int, timeout: float) -> None:
    """Check that the first host can listen at the address and that another reaches it within `timeout` seconds.

    Raises UserError where that fails: jax would abort the process.
    """
    host, _, port = address.rpartition(":")
    if process == 0:
        try:
            socket.create_server(("", int(port))).close()
        except OSError as error:
            raise UserError(
                f"{_BY_HAND[0]} is {address}: cannot listen there ({os.strerror(error.errno or 0)}): "
                "choose another port"
            ) from None
        return
    deadline = time.monotonic() + timeout
    while True:
        try:
            socket.create_connection((host, int(port)), timeout=timeout).close()
            return
        except OSError as error:
            if time.monotonic() > deadline:
                raise UserError(
                    f"{_BY_HAND[0]} is {address}: nobody answers there ({error.strerror}): start the same command "
                    f"on the first host, with {_BY_HAND[2]}=0, and see that this host can reach it"
                ) from None
        time.sleep(0.1)


def several() -> bool:
    """Tell whether the environment says that this process is one of several.

    Raises UserError for an environment that cannot be right.
    """
    by_hand = _by_hand()
    return by_hand[1] > 1 if by_hand else any(says(os.environ.get(name, "")) for name, says in _CLUSTERS.items())


@dataclass(frozen=True)
class Place:
    """This process's number among `count` that work on the same, and what names the job of theirs; "" for one alone."""

    number: int = 0
    count: int = 1
    job: str = ""


def place_of_process() -> Place:
    """This process's place among those that share out work by files, without a connection between them.

    Where a cluster starts several on one machine, each takes the GPU of its own number there. Raises UserError for an
    environment that cannot be right, and on a TPU slice, whose hosts compute only together.
    """
    by_hand = _by_hand()
    if by_hand is not None:
        address, count, number = by_hand
        return Place(number, count, address) if count > 1 else Place()
    if not several():
        return Place()
    for size, (rank, local, on_machine, job) in _PLACES.items():
        if _CLUSTERS[size](os.environ.get(size, "")):
            told, its = os.environ.get(rank, ""), os.environ.get(local, "")
            if not told.isdigit() or int(told) >= int(os.environ[size]):
                raise UserError(f"{size} is {os.environ[size]}, and {rank} {told!r}: number the processes from 0")
            several_here = os.environ.get(on_machine, "1").partition("(")[0] != "1"
            if its.isdigit() and several_here and "," in os.environ.get("CUDA_VISIBLE_DEVICES", "0,1"):
                jax.config.update("jax_cuda_visible_devices", its)
            return Place(int(told), int(os.environ[size]), f"{job} {os.environ.get(job, '')}")
    raise UserError(
        "the hosts of a TPU slice share out no samples: start this on one host alone, or as processes of their own by "
        f"{', '.join(_BY_HAND)}"
    )


_SHARED: ContextVar[bool] = ContextVar("shared", default=False)


@contextlib.contextmanager
def shared_out() -> Iterator[Place]:
    """Inside, a run may be read by each of several processes: what calls this shares its work out among them.

    Yields this process's place. Raises UserError as `place_of_process` does.
    """
    token = _SHARED.set(True)
    try:
        yield place_of_process()
    finally:
        _SHARED.reset(token)


def one_host_only(what: str) -> None:
    """Refuse to go on among several processes, but for work that is `shared_out`.

    Raises UserError where the environment says that there are several.
    """
    if not _SHARED.get() and several():
        raise UserError(
            f"{what} runs on one host, over all of its devices: start it alone, without {_BY_HAND[0]} and the like,"
            " and not by mpirun or srun of several tasks"
        )


@contextlib.contextmanager
def joined(timeout: int = 300) -> Iterator[None]:
    """Join the multi-host job described by the environment; on exit, wait for the other hosts.

    Call it before anything else that uses a device. The job may be described by hand, by
    JAX_COORDINATOR_ADDRESS=host:port, JAX_NUM_PROCESSES and JAX_PROCESS_ID. timeout: seconds to wait for the others.

    Raises UserError for an environment that cannot be right, and when the first host does not answer.
    """
    if jax.distributed.is_initialized() or not several():
        yield
        return
    # jax's own notice of SIGTERM would take the signal's handler from `Signals`, and tell nobody.
    jax.config.update("jax_enable_preemption_service", False)
    by_hand = _by_hand()
    if by_hand is None:
        jax.distributed.initialize(initialization_timeout=timeout)
    else:
        _check_address(*by_hand, timeout)
        jax.distributed.initialize(*by_hand, initialization_timeout=timeout)
    # All leave together: the end of the first host would take down one that is still writing. What only one of them has
    # met, a bug or a second ctrl-C, must not wait for the others, though.
    try:
        yield
    except UserError:
        jax.distributed.shutdown()
        raise
    jax.distributed.shutdown()


def gathered(value: Any) -> list[Any]:
    """Collect each host's value, which must be JSON, in the order of the hosts. Every host must call it."""
    if not jax.distributed.is_initialized() or jax.process_count() == 1:
        return [value]
    text = json.dumps(value).encode()
    if len(text) > _MESSAGE:
        raise ValueError(f"a message to the other hosts has {len(text)} bytes, more than {_MESSAGE}")
    rows = multihost_utils.process_allgather(np.frombuffer(text.ljust(_MESSAGE), np.uint8))
    return [json.loads(row.tobytes()) for row in rows]


def from_first(compute: Callable[[], Any]) -> Any:
    """Give every host the value of compute() on the first host, which must be JSON. Every host must call it."""
    return gathered(compute() if jax.process_index() == 0 else None)[0]


@contextlib.contextmanager
def all_or_none() -> Iterator[None]:
    """Raise on every host what one of them raises inside: unchanged on that host, as a UserError on the others."""
    mine: Exception | None = None
    try:
        yield
    except Exception as error:
        mine = error
    texts = gathered(f"{mine}"[:1000] if mine else "")
    if mine:
        raise mine
    for host, text in enumerate(texts):
        if text:
            raise UserError(f"host {host}: {text}")


def first_host() -> bool:
    """Tell whether this process is the one that writes logs and records, all that is not an array."""
    return jax.process_index() == 0


def say(line: str, file: Any = None) -> None:
    """Write a line, or a few, on stderr, or on `file`, from the first host; a progress bar moves out of its way.

    What it quotes of a file or path is escaped and cut, as in a message.
    """
    if first_host():
        text = "\n".join(shown(part, LONGEST) for part in line.splitlines())
        tqdm.write(text, file=file or sys.stderr)
