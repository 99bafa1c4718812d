"""Moment matching of a large field, preconditioned by a field near the prior, against Wiener's posterior."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sde_lib import VP, ExactScore, FunctionScore, StationaryGaussianField, power_law_field, sample
from sde_lib.distributions import IsotropicGaussian
from sde_lib.inverse import Convolve, Mask, MomentMatching, Observed
from sde_lib.samplers import SDEDPMSolverPP2M, UniformLogSNR

SIDE, NOISE, SDE = 32, 0.1, VP()
FIELD = power_law_field((SIDE, SIDE))
PLACE = np.arange(-4, 5)
KERNEL = np.exp(-0.5 * np.hypot(PLACE[:, None], PLACE) ** 2 / 1.5**2)
BLUR = Convolve((KERNEL / KERNEL.sum()).astype(np.float32))
TRUTH = FIELD.sample(jax.random.key(0), 1)
Y = BLUR(TRUTH) + NOISE * jax.random.normal(jax.random.key(1), TRUTH.shape)
POSTERIOR, _ = FIELD.observe(BLUR, Y[0], NOISE)
PRIOR = ExactScore(FIELD, SDE)


def off(method, level, field=FIELD):
    """How far the guided score is from the exact one, over its size, at a point where it is used."""
    t = SDE.time_of_log_snr(level)
    x = POSTERIOR.at(SDE, t).sample(jax.random.key(2), 1)
    exact = ExactScore(POSTERIOR, SDE)(x, t)
    got = Observed(PRIOR, BLUR, NOISE, method)(x, t, {"y": Y})
    return float(jnp.linalg.norm(got - exact) / jnp.linalg.norm(exact))


def spectrum_seen(n):
    """The field of the spectrum that n draws have."""
    x = FIELD.sample(jax.random.key(3), n)
    return StationaryGaussianField(FIELD.shape, jnp.mean(jnp.abs(jnp.fft.rfft2(x, norm="ortho")) ** 2, axis=0))


@pytest.mark.parametrize("level", [-7.0, -1.0, 5.0])
def test_with_the_field_itself_one_iteration_is_exact_and_with_one_like_it_a_few_come_near(level):
    assert off(MomentMatching(1, near=FIELD), level) < 1e-4
    few, plain = off(MomentMatching(4, near=spectrum_seen(8)), level), off(MomentMatching(4), level)
    assert few < 0.3 * plain


@dataclass(frozen=True)
class Noiseless(SDEDPMSolverPP2M):
    """The mean of what the SDE's sampler draws with a score affine in x."""

    def update(self, sde, times):
        return super().update(sde, times)._replace(c=None)


def test_the_sampler_has_wiener_s_mean_and_spread():
    score_fn, cond = Observed(PRIOR, BLUR, NOISE, MomentMatching(1, near=FIELD)), {"y": Y, "cond": None}
    settings = {"steps": 100, "grid": UniformLogSNR()}
    exact = POSTERIOR.at(SDE, SDE.t_min)
    start = IsotropicGaussian(FIELD.shape, 1e-9)  # its mean alone
    mean = sample(Noiseless(**settings), score_fn, jax.random.key(0), 1, FIELD.shape, cond=cond, prior=start).x[0]
    assert float(jnp.linalg.norm(mean - exact.mean) / jnp.linalg.norm(exact.mean)) < 1e-3
    n = 24
    many = {"y": jnp.repeat(Y, n, axis=0), "cond": None}
    x = sample(SDEDPMSolverPP2M(**settings), score_fn, jax.random.key(1), n, FIELD.shape, cond=many).x
    power = (
        np.asarray(jnp.mean(jnp.abs(jnp.fft.rfft2(x - exact.mean[None], norm="ortho")) ** 2, axis=0)) / exact.spectrum
    )
    frequency = np.hypot(np.fft.fftfreq(SIDE)[:, None], np.fft.rfftfreq(SIDE))
    for part in np.array_split(np.argsort(frequency.ravel()), 6):
        assert abs(float(np.mean(power.ravel()[part])) - 1) < 0.06  # 0.015 is one standard error


def test_channels_and_rows_are_each_their_own():
    """Of a prior of two independent channels, at a time for each row."""

    def score(x, t):
        return jnp.stack([PRIOR(x[..., c], t) for c in range(2)], axis=-1)

    @jax.jit
    def call(prior, x, t, y):
        return Observed(prior, BLUR, NOISE, MomentMatching(1, near=FIELD))(x, t, {"y": y})

    x, t = jax.random.normal(jax.random.key(4), (2, SIDE, SIDE, 2)), jnp.asarray([0.2, 0.7])
    both = call(FunctionScore(score, SDE), x, t, 0.5 * x)
    for c in range(2):
        alone = call(PRIOR, x[..., c], t, 0.5 * x[..., c])
        np.testing.assert_allclose(both[..., c], alone, rtol=1e-3, atol=1e-3)
    for i in range(2):
        alone = call(PRIOR, x[i : i + 1, ..., 0], t[i], 0.5 * x[i : i + 1, ..., 0])
        np.testing.assert_allclose(both[i, ..., 0], alone[0], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    ("operator", "noise", "said"),
    [
        (Mask(np.ones((SIDE, SIDE))), NOISE, "near is for a Convolve"),
        (Convolve(np.ones(3, np.float32)), NOISE, "near is for a Convolve"),
        (BLUR, np.full((SIDE, SIDE), NOISE, np.float32), "near is for one noise"),
    ],
)
def test_what_has_no_inverse_in_fourier_space_is_refused(operator, noise, said):
    with pytest.raises(ValueError, match=said):
        Observed(PRIOR, operator, noise, MomentMatching(1, near=FIELD))(TRUTH, 0.3, {"y": Y})
