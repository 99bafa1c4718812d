"""What README.md and docs/ show is true: their Python runs, their links lead to files, their commands parse."""

import argparse
import functools
import itertools
import re
import runpy
import shlex
import sys
import tomllib
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from absl import flags
from PIL import Image

from configs import digits
from experiment import cli
from experiment.build.objects import MODELS, PARAMETERIZATIONS
from experiment.build.samplers import GRIDS, SAMPLERS
from experiment.common.errors import UserError
from tests.commands import ROOT

README = ROOT / "README.md"
PAGES = [README, ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
PYTHON = re.compile(r"```python\n(.*?)```", re.DOTALL)
FENCED = re.compile(r"```.*?```", re.DOTALL)
each_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)


def run(code: str, where: str) -> dict[str, Any]:
    """The names that the code leaves."""
    names: dict[str, Any] = {"__name__": where}
    exec(compile(code, where, "exec"), names)
    return names


# The README, and the page that goes with it


def test_the_readme_is_short():
    assert len(README.read_text().splitlines()) <= 130


def test_the_readme_opens_with_a_picture_that_moves():
    words, path = re.findall(r"!\[([^\]]+)\]\(([^)]+)\)", README.read_text())[0]
    image = Image.open(ROOT / path)
    assert (ROOT / path).stat().st_size < 1_000_000 and image.n_frames > 20 and image.info["loop"] == 0
    assert words.endswith(f"from t = 1 to {digits.get_config().sde.t_min}")


def test_the_python_of_the_readme_runs_as_it_stands():
    (code,) = PYTHON.findall(README.read_text())
    names = run(code, "README.md")
    # It ends with the log-densities of its last samples, which the mixture knows exactly.
    data, score_fn, s, r = (names[name] for name in ("data", "score_fn", "s", "r"))
    np.testing.assert_allclose(r.nats, data.at(score_fn.sde, score_fn.sde.t_min).log_prob(s.x), atol=1e-3)
    assert s.nfe == 1000 and r.latent.shape == s.x.shape


def test_the_python_of_getting_started_runs_as_it_stands():
    (code,) = PYTHON.findall((ROOT / "docs" / "getting_started.md").read_text())
    names = run(code, "docs/getting_started.md")
    assert names["s"].x.shape == (100, 2) and names["s"].nfe == 50
    assert 0 <= names["kl"] < 1e-6


@pytest.mark.parametrize("page", ["guidance.md", "inverse.md"])
def test_the_python_of_a_page_runs_as_it_stands(page):
    for code in PYTHON.findall((ROOT / "docs" / page).read_text()):
        run(code, f"docs/{page}")  # it asserts what it says


# The worked examples, each of which ends with its own assertions against a closed form


def examples() -> dict[str, list[str]]:
    """The Python of docs/extending.md by section."""
    _, *sections = re.split(r"^## ", (ROOT / "docs" / "extending.md").read_text(), flags=re.MULTILINE)
    found = {section.splitlines()[0]: PYTHON.findall(section) for section in sections}
    return {section: code for section, code in found.items() if code}


def test_every_kind_of_part_has_its_worked_example():
    kinds = [
        "An SDE",
        "A sampler",
        "A parameterisation",
        "A network",
        "A network of another library",
        "A data set",
        "A metric",
    ]
    assert list(examples()) == kinds


@pytest.mark.parametrize("section", examples())
def test_a_worked_example_runs_and_asserts(section):
    (code,) = examples()[section]
    assert "\nassert " in code or "np.testing.assert" in code
    run(code, f"docs/extending.md: {section}")


# Links


