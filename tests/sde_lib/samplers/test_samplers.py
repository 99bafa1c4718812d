"""Laws, orders and counts of the samplers. Orders need no Monte Carlo: with an affine score a Gaussian stays
Gaussian.
"""

import math
import re
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sde_lib import VE, VP, EulerMaruyama, ExactScore, PredictorCorrector, ProbabilityFlow, ReverseDiffusion, sample
from sde_lib.samplers import (
    DDIM,
    DEIS,
    IPNDM,
    AdaptiveSDE,
    Heun,
    Karras,
    UniformLogSNR,
    UniformT,
    UniPC,
    gaussian_law,
    watched,
    weak_error,
)
from sde_lib.samplers.linear import table_of
from sde_lib.samplers.predictor_corrector import langevin_step_size
from sde_lib.sde import CosineVP, RectifiedFlow
from tests.oracles import SDE_IDS, SDES, ToldScore, calls_of, normal, random_mixture, two_peaks

N = 20_000
# Tables, whose exact distribution test_family.py sees the compiled scan draw: no Monte Carlo for them.
TABLES = {"em": EulerMaruyama(steps=1000), "reverse_diffusion": ReverseDiffusion(steps=1000)}
SAMPLERS = {
    **TABLES,
    "pc": PredictorCorrector(steps=1000),
    "ode": ProbabilityFlow(rtol=1e-4, atol=1e-4),
}
each_sampler = pytest.mark.parametrize("name", SAMPLERS)
each_sde = pytest.mark.parametrize("sde", SDES, ids=SDE_IDS)


def draws(name, sde, target, seed):
    return np.asarray(sample(SAMPLERS[name], ExactScore(target(), sde), jax.random.key(seed), N, (2,)).x, float)


@each_sampler
@each_sde
def test_a_gaussian_gets_its_mean_and_standard_deviation(name, sde):
    if name in TABLES:
        prior = (0.0, sde.sigma(sde.t_max))
        mean, covariance = gaussian_law(TABLES[name], sde, [0.0, 0.0], 0.25 * np.eye(2), prior=prior)
        np.testing.assert_allclose(np.diag(covariance) ** 0.5, 0.5, rtol=0.015)
        np.testing.assert_allclose([*mean, covariance[0, 1]], 0.0, atol=1e-12)
        return
    x = draws(name, sde, normal, 0)
    np.testing.assert_allclose(x.std(), 0.5, rtol=0.015)
    np.testing.assert_allclose(x.mean(), 0.0, atol=5 * 0.5 / np.sqrt(x.size))
    # Tails too: the kurtosis of 2 N normal numbers is 3 with standard error sqrt(24/(2 N)).
    np.testing.assert_allclose((x**4).mean() / (x**2).mean() ** 2, 3.0, atol=5 * np.sqrt(24 / x.size))


