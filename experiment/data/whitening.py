"""Vectors theta given conditions x, turned into residuals z that depend on x as little as an affine map can make them.

    z = diag(exp s) (I + P) (r - m),    r = L^-1 (u - A c - b),    c = (summary(x) - mean)/std

u is theta itself, or, where its values are bounded, the normal quantile of its place between the bounds, which turns a
uniform prior into N(0, I) and walls into tails. A, b and L are the least-squares fit of u by c and the Cholesky factor
of what it leaves. m (d,), s (d,) and the strictly lower triangular P (d, d) are small networks of c, zero at first, and
fitted by the log-density of N(0, I) at z: the conditional Gaussian that fits best. For a fixed x the map is invertible,
so that a density of z given x is one of theta given x, exactly:

    log p(theta | x) = log p(z | x) + sum s - log det L + log |du/dtheta|

The networks are fitted on all but one of FOLDS parts of the data each, so that an example's residual comes from one
that has not seen it and is as wide as that of new data (cross-fitting; Chernozhukov et al. 2018, arXiv:1608.00060).
Their outputs are averaged for what is new. How many updates they take is chosen by the log-density of what each has not
seen; none, which is the least-squares fit, is among the choices.
"""

from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.scipy.special import ndtr, ndtri

from experiment.common.errors import UserError

Array = np.ndarray
Params = dict[str, dict[str, jax.Array]]
Support = tuple[Array, Array]

FOLDS = 5
WIDTH, DEPTH, DROPOUT = 128, 3, 0.2
STEPS, CHOICES, BATCH = 3000, 20, 256  # CHOICES: the numbers of updates that are compared
RATE, DECAY, AVERAGE = 5e-3, 1e-2, 0.995  # AVERAGE: decay of the average of the weights
EDGE = 1e-6  # how near to a bound a value may lie, as a share of the range


def summary(x: Array, draws: int = 1) -> Array:
    """What of x (n, m) the fit is told: all, or of `draws` independent draws in each row their first two moments.

    Draws have no order, so that of k numbers each they tell means (k), logarithms of standard deviations (k) and
    correlations on the line (k (k - 1)/2).
    """
    x = np.asarray(x, np.float64)
    if draws == 1:
        return x
    each = x.reshape(len(x), draws, -1)
    mean = each.mean(axis=1)
    off = each - mean[:, None]
    std = np.sqrt((off**2).mean(axis=1)) + 1e-3
    first, second = np.tril_indices(mean.shape[1], -1)
    correlation = (off[..., first] * off[..., second]).mean(axis=1) / (std[:, first] * std[:, second])
    return np.concatenate([mean, np.log(std), np.arctanh(0.999 * np.clip(correlation, -1, 1))], axis=1)


def unbounded(theta: Array, support: Support | None) -> Array:
    """The u of theta (n, d)."""
    theta = np.asarray(theta, np.float64)
    if support is None:
        return theta
    share = (theta - support[0]) / (support[1] - support[0])
    return np.asarray(ndtri(np.clip(share, EDGE, 1 - EDGE)), np.float64)


def bounded(u: Array, support: Support | None) -> Array:
    """The theta of u (n, d)."""
    return u if support is None else support[0] + (support[1] - support[0]) * np.asarray(ndtr(u), np.float64)


@dataclass(frozen=True)
class Whitening:
    """The fitted map: theta (n, d) and x (n, m) to z (n, d), and back."""

    constants: dict[str, Array]  # mean, std, slope, offset, root
    networks: Params  # with a leading axis of FOLDS
    support: Support | None
    draws: int

    def cond(self, x: Array) -> Array:
        """The c (n, k) of x, float32."""
        return ((summary(x, self.draws) - self.constants["mean"]) / self.constants["std"]).astype(np.float32)

    def to_residual(self, theta: Array, x: Array) -> Array:
        """The z of new examples, float32."""
        return self._whiten(theta, x, np.asarray(_averaged(self.networks, self.cond(x)), np.float64))

    def to_parameters(self, z: Array, x: Array) -> Array:
        """The theta of z (n, d)."""
        m, s, p = _parts(np.asarray(_averaged(self.networks, self.cond(x)), np.float64), z.shape[1])
        r = m + np.linalg.solve(np.eye(z.shape[1]) + p, (np.asarray(z, np.float64) * np.exp(-s))[..., None])[..., 0]
        u = self._fitted(x) + r @ self.constants["root"].T
        return bounded(u, self.support)

    def log_det(self, theta: Array, x: Array) -> Array:
        """The log |det dz/dtheta|, (n,): log p(theta | x) = log p(z | x) + log_det."""
        _, s, _ = _parts(np.asarray(_averaged(self.networks, self.cond(x)), np.float64), theta.shape[1])
        of_root = np.log(np.diag(self.constants["root"])).sum()
        if self.support is None:
            return s.sum(axis=1) - of_root
        width, u = self.support[1] - self.support[0], unbounded(theta, self.support)
        return s.sum(axis=1) - of_root + np.sum((u**2 + np.log(2 * np.pi)) / 2 - np.log(width), axis=1)

    def _fitted(self, x: Array) -> Array:
        c = np.asarray(self.cond(x), np.float64)
        return c @ self.constants["slope"] + self.constants["offset"]

    def _start(self, theta: Array, x: Array) -> Array:
        """The residual r of the least-squares fit alone."""
        left = unbounded(theta, self.support) - self._fitted(x)
        return np.linalg.solve(self.constants["root"], left.T).T

    def _whiten(self, theta: Array, x: Array, outputs: Array) -> Array:
        r = self._start(theta, x)
        m, s, p = _parts(outputs, r.shape[1])
        return _residual(r, m, s, p).astype(np.float32)


