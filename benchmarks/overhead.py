"""The cost of the samplers beyond their score calls, as ratios within one run.

    python benchmarks/overhead.py [--batch=64] [--nfe=200] [--only=guided]

Prints, for the network of configs/digits.py, untrained:

* fixed-step samplers: time / (score calls x time of one jitted score call);
* the ODE sampler, and the likelihood with one probe: time per NFE / time of one jitted score call;
* classifier-free guidance by DPM-Solver++(2M), of configs/digits_labels.py: time / (network calls x half the time of a
  jitted score call of twice as many rows); --only=guided leaves out the rest;
* how often Python traced the network over three checkpoints, all samplers and the likelihood, for one batch shape;

and, with the exact score of a Gaussian on a state of 1 MiB, of which 1,000 kept steps would be 1 GiB,

* peak memory of a sampling process with 1,000 steps over one with 10.

The machine may be shared, so every ratio is a median over rounds, in each of which it is taken against score calls just
before and after. Takes about seven minutes on two CPU cores.
"""

import argparse
import json
import platform
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from configs import digits, digits_labels
from experiment.build.objects import build_network, build_score
from experiment.build.samplers import SAMPLERS
from experiment.config import whole_config
from experiment.data.load import load_dataset
from sde_lib import (
    VP,
    ClassifierFree,
    EulerMaruyama,
    ExactScore,
    GaussianMixture,
    Hutchinson,
    NetworkScore,
    ProbabilityFlow,
    log_prob,
    sample,
)
from sde_lib.samplers import DPMSolverPP2M

STATE = (4096, 64)  # float32: 1 MiB
# These are with and without noise, with none to three earlier calls, with calls elsewhere than at x, with a corrector.
KINDS = "em,pc,sde_dpmpp_2m,sa_solver,dpmpp_3m,deis_t,ipndm,unipc,heun"


@dataclass(frozen=True)
class Counted:
    """A network's apply that counts its traces; equal for equal architectures, as the plain one is."""

    apply: Callable
    traces: list = field(compare=False, hash=False)

    def __call__(self, *args):
        self.traces.append(args[1].shape)
        return self.apply(*args)


def checkpoints(count: int, traces: list) -> tuple[list[NetworkScore], tuple[int, ...]]:
    """Build the digits network with `count` sets of weights.

    Untrained it puts out zero, so that ODE steps are few, and as long each.

    Returns:
        scores: one for each set of weights.
        shape: an image's.
    """
    config, dataset = whole_config(digits.get_config()), load_dataset("digits")
    scores = []
    for seed in range(count):
        config.seed = seed
        apply, params = build_network(config, dataset)
        scores.append(build_score(config, Counted(apply, traces), params))
    return scores, tuple(dataset.shape)


def samplers(names: Sequence[str], nfe: int) -> dict:
    """The samplers of these names, and the adaptive ODE."""
    fixed: dict[str, Any] = {name: SAMPLERS[name].sampler for name in names}
    return {
        **{name: sampler.at_nfe(nfe) for name, sampler in fixed.items()},
        "ode": ProbabilityFlow(rtol=1e-3, atol=1e-3),
    }


def seconds(run: Callable) -> float:
    start = time.perf_counter()
    jax.block_until_ready(run())
    return time.perf_counter() - start


