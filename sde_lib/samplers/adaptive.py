"""The reverse SDE with steps that each sample chooses for itself."""

from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from sde_lib.batch import normal_like, per_row, sum_of_entries
from sde_lib.composed import calls, whole
from sde_lib.conversions import denoiser
from sde_lib.samplers.base import Samples
from sde_lib.samplers.linear import kept_rows
from sde_lib.score import ScoreFn
from sde_lib.sde import SDE, host_sde
from sde_lib.typing import Array, PyTree

# How often one of the `steps` may be halved.
_HALVINGS = 7


@dataclass(frozen=True)
class AdaptiveSDE:
    """Midpoint steps of the reverse SDE, halved where the score moves too much over one of them.

    In the clock S = alpha²/sigma², with y = alpha x/sigma² and D = E[x_0 | x], the reverse SDE of every linear Gaussian
    path is dy = D dS + dw. A step from S_a over S_b to S_c = S_a + h, b in the middle, is

        y_b = y + ½ h D(y, S_a) + w_b        y_c = y + h D(y_b, S_b) + w_c

    and its error, against Euler's step, is the root mean square of alpha_c h/S_c (D_b - D_a), over
    absolute + relative sigma_c: a fraction of the noise that is left, so that neither the place nor the width of the
    data matters. Where w_b happens to be small, D_b - D_a is scaled up to a usual one: a step is not long by chance.

    As in Jolicoeur-Martineau et al. 2021, arXiv:2105.14080, a step whose error is above 1 is taken back. New noise for
    the halves would then sample another distribution than the reverse SDE's. Here w is one Brownian path for each
    sample, a tree of midpoints, so that the halves share the noise of the step that they replace: samples of smaller
    tolerances converge. The halves are even in S, the `steps` in log SNR. Two score calls a step, also of those taken
    back.

    The defaults are enough, as `LinearSampler` says it.

    Args:
        relative, absolute: tolerances of a step's error, in units of sigma and of x.
        steps: the fewest steps. None is halved more than seven times, whatever its error.
        max_steps: a sample that needs more raises RuntimeError.
        denoise: replace the last x by D(x, t_min).
    """

    relative: float = 0.1
    absolute: float = 0.0
    steps: int = 32
    max_steps: int = 10_000
    denoise: bool = False

    def __post_init__(self) -> None:
        if not self.relative > 0:
            raise ValueError(f"AdaptiveSDE: relative must be positive, not {self.relative}")
        if not self.absolute >= 0:
            raise ValueError(f"AdaptiveSDE: absolute must be 0 or more, not {self.absolute}")
        if self.steps < 8:
            raise ValueError(f"AdaptiveSDE: steps must be at least 8, not {self.steps}")

    def run(self, score_fn: ScoreFn, x: jax.Array, keys: jax.Array, cond: PyTree, frames: int) -> Samples:
        """Run the steps; see `sde_lib.samplers.base.Sampler`.

        nfe is that of the sample with the most steps: the others wait for it. Frames are kept at the ends of the
        `steps`, which every sample reaches.
        """
        score_fn = whole(score_fn)
        nodes = _nodes(host_sde(score_fn.sde), self.steps)
        finest = 2 << _HALVINGS  # nodes in each of the steps: of the shortest ones, and their midpoints
        kept, frame = kept_rows(frames, self.steps)
        kept = finest * kept
        settings = jnp.asarray([self.relative, self.absolute], x.dtype)
        nodes = jax.tree.map(lambda v: jnp.asarray(v, x.dtype), nodes)
        x, path, steps, done = _solve(
            score_fn, x, keys, cond, nodes, settings, jnp.asarray(kept), jnp.asarray(self.max_steps), self.denoise
        )
        if not isinstance(steps, jax.core.Tracer):
            if not bool(done):
                raise RuntimeError(
                    f"AdaptiveSDE: max_steps={self.max_steps} steps were not enough: raise it, or loosen the tolerances"
                )
            steps = int(steps)
        nfe = (2 * steps + self.denoise) * calls(score_fn)
        return Samples(x, nfe, path[frame], nodes.t[kept][frame]) if frames else Samples(x, nfe)


class _Nodes(NamedTuple):
    """Where steps may begin and end: time, alpha and S, (N,) each."""

    t: Array
    alpha: Array
    snr: Array


def _nodes(sde: SDE, steps: int) -> _Nodes:
    """The ends of `steps` steps even in log SNR, and between them 2^(halvings + 1) - 1 points even in SNR."""
    xp = sde.namespace(sde.t_min)
    ends = xp.exp(xp.linspace(sde.log_snr(sde.t_max), sde.log_snr(sde.t_min), steps + 1))
    share = np.arange(2 << _HALVINGS) / (2 << _HALVINGS)
    snr = xp.reshape(ends[:-1, None] + (ends[1:] - ends[:-1])[:, None] * share[None], -1)
    first, last = (xp.reshape(xp.asarray(t), 1) for t in (sde.t_max, sde.t_min))
    t = xp.concatenate([first, sde.time_of_log_snr(xp.log(snr[1:])), last])
    return _Nodes(t, sde.alpha(t), xp.concatenate([snr, ends[-1:]]))