def fit_whitening(
    theta: Array, x: Array, support: Support | None = None, draws: int = 1, steps: int = STEPS
) -> tuple[Whitening, Array]:
    """Fit the map to theta (n, d) and x (n, m).

    Returns:
        whitening: the map.
        z: the residuals (n, d) of these examples, each by a network that has not seen it.

    Raises UserError for fewer examples than twice the numbers of the least-squares fit, or than 20.
    """
    features = summary(x, draws)
    least = max(20, 2 * (features.shape[1] + 1 + theta.shape[1]))
    if len(features) < least:
        raise UserError(f"the fit to {len(features)} simulations needs at least {least} simulations: draw more")
    constants = {"mean": features.mean(axis=0), "std": np.maximum(features.std(axis=0), 1e-12)}
    c, u = (features - constants["mean"]) / constants["std"], unbounded(theta, support)
    with_one = np.concatenate([c, np.ones((len(c), 1))], axis=1)
    solution = np.linalg.lstsq(with_one, u, rcond=None)[0]
    left = u - with_one @ solution
    covariance = left.T @ left / (len(u) - with_one.shape[1])
    constants |= {"slope": solution[:-1], "offset": solution[-1], "root": np.linalg.cholesky(covariance)}
    start = Whitening(constants, {}, support, draws)
    r = jnp.asarray(start._start(theta, x), jnp.float32)
    networks, outputs = _cross_fit(r, jnp.asarray(c, jnp.float32), steps)
    whitening = Whitening(constants, networks, support, draws)
    return whitening, whitening._whiten(theta, x, np.asarray(outputs, np.float64))


def _parts(outputs: Any, d: int) -> tuple[Any, Any, Any]:
    """The m, s (n, d) and P (n, d, d) that the networks' outputs (n, 2 d + d (d - 1)/2) are."""
    xp = jnp if isinstance(outputs, jax.Array) else np
    rows, columns = np.tril_indices(d, -1)
    place = np.zeros((len(rows), d, d), np.float32)
    place[np.arange(len(rows)), rows, columns] = 1.0
    return outputs[:, :d], outputs[:, d : 2 * d], xp.einsum("nk,kij->nij", outputs[:, 2 * d :], place)


def _residual(r: Any, m: Any, s: Any, p: Any) -> Any:
    xp = jnp if isinstance(r, jax.Array) else np
    return xp.exp(s) * (r - m + xp.einsum("nij,nj->ni", p, r - m))


def _negative_log_density(outputs: jax.Array, r: jax.Array) -> jax.Array:
    """Minus log N(z; 0, I) |det dz/dr|, less its constant, (n,)."""
    m, s, p = _parts(outputs, r.shape[1])
    return 0.5 * jnp.sum(_residual(r, m, s, p) ** 2, axis=1) - jnp.sum(s, axis=1)


def _network(params: Params, c: jax.Array, key: jax.Array | None) -> jax.Array:
    """The outputs for c (n, k), with a linear path beside the layers."""
    h = c
    for i in range(DEPTH):
        layer = params[f"layer{i}"]
        h = jax.nn.silu(h @ layer["kernel"] + layer["bias"][None])
        if key is not None:
            kept = jax.random.bernoulli(jax.random.fold_in(key, i), 1 - DROPOUT, h.shape)
            h = jnp.where(kept, h / (1 - DROPOUT), 0.0)
    return h @ params["outer"]["kernel"] + c @ params["linear"]["kernel"] + params["outer"]["bias"][None]


def _weights(key: jax.Array, inputs: int, outputs: int) -> Params:
    sizes = [inputs, *[WIDTH] * DEPTH]
    keys = jax.random.split(key, DEPTH)
    layers = {
        f"layer{i}": {
            "kernel": jax.random.normal(keys[i], (sizes[i], WIDTH)) / np.sqrt(sizes[i]),
            "bias": jnp.zeros(WIDTH),
        }
        for i in range(DEPTH)
    }
    outer = {"kernel": jnp.zeros((WIDTH, outputs)), "bias": jnp.zeros(outputs)}
    return layers | {"outer": outer, "linear": {"kernel": jnp.zeros((inputs, outputs))}}


