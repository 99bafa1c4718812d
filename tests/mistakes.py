"""Some hundreds of mistakes over all commands, each to be told in one line with status 2, and nothing lost by it.

    python -m tests.mistakes [--every=1] [--show]

The suite makes one in so many of them (tests/experiment/test_mistakes.py).
"""

import argparse
import hashlib
import shutil
import sys
import tempfile
import time
import typing
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from experiment.config import KEYS
from tests.commands import ROOT, Command, train_flags

COMMANDS = ("train", "sample", "evaluate", "experiment/latents", "experiment/restore", "experiment/reconstruct_ema")
IMPORTS = ("experiment/import_score_sde", "experiment/import_diffusers")
NUMBERS = ("x", "1.5", "", "None", "-1", "1e400", "9" * 5000, "10" * 15, "nan", "1,2")
SEEDS = ("-1", str(2**32), "9" * 30, "x", "0.5")
PATHS = ("/dev/null/x", "~nobody_here/run", "n" * 300, "gs://bucket/run", "a\0b", "/proc/1/run")


def make_assets(folder: Path) -> None:
    """Write what the mistakes are made with: two runs, and files that are not what they seem."""
    for name, keys in (("run", {}), ("labelled", {"data_name": "two_moons", "model_class_conditional": True})):
        done = Command(*train_flags(folder / name, train_steps=2, **keys)).wait()
        assert done.status == 0, done.err
    (folder / "empty").mkdir()
    (folder / "empty.npz").touch()
    (folder / "text.npz").write_text("not an archive")
    (folder / "text.zip").write_text("not an archive")
    (folder / "text.pth").write_text("not a pickle")
    np.savez(folder / "other.npz", x=np.zeros((20, 3), np.float32))
    np.savez(folder / "names.npz", y=np.zeros((20, 2), np.float32))
    np.savez(folder / "nan.npz", x=np.full((20, 2), np.nan, np.float32))
    np.savez(folder / "words.npz", x=np.array(["a", "b"] * 10))
    np.savez(folder / "one.npz", x=np.zeros((1, 2), np.float32))
    (folder / "images").mkdir()
    for i in range(4):
        Image.fromarray(np.full((8 + i, 8), i, np.uint8)).save(folder / "images" / f"{i}.png")
    for name in ("nothing", "halves", "checkpoints", "config", "sections"):
        shutil.copytree(folder / "run", folder / name)
    shutil.rmtree(folder / "nothing" / "checkpoints")
    for path in (folder / "halves" / "checkpoints").rglob("*"):
        if path.is_file():
            path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    shutil.rmtree(folder / "checkpoints" / "checkpoints" / "2" / "ema")
    (folder / "config" / "config.json").write_text('{"seed": ')
    (folder / "sections" / "config.json").write_text('{"seed": 0}')


def of_keys() -> Iterator[list[str]]:
    """Wrong values of every key of the config."""
    for name, (hint, field) in KEYS.items():
        if hint is bool:
            wrong = ["maybe", "2", "None"]
        elif hint is str:
            wrong = ["nobody"] if field.metadata["choices"] else []
        else:
            number = "x" if "str" not in str(typing.get_args(hint) or hint) else ""
            wrong = [value for value in (number, "nan", "9" * 5000) if value]
            wrong += ["-1"] if any(limit is not None for limit in list(field.metadata["ranges"].values())[:2]) else []
        yield from ([f"--config.{name}={value}"] for value in wrong)
        yield [f"--config.{name}x=1"]


