"""Each method of `Observed` where it is exact, row by row, and without a new compilation."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sde_lib import VP, ExactScore, FunctionScore, GaussianMixture
from sde_lib.inverse import (
    Assimilation,
    Jensen,
    Linear,
    Mask,
    MomentMatching,
    Observed,
    Operator,
    Projection,
    Proximal,
    PseudoInverse,
)
from tests.oracles import ALL_SDE_IDS, ALL_SDES, random_mixture

METHODS = [MomentMatching(2), PseudoInverse(), Assimilation(), Jensen(), Proximal(), Projection()]
METHOD_IDS = [type(method).__name__ for method in METHODS]
MEAN = np.array([0.4, -0.3, 0.2])
FULL = np.array([[0.6, 0.3, -0.1], [0.3, 0.5, 0.2], [-0.1, 0.2, 0.8]])
SEEN = np.array([[1.0, 0.5, 0.0], [-0.2, 0.3, 1.5]])
SQUARE = np.vstack([SEEN, [[0.4, -1.0, 0.7]]])
FIRST = np.array([[1.0, 0.0, 0.0]])

# Priors and observations on which the method's approximation is none, at every noise level.
EXACT = {
    "moment matching": (MomentMatching(2), FULL, SEEN, [0.3, 0.7]),
    "pseudo-inverse": (PseudoInverse(), np.eye(3), SEEN, [0.3, 0.7]),
    "assimilation": (Assimilation(0.04), 1e10 * np.eye(3), 0.2 * np.eye(3), 0.4),  # V = sigma²/alpha²
    "proximal": (Proximal(1.0), 1e10 * np.eye(3), SQUARE, [0.3, 0.7, 0.5]),
    "projection": (Projection(), np.diag([0.5, 0.9, 0.2]), FIRST, 0.0),
    "jensen": (Jensen(), 1e-3 * FULL, SEEN, 30.0),  # A V A' is nothing beside R
}


@pytest.mark.parametrize("sde", ALL_SDES, ids=ALL_SDE_IDS)
@pytest.mark.parametrize("case", EXACT)
def test_a_method_is_the_exact_posterior_s_score_where_it_should_be(case, sde):
    method, covariance, matrix, noise = EXACT[case]
    data = GaussianMixture([1.0], MEAN[None], covariance[None])
    y = np.array([0.9, -1.4, 0.3])[: len(matrix)]
    posterior, _ = data.observe(Linear(matrix), y, noise)
    score_fn = Observed(ExactScore(data, sde), Linear(matrix.astype(np.float32)), noise, method)
    exact, x = ExactScore(posterior, sde), jax.random.normal(jax.random.key(0), (6, 3))
    rows = {"y": jnp.broadcast_to(jnp.asarray(y, jnp.float32), (6, len(y))), "cond": None}
    low, high = (float(sde.log_snr(t)) for t in (sde.t_max, sde.t_min))
    for level in np.linspace(max(low, -6.0), min(high, 6.0), 5):
        t = sde.time_of_log_snr(level)
        z = x * max(sde.sigma(t), sde.alpha(t))
        expected = exact(z, t)
        np.testing.assert_allclose(score_fn(z, t, rows), expected, atol=2e-5 * float(jnp.abs(expected).max()))


MIXTURE = random_mixture(0, 4)
MASK = np.array([True, False, True, True])


def by_entries(x, t):
    """A score that is no product of matrices, whose bits depend on how many rows there are."""
    return -x + 0.4 * jnp.tanh(2 * x) + 0.2 * jnp.roll(jnp.sin(x), 1, axis=1)


@pytest.mark.parametrize("method", METHODS, ids=METHOD_IDS)
def test_a_row_does_not_know_its_batch(method):
    score_fn = Observed(FunctionScore(by_entries, VP()), Mask(MASK), 0.3, method)
    x, y = (jax.random.normal(key, (64, 4)) for key in jax.random.split(jax.random.key(1)))
    call = jax.jit(lambda x, t, y: score_fn(x, t, {"y": y}))
    t = jnp.linspace(0.05, 0.9, 64)
    whole = call(x, t, y)
    for rows in (slice(5, 6), slice(3, 10)):
        np.testing.assert_array_equal(call(x[rows], t[rows], y[rows]), whole[rows])


def test_another_observation_mask_noise_strength_or_iterations_compile_nothing():
    traces = []

    @jax.jit
    def call(score_fn, x, y):
        traces.append(1)
        return score_fn(x, 0.3, {"y": y, "cond": None})

    x = jnp.ones((2, 4))
    for mask, noise, y in ((MASK, 0.3, 0.0), (~MASK, 0.1, 1.0), (MASK, 2.0, np.nan)):
        score_fn = Observed(ExactScore(MIXTURE, VP()), Mask(mask), noise, Assimilation(noise))
        call(score_fn, x, jnp.full((2, 4), y))
    assert len(traces) == 1
    for iterations in (1, 2, 9):
        call(Observed(ExactScore(MIXTURE, VP()), Mask(MASK), 0.3, MomentMatching(iterations)), x, x)
    assert len(traces) == 2


def test_what_is_not_seen_has_no_effect():
    score_fn = Observed(ExactScore(MIXTURE, VP()), Mask(MASK), 0.3)
    x, y = jnp.ones((1, 4)), jnp.asarray([[0.1, 5.0, 0.2, 0.3]])
    np.testing.assert_array_equal(score_fn(x, 0.4, {"y": y}), score_fn(x, 0.4, {"y": y.at[0, 1].set(jnp.nan)}))


def test_a_score_with_no_covariance_stops_the_iterations():
    """Of s = 3 x/sigma² the denoiser's Jacobian is positive; of s = -3 x/sigma² it is not, and nothing moves."""
    sde = VP()
    for sign, moved in ((3.0, True), (-3.0, False)):
        prior = FunctionScore(lambda x, t, sign=sign: sign * x / sde.sigma(t) ** 2, sde)
        score_fn = Observed(prior, Mask(np.ones(2)), 0.01, MomentMatching(8))
        x = jnp.asarray([[0.5, -1.0]])
        got = score_fn(x, 0.5, {"y": jnp.zeros((1, 2))})
        assert np.isfinite(got).all()
        assert bool(jnp.any(got != prior(x, 0.5))) is moved


