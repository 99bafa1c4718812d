"""evaluate.py --likelihood: an error budget whose every part is what repeating would give, kept batch by batch."""

import json
import shutil
import signal
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiment.common.errors import UserError
from experiment.config import whole_config
from experiment.data import stored
from experiment.data.dataset import Dataset, Split, some_of
from experiment.data.scaling import Scaling
from experiment.devices.hosts import Place
from experiment.evaluation import variational_bounds as bounds
from experiment.evaluation.likelihood import (
    LikelihoodSettings,
    _averaged,
    likelihood,
    likelihood_lines,
    parts,
    prior_mismatch,
)
from sde_lib import VE, VP, CosineVP, ExactScore, GaussianMixture
from sde_lib.batch import per_row
from sde_lib.bounds import vlb
from sde_lib.chain import chain_of
from sde_lib.ddpm import NoiseOfScore, ReverseChain, elbo
from tests.commands import ROOT, Command, train
from tests.oracles import random_mixture

LAW = random_mixture(seed=3, d=4, spread=0.4)
CONFIG = whole_config({})
FAST: Any = {"probes": 2, "rtol": 1e-3, "atol": 1e-3, "batch_size": 16}


def settings_of(**given: Any) -> LikelihoodSettings:
    return LikelihoodSettings.from_config(CONFIG, **given)


def run_of(levels: int | None, n: int = 40) -> Any:
    x = np.asarray(LAW.sample(jax.random.key(0), 200 + n))
    shape: tuple[int, ...] = (4,)
    if levels is not None:
        shape, x = (2, 2, 1), np.asarray(Scaling(levels).to_data(x)).reshape(-1, 2, 2, 1)
    return SimpleNamespace(
        config=whole_config({}),
        dataset=Dataset("ours", Split(x[:200]), Split(x[200:]), levels),
        score_fn=ExactScore(LAW, VP(t_min=0.01)),
        scaling=Scaling(levels),
        shape=shape,
        step=3,
    )


PICTURES, VECTORS = run_of(17), run_of(None)
KEY = jax.random.key(5)


class ClassScore:
    """The exact score of pictures that are uniform at the level of their class."""

    sde = VP(t_min=0.01)

    def __call__(self, x: jax.Array, t: Any, cond: Any = None) -> jax.Array:
        centre = per_row(Scaling(17).to_model(cond), x)
        return -(x - per_row(self.sde.alpha(t), x) * centre) / per_row(self.sde.sigma(t), x) ** 2


jax.tree_util.register_pytree_node(ClassScore, lambda s: ((), None), lambda *_: ClassScore())


def test_vectors_are_given_their_log_density() -> None:
    found, values, _ = likelihood(VECTORS, settings_of(**FAST))
    exact = LAW.at(VP(), 0.01).log_prob(jnp.asarray(VECTORS.dataset.test.x))
    assert (found.unit, found.n, found.k, found.dequantization) == ("nats", 40, 1, None)
    assert abs(found.mean - float(exact.mean())) < 4 * found.se_probes + 2e-3
    assert found.se_images == pytest.approx(values.std(ddof=1) / 40**0.5)
    assert 0 < abs(found.tolerance_change) < 1e-2 and found.se_dequantization is None


def test_some_examples_are_taken_from_all_of_the_held_out_ones() -> None:
    _, values, _ = likelihood(VECTORS, settings_of(**{**FAST, "probes": 64}, n=10), budget=False)
    exact = np.asarray(LAW.at(VP(), 0.01).log_prob(jnp.asarray(VECTORS.dataset.test.x)))
    assert np.corrcoef(values, exact[some_of(10, 40)])[0, 1] > 0.95 > np.corrcoef(values, exact[:10])[0, 1]


@pytest.mark.parametrize("dequantization", ["uniform", "truncated_normal"])
def test_bits_are_those_of_the_density_over_the_bin(dequantization: str) -> None:
    settings = settings_of(**{**FAST, "probes": 16}, dequantization=dequantization, k=8)
    found, values, _ = likelihood(PICTURES, settings)
    # log P(x) = log of the integral of p_{t_min} over the bin, here from many uniform draws of its own.
    levels, rng, sde = PICTURES.dataset.test.x.reshape(40, 4), np.random.default_rng(0), VP(t_min=0.01)
    z = (2 * (levels[:, None] + rng.random((40, 2000, 4))) / 17 - 1).reshape(-1, 4)
    scale = 1.0 if dequantization == "uniform" else sde.alpha(0.01)  # the bins tile x, or alpha x
    log_p = np.asarray(LAW.at(sde, 0.01).log_prob(jnp.asarray(scale * z, jnp.float32)), float).reshape(40, 2000)
    exact = -(np.log(np.mean(np.exp(log_p), axis=1)) + 4 * np.log(2 / 17 * scale)) / (4 * np.log(2))
    assert found.unit == "bits/dim"
    budget = np.hypot(found.se_probes, found.se_dequantization)
    assert abs(found.mean - exact.mean()) < 4 * budget + 3e-3
    assert np.corrcoef(values, exact)[0, 1] > 0.9


