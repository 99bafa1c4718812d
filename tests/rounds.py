"""Rounds by hand: training that is killed, or interrupted, at random moments.

    python -m tests.rounds --kill=100         SIGKILL, in every phase: bit for bit the uninterrupted run in the end
    python -m tests.rounds --interrupt=100    ctrl-C while a command starts, works or ends: no word of it

The first asks for the whole state and for each row of the log that the uninterrupted run ends with. The second spares
the interpreter's own first hundredths of a second, in which nothing of ours runs yet.
"""

import argparse
import json
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np

from experiment.command_line import INTERRUPTED
from experiment.config import load_config
from experiment.run.checkpoint import Checkpoints
from experiment.run.load import load_run
from experiment.run.log import read_metrics
from experiment.training.trainer import Trainer
from tests.commands import ROOT, environment, start_train, train_flags, trained

KEYS: dict[str, Any] = {
    "train_steps": 1000,
    "train_checkpoint_every": 31,
    "train_keep": 3,
    "train_log_every": 100,
    "train_preview_every": 400,
    "train_power_ema": "0.1",
    "train_snapshot_every": 150,
}


def start(*argv: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, *argv], cwd=ROOT, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def final(workdir: Path) -> tuple[list[np.ndarray], list[dict[str, Any]]]:
    """The whole state of the newest checkpoint, and the rows of the log without their speed."""
    config = load_config(workdir / "config.json")[0]
    like = Trainer(config, load_run(workdir).dataset).like
    restored = Checkpoints(workdir / "checkpoints").restore(like, print)
    assert restored is not None
    rows = [{name: row[name] for name in row if name != "images_per_second"} for row in read_metrics(workdir)]
    return [np.asarray(leaf) for leaf in jax.tree.leaves(restored[0])], rows


def same(one: Any, other: Any) -> bool:
    return one[1] == other[1] and all(np.array_equal(x, y) for x, y in zip(one[0], other[0], strict=True))


def killed(folder: Path, rounds: int, rng: random.Random) -> int:
    """Kill training `rounds` times, over as many runs as that takes. Returns how many ended otherwise."""
    whole = folder / "whole"
    began = time.monotonic()
    trained(whole, **KEYS)
    length, expected = time.monotonic() - began, final(whole)
    done, different, runs = 0, 0, 0
    while done < rounds:
        runs += 1
        workdir = folder / f"run{runs}"
        status = -signal.SIGKILL
        while status == -signal.SIGKILL:
            process = start_train(workdir, **KEYS)
            time.sleep(rng.uniform(0.05, 0.5) * length)
            process.send(signal.SIGKILL)
            ended = process.wait()
            status = ended.status
            done += status == -signal.SIGKILL
        if status or "Traceback" in ended.err or not same(final(workdir), expected):
            different += 1
            print(f"run {runs} ends otherwise: status {status} {ended.err[-500:]}")
        shutil.rmtree(workdir)
        print(f"{done} kills over {runs} runs, {different} differences", flush=True)
    return different


def interrupted(folder: Path, rounds: int, rng: random.Random) -> int:
    """Press ctrl-C `rounds` times. Returns how often something was printed of it, or something was lost."""
    run = folder / "run"
    assert start(*train_flags(run, train_steps=3)).wait() == 0
    commands = [
        train_flags(folder / "new", train_steps=200, train_checkpoint_every=20),
        ["sample.py", f"--workdir={run}", "--sampler=em", "--n=64", "--steps=20", f"--out={folder / 'out'}"],
        ["train.py", "--help"],
    ]

    def seconds(*command: str) -> float:
        began = time.monotonic()
        start(*command).communicate()
        return time.monotonic() - began

    boot, lengths = 2 * seconds("-c", "import site"), [seconds(*command) for command in commands]
    wrong, statuses = 0, dict[int, int]()
    for i in range(rounds):
        command, length = commands[i % 3], lengths[i % 3]
        shutil.rmtree(folder / "new", ignore_errors=True)
        process = start(*command)
        time.sleep(rng.uniform(boot, max(1.15 * length, 2 * boot)))
        process.send_signal(signal.SIGINT)
        _, err = process.communicate()
        statuses[process.returncode] = statuses.get(process.returncode, 0) + 1
        told = [line for line in err.splitlines() if not line.startswith("SIGINT: stopped after step ")]
        # -2: the interpreter itself was still starting.
        if told or process.returncode not in (0, INTERRUPTED, -signal.SIGINT):
            wrong += 1
            print(f"{command[0]} after {length:.1f} s at most: status {process.returncode}: {err[-600:]}", flush=True)
    left = json.loads((run / "config.json").read_text())
    print(f"{rounds} interrupts, {wrong} with a word; statuses {statuses}; the run is {'whole' if left else 'lost'}")
    return wrong


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kill", type=int, default=0)
    parser.add_argument("--interrupt", type=int, default=0)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="rounds-"))
    rng = random.Random(args.seed)
    wrong = killed(folder, args.kill, rng) if args.kill else 0
    wrong += interrupted(folder, args.interrupt, rng) if args.interrupt else 0
    shutil.rmtree(folder)
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main())
