from dataclasses import replace

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sde_lib import VP, ExactScore, GaussianMixture, ProbabilityFlow, RectifiedFlow, decode, encode, sample
from tests.oracles import ALL_SDES, SDE_IDS, SDES, ToldScore, calls_of, normal, random_mixture

each_sde = pytest.mark.parametrize("sde", SDES, ids=SDE_IDS)


@pytest.mark.parametrize(
    "solver, order", [(diffrax.Euler(), 1), (diffrax.Heun(), 2), (diffrax.Bosh3(), 3), (diffrax.Tsit5(), 5)]
)
def test_order_of_a_fixed_step_solver(solver, order):
    # On N(0, v) the flow is exactly x -> x sqrt(v_0/v_T), with v_t = alpha² v + sigma².
    with jax.enable_x64(True):
        sde = VP(t_min=0.1)
        data = GaussianMixture(np.ones(1), np.zeros((1, 1)), 0.25 * np.ones((1, 1, 1)))
        ratio = float(jnp.sqrt(data.at(sde, 0.1).variances / data.at(sde, 1.0).variances)[0, 0])
        latent, steps = jnp.array([[1.0], [-2.0]]), np.array([20, 40, 80])
        errors = []
        for n in steps:
            x = decode(ExactScore(data, sde), latent, flow=ProbabilityFlow(steps=int(n), solver=solver)).x
            errors.append(float(jnp.abs(x - ratio * latent).max()))
    measured = -np.polyfit(np.log(steps), np.log(errors), 1)[0]
    assert abs(measured - order) < 0.15, (measured, errors)


@pytest.mark.parametrize("d", [2, 50])
@each_sde
def test_encode_then_decode_returns_x(sde, d):
    data = random_mixture(d, d)
    x = data.sample(jax.random.key(0), 64)
    score_fn = ExactScore(data, sde)
    latent = encode(score_fn, x).x
    assert jnp.abs(latent - x).max() > 0.1
    assert jnp.abs(decode(score_fn, latent).x - x).max() < 1e-3


@each_sde
def test_encode_is_the_exact_map_of_a_gaussian(sde):
    data = normal(0.5)
    x = data.sample(jax.random.key(0), 8)
    ratio = float(jnp.sqrt(data.at(sde, sde.t_max).variances[0, 0] / data.at(sde, sde.t_min).variances[0, 0]))
    np.testing.assert_allclose(encode(ExactScore(data, sde), x).x, ratio * x, rtol=1e-3)
    late = replace(sde, t_min=0.3)  # far enough from 0 that an end elsewhere would show
    ratio = float(jnp.sqrt(data.at(late, late.t_max).variances[0, 0] / data.at(late, 0.3).variances[0, 0]))
    np.testing.assert_allclose(decode(ExactScore(data, late), ratio * x).x, x, rtol=1e-3)


def test_no_sample_with_steps_of_its_own_seems_solved_by_chance():
    # Of narrow data: the rectified flow's paths are straight until they bend within the last hundredth of the time.
    sde, flow, z = RectifiedFlow(), ProbabilityFlow(per_sample=True), jax.random.normal(jax.random.key(1), (5000, 1))
    for width in (0.01, 0.1):
        start, end = (
            np.hypot(sde.alpha(t) * width, sde.sigma(t)) * np.asarray(z, float) + 0.5 * sde.alpha(t)
            for t in (sde.t_max, sde.t_min)
        )
        found = decode(ExactScore(normal(width, 1, mean=0.5), sde), jnp.asarray(start, jnp.float32), flow=flow).x
        assert np.abs(found - end).max() < 0.05 * end.std()  # without the stops, in 200 one is off by 0.1 to 6


def test_both_ways_are_told_the_condition():
    sde, cond = VP(), jnp.array([[3.0, 0.0], [-1.0, 2.0]])
    x = sde.alpha(sde.t_min) * cond + 0.3
    at_start, at_end = (np.sqrt((0.5 * sde.alpha(t)) ** 2 + sde.sigma(t) ** 2) for t in (sde.t_min, sde.t_max))
    latent = sde.alpha(sde.t_max) * cond + 0.3 * at_end / at_start
    np.testing.assert_allclose(encode(ToldScore(sde), x, cond=cond).x, latent, atol=1e-3)
    np.testing.assert_allclose(decode(ToldScore(sde), latent, cond=cond).x, x, atol=1e-3)


@pytest.mark.parametrize(
    "flow",
    [
        ProbabilityFlow(steps=9),
        ProbabilityFlow(steps=9, solver=diffrax.Heun()),
        ProbabilityFlow(solver=diffrax.Dopri8()),
    ],
)
def test_nfe_of_every_kind_of_solve_is_the_number_of_calls(flow):
    calls, nfe = calls_of(lambda score_fn: sample(flow, score_fn, jax.random.key(0), 3, (2,)))
    assert nfe == calls > 0


def test_a_hard_sample_is_solved_to_tolerance_in_any_batch():
    # diffrax's mean norm would let the rest of a large batch hide the one sample that lies between two sharp peaks.
    data = GaussianMixture([0.5, 0.5], [[-1.0], [1.0]], np.full((2, 1, 1), 1e-3))
    score_fn, hard = ExactScore(data, VP()), jnp.array([[2e-3]])
    flow = ProbabilityFlow(rtol=1e-4, atol=1e-4)
    reference = decode(score_fn, hard, flow=ProbabilityFlow(rtol=1e-6, atol=1e-6)).x[0, 0]
    easy = jnp.full((500, 1), 3.0)
    alone, crowd = (
        decode(score_fn, hard, flow=flow).x[0, 0],
        decode(score_fn, jnp.concatenate([hard, easy]), flow=flow).x[0, 0],
    )
    assert abs(crowd - reference) < 1e-2 and abs(alone - reference) < 1e-2


def test_a_solve_that_cannot_finish_raises_with_the_remedy():
    with pytest.raises(RuntimeError, match="raise max_steps or loosen"):
        sample(ProbabilityFlow(max_steps=3), ExactScore(normal(), VP()), jax.random.key(0), 3, (2,))


@pytest.mark.parametrize("steps", [1, 2, 7, 100, 1000])
def test_a_fixed_step_solve_spends_its_steps_and_no_more_on_every_sde(steps):
    # A rounding before the end was once another step: with steps=1 twice the calls.
    flow = ProbabilityFlow(steps=steps, solver=diffrax.Euler())
    for sde in ALL_SDES:
        assert sample(flow, ExactScore(normal(), sde), jax.random.key(0), 3, (2,)).nfe == steps
