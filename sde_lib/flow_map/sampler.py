"""Sampling by a flow map: from t_max to t_min in a few jumps, with fresh noise between them or without."""

from dataclasses import dataclass, replace
from functools import partial
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from sde_lib.batch import fold_in_each, normal_like
from sde_lib.flow_map.base import FlowMap, check_flow_map
from sde_lib.pytree import register_dataclass
from sde_lib.samplers.base import Samples, watcher
from sde_lib.samplers.exact_law import affine_law, in_float64
from sde_lib.samplers.grids import FlowTime, Grid, check_grid
from sde_lib.samplers.linear import kept_rows
from sde_lib.sde import SDE, host_sde, namespace
from sde_lib.typing import Array, PyTree, Scalar


class Jump(NamedTuple):
    """Jumps from `start` to `end`, then noise up to the time `after`: x <- a x + c z; each (steps,), or one of them."""

    start: Array
    end: Array
    after: Array
    a: Array
    c: Array


@partial(register_dataclass, static=("steps", "grid"))
@dataclass(frozen=True)
class FlowMapSampler:
    """So many jumps of a flow map from t_max to t_min: one network call each.

    With `renoise` g every jump but the last goes beyond its time t', to where the noise over the signal is sqrt(1 - g²)
    times that at t', or to t_min, and back by the forward process:

        x_s = X(x; t -> s),   x_t' = alpha_t'/alpha_s x_s + sqrt(sigma_t'² - (alpha_t' sigma_s/alpha_s)²) z

    0 draws no noise; 1 is multistep consistency sampling (Song et al. 2023, arXiv:2303.01469, algorithm 1), and between
    them is Kim et al. 2024, arXiv:2310.02279, section 3.3 (their gamma). With the exact map each of them keeps the
    exact distribution; with a learned one new noise takes away the error that was made before, and adds its own jumps'.

    Args:
        steps: how many jumps.
        renoise: from 0 to 1; another value compiles nothing anew.
        grid: the times between, a value of `sde_lib.samplers.grids`; by default even in tau = sigma/(alpha + sigma), in
            which the flow of data of about unit scale is straightest. `Times((...))` are one's own.

    Raises ValueError for what they cannot be. It takes a flow map and no score: `check_flow_map` says so.
    """

    steps: int = 2
    renoise: Scalar = 0.0
    grid: Grid = FlowTime(power=1.0, shift=1.0)  # noqa: RUF009 - immutable

    takes: ClassVar[Any] = staticmethod(check_flow_map)  # by which `sample` checks what it is given
    denoise: ClassVar[bool] = False
    min_steps: ClassVar[int] = 1

    def __post_init__(self) -> None:
        if isinstance(self.renoise, jax.core.Tracer):
            return
        if np.ndim(self.renoise) or not 0 <= self.renoise <= 1:
            raise ValueError(f"FlowMapSampler: renoise must be a number from 0 to 1, not {self.renoise}")
        if self.steps < 1:
            raise ValueError(f"FlowMapSampler: steps must be at least 1, not {self.steps}")
        if isinstance(self.grid, type):
            name = self.grid.__name__
            raise ValueError(f"FlowMapSampler: grid must be an object: write {name}(), not {name}")

    @property
    def nfe(self) -> int:
        """The network calls per sample."""
        return self.steps

    def at_nfe(self, nfe: int) -> "FlowMapSampler":
        """This sampler with `nfe` jumps."""
        return replace(self, steps=nfe)

    def jumps(self, sde: SDE) -> Jump:
        """The jumps, (steps,) each, in float64 on the host."""
        sde = host_sde(sde)
        times = self.grid(sde, self.steps)
        xp = namespace(self.renoise, times)
        if xp is np:
            check_grid(sde, times)
        after = times[1:]
        with np.errstate(divide="ignore"):
            reached = sde.time_of_log_snr(sde.log_snr(after) - xp.log1p(-(xp.asarray(self.renoise, float) ** 2)))
        stays = (xp.arange(self.steps) == self.steps - 1) | (self.renoise == 0)
        end = xp.where(stays, after, xp.minimum(reached, after))
        a = xp.where(stays, 1.0, sde.alpha(after) / sde.alpha(end))
        added = sde.sigma(after) ** 2 - (a * sde.sigma(end)) ** 2
        return Jump(times[:-1], end, after, a, xp.sqrt(xp.where(stays, 0.0, xp.maximum(added, 0.0))))

    def run(self, score_fn: FlowMap, x: jax.Array, keys: jax.Array, cond: PyTree, frames: int) -> Samples:
        """Jump; see `sde_lib.samplers.base.Sampler`."""
        table: Jump = jax.tree.map(lambda v: jnp.asarray(v, x.dtype), self.jumps(score_fn.sde))
        tell = None if isinstance(x, jax.core.Tracer) else watcher()
        states = [x]
        for i in range(self.steps):
            states.append(_jump(score_fn, states[-1], keys, cond, i, jax.tree.map(lambda v, i=i: v[i], table)))
            states = states if frames else states[-1:]
            if tell is not None:
                states[-1].block_until_ready()
                tell(i + 1, self.steps)
        if not frames:
            return Samples(states[-1], self.steps)
        kept, frame = kept_rows(frames, self.steps)
        times = jnp.concatenate([table.start[:1], table.after])
        return Samples(states[-1], self.steps, jnp.stack([states[k] for k in kept[frame]]), times[kept[frame]])

    def gaussian_law(
        self, flow_map: FlowMap, mean: np.ndarray, covariance: np.ndarray, cond: PyTree = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """The law of the result with a flow map that is affine in x, as `sde_lib.samplers.gaussian_law` returns it."""
        d, sde = len(mean), host_sde(flow_map.sde)
        alpha, sigma = sde.alpha(sde.t_max), sde.sigma(sde.t_max)
        mean, covariance = alpha * mean, alpha**2 * covariance + sigma**2 * np.eye(d)
        table = self.jumps(sde)
        with jax.enable_x64(True):
            wide = jax.tree.map(in_float64, flow_map)
            basis = jnp.concatenate([jnp.eye(d), jnp.zeros((1, d))])
            rows = jax.tree.map(lambda leaf: jnp.repeat(leaf, d + 1, axis=0), cond)
            for i in range(self.steps):
                found = np.asarray(wide(basis, table.start[i], table.end[i], rows))
                gain, offset, _ = affine_law(np.asarray(table.a[i]) * found, d)
                mean = gain @ mean + offset
                covariance = gain @ covariance @ gain.T + table.c[i] ** 2 * np.eye(d)
        return mean, covariance


@jax.jit
def _jump(flow_map: FlowMap, x: jax.Array, keys: jax.Array, cond: PyTree, i: int, row: Jump) -> jax.Array:
    reached = flow_map(x, row.start, row.end, cond)
    return jnp.asarray(row.a) * reached + jnp.asarray(row.c) * normal_like(fold_in_each(keys, i), x)
