import bz2
import zipfile
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import kstest, truncnorm

from benchmarks.sbi import calibrated, divergence, exact_kl
from benchmarks.sbi_posterior import Ensemble, Posterior
from benchmarks.sbi_references import references
from configs import sbi
from experiment.common.errors import UserError
from experiment.config import whole_config
from experiment.data.prior_walls import WalledScore, prior_walls
from experiment.data.simulators import SIMULATORS, simulations
from experiment.data.whitening import fit_whitening
from sde_lib import VP, FunctionScore


def known(task, count=2, n=300):
    """Observations of a task, with exact samples of their posteriors."""
    xs = simulations(task, count, seed=3)[1]
    exact = SIMULATORS[task].posterior
    return [(x, np.asarray(exact(jax.random.key(i), jnp.asarray(x), n))) for i, x in enumerate(xs)]


def written(path, pairs):
    names = {f"observation_{i + 1}": x for i, (x, _) in enumerate(pairs)}
    np.savez(path, **names, **{f"posterior_{i + 1}": samples for i, (_, samples) in enumerate(pairs)})
    return path


def csv(rows, name):
    lines = [",".join(f"{name}_{j + 1}" for j in range(rows.shape[1]))]
    return "\n".join([*lines, *(",".join(map(repr, map(float, row))) for row in rows)]).encode()


def test_both_forms_of_the_reference_say_the_same(tmp_path):
    pairs = known("two_moons")
    wheel = tmp_path / "sbibm-1.1.0-py2.py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as file:
        for i, (x, posterior) in enumerate(pairs):
            folder = f"sbibm/tasks/two_moons/files/num_observation_{i + 1}"
            file.writestr(f"{folder}/observation.csv", csv(x[None], "data"))
            samples = bz2.compress(csv(posterior, "parameter"))
            file.writestr(f"{folder}/reference_posterior_samples.csv.bz2", samples)
    for path in (written(tmp_path / "two_moons.npz", pairs), wheel):
        found = references(path, "two_moons")
        assert len(found) == 2
        for (x, posterior), (x_found, posterior_found) in zip(pairs, found, strict=True):
            np.testing.assert_array_equal(x_found, x)
            np.testing.assert_array_equal(posterior_found, posterior)
    with pytest.raises(UserError, match="holds no observation of slcp"):
        references(wheel, "slcp")
    with pytest.raises(UserError, match="of another task than gaussian_linear: its sizes"):
        references(tmp_path / "two_moons.npz", "gaussian_linear")


@pytest.mark.parametrize(
    ("task", "other"),
    [
        ("two_moons", "gaussian_mixture"),
        ("gaussian_mixture", "two_moons"),
        ("gaussian_linear", "bernoulli_glm"),
    ],
)
def test_another_task_s_reference_of_equal_sizes_is_refused(task, other, tmp_path):
    path = written(tmp_path / "reference.npz", known(task))
    assert len(references(path, task)) == 2
    with pytest.raises(UserError, match=f"another task than {other}: posterior_1"):
        references(path, other)


@pytest.mark.parametrize("task", ["two_moons", "gaussian_mixture", "gaussian_linear"])
def test_samples_of_another_observation_are_refused(task, tmp_path):
    (x, _), (_, samples) = known(task)
    with pytest.raises(UserError, match="not the posterior at its observation"):
        references(written(tmp_path / "reference.npz", [(x, samples)]), task)


def test_no_reference(tmp_path):
    with pytest.raises(UserError, match="or the wheel"):
        references(tmp_path / "none.npz", "slcp")
    (tmp_path / "broken.npz").write_bytes(b"PK\x03\x04 nothing")
    with pytest.raises(UserError, match="cannot be read"):
        references(tmp_path / "broken.npz", "slcp")


def small():
    config = sbi.get_config()
    config.model.width, config.model.depth, config.train.batch_size = 16, 1, 32
    return whole_config(config)


@pytest.fixture(scope="module")
def ensemble():
    rng = np.random.default_rng(0)
    z = rng.standard_normal((200, 2)).astype(np.float32)
    return Ensemble(small(), z, rng.standard_normal((200, 3)).astype(np.float32))


def member(params, k):
    return jax.tree.map(lambda leaf: leaf[k : k + 1], params)