def _brownian(keys: jax.Array, x: jax.Array, step: jax.Array, level: jax.Array, part: jax.Array) -> list[jax.Array]:
    """The increments of each sample's path over a part of a step and over that part's first half, each over its std.

    With unit normals z for the step and for each of its parts, numbered as a heap, the increment n of a part has the
    halves (n + z)/sqrt(2) and (n - z)/sqrt(2).

    step, level, part: (n,) integers: the part is number `part` of the 2^level equal ones.
    """

    def normal(number: jax.Array) -> jax.Array:
        node = jax.vmap(jax.random.fold_in)(keys, (step * (2 << _HALVINGS) + number).astype(jnp.uint32))
        return normal_like(node, x)

    def descend(k: jax.Array, n: jax.Array) -> jax.Array:
        above = jnp.maximum(level - k, 1)  # levels between the part and its ancestor at level k
        z = normal((1 << k) + (part >> above))
        second = (part >> (above - 1)) & 1
        halved = (n + per_row(1 - 2 * second, x) * z) * 0.5**0.5
        return jnp.where(per_row(k < level, x).astype(bool), halved, n)

    whole = jax.lax.fori_loop(0, jnp.max(level), descend, normal(jnp.zeros_like(part)))
    return [whole, (whole + normal((1 << level) + part)) * 0.5**0.5]


# x, each sample's node and how often its step is halved, the path, and the steps tried.
_State = tuple[jax.Array, jax.Array, jax.Array, jax.Array, jax.Array]


@partial(jax.jit, static_argnames="denoise")
def _solve(
    score_fn: ScoreFn,
    x: jax.Array,
    keys: jax.Array,
    cond: PyTree,
    nodes: _Nodes,
    settings: jax.Array,
    kept: jax.Array,
    max_steps: jax.Array,
    denoise: bool,
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    (relative, absolute), sde, end = settings, score_fn.sde, len(nodes.t) - 1

    def move(x: jax.Array, a: jax.Array, b: jax.Array, denoised: jax.Array, noise: jax.Array) -> jax.Array:
        share = 1 - nodes.snr[a] / nodes.snr[b]
        keep = nodes.snr[a] / nodes.snr[b] * nodes.alpha[b] / nodes.alpha[a]
        spread = nodes.alpha[b] * jnp.sqrt(share / nodes.snr[b])
        return per_row(keep, x) * x + per_row(nodes.alpha[b] * share, x) * denoised + per_row(spread, x) * noise

    def rms(x: jax.Array) -> jax.Array:
        return jnp.sqrt(sum_of_entries(x**2) / x[0].size)

    def step(state: _State) -> _State:
        x, at, level, path, i = state
        active, a = at < end, jnp.minimum(at, end - 1)
        length = (2 << _HALVINGS) >> level
        b, c = a + length // 2, a + length
        whole, half = _brownian(keys, x, a // (2 << _HALVINGS), level, a % (2 << _HALVINGS) // length)
        start = denoiser(score_fn, x, nodes.t[a], cond)
        middle = denoiser(score_fn, move(x, a, b, start, half), nodes.t[b], cond)
        moved = nodes.alpha[c] * (1 - nodes.snr[a] / nodes.snr[c]) * rms(middle - start)
        usual = jnp.maximum(1, 1 / jnp.maximum(rms(half), jnp.finfo(x.dtype).tiny))
        error = moved * usual / (absolute + relative * nodes.alpha[c] / jnp.sqrt(nodes.snr[c]))
        taken = active & ~((error > 1) & (level < _HALVINGS))  # also where it is not a number, which no step mends
        x = jnp.where(per_row(taken, x).astype(bool), move(x, a, c, middle, whole), x)
        at = jnp.where(taken, c, at)
        # Two steps have 2^1.5 times the error; they begin where their parent does.
        longer = taken & (error < 0.25) & (level > 0) & (at % (2 * length) == 0)
        level = jnp.where(active, level + ~taken - longer, level)
        path = jnp.where((kept[:, None] == at[None]).reshape(*path.shape[:2], *[1] * (x.ndim - 1)), x[None], path)
        return x, at, level, path, i + 1

    n, path = x.shape[0], jnp.broadcast_to(x, (len(kept), *x.shape))
    state = (x, jnp.zeros(n, int), jnp.zeros(n, int), path, jnp.zeros((), int))
    x, at, _, path, steps = jax.lax.while_loop(lambda s: jnp.any(s[1] < end) & (s[4] < max_steps), step, state)
    if denoise:
        x = denoiser(score_fn, x, sde.t_min, cond)
        path = jnp.where((kept == end).reshape(-1, *[1] * x.ndim), x[None], path)
    return x, path, steps, jnp.all(at == end)
