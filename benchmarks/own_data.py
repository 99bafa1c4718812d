"""Numbers of one's own with a known Gaussian law, each trained by one command: python benchmarks/own_data.py
[--case=field].

The data are drawn from the law and saved as an .npz; the config of their kind is trained on it as it stands, but for
the length where --steps says so. Then samples are held against the law, and the log-densities of held-out examples
against the exact ones, all in the data's own units. Results go to --out, by default nowhere but the terminal.
"""

import argparse
import json
import math
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np

from configs import fields, vectors
from experiment.build.samplers import make_sampler
from experiment.cli import convolutions_on_all_cores
from experiment.config import load_config, whole_config
from experiment.data.dataset import some_of
from experiment.evaluation.likelihood import LikelihoodSettings, likelihood
from experiment.run.load import load_run
from experiment.run.sampling import draw
from experiment.training.loop import train
from sde_lib.fields import exact_radial_spectrum, power_law_field, radial_spectrum

Array = np.ndarray

TRAINED, HELD_OUT, DRAWN = 18_000, 2_000, 2_048  # examples and samples
SCORED = 128  # held-out examples, by one probe each: more would take longer than the training


@dataclass(frozen=True)
class Law:
    """The Gaussian N(mean, covariance) of flattened examples, and the config of its kind."""

    shape: tuple[int, ...]
    mean: Array
    covariance: Array
    config: Callable[[], Any]

    def sample(self, rng: np.random.Generator, n: int) -> Array:
        root = np.linalg.cholesky(self.covariance)
        return (self.mean + rng.standard_normal((n, len(self.mean))) @ root.T).reshape(n, *self.shape)

    def log_prob(self, x: Array) -> Array:
        root = np.linalg.cholesky(self.covariance)
        z = np.linalg.solve(root, (x.reshape(len(x), -1).astype(float) - self.mean).T)
        return -0.5 * (np.sum(z**2, axis=0) + len(z) * math.log(2 * math.pi)) - np.log(np.diag(root)).sum()


def exponential(side: int, length: float) -> Array:
    """The covariance exp(-|i - j|/length) of a line of places."""
    place = np.arange(side)
    return np.exp(-np.abs(place[:, None] - place) / length)


def vectors_law() -> Law:
    """Two columns in units that have nothing to do with each other."""
    return Law((2,), np.array([1000.0, 0.003]), np.diag([200.0, 0.001]) ** 2, vectors.get_config)


def series_law() -> Law:
    """Two correlated channels of an autoregressive process around a wave, in units of 50 and 0.001."""
    channels = np.array([[50.0, 0.0], [0.0006, 0.0008]])
    covariance = np.kron(exponential(64, 8.0), channels @ channels.T)
    mean = np.sin(np.arange(64) / 6)[:, None] * [100.0, 0.0] + [300.0, -0.002]
    return Law((64, 2), mean.ravel(), covariance, fields.get_config)


def volume_law() -> Law:
    """One channel, correlated over two places along each of the three axes."""
    line = exponential(8, 2.0)
    return Law((8, 8, 8, 1), np.full(512, 900.0), 30.0**2 * np.kron(line, np.kron(line, line)), fields.get_config)


FIELD = power_law_field((16, 16))
FIELD_SCALE, FIELD_MEAN = 12.0, 280.0


def field_law() -> Law:
    """A stationary field of amplitude 1/f on a periodic grid of 16 x 16, of standard deviation 12 around 280."""
    unit = np.eye(256).reshape(256, 16, 16)
    precision = -np.asarray(FIELD.score(unit.astype(np.float32)), float).reshape(256, 256)
    covariance = np.linalg.inv((precision + precision.T) / 2) * FIELD_SCALE**2
    return Law((16, 16, 1), np.full(256, FIELD_MEAN), (covariance + covariance.T) / 2, fields.get_config)


LAWS: dict[str, Callable[[], Law]] = {
    "vectors": vectors_law,
    "field": field_law,
    "series": series_law,
    "volume": volume_law,
}


