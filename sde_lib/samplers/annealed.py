"""Annealed Langevin dynamics: Langevin steps at each rung of a ladder of noise levels, and nothing between them."""

from dataclasses import dataclass

from sde_lib.samplers.grids import Grid, UniformLogSNR
from sde_lib.samplers.linear import LinearSampler, Point, Table
from sde_lib.sde import SDE
from sde_lib.typing import Array


@dataclass(frozen=True)
class AnnealedLangevin(LinearSampler):
    """The sampler of NCSN (Song & Ermon 2019, arXiv:1907.05600, algorithm 1): at each level `langevin_steps` of

        x <- x + (r/2) sigma² s + sqrt(r) sigma z,      r = step_size

    on entering a level x is only rescaled to its alpha (not at all for VE). The dynamics have to cover in each level
    what the noise's decrease leaves to do. NCSN has r = 0.2, with 100 steps at each of 10 levels; at as many calls a
    larger r comes closer (gaussian_kl). A step leaves narrow data too wide by a factor 1/(1 - r/4) in variance.

    Enough steps: 4,000, with step_size=0.1.

    Args:
        steps: levels; the grid is their ladder, by default geometric in sigma/alpha, of which t_max is where x comes
            from.
        langevin_steps: score calls at each level.
        step_size: r.
    """

    steps: int = 100
    grid: Grid = UniformLogSNR()  # noqa: RUF009 - immutable
    langevin_steps: int = 5
    step_size: float = 1.0

    def __post_init__(self) -> None:
        if self.langevin_steps < 1:
            raise ValueError(f"AnnealedLangevin: langevin_steps must be at least 1, not {self.langevin_steps}")
        if not 0 < self.step_size < 4:
            raise ValueError(
                f"AnnealedLangevin: step_size must lie between 0 and 4, where it diverges, not {self.step_size}"
            )

    @property
    def calls_per_step(self) -> int:  # type: ignore[override]  # depends on a setting
        """The score calls at each level."""
        return self.langevin_steps

    def update(self, sde: SDE, times: Array) -> Table:
        xp = sde.namespace(times)
        t = xp.repeat(times[1:], self.langevin_steps)
        before = xp.concatenate([times[:1], t[:-1]])
        rescale = sde.alpha(t) / sde.alpha(before)
        half = 0.5 * self.step_size
        b = half * sde.alpha(t)[:, None]
        point = Point(rescale, xp.zeros((len(t), 0)))
        return Table(t, t, (1 - half) * rescale, b, self.step_size**0.5 * sde.sigma(t), point)
