"""The loss against integrals in closed form, each weighting against its paper's own variables, each law of times
against its CDF.
"""

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from experiment.build import objective
from experiment.config import whole_config
from sde_lib import VE, VP, RectifiedFlow
from sde_lib.losses import (
    EDMWeighting,
    MinSNR,
    SoftMinSNR,
    Uncertainty,
    Uncorrected,
    denoising_score_matching,
    flow_matching_weighting,
    likelihood_weighting,
    sigma2_weighting,
    v_weighting,
)
from sde_lib.score import EDMPreconditioning, EpsilonPrediction, NetworkScore, VelocityPrediction, VPrediction
from sde_lib.times import (
    LearnedLogSNR,
    LogitNormal,
    LogNormal,
    LossSecondMoment,
    stratified_uniform,
    uniform_log_snr,
    uniform_t,
)
from tests.oracles import ALL_SDE_IDS, ALL_SDES, SDE_IDS, SDES, ToldScore

N, DATA_STD, MODEL_STD = 10_000, 0.5, 0.8
each_sde = pytest.mark.parametrize("sde", SDES, ids=SDE_IDS)
each_index = pytest.mark.parametrize(
    "i", range(len(ALL_SDES)), ids=ALL_SDE_IDS
)  # of ALL_SDES: results are cached by it
SIZES = np.random.default_rng(3).lognormal(0, 1, 8).astype(np.float32)


# The tables of configs, at their defaults; of the laws that learn, one that has seen losses of very different sizes.
WEIGHTINGS = {name: make(whole_config({})) for name, make in objective.WEIGHTINGS.items()}
LAWS = {name: make(whole_config({})) for name, make in objective.TIMES.items()} | {
    "loss_second_moment": LossSecondMoment(jnp.asarray(SIZES**2), jnp.ones(8, jnp.int32), uniform_log_snr, history=1),
    "learned_log_snr": LearnedLogSNR(
        *(jnp.asarray(x, jnp.float32) for x in (0.3, np.log(SIZES), 2 + SIZES / 4, np.arange(8) / 7))
    ),
}
SMOOTH = [name for name in LAWS if name != "loss_second_moment"]  # whose density has steps: test_times.py has its law
# Laws with tails so thin that an average of draws misses what lies in them, unless the weighting falls as fast: see
# `LogitNormal`.
THIN = {"log_normal": "edm_log_normal", "logit_normal": "flow_matching_logit_normal"}
SAMPLED = [(weighting, times) for times in LAWS for weighting in WEIGHTINGS if THIN.get(times, weighting) == weighting]


def data(*shape):
    return (DATA_STD * np.random.default_rng(0).normal(size=shape)).astype(np.float32)


def zeros(params, x, c_noise, cond, key):
    return jnp.zeros_like(x)


def expected_error(sde, t):
    """E (sigma s + eps)² per entry, for `data`, N(0, DATA_STD²), and the score -x/v of N(0, MODEL_STD²), v = alpha²
    MODEL_STD² + sigma².
    """
    alpha, sigma = sde.alpha(t), sde.sigma(t)
    v = alpha**2 * MODEL_STD**2 + sigma**2
    return (alpha * DATA_STD * sigma / v) ** 2 + (1 - sigma**2 / v) ** 2


Z = np.linspace(-4, 4, N)
# Of the u at which laws are drawn: N stratified ones, those whose normal quantiles are Z, the first and the last below
# 1.
STRATA, NODES, ENDS = slice(0, N), slice(N, 2 * N), slice(2 * N, 2 * N + 2)


@jax.jit
def weights(sde, t):
    """Every weighting at t, (weightings, n)."""
    return jnp.stack([weighting(sde, t) for weighting in WEIGHTINGS.values()])


def integrals(sde, start, end):
    """1/(t_max - t_min) ∫ w(t) E error(t) dt from start to end, of every weighting, by quadrature on a grid even in log
    SNR.
    """
    t = sde.time_of_log_snr(np.linspace(sde.log_snr(start), sde.log_snr(end), N))
    values = np.asarray(weights(sde, jnp.asarray(t)), float) * expected_error(sde, t)[None]
    return dict(zip(WEIGHTINGS, np.trapezoid(values, t) / (sde.t_max - sde.t_min), strict=True))


