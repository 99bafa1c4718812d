"""A sweep of eight runs that is killed twice, and what is told of them side by side."""

import csv
import fcntl
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

import experiment.training.sweep
from experiment import load_score
from experiment.command_line.given_config import overridden, read_config_file
from experiment.common.errors import UserError
from experiment.config import flatten, load_config
from experiment.evaluation.results import (
    DataDescription,
    Floor,
    LikelihoodResult,
    MetricDescription,
    Protocol,
    Report,
    SamplerResult,
    Value,
)
from experiment.report.compare import compare_runs
from experiment.report.tables import plus_minus
from experiment.run.checkpoint import Checkpoints
from experiment.run.load import load_run
from experiment.run.log import read_metrics
from experiment.training.sweep import sweep
from experiment.training.sweep_processes import Sweep, environment_of, start_process
from experiment.training.sweep_runs import runs_of
from experiment.training.trainer import Trainer
from tests.commands import ROOT, SMALL, Command, Done, trained
from tests.experiment.report.test_report import Page
from tests.experiment.training.test_resume import assert_same_run
from tests.forked_sweep import Forked

SETS = ["train.lr=1e-3,2e-3", "sde.name=vp,ve", "seed=0,1"]
STEPS = 300
COMMON = {
    **{key: str(value) for key, value in SMALL.items()},
    **{
        "model.width": "8",
        "train.steps": f"{STEPS}",
        "train.checkpoint_every": "100",
        "train.preview_every": "0",
        "train.keep": "9",
    },
}
FLAGS = [f"--config={ROOT}/configs/toys.py", *(f"--config.{key}={text}" for key, text in COMMON.items())]


def base(**keys: str) -> Any:
    return overridden(flatten(read_config_file(str(ROOT / "configs" / "toys.py"))), {**COMMON, **keys})


def step_of(path: Path) -> int:
    return (Checkpoints(path / "checkpoints").steps() or [0])[-1]


def start_sweep(folder: Path, *more: str) -> Command:
    sets = [part for told in SETS for part in ("--set", told)]
    return Command(str(ROOT / "tests" / "forked_sweep.py"), *FLAGS, f"--workdir={folder}", *sets, *more)


def stop_when(command: Command, folder: Path, trained: int, number: int) -> tuple[Done, str]:
    """Send the signal once so many runs are trained and the next one is at it. Returns that one's name."""
    at_work = ""

    def ready() -> bool:
        nonlocal at_work
        runs = [path.parent for path in folder.glob("*/config.json")]
        unfinished = [path for path in runs if 0 < step_of(path) < STEPS]
        at_work = unfinished[0].name if unfinished else ""
        return sum(step_of(path) == STEPS for path in runs) >= trained and bool(at_work)

    command.until(ready)
    command.send(number)
    return command.wait(), at_work


@pytest.fixture(scope="module")
def swept(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Done], list[str]]:
    """The sweep's folder, how its three commands ended, and the two runs that were interrupted."""
    folder = tmp_path_factory.mktemp("sweep") / "sweep"
    first, one = stop_when(start_sweep(folder), folder, 2, signal.SIGKILL)
    second, other = stop_when(start_sweep(folder), folder, 5, signal.SIGINT)
    return folder, [first, second, start_sweep(folder).wait()], [one, other]


def runs_in(folder: Path) -> list[Path]:
    return sorted(path.parent for path in folder.glob("*/config.json"))


def test_a_sweep_that_is_killed_twice_trains_each_of_its_eight_runs_once(swept: Any) -> None:
    folder, done, _ = swept
    assert [it.status for it in done] == [-signal.SIGKILL, 130, 0], [it.err for it in done]
    told = [line.partition(": trained")[0] for it in done for line in it.out.splitlines() if ": trained, " in line]
    runs = [path.name for path in runs_in(folder)]
    assert len(runs) == 8 and sorted(told) == runs
    assert all(step_of(folder / name) == STEPS for name in runs)
    assert all([row["step"] for row in read_metrics(folder / name)] == [*range(10, 301, 10)] for name in runs)
    assert "SIGINT: 5 of 8 runs are trained; the same command goes on" in done[1].err
    assert done[2].out.splitlines()[-2] == f"8 of 8 runs are trained: {folder}"


