"""A packed network runs the integers that its training graph pretends to run."""

import functools

import pytest
import torch
from hypothesis import given
from hypothesis.strategies import floats
from torch import nn
from torch.nn import functional as F

import qsr
from qsr.config import NetworkConfig
from qsr.integer import kernels
from qsr.integer.packed_layers import FloatConv2d, PackedConv2d, PackedLinear, PackedMatmul
from qsr.integer.packing import PackedModel
from qsr.integer.unpacking import _factor

SMALL = {"features": 8, "blocks": 3, "depths": (3, 2, 1)}
SMALL_SWIN = {**SMALL, "layers": 2, "heads": 2, "window": 4}
CONFIGS = {
    "c": qsr.quantsr_c(2, 4, **SMALL),
    "c-w2a4": qsr.quantsr_c(4, (2, 4), **SMALL),
    "c-8bit": qsr.quantsr_c(3, 8, **SMALL),
    "c-lsq": qsr.quantsr_c(2, 3, quantizer="lsq", **SMALL),
    "c-per-channel": qsr.quantsr_c(2, 4, per_channel=True, **SMALL),
    "c-released": qsr.quantsr_c(2, 4, quantize_body_conv=False, **SMALL),
    "t": qsr.quantsr_t(2, 4, **SMALL_SWIN),
    "t-lsq-per-channel": qsr.quantsr_t(2, 4, quantizer="lsq", per_channel=True, **SMALL_SWIN),
    "t-attention": qsr.quantsr_t(4, 4, attention_bits=(8, 4), **SMALL_SWIN),
}


@functools.cache
def trained(name: str) -> qsr.QuantSR:
    """A small network with moved parameters, as training leaves them: no tau, no shortcut at its
    starting value, and a block order of its own."""
    torch.manual_seed(1)
    net = qsr.QuantSR(CONFIGS[name])
    qsr.calibrate(net, torch.rand(2, 3, 12, 12))
    with torch.no_grad():
        for parameter_name, p in net.named_parameters():
            if parameter_name.endswith(("tau", "step_size", "shortcut.scale")):
                p.mul_(1 + 0.1 * torch.randn(p.shape)).add_(0.05 * p.abs().mean() + 1e-3)
    net.block_order.copy_(torch.tensor([1, 2, 0]))
    return net.eval()


# Named kernels that run every layer of a network; the others take no layer of such bits or shape.
ANY = {"auto", "direct-vnni", "direct-avx2", "popcnt", "scalar"}
RUN = {
    **{name: ANY | {"winograd-vnni", "winograd-avx2"} for name in CONFIGS},
    "c-8bit": ANY,
    **{name: ANY for name in CONFIGS if name.startswith("t")},  # linear layers
}
RUN["c-lsq"] = RUN["c-lsq"] | {"vpopcnt"}  # 3 bits


def refused(kernel):
    return pytest.raises(ValueError, match=f"`kernel` is '{kernel}', which does not run")


# Layers -------------------------------------------------------------------------------------------


def integer_layer(layer, x, multiply):
    """The three lines of the packed format's contract, from codes and steps alone."""
    codes, weights = layer.input_quantizer.codes(x), layer.weight_quantizer.codes(layer.weight)
    acc = multiply(codes.double(), weights.double())  # exact: far below 2^53
    steps = layer.input_quantizer.step_size * layer.weight_quantizer.step_size
    shape = [1, -1] + [1] * (acc.ndim - 2)
    return acc.float() * steps.detach().view(shape) + layer.bias.detach().view(shape)


@pytest.mark.parametrize("kernel", ["auto", *kernels.available("conv2d")])
@pytest.mark.parametrize("quantizer", [qsr.RLQ, qsr.LSQ])
@pytest.mark.parametrize("per_channel", [False, True])
def test_a_packed_convolution_is_three_float_operations_on_exact_sums(
    kernel, quantizer, per_channel
):
    layer = qsr.QConv2d(
        12, 6, (3, 2), bits=(3, 4), quantizer=quantizer, per_channel=per_channel,
        stride=(2, 1), padding=(1, 0), groups=2,
    )  # fmt: skip
    x = torch.randn(2, 12, 7, 6)
    qsr.calibrate(layer, x)
    multiply = functools.partial(F.conv2d, stride=(2, 1), padding=(1, 0), groups=2)
    if kernel not in ANY | {"reference"}:  # a stride, two groups, 3 by 4 bits
        with refused(kernel):
            qsr.pack(layer, kernel)
        return
    packed = qsr.pack(layer, kernel)
    assert isinstance(packed, PackedConv2d)
    assert torch.equal(packed(x), integer_layer(layer, x, multiply))


