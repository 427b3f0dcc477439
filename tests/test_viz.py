"""The demo's numbers are those of its files, and its figure hides nothing."""

import io
import subprocess
import sys

import numpy as np
import pytest
import torch
from matplotlib import rc_context
from PIL import Image

from qsr.backbone import QuantSR
from qsr.calibration import calibrate
from qsr.config import quantsr_c
from qsr.course import viz
from qsr.course.viz import Scene, before_after, demo
from qsr.images.metrics import psnr_y
from qsr.images.reading import read
from qsr.images.tensors import to_uint8
from qsr.integer.packing import pack
from qsr.models import zoo
from qsr.models.file import save


@pytest.fixture
def tiny_zoo(tmp_path, monkeypatch):
    """A zoo of one untrained x2 model of two blocks, trained depths 2 and 1."""
    folder = tmp_path / "zoo"
    folder.mkdir()
    monkeypatch.setattr(zoo, "FOLDER", folder)
    net = QuantSR(quantsr_c(2, 4, blocks=2, depths=(2, 1), features=4)).eval()
    calibrate(net, torch.rand(1, 3, 8, 8))
    path = folder / "tiny-x2.qsr"
    packed = pack(net)
    save(path, packed)
    zoo.write_card(path, packed, "not at all", {}, {})
    return path


def test_the_demo_tells_of_its_own_files(tiny_zoo, tmp_path):
    out = tmp_path / "a" / "demo"
    rows, figure = demo(out)
    assert [(r["scale"], r["model"], r["blocks"]) for r in rows] == [
        (2, "bicubic", None),
        (2, "tiny-x2", 1),
        (2, "tiny-x2", 2),
    ]
    original = read(out / "original.png").rgb
    names = ("bicubic", "tiny-x2-1-blocks", "tiny-x2-2-blocks")
    for row, name in zip(rows, names, strict=True):
        written = read(out / f"x2-{name}.png").rgb
        assert row["psnr_y"] == psnr_y(written, original, crop=2).item()
        assert row["ms"] > 0
    assert [r["bytes"] for r in rows] == [None, *[tiny_zoo.stat().st_size] * 2]
    assert figure == out / "before_after.png"
    light, dark = (Image.open(p) for p in (figure, out / "before_after_dark.png"))
    assert light.size == dark.size
    assert light.getpixel((0, 0))[:3] == (255, 255, 255)
    assert sum(dark.getpixel((0, 0))[:3]) < 100


def test_the_demo_can_be_repeated_into_its_folder(tiny_zoo, tmp_path):
    first, second = demo(tmp_path)[0], demo(tmp_path)[0]
    assert [r["psnr_y"] for r in first] == [r["psnr_y"] for r in second]


def test_the_demo_refuses_a_folder_that_is_a_file(tiny_zoo, tmp_path):
    (tmp_path / "taken").write_text("")
    with pytest.raises(ValueError, match="taken cannot be made a folder.*name another"):
        demo(tmp_path / "taken")


def test_the_demo_says_that_there_are_no_models(tmp_path, monkeypatch):
    monkeypatch.setattr(zoo, "FOLDER", tmp_path)
    with pytest.raises(ValueError, match="no models"):
        demo(tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("bits, label", [("4/4", "4-bit network"), ("2/4", "2/4-bit network")])
def test_the_figure_shows_the_best_network_beside_bicubic(monkeypatch, bits, label):
    monkeypatch.setattr(zoo, "card", lambda name: {"bits": bits})
    hr = torch.rand(1, 3, 200, 300)
    results = [({"model": "bicubic", "blocks": None, "psnr_y": 1.0}, hr / 2)]
    results += [({"model": "m", "blocks": b, "psnr_y": db}, hr / b) for b, db in ((4, 9.0), (8, 7))]
    row = viz._figure_row(2, hr, results)
    assert list(row.enlarged) == ["bicubic", f"{label}, 4 blocks"]


def test_a_pixel_of_a_crop_is_a_square_of_the_figure():
    hr = torch.rand(1, 3, 30, 40)
    sr = torch.rand(1, 3, 30, 40)
    figure = before_after([Scene(2, hr, {"mine": sr}, (3, 5, 20, 24))], zoom=3)
    encoded = io.BytesIO()
    figure.savefig(encoded, format="png")
    page = np.array(Image.open(encoded).convert("RGB"))
    for picture in (sr, hr):
        crop = to_uint8(picture[0, :, 3:23, 5:29]).permute(1, 2, 0).numpy()
        square = crop.repeat(3, axis=0).repeat(3, axis=1)
        windows = np.lib.stride_tricks.sliding_window_view(page, square.shape)
        assert any((w == square).all() for row in windows for w in row[:, 0])


def test_a_figure_gives_the_decibels_of_the_whole_picture():
    hr = torch.rand(1, 3, 30, 40)
    sr = hr.clone()
    sr[..., :20] = 0.5  # the crop, on the right, is perfect
    row = Scene(2, hr, {"half": sr}, (5, 22, 10, 10))
    (label, score, _), (last, none, _) = row.panels()
    assert (label, score) == ("half", f"{psnr_y(sr, hr, crop=2).item():.2f} dB")
    assert (last, none) == ("original", "")


@pytest.mark.parametrize("crop", [(0, 0, 9, 4), (-1, 0, 4, 4), (0, 5, 4, 4), (2, 2, 0, 4)])
def test_a_crop_outside_the_picture_is_refused(crop):
    with pytest.raises(ValueError, match="crop"):
        Scene(2, torch.rand(1, 3, 8, 8), {}, crop)


def test_the_layout_of_notebooks_does_not_move_crops():
    row = Scene(4, torch.rand(1, 3, 12, 16), {"mine": torch.rand(1, 3, 12, 16)}, (0, 0, 8, 8))
    plain = before_after([row]).axes[0].get_position()
    with rc_context(viz.STYLE):
        figure = before_after([row])
    figure.savefig(io.BytesIO())  # a layout would act, or warn, here
    assert figure.axes[0].get_position().bounds == plain.bounds
    assert figure.get_layout_engine() is None


def test_a_figure_needs_rows():
    with pytest.raises(ValueError, match="empty"):
        before_after([])


def test_importing_qsr_does_not_import_matplotlib():
    code = "import sys, qsr.course.viz; sys.exit('matplotlib' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
