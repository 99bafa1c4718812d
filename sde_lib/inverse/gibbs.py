"""Split Gibbs sampling: posteriors whose only error is known, and falls with the distance of the two halves."""

from dataclasses import dataclass, field, replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from sde_lib.batch import fold_in_each, normal_like
from sde_lib.composed import network_calls
from sde_lib.inverse.methods import solve_to_rounding
from sde_lib.inverse.observed import Observed
from sde_lib.inverse.operators import check_affine
from sde_lib.samplers.base import Samples
from sde_lib.samplers.exact_law import affine_law, in_float64, law_from, maps_of
from sde_lib.samplers.exponential import SDEDPMSolverPP2M
from sde_lib.samplers.linear import LinearSampler, ScanKind, Table, no_correction, scan_rows, table_of
from sde_lib.score import ScoreFn
from sde_lib.sde import SDE, host_sde
from sde_lib.typing import Array, PyTree

Place = tuple[float, float, float]

_COUPLING = 2**31 - 4  # the stream of randomness of z given x, beside those of the steps
SOLVED = 1000  # iterations of the solve for z, at most; no network is called in them
TOLERANCE = 1e-3  # of its residual over the right side


@dataclass(frozen=True)
class SplitGibbs:
    """Gibbs sampling of x and a copy z of it, which the observation sees: PnP-DM.

        p(x, z | y) ~ p(x) N(z; x, rho² I) N(y; A z, R)

    A sweep draws z given x, Gaussian for any prior, and x given z, which is denoising: the reverse SDE from the time at
    which sigma/alpha is rho (Wu et al. 2024, arXiv:2405.18782, algorithm 1). Both draws are right for any
    prior, so that after many sweeps x has the posterior of an observation with the noise covariance R + rho² A A',
    modes' weights too. A small rho is near the posterior itself and takes steps of about rho, about
    (sd/rho)² sweeps to forget where it was. So rho falls geometrically from `start` in the first half of the sweeps,
    and stays. The first x is a draw of the prior.

    What is returned is x at t_min, as by other samplers. Takes an `Observed`, of which the method plays no part, with
    an operator that is linear, or linear and a constant. A noise of 0 will do.

    Args:
        steps: sweeps.
        rho: the distance of x and z at last, in the units of x.
        start: rho of the first sweep, where that is more.
        sampler: draws x given z; a table with noise and without a last denoising. Its steps are those of each sweep.

    Raises ValueError for steps below 1 and a rho or start that is not positive and, when it runs, for a score that is
    not an `Observed`, an operator that is not linear, a rho outside the SDE's range, a sampler without noise, a solve
    for z that does not converge, and frames.
    """

    steps: int = 100
    rho: float = 0.1
    start: float = 1.0
    sampler: LinearSampler = field(default_factory=lambda: SDEDPMSolverPP2M(steps=20))

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ValueError(f"SplitGibbs: steps must be at least 1, not {self.steps}")
        if not (0 < self.rho < np.inf and 0 < self.start < np.inf):
            raise ValueError(f"SplitGibbs: rho and start must be positive, not {self.rho} and {self.start}")
        if self.sampler.denoise:
            raise ValueError("SplitGibbs: x given z is a draw: give a sampler without denoise")

    def asks(self, score_fn: Observed) -> ScoreFn:
        """The score that is called: the prior's."""
        return score_fn.score_fn

    def run(self, score_fn: ScoreFn, x: jax.Array, keys: jax.Array, cond: PyTree, frames: int) -> Samples:
        """Run the sweeps; see `sde_lib.samplers.base.Sampler`."""
        score_fn = self._checked(score_fn)
        if frames:
            raise ValueError("SplitGibbs: each sweep is a draw of its own, and no path: leave out frames")
        check_affine(score_fn.operator, x.shape[1:], "SplitGibbs")
        processes, places = self._sweeps(host_sde(score_fn.sde))
        known = {id(process): table_of(self.sampler, process) for process in processes}
        if any(table.c is None or not np.all(table.c > 0) for table in known.values()):
            raise ValueError("SplitGibbs: x given z is a draw: give a sampler of the SDE, and none of the ODE")
        tables = [known[id(process)] for process in processes]
        stacked: Table = jax.tree.map(lambda *v: np.stack(v).astype(x.dtype), *tables)
        kind = ScanKind(self.sampler.model, no_correction)
        x, left = _run(score_fn, x, keys, cond, stacked, np.asarray(places, x.dtype), kind)
        if not isinstance(left, jax.core.Tracer) and not bool((left < TOLERANCE).all()):
            raise ValueError(
                "SplitGibbs: the solve for z given x does not converge: give a larger noise, or a smaller rho and start"
            )
        return Samples(x, network_calls(score_fn.score_fn, np.concatenate([table.t for table in tables])))

    def gaussian_law(
        self, score_fn: ScoreFn, mean: np.ndarray, covariance: np.ndarray, cond: PyTree
    ) -> tuple[np.ndarray, np.ndarray]:
        """The law of the result with a prior's score that is affine, as `sde_lib.samplers.gaussian_law` returns it."""
        score_fn, d = self._checked(score_fn), len(mean)
        check_affine(score_fn.operator, (d,), "SplitGibbs")
        sde, maps = host_sde(score_fn.sde), maps_of(score_fn.score_fn, d, cond.get("cond"))
        processes, places = self._sweeps(sde)
        alpha, sigma = sde.alpha(sde.t_max), sde.sigma(sde.t_max)
        mean, covariance = alpha * mean, alpha**2 * covariance + sigma**2 * np.eye(d)
        moves = {place: _move(score_fn, d, cond["y"], place) for place in set(places)}
        for process, place in zip(processes[:-1], places[:-1], strict=True):
            mean, covariance = law_from(self.sampler, process, mean, covariance, maps)
            gain, offset, spread = moves[place]
            mean, covariance = gain @ mean + offset, gain @ covariance @ gain.T + spread
        return law_from(self.sampler, processes[-1], mean, covariance, maps)

    def _checked(self, score_fn: ScoreFn) -> Observed:
        if not isinstance(score_fn, Observed):
            raise ValueError(f"SplitGibbs: give an Observed score, not a {type(score_fn).__name__}")
        return score_fn

    def _sweeps(self, sde: SDE) -> tuple[list[SDE], list[Place]]:
        """The process of each draw of x, from the prior's own on, and the place of the draw of z after each.

        The last place is one too many.
        """
        ends = [float(np.exp(-sde.log_snr(t) / 2)) for t in (sde.t_min, sde.t_max)]
        if not ends[0] < self.rho < ends[1]:
            raise ValueError(
                f"SplitGibbs: rho must lie between sigma/alpha at t_min and at t_max, {ends[0]:.2g} and {ends[1]:.2g}, "
                f"where the score is known, not {self.rho:g}"
            )
        first, falling = min(max(self.start, self.rho), ends[1]), (self.steps + 1) // 2
        left = np.maximum(1 - np.arange(self.steps) / falling, 0)
        distances = (self.rho * (first / self.rho) ** left).tolist()
        times = {rho: float(sde.time_of_log_snr(-2 * np.log(rho))) for rho in set(distances)}
        short = {rho: replace(sde, t_max=t) for rho, t in times.items()}
        # x at t_min over alpha is x and noise of ends[0] already: the coupling adds the rest of rho.
        place = {
            rho: (float(sde.alpha(sde.t_min)), float(sde.alpha(t)), float(np.sqrt(rho**2 - ends[0] ** 2)))
            for rho, t in times.items()
        }
        return [sde, *(short[rho] for rho in distances)], [place[rho] for rho in (*distances, self.rho)]


