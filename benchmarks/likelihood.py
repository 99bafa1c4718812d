"""The gain from training for likelihood on the digits, and the cost of a likelihood.

    python benchmarks/likelihood.py [--steps=1000 --seeds=3]

* Two networks of configs/digits.py from each seed, trained for equal steps: with the plain loss on the noise at uniform
  times, and with likelihood weighting at times even in log SNR. Held-out bits/dim of all 297 digits.
* One network trained on the levels' centres: its bound by truncated-normal and by uniform dequantisation.
* The likelihood-trained network's solve of them at rtol 1e-5 with one probe: seconds per NFE over those of a jitted
  score call of the same batch; and on 99 of them at rtol 1e-3, seconds with reverse over those with forward
  derivatives.

Runs stay in --workdir, and what is trained there already is not trained again. About half an hour on two CPU cores.
"""

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from configs import digits
from experiment.cli import convolutions_on_all_cores
from experiment.config import whole_config
from experiment.evaluation.likelihood import LikelihoodSettings, likelihood
from experiment.run.load import Run, load_run
from experiment.training.loop import train
from sde_lib import Hutchinson, log_prob

OBJECTIVES = {
    "sigma2, uniform t": {"weighting": "sigma2", "times": "uniform_t", "clip": 1.0},
    "likelihood, uniform log SNR": {"weighting": "likelihood", "times": "uniform_log_snr", "clip": 20.0},
}
# sigma(t_min) is half of half a level: two standard deviations of the truncated normal fit into a bin.
CENTRES = {"data.dequantize": False}


def trained(workdir: Path, steps: int, seed: int, settings: dict[str, Any]) -> Run:
    """Train the digits config with these settings; settings without a section are train's."""
    config = whole_config(digits.get_config())
    config.seed, config.train.steps = seed, steps
    config.train.checkpoint_every = steps
    config.update_from_flattened_dict({k if "." in k else f"train.{k}": v for k, v in settings.items()})
    train(config, workdir)
    return load_run(workdir)


def bits(run: Run, dequantization: str = "uniform", rtol: float = 1e-4) -> dict[str, float]:
    """Measure the held-out bits/dim of every example, by one probe."""
    given = {"probes": 1, "dequantization": dequantization, "batch_size": 99, "rtol": rtol, "atol": rtol}
    settings = LikelihoodSettings.from_config(run.config, **given)
    found, _, _ = likelihood(run, settings, budget=False)
    return {"mean": found.mean, "se_images": found.se_images, "n": found.n, "nfe": found.nfe}


def objectives(workdir: Path, steps: int, seeds: int) -> dict[str, Any]:
    """Measure the bits/dim of each objective by seed, and the mean and standard error of the pairs' differences."""
    rows: dict[str, list[dict[str, float]]] = {name: [] for name in OBJECTIVES}
    for seed in range(seeds):
        for i, (name, settings) in enumerate(OBJECTIVES.items()):
            rows[name].append(bits(trained(workdir / f"objective{i}_seed{seed}", steps, seed, settings)))
            print(f"{name}, seed {seed}: {rows[name][-1]['mean']:.4f} bits/dim", flush=True)
    plain, for_likelihood = ([row["mean"] for row in rows[name]] for name in OBJECTIVES)
    gains = [a - b for a, b in zip(plain, for_likelihood, strict=True)]
    spread = statistics.stdev(gains) / seeds**0.5 if seeds > 1 else None
    return {"rows": rows, "gain": statistics.mean(gains), "gain_se": spread}


def dequantizations(workdir: Path, steps: int) -> dict[str, Any]:
    """Measure both bounds of the one network that was trained on centres."""
    run = trained(workdir / "centres", steps, 0, {**OBJECTIVES["likelihood, uniform log SNR"], **CENTRES})
    return {name: bits(run, name) for name in ("truncated_normal", "uniform")}