@jax.jit
def _averaged(networks: Params, c: jax.Array) -> jax.Array:
    return jnp.mean(jax.vmap(lambda params: _network(params, c, None))(networks), axis=0)


def _cross_fit(r: jax.Array, c: jax.Array, steps: int) -> tuple[Params, jax.Array]:
    """Fit a network without each fold.

    Returns:
        networks: their averaged weights after the best number of updates, with a leading axis of FOLDS.
        outputs: those of each example, by the network that has not seen it.
    """
    n, d = r.shape
    fold = np.random.RandomState(0).permutation(n) % FOLDS
    counts = np.bincount(fold, minlength=FOLDS)  # they differ by one at most: the least of each is used
    seen = jnp.asarray(np.stack([np.flatnonzero(fold != k)[: n - counts.max()] for k in range(FOLDS)]))
    unseen = jnp.asarray(np.stack([np.flatnonzero(fold == k)[: counts.min()] for k in range(FOLDS)]))
    keys = jax.random.split(jax.random.key(0), FOLDS)
    params = jax.vmap(lambda key: _weights(key, c.shape[1], 2 * d + d * (d - 1) // 2))(keys)
    state = (params, params, jax.vmap(_optimizer(steps).init)(params), jnp.zeros((), jnp.int32))
    best, least_loss = params, _held_out(params, r, c, unseen)
    for choice in range(CHOICES):
        key = jax.random.fold_in(jax.random.key(1), choice)
        state = _updates(state, r, c, seen, key, steps // CHOICES, steps)
        loss = _held_out(state[1], r, c, unseen)
        if loss < least_loss:
            best, least_loss = state[1], loss
    each = jax.jit(jax.vmap(lambda params: _network(params, c, None)))(best)
    return best, each[jnp.asarray(fold), jnp.arange(n)]


@jax.jit
def _held_out(networks: Params, r: jax.Array, c: jax.Array, unseen: jax.Array) -> jax.Array:
    """The mean loss of each network on the examples that it has not seen."""

    def loss(params: Params, rows: jax.Array) -> jax.Array:
        return jnp.mean(_negative_log_density(_network(params, c[rows], None), r[rows]))

    return jnp.mean(jax.vmap(loss)(networks, unseen))


def _optimizer(steps: int) -> optax.GradientTransformation:
    def decays(params: Any) -> Any:
        return {
            name: {"kernel": name != "linear", "bias": False} if "bias" in layer else {"kernel": False}
            for name, layer in params.items()
        }

    schedule = optax.cosine_decay_schedule(RATE, steps)
    return optax.chain(optax.clip_by_global_norm(5.0), optax.adamw(schedule, weight_decay=DECAY, mask=decays))


@partial(jax.jit, static_argnums=(5, 6))
def _updates(state: Any, r: jax.Array, c: jax.Array, seen: jax.Array, key: jax.Array, n: int, steps: int) -> Any:
    """Make n updates of every network."""
    optimizer = _optimizer(steps)

    def one(params: Params, opt_state: Any, seen: jax.Array, key: jax.Array) -> tuple[Params, Any]:
        key_rows, key_drop = jax.random.split(key)
        rows = seen[jax.random.randint(key_rows, (BATCH,), 0, len(seen))]

        def loss(params: Params) -> jax.Array:
            return jnp.mean(_negative_log_density(_network(params, c[rows], key_drop), r[rows]))

        updates, opt_state = optimizer.update(jax.grad(loss)(params), opt_state, params)
        return optax.apply_updates(params, updates), opt_state

    def update(state: Any, key: jax.Array) -> tuple[Any, None]:
        params, average, opt_state, step = state
        params, opt_state = jax.vmap(one)(params, opt_state, seen, jax.random.split(key, FOLDS))
        decay = jnp.minimum(AVERAGE, (1.0 + step) / (10.0 + step))
        average = jax.tree.map(lambda a, p: a + (1 - decay) * (p - a), average, params)
        return (params, average, opt_state, step + 1), None

    return jax.lax.scan(update, state, jax.random.split(key, n))[0]


def whitening_arrays(whitening: Whitening) -> dict[str, Array]:
    """The map as arrays by name, for a file."""
    networks = {
        f"{layer}.{part}": np.asarray(v) for layer, parts in whitening.networks.items() for part, v in parts.items()
    }
    support = () if whitening.support is None else np.stack(whitening.support)
    return {**whitening.constants, **networks, "support": np.asarray(support), "draws": np.asarray(whitening.draws)}


def whitening_of_arrays(arrays: dict[str, Array]) -> Whitening:
    """The map that `whitening_arrays` wrote."""
    networks: Params = {}
    for name in (name for name in arrays if "." in name):
        layer, _, part = name.partition(".")
        networks.setdefault(layer, {})[part] = jnp.asarray(arrays[name])
    constants = {name: arrays[name] for name in ("mean", "std", "slope", "offset", "root")}
    support = (arrays["support"][0], arrays["support"][1]) if arrays["support"].size else None
    return Whitening(constants, networks, support, int(arrays["draws"]))
