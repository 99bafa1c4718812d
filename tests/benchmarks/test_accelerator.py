"""The frame of benchmarks/accelerator.py: a part that fails or runs too long is told, and what it measured is kept."""

import argparse
import textwrap
from pathlib import Path

import pytest

from benchmarks import accelerator

KEEP = "import json; open('{out}/{name}.json', 'w').write(json.dumps({{'rows': {{'a': '1'}}, 'device': 'd'}})); "


def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, then: str, seconds: float) -> dict:
    """Run a part that keeps one row and then does `then`, in place of a part of ours."""
    folder = tmp_path / "benchmarks" / "on_accelerator"
    folder.mkdir(parents=True)
    for package in (folder.parent, folder):
        (package / "__init__.py").touch()
    (folder / "checks.py").write_text(textwrap.dedent(KEEP.format(out=tmp_path, name="checks") + then))
    monkeypatch.setattr(accelerator, "ROOT", tmp_path)
    monkeypatch.setattr(accelerator, "GRACE", 0.5)
    args = argparse.Namespace(out=tmp_path, data=tmp_path, tiny=True)
    return accelerator.run_part("checks", seconds, args, tmp_path)


def test_a_part_that_ends_has_its_rows_and_no_failure(tmp_path, monkeypatch):
    found = run(tmp_path, monkeypatch, "", 20)
    assert found["rows"] == {"a": "1"} and "failed" not in found


def test_a_part_that_fails_is_reported_and_keeps_its_rows(tmp_path, monkeypatch):
    found = run(tmp_path, monkeypatch, "raise SystemExit('no such device')", 20)
    assert found["rows"] == {"a": "1"} and "status 1" in found["failed"] and "no such device" in found["failed"]
    page = accelerator.markdown({"checks": {**found, "command": "python x"}})
    assert "It ended with status 1" in page and "| a | 1 |" in page


def test_a_part_that_does_not_end_is_stopped_with_what_it_started(tmp_path, monkeypatch):
    child = "import subprocess, sys, time; subprocess.run([sys.executable, '-c', 'import time; time.sleep(60)'])"
    found = run(tmp_path, monkeypatch, child, 1.0)
    assert "was stopped" in found["failed"] and found["rows"] == {"a": "1"} and found["seconds"] < 20


def test_a_missing_package_is_named(monkeypatch, capsys):
    monkeypatch.setattr(accelerator, "NEEDED", ("numpy", "no-such-package"))
    assert accelerator.missing() == ["no-such-package"]
    monkeypatch.setattr("sys.argv", ["accelerator.py", "--wheels"])
    assert accelerator.main() == 0 and capsys.readouterr().out == "no-such-package\n"