def measure(names: Sequence[str], batch: int, calls_each: int, rounds: int) -> dict:
    """Measure every time per score call, over that of one jitted score call, and the traces of three checkpoints."""
    traces: list = []
    scores, shape = checkpoints(3, traces)
    key, x = jax.random.key(0), jax.random.normal(jax.random.key(1), (batch, *shape))
    score_call, calls, t = jax.jit(lambda score_fn, x, t: score_fn(x, t)), max(calls_each // 4, 1), jnp.float32(0.5)

    def uses(score_fn: NetworkScore) -> dict[str, Callable]:
        chosen, solver = samplers(names, calls_each), {"divergence": Hutchinson(probes=1), "rtol": 1e-3, "atol": 1e-3}
        drawn = {name: lambda s=s: sample(s, score_fn, key, batch, shape) for name, s in chosen.items()}
        return {**drawn, "likelihood": lambda: log_prob(score_fn, x, key, **solver)}

    def one_call() -> float:
        return seconds(lambda: [score_call(scores[-1], x, t) for _ in range(calls)][-1]) / calls

    nfe = {}
    for score_fn in tqdm(scores, "checkpoints, with compilation", disable=None):
        for name, run in uses(score_fn).items():
            nfe[name] = jax.block_until_ready(run()).nfe
        jax.block_until_ready(score_call(score_fn, x, t))
    counted = len(traces)
    ratios: dict[str, list[float]] = {name: [] for name in nfe}
    for _ in tqdm(range(rounds), "rounds", disable=None):
        before = one_call()
        for name, run in uses(scores[-1]).items():
            spent = seconds(run) / nfe[name]
            after = one_call()
            ratios[name].append(spent / (0.5 * (before + after)))
            before = after
    return {
        "ratios": {name: statistics.median(values) for name, values in ratios.items()},
        "spread": {name: [min(values), max(values)] for name, values in ratios.items()},
        "nfe": nfe,
        "traces": counted,
    }


def guided(batch: int, nfe: int, rounds: int) -> list[float]:
    """Measure the time of a guided sample per network call, over half a score call of twice as many rows, by round."""
    config, dataset = whole_config(digits_labels.get_config()), load_dataset("digits")
    score_fn, shape = build_score(config, *build_network(config, dataset)), tuple(dataset.shape)
    cond, nothing = jnp.arange(batch) % dataset.num_classes, np.int32(dataset.num_classes)
    x, both = jax.random.normal(jax.random.key(1), (2 * batch, *shape)), jnp.append(cond, jnp.full(batch, nothing))
    sampler, score_call = DPMSolverPP2M(steps=nfe // 2), jax.jit(lambda score_fn, x, t, cond: score_fn(x, t, cond))

    def draw() -> jax.Array:
        drawn = sample(sampler, ClassifierFree(score_fn, 2.0, nothing), jax.random.key(0), batch, shape, cond=cond)
        assert drawn.nfe == 2 * sampler.steps
        return drawn.x

    def calls() -> float:
        return seconds(lambda: [score_call(score_fn, x, jnp.float32(0.5), both) for _ in range(sampler.steps)][-1])

    jax.block_until_ready((draw(), calls()))
    times = [(calls(), seconds(draw), calls()) for _ in tqdm(range(rounds), "rounds, guided", disable=None)]
    return [spent / (0.5 * (before + after)) for before, spent, after in times]


def sample_gaussian(steps: int) -> None:
    """Draw samples, in a process whose memory is measured."""
    d = STATE[1]
    score_fn = ExactScore(GaussianMixture([1.0], jnp.zeros((1, d)), 0.25 * jnp.eye(d)[None]), VP())
    jax.block_until_ready(sample(EulerMaruyama(steps=steps), score_fn, jax.random.key(0), STATE[0], STATE[1:]))


def peak_mib(steps: int) -> float:
    """Measure the peak resident memory of a fresh process that samples, in MiB."""
    command = [sys.executable, __file__, f"--peak={steps}"]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samplers", default=KINDS, help="fixed-step samplers by name; default one of each kind")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--nfe", type=int, default=200, help="score calls of each fixed-step sampler, an even number")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", choices=["guided"], help="leave out the rest")
    parser.add_argument("--json", help="also write the figures to this file")
    parser.add_argument("--peak", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.peak:
        sample_gaussian(args.peak)
        print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
        return
    ratios = guided(args.batch, args.nfe, args.rounds)
    found: dict[str, Any] = {"guided": {"ratio": statistics.median(ratios), "spread": [min(ratios), max(ratios)]}}
    print("guided, time per network call over a network call: {ratio:.3f}   {spread}".format(**found["guided"]))
    if not args.only:
        found |= unguided(args)
    if args.json:
        path, command = Path(args.json), {"command": "python benchmarks/overhead.py"}
        known = json.loads(path.read_text()) if args.only and path.is_file() else command
        path.write_text(json.dumps({**known, **found}, indent=2) + "\n")


def unguided(args: argparse.Namespace) -> dict[str, Any]:
    """Measure and print all else."""
    memory = {steps: statistics.median(peak_mib(steps) for _ in range(3)) for steps in (10, 1000)}
    found = measure(args.samplers.split(","), args.batch, args.nfe, args.rounds)
    found |= {"peak_mib": memory, "device": jax.devices()[0].device_kind}
    found |= {"machine": platform.machine(), "jax": jax.__version__}
    rounds = f"median and range of {args.rounds} rounds"
    print(f"time per score call, over one jitted score call (batch {args.batch}, {rounds})")
    for name, ratio in found["ratios"].items():
        low, high = found["spread"][name]
        print(f"  {name:18s} {ratio:5.3f}   [{low:.3f}, {high:.3f}]   {found['nfe'][name]} NFE")
    uses = f"3 checkpoints x {len(found['ratios'])} ways to use it and the score call"
    print(f"traces of the network, {uses}: {found['traces']}")
    mib = f"{memory[1000]:.0f} and {memory[10]:.0f} MiB"
    print(f"peak memory, 1,000 steps over 10: {memory[1000] / memory[10]:.3f}   ({mib})")
    return found


if __name__ == "__main__":
    main()
