"""Numbers as text for a terminal: to the digits that matter, and in columns."""

from collections.abc import Sequence

WIDTH = 100  # columns of a terminal that a table may take


def number(value: float | None, digits: int = 3) -> str:
    """The value to so many significant digits; a dash where there is none."""
    if value is None:
        return "–"
    return f"{value:,.0f}" if abs(value) >= 10 ** (digits - 1) else f"{value:#.{digits}g}".rstrip(".")


def aligned(cells: Sequence[Sequence[str]]) -> list[str]:
    """A line for each row, its cells in columns: the names at the left, the rest to the right as numbers are."""
    widths = [max(len(line[i]) for line in cells) for i in range(len(cells[0]))]
    return [
        "  ".join([line[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(line[1:], widths[1:], strict=True))]).rstrip()
        for line in cells
    ]


def fitted(cells: Sequence[Sequence[str]], width: int = WIDTH) -> list[str]:
    """The lines of `aligned`, at most `width` wide: a wider table is turned on its side, in parts if need be."""
    lines = aligned(cells)
    if max(map(len, lines)) <= width:
        return lines
    names, *columns = cells
    found: list[str] = []
    while columns:
        shown = next((k for k in range(len(columns), 1, -1) if max(map(len, _turned(names, columns[:k]))) <= width), 1)
        found += ["", *_turned(names, columns[:shown])] if found else _turned(names, columns[:shown])
        columns = columns[shown:]
    return found


def _turned(names: Sequence[str], columns: Sequence[Sequence[str]]) -> list[str]:
    return aligned(list(zip(names, *columns, strict=True)))
