"""The likelihood of the held-out split through the probability-flow ODE, with an error budget, and variational bounds
beside it.

Levels are dequantised, and what is reported is a bound on the bits/dim of the levels themselves, an upper one
(`sde_lib.dequantization`); of vectors it is log p in nats. Example i has the same draws, probes and times in any batch.
"""

import dataclasses
import hashlib
import json
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiment.devices.sharding import mesh_here, round_up
from experiment.errors import UserError, choose
from experiment.evaluation import variational_bounds as bounds
from experiment.files import write_bytes, write_npz, write_text
from experiment.sampling import padded, progress, solver_remedy
from sde_lib import (
    DiagonalGaussian,
    Hutchinson,
    TruncatedNormalDequantization,
    UniformDequantization,
    bits_per_dim,
    importance_weighted,
    log_prob,
    row_keys,
)

Array = np.ndarray

DEQUANTIZATIONS: dict[str, Any] = {"uniform": UniformDequantization, "truncated_normal": TruncatedNormalDequantization}
OWN_ARRAYS = ("ratios", "seconds", "nfe", "tighter", "redrawn")  # of a part; the others are the bounds'
_PROBES, _DRAWS, _OTHER_DRAWS, _BOUND, _CHAIN = range(5)  # the purposes that a seed's randomness is split into

CAVEAT = (
    "This is the likelihood of the ODE's model: the density that the probability-flow ODE carries from its prior to "
    "the data. "
    "A stochastic sampler draws from another law, whose density nobody computes here; never read it as the "
    "likelihood of its samples."
)


