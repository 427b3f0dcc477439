"""Table 2: every printed cell is reproduced, or its deviation is named."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qsr.paper.table2 import EXPLANATIONS, TABLE2, judge, table2, table2_rows


@pytest.fixture(scope="module")
def rows():
    return tuple(table2_rows())


def verdicts(rows, column):
    return "".join(row.cells[column].verdict for row in rows)


def test_all_parameter_and_operation_cells_of_table_2_are_reproduced(rows):
    """Two cells of T agree cut short only: 71.05 K is printed as 71.0 and 50.27 K as 50.2."""
    assert verdicts(rows, "ops") == "=" * 14
    assert verdicts(rows, "parameters") == "=" * 10 + "~~" + "=="


def test_each_cell_that_deviates_is_explained_and_no_explanation_is_idle(rows):
    deviating = {
        (row.printed.method, row.printed.bits, row.printed.blocks, column)
        for row in rows
        for column, cell in row.cells.items()
        if cell.verdict == "!"
    }
    assert deviating == set(EXPLANATIONS)
    assert all(cell.why for row in rows for cell in row.cells.values() if cell.verdict == "!")


def test_the_honest_saving_of_the_body_alone_is_far_below_the_printed_one(rows):
    """16 blocks, 2 bits: 87.9 % printed; at x4 the float tail alone keeps it below 60 %."""
    row = next(r for r in rows if (r.printed.ops, r.printed.bits) == ("10.9", 2))
    assert row.saved["honest"][1] == pytest.approx(57.5, abs=0.05)
    assert row.saved["collapsed"][1] == pytest.approx(88.1, abs=0.05)


def test_the_text_fits_a_wide_terminal_and_shows_every_row(rows):
    lines = table2().splitlines()
    assert max(map(len, lines)) <= 110
    assert sum(line.startswith(("SRResNet", "SwinIR_S", "QuantSR")) for line in lines) == 4 * 14


def test_the_json_holds_the_printed_digits_and_all_rules():
    data = json.loads(table2(json=True))
    assert [row["ops"] for row in data["rows"]] == [row.ops for row in TABLE2]
    c16 = data["rows"][2]
    assert c16["rules"]["printed"]["parameters"] == 303_299
    assert set(c16["rules"]) == {"printed", "stated", "honest", "collapsed"}
    assert c16["cells"]["parameters"] == {
        "printed": "303",
        "ours": 303.299,
        "verdict": "=",
        "why": "",
    }


@settings(deadline=None)
@given(st.integers(0, 10**6), st.integers(0, 3))
def test_a_number_agrees_with_its_own_digits_and_not_with_the_ones_beyond_the_next(units, digits):
    step = 10.0**-digits
    text = f"{units * step:.{digits}f}"
    assert judge(text, units * step + 0.2 * step) == "="
    assert judge(text, units * step + 0.8 * step) == "~"
    assert judge(text, units * step + 1.2 * step) == "!"
    assert judge(text, units * step + 1.2 * step, recomputed=units * step + 0.1 * step) == "~"
