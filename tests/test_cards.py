"""Model cards: what they say is found again by scoring the files, and they can be made again."""

import json

import pytest
import torch

import qsr
from qsr.cli import main
from qsr.models import zoo
from qsr.paper import cards

NAME = "quantsr-c-x2-w4a4"


@pytest.fixture
def card(tmp_path, monkeypatch):
    """A zoo of one tiny network of two depths. Gives the path of its card, with scores."""
    monkeypatch.setattr(zoo, "FOLDER", tmp_path / "zoo")
    torch.manual_seed(0)
    net = qsr.QuantSR(qsr.quantsr_c(2, 4, blocks=2, depths=(2, 1), features=4))
    qsr.calibrate(net, torch.rand(1, 3, 16, 16))
    (tmp_path / "zoo").mkdir()
    qsr.save(tmp_path / "trained.qsr", net)
    call = ["pack", tmp_path / "trained.qsr", zoo.FOLDER / f"{NAME}.qsr", "--card", "by hand"]
    assert main([*map(str, call), "--sets", "embedded"]) == 0
    return zoo.FOLDER / f"{NAME}.json"


def test_a_card_is_what_its_file_scores_and_a_changed_number_is_seen(card):
    lines = list(cards.again([NAME]))
    assert [(x.blocks, x.set, x.difference) for x in lines] == [
        (2, "embedded", 0),
        (1, "embedded", 0),
    ]
    contents = json.loads(card.read_text())
    contents["scores"]["1"]["embedded"][0] += 0.25
    card.write_text(json.dumps(contents))
    lines = list(cards.again([NAME]))
    assert [x.difference for x in lines] == [0, -0.25]
    assert "2 scores, at most 0.250 dB apart" in cards.text(lines)


def test_a_card_that_is_written_again_is_the_one_that_packing_wrote(card):
    before = json.loads(card.read_text())
    changed = before | {"scores": {"1": {"embedded": [1, 1]}}, "packed_minus_trained": {}}
    card.write_text(json.dumps(changed))
    assert main(["reproduce", "cards", "--write"]) == 0
    after = json.loads(card.read_text())
    assert after.pop("packed_minus_trained")["embedded"] == pytest.approx(
        before.pop("packed_minus_trained")["embedded"], abs=1e-4
    ), "unpacked weights are those of training, to a rounding"
    assert after == before


def test_a_card_loses_no_set(card, monkeypatch, capsys):
    contents = json.loads(card.read_text())
    contents["scores"]["2"]["Set5"] = [30, 0.9]
    card.write_text(json.dumps(contents))
    monkeypatch.delenv("QSR_DATA", raising=False)
    before = card.read_bytes()
    assert [x.set for x in cards.again([NAME])] == ["embedded", "embedded"], "what is here"
    capsys.readouterr()  # progress
    for sets, says in ([], "needs Set5"), (["--sets", "embedded"], "has Set5 too"):
        assert main(["reproduce", "cards", "--write", *sets]) == 2
        error = capsys.readouterr().err
        assert says in error and error.count("\n") == 1
    assert card.read_bytes() == before


def test_the_command_prints_a_table_or_json_and_knows_its_models(card, capsys):
    call = ["reproduce", "cards", "--rows", "quantsr-*", "--sets", "embedded"]
    assert main(call) == 0
    assert f"| {NAME} | 2      | embedded |" in capsys.readouterr().out
    assert main([*call, "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [(row["blocks"], row["difference"]) for row in rows] == [(2, 0), (1, 0)]
    assert main(["reproduce", "cards", "--rows", "srresnet-*"]) == 2
    error = capsys.readouterr().err
    assert f"there are {NAME}." in error and error.count("\n") == 1


@pytest.mark.parametrize("name", zoo.names())
def test_the_cards_that_come_with_qsr_are_what_their_files_score_here(name):
    """With the fewest blocks, on the pictures that come with it. Another processor sums in another
    order, and some codes flip."""
    blocks = min(zoo.card(name)["depths"])
    said, _ = zoo.card(name)["scores"][str(blocks)]["embedded"]
    found = qsr.evaluate(qsr.load(name), "embedded", blocks=blocks).psnr_y
    assert found == pytest.approx(said, abs=0.02)
