"""Adams-Bashforth methods in the noise: x_s = (alpha_s/alpha_t) x + sum_j C_j e_{-j}.

rho = sigma/alpha, and e = E[eps | x].
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType
from typing import Any, ClassVar

import numpy as np

from sde_lib.conversions import noise
from sde_lib.samplers.grids import NOISE_GRID, NOISE_GRID_3, Grid
from sde_lib.samplers.linear import LinearSampler, Table
from sde_lib.sde import SDE
from sde_lib.typing import Array, Scalar, ScalarT

NODES, WEIGHTS = np.polynomial.legendre.leggauss(32)


def lagrange_integrals(xp: ModuleType, nodes: Array, weights: Array, calls: list[Scalar], width: int) -> Array:
    """The quadrature of each Lagrange polynomial through the calls' places, then zeros: (width,)."""
    integrals = []
    for j, u in enumerate(calls):
        others = [(nodes - v) / (u - v) for k, v in enumerate(calls) if k != j]
        integrals.append(xp.sum(math.prod(others, start=weights)))
    return xp.stack(integrals + [xp.zeros(())] * (width - len(calls)))


def in_t(sde: SDE, log_snr: ScalarT) -> ScalarT:
    """The polynomial's variable is t: tAB-DEIS."""
    return sde.time_of_log_snr(log_snr)


def in_rho(sde: SDE, log_snr: ScalarT) -> ScalarT:
    """The polynomial's variable is rho = sigma/alpha: rhoAB-DEIS, also known as the linear multistep method."""
    return sde.namespace(log_snr).exp(-0.5 * log_snr)


def in_log_snr(sde: SDE, log_snr: ScalarT) -> ScalarT:
    """The polynomial's variable is log SNR: the noise-predicting twin of multistep DPM-Solver++."""
    return log_snr


@dataclass(frozen=True)
class _Multistep(LinearSampler):
    """The base of multistep methods in the predicted noise of the last `order` calls."""

    grid: Grid = NOISE_GRID
    order: int = 3

    model: ClassVar[Any] = staticmethod(noise)

    def __post_init__(self) -> None:
        if self.order not in (1, 2, 3, 4):
            raise ValueError(f"{type(self).__name__}: order must be 1, 2, 3 or 4, not {self.order}")

    @property
    def min_steps(self) -> int:  # type: ignore[override]  # depends on the order
        """The order: a shorter run never reaches it."""
        return self.order


@dataclass(frozen=True)
class DEIS(_Multistep):
    """The noise as a polynomial through the last calls, integrated exactly.

    Zhang & Chen 2023, arXiv:2204.13902, eq. 14 and 15.

    C_j = alpha_s int_{rho_t}^{rho_s} l_j d rho, with l_j the Lagrange polynomials of the last `order` calls. The first
    steps have fewer calls to go by, and are of lower order. Enough steps: 100.

    Args:
        order: calls that the polynomial goes through, 1 (DDIM) to 4.
        variable: what it is a polynomial in: `in_t`, `in_rho` or `in_log_snr`.
    """

    grid: Grid = NOISE_GRID_3
    variable: Callable[[SDE, Array], Array] = in_t

    @property
    def convergence(self) -> int:  # type: ignore[override]  # depends on the order
        """The polynomial's order."""
        return self.order

    def update(self, sde: SDE, times: Array) -> Table:
        t, t_next = times[:-1], times[1:]
        xp, log_snr = sde.namespace(t), sde.log_snr(times)
        middle, half = 0.5 * (log_snr[1:] + log_snr[:-1]), 0.5 * (log_snr[1:] - log_snr[:-1])
        inner = middle[:, None] + half[:, None] * NODES[None]
        d_rho = -0.5 * half[:, None] * WEIGHTS[None] * xp.exp(-0.5 * inner)
        at_nodes, at_calls = self.variable(sde, inner), self.variable(sde, log_snr)
        steps, alpha, rows = len(t), sde.alpha(t_next), []
        for i in range(steps):
            known = [at_calls[i - j] for j in range(min(self.order, i + 1))]
            rows.append(alpha[i] * lagrange_integrals(xp, at_nodes[i], d_rho[i], known, self.order))
        return Table(t, t_next, alpha / sde.alpha(t), xp.stack(rows))


@dataclass(frozen=True)
class IPNDM(_Multistep):
    """The step of DDIM with Adams-Bashforth's classic weights on the noise.

    Liu et al. 2022, arXiv:2202.09778; Zhang & Chen 2023, section 3.3.

    e = {e; 3/2, -1/2; 23/12, -16/12, 5/12; 55/24, -59/24, 37/24, -9/24}, as many as there have been calls, up to
    `order`. Those weights are exact for equal steps of a variable that the step is not linear in: order 2 at most, and
    still among the best at ten calls. Enough steps: 100.
    """

    order: int = 4

    _WEIGHTS: ClassVar[tuple[tuple[float, ...], ...]] = (
        (1.0, 0.0, 0.0, 0.0),
        (3 / 2, -1 / 2, 0.0, 0.0),
        (23 / 12, -16 / 12, 5 / 12, 0.0),
        (55 / 24, -59 / 24, 37 / 24, -9 / 24),
    )

    @property
    def convergence(self) -> int:  # type: ignore[override]  # depends on the order
        """The order in theory, 2 at most: see above."""
        return min(self.order, 2)

    def update(self, sde: SDE, times: Array) -> Table:
        t, t_next = times[:-1], times[1:]
        xp, log_snr = sde.namespace(t), sde.log_snr(times)
        # alpha_s (rho_s - rho_t), with rho_t/rho_s = exp(h).
        move = -sde.sigma(t_next) * xp.expm1(0.5 * (log_snr[1:] - log_snr[:-1]))
        weights = np.array([self._WEIGHTS[min(i + 1, self.order) - 1][: self.order] for i in range(len(t))])
        return Table(t, t_next, sde.alpha(t_next) / sde.alpha(t), move[:, None] * weights)
