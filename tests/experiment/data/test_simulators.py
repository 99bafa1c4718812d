import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import ks_2samp, norm

from experiment.common.errors import UserError
from experiment.data.load import load_dataset
from experiment.data.simulators import SIMULATORS, glm_design, glm_stimulus, simulations
from tests.commands import ROOT

REFERENCE = ROOT.parent / "shared" / "data" / "sbi"
needs_reference = pytest.mark.skipif(not REFERENCE.is_dir(), reason="needs ../shared/data/sbi")
WITH_LIKELIHOOD = [name for name, simulator in SIMULATORS.items() if simulator.log_likelihood]
OBSERVED = {"gaussian_linear": np.linspace(-0.8, 0.9, 10), "gaussian_mixture": np.array([9.3, -4.0])}


def within(values, wanted, errors=4.5):
    """The rows' mean is as wanted, within so many standard errors."""
    error = values.std(axis=0) / np.sqrt(len(values))
    np.testing.assert_array_less(np.abs(values.mean(axis=0) - wanted), errors * error + 1e-6)


def check_stein(simulator, x, theta):
    """E[f grad log p + grad f] = 0 under p(theta | x), for an f that is zero at the prior's walls, and for theta f."""

    def log_posterior(theta):
        return simulator.log_likelihood(theta, jnp.asarray(x, jnp.float32)) + simulator.log_prior(theta)

    score = np.asarray(jax.jit(jax.vmap(jax.grad(log_posterior)))(jnp.asarray(theta, jnp.float32)), np.float64)
    f, slope = np.ones_like(theta), np.zeros_like(theta)
    if simulator.support is not None:
        f, slope = simulator.support[1] ** 2 - theta**2, -2 * theta
    within(f * score + slope, 0.0)
    within(f * theta * score + slope * theta + f, 0.0)


@pytest.mark.parametrize("name", WITH_LIKELIHOOD)
def test_what_is_drawn_has_the_likelihood(name):
    # Bartlett's identities: the likelihood's score has mean zero, and its covariance is minus the mean Hessian.
    simulator, n = SIMULATORS[name], 100_000
    theta = simulator.prior(jax.random.key(5), 1)
    x = simulator.simulate(jax.random.key(3), jnp.tile(theta, (n, 1)))
    of_theta = jax.vmap(lambda x: (jax.grad(simulator.log_likelihood)(theta[0], x),))
    score = np.asarray(jax.jit(of_theta)(x)[0], np.float64)
    hessian = jax.jit(jax.vmap(lambda x: jnp.diagonal(jax.hessian(simulator.log_likelihood)(theta[0], x))))(x)
    within(score, 0.0)
    within(score**2 + np.asarray(hessian, np.float64), 0.0)


def test_two_moons_are_what_they_are_called():
    simulator, n = SIMULATORS["two_moons"], 20_000
    theta = jnp.array([[-0.4, 0.9]])
    x = np.asarray(simulator.simulate(jax.random.key(0), jnp.tile(theta, (n, 1))))
    noise = x - np.array([0.25 - 0.5 / np.sqrt(2), 1.3 / np.sqrt(2)])
    radius, angle = np.hypot(*noise.T), np.arctan2(noise[:, 1], noise[:, 0])
    within(radius, 0.1)
    within((radius - 0.1) ** 2, 0.01**2)
    assert np.abs(angle).max() < np.pi / 2 + 1e-3
    within(angle**2, np.pi**2 / 12)


def test_posterior_of_two_moons():
    # Whatever is drawn explains x by noise of the simulator's law, and either sign of the sum is as likely.
    simulator, x = SIMULATORS["two_moons"], jnp.array([-0.4, 0.2])
    theta = np.asarray(simulator.posterior(jax.random.key(1), x, 20_000), np.float64)
    total, difference = theta.sum(axis=1), theta[:, 1] - theta[:, 0]
    noise = np.asarray(x) - np.stack([0.25 - np.abs(total) / np.sqrt(2), difference / np.sqrt(2)], axis=1)
    radius, angle = np.hypot(*noise.T), np.arctan2(noise[:, 1], noise[:, 0])
    within(radius, 0.1)
    within((radius - 0.1) ** 2, 0.01**2)
    within(angle**2, np.pi**2 / 12)
    within(total > 0, 0.5)
    within(angle * np.sign(total), 0.0)
    cut = np.asarray(simulator.posterior(jax.random.key(1), jnp.array([-0.8, 0.3]), 2000))
    assert np.abs(cut).max() <= 1 < np.abs(cut).max() + 0.05


