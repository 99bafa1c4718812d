"""Training steps compiled for meshes of TPU v5e that are not here: bytes, operations, messages, and what follows.

    python benchmarks/at_size.py [--json=FILE] [--networks=ddpmpp,...] [--meshes=4x4,...]
                                                    # --json=benchmarks/results/at_size.json records them

It needs `pip install -e '.[tpu]'` and no TPU: XLA compiles the step for the mesh's description (jax's ahead-of-time
compilation). For each network and mesh, of one whole update at the same batch:

* GiB a chip: the state's share, the batch and all temporaries, by XLA's own assignment of buffers;
* floating-point operations and bytes of memory moved a chip, by XLA's count;
* bytes that a chip sends in collective operations, by the program's text, as rings: 2 (n - 1)/n of an all-reduce,
  (n - 1)/n of what is gathered or scattered;
* from these and the data sheet's rates the seconds of each, and the share of the peak: between all three one after the
  other and all three at once;
* the largest batch: from the bytes a chip at the first two meshes, in a straight line to the chip's memory.

A share of the peak on paper is a bound, not a measurement: kernels reach 60 to 90 % of it.
"""

import argparse
import json
import os
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")  # there is no TPU to ask

import jax
import numpy as np
from jax.experimental import topologies
from ml_collections import ConfigDict

from configs import cifar10_ddpmpp, cifar10_dit_s, lsun_bedroom256_ncsnpp
from experiment.common.provenance import provenance
from experiment.config import whole_config
from experiment.data.dataset import Dataset, Split
from experiment.training.trainer import Trainer

# TPU v5e, from its maker's data sheet: FLOP/s in bfloat16, bytes/s of memory, bytes of memory, bytes/s out of a chip
# along both axes of the mesh. The last is halved where an axis is shorter than 16 and its ends are not joined.
PEAK, MEMORY_RATE, MEMORY, SEND_RATE, JOINED = 197e12, 819e9, 16 * 2**30, 180e9, 16
LEFT_FREE = 0.05  # of the memory, for the program and what surrounds it

BYTES = {"pred": 1, "s8": 1, "u8": 1, "bf16": 2, "f16": 2, "s16": 2, "u16": 2, "f32": 4, "s32": 4, "u32": 4, "f64": 8}
KINDS = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")
COLLECTIVE = re.compile(rf"= (?P<result>.*?) (?P<kind>{'|'.join(KINDS)})(?P<start>-start)?\(")
ARRAY = re.compile(r"\b([a-z]+[0-9]*)\[([0-9,]*)\]")


def dataset(shape: tuple[int, ...], levels: int | None, classes: int = 0) -> Dataset:
    """Make examples of this shape: the step is compiled by shapes alone."""
    x = np.zeros((16, *shape), np.uint8 if levels else np.float32)
    split = Split(x, np.arange(16, dtype=np.int32) % classes if classes else None)
    return Dataset("on paper", split, split, levels=levels, num_classes=classes)


def ddpmpp() -> tuple[ConfigDict, Dataset]:
    """DDPM++ of CIFAR-10, as published."""
    config = whole_config(cifar10_ddpmpp.get_config())
    config.train.update(batch_size=1024, fsdp=1)
    return config, dataset((32, 32, 3), 256)


def ncsnpp256() -> tuple[ConfigDict, Dataset]:
    """NCSN++ of LSUN's bedrooms at 256 x 256, as published."""
    config = whole_config(lsun_bedroom256_ncsnpp.get_config())
    config.model.remat = "blocks"
    config.train.update(batch_size=256, fsdp=1)
    return config, dataset((256, 256, 3), 256)


def dit_xl() -> tuple[ConfigDict, Dataset]:
    """DiT-XL/2 of latents 32 x 32 x 4 with 1,000 classes: Peebles and Xie 2023, arXiv:2212.09748, table 1."""
    config = whole_config(cifar10_dit_s.get_config())
    config.model.update(width=1152, depth=28, heads=16, remat="blocks")
    config.data.flip = False
    config.train.update(batch_size=2048, fsdp=16)  # of the paper's 256 a chip of the largest mesh would have one
    return config, dataset((32, 32, 4), None, 1000)


NETWORKS: dict[str, Callable[[], tuple[ConfigDict, Dataset]]] = {
    "ddpmpp": ddpmpp,
    "ncsnpp256": ncsnpp256,
    "dit_xl": dit_xl,
}


def bytes_of(shapes: str) -> list[int]:
    """The bytes of each array in the text of a result, as in (f32[8,128], bf16[16])."""
    return [
        BYTES[kind] * int(np.prod([int(n) for n in sides.split(",") if n], dtype=np.int64))
        for kind, sides in ARRAY.findall(shapes)
        if kind in BYTES
    ]


