import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sde_lib import (
    VE,
    VP,
    CosineVP,
    DiagonalGaussian,
    Exact,
    ExactScore,
    GaussianMixture,
    Hutchinson,
    ProbabilityFlow,
    RectifiedFlow,
    SubVP,
    bits_per_dim,
    encode,
    log_prob,
)
from sde_lib.bounds import vlb
from sde_lib.dequantization import TruncatedNormalDequantization, UniformDequantization
from tests.oracles import ALL_SDE_IDS, ALL_SDES, SDE_IDS, SDES, ToldScore, calls_of, random_mixture

each_sde = pytest.mark.parametrize("sde", SDES, ids=SDE_IDS)


def setting(sde, d, n=64):
    data = random_mixture(d, d)
    at_t_min = data.at(sde, sde.t_min)
    x = at_t_min.sample(jax.random.key(1), n)
    return ExactScore(data, sde), x, at_t_min.log_prob(x), data.at(sde, sde.t_max)


@pytest.mark.parametrize("d", [2, 50])
@each_sde
def test_the_ode_s_log_density_is_the_mixture_s(sde, d):
    score_fn, x, exact, prior = setting(sde, d)
    errors = []
    for tolerance in (1e-2, 1e-3, 1e-5):
        result = log_prob(score_fn, x, divergence=Exact(), prior=prior, rtol=tolerance, atol=tolerance)
        errors.append(float(jnp.abs(result.nats - exact).max()))
    assert errors[2] < 1e-3
    assert errors[2] < errors[1] / 5 < errors[0] / 5, errors


@each_sde
def test_the_default_prior_costs_exactly_its_mismatch(sde):
    score_fn, x, exact, prior = setting(sde, 2)
    result = log_prob(score_fn, x)
    mismatch = sde.prior((2,)).log_prob(result.latent) - prior.log_prob(result.latent)
    np.testing.assert_allclose(result.nats - exact, mismatch, atol=1e-3)


@pytest.mark.parametrize("per_sample", [False, True])
def test_the_score_is_told_its_condition(per_sample):
    sde, cond = VP(), jnp.array([[3.0, 0.0], [-1.0, 2.0], [0.5, 0.5]])
    alpha = sde.alpha(sde.t_min)
    std = float(np.sqrt((0.5 * alpha) ** 2 + sde.sigma(sde.t_min) ** 2))
    x = alpha * cond + jnp.array([[0.1, -0.4], [0.3, 0.2], [-0.6, 0.0]])
    exact = -jnp.sum((x - alpha * cond) ** 2, axis=1) / (2 * std**2) - 2 * np.log(std * np.sqrt(2 * np.pi))
    result = log_prob(ToldScore(sde), x, cond=cond, per_sample=per_sample)
    left = (
        jnp.sum((result.latent - sde.alpha(1.0) * cond) ** 2 - result.latent**2, axis=1) / 2
    )  # the prior knows no cond
    np.testing.assert_allclose(result.nats - left, exact, atol=2e-3)


@pytest.mark.parametrize("d", [2, 50])
@each_sde
def test_hutchinson_is_unbiased_within_its_own_standard_error(sde, d):
    score_fn, x, exact, prior = setting(sde, d)
    result = log_prob(score_fn, x, jax.random.key(2), divergence=Hutchinson(probes=32), prior=prior)
    error = jnp.std(result.probe_nats, axis=1, ddof=1) / np.sqrt(32)
    z = (result.nats - exact) / jnp.hypot(error, 1e-3)
    assert jnp.abs(jnp.mean(z)) < 4 / np.sqrt(len(x))
    assert jnp.abs(z).max() < 5.5  # 64 points of a t distribution with 31 degrees of freedom
    assert 0.5 < jnp.std(z) < 1.5
    np.testing.assert_allclose(result.nats, result.probe_nats.mean(1), rtol=1e-6)


