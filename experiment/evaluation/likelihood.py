"""The held-out likelihood through the probability-flow ODE, with an error budget, and variational bounds beside it.

Levels are dequantised, and what is reported is a bound on the bits/dim of the levels themselves, an upper one
(`sde_lib.dequantization`); of data without levels it is log p in nats, in the user's units. Example i has the same
draws, probes and times in any batch.
"""

import dataclasses
import hashlib
import json
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from experiment.common.errors import UserError, choose
from experiment.common.files import check_folder, user_path, write_bytes, write_json, write_text
from experiment.common.progress import progress, say_start
from experiment.data.dataset import some_of
from experiment.data.scaling import Scaled
from experiment.devices.hosts import Place, shared_out
from experiment.devices.memory import check_fits
from experiment.devices.sharding import mesh_here, round_up
from experiment.evaluation import variational_bounds as bounds
from experiment.evaluation.bayes_classifier import bayes_classifier, classifier_seconds
from experiment.evaluation.opening import open_run
from experiment.evaluation.results import LikelihoodResult, plain
from experiment.evaluation.settings import FromConfig
from experiment.run.conditions import conditions_of
from experiment.run.earlier import keep_earlier
from experiment.run.load import in_float32
from experiment.run.sampling import GUESSED_CALLS, padded, seconds_per_call, solver_remedy, told
from experiment.run.shards import Shards
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
NO_CHAIN = "--betas and --variance are of a discrete chain: give its steps too, as in --chain=1000"

CAVEAT = (
    "This is the likelihood of the ODE's model: the density that the probability-flow ODE carries from its prior to "
    "the data. A stochastic sampler draws from another distribution, whose density nobody computes here; never read it "
    "as the likelihood of its samples."
)


IN_FLOAT32 = (
    "The network, which samples in bfloat16, computes in float32 here: the solver needs a fraction of the calls."
)


@dataclass(frozen=True, kw_only=True)
class LikelihoodSettings(FromConfig):
    """The settings of `likelihood`.

    n: held-out examples, None for all; probes: Hutchinson's for each; dequantization: a name of DEQUANTIZATIONS, for
    data with levels; k: importance-weighted draws of each example; bound: the variational bound of the SDE's model too;
    chain: the steps of a discrete chain whose ELBO to compute too, None for none; betas, variance: its names of
    bounds.BETAS and bounds.VARIANCES; rtol, atol: of the solve.
    """

    n: int | None = None
    probes: int
    dequantization: str = "uniform"
    k: int = 1
    bound: bool = False
    chain: int | None = None
    betas: str = "sde"
    variance: str = "fixed_small"
    batch_size: int
    rtol: float
    atol: float
    seed: int

    LEAST: ClassVar = {"n": 2, "k": 1, "chain": 1}
    MOST: ClassVar = {"k": 10**6, "chain": 10**6}

    @classmethod
    def check(cls, given: Mapping[str, Any]) -> None:
        """Raises UserError for a value out of its range, an unknown name, or a chain's name without its steps."""
        super().check(given)
        for name, table in (
            ("dequantization", DEQUANTIZATIONS),
            ("betas", bounds.BETAS),
            ("variance", bounds.VARIANCES),
        ):
            if given.get(name) is not None:
                choose(table, given[name], f"--{name}")
        own = {"betas": cls.betas, "variance": cls.variance}
        if given.get("chain") is None and any(given.get(name) not in (None, value) for name, value in own.items()):
            raise UserError(NO_CHAIN)


def likelihood_unit(dim: int, bin_width: float | None) -> tuple[str, Callable[[Array], Array]]:
    """The unit of a likelihood, and the function that converts nats to it.

    Bits/dim for data with levels, of log P in nats; for others nats, log p itself, where larger is better.
    """
    if bin_width is None:
        return "nats", lambda nats: nats
    return "bits/dim", lambda nats: bits_per_dim(nats, dim, 1.0)


def solve_batch(
    run: Any, first: int, settings: LikelihoodSettings, size: int, *, scale: float = 1.0, purpose: int = _DRAWS
) -> tuple[Array, int]:
    """Solve the ODE for the examples first .. first + size - 1.

    scale: of the tolerances. purpose: which draws of the dequantisation.

    Returns:
        log p/q in nats (size, k, probes), q being what a change of units brings for data without levels, and the NFE.
    """
    x, cond = _examples(run, settings, first, size)
    centres, key = run.scaling.to_model(x), jax.random.key(settings.seed)
    found, nfe = [], 0
    for draw in range(settings.k):
        # Of data without levels q is the density that the change of units has: the result is in the user's.
        z, log_q = centres, np.full(size, run.scaling.log_det(tuple(run.shape)))
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
            cond=cond,
        )
        found.append(np.asarray(result.probe_nats, np.float64) - np.asarray(log_q, np.float64)[:, None])
        nfe += int(result.nfe)
    return np.stack(found, axis=1), nfe


