"""Time grids: steps + 1 decreasing times from an SDE's t_max to its t_min.

A grid is a value, `grid(sde, steps)`. On an SDE of Python numbers it is computed in float64 on the host, and no grid
recompiles a sampler.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from sde_lib.sde import SDE
from sde_lib.typing import Array

Grid = Callable[[SDE, int], Array]


@dataclass(frozen=True)
class UniformT:
    """A grid even in t."""

    def __call__(self, sde: SDE, steps: int) -> Array:
        return sde.namespace(sde.t_min).linspace(sde.t_max, sde.t_min, steps + 1)


@dataclass(frozen=True)
class UniformLogSNR:
    """A grid even in log SNR (Lu et al. 2022, arXiv:2206.00927, section 3.3)."""

    def __call__(self, sde: SDE, steps: int) -> Array:
        xp = sde.namespace(sde.t_min)
        return _through_log_snr(sde, xp.linspace(sde.log_snr(sde.t_max), sde.log_snr(sde.t_min), steps + 1))


@dataclass(frozen=True)
class Karras:
    """A grid even in (sigma/alpha)^(1/rho): most steps at little noise.

    Karras et al. 2022, arXiv:2206.00364, eq. 5.
    """

    rho: float = 7.0

    def __post_init__(self) -> None:
        if not self.rho > 0:
            raise ValueError(f"Karras: rho must be positive, not {self.rho}")

    def __call__(self, sde: SDE, steps: int) -> Array:
        xp = sde.namespace(sde.t_min)
        ends = [xp.exp(-0.5 * sde.log_snr(t) / self.rho) for t in (sde.t_max, sde.t_min)]
        return _through_log_snr(sde, -2 * self.rho * xp.log(xp.linspace(*ends, steps + 1)))


@dataclass(frozen=True)
class Quadratic:
    """A grid even in sqrt(t) (Song et al. 2021, arXiv:2010.02502, appendix D.2)."""

    def __call__(self, sde: SDE, steps: int) -> Array:
        return sde.namespace(sde.t_min).linspace(sde.t_max**0.5, sde.t_min**0.5, steps + 1) ** 2


@dataclass(frozen=True)
class FlowTime:
    """A grid even in (1 + (shift/rho)^decay)^(-1/(decay power)), rho = sigma/alpha.

    With decay 1 that is tau^(1/power), tau = rho/(rho + shift) the rectified flow's own time of any SDE, shifted. The
    steps lie in log rho with a density that falls as rho^(1/power) towards little noise and as rho^(-decay) towards
    much. With power 1 it is the grid of flow matching, with the shift of Esser et al. 2024, arXiv:2403.03206, eq. 23
    (their sqrt(m/n)); power 2 is to it what `Quadratic` is to t. shift is a noise level, for data of about unit scale.

    The methods' own grids are of this family (`benchmarks/default_grids.py`). A decay of ½ leaves enough steps at much
    noise: there a multistep method starts, at lower order, and with 1 its start is what is left of the error at
    a hundred steps.
    """

    power: float = 2.0
    shift: float = 0.6
    decay: float = 1.0

    def __post_init__(self) -> None:
        if not (self.power > 0 and self.shift > 0 and self.decay > 0):
            raise ValueError(
                f"FlowTime: power, shift and decay must be positive, not {self.power}, {self.shift} and {self.decay}"
            )

    def __call__(self, sde: SDE, steps: int) -> Array:
        xp = sde.namespace(sde.t_min)
        log_shift, power = xp.log(self.shift), self.decay * self.power
        # By logarithms, which keep their digits at little noise. w = 1/(1 + (shift/rho)^decay).
        ends = [
            xp.exp(-xp.logaddexp(0.0, self.decay * (0.5 * sde.log_snr(t) + log_shift)) / power)
            for t in (sde.t_max, sde.t_min)
        ]
        log_w = power * xp.log(xp.linspace(*ends, steps + 1))
        return _through_log_snr(sde, 2 * (xp.log(-xp.expm1(log_w)) - log_w) / self.decay - 2 * log_shift)


@dataclass(frozen=True)
class FewToMany:
    """One grid at few steps, another at many: log SNR is mixed evenly between 16 steps and 64.

    For methods that are most exact at few steps where those at much noise are long, but whose order at many steps is
    that of a start in short ones.
    """

    few: Grid
    many: Grid

    def __call__(self, sde: SDE, steps: int) -> Array:
        share = min(max((steps - 16) / 48, 0.0), 1.0)
        if share in (0, 1):
            return (self.many if share else self.few)(sde, steps)
        return _through_log_snr(
            sde, (1 - share) * sde.log_snr(self.few(sde, steps)) + share * sde.log_snr(self.many(sde, steps))
        )


# The methods' own grids, by what they hold still over a step: chosen by benchmarks/default_grids.py.
NOISE_GRID = FlowTime(power=3.0, shift=4.0)  # of DDIM and iPNDM
DENOISER_GRID = FlowTime(power=6.0, shift=2.0, decay=0.5)  # of multistep methods in the denoiser
# Of those of order 3 without a corrector, for which the start matters most.
NOISE_GRID_3 = FewToMany(NOISE_GRID, FlowTime(power=3.0, shift=2.0, decay=0.3))
DENOISER_GRID_3 = FewToMany(DENOISER_GRID, FlowTime(power=6.0, shift=2.0, decay=0.3))
STOCHASTIC_GRID = FlowTime(power=6.0, shift=1.0)  # of those that draw noise, and forget how they started
# SA-Solver's, of weak order 3 where it was measured.
STOCHASTIC_GRID_3 = FewToMany(STOCHASTIC_GRID, FlowTime(power=4.0, shift=1.0, decay=0.4))


@dataclass(frozen=True)
class Times:
    """The caller's own times, one more than there are steps."""

    values: tuple[float, ...]

    def __call__(self, sde: SDE, steps: int) -> Array:
        if len(self.values) != steps + 1:
            raise ValueError(f"Times: {steps} steps need {steps + 1} times, not {len(self.values)}")
        return sde.namespace(sde.t_min).asarray(self.values)


