"""Quality beside time: our networks and those in ONNX files, scored and timed alike."""

import json

import pytest
import torch
from test_plan import ready

import qsr
from qsr import cli
from qsr.bench import curve
from qsr.bench.engine import Timing
from qsr.export.onnx import onnx_model


def point(network, form, psnr, ms, note=""):
    column = "onnx" if "openvino" in form else "packed"
    return curve.Point(
        network, form, psnr, Timing(form, column, best_ms=ms, median_ms=ms, note=note)
    )


MACHINE = {"cpu": "a processor", "cores": "2", "features": "", "qsr": "0.1.0"}
POINTS = (
    point("ours", "32 blocks", 32.0, 47.0),
    point("ours", "8 blocks", 31.5, 15.0),
    point("small-w4a4", curve.PACKED, 31.9, 18.0),
    point("small", "openvino-fp32", 32.2, 36.0),
    point("small", "openvino-int8", 29.4, 20.0),
    point("small", "openvino-bf16", 32.2, None, "this processor has no bfloat16 arithmetic"),
)
CURVE = curve.Curve("Set5", 4, 128, 5, MACHINE, POINTS)


def test_the_table_has_the_best_score_first_and_says_who_was_not_timed():
    text = curve.markdown(CURVE)
    assert text.index("32.20") < text.index("32.00") < text.index("31.50") < text.index("29.40")
    assert "**ours**" in text
    assert text.endswith("- small, openvino-bf16: this processor has no bfloat16 arithmetic")


@pytest.mark.parametrize("dark", [False, True])
def test_the_figure_has_each_timed_point_once(dark):
    axes = curve.figure(CURVE, dark).axes[0]
    drawn = sorted(tuple(xy) for line in axes.lines for xy in line.get_xydata())
    timed = [p for p in POINTS if p.timing.best_ms is not None]
    assert drawn == sorted((p.timing.ms, p.psnr) for p in timed)


def test_a_network_is_followed_from_float_to_what_was_made_of_it():
    (line,) = curve.figure(CURVE).axes[0].collections[0].get_segments()
    assert line.tolist() == [[36.0, 32.2], [20.0, 29.4], [18.0, 31.9]]


def test_without_the_engine_one_line_says_what_to_install(monkeypatch):
    monkeypatch.setattr(curve.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"need openvino, nncf: pip install"):
        curve.bench_curve({}, ["any.onnx"])


@pytest.fixture
def file(tmp_path):
    pytest.importorskip("openvino", reason="needs openvino: pip install -e '.[bench]'")
    pytest.importorskip("nncf", reason="needs nncf: pip install -e '.[bench]'")
    torch.manual_seed(0)
    net = qsr.QuantSR(qsr.srresnet(2, blocks=1, features=4)).eval()
    path = tmp_path / "tiny.onnx"
    path.write_bytes(onnx_model(net).SerializeToString())
    return path


def test_a_network_in_a_file_scores_what_it_scores_here(file, capsys):
    torch.manual_seed(0)
    net = qsr.QuantSR(qsr.srresnet(2, blocks=1, features=4)).eval()
    made = curve.OnnxFile.read(file)
    assert (made.scale, made.multiple) == (2, 1)
    theirs = qsr.evaluate(made.upscaler("f32"), "embedded", scale=2)
    assert theirs.psnr_y == pytest.approx(qsr.evaluate(net, "embedded").psnr_y, abs=1e-3)


class Doubled(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.shuffle = torch.nn.Conv2d(3, 12, 3, padding=1), torch.nn.PixelShuffle(2)

    def forward(self, x):
        return self.shuffle(self.conv(x))


def test_the_command_times_float_and_eight_bits(file, tmp_path, capsys, monkeypatch):
    mine = tmp_path / "mine.qsr"
    qsr.save(mine, ready(Doubled(), torch.rand(1, 3, 9, 9)))
    monkeypatch.setattr(curve, "PATCHES", 4)
    monkeypatch.setattr(curve, "TRAINING", "embedded")
    out = tmp_path / "curve.json"
    call = f"bench --peer-onnx {file} --model quantsr-c-x2-w4a4 {mine} --size 16 --rounds 1"
    assert cli.main([*call.split(), "--data", "embedded", "--json", str(out)]) == 0
    points = json.loads(out.read_text())["points"]
    assert {p["form"] for p in points} >= {"8 blocks", "packed", "openvino-fp32", "openvino-int8"}
    assert "tiny" in capsys.readouterr().out


def test_what_is_no_network_for_pictures_is_refused_in_one_line(tmp_path):
    pytest.importorskip("openvino", reason="needs openvino: pip install -e '.[bench]'")
    (tmp_path / "text.onnx").write_text("nothing")
    with pytest.raises(ValueError, match="export it so") as error:
        curve.OnnxFile.read(tmp_path / "text.onnx")
    assert "\n" not in str(error.value)
    with pytest.raises(ValueError, match="does not exist"):
        curve.OnnxFile.read(tmp_path / "none.onnx")
