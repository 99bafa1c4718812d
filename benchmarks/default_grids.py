"""Every sampler's own grid beside the others, over numbers of score calls.

    python benchmarks/default_grids.py [--json=FILE] [--workdir=RUN]

* Samplers without noise, on two exact mixtures of four components (those of benchmarks/fitted.py) and four SDEs: the
  root mean square distance from the fine solution over 512 latents, float64.
* Samplers with noise, on two Gaussians: the root of the KL of the result's distribution, by the exact recursion.
* Samplers without noise on a run, `--workdir=runs/digits`: the same distance over 96 latents, to 12 calls.

It prints, for each sampler, its own grid's error over that of the best of the grids with a name, one for all data and
calls of a part, and over that of the best for each: geometric means over SDEs, data and calls. Takes three minutes on
two CPU cores, and four more with a run.
"""

import argparse
import json
import math
from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.fitted import mixture
from experiment import load_score
from experiment.build.samplers import GRIDS, SAMPLERS
from sde_lib import VE, VP, CosineVP, ExactScore, RectifiedFlow
from sde_lib.samplers import LinearSampler, Table, UniPC, ends_of, gaussian_kl, sample, table_of
from sde_lib.score import ScoreFn
from sde_lib.sde import host_sde

SDES = {"VP": VP(), "VE": VE(), "RectifiedFlow": RectifiedFlow(), "CosineVP": CosineVP()}
CALLS = (4, 5, 6, 8, 12, 16, 32, 64, 256)
PARTS = {"4 to 8": (4, 5, 6, 8), "12 to 32": (12, 16, 32), "64, 256": (64, 256)}
QUIET = (
    *("ddim", "dpmpp_2m", "dpmpp_3m", "unipc", "unipc_2", "unipc_bh1"),
    *("deis_t", "deis_rho", "deis_log_snr", "ipndm", "heun"),
)
NOISY = ("sde_dpmpp_1", "sde_dpmpp_2m", "sde_dpmpp_2m_heun", "sa_solver", "ancestral", "em")
WIDTHS = {"of about unit scale": [0.6, 0.35, 0.5], "of many scales": [1.5, 0.5, 0.2, 0.07, 0.03]}
HISTORY = 4  # columns of every table, so that those of a kind share a compiled scan

Errors = dict[str, dict[str, dict[int, float]]]  # of a sampler, on a grid, at so many calls


def candidates(name: str, calls: int) -> dict[str, LinearSampler]:
    """The sampler at so many calls on its own grid and on each that has a name; none where it cannot spend them."""
    sampler: Any = SAMPLERS[name].sampler
    if calls % sampler.calls_per_step or calls // sampler.calls_per_step < sampler.min_steps:
        return {}
    grids = {"own": sampler.grid, **{grid: make() for grid, make in GRIDS.items()}}
    return {grid: replace(sampler.at_nfe(calls), grid=value) for grid, value in grids.items()}


def measure(names: tuple[str, ...], calls: tuple[int, ...], errors: Callable[[list[Any]], list[float]]) -> Errors:
    """The errors of each sampler on each grid at each number of calls, to three digits."""
    found: Errors = {name: {} for name in names}
    for name in names:
        for count in calls:
            tried = candidates(name, count)
            for grid, error in zip(tried, errors(list(tried.values())) if tried else [], strict=True):
                found[name].setdefault(grid, {})[count] = float(f"{error:.3g}")
    return found


@partial(jax.jit, static_argnames="model")
def _ends(tables: Table, score_fn: ScoreFn, x: jax.Array, model: Any) -> jax.Array:
    return jax.lax.map(lambda table: ends_of(table, score_fn, x, None, model), tables)


def strong_errors(score_fn: ScoreFn, x: jax.Array, fine: jax.Array, samplers: list[Any]) -> list[float]:
    """The root mean square distance of each sampler's ends from the fine solution."""

    def padded(sampler: LinearSampler) -> Table:
        table = table_of(sampler, host_sde(score_fn.sde))
        b = np.pad(np.asarray(table.b), ((0, 0), (0, HISTORY - table.b.shape[1])))
        point = table.point and table.point._replace(q=np.pad(table.point.q, ((0, 0), (0, HISTORY - 2))))
        return table._replace(b=b, c=None, point=point)

    tables = jax.tree.map(lambda *v: jnp.asarray(np.stack(v), x.dtype), *map(padded, samplers))
    off = _ends(tables, score_fn, x, samplers[0].model) - fine
    return [float(v) for v in jnp.sqrt(jnp.mean(jnp.sum(off.reshape(*off.shape[:2], -1) ** 2, axis=2), axis=1))]