FILES = {
    "readme.py": "# Read me\n\nThis is no config.\n",
    "syntax.py": "def get_config(:\n",
    "none.py": "def get_config():\n    pass\n",
    "raises.py": "def get_config():\n    return 1 / 0\n",
    "missing.py": "import a_module_of_nobody\n",
    "nothing.py": "x = 1\n",
    "exits.py": "import sys\nsys.exit(0)\n",
    "endless.py": "def get_config():\n    return get_config()\n",
    "list.py": "def get_config():\n    return [1]\n",
    "huge.py": "def get_config():\n    return {'train': {'steps': 10**5000}}\n",
    "odd.py": "def get_config():\n    return {'train': {'lr': object()}}\n",
    "inf.py": "def get_config():\n    return {'train': {'lr': 10**400}}\n",
    "empty.json": "",
    "list.json": "[1]",
    "half.json": '{"train": {"lr"',
    "deep.json": "[" * 10**5,
    "huge.json": '{"train": {"lr": 1' + "0" * 400 + "}}",
    "digits.json": '{"train": {"steps": ' + "9" * 5000 + "}}",
    "nan.json": '{"train": {"lr": NaN}}',
    "key.json": '{"trian": {"lr": 1}}',
    "long.json": '{"' + "k" * 10**6 + '": 1}',
    "binary.json": "\0\1\2",
}


def of_training(folder: Path) -> Iterator[list[str]]:
    """What train.py is asked in vain."""
    yield from of_keys()
    for name, text in FILES.items():
        (folder / name).write_text(text)
        yield [f"--config={folder / name}"]
    yield from ([f"--config={path}"] for path in ("nobody.py", "configs", "/dev/null", "configs/digit.py"))
    yield from ([f"--workdir={path}"] for path in PATHS)
    names = ("sde.name", "model.name", "model.parameterization", "model.noise_label", "train.optimizer")
    names += ("train.schedule", "train.weighting", "train.times", "eval.samplers", "data.name")
    yield from ([f"--config.{name}=nobody"] for name in names)
    for path in ("none", "empty", "empty.npz", "text.npz", "text.zip", "names.npz", "nan.npz", "words.npz", "one.npz"):
        yield [f"--config.data.path={folder / path}"]
    yield [f"--config.data.path={folder / 'images'}"]  # of several sizes
    yield from ([f"--config.module={folder / name}"] for name in ("readme.py", "syntax.py", "missing.py", "none"))
    yield from (
        [f"--config.train.start={folder / name}"] for name in ("none", "empty", "nothing", "halves", "labelled")
    )
    yield ["--config.model.width=65536", "--config.model.depth=200"]
    yield ["--config.train.batch_size=16777216"]
    yield ["--config.train.batch_size=10", "--config.train.accumulate=3"]
    yield ["--config.train.fsdp=3"]
    yield ["--config.model.fir=true"]
    yield ["--config.sde.sigma_max=3"]
    yield ["--config.data.flip=true"]
    yield ["--config.data.name=digits"]  # the perceptron takes vectors
    yield ["--config.sde.beta_min=30"]
    yield ["--config.train.weight_decay=0.1"]
    yield ["--config.train.cond_dropout=0.1"]
    yield from ([f"--config.model.condition={what}"] for what in ("label", "vector", "text"))
    yield ["--config.model.condition=label", "--config.model.class_conditional=false"]
    yield ["--config.model.text_length=16"]
    yield from ([flag] for flag in ("run", "--steps=3", "--only_check_args", "--config.train", "--config.train.steps"))
    yield [f"--workdir={folder / 'run'}", "--config.train.lr=3"]
    for name in ("halves", "config", "sections"):
        yield [f"--workdir={folder / name}"]


