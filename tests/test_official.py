"""The released checkpoint: every value arrives where it belongs, and the network computes what the
released layer computes, written down here once more in a few lines."""

import dataclasses
import os

import pytest
import torch
from torch.nn import functional as F

import qsr
from qsr.models import official


def released(scale=4, blocks=3, features=4, bits=4):
    """Tensors with the released names and shapes, and random values."""
    tensors = {}

    def conv(name, outputs, inputs):
        tensors[f"{name}.weight"] = torch.randn(outputs, inputs, 3, 3) / (9 * inputs) ** 0.5
        tensors[f"{name}.bias"] = torch.randn(outputs)

    conv("conv_first", features, 3)
    for i in range(blocks):
        tensors[f"body.{i}.learnable_shortcut"] = torch.rand(1) + 0.5
        for part, signed in (("conv1", 1.0), ("conv2", 0.0)):
            name = f"body.{i}.{part}"
            conv(name, features, features)
            tensors[f"{name}.alpha"] = torch.rand(1) / 2**bits + 0.05
            tensors[f"{name}.init_state"] = torch.ones(1)
            tensors[f"{name}.channel_threshold"] = torch.randn(1, features, 1, 1)
            tensors[f"{name}.ActOurs.alpha"] = 20 * torch.rand(1) + 1
            tensors[f"{name}.ActOurs.init_state"] = torch.ones(1)
            tensors[f"{name}.ActOurs.signed"] = torch.tensor([signed])
    conv("conv_after_body", features, features)
    factors = (2, 2) if scale == 4 else (scale,)
    for i, factor in enumerate(factors):
        conv(f"upsample.{2 * i}", features * factor**2, features)
    conv("conv_last", 3, features)
    return tensors


def released_forward(tensors, lr, bits=4, skipped=()):
    """What the released code computes: one function a layer, by its formulas."""

    def conv(name, x):
        return F.conv2d(x, tensors[f"{name}.weight"], tensors[f"{name}.bias"], padding=1)

    def quantised(x, step, low, high):
        return (x / step).clamp(low, high).round() * step

    def layer(name, x):
        half = 2 ** (bits - 1)
        signed = tensors[f"{name}.ActOurs.signed"] == 1
        low, high = (-half, half - 1) if signed else (0, 2 * half - 1)
        x = x + tensors[f"{name}.channel_threshold"]
        x = quantised(x, tensors[f"{name}.ActOurs.alpha"], low, high)
        weight = quantised(tensors[f"{name}.weight"], tensors[f"{name}.alpha"], -half, half - 1)
        return F.conv2d(x, weight, tensors[f"{name}.bias"], padding=1)

    mean = torch.tensor([0.4488, 0.4371, 0.4040]).view(1, 3, 1, 1)
    shallow = deep = conv("conv_first", (lr - mean) * 255)
    for i in range(sum("learnable_shortcut" in name for name in tensors)):
        shortcut = tensors[f"body.{i}.learnable_shortcut"] * deep
        inner = (
            0 if i in skipped else layer(f"body.{i}.conv2", layer(f"body.{i}.conv1", deep).relu())
        )
        deep = shortcut + inner
    x = conv("conv_after_body", deep) + shallow
    for i in (0, 2):
        if f"upsample.{i}.weight" in tensors:
            x = conv(f"upsample.{i}", x)
            x = F.pixel_shuffle(x, round((x.shape[1] / shallow.shape[1]) ** 0.5))
    return conv("conv_last", x) / 255 + mean


@pytest.fixture
def file(tmp_path):
    """Write tensors as BasicSR does -> the path."""

    def write(tensors, key="params"):
        torch.save({key: tensors} if key else tensors, tmp_path / "QuantSR_C.pth")
        return tmp_path / "QuantSR_C.pth"

    return write


def refusal(path, config=None):
    """The one line with which a file is refused."""
    with pytest.raises(ValueError) as info:
        qsr.load_official(path, config)
    assert "\n" not in str(info.value)
    return str(info.value)


# What arrives -------------------------------------------------------------------------------------


@pytest.mark.parametrize("scale", [2, 3, 4])
@torch.no_grad()
def test_the_network_computes_what_the_released_code_computes(file, scale):
    tensors, lr = released(scale), torch.rand(2, 3, 7, 10)
    net = qsr.load_official(file(tensors))
    assert net.config.scale == scale and not net.config.quantize_body_conv
    torch.testing.assert_close(net(lr), released_forward(tensors, lr), rtol=0, atol=1e-5)


