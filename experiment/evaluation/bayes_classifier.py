"""The classifier that follows from a class-conditional density: p(c | x) proportional to p(c) p(x | c).

log p(x | c) of each held-out example by every class is a solve of the probability-flow ODE for each class, with the
same dequantised point and the same probes, whose noise the classes share. Where the density is exact the classifier is
Bayes', of which no other makes fewer errors.
"""

import math
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiment.common.progress import progress
from experiment.data.dataset import some_of
from experiment.devices.sharding import mesh_here, round_up
from experiment.run.load import in_float32
from experiment.run.sampling import GUESSED_CALLS, padded, seconds_per_call, solver_remedy
from sde_lib import Exact, Hutchinson, UniformDequantization, log_prob, row_keys

Array = np.ndarray

EXACT_TO = 8  # entries of an example up to which the divergence is computed exactly
PROBES = 1  # beyond, of Hutchinson's
MOST_SOLVES = 10_000  # examples times classes
_DRAWS, _PROBES = 100, 101  # the purposes that a seed's randomness is split into, beside the likelihood's own


@dataclass(frozen=True)
class BayesClassifier:
    """What log p(x | c) of held-out examples says of their classes.

    Args:
        nats: log p(x | c), (n, classes); of levels that of the dequantised example, as a density over levels.
        labels: (n,), the examples' own classes.
        shares: p(c), each class's share of the training examples.
    """

    nats: Array
    labels: Array
    shares: Array

    @property
    def posterior(self) -> Array:
        """log p(c | x), (n, classes)."""
        with np.errstate(divide="ignore"):
            joint = self.nats + np.log(self.shares)[None]
        return joint - np.logaddexp.reduce(joint, axis=1, keepdims=True)

    @property
    def predicted(self) -> Array:
        """The most probable class of each example."""
        return self.posterior.argmax(axis=1)

    @property
    def accuracy(self) -> float:
        """The share of the examples whose most probable class is their own."""
        return float(np.mean(self.predicted == self.labels))

    @property
    def log_loss(self) -> float:
        """The mean of -log p(own class | x), in nats."""
        return float(-np.mean(self.posterior[np.arange(len(self.labels)), self.labels]))

    def by_class(self, c: int) -> tuple[int, float, float]:
        """Of the examples of class c: their number, the mean log p(x | c), and the share that is recognised."""
        of = self.labels == c
        if not of.any():
            return 0, math.nan, math.nan
        return int(of.sum()), float(self.nats[of, c].mean()), float(np.mean(self.predicted[of] == c))

    def lines(self, convert: Any, unit: str) -> list[str]:
        """The table for a terminal."""
        n = len(self.labels)
        error = math.sqrt(max(self.accuracy * (1 - self.accuracy), 1 / n) / n)
        rows = []
        for c in range(self.nats.shape[1]):
            count, nats, found = self.by_class(c)
            told = (
                f"{float(convert(np.array(nats))):10.4f} {unit}, {found:6.1%} recognised" if count else "none held out"
            )
            rows.append(f"  class {c:4d}, {count:5,} examples: log p(x | c) {told}")
        return [
            f"the classifier p(c | x) ~ p(c) p(x | c): {self.accuracy:.1%} (standard error {error:.1%}) of {n:,} "
            f"held-out examples, log loss {self.log_loss:.4f} nats",
            *rows,
        ]

    def document(self) -> dict[str, Any]:
        """What the file of the likelihood holds of it."""
        return {
            "accuracy": self.accuracy,
            "log_loss": self.log_loss,
            "shares": self.shares.tolist(),
            "labels": self.labels.tolist(),
            "nats": self.nats.tolist(),
        }


def bayes_classifier(run: Any, n: int, settings: Any) -> BayesClassifier:
    """Compute log p(x | c) of n held-out examples, or fewer, by every class of a class-conditional run."""
    run, n = in_float32(run), classified(run, n)
    test, classes, dim = run.dataset.test, run.dataset.num_classes, math.prod(run.shape)
    chosen, size = some_of(n, len(test)), round_up(min(settings.batch_size, n), mesh_here())
    key = jax.random.key(settings.seed)
    divergence = Exact() if dim <= EXACT_TO else Hutchinson(probes=PROBES)
    found = np.zeros((n, classes))
    with progress(n * classes, "by class", "example", classifier_seconds(run, n)) as work, solver_remedy():
        work.note("compiling")
        for first in range(0, n, size):
            rows = padded(chosen[first : first + size], size)
            kept = min(size, n - first)
            z = run.scaling.to_model(test.x[rows])
            log_q: Any = np.full(size, run.scaling.log_det(tuple(run.shape)))
            if run.scaling.levels:
                keys = row_keys(jax.random.fold_in(key, _DRAWS), first + jnp.arange(size))
                z, log_q = UniformDequantization(run.scaling.bin_width)(run.score_fn.sde, keys, z)
            for c in range(classes):
                of_probes = jax.random.fold_in(key, _PROBES)
                told = np.full(size, c, np.int32)
                tolerances = {"rtol": settings.rtol, "atol": settings.atol}
                result = log_prob(
                    run.score_fn, z, of_probes, divergence=divergence, first=first, cond=told, **tolerances
                )
                nats = np.asarray(result.nats, np.float64) - np.asarray(log_q, np.float64)
                found[first : first + kept, c] = nats[:kept]
                work.note("")
                work.update(kept)
    counts = np.bincount(run.dataset.train.labels, minlength=classes)
    return BayesClassifier(found, np.asarray(test.labels[chosen]), counts / counts.sum())


def classified(run: Any, n: int) -> int:
    """How many of n examples are put to every class: all, or the first of them where there are many classes."""
    return min(n, max(2, MOST_SOLVES // run.dataset.num_classes))


def classifier_seconds(run: Any, n: int) -> float:
    """About how long it takes."""
    derivatives = math.prod(run.shape) if math.prod(run.shape) <= EXACT_TO else PROBES
    calls = GUESSED_CALLS * (1 + 2 * derivatives)
    return classified(run, n) * run.dataset.num_classes * calls * seconds_per_call(run)
