"""Enlarging: the same kind out, the same bits in strips, bounded memory, one line for bad input."""

import math
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

import qsr
from qsr.config import ConvConfig
from qsr.infer import enlarge, strips, upscale
from qsr.models import zoo

torch.set_num_threads(1)  # on small tensors threads only wait for each other

CONFIGS = {
    "C": qsr.quantsr_c(2, 4, blocks=4, features=8),
    "C x4, 2 bits": qsr.quantsr_c(4, 2, blocks=2, features=8),
    "T": qsr.quantsr_t(2, 4, blocks=2, features=4, layers=2, heads=2, window=4),
}


def trained(config):
    torch.manual_seed(3)
    net = qsr.QuantSR(config)
    qsr.calibrate(net, torch.rand(1, 3, 16, 16))
    return net.eval()


@pytest.fixture(scope="module")
def packed():
    return {name: qsr.pack(trained(config)) for name, config in CONFIGS.items()}


@pytest.fixture(scope="module")
def model(packed):
    """A packed network that doubles; any will do."""
    return packed["C"]


def memory_for(model, blocks, width, units):
    """GB that hold a strip of `units` rows of windows or tail tiles and its halo, hardly more."""
    unit = math.lcm(model.config.window, 4)
    reach = -(-model.config.reach(blocks) // unit) * unit
    return 1.0001 * model.pixel_bytes * width * (2 * reach + units * unit) / 1e9


# Strips -------------------------------------------------------------------------------------------


def rows_seen(net, first, last, height, width):
    """(rows above `first`, rows below `last`) on which the sr rows of lr rows first..last depend.

    The gradient says it: it is zero exactly where the network does not look.
    """
    lr = torch.rand(1, 3, height, width, dtype=torch.float64, requires_grad=True)
    scale = net.config.scale
    sr = net.double()(lr)[:, :, scale * first : scale * (last + 1)]
    (gradient,) = torch.autograd.grad(sr.square().sum(), lr)
    seen = gradient.abs().sum((0, 1, 3)).nonzero().flatten()
    return first - int(seen[0]), int(seen[-1]) - last


@pytest.mark.parametrize("scale", [2, 3, 4])
@pytest.mark.parametrize("blocks", [1, 2, 4])
def test_the_halo_is_exactly_as_far_as_a_convolutional_network_sees(scale, blocks):
    config = qsr.srresnet(scale, blocks=blocks, features=8)
    reach = config.reach(config.blocks)
    assert rows_seen(qsr.QuantSR(config), 16, 16, 33, 5) == (reach, reach)


@pytest.mark.parametrize("blocks, layers", [(1, 1), (1, 2), (2, 2)])
def test_the_halo_of_a_swin_network_is_as_far_as_it_sees_in_whole_windows(blocks, layers):
    config = qsr.swinir_s(2, blocks=blocks, features=4, layers=layers, heads=2, window=4)
    reach = config.reach(config.blocks)
    seen = rows_seen(qsr.QuantSR(config), 24, 27, 52, 4)  # one row of windows
    assert tuple(-(-rows // 4) * 4 for rows in seen) == (reach, reach)


@pytest.mark.parametrize("name", CONFIGS)
@given(st.integers(1, 70), st.integers(1, 9), st.integers(1, 9), st.data())
@settings(deadline=None, max_examples=15)
def test_strips_give_the_same_bits_as_the_whole_picture(packed, name, height, width, rows, data):
    config = CONFIGS[name]
    depth = data.draw(st.sampled_from(config.depths))
    lr = torch.rand(1, 3, height, width, generator=torch.Generator().manual_seed(height))
    limit = memory_for(packed[name], depth, width, rows)
    whole = enlarge(lr, packed[name], depth)
    assert torch.equal(enlarge(lr, packed[name], depth, memory=limit), whole)


@pytest.mark.parametrize("name, height", [("C", 60), ("T", 60)])
def test_the_strips_of_that_test_are_several(packed, name, height):
    config = CONFIGS[name]
    for depth in config.depths:
        limit = memory_for(packed[name], depth, 9, 1)
        assert len(strips(height, 9, config, depth, limit, packed[name].pixel_bytes)) > 3


@pytest.mark.parametrize("depth", CONFIGS["C"].depths)
def test_with_four_rows_of_halo_less_the_bits_differ(model, monkeypatch, depth):
    lr = torch.rand(1, 3, 60, 9)
    limit = memory_for(model, depth, 9, 1)
    whole = enlarge(lr, model, depth)
    # The halo is a multiple of 4 rows at every depth, so one less would be rounded up again.
    reach = ConvConfig.reach
    monkeypatch.setattr(ConvConfig, "reach", lambda *args: reach(*args) - 4)
    assert not torch.equal(enlarge(lr, model, depth, memory=limit), whole)


@given(
    st.sampled_from([qsr.quantsr_c(4), qsr.quantsr_c(2), qsr.quantsr_t(4)]),
    st.integers(1, 5000),
    st.integers(1, 5000),
    st.floats(0.001, 4),
    st.integers(100, 20_000),
    st.data(),
)
@settings(deadline=None)
def test_strips_keep_every_row_once_and_stay_within_the_memory(
    config, height, width, memory, pixel, data
):
    depth = data.draw(st.sampled_from(config.depths))
    try:
        plan = strips(height, width, config, depth, memory, pixel)
    except ValueError as error:
        # The memory that the message asks for is enough.
        needed = float(str(error).split("needs ")[1].split(" GB")[0])
        assert needed > memory
        plan = strips(height, width, config, depth, needed, pixel)
        memory = needed
    unit = math.lcm(config.window, 4)
    reach = -(-config.reach(depth) // unit) * unit
    assert [row for first, last, *_ in plan for row in (first, last)] == [
        0,
        *(row for first, *_ in plan[1:] for row in (first, first)),
        height,
    ]
    for first, last, top, bottom in plan:
        assert top == max(0, first - reach) or len(plan) == 1
        assert bottom >= min(height, last + reach)
        assert top % unit == 0
        assert pixel * (bottom - top) * width <= memory * 1e9


@pytest.mark.parametrize("depths", [(4, 2), (4,)])
def test_too_little_memory_is_told_with_what_is_needed(depths):
    model = qsr.pack(trained(qsr.quantsr_c(2, 4, blocks=4, depths=depths, features=8)))
    with pytest.raises(ValueError, match=r"1e-06 GB.*9 pixels wide.*needs 0\.\d+ GB") as error:
        enlarge(torch.rand(1, 3, 60, 9), model, memory=1e-6)
    assert "\n" not in str(error.value)
    assert ("fewer blocks" in str(error.value)) == (len(depths) > 1)
    for memory in (0, -1, float("nan")):
        with pytest.raises(ValueError, match="positive number of GB"):
            enlarge(torch.rand(1, 3, 60, 9), model, memory=memory)


PEAK = """
import torch, qsr
from pathlib import Path
from qsr import infer

def resident(field):
    status = Path("/proc/self/status").read_text()
    return 1024 * int(status.split(field + ":")[1].split()[0])

torch.set_num_threads(1)
for config, memory in [
    (qsr.quantsr_c(2, 4, blocks=1, features=16), 4),
    (qsr.quantsr_c(4, 4, blocks=1, features=16), 4),
    (qsr.quantsr_c(4, 4, blocks=1, features=16), 0.02),
    (qsr.quantsr_t(2, 4, blocks=1, features=12, layers=2, heads=2), 4),
]:
    net = qsr.QuantSR(config)
    qsr.calibrate(net, torch.rand(1, 3, 16, 16))
    model = qsr.pack(net)
    infer.enlarge(torch.rand(1, 3, 16, 16), model)  # loads what is loaded once
    lr = torch.rand(1, 3, 320, 240)
    Path("/proc/self/clear_refs").write_text("5")  # forgets the peak so far
    before = resident("VmRSS")
    sr = infer.enlarge(lr, model, memory=memory)
    used = resident("VmHWM") - before - sr.nbytes
    print(used, min(model.pixel_bytes * 320 * 240, int(memory * 1e9)))
"""


@pytest.mark.skipif(not os.access("/proc/self/clear_refs", os.W_OK), reason="cannot reset the peak")
def test_the_memory_in_use_stays_below_the_plan():
    # Freed tensors go back to the system at once, so that the peak is of tensors, not of the heap.
    env = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536"}
    done = subprocess.run([sys.executable, "-c", PEAK], capture_output=True, text=True, env=env)
    assert done.returncode == 0, done.stderr
    for line in done.stdout.splitlines():
        used, planned = map(int, line.split())
        assert 0.3 * planned < used < 1.05 * planned, done.stdout  # nor is it far too careful


# Kinds of pictures --------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("size", [(1, 1), (1, 7), (2, 1), (3, 5)])
def test_a_picture_of_any_size_is_enlarged(packed, name, size):
    scale = CONFIGS[name].scale
    for network in (packed[name], trained(CONFIGS[name])):
        sr = enlarge(torch.rand(1, 3, *size), network)
        assert sr.shape == (1, 3, scale * size[0], scale * size[1])
        assert sr.min() >= 0 and sr.max() <= 1


def noise(mode, width=7, height=5):
    """A random PIL image of a mode; mode "P+" is a palette with a transparent entry."""
    random = np.random.default_rng(0)
    if mode == "I;16":
        return Image.fromarray(random.integers(2**16, size=(height, width), dtype=np.uint16))
    channels = Image.fromarray(random.integers(256, size=(height, width, 4), dtype=np.uint8))
    if mode in ("P", "P+"):
        image = channels.convert("RGB").quantize(16)
        if mode == "P+":
            image.info["transparency"] = 3
        return image
    return channels.convert(mode)


@pytest.mark.parametrize(
    "mode, result",
    [
        ("RGB", "RGB"),
        ("RGBA", "RGBA"),
        ("L", "L"),
        ("LA", "LA"),
        ("1", "L"),
        ("P", "RGB"),
        ("P+", "RGBA"),
        ("I;16", "I;16"),
    ],
)
def test_a_pil_image_or_path_gives_a_pil_image_of_its_kind(model, tmp_path, mode, result):
    image = noise(mode)
    sr = upscale(image, model)
    assert (sr.mode, sr.size) == (result, (14, 10))
    image.save(tmp_path / "a.png")
    for path in (tmp_path / "a.png", str(tmp_path / "a.png")):
        again = upscale(path, model)
        assert again.mode == result and np.array_equal(np.asarray(again), np.asarray(sr))


def test_16_bit_grey_keeps_more_than_256_levels(model):
    ramp = np.arange(0, 32 * 40 * 16, 16, dtype=np.uint16).reshape(32, 40)
    sr = np.asarray(upscale(Image.fromarray(ramp), model))
    assert sr.dtype == np.uint16 and len(np.unique(sr)) > 1000


def test_transparency_is_enlarged_beside_the_colours(model):
    opaque = noise("RGB")
    image = opaque.copy()
    image.putalpha(Image.new("L", image.size, 77))
    sr = np.asarray(upscale(image, model))
    assert np.array_equal(sr[..., :3], np.asarray(upscale(opaque, model)))
    assert (sr[..., 3] == 77).all()


@pytest.mark.parametrize(
    "shape, dtype",
    [
        ((5, 7), np.uint8),
        ((5, 7), np.uint16),
        ((5, 7, 2), np.uint8),
        ((5, 7, 3), np.uint8),
        ((5, 7, 4), np.uint8),
    ],
)
def test_an_array_gives_an_array_of_its_kind(model, shape, dtype):
    array = np.random.default_rng(0).integers(np.iinfo(dtype).max, size=shape, dtype=dtype)
    sr = upscale(array, model)
    assert isinstance(sr, np.ndarray) and sr.dtype == dtype and sr.shape == (10, 14, *shape[2:])


@pytest.mark.parametrize(
    "dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.uint8]
)
@pytest.mark.parametrize("batch", [(), (1,), (3,)])
def test_a_tensor_gives_a_tensor_of_its_type_and_dimensions(model, dtype, batch):
    x = torch.rand(*batch, 3, 5, 7)
    x = (x * 255).to(dtype) if dtype == torch.uint8 else x.to(dtype)
    for network in (model, trained(CONFIGS["C"])):
        sr = upscale(x, network)
        assert sr.dtype == dtype and sr.shape == (*batch, 3, 10, 14)


def test_a_path_an_image_an_array_and_a_tensor_give_the_same_picture(model, tmp_path):
    image = noise("RGB")
    image.save(tmp_path / "a.png")
    array = np.asarray(image)
    tensor = torch.from_numpy(array.copy()).permute(2, 0, 1)
    sr = upscale(array, model)
    assert np.array_equal(np.asarray(upscale(tmp_path / "a.png", model)), sr)
    assert np.array_equal(np.asarray(upscale(image, model)), sr)
    assert np.array_equal(upscale(tensor, model).permute(1, 2, 0).numpy(), sr)


def test_pictures_of_a_batch_do_not_see_each_other(model):
    x = torch.rand(3, 3, 30, 5)
    limit = 3 * memory_for(model, 1, 5, 2)
    alone = torch.cat([enlarge(picture[None], model, 1) for picture in x])
    assert torch.equal(enlarge(x, model, 1), alone)
    assert torch.equal(enlarge(x, model, 1, memory=limit), alone)


def test_the_depth_that_is_asked_for_runs(model):
    x = torch.rand(1, 3, 5, 7)
    for network in (model, trained(CONFIGS["C"])):
        results = [enlarge(x, network, depth) for depth in (4, 2, 1)]
        assert torch.equal(results[0], enlarge(x, network))
        assert not torch.equal(results[0], results[1])
        assert not torch.equal(results[1], results[2])
        for depth in (0, 5, -1):
            with pytest.raises(ValueError, match="4 blocks"):
                enlarge(x, network, depth)


@pytest.mark.parametrize("name", zoo.names())
def test_a_tiny_picture_of_one_colour_keeps_it(name):
    model = zoo.load(name)
    colours = torch.tensor([[0, 0, 0], [1, 1, 1], [0.5, 0.5, 0.5], [1, 0, 0], [0, 0, 1.0]])
    scale, flat, bare = model.config.scale, colours[:, :, None, None], []
    for size in ((1, 1), (7, 24)):
        lr = flat.expand(-1, -1, *size)
        sr = upscale(lr, model)
        assert sr.shape == (5, 3, scale * size[0], scale * size[1])
        error = (sr - flat).abs().max() * 255
        bare.append((enlarge(lr, model) - flat).abs().max() * 255)  # what the zeros around it do
        assert error < 4 and bare[-1] > 4 * error
    assert max(bare) > 10


def test_from_eight_pixels_on_nothing_is_put_around_a_picture(model):
    lr = torch.rand(1, 3, 8, 9)
    assert torch.equal(upscale(lr, model), enlarge(lr, model))
    assert not torch.equal(upscale(lr[:, :, 1:], model), enlarge(lr[:, :, 1:], model))


def test_a_transparent_background_leaves_no_rim_and_no_trace():
    # A red disc on nothing, stored once as transparent black and once as transparent green.
    model = zoo.load("quantsr-c-x2-w4a4")
    rows, columns = np.mgrid[:24, :24] - 11.5
    disc = rows**2 + columns**2 < 70
    results = []
    for hidden in ((0, 0, 0), (0, 255, 0)):
        rgba = np.zeros((24, 24, 4), np.uint8)
        rgba[..., :3] = np.where(disc[..., None], (200, 30, 60), hidden)
        rgba[..., 3] = 255 * disc
        sr = upscale(rgba, model).astype(float)
        weight = sr[..., 3:] / 255
        results.append(sr[..., :3] * weight + 255 * (1 - weight))  # as seen on white
    assert np.abs(results[0] - results[1]).max() == 0
    # Between red and white there is nothing darker than red.
    assert (results[0] > np.array([200, 30, 60]) - 3).all()


# Hostile input ------------------------------------------------------------------------------------

NAN = torch.full((1, 3, 4, 4), float("nan"))


@pytest.mark.parametrize(
    "image, error, words",
    [
        (NAN, ValueError, "NaN"),
        (NAN[0], ValueError, "NaN"),
        (torch.full((3, 4, 4), float("inf")), ValueError, "infinity"),
        (torch.rand(1, 4, 4, 4), ValueError, "(1, 4, 4, 4)"),
        (torch.rand(1, 4, 4), ValueError, "(1, 1, 4, 4)"),
        (torch.rand(4, 4), ValueError, "(4, 4)"),
        (torch.rand(4), ValueError, "(4,)"),
        (torch.rand(2, 1, 3, 4, 4), ValueError, "(2, 1, 3, 4, 4)"),
        (torch.rand(1, 3, 0, 4), ValueError, "(1, 3, 0, 4)"),
        (torch.rand(0, 3, 4, 4), ValueError, "(0, 3, 4, 4)"),
        (torch.zeros(1, 3, 4, 4, dtype=torch.int64), TypeError, "int64"),
        (np.zeros((4, 4, 3)), TypeError, "float64"),
        (np.zeros((4, 4, 3), np.int32), TypeError, "int32"),
        (np.zeros((4, 4, 5), np.uint8), ValueError, "(4, 4, 5)"),
        (np.zeros((4, 4, 3), np.uint16), ValueError, "16 bits"),
        (np.zeros((0, 4, 3), np.uint8), ValueError, "0"),
        (Image.new("F", (4, 4)), ValueError, "'F'"),
        ("no-such-picture.png", ValueError, "no-such-picture.png does not exist"),
        ([[1, 2], [3, 4]], TypeError, "list"),
        (None, TypeError, "NoneType"),
    ],
)
def test_what_is_no_picture_gives_one_clear_line(model, image, error, words):
    for network in (model, trained(CONFIGS["C"])):
        with pytest.raises(error) as raised:
            upscale(image, network)
        assert words in str(raised.value) and "\n" not in str(raised.value)


def test_what_is_no_network_gives_one_clear_line():
    for model in ("quantsr-c-x2-w4a4", None, torch.nn.Conv2d(3, 3, 3)):
        with pytest.raises(TypeError, match=f"`model` is a {type(model).__name__}; pass what"):
            upscale(np.zeros((4, 4, 3), np.uint8), model)
