"""Stationary Gaussian fields on a periodic grid: exact in as many dimensions as there are pixels.

All of it is by the fast Fourier transform.
"""

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from sde_lib.batch import check_entries, like, points
from sde_lib.inverse.operators import Convolve
from sde_lib.pytree import register_dataclass
from sde_lib.typing import Array, Scalar

if TYPE_CHECKING:
    from sde_lib.sde import SDE


@partial(register_dataclass, static=("shape",))
@dataclass(frozen=True)
class StationaryGaussianField:
    """A real field x whose Fourier modes are independent about the mean, of variance P(k).

    Its covariance is F* diag(P) F, with F the unitary transform.

    Diffusion keeps it one, with alpha² P + sigma² and alpha times the mean.

    Args:
        shape: (h, w), the grid.
        spectrum: P, (h, w//2 + 1), positive, in the layout of `numpy.fft.rfft2`; E x² is the mean of P over all modes.
            P(k) = P(-k), which binds the columns 0 and w/2 to be symmetric.
        mean: (h, w), or one number for all places.
    """

    shape: tuple[int, int]
    spectrum: jax.Array
    mean: Array | float = 0.0

    def sample(self, key: jax.Array, n: int) -> jax.Array:
        """Draw n fields, (n, h, w)."""
        noise = jax.random.normal(key, (n, *self.shape), self.spectrum.dtype)
        return self._filtered(noise, jnp.sqrt(self.spectrum)) + self._mean(noise)

    def log_prob(self, x: jax.Array) -> jax.Array:
        """The log-density -½ sum_k [|(F x)_k|²/P_k + log 2 pi P_k] in nats, (n,), of x (n, h, w)."""
        x = points(x)
        check_entries(self, x, self.shape)
        spectrum = jnp.asarray(self.spectrum, x.dtype)[None]
        terms = _power(x - self._mean(x)) / spectrum + jnp.log(2 * np.pi * spectrum)
        return -0.5 * jnp.sum(jnp.asarray(_multiplicity(self.shape), x.dtype)[None] * terms, axis=(1, 2))

    def score(self, x: jax.Array) -> jax.Array:
        """The score -F* (F (x - mean))/P, like x."""
        z = points(x)
        check_entries(self, z, self.shape)
        return like(self._filtered(z - self._mean(z), -1 / jnp.asarray(self.spectrum, z.dtype)), x)

    def at(self, sde: "SDE", t: Scalar) -> "StationaryGaussianField":
        """The exact distribution of x_t."""
        dtype = self.spectrum.dtype
        alpha, sigma = jnp.asarray(sde.alpha(t), dtype), jnp.asarray(sde.sigma(t), dtype)
        return StationaryGaussianField(self.shape, alpha**2 * self.spectrum + sigma**2, alpha * jnp.asarray(self.mean))

    def observe(self, operator: Convolve, y: Array, noise: float) -> tuple["StationaryGaussianField", jax.Array]:
        """Condition on y = K x + n with white noise n: the posterior is a field again, whose mean is Wiener's filter.

        With K(k) the kernel's transform and s the standard deviation of n,

            mean' = mean + F* conj(K) P/(|K|² P + s²) F (y - K mean),    P' = P s²/(|K|² P + s²)

        (Wiener 1949). Exact in as many dimensions as there are pixels.

        Args:
            operator: a `Convolve` over the grid.
            y: (h, w). noise: s, positive, in the units of x.

        Returns:
            posterior: the field given y.
            log_evidence: log p(y) in nats, a scalar.

        Raises ValueError for another operator, a y of another shape, and a noise that is no positive number.
        """
        if not isinstance(operator, Convolve):
            raise ValueError("observe: the posterior of a field is one for a Convolve only: give one")
        if jnp.shape(y) != self.shape or jnp.ndim(noise) or (not isinstance(noise, jax.core.Tracer) and not noise > 0):
            raise ValueError(
                f"observe: y must be {self.shape} and noise one positive number, not {jnp.shape(y)} and {noise}"
            )
        y, spectrum = jnp.asarray(y)[None], self.spectrum
        gain = operator.gain(self.shape, spectrum.dtype)
        blurred = jnp.abs(gain) ** 2 * spectrum + noise**2
        residual = y - operator(self._mean(y) * jnp.ones_like(y))
        mean = self._mean(y) + self._filtered(residual, jnp.conj(gain) * spectrum / blurred)
        posterior = StationaryGaussianField(self.shape, spectrum * noise**2 / blurred, mean[0])
        return posterior, StationaryGaussianField(self.shape, blurred).log_prob(residual)[0]

    def _mean(self, x: jax.Array) -> jax.Array:
        """The mean, ready to be added to x."""
        return jnp.broadcast_to(jnp.asarray(self.mean, x.dtype), self.shape)[None]

    def _filtered(self, x: jax.Array, gain: jax.Array) -> jax.Array:
        return jnp.fft.irfft2(gain[None] * jnp.fft.rfft2(x), s=self.shape)