def test_the_score_is_the_mean_of_the_members(ensemble):
    rng = np.random.default_rng(1)
    params = jax.tree.map(lambda leaf: leaf + 0.1 * rng.standard_normal(leaf.shape), ensemble.untrained)
    x, cond = (jnp.asarray(rng.standard_normal((5, k)), jnp.float32) for k in (2, 3))
    one = [ensemble.score(member(params, k))(x, 0.3, cond) for k in range(3)]
    assert np.abs(one[0] - one[1]).max() > 0.1
    np.testing.assert_allclose(ensemble.score(params)(x, 0.3, cond), np.mean(one, axis=0), rtol=1e-4, atol=1e-5)


def test_members_do_without_other_pairs(ensemble):
    seen, held_out = np.asarray(ensemble.seen), np.asarray(ensemble.held_out)
    assert seen.shape == (3, 180) and held_out.shape == (3, 20)
    for own, others in zip(held_out, seen, strict=True):
        assert not set(own) & set(others)
    assert len(set(held_out.ravel())) == 60


def test_noise_teaches_nothing(ensemble, monkeypatch):
    # z does not depend on c, and is N(0, I): the untrained network is the best there is.
    monkeypatch.setattr("benchmarks.sbi_posterior.CHECK_EVERY", 20)
    best = ensemble.trained()
    rng = np.random.default_rng(2)
    x, cond = (jnp.asarray(rng.standard_normal((64, k)), jnp.float32) for k in (2, 3))
    assert np.abs(ensemble.score(best)(x, 0.5, cond) + x).max() < 0.6


def test_the_members_of_a_prior_with_walls_start_from_the_cut_gaussian_and_are_told_how_near_they_are():
    theta, x = simulations("gaussian_mixture", 1000)
    whitening = fit_whitening(theta, x)
    z, c = whitening.to_residual(theta, x), whitening.cond(x)
    walls = prior_walls(whitening, SIMULATORS["gaussian_mixture"].support)
    made = [Ensemble(small(), z, c, walls), Ensemble(small(), z, c)]
    score_fn = made[0].score(made[0].untrained)
    x_t, cond = jnp.asarray(z[:50]), jnp.asarray(c[:50])
    sde = score_fn.sde
    expected = -x_t + walls.score(x_t, sde.alpha(jnp.asarray(0.2)), sde.sigma(jnp.asarray(0.2)), cond)
    np.testing.assert_allclose(score_fn(x_t, 0.2, cond), expected, rtol=1e-4, atol=1e-4)
    cut, free = (np.asarray(one._losses(one.untrained)) for one in made)
    assert (cut < free - 0.02).all()
    np.testing.assert_array_equal(made[0].told, walls.told(jnp.asarray(c)))


def test_what_the_prior_does_not_allow_is_drawn_again_and_all_else_is_kept():
    theta, x = simulations("two_moons", 500)
    whitening = fit_whitening(theta, x)
    sde = VP(beta_max=12.0, t_min=1.65e-4)
    score_fn = FunctionScore(lambda x, t, cond: -x, sde)  # z ~ N(0, I)
    posterior = Posterior(SIMULATORS["two_moons"], whitening, score_fn)
    found = posterior.draw(np.repeat(x[:2], 600, axis=0), jax.random.key(0))
    assert np.abs(found).max() <= 1 and np.isfinite(found).all()
    free = Posterior(replace(SIMULATORS["two_moons"], support=None), whitening, score_fn)
    for i in range(2):
        everything = free.draw(np.tile(x[i], (4000, 1)), jax.random.key(1))
        inside = everything[np.abs(everything).max(axis=1) <= 1]
        own = found[600 * i : 600 * (i + 1)]
        assert 0.2 < len(inside) / 4000 < 0.98  # there is something to draw again
        assert divergence(inside, own) < 0.02


@pytest.fixture(scope="module")
def cut_by_walls():
    """The Gaussian of gaussian_mixture's regression, cut by the prior's walls, and an x beside a corner of them."""
    theta, x = simulations("gaussian_mixture", 2000)
    whitening, simulator = fit_whitening(theta, x), SIMULATORS["gaussian_mixture"]
    whitening = replace(whitening, root=np.diag(np.diag(whitening.root)))
    # To beta_max 20: at 12 the noise's mean is not yet zero, which the log-density shows by up to 0.08.
    network = FunctionScore(lambda x, t, cond: -x, VP(beta_max=20.0, t_min=1e-4))
    score_fn = WalledScore(network, prior_walls(whitening, simulator.support))
    x = np.array([9.7, -10.5])
    mean, std = whitening.to_parameters(np.zeros((1, 2)), x[None])[0], np.diag(whitening.root)
    exact = truncnorm((-10 - mean) / std, (10 - mean) / std, loc=mean, scale=std)
    return Posterior(simulator, whitening, score_fn), x, exact


