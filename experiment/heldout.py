"""The likelihood of held-out data through the probability-flow ODE, with its standard errors.

Images are dequantised uniformly, so that the number is an upper bound, in expectation, of the bits per dimension of the integer
pictures (Theis et al. 2016, arXiv:1511.01844, section 3.1).
"""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiment.sampling import padded, progress, solver_remedy
from sde_lib import Hutchinson, bits_per_dim, log_prob

Array = np.ndarray

CAVEAT = (
    "This is the likelihood of the ODE's model: the density that the probability-flow ODE carries from its prior to the data. "
    "A stochastic sampler draws from another law, whose density nobody computes here; never read it as the likelihood of its samples."
)


def held_out_likelihood(run: Any, settings: Any) -> tuple[dict[str, Any], Array]:
    """({unit, mean, se_images, se_probes, n, probes, nfe, caveat}, (n,) value of each example).

    Bits/dim of the first `settings.likelihood_n` held-out images, dequantised with a key of `settings.seed`; of vectors log p in nats.
    Raises UserError where the solver gives up.
    """
    test, scaling = run.dataset.test, run.scaling
    n = min(settings.likelihood_n, len(test))
    x = scaling.to_model(test.x[:n], jax.random.key(settings.seed))
    labels = test.labels[:n] if run.config.model.class_conditional else None
    nats, nfe = _probe_nats(run, np.asarray(x), labels, settings)
    dim = math.prod(run.shape)
    unit, convert = likelihood_unit(dim, scaling.bin_width)
    values = convert(nats)
    return {"unit": unit, **summarise_likelihood(values), "nfe": nfe, "caveat": CAVEAT}, values.mean(axis=1)


def likelihood_unit(dim: int, bin_width: float | None) -> tuple[str, Callable[[Array], Array]]:
    """Bits/dim for data with levels; for vectors nats, log p itself, where larger is better."""
    if bin_width is None:
        return "nats", lambda nats: nats
    return "bits/dim", lambda nats: bits_per_dim(nats, dim, bin_width)


def summarise_likelihood(values: Array) -> dict[str, Any]:
    """From values (n, probes): their mean, and its standard errors.

    se_images: over the examples, each one's probe-mean; it has the probes' noise in it. se_probes: that noise alone, from the spread of
    each example's probes, sqrt(mean_i s_i²/(probes n)); None for a single probe.
    """
    n, probes = values.shape
    se_probes = float(np.sqrt(np.mean(values.var(axis=1, ddof=1)) / (probes * n))) if probes > 1 else None
    return {
        "mean": float(values.mean()),
        "se_images": float(values.mean(axis=1).std(ddof=1) / math.sqrt(n)),
        "se_probes": se_probes,
        "n": n,
        "probes": probes,
    }


def _probe_nats(run: Any, x: Array, labels: Array | None, settings: Any) -> tuple[Array, float]:
    """(n, probes) log-densities of x, every example once, in batches of one shape; and the NFE, the mean over the examples."""
    size, found, total = min(settings.batch_size, len(x)), [], 0
    with progress(len(x), "likelihood", "example") as bar, solver_remedy():
        for first in range(0, len(x), size):
            kept = min(size, len(x) - first)
            result = log_prob(
                run.score_fn,
                jnp.asarray(padded(x[first : first + size], size)),
                jax.random.fold_in(jax.random.key(settings.seed), 1),
                divergence=Hutchinson(probes=settings.probes),
                rtol=settings.rtol,
                atol=settings.atol,
                first=first,
                cond=None if labels is None else padded(labels[first : first + size], size),
            )
            found.append(np.asarray(result.probe_nats, np.float64)[:kept])
            total += kept * int(result.nfe)
            bar.update(kept)
    return np.concatenate(found), total / len(x)
