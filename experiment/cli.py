"""The part that all commands share: flags, help, quiet logs, and mistakes told in one line.

import experiment.command_line.start
from experiment import cli
from experiment.cli import flags

def main() -> int | None: ...
if __name__ == "__main__":
    cli.run_app(main)
"""

import contextlib
import json
import logging
import os
import signal
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from absl import flags as flags
from absl import logging as absl_logging

from experiment.command_line import INTERRUPTED, MISTAKE
from experiment.command_line.given_config import split_arguments, whole_config
from experiment.command_line.help import help_text
from experiment.common.errors import UserError, quoted, shown
from experiment.config import adopt_of_run, nearest

_LOUD = ("absl", "jax", "orbax", "tensorboardX", "etils")
_HELP = ("-h", "--h", "-help", "--help", "--helpshort", "--helpfull")
_NO_MORE_READER = 128 + 13  # as a process that SIGPIPE ends


def run_app(main: Callable[..., int | None], config: str = "", positional: tuple[str, ...] = ()) -> None:
    """Parse the command's flags, run main, and exit with its status.

    A UserError, or a mistake in the flags, is one line on stderr and status 2; Ctrl-C is status 130 in silence; any
    other exception is a bug and keeps its traceback.

    Args:
        main: the command, main(*positional arguments), or main(config, given) for one with a config: the config, whole
            and checked, and {key: text} of the keys that the command line set. It reads its flags from absl.
        config: for a command with --config=FILE and --config.section.key=value, the default file, in this checkout.
        positional: what the arguments that are no flags are called, such as ("CHECKPOINT", "RUN"): all must be given.
            One that ends with ".." stands for one or more.
    """
    with mistakes_in_one_line():
        # Lines come at once, into a file or pipe too; a name that is no text is written escaped.
        for stream in (sys.stdout, sys.stderr):
            stream.reconfigure(line_buffering=True, errors="backslashreplace")  # type: ignore[union-attr]
        _quiet()
        config_file = str(Path(__file__).parents[1] / config) if config else ""
        arguments = parse_flags(
            sys.argv, config_file, positional=positional, about=sys.modules["__main__"].__doc__ or ""
        )
        convolutions_on_all_cores()
        _compilation_cache()
        if "workdir" in flags.FLAGS:
            adopt_of_run(flags.FLAGS.workdir)
        status = main(*arguments)
        sys.stdout.flush()
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # all is done, and the interpreter's own end is not to be heard
    sys.exit(status or 0)


@contextlib.contextmanager
def mistakes_in_one_line() -> Iterator[None]:
    """Turn a UserError into its line on stderr and SystemExit(2), and KeyboardInterrupt into SystemExit(130).

    A pipe that nobody reads any more, as of `| head`, ends the command in silence too.
    """
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
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # what is left to write is flushed at exit
        sys.exit(_NO_MORE_READER)


def parse_flags(
    argv: list[str],
    config: str = "",
    values: flags.FlagValues = flags.FLAGS,
    positional: tuple[str, ...] = (),
    about: str = "",
) -> list[Any]:
    """Parse the flags by absl, with every mistake as a UserError; --help and --print_config print and exit.

    Args:
        config: the default file of --config; "" for a command that has no config.
        positional: the names of the arguments that are no flags.
        about: what --help says of the command.

    Returns:
        What main is called with: the arguments that are no flags, as many as `positional` names, or the config, whole
        and checked, and {key: text} of the keys that the command line set.
    """
    own = _own_flags(values)
    if any(argument in _HELP for argument in argv[1:]):
        print(help_text(about, [values[name] for name in own], os.path.relpath(config) if config else ""))
        sys.exit(0)
    given = split_arguments(argv[1:], config) if config else None
    arguments = argv[1:] if given is None else given.rest
    printed = given is not None and any(name in arguments for name in ("--print_config", "-print_config"))
    arguments = [name for name in arguments if not (printed and name.lstrip("-") == "print_config")]
    _check_known(arguments, own)
    try:
        values.set_gnu_getopt(bool(positional))  # flags may follow them
        rest = values([argv[0], *arguments])[1:]
    except flags.Error as error:
        raise UserError(f"{shown(str(error))}: see --help") from None
    more = bool(positional) and positional[-1].endswith("..")
    if len(rest) > len(positional) and not more:
        raise UserError(f"unexpected argument {quoted(rest[len(positional)])}: flags are written --name=value")
    if len(rest) < len(positional):
        raise UserError(
            f"{positional[len(rest)]} is missing: give {' '.join(positional)}, then flags written --name=value"
        )
    if given is None:
        return list(rest)
    found = whole_config(given)
    if printed:
        print(json.dumps(found.to_dict(), indent=2))
        sys.exit(0)
    return [found, given.overrides]


def _own_flags(values: flags.FlagValues) -> list[str]:
    """The flags that the command itself defines; absl's own, such as --logtostderr, would change nothing here."""
    by_module = values.flags_by_module_dict()
    return [flag.name for module, own in by_module.items() if not module.startswith("absl") for flag in own]


def _check_known(arguments: list[str], own: list[str]) -> None:
    """Raises UserError for a flag that is not one of the command's own, with the nearest one."""
    for argument in arguments:
        if argument == "--":
            return
        name = argument.lstrip("-").partition("=")[0]
        if argument.startswith("-") and name not in own and name.removeprefix("no") not in own and not _is_number(name):
            guess = nearest(name, own)
            raise UserError(f"unknown flag --{shown(name)}: {f'did you mean --{guess}?' if guess else 'see --help'}")


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


def _is_number(text: str) -> bool:
    """Tell whether it may be the value of a flag before it, as in --eta -1."""
    try:
        return bool(float(text) or True)
    except ValueError:
        return False


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
    import importlib.metadata  # slow, and not for --help

    flags = os.environ.get("XLA_FLAGS", "")
    if "ynn_fusion_type" not in flags and importlib.metadata.version("jaxlib").startswith(("0.10.", "0.11.")):
        os.environ["XLA_FLAGS"] = f"{flags} --xla_cpu_experimental_ynn_fusion_type=-individual_convolution".strip()


def _compilation_cache() -> None:
    """Let jax keep every compiled program in the user's cache folder, or in $JAX_COMPILATION_CACHE_DIR ("": nowhere).

    jax reads these variables once, when it is imported: nothing below this file imports it.
    """
    from experiment.common.files import cache_folder  # imports NumPy, which --help does not need

    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(cache_folder() / "compiled"))
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
