"""Table 1: the printed digits hang together, and ours stands beside its own network only."""

import itertools
import json

import pytest
import torch
from PIL import Image

import qsr
from qsr.images.data import textures
from qsr.models import zoo
from qsr.models.zoo import write_card
from qsr.paper import records, table1, table2
from qsr.paper.table1 import MISPRINTS, TABLE1, chosen_rows, intended, lines, measure
from qsr.paper.table1_report import as_json, empty_cells, markdown, misprints, text

NAME = "quantsr-c-x4-w4a4"
GOOD = {"psnr_y": 32.2, "gained_in_last_fifth": 0.01}


def networks():
    """The rows of each network, deepest first."""
    for name, rows in itertools.groupby(TABLE1, key=lambda row: row.name):
        yield name, list(rows)


def record(name, blocks, psnr, depths=None, **changes):
    """A record as `make_record` would write it, with psnr at the deepest depth and 1 dB less at
    each below it."""
    depths = depths or [blocks]
    return {
        "name": name,
        "network": {"blocks": blocks},
        "data": ["T91"],
        "steps": 100,
        "validation": GOOD,
        "scores": [
            {"blocks": depth, "set": "Set5", "psnr_y": psnr - i, "ssim_y": 0.9}
            for i, depth in enumerate(depths)
        ],
        **changes,
    }


def compared(*made):
    """The lines of the whole table with these records alone, no model."""
    known = {made["name"]: made for made in made}
    return lines(TABLE1, measure(TABLE1, known, here=False), known)


def line_of(table, name, blocks, of):
    (line,) = [x for x in table if (x.name, x.blocks, x.of) == (name, blocks, of)]
    return line


@pytest.fixture
def no_models(tmp_path, monkeypatch):
    monkeypatch.setattr(zoo, "FOLDER", tmp_path)


# What is printed ----------------------------------------------------------------------------------


def test_the_table_has_all_rows_of_both_scales():
    assert len(TABLE1) == 2 * 15
    assert [row.blocks for row in TABLE1 if row.name == NAME] == [32, 16, 8]
    assert {row.of for row in TABLE1 if row.name == NAME} == {32}
    for row in TABLE1:
        assert tuple(row.cells) == records.TEST_SETS
        digits = {(len(psnr), len(ssim)) for psnr, ssim in row.cells.values()}
        assert digits == {(5, 6)}, row


def test_only_the_misprinted_cells_rise_where_blocks_are_taken_away():
    """In every network fewer blocks have fewer decibels on every set, but for 28.37 and 27.41."""
    rising = {
        (less.name, less.blocks, s)
        for _, rows in networks()
        for more, less in itertools.pairwise(rows)
        for s in records.TEST_SETS
        for i in (0, 1)
        if float(less.cells[s][i]) >= float(more.cells[s][i])
    }
    assert rising == set(MISPRINTS)


def test_misprints_put_right_restore_the_order():
    *_, two, one = (row for row in TABLE1 if row.name == "quantsr-t-x4-w4a4")
    assert (two.blocks, one.blocks) == (2, 1)
    assert intended(one, "B100") == (27.41, 0.7301) < intended(two, "B100")
    assert intended(one, "Urban100") == (None, 0.7687), "lost, and not to be guessed"
    assert one.cells["Urban100"][0] == "27.41", "printed digits stay as they are"


def test_table_2_repeats_the_psnr_of_set5_at_x4():
    printed = {(row.name, row.blocks): row.cells["Set5"][0] for row in TABLE1}
    names = {
        "SRResNet": "srresnet-x4",
        "SwinIR_S": "swinir-s-x4",
        "QuantSR-C": "quantsr-c-x4-w{0}a{0}",
        "QuantSR-T": "quantsr-t-x4-w{0}a{0}",
    }
    for row in table2.TABLE2:
        assert printed[names[row.method].format(row.bits), row.blocks] == row.psnr_table1


