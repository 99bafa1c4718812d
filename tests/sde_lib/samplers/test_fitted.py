"""Fitted tables: from latents that the fit has not seen, nearer to the fine solution than what it may start from."""

from dataclasses import replace
from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sde_lib import VE, VP, ExactScore, FunctionScore, GaussianMixture
from sde_lib.samplers import (
    EulerMaruyama,
    FittedSampler,
    FlowTime,
    UniformT,
    UniPC,
    ends_of,
    fit_table,
    gaussian_kl,
    sample,
)
from sde_lib.samplers.fitted import HELD_OUT, _free, _Method, _slopes, starts
from tests.oracles import normal, random_mixture

FINE = UniPC(steps=200, grid=FlowTime())
LATENTS = 1024


@cache
def fitted(name: str, steps: int) -> tuple[ExactScore, FittedSampler]:
    sde = {"VP": VP(), "VE": VE(sigma_max=20.0)}[name]
    score_fn = ExactScore(random_mixture(3, 2, components=4), sde)
    return score_fn, fit_table(score_fn, jax.random.key(1), steps=steps, shape=(2,), latents=LATENTS)


def error(sampler, score_fn, key: int = 7, n: int = LATENTS, first: int = 0) -> float:
    """The root mean square distance from the fine solution."""
    drawn, fine = (sample(s, score_fn, jax.random.key(key), n, (2,), first=first).x for s in (sampler, FINE))
    return float(jnp.sqrt(jnp.mean(jnp.sum((drawn - fine) ** 2, axis=1))))


@pytest.mark.parametrize("name, steps, ratio", [("VP", 4, 0.25), ("VE", 8, 0.5)])
def test_on_other_latents_the_fit_is_far_nearer_than_the_best_method(name, steps, ratio):
    score_fn, sampler = fitted(name, steps)
    best = min(error(start, score_fn) for start in starts(steps))
    assert error(sampler, score_fn) < ratio * best
    drawn = sample(sampler, score_fn, jax.random.key(2), 16, (2,))
    assert drawn.nfe == steps


def test_its_errors_are_those_of_latents_that_were_held_out():
    score_fn, sampler = fitted("VP", 4)
    seen = round((1 - HELD_OUT) * LATENTS)
    assert sampler.latents == seen
    for s, told in ((sampler, sampler.error), (starts(4)[0], sampler.start_error)):
        assert told == pytest.approx(error(s, score_fn, key=1, n=LATENTS - seen, first=seen), rel=1e-3)
    assert sampler.start == repr(starts(4)[0])


def test_the_derivatives_by_rows_are_those_of_the_whole_table():
    """Along all numbers at once, where the fit leaves out the calls that a number cannot move."""
    score_fn, steps = fitted("VP", 4)[0], 4
    method = _Method(replace(starts(steps)[0], grid=UniformT()), score_fn.sde)
    free, x = _free(starts(steps)[0], score_fn.sde), jnp.linspace(-1, 1, 6).reshape(3, 2)
    table, tangents = method.table(free), method.slopes(free)
    ends, slopes = _slopes(score_fn, table, tangents, x, None, method.model)
    along = jnp.asarray(np.random.default_rng(0).normal(size=len(free)), jnp.float32)
    expected = jax.jvp(
        lambda table: ends_of(table, score_fn, x, None, method.model),
        (table,),
        (jax.tree.map(lambda slope: slope @ along, tangents),),
    )
    np.testing.assert_allclose(ends, expected[0], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(jnp.einsum("pnd,p->nd", slopes, along), expected[1], rtol=1e-3, atol=1e-3)


def test_on_a_gaussian_the_kl_falls_too():
    """By the exact recursion, through the table's own numbers."""
    mean, covariance = [0.3, -0.5], [[0.5, 0.2], [0.2, 0.3]]
    data = GaussianMixture([0.25] * 4, [mean] * 4, [covariance] * 4)  # as many as the mixture: one compilation
    sampler = fit_table(ExactScore(data, VP()), jax.random.key(0), steps=4, shape=(2,), latents=LATENTS)
    least = min(gaussian_kl(start, VP(), mean, covariance) for start in starts(4))
    assert gaussian_kl(sampler, VP(), mean, covariance) < 0.1 * least


def test_one_call_is_enough_where_the_flow_is_linear():
    data = normal(0.5)  # x_0 is a multiple of x_T
    sampler = fit_table(
        ExactScore(data, VP()), jax.random.key(0), steps=1, shape=(2,), latents=64, fine=UniPC(steps=60)
    )
    assert sampler.error < 1e-3 < 0.1 < sampler.start_error
    x = sample(sampler, ExactScore(data, VP()), jax.random.key(1), 4096, (2,))
    assert x.nfe == 1 and np.std(np.asarray(x.x)) == pytest.approx(0.5, rel=0.03)


def test_the_batch_changes_nothing_and_the_condition_is_handed_by_rows():
    """The score of two narrow peaks around a place that each latent is told."""
    sde = VP()

    def told(x, t, cond):
        alpha, variance = sde.alpha(t), sde.alpha(t) ** 2 * 0.01 + sde.sigma(t) ** 2
        return (alpha * jnp.tanh(alpha * (x - alpha * cond) / variance) - (x - alpha * cond)) / variance

    place = jnp.linspace(-1, 1, 64)[:, None]
    fit = partial(fit_table, FunctionScore(told, sde), jax.random.key(1), steps=2, shape=(2,), latents=64)
    fit = partial(fit, iterations=5, fine=UniPC(steps=60))
    one, parts, other = fit(cond=place), fit(cond=place, batch_size=16), fit(cond=place[::-1])
    np.testing.assert_allclose(one.table.b, parts.table.b, rtol=2e-3, atol=2e-3)
    assert one.error < 0.9 * one.start_error
    assert not np.allclose(other.table.b, one.table.b, atol=1e-3)


def test_what_it_cannot_do_it_refuses():
    score_fn, sampler = fitted("VP", 4)
    for wrong, message in (
        (lambda: replace(sampler, steps=5), "fitted for 4 steps, not 5"),
        (lambda: sampler.at_nfe(8), "fitted for 4 steps, not 8"),
        (lambda: error(replace(sampler, grid=FlowTime()), score_fn), "leave its grid"),
        (lambda: error(sampler, replace(score_fn, sde=VP(beta_max=10.0))), "it was fitted on VP"),
        (lambda: fit_table(score_fn, jax.random.key(0), steps=0, shape=(2,)), "steps must be at least 1"),
        (lambda: fit_table(score_fn, jax.random.key(0), steps=2, shape=(2,), latents=3), "latents must be at least 8"),
        (lambda: fit_table(score_fn, jax.random.key(0), steps=2, shape=(2,), fine=EulerMaruyama()), "draws noise"),
    ):
        with pytest.raises(ValueError, match=message):
            wrong()
    nowhere = FunctionScore(lambda x, t: x * jnp.nan, VP())
    with pytest.raises(ValueError, match="not finite"):
        fit_table(nowhere, jax.random.key(0), steps=2, shape=(2,), latents=64)
