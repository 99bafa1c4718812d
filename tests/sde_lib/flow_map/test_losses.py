"""The losses: 0 at the exact map and nowhere near it, and the fixed points of those that are biased."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sde_lib import (
    VE,
    VP,
    DiagonalGaussian,
    ExactFlowMap,
    ExactScore,
    NetworkFlowMap,
    RectifiedFlow,
    register_dataclass,
)
from sde_lib.batch import per_row
from sde_lib.flow_map import consistency_loss, eulerian, flow_map_loss, flow_time, jump, lagrangian, semigroup
from sde_lib.samplers import DDIM, Karras, Times, sample
from sde_lib.samplers.exact_law import in_float64

DATA = DiagonalGaussian(np.array([0.3, -0.2]), np.array([0.5, 1.3]))
LOSSES = {"lagrangian": lagrangian, "semigroup": semigroup, "eulerian": eulerian}
KEY = jax.random.key(1)


@register_dataclass
@dataclass(frozen=True)
class Exact:
    """The exact map as the losses take one, with an error of its mean velocities that grows with the jump."""

    inner: ExactFlowMap
    error: float = 0.0

    sde = property(lambda self: self.inner.sde)
    score = property(lambda self: self.inner.score)

    def velocity(self, x, t, s, cond=None, *, key=None):
        def straight(x, t):
            return x / per_row(self.sde.alpha(t) + self.sde.sigma(t), x)

        moved = straight(self.inner(x, t, s), s) - straight(x, t)
        length = per_row(flow_time(self.sde, s) - flow_time(self.sde, t), x)
        return (1 + self.error * length) * moved / length

    def __call__(self, x, t, s, cond=None, *, key=None):
        return jump(self.sde, self.velocity(x, t, s), x, t, s)


@pytest.mark.parametrize("taught", [False, True], ids=["alone", "taught"])
@pytest.mark.parametrize("sde", [VP(), VE(), RectifiedFlow()], ids=["VP", "VE", "RectifiedFlow"])
@pytest.mark.parametrize("name", LOSSES)
def test_the_loss_of_a_jump_is_zero_at_the_exact_map_alone(name, sde, taught):
    if name == "eulerian" and not taught:
        pytest.skip("its target then has the variance of eps - x_0")
    with jax.enable_x64(True):
        exact = jax.tree.map(in_float64, ExactFlowMap(DATA, sde))
        x0 = DATA.sample(KEY, 32)
        found, wrong = (
            flow_map_loss(Exact(exact, error), x0, KEY, jump_loss=LOSSES[name], teacher=exact.score if taught else None)
            for error in (0.0, 0.3)
        )
        assert float(jnp.max(found.jump)) < 1e-12
        assert float(jnp.mean(wrong.jump)) > 1e-4
        assert (float(jnp.max(found.diagonal)) < 1e-12) == taught  # the teacher's noise has no variance


def linear(params, x, labels, cond):
    """A mean velocity that is linear in x, with slopes of four features of both times."""
    tau, moved = (labels, 0 * labels) if labels.ndim == 1 else (labels[:, 0], labels[:, 1])
    return (params @ jnp.stack([jnp.ones_like(tau), tau, moved, tau * moved]))[:, None] * x


def test_meanflow_is_the_eulerian_loss_whose_target_is_right_on_average():
    """Its gradient at the exact map is 0 with the noise of each example for a velocity: no bias."""
    sde = RectifiedFlow()
    exact = ExactFlowMap(DiagonalGaussian(np.zeros(1), np.ones(1)), sde)
    x0 = jax.random.normal(KEY, (50_000, 1))

    def loss(error, key):
        return jnp.mean(flow_map_loss(Exact(exact, error), x0, key, jump_loss=eulerian).jump)

    slope = jax.jit(jax.grad(loss))
    slopes = np.array([slope(0.0, jax.random.key(i)) for i in range(8)])
    off = float(slope(0.3, KEY))
    assert abs(slopes.mean()) < 4 * slopes.std() / np.sqrt(7) and abs(slopes.mean()) < 0.1 * off


SIGMA_MIN, SIGMA_MAX, VARIANCE, STEPS = 0.002, 80.0, 0.25, 17  # 18 levels


@register_dataclass
@dataclass(frozen=True)
class Slopes:
    """A linear consistency model on `VE`, f(x, t) = slope(t) x, with a slope for each time of a grid."""

    slopes: jax.Array
    times: jax.Array
    sde: VE

    def velocity(self, x, t, s, cond=None, *, key=None):
        slope = self.slopes[jnp.argmin(jnp.abs(t[:, None] - self.times[None]), axis=1)]
        end, start = 1 + self.sde.sigma(s), 1 + self.sde.sigma(t)
        length = jnp.where(t == s, -1.0, flow_time(self.sde, s) - flow_time(self.sde, t))
        return ((slope / end - 1 / start) / length)[:, None] * x


@pytest.mark.parametrize("taught, heun, ratio", [(False, True, 0.84609), (True, False, 0.84609), (True, True, 1.0553)])
def test_consistency_models_have_the_bias_of_their_steps(taught, heun, ratio):
    """The fixed point on N(0, 1/4) with 18 levels: training is Euler's distillation, too narrow; Heun's is too wide."""
    sde = VE(sigma_min=SIGMA_MIN, sigma_max=SIGMA_MAX, t_min=1e-6)
    exact = ExactScore(DiagonalGaussian(np.zeros(1), np.full(1, VARIANCE**0.5)), sde)
    times = jnp.asarray(Karras()(sde, STEPS), jnp.float32)
    x0 = VARIANCE**0.5 * jax.random.normal(KEY, (400_000, 1))

    @jax.jit
    def gradient(slopes):
        def loss(slopes):
            teacher = exact if taught else None
            found = consistency_loss(Slopes(slopes, times, sde), x0, KEY, steps=STEPS, teacher=teacher, heun=heun)
            return jnp.sum(found)

        return jax.grad(loss)(slopes)

    # The loss of a level is a square in its slope, and its target is the next level's: solved from t_min up.
    slopes = np.zeros(STEPS + 1, np.float32)
    slopes[STEPS] = 1.0
    for i in reversed(range(STEPS)):
        at, beyond = slopes.copy(), slopes.copy()
        beyond[i] += 1
        first = np.asarray(gradient(at), float)[i]
        slopes[i] -= first / (np.asarray(gradient(beyond), float)[i] - first)
    std = slopes[0] * np.sqrt(VARIANCE + SIGMA_MAX**2)
    assert abs(std / np.sqrt(VARIANCE + SIGMA_MIN**2) - ratio) < 0.005


def test_a_network_without_jumps_makes_one_euler_step_of_its_score():
    sde, params = VP(), jnp.array([0.3, 0.4, 0.0, 0.0])
    flow_map = NetworkFlowMap(linear, params, sde)
    step = sample(DDIM(1, grid=Times((0.9, 0.2))), flow_map.score, KEY, 8, (2,), frames=2)
    x = step.path[0]
    np.testing.assert_allclose(flow_map(x, 0.9, 0.2), step.x, rtol=1e-5, atol=3e-5)
    np.testing.assert_array_equal(flow_map(x, 0.9, 0.9), x)
    each = flow_map(x, jnp.full(8, 0.9), jnp.full(8, 0.2))
    np.testing.assert_allclose(each, step.x, rtol=1e-5, atol=3e-5)
    moved = NetworkFlowMap(linear, params.at[2].set(0.5), sde)
    assert float(jnp.abs(moved(x, 0.9, 0.2) - step.x).max()) > 0.05
    np.testing.assert_array_equal(moved.score(x, 0.9), flow_map.score(x, 0.9))


def test_a_teacher_on_another_sde_is_refused():
    exact = ExactFlowMap(DATA, VP())
    with pytest.raises(ValueError, match="different SDEs"):
        flow_map_loss(Exact(exact), jnp.ones((4, 2)), KEY, teacher=ExactScore(DATA, RectifiedFlow()))