def test_rows_are_chosen_by_name_or_pattern():
    assert {row.name for row in chosen_rows(["*-x2-w2a2"])} == {
        "quantsr-c-x2-w2a2",
        "quantsr-t-x2-w2a2",
    }
    assert chosen_rows() == TABLE1
    with pytest.raises(ValueError, match="no row of Table 1 is called 'quantsr-c'"):
        chosen_rows(["quantsr-c"])


# What is ours -------------------------------------------------------------------------------------


def test_without_models_and_records_every_row_says_why_it_is_empty(no_models):
    table = compared()
    assert all(line.ours is None and line.why for line in table)
    assert {line.why for line in table} == {
        "not run: our compute went to other rows first",
        "no data: set QSR_DATA",
    }


def test_a_record_is_compared_with_the_row_of_its_own_network(no_models):
    table = compared(record(NAME, 32, 32.1, depths=[32, 16, 8]))
    for blocks, difference in ((32, -0.07), (16, -0.90), (8, -1.65)):
        line = line_of(table, NAME, blocks, 32)
        assert line.difference("Set5")[0] == pytest.approx(difference)
        assert line.difference("B100") is None
    assert len(table) == len(TABLE1)


def test_8_blocks_of_16_do_not_pass_for_8_of_32(no_models):
    table = compared(record(NAME, 16, 31.0, depths=[16, 8]))
    for blocks in (32, 16, 8):
        line = line_of(table, NAME, blocks, 32)
        assert line.ours is None
        assert line.why == "not run: our network has 16 blocks, see below"
    own = line_of(table, NAME, 8, 16)
    assert own.printed is None and own.difference("Set5") is None
    assert own.label == "QuantSR-C 4/4, 8 of 16 blocks"
    position = table.index(line_of(table, NAME, 8, 32))
    assert table[position + 1 : position + 3] == [line_of(table, NAME, 16, 16), own]


def test_another_quantizer_has_a_line_of_its_own(no_models):
    table = compared(record(f"{NAME}-pams", 32, 31.5))
    line = line_of(table, f"{NAME}-pams", 32, 32)
    assert line.printed is None and line.label == "PAMS (C) 4/4, 32 blocks"
    assert line_of(table, NAME, 32, 32).why == "not run: our compute went to other rows first"


def test_a_misprint_that_is_lost_has_no_difference(no_models):
    made = record("quantsr-t-x4-w4a4", 4, 31.0, depths=[1])
    made["scores"] += [
        {"blocks": 1, "set": s, "psnr_y": 27.0, "ssim_y": 0.7} for s in ("B100", "Urban100")
    ]
    line = line_of(compared(made), "quantsr-t-x4-w4a4", 1, 4)
    assert line.difference("Urban100") is None
    assert line.difference("B100")[0] == pytest.approx(27.0 - 27.41)


# The gap to full precision ------------------------------------------------------------------------

FULL = record("srresnet-x4", 16, 31.5)


def gap(full, **changes):
    table = compared(record(NAME, 32, 31.2, **changes), full)
    return line_of(table, NAME, 32, 32).gaps.get("Set5")


def test_the_gap_is_to_our_own_full_precision_of_the_same_pictures(no_models):
    found = gap(FULL)
    assert found.psnr == pytest.approx(0.3) and found.counts
    assert gap(FULL, data=["T91", "General100"]) is None
    assert gap(FULL | {"data": None}) is None
    assert gap(record("swinir-s-x4", 4, 31.5)) is None, "C is compared with SRResNet"


@pytest.mark.parametrize(
    "change",
    [
        {"steps": 99},
        {"validation": None},
        {"validation": {"psnr_y": 32.2, "gained_in_last_fifth": 0.02}},
    ],
)
def test_a_gap_to_full_precision_that_was_not_trained_to_its_end_does_not_count(no_models, change):
    assert not gap(FULL | change).counts


