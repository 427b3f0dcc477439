"""Models on photographs that training held out: measured once for each file, shown from records."""

import json

import pytest
import torch

import qsr
from qsr.cli import main
from qsr.images.data import make_pair, textures
from qsr.models import zoo
from qsr.models.zoo import write_card
from qsr.paper import heldout
from qsr.paper.heldout import HELD_OUT

NAME = "quantsr-c-x2-w4a4"


@pytest.fixture
def model(tmp_path, monkeypatch):
    """A zoo of one tiny network of two depths, and two pictures that are held out."""
    monkeypatch.setattr(zoo, "FOLDER", tmp_path / "zoo")
    (tmp_path / "zoo").mkdir()
    torch.manual_seed(0)
    net = qsr.QuantSR(qsr.quantsr_c(2, 4, blocks=2, depths=(2, 1), features=4))
    qsr.calibrate(net, torch.rand(1, 3, 16, 16))
    packed, path = qsr.pack(net), zoo.FOLDER / f"{NAME}.qsr"
    qsr.save(path, packed)
    write_card(path, packed, "0 steps", {}, {})

    def pictures(column, scale):
        made = textures(48)
        pair = [make_pair(name, made[name], scale) for name in ("noise", "star")]
        return pair if column == HELD_OUT else None

    monkeypatch.setattr(heldout, "pictures", pictures)
    monkeypatch.setattr(heldout, "can_measure", lambda: True)
    return packed


def test_every_depth_and_bicubic_are_measured_and_kept(model, tmp_path):
    written = [path.stem for path in heldout.complete(tmp_path / "results")]
    assert written == ["bicubic-x2", NAME, "bicubic-x4"]
    table = {(x.name, x.blocks): x.cells for x in heldout.lines(tmp_path / "results")}
    assert set(table) == {("bicubic-x2", None), (NAME, 2), (NAME, 1), ("bicubic-x4", None)}
    expected = qsr.evaluate(model, heldout.pictures(HELD_OUT, 2), blocks=1)
    psnr, ssim, count = table[NAME, 1][HELD_OUT]
    assert (psnr, ssim) == (round(expected.psnr_y, 5), round(expected.ssim_y, 6)) and count == 2
    assert list(heldout.complete(tmp_path / "results")) == [], "nothing is measured twice"


def test_scores_of_a_model_that_was_replaced_do_not_count(model, tmp_path):
    list(heldout.complete(tmp_path))
    card = zoo.FOLDER / f"{NAME}.json"
    card.write_text(json.dumps(json.loads(card.read_text()) | {"sha256": "another"}))
    (line,) = [x for x in heldout.lines(tmp_path) if x.name == NAME]
    assert line.cells == {} and line.why == "not measured since the model was replaced"
    assert line.why in heldout.text(tmp_path)


def test_a_set_that_is_not_here_is_no_data_and_a_network_without_record_not_measured(
    model, tmp_path
):
    assert heldout.text(tmp_path).count("| not measured") == 3
    list(heldout.complete(tmp_path))
    rows = [x for x in heldout.text(tmp_path).splitlines() if x.startswith("|")][2:]
    assert len(rows) == 4 and all(row.count("no data") == 2 for row in rows)
    assert "2 photographs, every tenth of" in heldout.text(tmp_path)


def test_the_command_prints_the_table_and_refuses_to_measure_without_pictures(
    tmp_path, monkeypatch, capsys
):
    monkeypatch.delenv("QSR_DATA", raising=False)
    call = ["reproduce", "heldout", "--results", str(tmp_path)]
    assert main(call) == 0
    assert "SRResNet 32/32 x4" in capsys.readouterr().out
    assert main([*call, "--json"]) == 0
    names = {row["name"] for row in json.loads(capsys.readouterr().out)}
    assert names == {"bicubic-x2", "bicubic-x4", *zoo.names()}
    assert main([*call, "--measure"]) == 2
    error = capsys.readouterr().err
    assert "QSR_DATA lacks one of BSDS500-test" in error and error.count("\n") == 1


def test_the_held_out_pictures_are_whole_and_none_that_patches_are_cut_from(qsr_data):
    if not heldout.can_measure():
        pytest.skip("QSR_DATA lacks training sets")
    held = {pair.name for pair in qsr.data.held_out("T91", 4, heldout.WHOLE, heldout.WHOLE)}
    sources = {p.name for p in qsr.data.pairs("T91", 4)}
    assert len(held) == len(sources) // 10
