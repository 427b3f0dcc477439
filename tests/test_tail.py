"""The collapsed tail: one convolution that equals the layers it replaces, on every pixel."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

import qsr
from qsr.collapse import INSIDE, collapse, inside
from qsr.integer.tail import CollapsedTail, axis_classes, winograd_weights
from qsr.objective import Objective

torch.set_num_threads(1)
NETWORKS = {
    "C x4": qsr.srresnet(4, blocks=1, features=64),
    "C x3": qsr.srresnet(3, blocks=1, features=8),
    "C x2": qsr.srresnet(2, blocks=1, features=60),
    "T x4": qsr.swinir_s(4, blocks=1, features=60, layers=1),
}


@pytest.fixture(scope="module")
def networks():
    torch.manual_seed(5)
    return {name: qsr.QuantSR(config).eval() for name, config in NETWORKS.items()}


@pytest.fixture(scope="module")
def tails(networks):
    """Every network's tail, collapsed, once per kernel."""
    return {
        (name, kernel): CollapsedTail(
            net.tail, net.config.scale, net.config.pixel_range, net.mean.flatten(), 64, kernel
        )
        for name, net in networks.items()
        for kernel in CollapsedTail.kernels()
    }


def features_of(net, height, width, seed=0):
    """Features [1, C, H, W] of the size that trained networks have: up to the pixel range."""
    generator = torch.Generator().manual_seed(seed)
    size = (1, net.config.features, height, width)
    return torch.randn(size, generator=generator) * net.config.pixel_range / 3


def channels_last(features):
    """[1, C, H, W] -> [H, W, 64], rubbish in the channels that the network does not have."""
    filled = F.pad(features[0].permute(1, 2, 0), (0, 64 - features.shape[1]), value=7.0)
    return filled.contiguous()