def _examples(run: Any, settings: LikelihoodSettings, first: int, size: int) -> tuple[Array, Any]:
    """The examples first .. first + size - 1 of those that the settings take, and what a network is told of them.

    Past their end the last one is repeated.
    """
    test = run.dataset.test
    index = padded(some_of(count_of_examples(run, settings), len(test))[first : first + size], size)
    return test.x[index], conditions_of(run, test, index)


def parts(
    run: Any, settings: LikelihoodSettings, folder: Path | None, budget: bool, place: Place | None = None
) -> Iterator[dict[str, Array]]:
    """Compute every batch's arrays, in order.

    With a folder each is kept there, and one that is there already is not computed again; with a place this process
    computes its share of them, and only the first one goes on when all are there.
    """
    n = count_of_examples(run, settings)
    size = min(settings.batch_size, n)
    split = round_up(size, mesh_here())  # the devices divide it; parts are kept by `size`, whatever the devices
    with progress(n, "likelihood", "example", likelihood_seconds(run, settings)) as work, solver_remedy():
        work.note("compiling")

        def compute(first: int, rows: int) -> dict[str, Array]:
            part = _compute(run, first, settings, split, rows, budget)
            work.note("")
            work.at(first + rows)
            return part

        if folder is None:
            for first in range(0, n, size):
                yield compute(first, min(size, n - first))
            return
        kept = Shards(folder, n, size, compute, lambda part: len(part["ratios"]))
        kept.fill(place or Place())
        if place is None or not place.number:
            yield from kept.read()


def folder_of(run: Any, settings: LikelihoodSettings, parent: Path) -> Path:
    """The folder of these parts, called by all that they depend on."""
    what = json.dumps(_what(run, settings), sort_keys=True, default=str)
    return parent / hashlib.sha256(what.encode()).hexdigest()[:12]


def _what(run: Any, settings: LikelihoodSettings) -> dict[str, Any]:
    found = plain({"step": run.step, "config": run.config.to_dict(), **dataclasses.asdict(settings)})
    return found  # type: ignore[no-any-return]


def likelihood_share(run: Any, settings: LikelihoodSettings, folder: Path, place: Place, budget: bool = True) -> None:
    """Compute the share of a process that is not the first one."""
    list(parts(in_float32(run), settings, folder, budget, place))


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
    x, cond = _examples(run, settings, first, size)
    x, key = run.scaling.to_model(x), jax.random.key(settings.seed)
    if settings.bound:
        of_bound = bounds.vlb_batch(run, x, cond, jax.random.fold_in(key, _BOUND), first)
        of_bound["reconstruction"] += run.scaling.log_det(tuple(run.shape))  # a density of x, in the user's units
        part |= of_bound
    if settings.chain:
        of_chain = (settings.chain, settings.betas, settings.variance)
        part |= bounds.elbo_batch(run, x, cond, jax.random.fold_in(key, _CHAIN), first, *of_chain)
    return {name: np.asarray(value)[:kept] if np.ndim(value) else np.asarray(value) for name, value in part.items()}


def count_of_examples(run: Any, settings: LikelihoodSettings) -> int:
    """The number of held-out examples that the settings take.

    Raises UserError where the data cannot be read, or do not suit the settings.
    """
    available = len(run.dataset.test)
    if available < 2:
        raise UserError(
            f"the held-out split of {run.dataset.name} has {available} example(s): a likelihood needs at least 2"
        )
    if settings.dequantization != "uniform" or settings.k > 1:
        if run.scaling.levels is None:
            raise UserError(
                f"--dequantization and --k are for data with levels, and {run.dataset.name} holds "
                f"{bounds.kind_of(run)}: leave them out"
            )
    if settings.chain:
        bounds.check_chain(run, settings.betas)
    n = min(settings.n or available, available)
    check_fits(
        24 * n * settings.k * settings.probes, f"{n:,} x k x probes likelihoods", "give a smaller --k or --probes"
    )
    return n


