"""A score under another SDE: paths of equal signal-to-noise ratio differ by a scale only."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import jax
import numpy as np

from sde_lib.batch import per_row
from sde_lib.composed import ComposedScore, calls_at, is_guided, whole
from sde_lib.pytree import register_dataclass
from sde_lib.score import ScoreFn
from sde_lib.sde import SDE, host_sde, namespace
from sde_lib.typing import Array, PyTree, Scalar


@register_dataclass
@dataclass(frozen=True)
class Rescheduled(ComposedScore):
    """The score of the same data under another SDE, exactly (Kingma et al. 2021, arXiv:2107.00630, section 5.1).

    At time t of `sde` let u be the inner score's time of equal SNR and r = sigma_inner(u)/sigma(t). Then x_t and x_u/r
    have one distribution, and s(x, t) = r s_inner(r x, u).
    """

    inner: ScoreFn
    sde: SDE

    @property
    def is_guided(self) -> bool:  # type: ignore[override]
        """Whether the inner score is."""
        return is_guided(self.inner)

    def parts(self) -> tuple[ScoreFn, ...]:
        return (self.inner,)

    def with_parts(self, parts: Sequence[ScoreFn]) -> "Rescheduled":
        return replace(self, inner=parts[0])

    def whole(self, t: Scalar | None = None) -> "Rescheduled":
        u = None if t is None else self.inner.sde.time_of_log_snr(self.sde.log_snr(t))
        return replace(self, inner=whole(self.inner, u))

    def calls_at(self, t: Scalar) -> Array | int:
        return calls_at(self.inner, self.inner.sde.time_of_log_snr(self.sde.log_snr(t)))

    def __call__(self, x: jax.Array, t: Scalar, cond: PyTree = None, *, key: jax.Array | None = None) -> jax.Array:
        u = self.inner.sde.time_of_log_snr(self.sde.log_snr(t))
        r = per_row(self.inner.sde.sigma(u) / self.sde.sigma(t), x)
        given = {} if key is None else {"key": key}
        return r * self.inner(r * x, u, cond, **given)


def reschedule(score_fn: ScoreFn, sde: SDE) -> Rescheduled:
    """The score under another SDE, over the range of log SNR that both know.

    The SDE's t_min and t_max are moved to where its log SNR leaves the range that the score knows. Raises ValueError
    where the two ranges have nothing in common; under jit, where no constant is known, that gives nan.
    """
    inner, outer = host_sde(score_fn.sde), host_sde(sde)
    xp = namespace(*jax.tree.leaves((inner, outer)))
    high = xp.minimum(inner.log_snr(inner.t_min), outer.log_snr(outer.t_min))
    low = xp.maximum(inner.log_snr(inner.t_max), outer.log_snr(outer.t_max))
    if not isinstance(low, jax.core.Tracer) and not low < high:
        raise ValueError("reschedule: the two SDEs have no log SNR in common; choose other constants")
    ends = {"t_min": outer.time_of_log_snr(high), "t_max": outer.time_of_log_snr(low)}
    return Rescheduled(score_fn, replace(outer, **({name: float(t) for name, t in ends.items()} if xp is np else ends)))
