"""What errors say, in one line."""

from __future__ import annotations

import operator
from typing import Any


def first_line(error: object) -> str:
    r"""The first line of an error's message, or its kind if it has none.

    >>> first_line(ValueError("a reason\nand more")), first_line(ValueError())
    ('a reason', 'ValueError')
    """
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def floating(x: Any) -> Any:
    """The tensor `x` as it is, which a layer takes; TypeError where it holds whole numbers: PyTorch
    would refuse them too, and pictures of 0 to 255 would come out white.
    """
    if not x.is_floating_point():
        raise TypeError(
            f"the input is {x.dtype}; quantised and packed layers take floating point numbers. "
            "Divide 8-bit pictures by 255."
        )
    return x


def whole(name: str, value: Any) -> int:
    """`value` as an int: whatever stands for a whole number, so numpy's integers too.

    Raises TypeError for anything else, also for 4.0 and for True, which are numbers by accident.

    >>> whole("bits", 4)
    4
    """
    try:
        index = operator.index(value)
    except TypeError:
        index = None
    if index is None or isinstance(value, bool):
        raise TypeError(f"`{name}` is {value!r}; it is a whole number. Convert it with int().")
    return index
