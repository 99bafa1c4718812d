"""First-order steps of the reverse SDE, and of the family of equal marginals between it and the probability-flow ODE,

    dx = [f x - ½ (1 + eta²) g² s] dt + eta g dw̄                eta = 0 the ODE, 1 the reverse SDE, more beyond

(Anderson 1982; Song et al. 2021, arXiv:2011.13456, eq. 6; the family: Zhang & Chen 2023, arXiv:2204.13902, eq. 6; for
constant eta the Fokker-Planck equations agree). Written in the denoiser, s = (alpha D - x)/sigma².
"""

from dataclasses import dataclass

import numpy as np

from sde_lib.samplers.linear import LinearSampler, Table, columns
from sde_lib.sde import SDE
from sde_lib.typing import Array


def check_eta(sampler: LinearSampler, eta: float) -> None:
    """Raise ValueError for an eta that is negative, or not finite."""
    if not 0 <= eta < np.inf:
        raise ValueError(f"{type(sampler).__name__}: eta must be 0 (no noise) or more, and finite, not {eta}")


@dataclass(frozen=True)
class EulerMaruyama(LinearSampler):
    """The step x' = x - [f x - ½ (1 + eta²) g² s] dt + eta g sqrt(dt) z: weak order 1.

    Enough steps: 16,000, or 1,000 on `UniformLogSNR`.

    eta: 1 is the reverse SDE, 0 Euler's method on the ODE.
    """

    eta: float = 1.0

    def __post_init__(self) -> None:
        check_eta(self, self.eta)

    def update(self, sde: SDE, times: Array) -> Table:
        t, t_next = times[:-1], times[1:]
        g2_dt, sigma2 = sde.g2(t) * (t - t_next), sde.sigma(t) ** 2
        pull = 0.5 * (1 + self.eta**2) * g2_dt / sigma2
        return Table(t, t_next, 1 - sde.f(t) * (t - t_next) - pull, columns(pull * sde.alpha(t)), self.eta * g2_dt**0.5)


@dataclass(frozen=True)
class ReverseDiffusion(LinearSampler):
    """The step x' = (2 - r) x + v s + sqrt(v) z, which reverses the forward chain's own: weak order 1.

    That step is x_i = r x_{i+1} + sqrt(v) z, with r = alpha_i/alpha_{i+1} and v = sigma_i² - r² sigma_{i+1}² (Song et
    al. 2021, arXiv:2011.13456, eq. 46, there with r to first order for VP and exact for VE).

    Enough steps: 16,000, or 1,000 on `UniformLogSNR`.
    """

    def update(self, sde: SDE, times: Array) -> Table:
        t, t_next = times[:-1], times[1:]
        r = sde.alpha(t) / sde.alpha(t_next)
        # v/sigma_i² = 1 - SNR_i/SNR_{i+1}: no difference of nearly equal variances.
        share = -sde.namespace(t).expm1(sde.log_snr(t) - sde.log_snr(t_next))
        return Table(t, t_next, 2 - r - share, columns(share * sde.alpha(t)), share**0.5 * sde.sigma(t))


@dataclass(frozen=True)
class Ancestral(LinearSampler):
    """A draw from q(x_s | x_t, x_0 = D), the posterior of the forward chain: DDPM's sampler, weak order 1.

        x' = [(alpha_t/alpha_s) sigma_s² x + alpha_s v D]/sigma_t² + sigma_s sqrt(v)/sigma_t z

    with v = sigma_t² - (alpha_t/alpha_s)² sigma_s² (Ho et al. 2020, arXiv:2006.11239, eq. 6 and 7, with the smaller of
    its two variances).

    Enough steps: 16,000, or 1,000 on `UniformLogSNR`.
    """

    def update(self, sde: SDE, times: Array) -> Table:
        t, t_next = times[:-1], times[1:]
        r = sde.alpha(t) / sde.alpha(t_next)
        share = -sde.namespace(t).expm1(sde.log_snr(t) - sde.log_snr(t_next))  # v/sigma_t²
        sigma, sigma_next = sde.sigma(t), sde.sigma(t_next)
        return Table(
            t, t_next, r * (sigma_next / sigma) ** 2, columns(sde.alpha(t_next) * share), sigma_next * share**0.5
        )


@dataclass(frozen=True)
class ExponentialEuler(LinearSampler):
    """The linear drift f x exactly, the score frozen over the step: weak order 1.

    Zhang & Chen 2023, arXiv:2204.13902, eq. 8.

    x' = (alpha_s/alpha_t) x + ½ (1 + eta²) w s + eta alpha_s sqrt(rho_t² - rho_s²) z, with rho = sigma/alpha and
    w = int_s^t (alpha_s/alpha) g² = alpha_s int alpha d(rho²). That the score changes as 1/sigma over a step, which a
    frozen denoiser or noise (`DDIM`) does not, is what makes this method poor at few steps.

    Enough steps: 16,000, or 1,000 on `UniformLogSNR`.

    eta: 1 is the reverse SDE, 0 the ODE.
    """

    eta: float = 1.0

    def __post_init__(self) -> None:
        check_eta(self, self.eta)

    def update(self, sde: SDE, times: Array) -> Table:
        t, t_next = times[:-1], times[1:]
        xp = sde.namespace(t)
        nodes, weights = np.polynomial.legendre.leggauss(32)
        middle, half = 0.5 * (t + t_next), 0.5 * (t - t_next)
        inner = middle[:, None] + half[:, None] * nodes[None]  # g²/alpha is smooth in t
        alpha, alpha_next, sigma2 = sde.alpha(t), sde.alpha(t_next), sde.sigma(t) ** 2
        w = alpha_next * half * xp.sum(weights[None] * sde.g2(inner) / sde.alpha(inner), axis=1)
        pull = 0.5 * (1 + self.eta**2) * w / sigma2
        spread = -xp.expm1(sde.log_snr(t) - sde.log_snr(t_next)) * sigma2 * (alpha_next / alpha) ** 2
        return Table(t, t_next, alpha_next / alpha - pull, columns(pull * alpha), self.eta * spread**0.5)
