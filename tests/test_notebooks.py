"""The notebooks: a fast version of each runs, they read one idea a cell, and their outputs are there without a kernel.

Cells run in this process, one namespace for each notebook. The cell tagged "parameters" is followed by the smaller
sizes of the notebook's own metadata, {"noise_compass": {"fast": {name: value}}}; every assertion must hold for them
too. `make notebooks` runs them whole.
"""

import ast
import itertools
import json
import re
import runpy
from pathlib import Path
from typing import Any

import pytest

from tests.commands import ROOT

NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"), key=lambda path: int(path.stem.partition("_")[0]))
MOST_LINES = 30  # of a code cell, without blank ones
LONGEST_LINE = 120
FOLDED = {"jupyter": {"source_hidden": True}, "tags": ["checks"]}  # metadata of the cell that asserts a section
each_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def read(path: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Read a notebook.

    Returns:
        The notebook, and its code cells.
    """
    notebook = json.loads(path.read_text())
    return notebook, [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]


@each_notebook
def test_a_fast_version_runs(path: Path) -> None:
    notebook, cells = read(path)
    fast = notebook["metadata"]["noise_compass"]["fast"]
    names: dict[str, Any] = {}
    for cell in cells:
        exec(compile("".join(cell["source"]), f"{path.name}", "exec"), names)
        if "parameters" in tags(cell):
            assert fast.keys() <= names.keys()
            names.update(fast)


@each_notebook
def test_it_is_committed_with_its_outputs(path: Path) -> None:
    _, cells = read(path)
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
    outputs = [output for cell in cells for output in cell["outputs"]]
    assert not any(output["output_type"] == "error" or output.get("name") == "stderr" for output in outputs)
    assert any("image/png" in output.get("data", {}) for output in outputs)
    texts = ["".join(output.get("text", "")) for output in outputs]
    assert not any(re.search(r"/(home|root|tmp|Users)/", text) for text in texts), "a path of the machine it ran on"


@each_notebook
def test_each_picture_has_an_alt_text(path: Path) -> None:
    """It is the metadata `alt` of the picture's cell, which nbconvert puts into the page; no other cell has one."""
    _, cells = read(path)
    for cell in cells:
        shows = any("image/png" in output.get("data", {}) for output in cell["outputs"])
        alt = cell["metadata"].get("alt", "")
        assert (len(alt.split()) >= 4 and alt.endswith(".")) if shows else not alt, "".join(cell["source"])


@each_notebook
def test_it_reads_one_idea_a_cell(path: Path) -> None:
    """Words stand before code; cells are short; a line holds one statement, which assigns one value."""
    notebook, code = read(path)
    for cell in notebook["cells"]:
        assert all(len(line.rstrip("\n")) <= LONGEST_LINE for line in cell["source"]), "".join(cell["source"])
    assert notebook["cells"][0]["cell_type"] == "markdown"
    for before, cell in itertools.pairwise(notebook["cells"]):
        if cell["cell_type"] == "code" and "checks" not in tags(cell):
            assert before["cell_type"] == "markdown", "no words before: " + "".join(cell["source"])
    for cell in code:
        source = "".join(cell["source"])
        assert sum(line.strip() != "" for line in cell["source"]) <= MOST_LINES, source
        assert "# noqa" not in source and "# fmt:" not in source, source
        statements = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.stmt)]
        assert len({node.lineno for node in statements}) == len(statements), "two statements on a line: " + source
        assert not any(assigns_several_values(node) for node in statements), source


@each_notebook
def test_its_assertions_are_in_folded_cells(path: Path) -> None:
    """Each checks cell is folded, shows nothing and asserts; no other cell asserts."""
    _, cells = read(path)
    assert sum("parameters" in tags(cell) for cell in cells) == 1
    assert any("checks" in tags(cell) for cell in cells)
    for cell in cells:
        checks = "checks" in tags(cell)
        assert asserts("".join(cell["source"])) == checks, "".join(cell["source"])
        assert not checks or (cell["metadata"] == FOLDED and not cell["outputs"]), cell["metadata"]


def tags(cell: dict[str, Any]) -> list[str]:
    """The tags of a cell."""
    return cell["metadata"].get("tags", [])


def assigns_several_values(statement: ast.stmt) -> bool:
    """Tell `a = b = 1` and `a, b = 1, 2`; `a, b = f(x)`, which unpacks one result, is not meant."""
    if not isinstance(statement, ast.Assign):
        return False
    unpacked = isinstance(statement.targets[0], ast.Tuple) and isinstance(statement.value, ast.Tuple)
    return len(statement.targets) > 1 or unpacked


def asserts(source: str) -> bool:
    """Tell whether code contains an assert statement or a call like `np.testing.assert_allclose(...)`."""
    return any(
        isinstance(node, ast.Assert) or (isinstance(node, ast.Attribute) and node.attr.startswith("assert_"))
        for node in ast.walk(ast.parse(source))
    )


def test_the_readme_s_gallery_is_the_notebooks_own() -> None:
    """Each picture is in its notebook's committed outputs, and links there."""
    shown = runpy.run_path(str(ROOT / "notebooks" / "gallery.py"))["gallery"]()
    readme = (ROOT / "README.md").read_text()
    assert len(shown) == 6
    for name, picture in shown.items():
        assert (ROOT / "notebooks" / "gallery" / f"{name}.png").read_bytes() == picture, (
            "stale: python notebooks/gallery.py"
        )
        assert f"(notebooks/gallery/{name}.png)](notebooks/{name}.ipynb)" in readme


def test_the_asserted_statements_can_fail() -> None:
    """A score of the wrong sign in the library's place is noticed by the first notebook's own assertions."""
    _, cells = read(NOTEBOOKS[0])
    first_checks = next(i for i, cell in enumerate(cells) if "checks" in tags(cell))
    source = "\n".join("".join(cell["source"]) for cell in cells[: first_checks + 1])
    assert "= np.asarray(target.score(points))" in source
    with pytest.raises(AssertionError):
        exec(compile(source.replace("target.score(points)", "-target.score(points)"), "broken", "exec"), {})