@dataclass(frozen=True)
class LikelihoodSettings:
    """What to compute.

    n: held-out examples, None for all; probes: Hutchinson's for each; dequantization: a name of DEQUANTIZATIONS, for
        data with levels;
    k: importance-weighted draws of each example; bound: the variational bound of the SDE's model too; chain: the steps
    of a discrete chain whose ELBO to compute too, None for none; betas, variance: its names of bounds.BETAS and
    bounds.VARIANCES; rtol, atol: of the solve.
    """

    n: int | None = None
    probes: int = 4
    dequantization: str = "uniform"
    k: int = 1
    bound: bool = False
    chain: int | None = None
    betas: str = "sde"
    variance: str = "fixed_small"
    batch_size: int = 128
    rtol: float = 1e-5
    atol: float = 1e-5
    seed: int = 0

    def __post_init__(self) -> None:
        for name, least in (("n", 2), ("probes", 1), ("k", 1), ("chain", 1), ("batch_size", 1), ("seed", 0)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise UserError(f"--{name} is {value}: give at least {least}")
        choose(DEQUANTIZATIONS, self.dequantization, "--dequantization")
        choose(bounds.BETAS, self.betas, "--betas")
        choose(bounds.VARIANCES, self.variance, "--variance")
        if self.chain is None and (self.betas, self.variance) != ("sde", "fixed_small"):
            raise UserError("--betas and --variance are of a discrete chain: give its steps too, as in --chain=1000")


def likelihood_unit(dim: int, bin_width: float | None) -> tuple[str, Callable[[Array], Array]]:
    """Bits/dim for data with levels, of log P in nats; for vectors nats, log p itself, where larger is better."""
    if bin_width is None:
        return "nats", lambda nats: nats
    return "bits/dim", lambda nats: bits_per_dim(nats, dim, 1.0)


def solve_batch(
    run: Any, first: int, settings: LikelihoodSettings, size: int, *, scale: float = 1.0, purpose: int = _DRAWS
) -> tuple[Array, int]:
    """(log p/q of examples first .. first + size - 1, (size, k, probes) in nats; NFE), q being 1 for vectors.

    scale: of the tolerances. purpose: which draws of the dequantisation.
    """
    x, labels = _examples(run, first, size)
    centres, key = run.scaling.to_model(x), jax.random.key(settings.seed)
    found, nfe = [], 0
    for draw in range(settings.k):
        z, log_q = centres, jnp.zeros(size)
        if run.scaling.levels:
            of_draw = jax.random.fold_in(jax.random.fold_in(key, purpose), draw)
            keys = row_keys(of_draw, first + jnp.arange(size))
            z, log_q = DEQUANTIZATIONS[settings.dequantization](run.scaling.bin_width)(run.score_fn.sde, keys, centres)
        # An example's draws share its probes: noise that differed between them would not average out in the mean of
        # exponentials.
        result = log_prob(
            run.score_fn,
            z,
            jax.random.fold_in(key, _PROBES),
            divergence=Hutchinson(probes=settings.probes),
            rtol=scale * settings.rtol,
            atol=scale * settings.atol,
            first=first,
            cond=labels,
        )
        found.append(np.asarray(result.probe_nats, np.float64) - np.asarray(log_q, np.float64)[:, None])
        nfe += int(result.nfe)
    return np.stack(found, axis=1), nfe


def _examples(run: Any, first: int, size: int) -> tuple[Array, Array | None]:
    """Examples first .. first + size - 1 of the held-out split, the last one repeated past its end; and their classes
    for the network.
    """
    test = run.dataset.test
    labels = padded(test.labels[first : first + size], size) if run.config.model.class_conditional else None
    return padded(test.x[first : first + size], size), labels


def parts(run: Any, settings: LikelihoodSettings, folder: Path | None, budget: bool) -> Iterator[dict[str, Array]]:
    """Every batch's arrays, in order. With a folder each is kept there, and one that is there already is not computed
    again.
    """
    n = count_of_examples(run, settings)
    size = min(settings.batch_size, n)
    split = round_up(size, mesh_here())  # the devices divide it; parts are kept by `size`, whatever the devices
    with progress(n, "likelihood", "example") as bar, solver_remedy():
        for first in range(0, n, size):
            path = None if folder is None else folder / f"{first:08d}.npz"
            part = _read(path) or _compute(run, first, settings, split, min(size, n - first), budget)
            if path is not None and not path.exists():
                write_npz(path, **part)
            bar.update(len(part["ratios"]))
            yield part


def _compute(
    run: Any, first: int, settings: LikelihoodSettings, size: int, kept: int, budget: bool
) -> dict[str, Array]:
    start = perf_counter()
    ratios, nfe = solve_batch(run, first, settings, size)
    part: dict[str, Any] = {"ratios": ratios, "seconds": perf_counter() - start, "nfe": nfe}
    if first == 0 and budget:  # what costs another solve is measured on one batch
        part["tighter"], _ = solve_batch(run, first, settings, size, scale=0.5)
        if run.scaling.levels:
            part["redrawn"], _ = solve_batch(run, first, settings, size, purpose=_OTHER_DRAWS)
    x, labels = _examples(run, first, size)
    x, key = run.scaling.to_model(x), jax.random.key(settings.seed)
    if settings.bound:
        part |= bounds.vlb_batch(run, x, labels, jax.random.fold_in(key, _BOUND), first)
    if settings.chain:
        of_chain = (settings.chain, settings.betas, settings.variance)
        part |= bounds.elbo_batch(run, x, labels, jax.random.fold_in(key, _CHAIN), first, *of_chain)
    return {name: np.asarray(value)[:kept] if np.ndim(value) else np.asarray(value) for name, value in part.items()}


def count_of_examples(run: Any, settings: LikelihoodSettings) -> int:
    """How many held-out examples it takes. Raises UserError where the data cannot be read, or do not suit the
    settings.
    """
    available = len(run.dataset.test)
    if available < 2:
        raise UserError(
            f"the held-out split of {run.dataset.name} has {available} example(s): a likelihood needs at least 2"
        )
    if settings.dequantization != "uniform" or settings.k > 1:
        if run.scaling.levels is None:
            raise UserError(
                f"--dequantization and --k are for data with levels, and {run.dataset.name} holds vectors: leave "
                "them out"
            )
    if settings.chain:
        bounds.check_chain(run, settings.betas)
    return min(settings.n or available, available)


def _read(path: Path | None) -> dict[str, Array] | None:
    if path is None or not path.exists():
        return None
    with np.load(path) as saved:
        return dict(saved)


def likelihood(
    run: Any, settings: LikelihoodSettings, folder: Path | None = None, *, budget: bool = True
) -> tuple[dict[str, Any], Array, dict[str, Array]]:
    """(the result with its error budget, plain values; (n,) value of each example; the bounds' arrays).

    folder: where batches are kept, and found again. budget: whether to solve the first batch again, tighter and with
    other draws. Raises UserError for data that the settings do not suit, and where the solver gives up.
    """
    found = list(parts(run, settings, folder, budget))
    dim = math.prod(run.shape)
    unit, convert = likelihood_unit(dim, run.scaling.bin_width)
    per_unit = abs(float(convert(np.array(1.0))))  # of an error in nats
    ratios = np.concatenate([part["ratios"] for part in found])
    first = found[0]
    here = len(first["ratios"])
    seconds = [float(part["seconds"]) / len(part["ratios"]) for part in found]
    nats = _nats(ratios)
    values = convert(nats.mean(axis=1))
    result = {
        "unit": unit,
        "mean": float(values.mean()),
        "se_images": float(values.std(ddof=1) / math.sqrt(len(values))),
        "se_probes": se_probes(convert(nats)),
        "se_dequantization": None,
        "tolerance_change": float(np.mean(convert(_nats(first["tighter"]).mean(axis=1)) - values[:here]))
        if budget
        else None,
        "prior_mismatch": per_unit * prior_mismatch(run),
        "n": len(values),
        "probes": settings.probes,
        "k": ratios.shape[1],
        "dequantization": settings.dequantization if run.scaling.levels else None,
        "nfe": float(np.average([part["nfe"] for part in found], weights=[len(part["ratios"]) for part in found])),
        "seconds_per_example": float(np.median(seconds[1:])) if len(seconds) > 1 else seconds[0],
        "compiled_too": len(seconds) == 1,
        "caveat": CAVEAT,
    }
    if "redrawn" in first:
        difference = convert(_nats(first["redrawn"]).mean(axis=1)) - values[:here]
        result["se_dequantization"] = float(np.sqrt(0.5 * np.mean(difference**2) / len(values)))
    of_bounds = [name for name in first if name not in OWN_ARRAYS]
    arrays = {name: np.concatenate([part[name] for part in found]) for name in of_bounds}
    return result | bounds.summaries(arrays, settings, convert, per_unit), values, arrays


def _nats(ratios: Array) -> Array:
    """(n, probes) from (n, k, probes): of each probe the importance-weighted mean of the draws."""
    return np.asarray(importance_weighted(np.moveaxis(ratios, 1, 2)), np.float64)


def se_probes(nats: Array) -> float | None:
    """Of the mean over examples, from the spread of each one's probes, (n, probes): sqrt(mean_i s_i²/(probes n)). None
    for one probe.
    """
    n, probes = nats.shape
    return float(np.sqrt(np.mean(nats.var(axis=1, ddof=1)) / (probes * n))) if probes > 1 else None


def prior_mismatch(run: Any) -> float:
    """KL(N(alpha m, alpha² v + sigma²) || the SDE's prior) at t_max in nats, with the mean m and variance v of each
    entry of the data.
    """
    x = np.asarray(run.scaling.to_model(run.dataset.train.x), np.float64)
    variance = x.var(axis=0) + (0 if run.scaling.bin_width is None else run.scaling.bin_width**2 / 12)
    sde = run.score_fn.sde
    moments = DiagonalGaussian(jnp.asarray(x.mean(axis=0)), jnp.asarray(np.sqrt(variance)))
    return float(moments.at(sde, sde.t_max).kl(sde.prior(tuple(run.shape))))


def likelihood_lines(found: dict[str, Any]) -> list[str]:
    """The budget for a terminal, a line for each part of it."""
    unit = found["unit"]
    line = partial(bounds.table_line, unit=unit)
    discrete = "an upper bound, " if unit == "bits/dim" else ""
    lines = [
        f"likelihood of the ODE's model: {found['mean']:.4f} {unit} ({discrete}{found['n']:,} held-out examples)",
        line("standard error over examples", found["se_images"]),
        line(f"  of it from {found['probes']} probe(s)", found["se_probes"]),
    ]
    if unit == "bits/dim":
        lines.append(line(f"  of it from {found['k']} draw(s), {found['dequantization']}", found["se_dequantization"]))
    lines += [
        line("change when the tolerance is halved", found["tolerance_change"], digits=5),
        line("prior mismatch, of the data's first two moments", found["prior_mismatch"], digits=6),
        f"  {'NFE; seconds per example':44s} {found['nfe']:,.0f}; {found['seconds_per_example']:.3g}"
        + (" with compilation" if found["compiled_too"] else ""),
    ]
    return [*lines, *bounds.bound_lines(found), found["caveat"]]


def likelihood_of_run(workdir: str, given: dict[str, Any]) -> tuple[list[str], Path]:
    """The whole of `evaluate.py --likelihood`: computes what is not there yet, writes the table; returns its lines and
    its folder.

    given: settings that are not None go over those of the run's config.eval. Raises UserError for a missing run or a
        setting out of range.
    """
    from experiment.run.load import load_run

    chosen = {k: v for k, v in given.items() if v is not None}
    LikelihoodSettings(**chosen)  # a mistake is told before the run is loaded
    run = load_run(workdir)
    own = {k: v for k, v in run.config.eval.to_dict().items() if k in ("probes", "batch_size", "rtol", "atol", "seed")}
    settings = LikelihoodSettings(**{**own, **chosen})
    what = {"step": run.step, "config": run.config.to_dict(), **dataclasses.asdict(settings)}
    digest = hashlib.sha256(json.dumps(what, sort_keys=True, default=str).encode()).hexdigest()[:12]
    folder = run.workdir / "likelihood"
    found, values, arrays = likelihood(run, settings, folder / "parts" / digest)
    lines = likelihood_lines(found)
    name = f"{settings.dequantization}_k{settings.k}" if run.scaling.levels else "nats"
    write_text(folder / f"{name}.json", json.dumps({**what, **found, "values": values.tolist()}, indent=2) + "\n")
    write_text(folder / f"{name}.txt", "\n".join(lines) + "\n")
    for picture, content in bounds.pictures(
        arrays, settings, *likelihood_unit(math.prod(run.shape), run.scaling.bin_width)
    ).items():
        write_bytes(folder / picture, content)
    return lines, folder / f"{name}.txt"
