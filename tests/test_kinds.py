"""Numbers, tensors and networks of every kind: the right pixels, or one line that says what to do.

PyTorch has many types, devices and modes, some of them global. A packed network computes in float32
on the device where it is; whatever else is around it must not change a bit of its pictures.
"""

import copy
import functools
import io
import pickle
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from torch import nn

import qsr
from qsr.quantizer import QuantSpec

torch.set_num_threads(1)
SWIN = {"blocks": 2, "features": 8, "layers": 2, "heads": 2, "window": 4}
CONFIGS = {
    "C": qsr.quantsr_c(2, 4, features=8, blocks=4, depths=(4, 2, 1)),
    "T": qsr.quantsr_t(2, 4, **SWIN),
    "T, attention": qsr.quantsr_t(2, 4, attention_bits=4, **SWIN),
}
every = pytest.mark.parametrize("name", CONFIGS)
LR = torch.rand(2, 3, 9, 11, generator=torch.Generator().manual_seed(3))


@functools.cache
def trained(name):
    torch.manual_seed(6)
    net = qsr.QuantSR(CONFIGS[name])
    qsr.calibrate(net, torch.rand(1, 3, 16, 16))
    return net.eval()


@functools.cache
def expected(name):
    return qsr.pack(trained(name))(LR)


# What PyTorch has as its default ------------------------------------------------------------------


@every
def test_a_default_type_of_float64_changes_nothing_neither_then_nor_afterwards(name):
    ran = qsr.pack(trained(name))
    ran(LR[:, :, :5])
    torch.set_default_dtype(torch.float64)
    try:
        fresh = qsr.pack(trained(name))
        assert torch.equal(fresh(LR), expected(name))
        assert torch.equal(ran(LR), expected(name))
        empty = qsr.PackedModel.empty(CONFIGS[name])
        empty.load_state_dict(fresh.state_dict())
        assert torch.equal(empty.program(LR, fresh.plan()), expected(name))
    finally:
        torch.set_default_dtype(torch.float32)
    assert torch.equal(ran(LR), expected(name)) and torch.equal(fresh(LR), expected(name))


@every
@pytest.mark.parametrize("kernel", ["auto", "reference"])
def test_another_default_device_changes_nothing(name, kernel):
    with torch.device("meta"):
        packed = qsr.pack(trained(name), kernel)
        sr = packed(LR)
    torch.testing.assert_close(sr, expected(name), rtol=0, atol=1e-5 * (kernel == "reference"))


@every
@pytest.mark.parametrize("kernel", ["auto", "reference"])
def test_autocast_changes_nothing(name, kernel):
    plain = qsr.pack(trained(name), kernel)(LR)
    with torch.autocast("cpu", torch.bfloat16):
        sr = qsr.pack(trained(name), kernel)(LR)
    assert sr.dtype == torch.float32 and torch.equal(sr, plain)


def test_autocast_leaves_a_packed_matrix_product_its_integers():
    product = qsr.QMatmul(bits=8)
    a, b = torch.randn(2, 50, 64), torch.randn(2, 64, 40)
    product.left_quantizer.calibrate(a)
    product.right_quantizer.calibrate(b)
    packed = qsr.pack(product)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(packed(a, b), packed(a, b.clone()))
        under = packed(a, b)
    assert torch.equal(under, packed(a, b))


@every
def test_modes_of_autograd_change_nothing(name):
    packed, leaf = qsr.pack(trained(name)), LR.clone().requires_grad_()
    for mode in (torch.inference_mode, torch.no_grad, torch.enable_grad, torch.inference_mode):
        with mode():
            sr = packed(leaf)
        assert torch.equal(sr, expected(name)) and not sr.requires_grad


# Networks of other types, and copies --------------------------------------------------------------