@jax.jit
def draw(sde, u):
    return {name: law(sde, u) for name, law in LAWS.items()}


@cache
def drawn(i):
    """(times, densities) of every law at the u of STRATA, NODES and ENDS: one compilation for all."""
    u = [stratified_uniform(jax.random.key(2), N), stats.norm.cdf(Z), [0.0, 1 - 2**-24]]
    return jax.device_get(draw(ALL_SDES[i], jnp.concatenate([jnp.asarray(part, jnp.float32) for part in u])))


@jax.jit
def losses(score_fn, x0, key, t, density, weights):
    """The loss of each example at these times, under every weighting: (weightings, n)."""

    def loss(weight):
        return denoising_score_matching(score_fn, x0, key, weighting=lambda *_: weight, times=lambda *_: (t, density))

    return jax.vmap(loss)(weights)


loss_of = jax.jit(denoising_score_matching, static_argnames=("weighting", "times"))


@cache
def sampled(law, i):
    score_fn = NetworkScore(zeros, {}, ALL_SDES[i], EDMPreconditioning(MODEL_STD))
    t, density = (x[STRATA] for x in drawn(i)[law])
    loss = losses(score_fn, data(N, 2), jax.random.key(1), t, density, weights(ALL_SDES[i], t))
    return dict(zip(WEIGHTINGS, np.asarray(loss, float), strict=True))


@cache
def whole(i):
    return integrals(ALL_SDES[i], ALL_SDES[i].t_min, ALL_SDES[i].t_max)


@cache
def integrated(law, i):
    """(∫ w/q E error du between two quantiles, as an integral over z; the same over t), of every weighting."""
    sde, (t, density) = ALL_SDES[i], (x[NODES] for x in drawn(i)[law])
    values = np.asarray(weights(sde, t), float) / density[None] * expected_error(sde, np.asarray(t, float))[None]
    over_z = np.trapezoid(values * stats.norm.pdf(Z)[None], Z)
    return dict(zip(WEIGHTINGS, over_z, strict=True)), integrals(sde, float(t[0]), float(t[-1]))


@pytest.mark.parametrize("weighting, times", SAMPLED)
@each_index
def test_the_loss_is_the_integral_it_estimates(i, weighting, times):
    # Every time law estimates the same number, 1/(t_max - t_min) ∫ w(t) E error(t) dt.
    loss, expected = sampled(times, i)[weighting], whole(i)[weighting]
    assert abs(loss.mean() - expected) < 4 * loss.std() / np.sqrt(N) + 1e-3 * expected


@pytest.mark.parametrize("times", SMOOTH)
@pytest.mark.parametrize("weighting", WEIGHTINGS)
@each_index
def test_any_law_integrates_any_weighting(i, weighting, times):
    # The same without noise, and so without regard to the tails: between the quantiles 3e-5 and 1 - 3e-5.
    over_u, over_t = integrated(times, i)
    np.testing.assert_allclose(over_u[weighting], over_t[weighting], rtol=1e-3)


def truncated_normal(sde, mean, std):
    """The CDF of t when log rho ~ N(mean, std²) within the SDE's range."""

    def z(t):
        return (np.log(sde.sigma(t) / sde.alpha(t)) - mean) / std

    return lambda t: stats.truncnorm.cdf(z(t), z(sde.t_min), z(sde.t_max))


def scaled(function, sde):
    """The CDF of t when function(t) is uniform between its values at t_min and t_max."""
    return lambda t: (function(t) - function(sde.t_min)) / (function(sde.t_max) - function(sde.t_min))


def logit_normal(sde, mean, std):
    tau = scaled(lambda t: t, sde)
    return lambda t: stats.norm.cdf(np.log(tau(t) / (1 - tau(t))), mean, std)


def learned_log_snr(sde):
    """F's inverse, F in float64 from its formula."""
    law, u = LAWS["learned_log_snr"], np.linspace(0, 1, 100_001)[:, None]
    linear, heights, slopes, centres = (
        np.asarray(v, float) for v in (law.linear, law.heights, law.slopes, law.centres)
    )
    rise = np.exp(linear) * u[:, 0] + (np.exp(heights) / (1 + np.exp(-np.exp(slopes) * (u - centres)))).sum(axis=1)
    return lambda t: np.interp(scaled(sde.log_snr, sde)(t), (rise - rise[0]) / (rise[-1] - rise[0]), u[:, 0])


