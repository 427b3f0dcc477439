"""A packed network of somebody's own, in a file, enlarges pictures as those of the zoo do."""

import peers
import pytest
import torch
from PIL import Image
from test_plan import packed, ready
from torch import nn

import qsr
from qsr import cli
from qsr.models.enlarger import Enlarger


class Doubled(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.shuffle = nn.Conv2d(3, 12, 3, padding=1), nn.PixelShuffle(2)

    def forward(self, x):
        return self.shuffle(self.conv(x))


NETWORKS = {
    "doubled": (Doubled, 2, 1, 1),
    "rlfn": (lambda: peers.RLFN(8, 4, 1), 4, 1, 15),
    "smfanet": (lambda: peers.SMFANet(8, 1), 4, 8, 8),
}


@pytest.fixture
def file(tmp_path):
    def make(net):
        path = tmp_path / "mine.qsr"
        qsr.save(path, net)
        return path

    return make


@pytest.mark.filterwarnings("ignore:quantize leaves")
@pytest.mark.parametrize("name", NETWORKS)
def test_what_a_network_wants_of_pictures_is_found_and_given(name, file):
    kind, scale, multiple, least = NETWORKS[name]
    net = ready(kind(), torch.rand(1, 3, 16, 16))
    model = Enlarger.of(qsr.load(file(net)), name)
    found = (model.config.scale, model.multiple, model.least)
    assert found == (scale, multiple, least)
    fits = torch.rand(1, 3, 24, 16)
    assert torch.equal(model(fits), net(fits))
    assert torch.equal(qsr.upscale(fits, model), net(fits).clamp(0, 1))
    for height, width in ((1, 1), (9, 30), (17, 11)):
        assert model(torch.rand(2, 3, height, width)).shape == (2, 3, scale * height, scale * width)
    with pytest.raises(ValueError, match="one depth"):
        qsr.upscale(fits, model, blocks=2)
    with pytest.raises(ValueError, match="`memory` is 1e-05 GB.* needs"):
        qsr.upscale(fits, model, memory=1e-5)


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("dncnn", r"it makes \[1, 3, 33, 35\]"),
        ("odds", "it does not take"),
        ("rows", "it does not"),
    ],
)
def test_what_enlarges_no_pictures_is_refused_in_one_line(name, why, file, tmp_path, capsys):
    path, picture = str(file(packed(name))), str(tmp_path / "a.png")
    Image.new("RGB", (7, 5)).save(picture)
    for command in (["upscale", picture, f"{picture}.png"], ["evaluate", "embedded"], ["bench"]):
        assert cli.main([*command, "--model", path]) == 2
        err = capsys.readouterr().err
        assert "does not enlarge pictures (" in err and err.count("\n") == 1
    with pytest.raises(ValueError, match=why):
        Enlarger.of(qsr.load(path), "it")


def test_commands_take_a_file_of_a_network_of_any_class(file, tmp_path, capsys):
    path = str(file(ready(Doubled(), torch.rand(1, 3, 9, 9))))
    (tmp_path / "set").mkdir()
    Image.new("RGB", (32, 24), "red").save(tmp_path / "set/a.png")
    Image.new("RGB", (7, 5), "red").save(tmp_path / "a.png")
    out = tmp_path / "b.png"
    assert cli.main(["upscale", str(tmp_path / "a.png"), str(out), "--model", path]) == 0
    assert Image.open(out).size == (14, 10)
    assert cli.main(["evaluate", str(tmp_path / "set"), "--model", path]) == 0
    call = ["bench", "--model", path, "--size", "16", "--rounds", "1"]
    assert cli.main([*call, "--peers", "none"]) == 0
    shown = capsys.readouterr().out
    assert "**mine**" in shown and "mine, layer by layer" in shown
    for refused, why in (
        ([*call, "--blocks", "3"], "this model has 1 to 1"),
        (["export", "--onnx", path, str(tmp_path / "m.onnx")], "takes a QuantSR"),
        (["pack", path, str(tmp_path / "m2.qsr")], "is packed already"),
        (["bench", "--model", path, "quantsr-c-x2-w4a4"], "timed alone"),
    ):
        assert cli.main(refused) == 2
        err = capsys.readouterr().err
        assert why in err and err.count("\n") == 1