@every
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_a_network_of_another_type_is_packed_as_float32(name, dtype):
    net = copy.deepcopy(trained(name)).to(dtype)
    packed = qsr.pack(net)
    assert torch.equal(packed(LR), qsr.pack(copy.deepcopy(net).float())(LR))
    assert net.head.weight.dtype == dtype  # which is left as it was


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("packed", ["network", "layer", "product"])
def test_packed_layers_do_not_change_their_type(packed, dtype):
    if packed == "network":
        model = qsr.pack(trained("C"))
    elif packed == "layer":
        net = qsr.quantize(nn.Sequential(nn.Conv2d(3, 4, 3)), 4)
        qsr.calibrate(net, LR)
        model = qsr.pack(net)
    else:
        product = qsr.QMatmul(bits=4)
        product.left_quantizer.calibrate(LR)
        product.right_quantizer.calibrate(LR)
        model = qsr.pack(product)
    with pytest.raises(TypeError, match=f"do not become {dtype}"):
        model.to(dtype)
    assert model.to(torch.float32).float().to("cpu") is model


@every
def test_a_copy_a_pickle_and_a_saved_module_give_the_same_bytes(name):
    packed = qsr.pack(trained(name))
    packed(LR)
    file = io.BytesIO()
    torch.save(packed, file)
    file.seek(0)
    copies = (
        copy.deepcopy(packed),
        pickle.loads(pickle.dumps(packed)),
        torch.load(file, weights_only=False),
    )
    for other in copies:
        assert other._program is None  # which belongs to this processor, and is derived
        assert torch.equal(other(LR), expected(name))


def test_values_that_are_loaded_into_a_copy_reach_it_and_not_the_original():
    packed = qsr.pack(trained("C"))
    packed(LR)
    other = copy.deepcopy(packed)
    other(LR)
    program = packed.program
    changed = {k: v + 1 if k.endswith("head.bias") else v for k, v in packed.state_dict().items()}
    other.load_state_dict(changed)
    assert not torch.equal(other(LR), expected("C"))
    assert packed.program is program and torch.equal(packed(LR), expected("C"))


def test_a_program_does_not_outlive_the_device_it_was_planned_for():
    packed = qsr.pack(trained("C"))
    assert packed.program is not None
    assert packed.to("meta").program is None


# Pictures -----------------------------------------------------------------------------------------

LAYOUTS = {
    "channels last": lambda x: x.contiguous(memory_format=torch.channels_last),
    "rows and columns swapped": lambda x: x.transpose(2, 3).contiguous().transpose(2, 3),
    "every other column": lambda x: x.repeat_interleave(2, 3)[..., ::2],
    "part of a larger one": lambda x: torch.cat([x, x], 2)[:, :, : x.shape[2]],
    "turned back": lambda x: x.flip(3).flip(3),
    "a leaf with a gradient": lambda x: x.clone().requires_grad_(),
    "float64": lambda x: x.double(),
    "a parameter": lambda x: nn.Parameter(x.clone()),
}


@every
@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_layout_of_a_picture_changes_nothing(name, layout):
    packed, lr = qsr.pack(trained(name)), LAYOUTS[layout](LR)
    assert torch.equal(packed(lr), expected(name))
    assert torch.equal(qsr.upscale(lr, packed).float(), expected(name).clamp(0, 1))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_picture_of_16_bits_is_enlarged_in_float32_and_comes_back_in_its_type(dtype):
    packed, lr = qsr.pack(trained("C")), LR.to(dtype)
    sr = qsr.upscale(lr, packed)
    assert sr.dtype == dtype and torch.equal(sr, qsr.upscale(lr.float(), packed).to(dtype))


@pytest.mark.parametrize(
    "lr, error, words",
    [
        (LR[0], ValueError, "Pass lr[None]"),
        (LR.numpy(), TypeError, "`lr` is a ndarray"),
        ([[1.0]], TypeError, "`lr` is a list"),
        (LR > 0.5, TypeError, "torch.bool"),
        (LR.to(torch.uint8), TypeError, "Divide 8-bit pictures by 255"),
        (LR.to(torch.complex64), TypeError, "complex64"),
        (LR[:0], ValueError, "(0, 3, 9, 11)"),
        (LR.to("meta"), ValueError, "`lr` is on meta and the network on cpu"),
    ],
    ids=lambda x: x if isinstance(x, str) else "",
)
@pytest.mark.parametrize("kernel", ["auto", "reference"])
def test_a_packed_network_refuses_in_one_line_what_is_no_batch_of_pictures(
    lr, error, words, kernel
):
    with pytest.raises(error) as raised:
        qsr.pack(trained("C"), kernel)(lr)
    assert words in str(raised.value) and "\n" not in str(raised.value)


