"""What a message shows of a name: one line, bounded, that no terminal obeys, however long or wild the name is."""

import time
from typing import Any

import pytest

from experiment.common.errors import LONGEST, UserError, choose, one_line, shown

WILD = {
    "escape sequences": ("a\x1b[2J\x1b]0;title\x07.png", r"a\x1b[2J\x1b]0;title\x07.png"),
    "line ends": ("a\nb\r\tc", r"a\nb\r\tc"),
    "text that runs backwards": ("gpj\u202egnp.exe", r"gpj\u202egnp.exe"),
    "bytes that are no text": (b"\xff.png".decode(errors="surrogateescape"), r"\udcff.png"),
    "other scripts": ("Приём 画像.png", "Приём 画像.png"),
}


@pytest.mark.parametrize("case", WILD)
def test_a_name_is_shown_escaped(case: str) -> None:
    name, escaped = WILD[case]
    assert shown(name) == escaped
    line = str(UserError(f"cannot read {name}: give another"))
    assert line.isprintable() and line.encode()
    assert case == "line ends" or escaped in line


def test_the_middle_of_what_is_too_long_is_left_out_and_the_remedy_stays() -> None:
    name = f"start{'x' * 10**7}end"
    assert shown(name).startswith("startx") and shown(name).endswith("xend") and len(shown(name)) == 200
    line = str(UserError(f"cannot read {name}: give another"))
    assert line.startswith("cannot read startx") and line.endswith("xend: give another") and len(line) == LONGEST
    with pytest.raises(UserError) as caught:
        choose({"vp": 0, "ve": 0}, name, "--sde")
    assert len(str(caught.value)) < 300 and str(caught.value).endswith("it must be one of: vp, ve")
    assert len(one_line(ValueError(name))) <= 200


def doubled(times: int) -> Any:
    value: Any = ()
    for _ in range(times):
        value = (value, value)
    return value


LARGE = {
    "doubled": doubled(60),
    "lists": [[[["x" * 10**6] * 10**4] * 9] * 9],
    "digits": 10**5000,
    "bytes": {"a": b"b" * 10**7},
}


@pytest.mark.parametrize("case", LARGE)
def test_a_value_is_shown_at_once_however_large(case: str) -> None:
    start = time.perf_counter()
    assert len(shown(LARGE[case])) <= 200
    assert time.perf_counter() - start < 1
