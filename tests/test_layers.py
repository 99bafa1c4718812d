"""The walls: who may import whom (the README's map)."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
OURS = {"sde_lib", "models", "experiment", "configs", "benchmarks", "tests", "notebooks", "train", "sample", "evaluate"}
MAY_IMPORT = {
    "sde_lib": {"ours": {"sde_lib"}, "others": {"jax", "diffrax", "numpy"}},
    "models": {"ours": {"models"}, "others": {"jax", "flax", "numpy"}},
    "configs": {"ours": {"configs"}, "others": {"ml_collections"}},
    "experiment": {"ours": {"experiment", "sde_lib", "models"}, "others": None},
    "train.py": {"ours": {"experiment"}, "others": {"absl"}},
    "sample.py": {"ours": {"experiment"}, "others": {"absl"}},
    "evaluate.py": {"ours": {"experiment"}, "others": {"absl"}},
}


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
