"""A run's score, guided: past what it says of "nothing" of its kind, or past another run's."""

import math
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

from experiment.common.errors import UserError
from experiment.config import check_config
from experiment.data.units import StandardizedScore, Units
from experiment.run import load
from experiment.run.directory import DataShape
from experiment.run.guidance import Guidance, guided, interval
from sde_lib import VE, VP, EpsilonPrediction, NetworkScore

X, T = jnp.asarray([[0.3], [-1.0]]), 0.4
UNITS = Units(np.array([5.0]), np.array([2.0]))


def of_label(params: Any, x: Any, c_noise: Any, cond: Any) -> Any:
    return params * x + cond[:, None]


def of_vector(params: Any, x: Any, c_noise: Any, cond: Any) -> Any:
    return params * x + jnp.where(jnp.isnan(cond), -3.0, cond)


def of_text(params: Any, x: Any, c_noise: Any, cond: Any) -> Any:
    return params * x + cond.sum(axis=1, keepdims=True)


# Of each kind: the network, a condition, "nothing", and what the network adds for each.
KINDS: dict[str, tuple[Any, Any, Any]] = {
    "label": (of_label, jnp.asarray([0, 2]), jnp.full(2, 3)),
    "vector": (of_vector, jnp.asarray([[1.0], [7.0]]), jnp.full((2, 1), jnp.nan)),
    "text": (of_text, jnp.asarray([[65, -1, -1, -1], [66, 67, -1, -1]]), jnp.full((2, 4), -1)),
}


@pytest.fixture(autouse=True)
def runs(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What load_run finds, by name."""
    found: dict[str, Any] = {}
    monkeypatch.setattr(load, "load_run", lambda workdir: found[workdir])
    return found


def run_of(condition: str, *, gain: float = 1.0, dropout: float = 0.1, sde: Any = None, shape: Any = (1,)) -> Any:
    dropout = 0.0 if condition == "none" else dropout
    model = {"condition": condition, "text_length": 4}
    config = check_config({"model": model, "train": {"cond_dropout": dropout}})
    facts = DataShape(shape, None, 3, cond_mean=(5.0,), cond_std=(2.0,), captioned=True)
    network = NetworkScore(KINDS.get(condition, (of_label,))[0], jnp.float32(gain), sde or VP(), EpsilonPrediction())
    score_fn = StandardizedScore(network, None, UNITS) if condition == "vector" else network
    return load.Run(Path("here"), config, score_fn, 1, facts)


@pytest.mark.parametrize("condition", KINDS)
@pytest.mark.parametrize("scale", [0.0, 1.0, 2.5])
def test_guidance_goes_past_nothing_of_the_run_s_kind(condition: str, scale: float) -> None:
    run, (_, cond, nothing) = run_of(condition), KINDS[condition]
    told, untold = (run.score_fn(X, T, c) for c in (cond, nothing))
    found = guided(run, Guidance(scale)).score_fn
    np.testing.assert_allclose(found(X, T, cond), untold + scale * (told - untold), rtol=1e-5)
    assert (found is run.score_fn) == (scale == 1)  # no guidance builds nothing and costs nothing
    low = float(run.score_fn.sde.log_snr(T)) + 1
    outside = guided(run, Guidance(scale, (low, low + 1))).score_fn
    np.testing.assert_array_equal(outside(X, T, cond), told)


def test_a_guide_is_another_run_of_the_same(runs: dict[str, Any]) -> None:
    run, cond = run_of("label", dropout=0.0), KINDS["label"][1]  # needs no dropout
    runs["worse"] = run_of("label", gain=0.5, dropout=0.0)
    s, guide = run.score_fn(X, T, cond), runs["worse"].score_fn(X, T, cond)
    found = guided(run, Guidance(3.0, None, "worse")).score_fn
    np.testing.assert_allclose(found(X, T, cond), guide + 3 * (s - guide), rtol=1e-5)
    others = {
        "has another SDE": run_of("label", sde=VE()),
        "has examples of another shape": run_of("label", shape=(2,)),
        "is told another condition": run_of("none"),
    }
    for what, other in others.items():
        runs["other"] = other
        with pytest.raises(UserError, match=rf"--guide=other {what}, .*: give a run"):
            guided(run, Guidance(3.0, None, "other"))


WRONG: dict[str, tuple[str, Guidance]] = {
    r"--guidance_interval goes with --guidance: add it": ("label", Guidance(None, (1.0, 2.0))),
    r"--guide goes with --guidance: add it": ("label", Guidance(None, None, "other")),
    r"--guidance is nan: give a number": ("label", Guidance(math.nan)),
    r"--guidance_interval=2,1 holds no log SNR: give the lower end first": ("label", Guidance(2.0, (2.0, 1.0))),
    r"this run's network is told nothing that could guide it": ("none", Guidance(2.0)),
}


@pytest.mark.parametrize("message", WRONG)
def test_what_cannot_guide_is_refused(message: str) -> None:
    condition, asked = WRONG[message]
    with pytest.raises(UserError, match=message):
        guided(run_of(condition), asked)


@pytest.mark.parametrize("scale", [1.0, 2.0])
def test_a_run_without_dropout_is_not_guided(scale: float) -> None:
    with pytest.raises(UserError, match=r"without dropping conditions.*: train with --config.train.cond_dropout=0.1"):
        guided(run_of("label", dropout=0.0), Guidance(scale))


def test_the_ends_of_an_interval() -> None:
    assert interval(None) is None and interval(["-1", "2.5"]) == (-1.0, 2.5)
    assert interval(["-inf", "0"]) == (-math.inf, 0.0)
    for wrong in (["1"], ["1", "2", "3"], ["x", "2"], ["nan", "1"], []):
        with pytest.raises(UserError, match="give two ends in log SNR"):
            interval(wrong)