@pytest.mark.parametrize("kernel", ["auto", *kernels.available("linear")])
def test_a_packed_linear_layer_likewise(kernel):
    layer = qsr.QLinear(70, 9, bits=4)
    x = torch.randn(3, 70).relu()
    qsr.calibrate(layer, x)
    if kernel not in ANY | {"reference"}:
        with refused(kernel):
            qsr.pack(layer, kernel)
        return
    packed = qsr.pack(layer, kernel)
    assert isinstance(packed, PackedLinear)
    assert torch.equal(packed(x), integer_layer(layer, x, F.linear))
    deep = torch.randn(2, 5, 3, 70)
    assert torch.equal(packed(deep)[1, 2], packed(deep[1, 2]))
    assert packed(deep).shape == (2, 5, 3, 9)


def test_a_packed_matrix_product_is_exact():
    product = qsr.QMatmul(bits=(8, 4))
    a, b = torch.randn(2, 3, 5).softmax(-1), torch.randn(2, 5, 4)
    product.left_quantizer.calibrate(a)
    product.right_quantizer.calibrate(b)
    packed = qsr.pack(product)
    assert isinstance(packed, PackedMatmul)
    left, right = product.left_quantizer.codes(a), product.right_quantizer.codes(b)
    steps = product.left_quantizer.step_size * product.right_quantizer.step_size
    assert torch.equal(packed(a, b), (left.double() @ right.double()).float() * steps)
    with pytest.raises(ValueError, match="not exact in float32"):
        packed(torch.zeros(1, 2**14), torch.zeros(2**14, 1))


def test_a_step_that_training_drove_below_zero_packs_as_the_forward_pass_takes_it():
    layer = qsr.QConv2d(3, 3, 1)
    qsr.calibrate(layer, torch.randn(1, 3, 2, 2))
    with torch.no_grad():
        layer.weight_quantizer.step_size.fill_(-1.0)
    packed = qsr.pack(layer)
    x = torch.randn(1, 3, 4, 4)
    torch.testing.assert_close(packed(x), layer(x))
    assert (packed.scale > 0).all()


def test_a_quantizer_with_a_shift_of_its_own_packs():
    class Centred(qsr.LSQ):
        def shift(self, x):
            return x.new_tensor(0.3)

    layer = qsr.QLinear(6, 4, bits=4, quantizer=Centred)
    x = torch.randn(5, 6)
    qsr.calibrate(layer, x)
    torch.testing.assert_close(qsr.pack(layer)(x), layer(x))
    product = qsr.QMatmul(bits=4, quantizer=Centred)
    product.left_quantizer.calibrate(x)
    product.right_quantizer.calibrate(x)
    with pytest.raises(ValueError, match="packed products have no shift"):
        qsr.pack(product)