def _through_log_snr(sde: SDE, log_snr: Array) -> Array:
    """The times of these log SNR, of which the ends are t_max and t_min themselves."""
    xp = sde.namespace(sde.t_min)
    inner = sde.time_of_log_snr(log_snr[1:-1])
    return xp.concatenate([xp.reshape(xp.asarray(sde.t_max), 1), inner, xp.reshape(xp.asarray(sde.t_min), 1)])


def around_jumps(sde: SDE, times: np.ndarray, jumps: Sequence[float]) -> np.ndarray:
    """The grid with its inner times moved, each within its step, so that jumps of the score lie in the middle of steps.

    A multistep or Runge-Kutta method gives each value of the score the length of a step about its time: only where a
    jump is in the middle of a step does it keep an order of 2. No time moves over a jump, so that as many as before lie
    between two. Of two jumps in one step the second moves nothing, and one beyond the grid neither.

    times: (steps + 1,). jumps: in log SNR.
    """
    last, log_snr = len(times) - 1, np.asarray(sde.log_snr(times), float)
    inside = np.sort([at for at in jumps if log_snr[0] < at < log_snr[-1]])
    if not len(inside):
        return times
    # The steps are counted by a continuous number: a jump at 7.2 of the old steps is at 7.5 of the new ones.
    numbers = np.arange(last + 1.0)
    places = np.interp(inside, log_snr, numbers)
    middles, first = np.unique(np.floor(places) + 0.5, return_index=True)
    moved = np.interp(numbers, [0, *middles, last], [0, *places[first], last])
    inner = sde.time_of_log_snr(np.interp(moved[1:-1], numbers, log_snr))
    return np.concatenate([times[:1], inner, times[-1:]])


def check_grid(sde: SDE, times: Array) -> None:
    """Raise ValueError for times that do not decrease, or that leave [t_min, t_max] by more than rounding."""
    if not (times[1:] < times[:-1]).all():
        raise ValueError("a time grid must decrease from t_max to t_min at every step")
    if times[0] > sde.t_max * (1 + 1e-9) or times[-1] < sde.t_min * (1 - 1e-9):
        raise ValueError(f"a time grid must stay within the SDE's [t_min, t_max] = [{sde.t_min:g}, {sde.t_max:g}]")
