"""Samplers fitted to a run are kept in it, drawn by, and refused or named where they do not belong."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiment.common.errors import UserError
from experiment.common.files import write_npz
from experiment.config import check_config
from experiment.evaluation.points import points_at
from experiment.run import fitting, load
from experiment.run.directory import DataShape
from experiment.run.fitted import sampler_of
from experiment.run.fitting import fit_run
from sde_lib import VP, EpsilonPrediction, NetworkScore
from sde_lib.samplers import UniPC, sample


def network(params: Any, x: Any, c_noise: Any, cond: Any) -> Any:
    """Noise of data that are two points."""
    return x - params * jnp.tanh(3 * x)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A run with samplers of 2 and 3 calls."""
    score_fn = NetworkScore(network, jnp.float32(0.7), VP(), EpsilonPrediction())
    found = load.Run(tmp_path_factory.mktemp("run"), check_config({}), score_fn, 4, DataShape((2,), None, None))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fitting, "load_run", lambda workdir: found)
        told = fit_run("here", [3, 2], latents=64)
    assert told.splitlines()[0].startswith("2 calls: ") and told.splitlines()[1].startswith("3 calls: ")
    return found


def test_what_is_kept_draws_nearer_to_the_fine_solution(run: Any) -> None:
    sampler = sampler_of(run, "fitted", steps=2)
    drawn = {
        s: sample(s, run.score_fn, jax.random.key(5), 64, (2,)) for s in (sampler, UniPC(steps=2), UniPC(steps=200))
    }
    near, far = (jnp.abs(drawn[s].x - drawn[UniPC(steps=200)].x).mean() for s in (sampler, UniPC(steps=2)))
    assert drawn[sampler].nfe == 2 and near < 0.5 * far
    assert (sampler.latents, sampler.error < sampler.start_error) == (48, True)


def test_at_a_budget_it_is_the_one_that_was_fitted_for_it(run: Any) -> None:
    assert sampler_of(run, "fitted").steps == 3
    points = points_at({"fitted": sampler_of(run, "fitted")}, [3, 2])
    assert [point.sampler.nfe for point in points] == [2, 3]
    with pytest.raises(UserError, match=r"samplers of 2, 3 steps were fitted; make it by .* --nfe=7"):
        points_at({"fitted": sampler_of(run, "fitted")}, [7])


def test_another_process_is_refused_and_another_score_is_named(run: Any, capsys: Any) -> None:
    sampler_of(run, "fitted", steps=2)
    assert "another score" not in capsys.readouterr().out
    sampler_of(replace(run, score_fn=replace(run.score_fn, params=jnp.float32(0.71))), "fitted", steps=2)
    assert "fitted to another score than this" in capsys.readouterr().out
    with pytest.raises(UserError, match=r"was fitted on VP.*and the run's process is VP"):
        sampler_of(replace(run, score_fn=replace(run.score_fn, sde=VP(beta_max=8.0))), "fitted", steps=2)


def test_what_is_not_there_or_damaged_is_told_in_a_line(run: Any, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no sampler was fitted .*: make one by python -m experiment\.fit_sampler"):
        sampler_of(replace(run, workdir=tmp_path), "fitted", steps=2)
    with pytest.raises(UserError, match="--eta: fitted has no such setting"):
        sampler_of(run, "fitted", eta=0.5)
    whole = dict(np.load(run.workdir / "fitted" / "steps2.npz"))
    for wrong in ({"t": whole["t"][:1]}, {"b": whole["b"] * np.nan}, {"model": np.asarray("score")}, {"error": None}):
        write_npz(tmp_path / "fitted" / "steps2.npz", **{k: v for k, v in {**whole, **wrong}.items() if v is not None})
        with pytest.raises(UserError, match=r"steps2\.npz is damaged"):
            sampler_of(replace(run, workdir=tmp_path), "fitted", steps=2)


@pytest.mark.parametrize(
    "nfe, latents, message", [([0], 64, "--nfe is 0"), ([4], 3, "--latents is 3: give at least 8")]
)
def test_numbers_out_of_range_are_refused(nfe: list[int], latents: int, message: str) -> None:
    with pytest.raises(UserError, match=message):
        fit_run("nowhere", nfe, latents)
