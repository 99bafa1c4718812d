"""The forward chain of the discrete diffusion model: its tables, and what a network may predict at each of its steps.

    q(x_t | x_{t-1}) = N(sqrt(1 - beta_t) x_{t-1}, beta_t I)        t = 1..T
    q(x_t | x_0)     = N(alpha_t x_0, sigma_t² I)                   alpha_t² = prod_{s <= t} (1 - beta_s) = 1 - sigma_t²

(Ho et al. 2020, arXiv:2006.11239, eq. 2 and 4.) alpha and sigma mean what they mean for an SDE, and not Ho et al.'s 1 -
beta: alpha² is their alpha-bar. x is (n, *shape); t is a step, 1 to T, an integer or (n,) of them.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import jax
import jax.numpy as jnp
import numpy as np

from sde_lib.batch import per_row
from sde_lib.pytree import register_dataclass
from sde_lib.sde import SDE, host_sde, namespace
from sde_lib.typing import Array, Step


@register_dataclass
@dataclass(frozen=True)
class Chain:
    """The forward chain q, as tables of which entry t - 1 belongs to step t.

    A pytree whose leaves are the tables, computed once, on the host in float64: a compiled function rounds them, and
    computes none.

    Args:
        betas: (T,), the variance that each step adds, in (0, 1). Raises ValueError for others.

    The tables that follow from it, (T,) each:
        alpha, sigma: x_t = alpha x_0 + sigma eps.
        from_x, from_x0: the posterior's mean is from_x x_t + from_x0 x_0.
        log_small: log of the posterior's variance; at t = 1, where that is zero, of the one at t = 2, as published code
            has it (of beta_1 in a chain of one step).
        log_large: log beta.
    """

    betas: Array
    alpha: Array = field(init=False)
    sigma: Array = field(init=False)
    from_x: Array = field(init=False)
    from_x0: Array = field(init=False)
    log_small: Array = field(init=False)
    log_large: Array = field(init=False)

    def __post_init__(self) -> None:
        betas = np.asarray(self.betas, float)
        if betas.ndim != 1 or not len(betas):
            raise ValueError(f"Chain: betas must be (T,) with at least one step, not of shape {betas.shape}")
        wrong = betas[~((betas > 0) & (betas < 1))]
        if len(wrong):
            raise ValueError(
                f"Chain: every beta must lie between 0 and 1, not {wrong[0]:g}: cap it, at 0.999 for example"
            )
        log_alpha_bar = np.cumsum(np.log1p(-betas))
        sigma2 = -np.expm1(log_alpha_bar)
        sigma2_before, alpha_before = np.append(0.0, sigma2[:-1]), np.append(1.0, np.exp(0.5 * log_alpha_bar[:-1]))
        log_posterior = np.log(betas[1:] * sigma2_before[1:] / sigma2[1:])
        tables = {
            "betas": betas,
            "alpha": np.exp(0.5 * log_alpha_bar),
            "sigma": np.sqrt(sigma2),
            "from_x": np.sqrt(1 - betas) * sigma2_before / sigma2,
            "from_x0": alpha_before * betas / sigma2,
            "log_small": np.append(log_posterior[0] if len(betas) > 1 else np.log(betas[0]), log_posterior),
            "log_large": np.log(betas),
        }
        for name, table in tables.items():
            object.__setattr__(self, name, table)

    @property
    def steps(self) -> int:
        """The number of steps, T."""
        return len(self.betas)

    def at(self, t: Step) -> "Chain":
        """The tables' entries for steps t, shaped as t is. Raises ValueError for steps outside 1..T."""
        if not isinstance(t, jax.core.Tracer):  # traced steps cannot be checked
            values = np.asarray(t)
            if not np.issubdtype(values.dtype, np.integer) or (values < 1).any() or (values > self.steps).any():
                raise ValueError(f"a step t must be an integer from 1 to {self.steps} (x_0 is the data), not {t}")
        if namespace(t, self.betas) is np:
            return jax.tree.map(lambda table: np.asarray(table)[t - 1], self)
        # Traced steps cannot be checked: outside 1..T they give what is not a number, and not another step's entry.
        at = jnp.where(t >= 1, t, self.steps + 1) - 1
        return jax.tree.map(lambda table: jnp.asarray(table).at[at].get(mode="fill", fill_value=jnp.nan), self)

    def forward(self, x: jax.Array, t: Step) -> tuple[jax.Array, jax.Array]:
        """The mean, like x, and variance of q(x_t | x_{t-1} = x): one step (Ho et al. 2020, eq. 2)."""
        betas = per_row(self.at(t).betas, x)
        return jnp.sqrt(1 - betas) * x, betas

    def jump(self, x0: jax.Array, t: Step) -> tuple[jax.Array, jax.Array]:
        """The mean, like x0, and variance of q(x_t | x_0): t steps at once (Ho et al. 2020, eq. 4)."""
        row = self.at(t)
        return per_row(row.alpha, x0) * x0, per_row(row.sigma, x0) ** 2

    def posterior(self, x: jax.Array, x0: jax.Array, t: Step) -> tuple[jax.Array, jax.Array]:
        """The mean, like x, and variance of q(x_{t-1} | x_t = x, x_0) (Ho et al. 2020, eq. 6 and 7).

        For t = 1 it is x_0 itself.
        """
        row = self.at(t)
        variance = jnp.where(per_row(row.from_x, x) > 0, jnp.exp(per_row(row.log_small, x)), 0)
        return per_row(row.from_x, x) * x + per_row(row.from_x0, x) * x0, variance


