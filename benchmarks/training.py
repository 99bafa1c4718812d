"""The speed of training and sampling of DDPM++ and NCSN++, beside PyTorch where it is installed.

    python benchmarks/training.py [--json=FILE]     # --json=benchmarks/results/training.json records them

Prints, for each network and each compute type, on random images of CIFAR-10's shape:

* images per second of training, whole steps by the project's own Trainer (batch from the host, flips, dequantisation,
  loss, gradient, clipping, Adam, average of the weights); on an accelerator with one step per call and with several;
* images per second of sampling, DDIM steps of one score call each;
* FLOP/s of the training step by XLA's count, over the device's peak where it is known; its memory; seconds to compile
  it;
* the same of the PyTorch twin (torch_ncsnpp.py, `pip install -e '.[bench]'`), contiguous and channels-last; compiled
  too on a GPU.

All contenders of a network and type take turns within each round. Ratios are medians over rounds of the time of
PyTorch's fastest variant over each one's. By default width 128 and batch 128 on an accelerator, width 32 and batch 8 on
CPU.
"""

import argparse
import importlib.metadata
import importlib.util
import json
import statistics
import sys
import time
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from configs import cifar10_ddpmpp, cifar10_ncsnpp
from experiment.build.objects import build_network, build_score
from experiment.cli import convolutions_on_all_cores
from experiment.common.provenance import provenance
from experiment.config import whole_config
from experiment.data.dataset import Dataset, Split
from experiment.training.trainer import Trainer
from sde_lib import sample
from sde_lib.samplers import DDIM

CONFIGS = {"ddpmpp": cifar10_ddpmpp, "ncsnpp": cifar10_ncsnpp}

# FLOP/s of dense bfloat16 products, from the makers' data sheets; by the beginning of jax's device_kind.
PEAK = {
    "NVIDIA H200": 989e12,
    "NVIDIA H100": 989e12,
    "NVIDIA A100": 312e12,
    "TPU v5 lite": 197e12,
    "TPU v5e": 197e12,
    "TPU v4": 275e12,
}

Run = Callable[[], None]


def random_images(n: int = 1024) -> Dataset:
    """Draw noise of CIFAR-10's shape: the values of the pixels do not change the time."""
    x = np.random.default_rng(0).integers(0, 256, (n, 32, 32, 3), dtype=np.uint8)
    return Dataset("noise", Split(x), Split(x[:16]), levels=256)


def config_of(kind: str, args: argparse.Namespace, dtype: str, steps_per_call: int) -> ConfigDict:
    config = whole_config(CONFIGS[kind].get_config())
    config.model.update(width=args.width, blocks=args.blocks, dtype=dtype)
    never = 10**9
    config.train.update(
        batch_size=args.batch, steps=never, log_every=args.steps, checkpoint_every=never, steps_per_call=steps_per_call
    )
    return config


def analysis(trainer: Trainer) -> dict[str, float | None]:
    """Measure the seconds to compile one step, and count its floating-point operations and bytes by XLA.

    Operations are counted before compilation: afterwards XLA does not see into cuDNN's convolutions.
    """
    start = time.perf_counter()
    lowered = trainer.lowered()
    memory, costs = lowered.compile().memory_analysis(), lowered.cost_analysis() or {}
    seconds = time.perf_counter() - start
    used = memory.temp_size_in_bytes + memory.argument_size_in_bytes if memory else None
    return {"compile_seconds": seconds, "flops": costs.get("flops"), "bytes": used}


def training_run(trainer: Trainer) -> Run:
    """Make a call that trains for config.train.log_every steps, and waits for the last."""
    progress = trainer.run(trainer.initial_state())

    def run() -> None:
        next(progress)

    return run


def sampling_run(config: ConfigDict, dataset: Dataset, batch: int, steps: int) -> Run:
    """Make a call that makes `steps` steps of DDIM, of one score call each."""
    score_fn, key = build_score(config, *build_network(config, dataset)), jax.random.key(0)
    sampler = DDIM(steps=steps, denoise=False)

    def run() -> None:
        jax.block_until_ready(sample(sampler, score_fn, key, batch, dataset.shape))

    return run


def ours(
    make_config: Callable[[int], ConfigDict], args: argparse.Namespace
) -> tuple[dict[str, Run], dict[str, Run], dict[str, Any]]:
    """Prepare this project's contenders. make_config: the config with so many steps in a call.

    Returns:
        training, sampling: {name: a call}.
        analysis: that of the training step, from `analysis`.
    """
    dataset, several = random_images(), 1 if jax.default_backend() == "cpu" else args.steps_per_call
    trainers = {f"jax, {k} a call": Trainer(make_config(k), dataset) for k in sorted({1, several})}
    about = analysis(next(iter(trainers.values())))
    config = make_config(1)
    return (
        {name: training_run(trainer) for name, trainer in trainers.items()},
        {"jax": sampling_run(config, dataset, args.batch, args.steps)},
        about,
    )