def test_the_standard_error_over_draws_is_that_of_repeated_draws() -> None:
    coarse, settings = run_of(4), {**FAST, "probes": 16}
    means = [likelihood(coarse, settings_of(**settings, seed=seed), budget=False)[0].mean for seed in range(12)]
    found, _, _ = likelihood(coarse, settings_of(**settings))
    assert found.se_dequantization > found.se_probes
    assert 0.4 < np.std(means, ddof=1) / np.hypot(found.se_dequantization, found.se_probes) < 2


def test_the_bound_lies_beside_the_ode_s_value_and_says_its_terms() -> None:
    found, _, arrays = likelihood(PICTURES, settings_of(**FAST, bound=True))
    bound, per_unit = found.bound, 1 / (4 * np.log(2))
    x = Scaling(17).to_model(PICTURES.dataset.test.x)
    direct = vlb(PICTURES.score_fn, x, jax.random.key(9), times=256, centres=Scaling(17).to_model(np.arange(17)))
    expected = -per_unit * float(direct.nats.mean())
    assert (
        abs(bound.mean - expected)
        < 4 * bound.se_times_at_most + 4 * per_unit * float(direct.nats.std()) / (40 * 256) ** 0.5 + 0.01
    )
    assert bound.mean == pytest.approx(bound.prior + bound.reconstruction + bound.diffusion, rel=1e-4)
    assert arrays["per_time"].shape == arrays["log_snr"].shape == (40, 64)
    assert any("variational bound" in line for line in likelihood_lines(found))


@pytest.fixture
def unsolved(monkeypatch: pytest.MonkeyPatch) -> None:
    """No ODE is solved: the bounds do not need it."""
    monkeypatch.setattr(
        "experiment.evaluation.likelihood.solve_batch",
        lambda run, first, settings, size, **_: (np.zeros((size, 1, 1)), 0),
    )


@pytest.mark.usefixtures("unsolved")
def test_the_chain_s_elbo_lies_beside_it_in_its_three_terms() -> None:
    # Few enough steps that all are taken, with the chain that one would write down: the SDE's own at even times.
    found, _, arrays = likelihood(PICTURES, settings_of(chain=20, batch_size=40))
    chain, per_unit = found.chain, 1 / (4 * np.log(2))
    x, times, sde = Scaling(17).to_model(PICTURES.dataset.test.x), np.linspace(0.01, 1, 20), VP(t_min=0.01)
    direct = elbo(
        ReverseChain(NoiseOfScore(PICTURES.score_fn, times)),
        chain_of(sde, times),
        jnp.tile(x, (20, 1, 1, 1)),
        KEY,
        bin_width=2 / 17,
    )
    for name in ("prior", "denoising", "reconstruction"):
        term = per_unit * np.asarray(getattr(direct, name), float)
        spread = term.reshape(20, 40).std(axis=0)  # over draws, for each example
        assert abs(getattr(chain, name) - term.mean()) < 4 * np.sqrt(np.mean(spread**2) / 40) + 1e-5, name
    assert chain.mean == pytest.approx(chain.prior + chain.denoising + chain.reconstruction, rel=1e-6)
    assert (chain.draws, chain.se_draws, chain.steps) == (None, None, 20)
    assert arrays["elbo_step_nats"].shape == (40, 19) and found.bound is None
    text = "\n".join(likelihood_lines(found))
    assert (
        "of the discrete chain's model, 20 steps" in text
        and "discretised reconstruction" in text
        and "SDE's model" not in text
    )


@pytest.mark.usefixtures("unsolved")
def test_a_long_chain_draws_its_steps_and_nears_the_sde_s_bound() -> None:
    found, _, arrays = likelihood(PICTURES, settings_of(bound=True, chain=200, betas="log_snr", batch_size=40))
    chain, bound = found.chain, found.bound
    assert chain.draws == 128 and arrays["elbo_steps"].shape == (40, 128)
    # The same integral, but for half a step of log SNR (see test_ddpm).
    h = (VP().log_snr(0.01) - VP().log_snr(1.0)) / 199
    difference = chain.denoising / (1 + h / 2) - bound.diffusion
    assert abs(difference) < 4 * np.hypot(chain.se_draws, bound.se_times_at_most)
    assert 0.03 < chain.se_draws < 0.1