# Networks -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CONFIGS)
def test_a_packed_network_equals_the_reference_bit_for_bit_at_every_depth(name):
    net = trained(name)
    lr = torch.rand(2, 3, 7, 10)
    slow = qsr.pack(net, "reference")
    for kernel in ("auto", *kernels.available("conv2d")[:-1]):
        if kernel not in RUN[name]:
            with refused(kernel):
                qsr.pack(net, kernel)
            continue
        fast = qsr.pack(net, kernel)
        for blocks in (None, 3, 2, 1):
            expected, plan = slow(lr, blocks), net.plan(blocks)
            assert torch.equal(fast.network(lr, plan), expected), (kernel, blocks)
            # As a program: the same features (test_program_*), the tail summed in another order.
            torch.testing.assert_close(fast(lr, blocks), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", CONFIGS)
def test_a_packed_network_is_close_to_its_training_graph_at_every_depth(name):
    net = trained(name)
    packed = qsr.pack(net)
    lr = torch.rand(2, 3, 9, 8)
    for blocks in (3, 2, 1):
        with torch.no_grad():
            sr = net(lr, net.plan(blocks))
        difference = (packed(lr, blocks) - sr).abs()
        # Equal but for rounding in float32 and the rare code that lies on a threshold.
        assert difference.mean() < 2e-4 * sr.std()


def test_depths_of_a_packed_network_differ_and_no_depth_means_all_blocks():
    packed, lr = qsr.pack(trained("c")), torch.rand(1, 3, 5, 5)
    assert torch.equal(packed(lr), packed(lr, blocks=3))
    assert not torch.equal(packed(lr, blocks=3), packed(lr, blocks=2))
    for blocks in (0, 4, -1):
        with pytest.raises(ValueError, match=f"`count` is {blocks}"):
            packed(lr, blocks=blocks)


@pytest.mark.parametrize("name", ["c", "t"])
def test_threads_and_batch_change_nothing(name):
    packed, lr = qsr.pack(trained(name)), torch.rand(3, 3, 12, 20)
    one = packed(lr)
    try:
        torch.set_num_threads(3)
        assert torch.equal(packed(lr), one)
        assert torch.equal(packed(lr[1:2]), one[1:2])
    finally:
        torch.set_num_threads(1)


def test_a_strip_with_its_halo_gives_the_bits_of_the_whole_picture():
    # Three blocks of two 3x3 convolutions, head, body_conv and tail (two 3x3, one of them after
    # the shuffle): 6 + 1 + 1 + 2 = 10 pixels are enough; whole tiles of the tail are 4 rows.
    packed, lr = qsr.pack(trained("c")), torch.rand(1, 3, 40, 6)
    whole = packed(lr)
    strip = packed(lr[:, :, 4:36])
    assert torch.equal(strip[:, :, 24:40], whole[:, :, 32:48])


def test_packing_copies_and_leaves_the_trained_network_alone():
    net = trained("c")
    before = {name: value.clone() for name, value in net.state_dict().items()}
    packed = qsr.pack(net.train())
    assert net.training and not packed.network.training
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert not any(isinstance(m, qsr.QConv2d) for m in packed.modules())
    assert not any(p.requires_grad for p in packed.parameters())
    assert not packed(torch.rand(1, 3, 4, 4)).requires_grad
    net.eval()


def test_a_sliced_network_packs_into_less():
    net = trained("c")
    sliced = qsr.pack(qsr.slice_depth(net, net.plan(1)))
    lr = torch.rand(1, 3, 6, 6)
    assert torch.equal(sliced(lr), qsr.pack(net)(lr, blocks=1))
    assert sum(isinstance(m, PackedConv2d) for m in sliced.modules()) == 3


def test_an_empty_packed_network_takes_the_values_of_a_full_one():
    for name in CONFIGS:
        packed = qsr.pack(trained(name))
        empty = PackedModel.empty(packed.config)
        empty.network.load_state_dict(packed.network.state_dict())
        lr = torch.rand(1, 3, 5, 6)
        assert torch.equal(empty(lr), packed(lr)), name
        assert isinstance(empty.config, NetworkConfig)


def test_float_convolutions_of_a_quantsr_sum_in_a_fixed_order_and_others_stay():
    kinds = [type(m) for m in qsr.pack(trained("c")).modules()]
    assert kinds.count(FloatConv2d) == 3  # head, upsampler, last
    assert nn.Conv2d not in kinds
    own = qsr.quantize(nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 3, 3)), skip=["0"])
    qsr.calibrate(own, torch.rand(1, 3, 8, 8))
    assert [type(m) for m in qsr.pack(own)] == [nn.Conv2d, PackedConv2d]


def test_a_layer_used_twice_is_packed_once():
    layer = qsr.QConv2d(3, 3, 1)
    net = nn.Sequential(layer, nn.ReLU(), layer)
    qsr.calibrate(net, torch.rand(1, 3, 4, 4))
    packed = qsr.pack(net)
    assert packed[0] is packed[2]


