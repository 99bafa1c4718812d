"""Exponential integrators in the denoiser, in half log SNR lambda = log(alpha/sigma).

A step makes h = lambda_s - lambda_t > 0. The probability-flow ODE and the reverse SDE have exact solutions in terms of
an integral of exp(lambda) D over lambda: a method is a choice of polynomial for D. They share, up to signs,

    phi_1 = 1 - exp(-h),        phi_2 = (h - phi_1)/h,        phi_3 = phi_2/h - ½
"""

from dataclasses import dataclass
from types import ModuleType
from typing import ClassVar

from sde_lib.samplers.grids import DENOISER_GRID, DENOISER_GRID_3, NOISE_GRID, STOCHASTIC_GRID, FlowTime, Grid
from sde_lib.samplers.linear import LinearSampler, Table, columns
from sde_lib.samplers.stochastic import check_eta
from sde_lib.sde import SDE
from sde_lib.typing import Array


def log_snr_steps(sde: SDE, times: Array) -> Array:
    """The h of each step, (N,)."""
    log_snr = sde.log_snr(times)
    return 0.5 * (log_snr[1:] - log_snr[:-1])


def earlier(sde: SDE, h: Array, back: int) -> Array:
    """The h of the step `back` steps before, (N,); infinite before the first.

    There it makes the difference that it divides vanish.
    """
    xp = sde.namespace(h)
    return xp.concatenate([xp.full((back,), xp.inf), h])[: len(h)]


def _phi2(xp: ModuleType, h: Array) -> Array:
    """The function (exp(-h) - 1)/h + 1, by its series where the difference would cancel."""
    series = h / 2 * (1 - h / 3 * (1 - h / 4 * (1 - h / 5 * (1 - h / 6 * (1 - h / 7 * (1 - h / 8))))))
    return xp.where(h < 0.1, series, xp.expm1(-h) / h + 1)


def _phi3(xp: ModuleType, h: Array) -> Array:
    """The function phi_2/h - ½, by its series where the difference would cancel."""
    series = -h / 6 * (1 - h / 4 * (1 - h / 5 * (1 - h / 6 * (1 - h / 7 * (1 - h / 8 * (1 - h / 9))))))
    return xp.where(h < 0.1, series, (xp.expm1(-h) / h + 1) / h - 0.5)


@dataclass(frozen=True)
class DDIM(LinearSampler):
    """The exponential Euler step with D frozen, from the ODE (eta = 0) to `Ancestral` (eta = 1): order 1.

        x' = alpha_s D + sigma_s [sqrt(1 - tau) e + sqrt(tau) z]

    with e = (x - alpha_t D)/sigma_t and tau = eta² (1 - exp(-2h)). Song et al. 2021, arXiv:2010.02502, eq. 12 and 16.
    tau grows with eta until 1, so eta beyond 1 is refused.

    Enough steps: 1,000.
    """

    grid: Grid = NOISE_GRID
    eta: float = 0.0

    def __post_init__(self) -> None:
        check_eta(self, self.eta)
        if self.eta > 1:
            raise ValueError(f"DDIM: eta must be at most 1, not {self.eta}; SDEDPMSolverPP takes more")

    def update(self, sde: SDE, times: Array) -> Table:
        t, t_next = times[:-1], times[1:]
        xp, h = sde.namespace(t), log_snr_steps(sde, times)
        tau = -(self.eta**2) * xp.expm1(-2 * h)
        keep = (1 - tau) ** 0.5 * sde.sigma(t_next) / sde.sigma(t)
        # alpha_s - keep alpha_t = alpha_s (1 - sqrt(1 - tau) exp(-h)), by expm1 of the product's logarithm.
        gain = -sde.alpha(t_next) * xp.expm1(0.5 * xp.log1p(-tau) - h)
        c = sde.sigma(t_next) * self.eta * (-xp.expm1(-2 * h)) ** 0.5  # tau's root, but with a derivative for eta = 0
        return Table(t, t_next, keep, columns(gain), c)


@dataclass(frozen=True)
class DPMSolverPP2M(LinearSampler):
    """DPM-Solver++(2M): D linear in lambda through the last two calls, order 2.

        x' = (sigma_s/sigma_t) x + alpha_s phi_1 [(1 + 1/2r) D - (1/2r) D_{-1}],    r = h_{-1}/h

    Lu et al. 2022, arXiv:2211.01095, algorithm 2. The first step is DDIM's. Enough steps: 100.
    """

    grid: Grid = DENOISER_GRID
    min_steps: ClassVar[int] = 2
    convergence: ClassVar[int] = 2

    def update(self, sde: SDE, times: Array) -> Table:
        t, t_next = times[:-1], times[1:]
        h = log_snr_steps(sde, times)
        gain = -sde.alpha(t_next) * sde.namespace(t).expm1(-h)
        slope = gain * h / (2 * earlier(sde, h, 1))
        return Table(t, t_next, sde.sigma(t_next) / sde.sigma(t), columns(gain + slope, -slope))


