"""C2ST of posteriors against an outside benchmark: python benchmarks/sbi.py --task=slcp --reference=FILE --workdir=DIR.

The task's simulator draws --simulations pairs of parameters theta and observations x. An affine map of theta that
depends on x is fitted to them (experiment/data/whitening.py), a score is trained by configs/sbi.py on what the map
leaves of theta, and its samples, mapped back, are held against the reference samples of the posterior at each
observation. How much of the network's output is used, from none, which is the map's own Gaussian, to all, is chosen by
the loss of residuals that were held out. Nothing is chosen by the reference.

--reference is an .npz with observation_1, posterior_1, .., or the wheel of sbibm 1.1.0, of which nothing is imported.
The same command goes on with what the workdir holds.
"""

import argparse
import bz2
import io
import json
import time
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from configs import sbi
from experiment.build.samplers import make_sampler
from experiment.cli import convolutions_on_all_cores, mistakes_in_one_line
from experiment.common.errors import UserError
from experiment.common.files import write_npz
from experiment.config import check_flag, whole_config
from experiment.data.simulators import SIMULATORS, simulations
from experiment.data.whitening import Whitening, fit_whitening, whitening_arrays, whitening_of_arrays
from experiment.evaluation.c2st import c2st
from experiment.run.load import load_run
from experiment.sampling import draw
from experiment.training.loop import train
from sde_lib import FunctionScore, denoising_score_matching, likelihood_weighting, uniform_log_snr

Array = np.ndarray
Reference = tuple[Array, Array]  # an observation (m,), and samples (n, d) of its posterior

HELD_OUT = 20  # one of so many residuals, to choose by
SHARES = (0.0, 0.25, 0.5, 0.75, 1.0)  # of the network's output
DRAWS = 32  # of time and noise for each held-out residual
MOST_OBSERVATIONS = 100
SAMPLER, CALLS = "dpmpp_2m", 64


def references(path: Path, task: str) -> list[Reference]:
    """Read the observations and their reference samples from an .npz or from sbibm's wheel.

    Raises UserError where there is none for this task.
    """
    try:
        found = _in_wheel(path, task) if path.suffix == ".whl" else _in_npz(path)
    except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise UserError(
            f"--reference={path} cannot be read ({error}): give an .npz of observation_1, posterior_1, .., or the wheel"
        ) from error
    if not found:
        raise UserError(f"--reference={path} holds no observation of {task}: give the file of this task, or the wheel")
    sizes = {(x.shape, samples.shape[1:]) for x, samples in found}
    theta, x = simulations(task, 2)
    if sizes != {(x.shape[1:], theta.shape[1:])}:
        raise UserError(f"--reference={path} is of another task than {task}: its sizes are {sorted(sizes)}")
    return found


def _in_npz(path: Path) -> list[Reference]:
    with np.load(path) as arrays:
        places = [i for i in range(1, MOST_OBSERVATIONS) if f"posterior_{i}" in arrays]
        return [(np.ravel(arrays[f"observation_{i}"]), arrays[f"posterior_{i}"]) for i in places]


def _in_wheel(path: Path, task: str) -> list[Reference]:
    found = []
    with zipfile.ZipFile(path) as wheel:
        names = set(wheel.namelist())
        for i in range(1, MOST_OBSERVATIONS):
            folder = f"sbibm/tasks/{task}/files/num_observation_{i}"
            if f"{folder}/reference_posterior_samples.csv.bz2" not in names:
                break
            observation = _table(wheel.read(f"{folder}/observation.csv"))
            samples = _table(bz2.decompress(wheel.read(f"{folder}/reference_posterior_samples.csv.bz2")))
            found.append((np.ravel(observation), samples))
    return found


def _table(text: bytes) -> Array:
    """The numbers of a CSV file below its line of names, as rows."""
    return np.loadtxt(io.BytesIO(text), delimiter=",", skiprows=1, ndmin=2)


def fitted(task: str, count: int, workdir: Path) -> Whitening:
    """The task's map, with the data set of its residuals in the workdir."""
    path, simulator = workdir / "whitening.npz", SIMULATORS[task]
    if path.exists():
        with np.load(path) as arrays:
            if (str(arrays["task"]), int(arrays["simulations"])) != (task, count):
                raise UserError(
                    f"{workdir} is of {arrays['task']} with {arrays['simulations']} simulations: give another --workdir"
                )
            return whitening_of_arrays(dict(arrays))
    theta, x = simulations(task, count)
    whitening, z = fit_whitening(theta, x, simulator.support, simulator.draws)
    cond = whitening.cond(x)
    held_out = np.arange(len(z)) % HELD_OUT == 0
    parts = {"train": ~held_out, "test": held_out}
    arrays = {f"x_{part}": z[rows] for part, rows in parts.items()}
    write_npz(workdir / "residuals.npz", **arrays, **{f"cond_{part}": cond[rows] for part, rows in parts.items()})
    write_npz(path, **whitening_arrays(whitening), task=np.asarray(task), simulations=np.asarray(count))
    return whitening