def torch_step(network: Any, model: Any, layout: Any, kind: str, dtype: str, args: argparse.Namespace) -> Run:
    """Make PyTorch's twin of a step of the Trainer: the same work in the same order.

    `model` is the network, or the compiled network.
    """
    import torch
    import torch.nn.functional as F

    device = next(network.parameters()).device
    weights = [p for p in network.parameters() if p.requires_grad]
    average = [p.detach().clone() for p in weights]
    optimizer = torch.optim.Adam(weights, lr=2e-4, fused=True)
    levels = torch.from_numpy(random_images().train.x)

    def step(k: int) -> None:
        rows = torch.from_numpy(np.random.default_rng(k).integers(0, len(levels), args.batch))
        x = levels[rows].to(device, non_blocking=True).permute(0, 3, 1, 2)
        x = torch.where(torch.rand(args.batch, 1, 1, 1, device=device) < 0.5, x.flip(3), x)
        x = (x + torch.rand(x.shape, device=device)) / 256
        x = (x if kind == "ncsnpp" else 2 * x - 1).contiguous(memory_format=layout)
        t, noise = torch.rand(args.batch, device=device), torch.randn_like(x)
        sigma = 0.01 * 5000**t if kind == "ncsnpp" else (1 - torch.exp(-9.95 * t**2 - 0.1 * t)).sqrt()
        alpha = torch.ones_like(t) if kind == "ncsnpp" else (1 - sigma**2).sqrt()
        per_image = [v[:, None, None, None] for v in (alpha, sigma)]
        with torch.autocast(device.type, torch.bfloat16, enabled=dtype == "bfloat16"):
            found = model(per_image[0] * x + per_image[1] * noise, sigma if kind == "ncsnpp" else 999 * t)
        found = -found.float() * per_image[1] if kind == "ncsnpp" else found.float()
        loss = F.mse_loss(found, noise)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        torch._foreach_lerp_(average, [p.detach() for p in weights], 1e-4)

    def run() -> None:
        for k in range(args.steps):
            step(k)
        _synchronise()

    return run


def _synchronise() -> None:
    import torch

    if torch.cuda.is_available():
        torch.cuda.synchronize()


def torch_sampling(network: Any, model: Any, kind: str, dtype: str, args: argparse.Namespace) -> Run:
    """Make a call that makes steps of DDIM by the twin."""
    import torch

    device = next(network.parameters()).device
    times = torch.linspace(1.0, 1e-3, args.steps + 1, device=device)
    sigmas = 0.01 * 5000**times if kind == "ncsnpp" else (1 - torch.exp(-9.95 * times**2 - 0.1 * times)).sqrt()
    alphas = torch.ones_like(times) if kind == "ncsnpp" else (1 - sigmas**2).sqrt()

    def run() -> None:
        network.eval()
        x = torch.randn(args.batch, 3, 32, 32, device=device)
        with torch.inference_mode(), torch.autocast(device.type, torch.bfloat16, enabled=dtype == "bfloat16"):
            for k in range(args.steps):
                label = (sigmas[k] if kind == "ncsnpp" else 999 * times[k]).expand(args.batch)
                noise = model(x, label).float() * (-sigmas[k] if kind == "ncsnpp" else 1)
                x = alphas[k + 1] / alphas[k] * (x - sigmas[k] * noise) + sigmas[k + 1] * noise
        network.train()
        _synchronise()

    return run


def opponents(
    kind: str, dtype: str, args: argparse.Namespace, only: Collection[str] = ()
) -> tuple[dict[str, Run], dict[str, Run]]:
    """Prepare PyTorch's contenders, all or `only` those of these names.

    There are none without PyTorch, or where jax is on an accelerator that PyTorch does not see.

    Returns:
        training, sampling: {name: a call}.
    """
    if importlib.util.find_spec("torch") is None:
        return {}, {}
    import torch

    from benchmarks.torch_ncsnpp import NCSNpp

    on_cpu = jax.default_backend() == "cpu"
    if not on_cpu and not torch.cuda.is_available():
        return {}, {}
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = torch.backends.cudnn.benchmark = True
    training, sampling = {}, {}
    layouts = {"torch": torch.contiguous_format, "torch, channels last": torch.channels_last}
    variants = [(name, layout, False) for name, layout in layouts.items()]
    if not on_cpu:
        variants += [(f"{name}, compiled", layout, True) for name, layout in layouts.items()]
    for name, layout, compiled in [variant for variant in variants if not only or variant[0] in only]:
        network = NCSNpp("ncsnpp" if kind == "ncsnpp" else "ddpmpp", nf=args.width, blocks=args.blocks)
        network = network.to("cpu" if on_cpu else "cuda", memory_format=layout)  # type: ignore[call-overload]
        model = torch.compile(network) if compiled else network
        training[name] = torch_step(network, model, layout, kind, dtype, args)
        sampling[name] = torch_sampling(network, model, kind, dtype, args)
    return training, sampling