def trained(law: Law, name: str, folder: Path, steps: int | None) -> tuple[Path, float]:
    """Train the law's config on draws of it; returns the run and the seconds."""
    x = law.sample(np.random.default_rng(1), TRAINED + HELD_OUT)
    np.savez(folder / f"{name}.npz", x_train=x[:TRAINED], x_test=x[TRAINED:])
    config = whole_config(law.config())
    config.data.path = str(folder / f"{name}.npz")
    if steps:
        config.train.steps = steps
    start = time.perf_counter()
    train(config, folder / name)
    return folder / name, time.perf_counter() - start


def errors_of_moments(law: Law, x: Array) -> dict[str, float]:
    """The errors of the mean and the covariance in the standard errors of as many draws of the law: rms and largest."""
    n, flat = len(x), x.reshape(len(x), -1).astype(float)
    variance = np.diag(law.covariance)
    mean = (flat.mean(axis=0) - law.mean) / np.sqrt(variance / n)
    off = flat - law.mean
    se = np.sqrt((np.outer(variance, variance) + law.covariance**2) / n)
    covariance = ((off.T @ off / n - law.covariance) / se)[np.triu_indices(len(variance))]
    return {
        "mean_rms": float(np.sqrt(np.mean(mean**2))),
        "mean_largest": float(np.abs(mean).max()),
        "covariance_rms": float(np.sqrt(np.mean(covariance**2))),
        "covariance_largest": float(np.abs(covariance).max()),
        "relative_std_largest": float(np.abs(flat.std(axis=0) / np.sqrt(variance) - 1).max()),
    }


def measure(name: str, folder: Path, steps: int | None, sampler: str, calls: int | None) -> dict[str, Any]:
    """Train, sample and score one case."""
    law = LAWS[name]()
    workdir, seconds = trained(law, name, folder, steps)
    run = load_run(workdir)
    config = load_config(workdir / "config.json")[0]
    drawn = draw(run, make_sampler(sampler, run.config, steps=calls), jax.random.key(0), DRAWN, 256, sampler)
    x = np.asarray(run.scaling.to_data(drawn.x))
    settings = LikelihoodSettings.from_config(run.config, n=SCORED, probes=1)
    found, values, _ = likelihood(run, settings, budget=False)
    exact = law.log_prob(np.asarray(run.dataset.test.x)[some_of(SCORED, len(run.dataset.test))])
    result = {
        "shape": list(law.shape),
        "trained_on": TRAINED,
        "steps": config.train.steps,
        "batch_size": config.train.batch_size,
        "minutes": seconds / 60,
        "sampler": sampler,
        "calls": drawn.nfe,
        "samples": DRAWN,
        "errors": errors_of_moments(law, x),
        "scored": SCORED,
        "nats": float(values.mean()),
        "exact_nats": float(exact.mean()),
        "relative_error_of_nats": float(abs(values.mean() / exact.mean() - 1)),
        "nfe": found.nfe,
    }
    if name == "field":
        of = radial_spectrum(((x[..., 0] - FIELD_MEAN) / FIELD_SCALE).astype(np.float32))
        ratio = of.power / exact_radial_spectrum(FIELD).power
        result["spectrum"] = {"ratio": ratio.tolist(), "se": np.sqrt(2 / of.modes).tolist()}
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--case", choices=LAWS)
    parser.add_argument("--steps", type=int, help="of training; by default the config's own")
    parser.add_argument("--sampler", default="unipc")
    parser.add_argument("--calls", type=int, help="steps of the sampler; by default the config's own")
    parser.add_argument("--workdir")
    parser.add_argument("--out", help="a .json")
    given = parser.parse_args()
    convolutions_on_all_cores()  # as the commands do
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(given.workdir or temporary)
        folder.mkdir(parents=True, exist_ok=True)
        cases = [given.case] if given.case else list(LAWS)
        results = {name: measure(name, folder, given.steps, given.sampler, given.calls) for name in cases}
    print(json.dumps(results, indent=1))
    if given.out:
        Path(given.out).write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
