"""The image networks at equal minutes of training on digits: python benchmarks/networks.py [--minutes=5] [--seeds=1].

Each is trained by the same code on configs/digits.py, for as many steps as it makes in the given minutes on this
machine (measured before), with the schedule stretched to that; then all are evaluated alike. configs/digits.py uses the
better one.
"""

import argparse
import json
import logging
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import jax
from ml_collections import ConfigDict

from configs import digits
from experiment.build.objects import abstract_network
from experiment.config import whole_config
from experiment.data.load import load_dataset
from experiment.evaluation.evaluate import evaluate_run
from experiment.evaluation.results import Report
from experiment.training.loop import train
from experiment.training.trainer import Trainer

SAMPLERS = ["em", "ode"]
DIT = {"name": "dit", "width": 128, "depth": 4, "heads": 4, "patch_size": 2}
NETWORKS: dict[str, dict] = {
    "unet": {},  # configs/digits.py as it is
    "dit": {"model": DIT},
    "dit, half the learning rate": {"model": DIT, "train": {"lr": 1e-3}},
}


def config_of(name: str, **train_settings: object) -> ConfigDict:
    config = whole_config(digits.get_config())
    for section, values in NETWORKS[name].items():
        config[section].update(values)
    config.train.update(train_settings)
    return config


def progress(config: ConfigDict) -> Iterator[float]:
    """Yield the seconds per step of each window of 20 steps, after one to warm up."""
    dataset = load_dataset(config.data.name)
    trainer = Trainer(config, dataset)
    for row in trainer.run(trainer.initial_state()):
        if row.step > 20:
            yield config.train.batch_size / row.row["images_per_second"]


def seconds_per_step(repeats: int = 3) -> dict[str, float]:
    """The median over windows in which the networks take turns: other users of the machine slow all of them alike."""
    runs = {name: progress(config_of(name, steps=20 * (repeats + 1), log_every=20)) for name in NETWORKS}
    seconds: dict[str, list[float]] = {name: [] for name in NETWORKS}
    for _ in range(repeats):
        for name, run in runs.items():
            seconds[name].append(next(run))
    return {name: sorted(values)[repeats // 2] for name, values in seconds.items()}


def compare(minutes: float, seeds: int, n: int, folder: Path) -> dict[str, dict]:
    found = {}
    for name, seconds in seconds_per_step().items():
        steps = int(60 * minutes / seconds)
        config = config_of(name, steps=steps, checkpoint_every=steps, log_every=max(steps // 20, 1))
        _, shapes = abstract_network(config, load_dataset("digits"))
        weights = sum(leaf.size for leaf in jax.tree.leaves(shapes))
        start = time.perf_counter()
        train(config, folder / name)
        spent = (time.perf_counter() - start) / 60
        _, evaluation = evaluate_run(str(folder / name), SAMPLERS, {"n": n, "seeds": seeds, "likelihood_n": 297})
        found[name] = {"weights": weights, "steps": steps, "minutes": spent, **summary(evaluation.report)}
    return found


def summary(report: Report) -> dict:
    """The figures that decide which network is better."""
    metrics = {name: {m: v.mean for m, v in s.metrics.items()} for name, s in report.samplers.items()}
    return {**metrics, "bits_per_dim": report.likelihood.mean}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=5.0)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--n", type=int, default=512)
    parser.add_argument("--json", help="also write the figures to this file")
    args = parser.parse_args()
    logging.getLogger("absl").setLevel(logging.WARNING)  # orbax tells of every file
    with tempfile.TemporaryDirectory() as folder:
        found = compare(args.minutes, args.seeds, args.n, Path(folder))
    for name, row in found.items():
        trained = f"{row['steps']} steps in {row['minutes']:.1f} minutes"
        print(f"{name}: {row['weights']:,} weights, {trained}, {row['bits_per_dim']:.3f} bits/dim")
        for sampler in SAMPLERS:
            print(f"  {sampler:4s}", ", ".join(f"{metric} {value:.3f}" for metric, value in row[sampler].items()))
    if args.json:
        given = f"--minutes={args.minutes:g} --seeds={args.seeds} --n={args.n}"
        about = {"command": f"python benchmarks/networks.py {given}"}
        about |= {"device": jax.devices()[0].device_kind, "jax": jax.__version__}
        Path(args.json).write_text(json.dumps({**about, **found}, indent=2))


if __name__ == "__main__":
    main()
