"""The laws of times that learn from the losses seen; what all laws have in common is in test_losses.py."""

import jax
import jax.numpy as jnp
import numpy as np
import optax

from sde_lib import VP
from sde_lib.losses import denoising_score_matching, likelihood_weighting
from sde_lib.score import EDMPreconditioning, NetworkScore
from sde_lib.times import LearnedLogSNR, LossSecondMoment, stratified_uniform, uniform_t

DATA_STD, MODEL_STD = 0.5, 0.8
SIZES = np.random.default_rng(3).lognormal(0, 1, 8).astype(np.float32)


def learned(base):
    """A LossSecondMoment that has seen losses of these very different sizes."""
    return LossSecondMoment(jnp.asarray(SIZES**2), jnp.ones(8, jnp.int32), base, history=1)


def zeros(params, x, c_noise, cond, key):
    return jnp.zeros_like(x)


def test_stratified_times_hit_every_stratum_once_and_stay_uniform():
    draws = np.stack([stratified_uniform(jax.random.key(i), 16) for i in range(400)])
    assert all(set(np.floor(row * 16).astype(int)) == set(range(16)) for row in draws)
    np.testing.assert_allclose(draws[:, 0].mean(), 0.5, atol=5 * np.sqrt(1 / 12 / 400))


@jax.jit
def update(law, bins, losses):
    """Losses in the middle of these bins."""
    width = law.ratios() / law.seen.size
    return law.update((jnp.cumsum(width) - width / 2)[bins], losses)


def test_the_loss_s_second_moment_is_the_base_law_until_every_bin_is_known():
    law = LossSecondMoment.init(uniform_t, bins=4, history=2)
    for bins, losses in (([0, 1, 2], [5.0, 0.1, 2.0]), ([0, 1, 2, 2, 3], [5.0, 0.1, 2.0, 2.0, 1.0])):
        law = update(law, jnp.array(bins), jnp.float32(losses))
        np.testing.assert_array_equal(law.ratios(), 1.0)
    u = jnp.linspace(0, 0.99, 40)
    np.testing.assert_allclose(law(VP(), u), uniform_t(VP(), u), rtol=1e-5)
    law = update(law, jnp.array([3]), jnp.float32([1.0]))
    np.testing.assert_allclose(law.ratios(), 0.999 * np.array([5.0, 0.1, 2.0, 1.0]) / 2.025 + 0.001, rtol=1e-5)
    nothing = update(LossSecondMoment.init(bins=4, history=1), jnp.arange(4), jnp.zeros(4))
    np.testing.assert_array_equal(nothing.ratios(), 1.0)


def test_the_loss_s_second_moment_draws_what_it_says():
    law, sde, u = learned(uniform_t), VP(), np.linspace(0, 1, 2000, endpoint=False, dtype=np.float32)
    ratios = np.asarray(law.ratios(), float)
    np.testing.assert_allclose(ratios.mean(), 1, rtol=1e-6)
    assert ratios.max() > 10 * ratios.min()
    t, density = law(sde, u)
    tau = (np.asarray(t, float) - sde.t_min) / (sde.t_max - sde.t_min)
    bins = np.asarray(law.bin(u))
    np.testing.assert_allclose(np.interp(tau, np.arange(9) / 8, np.append(0, np.cumsum(ratios)) / 8), u, atol=1e-5)
    np.testing.assert_allclose(density, ratios[bins], rtol=1e-5)
    assert np.all(np.abs(tau * 8 - bins - 0.5) < 0.5 + 1e-4) and set(bins) == set(range(8))
    np.testing.assert_array_equal(law.bin(jnp.float32([1 - 2**-24, 1.0])), 7)


def test_the_loss_s_second_moment_remembers_about_as_many_losses_as_it_is_told():
    law, size, losses = LossSecondMoment.init(bins=2, history=4), jnp.array([0, 0, 0, 1]), [3.0, 1.0, 2.0, 5.0]
    law = update(law, size, jnp.float32(losses))  # a plain mean, two of one bin in a batch
    np.testing.assert_allclose(law.moments, [14 / 3, 25], rtol=1e-6)
    law = update(law, jnp.array([0, 0]), jnp.float32([4.0, 0.0]))  # beyond four: each new one weighs a quarter
    np.testing.assert_allclose(law.moments, [14 / 3 / 2 + 16 / 4, 25], rtol=1e-6)
    law = update(law, jnp.zeros(8, int), jnp.full(8, 7.0))  # more than four at once: those alone
    np.testing.assert_allclose(law.moments, [49, 25], rtol=1e-6)
    np.testing.assert_array_equal(law.seen, [4, 1])


def test_the_loss_s_second_moment_takes_its_own_density_out_of_the_losses():
    law = learned(uniform_t)
    again = update(law, jnp.arange(8), SIZES / law.ratios())
    np.testing.assert_allclose(again.moments, law.moments, rtol=1e-5)


