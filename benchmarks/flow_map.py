"""What flow maps learn: python benchmarks/flow_map.py --part=toy [--losses=lagrangian,..] [--json=FILE]
                       python benchmarks/flow_map.py --part=digits --workdir=RUN --teacher=RUN [--json=FILE]
                       python benchmarks/flow_map.py --part=diagonal --workdir=RUN --score=RUN [--json=FILE]

toy: a mixture of four Gaussians in two dimensions under the rectified flow; a perceptron of 3 x 128, 3,000 updates on
512 examples, by each loss, with the exact score for a teacher and without one. Held against the exact flow map: the
root mean square error of one jump, in units where the data have about 0.94, and the total variation of its modes'
weights from those of the exact map, on 4,096 latents. The diagonal's loss of denoising score matching is over that of
the exact score, for the same examples, noise and times; `score` is a network that learns by it alone. About half a
minute to two minutes a row on two CPU cores.

digits: a run that learned a flow map beside the score run that taught it: sliced W2 and the AUC of a classifier at
equal calls, with the noise floor, and the bits/dim of both. A few minutes.

diagonal: the loss of denoising score matching of held-out examples by a flow map's diagonal over that by a score run,
`--score`, which has had as many updates, from the same start; 32 times the same examples, noise and times, by the
weighting and the times of training. Seconds.
"""

import argparse
import json
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from models import MLP, split
from sde_lib import (
    ExactFlowMap,
    FlowMapSampler,
    FlowTimeLabel,
    GaussianMixture,
    NetworkFlowMap,
    RectifiedFlow,
    VelocityPrediction,
    denoising_score_matching,
    flow_matching_weighting,
)
from sde_lib.flow_map import JumpLoss, consistency_loss, eulerian, flow_map_loss, lagrangian, semigroup
from sde_lib.samplers import DDIM, DPMSolverPP2M, FlowTime, UniPC

STEPS, BATCH, TESTED = 3000, 512, 4096
REPEATS = 32  # of the held-out examples, with other noise
WEIGHTS = np.array([0.4, 0.3, 0.2, 0.1])
MEANS = 0.9 * np.array([[1, 1], [-1, 1], [-1, -1], [1, -1]])
COVARIANCES = np.array(
    [[[0.09, 0.03], [0.03, 0.05]], [[0.05, -0.02], [-0.02, 0.09]], [[0.06, 0], [0, 0.06]], [[0.05, 0.02], [0.02, 0.05]]]
)
DATA, SDE = GaussianMixture(WEIGHTS, MEANS, COVARIANCES), RectifiedFlow()
EXACT = ExactFlowMap(DATA, SDE)
JUMPS: dict[str, JumpLoss] = {"lagrangian": lagrangian, "semigroup": semigroup, "eulerian": eulerian}
CONSISTENCY, SCORE = "consistency", "score"
SETS = (
    *[("flow_map", FlowMapSampler(n, renoise)) for n in (1, 2, 4) for renoise in (0.0, 1.0) if n > 1 or not renoise],
    ("ddim", DDIM(steps=1)),  # which the others are too with one call
    *[("dpmpp_2m", DPMSolverPP2M(steps=n)) for n in (2, 4, 8)],
    *[("unipc", UniPC(order=min(n, 3), steps=n)) for n in (2, 4, 8)],
    *[("dpmpp_2m on FlowTime", DPMSolverPP2M(steps=n, grid=FlowTime())) for n in (4, 8)],
)


def diagonal_loss(score_fn: Any, x: jax.Array, key: jax.Array) -> jax.Array:
    """The loss of the toy's score at each example."""
    return denoising_score_matching(score_fn, x, key, weighting=flow_matching_weighting)