@pytest.mark.parametrize(
    "lr, words",
    [
        (LR * 255, "pictures lie in [0, 1]"),
        (LR * 4 - 2, "pictures lie in [0, 1]"),
        (LR.to("meta"), "holds no values"),
    ],
    ids=["0 to 255", "-2 to 2", "meta"],
)
def test_upscale_refuses_values_that_would_come_out_white_or_black(lr, words):
    with pytest.raises(ValueError) as raised:
        qsr.upscale(lr, qsr.pack(trained("C")))
    assert words in str(raised.value) and "\n" not in str(raised.value)


def test_upscale_takes_a_little_noise_and_overshoot():
    packed = qsr.pack(trained("C"))
    for lr in (LR * 1.4 - 0.2, LR * 3 - 1):
        assert torch.equal(qsr.upscale(lr, packed), packed(lr).clamp(0, 1))


def test_pictures_without_numbers_stay_visible_in_a_network_without_upscale():
    sr = qsr.pack(trained("C"))(torch.full((1, 3, 8, 8), float("nan")))
    assert sr.isnan().all()


# Whole numbers ------------------------------------------------------------------------------------

WHOLE = [np.int64(4), np.int32(4), np.uint8(4), torch.tensor(4)]
NOT_WHOLE = [4.0, np.float64(4), True, np.True_, "4", None]


@pytest.mark.parametrize("four", WHOLE, ids=repr)
def test_a_whole_number_of_any_kind_does_what_an_int_does(four, tmp_path):
    two = four // 2
    options = {"features": 2 * four, "blocks": two, "depths": (two,)}
    config = qsr.quantsr_c(two, four, **options)
    assert config == qsr.quantsr_c(2, 4, features=8, blocks=2, depths=(2,))
    assert config == qsr.quantsr_c(two, (four, four), **options) or config.bits == 4
    net = qsr.QuantSR(config)
    qsr.calibrate(net, LR)
    packed = qsr.pack(net)
    qsr.save(tmp_path / "packed.qsr", packed)  # with its configuration as JSON
    assert qsr.load(tmp_path / "packed.qsr").config == config
    assert torch.equal(packed(LR, blocks=two), packed(LR, blocks=2))
    assert qsr.quantize(nn.Conv2d(3, 4, 3), four).input_quantizer.bits == 4
    spec = QuantSpec(four)
    assert (spec.qmin, spec.qmax) == (-8, 7)  # in numpy's bytes -8 would be 248
    assert type(qsr.RLQ(four).bits) is int


@pytest.mark.parametrize("four", NOT_WHOLE, ids=repr)
@pytest.mark.parametrize(
    "make",
    [
        lambda n: qsr.quantsr_c(2, (n, 4)),
        lambda n: qsr.quantsr_t(2, 4, heads=n),
        lambda n: qsr.quantsr_c(2, 4, blocks=n),
        lambda n: qsr.quantsr_c(2, 4, depths=(32, n)),
        lambda n: qsr.quantize(nn.Conv2d(3, 4, 3), n),
        lambda n: qsr.RLQ(n),
        lambda n: QuantSpec(n),
        lambda n: qsr.DepthPlan.full(4).from_order((0, 1, 2, 3), n),
    ],
    ids=["bits", "heads", "blocks", "depths", "quantize", "RLQ", "QuantSpec", "plan"],
)
def test_what_is_no_whole_number_is_refused_in_one_line(make, four):
    with pytest.raises((TypeError, ValueError), match="it is a whole number") as raised:
        make(four)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("bits", [(4,), (4, 4, 4), ()])
def test_bits_are_one_width_or_two(bits):
    for make in (lambda: qsr.quantsr_c(2, bits), lambda: qsr.quantize(nn.Linear(3, 4), bits)):
        with pytest.raises(ValueError, match="one width or"):
            make()


def test_networks_of_other_types_may_be_packed_by_several_threads():
    nets = [copy.deepcopy(trained("C")).to(t) for t in (torch.float16, torch.float64)] * 4
    with ThreadPoolExecutor(4) as pool:
        packed = list(pool.map(qsr.pack, nets))
    for one, net in zip(packed, nets, strict=True):
        assert torch.equal(one(LR), qsr.pack(net)(LR))
