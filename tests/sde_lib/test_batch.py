"""What every function of points holds: shapes and dtypes that do not fit, conditions, generators of random numbers."""

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sde_lib import (
    VP,
    Density,
    DiagonalGaussian,
    Exact,
    ExactScore,
    FunctionScore,
    GaussianMixture,
    Hutchinson,
    IsotropicGaussian,
    Langevin,
    NetworkScore,
    NoiseOfScore,
    PredictorCorrector,
    ProbabilityFlow,
    ReverseChain,
    TruncatedNormalDequantization,
    UniformDequantization,
    VPrediction,
    ancestral,
    chain_of,
    clean_offset,
    decode,
    denoising_score_matching,
    elbo,
    encode,
    fixed_small,
    langevin,
    log_prob,
    power_law_field,
    row_keys,
    sample,
    vlb,
)
from sde_lib.samplers import AdaptiveSDE, EulerMaruyama, Heun, UniformT
from tests.oracles import ToldScore, normal, random_mixture, two_peaks

KEY = jax.random.key(0)
MIXTURE = random_mixture(0, 2)
POINTS = {
    "mixture": (MIXTURE, (2,)),
    "isotropic": (IsotropicGaussian((2,), 1.5), (2,)),
    "diagonal": (DiagonalGaussian(jnp.array([0.3, -0.2]), jnp.array([1.0, 2.0])), (2,)),
    "an image's": (IsotropicGaussian((2, 3, 1), 1.5), (2, 3, 1)),
    "field": (power_law_field((4, 4)), (4, 4)),
}
each_distribution = pytest.mark.parametrize("name", POINTS)


@each_distribution
def test_points_of_another_shape_are_refused_and_not_broadcast(name):
    distribution, shape = POINTS[name]
    x = jax.random.normal(KEY, (5, *shape))
    for of in (distribution.log_prob, distribution.score):
        for wrong in (x[0], x[:, :1], jnp.concatenate([x, x], axis=-1)):
            with pytest.raises(ValueError, match=r"entries each, not \(.*give one point as x\[None\]"):
                of(wrong)
        with pytest.raises(ValueError, match="entries each"):
            jax.vmap(of)(x)
        np.testing.assert_allclose(jax.vmap(lambda row, of=of: of(row[None])[0])(x), of(x), rtol=1e-5, atol=1e-6)


@each_distribution
def test_points_may_be_integers_numpy_s_or_of_half_precision(name):
    distribution, shape = POINTS[name]
    x = jax.random.randint(KEY, (5, *shape), -2, 3)
    for given in (x, np.asarray(x), np.asarray(x, float), x.astype(jnp.bfloat16), x.astype(jnp.float16)):
        np.testing.assert_allclose(distribution.log_prob(given), distribution.log_prob(x * 1.0), rtol=1e-6)
        half = jnp.result_type(given).itemsize == 2
        found = distribution.score(given)
        np.testing.assert_allclose(found, distribution.score(x * 1.0), rtol=1e-2 if half else 1e-6, atol=1e-6)
        assert found.dtype == (given.dtype if half else jnp.float32)


def test_integers_and_half_precision_give_what_float32_does_everywhere():
    score_fn, whole = ExactScore(MIXTURE, VP()), jnp.array([[1, 0], [-1, 2], [0, 0]])
    network = NetworkScore(lambda p, x, c, cond: p * x + c[:, None], jnp.float32(0.3), VP(), VPrediction())
    keys, chain = row_keys(KEY, jnp.arange(3)), chain_of(VP(), np.linspace(0.1, 1.0, 5))
    uses = {
        "log_prob": lambda x: log_prob(score_fn, x).nats,
        "encode": lambda x: encode(score_fn, x).x,
        "vlb": lambda x: vlb(score_fn, x, KEY, times=2).nats,
        "clean_offset": lambda x: clean_offset(score_fn, x, KEY),
        "network": lambda x: network(x, 0.3),
        "density": lambda x: Density(lambda row: -jnp.sum(row**4)).score(x),
        "loss": lambda x: denoising_score_matching(network, x, KEY),
        "uniform": lambda x: UniformDequantization(0.5)(VP(), keys, x),
        "truncated": lambda x: TruncatedNormalDequantization(0.5)(VP(), keys, x),
        "langevin": lambda x: langevin(Langevin(steps=3), MIXTURE, x, KEY).x,
        "chain": lambda x: chain.jump(x, 3),
    }
    for name, use in uses.items():
        expected = use(whole.astype(jnp.float32))
        for given, rtol in ((whole, 1e-6), (whole.astype(jnp.bfloat16), 1e-2)):
            if name == "chain" and rtol > 1e-3:
                continue  # arithmetic on x itself
            jax.tree.map(
                lambda a, b, rtol=rtol, name=name: np.testing.assert_allclose(
                    np.asarray(a, float), np.asarray(b, float), rtol=rtol, atol=rtol, err_msg=name
                ),
                use(given),
                expected,
            )


