"""The speed of training and sampling of DDPM++ and DiT-B/2, beside compiled PyTorch where it is installed."""

import argparse
import statistics
from typing import Any

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from benchmarks.on_accelerator.part import Part
from benchmarks.training import Run, config_of, opponents, ours, peak_flops, random_images, rounds_of, rows_of
from configs import cifar10_dit_b
from experiment.build.objects import build_network, build_score
from experiment.config import whole_config

TWIN = "torch, channels last, compiled"  # PyTorch's fastest on NVIDIA's cards


def dit_config(args: argparse.Namespace, dtype: str, tiny: bool) -> ConfigDict:
    """Return DiT-B/2 without classes."""
    config, never = whole_config(cifar10_dit_b.get_config()), 10**9
    config.model.update(dtype=dtype, condition="none")
    if tiny:
        config.model.update(width=32, depth=1, heads=2)
    config.train.update(batch_size=args.batch, steps=never, log_every=args.steps, checkpoint_every=never)
    config.train.update(steps_per_call=1)
    return config


def score_calls(config: ConfigDict, args: argparse.Namespace) -> Run:
    """Make a call that waits for `steps` jitted score calls, one after the other."""
    dataset = random_images()
    score_fn, x = build_score(config, *build_network(config, dataset)), jnp.ones((args.batch, *dataset.shape))
    call = jax.jit(lambda score_fn, x: x + 1e-3 * score_fn(x, jnp.float32(0.5)))

    def run() -> None:
        y = x
        for _ in range(args.steps):
            y = call(score_fn, y)
        y.block_until_ready()

    return run


def keep_training(part: Part, name: str, rows: dict[str, Any], about: dict[str, Any], batch: int) -> None:
    """Keep the images per second of training, its share of the peak, and the seconds to compile."""
    row = rows["jax, 1 a call"]
    flops = about["flops"] * row["images_per_second"] / batch if about["flops"] else None
    peak = peak_flops()
    told = f"{row['images_per_second']:,.0f} images/s"
    told += f", {flops / 1e12:.2f} TFLOP/s" if flops else ""
    told += f", {flops / peak:.1%} of the peak" if flops and peak else ""
    told += f", {about['bytes'] / 2**30:.2f} GiB" if about["bytes"] else ""
    told += f", compiled in {about['compile_seconds']:.0f} s"
    part.keep(f"{name}, training, batch {batch}", told, **row, **about, flops_per_second=flops)


def keep_ratio(part: Part, what: str, rows: dict[str, Any]) -> None:
    """Keep the ratio to PyTorch of the one contender of ours among the rows."""
    name = next(name for name in rows if name.startswith("jax"))
    low, high = rows[name]["range"]
    theirs = rows[TWIN]["images_per_second"]
    told = f"{rows[name]['over_torch']:.2f} [{low:.2f}, {high:.2f}] of its {theirs:,.0f} images/s"
    part.keep(f"{what}, over {TWIN}", told, **rows[name], theirs=theirs)


def ddpmpp(part: Part, args: argparse.Namespace, dtype: str) -> None:
    """Measure DDPM++: training, sampling over its score calls, and both over PyTorch's."""
    training, sampling, about = ours(lambda steps: config_of("ddpmpp", args, dtype, steps), args)
    images, name = args.batch * args.steps, f"DDPM++ ({args.width}), {dtype}"
    keep_training(part, name, dict(rows_of(rounds_of(training, args.rounds), images)), about, args.batch)
    calls = score_calls(config_of("ddpmpp", args, dtype, 1), args)
    seconds = rounds_of({"jax": sampling["jax"], "calls": calls}, args.rounds)
    ratio = statistics.median(a / b for a, b in zip(seconds["jax"], seconds["calls"], strict=True))
    speed = images / statistics.median(seconds["jax"])
    told = f"{speed:,.0f} images/s for each score call; {ratio:.3f} of the calls alone"
    part.keep(f"{name}, sampling by DDIM, batch {args.batch}", told, ratio=ratio, images_per_second=speed)
    theirs_training, theirs_sampling = opponents("ddpmpp", dtype, args, only=[TWIN])
    for what, mine, theirs in (("training", training, theirs_training), ("sampling", sampling, theirs_sampling)):
        fastest = {k: v for k, v in theirs.items() if k == TWIN}
        if fastest:
            keep_ratio(part, f"{name}, {what}", dict(rows_of(rounds_of({**mine, **fastest}, args.rounds), images)))


def main() -> None:
    part = Part("speed")
    on_cpu = jax.default_backend() == "cpu"
    dtype = "float32" if on_cpu else "bfloat16"
    args = argparse.Namespace(
        width=32 if part.tiny else 128,
        blocks=1 if part.tiny else 4,
        batch=4 if part.tiny else 128,
        steps=2 if part.tiny else 20,
        steps_per_call=1,
        rounds=3 if part.tiny else 7,
    )
    ddpmpp(part, args, dtype)
    config = dit_config(args, dtype, part.tiny)
    training, sampling, about = ours(lambda _: config, args)
    images = args.batch * args.steps
    keep_training(part, "DiT-B/2", dict(rows_of(rounds_of(training, args.rounds), images)), about, args.batch)
    speed = images / statistics.median(rounds_of(sampling, args.rounds)["jax"])
    part.keep("DiT-B/2, sampling by DDIM", f"{speed:,.0f} images/s for each score call", images_per_second=speed)


if __name__ == "__main__":
    main()