CDFS = {
    "uniform_t": lambda sde: scaled(lambda t: t, sde),
    "uniform_log_snr": lambda sde: scaled(sde.log_snr, sde),
    "uniform_log_sigma": lambda sde: scaled(lambda t: np.log(sde.sigma(t) / np.hypot(sde.alpha(t), sde.sigma(t))), sde),
    "log_normal": lambda sde: truncated_normal(sde, -1.2, 1.2),
    "logit_normal": lambda sde: logit_normal(sde, 0.0, 1.0),
    "learned_log_snr": learned_log_snr,
}
OTHERS = {
    LogNormal(0.5, 0.7): truncated_normal(VP(), 0.5, 0.7),
    LogNormal(8.0, 0.9): truncated_normal(VP(), 8.0, 0.9),  # all of the range in the lower tail,
    LogNormal(-9.0, 0.8): truncated_normal(VP(), -9.0, 0.8),  # and in the upper one
    LogitNormal(-0.5, 1.5): logit_normal(VP(), -0.5, 1.5),
}


def check_law(sde, cdf, u, t, density):
    """The law drawn has this CDF, and the density told is its derivative, relative to the uniform law's."""
    t, step = np.asarray(t, float), 1e-7
    np.testing.assert_allclose(cdf(t), u, atol=2e-4)
    inner = (t > sde.t_min + step) & (t < sde.t_max - step)
    slope = (cdf(t[inner] + step) - cdf(t[inner] - step)) / (2 * step)
    np.testing.assert_allclose(density[inner], slope * (sde.t_max - sde.t_min), rtol=2e-3)


@pytest.mark.parametrize("law", SMOOTH)
@each_index
def test_a_law_draws_what_it_says(i, law):
    t, density = (x[NODES] for x in drawn(i)[law])
    check_law(ALL_SDES[i], CDFS[law](ALL_SDES[i]), stats.norm.cdf(Z), t, density)


@pytest.mark.parametrize("law", OTHERS, ids=str)
def test_a_law_with_other_constants_draws_what_it_says(law):
    u = np.linspace(0.001, 0.999, 999, dtype=np.float32)
    t, density = jax.jit(lambda sde, u: law(sde, u))(VP(), u)
    check_law(VP(), OTHERS[law], u, t, np.asarray(density))


@each_index
def test_weightings_and_densities_are_finite_at_both_ends(i):
    sde = ALL_SDES[i]
    for t, density in ((t[ENDS], density[ENDS]) for t, density in drawn(i).values()):
        assert np.all(
            (t >= np.float32(sde.t_min)) & (t <= np.float32(sde.t_max)) & (density > 0) & np.isfinite(density)
        )
    at = dict(zip(WEIGHTINGS, np.asarray(weights(sde, jnp.linspace(sde.t_min, sde.t_max, N))), strict=True))
    assert all(np.all(np.isfinite(weight) & (weight >= 0)) for weight in at.values())
    assert np.all(at["flow_matching_logit_normal"][[0, -1]] == 0)


def published(sde, t, x, scores):
    """Each paper's weighted error between two scores at t and x, (n,), in its own variables; EDM's sigma is rho, and
    its x is x/alpha.
    """
    alpha, sigma, rho = sde.alpha(t), sde.sigma(t), sde.sigma(t) / sde.alpha(t)
    eps, x0 = -sigma * scores, (x + sigma**2 * scores) / alpha
    c_skip, c_out = 0.5**2 / (rho**2 + 0.5**2), 0.5 * rho / np.sqrt(rho**2 + 0.5**2)

    def error(quantity):
        return (quantity[0] - quantity[1]) ** 2

    def density(law):
        cdf, step = CDFS[law](sde), 1e-6
        return (cdf(t + step) - cdf(t - step)) / (2 * step) * (sde.t_max - sde.t_min)

    edm, flow_matching = (rho**2 + 0.5**2) / (0.5 * rho) ** 2 * error(x0), error(eps - x0)
    return {
        "sigma2": sigma**2 * error(scores),
        "likelihood": sde.g2(t) * error(scores),
        "flow_matching": flow_matching,
        "v": error((alpha * eps - sigma * x0) / np.hypot(alpha, sigma)),
        "min_snr": np.minimum((alpha / sigma) ** 2, 5.0) * error(x0),
        "soft_min_snr": (0.5 * rho) ** 2 / (rho**2 + 0.5**2) ** 2 * error((x0 - c_skip * x / alpha) / c_out),
        "edm": edm,
        "edm_log_normal": edm * density("log_normal"),
        "flow_matching_logit_normal": flow_matching * density("logit_normal"),
    }