SAMPLERS = {
    "em": EulerMaruyama(steps=30),
    "heun, churn": Heun(steps=6, churn=3.0),
    "pc": PredictorCorrector(steps=10),
    "adaptive": AdaptiveSDE(steps=8),
    "ode": ProbabilityFlow(rtol=1e-3, atol=1e-3),
}
each_sampler = pytest.mark.parametrize("name", SAMPLERS)


@each_sampler
def test_in_half_precision_the_steps_accumulate_in_float32(name):
    score_fn = ExactScore(two_peaks(), VP())
    single, half = (
        sample(SAMPLERS[name], score_fn, KEY, 6, (2,), frames=3, dtype=dtype) for dtype in (jnp.float32, jnp.bfloat16)
    )
    assert half.x.dtype == half.path.dtype == jnp.bfloat16
    np.testing.assert_array_equal(half.x, single.x.astype(jnp.bfloat16))
    np.testing.assert_array_equal(half.path, single.path.astype(jnp.bfloat16))


@pytest.mark.parametrize("impl", ["rbg", "unsafe_rbg"])
def test_with_any_generator_a_sample_does_not_depend_on_its_batch(impl):
    key, score_fn = jax.random.key(3, impl=impl), ExactScore(two_peaks(), VP())
    for sampler in SAMPLERS.values():

        def draw(key, first=0, sampler=sampler):
            return np.asarray(sample(sampler, score_fn, key, 6, (2,), first=first, frames=3).x)

        whole, other = draw(key), draw(key, first=2)
        np.testing.assert_allclose(other[:4], whole[2:], atol=2e-2)  # what an adaptive solve leaves open
        assert np.abs(np.diff(np.sort(whole[:, 1]))).min() > 1e-5  # each row has its own noise
        assert np.abs(draw(jax.random.key(4, impl=impl)) - whole).min() > 0
    x = jnp.zeros((6, 2))
    chains = [langevin(Langevin(steps=3), MIXTURE, x[:n], key).x for n in (6, 2)]
    np.testing.assert_allclose(chains[0][:2], chains[1], rtol=1e-5)
    keys = jax.random.split(key, 6)
    for draws in (
        lambda n: Hutchinson(probes=3, law=jax.random.normal).probes(keys[:n], x[:n]),
        lambda n: UniformDequantization(0.5)(VP(), keys[:n], x[:n])[0],
        lambda n: TruncatedNormalDequantization(0.5)(VP(), keys[:n], x[:n])[0],
    ):
        np.testing.assert_array_equal(draws(6)[:2], draws(2))
        assert len(np.unique(np.asarray(draws(6)).reshape(6, -1)[:, 0])) == 6


def test_a_condition_with_another_number_of_rows_is_refused_everywhere():
    told, x = ToldScore(VP()), jnp.zeros((6, 2))
    network = NetworkScore(lambda p, x, c, cond: x, jnp.zeros(()), VP(), VPrediction())
    uses = [
        lambda cond: sample(EulerMaruyama(steps=2), told, KEY, 6, (2,), cond=cond),
        lambda cond: sample(EulerMaruyama(steps=2), told, KEY, 6, (2,), cond=cond, batch_size=3),
        lambda cond: log_prob(told, x, cond=cond),
        lambda cond: encode(told, x, cond=cond),
        lambda cond: decode(told, x, cond=cond),
        lambda cond: vlb(told, x, KEY, cond=cond),
        lambda cond: clean_offset(told, x, KEY, cond=cond),
        lambda cond: network(x, 0.5, cond),
        lambda cond: denoising_score_matching(network, x, KEY, cond),
    ]
    for use in uses:
        for rows in (1, 3, 7):
            with pytest.raises(ValueError, match=f"cond has {rows} rows for n = 6"):
                use(jnp.zeros((rows, 2)))
        with pytest.raises(ValueError, match="cond has 3 rows for n = 6"):
            use({"y": jnp.zeros((6, 2)), "of": np.zeros(3, int)})
        with pytest.raises(ValueError, match="cond has no rows for n = 6"):
            use(3)