def test_hutchinson_s_variance_is_the_formula_s():
    # On a linear field with matrix A: variance 2 (|A|_F² - sum a_ii²), for the symmetric part of A.
    matrix = jax.random.normal(jax.random.key(0), (6, 6))
    symmetric = 0.5 * (matrix + matrix.T)
    x = jnp.zeros((4000, 6))
    probes = Hutchinson(probes=10).probes(jax.random.split(jax.random.key(1), 4000), x)
    value, estimates = Hutchinson(probes=10)(lambda x: x @ matrix.T + 1.0, x, probes)
    np.testing.assert_allclose(value, 1.0)
    variance = 2 * (jnp.sum(symmetric**2) - jnp.sum(jnp.diag(symmetric) ** 2))
    np.testing.assert_allclose(jnp.var(estimates), variance, rtol=0.05)
    np.testing.assert_allclose(jnp.mean(estimates), jnp.trace(matrix), atol=5 * float(jnp.sqrt(variance / 40_000)))


@pytest.mark.parametrize("chunk", [None, 1, 4])
def test_exact_divergence_of_a_nonlinear_field_on_images(chunk):
    def field(x):  # each sample's own: div = sum_ij cos(x_ij) + 2 x_00
        return jnp.sin(x) + jnp.zeros_like(x).at[:, 0, 0].set(x[:, 0, 0] ** 2 + x[:, 1, 1])

    x = jax.random.normal(jax.random.key(0), (5, 3, 2))
    value, divergence = Exact(chunk=chunk)(field, x, Exact().probes(None, x))
    np.testing.assert_allclose(value, field(x))
    np.testing.assert_allclose(divergence[:, 0], jnp.cos(x).sum((1, 2)) + 2 * x[:, 0, 0], rtol=1e-5)


@pytest.mark.parametrize("per_sample", [False, True])
def test_a_row_does_not_depend_on_its_batch(per_sample):
    score_fn, x, _, prior = setting(VP(), 2)
    settings = {"divergence": Hutchinson(probes=2), "prior": prior, "per_sample": per_sample}
    whole = log_prob(score_fn, x, jax.random.key(0), **settings)
    part = log_prob(score_fn, x[40:], jax.random.key(0), first=40, **settings)
    np.testing.assert_allclose(part.probe_nats, whole.probe_nats[40:], atol=1e-4 if per_sample else 2e-3)


def test_with_steps_of_its_own_a_row_does_not_feel_a_hard_one():
    score_fn, x, _, _ = setting(VP(), 2)
    x = jnp.concatenate([x[:3], jnp.full((1, 2), 8.0)])  # the last row, far out, needs more steps
    loose = {"rtol": 1e-2, "atol": 1e-2}
    alone = log_prob(score_fn, x[:1], per_sample=True, **loose).nats
    np.testing.assert_allclose(log_prob(score_fn, x, per_sample=True, **loose).nats[:1], alone, atol=1e-4)
    assert np.abs(log_prob(score_fn, x, **loose).nats[:1] - alone).max() > 0.1


def test_nfe_is_the_number_of_calls():
    calls, nfe = calls_of(
        lambda score_fn: log_prob(score_fn, jnp.ones((2, 2)), jax.random.key(0), divergence=Hutchinson())
    )
    assert nfe == calls > 0


def test_bits_per_dim_of_uniform_data_is_the_log_of_its_levels():
    # Density 1/2 on [-1, 1] in each of 5 dimensions, cut into 17 or 256 levels.
    nats = -5 * np.log(2.0)
    assert abs(bits_per_dim(nats, 5, 2 / 256) - 8) < 1e-12
    assert abs(bits_per_dim(nats, 5, 2 / 17) - np.log2(17)) < 1e-12


def test_hutchinson_without_a_key_is_refused():
    score_fn, x, _, _ = setting(VP(), 2, n=2)
    with pytest.raises(ValueError, match="give it a key"):
        log_prob(score_fn, x, divergence=Hutchinson(probes=2))
    with pytest.raises(ValueError, match="probes"):
        Hutchinson(probes=0)


