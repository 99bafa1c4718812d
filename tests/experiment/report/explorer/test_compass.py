"""The mathematics in the page, run by node, against sde_lib in float64 and against closed forms."""

import json
import shutil
import subprocess
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiment.report.explorer.page import HERE, figure_eight, mixture_of, numbers, peaks
from sde_lib import VP, CosineVP, ExactScore, RectifiedFlow, denoiser
from sde_lib.inverse import Jensen, Linear, MomentMatching, Observed

NODE = shutil.which("node")
pytestmark = pytest.mark.skipif(NODE is None, reason="the page's mathematics is computed by node, which is not there")

SDES = {"vp": VP(), "cosine": CosineVP(), "flow": RectifiedFlow()}
TIMES = [0.001, 0.004, 0.02, 0.07, 0.15, 0.3, 0.5, 0.7, 0.9, 0.99]
SEEN = {"a": [0.6, -0.8], "y": 0.35, "noise": 0.15}
SEEN_TIMES = [0.02, 0.2, 0.6]
GAUSSIANS = [[1.0, 0.25], [0.0, 1.0]]
# FRONTIER's closed forms by quadrature, which the moments' ODE confirms: scale, tilted, ODE, SDE, each mean, variance.
LAWS = [
    (1.5, (1.0909, 0.1818), (1.238451, 0.125), (1.166667, 0.15625)),
    (2.0, (1.1429, 0.1429), (1.380173, 0.0625), (1.25, 0.109375)),
    (3.0, (1.2, 0.1), (1.5, 0.015625), (1.3125, 0.066602)),
    (5.0, (1.25, 0.0625), (1.5, 0.000977), (1.332031, 0.037037)),
]


def points_at(sde: Any, t: float) -> np.ndarray:
    """200 places at time t: where noised data are, and some far off."""
    rng = np.random.default_rng(int(1000 * t))
    means = np.asarray(figure_eight()["means"])
    near = sde.alpha(t) * means[rng.integers(len(means), size=150)]
    near = near + np.sqrt(sde.sigma(t) ** 2 + 0.01) * rng.standard_normal((150, 2))
    return np.concatenate([near, rng.uniform(-3, 3, (50, 2))])


@pytest.fixture(scope="module")
def given() -> dict[str, Any]:
    points = {name: [points_at(sde, t).tolist() for t in TIMES] for name, sde in SDES.items()}
    places = np.random.default_rng(1).uniform(-2, 2, (40, 2)).tolist()
    found = {"numbers": numbers(), "times": TIMES, "points": points, "places": places, "seen": SEEN}
    return found | {"seenTimes": SEEN_TIMES, "scales": [g for g, *_ in LAWS], "gaussians": GAUSSIANS}


