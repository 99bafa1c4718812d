"""Each mistake is told with its remedy: what to do, or what would have been right."""

import ast
import re
from collections.abc import Iterator

import pytest

from tests.commands import ROOT

TOLD = {
    "experiment": ("UserError", "Refused"),
    "sde_lib": ("ValueError", "RuntimeError"),
    "models": ("ValueError",),
}
# The remedy begins a clause: after a colon, a semicolon or a comma.
DO = (
    "add adjust ask attach build call cap choose convert correct crop decode delete divide drop flatten get give have"
    " install keep leave look loosen lower make mend move name number pack pass pick prepare put raise read remove"
    " replace resize restore save see set shorten spend start take train try undo unpack use wait wrap write"
).split()
REMEDY = re.compile(
    rf"(?:^|[:;,] )(?:or |and |so |then |do not )?(?:{'|'.join(DO)})\b"
    r"|did you mean|pip install|the keys are|\b(?:takes|needs?|makes) |\bare needed\b|\bmust [a-z]+|\bwas built for\b"
    r"|[;:] (?:there|they|these|the indices|labels|images|flags|it) (?:is of|is|are|count)\b"
)
# A remedy that is put in: it is written elsewhere, by sde_lib or models, or by a function.
PUT_IN = re.compile(r"(?:^|[:;)] ?|^\{\} )\{\}$")


def text_of(node: ast.expr) -> str:
    """The text, with {} for what is put in."""
    if isinstance(node, ast.Constant):
        return str(node.value)
    if isinstance(node, ast.JoinedStr):
        return "".join(map(text_of, node.values))
    return "{}"


def mistakes(source: str, told: tuple[str, ...]) -> Iterator[tuple[int, str]]:
    """(line, text) of each error that is told to the user."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in told and node.args:
            yield node.lineno, text_of(node.args[0])


def has_remedy(text: str) -> bool:
    return bool(REMEDY.search(text) or PUT_IN.search(text))


@pytest.mark.parametrize("package, least", {"experiment": 150, "sde_lib": 70, "models": 10}.items())
def test_each_mistake_is_told_with_its_remedy(package: str, least: int) -> None:
    found = [
        (path.relative_to(ROOT), line, text)
        for path in sorted((ROOT / package).rglob("*.py"))
        for line, text in mistakes(path.read_text(), TOLD[package])
    ]
    assert len(found) > least
    assert [f"{name}:{line}: {text}" for name, line, text in found if not has_remedy(text)] == []


def test_a_mistake_without_its_remedy_would_be_seen() -> None:
    source = 'raise UserError(f"cannot write {path} ({error.strerror}): choose another folder, or make room")'
    ((_, text),) = mistakes(source, TOLD["experiment"])
    assert text == "cannot write {} ({}): choose another folder, or make room" and has_remedy(text)
    for less in (": choose another folder, or make room", "choose another folder, or make room"):
        ((_, text),) = mistakes(source.replace(less, ""), TOLD["experiment"])
        assert not has_remedy(text)
