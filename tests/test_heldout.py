"""evaluate.py --likelihood: an error budget whose every part is what repeating would give, kept batch by batch."""

import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import base
from experiment.dataset import Dataset, Split
from experiment.errors import UserError
from experiment.likelihood import LikelihoodSettings, likelihood, likelihood_lines, prior_mismatch
from experiment.scaling import Scaling
from sde_lib import VP, ExactScore, GaussianMixture
from sde_lib.bounds import vlb
from tests.oracles import random_mixture

LAW = random_mixture(seed=3, d=4, spread=0.4)
FAST: Any = {"probes": 2, "rtol": 1e-3, "atol": 1e-3, "batch_size": 16}


def run_of(levels: int | None, n: int = 40) -> Any:
    x = np.asarray(LAW.sample(jax.random.key(0), 200 + n))
    shape: tuple[int, ...] = (4,)
    if levels is not None:
        shape, x = (2, 2, 1), np.asarray(Scaling(levels).to_data(x)).reshape(-1, 2, 2, 1)
    return SimpleNamespace(
        config=base.get_config(),
        dataset=Dataset("ours", Split(x[:200]), Split(x[200:]), levels),
        score_fn=ExactScore(LAW, VP(t_min=0.01)),
        scaling=Scaling(levels),
        shape=shape,
        step=3,
    )


PICTURES, VECTORS = run_of(17), run_of(None)


def test_vectors_are_given_their_log_density() -> None:
    found, values, _ = likelihood(VECTORS, LikelihoodSettings(**FAST))
    exact = LAW.at(VP(), 0.01).log_prob(jnp.asarray(VECTORS.dataset.test.x))
    assert (found["unit"], found["n"], found["k"], found["dequantization"]) == ("nats", 40, 1, None)
    assert abs(found["mean"] - float(exact.mean())) < 4 * found["se_probes"] + 2e-3
    assert found["se_images"] == pytest.approx(values.std(ddof=1) / 40**0.5)
    assert 0 < abs(found["tolerance_change"]) < 1e-2 and found["se_dequantization"] is None


@pytest.mark.parametrize("dequantization", ["uniform", "truncated_normal"])
def test_bits_are_those_of_the_density_over_the_bin(dequantization: str) -> None:
    settings = LikelihoodSettings(**{**FAST, "probes": 16}, dequantization=dequantization, k=8)
    found, values, _ = likelihood(PICTURES, settings)
    # log P(x) = log of the integral of p_{t_min} over the bin, here from many uniform draws of its own.
    levels, rng, sde = PICTURES.dataset.test.x.reshape(40, 4), np.random.default_rng(0), VP(t_min=0.01)
    z = (2 * (levels[:, None] + rng.random((40, 2000, 4))) / 17 - 1).reshape(-1, 4)
    scale = 1.0 if dequantization == "uniform" else sde.alpha(0.01)  # the bins tile x, or alpha x
    log_p = np.asarray(LAW.at(sde, 0.01).log_prob(jnp.asarray(scale * z, jnp.float32)), float).reshape(40, 2000)
    exact = -(np.log(np.mean(np.exp(log_p), axis=1)) + 4 * np.log(2 / 17 * scale)) / (4 * np.log(2))
    assert found["unit"] == "bits/dim"
    budget = np.hypot(found["se_probes"], found["se_dequantization"])
    assert abs(found["mean"] - exact.mean()) < 4 * budget + 3e-3
    assert np.corrcoef(values, exact)[0, 1] > 0.9


def test_the_standard_error_over_draws_is_that_of_repeated_draws() -> None:
    coarse, settings = run_of(4), {**FAST, "probes": 16}
    means = [likelihood(coarse, LikelihoodSettings(**settings, seed=seed), budget=False)[0]["mean"] for seed in range(12)]
    found, _, _ = likelihood(coarse, LikelihoodSettings(**settings))
    assert found["se_dequantization"] > found["se_probes"]
    assert 0.4 < np.std(means, ddof=1) / np.hypot(found["se_dequantization"], found["se_probes"]) < 2


