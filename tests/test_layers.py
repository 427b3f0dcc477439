"""QConv2d, QLinear, QMatmul, quantize() on a network of them, and the order of calibration.

Other kinds of layers, and what quantize() keeps and names, are in test_quantize.py.
"""

import functools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

import qsr
from qsr.quantizer import Quantizer


class Net(nn.Module):
    """What a user might bring: nested, grouped, strided, without bias, one layer used twice."""

    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, padding=1)
        self.body = nn.Sequential(
            nn.Conv2d(8, 8, 3, stride=2, padding=(1, 0), groups=2, bias=False), nn.ReLU()
        )
        self.twice = nn.Conv2d(8, 8, 1)
        self.heads = nn.ModuleDict({"a": nn.Linear(8, 5), "b": self.twice})

    def forward(self, x):
        x = self.heads["b"](self.twice(self.body(F.gelu(self.first(x)))))
        return self.heads["a"](x.mean((2, 3)))


def kinds(net):
    return {
        name: type(m).__name__
        for name, m in net.named_modules(remove_duplicate=False)
        if isinstance(m, (nn.Conv2d, nn.Linear))
    }


# Layers -------------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=40)
@given(
    bits=st.tuples(st.integers(2, 8), st.integers(2, 8)),
    stride=st.tuples(st.integers(1, 2), st.integers(1, 2)),
    padding=st.tuples(st.integers(0, 2), st.integers(0, 2)),
    groups=st.integers(1, 2),
    per_channel=st.booleans(),
    signed=st.booleans(),
    quantizer=st.sampled_from([qsr.RLQ, qsr.LSQ]),
    seed=st.integers(0, 2**20),
)
def test_a_layer_is_one_integer_convolution_times_the_product_of_its_steps(
    bits, stride, padding, groups, per_channel, signed, quantizer, seed
):
    torch.manual_seed(seed)
    layer = qsr.QConv2d(
        4, 6, 3, bits=bits, quantizer=quantizer, per_channel=per_channel,
        stride=stride, padding=padding, groups=groups,
    ).double()  # fmt: skip
    x = torch.randn(2, 4, 6, 7).double()
    x = x if signed else x.relu()
    qsr.calibrate(layer, x)
    if quantizer is qsr.RLQ:
        torch.nn.init.normal_(layer.input_quantizer.tau, std=0.2)
    assert layer.input_quantizer.signed == signed
    codes = layer.input_quantizer.codes(x)
    weights = layer.weight_quantizer.codes(layer.weight)
    acc = F.conv2d(codes.double(), weights.double(), None, stride, padding, 1, groups)
    scale = layer.input_quantizer.step_size * layer.weight_quantizer.step_size
    expected = acc * scale.view(1, -1, 1, 1) + layer.bias.view(1, -1, 1, 1)
    torch.testing.assert_close(layer(x), expected, rtol=1e-12, atol=1e-12)


def test_a_padded_pixel_has_code_zero_also_when_tau_moves_everything_else():
    # Every pixel becomes tau; were the padding quantised with the picture, corners would be like
    # the inside. As it is, a corner sees 4 of 9 taps and an edge 6.
    layer = qsr.QConv2d(1, 1, 3, bits=4, padding=1, bias=False)
    nn.init.ones_(layer.weight)
    qsr.calibrate(layer, torch.rand(1, 1, 3, 3))
    nn.init.ones_(layer.input_quantizer.tau)
    y = layer(torch.zeros(1, 1, 3, 3)).detach()
    taps = torch.tensor([[4.0, 6, 4], [6, 9, 6], [4, 6, 4]])
    torch.testing.assert_close(y[0, 0] / y[0, 0, 1, 1] * 9, taps)


def test_linear_quantises_along_its_last_dimension():
    layer = qsr.QLinear(5, 3, bits=4)
    x = torch.randn(2, 7, 5)
    qsr.calibrate(layer, x)
    nn.init.normal_(layer.input_quantizer.tau)
    torch.testing.assert_close(layer(x)[1, 2], layer(x[1, 2][None])[0])
    assert layer.input_quantizer.tau.shape == (5,)


