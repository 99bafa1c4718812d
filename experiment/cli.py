"""The part that all commands share: flags, quiet logs, and mistakes told in one line.

def main() -> int | None: ...
if __name__ == "__main__":
    cli.run_app(main, config="configs/digits.py")
"""

import contextlib
import importlib.metadata
import logging
import os
import runpy
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from absl import app, flags
from absl import logging as absl_logging
from ml_collections import ConfigDict, config_flags

from experiment.config import KEYS, check_config, check_key, describe, nearest, whole_config
from experiment.errors import UserError
from experiment.files import cache_folder

MISTAKE, INTERRUPTED = 2, 130
_LOUD = ("absl", "jax", "orbax", "tensorboardX", "etils")


def run_app(main: Callable[..., int | None], config: str = "", positional: tuple[str, ...] = ()) -> None:
    """Parse the command's flags, run main() or main(*positional arguments), exit with its status.

    A UserError, or a mistake in the flags, is one line on stderr and status 2; Ctrl-C is status 130 in silence; any
    other exception is a bug and keeps its traceback.

    Args:
        main: the command; it reads its flags from absl.
        config: for a command with --config=FILE and --config.section.key=value, the default file, beside the
            command's own. The config, whole and checked, is then flags.FLAGS.config.
        positional: what the arguments that are no flags are called, such as ("CHECKPOINT", "RUN"): all must be given.
    """
    with mistakes_in_one_line():
        _quiet()
        convolutions_on_all_cores()
        app.define_help_flags()
        config_file = str(Path(sys.argv[0]).resolve().parent / config) if config else ""
        arguments = parse_flags(sys.argv, config_file, positional=positional)
        _compilation_cache()
        status = main(*arguments)
    sys.stdout.flush()
    sys.exit(status or 0)


@contextlib.contextmanager
def mistakes_in_one_line() -> Iterator[None]:
    """Turn a UserError into its line on stderr and SystemExit(2), and KeyboardInterrupt into SystemExit(130)."""
    try:
        yield
    except UserError as error:
        if error.listing:
            print(error.listing)
        sys.stdout.flush()
        print(" ".join(str(error).split()), file=sys.stderr)
        sys.exit(MISTAKE)
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)


def parse_flags(
    argv: list[str], config: str = "", values: flags.FlagValues = flags.FLAGS, positional: tuple[str, ...] = ()
) -> list[str]:
    """Parse the flags by absl, with every mistake as a UserError.

    Args:
        config: the default file of --config; "" for a command that has no config.

    Returns:
        The arguments that are no flags, as many as `positional` names.
    """
    try:
        values.set_gnu_getopt(bool(positional))  # flags may follow them
        if config:
            argv = _define_config(argv, config, values)
        rest = values(argv)[1:]
    except flags.UnrecognizedFlagError as error:
        guess = nearest(error.flagname, values)
        raise UserError(
            f"unknown flag --{error.flagname}: {f'did you mean --{guess}?' if guess else 'see --help'}"
        ) from None
    except flags.Error as error:
        raise UserError(_flag_mistake(str(error))) from None
    if len(rest) > len(positional):
        raise UserError(f"unexpected argument {rest[len(positional)]!r}: flags are written --name=value")
    if len(rest) < len(positional):
        raise UserError(
            f"{positional[len(rest)]} is missing: give {' '.join(positional)}, then flags written --name=value"
        )
    if config:
        check_config(values.config)
    return list(rest)


def _define_config(argv: list[str], file: str, values: flags.FlagValues) -> list[str]:
    """Define --config.section.key of the whole config that --config=FILE, by default `file`, stands for.

    The file is read here, since ml_collections overrides only keys that a file itself names. Raises UserError for an
    unknown key, a missing file, and a value that its key does not take.

    Returns:
        The arguments without --config=FILE.
    """
    rest = argv[:1]
    arguments = iter(argv[1:])
    for argument in arguments:
        name, equals, value = argument.lstrip("-").partition("=")
        if argument.startswith("-") and name == "config":
            file = value if equals else next(arguments, "")
            _check_file(file)
            continue
        if argument.startswith("-") and name.startswith("config."):
            check_key(name.removeprefix("config."))
        rest.append(argument)
    config = whole_config(_given_by(file))
    told = "A file with get_config(). Each of its keys, and every other, is also --config.section.key=value."
    config_flags.DEFINE_config_dict("config", config, told, values, lock_config=True, sys_argv=rest)
    values["config"].default_as_str = f"'{file}'"
    return rest


