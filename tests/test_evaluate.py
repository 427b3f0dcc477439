"""Scores: of networks, of functions, of bicubic; on sets, folders and pairs."""

import numpy as np
import pytest
import torch
from PIL import Image

import qsr
from qsr.images.data import Pair, make_pair, pairs, textures
from qsr.images.metrics import psnr_y, ssim_y
from qsr.infer import enlarge
from qsr.scores import bicubic, evaluate

torch.set_num_threads(1)  # on small tensors threads only wait for each other


@pytest.fixture(scope="module")
def net():
    torch.manual_seed(3)
    net = qsr.QuantSR(qsr.quantsr_c(2, 4, blocks=2, features=4))
    qsr.calibrate(net, torch.rand(1, 3, 16, 16))
    return net.eval()


@pytest.fixture(scope="module")
def some():
    """Two pairs at scale 2."""
    return [make_pair(name, picture, 2) for name, picture in list(textures(48).items())[:2]]


@pytest.fixture
def folder(tmp_path):
    """The pictures of `some`, and one in grey, as a folder."""
    for name, picture in list(textures(48).items())[:2]:
        Image.fromarray(picture.permute(1, 2, 0).numpy()).save(tmp_path / f"{name}.png")
    Image.fromarray(np.arange(48 * 48, dtype=np.uint8).reshape(48, 48)).save(tmp_path / "grey.png")
    return tmp_path


def test_scores_are_the_means_of_the_metrics_of_each_picture(net, some):
    scores = evaluate(net, some)
    for i, pair in enumerate(some):
        sr = enlarge(pair.lr, net)
        assert scores.names[i] == pair.name
        assert scores.psnr_each[i] == psnr_y(sr, pair.hr, crop=2).item()
        assert scores.ssim_each[i] == ssim_y(sr, pair.hr, crop=2).item()
    assert scores.psnr_y == pytest.approx(np.mean(scores.psnr_each))
    assert scores.ssim_y == pytest.approx(np.mean(scores.ssim_each))
    assert scores.seconds > 0
    assert f"{scores.psnr_y:.3f} dB" in str(scores) and "2 pictures" in str(scores)


def test_bicubic_on_the_embedded_set_by_name_and_by_function():
    by_name = evaluate("bicubic", "embedded", scale=4)
    by_function = evaluate(lambda lr: bicubic(lr, 4), "embedded", scale=4)
    assert by_name.names == by_function.names == tuple(p.name for p in pairs("embedded", 4))
    assert by_name.psnr_each == by_function.psnr_each
    assert by_name.ssim_each == by_function.ssim_each
    # What comes with qsr is as hard as the usual sets are, where bicubic x4 scores 22 to 29 dB.
    assert 20 < by_name.psnr_y < 30 and 0.5 < by_name.ssim_y < 0.9


def test_a_folder_scores_as_its_pairs_in_the_order_of_their_names(net, folder, some):
    scores = evaluate(net, folder)
    assert scores.names == ("glyphs", "grey", "noise")
    assert evaluate(net, str(folder)).psnr_each == scores.psnr_each
    by_pairs = evaluate(net, iter(some))
    assert by_pairs.psnr_each == scores.psnr_each[::2]


def test_a_named_set_is_found_under_qsr_data(net, folder, some, monkeypatch, tmp_path_factory):
    root = tmp_path_factory.mktemp("data")
    (root / "eval" / "Mine").mkdir(parents=True)
    folder.rename(root / "eval" / "Mine" / "HR")
    monkeypatch.setenv("QSR_DATA", str(root))
    assert evaluate(net, "Mine").names == ("glyphs", "grey", "noise")


def test_packed_and_trained_networks_are_scored_at_the_depth_that_is_asked_for(net, some):
    packed = qsr.pack(net)
    for model in (net, packed):
        shallow, deep = evaluate(model, some, blocks=1), evaluate(model, some, blocks=2)
        assert shallow.psnr_each != deep.psnr_each
        assert evaluate(model, some).psnr_each == deep.psnr_each


def test_a_better_picture_scores_better(some):
    """Guards the sign and the arguments: the original is best, noise costs what it must."""
    originals = {pair.lr.sum().item(): pair.hr for pair in some}

    def noisy(size):
        def run(lr):
            hr = originals[lr.sum().item()]
            return hr + size * torch.randn(hr.shape, generator=torch.Generator().manual_seed(0))

        return evaluate(run, some, scale=2)

    little, much = noisy(0.01), noisy(0.1)
    assert little.psnr_y > much.psnr_y + 15 and little.ssim_y > much.ssim_y


@pytest.mark.parametrize(
    "model, data, options, words",
    [
        ("net", "some", {"scale": 4}, "`scale` is 4 and the model enlarges by 2"),
        ("net", "some", {"scale": 0}, "`scale` is 0"),
        ("bicubic", "some", {}, "`scale` is not given"),
        ("bicubic", "some", {"scale": 2, "blocks": 8}, "`blocks` is 8"),
        ("quantsr-c-x2-w4a4", "some", {"scale": 2}, "qsr.load"),
        ("net", [], {}, "no picture"),
        ("net", "no-such-set", {}, "no set or folder is called 'no-such-set'"),
        ("net", "some", {"blocks": 3}, "2 blocks"),
        (lambda lr: lr, "some", {"scale": 2}, "shape"),
        (lambda lr: bicubic(lr, 2) * float("nan"), "some", {"scale": 2}, "NaN"),
        ("net", [Pair("tiny", torch.rand(1, 3, 2, 2), torch.rand(1, 3, 4, 4))], {}, "`crop` is 2"),
    ],
)
def test_what_cannot_be_scored_gives_one_clear_line(net, some, model, data, options, words):
    model = net if model == "net" else model
    data = some if data == "some" else data
    with pytest.raises(ValueError) as raised:
        evaluate(model, data, **options)
    assert words in str(raised.value) and "\n" not in str(raised.value)
