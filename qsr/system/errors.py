"""What errors say, in one line."""

from __future__ import annotations


def first_line(error: object) -> str:
    r"""The first line of an error's message, or its kind if it has none.

    >>> first_line(ValueError("a reason\nand more")), first_line(ValueError())
    ('a reason', 'ValueError')
    """
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
