"""What a user of the mathematics needs is public: at `sde_lib` or at one of its rooms."""

import ast
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

import sde_lib
import sde_lib.flow_map
import sde_lib.guidance
import sde_lib.inverse
import sde_lib.samplers

ROOT = Path(__file__).parents[2]
PUBLIC = {
    *sde_lib.__all__,
    *sde_lib.samplers.__all__,
    *sde_lib.flow_map.__all__,
    *sde_lib.guidance.__all__,
    *sde_lib.inverse.__all__,
    "samplers",
    "inverse",
    "flow_map",
}


def sources():
    """(place, its Python source) of all that builds on sde_lib."""
    for room in ("experiment", "benchmarks"):
        for path in (ROOT / room).rglob("*.py"):
            yield path.name, path.read_text()
    for path in [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")]:
        for block in re.findall(r"^```python\n(.*?)^```", path.read_text(), re.MULTILINE | re.DOTALL):
            yield path.name, block
    for path in (ROOT / "notebooks").glob("*.ipynb"):
        cells = [cell["source"] for cell in json.loads(path.read_text())["cells"] if cell["cell_type"] == "code"]
        lines = "".join("".join(source) + "\n" for source in cells).splitlines(keepends=True)
        yield path.name, "".join(line for line in lines if not line.startswith(("%", "!")))


def test_all_that_is_imported_from_sde_lib_is_public():
    private = {
        (place, node.module, alias.name)
        for place, source in sources()
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] == "sde_lib"
        for alias in node.names
        if alias.name not in PUBLIC
    }
    assert private == set()


@pytest.mark.parametrize("module", [sde_lib, sde_lib.samplers])
def test_public_names_are_there_once(module):
    assert len(set(module.__all__)) == len(module.__all__)
    assert [name for name in module.__all__ if not hasattr(module, name)] == []


def test_the_likelihood_has_its_divergences_beside_it():
    from sde_lib.likelihood import Exact, Hutchinson

    assert (Exact, Hutchinson) == (sde_lib.Exact, sde_lib.Hutchinson)


def test_type_checkers_are_told_that_sde_lib_has_types():
    assert (Path(sde_lib.__file__).parent / "py.typed").is_file()


def test_importing_sde_lib_does_not_wait_for_what_only_the_ode_needs():
    said = "import sys, sde_lib.samplers; print(*sys.modules)"
    modules = subprocess.run([sys.executable, "-c", said], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert {"diffrax", "equinox", "optimistix", "flax", "scipy.stats"} & set(modules.split()) == set()