def test_the_draws_standard_error_is_that_of_repeated_draws() -> None:
    x = Scaling(17).to_model(PICTURES.dataset.test.x)
    keys = jax.random.split(jax.random.key(2), 30)
    repeats = [bounds.elbo_batch(PICTURES, x, None, key, 0, 50, "sde", "fixed_small", most=8) for key in keys]
    means = [repeat["elbo_denoising"].mean() for repeat in repeats]
    told = np.mean([repeat["elbo_draws_variance"].mean() / 40 for repeat in repeats])
    assert 0.5 < np.var(means, ddof=1) / told < 1.8


@pytest.mark.parametrize(
    ("betas", "own"), [("linear", VP(t_min=1e-6)), ("cosine", CosineVP(t_min=1e-6)), ("log_snr", VP(t_min=1e-6))]
)
def test_any_sde_s_score_is_carried_to_a_chain_by_log_snr(betas: str, own: Any) -> None:
    ve = VE()
    chain, times, score_fn = bounds.chain_of_run(ExactScore(LAW, ve), 12, betas)
    log_snr = 2 * np.log(chain.alpha / chain.sigma)
    assert log_snr[0] == pytest.approx(min(ve.log_snr(ve.t_min), own.log_snr(own.t_min)), abs=1e-6)
    assert log_snr[-1] == pytest.approx(max(ve.log_snr(ve.t_max), own.log_snr(own.t_max)), abs=1e-6)
    spacing = np.diff(log_snr if betas == "log_snr" else times)
    np.testing.assert_allclose(spacing, spacing[0], rtol=1e-6)
    x = jax.random.normal(KEY, (12, 4))
    predicted = jax.jit(lambda x, t: NoiseOfScore(score_fn, times)(x, t))(x, jnp.arange(1, 13))
    direct = -chain.sigma[:, None] * np.asarray(ExactScore(LAW, own)(x, jnp.asarray(own.time_of_log_snr(log_snr))))
    np.testing.assert_allclose(predicted, direct, rtol=1e-2, atol=1e-3)


@pytest.mark.usefixtures("unsolved")
def test_a_class_conditional_network_is_told_the_classes() -> None:
    levels = np.arange(17).repeat(2)[:, None] * np.ones((1, 4), int)
    split = Split(levels.reshape(-1, 2, 2, 1), levels[:, 0])
    dataset = Dataset("ours", split, split, 17, 17)
    run = SimpleNamespace(
        **{**vars(PICTURES), "score_fn": ClassScore(), "dataset": dataset, "config": whole_config({})}
    )
    run.config.model.condition = "label"
    found, _, _ = likelihood(run, settings_of(chain=10))
    assert abs(found.chain.denoising) < 1e-4  # each class is one picture, and the score knows which
    run.config.model.condition = "none"
    with pytest.raises(ValueError, match="None"):  # what this score says of no class
        likelihood(run, settings_of(chain=10))


def test_the_picture_s_parts_hold_the_means_of_their_steps() -> None:
    # All steps, three times, of KL t²: the parts are runs of whole numbers a..b, whose mean square is the square of
    # their mean and their variance ((b - a + 1)² - 1)/12; from their means alone come a and b.
    every = np.tile(np.arange(2, 301), 3)
    step, kl, se = bounds.kls_over_steps(300, every, 1.0 * every**2, np.ones(len(every)))
    last, size = 1.0, []
    for middle in step:
        size.append(2 * (middle - last) - 1)
        last += size[-1]
    assert last == pytest.approx(300) and len(step) < 60
    np.testing.assert_allclose(kl, step**2 + (np.array(size) ** 2 - 1) / 12)
    np.testing.assert_allclose(se[np.isclose(size, 1)], 0, atol=1e-9)
    # Drawn steps count by their weights: of the two steps here the second is drawn three times as often.
    drawn, nats = np.array([100, 101, 101, 101]), np.array([1.0, 5.0, 6.0, 7.0])
    step, kl, se = bounds.kls_over_steps(300, drawn, nats, np.array([3.0, 1.0, 1.0, 1.0]))
    np.testing.assert_allclose((step[0], kl[0]), (100.5, 3.5))


