"""CIFAR-10 in minutes: train.py until its time is over, then a grid, bits/dim, and the distance with its floor."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np

from benchmarks.on_accelerator.part import Part

JUDGING = 100.0  # seconds kept for what comes after training
TINY = ("width=8", "channel_mults=(1,1)", "blocks=1", "heads=1")


def train(part: Part, workdir: Path, seconds: float) -> None:
    """Train by the command that a user would give, and stop it by SIGTERM, on which it saves."""
    command = [sys.executable, "train.py", "--config=configs/cifar10_minutes.py", f"--workdir={workdir}"]
    command += [f"--config.data.path={part.data}", f"--config.data.cache={part.scratch / 'data'}"]
    if part.tiny:
        command += [f"--config.model.{value}" for value in TINY] + ["--config.train.batch_size=16"]
        command += ["--config.train.log_every=2"]
    process = subprocess.Popen(command)
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGTERM)
        process.wait(60)


def save_in_pieces(weights: list[np.ndarray], out: Path) -> None:
    """Write the arrays, in the order of the tree, to ema_float16_0.npz and so on, of at most 15 MB each."""
    size, piece, pieces = 0, 0, {}
    for leaf in weights:
        size += leaf.nbytes
        piece = size // 15_000_000
        pieces.setdefault(piece, []).append(leaf)
    for k, leaves in enumerate(pieces.values()):
        np.savez(out / f"ema_float16_{k}.npz", *leaves)


def points(levels: np.ndarray) -> np.ndarray:
    """Map levels (n, h, w, c) to points (n, d) in [-1, 1]."""
    return np.asarray(levels, np.float32).reshape(len(levels), -1) / 127.5 - 1


def distance(run: object, samples: np.ndarray, part: Part) -> None:
    """Compare samples with the training images in the features of a small classifier, and two halves of those."""
    from experiment.data.dataset import some_of
    from experiment.evaluation.metrics import ClassFeatures, frechet

    n, dataset = len(samples), run.dataset  # type: ignore[attr-defined]
    rows = np.random.default_rng(0).permutation(len(dataset.train))[: 2 * n + 10_000]
    images, labels = points(dataset.train.x[rows]), dataset.train.labels[rows]
    features = ClassFeatures(images[2 * n :], labels[2 * n :])
    judged = some_of(2000, len(dataset.test))
    accuracy = features.accuracy(points(dataset.test.x[judged]), dataset.test.labels[judged])
    found = frechet(features(samples.reshape(n, -1)), features(images[:n]))
    floor = frechet(features(images[n : 2 * n]), features(images[:n]))
    told = f"{found:.3g}, floor {floor:.2g} ({n} on each side; the classifier labels {accuracy:.0%} of held-out images)"
    part.keep(
        "Frechet distance in the features of a small classifier", told, found=found, floor=floor, accuracy=accuracy
    )


def bits(run: object, part: Part) -> None:
    """Compute bits/dim of held-out images."""
    from experiment.evaluation.likelihood import LikelihoodSettings, solve_batch
    from sde_lib import bits_per_dim

    n = 8 if part.tiny else 512
    settings = LikelihoodSettings.from_config(run.config, n=n, probes=1, rtol=1e-3, atol=1e-3, batch_size=n)  # type: ignore[attr-defined]
    ratios, nfe = solve_batch(run, 0, settings, n)
    values = np.asarray(bits_per_dim(ratios.mean((1, 2)), int(np.prod(run.shape)), 1.0))  # type: ignore[attr-defined]
    error = float(values.std(ddof=1) / np.sqrt(n))
    told = f"{values.mean():.3f} +- {error:.3f} ({n} held-out images, {nfe} NFE)"
    part.keep("bits/dim", told, mean=float(values.mean()), error=error, n=n, nfe=nfe)


def main() -> None:
    part = Part("cifar10")
    workdir = part.scratch / "run"
    train(part, workdir, max(part.left() - (50 if part.tiny else JUDGING), 20))
    from experiment import load_run, plots
    from experiment.run.sampling import draw
    from sde_lib.samplers import UniPC

    run = load_run(workdir)
    seen = run.step * run.config.train.batch_size
    weights = [np.asarray(leaf, np.float16) for leaf in jax.tree.leaves(run.score_fn.params)]
    count = sum(leaf.size for leaf in weights)
    told = f"{run.step:,} steps, {seen:,} images, {count:,} weights"
    part.keep("training", told, step=run.step, images=seen, weights=count)
    save_in_pieces(weights, part.out)
    n = 32 if part.tiny else 2048
    labels = np.arange(n) % 10
    start = time.perf_counter()
    x = draw(
        run, UniPC(steps=8 if part.tiny else 32), jax.random.key(0), n, run.config.sample.batch_size, "samples", labels
    ).x
    part.keep("sampling", f"{n} images by UniPC in {time.perf_counter() - start:.1f} s with compilation")
    grid = np.asarray(run.scaling.to_uint8(np.asarray(run.scaling.to_data(x[:100]))))
    (part.out / "grid.png").write_bytes(plots.image_grid(grid))
    bits(run, part)
    distance(run, np.asarray(x), part)


if __name__ == "__main__":
    main()