@dataclass(frozen=True)
class Toy:
    """One way to learn the toy's map."""

    loss: str
    taught: bool

    def of_batch(self, flow_map: NetworkFlowMap, x: jax.Array, key: jax.Array) -> jax.Array:
        """The mean loss of a batch."""
        teacher = EXACT.score if self.taught else None
        if self.loss == SCORE:
            return jnp.mean(diagonal_loss(flow_map.score, x, key))
        if self.loss == CONSISTENCY:
            return jnp.mean(consistency_loss(flow_map, x, key, grid=FlowTime(1.0, 1.0), steps=20, teacher=teacher))
        found = flow_map_loss(
            flow_map, x, key, jump_loss=JUMPS[self.loss], teacher=teacher, weighting=flow_matching_weighting
        )
        return jnp.mean(found.diagonal) + jnp.mean(found.jump)

    def trained(self) -> tuple[NetworkFlowMap, float, float]:
        """The flow map with averaged weights, the milliseconds of an update, and the largest norm of a gradient."""
        apply, params = split(MLP(shape=(2,), width=128, depth=3, jumps=True, rngs=nnx.Rngs(0)))
        start = NetworkFlowMap(apply, params, SDE, VelocityPrediction(noise_label=FlowTimeLabel()))
        schedule = optax.cosine_decay_schedule(2e-3, STEPS)
        optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(schedule))

        @jax.jit
        def update(state: Any, k: jax.Array) -> tuple[Any, jax.Array]:
            params, ema, moments = state
            key_data, key_loss = jax.random.split(jax.random.fold_in(jax.random.key(0), k))

            def loss(params: Any) -> jax.Array:
                return self.of_batch(replace(start, params=params), DATA.sample(key_data, BATCH), key_loss)

            grad = jax.grad(loss)(params)
            change, moments = optimizer.update(grad, moments, params)
            params = optax.apply_updates(params, change)
            decay = jnp.minimum(0.999, (1 + k) / (10 + k))
            ema = jax.tree.map(lambda e, p: e + (1 - decay) * (p - e), ema, params)
            return (params, ema, moments), optax.global_norm(grad)

        state, first = update((params, params, optimizer.init(params)), 0)
        norms, began = [first], time.perf_counter()
        for k in range(1, STEPS):
            state, norm = update(state, k)
            norms.append(norm)
        jax.block_until_ready(state)
        milliseconds = 1e3 * (time.perf_counter() - began) / (STEPS - 1)
        return replace(start, params=state[1]), milliseconds, float(jnp.max(jnp.stack(norms)))


def toy(losses: list[str]) -> list[dict[str, Any]]:
    """The rows of the toy."""
    latents = SDE.sigma(SDE.t_max) * jax.random.normal(jax.random.key(5), (TESTED, 2))
    truth = EXACT(latents, SDE.t_max, SDE.t_min)

    def modes(x: jax.Array) -> np.ndarray:
        return np.bincount(np.argmax(DATA.posterior(x), axis=1), minlength=len(WEIGHTS)) / len(x)

    held_out, key = DATA.sample(jax.random.key(6), 16 * TESTED), jax.random.key(7)
    least = float(jnp.mean(diagonal_loss(EXACT.score, held_out, key)))
    rows = []
    for loss in losses:
        for taught in (True, False) if loss != SCORE else (False,):
            flow_map, milliseconds, norm = Toy(loss, taught).trained()
            reached = flow_map(latents, SDE.t_max, SDE.t_min)
            rms = float(jnp.sqrt(jnp.mean((reached - truth) ** 2)))
            away = 0.5 * float(np.abs(modes(reached) - modes(truth)).sum())
            diagonal = float(jnp.mean(diagonal_loss(flow_map.score, held_out, key))) / least
            row = {"loss": loss, "taught": taught, "rms": rms, "modes": away, "diagonal": diagonal}
            row |= {"ms": milliseconds, "norm": norm}
            rows.append(row)
            how = "exact teacher" if taught else "no teacher"
            told = f"rms {rms:.3f}  modes {away:.3f}  diagonal {diagonal:.4f}  "
            told += f"{milliseconds:.1f} ms an update  largest gradient {norm:.1f}"
            print(f"{loss:12} {how:14} {told}", flush=True)
    return rows


