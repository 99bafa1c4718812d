"""Heun's method of EDM, with churn: a row of the table for each of a step's two calls."""

import math
from dataclasses import dataclass
from typing import ClassVar

from sde_lib.samplers.grids import Grid, Karras
from sde_lib.samplers.linear import LinearSampler, Point, Table
from sde_lib.sde import SDE
from sde_lib.typing import Array


@dataclass(frozen=True)
class Heun(LinearSampler):
    """Heun's second-order step of EDM for any alpha, of d(x/alpha)/d rho = (x/alpha - D)/rho, with churn.

    Karras et al. 2022, arXiv:2206.00364, algorithm 2. rho = sigma/alpha, EDM's sigma. Before each step but the first,
    whose x is at t_max already, churn adds noise up to rho (1 + gamma), gamma = min(churn/steps, sqrt(2) - 1) where
    churn_min <= rho <= churn_max. EDM's last step to rho = 0, by Euler, is here the final `denoise`. Two calls a step;
    without churn, order 2. Enough steps: 200.

    Args:
        churn: EDM's S_churn; 0 is the deterministic method.
        churn_min, churn_max: S_tmin and S_tmax, of rho.
        churn_noise: S_noise, the scale of the noise that churn adds.
    """

    grid: Grid = Karras()  # noqa: RUF009 - immutable
    churn: float = 0.0
    churn_min: float = 0.0
    churn_max: float = math.inf
    churn_noise: float = 1.0

    calls_per_step: ClassVar[int] = 2
    convergence: ClassVar[int] = 2

    def __post_init__(self) -> None:
        for name in ("churn", "churn_min", "churn_noise"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"Heun: {name} must be 0 or more, not {getattr(self, name)}")

    def update(self, sde: SDE, times: Array) -> Table:
        xp = sde.namespace(times)
        rho = xp.exp(-0.5 * sde.log_snr(times))
        gamma = min(self.churn / self.steps, math.sqrt(2) - 1)
        gamma = xp.where((rho >= self.churn_min) & (rho <= self.churn_max), gamma, 0.0)
        # No noise beyond t_max, where x begins, and none after the last step.
        inner = xp.minimum(gamma, rho[0] / rho - 1)[1:-1]
        gamma = xp.concatenate([xp.zeros(1), inner, xp.zeros(1)])
        hat = rho * (1 + gamma)
        times_hat = xp.where(gamma > 0, sde.time_of_log_snr(-2 * xp.log(hat)), times)
        start, end, q = times_hat[:-1], times[1:], rho[1:] / hat[:-1]
        scale = sde.alpha(times_hat[1:]) / sde.alpha(start)  # of x, from the step's start to the next step's
        zero, one = xp.zeros_like(q), xp.ones_like(q)

        def rows(first: Array, second: Array) -> Array:
            return xp.reshape(xp.stack([first, second], axis=1), (-1, *first.shape[1:]))

        # In units of alpha: the Euler point q x + (1 - q) D, then the mean of both slopes over rho_s - rho_hat.
        euler = Point(
            p=rows(one, sde.alpha(end) / sde.alpha(start) * q),
            q=rows(zero, sde.alpha(end) * (1 - q))[:, None],
        )
        alpha_next = sde.alpha(times_hat[1:])
        b_second = xp.stack([alpha_next * 0.5 * (1 / q - 1), alpha_next * (1 - q) * (1 - 0.5 / q)], axis=1)
        b = rows(xp.zeros_like(b_second), b_second)
        # hat² - rho², without a difference: exactly 0 where there is no churn, also under jit, and with a derivative.
        added = gamma[1:] * (2 + gamma[1:])
        root = xp.where(added > 0, xp.sqrt(xp.where(added > 0, added, 1.0)), 0.0)
        c = rows(zero, alpha_next * self.churn_noise * rho[1:] * root)
        return Table(rows(start, end), rows(start, times_hat[1:]), rows(one, scale * q), b, c, euler)