def of_runs(command: str, folder: Path) -> Iterator[list[str]]:
    """What a command that reads a run is asked in vain."""
    for name in ("none", "empty", "other.npz", "nothing", "halves", "checkpoints", "config", "sections"):
        yield [f"--workdir={folder / name}"]
    yield from ([f"--workdir={path}"] for path in PATHS)
    yield from (["run"], ["--nobody=3"], ["--wrokdir=x"], ["--workdir"], ["--logtostderr"])
    run = f"--workdir={folder / 'run'}"
    if command == "sample":
        yield from ([run, f"--n={value}"] for value in (*NUMBERS[:4], "0", "-3", "9" * 30, str(10**12)))
        yield from ([run, f"--seed={value}"] for value in SEEDS)
        yield from ([run, "--sampler=em", f"--steps={value}"] for value in ("0", "-1", "x", "9" * 30))
        yield from ([run, f"--sampler={value}"] for value in ("nobody", "", "em,pc", "list2"))
        yield from ([run, "--sampler=ddim", f"--eta={value}"] for value in ("x", "-1", "nan", "inf"))
        yield from ([run, "--sampler=em", "--grid=nobody"], [run, "--sampler=ode", "--eta=1"], [run, "--label=0"])
        yield from ([f"--workdir={folder / 'labelled'}", f"--label={value}"] for value in ("2", "-1", "x", "0,7"))
        yield from ([run, f"--out={path}"] for path in PATHS)
        labelled = f"--workdir={folder / 'labelled'}"
        yield from ([where, "--prompt=a seven"] for where in (run, labelled))
        yield from ([where, f"--cond={folder / 'other.npz'}"] for where in (run, labelled))
        yield from ([where, "--guidance=2"] for where in (run, labelled))  # trained without dropping labels
        yield from ([labelled, f"--guidance={value}"] for value in ("x", "nan", "inf", ""))
        for interval in ("3,1", "1", "1,2,3", "x,2", "nan,2"):
            yield [labelled, "--guidance=2", f"--guidance_interval={interval}"]
        yield from ([labelled, "--guidance_interval=1,3"], [labelled, f"--guide={folder / 'run'}"])
        yield from ([labelled, "--guidance=2", f"--guide={folder / name}"] for name in ("none", "run", "halves"))
        yield [labelled, "--label=1", "--prompt=one"]
    if command == "evaluate":
        for flag in ("n", "seeds", "likelihood_n", "probes"):
            yield from ([run, f"--{flag}={value}"] for value in ("0", "x", "-1", "9" * 30))
        yield from ([run, f"--seed={value}"] for value in SEEDS)
        yield from ([run, f"--samplers={value}"] for value in ("nobody", "em,,pc", "em,em2"))
        yield from ([run, f"--nfe={value}"] for value in ("x", "0", "-1", "1.5"))
        for flag in ("--k=2", "--bound", "--chain=10", "--betas=linear", "--variance=fixed_large", "--fid_weights=x"):
            yield [run, flag]
        for flag in ("--samplers=em", "--nfe=10", "--exact_score", "--seeds=2", "--fid", "--k=0", "--chain=0"):
            yield [run, "--likelihood", flag]
        yield from ([run, "--likelihood", f"--dequantization={value}"] for value in ("nobody", "uniform"))
        yield from ([run, "--fid"], [run, "--fid", "--fid_weights=nobody.pth"], [run, "--exact_score"])
        yield from ([run, f"--out={path}"] for path in PATHS[:3])
    if command == "experiment/latents":
        yield from ([run], [run, "--encode", "--typicality"], [run, "--points=3"], [run, "--encode", "--points=3"])
        for value in ("3", "3,x", "3,10000000", "-1,3", "3,3,3"):
            yield [run, f"--interpolate={value}"]
        for name in ("none.npz", "text.npz", "other.npz", "names.npz", "nan.npz", "words.npz"):
            yield [run, f"--decode={folder / name}"]
        yield from ([run, "--encode", f"--seed={value}"] for value in SEEDS)
        yield from ([run, "--encode", f"--n={value}"] for value in ("0", "x"))
    if command == "experiment/restore":
        yield [run]
        yield from ([run, f"--noise={value}"] for value in ("x", "-1", "nan", "inf"))
        seen = [run, "--noise=0.1"]
        for operator in ("nobody", "", "downsample", "blur", "colour", "matrix"):  # its examples are vectors
            yield [*seen, f"--operator={operator}"]
        yield from ([*seen, f"--seen={path}"] for path in ("right", *PATHS[:4]))
        for name in ("none.npz", "text.npz", "other.npz", "nan.npz", "words.npz"):
            yield from ([*seen, f"--seen={folder / name}"], [*seen, f"--matrix={folder / name}"])
        yield from ([*seen, f"--draws={value}"] for value in ("1", "0", "x", "9" * 30))
        yield from ([*seen, "--seen=random", f"--share={value}"] for value in ("0", "1", "nan", "x"))
        yield from ([*seen, f"--method={value}"] for value in ("nobody", "dps"))
        yield from ([*seen, "--factor=2"], [*seen, "--iterations=0"], [*seen, "--particles=0"], [*seen, "--n=0"])
        yield from ([run, "--noise=0", "--method=jensen"], [*seen, "--method=jensen", "--iterations=2"])
        yield from ([*seen, f"--seed={value}"] for value in SEEDS)
        yield from ([*seen, f"--out={path}"] for path in PATHS)
    if command == "experiment/reconstruct_ema":
        yield from ([run], [run, f"--out={folder / 'new'}", "--sigma_rel=0.1"], [run, "--sigma_rel=x"])