def test_the_loss_s_second_moment_quiets_the_loss_and_goes_through_jit():
    # Data of one point and the score of N(0, MODEL_STD²): with the likelihood's weighting at uniform times nearly all
    # of the loss is early.
    score_fn, x0 = NetworkScore(zeros, {}, VP(), EDMPreconditioning(MODEL_STD)), DATA_STD * jnp.ones((64, 2))

    @jax.jit
    def step(law, i):
        key_u, key = jax.random.split(jax.random.key(i))
        u = stratified_uniform(key_u, 64)
        losses = denoising_score_matching(score_fn, x0, key, weighting=likelihood_weighting, times=law, u=u)
        return law.update(u, losses), jnp.mean(losses)

    law, means = LossSecondMoment.init(uniform_t, bins=32), []
    for i in range(600):
        law, mean = step(law, i)
        means.append(float(mean))
    assert jax.tree.structure(law) == jax.tree.structure(LossSecondMoment.init(uniform_t, bins=32))
    assert [leaf.shape for leaf in jax.tree.leaves(law)] == [(32,), (32,)]
    base, known = LossSecondMoment.init(uniform_t, bins=32), means[100:]
    plain = [float(step(base, i)[1]) for i in range(100, 600)]
    assert abs(np.mean(known) - np.mean(plain)) < 4 * np.sqrt((np.var(plain) + np.var(known)) / 500)
    assert np.var(plain) > 5 * np.var(known)  # measured: 15 times


def optimise(law, losses_of, steps, rate=0.03):
    """The law after descending its objective on fresh losses each step, and E[loss²]/E[loss]² of before and after."""
    optimizer = optax.adam(rate)

    @jax.jit
    def step(law, state, i):
        u = stratified_uniform(jax.random.key(i), 256)
        updates, state = optimizer.update(jax.grad(LearnedLogSNR.objective)(law, u, losses_of(law, u)), state)
        return optax.apply_updates(law, updates), state

    def spread(law):
        losses = np.asarray(losses_of(law, stratified_uniform(jax.random.key(-1), 4096)), float)
        return np.mean(losses**2) / np.mean(losses) ** 2

    first, state = law, optimizer.init(law)
    for i in range(steps):
        law, state = step(law, state, i)
    return law, spread(first), spread(law)


def integrand(place):
    """A loss over the place in the range of log SNR, 0 to 1, that is all in its last third."""
    return 0.05 + jnp.exp(-0.5 * ((place - 0.8) / 0.08) ** 2)


def test_the_learned_schedule_s_objective_has_the_gradient_of_the_second_moment():
    # E[loss²] = ∫ L(place)²/p(place) dplace with p = 1/F', by a fine sum over u; its gradient by differentiating that
    # sum as it stands.
    rng = np.random.default_rng(0)
    law = LearnedLogSNR(
        *(jnp.asarray(v, jnp.float32) for v in (0.2, rng.normal(size=6), 2 + rng.random(6), np.linspace(0, 1, 6)))
    )
    u = (jnp.arange(4000) + 0.5) / 4000

    def log_second_moment(law):
        place, speed = law._speed(u)
        return jnp.log(jnp.mean((integrand(place) * speed) ** 2))

    place, speed = law._speed(u)
    found = jax.grad(LearnedLogSNR.objective)(law, u, integrand(place) * speed)
    expected = jax.grad(log_second_moment)(law)
    for got, wanted in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(got, wanted, rtol=2e-3, atol=2e-4)
    assert max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(expected)) > 0.1


def test_the_learned_schedule_finds_the_law_of_least_variance():
    # That is p ∝ the loss (any other has a larger second moment, by Cauchy-Schwarz), for which every draw gives the
    # same.
    def losses_of(law, u):
        place, speed = law._speed(u)
        return integrand(place) * speed

    law, before, after = optimise(LearnedLogSNR.init(), losses_of, 500)
    assert before > 2.5 and after < 1.02
    place = np.linspace(0, 1, 20_001)
    mass = np.asarray(integrand(jnp.asarray(place)), float)
    cdf = np.append(0, np.cumsum((mass[1:] + mass[:-1]) / 2))
    u = np.linspace(0, 1, 50, dtype=np.float32)
    np.testing.assert_allclose(law.progress(jnp.asarray(u)), np.interp(u, cdf / cdf[-1], place), atol=0.02)


def test_the_learned_schedule_quiets_the_loss_and_never_decreases():
    # As for the second moment: a loss that nearly all comes from few noise levels.
    score_fn, x0 = NetworkScore(zeros, {}, VP(), EDMPreconditioning(MODEL_STD)), DATA_STD * jnp.ones((4096, 2))

    def losses_of(law, u):
        return denoising_score_matching(
            score_fn,
            x0[: len(u)],
            jax.random.key(7),
            weighting=likelihood_weighting,
            times=jax.lax.stop_gradient(law),
            u=u,
        )

    law, before, after = optimise(LearnedLogSNR.init(), losses_of, 300)
    assert after - 1 < 0.6 * (before - 1)
    u = jnp.linspace(0, 1, 1001)
    t, density = law(VP(), u)
    assert np.all(np.diff(np.asarray(t)) >= 0) and np.all(np.asarray(density) > 0)
    np.testing.assert_allclose([t[0], t[-1]], [VP().t_min, VP().t_max], rtol=1e-5)
