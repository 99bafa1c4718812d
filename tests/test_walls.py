"""The walls: who may import whom, between the rooms of the checkout and between the floors of experiment/."""

import ast
from pathlib import Path

import pytest

from tests.commands import ROOT, fresh

OURS = {"sde_lib", "models", "experiment", "configs", "benchmarks", "tests", "notebooks", "train", "sample", "evaluate"}
MAY_IMPORT = {
    "sde_lib": {"ours": {"sde_lib"}, "others": {"jax", "diffrax", "numpy"}},
    "models": {"ours": {"models"}, "others": {"jax", "flax", "numpy"}},
    "configs": {"ours": {"configs"}, "others": {"ml_collections"}},
    "experiment": {"ours": {"experiment", "sde_lib", "models"}, "others": None},
    "train.py": {"ours": {"experiment"}, "others": set()},
    "sample.py": {"ours": {"experiment"}, "others": set()},
    "evaluate.py": {"ours": {"experiment"}, "others": set()},
}


COMMANDS = (
    *("latents", "restore", "reconstruct_ema", "import_score_sde", "import_diffusers", "fit_sampler"),
    *("sweep", "compare", "explorer"),
)
# The floors of experiment/, from the ground up: a file imports from floors below its own, or from its own room.
FLOORS = (
    {"common", "plots"},
    {"devices", "build"},
    {"config", "data"},
    {"command_line"},
    {"cli", "run"},
    {"training"},
    {"evaluation", "published"},
    {"report"},
    set(COMMANDS),
)
NEVER = {"evaluation": {"training", "report"}}  # whatever the floors allow


def imports(source: str) -> set[str]:
    """The top-level packages that a file imports, wherever in it."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add((node.module or "").partition(".")[0] if node.level == 0 else "relative import")
    return found


def forbidden(source: str, room: str) -> set[str]:
    """What the file imports and may not."""
    import sys

    rules = MAY_IMPORT[room]
    outside = imports(source) - sys.stdlib_module_names
    ours = outside & OURS
    others = set() if rules["others"] is None else outside - OURS - rules["others"]
    return (ours - rules["ours"]) | others


@pytest.mark.parametrize("room", MAY_IMPORT)
def test_no_import_points_the_wrong_way(room):
    path = ROOT / room
    files = [path] if path.is_file() else sorted(path.rglob("*.py"))
    assert files
    assert {str(f.relative_to(ROOT)): bad for f in files if (bad := forbidden(f.read_text(), room))} == {}


def test_the_test_sees_a_wrong_arrow():
    assert forbidden("import os\nfrom models import MLP", "sde_lib") == {"models"}
    assert forbidden("def f():\n    import flax.nnx", "sde_lib") == {"flax"}
    assert forbidden("from . import sde", "sde_lib") == {"relative import"}


def test_the_mathematics_neither_prints_nor_touches_files():
    for path in (ROOT / "sde_lib").rglob("*.py"):
        calls = {
            n.func.id
            for n in ast.walk(ast.parse(path.read_text()))
            if isinstance(n, ast.Call) and isinstance(n.func, ast.Name)
        }
        assert not calls & {"print", "open", "input"}, path


def test_executables_stay_short():
    for name in ("train.py", "sample.py", "evaluate.py"):
        assert len((ROOT / name).read_text().splitlines()) < 100


def entry_of(module: str) -> str:
    """The room or file of experiment/ that a module of it lies in: "data" for "experiment.data.load"."""
    return module.split(".")[1]


def inside(source: str) -> set[str]:
    """The rooms and files of experiment/ that a file imports, wherever in it."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {entry_of(a.name) for a in node.names if a.name.startswith("experiment.")}
        elif isinstance(node, ast.ImportFrom) and node.module:
            if node.module == "experiment":
                found |= {alias.name for alias in node.names}
            elif node.module.startswith("experiment."):
                found.add(entry_of(node.module))
    return found


def upwards(source: str, entry: str) -> set[str]:
    """The entries of experiment/ that the file imports and that do not lie below its own."""
    floor = {name: i for i, names in enumerate(FLOORS) for name in names}
    return {name for name in inside(source) - {entry} if floor[name] >= floor[entry]}


def barred(source: str, entry: str) -> set[str]:
    """The entries of experiment/ that the file imports although they are NEVER for its own."""
    return inside(source) & NEVER[entry]


def entries() -> dict[str, list[Path]]:
    """The files of each entry of experiment/, but for the door, __init__.py."""
    found: dict[str, list[Path]] = {}
    for path in sorted((ROOT / "experiment").rglob("*.py")):
        place = path.relative_to(ROOT / "experiment").parts[0]
        if place != "__init__.py":
            found.setdefault(place.removesuffix(".py"), []).append(path)
    return found


def test_every_entry_of_experiment_has_one_floor_and_they_are_few():
    placed = [name for names in FLOORS for name in names]
    assert sorted(placed) == sorted(entries())
    assert len(placed) <= 22


@pytest.mark.parametrize("entry", entries())
def test_no_import_inside_experiment_points_upwards(entry):
    files = entries()[entry]
    assert {str(f.relative_to(ROOT)): bad for f in files if (bad := upwards(f.read_text(), entry))} == {}


@pytest.mark.parametrize("entry", NEVER)
def test_what_measures_never_imports_what_trains(entry):
    files = entries()[entry]
    assert {str(f.relative_to(ROOT)): bad for f in files if (bad := barred(f.read_text(), entry))} == {}


def test_the_test_sees_an_arrow_to_training():
    assert barred("def f():\n    from experiment.training.loop import train", "evaluation") == {"training"}
    assert barred("from experiment import training", "evaluation") == {"training"}


def test_the_test_sees_an_arrow_that_points_upwards():
    assert upwards("from experiment.training.loop import train", "run") == {"training"}
    assert upwards("def f():\n    from experiment import evaluation", "run") == {"evaluation"}
    assert upwards("import experiment.report.page", "training") == {"report"}
    assert (
        upwards("from experiment.common.errors import UserError\nfrom experiment.data.load import load_dataset", "data")
        == set()
    )


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_imports_the_flags_at_its_top_and_one_room_inside_main(name):
    tree = ast.parse((ROOT / "experiment" / f"{name}.py").read_text())
    top = inside("\n".join(ast.unparse(node) for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)))
    (main,) = (node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == "main")
    assert top <= {"command_line", "cli", "common"}
    assert len(inside(ast.unparse(main))) == 1


def test_what_parses_the_flags_loads_no_jax():
    code = "import sys, experiment.cli; print([m for m in sys.modules if m.partition('.')[0] in ('jax', 'jaxlib')])"
    done = fresh("-c", code)
    assert done.status == 0 and done.out.strip() == "[]", done.out + done.err
