"""Scores: score_fn(x, t) = grad_x log p_t(x), from an exact distribution or from a network.

A score is a pytree that carries its SDE: weights and constants are leaves, so another checkpoint never recompiles what
uses it. x is (n, *shape); t is a scalar or (n,); cond is whatever the network takes, with n rows, or None. The result
is like x.

A parameterisation says how a raw network F becomes a score, in one place:

    s(x, t) = skip(t) x + out(t) F(c_in(t) x, c_noise(t), cond)

Writing it for the score itself, not for the denoiser, leaves no difference of nearly equal numbers at small sigma.
"""

import inspect
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Protocol

import jax
import jax.numpy as jnp

from sde_lib.batch import check_rows, like, per_row, points
from sde_lib.distributions import Diffusible
from sde_lib.labels import LogSNRLabel, NoiseLabel
from sde_lib.pytree import register_dataclass
from sde_lib.sde import SDE
from sde_lib.typing import PyTree, Scalar


class ScoreFn(Protocol):
    """A score, as samplers, likelihoods and losses take it."""

    @property
    def sde(self) -> SDE:
        """The forward process whose marginals' score this is."""
        ...

    def __call__(self, x: jax.Array, t: Scalar, cond: PyTree = None) -> jax.Array: ...


class TrainableScoreFn(ScoreFn, Protocol):
    """A score that also takes a key, for the network's dropout: what the training loss takes."""

    def __call__(self, x: jax.Array, t: Scalar, cond: PyTree = None, *, key: jax.Array | None = None) -> jax.Array: ...


def check_score(score_fn: object, where: str) -> None:
    """Raise ValueError for what is no score, such as a plain function or a class."""
    if isinstance(score_fn, type):
        raise ValueError(f"{where}: the score must be an object, not the class {score_fn.__name__}: call it first")
    if not hasattr(score_fn, "sde"):
        raise ValueError(
            f"{where}: a score carries its SDE as `sde`, which {type(score_fn).__name__} does not: wrap a plain "
            "function of (x, t) as FunctionScore(function, sde)"
        )
    if hasattr(score_fn, "score"):
        name = type(score_fn).__name__
        raise ValueError(f"{where}: {name} is a flow map and no score: give its `score`, or use FlowMapSampler")
    if isinstance(score_fn.sde, type):
        name = score_fn.sde.__name__
        raise ValueError(f"{where}: the score's sde must be an object, not the class {name}: write {name}()")


@partial(register_dataclass, static=("function",))
@dataclass(frozen=True)
class FunctionScore:
    """The score that a plain function of (x, t), or of (x, t, cond), computes under an SDE.

    The function is compiled with what it closes over; another one compiles again.
    """

    function: Callable[..., jax.Array]
    sde: SDE

    def __call__(self, x: jax.Array, t: Scalar, cond: PyTree = None, *, key: jax.Array | None = None) -> jax.Array:
        return self.function(x, t) if cond is None else self.function(x, t, cond)


@register_dataclass
@dataclass(frozen=True)
class ExactScore:
    """The score of a distribution that stays exact under the SDE: the oracle, with a network's interface."""

    distribution: Diffusible
    sde: SDE

    def __call__(self, x: jax.Array, t: Scalar, cond: PyTree = None, *, key: jax.Array | None = None) -> jax.Array:
        if jnp.ndim(t) == 0:
            return self.distribution.at(self.sde, t).score(x)
        per_row(t, x)  # raises ValueError where there is not a time for each row
        return jax.vmap(lambda x_i, t_i: self.distribution.at(self.sde, t_i).score(x_i[None])[0])(x, jnp.asarray(t))


class Parameterization(Protocol):
    """The coefficients of s = skip x + out F(c_in x), as functions of alpha and sigma, and the noise label."""

    @property
    def noise_label(self) -> NoiseLabel: ...

    def skip(self, alpha: Scalar, sigma: Scalar) -> Scalar: ...

    def out(self, alpha: Scalar, sigma: Scalar) -> Scalar: ...

    def c_in(self, alpha: Scalar, sigma: Scalar) -> Scalar: ...

    def known(self, x: jax.Array, alpha: Scalar, sigma: Scalar) -> jax.Array:
        """The part of the score that no network has to learn: skip x, or what is linear in x in another way."""
        ...


@dataclass(frozen=True, kw_only=True)
class Labelled:
    """The part that every parameterisation here has: the network's noise label, and skip x as the known part."""

    noise_label: NoiseLabel = field(default_factory=LogSNRLabel)

    def known(self: Parameterization, x: jax.Array, alpha: Scalar, sigma: Scalar) -> jax.Array:
        return per_row(self.skip(alpha, sigma), x) * x


@register_dataclass
@dataclass(frozen=True)
class EpsilonPrediction(Labelled):
    """A parameterisation in which F predicts the noise: s = -F/sigma.

    Ho et al. 2020, arXiv:2006.11239, eq. 11. Input scaled to unit variance, exactly x for VP.
    """

    def skip(self, alpha: Scalar, sigma: Scalar) -> Scalar:
        return 0.0

    def out(self, alpha: Scalar, sigma: Scalar) -> Scalar:
        return -1 / sigma

    def c_in(self, alpha: Scalar, sigma: Scalar) -> Scalar:
        return 1 / jnp.sqrt(alpha**2 + sigma**2)