@partial(jax.jit, static_argnames="kind")
def _run(
    score_fn: Observed,
    x: jax.Array,
    keys: jax.Array,
    cond: PyTree,
    tables: Table,
    places: jax.Array,
    kind: ScanKind,
) -> tuple[jax.Array, jax.Array]:
    """The last x, and how far from solved the draws of z were, relative, (n,)."""

    y = score_fn.given(x, cond)

    def sweep(state: tuple[jax.Array, ...], scanned: tuple[jax.Array, Table, jax.Array]) -> tuple[tuple, None]:
        start, _, worst = state
        k, table, place = scanned
        own = fold_in_each(keys, k)
        x = scan_rows(score_fn.score_fn, start, own, cond.get("cond"), table, kind)
        e_keys, n_keys = (fold_in_each(fold_in_each(own, _COUPLING), i) for i in (0, 1))
        noises = normal_like(e_keys, x), normal_like(n_keys, y)
        start, left = draw_z(score_fn, x, *noises, y, place)
        return (start, x, jnp.maximum(worst, left)), None

    state = (x, x, jnp.zeros(x.shape[0], x.dtype))
    (_, x, worst), _ = jax.lax.scan(sweep, state, (jnp.arange(len(places)), tables, places))
    return x, worst


@jax.jit
def draw_z(
    score_fn: Observed, x: jax.Array, e: jax.Array, n: jax.Array, y: jax.Array, place: Place | jax.Array
) -> tuple[jax.Array, jax.Array]:
    """The draw of z given x and y, by the standard normal e, like x, and n, like y, in which it is affine.

    z_0 = x + w e as if nothing were seen, put right by what A z_0 + noise n misses of y (Matheron's rule):

        z = z_0 + w² A' (R + w² A A')^-1 (y - A z_0 - noise n)

    Args:
        place: alpha at t_min, where x is; alpha where z goes; and w.

    Returns:
        The start of the next draw of x, alpha z, and how far from solved the system is, relative, (n,).
    """
    before, after, width = place
    z = x / before + width * e
    seen = score_fn.linearised(z, y, jnp.ones((), x.dtype), lambda v: v)
    entries = score_fn.operator.entries()
    noise = jnp.sqrt(seen.variance) * n
    right = seen.residual - (noise if entries is None else jnp.where(entries[None], noise, 0))
    weighed, left = solve_to_rounding(lambda p: seen.variance * p + width**2 * seen.gram(p), right, SOLVED)
    return after * (z + width**2 * seen.pull(weighed)), left


def _move(score_fn: Observed, d: int, y: Array, place: Place) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The gain, offset and covariance of the draw of z given x, read from it in float64; y: (1, m)."""
    with jax.enable_x64(True):
        operator, noise, y = jax.tree.map(in_float64, (score_fn.operator, score_fn.noise, y))
        unit = jnp.eye(2 * d + y.size + 1)  # the basis of x, of its noise and of that of y, and zero
        x, e, n = unit[:, :d], unit[:, d : 2 * d], unit[:, 2 * d : -1].reshape(-1, *y.shape[1:])
        ys = jnp.broadcast_to(y, n.shape)
        z, _ = draw_z(replace(score_fn, operator=operator, noise=noise), x, e, n, ys, place)
        return affine_law(np.asarray(z), d)
