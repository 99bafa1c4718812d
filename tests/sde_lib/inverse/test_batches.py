"""With fixed batches a posterior's sample is the same to the last bit, however many are drawn beside it.

Without, XLA rounds sums and products otherwise for another number of rows, and guided steps make much of that: 0.3 of a
sample here by Jensen's method, on CPU.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sde_lib import VP, ExactScore, FunctionScore, sample
from sde_lib.inverse import (
    Assimilation,
    Convolve,
    Downsample,
    Jensen,
    Linear,
    Mask,
    MomentMatching,
    Observed,
    Operator,
    Projection,
    Proximal,
    PseudoInverse,
    RePaint,
    SplitGibbs,
    TwistedSMC,
)
from sde_lib.samplers import DPMSolverPP2M, EulerMaruyama, PredictorCorrector, SDEDPMSolverPP2M
from tests.oracles import random_mixture

RNG, SHAPE, N, BATCH = np.random.default_rng(5), (4, 4, 1), 64, 16
WEIGHTS = [RNG.normal(size=(3, 3, 1, 8)) / 3, RNG.normal(size=(3, 3, 8, 1)) / 8, RNG.normal(size=(16, 16)) / 4]


def network(x, t):
    """Convolutions and a product over all entries, as a score network has."""
    kernels, h = [jnp.asarray(w, x.dtype) for w in WEIGHTS], x
    axes = ("NHWC", "HWIO", "NHWC")
    for kernel in kernels[:2]:
        h = jnp.tanh(jax.lax.conv_general_dilated(h, kernel, (1, 1), "SAME", dimension_numbers=axes))
    return -x + 0.3 * (h.reshape(len(h), -1) @ kernels[2]).reshape(x.shape)


MIXTURE, NETWORK = ExactScore(random_mixture(3, 16), VP()), FunctionScore(network, VP())
MASK, MATRIX = Mask(RNG.random(SHAPE) < 0.5), Linear(RNG.normal(size=(5, 16)).astype(np.float32))
BLUR = Convolve(np.array([[0.1, 0.2], [0.3, 0.4]], np.float32))
ODE, SDE, TWISTED = DPMSolverPP2M(steps=8), EulerMaruyama(steps=8), TwistedSMC(8, 5, keep=True)
CASES = {
    "moment matching": (ODE, MIXTURE, MATRIX, MomentMatching(3)),
    "moment matching, a network": (PredictorCorrector(steps=8), NETWORK, MASK, MomentMatching(2)),
    "pseudo-inverse": (SDE, MIXTURE, Downsample(2), PseudoInverse()),
    "assimilation": (SDE, NETWORK, BLUR, Assimilation()),
    "jensen": (ODE, MIXTURE, Operator(jnp.abs), Jensen()),
    "proximal": (SDE, NETWORK, MATRIX, Proximal()),
    "projection": (ODE, MIXTURE, MASK, Projection()),
    "twisted": (TWISTED, MIXTURE, MASK, MomentMatching()),
    "split gibbs": (SplitGibbs(2, 0.4, sampler=SDEDPMSolverPP2M(steps=4)), MIXTURE, MATRIX, MomentMatching()),
    "repaint": (RePaint(8, 2), NETWORK, MASK, MomentMatching()),
}


@pytest.mark.parametrize("case", CASES)
def test_a_sample_has_the_same_bits_in_draws_of_1_7_and_64(case):
    sampler, prior, operator, method = CASES[case]
    score_fn = Observed(prior, operator, 0.0 if case == "repaint" else 0.4, method)
    y = jax.random.normal(jax.random.key(1), (N, *jax.eval_shape(operator, jnp.zeros((1, *SHAPE))).shape[1:]))

    def drawn(first, n, **kwargs):
        cond = {"y": y[first : first + n], "cond": None}
        kwargs = {"batch_size": BATCH, "fixed_batches": True, **kwargs}
        return sample(sampler, score_fn, jax.random.key(0), n, SHAPE, cond=cond, first=first, **kwargs)

    whole = drawn(0, N)
    for first, n in ((0, 1), (17, 1), (63, 1), (0, 7), (12, 7), (57, 7)):
        found = drawn(first, n)
        for name in ("x", "log_evidence"):
            if getattr(whole, name) is not None:
                np.testing.assert_array_equal(getattr(found, name), getattr(whole, name)[first : first + n])
        assert (found.nfe, found.jvps) == (whole.nfe, whole.jvps)


def test_frames_and_weights_come_with_their_samples():
    y, score_fn = jax.random.normal(jax.random.key(1), (20, *SHAPE)), Observed(MIXTURE, MASK, 0.4)
    for sampler, axes, frames in ((SDE, {"path": 1}, 3), (TWISTED, {"ess": 1, "particles": 0, "log_weights": 0}, 0)):

        def drawn(first, n, sampler=sampler, frames=frames):
            cond = {"y": y[first : first + n], "cond": None}
            kwargs = {"frames": frames, "batch_size": BATCH, "fixed_batches": True}
            return sample(sampler, score_fn, jax.random.key(0), n, SHAPE, cond=cond, first=first, **kwargs)

        whole, part = drawn(0, 20), drawn(13, 5)
        for name, axis in axes.items():
            expected = np.take(np.asarray(getattr(whole, name)), range(13, 18), axis)
            np.testing.assert_array_equal(getattr(part, name), expected)


def test_it_needs_a_size():
    with pytest.raises(ValueError, match="fixed_batches needs a batch_size"):
        sample(SDE, MIXTURE, jax.random.key(0), 3, SHAPE, fixed_batches=True)