def linear_betas(steps: int, max_beta: float = 0.999) -> np.ndarray:
    """Betas (steps,), linear from 1e-4 to 0.02 at 1,000 steps, and times 1000/steps at other lengths.

    So x_T stays as noisy at any length.

    Ho et al. 2020, section 4; the rescaling is that of Nichol & Dhariwal's code. Below 21 steps it would leave (0, 1):
    `max_beta` caps it.
    """
    _check_steps("linear_betas", steps)
    return np.minimum(np.linspace(1e-4, 0.02, steps) * 1000 / steps, max_beta)


def cosine_betas(steps: int, max_beta: float = 0.999) -> np.ndarray:
    """Betas (steps,) of alpha_t = cos(a_t)/cos(a_0), a_t = (t/steps + s)/(1 + s) pi/2, s = 0.008.

    These are `CosineVP` at evenly spaced times.

    Nichol & Dhariwal 2021, arXiv:2102.09672, eq. 17. `max_beta` is their cap, which the last step always meets.
    """
    _check_steps("cosine_betas", steps)
    angle = (np.arange(steps + 1) / steps + 0.008) / 1.008 * (math.pi / 2)
    # cos² a - cos² b = sin(b - a) sin(b + a): no difference of nearly equal squares.
    betas = np.sin(np.diff(angle)) * np.sin(angle[1:] + angle[:-1]) / np.cos(angle[:-1]) ** 2
    return np.minimum(betas, max_beta)


def chain_of(sde: SDE, times: Array) -> Chain:
    """The chain whose x_t is the SDE's at times[t - 1]: the same alpha and sigma there.

    Args:
        sde: one with alpha² + sigma² = 1, such as `VP` or `CosineVP`.
        times: (T,), increasing, within [t_min, t_max].

    Raises:
        ValueError: for another SDE, or such times.
    """
    sde, times = host_sde(sde), np.asarray(times, float)
    if times.ndim != 1 or not len(times) or not (np.diff(times) > 0).all():
        raise ValueError("chain_of: times must be (T,), increasing: those of a sampler's grid, reversed")
    if times[0] < sde.t_min * (1 - 1e-9) or times[-1] > sde.t_max * (1 + 1e-9):
        raise ValueError(f"chain_of: times must stay within the SDE's [t_min, t_max] = [{sde.t_min:g}, {sde.t_max:g}]")
    variance = sde.alpha(times) ** 2 + sde.sigma(times) ** 2
    if not np.allclose(variance, 1, rtol=0, atol=1e-9):
        raise ValueError(
            f"chain_of takes an SDE with alpha² + sigma² = 1, such as VP or CosineVP, not {type(sde).__name__}"
        )
    # beta_t/sigma_t² = 1 - SNR_t/SNR_{t-1}: no difference of nearly equal alphas.
    share = -np.expm1(np.diff(sde.log_snr(times)))
    return Chain(sde.sigma(times) ** 2 * np.append(1.0, share))


# What a network may predict, with the denoiser E[x_0 | x_t] as the pivot; each takes (chain, quantity, x, t) and
# returns one like x.
Conversion = Callable[[Chain, jax.Array, jax.Array, Step], jax.Array]


def denoiser_from_denoiser(chain: Chain, denoised: jax.Array, x: jax.Array, t: Step) -> jax.Array:
    """The identity, for a network that predicts x_0."""
    return denoised


def denoiser_from_noise(chain: Chain, noise: jax.Array, x: jax.Array, t: Step) -> jax.Array:
    """The denoiser x_0 = (x - sigma eps)/alpha (Ho et al. 2020, eq. 15)."""
    row = chain.at(t)
    return (x - per_row(row.sigma, x) * noise) / per_row(row.alpha, x)


def noise_from_denoiser(chain: Chain, denoised: jax.Array, x: jax.Array, t: Step) -> jax.Array:
    """The noise eps = (x - alpha x_0)/sigma."""
    row = chain.at(t)
    return (x - per_row(row.alpha, x) * denoised) / per_row(row.sigma, x)


def denoiser_from_v(chain: Chain, v: jax.Array, x: jax.Array, t: Step) -> jax.Array:
    """The denoiser x_0 = alpha x - sigma v, with v = alpha eps - sigma x_0.

    Salimans & Ho 2022, arXiv:2202.00512, appendix D.
    """
    row = chain.at(t)
    return per_row(row.alpha, x) * x - per_row(row.sigma, x) * v


def v_from_denoiser(chain: Chain, denoised: jax.Array, x: jax.Array, t: Step) -> jax.Array:
    """The velocity v = (alpha x - x_0)/sigma."""
    row = chain.at(t)
    return (per_row(row.alpha, x) * x - denoised) / per_row(row.sigma, x)


def _check_steps(name: str, steps: int) -> None:
    if steps < 1:
        raise ValueError(f"{name}: steps must be at least 1, not {steps}")
