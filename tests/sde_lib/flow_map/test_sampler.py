"""Sampling by a flow map: the exact law without Monte Carlo, each sample's own randomness, cost and refusals."""

from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sde_lib import VP, ExactFlowMap, ExactScore, FlowMapSampler, log_prob, register_dataclass
from sde_lib.batch import per_row
from sde_lib.flow_map import flow_time
from sde_lib.flow_map.sampler import _jump
from sde_lib.samplers import DDIM, Times, encode, fit_table, gaussian_law, sample, watched
from tests.oracles import ALL_SDE_IDS, ALL_SDES, normal, random_mixture

DATA = random_mixture(1, 3, components=1)
MEAN, COVARIANCE = (np.asarray(v[0], float) for v in (DATA.means, DATA.covariances))
KEY = jax.random.key(3)


def kl(found, mean, covariance):
    """KL(N(found) || N(mean, covariance)) in nats."""
    relative = np.linalg.solve(covariance, found[1])
    away = found[0] - mean
    distance = away @ np.linalg.solve(covariance, away)
    return 0.5 * (np.trace(relative) - len(mean) - np.linalg.slogdet(relative)[1] + distance)


@pytest.mark.parametrize("sde", ALL_SDES, ids=ALL_SDE_IDS)
@pytest.mark.parametrize("renoise", [0.0, 1.0])
@pytest.mark.parametrize("steps", [1, 2, 4])
def test_with_the_exact_map_the_law_is_exact_at_any_number_of_jumps(steps, renoise, sde):
    found = gaussian_law(FlowMapSampler(steps, renoise), ExactFlowMap(DATA, sde), MEAN, COVARIANCE)
    alpha, sigma = sde.alpha(sde.t_min), sde.sigma(sde.t_min)
    assert abs(kl(found, alpha * MEAN, alpha**2 * COVARIANCE + sigma**2 * np.eye(3))) < 1e-8


@pytest.mark.parametrize("renoise", [0.6, 1.0])
def test_the_law_is_that_of_the_samples_also_of_a_map_that_is_wrong(renoise):
    sde, n = VP(), 20_000
    flow_map, sampler = Scaled(ExactFlowMap(DATA, sde), np.float32(0.9)), FlowMapSampler(3, renoise)
    prior = DATA.at(sde, sde.t_max)
    x = np.asarray(sample(sampler, flow_map, KEY, n, (3,), prior=prior).x, float)
    mean, covariance = gaussian_law(sampler, flow_map, MEAN, COVARIANCE)
    np.testing.assert_allclose(x.mean(axis=0), mean, atol=5 * np.sqrt(np.diag(covariance) / n).max())
    error = np.sqrt((covariance**2 + np.outer(np.diag(covariance), np.diag(covariance))) / n)
    assert (np.abs(np.cov(x.T) - covariance) < 5 * error).all()


@register_dataclass
@dataclass(frozen=True)
class Scaled:
    """The exact map times a factor at its end, plus its condition; it reports its calls."""

    inner: ExactFlowMap
    factor: Any
    calls: ClassVar[list[int]] = []

    sde = property(lambda self: self.inner.sde)
    score = property(lambda self: self.inner.score)

    def __call__(self, x, t, s, cond=None):
        jax.debug.callback(lambda: self.calls.append(1))
        x = self.factor * self.inner(x, t, s)
        return x if cond is None else x + per_row(cond, x)


FLOW_MAP = Scaled(ExactFlowMap(DATA, VP()), np.float32(1.0))


def test_a_jump_is_one_call_and_the_path_is_kept():
    told = []
    with watched(lambda done, of: told.append((done, of))):
        Scaled.calls.clear()
        found = sample(FlowMapSampler(4, 1.0), FLOW_MAP, KEY, 16, (3,), frames=3)
        jax.effects_barrier()
    assert found.nfe == len(Scaled.calls) == FlowMapSampler(4).nfe == FlowMapSampler().at_nfe(4).steps == 4
    assert told == [(i, 4) for i in range(1, 5)]
    np.testing.assert_array_equal(found.path[-1], found.x)
    assert found.path.shape == (3, 16, 3)
    even = np.linspace(flow_time(VP(), 1.0), flow_time(VP(), 0.001), 3)
    np.testing.assert_allclose(flow_time(VP(), np.asarray(found.times, float)), even, atol=1e-6)
    np.testing.assert_array_equal(sample(FlowMapSampler(4, 1.0), FLOW_MAP, KEY, 16, (3,)).x, found.x)