# Refusals -----------------------------------------------------------------------------------------


def signed_but_not_calibrated():
    net = qsr.QMatmul()
    net.left_quantizer.signed = net.right_quantizer.signed = True
    return net


def calibrated_weights_alone():
    layer = qsr.QConv2d(3, 3, 1)
    layer.weight_quantizer.calibrate(layer.weight)
    layer.input_quantizer.signed = True
    return layer


def reflecting():
    layer = qsr.QConv2d(3, 3, 3, padding=1, padding_mode="reflect")
    qsr.calibrate(layer, torch.rand(1, 3, 9, 9))
    return layer


VALUES = ("weight", "bias", "input_quantizer.step_size", "input_quantizer.tau")


def diverged(name):
    layer = qsr.QConv2d(3, 3, 1)
    qsr.calibrate(layer, torch.rand(1, 3, 9, 9))
    layer.get_parameter(name).data.view(-1)[0] = float("nan")
    return layer


@pytest.mark.parametrize(
    ("make", "kernel", "words"),
    [
        (lambda: nn.Conv2d(3, 3, 3), "auto", "nothing to pack"),
        (lambda: qsr.QuantSR(qsr.srresnet(2, blocks=1, features=4)), "auto", "nothing to pack"),
        (lambda: qsr.QuantSR(qsr.quantsr_c(2, blocks=1, features=4)), "auto", "qsr.calibrate"),
        (lambda: qsr.QConv2d(3, 3, 1), "auto", "qsr.calibrate"),
        (calibrated_weights_alone, "auto", "qsr.calibrate"),
        (signed_but_not_calibrated, "auto", "qsr.calibrate"),
        (reflecting, "auto", "with mode 'reflect'"),
        *((functools.partial(diverged, name), "auto", "no finite numbers") for name in VALUES),
        (lambda: qsr.pack(trained("c")), "auto", "packed already"),
        (lambda: trained("c"), "warp", "`kernel` is 'warp'"),
    ],
)
def test_what_cannot_be_packed_is_refused_in_one_line(make, kernel, words):
    with pytest.raises(ValueError) as raised:
        qsr.pack(make(), kernel)
    assert words in str(raised.value)
    assert "\n" not in str(raised.value)


# And back -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CONFIGS)
def test_an_unpacked_network_is_the_same_function_and_packs_to_the_same_bits(name):
    packed = qsr.pack(trained(name))
    net = qsr.unpack(packed)
    again = qsr.pack(net).state_dict()
    assert again.keys() == packed.state_dict().keys()
    for key, value in packed.state_dict().items():
        assert torch.equal(again[key], value), key
    assert net.order == (1, 2, 0) and not net.training
    codes = [layer.weight_quantizer.codes(layer.weight) for layer in quantised(net)]
    before = [layer.weight_quantizer.codes(layer.weight) for layer in quantised(trained(name))]
    assert codes and all(map(torch.equal, codes, before))
    net(torch.rand(1, 3, 8, 8)).sum().backward()  # it learns
    assert all(layer.weight.grad is not None for layer in quantised(net))


def quantised(net):
    return [m for m in net.modules() if isinstance(m, (qsr.QConv2d, qsr.QLinear))]


@given(floats(2**-20, 2**20, width=32), floats(2**-20, 2**20, width=32))
def test_a_factor_of_a_rounded_product_is_found_that_gives_the_product_again(one, other):
    one, other = torch.tensor(one), torch.tensor(other)
    product = one * other
    found = _factor(product, one)
    assert found * one == product
    torch.testing.assert_close(found, other, rtol=3e-7, atol=0)


def test_what_cannot_be_unpacked_says_why():
    with pytest.raises(TypeError, match="`model` is a QuantSR; qsr.unpack takes a packed"):
        qsr.unpack(trained("c"))
    for quantizer in ("pams", "dorefa"):
        net = qsr.QuantSR(qsr.quantsr_c(2, 4, quantizer=quantizer, **SMALL))
        qsr.calibrate(net, torch.rand(1, 3, 8, 8))
        with pytest.raises(ValueError, match=f"trained with '{quantizer}', whose steps follow"):
            qsr.unpack(qsr.pack(net))
