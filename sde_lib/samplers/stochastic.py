"""First-order steps of the reverse SDE dx = [f x - g² s] dt + g dw (Anderson 1982; Song et al. 2021, arXiv:2011.13456, eq. 6).

Written in the denoiser, s = (alpha D - x)/sigma².
"""

from dataclasses import dataclass
from typing import Any

from sde_lib.samplers.linear import Coefficients, LinearSampler
from sde_lib.sde import SDE


def euler_maruyama(sde: SDE, times: Any) -> Coefficients:
    """x' = x - f x dt + g² s dt + g sqrt(dt) z, with dt = times[i] - times[i+1] > 0."""
    t, dt = times[:-1], times[:-1] - times[1:]
    g2_dt, sigma2 = sde.g2(t) * dt, sde.sigma(t) ** 2
    return Coefficients(a=1 - sde.f(t) * dt - g2_dt / sigma2, b=g2_dt * sde.alpha(t) / sigma2, c=g2_dt**0.5)


def reverse_diffusion(sde: SDE, times: Any) -> Coefficients:
    """x' = (2 - r) x + v s + sqrt(v) z, which reverses the forward chain's own step from times[i+1] to times[i].

    That step is x_i = r x_{i+1} + sqrt(v) z, with r = alpha_i/alpha_{i+1} and v = sigma_i² - r² sigma_{i+1}² (Song et al. 2021,
    arXiv:2011.13456, eq. 46, there with r to first order for VP and exact for VE).
    """
    t, t_next = times[:-1], times[1:]
    r = sde.alpha(t) / sde.alpha(t_next)
    # v/sigma_i² = 1 - SNR_i/SNR_{i+1}: no difference of nearly equal variances.
    share = -sde.namespace(t).expm1(sde.log_snr(t) - sde.log_snr(t_next))
    return Coefficients(a=2 - r - share, b=share * sde.alpha(t), c=share**0.5 * sde.sigma(t))


@dataclass(frozen=True)
class EulerMaruyama(LinearSampler):
    """Euler-Maruyama on the reverse SDE, uniform in t: weak order 1. NFE = steps, and one more with `denoise`."""

    steps: int = 500
    denoise: bool = False

    def update(self, sde: SDE, times: Any) -> Coefficients:
        """See `euler_maruyama`."""
        return euler_maruyama(sde, times)


@dataclass(frozen=True)
class ReverseDiffusion(LinearSampler):
    """The reverse-diffusion sampler, uniform in t: weak order 1. NFE = steps, and one more with `denoise`."""

    steps: int = 500
    denoise: bool = False

    def update(self, sde: SDE, times: Any) -> Coefficients:
        """See `reverse_diffusion`."""
        return reverse_diffusion(sde, times)