def test_draws_of_a_posterior_that_walls_cut(cut_by_walls):
    posterior, x, exact = cut_by_walls
    free = replace(posterior, simulator=replace(posterior.simulator, support=None))
    found = free.draw(np.tile(x, (8000, 1)), jax.random.key(0))
    assert np.mean(np.abs(found).max(axis=1) > 10) < 0.05  # without its walls the Gaussian would have 0.85 there
    for j in range(2):
        uniform = exact.cdf(found)[:, j]
        assert kstest(uniform, "uniform").statistic < 0.03


def test_log_density_of_a_posterior_that_walls_cut(cut_by_walls):
    posterior, x, exact = cut_by_walls
    theta = exact.ppf(np.array([[0.1, 0.5], [0.5, 0.9], [0.8, 0.2], [0.3, 0.7]]))
    found = posterior.log_prob(theta, np.tile(x, (4, 1)))
    np.testing.assert_allclose(found, exact.logpdf(theta).sum(axis=1), atol=0.03)


def test_divergence_is_that_of_gaussians():
    rng = np.random.default_rng(3)
    x, y = rng.standard_normal((200_000, 1)), 0.5 + 2 * rng.standard_normal((200_000, 1))
    both = [np.concatenate([a, 3 * b], axis=1) for a, b in ((x, x[::-1]), (y, x))]
    exact = np.log(2) + (1 + 0.25) / (2 * 4) - 0.5
    assert divergence(*both) == pytest.approx(exact, abs=0.01)


@pytest.mark.parametrize(("width", "verdict"), [(1.0, "uniform as far as this tells"), (0.7, "not uniform")])
def test_the_verdict_on_ranks_is_of_all_parameters(width, verdict, monkeypatch, capsys):
    monkeypatch.setattr("benchmarks.sbi.PAIRS", 400)
    fitted = fit_whitening(*simulations("gaussian_linear", 10_000))
    scale = np.ones(10)
    scale[3] = width  # the draws of one parameter are too narrow
    root = np.diag(np.sqrt(0.05) * scale)
    exact = replace(fitted, root=root, slope=np.diag(0.5 * fitted.std), offset=0.5 * fitted.mean)
    score_fn = FunctionScore(lambda x, t, cond: -x, VP(beta_max=12.0, t_min=1.65e-4))
    found = calibrated(Posterior(SIMULATORS["gaussian_linear"], exact, score_fn), "gaussian_linear", 5)
    assert f", {verdict} (level 0.05)" in capsys.readouterr().out
    assert (min(found["p_holm"]) < 0.05) == (width < 1)
    assert min(np.delete(found["p_holm"], 3)) > 0.05


def test_kl_from_the_exact_posterior_by_the_likelihood():
    # z ~ N(0, I), so that the network's posterior is a Gaussian by a map that is wrong by known amounts.
    simulator, x = SIMULATORS["gaussian_linear"], np.linspace(-1, 1, 10)
    fitted = fit_whitening(*simulations("gaussian_linear", 10_000))
    scale, shift = np.linspace(0.9, 1.15, 10), np.linspace(-0.2, 0.1, 10)
    std = np.sqrt(0.05)
    slope, offset = np.diag(0.5 * fitted.std), 0.5 * fitted.mean + std * shift
    wrong = replace(fitted, root=np.diag(std * scale), slope=slope, offset=offset)
    score_fn = FunctionScore(lambda x, t, cond: -x, VP(beta_max=12.0, t_min=1.65e-4))
    kl, error = exact_kl(Posterior(simulator, wrong, score_fn), x, 2000, jax.random.key(0))
    expected = 0.5 * np.sum((1 + shift**2) / scale**2 - 1 + 2 * np.log(scale))
    assert error < 0.04 * expected
    assert kl == pytest.approx(expected, abs=4 * error)