@pytest.mark.parametrize(("sde", "d"), list(zip(ALL_SDES, (50, 2, 2, 50, 2), strict=True)), ids=ALL_SDE_IDS)
def test_at_a_tolerance_of_1e_6_the_log_density_is_right_to_1e_4(sde, d):
    with jax.enable_x64(True):
        score_fn, x, exact, prior = setting(sde, d, n=8)
        result = log_prob(score_fn, x.astype(jnp.float64), prior=prior, rtol=1e-6, atol=1e-6)
        assert float(jnp.abs(result.nats - exact).max()) < 1e-4


def test_five_sdes_give_the_same_density_of_the_data():
    # log p(x) = log p_{t_min}(alpha x) + d log alpha, once sigma at t_min is too small to matter.
    data = random_mixture(1, 2)
    x = data.sample(jax.random.key(0), 64)
    for sde in (VP(t_min=1e-5), SubVP(t_min=1e-3), VE(sigma_min=1e-3), CosineVP(t_min=1e-4), RectifiedFlow(t_min=1e-3)):
        alpha = sde.alpha(sde.t_min)
        result = log_prob(ExactScore(data, sde), alpha * x, prior=data.at(sde, sde.t_max))
        np.testing.assert_allclose(result.nats + 2 * np.log(alpha), data.log_prob(x), atol=1e-3)


def test_a_solve_in_t_agrees_with_one_in_log_snr():
    score_fn, x, exact, prior = setting(VP(), 2)
    in_t, in_log_snr = (log_prob(score_fn, x, prior=prior, log_snr=flag) for flag in (False, True))
    np.testing.assert_allclose(in_t.nats, exact, atol=1e-3)
    np.testing.assert_allclose(in_log_snr.nats, exact, atol=1e-3)
    assert in_t.nfe != in_log_snr.nfe


def spread(result):
    return float(jnp.mean(jnp.std(result.probe_nats, axis=1, ddof=1)))


def test_the_known_part_of_the_jacobian_makes_normal_probes_better():
    score_fn, x, exact, prior = setting(VP(), 12, n=32)
    found = {}
    for name, data_std in (("all", None), ("residual", 0.8)):
        divergence = Hutchinson(probes=16, law=jax.random.normal)
        result = log_prob(
            score_fn, x, jax.random.key(2), divergence=divergence, prior=prior, data_std=data_std, rtol=1e-4, atol=1e-4
        )
        error = jnp.std(result.probe_nats, axis=1, ddof=1) / np.sqrt(16)
        z = (result.nats - exact) / jnp.hypot(error, 1e-2)
        assert jnp.abs(jnp.mean(z)) < 4 / np.sqrt(len(x)) and jnp.abs(z).max() < 5
        found[name] = spread(result)
    rademacher = log_prob(
        score_fn, x, jax.random.key(2), divergence=Hutchinson(probes=16), prior=prior, rtol=1e-4, atol=1e-4
    )
    assert found["residual"] < found["all"] / 3
    assert spread(rademacher) < found["all"] / 3  # and exact on that part without knowing it


def test_a_prior_from_the_data_s_moments_is_exact_on_gaussian_data():
    mean, std = jnp.array([0.5, -1.0]), jnp.array([0.3, 0.7])
    data, moments = GaussianMixture(np.ones(1), mean[None], jnp.diag(std**2)[None]), DiagonalGaussian(mean, std)
    sde, x = VP(beta_max=6.0), jax.random.normal(jax.random.key(0), (5, 2))
    for t in (0.2, 1.0):
        exact = data.at(sde, t)
        np.testing.assert_allclose(moments.at(sde, t).log_prob(x), exact.log_prob(x), rtol=1e-5)
        np.testing.assert_allclose(moments.at(sde, t).score(x), exact.score(x), rtol=1e-5)
    drawn = moments.sample(jax.random.key(1), 100_000)
    np.testing.assert_allclose(drawn.mean(0), mean, atol=0.01)
    np.testing.assert_allclose(drawn.std(0), std, rtol=0.01)
    prior = sde.prior((2,))
    of_draws = moments.log_prob(drawn) - prior.log_prob(drawn)
    assert abs(float(moments.kl(prior)) - float(of_draws.mean())) < 4 * float(of_draws.std()) / 100_000**0.5