def test_the_gap_does_not_depend_on_which_rows_are_asked_for(no_models):
    known = {made["name"]: made for made in (record(NAME, 32, 31.2), FULL)}
    rows = chosen_rows([NAME])
    (deepest, *_) = lines(rows, measure(rows, known, here=False), known)
    assert deepest.gaps["Set5"].psnr == pytest.approx(0.3)


def test_the_paper_s_own_gap_stands_beside_ours(no_models):
    body = text(compared(record(NAME, 32, 31.2, depths=[16]), FULL))
    (printed,) = [x for x in body.splitlines() if x.startswith("  below it in the paper")]
    assert printed.split()[5:] == ["0.16", "0.10", "0.06", "0.23", "0.31"]


# Models -------------------------------------------------------------------------------------------


@pytest.fixture
def model(no_models):
    """A tiny packed network under a name that Table 1 knows, with a card."""
    net = qsr.QuantSR(qsr.quantsr_c(2, 4, blocks=2, depths=(2, 1), features=4))
    qsr.calibrate(net, torch.rand(1, 3, 16, 16))
    packed, path = qsr.pack(net), zoo.FOLDER / "quantsr-c-x2-w4a4.qsr"
    qsr.save(path, packed)
    scores = qsr.Scores(36.654, 0.9543, ("a",), (36.6,), (0.95,), 1.0)
    write_card(path, packed, "0 steps", {2: {"Set5": scores}, 1: {"Set5": scores}}, {})
    return packed


def test_without_pictures_a_model_s_card_is_believed_and_marked(model, monkeypatch):
    monkeypatch.delenv("QSR_DATA", raising=False)
    (deep, shallow) = measure(chosen_rows(["quantsr-c-x2-w4a4"]), {})
    assert (deep.blocks, deep.of, shallow.blocks) == (2, 2, 1)
    assert deep.cells == {"Set5": table1.Score(36.654, 0.9543, "card")}
    body = text(lines(chosen_rows(["quantsr-c-x2-w4a4"]), [deep, shallow], {}))
    assert "36.65/0.9543*" in body and "no data" in body


def test_where_the_pictures_are_the_packed_file_is_scored(model, tmp_path, monkeypatch):
    folder = tmp_path / "data" / "eval" / "Set5" / "HR"
    folder.mkdir(parents=True)
    Image.fromarray(textures(48)["noise"].permute(1, 2, 0).numpy()).save(folder / "a.png")
    monkeypatch.setenv("QSR_DATA", str(tmp_path / "data"))
    found = measure(chosen_rows(["*-x2", "quantsr-c-x2-w4a4"]), {})
    scores = {(m.name, m.blocks): m.cells["Set5"] for m in found}
    expected = qsr.evaluate(model, "Set5", blocks=1)
    assert scores["quantsr-c-x2-w4a4", 1].psnr == expected.psnr_y
    assert scores["bicubic-x2", None].origin == "measured"


def test_a_model_is_preferred_to_its_record_which_tells_how_it_was_trained(model, monkeypatch):
    monkeypatch.delenv("QSR_DATA", raising=False)
    known = {"quantsr-c-x2-w4a4": record("quantsr-c-x2-w4a4", 2, 30.0, depths=[2, 1])}
    (deep, _) = measure(chosen_rows(["quantsr-c-x2-w4a4"]), known)
    assert deep.cells["Set5"].origin == "card" and deep.steps == 100 and deep.data == ("T91",)
    other = {"quantsr-c-x2-w4a4": record("quantsr-c-x2-w4a4", 32, 30.0)}
    found = measure(chosen_rows(["quantsr-c-x2-w4a4"]), other)
    assert [(m.of, m.steps) for m in found] == [(2, None), (2, None), (32, 100)]


SMALLEST = min(zoo.names(), key=lambda name: zoo.card(name)["bytes"])