@dataclass(frozen=True)
class DPMSolverPP3M(LinearSampler):
    """DPM-Solver++(3M): D quadratic in lambda through the last three calls, order 3.

        x' = (sigma_s/sigma_t) x + alpha_s [phi_1 D + phi_2 D' - phi_3 D'']

    By Newton's differences D'' = 2 (a0 - a1)/(r0 + r1) with a0 = (D - D_{-1})/r0, a1 = (D_{-1} - D_{-2})/r1,
    r0 = h_{-1}/h, r1 = h_{-2}/h. The first two steps are of order 1 and 2. Enough steps: 100.
    """

    grid: Grid = DENOISER_GRID_3
    min_steps: ClassVar[int] = 3
    convergence: ClassVar[int] = 3
    second_derivative: ClassVar[float] = 2.0

    def update(self, sde: SDE, times: Array) -> Table:
        t, t_next = times[:-1], times[1:]
        xp, h = sde.namespace(t), log_snr_steps(sde, times)
        w0, w1 = h / earlier(sde, h, 1), h / earlier(sde, h, 2)  # 1/r0 and 1/r1: zero before there is a past
        share = w1 / xp.where(w0 > 0, w0 + w1, 1.0)  # r0/(r0 + r1)
        w01 = w0 * share  # 1/(r0 + r1)
        alpha, phi2 = sde.alpha(t_next), _phi2(xp, h)
        bend = phi2 * share - _phi3(xp, h) * self.second_derivative * w01  # of a0 - a1
        of_a0, of_a1 = (phi2 + bend) * w0, -bend * w1
        b = columns(-xp.expm1(-h) + of_a0, of_a1 - of_a0, -of_a1)
        return Table(t, t_next, sde.sigma(t_next) / sde.sigma(t), alpha[:, None] * b)


@dataclass(frozen=True)
class DPMSolverPP3MPublished(DPMSolverPP3M):
    """DPM-Solver++(3M) as its authors' code and those that follow it have it: order 2, not 3.

    D'' is without the factor 2. Enough steps: 100.
    """

    convergence: ClassVar[int] = 2
    second_derivative: ClassVar[float] = 1.0


@dataclass(frozen=True)
class SDEDPMSolverPP1(LinearSampler):
    """The exact solution of the reverse SDE with D frozen: weak order 1.

    Lu et al. 2022, arXiv:2211.01095, eq. 18, there eta = 1.

    x' = (sigma_s/sigma_t) exp(-eta² h) x + alpha_s (1 - exp(-(1 + eta²) h)) D + sigma_s sqrt(1 - exp(-2 eta² h)) z

    Enough steps: 800.

    eta: stochasticity, 0 the ODE, 1 the reverse SDE, more beyond. (k-diffusion's `eta` is eta².)
    """

    grid: Grid = STOCHASTIC_GRID
    eta: float = 1.0

    def __post_init__(self) -> None:
        check_eta(self, self.eta)

    def update(self, sde: SDE, times: Array) -> Table:
        a, gain, c = self._first_order(sde, times)
        return Table(times[:-1], times[1:], a, columns(gain), c)

    def _first_order(self, sde: SDE, times: Array) -> tuple[Array, Array, Array]:
        t, t_next = times[:-1], times[1:]
        xp, h, eta2 = sde.namespace(t), log_snr_steps(sde, times), self.eta**2
        a = sde.sigma(t_next) / sde.sigma(t) * xp.exp(-eta2 * h)
        spread = (-xp.expm1(-2 * eta2 * h)) ** 0.5 if self.eta else xp.zeros_like(h)  # a root of 0 has no derivative
        return a, -sde.alpha(t_next) * xp.expm1(-(1 + eta2) * h), sde.sigma(t_next) * spread


@dataclass(frozen=True)
class SDEDPMSolverPP2M(SDEDPMSolverPP1):
    """SDE-DPM-Solver++(2M), midpoint form: weak order 2 (Lu et al. 2022, arXiv:2211.01095, eq. 19, there eta = 1).

    The step of `SDEDPMSolverPP1` plus ½ alpha_s (1 - exp(-(1 + eta²) h)) (D - D_{-1})/r, r = h_{-1}/h.

    Enough steps: 400.
    """

    grid: Grid = FlowTime()  # noqa: RUF009 - immutable
    min_steps: ClassVar[int] = 2
    convergence: ClassVar[int] = 2

    def update(self, sde: SDE, times: Array) -> Table:
        a, gain, c = self._first_order(sde, times)
        h = log_snr_steps(sde, times)
        slope = self._slope(sde, times, gain) * h / earlier(sde, h, 1)
        return Table(times[:-1], times[1:], a, columns(gain + slope, -slope), c)

    def _slope(self, sde: SDE, times: Array, gain: Array) -> Array:
        return 0.5 * gain


@dataclass(frozen=True)
class SDEDPMSolverPP2MHeun(SDEDPMSolverPP2M):
    """SDE-DPM-Solver++(2M), Heun form: D exactly linear in lambda, weak order 2 (k-diffusion's `heun` solver).

    The slope's weight is alpha_s [1 - (1 - exp(-H))/H] with H = (1 + eta²) h. Enough steps: 400.
    """

    grid: Grid = FlowTime(shift=0.4)  # noqa: RUF009 - immutable

    def _slope(self, sde: SDE, times: Array, gain: Array) -> Array:
        return sde.alpha(times[1:]) * _phi2(sde.namespace(times), (1 + self.eta**2) * log_snr_steps(sde, times))