def _given_by(file: str) -> Any:
    """Return what the file's get_config() gives. Raises UserError for a file without one, and for no config."""
    get_config = runpy.run_path(file).get("get_config")
    if not callable(get_config):
        raise UserError(f"config file {file} has no get_config(): write one, as configs/digits.py does")
    config = get_config()
    if not isinstance(config, Mapping | ConfigDict):
        raise UserError(f"get_config() of {file} returns {type(config).__name__}: give a ConfigDict of what differs")
    return config


def _check_file(name: str) -> None:
    if not Path(name).is_file():
        there = sorted(Path(sys.argv[0]).resolve().parent.glob("configs/[!_]*.py"))
        names = ", ".join(os.path.relpath(path) for path in there if path.name != "base.py")
        raise UserError(f"config file {name!r} does not exist; there are {names}")


def mode_of(modes: Mapping[str, Iterable[str]], *switches: flags.FlagHolder[bool | None]) -> str:
    """The name of the switch that is on, "" for none, once every flag that was given is of that mode.

    modes: the names of the flags that each mode takes. Raises UserError for two switches, and for a flag that would be
    ignored.
    """
    on = [switch.name for switch in switches if switch.value]
    if len(on) > 1:
        raise UserError(f"--{on[1]} does not go with --{on[0]}: leave one of them out")
    mode = on[0] if on else ""
    for name in dict.fromkeys(name for names in modes.values() for name in names):
        if flags.FLAGS[name].present and name not in modes[mode]:
            others = [f"--{other}" for other, names in modes.items() if name in names and other]
            if mode or not others:
                raise UserError(f"--{name} does not go with --{mode}: leave one of them out")
            raise UserError(f"--{name} goes with {' or '.join(others)}: add it")
    return mode


def whole_numbers(flag: str, texts: Iterable[str] | None) -> list[int] | None:
    """A list flag's whole numbers; None where it was not given. Raises UserError for anything else."""
    if texts is None:
        return None
    try:
        numbers = [int(text) for text in texts]
    except ValueError:
        numbers = []
    if not numbers:
        raise UserError(f"--{flag}={','.join(texts)[:80]}: give whole numbers, as in --{flag}=3,7")
    return numbers


def _flag_mistake(text: str) -> str:
    """Return absl's own sentence, or for a config key what that key takes."""
    flag, _, value = text.removeprefix("flag --config.").partition(": ")[0].partition("=")
    override = text.startswith("flag --config.") and flag in KEYS
    return f"config.{flag} is {value!r}; it takes {describe(flag)}" if override else text


def _quiet() -> None:
    absl_logging.set_verbosity(absl_logging.ERROR)
    for name in _LOUD:
        logging.getLogger(name).setLevel(logging.ERROR)
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    os.environ.setdefault("GRPC_VERBOSITY", "ERROR")


def convolutions_on_all_cores() -> None:
    """Give convolutions on CPU to Eigen; call it before the first use of a device.

    XLA's own choice since jax 0.10, YNNPACK, trains convolutional networks more slowly; benchmarks/training.py measures
    it. The flag was tried with jaxlib 0.10.2, 0.11.0 and 0.11.2. Other versions, which may not know it and would abort,
    are left as they are.
    """
    flags = os.environ.get("XLA_FLAGS", "")
    if "ynn_fusion_type" not in flags and importlib.metadata.version("jaxlib").startswith(("0.10.", "0.11.")):
        os.environ["XLA_FLAGS"] = f"{flags} --xla_cpu_experimental_ynn_fusion_type=-individual_convolution".strip()


def _compilation_cache() -> None:
    """Let jax keep every compiled program in the user's cache folder, or in $JAX_COMPILATION_CACHE_DIR ("": nowhere).

    jax reads these variables once, when it is imported: nothing below this file imports it.
    """
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(cache_folder() / "compiled"))
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