@pytest.mark.parametrize("bits", [2, 3])
@torch.no_grad()
def test_other_bits_are_given_by_a_configuration(file, bits):
    tensors, lr = released(2, bits=bits), torch.rand(1, 3, 7, 10)
    config = qsr.quantsr_c(2, bits, blocks=3, features=4, quantize_body_conv=False)
    net = qsr.load_official(file(tensors), config)
    torch.testing.assert_close(net(lr), released_forward(tensors, lr, bits), rtol=0, atol=1e-5)


def test_every_value_arrives_where_it_belongs(file):
    tensors = released()
    net = qsr.load_official(file(tensors))
    conv, name = net.blocks[1].conv2, "body.1.conv2"
    assert torch.equal(conv.weight, tensors[f"{name}.weight"])
    assert torch.equal(conv.weight_quantizer.step_size, tensors[f"{name}.alpha"][0])
    assert torch.equal(conv.input_quantizer.step_size, tensors[f"{name}.ActOurs.alpha"][0])
    assert torch.equal(conv.input_quantizer.tau, tensors[f"{name}.channel_threshold"].flatten())
    assert conv.weight_quantizer.signed and not conv.input_quantizer.signed
    assert net.blocks[1].conv1.input_quantizer.signed
    assert torch.equal(net.blocks[2].shortcut.scale, tensors["body.2.learnable_shortcut"][0])
    assert torch.equal(net.body_conv.bias, tensors["conv_after_body.bias"])
    assert torch.equal(net.tail[2].weight, tensors["upsample.2.weight"])
    assert torch.equal(net.tail[4].weight, tensors["conv_last.weight"])


@pytest.mark.parametrize("key", ["params", "params_ema", None])
def test_tensors_are_found_under_each_name_that_basicsr_gives_them(file, key):
    tensors = {f"module.{name}": value for name, value in released().items()}
    net = qsr.load_official(file(tensors, key))
    assert torch.equal(net.head.bias, tensors["module.conv_first.bias"])


def test_params_come_before_their_moving_average(tmp_path):
    tensors, average = released(), released()
    torch.save({"params_ema": average, "params": tensors}, tmp_path / "both.pth")
    net = qsr.load_official(tmp_path / "both.pth")
    assert torch.equal(net.head.bias, tensors["conv_first.bias"])


# Blocks -------------------------------------------------------------------------------------------


