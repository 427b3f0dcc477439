"""Tables in letters: rows of cells as text for a terminal or as Markdown, and notes below them."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Iterator, Sequence


def text(rows: Iterable[Sequence[str]], widths: Sequence[int]) -> Iterator[str]:
    """The lines of a table: the first column flush left, the others flush right.

    widths: of the columns, in characters, the gap before each included. A row may be shorter.

    >>> list(text([("", "Set5", "B100"), ("bicubic", "33.66")], (9, 7, 7)))
    ['            Set5   B100', 'bicubic    33.66']
    """
    for label, *cells in rows:
        right = (f"{cell:>{width}}" for cell, width in zip(cells, widths[1:], strict=False))
        yield f"{label:{widths[0]}}{''.join(right)}".rstrip()


def markdown(
    heads: Sequence[object],
    rows: Iterable[Sequence[object]],
    right: int = 1,
    aligned: bool = False,
) -> str:
    """A table in Markdown. right: the column from which on cells are flush right. aligned: pad
    cells, so that it can also be read as text.

    >>> print(markdown(("set", "dB"), [("Set5", 33.66)], aligned=True))
    | set  |    dB |
    |------|------:|
    | Set5 | 33.66 |
    """
    lines = [[str(cell) for cell in cells] for cells in (heads, *rows)]
    dashes = [3] * len(heads)
    if aligned:
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        lines = [
            [f"{c:{'<' if i < right else '>'}{widths[i]}}" for i, c in enumerate(cells)]
            for cells in lines
        ]
        dashes = [width + 2 - (i >= right) for i, width in enumerate(widths)]
    rules = ["-" * n + ":" * (i >= right) for i, n in enumerate(dashes)]
    first, *rest = (f"| {' | '.join(cells)} |" for cells in lines)
    return "\n".join([first, f"|{'|'.join(rules)}|", *rest])


def notes(items: Iterable[str], width: int = 100) -> Iterator[str]:
    """Sentences as the lines of a list."""
    for item in items:
        yield from textwrap.wrap(f"- {item}", width, subsequent_indent="  ")
