"""Rows of a table by their names, or by patterns of names: `'*-x4*'`."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase


def fitting(names: Iterable[str], patterns: Sequence[str], refusal: str) -> list[str]:
    """The names that fit one of the patterns, each once and in their order; no pattern: all.

    refusal: what is said of a pattern that fits none, with places for {pattern} and {names}; raised
    as ValueError.

    >>> fitting(["srresnet-x2", "srresnet-x4"], ["*-x4"], "no {pattern}")
    ['srresnet-x4']
    """
    there = list(dict.fromkeys(names))
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in there):
            listed = ", ".join(there) or "none"
            raise ValueError(refusal.format(pattern=repr(pattern), names=listed))
    return [
        name
        for name in there
        if not patterns or any(fnmatchcase(name, pattern) for pattern in patterns)
    ]
