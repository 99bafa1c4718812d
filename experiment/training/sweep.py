"""A sweep: many runs of train.py from one config, checked before any is trained.

What is finished is not trained again, and what is not goes on from its newest checkpoint: the same command repeats a
sweep that was stopped, however that happened.
"""

import contextlib
import os
import shlex
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from experiment.build.conditions import condition_kind
from experiment.build.objects import abstract_network, build_optimizer, check_names
from experiment.common.errors import UserError
from experiment.common.files import check_folder, lock_file, user_path, write_text
from experiment.config import check_config, check_flag
from experiment.data.dataset import Dataset
from experiment.data.load import configured_dataset
from experiment.devices.hosts import one_host_only
from experiment.run.directory import RunDirectory, with_absolute_path
from experiment.run.tracking import check_tracker
from experiment.training.sizing import follow_data
from experiment.training.start import Start
from experiment.training.sweep_processes import LOGS, Process, Sweep, SweepTraining, start_process
from experiment.training.sweep_runs import SweepRun, read_list, remember, runs_of
from experiment.training.unused import check_data_keys, unused_keys


def sweep(
    base: Any,
    common: Mapping[str, str],
    workdir: str,
    sets: Sequence[str],
    *,
    listed: str | None = None,
    at_once: int = 1,
    slurm: str | None = None,
    start: Callable[[Sweep, SweepRun, Mapping[str, str]], Process] | None = None,
    environment: Mapping[str, str] | None = None,
) -> int:
    """Do the whole of the command: check every run, then train those that are not finished.

    base: the checked config that the runs share; common: the keys of it that the command line set, as texts. sets: of
    the grid, KEY=V1,V2. listed: a file with a run a line. at_once: processes. slurm: the file of a job array that is
    written instead of training. start: starts a run, by default as a process. environment: of the processes; None for
    this one's.

    Returns the exit status: 0 where all runs are trained, 2 where some failed, 128 + n when signal n stopped it. Raises
    UserError for every mistake that can be seen before anything is trained.
    """
    one_host_only("a sweep")
    check_flag("at_once", at_once, least=1, most=1000)
    if not workdir:
        raise UserError("--workdir is missing: give the folder of the sweep, as in --workdir=sweeps/lr")
    folder = user_path(workdir, "--workdir").absolute()
    if (folder / "config.json").exists():
        raise UserError(f"{folder} is a run's directory: give the sweep a folder of its own as --workdir")
    base = with_absolute_path(base)
    lines = read_list(user_path(listed, "--runs")) if listed else []
    planned = Sweep(folder, runs_of(base, common, sets, lines), common)
    check_runs(planned)
    check_folder(folder)
    with _held(folder):
        remember(folder, base, planned.runs)
        (folder / LOGS).mkdir(exist_ok=True)
        if slurm:
            path = user_path(slurm, "--slurm")
            write_text(path, job_array(planned))
            print(f"{path}: an array of {len(planned.runs)} jobs; sbatch {shlex.quote(str(path))} starts them all")
            return 0
        return SweepTraining(planned, at_once, start or start_process, dict(environment or os.environ)).run()


def check_runs(planned: Sweep) -> None:
    """Raises UserError, with the run's name, for what train.py would refuse of a run's config or data."""
    known: tuple[Any, Dataset] | None = None
    for run in planned.runs:
        config, given = with_absolute_path(check_config(run.config)), (*planned.common, *run.texts)
        try:
            check_names(config)
            check_tracker(config.train.log)
            unused_keys(config, given)
            if config.train.start and not RunDirectory(planned.path(run)).checkpoints.steps():
                config = Start(config, planned.path(run)).config
            of_data = (config.data.to_dict(), config.model.condition == "text")
            if known is None or known[0] != of_data:
                known = of_data, configured_dataset(config)
            dataset = known[1]
            check_data_keys(dataset, given)
            config = follow_data(config, dataset)
            condition_kind(config, dataset)
            build_optimizer(config)
            abstract_network(config, dataset)
        except UserError as error:
            raise UserError(f"{run.name}: {error}", error.listing) from None


@contextlib.contextmanager
def _held(folder: Path) -> Iterator[None]:
    """Hold the sweep's folder for this process. Raises UserError where another sweep runs there."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = open(folder / ".lock", "a")
    except OSError as error:
        raise UserError(f"cannot write {folder} ({error.strerror}): choose another --workdir") from None
    with file:
        try:
            lock_file(file, folder)
        except BlockingIOError:
            raise UserError(
                f"another sweep is at work in {folder}: wait for it, stop it, or choose another --workdir"
            ) from None
        yield


def job_array(planned: Sweep) -> str:
    """A SLURM script that trains each run in a job of its own; submitted again, it goes on with what is unfinished."""
    logs = shlex.quote(str(planned.folder / LOGS / "slurm-%a.txt"))
    jobs = "\n".join(
        f"{i}) exec {shlex.join([sys.executable, *planned.command(run)])} ;;" for i, run in enumerate(planned.runs)
    )
    return f"""#!/bin/bash
#SBATCH --job-name={shlex.quote(planned.folder.name)}
#SBATCH --array=0-{len(planned.runs) - 1}
#SBATCH --output={logs}
#SBATCH --open-mode=append
#SBATCH --signal=B:TERM@120
# Add what your cluster wants, such as --time, --partition and --gres=gpu:1; --array=0-99%8 runs eight at once.
# SIGTERM comes two minutes before the time is up: training saves a checkpoint, and the same sbatch goes on from there.
cd {shlex.quote(os.getcwd())} || exit 1
case "$SLURM_ARRAY_TASK_ID" in
{jobs}
*) echo "this is no job of the array: submit it with sbatch" >&2; exit 2 ;;
esac
"""