@each_index
def test_a_weighting_is_the_one_of_its_paper(i):
    sde, rng = ALL_SDES[i], np.random.default_rng(0)
    t = sde.t_min + np.linspace(0.002, 0.998, N) * (sde.t_max - sde.t_min)
    x, scores = rng.normal(size=N), rng.normal(size=(2, N)) / sde.sigma(t)[None]
    noise_error = (sde.sigma(t) * (scores[0] - scores[1])) ** 2
    weighted = dict(zip(WEIGHTINGS, np.asarray(weights(sde, jnp.asarray(t)), float) * noise_error[None], strict=True))
    for name, expected in published(sde, t, x, scores).items():
        np.testing.assert_allclose(weighted.pop(name), expected, rtol=2e-3, err_msg=name)
    assert not weighted  # each has its paper here


@pytest.mark.parametrize("constant", [0.7, 3.0])
def test_weightings_follow_their_constants(constant):
    # On VE, where rho = sigma; the weight of x_0's error times sigma².
    t = np.linspace(1e-5, 1, 50)
    sigma2 = VE().sigma(t) ** 2
    np.testing.assert_allclose(MinSNR(constant)(VE(), t), np.minimum(1 / sigma2, constant) * sigma2, rtol=1e-5)
    np.testing.assert_allclose(SoftMinSNR(constant)(VE(), t), sigma2 / (sigma2 + constant**2), rtol=1e-5)
    np.testing.assert_allclose(EDMWeighting(constant)(VE(), t), (sigma2 + constant**2) / constant**2, rtol=1e-5)


@pytest.mark.parametrize(
    "weighting, parameterization",
    [
        (sigma2_weighting, EpsilonPrediction()),
        (v_weighting, VPrediction()),
        (flow_matching_weighting, VelocityPrediction()),
        (EDMWeighting(0.7), EDMPreconditioning(0.7)),
    ],
    ids=["eps", "v", "velocity", "edm"],
)
def test_a_parameterization_s_own_weighting_is_the_plain_error_of_its_network(weighting, parameterization):
    # s = skip x + out F, so the noise's error -sigma s is sigma out times that of F.
    for sde in ALL_SDES:
        t = np.linspace(sde.t_min, sde.t_max, 50)
        scale = sde.sigma(t) * parameterization.out(sde.alpha(t), sde.sigma(t))
        np.testing.assert_allclose(weighting(sde, t) * scale**2, 1.0, rtol=1e-4)


@each_sde
def test_uniform_log_snr_makes_the_likelihood_weight_constant(sde):
    u = jnp.linspace(0.0, 1.0, 50, dtype=jnp.float32)
    t, density = uniform_log_snr(sde, u)
    z = (sde.log_snr(sde.t_min) - sde.log_snr(sde.t_max)) / (sde.t_max - sde.t_min)
    np.testing.assert_allclose(likelihood_weighting(sde, t) / density, z, rtol=1e-4)
    spread = sde.log_snr(np.asarray(t, float))
    np.testing.assert_allclose(np.diff(spread), np.diff(spread).mean(), rtol=0.02)


@each_index
def test_uniform_log_sigma_makes_the_likelihood_the_plain_error_of_v(i):
    t, density = (x[NODES] for x in drawn(i)["uniform_log_sigma"])
    weight = dict(zip(WEIGHTINGS, np.asarray(weights(ALL_SDES[i], t)), strict=True))
    ratio = weight["likelihood"] / density / weight["v"]
    np.testing.assert_allclose(ratio, ratio[0], rtol=1e-4)