@pytest.fixture(scope="module")
def computed(given: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    path = tmp_path_factory.mktemp("compass") / "given.json"
    path.write_text(json.dumps(given))
    script = Path(__file__).with_name("compute.mjs")
    done = subprocess.run([NODE, script, HERE / "compass.mjs", path], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@jax.jit
def exact_fields(mixture: Any, sde: Any, t: Any, x: Any) -> Any:
    """Score, log-density and denoiser of x (times, n, 2) at t (times,)."""

    def one(t: Any, x: Any) -> Any:
        noised = mixture.at(sde, t)
        return noised.score(x), noised.log_prob(x), denoiser(ExactScore(mixture, sde), x, t)

    return jax.vmap(one)(t, x)


@pytest.mark.parametrize("name", SDES)
def test_score_density_and_denoiser_are_the_librarys(name: str, given: Any, computed: Any) -> None:
    with jax.enable_x64(True):
        sde, t = SDES[name], jnp.asarray(TIMES)
        x = jnp.asarray(given["points"][name])
        score, log_prob, guess = map(np.asarray, exact_fields(mixture_of(figure_eight()), sde, t, x))
    for i, at in enumerate(computed["fields"][name]):
        np.testing.assert_allclose([at["alpha"], at["sigma"]], [sde.alpha(TIMES[i]), sde.sigma(TIMES[i])], rtol=1e-12)
        np.testing.assert_allclose(at["logProb"], log_prob[i], rtol=1e-6)
        for found, expected in ((at["score"], score[i]), (at["denoiser"], guess[i])):
            apart = np.linalg.norm(np.reshape(found, (-1, 2)) - expected, axis=1)
            assert (apart <= 1e-6 * np.linalg.norm(expected, axis=1)).all()


def test_the_posterior_and_the_scores_given_an_observation_are_the_librarys(given: Any, computed: Any) -> None:
    found = computed["observed"]
    with jax.enable_x64(True):
        data, x = mixture_of(figure_eight()), jnp.asarray(given["places"])
        operator = Linear(jnp.asarray([SEEN["a"]]))
        posterior, log_evidence = data.observe(operator, jnp.asarray([SEEN["y"]]), SEEN["noise"])
        of_posterior = jax.jit(lambda p: (p.log_prob(x), p.mean(), jnp.trace(p.covariance())))
        log_prob, mean, variance = of_posterior(posterior)
        np.testing.assert_allclose(found["logEvidence"], log_evidence, rtol=1e-9)
        np.testing.assert_allclose(found["logProb"], log_prob, rtol=1e-6)
        np.testing.assert_allclose(found["moments"]["mean"], mean, rtol=1e-9)
        np.testing.assert_allclose(found["moments"]["variance"], variance, rtol=1e-9)
        for name, method in (("matching", MomentMatching(iterations=1)), ("dps", Jensen())):
            score = Observed(ExactScore(data, VP()), operator, SEEN["noise"], method)
            told = {"y": jnp.full((len(x), 1), SEEN["y"]), "cond": None}
            call = jax.jit(partial(score, cond=told))
            for t, ours in zip(SEEN_TIMES, found["scores"][name], strict=True):
                expected = np.asarray(call(x, t))
                np.testing.assert_allclose(np.reshape(ours, (-1, 2)), expected, rtol=1e-6, atol=1e-6)


def test_guidance_has_the_closed_forms(computed: Any) -> None:
    for (_, *expected), found in zip(LAWS, computed["laws"], strict=True):
        for name, (mean, variance) in zip(("tilted", "ode", "sde"), expected, strict=True):
            np.testing.assert_allclose(found[name]["mean"], mean, atol=5e-5 if name == "tilted" else 1e-6)
            np.testing.assert_allclose(found[name]["variance"], variance, atol=5e-5 if name == "tilted" else 5e-7)


def test_what_guidance_draws_has_the_variance_that_stands_beside_it(computed: Any) -> None:
    for (_, _, *expected), found in zip(LAWS, computed["drawn"], strict=True):
        for name, (mean, variance) in zip(("ode", "sde"), expected, strict=True):
            standard_error = np.sqrt(2 / 4000)  # relative, of a normal's variance
            assert abs(found[name]["variance"] / variance - 1) < 4 * standard_error + 0.03, name
            assert abs(found[name]["mean"] - mean) < 4 * np.sqrt(variance / 4000) + 0.003, name


def segments_cross(paths: np.ndarray, times: np.ndarray) -> int:
    """How many pairs of segments of different paths, (steps, n) over times, meet inside their common step."""
    found = 0
    for i in range(len(times) - 1):
        (p, q), t = paths[i : i + 2], times[i : i + 2]
        # The lines p + u (q - p) meet at the u where their difference is 0.
        start, end = p[:, None] - p[None], q[:, None] - q[None]
        with np.errstate(invalid="ignore", divide="ignore"):
            u = start / (start - end)
        inside = (u > 0) & (u < 1) & (t[0] != t[1])
        found += int(np.triu(inside, 1).sum())
    return found


def test_paths_of_the_ode_never_cross_and_those_of_the_sde_do(computed: Any) -> None:
    times, crossings = np.array(computed["times"]), {}
    for name in ("ode", "sde"):
        crossings[name] = segments_cross(np.array(computed["paths"][name])[:, :200], times)
    assert crossings["ode"] == 0
    assert crossings["sde"] > 1000


def test_ends_of_the_sde_and_of_the_ode_agree(computed: Any) -> None:
    law = peaks()
    means, weights = np.ravel(law["means"]), np.array(law["weights"])
    shares = {}
    for name in ("ode", "sde"):
        nearest = np.abs(np.array(computed["paths"][name][-1])[:, None] - means).argmin(1)
        shares[name] = np.bincount(nearest, minlength=3) / len(nearest)
        assert 0.5 * np.abs(shares[name] - weights).sum() < 0.05
    assert 0.5 * np.abs(shares["ode"] - shares["sde"]).sum() < 0.05


def log_density_of_draws(n: int, alpha: float, sigma: float) -> np.ndarray:
    """The log-density of draws of the noised figure, each at itself."""
    law, rng = figure_eight(), np.random.default_rng(0)
    means = alpha * np.array(law["means"])
    covariances = alpha**2 * np.array(law["covariances"]) + sigma**2 * np.eye(2)
    roots, inverses = np.linalg.cholesky(covariances), np.linalg.inv(covariances)
    k = rng.integers(len(means), size=n)
    x = means[k] + np.einsum("nij,nj->ni", roots[k], rng.standard_normal((n, 2)))
    apart = x[:, None] - means
    exponents = -0.5 * np.einsum("nki,kij,nkj->nk", apart, inverses, apart)
    return np.log(np.mean(np.exp(exponents) / (2 * np.pi * np.sqrt(np.linalg.det(covariances))), axis=1))


def test_noise_is_reached_and_left(given: Any, computed: Any) -> None:
    forward = np.reshape(computed["forward"], (-1, 2))
    assert (np.abs(forward.std(axis=0) - 1) < 0.03).all()
    # Back at t_min the mean log-density is minus the entropy, whichever way the points came.
    direct = log_density_of_draws(20_000, VP().alpha(1e-3), VP().sigma(1e-3))
    for name in ("ode", "sde"):
        found = np.array(computed["back"][name])
        assert abs(found.mean() - direct.mean()) < 4 * direct.std() / np.sqrt(len(found)), name


def test_the_figure_has_unit_variance_and_lies_on_the_toys_curve(computed: Any) -> None:
    law = mixture_of(figure_eight())
    assert abs(np.trace(law.covariance()) / 2 - 1) < 0.01
    drawn = np.reshape(computed["clean"], (-1, 2))
    error = 4 * np.sqrt(np.asarray(law.covariance()).diagonal() / len(drawn))
    assert (np.abs(drawn.mean(axis=0) - law.mean()) < error).all()
    np.testing.assert_allclose(np.cov(drawn.T), law.covariance(), atol=0.08)
    curve = np.array(figure_eight()["outline"])
    a = curve[:, 0].max()
    np.testing.assert_allclose(curve[:, 1] ** 2 * a**2, curve[:, 0] ** 2 * (a**2 - curve[:, 0] ** 2), atol=1e-5)


def test_random_numbers_are_normal_and_repeat(computed: Any) -> None:
    z = np.array(computed["stream"])
    assert computed["repeated"]
    n = len(z)
    assert abs(z.mean()) < 4 / np.sqrt(n)
    assert abs(z.var() - 1) < 4 * np.sqrt(2 / n)
    assert abs((z**4).mean() - 3) < 4 * np.sqrt(96 / n)
    assert abs((z[1:] * z[:-1]).mean()) < 4 / np.sqrt(n)