@register_dataclass
@dataclass(frozen=True)
class DenoiserPrediction(Labelled):
    """A parameterisation in which F predicts x_0: s = (alpha F - x)/sigma², by Tweedie's formula.

    Input scaled to unit variance.
    """

    def skip(self, alpha: Scalar, sigma: Scalar) -> Scalar:
        return -1 / sigma**2

    def out(self, alpha: Scalar, sigma: Scalar) -> Scalar:
        return alpha / sigma**2

    def c_in(self, alpha: Scalar, sigma: Scalar) -> Scalar:
        return 1 / jnp.sqrt(alpha**2 + sigma**2)


@register_dataclass
@dataclass(frozen=True)
class EDMPreconditioning(Labelled):
    """The parameterisation of EDM for any alpha, whose denoiser is D = c_skip x + c_out F(c_in x).

    Karras et al. 2022, arXiv:2206.00364, eq. 7 and table 1. With v = alpha² sigma_data² + sigma²,

        c_skip = alpha sigma_data²/v,    c_out = sigma sigma_data/sqrt(v),    c_in = 1/sqrt(v)

    hence s = -x/v + alpha sigma_data/(sigma sqrt(v)) F. A network that is zero gives the exact score of N(0,
    sigma_data² I).
    """

    sigma_data: float = 0.5

    def _variance(self, alpha: Scalar, sigma: Scalar) -> Scalar:
        return (alpha * self.sigma_data) ** 2 + sigma**2

    def skip(self, alpha: Scalar, sigma: Scalar) -> Scalar:
        return -1 / self._variance(alpha, sigma)

    def out(self, alpha: Scalar, sigma: Scalar) -> Scalar:
        return alpha * self.sigma_data / (sigma * jnp.sqrt(self._variance(alpha, sigma)))

    def c_in(self, alpha: Scalar, sigma: Scalar) -> Scalar:
        return 1 / jnp.sqrt(self._variance(alpha, sigma))


@register_dataclass
@dataclass(frozen=True)
class GaussianPreconditioning(EDMPreconditioning):
    """EDM's parameterisation with a Gaussian N(m, U diag(l) U^T) of the data in place of N(0, sigma_data² I).

        s = -U diag(1/(alpha² l + sigma²)) U^T (x - alpha m) + alpha sigma_data/(sigma sqrt(v)) F(x/sqrt(v))

    A network that is zero gives the exact score of that Gaussian, and F learns what the data have beyond it: scores are
    near to the Gaussian's at all but small noise (Wang and Vastola 2024, arXiv:2412.09726).

    Args:
        mean: m, (d,), of examples laid flat. None: EDM's parameterisation itself.
        basis: U, (d, d), orthogonal. variances: l, (d,), positive.
    """

    sigma_data: float = 1.0
    mean: jax.Array | None = None
    basis: jax.Array | None = None
    variances: jax.Array | None = None

    def known(self, x: jax.Array, alpha: Scalar, sigma: Scalar) -> jax.Array:
        if self.mean is None or self.basis is None or self.variances is None:
            return super().known(x, alpha, sigma)
        flat = x.reshape(x.shape[0], -1)
        alpha, sigma = (jnp.reshape(jnp.asarray(c, x.dtype), (-1, 1)) for c in (alpha, sigma))
        # In full precision: what TF32 leaves out is divided by sigma² of the smallest noise.
        product = partial(jnp.matmul, precision=jax.lax.Precision.HIGHEST)
        z = product(flat - alpha * self.mean[None], self.basis) / (alpha**2 * self.variances[None] + sigma**2)
        return -product(z, self.basis.T).reshape(x.shape)


@register_dataclass
@dataclass(frozen=True)
class VPrediction(Labelled):
    """A parameterisation in which F predicts v = (alpha eps - sigma x_0)/sqrt(alpha² + sigma²).

    Hence s = -x/n² - alpha F/(sigma n), n² = alpha² + sigma².

    Salimans & Ho 2022, arXiv:2202.00512, appendix D, there for alpha² + sigma² = 1. Input scaled to unit variance.
    """

    def skip(self, alpha: Scalar, sigma: Scalar) -> Scalar:
        return -1 / (alpha**2 + sigma**2)

    def out(self, alpha: Scalar, sigma: Scalar) -> Scalar:
        return -alpha / (sigma * jnp.sqrt(alpha**2 + sigma**2))

    def c_in(self, alpha: Scalar, sigma: Scalar) -> Scalar:
        return 1 / jnp.sqrt(alpha**2 + sigma**2)