def test_times_are_drawn_at_stratified_u_unless_given():
    score_fn, x0, key = NetworkScore(zeros, {}, VP(), EDMPreconditioning(0.5)), jnp.ones((8, 2)), jax.random.key(3)
    u = stratified_uniform(jax.random.split(key, 3)[0], 8)
    np.testing.assert_array_equal(loss_of(score_fn, x0, key), loss_of(score_fn, x0, key, u=u))
    assert not np.allclose(loss_of(score_fn, x0, key), loss_of(score_fn, x0, key, u=u / 2))


def test_the_dropout_key_reaches_the_network_and_differs_from_the_noise():
    # A network that puts out normal noise from its key: with the key of x_t's own noise it would be right each time.
    def apply(params, x, c_noise, cond, key):
        return jax.random.normal(key, x.shape)

    losses = loss_of(NetworkScore(apply, {}, SDES[0], EpsilonPrediction()), jnp.ones((4000, 2)), jax.random.key(0))
    assert abs(float(losses.mean()) - 2) < 4 * float(losses.std()) / 4000**0.5  # E (z - z')² = 2


def test_the_score_is_told_its_condition():
    # The exact score of data that are the point told makes no error.
    x0 = jax.random.normal(jax.random.key(1), (8, 2))
    np.testing.assert_allclose(denoising_score_matching(ToldScore(VP(), 0.0), x0, jax.random.key(0), x0), 0, atol=1e-6)


def cosine(params, x, c_noise, cond, key):
    return 0.7 * jnp.cos(x)


@pytest.mark.parametrize(
    "weighting, times",
    [(flow_matching_weighting, uniform_t), (Uncorrected(flow_matching_weighting, LogitNormal()), LogitNormal())],
    ids=["Lipman", "Esser"],
)
def test_flow_matching_is_the_velocity_s_plain_error(weighting, times):
    # Lipman et al. 2023, eq. 9: the mean of |v - (eps - x_0)|² at uniform times, at logit-normal ones in Esser et al.
    # 2024.
    sde, x0, key = RectifiedFlow(), data(512, 3), jax.random.key(1)
    score_fn = NetworkScore(cosine, {}, sde, VelocityPrediction())
    loss = loss_of(score_fn, x0, key, weighting=weighting, times=times)
    key_time, key_noise, _ = jax.random.split(key, 3)
    u = stratified_uniform(key_time, 512)
    tau = u if times is uniform_t else jax.nn.sigmoid(jax.scipy.special.ndtri(u))
    t = (sde.t_min + tau * (sde.t_max - sde.t_min))[:, None]
    noise = jax.random.normal(key_noise, x0.shape)
    velocity = 0.7 * jnp.cos((1 - t) * x0 + t * noise)
    np.testing.assert_allclose(loss, jnp.mean((velocity - (noise - x0)) ** 2, axis=1), rtol=4e-3)


def test_edm_s_loss_is_the_published_one():
    # Karras et al. 2022, eq. 2 with table 1: lambda(sigma) |D - y|² at ln sigma ~ N(-1.2, 1.2²), here within VE's
    # range.
    sde, y, key = VE(), data(512, 3), jax.random.key(1)
    score_fn = NetworkScore(cosine, {}, sde, EDMPreconditioning(0.5))
    loss = loss_of(score_fn, y, key, weighting=Uncorrected(EDMWeighting(), LogNormal()), times=LogNormal())
    key_time, key_noise, _ = jax.random.split(key, 3)
    low, high = ((np.log(sigma) + 1.2) / 1.2 for sigma in (sde.sigma(sde.t_min), sde.sigma_max))
    u = np.asarray(stratified_uniform(key_time, 512), float)
    sigma = np.exp(-1.2 + 1.2 * stats.truncnorm.ppf(u, low, high))[:, None]
    x = y + sigma * jax.random.normal(key_noise, y.shape)
    v = sigma**2 + 0.25
    denoised = 0.25 / v * x + 0.5 * sigma / np.sqrt(v) * 0.7 * np.cos(x / np.sqrt(v))
    np.testing.assert_allclose(loss, np.mean(v / (0.5 * sigma) ** 2 * (denoised - y) ** 2, axis=1), rtol=4e-3)


def linear(params, x, c_noise, cond, key):
    return params[0] * x + params[1] * c_noise[:, None] * x