def power_law_field(shape: tuple[int, int], exponent: float = 1.0) -> StationaryGaussianField:
    """The field of amplitude spectrum 1/f^exponent with E x² = 1; natural images are near exponent 1.

    f is in cycles per grid, and 0 counts as 1.
    """
    spectrum = np.maximum(_frequency(shape), 1.0) ** (-2 * exponent)
    mean = np.sum(_multiplicity(shape) * spectrum) / np.prod(shape)
    return StationaryGaussianField(shape, jnp.asarray(spectrum / mean, jnp.float32))


class RadialSpectrum(NamedTuple):
    """The power of fields over rings f - ½ <= |k| < f + ½ of frequency.

    frequency: f of each ring. power: the mean power of its modes. modes: how many independent real numbers are in it.
    """

    frequency: np.ndarray
    power: np.ndarray
    modes: np.ndarray


def radial_spectrum(x: Array) -> RadialSpectrum:
    """The radial spectrum of fields (n, h, w), up to the shorter side's Nyquist frequency.

    Where the power is even over a ring, the mean over its modes has the relative standard error sqrt(2/modes).
    """
    _, h, w = x.shape
    found = _over_rings((h, w), np.asarray(_power(jnp.asarray(x)), float).mean(0))
    return found._replace(modes=len(x) * found.modes)


def exact_radial_spectrum(field: StationaryGaussianField) -> RadialSpectrum:
    """The mean of `radial_spectrum` over draws of the field."""
    return _over_rings(field.shape, np.asarray(field.spectrum, float))


def _over_rings(shape: tuple[int, int], power: np.ndarray) -> RadialSpectrum:
    ring = np.floor(_frequency(shape) + 0.5).astype(int).ravel()
    twice, kept = _multiplicity(shape).ravel(), min(shape) // 2 + 1
    modes, total = (np.bincount(ring, weights)[:kept] for weights in (twice, twice * power.ravel()))
    return RadialSpectrum(np.arange(kept), total / modes, modes)


def _power(x: jax.Array) -> jax.Array:
    """The power |F x|² of each mode, (n, h, w//2 + 1)."""
    return jnp.abs(jnp.fft.rfft2(x, norm="ortho")) ** 2


def _frequency(shape: tuple[int, int]) -> np.ndarray:
    """The frequency |k| of each mode in cycles per grid, (h, w//2 + 1)."""
    h, w = shape
    return np.hypot(np.fft.fftfreq(h, 1 / h)[:, None], np.fft.rfftfreq(w, 1 / w)[None])


def _multiplicity(shape: tuple[int, int]) -> np.ndarray:
    """How often each of rfft2's modes counts among all h w.

    Each counts twice, with its mirror image, but for the columns that are their own.
    """
    h, w = shape
    twice = np.full((h, w // 2 + 1), 2.0)
    twice[:, 0] = 1
    if w % 2 == 0:
        twice[:, -1] = 1
    return twice
