"""benchmarks/training.py: its figures go to a file when one is asked for, and the committed ones stay."""

import json
import sys
from pathlib import Path

import pytest

from benchmarks import training
from tests.commands import ROOT


def test_figures_are_written_where_one_asks_and_nowhere_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    results = ROOT / "benchmarks" / "results"
    before = {path: path.read_bytes() for path in results.iterdir()}
    monkeypatch.setattr(training, "measure", lambda kind, dtype, args: {"kind": kind})
    monkeypatch.setattr(training, "show", lambda *what: None)
    command = ["training.py", "--networks=ddpmpp", "--dtypes=float32"]
    for more in ([], [f"--json={tmp_path / 'mine.json'}"]):
        monkeypatch.setattr(sys, "argv", [*command, *more])
        training.main()
    assert {path: path.read_bytes() for path in results.iterdir()} == before
    assert json.loads((tmp_path / "mine.json").read_text())["ddpmpp, float32"] == {"kind": "ddpmpp"}