@pytest.mark.parametrize("name", ["C x4", "C x2", "T x4"])
@pytest.mark.parametrize("size", [(1, 1), (1, 6), (2, 2), (5, 1), (3, 3), (2, 7), (6, 5)])
def test_in_float64_the_collapsed_weights_are_the_layers_to_the_last_digits(networks, name, size):
    net = networks[name]
    scale = net.config.scale
    tail = qsr.QuantSR(net.config).double().tail
    tail.load_state_dict(net.double().tail.state_dict())
    net.float()
    weights, biases = collapse(tail, scale)
    x = torch.randn(1, net.config.features, *size, dtype=torch.double)
    framed, got = F.pad(x, [2] * 4), torch.zeros(1, 3 * scale**2, *size, dtype=torch.double)
    for row, top, bottom in axis_classes(size[0]):
        for column, left, right in axis_classes(size[1]):
            window = framed[:, :, top : bottom + 4, left : right + 4]
            got[:, :, top:bottom, left:right] = F.conv2d(
                window, weights[row, column], biases[row, column]
            )
    torch.testing.assert_close(F.pixel_shuffle(got, scale), tail(x), rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", NETWORKS)
@given(st.integers(1, 21), st.integers(1, 21))
@settings(deadline=None, max_examples=12)
def test_every_kernel_is_within_1e_5_of_the_layers_everywhere(networks, tails, name, height, width):
    net = networks[name]
    features = features_of(net, height, width)
    with torch.no_grad():
        layers = net.reconstruct(features)[0]
    for kernel in CollapsedTail.kernels():
        difference = (tails[name, kernel](channels_last(features)) - layers).abs().max()
        assert difference < 1e-5, kernel


def test_a_ring_with_the_weights_of_the_inside_would_be_wrong(networks):
    net = networks["C x4"]
    weights, biases = collapse(net.tail, 4)
    for row, column in [(0, 0), (0, 1), (1, 0), (1, 2), (2, 1), (2, 2), (3, 1)]:
        assert (weights[row, column] - weights[1, 1]).abs().max() > 1e-4
    assert (biases[0, 0] - biases[1, 1]).abs().max() > 1e-4


# In training --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NETWORKS)
def test_what_is_collapsed_with_gradients_is_the_inside_of_what_is_read_off(networks, name):
    net = qsr.QuantSR(NETWORKS[name]).double()
    weights, biases = (x[INSIDE, INSIDE] for x in collapse(net.tail, net.config.scale))
    got, got_biases = inside(net.tail)
    ring = (weights.shape[-1] - got.shape[-1]) // 2  # of zeros, where one convolution sees less
    torch.testing.assert_close(F.pad(got, [ring] * 4), weights, rtol=0, atol=1e-15)
    torch.testing.assert_close(got_biases, biases, rtol=0, atol=1e-15)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("scale", [2, 3, 4])
def test_a_network_with_its_tail_collapsed_learns_what_the_inside_of_patches_teaches(
    scale, precision
):
    net = qsr.QuantSR(qsr.srresnet(scale, blocks=1, features=8))
    teacher = qsr.QuantSR(qsr.swinir_s(scale, blocks=1, features=12, layers=1))  # by windows of 8
    lr, hr = torch.rand(2, 3, 12, 10), torch.rand(2, 3, 12 * scale, 10 * scale)

    def gradients(loss):
        net.zero_grad()
        loss.backward()
        return torch.cat([p.grad.flatten() for p in net.parameters() if p.grad is not None])

    config = qsr.TrainConfig(collapsed_tail=True, distill=0.25, precision=precision)
    judge = Objective(net, config, teacher)
    loss, *_ = judge(lr, hr, net.plan(), judge.lesson(lr), torch.zeros(()))
    ring = [-scale] * 4
    sr, told = (F.pad(n(lr), ring) for n in (net, teacher))
    expected = 0.75 * F.l1_loss(sr, F.pad(hr, ring)) + 0.25 * F.l1_loss(sr, told.detach())
    difference = (gradients(loss) - (wanted := gradients(expected))).norm() / wanted.norm()
    assert difference < {"float32": 1e-3, "bfloat16": 0.1}[precision]


def test_a_tail_of_one_convolution_is_not_collapsed_for_training():
    with pytest.raises(ValueError, match="`collapsed_tail` is set.*one convolution already"):
        Objective(qsr.QuantSR(NETWORKS["T x4"]), qsr.TrainConfig(collapsed_tail=True))


# Running ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kernel", [k for k in CollapsedTail.kernels() if k != "reference"])
def test_strips_at_multiples_of_4_rows_and_threads_give_the_same_bits(networks, tails, kernel):
    features = channels_last(features_of(networks["C x4"], 40, 23))
    tail = tails["C x4", kernel]
    whole = tail(features)
    strip = tail(features[8:36])
    assert torch.equal(strip[:, 4 * 4 : 4 * 24], whole[:, 4 * 12 : 4 * 32])
    try:
        for threads in (2, 3, 4):
            torch.set_num_threads(threads)
            assert torch.equal(tail(features), whole)
    finally:
        torch.set_num_threads(1)


def test_winograd_weights_compute_the_convolution():
    # One tile by hand in float64: 8 x 8 inputs, 5 x 5 weights, 4 x 4 outputs.
    powers = torch.tensor([0.0, 1, -1, 2, -2, 0.5, -0.5], dtype=torch.double)
    outputs = torch.cat([powers[:, None] ** torch.arange(4), torch.eye(4)[3:].double()])  # [8, 4]
    inputs = torch.tensor(
        [
            [1, 0, -5.25, 0, 5.25, 0, -1, 0],
            [0, 1, 1, -4.25, -4.25, 1, 1, 0],
            [0, -1, 1, 4.25, -4.25, -1, 1, 0],
            [0, 0.5, 0.25, -2.5, -1.25, 2, 1, 0],
            [0, -0.5, 0.25, 2.5, -1.25, -2, 1, 0],
            [0, 2, 4, -2.5, -5, 0.5, 1, 0],
            [0, -2, 4, 2.5, -5, -0.5, 1, 0],
            [0, -1, 0, 5.25, 0, -5.25, 0, 1],
        ],
        dtype=torch.double,
    )
    tile = torch.randn(8, 8, dtype=torch.double)
    weight = torch.randn(1, 1, 5, 5, dtype=torch.double)
    products = winograd_weights(weight)[:, :, 0, 0] * (inputs @ tile @ inputs.T)
    expected = F.conv2d(tile[None, None], weight)[0, 0]
    torch.testing.assert_close(outputs.T @ products @ outputs, expected)


def test_a_tail_that_is_not_linear_or_a_kernel_that_is_not_there_is_refused():
    tail = nn.Sequential(nn.Conv2d(4, 12, 3, padding=1), nn.ReLU(), nn.PixelShuffle(2))
    with pytest.raises(ValueError, match="layer ReLU"):
        collapse(tail, 2)
    net = qsr.QuantSR(NETWORKS["C x3"])
    with pytest.raises(ValueError, match="`kernel` is 'warp'"):
        CollapsedTail(net.tail, 3, 255.0, net.mean.flatten(), kernel="warp")


def test_opcheck_of_the_operator(tails):
    tail = next(tail for (name, _), tail in tails.items() if name == "C x3")
    if tail.kernel == "reference":
        pytest.skip("no native code")
    features, sr = torch.randn(5, 6, 64), torch.empty(3, 15, 18)
    arguments = (features, tail.inside, tail.ring, tail.lane_biases, 3, tail.kernel, sr)
    torch.library.opcheck(torch.ops.qsr_native.tail.default, arguments)
