"""Agreement with what the published networks and SDEs compute: vectors kept outside the repository; skipped where they
are not there.
"""

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from experiment.published.score_sde_layout import options_of, published_names
from experiment.published.to_run import arranged
from models import NCSNpp, OneKey, split
from models.ncsnpp_blocks import Downsample, positional_embedding
from models.resample import downsample, fir_downsample, fir_upsample, upsample
from sde_lib import VE, VP, NetworkScore, SubVP
from sde_lib.labels import LogSigmaLabel, TimeLabel
from sde_lib.score import RawEpsilonPrediction, RawScorePrediction
from tests.commands import ROOT

GOLDEN = ROOT.parent / "shared" / "golden"
pytestmark = pytest.mark.skipif(not GOLDEN.is_dir(), reason=f"no vectors in {GOLDEN}")
BOUND = 1e-5  # relative to the largest entry

VE_50 = VE(sigma_min=0.01, sigma_max=50.0, t_min=1e-5)
NETWORKS = {
    "ddpmpp_nf16": (VP(t_min=1e-5), RawEpsilonPrediction(noise_label=TimeLabel())),
    "ncsnpp_nf16": (VE_50, RawScorePrediction(noise_label=LogSigmaLabel())),
    "ncsnpp_output_skip_input_skip_cat_16px_nf16": (VE_50, RawScorePrediction(noise_label=LogSigmaLabel())),
}


def nhwc(x):
    return np.moveaxis(x, 1, -1)


def agrees(ours, theirs):
    assert np.abs(np.asarray(ours) - theirs).max() < BOUND * np.abs(theirs).max()


@cache
def vectors(name):
    with np.load(GOLDEN / f"{name}.npz") as file:
        return {key: file[key] for key in file.files if not key.startswith("act/")}


@cache
def computed(name):
    """The network's output, score, probability-flow drift and vector-Jacobian product, as the published code has
    them.
    """
    z, (sde, parameterization) = vectors(name), NETWORKS[name]
    weights = {
        key.removeprefix("sd/"): value for key, value in z.items() if key.startswith("sd/") and key != "sd/sigmas"
    }
    size = z["x_nchw"].shape[-1]
    options = {**options_of(weights, has_sigmas=True, image_size=size), "centered": isinstance(sde, VP)}
    network = nnx.eval_shape(lambda: NCSNpp(**options, rngs=OneKey()))
    score = NetworkScore(
        split(network)[0], arranged(network, published_names(network, weights, options), weights), sde, parameterization
    )
    t, x, v = jnp.asarray(z["t"]), jnp.asarray(nhwc(z["x_nchw"])), jnp.asarray(nhwc(z["hutch_eps_nchw"]))
    over_sigma = 1.0 if isinstance(sde, VP) else 1 / z["labels"][:, None, None, None]  # theirs divides by sigma itself

    def output(x):
        return score.apply(score.params, x, parameterization.noise_label(sde, t)) * over_sigma

    @jax.jit
    def run(score, x, v):
        y, pull = jax.vjp(output, x)
        s = score(x, t)
        f, g2 = (c[:, None, None, None] for c in (sde.f(t), sde.g2(t)))
        return {"y": y, "score": s, "pf_drift": f * x - 0.5 * g2 * s, "vjp": pull(v)[0]}

    return run(score, x, v)


@pytest.mark.parametrize("what", ["y", "score", "pf_drift", "vjp"])
@pytest.mark.parametrize("name", NETWORKS)
def test_networks(name, what):
    agrees(computed(name)[what], nhwc(vectors(name)[f"{what}_nchw"]))


def test_options_are_told_by_the_weights():
    keys = {
        key.removeprefix("sd/"): v
        for key, v in vectors("ncsnpp_output_skip_input_skip_cat_16px_nf16").items()
        if "all_modules" in key
    }
    found = options_of(keys, has_sigmas=True, image_size=16)
    assert (
        found["progressive"] == "output_skip" and found["progressive_combine"] == "cat" and found["attention"] == (8,)
    )


def test_resampling():
    z = vectors("operators")
    x = jnp.asarray(nhwc(z["x"]))
    for name, ours in {
        "upsample_2d": fir_upsample,
        "downsample_2d": fir_downsample,
        "naive_up": upsample,
        "naive_down": downsample,
    }.items():
        agrees(ours(x), nhwc(z[name]))
    layer = Downsample(3, 5, fir=True, dtype=jnp.float32, rngs=nnx.Rngs(0))
    layer.conv.kernel[...] = jnp.asarray(z["conv_w_oihw"].transpose(2, 3, 1, 0))
    agrees(layer(x), nhwc(z["conv_downsample_2d"]))


def test_embedding():
    z = vectors("operators")
    agrees(positional_embedding(jnp.asarray(z["emb_t"]), 128), z["timestep_embedding_128"])


@pytest.mark.parametrize("name", ["vp", "subvp", "ve"])
def test_sdes(name):
    """Mean, std, drift, diffusion, the prior's log-density, and the drifts under the score of data N(0, I/4)."""
    z = {key.partition("/")[2]: value for key, value in vectors("operators").items() if key.startswith(f"{name}/")}
    sde = {"vp": VP(t_min=1e-5), "subvp": SubVP(t_min=1e-5), "ve": VE_50}[name]
    t, xs = jnp.asarray(vectors("operators")["t"]), nhwc(vectors("operators")["xs"])
    alpha, sigma, f, g2 = (np.asarray(c(t), np.float64) for c in (sde.alpha, sde.sigma, sde.f, sde.g2))

    def rows(c):
        return c[:, None, None, None]

    agrees(rows(alpha) * xs, nhwc(z["mean"]))
    agrees(sigma, z["std"])
    agrees(rows(f) * xs, nhwc(z["drift"])) if name != "ve" else np.testing.assert_array_equal(f, 0)
    agrees(np.sqrt(g2), z["diffusion"])
    agrees(sde.prior(xs.shape[1:]).log_prob(jnp.asarray(xs)), z["prior_logp"])
    score = -xs / rows(alpha**2 / 4 + sigma**2)
    agrees(rows(f) * xs - 0.5 * rows(g2) * score, nhwc(z["pf_drift"]))
    agrees(rows(f) * xs - rows(g2) * score, nhwc(z["rev_drift"]))
