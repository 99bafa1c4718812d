"""Shapes checked at the library's public doors, on every call that a test makes: under pytest only.

A score is shaped like x, samples are (n, *shape), a log-density has a number for each row, alpha(t) and sigma(t) are
shaped like t. `check_from_now_on()` puts the checks in (conftest.py).
"""

import functools
from collections.abc import Callable
from typing import Any

import numpy as np

import sde_lib
import sde_lib.samplers
from sde_lib import ExactScore, GaussianMixture, NetworkScore
from tests.oracles import ALL_SDES


def same(what: str, found: Any, expected: tuple[int, ...]) -> None:
    """Raise AssertionError where `found` has another shape."""
    assert np.shape(found) == expected, f"{what} has the shape {np.shape(found)}, not {expected}"


def _then(owner: Any, name: str, verify: Callable[..., None]) -> None:
    """Have every call of owner.name followed by verify(result, *its positional arguments)."""
    function = getattr(owner, name)

    @functools.wraps(function)
    def checked(*args: Any, **kwargs: Any) -> Any:
        result = function(*args, **kwargs)
        verify(result, *args)
        return result

    setattr(owner, name, checked)


def _samples(result: Any, *args: Any) -> None:
    if len(args) == 5:  # sampler, score_fn, key, n and shape, none of them by name
        same("sample(...).x", result.x, (args[3], *args[4]))


def check_from_now_on() -> None:
    """Check scores, samples, log-densities, and each SDE's alpha and sigma, on every call from now on."""
    for score in (ExactScore, NetworkScore):
        _then(score, "__call__", lambda s, self, x, *_: same("score_fn(x, t)", s, np.shape(x)))
    _then(GaussianMixture, "log_prob", lambda nats, self, x: same("log_prob(x)", nats, np.shape(x)[:1]))
    for owner in (sde_lib, sde_lib.samplers):
        _then(owner, "sample", _samples)
    _then(sde_lib, "log_prob", lambda r, _score, x, *_: same("log_prob(...).nats", r.nats, np.shape(x)[:1]))
    for kind in {kind for sde in ALL_SDES for kind in type(sde).__mro__[:-1]}:
        for name in {"alpha", "sigma"} & vars(kind).keys():
            _then(kind, name, lambda c, _sde, t, name=name: same(f"sde.{name}(t)", c, np.shape(t)))