def of_imports(folder: Path) -> Iterator[list[str]]:
    """What an importer of weights is asked in vain."""
    for name in ("none", "empty", "text.pth", "other.npz", "text.npz", "images"):
        yield [str(folder / name), str(folder / "new")]
    yield from ([], ["one"], ["one", "two", "three"], ["--nobody=1"])


def all_mistakes(folder: Path) -> list[list[str]]:
    """Every mistake as a command line."""
    training = [
        ["train", f"--workdir={folder / 'new'}", f"--config={ROOT}/configs/toys.py", *more]
        for more in of_training(folder)
    ]
    reading = [[command, *more] for command in COMMANDS[1:] for more in of_runs(command, folder)]
    return training + reading + [[command, *more] for command in IMPORTS for more in of_imports(folder)]


def digests(folder: Path) -> dict[str, str]:
    """The content of every file, but for the lock, which holds the last process's number."""
    files = [path for path in sorted(folder.rglob("*")) if path.is_file() and path.name != ".lock"]
    return {str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def fault_of(argv: list[str]) -> tuple[str, str, float]:
    """Make a mistake. Returns what was wrong with the answer ("" for nothing), the answer, and the seconds it took."""
    start = time.monotonic()
    try:
        # A zero byte is in no process's arguments; the commands get theirs as Python lists here.
        done = Command(str(ROOT / f"{argv[0]}.py"), *argv[1:]).wait()
    except TimeoutError:
        return "hangs", "", time.monotonic() - start
    seconds, lines = time.monotonic() - start, done.err.splitlines()
    faults = [
        f"status {done.status}" if done.status != 2 else "",
        f"{len(lines)} lines" if len(lines) != 1 else "",
        "too long" if len(done.err) > 2100 else "",
        "not printable" if not done.err.rstrip("\n").isprintable() else "",
    ]
    return ", ".join(filter(None, faults)), done.err, seconds


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--every", type=int, default=1, help="make one in so many")
    parser.add_argument("--show", action="store_true", help="show each line that is told")
    parser.add_argument("--only", default="", help="only those whose command line holds this text")
    args = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="mistakes-"))
    make_assets(folder)
    mistakes = [argv for argv in all_mistakes(folder)[:: args.every] if args.only in " ".join(argv)]
    before, wrong, slowest = digests(folder), 0, 0.0
    for argv in mistakes:
        fault, told, seconds = fault_of(argv)
        slowest = max(slowest, seconds)
        if args.show or fault or seconds > 30:
            print(f"{fault or 'told'} ({seconds:.1f} s): {' '.join(argv)[:300]!r}\n    {told[-600:]}", flush=True)
        wrong += bool(fault)
    changed = sorted(path for path, _ in set(before.items()) ^ set(digests(folder).items()))
    print(
        f"{len(mistakes)} mistakes, {wrong} not told as they should be, the slowest in {slowest:.0f} s;"
        f" changed: {', '.join(changed) or 'no file'}"
    )
    shutil.rmtree(folder)
    return int(bool(wrong or changed))


if __name__ == "__main__":
    sys.exit(main())