def test_times_of_another_number_of_samples_are_refused():
    with pytest.raises(ValueError, match=r"one value for all 1 samples or one for each, not \(5,\)"):
        ToldScore(VP())(jnp.zeros((1, 2)), jnp.full(5, 0.5), jnp.zeros((1, 2)))
    with pytest.raises(ValueError, match=r"one value for all 4 samples or one for each, not \(3,\)"):
        ExactScore(MIXTURE, VP())(jnp.zeros((4, 2)), jnp.full(3, 0.5))


def test_the_chain_s_sampler_and_bound_accumulate_in_float32_and_know_their_last_step():
    times = np.linspace(0.01, 1.0, 6)
    chain = chain_of(VP(), times)
    told = NoiseOfScore(ExactScore(MIXTURE, VP()), times)
    model = ReverseChain(told, log_variance=fixed_small)
    single, half = (ancestral(model, chain, KEY, 4, (2,), dtype=dtype).x for dtype in (jnp.float32, jnp.bfloat16))
    np.testing.assert_array_equal(half, single.astype(jnp.bfloat16))
    x = jnp.array([[1, 0], [-1, 2]])
    np.testing.assert_allclose(elbo(model, chain, x, KEY).nats, elbo(model, chain, x * 1.0, KEY).nats, rtol=1e-6)
    predicted = jax.jit(lambda told, x, t: told(x, t))
    assert np.isnan(predicted(told, x * 1.0, 7)).all() and np.isfinite(predicted(told, x * 1.0, 6)).all()


def test_a_step_outside_the_chain_under_jit_is_not_a_number():
    chain = chain_of(VP(), np.linspace(0.1, 1.0, 5))
    at = jax.jit(lambda t: chain.at(t).alpha)
    np.testing.assert_allclose(at(jnp.arange(1, 6)), chain.alpha, rtol=1e-6)
    assert np.isnan(at(jnp.array([0, -1, 6, 10**6]))).all()


@pytest.mark.parametrize(
    "call, words",
    [
        (lambda s: sample(EulerMaruyama, s, KEY, 2, (2,)), r"write EulerMaruyama\(\), not EulerMaruyama"),
        (lambda s: sample(AdaptiveSDE, s, KEY, 2, (2,)), r"write AdaptiveSDE\(\)"),
        (lambda s: sample(EulerMaruyama(), ExactScore, KEY, 2, (2,)), "not the class ExactScore"),
        (lambda s: sample(EulerMaruyama(), ExactScore(normal(), VP), KEY, 2, (2,)), r"write VP\(\)"),
        (lambda s: sample(EulerMaruyama(), lambda x, t: -x, KEY, 2, (2,)), r"FunctionScore\(function, sde\)"),
        (lambda s: log_prob(lambda x, t: -x, jnp.zeros((1, 2))), r"FunctionScore\(function, sde\)"),
        (lambda s: encode(lambda x, t: -x, jnp.zeros((1, 2))), r"FunctionScore\(function, sde\)"),
        (lambda s: vlb(lambda x, t: -x, jnp.zeros((1, 2)), KEY), r"FunctionScore\(function, sde\)"),
        (lambda s: log_prob(s, jnp.zeros((1, 2)), divergence=Exact), r"write Exact\(\)"),
        (lambda s: log_prob(s, jnp.zeros((1, 2)), KEY, divergence=Hutchinson), r"write Hutchinson\(\)"),
        (lambda s: langevin(Langevin, normal(), jnp.zeros((1, 2)), KEY), r"write Langevin\(\)"),
        (lambda s: sample(Heun(grid=UniformT), s, KEY, 2, (2,)), r"grid must be an object: write UniformT\(\)"),
        (lambda s: ProbabilityFlow(solver=diffrax.Heun), r"solver must be an object: write Heun\(\)"),
        (lambda s: sample(EulerMaruyama(), s, KEY, 2, (2,), dtype=jnp.int32), "dtype must be a float's, not int32"),
        (lambda s: log_prob(s, 3.0), "not a number"),
    ],
)
def test_what_is_no_object_of_its_kind_is_refused_in_a_sentence(call, words):
    with pytest.raises(ValueError, match=words):
        call(ExactScore(normal(), VP()))


def test_a_plain_function_becomes_a_score():
    sde, x = VP(), jax.random.normal(KEY, (4, 2))
    plain = FunctionScore(lambda x, t: -x / (sde.alpha(t) ** 2 * 0.25 + sde.sigma(t) ** 2), sde)
    exact = ExactScore(GaussianMixture([1.0], np.zeros((1, 2)), 0.25 * np.eye(2)[None]), sde)
    np.testing.assert_allclose(log_prob(plain, x).nats, log_prob(exact, x).nats, atol=1e-3)
