"""The reverse SDE with steps that each sample chooses for itself."""

from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp

from sde_lib.batch import fold_in_each, normal_like, per_row
from sde_lib.conversions import denoiser
from sde_lib.samplers.base import Samples
from sde_lib.score import ScoreFn
from sde_lib.typing import PyTree


@dataclass(frozen=True)
class AdaptiveSDE:
    """Stochastic Heun steps of the reverse SDE, as long as the last step's error allows.

    With d = f x - g² s, Euler-Maruyama's step to x1 and a second one from there to x2,

        x1 = x - h d(x, t) + g(t) sqrt(h) z        x2 = x - h d(x1, t - h) + g(t - h) sqrt(h) z

    a step goes to (x1 + x2)/2, and its error is the root mean square of (x1 - x2)/2 over
    absolute + relative max(|x|, |x1|). As in Jolicoeur-Martineau et al. 2021, arXiv:2105.14080, algorithm 1, but no
    step is taken back: to draw new noise after having looked at the old one samples another distribution. The error
    decides how long the next step is. Two score calls a step.

    Args:
        relative, absolute: tolerances of a step's error.
        first_step: the first h, as a share of t_max - t_min.
        max_steps: a sample that needs more raises RuntimeError.
        denoise: replace the last x by D(x, t_min).
    """

    relative: float = 0.02
    absolute: float = 0.005
    first_step: float = 1e-3
    max_steps: int = 10_000
    denoise: bool = False

    def __post_init__(self) -> None:
        for name in ("relative", "absolute", "first_step"):
            if not getattr(self, name) > 0:
                raise ValueError(f"AdaptiveSDE: {name} must be positive, not {getattr(self, name)}")

    def run(self, score_fn: ScoreFn, x: jax.Array, keys: jax.Array, cond: PyTree, frames: int) -> Samples:
        """Run the steps; see `sde_lib.samplers.base.Sampler`.

        nfe is that of the sample with the most steps: the others wait for it.
        """
        sde = score_fn.sde
        stops = jnp.linspace(sde.t_max, sde.t_min, max(frames, 2), dtype=x.dtype)
        settings = jnp.asarray([self.relative, self.absolute, self.first_step], x.dtype)
        x, path, steps, done = _solve(
            score_fn, x, keys, cond, stops, settings, frames > 0, self.max_steps, self.denoise
        )
        if not isinstance(steps, jax.core.Tracer):
            if not bool(done):
                raise RuntimeError(
                    f"AdaptiveSDE: max_steps={self.max_steps} steps were not enough: raise it, or loosen the tolerances"
                )
            steps = int(steps)
        return Samples(x, 2 * steps + self.denoise, path, stops if frames else None)


# x, each sample's time and step, the frame that it aims at, the path, and the steps done.
_State = tuple[jax.Array, jax.Array, jax.Array, jax.Array, jax.Array | None, jax.Array]


@partial(jax.jit, static_argnums=(6, 7, 8))
def _solve(
    score_fn: ScoreFn,
    x: jax.Array,
    keys: jax.Array,
    cond: PyTree,
    stops: jax.Array,
    settings: jax.Array,
    keeps_path: bool,
    max_steps: int,
    denoise: bool,
) -> tuple[jax.Array, jax.Array | None, jax.Array, jax.Array]:
    sde, (relative, absolute, first_step) = score_fn.sde, settings
    n, t_end = x.shape[0], stops[-1]

    def drift(x: jax.Array, t: jax.Array) -> jax.Array:
        return per_row(sde.f(t), x) * x - per_row(sde.g2(t), x) * score_fn(x, t, cond)

    def step(state: _State) -> _State:
        x, t, h, stop, path, i = state
        active = t > t_end
        aim = stops[stop]  # each sample stops at every frame's time
        lands = h >= (t - aim) * (1 - 1e-6)
        t_next = jnp.where(lands, aim, t - h)
        taken = jnp.maximum(t - t_next, jnp.finfo(x.dtype).tiny)
        noise = per_row(jnp.sqrt(taken), x) * normal_like(fold_in_each(keys, i), x)
        euler = x - per_row(taken, x) * drift(x, t) + per_row(jnp.sqrt(sde.g2(t)), x) * noise
        heun = x - per_row(taken, x) * drift(euler, t_next) + per_row(jnp.sqrt(sde.g2(t_next)), x) * noise
        scale = absolute + relative * jnp.maximum(jnp.abs(x), jnp.abs(euler))
        error = jnp.sqrt(jnp.mean(((euler - heun) / (2 * scale)).reshape(n, -1) ** 2, axis=1))
        # The error is between h (of the noise's part) and h²; a step cut short by a stop says nothing of a longer one.
        grown = taken * jnp.clip(0.9 * error**-0.9, 0.2, 3.0)
        h = jnp.where(active, jnp.where(lands, jnp.maximum(h * (error <= 1), jnp.minimum(grown, h)), grown), h)
        keep = per_row(active, x).astype(bool)
        x = jnp.where(keep, 0.5 * (euler + heun), x)
        if path is not None:
            hit = per_row(active & lands, x).astype(bool)
            path = jnp.where(
                hit[None] & (jnp.arange(len(stops)).reshape(-1, *[1] * x.ndim) == per_row(stop, x)[None]),
                x[None],
                path,
            )
        stop = jnp.where(active & lands, jnp.minimum(stop + 1, len(stops) - 1), stop)
        return x, jnp.where(active, t_next, t), h, stop, path, i + 1

    start = jnp.full((n,), stops[0])
    path = jnp.zeros((len(stops), *x.shape), x.dtype).at[0].set(x) if keeps_path else None
    state = (x, start, jnp.full((n,), first_step * (stops[0] - t_end)), jnp.ones((n,), int), path, jnp.zeros((), int))
    x, t, _, _, path, steps = jax.lax.while_loop(lambda s: jnp.any(s[1] > t_end) & (s[5] < max_steps), step, state)
    if denoise:
        x = denoiser(score_fn, x, t_end, cond)
        path = None if path is None else path.at[-1].set(x)
    return x, path, steps, jnp.all(t <= t_end)
