"""Checks that need the device: compute types, the device against the CPU, exact densities, memory."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.on_accelerator.part import Part
from configs import cifar10_ddpmpp
from experiment.build.objects import build_network, build_score
from experiment.config import whole_config
from experiment.data.dataset import Dataset, Split
from sde_lib import VE, VP, EulerMaruyama, ExactScore, GaussianMixture, NetworkScore, ProbabilityFlow, log_prob, sample
from sde_lib.samplers import DDIM, DPMSolverPP2M, PredictorCorrector


def perturbed(params: Any) -> Any:
    """Add noise to every weight: a new network puts out zero, which would agree with anything."""
    leaves, tree = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(1), len(leaves))
    return tree.unflatten(
        [p + 0.02 * jax.random.normal(k, p.shape, p.dtype) for p, k in zip(leaves, keys, strict=True)]
    )


def network(tiny: bool, dtype: str) -> tuple[NetworkScore, tuple[int, ...]]:
    """Build DDPM++'s score with perturbed weights."""
    config = whole_config(cifar10_ddpmpp.get_config())
    config.model.update(width=16 if tiny else 128, blocks=1 if tiny else 4, dtype=dtype)
    x = np.zeros((4, 32, 32, 3), np.uint8)
    apply, params = build_network(config, Dataset("zeros", Split(x), Split(x), levels=256))
    return build_score(config, apply, perturbed(params)), (32, 32, 3)


def relative(found: Any, true: Any) -> float:
    """Compute |found - true| / |true| over all entries."""
    found, true = np.asarray(found, np.float64), np.asarray(true, np.float64)
    return float(np.linalg.norm(found - true) / np.linalg.norm(true))


def on_cpu(function: Any, *arguments: Any) -> Any:
    """Run a jitted function of arrays on the CPU."""
    cpu = jax.devices("cpu")[0]
    with jax.default_device(cpu):
        return jax.device_get(jax.jit(function)(*jax.device_put(arguments, cpu)))


def judged(value: float, limit: float) -> str:
    return f"{value:.2g} (at most {limit:g}{'' if value <= limit else ': NOT MET'})"


def compute_types(part: Part) -> None:
    """Compare the score in bfloat16, and on the CPU, with the device's in float32."""
    score_fn, shape = network(part.tiny, "float32")
    half, _ = network(part.tiny, "bfloat16")
    x = jax.random.normal(jax.random.key(2), (4, *shape))
    t = jnp.linspace(0.05, 0.95, 4)
    call = jax.jit(lambda score_fn, x, t: score_fn(x, t))
    full = jax.device_get(call(score_fn, x, t))
    error = relative(call(half, x, t), full)
    part.keep("score, bfloat16 against float32, relative", judged(error, 2e-2), error=error, limit=2e-2)
    true = on_cpu(lambda score_fn, x, t: score_fn(x, t), score_fn, x, t)
    error = relative(full, true)
    part.keep("score in float32 against the CPU, relative", judged(error, 5e-3), error=error, limit=5e-3)
    with jax.default_matmul_precision("highest"):
        error = relative(jax.jit(lambda score_fn, x, t: score_fn(x, t))(score_fn, x, t), true)
    part.keep("the same at the highest precision", judged(error, 1e-4), error=error, limit=1e-4)


def mixture() -> GaussianMixture:
    rng = np.random.default_rng(3)
    roots = rng.normal(size=(4, 6, 6)) * 0.3
    covariances = roots @ roots.swapaxes(1, 2) + 0.02 * np.eye(6)
    return GaussianMixture([0.1, 0.2, 0.3, 0.4], 1.5 * rng.normal(size=(4, 6)), covariances)


def samplers(part: Part) -> None:
    """Compare samples of an exact score with those of the CPU from the same key, sample by sample."""
    data = mixture()
    chosen = {
        "Euler-Maruyama, 200 steps": EulerMaruyama(steps=200),
        "DPM-Solver++(2M), 32 steps": DPMSolverPP2M(steps=32),
        "predictor-corrector, 100 steps": PredictorCorrector(steps=100, snr=0.1),
        "probability-flow ODE": ProbabilityFlow(rtol=1e-6, atol=1e-6),
    }
    for sde in (VP(), VE()):
        score_fn = ExactScore(data, sde)
        for name, sampler in chosen.items():

            def draw(score_fn: Any, key: Any, sampler: Any = sampler) -> Any:
                return sample(sampler, score_fn, key, 512, (6,)).x

            here = np.asarray(draw(score_fn, jax.random.key(0)))
            with jax.default_device(jax.devices("cpu")[0]):
                there = np.asarray(draw(jax.device_put(score_fn, jax.devices("cpu")[0]), jax.random.key(0)))
            # A sample on the border of two basins may end in either: quantiles, not the largest difference.
            error = float(np.quantile(np.abs(here - there).max(1), 0.95))
            what = f"{type(sde).__name__}, {name}: samples against the CPU's, 95 % of 512 within"
            part.keep(what, judged(error, 2e-3), error=error, limit=2e-3)


def likelihoods(part: Part) -> None:
    """Compare log_prob on the device with the exact density."""
    data = mixture()
    x = data.sample(jax.random.key(5), 512)
    for sde in (VP(), VE()):
        result = log_prob(
            ExactScore(data, sde), x, jax.random.key(6), prior=data.at(sde, sde.t_max), rtol=1e-6, atol=1e-6
        )
        error = float(jnp.max(jnp.abs(result.nats - data.at(sde, sde.t_min).log_prob(x))))
        what = f"{type(sde).__name__}: log-density against the exact one, largest of 512, nats"
        part.keep(what, judged(error, 2e-3), error=error, limit=2e-3)


def memory(part: Part) -> None:
    """Compare the memory that a sampler holds for 10 and for 1,000 steps."""
    score_fn, shape = network(True, "float32")
    batch = 8 if part.tiny else 256

    def used(steps: int) -> int:
        draw = jax.jit(lambda score_fn, key: sample(DDIM(steps=steps), score_fn, key, batch, shape).x)
        analysis = draw.lower(score_fn, jax.random.key(0)).compile().memory_analysis()
        return int(analysis.temp_size_in_bytes + analysis.output_size_in_bytes)

    few, many = used(10), used(1000)
    told = f"{many / few:.3f} ({many / 2**20:.1f} and {few / 2**20:.1f} MiB)"
    part.keep("memory of a sampler, 1,000 steps over 10", told, ratio=many / few, few=few, many=many)


def main() -> None:
    part = Part("checks")
    for check in (compute_types, likelihoods, samplers, memory):
        check(part)


if __name__ == "__main__":
    main()