def on_mixtures() -> dict[str, Errors]:
    """The strong errors on each SDE and mixture."""
    found = {}
    with jax.enable_x64(True):
        for name, sde in SDES.items():
            for seed in (0, 1):
                data = mixture(seed)
                score_fn, x = ExactScore(data, sde), data.at(sde, sde.t_max).sample(jax.random.key(1), 512)
                fine = ends_of(jax.tree.map(jnp.asarray, table_of(UniPC(steps=2000), host_sde(sde))), score_fn, x)
                errors = partial(strong_errors, score_fn, x, fine)
                found[f"{name}, mixture {seed}"] = measure(QUIET, CALLS, errors)
    return found


def on_gaussians() -> dict[str, Errors]:
    """The roots of the KL on each SDE and Gaussian."""
    found = {}
    for name, sde in SDES.items():
        for kind, widths in WIDTHS.items():
            law = (sde, np.full(len(widths), 0.4), np.diag(np.square(widths)))
            errors = lambda samplers, law=law: [gaussian_kl(s, *law) ** 0.5 for s in samplers]  # noqa: E731
            found[f"{name}, Gaussian {kind}"] = measure(NOISY, CALLS, errors)
    return found


def on_run(workdir: str) -> dict[str, Errors]:
    """The strong errors on a run."""
    score_fn: Any = load_score(workdir)
    drawn = sample(UniPC(steps=150), score_fn, jax.random.key(5), 96, (8, 8, 1), frames=2)
    assert drawn.path is not None
    errors = partial(strong_errors, score_fn, drawn.path[0], drawn.x)
    names = ("ddim", "dpmpp_2m", "dpmpp_3m", "unipc", "unipc_2", "deis_t", "ipndm")
    return {"digits": measure(names, (4, 5, 8, 12), errors)}


def geometric_mean(values: Iterable[float]) -> float:
    """Their geometric mean; nan of none."""
    logs = np.log(list(values))
    return float(np.exp(logs.mean())) if len(logs) else math.nan


def summary(found: dict[str, Errors]) -> str:
    """The own grid's error over that of the best single grid with a name, and over that of each case's best.

    Geometric means over the cases and the calls of a part; the largest is of one case at one number of calls.
    """
    lines = [f"{'':18}" + "".join(f"{part:>20}" for part in PARTS) + f"{'largest':>12}"]
    for name in next(iter(found.values())):
        errors = {
            (grid, case, calls): error
            for case, samplers in found.items()
            for grid, row in samplers[name].items()
            for calls, error in row.items()
        }
        named = {grid for grid, _, _ in errors} - {"own"}
        best = {
            (case, calls): own / min(errors[other, case, calls] for other in named)
            for (grid, case, calls), own in errors.items()
            if grid == "own"
        }

        def mean(grid: str, part: tuple[int, ...], errors: dict[Any, float] = errors) -> float:
            return geometric_mean(v for (of, _, calls), v in errors.items() if of == grid and calls in part)

        cells = []
        for part in PARTS.values():
            single = mean("own", part) / min((mean(grid, part) for grid in named), default=math.nan)
            cells.append(f"{single:12.2f} {geometric_mean(v for (_, n), v in best.items() if n in part):7.2f}")
        lines.append(f"{name:18}" + "".join(cells) + f"{max(best.values()):12.2f}")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", help="write every figure to this file")
    parser.add_argument("--workdir", help="a run to measure on too, as runs/digits")
    args = parser.parse_args()
    found = {"strong": on_mixtures(), "root of the KL": on_gaussians()}
    if args.workdir:
        found["strong, a run"] = on_run(args.workdir)
    for kind, cases in found.items():
        print(f"{kind}: {', '.join(cases)}\n{summary(cases)}\n", flush=True)
    if args.json:
        Path(args.json).write_text(json.dumps({"command": "python benchmarks/default_grids.py", **found}) + "\n")


if __name__ == "__main__":
    main()