def test_the_smallest_model_scores_what_its_card_says_to_the_last_digit():
    depth, believed = list(zoo.card(SMALLEST)["scores"].items())[-1]
    scores = qsr.evaluate(qsr.load(SMALLEST), "embedded", blocks=int(depth))
    assert [round(scores.psnr_y, 3), round(scores.ssim_y, 4)] == believed["embedded"]


def test_real_test_pictures_give_the_printed_card(qsr_data):
    depth, believed = list(zoo.card(SMALLEST)["scores"].items())[-1]
    scores = qsr.evaluate(qsr.load(SMALLEST), "Set5", blocks=int(depth))
    assert [round(scores.psnr_y, 3), round(scores.ssim_y, 4)] == believed["Set5"]


# Writing ------------------------------------------------------------------------------------------


def test_the_text_fits_a_wide_terminal_and_holds_every_printed_cell():
    body = text(table1.table1(here=False))
    assert max(map(len, body.splitlines())) <= 110
    for row in TABLE1:
        for psnr, ssim in row.cells.values():
            assert f"{psnr}/{ssim}" in body
    assert "28.37/0.7301!" in body and "27.41/0.7687!" in body


def test_the_markdown_has_a_cell_of_ours_for_every_printed_one_and_says_why_it_is_empty(no_models):
    table = compared(record(NAME, 16, 31.0))
    rows = [x for x in markdown(table).splitlines() if x.startswith("|") and "---" not in x]
    assert {row.count("|") for row in rows} == {8}
    printed = [row for row in rows if "| printed |" in row]
    assert len(printed) == len(TABLE1)
    assert sum("| ours" in row for row in rows) == len(TABLE1) + 1
    for reason in empty_cells(table):
        assert f"{reason[1:]}." in markdown(table)
    assert any("not run, our network has 16 blocks" in reason for reason in empty_cells(table))


def test_ours_say_steps_pixels_minutes_device_seed_and_start(no_models):
    run = {"patch": 24, "batch": 8, "seed": 1, "seconds": 600, "device": "a CPU, 1 thread"}
    table = compared(record(NAME, 32, 32.1, depths=[32, 16], init="srresnet-x4", **run))
    said = (
        "QuantSR-C 4/4 x4, 32 blocks: 100 steps, 0.5 million lr pixels, 10 minutes on a CPU, 1 "
        "thread, seed 1, from srresnet-x4."
    )
    assert said in " ".join(text(table).split())
    assert markdown(table).count(f"- {said}") == 1, "once for all depths"
    (row, *_) = [r for r in json.loads(as_json(table))["rows"] if r["training"]]
    assert row["training"] == {**run, "steps": 100, "init": "srresnet-x4", "teacher": None}


def test_misprints_are_explained_where_their_row_is_shown():
    assert len(misprints(table1.table1(here=False))) == len(MISPRINTS)
    assert misprints(table1.table1(["srresnet-x4"], here=False)) == []
    assert "Misprints" not in text(table1.table1(["srresnet-x4"], here=False))


def test_the_json_holds_printed_digits_ours_and_what_is_missing(no_models):
    data = json.loads(as_json(compared(record(NAME, 32, 32.1), FULL)))
    (row,) = [r for r in data["rows"] if (r["name"], r["blocks"]) == (NAME, 32)]
    cell = row["sets"]["Set5"]
    assert cell["printed"] == ["32.17", "0.8943"] and cell["ours"] == [32.1, 0.9]
    assert cell["origin"] == "record" and cell["difference"][0] == pytest.approx(-0.07)
    assert cell["below_full_precision"]["psnr"] == pytest.approx(-0.6)
    assert cell["paper_below_full_precision"] == pytest.approx(-0.01)
    assert row["sets"]["Urban100"]["origin"] == "no data"
    (row,) = [r for r in data["rows"] if (r["name"], r["blocks"]) == ("quantsr-t-x4-w4a4", 1)]
    assert row["sets"]["B100"]["misprint"]["psnr"] == "27.41"
    assert row["sets"]["Set5"]["origin"] == "not run"
