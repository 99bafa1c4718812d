"""Every figure that an accelerator can give in minutes: checks, speed, and CIFAR-10, each in a process of its own.

    python benchmarks/accelerator.py --data=DIR --out=DIR [--minutes=9] [--parts=checks,cifar10,speed] [--tiny]
    python benchmarks/accelerator.py --wheels

* checks: bfloat16 against float32, the device against the CPU, likelihoods against the exact density, memory;
* cifar10: train.py with configs/cifar10_minutes.py, stopped in time, then samples, bits/dim, distance and its floor;
* speed: training and sampling of DDPM++ and DiT-B/2, beside PyTorch where it is installed.

The DIR of --data is a folder of images with train/ and test/, or holds cifar10-train.zip and cifar10-test.zip. Each
part has its share of the minutes, and what it has measured when they end is kept; a part that fails is reported and the
others run. --out receives accelerator.json, accelerator.md, the grid, and the averaged weights in half precision.
--tiny is for a trial on a CPU. --wheels lists what this environment lacks, for a machine without a network.
"""

import argparse
import importlib.metadata
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
GRACE = 15.0  # seconds that a part may take longer than its share
SHARES = {"checks": 0.2, "cifar10": 0.5, "speed": 0.3}  # of the minutes, where all three run
# What the parts import; neither tensorflow-datasets nor PyTorch is among it.
NEEDED = (
    "jax", "flax", "optax", "diffrax", "orbax-checkpoint", "ml_collections", "tensorboardX", "absl-py", "scikit-learn",
    "matplotlib", "pillow", "tqdm", "threadpoolctl", "scipy",
)  # fmt: skip


def missing() -> list[str]:
    """Return the distributions of NEEDED that this environment lacks."""

    def there(name: str) -> bool:
        try:
            importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            return False
        return True

    return [name for name in NEEDED if not there(name)]


def unpacked(data: Path, scratch: Path) -> Path:
    """Return the folder of the images: `data`, or where its zips were unpacked."""
    zips = [data / f"cifar10-{split}.zip" for split in ("train", "test")]
    if not all(path.is_file() for path in zips):
        return data
    import zipfile

    folder = scratch / "cifar10"
    if not folder.is_dir():
        for path in zips:
            with zipfile.ZipFile(path) as archive:
                archive.extractall(folder)
    return folder


def run_part(name: str, seconds: float, args: argparse.Namespace, scratch: Path) -> dict[str, Any]:
    """Run one part in a process that is given `seconds`, and a few more to end; return what it wrote."""
    found, log = args.out / f"{name}.json", args.out / f"{name}.log"
    found.unlink(missing_ok=True)
    command = [
        sys.executable,
        "-m",
        f"benchmarks.on_accelerator.{name}",
        f"--seconds={seconds:.0f}",
        f"--out={args.out}",
    ]
    command += [f"--scratch={scratch}", f"--data={args.data}", *(["--tiny"] if args.tiny else [])]
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]),
        "XLA_PYTHON_CLIENT_PREALLOCATE": "false",  # PyTorch needs memory beside jax
        "JAX_COMPILATION_CACHE_DIR": str(scratch / "compiled"),
    }
    start, why = time.perf_counter(), None
    with open(log, "w") as file:
        process = subprocess.Popen(
            command, cwd=ROOT, env=environment, stdout=file, stderr=subprocess.STDOUT, start_new_session=True
        )
        try:
            if status := process.wait(seconds + GRACE):
                why = f"ended with status {status}"
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)  # with what it started, such as train.py
            process.wait()
            why = f"was stopped after {seconds + GRACE:.0f} s"
    result = json.loads(found.read_text()) if found.is_file() else {}
    result["seconds"] = round(time.perf_counter() - start, 1)
    if why:
        result["failed"] = f"{why}: " + " | ".join(log.read_text().splitlines()[-3:])[-600:]
    return result


def markdown(results: dict[str, Any]) -> str:
    """Write the results as a page."""
    lines = ["# On an accelerator", ""]
    for name in SHARES:
        if name not in results:
            continue
        part = results[name]
        lines += [f"## {name}", "", f"`{part['command']}`", ""]
        lines += [f"{part.get('device', 'no device')}, {part['seconds']:.0f} s. {part.get('note', '')}".strip()]
        lines += [f"It {part['failed'].split(':')[0]}, and has these rows:"] if "failed" in part else []
        lines += ["", "| what | measured |", "|---|---|"]
        lines += [f"| {what} | {value} |" for what, value in part.get("rows", {}).items()]
        lines += [""]
    versions = next((part["versions"] for part in results.values() if "versions" in part), {})
    lines += ["Versions: " + ", ".join(f"{name} {version}" for name, version in versions.items()) + "."]
    return "\n".join(lines) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("data"))
    parser.add_argument("--out", type=Path, default=Path("accelerator"))
    parser.add_argument("--minutes", type=float, default=9.0)
    parser.add_argument("--parts", default="checks,cifar10,speed")
    parser.add_argument(
        "--scratch", type=Path, help="where zips are unpacked and the run is kept; a repeat goes on there"
    )
    parser.add_argument("--tiny", action="store_true", help="tiny networks, for a trial on a CPU")
    parser.add_argument("--wheels", action="store_true", help="list what is not installed, and stop")
    args = parser.parse_args()
    if args.wheels:
        print("\n".join(missing()) or "nothing is missing")
        return 0
    parts = args.parts.split(",")
    if unknown := set(parts) - set(SHARES):
        parser.error(f"--parts={args.parts}: {', '.join(sorted(unknown))} is none of {', '.join(SHARES)}")
    if lacking := missing():
        parser.error(f"not installed: {', '.join(lacking)}. Install them, or bring their wheels")
    if not args.data.is_dir():
        parser.error(f"--data={args.data} is no folder")
    args.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as temporary:
        scratch = (args.scratch or Path(temporary)).resolve()
        scratch.mkdir(parents=True, exist_ok=True)
        args.out, args.data = args.out.resolve(), args.data.resolve()
        deadline = time.perf_counter() + 60 * args.minutes - 10
        args.data = unpacked(args.data, scratch)
        results: dict[str, Any] = {}
        for i, name in enumerate(parts):
            share = SHARES[name] / sum(SHARES[other] for other in parts[i:])
            results[name] = run_part(name, max(share * (deadline - time.perf_counter()) - GRACE, 5), args, scratch)
            results[name]["command"] = " ".join(["python", "benchmarks/accelerator.py", *sys.argv[1:]])
            (args.out / "accelerator.json").write_text(json.dumps(results, indent=2) + "\n")
            (args.out / "accelerator.md").write_text(markdown(results))
            print(f"{name}: {results[name].get('failed', 'done')}, {results[name]['seconds']:.0f} s", flush=True)
            for what, value in results[name].get("rows", {}).items():
                print(f"  {what}: {value}", flush=True)
    return int(any("failed" in results[name] for name in parts))


if __name__ == "__main__":
    sys.exit(main())