def likelihood_seconds(run: Any, settings: LikelihoodSettings) -> float:
    """About how long the likelihood takes: each call comes with two directional derivatives' worth for each probe."""
    calls = GUESSED_CALLS * settings.k * (1 + 2 * settings.probes)
    return count_of_examples(run, settings) * calls * seconds_per_call(run)


def likelihood(
    run: Any,
    settings: LikelihoodSettings,
    folder: Path | None = None,
    *,
    budget: bool = True,
    place: Place | None = None,
) -> tuple[LikelihoodResult, Array, dict[str, Array]]:
    """Compute the likelihood of the held-out split, batch by batch.

    folder: where batches are kept, and found again. budget: whether to solve the first batch again, tighter and with
    other draws. place: of this process, the first of those that share out the batches in the folder.

    Raises UserError for data that the settings do not suit, and where the solver gives up.

    Returns:
        The result with its error budget, the value of each example (n,), and the bounds' arrays.
    """
    given, run = run, in_float32(run)
    found = list(parts(run, settings, folder, budget, place))
    dim = math.prod(run.shape)
    unit, convert = likelihood_unit(dim, run.scaling.bin_width)
    per_unit = abs(float(convert(np.array(1.0))))  # of an error in nats
    ratios = np.concatenate([part["ratios"] for part in found])
    first = found[0]
    here = len(first["ratios"])
    seconds = [float(part["seconds"]) / len(part["ratios"]) for part in found]
    nats = _nats(ratios)
    values = convert(_averaged(ratios))
    tolerance_change = se_dequantization = None
    if budget:
        tolerance_change = float(np.mean(convert(_averaged(first["tighter"])) - values[:here]))
    if "redrawn" in first:
        difference = convert(_averaged(first["redrawn"])) - values[:here]
        se_dequantization = float(np.sqrt(0.5 * np.mean(difference**2) / len(values)))
    of_bounds = [name for name in first if name not in OWN_ARRAYS]
    arrays = {name: np.concatenate([part[name] for part in found]) for name in of_bounds}
    result = LikelihoodResult(
        unit=unit,
        mean=float(values.mean()),
        se_images=float(values.std(ddof=1) / math.sqrt(len(values))),
        se_probes=se_probes(convert(nats)),
        se_dequantization=se_dequantization,
        tolerance_change=tolerance_change,
        prior_mismatch=per_unit * prior_mismatch(run),
        n=len(values),
        probes=settings.probes,
        k=ratios.shape[1],
        dequantization=settings.dequantization if run.scaling.levels else None,
        nfe=float(np.average([part["nfe"] for part in found], weights=[len(part["ratios"]) for part in found])),
        seconds_per_example=float(np.median(seconds[1:])) if len(seconds) > 1 else seconds[0],
        compiled_too=len(seconds) == 1,
        caveat=CAVEAT if run is given else f"{CAVEAT} {IN_FLOAT32}",
        bound=bounds.bound_result(arrays, convert, per_unit),
        chain=bounds.chain_result(arrays, settings, convert, per_unit),
    )
    return result, values, arrays


def _nats(ratios: Array) -> Array:
    """The importance-weighted mean of the draws for each probe: (n, probes) from (n, k, probes)."""
    return np.asarray(importance_weighted(np.moveaxis(ratios, 1, 2)), np.float64)


def _averaged(ratios: Array) -> Array:
    """The importance-weighted mean of the draws, (n,): their probes are averaged before the logarithm of the mean.

    Inside it the probes' noise would raise the mean, and what is reported would be no bound.
    """
    return np.asarray(importance_weighted(ratios.mean(axis=2)), np.float64)


def se_probes(nats: Array) -> float | None:
    """The standard error of the mean over examples that is due to the probes: sqrt(mean_i s_i²/(probes n)).

    nats: (n, probes), with the spread s_i over the probes of example i. None for one probe.
    """
    n, probes = nats.shape
    return float(np.sqrt(np.mean(nats.var(axis=1, ddof=1)) / (probes * n))) if probes > 1 else None