def config_of(workdir: Path, steps: int | None) -> Any:
    """The config of configs/sbi.py on the residuals."""
    config = sbi.get_config()
    config.data.update(name="", path=str(workdir / "residuals.npz"), simulations=0)
    if steps:
        config.train.steps = steps
    return whole_config(config)


def with_share(run: Any, share: float) -> Any:
    """The run with the network's last layer, and so its output, times `share`."""
    score_fn = run.score_fn
    params = score_fn.score_fn.params
    params = {**params, "outer": jax.tree.map(lambda leaf: share * leaf, params["outer"])}
    return replace(run, score_fn=replace(score_fn, score_fn=replace(score_fn.score_fn, params=params)))


def chosen(run: Any) -> Any:
    """The run with the share of its network that the held-out residuals like best."""
    test = run.dataset.test
    x = np.tile(run.scaling.units.to_model(test.x), (DRAWS, 1))
    cond = np.tile(test.vectors, (DRAWS, 1))

    @jax.jit
    def loss(score_fn: Any) -> jax.Array:
        return jnp.mean(
            denoising_score_matching(
                _without_key(score_fn),
                x,
                jax.random.key(0),
                cond,
                weighting=likelihood_weighting,
                times=uniform_log_snr,
            )
        )

    losses = [float(loss(with_share(run, share).score_fn)) for share in SHARES]
    best = SHARES[int(np.argmin(losses))]
    print(f"held-out losses {', '.join(f'{loss:.4f}' for loss in losses)}: {best:g} of the network is used", flush=True)
    return with_share(run, best)


def _without_key(score_fn: Any) -> Any:
    """The score as the loss takes it, which hands a key for dropout: there is none here."""
    return FunctionScore(lambda x, t, cond=None: score_fn(x, t, cond), score_fn.sde)


def posterior_samples(run: Any, whitening: Whitening, x: Array, n: int, seed: int) -> Array:
    """Draw n parameters (n, d), given the observation x (m,)."""
    rows = np.tile(x, (n, 1))
    sampler = make_sampler(SAMPLER, run.config, steps=CALLS)
    batch = min(n, run.config.sample.batch_size)
    drawn = draw(run, sampler, jax.random.key(seed), n, batch, "posterior", whitening.cond(rows))
    return whitening.to_parameters(np.asarray(run.scaling.to_data(drawn.x)), rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", required=True, choices=SIMULATORS)
    parser.add_argument("--simulations", type=int, default=10_000)
    parser.add_argument("--reference", required=True, type=Path)
    parser.add_argument("--workdir", required=True, type=Path)
    parser.add_argument("--observations", type=int, help="how many, from the first; by default all there are")
    parser.add_argument("--n", type=int, help="samples of each; by default as many as the reference has")
    parser.add_argument("--steps", type=int, help="of training; by default the config's own")
    given = parser.parse_args()
    convolutions_on_all_cores()  # as the commands do
    with mistakes_in_one_line():
        measure(given)


def measure(given: argparse.Namespace) -> None:
    """Fit, train, draw and score what the flags name."""
    check_flag("simulations", given.simulations, "data.simulations", least=1000)  # few held-out ones choose nothing
    check_flag("observations", given.observations, least=1)
    check_flag("n", given.n, least=10)
    check_flag("steps", given.steps, "train.steps")
    known = references(given.reference, given.task)[: given.observations]
    given.workdir.mkdir(parents=True, exist_ok=True)
    start = time.perf_counter()
    whitening = fitted(given.task, given.simulations, given.workdir.absolute())
    print(f"fitted the map in {time.perf_counter() - start:.0f} s", flush=True)
    start = time.perf_counter()
    stopped = train(config_of(given.workdir.absolute(), given.steps), given.workdir / "run")
    if stopped:
        raise SystemExit(stopped)
    print(f"trained in {time.perf_counter() - start:.0f} s", flush=True)
    run, scores = chosen(load_run(given.workdir / "run")), []
    for i, (x, reference) in enumerate(known):
        reference = reference[: given.n]
        samples = posterior_samples(run, whitening, x, len(reference), seed=i)
        scores.append(c2st(reference, samples))
        print(f"observation {i + 1}: C2ST {scores[-1]:.4f}, {len(samples):,} against as many", flush=True)
    result = {"task": given.task, "simulations": given.simulations, "c2st": scores, "mean": float(np.mean(scores))}
    (given.workdir / "c2st.json").write_text(json.dumps(result, indent=1) + "\n")
    print(f"mean C2ST {np.mean(scores):.3f} over {len(scores)} observations")


if __name__ == "__main__":
    main()