@torch.no_grad()
def test_the_scripts_16_and_8_blocks_are_17_and_9(file):
    tensors, lr = released(blocks=32), torch.rand(1, 3, 5, 6)
    net = qsr.load_official(file(tensors))
    assert net.order == official.ORDER and sorted(net.order) == list(range(32))
    assert net.config.depths == (32, 17, 9)
    for version, blocks in ((2, 17), (4, 9)):
        # As the script decides: places greater than a half, or a quarter, of 32.
        skipped = {net.order[place] for place in range(32) if place > 32 // version}
        assert {i for i, runs in enumerate(net.plan(blocks).keep) if not runs} == skipped
        torch.testing.assert_close(
            net(lr, net.plan(blocks)),
            released_forward(tensors, lr, skipped=skipped),
            rtol=0,
            atol=1e-4,
        )
    kept = {i for i, runs in enumerate(net.plan(17).keep) if runs}
    assert kept == {6, 7, 8, 10, 11, 13, 15, *range(17, 21), 22, *range(27, 32)}


def test_blocks_of_another_network_are_ordered_by_their_shortcuts(file):
    tensors = released(2)
    for i, value in enumerate((1.0, 0.2, 0.7)):
        tensors[f"body.{i}.learnable_shortcut"] = torch.tensor([value])
    assert qsr.load_official(file(tensors)).order == (1, 2, 0)


@torch.no_grad()
def test_a_released_network_can_be_packed_and_kept(file, tmp_path):
    net, lr = qsr.load_official(file(released())), torch.rand(1, 3, 5, 6)
    qsr.save(tmp_path / "official.qsr", qsr.pack(net))
    packed = qsr.load(tmp_path / "official.qsr")
    torch.testing.assert_close(packed(lr), net(lr), rtol=0, atol=1e-4)


# What is refused ----------------------------------------------------------------------------------


class Trap:
    """Makes a folder when it is unpickled."""

    def __init__(self, folder):
        self.folder = str(folder)

    def __reduce__(self):
        return os.mkdir, (self.folder,)


def test_code_in_a_file_is_refused_and_not_run(file, tmp_path):
    path = file(released() | {"conv_first.bias": Trap(tmp_path / "sprung")})
    assert "holds more than tensors (UnpicklingError), and qsr runs no code" in refusal(path)
    assert not (tmp_path / "sprung").exists()


def test_damaged_and_foreign_files_are_refused_in_one_line(file, tmp_path):
    path = file(released())
    path.write_bytes(path.read_bytes()[:1000])
    assert "is damaged or holds more than tensors" in refusal(path)
    path.write_text("a text")
    assert "is damaged or holds more than tensors" in refusal(path)
    assert "is no file" in refusal(tmp_path)
    assert "is no file" in refusal(tmp_path / "none.pth")
    assert "not that of a training state" in refusal(file({"iter": 3}, None))
    assert "not that of a training state" in refusal(file([torch.zeros(1)], None))
    assert "does not look like the released QuantSR-C" in refusal(file({"a": torch.ones(1)}))
    assert "does not look like the released QuantSR-C" in refusal(file({}))


def changed(**changes):
    """Released tensors with some replaced (a name with __ for dots), or left out (None)."""
    tensors = released()
    for name, value in changes.items():
        tensors[name.replace("__", ".")] = value
    return {name: value for name, value in tensors.items() if value is not None}


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"conv_last__bias": None}, "lacks 'conv_last.bias' (1 in all)"),
        ({"extra__weight": torch.ones(1)}, "also has 'extra.weight' (1 in all)"),
        ({"conv_last__weight": torch.ones(3, 5, 3, 3)}, "'conv_last.weight' of shape (3, 5, 3, 3)"),
        ({"body__0__conv1__alpha": torch.ones(4)}, "'body.0.conv1.alpha' of shape (4,)"),
        ({"body__0__conv1__alpha": torch.tensor([-0.5])}, "'body.0.conv1.alpha' = -0.5"),
        ({"body__0__conv1__ActOurs__alpha": torch.tensor([float("nan")])}, "= nan, and a step"),
        ({"body__1__conv2__init_state": torch.zeros(1)}, "'body.1.conv2.init_state' = 0"),
        ({"body__1__conv2__ActOurs__init_state": torch.zeros(1)}, "never saw data"),
    ],
)
def test_tensors_that_do_not_fit_are_named(file, changes, words):
    assert words in refusal(file(changed(**changes)))


@pytest.mark.parametrize(
    "config, words",
    [
        (qsr.quantsr_c(), "`config.quantize_body_conv` is True and that of the released"),
        (qsr.quantsr_t(), "`config` is a SwinConfig; only QuantSR-C was released"),
        (qsr.srresnet(4, quantize_body_conv=False), "`config.learnable_shortcuts` is False"),
        (qsr.quantsr_c(quantize_body_conv=False, quantizer="lsq"), "`config.quantizer` is 'lsq'"),
        (qsr.quantsr_c(4, None, quantize_body_conv=False), "`config.bits` is None"),
        (qsr.quantsr_c(quantize_body_conv=False), "lacks 'body.10."),
        (qsr.quantsr_c(blocks=2, features=4, quantize_body_conv=False), "also has 'body.2."),
        (qsr.quantsr_c(2, blocks=3, features=4, quantize_body_conv=False), "also has 'upsample.2"),
        (qsr.quantsr_c(blocks=3, features=8, quantize_body_conv=False), "needs (8,)"),
    ],
)
def test_a_configuration_that_the_file_has_not_is_refused(file, config, words):
    assert words in refusal(file(released()), config)


def test_the_configuration_read_from_a_file_is_the_one_that_could_be_given(file):
    path = file(released())
    config = qsr.load_official(path).config
    expected = qsr.quantsr_c(4, 4, 3, (3, 2, 1), features=4, quantize_body_conv=False)
    assert config == expected
    given = dataclasses.replace(config, depths=(3, 1))
    assert qsr.load_official(path, given).config.depths == (3, 1)
