"""UniPC: a multistep predictor, and a corrector that needs no call of its own (Zhao et al. 2023, arXiv:2302.04867)."""

import math
from dataclasses import dataclass
from types import ModuleType

from sde_lib.samplers.exponential import log_snr_steps
from sde_lib.samplers.grids import DENOISER_GRID, Grid
from sde_lib.samplers.linear import LinearSampler, Table
from sde_lib.sde import SDE
from sde_lib.typing import Array

_TERMS = 16


def _psi(xp: ModuleType, z: Array, j: int) -> Array:
    """The series psi_j = sum_{m >= 1} z^m/(m + j)!: psi_1 = (exp(z) - 1)/z - 1, psi_{j+1} = psi_j/z - 1/(j+1)!."""
    series = sum(z**m / float(math.factorial(m + j)) for m in range(1, _TERMS))
    closed = xp.expm1(z) / z - 1
    for k in range(2, j + 1):
        closed = closed / z - 1 / math.factorial(k)
    return xp.where(xp.abs(z) < 1, series, closed)


def corrected(sde: SDE, ratio: Array, predict: Array, correct: Array) -> Array:
    """The weights b (N, K) of rows that go from one predicted point to the next through the corrected one.

    They need no extra call. predict (N, K): a step's weights of (D, D_{-1}, ..) at the predicted point; correct (N, K):
    those of (D_s, D, D_{-1}, ..) at the corrected one, both beside ratio x. Where D has been called at the predicted
    point e, the corrected one is e + sum_j (correct_j - predict_{j-1}) D_{-j}, of the step before; the last point is
    not corrected.
    """
    xp = sde.namespace(ratio)
    shifted = xp.concatenate([xp.zeros((len(ratio), 1)), predict[:, :-1]], axis=1)
    change = xp.concatenate([xp.zeros((1, predict.shape[1])), (correct - shifted)[:-1]])
    return predict + ratio[:, None] * change


@dataclass(frozen=True)
class UniPC(LinearSampler):
    """UniPC-p in the denoiser: order p + 1, or p without the corrector (Zhao et al. 2023, section 3 and appendix A).

    A step with h = lambda_s - lambda_t, B = exp(-h) - 1 (bh2) or -h (bh1), r_i = (lambda_{-i} - lambda_t)/h, r_p = 1,
    has

        y = (sigma_s/sigma_t) x - alpha_s (exp(-h) - 1) D
        predicted = y - alpha_s B sum_{0 < i < p} rho_i (D_{-i} - D)/r_i
        corrected = y - alpha_s B [sum_{0 < i < p} rho'_i (D_{-i} - D)/r_i + rho'_p (D_s - D)]

    with D_s the denoiser at the predicted point, which is the next step's D: a step begins at the corrected point, the
    network is called at predicted points, which are those of the path, and the last step is predicted only. rho and
    rho' solve sum_i rho_i r_i^(j-1) = j! psi_j(-h)/B. Enough steps: 100.

    Args:
        order: p, 1 to 3. The first steps have fewer calls to go by, and are of lower order.
        bh1: B = -h instead of exp(-h) - 1.
        corrector: without it UniP-p, of which UniP-1 is DDIM and UniP-2 with bh2 DPM-Solver++(2M).
    """

    grid: Grid = DENOISER_GRID
    order: int = 3
    bh1: bool = False
    corrector: bool = True

    def __post_init__(self) -> None:
        if self.order not in (1, 2, 3):
            raise ValueError(f"UniPC: order must be 1, 2 or 3, not {self.order}")

    @property
    def convergence(self) -> int:  # type: ignore[override]  # depends on the order
        """The order p + 1, or p without the corrector."""
        return self.order + self.corrector

    def update(self, sde: SDE, times: Array) -> Table:
        t, t_next = times[:-1], times[1:]
        ratio = sde.sigma(t_next) / sde.sigma(t)
        predict, correct = self._weights(sde, times, log_snr_steps(sde, times))
        return Table(t, t_next, ratio, corrected(sde, ratio, predict, correct) if self.corrector else predict)

    def _weights(self, sde: SDE, times: Array, h: Array) -> tuple[Array, Array]:
        """The weights of each step.

        Returns:
            predict: (steps, order + 1), the predictor's of (D, D_{-1}, ..).
            correct: (steps, order + 1), the corrector's of (D_s, D, D_{-1}, ..).
        """
        xp = sde.namespace(h)
        alpha, half_log_snr = sde.alpha(times[1:]), 0.5 * sde.log_snr(times)
        gain, scale = -alpha * xp.expm1(-h), -alpha * (-h if self.bh1 else xp.expm1(-h))
        zero = xp.zeros(())
        predict, correct = [], []
        for k in range(len(h)):
            p = min(self.order, k + 1)
            r = xp.stack([(half_log_snr[k - i] - half_log_snr[k]) / h[k] for i in range(1, p)] + [xp.ones(())])
            big_b = -h[k] if self.bh1 else xp.expm1(-h[k])
            powers = xp.stack([r**j for j in range(p)])
            moments = xp.stack([math.factorial(j) * _psi(xp, -h[k], j) / big_b for j in range(1, p + 1)])
            # The published code's halves, which differ from the solution by O(h) and keep the order.
            rho = xp.linalg.solve(powers[:-1, :-1], moments[:-1]) if p > 2 else 0.5 * xp.ones(p - 1)
            rho_c = xp.linalg.solve(powers, moments) if p > 1 else 0.5 * xp.ones(1)
            past, past_c = scale[k] * rho / r[:-1], scale[k] * rho_c[:-1] / r[:-1]
            empty = [zero] * (self.order - p)
            predict.append(xp.stack([gain[k] - xp.sum(past), *past, *empty, zero]))
            correct.append(
                xp.stack([scale[k] * rho_c[-1], gain[k] - xp.sum(past_c) - scale[k] * rho_c[-1], *past_c, *empty])
            )
        return xp.stack(predict), xp.stack(correct)
