"""The speed of the image loader.

    python benchmarks/loader.py --path=CIFAR [--batch=128] [--seconds=5] [--crop=0] [--size=0]

CIFAR is a folder or zip of images, or a folder of zips. Prints one line of json:

* seconds of a first start, which decodes every image (they are stored beside a link to the source, in a temporary
  folder, and thrown away afterwards), and of a second one in another process;
* images per second in batches of a run: the indices alone, the rows from the mapped file, and the rows on the device as
  the trainer puts them there.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np

from experiment.data.batches import batch_indices
from experiment.data.dataset import Dataset
from experiment.data.load import load_dataset
from experiment.devices.sharding import make_mesh, put_rows

LARGE = 1_300_000  # images of ImageNet


def start(path: str, cache: str, settings: dict[str, int]) -> tuple[float, Dataset]:
    """Load the data.

    Returns:
        seconds: how long that took, imports apart.
        dataset: the data.
    """
    began = time.perf_counter()
    dataset = load_dataset("", path, cache, **settings)
    return time.perf_counter() - began, dataset


def second_start(path: str, cache: str, settings: dict[str, int]) -> float:
    """Measure the seconds of a start in a process of its own."""
    code = f"from benchmarks.loader import start; print(start({path!r}, {cache!r}, {settings!r})[0])"
    return float(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout)


def rate(batch: Callable[[int], Any], size: int, seconds: float) -> float:
    """Measure images per second of batches 0, 1, ... over the given time, after one to warm up."""
    jax.block_until_ready(batch(0))
    began, step = time.perf_counter(), 0
    while time.perf_counter() - began < seconds:
        step += 1
        jax.block_until_ready(batch(step))
    return step * size / (time.perf_counter() - began)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--path", required=True)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--crop", type=int, default=0)
    parser.add_argument("--size", type=int, default=0)
    args = parser.parse_args()
    settings = {"crop": args.crop, "size": args.size}
    source = Path(args.path).expanduser().resolve()

    with tempfile.TemporaryDirectory() as folder:
        link = Path(folder, source.name)
        os.symlink(source, link)
        first, dataset = start(str(link), folder, settings)
        second = second_start(str(link), folder, settings)
        train, mesh = dataset.train, make_mesh()

        def indices(step: int) -> np.ndarray:
            return batch_indices(0, step, args.batch, len(train))

        began = time.perf_counter()
        batch_indices(1, 0, args.batch, LARGE)
        shuffle = time.perf_counter() - began
        result = {
            "images": len(train) + len(dataset.test),
            "shape": dataset.shape,
            "classes": dataset.num_classes,
            "stored_mb": round((train.x.nbytes + dataset.test.x.nbytes) / 1e6),
            "first_start_s": round(first, 2),
            "second_start_s": round(second, 2),
            "batch": args.batch,
            "indices_per_s": round(rate(indices, args.batch, args.seconds)),
            "images_per_s": round(rate(lambda step: train.x[indices(step)], args.batch, args.seconds)),
            "images_per_s_on_device": round(
                rate(lambda step: put_rows(indices(step), train.x, mesh), args.batch, args.seconds)
            ),
            "shuffle_of_1.3m_s": round(shuffle, 3),
            "device": f"{mesh.size} {jax.default_backend()}",
            "cpus": os.cpu_count(),
            "platform": platform.platform(),
            "versions": {"numpy": np.__version__, "jax": jax.__version__},
        }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