def test_a_nonlinear_operator_is_linearised_about_the_denoiser():
    """Of y = 2 x + 1 that is the exact posterior: the affine part is in the residual."""
    data = GaussianMixture([1.0], MEAN[None], FULL[None])
    posterior, _ = data.observe(Linear(2 * np.eye(3)), np.array([0.5, 0.0, -0.5]), 0.4)
    score_fn = Observed(ExactScore(data, VP()), Operator(lambda x: 2 * x + 1), 0.4, MomentMatching(3))
    x, y = jnp.ones((1, 3)), jnp.asarray([[1.5, 1.0, 0.5]])
    np.testing.assert_allclose(score_fn(x, 0.3, {"y": y}), ExactScore(posterior, VP())(x, 0.3), atol=1e-5)


PRIOR = ExactScore(MIXTURE, VP())


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: Observed(PRIOR, Mask(MASK), -1.0), "negative"),
        (lambda: Observed(PRIOR, Mask(MASK), 0.0, Jensen()), "divides by the noise"),
        (lambda: Observed(PRIOR, Mask(MASK), np.array([0.1, 0.0, 1, 1]), Proximal()), "divides by the noise"),
        (lambda: Observed(PRIOR, lambda x: x, 0.1), "wrap a function"),
        (lambda: Observed(PRIOR, Mask(MASK), 0.1, Jensen), "must be an object"),
        (lambda: MomentMatching(0), "at least 1"),
        (lambda: MomentMatching(1.5), "whole number"),
        (lambda: Observed(PRIOR, Mask(MASK), 0.1)(jnp.ones((1, 4)), 0.3), "give the observation as cond="),
        (lambda: Observed(PRIOR, Mask(MASK), 0.1)(jnp.ones((1, 4)), 0.3, {"y": jnp.ones((1, 3))}), "y must be"),
        (lambda: Observed(PRIOR, Mask(MASK), 0.1)(jnp.ones((2, 4)), 0.3, {"y": jnp.ones((1, 4))}), "rows"),
        (lambda: Observed(PRIOR, Mask(MASK), np.ones(3))(jnp.ones((1, 4)), 0.3, {"y": jnp.ones((1, 4))}), "noise must"),
    ],
)
def test_a_misfit_is_told(make, said):
    with pytest.raises(ValueError, match=said):
        make()