@dataclass(frozen=True)
class ReverseHutchinson(Hutchinson):
    """The same estimates by reverse derivatives, to compare with."""

    __init__ = Hutchinson.__init__

    def __call__(
        self, fn: Callable, x: jax.Array, probes: jax.Array, isotropic: Any = 0.0
    ) -> tuple[jax.Array, jax.Array]:
        value, pull = jax.vjp(fn, x)
        of_probe = jax.vmap(lambda v: jnp.sum((pull(v)[0] * v).reshape(x.shape[0], -1), axis=1), in_axes=1, out_axes=1)
        return value, of_probe(probes)


def cost(run: Run, batch: int = 99) -> dict[str, Any]:
    """Measure the cost of solves of all held-out digits at rtol 1e-5 with one probe, without compilation."""
    key, x = jax.random.key(0), run.scaling.to_model(run.dataset.test.x, jax.random.key(1))
    batches = [x[first : first + batch] for first in range(0, len(x), batch)]

    def solve(kind: type[Hutchinson], chosen: list[jax.Array], rtol: float = 1e-5) -> tuple[float, int]:
        start, nfe = time.perf_counter(), 0
        for some in chosen:
            result = log_prob(run.score_fn, some, key, divergence=kind(probes=1), rtol=rtol, atol=rtol)
            jax.block_until_ready(result.nats)
            nfe += int(result.nfe)
        return time.perf_counter() - start, nfe

    call = jax.jit(lambda score_fn, x: score_fn(x, 0.3))

    def calls(count: int = 50) -> float:
        start = time.perf_counter()
        for _ in range(count):
            jax.block_until_ready(call(run.score_fn, batches[0]))
        return (time.perf_counter() - start) / count

    jax.block_until_ready(call(run.score_fn, batches[0]))
    solve(Hutchinson, batches[:1])
    per_nfe = []
    for _ in range(3):
        before = calls()
        seconds, nfe = solve(Hutchinson, batches)
        per_nfe.append(seconds / nfe / (0.5 * (before + calls())))
    result = {"seconds": seconds, "nfe": nfe / len(batches), "per_nfe_over_score_call": statistics.median(per_nfe)}
    # The probes are the same, so both kinds take the same steps: short solves in turn, the first of which compiles.
    ratios = []
    for _ in range(4):
        forward, reverse = (solve(kind, batches[:1], rtol=1e-3)[0] for kind in (Hutchinson, ReverseHutchinson))
        ratios.append(reverse / forward)
    ratios = ratios[1:]
    return {**result, "reverse_over_forward": statistics.median(ratios), "range": [min(ratios), max(ratios)]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=1000, help="of each training")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--workdir", default="runs/benchmark_likelihood")
    parser.add_argument("--json", help="also write the figures to this file")
    parser.add_argument("--cost_of", help="a finished run: only what its likelihood costs")
    args = parser.parse_args()
    convolutions_on_all_cores()  # as the commands do
    if args.cost_of:
        print(json.dumps(cost(load_run(args.cost_of)), indent=2))
        return
    workdir = Path(args.workdir)
    found: dict[str, Any] = {"command": f"python benchmarks/likelihood.py --steps={args.steps} --seeds={args.seeds}"}
    found["objectives"] = objectives(workdir, args.steps, args.seeds)
    gain, gain_se = found["objectives"]["gain"], found["objectives"]["gain_se"] or 0
    print(f"likelihood-trained is lower by {gain:.4f} +- {gain_se:.4f} bits/dim")
    found["dequantizations"] = dequantizations(workdir, args.steps)
    for name, row in found["dequantizations"].items():
        print(f"{name}, one network: {row['mean']:.4f} +- {row['se_images']:.4f} bits/dim, {row['nfe']:.0f} NFE")
    found["cost"] = cost(load_run(workdir / "objective1_seed0"))
    for name, value in found["cost"].items():
        print(f"{name}: {value}")
    found |= {"device": jax.devices()[0].device_kind, "machine": platform.machine(), "jax": jax.__version__}
    if args.json:
        Path(args.json).write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