def test_the_bound_lies_beside_the_ode_s_value_and_says_its_terms() -> None:
    found, _, arrays = likelihood(PICTURES, LikelihoodSettings(**FAST, bound=True))
    bound, per_unit = found["bound"], 1 / (4 * np.log(2))
    x = Scaling(17).to_model(PICTURES.dataset.test.x)
    direct = vlb(PICTURES.score_fn, x, jax.random.key(9), times=256, centres=Scaling(17).to_model(np.arange(17)))
    expected = -per_unit * float(direct.nats.mean())
    assert (
        abs(bound["mean"] - expected) < 4 * bound["se_times_at_most"] + 4 * per_unit * float(direct.nats.std()) / (40 * 256) ** 0.5 + 0.01
    )
    assert bound["mean"] == pytest.approx(bound["prior"] + bound["reconstruction"] + bound["diffusion"], rel=1e-4)
    assert arrays["per_time"].shape == arrays["log_snr"].shape == (40, 64)
    assert any("variational bound" in line for line in likelihood_lines(found))


def test_the_prior_s_mismatch_is_the_kl_of_the_data_s_moments() -> None:
    sde = VP(beta_max=3.0)
    run = SimpleNamespace(**{**vars(VECTORS), "score_fn": ExactScore(LAW, sde)})
    x = VECTORS.dataset.train.x.astype(float)
    alpha, sigma = sde.alpha(1.0), sde.sigma(1.0)
    v, m = alpha**2 * x.var(axis=0) + sigma**2, alpha * x.mean(axis=0)
    expected = 0.5 * np.sum((v + m**2) / sigma**2 - 1 - np.log(v / sigma**2))
    assert expected > 1e-3 and prior_mismatch(run) == pytest.approx(expected, rel=1e-3)


def test_a_killed_computation_goes_on_and_ends_in_the_same_figures(tmp_path: Path) -> None:
    settings = LikelihoodSettings(**FAST, bound=True, dequantization="truncated_normal", k=2)
    whole, values, _ = likelihood(PICTURES, settings, tmp_path / "a")
    files = sorted((tmp_path / "a").iterdir())
    assert len(files) == 3  # 40 examples, 16 at a time
    (tmp_path / "b").mkdir()
    for file in files[:1]:  # killed during the second batch, whose file is written as a whole or not at all
        shutil.copy(file, tmp_path / "b")
    kept = {file.name: file.stat().st_mtime_ns for file in (tmp_path / "b").iterdir()}
    again, repeated, _ = likelihood(PICTURES, settings, tmp_path / "b")
    assert {name: (tmp_path / "b" / name).stat().st_mtime_ns for name in kept} == kept
    np.testing.assert_array_equal(repeated, values)
    untimed = {k: v for k, v in whole.items() if k != "seconds_per_example"}
    assert {k: v for k, v in again.items() if k != "seconds_per_example"} == untimed
    once_more, _, _ = likelihood(PICTURES, settings, tmp_path / "b")  # nothing is computed, and the seconds are those kept
    assert once_more == again


def test_every_example_has_its_own_draws_whatever_the_batch() -> None:
    settings = {**FAST, "rtol": 1e-5, "atol": 1e-5, "probes": 1}
    one = likelihood(PICTURES, LikelihoodSettings(**{**settings, "batch_size": 40}, n=24), budget=False)[1]
    two = likelihood(PICTURES, LikelihoodSettings(**{**settings, "batch_size": 7}, n=24), budget=False)[1]
    np.testing.assert_allclose(one, two, atol=2e-3)


@pytest.mark.parametrize(
    ("settings", "word"),
    [
        ({"probes": 0}, "--probes is 0"),
        ({"k": 0}, "--k is 0"),
        ({"n": 1}, "--n is 1"),
        ({"dequantization": "gaussian"}, "uniform, truncated_normal"),
    ],
)
def test_settings_out_of_range_are_told(settings: Any, word: str) -> None:
    with pytest.raises(UserError, match=word):
        LikelihoodSettings(**settings)


def test_what_the_data_do_not_allow_is_told() -> None:
    with pytest.raises(UserError, match="holds vectors"):
        likelihood(VECTORS, LikelihoodSettings(k=2))
    empty = SimpleNamespace(**{**vars(VECTORS), "dataset": Dataset("none", VECTORS.dataset.train, Split(VECTORS.dataset.test.x[:0]), None)})
    with pytest.raises(UserError, match="has 0 example"):
        likelihood(empty, LikelihoodSettings())


def test_a_network_that_never_ends_a_solve_is_told_with_the_remedy() -> None:
    wild = GaussianMixture(np.ones(1), np.full((1, 4), np.nan), np.eye(4)[None])
    run = SimpleNamespace(**{**vars(VECTORS), "score_fn": ExactScore(wild, VP())})
    with pytest.raises(UserError, match="max_steps"):
        likelihood(run, LikelihoodSettings(**FAST, n=2), budget=False)