def group_size(line: str, devices: int) -> int:
    """How many devices take part in a collective operation."""
    if found := re.search(r"replica_groups=\[\d+,(\d+)\]", line):
        return int(found.group(1))
    if found := re.search(r"replica_groups=\{\{([\d,]+)\}", line):
        return len(found.group(1).split(","))
    return devices


def sent(program: str, devices: int) -> dict[str, float]:
    """The bytes that each device sends in the collective operations of a program, by kind, as rings."""
    total: dict[str, float] = {}
    for line in program.splitlines():
        found = COLLECTIVE.search(line)
        if not found:
            continue
        kind, sizes, n = found["kind"], bytes_of(found["result"]), group_size(line, devices)
        whole = (
            max(sizes) if found["start"] and kind != "all-reduce" else sum(sizes)
        )  # a start's result has its operand
        share = {"all-reduce": 2 * (n - 1) / n, "reduce-scatter": n - 1, "collective-permute": 1}.get(kind, (n - 1) / n)
        total[kind] = total.get(kind, 0.0) + share * whole
    return total


def compiled(config: ConfigDict, data: Dataset, mesh: str) -> dict[str, Any]:
    """Compile the update for the mesh."""
    config.model.dtype = "bfloat16"
    devices = topologies.get_topology_desc(platform="tpu", topology_name=f"v5e:{mesh}").devices
    start = time.perf_counter()
    trainer = Trainer(config, data, devices)
    program = trainer.lowered().compile()
    memory, costs = program.memory_analysis(), program.cost_analysis()
    used = memory.argument_size_in_bytes + memory.output_size_in_bytes - memory.alias_size_in_bytes
    return {
        "weights": trainer.weights,
        "bytes": used + memory.temp_size_in_bytes,
        "flops": costs["flops"],
        "moved": costs["bytes accessed"],
        "sent": sent(program.as_text(), len(devices)),
        "compile_seconds": time.perf_counter() - start,
    }


def row(name: str, mesh: str) -> dict[str, Any]:
    """Compile a network's update for a mesh, and reckon its seconds and its share of the peak."""
    config, data = NETWORKS[name]()
    found = compiled(config, data, mesh)
    rate = SEND_RATE if min(sides_of(mesh)) >= JOINED else SEND_RATE / 2
    seconds = [found["flops"] / PEAK, found["moved"] / MEMORY_RATE, sum(found["sent"].values()) / rate]
    return {
        "network": name,
        "mesh": mesh,
        "batch": config.train.batch_size,
        "fsdp": config.train.fsdp,
        **found,
        "seconds": dict(zip(("compute", "memory", "messages"), seconds, strict=True)),
        "share_of_peak": [seconds[0] / sum(seconds), seconds[0] / max(seconds)],
    }


def sides_of(mesh: str) -> list[int]:
    """The sides of a mesh named 4x4."""
    return [int(side) for side in mesh.split("x")]


def largest_batch(first: dict[str, Any], second: dict[str, Any]) -> int:
    """The most examples a chip that its memory holds, by a straight line through two rows of a network."""
    a, b = (row["batch"] / np.prod(sides_of(row["mesh"])) for row in (first, second))
    slope = (first["bytes"] - second["bytes"]) / (a - b)
    return int((MEMORY * (1 - LEFT_FREE) - first["bytes"]) / slope + a)


def rows(names: list[str], meshes: list[str]) -> Iterator[dict[str, Any]]:
    """Give the row of each network and mesh, printed."""
    print(
        "network    mesh   batch  GiB a chip  TFLOP a chip  GB moved  MB sent  share of the peak  largest batch a chip"
    )
    for name in names:
        of_network: list[dict[str, Any]] = []
        for mesh in meshes:
            found = row(name, mesh)
            of_network.append(found)
            found["largest_batch"] = largest_batch(*of_network[:2]) if of_network[1:] else None
            low, high = found["share_of_peak"]
            print(
                f"{name:10} {mesh:6} {found['batch']:5} {found['bytes'] / 2**30:11.2f} {found['flops'] / 1e12:13.3f} "
                f"{found['moved'] / 1e9:9.1f} {sum(found['sent'].values()) / 1e6:8.0f} {low:12.0%} to {high:3.0%} "
                f"{found['largest_batch'] or '':>14}",
                flush=True,
            )
            yield found


def keep(row: dict[str, Any], path: Path) -> None:
    """Write the row into the file, over the one of the same network and mesh."""
    found = json.loads(path.read_text())["rows"] if path.is_file() else []
    others = [other for other in found if (other["network"], other["mesh"]) != (row["network"], row["mesh"])]
    path.write_text(json.dumps({"rows": [*others, row], **provenance()}, indent=1) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", default=",".join(NETWORKS))
    parser.add_argument("--meshes", default="4x4,8x8,16x16")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    for one in rows(args.networks.split(","), args.meshes.split(",")):
        if args.json:
            keep(one, args.json)


if __name__ == "__main__":
    jax.config.update("jax_platforms", "cpu")
    main()
