"""Memory for values that live at different times: never twice at once, and no more than needed."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qsr.integer.lifetimes import ALIGNMENT, Life, check, place


@st.composite
def lives(draw):
    first, length = draw(st.integers(0, 12)), draw(st.integers(0, 5))
    return Life(first, first + length, draw(st.integers(0, 5000)))


def most_at_once(given):
    """Bytes of the step at which most is alive."""
    up = [-(-life.bytes // ALIGNMENT) * ALIGNMENT for life in given]
    steps = range(max((life.last for life in given), default=0) + 1)
    return max(
        sum(n for life, n in zip(given, up, strict=True) if life.first <= s <= life.last)
        for s in steps
    )


@given(st.lists(lives(), max_size=30))
def test_values_that_live_together_never_share_a_byte(given):
    offsets, needed = place(given)
    check(given, offsets)
    assert all(at % ALIGNMENT == 0 for at in offsets)
    assert all(at + life.bytes <= needed for at, life in zip(offsets, given, strict=True))
    alive = most_at_once(given)
    assert alive <= needed <= max(2 * alive, alive + 5056 * 4)


@given(st.lists(st.integers(1, 5000), min_size=2, max_size=9))
def test_a_chain_needs_what_its_widest_step_does(sizes):
    chain = [Life(i, i + 1, size) for i, size in enumerate(sizes)]
    assert place(chain)[1] <= most_at_once(chain) + max(sizes) + ALIGNMENT


def test_what_shares_memory_while_both_are_needed_is_refused():
    check([Life(0, 1, 64), Life(2, 3, 64)], [0, 0])
    with pytest.raises(ValueError, match="values 0 and 1 share memory while both are needed"):
        check([Life(0, 1, 64), Life(1, 2, 64)], [0, 63])


def test_the_block_of_quantsr_c_needs_what_is_worked_out_in_docs_plan():
    floats, codes, picture = 4 * 128 * 128 * 64, 130 * 130 * 64, 4 * 130 * 130 * 3
    block = [
        Life(1, 4, floats),  # shallow
        Life(3, 4, floats),  # deep
        Life(1, 2, codes),  # of the stream
        Life(2, 3, codes),  # between
        Life(3, 4, codes),  # of the stream
        Life(0, 1, picture),
    ]
    assert place(block)[1] == most_at_once(block) == 2 * floats + 2 * codes
