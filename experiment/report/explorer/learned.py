"""What the page needs of a trained run: the network's weights, the parameterisation at a row of levels, densities.

The network is computed in the page. Its densities are not: each is a solve of the probability-flow ODE, done here at a
few levels over a grid of places.
"""

import base64
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from experiment.common.errors import UserError
from experiment.common.progress import progress
from experiment.data.conditions import condition_rows
from experiment.data.dataset import some_of
from experiment.data.scaling import Scaled
from experiment.data.units import StandardizedScore
from experiment.report.explorer.page import rounded
from experiment.run.conditions import kind_of_run
from models import MLP, Label
from models.layers import NOISE_FEATURES
from sde_lib import NetworkScore, log_prob
from sde_lib.sde import host_sde

STEPS = 96  # of the row of levels, even in log SNR
STOPS = 12  # densities after the first, whose is the prior's
CELLS = 32  # of the grid of densities, along a side
CLASSES, TOLD = 10, 4  # choices that are shown, of classes and of other conditions
EXAMPLES = 400  # shown of each choice
TOLERANCE = 1e-4  # of the densities' solves
DEPTH_OF_LOG, PARTS = 40.0, 32_000  # densities are kept down to e^-40 of the largest, in so many parts


@dataclass(frozen=True)
class Choice:
    """What the network is told, by name: `cond` is one row, in the model's units; None for nothing at all."""

    name: str
    cond: Any
    examples: np.ndarray  # (n, 2), in the model's space


def check_run(run: Any) -> None:
    """Raises UserError for a run that the page cannot show."""
    if tuple(run.shape) != (2,):
        raise UserError(
            f"{run.workdir} holds {run.data_shape.words()}, and the explorer draws a plane: give a run on vectors of 2 "
            "numbers, such as train.py --config=configs/toys.py makes, or leave --workdir out"
        )
    if type(network_of(run)) is not MLP:
        raise UserError(
            f"the network of {run.workdir} is {run.config.model.name}, and the page computes the MLP alone: train one "
            "with --config.model.name=mlp"
        )


def plain_score(run: Any) -> NetworkScore:
    """The network's score in the model's space, of conditions in the model's units."""
    return run.score_fn.score_fn if isinstance(run.score_fn, StandardizedScore) else run.score_fn


def network_of(run: Any) -> Any:
    """The run's network as a module, with its weights."""
    score = plain_score(run)
    over_batch: Any = score.apply
    return nnx.merge(over_batch.apply.graphdef, score.params)


