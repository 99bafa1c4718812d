"""Some cases of tests/fuzz.py for each reader: damaged files are told in a line, at once, and nothing else happens."""

from pathlib import Path

import pytest

from tests.fuzz import READERS, run_case

CASES = 30


@pytest.mark.parametrize("reader", READERS)
def test_only_a_line_leaves_a_reader(reader: str, tmp_path: Path) -> None:
    read = [run_case(reader, 1, case, tmp_path / "case") for case in range(CASES)]
    assert any(read)  # some damage is none
