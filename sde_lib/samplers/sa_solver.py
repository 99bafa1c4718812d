"""SA-Solver: Adams' predictor and corrector for the reverse SDE (Xue et al. 2023, arXiv:2309.05019)."""

from dataclasses import dataclass
from typing import ClassVar

from sde_lib.samplers.adams import NODES, WEIGHTS, lagrange_integrals
from sde_lib.samplers.exponential import SDEDPMSolverPP1
from sde_lib.samplers.grids import STOCHASTIC_GRID_3, Grid
from sde_lib.samplers.linear import Table
from sde_lib.samplers.unipc import corrected
from sde_lib.sde import SDE
from sde_lib.typing import Array


@dataclass(frozen=True)
class SASolver(SDEDPMSolverPP1):
    """The denoiser as a polynomial in lambda, integrated exactly: weak order 2 (Xue et al. 2023, eq. 14 and 17).

    With q = 1 + eta² and l_j the Lagrange polynomials of the last `predictor` calls,

        predicted = (sigma_s/sigma_t) exp(-eta² h) x + alpha_s q sum_j D_{-j} int_0^h exp(-q (h - u)) l_j du
                    + sigma_s sqrt(1 - exp(-2 eta² h)) z

    The corrector has the same noise, and polynomials through the denoiser at the predicted point and `corrector` - 1
    calls before: it costs no call, as in `UniPC`. It puts the noise's effect on D into the step where it belongs, which
    multistep methods put a step too late: with a corrector of 2 the weak order measures as 3, on Gaussians and on a
    mixture. Enough steps: 100.

    Args:
        predictor: calls that the predictor goes by, 1 to 4.
        corrector: calls that the corrector goes by, with the one at the predicted point, 2 to 4; 0 for none. Without
            one, `predictor` = 1 is `SDEDPMSolverPP1` and 2 is `SDEDPMSolverPP2MHeun`.
    """

    grid: Grid = STOCHASTIC_GRID_3
    predictor: int = 3
    corrector: int = 2

    min_steps: ClassVar[int] = 2
    convergence: ClassVar[int] = 2

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.predictor not in (1, 2, 3, 4):
            raise ValueError(f"SASolver: predictor must be 1, 2, 3 or 4, not {self.predictor}")
        if self.corrector not in (0, 2, 3, 4):
            raise ValueError(f"SASolver: corrector must be 0, 2, 3 or 4, not {self.corrector}")

    def update(self, sde: SDE, times: Array) -> Table:
        a, _, c = self._first_order(sde, times)
        xp, t_next, q = sde.namespace(times), times[1:], 1 + self.eta**2
        place, width = 0.5 * sde.log_snr(times), max(self.predictor + 1, self.corrector)
        predict, correct = [], []
        for i, alpha in enumerate(sde.alpha(t_next)):
            half = 0.5 * (place[i + 1] - place[i])
            nodes = place[i] + half * (1 + NODES)
            measure = alpha * q * half * WEIGHTS * xp.exp(-q * (place[i + 1] - nodes))
            calls = [place[i - j] for j in range(min(i + 1, 4))]
            predict.append(lagrange_integrals(xp, nodes, measure, calls[: self.predictor], width))
            correct.append(lagrange_integrals(xp, nodes, measure, [place[i + 1], *calls][: self.corrector], width))
        b = xp.stack(predict)
        return Table(times[:-1], t_next, a, corrected(sde, a, b, xp.stack(correct)) if self.corrector else b, c)