def test_posterior_of_two_moons_by_rejection():
    # Proposals of the prior, kept in proportion to the likelihood: of polar coordinates a radius of N(0.1, 0.01²)
    # and uniform angles on the right, over the radius.
    x, rng = np.array([-0.3, 0.1]), np.random.default_rng(4)
    theta = rng.uniform(-1, 1, (1_500_000, 2))
    total, difference = theta.sum(axis=1), theta[:, 1] - theta[:, 0]
    noise = x + np.stack([np.abs(total), -difference], axis=1) / np.sqrt(2) - np.array([0.25, 0.0])
    radius = np.hypot(*noise.T)
    density = np.exp(-0.5 * ((radius - 0.1) / 0.01) ** 2) / radius * (noise[:, 0] > 0)
    most = 1 / 0.09  # exp(-(r - 0.1)²/0.0002)/r has its maximum 10.05 at 0.099
    kept = theta[rng.uniform(0, most, len(theta)) < density]
    ours = np.asarray(SIMULATORS["two_moons"].posterior(jax.random.key(5), jnp.asarray(x), len(kept)), np.float64)
    assert len(kept) > 2000
    for a, b in ((kept, ours), (kept @ [[1, 1], [1, -1]], ours @ [[1, 1], [1, -1]])):
        assert min(ks_2samp(a[:, j], b[:, j]).pvalue for j in range(2)) > 1e-3


@pytest.mark.parametrize("name", OBSERVED)
def test_posteriors_that_are_exact(name):
    simulator, x = SIMULATORS[name], OBSERVED[name]
    theta = np.asarray(simulator.posterior(jax.random.key(2), jnp.asarray(x, jnp.float32), 20_000), np.float64)
    check_stein(simulator, x, theta)
    if simulator.support is not None:
        assert np.all((theta >= simulator.support[0]) & (theta <= simulator.support[1]))


def test_density_of_gaussian_linear_is_normalised():
    # Bayes: log p(theta | x) + log p(x) is log p(x | theta) + log p(theta), with p(x) = N(0, 0.2 I).
    simulator = SIMULATORS["gaussian_linear"]
    theta, x = (np.asarray(v, np.float64) for v in simulations("gaussian_linear", 5, seed=8))
    found = simulator.log_posterior(jnp.asarray(theta, jnp.float32), jnp.asarray(x[0], jnp.float32))
    likelihood, prior = norm.logpdf(x[0], theta, 0.1**0.5).sum(axis=1), norm.logpdf(theta, 0, 0.1**0.5).sum(axis=1)
    np.testing.assert_allclose(found, likelihood + prior - norm.logpdf(x[0], 0, 0.2**0.5).sum(), rtol=1e-5, atol=1e-4)


def test_an_x_that_no_parameter_gives_is_refused():
    with pytest.raises(UserError, match="give an x that the simulator can produce"):
        SIMULATORS["two_moons"].posterior(jax.random.key(0), jnp.array([5.0, 0.0]), 2)


@needs_reference
@pytest.mark.parametrize("name", SIMULATORS)
def test_the_benchmark_s_own_samples(name):
    simulator = SIMULATORS[name]
    with np.load(REFERENCE / f"{name}.npz") as file:
        x, theta = file["observation_2"], file["posterior_2"].astype(np.float64)
        if name == "bernoulli_glm":
            np.testing.assert_allclose(glm_stimulus(), file["stimulus"], atol=1e-6)
            np.testing.assert_allclose(glm_design(), file["design_matrix"], atol=1e-6)
    if simulator.log_likelihood:
        check_stein(simulator, x, theta)
        return
    ours = np.asarray(simulator.posterior(jax.random.key(0), jnp.asarray(x), 10_000), np.float64)
    for moment in (theta - ours, theta**2 - ours**2, (theta - ours)[:, :1] * (theta + ours)[:, 1:]):
        within(moment, 0.0)


def test_bernoulli_glm_counts_spikes_and_correlates_them():
    _, x = simulations("bernoulli_glm", 50)
    assert np.all(x[:, 0] == np.round(x[:, 0])) and x[:, 0].max() <= 100
    # The benchmark's way: y padded by eight zeros on both ends, its correlation with the stimulus, the last nine lags.
    spikes = (np.random.default_rng(0).random(100) < 0.4).astype(float)
    whole = np.correlate(np.pad(spikes, 8), glm_stimulus())
    np.testing.assert_allclose(spikes @ glm_design(), [spikes.sum(), *whole[-9:]], atol=1e-9)


def test_simulations_as_a_data_set():
    data = load_dataset("two_moons", simulations=200)
    assert data.train.x.shape == (180, 2) and data.train.vectors.shape == (180, 2)
    assert np.abs(data.train.x).max() <= 1  # the parameters, not the toy of this name
    assert np.abs(load_dataset("two_moons").train.x).max() > 1
    theta, x = simulations("two_moons", 200)
    pairs = {tuple(row) for row in np.concatenate([theta, x], axis=1)}
    kept = [np.concatenate([split.x, split.vectors], axis=1) for split in (data.train, data.test)]
    assert {tuple(row) for row in np.concatenate(kept)} == pairs
    np.testing.assert_allclose(data.cond_units.to_model(data.train.vectors).std(axis=0), 1.0, atol=1e-5)


def test_mistakes():
    with pytest.raises(UserError, match="slcp is a simulator: set config"):
        load_dataset("slcp")
    with pytest.raises(UserError, match="it must be one of: two_moons, gaussian_linear"):
        load_dataset("digits", simulations=100)
    with pytest.raises(UserError, match="set one of them"):
        load_dataset("slcp", "some.npz", simulations=100)
    with pytest.raises(UserError, match="at least 2"):
        load_dataset("slcp", simulations=1)
