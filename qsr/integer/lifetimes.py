"""Places in memory for the values of a plan: as little memory as is needed at once.

A value lives from the first step that writes it to the last that reads it, both included, as a step
reads and writes at the same time. Two values may share memory if their lives do not overlap. Placed
by falling size, each into the smallest gap between those that live with it, they need on networks
like these no more than what lives at once (docs/plan.md has one worked out by hand).

One exception: a step that adds a map to its lanes, or multiplies by it, and is the last to read it,
may write its floats over it, number by number. Such a pair is one value here.

`check` looks at every pair, so that no cleverness above can hand out memory twice.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from .plan import Plan, Value

ALIGNMENT = 64  # bytes; of whole vectors and cache lines
TILE = 4  # kMapTile of csrc/network/conv.h


@dataclass(frozen=True)
class Life:
    """first, last: steps, both included."""

    first: int
    last: int
    bytes: int

    def meets(self, other: Life) -> bool:
        """Whether both live during some step."""
        return self.first <= other.last and other.first <= self.last


def place(lives: Sequence[Life]) -> tuple[list[int], int]:
    """Offsets in bytes, and how many bytes are needed.

    >>> place([Life(0, 1, 100), Life(1, 2, 64), Life(2, 3, 10)])
    ([0, 128, 0], 192)
    """
    offsets = [0] * len(lives)
    placed: list[int] = []
    for i in sorted(range(len(lives)), key=lambda i: (-lives[i].bytes, lives[i].first)):
        needed = _aligned(lives[i].bytes)
        taken = sorted(
            (offsets[j], offsets[j] + _aligned(lives[j].bytes))
            for j in placed
            if lives[j].meets(lives[i])
        )
        gaps, end = [], 0
        for begin, until in taken:
            if begin - end >= needed:
                gaps.append((begin - end, end))
            end = max(end, until)
        offsets[i] = min(gaps)[1] if gaps else end
        placed.append(i)
    check(lives, offsets)
    return offsets, max(
        (o + _aligned(x.bytes) for o, x in zip(offsets, lives, strict=True)), default=0
    )


def check(lives: Sequence[Life], offsets: Sequence[int]) -> None:
    """Raises ValueError if two values that live together share a byte."""
    for i, (a, at) in enumerate(zip(lives, offsets, strict=True)):
        for j in range(i):
            b, bt = lives[j], offsets[j]
            if a.meets(b) and at < bt + b.bytes and bt < at + a.bytes:
                raise ValueError(f"values {j} and {i} share memory while both are needed.")


def _aligned(size: int) -> int:
    return -(-size // ALIGNMENT) * ALIGNMENT


# Of a plan ----------------------------------------------------------------------------------------


def value_bytes(value: Value, size: tuple[int, int]) -> int:
    """Bytes of a map of this height and width. Codes of a picture lie in a frame that also fills
    its last tile (`Frame::around` of csrc/network/conv.h).
    """
    height, width = size
    if value.kind == "float":
        return 4 * height * width * value.channels
    (above, beside), tiles = value.frame, [-(-n // TILE) * TILE for n in size]
    return (tiles[0] + 2 * above) * (tiles[1] + 2 * beside) * value.channels


def in_place(plan: Plan) -> dict[int, int]:
    """{value: the one over which it is written}, of values that have a place in the workspace."""
    outside = {*range(len(plan.inputs)), *(value for _, value in plan.outputs)}
    last = {v: i for i, step in enumerate(plan.steps) for v in step.reads()}
    over: dict[int, int] = {}
    for i, step in enumerate(plan.steps):
        if step.out is None or step.out in outside:
            continue
        for v in step.reads()[1:]:
            if v not in outside and last[v] == i and step.reads().count(v) == 1:
                a, b = plan.values[v], plan.values[step.out]
                if (a.channels, a.size) == (b.channels, b.size):
                    over[step.out] = v
                    break
    return over


def places(plan: Plan, inputs: Sequence[tuple[int, int]]) -> tuple[list[int], int]:
    """(offset of each value, bytes of the workspace) for inputs of these heights and widths.

    Inputs and outputs have no place in it: -1.
    """
    outside = {*range(len(plan.inputs)), *(value for _, value in plan.outputs)}
    over = in_place(plan)

    def home(value: int) -> int:
        while value in over:
            value = over[value]
        return value

    spans: dict[int, list[int]] = {}
    for i, step in enumerate(plan.steps):
        for v in (*step.writes(), *step.reads()):
            if v not in outside:
                spans.setdefault(home(v), []).append(i)
    homes = list(spans)
    lives = [
        Life(
            min(spans[v]),
            max(spans[v]),
            value_bytes(plan.values[v], plan.values[v].size.of(inputs)),
        )
        for v in homes
    ]
    offsets, total = place(lives)
    at = dict(zip(homes, offsets, strict=True))
    return [-1 if v in outside else at.get(home(v), -1) for v in range(len(plan.values))], total
