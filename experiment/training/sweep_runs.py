"""What a sweep is asked for: its runs, each with the keys that it sets, and the file that remembers them."""

import hashlib
import itertools
import json
import re
import shlex
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from experiment.command_line.given_config import overridden
from experiment.command_line.help import as_text
from experiment.common.errors import UserError, quoted, shown
from experiment.common.files import read_regular
from experiment.common.provenance import git_commit
from experiment.config import FREE_ON_RESUME, check_key, differences, flatten, load_config, save_config
from experiment.config.schema import KEYS
from experiment.config.values import kind_of

FILE = "sweep.json"
MOST_RUNS, LONGEST_NAME, MOST_BYTES = 10_000, 120, 2**20

# A value between commas: in quotes, in brackets, or plain. One that follows a comma may be empty.
_VALUE = re.compile(r"""\s*('[^']*'|"[^"]*"|\([^()]*\)|\[[^][]*\]|[^,]*?)\s*(,|$)""")


@dataclass(frozen=True, eq=False)
class SweepRun:
    """One run of a sweep: the name of its folder, the keys that it sets as the command line gives them, its config."""

    name: str
    texts: dict[str, str]
    config: Any

    @property
    def values(self) -> dict[str, Any]:
        """The keys that it sets, with their values."""
        flat = flatten(self.config)
        return {key: flat[key] for key in self.texts}


def split_values(text: str) -> list[str]:
    """Split the values of --set at the commas that stand neither in quotes nor in brackets."""
    found, place = [], 0
    while True:
        match = _VALUE.match(text, place)
        assert match is not None  # the plain value takes whatever is there
        found.append(match[1])
        place = match.end()
        if not match[2]:
            return found


def read_set(told: str) -> tuple[str, list[str]]:
    """Read what --set gives, KEY=V1,V2: the key, and the text of each value.

    Raises UserError for an unknown key, and for a key of tuples whose values are not in brackets, so that a comma may
    part two values or two entries.
    """
    key, equals, text = told.partition("=")
    key = key.strip().removeprefix("config.")
    if not equals:
        raise UserError(f"--set {shown(told)} gives no values: write --set KEY=VALUE,VALUE, as in train.lr=1e-3,2e-3")
    check_key(key)
    values = split_values(text)
    _, many, _ = kind_of(KEYS[key][0])
    if many and len(values) > 1 and any(v[:1] not in ("(", "[") and v.lower() not in ("none", "null") for v in values):
        raise UserError(f"--set {shown(told)}: {key} takes tuples: put each in brackets, as in '{key}=(A,B),(C,)'")
    return key, values


def read_list(path: Path) -> list[dict[str, str]]:
    """Read the runs of a file: one a line, its keys as KEY=VALUE or --config.KEY=VALUE, quoted as in a shell.

    Empty lines are left out, and what follows a #. Raises UserError, with the line, for a file that is none.
    """
    try:
        lines = read_regular(path, MOST_BYTES).decode().splitlines()
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "it is no text"
        raise UserError(f"cannot read --runs={shown(str(path))} ({reason}): give a file with one run a line") from None
    found = []
    for number, line in enumerate(lines, 1):
        here = f"--runs={shown(str(path))}, line {number}"
        try:
            words = shlex.split(line, comments=True)
        except ValueError as error:
            raise UserError(f"{here}: {error}: write it as in a shell") from None
        texts: dict[str, str] = {}
        for word in words:
            key, equals, text = word.lstrip("-").removeprefix("config.").partition("=")
            if not equals:
                raise UserError(f"{here}: {quoted(word)} gives no value: write KEY=VALUE, as in train.lr=1e-3")
            _once(texts, key, here)
            texts[key] = text
        if texts:
            found.append(texts)
    if not found:
        raise UserError(f"--runs={shown(str(path))} holds no run: write one a line, as in: train.lr=1e-3 sde.name=ve")
    return found


def _once(texts: Mapping[str, Any], key: str, where: str) -> None:
    if key in texts:
        raise UserError(f"{where}: {shown(key)} is set twice: give it once, with all of its values in one --set")


