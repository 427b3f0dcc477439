"""Depth plans: which blocks of a depth-dynamic network run.

QuantSR trains one set of weights at several depths. A depth is a value, not a state of the
network: `net(lr, plan)` is a pure function of its arguments. A block that a plan drops still
multiplies by its learned shortcut (that is what "skipped" means in the released code).

Plans made from one order are nested: the 8 blocks of the small network are among the 16 of the
middle one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class DepthPlan:
    """`keep[i]` says whether block i runs or only its shortcut does.

    >>> DepthPlan.from_order(order=(2, 0, 1), count=2)
    DepthPlan(keep=(True, False, True))
    >>> DepthPlan.full(3).count
    3
    """

    keep: tuple[bool, ...]

    @classmethod
    def full(cls, blocks: int) -> DepthPlan:
        """All blocks."""
        return cls((True,) * blocks)

    @classmethod
    def from_order(cls, order: Sequence[int], count: int) -> DepthPlan:
        """The `count` blocks that come first in `order` (block numbers, most valuable first).

        Raises ValueError if `order` is no permutation or `count` is not in 1..len(order).
        """
        if sorted(order) != list(range(len(order))):
            raise ValueError(
                f"`order` is {tuple(order)!r}; it must name each block 0..{len(order) - 1} once."
            )
        if not 1 <= count <= len(order):
            raise ValueError(
                f"`count` is {count!r}; this network has {len(order)} blocks. "
                f"Keep 1 to {len(order)} of them."
            )
        kept = set(order[:count])
        return cls(tuple(i in kept for i in range(len(order))))

    @property
    def count(self) -> int:
        """Number of blocks that run."""
        return sum(self.keep)