def digits(workdir: str, teacher: str, seeds: int, examples: int) -> dict[str, Any]:
    """Quality at equal calls, with the floors, and the bits/dim of the diagonal and of the teacher."""
    from experiment.evaluation.comparison import compare
    from experiment.evaluation.drawing import draw_point
    from experiment.evaluation.likelihood import LikelihoodSettings, likelihood
    from experiment.evaluation.points import Point
    from experiment.evaluation.settings import Settings
    from experiment.run.load import load_run

    runs = {"flow_map": load_run(workdir)}
    score_run = load_run(teacher)
    settings = Settings.from_config(score_run.config, seeds=seeds)
    points = [Point(name, sampler.steps, sampler) for name, sampler in SETS]
    drawn = [draw_point(runs.get(point.name, score_run), point, settings) for point in points]
    found = compare(score_run, [each.samples for each in drawn], settings)
    rows: list[dict[str, Any]] = []
    for point, each, values in zip(points, drawn, found.values, strict=True):
        quality = {name: {"mean": values[name].mean, "sd": values[name].sd} for name in ("sliced_w2", "auc")}
        renoise = getattr(point.sampler, "renoise", None)
        rows.append({"sampler": point.name, "renoise": renoise, "calls": each.nfe, **quality, "seconds": each.seconds})
        print(f"{point.name:22} {renoise} {each.nfe:4.0f} calls  {quality}", flush=True)
    floors = {name: vars(found.floors[name]) for name in ("sliced_w2", "auc")}
    print(f"floors { ({name: (floor['mean'], floor['sd']) for name, floor in floors.items()}) }", flush=True)
    bits = {}
    for name, run in (("diagonal", runs["flow_map"]), ("teacher", score_run)):
        of_likelihood = LikelihoodSettings.from_config(run.config, n=examples)
        bits[name] = likelihood(run, of_likelihood, budget=False)[0].mean
    print(f"bits/dim of {examples} held-out digits, with the same probes: {bits}", flush=True)
    steps = {"flow_map": runs["flow_map"].step, "teacher": score_run.step}
    return {"rows": rows, "floors": floors, "bits_per_dim": bits, "steps": steps}


def diagonal(workdir: str, score: str) -> dict[str, Any]:
    """The held-out losses of the flow map's diagonal and of the score run, and their ratio with its standard error."""
    from experiment.build.objective import TIMES, WEIGHTINGS
    from experiment.evaluation.restoration import held_out
    from experiment.run.load import load_run

    runs = {"diagonal": load_run(workdir), "score": load_run(score)}
    config = runs["score"].config
    weighting, times = WEIGHTINGS[config.train.weighting](config), TIMES[config.train.times](config)
    x = jnp.asarray(held_out(runs["score"], np.arange(len(runs["score"].dataset.test)), seed=0))
    mean = jax.jit(lambda f, key: jnp.mean(denoising_score_matching(f, x, key, weighting=weighting, times=times)))
    keys = jax.random.split(jax.random.key(8), REPEATS)
    losses = {name: np.array([float(mean(run.score_fn, key)) for key in keys]) for name, run in runs.items()}
    means = {name: float(values.mean()) for name, values in losses.items()}
    ratio = means["diagonal"] / means["score"]
    error = np.std(losses["diagonal"] - ratio * losses["score"], ddof=1) / means["score"] / REPEATS**0.5
    print(f"held-out loss of denoising score matching: {means}, ratio {ratio:.4f} +- {error:.4f}")
    row = {**means, "ratio": ratio, "se": float(error), "examples": len(x), "steps": runs["diagonal"].step}
    return {"taught" if runs["diagonal"].config.train.teacher else "from scratch": row}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", choices=("toy", "digits", "diagonal"), required=True)
    parser.add_argument("--losses", default=",".join((SCORE, *JUMPS, CONSISTENCY)))
    parser.add_argument("--workdir")
    parser.add_argument("--teacher")
    parser.add_argument("--score")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--examples", type=int, default=256)
    parser.add_argument("--json")
    given = parser.parse_args()
    if given.part == "toy":
        results: Any = toy(given.losses.split(","))
    elif given.part == "diagonal":
        results = diagonal(given.workdir, given.score)
    else:
        results = digits(given.workdir, given.teacher, given.seeds, given.examples)
    if given.json:
        path = Path(given.json)
        known = json.loads(path.read_text()) if path.is_file() else {}
        if given.part == "diagonal":
            results = {**known.get("diagonal", {}), **results}
        path.write_text(json.dumps({**known, given.part: results}, indent=1) + "\n")


if __name__ == "__main__":
    main()