def runs_of(
    base: Any, common: Mapping[str, str], sets: Sequence[str], listed: Iterable[Mapping[str, str]] = ()
) -> list[SweepRun]:
    """The runs of a sweep: each line of the list, or none, with each point of the grid of `sets`.

    base: the checked config that all of them share; common: the keys of it that the command line set. Keys of a run
    stand in the schema's order, so that its name does not depend on that of the flags.

    Raises UserError for a key or value that is not one, a key that is set twice, and two runs that are the same.
    """
    grid: dict[str, list[str]] = {}
    for told in sets:
        key, values = read_set(told)
        _once(grid, key, "--set")
        grid[key] = values
    lines = list(listed) or [{}]
    if not grid and not listed:
        raise UserError(
            "there is nothing to sweep over: give --set KEY=V1,V2 for each key, or --runs=FILE with a run a line"
        )
    count = len(lines)
    for values in grid.values():
        count *= len(values)
    if count > MOST_RUNS:
        raise UserError(f"the grid has {count:,} runs: give at most {MOST_RUNS:,}")
    found: dict[str, SweepRun] = {}
    for line in lines:
        for point in itertools.product(*grid.values()):
            run = _run(base, common, {**line}, dict(zip(grid, point, strict=True)))
            if run.name in found:
                raise UserError(f"the sweep has {run.name} twice: give each value once")
            found[run.name] = run
    return list(found.values())


def _run(base: Any, common: Mapping[str, str], line: dict[str, str], point: dict[str, str]) -> SweepRun:
    for key in (*line, *point):
        check_key(key)
        if key == "module":
            raise UserError("config.module is one for all runs of a sweep: give it as --config.module=FILE")
    for key in point:
        _once(line, key, "--set and --runs")
    for key in (*line, *point):
        _once(common, key, "--config and the sweep")
    texts = {**line, **point}
    config = overridden(flatten(base), texts)
    ordered = {key: texts[key] for key in sorted(texts, key=list(KEYS).index)}
    flat = flatten(config)
    return SweepRun(run_name({key: flat[key] for key in ordered}), ordered, config)


def run_name(values: Mapping[str, Any]) -> str:
    """The name of the folder of the run that sets these values: readable, and the same wherever they are the same.

    What a file system or a shell may not like is replaced, and what is too long is cut; a digest of the values keeps
    such names apart.
    """
    told = ",".join(f"{key}={_word(value)}" for key, value in values.items())
    plain = re.sub(r"[^A-Za-z0-9._,=+-]+", "_", told)
    if plain == told and len(told) <= LONGEST_NAME:
        return told
    digest = hashlib.sha256(json.dumps(list(values.items())).encode()).hexdigest()[:8]
    return f"{plain[: LONGEST_NAME - 9]}-{digest}"


def _word(value: Any) -> str:
    return "+".join(map(as_text, value)) if isinstance(value, tuple) else as_text(value)


def as_json(run: SweepRun) -> dict[str, Any]:
    """The keys that the run sets, in JSON's values."""
    return dict(json.loads(json.dumps(run.values)))


def remember(folder: Path, base: Any, runs: Sequence[SweepRun]) -> None:
    """Write sweep.json: the base config, which every run of the sweep is trained from, and the runs.

    Raises UserError where the folder holds a sweep of other runs or of another base, with the difference.
    """
    path, asked = folder / FILE, {run.name: as_json(run) for run in runs}
    if path.exists():
        before, earlier = read_sweep(folder)
        changed = differences(before, base, FREE_ON_RESUME)
        if earlier != asked:
            new, gone = [name for name in asked if name not in earlier], [name for name in earlier if name not in asked]
            told = [
                f"{len(names)} {what}, such as {names[0]}" for names, what in ((new, "new"), (gone, "missing")) if names
            ]
            changed = [f"{len(earlier)} runs there, {len(asked)} now: {', '.join(told) or 'with other values'}"]
        if changed:
            raise UserError(
                f"{folder} belongs to another sweep: {'; '.join(changed[:3])}; give that one's command again, or sweep "
                "into another --workdir"
            )
    origin = {"command": shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]), "git_commit": git_commit()}
    save_config(path, base, provenance=origin, sweep=asked)


def read_sweep(folder: Path) -> tuple[Any, dict[str, dict[str, Any]]]:
    """Read sweep.json.

    Returns:
        base: the config that all runs share.
        runs: of each run, by the name of its folder, the keys that it sets.

    Raises UserError where it is damaged.
    """
    path = folder / FILE
    base, beside = load_config(path, "restore it, or sweep into another --workdir")
    runs = beside.get("sweep")
    if not isinstance(runs, dict) or not all(isinstance(values, dict) for values in runs.values()):
        raise UserError(f"{path} is damaged (it names no runs): restore it, or sweep into another --workdir")
    if any(Path(name).name != name or name in ("", "..", ".") for name in runs):
        raise UserError(f"{path} is damaged (a run's name is no folder's): restore it, or sweep into another --workdir")
    return base, runs