def test_a_run_that_was_interrupted_is_the_run_that_was_not(swept: Any, tmp_path: Path) -> None:
    folder, _, interrupted = swept
    for name in interrupted:
        keys = {key.replace(".", "_", 1): text for key, text in (part.split("=") for part in name.split(","))}
        common = {key.replace(".", "_", 1): text for key, text in COMMON.items()}
        trained(tmp_path / name, **{**common, **keys})
        like = Trainer(load_config(folder / name / "config.json")[0], load_run(folder / name).dataset).like
        assert_same_run(tmp_path / name, folder / name, like)
        one, other = (flatten(load_config(path / name / "config.json")[0]) for path in (tmp_path, folder))
        assert one == other


def refuse(*_: Any) -> Any:
    raise AssertionError("nothing is to be trained")


def test_a_sweep_that_is_done_trains_nothing_and_another_one_is_refused(
    swept: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = swept[0]
    told = list(reversed(SETS))  # the order of the flags is of no account
    assert sweep(base(), COMMON, str(folder), told, start=refuse) == 0
    assert "8 of 8 runs are trained" in capsys.readouterr().out
    with pytest.raises(UserError, match=r"another sweep: 8 runs there, 4 now: 4 new, such as .*, 8 missing, such as"):
        sweep(base(), COMMON, str(folder), SETS[:2], start=refuse)
    with pytest.raises(UserError, match=r"another sweep: train\.clip 1\.0 -> 2\.0; give .* another --workdir"):
        sweep(base(**{"train.clip": "2"}), {**COMMON, "train.clip": "2"}, str(folder), SETS, start=refuse)
    with pytest.raises(UserError, match="is a run's directory: give the sweep a folder of its own"):
        sweep(base(), COMMON, str(runs_in(folder)[0]), SETS, start=refuse)
    with open(folder / ".lock") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(UserError, match="another sweep is at work"):
            sweep(base(), COMMON, str(folder), SETS, start=refuse)


def test_a_run_that_fails_is_told_in_a_line_and_the_others_go_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sets = ["train.lr=1e20,1e-3"]
    common = {**COMMON, "model.width": "8", "train.steps": "20", "train.schedule": "constant", "train.warmup": "0"}
    assert sweep(base(**common), common, str(tmp_path), sets, at_once=2, start=Forked) == 2
    out, err = capsys.readouterr()
    (line,) = err.splitlines()
    assert line.startswith("train.lr=1e+20: failed: training stopped: ") and "try a lower config.train.lr" in line
    assert "train.lr=0.001: trained, step 20, loss " in out and "1 of 2 runs are trained" in out
    assert "1 failed" in out and "not finite" in (tmp_path / "logs" / "train.lr=1e+20.txt").read_text()
    # Repeated, only that one is tried again; and a killed process is no riddle.
    tried: list[str] = []

    class Killed:
        def __init__(self, planned: Sweep, run: Any, environment: Mapping[str, str]):
            tried.append(run.name)

        def poll(self) -> int:
            return -signal.SIGKILL

    assert sweep(base(**common), common, str(tmp_path), sets, start=Killed) == 2  # type: ignore[arg-type]
    assert tried == ["train.lr=1e+20"] and "killed by SIGKILL" in capsys.readouterr().err


def test_what_train_would_refuse_is_refused_before_anything_is_trained(tmp_path: Path) -> None:
    for sets, told in {
        "sde.name=vp,foo": "sde.name=foo: config.sde.name is 'foo'; it must be one of",
        "data.name=checkerboard,chekerboard": "did you mean 'checkerboard'",
        "data.dequantize=false,true": "has no grey levels: leave it out",
        "sde.sigma_max=10,20": "config.sde.name=vp does not take it",
        "model.name=mlp,unet": "use the MLP for vectors",
        "model.condition=none,label": "checkerboard has no labels",
        "train.weight_decay=0,0.1": "which adam does not use",
        "train.start=,/nowhere": "run directory /nowhere does not exist",
        "train.lr=1e-3,0": "config.train.lr is 0.0; it takes a float, above 0",
        "module=a.py,b.py": "config.module is one for all runs",
        "train.steps=10,20": "train.steps is set twice",
    }.items():
        common = {key: text for key, text in COMMON.items() if key not in ("data.name", "model.depth")}
        with pytest.raises(UserError) as error:
            sweep(base(), common, str(tmp_path / "s"), [sets], start=refuse)
        assert told in str(error.value)
    for workdir, flags, told in (
        ("", {}, "--workdir is missing"),
        (str(tmp_path / "s"), {"at_once": 0}, "--at_once is 0"),
    ):
        with pytest.raises(UserError, match=told):
            sweep(base(), COMMON, workdir, SETS, start=refuse, **flags)  # type: ignore[arg-type]
    assert list(tmp_path.iterdir()) == []


def test_a_run_that_another_process_trains_is_waited_for(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    started: list[float] = []

    class Done:
        def __init__(self, planned: Sweep, run: Any, environment: Mapping[str, str]):
            started.append(time.monotonic())

        def poll(self) -> int:
            return 0

    run = tmp_path / "sde.name=ve"
    run.mkdir()
    lock = open(run / ".lock", "w")
    fcntl.flock(lock, fcntl.LOCK_EX)
    freed: list[float] = []
    threading.Timer(0.4, lambda: (freed.append(time.monotonic()), lock.close())).start()
    assert sweep(base(), COMMON, str(tmp_path), ["sde.name=ve,vp"], start=Done) == 0  # type: ignore[arg-type]
    assert started[0] < freed[0] < started[1]  # the other run did not wait
    assert capsys.readouterr().err == "sde.name=ve: another process is training it: waiting for that one\n"


def test_the_process_of_a_run_ends_with_its_sweep_and_saves_before(tmp_path: Path) -> None:
    config = base(**{"train.steps": "1000000", "model.width": "8"})
    (run,) = runs_of(config, {}, ["train.lr=1e-3"])
    planned = Sweep(tmp_path, [run], {})
    experiment.training.sweep.remember(tmp_path, config, [run])
    (tmp_path / "logs").mkdir()
    process: Any = start_process(planned, run, os.environ)
    assert isinstance(process, subprocess.Popen) and process.stdin is not None
    deadline = time.monotonic() + 60
    while not read_metrics(planned.path(run)) and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    process.stdin.close()  # as the kernel does where the sweep is killed
    assert process.wait(30) == 128 + signal.SIGTERM, planned.log(run).read_text()
    assert f"stopped after step {step_of(planned.path(run))}, checkpoint saved" in planned.log(run).read_text()


def test_the_jobs_of_a_slurm_array_are_the_commands_of_the_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "executable", "/bin/echo")
    script, folder = tmp_path / "a job.sh", tmp_path / "s s"
    assert sweep(base(), COMMON, str(folder), SETS, slurm=str(script), start=refuse) == 0
    planned = Sweep(folder, runs_of(base(), COMMON, SETS), COMMON)
    assert f"#SBATCH --array=0-{len(planned.runs) - 1}\n" in script.read_text()
    for i, run in enumerate(planned.runs):
        done = subprocess.run(["bash", script], env={"SLURM_ARRAY_TASK_ID": f"{i}"}, capture_output=True, text=True)
        assert (done.stdout, done.stderr) == (" ".join(planned.command(run)) + "\n", "")
    assert subprocess.run(["bash", script], capture_output=True, env={}).returncode == 2


def test_runs_at_once_share_the_devices() -> None:
    four = {"CUDA_VISIBLE_DEVICES": "0,1,2,3"}
    assert environment_of(0, 1, four) == four
    assert [environment_of(slot, 2, four)["CUDA_VISIBLE_DEVICES"] for slot in range(2)] == ["0,2", "1,3"]
    eight = [environment_of(slot, 8, four) for slot in range(8)]
    assert [it["CUDA_VISIBLE_DEVICES"] for it in eight] == [*"01230123"]
    assert {it["XLA_PYTHON_CLIENT_MEM_FRACTION"] for it in eight} == {"0.45"}
    assert environment_of(1, 3, {}) == {"XLA_PYTHON_CLIENT_MEM_FRACTION": "0.30"}
    mine = {"XLA_PYTHON_CLIENT_MEM_FRACTION": "0.1"}
    assert environment_of(1, 3, mine) == mine


# Side by side

METRICS = {"sliced_w2": "sliced Wasserstein-2", "auc": "classifier AUC (trees)"}


def report_of(seed: int, step: int = STEPS, n: int = 64, data: str = "checkerboard") -> dict[str, Any]:
    """A report.json with numbers of its own."""
    random = np.random.RandomState(seed)

    def spread(kind: Any, **more: Any) -> Any:
        values = random.rand(3)
        return kind(float(values.mean()), float(values.std(ddof=1)), values.tolist(), **more)

    settings = {"n": n, "seeds": 3, "seed": 0, "reference": "train", "likelihood_n": 50, "probes": 2}
    settings |= {"batch_size": 128, "rtol": 1e-5, "atol": 1e-5, "compared": n, "splits": 10, "folds": 5}
    mean, se, nfe = random.rand(3)
    floors = np.random.RandomState(n)  # the same for runs of one protocol
    likelihood = {"se_probes": None, "se_dequantization": None, "tolerance_change": None, "prior_mismatch": 0.0}
    likelihood |= {"n": 50, "probes": 2, "k": 1, "dequantization": None, "seconds_per_example": 0.1}
    return Report(
        dataset=DataDescription(data, [2], None, 0, 20000, 2000),
        checkpoint_step=step,
        score="EMA weights",
        protocol=Protocol(**settings),
        notes=[],
        metrics={
            **{key: MetricDescription("quality", label, "A meaning.", 0.0) for key, label in METRICS.items()},
            "nn_close": MetricDescription("memorisation", "close", "A meaning."),
        },
        left_out={},
        floors={key: Floor(float(floors.rand()), 0.01, [0.1], n) for key in (*METRICS, "nn_close")},
        samplers={
            name: SamplerResult(
                {"class": name},
                float(random.randint(10, 500)),
                float(random.rand()),
                1.0,
                {key: spread(Value, excess=float(random.rand() * 4)) for key in (*METRICS, "nn_close")},
            )
            for name in ("em", "ddim")
        },
        curves={},
        exact=None,
        likelihood=LikelihoodResult(
            unit="nats", mean=-mean, se_images=se, nfe=float(nfe), compiled_too=False, caveat="", **likelihood
        ),
    ).to_json()


def write_report(run: Path, seed: int, **more: Any) -> dict[str, Any]:
    (run / "report").mkdir(exist_ok=True)
    found = report_of(seed, **more)
    (run / "report" / "report.json").write_text(json.dumps(found))
    return found


@pytest.fixture
def copied(swept: Any, tmp_path: Path) -> Path:
    return Path(shutil.copytree(swept[0], tmp_path / "sweep"))


def test_the_comparison_is_right_against_the_runs_own_files(copied: Path) -> None:
    runs = runs_in(copied)
    reports = {run.name: write_report(run, seed) for seed, run in enumerate(runs)}
    for run in runs:  # as of two previews
        rows = read_metrics(run)
        rows[10]["held_out_loss"], rows[20]["held_out_loss"] = 2.0, 0.5 + runs.index(run)
        (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    lines = compare_runs([str(copied)])
    assert lines[-1] == str(copied / "compare.html")
    document = json.loads((copied / "compare.json").read_text())
    rows = list(csv.DictReader(io.StringIO((copied / "compare.csv").read_text())))
    page = Page((copied / "compare.html").read_text())
    assert document["differing"] == ["seed", "sde.name", "train.lr"]
    assert sorted(run["name"] for run in document["runs"]) == sorted(reports) and len(rows) == 16
    for told in document["runs"]:
        run, report = copied / told["name"], reports[told["name"]]
        config, logged = load_config(run / "config.json")[0], read_metrics(run)
        assert told["config"] == {key: flatten(config)[key] for key in document["differing"]}
        assert (told["step"], told["steps"], told["finished"]) == (step_of(run), STEPS, True)
        assert told["loss"] == logged[-1]["loss"]
        assert told["held_out_loss"] == 0.5 + runs.index(run)
        assert told["parameters"] == sum(leaf.size for leaf in jax.tree.leaves(load_score(run).params))
        assert told["images_per_second"] == np.median([row["images_per_second"] for row in logged])
        seconds = sum(10 * config.train.batch_size / row["images_per_second"] for row in logged)
        np.testing.assert_allclose(told["seconds"], seconds)
        (likelihood,) = told["likelihoods"]
        assert likelihood["mean"] == report["likelihood"]["mean"] and likelihood["n"] == 50
        mine = {row["sampler"]: row for row in rows if row["run"] == told["name"]}
        assert set(mine) == set(told["samplers"]) == {"em", "ddim"}
        for name, sampler in report["samplers"].items():
            row = mine[name]
            assert float(row["nfe"]) == told["samplers"][name]["nfe"] == sampler["nfe"]
            assert float(row["train.lr"]) == config.train.lr and row["sde.name"] == config.sde.name
            assert float(row["likelihood"]) == report["likelihood"]["mean"] and int(row["step"]) == STEPS
            for metric in METRICS:
                value, floor = sampler["metrics"][metric], report["floors"][metric]
                assert float(row[metric]) == told["samplers"][name]["metrics"][metric]["mean"] == value["mean"]
                assert float(row[f"{metric}_floor"]) == told["floors"][metric]["mean"] == floor["mean"]
                assert plus_minus(value["mean"], value["sd"]) in page.text
                assert any(plus_minus(value["mean"], value["sd"]) in line for line in lines)
    assert page.loads and all(source.startswith("data:") for source in page.loads)
    assert page.text.count("noise floor") == 1  # one protocol, one data set
    assert document["notes"] == [
        "The training losses are not of the same quantity, because sde.name differs: their heights cannot be compared."
    ]
    assert compare_runs([str(copied)]) == lines  # over its own files, nothing is set aside


def test_runs_at_different_stages_are_shown_with_gaps(copied: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plain, unfinished, stale, alone, missing, broken, lost, other = runs_in(copied)
    for seed, run in enumerate((plain, unfinished, stale, other)):
        write_report(run, seed, step=100 if run in (unfinished, stale) else STEPS)
    for step in (200, 300):
        shutil.rmtree(unfinished / "checkpoints" / f"{step}")
    shutil.rmtree(missing)
    write_report(broken, 1)
    (broken / "report" / "report.json").write_text('{"checkpoint_step": 300}')
    (broken / "metrics.jsonl").write_text("nonsense\n" + (broken / "metrics.jsonl").read_text())
    (lost / "config.json").write_text("{")
    config = json.loads((other / "config.json").read_text())
    config["data"]["name"] = "two_moons"
    (other / "config.json").write_text(json.dumps(config))
    write_report(other, 9, data="two_moons", n=128)
    lines = compare_runs([str(copied)], str(copied / "out"))
    notes = json.loads((copied / "out" / "compare.json").read_text())["notes"]
    told = " ".join(notes)
    assert "The runs are of 2 data sets (" in told and "): distances, floors, likelihoods and losses" in told
    for run, note in (
        (unfinished, "Not finished, step 100 of 300"),
        (stale, "Report of step 100, trained to 300 since"),
        (missing, "Not begun"),
        (broken, "report/report.json is broken (no metrics), left out"),
        (broken, "metrics.jsonl has 1 damaged line(s), left out"),
    ):
        assert f"{note}: {run.name}." in notes, notes
    assert f"Not evaluated: {alone.name}." in notes
    err = capsys.readouterr().err.splitlines()
    assert len(err) == 3 and any(lost.name in line and "left out" in line and "damaged" in line for line in err), err
    runs = {run["name"]: run for run in json.loads((copied / "out" / "compare.json").read_text())["runs"]}
    assert lost.name not in runs and len(runs) == 7
    assert runs[missing.name]["step"] == 0 and runs[missing.name]["loss"] is None
    assert runs[missing.name]["config"]["train.lr"] in (0.001, 0.002) and runs[missing.name]["steps"] == STEPS
    assert runs[alone.name]["samplers"] is None and runs[broken.name]["floors"] is None
    page = (copied / "out" / "compare.html").read_text()
    assert page.count("noise floor") == 2 and page.count(">not evaluated<") == 2
    assert page.count(">broken report<") == 1
    assert any("noise floor" in line for line in lines)


def test_only_runs_are_compared(swept: Any, tmp_path: Path) -> None:
    folder = swept[0]
    one, other = map(str, runs_in(folder)[:2])
    with pytest.raises(UserError, match=r"has neither config\.json nor sweep\.json: give directories of runs"):
        compare_runs([one, str(tmp_path)], str(tmp_path / "out"))
    with pytest.raises(UserError, match="is no folder"):
        compare_runs([one, str(tmp_path / "nowhere")], str(tmp_path / "out"))
    with pytest.raises(UserError, match="--out is missing"):
        compare_runs([one, other])
    lines = compare_runs([one, other, one], str(tmp_path / "out"))
    assert (
        lines[-1].endswith("compare.html") and len(json.loads((tmp_path / "out/compare.json").read_text())["runs"]) == 2
    )
    aside = compare_runs([one], str(tmp_path / "out"))  # of other runs: the earlier one is kept
    assert any("is kept as" in line for line in aside) and (tmp_path / "out_earlier" / "compare.csv").is_file()
    assert "Their configs are the same." in (tmp_path / "out" / "compare.html").read_text()