def run_data(run: Any) -> dict[str, Any]:
    """What the page holds of a run.

    Returns:
        words: strings for the section's text. data: for its script.

    Raises UserError for a run that the page cannot show.
    """
    check_run(run)
    score, network, chosen = plain_score(run), network_of(run), choices(run)
    shown = np.concatenate([choice.examples for choice in chosen])
    limit = round(max(3.0, 1.05 * float(np.quantile(np.abs(shown), 0.995))), 1)
    rows = level_rows(score)
    with progress(STOPS * len(chosen), "densities", unit="solve") as work:
        told = [{**vectors_of(network, choice), **densities(score, choice, rows, limit, work)} for choice in chosen]
    exact = run.dataset.distribution
    return {
        "words": {
            "run": run.workdir.name,
            "step": f"{run.step:,}",
            "data": run.dataset.name,
            "cells": CELLS,
            "stops": STOPS,
            "middle": 2 * STOPS // 3,
        },
        "data": {
            "choices": [
                {"name": choice.name, "examples": np.round(choice.examples, 3).tolist(), **found}
                for choice, found in zip(chosen, told, strict=True)
            ],
            "levels": rows.tolist(),
            "stops": list(range(0, STEPS + 1, STEPS // STOPS)),
            "cells": CELLS,
            "parts": [DEPTH_OF_LOG, PARTS],
            "limit": limit,
            "network": weights_of(network),
            "exact": None if exact is None else _mixture(exact),
        },
    }


def _mixture(exact: Any) -> dict[str, Any]:
    weights = np.exp(np.asarray(exact.log_weights, float))
    return {
        "weights": (weights / weights.sum()).tolist(),
        "means": rounded(exact.means),
        "covariances": rounded(exact.covariances),
    }


def choices(run: Any) -> list[Choice]:
    """What the network may be told: nothing; each class; or what some held-out examples are told.

    "Nothing" comes first where it was trained.
    """
    kind, test = kind_of_run(run), run.dataset.test
    scaled, some = Scaled(run.scaling, test.x), some_of(EXAMPLES, len(test))
    if kind is None:
        return [Choice("", None, scaled[some])]
    found = []
    if run.config.train.cond_dropout:
        found.append(Choice("anything", jax.tree.map(np.asarray, kind.nothing()), scaled[some]))
    if isinstance(kind, Label):
        for label in range(min(kind.num_classes, CLASSES)):
            cond = np.asarray(label, np.int32)
            found.append(Choice(f"class {label}", cond, scaled[np.flatnonzero(test.labels == label)[:EXAMPLES]]))
        return found
    told = some_of(TOLD, len(test))
    units, rows = run.data_shape.cond_units, condition_rows(kind, test.rows(told))
    if run.config.model.condition == "vector" and units is not None:
        rows = units.to_model(rows)
    for row, i in enumerate(told):
        cond = jax.tree.map(lambda values, row=row: np.asarray(values)[row], rows)
        found.append(Choice(_what(test, run, i), cond, scaled[i : i + 1]))
    return found


def _what(test: Any, run: Any, i: int) -> str:
    if run.config.model.condition == "vector":
        return "told (" + ", ".join(f"{value:.3g}" for value in test.vectors[i][:4]) + ")"
    return str(test.captions[i])[:60] if test.captions is not None else f"what example {i} is told"


def weights_of(network: Any) -> dict[str, Any]:
    """The MLP's layers by name, and the frequencies of its noise embedding."""
    layers = {
        "condition.inner": network.condition.inner,
        "condition.outer": network.condition.outer,
        "modulation": network.modulation,
        "inner": network.inner,
        "outer": network.outer,
    }
    for i, block in enumerate(network.blocks.values()):
        layers |= {f"blocks.{i}.inner": block.inner, f"blocks.{i}.outer": block.outer}
    return {
        "width": int(network.inner.out_features),
        "depth": network.depth,
        "frequencies": np.geomspace(0.25, 32.0, NOISE_FEATURES // 2).astype(np.float32).astype(float).tolist(),
        "layers": {
            name: {"kernel": packed(layer.kernel[...]), "bias": packed(layer.bias[...])}
            for name, layer in layers.items()
        },
    }


def packed(values: Any, dtype: Any = "<f4") -> str:
    """The numbers in base 64, as the page reads them."""
    return base64.b64encode(np.asarray(values).astype(dtype).tobytes()).decode()


def vectors_of(network: Any, choice: Choice) -> dict[str, str]:
    """What a choice adds to the embedding of the noise, and to the first layer."""
    cond = batch_of(choice, 1)
    told = network.condition.told(cond, 1)
    beside = np.zeros(network.inner.out_features)
    if network.beside is not None:
        beside = network.beside(jnp.where(jnp.isnan(cond), 0.0, cond))[0]
    return {
        "told": packed(np.zeros_like(beside) if told is None else told.vector[0]),
        "beside": packed(beside),
    }


def batch_of(choice: Choice, n: int) -> Any:
    """A choice's condition for n rows."""
    if choice.cond is None:
        return None
    return jax.tree.map(lambda row: jnp.broadcast_to(jnp.asarray(row), (n, *np.shape(row))), choice.cond)


def level_rows(score: NetworkScore) -> np.ndarray:
    """A row of levels from t_max down to t_min, even in log SNR, (97, 12).

    Columns: t, alpha, sigma, c_in, out, c_noise, and of the known part M x + b of the score M's four entries and b's
    two.
    """
    sde, p = host_sde(score.sde), score.parameterization
    first, last = (float(sde.log_snr(t)) for t in (sde.t_max, sde.t_min))
    times = np.asarray(sde.time_of_log_snr(np.linspace(first, last, STEPS + 1)), float)
    times[[0, -1]] = sde.t_max, sde.t_min
    at = jnp.asarray(times, jnp.float32)  # as the score takes them
    alpha, sigma = score.sde.alpha(at), score.sde.sigma(at)
    of_network = [p.c_in(alpha, sigma), p.out(alpha, sigma), p.noise_label(score.sde, at)]
    corners = jnp.tile(jnp.asarray([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]]), (len(times), 1))
    known = np.asarray(p.known(corners, *(jnp.repeat(value, 3) for value in (alpha, sigma))), float).reshape(-1, 3, 2)
    origin, right, up = known[:, 0], known[:, 1], known[:, 2]
    matrix = np.stack([right - origin, up - origin], axis=2).reshape(-1, 4)
    columns = [times, sde.alpha(times), sde.sigma(times), *of_network]
    return np.column_stack([*(np.broadcast_to(np.asarray(c, float), times.shape) for c in columns), matrix, origin])


def densities(score: NetworkScore, choice: Choice, rows: np.ndarray, limit: float, work: Any) -> dict[str, Any]:
    """Compute the ODE's log-densities at each stop, on a grid over [-limit, limit]² times the spread at that level.

    Returns:
        density: parts below the largest, of PARTS, (13, 32 * 32) from the lower left. largest: (13,), nats.
    """
    side = limit * (2 * (np.arange(CELLS) + 0.5) / CELLS - 1)
    grid = np.stack(np.meshgrid(side, side), axis=-1).reshape(-1, 2)
    cond, found = batch_of(choice, len(grid)), []
    for t, alpha, sigma in rows[:: STEPS // STOPS, :3]:
        x = jnp.asarray(np.hypot(alpha, sigma) * grid, jnp.float32)
        if t == rows[0, 0]:
            found.append(np.asarray(score.sde.prior((2,)).log_prob(x)))
            continue
        from_here = replace(score, sde=replace(score.sde, t_min=float(t)))
        found.append(np.asarray(log_prob(from_here, x, rtol=TOLERANCE, atol=TOLERANCE, cond=cond).nats))
        work.update()
    values = np.array(found)
    largest = values.max(axis=1, keepdims=True)
    below = np.clip((largest - values) / DEPTH_OF_LOG, 0, 1) * PARTS
    return {"density": packed(np.round(below), "<u2"), "largest": np.round(largest[:, 0], 4).tolist()}