@pytest.mark.parametrize("rows", [4096, 100])
def test_the_prior_s_mismatch_is_the_kl_of_the_data_s_moments(rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where the data are read some rows at a time."""
    monkeypatch.setattr(stored, "ROWS", rows)
    sde = VP(beta_max=3.0)
    run = SimpleNamespace(**{**vars(VECTORS), "score_fn": ExactScore(LAW, sde)})
    x = VECTORS.dataset.train.x.astype(float)
    alpha, sigma = sde.alpha(1.0), sde.sigma(1.0)
    v, m = alpha**2 * x.var(axis=0) + sigma**2, alpha * x.mean(axis=0)
    expected = 0.5 * np.sum((v + m**2) / sigma**2 - 1 - np.log(v / sigma**2))
    assert expected > 1e-3 and prior_mismatch(run) == pytest.approx(expected, rel=1e-3)


def test_processes_share_out_the_batches_and_the_first_has_the_figures_of_one_alone(tmp_path: Path) -> None:
    settings = settings_of(**FAST)
    whole, values, _ = likelihood(PICTURES, settings, budget=False)
    assert list(parts(PICTURES, settings, tmp_path, False, Place(1, 2, "job"))) == []  # the first one is slow to start
    written = {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    assert len(written) == 3
    shared, again, _ = likelihood(PICTURES, settings, tmp_path, budget=False, place=Place(0, 2, "job"))
    assert {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()} == written  # nothing was left to compute
    np.testing.assert_array_equal(again, values)
    assert replace(shared, seconds_per_example=0.0) == replace(whole, seconds_per_example=0.0)


def test_a_killed_computation_goes_on_and_ends_in_the_same_figures(tmp_path: Path) -> None:
    settings = settings_of(**FAST, bound=True, dequantization="truncated_normal", k=2, chain=200)
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
    assert replace(again, seconds_per_example=0.0) == replace(whole, seconds_per_example=0.0)
    once_more, _, _ = likelihood(
        PICTURES, settings, tmp_path / "b"
    )  # nothing is computed, and the seconds are those kept
    assert once_more == again


def test_every_example_has_its_own_draws_whatever_the_batch() -> None:
    settings = {**FAST, "rtol": 1e-5, "atol": 1e-5, "probes": 1}
    one = likelihood(PICTURES, settings_of(**{**settings, "batch_size": 40}, n=24), budget=False)[1]
    two = likelihood(PICTURES, settings_of(**{**settings, "batch_size": 7}, n=24), budget=False)[1]
    np.testing.assert_allclose(one, two, atol=2e-3)


@pytest.mark.parametrize(
    ("settings", "word"),
    [
        ({"probes": 0}, "--probes is 0"),
        ({"k": 0}, "--k is 0"),
        ({"n": 1}, "--n is 1"),
        ({"chain": 0}, "--chain is 0: give at least 1"),
        ({"chain": 9, "betas": "cosin"}, "--betas is 'cosin'; it must be one of: sde, linear, cosine, log_snr"),
        ({"chain": 9, "variance": "large"}, "fixed_small, fixed_large"),
        ({"betas": "cosine"}, "give its steps too, as in --chain=1000"),
        ({"dequantization": "gaussian"}, "uniform, truncated_normal"),
    ],
)
def test_settings_out_of_range_are_told(settings: Any, word: str) -> None:
    with pytest.raises(UserError, match=word):
        settings_of(**settings)
    with pytest.raises(UserError, match=word):
        LikelihoodSettings.check(settings)  # as it is told before a run is loaded


def test_what_the_data_do_not_allow_is_told() -> None:
    with pytest.raises(UserError, match="holds vectors"):
        likelihood(VECTORS, settings_of(k=2))
    with pytest.raises(UserError, match="--chain is for data with levels, and ours holds vectors: leave it out"):
        likelihood(VECTORS, settings_of(chain=10))
    exploding = SimpleNamespace(**{**vars(PICTURES), "score_fn": ExactScore(LAW, VE())})
    with pytest.raises(UserError, match="which VE is not: take another --betas, linear, cosine, log_snr"):
        likelihood(exploding, settings_of(chain=10))
    empty = SimpleNamespace(
        **{**vars(VECTORS), "dataset": Dataset("none", VECTORS.dataset.train, Split(VECTORS.dataset.test.x[:0]), None)}
    )
    with pytest.raises(UserError, match="has 0 example"):
        likelihood(empty, settings_of())


def test_a_network_that_never_ends_a_solve_is_told_with_the_remedy() -> None:
    wild = GaussianMixture(np.full(3, 1 / 3), np.full((3, 4), np.nan), np.stack([np.eye(4)] * 3))
    run = SimpleNamespace(**{**vars(VECTORS), "score_fn": ExactScore(wild, VP())})
    with pytest.raises(UserError, match="not a finite number in any row: look at the network's weights"):
        likelihood(run, settings_of(**FAST, n=2), budget=False)
    hard = SimpleNamespace(**{**vars(VECTORS), "score_fn": ExactScore(LAW, VP(t_min=1e-12))})
    with pytest.raises(UserError, match="max_steps"):
        likelihood(hard, settings_of(**{**FAST, "rtol": 1e-9, "atol": 1e-12}, n=16), budget=False)


def test_a_chain_without_the_likelihood_is_told() -> None:
    for flag in ("--chain=10", "--betas=cosine"):
        command = Command(str(ROOT / "evaluate.py"), "--workdir=nowhere", flag)
        assert f"{flag.split('=')[0]} goes with --likelihood: add it" in command.wait().mistake
    command = Command(str(ROOT / "evaluate.py"), "--workdir=nowhere", "--likelihood", "--chain=0")
    assert "--chain is 0: give at least 1" in command.wait().mistake


def test_a_command_killed_by_the_system_writes_the_same_table_when_repeated(tmp_path: Path) -> None:
    train(tmp_path / "whole", train_steps=5, eval_batch_size=20, eval_rtol=1e-2, eval_atol=1e-2)
    shutil.copytree(tmp_path / "whole", tmp_path / "killed")

    def start(name: str) -> Command:
        return Command(
            str(ROOT / "evaluate.py"), f"--workdir={tmp_path / name}", "--likelihood", "--n=200", "--probes=2"
        )

    def table(name: str) -> Any:
        done = start(name).wait()
        assert done.status == 0, done.err
        saved = json.loads((tmp_path / name / "likelihood" / "nats.json").read_text())
        return {key: value for key, value in saved.items() if key != "seconds_per_example"}

    command = start("killed")
    command.until(lambda: len(list(tmp_path.glob("killed/likelihood/parts/*/*.npz"))) > 1)
    command.send(signal.SIGKILL)
    assert command.wait().status == -signal.SIGKILL
    assert not list(tmp_path.glob("killed/likelihood/*.json"))
    before = {path: path.stat().st_mtime_ns for path in tmp_path.glob("killed/likelihood/parts/*/*.npz")}
    assert len(before) < 10
    assert table("killed") == table("whole")
    assert all(path.stat().st_mtime_ns == at for path, at in before.items())


def half(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])


def without_rows(path: Path) -> None:
    with np.load(path) as part:
        np.savez(path, **{**part, "ratios": part["ratios"][1:]})


@pytest.mark.parametrize("damage", [half, without_rows, lambda p: p.write_bytes(b""), lambda p: np.savez(p, x=1)])
def test_a_damaged_batch_is_set_aside_and_computed_again(
    damage: Any, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    settings = settings_of(**FAST)
    _, whole, _ = likelihood(VECTORS, settings, tmp_path, budget=False)
    paths = sorted(tmp_path.glob("*.npz"))
    before = {path: path.stat().st_mtime_ns for path in paths}
    damage(paths[1])
    damaged = paths[1].read_bytes()
    capfd.readouterr()
    _, again, _ = likelihood(VECTORS, settings, tmp_path, budget=False)
    np.testing.assert_array_equal(again, whole)
    said = capfd.readouterr().err
    assert said.count("computed again, for it is damaged") == 1 and f"{paths[1].name}.damaged" in said
    assert paths[1].with_name(f"{paths[1].name}.damaged").read_bytes() == damaged
    assert [path.stat().st_mtime_ns == before[path] for path in paths] == [True, False, True]


def test_noise_of_the_probes_hardly_raises_the_mean_of_several_draws() -> None:
    # log (1/K) sum_k exp(e_k) of noise with variance s² has the mean s²/2 (1 - 1/K) to first order; here log P is 0.
    noise = 0.7 * np.random.default_rng(0).standard_normal((20_000, 8, 16))
    inside = np.log(np.exp(noise).mean(axis=1)).mean()
    assert 0.15 < inside < 0.7**2 / 2
    averaged = _averaged(noise).mean()
    assert abs(averaged - 0.7**2 / 2 / 16 * (1 - 1 / 8)) < 4 * 0.7 / np.sqrt(noise.size) + 1e-3