@register_dataclass
@dataclass(frozen=True)
class VelocityPrediction(Labelled):
    """A parameterisation in which F predicts eps - x_0, the velocity of `RectifiedFlow`.

        s = -(x + alpha F)/(sigma (alpha + sigma))

    Lipman et al. 2023, arXiv:2210.02747, eq. 23 with sigma_min = 0 and time reversed. On that path, alpha + sigma = 1,
    the input is x.
    """

    def skip(self, alpha: Scalar, sigma: Scalar) -> Scalar:
        return -1 / (sigma * (alpha + sigma))

    def out(self, alpha: Scalar, sigma: Scalar) -> Scalar:
        return -alpha / (sigma * (alpha + sigma))

    def c_in(self, alpha: Scalar, sigma: Scalar) -> Scalar:
        return 1 / (alpha + sigma)


@register_dataclass
@dataclass(frozen=True)
class RawEpsilonPrediction(Labelled):
    """The parameterisation s = -F(x)/sigma, with x as it is.

    The DDPM++ and DDPM networks of Song et al. 2021, arXiv:2011.13456, have it, also where alpha² + sigma² != 1.
    """

    def skip(self, alpha: Scalar, sigma: Scalar) -> Scalar:
        return 0.0

    def out(self, alpha: Scalar, sigma: Scalar) -> Scalar:
        return -1 / sigma

    def c_in(self, alpha: Scalar, sigma: Scalar) -> Scalar:
        return 1.0


@partial(register_dataclass, static=("scale_by_sigma",))
@dataclass(frozen=True)
class RawScorePrediction(Labelled):
    """The parameterisation s = F(x)/sigma, or F(x) without `scale_by_sigma`, with x as it is.

    The NCSN++ networks of Song et al. 2021, on `VE`, have it.
    """

    scale_by_sigma: bool = True

    def skip(self, alpha: Scalar, sigma: Scalar) -> Scalar:
        return 0.0

    def out(self, alpha: Scalar, sigma: Scalar) -> Scalar:
        return 1 / sigma if self.scale_by_sigma else 1.0

    def c_in(self, alpha: Scalar, sigma: Scalar) -> Scalar:
        return 1.0


@partial(register_dataclass, static=("apply",))
@dataclass(frozen=True, repr=False)
class NetworkScore:
    """A network's score under an SDE.

    Args:
        apply: `apply(params, x, c_noise, cond)`, or with a fifth argument `key` for a network with dropout, which is
            None to evaluate; hashable, and equal for equal architectures. c_noise (n,) is the parameterisation's noise
            label, log(sigma/alpha)/4 unless it says otherwise.
        params: the network's weights, a pytree of arrays.
        sde: the forward process it was trained under.
        parameterization: how its output becomes a score.
    """

    apply: Callable[..., jax.Array]
    params: PyTree
    sde: SDE
    parameterization: Parameterization

    def __repr__(self) -> str:
        weights = sum(math.prod(jnp.shape(leaf)) for leaf in jax.tree.leaves(self.params))
        return f"NetworkScore({weights:,} weights, {self.sde!r}, {type(self.parameterization).__name__})"

    def __call__(
        self,
        x: jax.Array,
        t: Scalar,
        cond: PyTree = None,
        *,
        key: jax.Array | None = None,
        moved: Scalar | None = None,
    ) -> jax.Array:
        """The score at x (n, *shape). moved: of a flow map's network, how far its jump goes, its second label."""
        check_rows(cond, x.shape[0])
        given, x = x, points(x)
        t = jnp.asarray(t, x.dtype)
        alpha, sigma, p = self.sde.alpha(t), self.sde.sigma(t), self.parameterization
        c_noise = jnp.broadcast_to(jnp.asarray(p.noise_label(self.sde, t), x.dtype), x.shape[:1])
        if moved is not None:
            c_noise = jnp.stack([c_noise, jnp.broadcast_to(jnp.asarray(moved, x.dtype), x.shape[:1])], axis=1)
        raw = _apply(self.apply, self.params, per_row(p.c_in(alpha, sigma), x) * x, c_noise, cond, key)
        return like(p.known(x, alpha, sigma) + per_row(p.out(alpha, sigma), x) * raw, given)


# One jitted call, so that samplers, likelihoods and checkpoints share one trace of the network per shape.
@partial(jax.jit, static_argnums=0)
def _apply(
    apply: Callable[..., jax.Array],
    params: PyTree,
    x: jax.Array,
    c_noise: jax.Array,
    cond: PyTree,
    key: jax.Array | None,
) -> jax.Array:
    given = (params, x, c_noise, cond)
    try:
        taken = list(inspect.signature(apply).parameters.values())
    except ValueError:  # a function without a signature
        return apply(*given, key)
    if any(p.name == "key" and p.kind in (p.KEYWORD_ONLY, p.POSITIONAL_OR_KEYWORD) for p in taken):
        return apply(*given, key=key)
    positional = [p for p in taken if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    if any(p.kind == p.VAR_POSITIONAL for p in taken):  # whoever hands all on may hand them to a network of four
        return apply(*given) if key is None else apply(*given, key)
    if len(positional) < 4:
        raise ValueError(
            f"NetworkScore: apply must take (params, x, c_noise, cond), and key for dropout; it takes {len(positional)}"
        )
    return (
        apply(*given, key)
        if len(positional) > 4 and positional[4].default is inspect.Parameter.empty
        else apply(*given)
    )