@pytest.mark.parametrize("sde", [VP(), RectifiedFlow()], ids=["VP", "RectifiedFlow"])
def test_importance_sampling_quiets_the_likelihood_s_gradient(sde):
    # The same expected loss, with less variance; on VE, whose log SNR is linear in t, the two laws are one. 400 batches
    # of 64.
    x0 = data(25_600, 2)
    u = np.float32((np.random.default_rng(1).random((400, 1)) + np.arange(64) / 64) % 1).ravel()

    @jax.jit
    def losses_and_gradients(params):
        def means(params, times):
            score_fn = NetworkScore(linear, params, sde, EDMPreconditioning(0.6))
            loss = denoising_score_matching(
                score_fn, x0, jax.random.key(2), weighting=likelihood_weighting, times=times, u=u
            )
            return jnp.mean(loss.reshape(400, 64), axis=1)

        return [(means(params, times), jax.jacfwd(means)(params, times)) for times in (uniform_t, uniform_log_snr)]

    (plain, plain_gradient), (important, important_gradient) = losses_and_gradients(jnp.float32([0.3, -0.2]))
    assert abs(np.mean(plain) - np.mean(important)) < 4 * np.sqrt((np.var(plain) + np.var(important)) / 400)
    ratio = np.var(np.linalg.norm(plain_gradient, axis=1)) / np.var(np.linalg.norm(important_gradient, axis=1))
    assert ratio > 5  # measured with several seeds and networks: 10 to 50


def test_the_uncertainty_learns_each_noise_level_s_mean_loss():
    # Plain gradient descent on its objective, with losses of known mean: u -> log E[loss | t], and the weighted loss ->
    # 1.
    sde, steps = VP(), 400
    expected = lambda t: 0.3 + 2 * jax.nn.sigmoid(sde.log_snr(t))  # noqa: E731

    @jax.jit
    def step(weighting, i):
        key_t, key_loss = jax.random.split(jax.random.key(i))
        t = sde.time_of_log_snr(jax.random.uniform(key_t, (512,), minval=-8.0, maxval=8.0))
        losses = expected(t) * jax.random.exponential(key_loss, (512,)) * jnp.exp(-weighting.log_loss(sde, t))
        gradient = jax.grad(Uncertainty.objective)(weighting, sde, t, losses)
        return jax.tree.map(lambda w, g: w - 1.0 * g, weighting, gradient)

    weighting = Uncertainty.init(likelihood_weighting)
    t = sde.time_of_log_snr(jnp.linspace(-7, 7, 30))
    np.testing.assert_array_equal(weighting(sde, t), likelihood_weighting(sde, t))
    for i in range(steps):
        weighting = step(weighting, i)
    np.testing.assert_allclose(weighting.log_loss(sde, t), jnp.log(expected(t)), atol=0.15)
    np.testing.assert_allclose(weighting(sde, t) * expected(t), likelihood_weighting(sde, t), rtol=0.15)


MISTAKES = {
    "gamma": lambda: MinSNR(0.0),
    "sigma_data": lambda: EDMWeighting(-1.0),
    "SoftMinSNR: sigma_data": lambda: SoftMinSNR(0.0),
    "LogNormal: std": lambda: LogNormal(0.0, 0.0),
    "LogitNormal: std": lambda: LogitNormal(std=float("nan")),
    "bins must be at least 2": lambda: LossSecondMoment.init(bins=1),
    "history at least 1": lambda: LossSecondMoment.init(history=0),
    "units must be at least 1": lambda: LearnedLogSNR.init(units=0),
}


@pytest.mark.parametrize("told", MISTAKES)
def test_impossible_constants_are_told_in_one_line(told):
    with pytest.raises(ValueError, match=told) as error:
        MISTAKES[told]()
    assert "\n" not in str(error.value) and "must be" in str(error.value)


def test_constants_that_are_not_given_are_the_published_ones():
    assert MinSNR() == MinSNR(gamma=5.0)  # Hang et al. 2023
    assert EDMWeighting() == EDMWeighting(sigma_data=0.5) and SoftMinSNR() == SoftMinSNR(sigma_data=0.5)
    assert LogNormal() == LogNormal(mean=-1.2, std=1.2)  # Karras et al. 2022, table 1
    assert LogitNormal() == LogitNormal(mean=0.0, std=1.0)  # Esser et al. 2024
    assert LossSecondMoment.init().history == 10  # Nichol & Dhariwal 2021