@pytest.mark.parametrize(
    "call, word",
    [
        (lambda score_fn, x: log_prob(score_fn, x, data_std=0.0), "data_std"),
        (lambda score_fn, x: Exact(chunk=0), "chunk"),
        (lambda score_fn, x: vlb(score_fn, x, jax.random.key(0), times=0), "times"),
        (lambda score_fn, x: UniformDequantization(0.0), "bin_width"),
        (lambda score_fn, x: TruncatedNormalDequantization(-1.0), "bin_width"),
    ],
)
def test_bad_settings_are_refused(call, word):
    score_fn, x, _, _ = setting(VP(), 2, n=2)
    with pytest.raises(ValueError, match=word):
        call(score_fn, x)


@pytest.mark.parametrize("per_sample", [False, True])
def test_a_row_that_is_not_finite_is_named_and_leaves_the_others_alone(per_sample):
    score_fn, x, _, _ = setting(VP(), 2, n=6)
    settings = {"per_sample": per_sample, "rtol": 1e-3, "atol": 1e-3}
    whole = log_prob(score_fn, x.at[jnp.array([1, 4])].set(0.0), **settings)
    with pytest.warns(UserWarning, match="rows 1, 4 of x is not finite"):
        found = log_prob(score_fn, x.at[1, 0].set(jnp.nan).at[4].set(jnp.inf), **settings)
    others = np.array([0, 2, 3, 5])
    np.testing.assert_allclose(found.nats[others], whole.nats[others], atol=1e-5)
    np.testing.assert_allclose(found.latent[others], whole.latent[others], atol=1e-5)
    assert np.isnan(found.nats[np.array([1, 4])]).all() and np.isnan(found.latent[np.array([1, 4])]).all()
    assert found.nfe == whole.nfe


def test_a_row_whose_condition_is_not_finite_is_named():
    cond = jnp.zeros((4, 2)).at[2].set(jnp.nan)
    with pytest.raises(RuntimeError, match="the score is not a finite number in row 2: leave them out"):
        log_prob(ToldScore(VP()), jnp.ones((4, 2)), cond=cond, max_steps=64)


def test_the_derivative_in_a_constant_is_that_of_the_exact_density():
    # Of the mixture at t_min: the latent and the prior move with beta_max too, and cancel. By the inverse of log SNR.
    data, x = random_mixture(2, 2), jnp.array([[0.3, -0.2], [1.0, 0.5]])

    def nats(beta_max):
        sde = VP(beta_max=beta_max)
        return log_prob(ExactScore(data, sde), x, prior=data.at(sde, sde.t_max), rtol=1e-4, atol=1e-4).nats.sum()

    def exact(beta_max):
        sde = VP(beta_max=beta_max)
        return data.at(sde, sde.t_min).log_prob(x).sum()

    np.testing.assert_allclose(*(jax.jit(jax.grad(of))(20.0) for of in (nats, exact)), atol=2e-3)


def test_the_latent_has_forward_derivatives_too():
    # x at t_min is carried along a Gaussian's flow, a linear map: its derivative is the ratio of the widths.
    sde, flow = VP(), ProbabilityFlow(rtol=1e-4, atol=1e-4, max_steps=64)
    score_fn, x = ExactScore(GaussianMixture([1.0], np.zeros((1, 1)), np.full((1, 1, 1), 0.25)), sde), jnp.ones((1, 1))
    start, end = (np.sqrt(0.25 * sde.alpha(t) ** 2 + sde.sigma(t) ** 2) for t in (sde.t_min, sde.t_max))
    _, pushed = jax.jvp(lambda x: encode(score_fn, x, flow=flow).x, (x,), (2 * x,))
    np.testing.assert_allclose(pushed, 2 * end / start, rtol=1e-2)
