"""Latents of the probability-flow ODE: a path between two of them, and how typical an example is.

Under the model a latent at t_max is a draw of the prior N(0, sigma(t_max)² I): its direction is uniform, and
|z|²/sigma(t_max)² is chi-squared with d degrees of freedom, d the number of entries.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt
from jax.scipy.special import gammainc, gammaincc

from sde_lib.typing import Array, Scalar


class Typicality(NamedTuple):
    """The result of `typicality` and `latent_typicality`, each (n,).

    z: how many standard deviations the statistic lies above its mean.
    p_value: two-sided; small where the example is atypical, on whichever side.
    """

    z: Array
    p_value: Array


def spherical_interpolation(a: Array, b: Array, weight: npt.ArrayLike) -> jax.Array:
    """The point at `weight` of the way from latents a to latents b, along the great circle: (n, *shape).

    With u = a/|a|, v = b/|b| and theta the angle between them

        z = r (sin((1 - w) theta) u + sin(w theta) v)/sin(theta),        r² = (1 - w) |a|² + w |b|²

    (Shoemake 1985, "Animating rotation with quaternion curves"; Song et al. 2021, arXiv:2010.02502, appendix D.5, which
    is the same where |a| = |b|). The angle from a is w theta, whatever the norms. For independent a and b from
    N(0, s² I) in two or more dimensions, z has at every w the mean and covariance of N(0, s² I); on the straight line
    the variance falls to half of it. Where a and b are parallel or opposite to rounding, and there is no one great
    circle, the weights of u and v are 1 - w and w.

    Args:
        a, b: (n, *shape), or (1, *shape) for the same latent in every row.
        weight: (n,) or a scalar, in [0, 1].

    Raises ValueError for shapes that do not fit, and for a weight outside [0, 1].
    """
    a, b = jnp.asarray(a), jnp.asarray(b)
    weight = jnp.asarray(weight, a.dtype)
    if a.ndim < 2 or a.shape[1:] != b.shape[1:] or weight.ndim > 1:
        raise ValueError(
            f"a and b must be (n, *shape) and weight (n,) or a scalar, not {a.shape}, {b.shape} and {weight.shape}"
        )
    rows = np.broadcast_shapes(a.shape[:1], b.shape[:1], weight.shape)
    if not isinstance(weight, jax.core.Tracer) and not bool(jnp.all((weight >= 0) & (weight <= 1))):
        raise ValueError(f"weight must be in [0, 1], not {weight}")
    a, b = (jnp.broadcast_to(latent, rows + latent.shape[1:]) for latent in (a, b))
    return _great_circle(a, b, jnp.broadcast_to(weight, rows)[:, None])


@jax.jit
def _great_circle(a: jax.Array, b: jax.Array, w: jax.Array) -> jax.Array:
    (u, norm_a), (v, norm_b) = _direction(a), _direction(b)
    # From the chord and its complement the angle is accurate at both ends, where the cosine is not.
    chord, complement = (jnp.linalg.norm(x, axis=1, keepdims=True) for x in (u - v, u + v))
    theta, sine = 2 * jnp.arctan2(chord, complement), 0.5 * chord * complement
    curved = sine > 16 * jnp.finfo(a.dtype).eps
    safe = jnp.where(curved, sine, 1.0)
    of_u = jnp.where(curved, jnp.sin((1 - w) * theta) / safe, 1 - w)
    of_v = jnp.where(curved, jnp.sin(w * theta) / safe, w)
    radius = jnp.sqrt((1 - w) * norm_a**2 + w * norm_b**2)
    return (radius * (of_u * u + of_v * v)).reshape(a.shape)


def _direction(latent: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The direction and the norm of each row.

    Returns:
        direction: (n, d), unit vectors.
        norm: (n, 1).
    """
    flat = latent.reshape(latent.shape[0], -1)
    norm = jnp.linalg.norm(flat, axis=1, keepdims=True)
    return flat / jnp.maximum(norm, jnp.finfo(flat.dtype).tiny), norm


def typicality(nats: npt.ArrayLike, reference_nats: npt.ArrayLike) -> Typicality:
    """How far each example's log-density lies from that of typical data, on either side of it.

    Draws of a density p have -log p(x) near the entropy H of p, and not the highest density: images that are plain and
    so more likely than any data are out of distribution too. The statistic is log p(x) + H, with H from the reference
    (Nalisnick et al. 2019, arXiv:1906.02994, with one example), in units of the reference's standard deviation and with
    its sign. With m reference values

        p_value = min(1, 2 (1 + min(#{reference <= nats}, #{reference >= nats}))/(m + 1))

    If the example and the reference are exchangeable, P(p_value <= q) <= q, with equality at q = 2k/(m + 1) where no
    two values are equal: noise that an estimator adds to all of them alike does no harm (Bates et al. 2023,
    arXiv:2104.08279, on each side). Examples that the network was trained on are not exchangeable with others once it
    has learnt them by heart.

    Args:
        nats: (n,) log-densities in nats, as `log_prob` gives them.
        reference_nats: (m,) those of data that are typical, m >= 2.

    Raises ValueError for other shapes, values that are not finite, and a reference whose values are all equal.
    """
    nats, reference = (np.asarray(values, np.float64) for values in (nats, reference_nats))
    if nats.ndim != 1 or reference.ndim != 1 or len(reference) < 2:
        raise ValueError(
            f"typicality takes nats (n,) and reference_nats (m,) with m >= 2, not {nats.shape} and {reference.shape}"
        )
    if not (np.isfinite(nats).all() and np.isfinite(reference).all()):
        raise ValueError("typicality: a log-density is not finite; look for non-finite scores")
    ordered, std = np.sort(reference), reference.std(ddof=1)
    if not std > 0:
        raise ValueError("typicality: all values of the reference are equal; give different examples")
    at_most = np.searchsorted(ordered, nats, side="right")
    at_least = len(ordered) - np.searchsorted(ordered, nats, side="left")
    p_value = np.minimum(1.0, 2 * (1 + np.minimum(at_most, at_least)) / (len(ordered) + 1))
    return Typicality((nats - reference.mean()) / std, p_value)


def latent_typicality(latent: Array, std: Scalar) -> Typicality:
    """How far each latent's |z|²/std² lies from the chi-squared distribution that it has under the model.

        z = (|z|²/std² - d)/sqrt(2 d),        p_value = 2 min(F, 1 - F)

    with d degrees of freedom, and F the distribution function. It needs no reference and no divergence, but sees only
    the norm. latent: (n, *shape); std: sigma(t_max), that of the prior. Computed on the host in float64: in float32 the
    distribution function loses its digits in many dimensions.
    """
    flat = np.asarray(latent, np.float64).reshape(np.shape(latent)[0], -1) / np.float64(std)
    square, d = np.sum(flat**2, axis=1), flat.shape[1]
    with jax.enable_x64(True), jax.default_device(jax.local_devices(backend="cpu")[0]):
        p_value = 2 * np.minimum(gammainc(0.5 * d, 0.5 * square), gammaincc(0.5 * d, 0.5 * square))
    return Typicality((square - d) / np.sqrt(2 * d), p_value)
