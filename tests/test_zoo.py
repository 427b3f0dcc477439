"""The models that come with qsr: names, cards, checksums."""

import hashlib
import json

import pytest
import torch

import qsr
from qsr.config import preset
from qsr.models import zoo
from qsr.scores import Agreement, Scores

torch.set_num_threads(1)  # on small tensors threads only wait for each other

SCORES = {2: {"Set5": Scores(36.65432, 0.954321, ("a",), (36.6,), (0.95,), 1.0)}}
AGREEMENTS = {"Set5": Agreement(0.00012345, -0.0045678, 1.2345e-6)}


@pytest.fixture(scope="module")
def packed():
    torch.manual_seed(3)
    net = qsr.QuantSR(qsr.quantsr_c(2, (2, 4), blocks=2, features=4))
    qsr.calibrate(net, torch.rand(1, 3, 16, 16))
    return qsr.pack(net)


@pytest.fixture
def folder(tmp_path, monkeypatch, packed):
    """A zoo of two models, in place of the one that comes with qsr."""
    monkeypatch.setattr(zoo, "FOLDER", tmp_path)
    for name in ("second", "first"):
        qsr.save(tmp_path / f"{name}.qsr", packed)
        zoo.write_card(tmp_path / f"{name}.qsr", packed, "10 steps", SCORES, AGREEMENTS)
    return tmp_path


def refused(name):
    with pytest.raises(ValueError) as raised:
        qsr.load(name)
    assert "\n" not in str(raised.value)
    return str(raised.value)


def test_names_are_sorted_and_name_the_files(folder):
    assert zoo.names() == ("first", "second")
    assert zoo.path_of("first") == folder / "first.qsr"


def test_a_card_says_what_the_model_is_and_scores(folder):
    path = folder / "first.qsr"
    assert zoo.card("first") == {
        "name": "first",
        "scale": 2,
        "bits": "2/4",
        "depths": [2, 1],
        "bytes": path.stat().st_size,
        "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        "training": "10 steps",
        "scores": {"2": {"Set5": [36.654, 0.9543]}},
        "packed_minus_trained": {
            "Set5": {"mean_psnr": 0.000123, "worst_psnr": -0.00457, "flipped": 1.23e-06}
        },
    }


def test_a_name_and_a_path_load_the_same_network(folder, packed):
    lr = torch.rand(1, 3, 5, 7)
    for name in ("first", folder / "first.qsr", str(folder / "first.qsr")):
        model = qsr.load(name)
        assert isinstance(model, qsr.PackedModel) and not model.training
        assert torch.equal(model(lr), packed(lr))


def test_an_unknown_name_is_told_with_the_names_there_are(folder):
    message = refused("third")
    assert "'third'" in message and "first, second" in message and ".qsr" in message
    with pytest.raises(ValueError, match="first, second"):
        zoo.card("third")
    assert "does not exist" in refused("third.qsr")
    assert "does not exist" in refused("no/folder")


def test_an_empty_zoo_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr(zoo, "FOLDER", tmp_path)
    assert zoo.names() == () and "none" in refused("first")


def test_a_file_that_is_not_the_one_of_its_card_is_refused(folder, packed):
    """Also one that is sound in itself: another model under this name has other scores."""
    packed.network.block_order.copy_(torch.tensor([1, 0]))
    qsr.save(folder / "first.qsr", packed)
    assert "sha256" in refused("first")
    qsr.load(folder / "first.qsr")
    content = bytearray((folder / "second.qsr").read_bytes())
    content[-1] ^= 1
    (folder / "second.qsr").write_bytes(content)
    assert "sha256" in refused("second")


@pytest.mark.parametrize("text", [None, "", "{", "{}"])
def test_a_missing_or_damaged_card_is_told_in_one_line(folder, text):
    (folder / "first.json").unlink()
    if text is not None:
        (folder / "first.json").write_text(text)
    assert "Install qsr again" in refused("first")


def test_full_precision_is_kept_in_half_the_bytes_and_its_card_says_32_bits(folder):
    net = qsr.QuantSR(qsr.srresnet(2, blocks=2, features=4)).eval()
    qsr.save(folder / "full.qsr", net)
    whole = (folder / "full.qsr").stat().st_size
    qsr.save(folder / "full.qsr", net, half=True)
    zoo.write_card(folder / "full.qsr", net, "10 steps", SCORES, {})
    card, model = zoo.card("full"), qsr.load("full")
    assert card["bits"] == zoo.FULL and card["packed_minus_trained"] == {}
    assert card["bytes"] < 0.7 * whole  # the rest are names
    assert isinstance(model, qsr.QuantSR) and not model.training
    for name, value in net.state_dict().items():
        assert torch.equal(model.state_dict()[name], value.half().float())


# What comes with qsr ------------------------------------------------------------------------------


@pytest.mark.parametrize("name", zoo.names())
def test_a_model_that_comes_with_qsr_is_what_its_name_and_card_say(name):
    card, model = zoo.card(name), qsr.load(name)
    config, named = model.config, preset(name)
    assert (type(config), config.scale, config.bits) == (type(named), named.scale, named.bits)
    assert card["name"] == name and card["scale"] == config.scale
    assert tuple(card["depths"]) == config.depths
    assert card["bytes"] == zoo.path_of(name).stat().st_size < 5_000_000
    assert {"sha256", "training", "scores"} <= card.keys()
    sr = qsr.upscale(torch.rand(3, 5, 7), model)
    assert sr.shape == (3, 5 * config.scale, 7 * config.scale)
    json.dumps(card)


def test_there_is_a_model_for_each_scale():
    assert {zoo.card(name)["scale"] for name in zoo.names()} == {2, 4}
