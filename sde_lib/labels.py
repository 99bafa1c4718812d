"""Noise labels: what a network is told of the noise at time t, (n,) or a scalar, as t is.

A network of this project takes EDM's. One trained elsewhere takes the label that it was trained with; any of them works
under any SDE that the label's formula is made for.
"""

from dataclasses import dataclass
from typing import Protocol

import jax.numpy as jnp

from sde_lib.pytree import register_dataclass
from sde_lib.sde import SDE
from sde_lib.typing import Array, Scalar


class NoiseLabel(Protocol):
    """A label as a function label(sde, t)."""

    def __call__(self, sde: SDE, t: Scalar) -> Scalar: ...


@register_dataclass
@dataclass(frozen=True)
class LogSNRLabel:
    """The label log(sigma/alpha)/4: Karras et al. 2022, arXiv:2206.00364, table 1, c_noise, there with alpha = 1."""

    def __call__(self, sde: SDE, t: Scalar) -> Scalar:
        return -sde.log_snr(t) / 8


@register_dataclass
@dataclass(frozen=True)
class FlowTimeLabel:
    """The label tau = sigma/(alpha + sigma), from 0 to 1: the rectified flow's own time of any SDE.

    It is bounded, and so is its derivative in tau, which a loss may take that differentiates in time: that of
    `LogSNRLabel`, 1/(4 tau (1 - tau)), is not.
    """

    def __call__(self, sde: SDE, t: Scalar) -> Scalar:
        alpha, sigma = sde.alpha(t), sde.sigma(t)
        return sigma / (alpha + sigma)


@register_dataclass
@dataclass(frozen=True)
class LogSigmaLabel:
    """The label log sigma: NCSN++ on `VE`, whose Fourier features are those of log sigma.

    Song et al. 2021, arXiv:2011.13456, appendix H.1.
    """

    def __call__(self, sde: SDE, t: Scalar) -> Scalar:
        return jnp.log(sde.sigma(t))


@register_dataclass
@dataclass(frozen=True)
class TimeLabel:
    """The label scale t: DDPM++ on `VP` and `SubVP`.

    The default 999 is the last label of a discrete chain of 1,000 steps, also where steps are continuous.
    """

    scale: Scalar = 999.0

    def __call__(self, sde: SDE, t: Scalar) -> Scalar:
        return self.scale * t


@register_dataclass
@dataclass(frozen=True)
class ReversedTimeLabel:
    """The label scale (t_max - t): the discrete VE networks of Song et al. 2021.

    They count their noise levels from the largest down.
    """

    scale: Scalar = 999.0

    def __call__(self, sde: SDE, t: Scalar) -> Scalar:
        return self.scale * (sde.t_max - t)


@register_dataclass
@dataclass(frozen=True)
class ChainLabel:
    """The step, from 0, at which a discrete chain has the SDE's log SNR at t.

    Between two steps it is linear in log SNR, beyond the ends the end.

    For a network trained on the chain alone (Ho et al. 2020, arXiv:2006.11239; Lu et al. 2022, arXiv:2206.00927,
    appendix D, for the idea).

    Args:
        log_snr: (T,), decreasing: log(alpha²/sigma²) after steps 1..T, from `Chain`'s tables.
    """

    log_snr: Array

    def __call__(self, sde: SDE, t: Scalar) -> Scalar:
        noise = -jnp.asarray(self.log_snr, jnp.float32)
        return jnp.interp(-sde.log_snr(t), noise, jnp.arange(len(noise), dtype=noise.dtype))