def heading_ids(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub and mkdocs make them."""
    titles = re.findall(r"^#+ (.*)$", FENCED.sub("", page.read_text()), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@each_page
def test_each_link_leads_to_a_file_and_its_heading(page):
    text = FENCED.sub("", page.read_text())
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        path, _, anchor = target.partition("#")
        there = (page.parent / path).resolve() if path else page
        assert there.is_file() and there.is_relative_to(ROOT), target
        assert not anchor or anchor in heading_ids(there), target


@each_page
def test_each_file_that_is_named_is_there(page):
    """Paths in code, such as `sde_lib/sde.py`; a name with a placeholder is none."""
    text = FENCED.sub("", page.read_text())
    rooms = "sde_lib|models|experiment|configs|notebooks|benchmarks|tests|docs"
    for path in re.findall(rf"`((?:{rooms})/[\w/.]*)`", text):
        assert (ROOT / path).exists(), path


# Commands


def commands(page: Path) -> list[str]:
    """Each `python ...` of the page, in a block or in a sentence, without the brackets of what may be left out."""
    text = page.read_text()
    blocks = re.findall(r"```bash\n(.*?)```", text, re.DOTALL)
    lines = [line.partition(" #")[0].strip() for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    spans = [" ".join(span.split()) for span in re.findall(r"`([^`]+)`", FENCED.sub("", text))]
    found = [re.sub(r"^(?:[A-Z_]+=\S+ )+", "", text) for text in [*lines, *spans]]
    return [text.replace("[", "").replace("]", "") for text in found if text.startswith("python ")]


class Parsed(Exception):
    """Raised in the place of what a command does after its flags are parsed."""


def parse(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Parse the command's flags by its own definitions, without running it. Raises what a mistake in them raises."""
    _, *arguments = shlex.split(command)
    if arguments[0] == "-m":
        _, module, *arguments = arguments
        path = ROOT / f"{module.replace('.', '/')}.py"
    else:
        path, *arguments = ROOT / arguments[0], *arguments[1:]
    values = flags.FlagValues()

    def run_app(main: Any, config: str = "", positional: tuple[str, ...] = ()) -> None:
        config_file = str(ROOT / config) if config else ""
        cli.parse_flags([str(path), *arguments], config_file, values, positional)
        raise Parsed

    strictly = argparse.ArgumentParser.parse_args

    def parse_args(parser: argparse.ArgumentParser, args: Any = None, namespace: Any = None) -> None:
        strictly(parser, args, namespace)
        raise Parsed

    for kind in ("string", "bool", "integer", "float", "list", "multi_string"):
        define = getattr(flags, f"DEFINE_{kind}")
        monkeypatch.setattr(flags, f"DEFINE_{kind}", functools.partial(define, flag_values=values))
    monkeypatch.setattr(cli, "run_app", run_app)
    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", parse_args)
    monkeypatch.setattr(sys, "argv", [str(path), *arguments])
    monkeypatch.chdir(ROOT)
    monkeypatch.setitem(
        sys.modules, "experiment.command_line.start", types.ModuleType("start")
    )  # for a process of its own
    with pytest.raises(Parsed):
        runpy.run_path(str(path), run_name="__main__")


@pytest.mark.parametrize("command", sorted({command for page in PAGES for command in commands(page)}))
def test_a_command_that_is_shown_parses(command, monkeypatch):
    parse(command, monkeypatch)


def first_column(page: str, heading: str) -> list[str]:
    """The names in code in the first column of the first table after the heading."""
    text = (ROOT / "docs" / page).read_text().partition(heading)[2]
    rows = itertools.takewhile(lambda line: line.startswith("|"), text[text.index("\n|") + 1 :].splitlines())
    return [name for row in list(rows)[2:] for name in re.findall(r"`(\w+)`", row.split("|")[1])]


def test_the_tables_of_names_are_whole():
    assert first_column("samplers.md", "## All of them") == list(SAMPLERS)
    assert first_column("samplers.md", "## Where the steps are") == list(GRIDS)
    assert first_column("networks.md", "# Networks") == list(MODELS)
    assert sorted(first_column("networks.md", "`ncsnpp` |")) == sorted(PARAMETERIZATIONS)


def test_a_mistake_in_a_command_would_be_seen(monkeypatch):
    with pytest.raises(UserError, match="did you mean --steps"):
        parse("python sample.py --step=5", monkeypatch)
    with pytest.raises(UserError, match=r"did you mean config\.train\.steps"):
        parse("python train.py --config.train.step=5", monkeypatch)


def test_each_extra_and_each_target_that_is_shown_exists():
    text = "\n".join(page.read_text() for page in PAGES)
    extras = set(tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"])
    shown = {extra for names in re.findall(r"'\.\[([\w,]+)\]'", text) for extra in names.split(",")}
    assert shown and shown <= extras
    targets = set(re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    made = set(re.findall(r"(?:^|`)make ([a-z]+)", text, re.MULTILINE))
    assert made and made <= targets
