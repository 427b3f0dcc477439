"""Depth plans are values: nested, and refused when they make no sense."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qsr import DepthPlan


@given(st.integers(1, 12).flatmap(lambda n: st.permutations(range(n))), st.data())
def test_plans_of_one_order_are_nested_and_count_their_blocks(order, data):
    count = data.draw(st.integers(1, len(order)))
    plan = DepthPlan.from_order(order, count)
    assert plan.count == count
    assert {i for i, runs in enumerate(plan.keep) if runs} == set(order[:count])
    smaller = DepthPlan.from_order(order, max(1, count - 1))
    assert all(large >= small for large, small in zip(plan.keep, smaller.keep, strict=True))


def test_plans_are_values():
    assert DepthPlan.from_order((1, 0), 2) == DepthPlan.full(2)
    assert len({DepthPlan.full(2), DepthPlan((True, True)), DepthPlan.full(3)}) == 2


@pytest.mark.parametrize(
    ("order", "count", "words"),
    [
        ((0, 0, 1), 1, "(0, 0, 1)"),
        ((1, 2, 3), 1, "0..2"),
        ((2, 1, 0), 0, "`count` is 0"),
        ((2, 1, 0), 4, "`count` is 4"),
    ],
)
def test_orders_and_counts_that_make_no_plan_are_refused(order, count, words):
    with pytest.raises(ValueError) as raised:
        DepthPlan.from_order(order, count)
    assert words in str(raised.value)
    assert "\n" not in str(raised.value)