def prior_mismatch(run: Any) -> float:
    """KL(N(alpha m, alpha² v + sigma²) || the SDE's prior) at t_max in nats.

    m and v are the mean and variance of each entry of the training data.
    """
    examples = Scaled(run.scaling, run.dataset.train.x)
    mean = sum(x.astype(np.float64).sum(axis=0) for x in examples.blocks()) / len(examples)
    variance = sum(np.square(x.astype(np.float64) - mean).sum(axis=0) for x in examples.blocks()) / len(examples)
    variance += 0 if run.scaling.bin_width is None else run.scaling.bin_width**2 / 12
    sde = run.score_fn.sde
    moments = DiagonalGaussian(jnp.asarray(mean), jnp.asarray(np.sqrt(variance)))
    return float(moments.at(sde, sde.t_max).kl(sde.prior(tuple(run.shape))))


def likelihood_lines(found: LikelihoodResult) -> list[str]:
    """The budget for a terminal, a line for each part of it."""
    unit = found.unit
    line = partial(bounds.table_line, unit=unit)
    discrete = "an upper bound, " if unit == "bits/dim" else ""
    lines = [
        f"likelihood of the ODE's model: {found.mean:.4f} {unit} ({discrete}{found.n:,} held-out examples)",
        line("standard error over examples", found.se_images),
        line(f"  of it from {found.probes} probe(s)", found.se_probes),
    ]
    if unit == "bits/dim":
        lines.append(line(f"  of it from {found.k} draw(s), {found.dequantization}", found.se_dequantization))
    lines += [
        line("change when the tolerance is halved", found.tolerance_change, digits=5),
        line("prior mismatch, of the data's first two moments", found.prior_mismatch, digits=6),
        f"  {'NFE; seconds per example':44s} {found.nfe:,.0f}; {found.seconds_per_example:.3g}"
        + (" with compilation" if found.compiled_too else ""),
    ]
    return [*lines, *bounds.bound_lines(found), found.caveat]


def likelihood_of_run(
    workdir: str, given: Mapping[str, Any], out: str | None = None, data: str = "", cache: str = ""
) -> list[str]:
    """Do the whole of `evaluate.py --likelihood`: compute what is not there yet, and write the table.

    given: settings that are not None go over those of the run's config.eval. out: the folder, WORKDIR/likelihood for
    None. data, cache: as for `load_run`. Raises UserError for a missing run, a setting out of range or of another kind
    of data, and a folder that cannot be written.

    Returns:
        The table's lines, and at last the file's path.
    """
    if given.get("chain") is None and {given.get("betas"), given.get("variance")} != {None}:
        raise UserError(NO_CHAIN)
    with shared_out() as place:
        run, settings = open_run(workdir, LikelihoodSettings, given, data=data, cache=cache)
    folder = user_path(out, "--out") if out else run.workdir / "likelihood"
    if run.scaling.levels is None and any(given.get(name) is not None for name in ("dequantization", "k")):
        raise UserError(
            f"--dequantization and --k are for data with levels, and {run.workdir} is of vectors: leave them out"
        )
    n = count_of_examples(run, settings)
    check_folder(folder)
    seconds = likelihood_seconds(run, settings)
    if run.config.model.condition == "label":
        seconds += classifier_seconds(run, n)
    say_start(f"likelihood of {n:,} held-out examples by {run.workdir} at step {run.step}{told(run, seconds)}")
    what, kept = _what(run, settings), folder_of(run, settings, folder / "parts")
    if place.number:
        likelihood_share(run, settings, kept, place)
        return [f"process {place.number} of {place.count} has computed its share; the first one writes the files"]
    found, values, arrays = likelihood(run, settings, kept, place=place)
    name = f"{settings.dequantization}_k{settings.k}" if run.scaling.levels else "nats"
    unit, convert = likelihood_unit(math.prod(run.shape), run.scaling.bin_width)
    pictures = bounds.pictures(arrays, settings, unit, convert)
    lines = likelihood_lines(found)
    document = {**what, **plain(found), "examples": some_of(n, len(run.dataset.test)), "values": values}
    if run.config.model.condition == "label":
        by_class = bayes_classifier(run, n, settings)
        lines += by_class.lines(convert, unit)
        document["classes"] = by_class.document()
    document = plain(document)
    files = (f"{name}.txt", *(f"{name}_{picture}" for picture in bounds.PICTURES))
    aside = keep_earlier(
        folder, f"{name}.json", document, lambda found: {key: found[key] for key in what}, lambda found: files
    )
    write_json(folder / f"{name}.json", document)
    write_text(folder / f"{name}.txt", "\n".join(lines) + "\n")
    for picture, content in pictures.items():
        write_bytes(folder / f"{name}_{picture}", content)
    return [*lines, *aside, str(folder / f"{name}.txt")]