# The corrector's step follows each sample's norms, so that the law is not a recursion's; narrow data in many dimensions
# are the worst of d = 1, 3, 8 and w = 0.01, 0.1, 1, 2 on five SDEs, 1.3 % too wide.
@pytest.mark.parametrize("sde, d, width", [(CosineVP(), 8, 0.01), (RectifiedFlow(), 1, 2.0)], ids=["narrow", "wide"])
def test_the_steps_that_predictor_corrector_calls_enough_are(sde, d, width):
    steps = int(re.search(r"or ([\d,]+) on `UniformLogSNR`", PredictorCorrector.__doc__).group(1).replace(",", ""))
    sampler = PredictorCorrector(steps=steps, grid=UniformLogSNR())
    score_fn = ExactScore(normal(width, d, mean=0.5), sde)
    x = np.asarray(sample(sampler, score_fn, jax.random.key(1), 20_000 // d, (d,)).x, float)
    alpha, std = sde.alpha(sde.t_min), np.hypot(sde.alpha(sde.t_min) * width, sde.sigma(sde.t_min))
    np.testing.assert_allclose(x.std(), std, rtol=0.015)
    np.testing.assert_allclose(x.mean(), 0.5 * alpha, atol=5 * std / np.sqrt(x.size))
    assert np.abs(x - 0.5 * alpha).max() < 7 * std


def share(x, sign):
    """How much of x belongs to the peak at sign: 1 there, 0 at the other, smooth where next to nothing lies."""
    return 0.5 + 0.5 * np.tanh(4 * sign * x)


@each_sampler
@each_sde
def test_two_peaks_get_their_weights(name, sde):
    if name in TABLES:  # along the axis on which the peaks lie; at half the steps the quadrature takes a second
        line = ([0.8, 0.2], [-1.0, 1.0], [0.25, 0.25])

        def error(function):
            return abs(weak_error(replace(TABLES[name], steps=500), sde, *line, function, nodes=4))

        assert error(lambda x: share(x, -1)) < 0.01
        for sign, weight in ((-1, 0.8), (1, 0.2)):
            assert error(lambda x, sign=sign: share(x, sign) * (x - sign)) < 0.02 * weight
            variance = 0.25**2 + sde.sigma(sde.t_min) ** 2  # 3 % of its root, as below
            assert error(lambda x, sign=sign: share(x, sign) * (x - sign) ** 2) < 2 * 0.03 * variance * weight
        return
    x = draws(name, sde, two_peaks, 1)
    assert abs((x[:, 0] < 0).mean() - 0.8) < 0.01
    for sign in (-1, 1):
        peak = x[x[:, 0] * sign > 0] - np.array([sign, 0.0])
        np.testing.assert_allclose(peak.mean(0), 0, atol=0.02)
        np.testing.assert_allclose(peak.std(0), np.sqrt(0.25**2 + sde.sigma(sde.t_min) ** 2), rtol=0.03)


@each_sde
def test_reverse_diffusion_has_the_forward_chain_s_variance(sde):
    # q(x_t | x_s) = N(r x_s, v): alpha and sigma of the chain must compose, sigma_t² = r² sigma_s² + v.
    times = UniformT()(sde, 50)
    c = ReverseDiffusion().update(sde, times).c
    r = sde.alpha(times[:-1]) / sde.alpha(times[1:])
    np.testing.assert_allclose(r**2 * sde.sigma(times[1:]) ** 2 + c**2, sde.sigma(times[:-1]) ** 2, rtol=1e-10)


@pytest.mark.parametrize("predictor_name", ["em", "reverse_diffusion"])
def test_zero_corrector_steps_leave_the_predictor_alone(predictor_name):
    score_fn = ExactScore(random_mixture(1, 2), VP())
    plain = {"em": EulerMaruyama(steps=30), "reverse_diffusion": ReverseDiffusion(steps=30)}[predictor_name]
    wrapped = PredictorCorrector(steps=30, corrector_steps=0, predictor=type(plain)())
    key = jax.random.key(0)
    np.testing.assert_array_equal(sample(plain, score_fn, key, 16, (2,)).x, sample(wrapped, score_fn, key, 16, (2,)).x)


@each_sde
def test_correctors_repair_a_coarse_predictor(sde):
    # 15 steps of the predictor alone are far off; Langevin steps at each level pull the law back.
    score_fn, key = ExactScore(normal(0.5), sde), jax.random.key(3)
    error = {}
    for corrector_steps in (0, 10):
        x = sample(PredictorCorrector(steps=15, corrector_steps=corrector_steps), score_fn, key, N, (2,)).x
        error[corrector_steps] = abs(float(jnp.std(x)) - 0.5)
    assert error[10] < 0.7 * error[0]


def test_langevin_step_size_is_songs_in_many_dimensions_and_bounded_in_few():
    sigma, scale = 0.3, 0.16**2
    score = jax.random.normal(jax.random.key(0), (2, 200_000)) / sigma
    songs = 2 * scale * score.shape[1] / jnp.sum(score**2, axis=1)
    np.testing.assert_allclose(langevin_step_size(score, sigma, scale), songs, rtol=1e-3)
    at_a_peak = langevin_step_size(jnp.zeros((1, 1)), sigma, scale)
    np.testing.assert_allclose(at_a_peak, 2 * scale * sigma**2 * 1.01, rtol=1e-5)


@each_sampler
def test_a_sample_depends_on_its_own_index_alone(name):
    sampler = {
        "em": EulerMaruyama(steps=20),
        "reverse_diffusion": ReverseDiffusion(steps=20),
        "pc": PredictorCorrector(steps=20),
        "ode": ProbabilityFlow(per_sample=True),
    }[name]
    score_fn, key = ExactScore(random_mixture(1, 2), VP()), jax.random.key(7)
    together = sample(sampler, score_fn, key, 12, (2,)).x
    tolerance = 3e-4 if name == "ode" else 1e-5  # rounding moves an adaptive solve within its tolerance
    np.testing.assert_allclose(sample(sampler, score_fn, key, 12, (2,), batch_size=5).x, together, atol=tolerance)
    np.testing.assert_allclose(sample(sampler, score_fn, key, 4, (2,), first=8).x, together[8:], atol=tolerance)
    assert np.abs(np.diff(together, axis=0)).min() > 1e-6


@each_sampler
@pytest.mark.parametrize("denoise", [False, True])
def test_nfe_is_the_number_of_calls(name, denoise):
    sampler = {
        "em": EulerMaruyama(steps=7, denoise=denoise),
        "reverse_diffusion": ReverseDiffusion(steps=7, denoise=denoise),
        "pc": PredictorCorrector(steps=7, corrector_steps=3, denoise=denoise),
        "ode": ProbabilityFlow(denoise=denoise),
    }[name]
    calls, nfe = calls_of(lambda score_fn: sample(sampler, score_fn, jax.random.key(0), 3, (2,)))
    assert nfe == calls > 0


@each_sampler
def test_frames_are_the_path_and_cost_nothing_else(name):
    sampler = {
        "em": EulerMaruyama(steps=30, denoise=True),
        "reverse_diffusion": ReverseDiffusion(steps=30),
        "pc": PredictorCorrector(steps=30),
        "ode": ProbabilityFlow(),
    }[name]
    score_fn, key = ExactScore(random_mixture(1, 2), VP()), jax.random.key(0)
    result = sample(sampler, score_fn, key, 6, (2,), frames=4)
    plain = sample(sampler, score_fn, key, 6, (2,))
    assert plain.path is None and plain.nfe == result.nfe
    np.testing.assert_allclose(plain.x, result.x, rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(result.path[-1], result.x)
    start = sample(ProbabilityFlow(), score_fn, key, 6, (2,), frames=2).path[
        0
    ]  # every sampler starts from the same x_T
    np.testing.assert_allclose(result.path[0], start, rtol=1e-6)
    assert 0.5 < np.std(start) < 2.0
    np.testing.assert_allclose(result.times, np.linspace(1.0, 1e-3, 4), rtol=1e-5)
    if name != "ode":  # the same steps, cut off after a third of them, are the second frame
        early = type(sampler)(steps=10)
        early_score = ExactScore(random_mixture(1, 2), VP(t_min=float(result.times[1])))
        np.testing.assert_allclose(sample(early, early_score, key, 6, (2,)).x, result.path[1], rtol=1e-3, atol=1e-3)


@each_sampler
def test_denoise_replaces_the_last_x_by_its_posterior_mean(name):
    sde = VP(t_min=0.05)  # much noise left, so that denoising shows
    sampler = {
        "em": EulerMaruyama,
        "reverse_diffusion": ReverseDiffusion,
        "pc": PredictorCorrector,
        "ode": ProbabilityFlow,
    }[name]
    score_fn, key = ExactScore(normal(0.5), sde), jax.random.key(0)
    settings = {} if name == "ode" else {"steps": 20}
    x = sample(sampler(**settings), score_fn, key, 8, (2,)).x
    denoised = sample(sampler(**settings, denoise=True), score_fn, key, 8, (2,)).x
    gain = sde.alpha(0.05) * 0.25 / (sde.alpha(0.05) ** 2 * 0.25 + sde.sigma(0.05) ** 2)
    np.testing.assert_allclose(denoised, gain * x, rtol=1e-3, atol=1e-4)


def test_other_constants_and_settings_do_not_compile_again():
    traces, after_each = [], []

    class Traced(ExactScore):
        def __call__(self, x, t, cond=None, *, key=None):
            traces.append(1)
            return super().__call__(x, t)

    def make(leaves):
        return Traced(leaves[0], leaves[1])

    jax.tree_util.register_pytree_node(
        Traced, lambda s: ((s.distribution, s.sde), None), lambda _, leaves: make(leaves)
    )
    for i, beta_max in enumerate((20.0, 15.0, 10.0)):
        score_fn = Traced(random_mixture(i, 2), VP(beta_max=beta_max))
        sample(PredictorCorrector(steps=5, snr=0.1 + 0.01 * i), score_fn, jax.random.key(i), 4, (2,))
        after_each.append(len(traces))
    assert after_each[0] > 0 and after_each == after_each[:1] * 3


def test_sampling_under_jit_gives_the_same():
    score_fn, key = ExactScore(random_mixture(1, 2), VE()), jax.random.key(0)
    plain = sample(EulerMaruyama(steps=10), score_fn, key, 4, (2,)).x
    jitted = jax.jit(lambda score_fn: sample(EulerMaruyama(steps=10), score_fn, key, 4, (2,)).x)(score_fn)
    np.testing.assert_allclose(plain, jitted, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    "call, word",
    [
        (lambda s: sample(EulerMaruyama(), s, jax.random.key(0), 0, (2,)), "n must be at least 1"),
        (lambda s: sample(EulerMaruyama(steps=0), s, jax.random.key(0), 2, (2,)), "steps"),
        (lambda s: sample(EulerMaruyama(), s, jax.random.key(0), 2, (2,), frames=1), "frames"),
        (lambda s: sample(EulerMaruyama(), s, jax.random.key(0), 2, (2,), batch_size=0), "batch_size"),
        (lambda s: PredictorCorrector(snr=0.0), "snr"),
        (lambda s: PredictorCorrector(corrector_steps=-1), "corrector_steps"),
        (lambda s: ProbabilityFlow(rtol=-1.0), "rtol"),
        (lambda s: ProbabilityFlow(steps=0), "steps"),
    ],
)
def test_bad_settings_are_refused(call, word):
    with pytest.raises(ValueError, match=word):
        call(ExactScore(normal(), VP()))


def test_block_until_ready_reaches_the_arrays_of_a_result():
    # A timing that waits for the result, as jax.block_until_ready(sample(...)), must not return at once.
    result = sample(EulerMaruyama(steps=2), ExactScore(normal(), VP()), jax.random.key(0), 3, (2,), frames=2)
    leaves = jax.tree.leaves(result)
    assert any(leaf is result.x for leaf in leaves) and any(leaf is result.path for leaf in leaves)


def test_each_sample_keeps_its_own_condition_in_any_batch():
    cond = jnp.arange(12.0)[:, None] * jnp.ones((1, 2)) * 10
    for sampler in (
        EulerMaruyama(steps=200),
        ProbabilityFlow(),
        ProbabilityFlow(per_sample=True),
        PredictorCorrector(steps=200, snr=0.01),
        AdaptiveSDE(),
    ):
        x = sample(sampler, ToldScore(VP()), jax.random.key(0), 12, (2,), cond=cond, batch_size=5).x
        np.testing.assert_allclose(x, cond, atol=3.0)


@pytest.mark.parametrize(
    "sampler", [EulerMaruyama(steps=2), ProbabilityFlow(steps=2), AdaptiveSDE(relative=1.0)], ids=str
)
def test_the_final_denoising_is_told_the_condition(sampler):
    # Of a single point the denoiser is the point, wherever x is.
    cond = jnp.arange(3.0)[:, None] * jnp.ones((1, 2)) * 10
    x = sample(replace(sampler, denoise=True), ToldScore(VP(), 0.0), jax.random.key(0), 3, (2,), cond=cond).x
    np.testing.assert_allclose(x, cond, atol=1e-2)


def test_the_corrector_s_scale_is_song_s():
    # Algorithm 5 has 2 alpha_i (r |z|/|s|)² with alpha_i = 1 - beta_i, beta_i = beta(t_i)/N; algorithm 4, for VE, has
    # no alpha.
    sampler, sde = PredictorCorrector(steps=1000, snr=0.2), VP()
    table = table_of(EulerMaruyama(steps=1000), sde)
    beta = sde.beta_min + table.t * (sde.beta_max - sde.beta_min)
    np.testing.assert_allclose(sampler.scale(sde, table) / 0.2**2, 1 - beta / 1000, atol=3e-4)
    np.testing.assert_allclose(sampler.scale(VE(), table_of(EulerMaruyama(steps=1000), VE())), 0.2**2, rtol=1e-12)


def test_constants_that_are_not_given_are_the_published_ones():
    assert PredictorCorrector().snr == 0.16 and PredictorCorrector().corrector_steps == 1  # Song et al. 2021, VE
    assert Karras().rho == 7  # Karras et al. 2022
    assert (Heun().churn, Heun().churn_noise, Heun().churn_max) == (0.0, 1.0, math.inf)
    assert (IPNDM().order, DEIS().order, UniPC().order) == (4, 3, 3)
    assert (EulerMaruyama().eta, DDIM().eta) == (1.0, 0.0)
    assert (ProbabilityFlow().rtol, ProbabilityFlow().atol) == (1e-5, 1e-5)


@pytest.mark.parametrize(
    "sampler, told",
    [
        (EulerMaruyama(steps=40, denoise=True), [2 * k for k in range(1, 21)]),
        (PredictorCorrector(steps=12), list(range(1, 13))),
        (UniPC(steps=30), [2 * k for k in range(1, 16)]),  # with a history
        (Heun(steps=21), [3 * k for k in range(1, 15)]),  # two calls a step
        (DDIM(steps=23, denoise=True), [23]),  # nothing divides it
        (ProbabilityFlow(), []),
    ],
    ids=lambda value: type(value).__name__,
)
def test_who_watches_is_told_of_equal_parts_and_changes_nothing(sampler, told):
    score_fn, key = ExactScore(two_peaks(), VP()), jax.random.key(3)
    alone = sample(sampler, score_fn, key, 6, (2,), frames=5)
    seen = []
    with watched(lambda done, calls: seen.append((done, calls))):
        found = sample(sampler, score_fn, key, 6, (2,), frames=5)
        jax.jit(lambda key: sample(sampler, score_fn, key, 2, (2,)).x)(key)  # traced: nobody can be told
    assert [done for done, _ in seen] == told and {calls for _, calls in seen} <= {told[-1] if told else 0}
    np.testing.assert_allclose(found.x, alone.x, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(found.path, alone.path, rtol=1e-6, atol=1e-6)
    np.testing.assert_array_equal(found.times, alone.times)