def rounds_of(runs: dict[str, Run], rounds: int) -> dict[str, list[float]]:
    """Measure the seconds of each run in each round, in which all take turns.

    Before, each is called once to compile, and once to warm up.
    """
    for run in runs.values():
        run()
        run()
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(rounds):
        for name, run in runs.items():
            start = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - start)
    return seconds


def rows_of(seconds: dict[str, list[float]], images: int) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield each run's images per second, and the time of PyTorch's fastest variant over its: median and range."""
    theirs = [name for name in seconds if name.startswith("torch")]
    best = min(theirs, key=lambda name: statistics.median(seconds[name])) if theirs else None
    for name, values in seconds.items():
        row: dict[str, Any] = {"images_per_second": images / statistics.median(values)}
        if best is not None:
            ratios = [a / b for a, b in zip(seconds[best], values, strict=True)]
            row |= {"over_torch": statistics.median(ratios), "range": [min(ratios), max(ratios)]}
        yield name, row


def measure(kind: str, dtype: str, args: argparse.Namespace) -> dict[str, Any]:
    """Measure training and sampling of one network and compute type, beside XLA's analysis of the step."""
    training, sampling, about = ours(lambda steps: config_of(kind, args, dtype, steps), args)
    their_training, their_sampling = opponents(kind, dtype, args)
    images = args.batch * args.steps
    found = {
        "training": dict(rows_of(rounds_of({**training, **their_training}, args.rounds), images)),
        "sampling": dict(rows_of(rounds_of({**sampling, **their_sampling}, args.rounds), images)),
        **about,
    }
    peak = peak_flops()
    if about["flops"]:
        speeds = [row["images_per_second"] for name, row in found["training"].items() if name.startswith("jax")]
        found["flops_per_second"] = about["flops"] * max(speeds) / args.batch
        found["of_peak"] = found["flops_per_second"] / peak if peak else None
    return found


def peak_flops() -> float | None:
    """Return the device's peak in bfloat16 products, where it is known."""
    device = jax.devices()[0].device_kind
    return next((flops for name, flops in PEAK.items() if device.startswith(name)), None)


def show(kind: str, dtype: str, found: dict[str, Any]) -> None:
    memory = f", {found['bytes'] / 2**30:.2f} GiB" if found["bytes"] else ""
    speed = f", {found['flops_per_second'] / 1e9:,.0f} GFLOP/s" if found.get("flops_per_second") else ""
    share = f", {found['of_peak']:.1%} of the peak of bfloat16" if found.get("of_peak") else ""
    print(f"{kind}, {dtype}: step compiled in {found['compile_seconds']:.0f} s{memory}{speed}{share}")
    for what in ("training", "sampling"):
        for name, row in found[what].items():
            over = ""
            if "over_torch" in row:
                low, high = row["range"]
                over = f"   {row['over_torch']:5.2f} of torch's speed [{low:.2f}, {high:.2f}]"
            print(f"  {what:9s} {name:32s} {row['images_per_second']:10.1f} images/s{over}", flush=True)


def main() -> None:
    convolutions_on_all_cores()  # as train.py does
    on_cpu = jax.default_backend() == "cpu"
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", default="ddpmpp,ncsnpp")
    parser.add_argument("--dtypes", default="float32" if on_cpu else "float32,bfloat16")
    parser.add_argument("--width", type=int, default=32 if on_cpu else 128)
    parser.add_argument("--blocks", type=int, default=4)
    parser.add_argument("--batch", type=int, default=8 if on_cpu else 128)
    parser.add_argument("--steps", type=int, default=3 if on_cpu else 20, help="steps of each contender in a round")
    parser.add_argument(
        "--steps_per_call", type=int, default=5, help="on an accelerator; --steps must be divisible by it"
    )
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--json", help="also write the figures to this file")
    args = parser.parse_args()
    if args.steps % args.steps_per_call and not on_cpu:
        parser.error(f"--steps={args.steps} is not divisible by --steps_per_call={args.steps_per_call}")
    results: dict[str, Any] = {
        "command": " ".join(["python", *sys.argv]),
        "settings": {k: v for k, v in vars(args).items() if k != "json"},
        **provenance(),
    }
    if importlib.util.find_spec("torch") is not None:
        results["versions"]["torch"] = importlib.metadata.version("torch")
    for kind in args.networks.split(","):
        for dtype in args.dtypes.split(","):
            results[f"{kind}, {dtype}"] = found = measure(kind, dtype, args)
            show(kind, dtype, found)
    if args.json:
        Path(args.json).write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
