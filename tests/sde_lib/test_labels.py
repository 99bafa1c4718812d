"""What a network is told of the noise, and published parameterisations, against their definitions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sde_lib import VE, VP, CosineVP, ExactScore, NetworkScore, SubVP
from sde_lib.chain import Chain, linear_betas
from sde_lib.distributions import GaussianMixture
from sde_lib.labels import ChainLabel, LogSigmaLabel, LogSNRLabel, ReversedTimeLabel, TimeLabel
from sde_lib.score import EpsilonPrediction, RawEpsilonPrediction, RawScorePrediction

DATA = GaussianMixture([0.3, 0.7], [[-1.0, 0.5], [1.5, 0.0]], [np.diag([0.3, 0.1]), np.diag([0.05, 0.4])])
TIMES = jnp.array([0.002, 0.1, 0.55, 1.0])


def chain_log_snr(betas):
    chain = Chain(betas)
    return 2 * np.log(chain.alpha / chain.sigma)


def test_labels_at_times_that_can_be_done_by_hand():
    """Half-way, VE is at the geometric mean of its ends, and beta from 2 to 10 has the integral 2: alpha² is e^-2."""
    ve, vp = VE(sigma_min=0.01, sigma_max=100.0), VP(beta_min=2.0, beta_max=10.0)
    t = jnp.array([0.0, 0.5, 1.0])
    np.testing.assert_allclose(LogSigmaLabel()(ve, t), [-4.605170, 0.0, 4.605170], rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(TimeLabel()(vp, jnp.array([0.0, 0.2, 1.0])), [0.0, 199.8, 999.0], rtol=1e-6)
    np.testing.assert_allclose(ReversedTimeLabel()(ve, jnp.array([0.0, 0.2, 1.0])), [999.0, 799.2, 0.0], atol=1e-3)
    # log(sigma/alpha)/4 = log(e^2 - 1)/8 at t = 0.5, and log(e^6 - 1)/8 at t = 1
    np.testing.assert_allclose(LogSNRLabel()(vp, jnp.array([0.5, 1.0])), [0.2318233, 0.7496897], rtol=1e-5)


@pytest.mark.parametrize("sde", [VP(), CosineVP(), SubVP(), VE()], ids=["vp", "cosine", "subvp", "ve"])
def test_the_chain_s_label_is_the_step_of_the_same_log_snr(sde):
    """At times whose log SNR is that of step k it is k, from 0; half-way in log SNR, half; clipped beyond both ends."""
    log_snr = chain_log_snr(linear_betas(1000))
    label, steps = ChainLabel(log_snr), np.array([3, 250, 700])
    inside = np.clip(log_snr[steps], sde.log_snr(1.0) + 1e-6, None)
    found = np.asarray(label(sde, jnp.asarray(sde.time_of_log_snr(inside))))
    expected = np.interp(-inside, -log_snr, np.arange(1000))
    np.testing.assert_allclose(found, expected, atol=0.05)
    between = (log_snr[250] + log_snr[251]) / 2
    assert abs(float(label(sde, jnp.asarray(sde.time_of_log_snr(between)))) - 250.5) < 0.05
    assert float(label(VP(t_min=1e-7), jnp.asarray(1e-7))) == 0.0
    assert float(label(VE(sigma_max=1e4), jnp.asarray(1.0))) == 999.0


@pytest.mark.parametrize("sde", [VP(), SubVP(), VE(sigma_max=20.0), CosineVP()], ids=["vp", "subvp", "ve", "cosine"])
@pytest.mark.parametrize(
    ("parameterization", "of_score"),
    [
        (RawEpsilonPrediction(noise_label=TimeLabel()), lambda s, sigma: -sigma * s),
        (RawScorePrediction(noise_label=TimeLabel()), lambda s, sigma: sigma * s),
        (RawScorePrediction(scale_by_sigma=False, noise_label=TimeLabel()), lambda s, sigma: s),
    ],
    ids=["eps", "score over sigma", "score"],
)
def test_a_network_of_the_unscaled_input_gives_the_exact_score(sde, parameterization, of_score):
    """The ideal network by definition: it sees x itself and the label 999 t, from which it finds the time."""

    def ideal(params, x, label, cond, key):
        t = label / 999
        return of_score(ExactScore(DATA, sde)(x, t), sde.sigma(t)[:, None])

    x = jax.random.normal(jax.random.key(0), (4, 2)) * 2
    np.testing.assert_allclose(
        NetworkScore(ideal, {}, sde, parameterization)(x, TIMES), ExactScore(DATA, sde)(x, TIMES), rtol=2e-3, atol=1e-4
    )


def test_any_parameterisation_takes_any_label():
    def told(params, x, label, cond, key):
        return jnp.zeros_like(x) + label[:, None]

    score = NetworkScore(told, {}, VP(), EpsilonPrediction(noise_label=TimeLabel(100.0)))(jnp.zeros((4, 2)), TIMES)
    np.testing.assert_allclose(score[:, 0], -100 * TIMES / VP().sigma(TIMES), rtol=1e-4)