def test_a_matrix_product_quantises_both_factors():
    product = qsr.QMatmul(bits=(8, 4))
    a, b = torch.randn(2, 3, 5).softmax(-1), torch.randn(2, 5, 4)
    product.left_quantizer.calibrate(a)
    product.right_quantizer.calibrate(b)
    assert (product.left_quantizer.bits, product.right_quantizer.bits) == (8, 4)
    assert (product.left_quantizer.signed, product.right_quantizer.signed) == (False, True)
    expected = product.left_quantizer(a) @ product.right_quantizer(b)
    assert torch.equal(product(a, b), expected)
    assert not torch.equal(product(a, b), a @ b)


# quantize() ---------------------------------------------------------------------------------------


def test_quantize_copies_weights_and_leaves_the_original_alone():
    net = Net().double()
    quantized = qsr.quantize(net, bits=(3, 5))
    assert set(kinds(net).values()) == {"Conv2d", "Linear"}
    assert set(kinds(quantized).values()) == {"QConv2d", "QLinear"}
    for name, value in net.state_dict().items():
        copied = quantized.state_dict()[name]
        assert torch.equal(copied, value)
        assert copied.dtype == torch.float64
        assert copied.data_ptr() != value.data_ptr()
    layer = quantized.body[0]
    assert (layer.stride, layer.padding, layer.groups, layer.bias) == ((2, 2), (1, 0), 2, None)
    assert (layer.weight_quantizer.bits, layer.input_quantizer.bits) == (3, 5)


def test_a_layer_used_in_two_places_stays_one_layer():
    quantized = qsr.quantize(Net(), bits=4)
    assert isinstance(quantized.twice, qsr.QConv2d)
    assert quantized.heads["b"] is quantized.twice


@pytest.mark.parametrize(
    ("skip", "left"),
    [
        (["first"], {"first"}),
        (["heads"], {"heads.a", "heads.b", "twice"}),  # which is heads.b
        (["body.*", "heads.a"], {"body.0", "heads.a"}),
        (["*"], {"first", "body.0", "twice", "heads.a", "heads.b"}),
    ],
)
def test_skipped_layers_stay_in_full_precision(skip, left):
    found = kinds(qsr.quantize(Net(), bits=4, skip=skip))
    assert {name for name, kind in found.items() if kind in ("Conv2d", "Linear")} == left


def test_skipping_a_layer_that_is_not_there_is_an_error():
    with pytest.raises(ValueError, match="'tail'.*'first'"):
        qsr.quantize(Net(), skip=["first", "tail"])


def test_widths_may_be_given_by_the_names_of_layers():
    net = qsr.quantize(Net(), bits={"first": 8, "*": (2, 4)})
    assert (net.first.weight_quantizer.bits, net.first.input_quantizer.bits) == (8, 8)
    others = [m for n, m in net.named_modules() if isinstance(m, qsr.QConv2d) and n != "first"]
    assert others and all(m.weight_quantizer.bits == 2 for m in others)
    assert all(m.input_quantizer.bits == 4 for m in others)
    with pytest.raises(ValueError, match="`bits` names no width for the layer"):
        qsr.quantize(Net(), bits={"first": 8})
    with pytest.raises(ValueError, match="'frist', which no layer is called"):
        qsr.quantize(Net(), bits={"frist": 8, "*": 4})


def test_a_lone_layer_is_quantised_too():
    assert isinstance(qsr.quantize(nn.Linear(3, 2), bits=2), qsr.QLinear)


class Steeper(Quantizer):
    """The quantizer that the documentation promises in a few lines."""

    def slope(self, u):
        return 6 * u * (1 - u)


@pytest.mark.parametrize(
    "quantizer", [qsr.RLQ, qsr.LSQ, Steeper, functools.partial(qsr.RLQ, sharpness=2.0)]
)
def test_a_network_of_one_s_own_is_quantised_calibrated_trained_and_packed(quantizer):
    net = qsr.quantize(Net(), bits=4, quantizer=quantizer, skip=["first"])
    x, target = torch.randn(4, 3, 8, 8), torch.randn(4, 5)
    qsr.calibrate(net, x)
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-2)
    losses = []
    for _ in range(10):
        optimizer.zero_grad()
        loss = F.mse_loss(net(x), target)
        loss.backward()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in net.parameters())
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    packed = qsr.pack(net)
    torch.testing.assert_close(packed(x), net(x), rtol=1e-4, atol=1e-4)