def test_a_sample_depends_on_its_own_key_and_condition_alone():
    cond = jnp.arange(16.0)
    whole = sample(FlowMapSampler(3, 0.7), FLOW_MAP, KEY, 16, (3,), cond=cond).x
    parts = [sample(FlowMapSampler(3, 0.7), FLOW_MAP, KEY, 8, (3,), cond=cond[i : i + 8], first=i).x for i in (0, 8)]
    np.testing.assert_allclose(np.concatenate(parts), whole, rtol=1e-6, atol=1e-6)
    batches = sample(FlowMapSampler(3, 0.7), FLOW_MAP, KEY, 16, (3,), cond=cond, batch_size=8).x
    np.testing.assert_array_equal(batches, np.concatenate(parts))
    told = sample(FlowMapSampler(1), FLOW_MAP, KEY, 16, (3,), cond=cond).x
    plain = sample(FlowMapSampler(1), FLOW_MAP, KEY, 16, (3,)).x
    np.testing.assert_allclose(told - plain, np.tile(cond[:, None], 3), rtol=1e-5, atol=1e-5)


def test_without_noise_it_is_the_map_and_with_it_no_two_keys_agree():
    jumps = Times((1.0, 0.5, 0.001))
    found = sample(FlowMapSampler(2, grid=jumps), FLOW_MAP, KEY, 16, (3,), frames=3)
    there = FLOW_MAP.inner(found.path[0], 1.0, 0.5)
    np.testing.assert_allclose(found.path[1], there, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(found.x, FLOW_MAP.inner(there, 0.5, 0.001), rtol=1e-5, atol=1e-5)
    noisy = sample(FlowMapSampler(2, 1.0, jumps), FLOW_MAP, KEY, 16, (3,), frames=3).path
    z = (noisy[1] - VP().alpha(0.5) * FLOW_MAP.inner(noisy[0], 1.0, 0.001)) / VP().sigma(0.5)
    assert len(np.unique(np.asarray(z))) == z.size


def test_another_renoise_and_another_exact_map_compile_nothing_anew():
    assert jax.tree.leaves(FlowMapSampler(2, 0.25)) == [0.25]
    sample(FlowMapSampler(2, 0.25), FLOW_MAP, KEY, 16, (3,))
    before = _jump._cache_size()
    sample(FlowMapSampler(5, 1.0), Scaled(ExactFlowMap(DATA, VP(beta_max=15.0)), np.float32(0.5)), KEY, 16, (3,))
    assert _jump._cache_size() == before


def test_renoise_may_be_traced():
    def mean_square(renoise):
        return jnp.mean(sample(FlowMapSampler(2, renoise), FLOW_MAP, KEY, 16, (3,)).x ** 2)

    np.testing.assert_allclose(jax.jit(mean_square)(0.5), mean_square(0.5), rtol=1e-5)


@pytest.mark.parametrize(
    "given, told",
    [
        (lambda: FlowMapSampler(0), "steps must be at least 1"),
        (lambda: FlowMapSampler(2, 1.5), "renoise must be a number from 0 to 1"),
        (lambda: FlowMapSampler(2, np.nan), "renoise must be a number from 0 to 1"),
        (lambda: FlowMapSampler(2, grid=Times), r"write Times\(\)"),
        (lambda: sample(FlowMapSampler(3, grid=Times((1.0, 0.5))), FLOW_MAP, KEY, 2, (3,)), "3 steps need 4 times"),
        (lambda: sample(FlowMapSampler(2), ExactScore(normal(), VP()), KEY, 2, (2,)), "ExactScore is no flow map"),
        (lambda: sample(DDIM(4), FLOW_MAP, KEY, 2, (3,)), "Scaled is a flow map and no score: give its `score`"),
        (lambda: log_prob(FLOW_MAP, jnp.zeros((2, 3)), KEY), "is a flow map and no score"),
        (lambda: encode(FLOW_MAP, jnp.zeros((2, 3))), "is a flow map and no score"),
        (lambda: fit_table(FLOW_MAP, KEY, steps=2, shape=(3,)), "is a flow map and no score"),
    ],
)
def test_mistakes_are_told_in_one_line(given, told):
    with pytest.raises(ValueError, match=told) as error:
        given()
    assert "\n" not in str(error.value)


def test_its_law_is_of_a_flow_map_and_not_of_an_sde():
    with pytest.raises(ValueError, match="FlowMapSampler is no table: give the map or score that it runs on"):
        gaussian_law(FlowMapSampler(2), VP(), MEAN, COVARIANCE)
