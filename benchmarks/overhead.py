"""What the samplers cost beyond their score calls, as ratios within one run: python benchmarks/overhead.py [--batch=64] [--steps=200].

Prints, for the digits U-Net, untrained:

* each fixed-step sampler: time / (score calls x time of one jitted score call);
* the ODE sampler, and the likelihood with one probe: time per NFE over the same;
* how often Python traced the network over three checkpoints, all samplers and the likelihood, for one batch shape;
* peak memory of a sampling process with 1,000 steps against one with 10.

The machine may be shared, so every figure is a median over rounds in which all are timed in turn.
"""

import argparse
import json
import platform
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import jax
import jax.numpy as jnp
from flax import nnx

from models import UNet, split
from sde_lib import (
    VP,
    EDMPreconditioning,
    EulerMaruyama,
    Hutchinson,
    NetworkScore,
    PredictorCorrector,
    ProbabilityFlow,
    ReverseDiffusion,
    log_prob,
    sample,
)

SHAPE = (8, 8, 1)


@dataclass(frozen=True)
class Counted:
    """A network's apply that counts its traces; equal for equal architectures, as the plain one is."""

    apply: Callable
    traces: list = field(compare=False, hash=False)

    def __call__(self, *args):
        self.traces.append(args[1].shape)
        return self.apply(*args)


def digits_score(seed: int, traces: list) -> NetworkScore:
    """An untrained U-Net of the digits size: it puts out zero, so the score is a Gaussian's, which the ODE solves in few steps."""
    apply, params = split(UNet(shape=SHAPE, width=32, channel_mults=(1, 2), blocks=1, attention=(4,), rngs=nnx.Rngs(seed)))
    return NetworkScore(Counted(apply, traces), params, VP(), EDMPreconditioning(0.5))


def seconds(run: Callable) -> float:
    start = time.perf_counter()
    jax.block_until_ready(run())
    return time.perf_counter() - start


def samplers(steps: int) -> dict:
    return {
        "em": EulerMaruyama(steps=steps),
        "reverse_diffusion": ReverseDiffusion(steps=steps),
        "pc": PredictorCorrector(steps=steps // 2),
        "ode": ProbabilityFlow(rtol=1e-3, atol=1e-3),
    }


def measure(batch: int, steps: int, rounds: int) -> dict:
    """Every time per score call, as a ratio to one jitted score call; and the traces of three checkpoints."""
    traces: list = []
    scores = [digits_score(seed, traces) for seed in range(3)]
    key, x = jax.random.key(0), jax.random.normal(jax.random.key(1), (batch, *SHAPE))
    score_call = jax.jit(lambda score_fn, x, t: score_fn(x, t))

    def calls(score_fn: NetworkScore) -> dict:
        def one_call() -> jax.Array:
            for _ in range(steps):
                y = score_call(score_fn, x, jnp.float32(0.5))
            return y

        kinds = {name: lambda s=s: sample(s, score_fn, key, batch, SHAPE) for name, s in samplers(steps).items()}
        likelihood = lambda: log_prob(score_fn, x, key, divergence=Hutchinson(probes=1), rtol=1e-3, atol=1e-3)  # noqa: E731
        return {"score": one_call, **kinds, "likelihood": likelihood}

    nfe = {}
    for score_fn in scores:  # compiles, and counts traces over the checkpoints
        for name, run in calls(score_fn).items():
            result = jax.block_until_ready(run())
            nfe[name] = steps if name == "score" else result.nfe
    counted = len(traces)
    ratios: dict = {name: [] for name in nfe if name != "score"}
    runs = calls(scores[-1])
    for _ in range(rounds):
        before = seconds(runs["score"]) / steps
        for name in ratios:
            spent = seconds(runs[name]) / nfe[name]
            after = seconds(runs["score"]) / steps
            ratios[name].append(spent / (0.5 * (before + after)))
            before = after
    return {
        "ratios": {name: statistics.median(values) for name, values in ratios.items()},
        "spread": {name: [min(values), max(values)] for name, values in ratios.items()},
        "nfe": nfe,
        "traces": counted,
    }


def peak_mib(batch: int, steps: int) -> float:
    """Peak resident memory of a fresh process that samples, MiB."""
    command = [sys.executable, __file__, f"--batch={batch}", f"--steps={steps}", "--peak"]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--json", help="also write the figures to this file")
    parser.add_argument("--peak", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.peak:
        sampler = replace(EulerMaruyama(), steps=args.steps)
        jax.block_until_ready(sample(sampler, digits_score(0, []), jax.random.key(0), args.batch, SHAPE).x)
        print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
        return
    found = measure(args.batch, args.steps, args.rounds)
    memory = {steps: statistics.median(peak_mib(args.batch, steps) for _ in range(3)) for steps in (10, 1000)}
    found |= {"peak_mib": memory, "device": str(jax.devices()[0].device_kind), "machine": platform.machine(), "jax": jax.__version__}
    print(f"time per score call, over one jitted score call (batch {args.batch}, median and range of {args.rounds} rounds)")
    for name, ratio in found["ratios"].items():
        low, high = found["spread"][name]
        print(f"  {name:18s} {ratio:5.3f}   [{low:.3f}, {high:.3f}]   {found['nfe'][name]} NFE")
    print(f"traces of the network, 3 checkpoints x {len(found['ratios'])} ways to use it: {found['traces']}")
    print(f"peak memory, 1,000 steps over 10: {memory[1000] / memory[10]:.3f}   ({memory[1000]:.0f} and {memory[10]:.0f} MiB)")
    if args.json:
        with open(args.json, "w") as file:
            json.dump({"command": "python benchmarks/overhead.py", **found}, file, indent=2)


if __name__ == "__main__":
    main()