# calibrate() --------------------------------------------------------------------------------------


def test_each_quantizer_is_calibrated_on_what_the_quantised_layers_before_it_make():
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 5, 3), nn.Conv2d(5, 3, 3))
    net = qsr.quantize(net, bits=2)
    x = torch.randn(2, 3, 9, 9)
    qsr.calibrate(net, x)
    steps = [net[i].input_quantizer.step_size.item() for i in (0, 2, 3)]
    assert [net[i].input_quantizer.signed for i in (0, 2, 3)] == [True, False, True]
    for i, step in zip((0, 2, 3), steps, strict=True):
        alone = qsr.RLQ(2, channels=net[i].in_channels)
        alone.calibrate(net[:i](x))  # all layers before it, quantised
        assert step == alone.step_size.item()
        weights = qsr.RLQ(2, signed=True)
        weights.calibrate(net[i].weight)
        assert net[i].weight_quantizer.step_size.item() == weights.step_size.item()


def test_a_layer_used_twice_is_calibrated_by_its_first_use():
    net = qsr.quantize(Net(), bits=4)
    x = torch.randn(2, 3, 8, 8)
    qsr.calibrate(net, x)
    alone = qsr.RLQ(4, channels=8)
    alone.calibrate(net.body(F.gelu(net.first(x))))
    assert net.twice.input_quantizer.step_size.item() == alone.step_size.item()


def test_calibration_leaves_no_hook_behind_even_when_it_fails():
    net = qsr.quantize(Net(), bits=4)
    before = [dict(m._forward_pre_hooks) for m in net.modules()]
    with pytest.raises(ValueError, match="not finite"):
        qsr.calibrate(net, torch.full((1, 3, 8, 8), float("nan")))
    assert [dict(m._forward_pre_hooks) for m in net.modules()] == before


def test_a_layer_that_never_runs_is_an_error_of_calibration():
    net = Net()
    net.spare = nn.Linear(2, 2)
    with pytest.raises(ValueError, match="never reached 'spare.weight_quantizer'"):
        qsr.calibrate(qsr.quantize(net), torch.randn(1, 3, 8, 8))


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (nn.Conv2d(3, 8, 3), (1, 3, 8, 8)),
        (nn.ConvTranspose2d(3, 8, 2, 2), (1, 3, 8, 8)),
        (nn.Conv1d(3, 8, 3), (1, 3, 8)),
        (nn.Linear(8, 8), (2, 8)),
    ],
    ids=lambda value: type(value).__name__,
)
@pytest.mark.filterwarnings("ignore:the network runs layer by layer")
def test_whole_numbers_are_refused_as_by_pytorch_in_training_and_packed(layer, shape):
    low, x = qsr.quantize(nn.Sequential(layer), 4), torch.rand(shape)
    pixels = (255 * x).byte()
    with pytest.raises(TypeError, match="Divide 8-bit pictures by 255"):
        qsr.calibrate(low, pixels)
    qsr.calibrate(low, x)
    for net in (low, qsr.pack(low)):
        with pytest.raises(TypeError, match="Divide 8-bit pictures by 255"):
            net(pixels)


def test_what_calibration_can_t_use_gets_a_clear_word():
    net, lr = nn.Sequential(nn.Conv2d(3, 8, 3)), torch.rand(1, 3, 8, 8)
    low = qsr.quantize(net, 4)
    for batch, error, word in (
        ([lr], TypeError, "is a list"),
        (lr.numpy(), TypeError, "is a ndarray"),
        (lr[:0], ValueError, "is empty"),
    ):
        with pytest.raises(error, match=word):
            qsr.calibrate(low, batch)


def test_a_network_that_was_not_calibrated_says_so():
    with pytest.raises(ValueError, match=r"qsr.calibrate\(net, batch\)"):
        qsr.quantize(Net())(torch.randn(1, 3, 8, 8))
