"""Step sizes before training: by the start of papers, and by the least error of outputs."""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_quantize import KINDS, attention_and_inputs, quietly
from torch import nn

import qsr


def error(low, net, *inputs):
    """Mean over outputs of the squared difference."""
    with torch.no_grad():
        found, wanted = low(*inputs), net(*inputs)
    found, wanted = (y[0] if isinstance(y, tuple) else y for y in (found, wanted))
    return (found - wanted).square().mean()


def both(net, *inputs, **options):
    """The error of a layer by each method."""
    errors = {}
    for method in ("start", "output"):
        low = quietly(net, **options)
        qsr.calibrate(low, *inputs, method=method)
        errors[method] = error(low, net, *inputs)
    return errors


@pytest.mark.parametrize("per_channel", [False, True])
@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=5)
@given(bits=st.sampled_from([2, 3, 4, 8]), tail=st.floats(1, 30), seed=st.integers(0, 99))
def test_by_outputs_no_layer_is_further_from_float_than_by_the_start(
    kind, per_channel, bits, tail, seed
):
    make, shape = KINDS[kind]
    torch.manual_seed(seed)
    layer, x = make(), torch.randn(shape)
    x.view(-1)[::7] *= tail
    errors = both(layer, x, bits=bits, per_channel=per_channel)
    assert errors["output"] <= errors["start"] * (1 + 1e-5)


def test_a_network_with_outliers_gains_most_where_the_start_clips_them():
    torch.manual_seed(1)
    net = nn.Sequential(nn.Conv2d(4, 8, 3), nn.LeakyReLU(0.05), nn.Conv2d(8, 4, 3))
    x = torch.randn(2, 4, 24, 24)
    x[:, 0] *= torch.where(torch.rand(24, 24) < 0.01, 100.0, 1.0)
    errors = both(net, x, bits=8, per_channel=True)
    assert errors["output"] < 0.05 * errors["start"]


def test_after_a_leaky_relu_codes_may_be_unsigned():
    x = torch.nn.functional.leaky_relu(torch.randn(2, 4, 24, 24), 0.001)
    low = quietly(nn.Conv2d(4, 4, 3), 3)
    qsr.calibrate(low, x, method="output")
    assert low.input_quantizer.signed is False
    qsr.calibrate(low := quietly(nn.Conv2d(4, 4, 3), 3), torch.randn_like(x), method="output")
    assert low.input_quantizer.signed is True
    qsr.calibrate(low := quietly(nn.Conv2d(4, 4, 3), 3), x)
    assert low.input_quantizer.signed is True  # the start asks only for the smallest value


def test_the_bias_takes_up_the_mean_error_of_its_channel():
    net, x = nn.Conv2d(4, 4, 3), torch.rand(2, 4, 24, 24)
    low = quietly(net, 2)
    qsr.calibrate(low, x, method="output")
    difference = (low(x) - net(x)).detach().mean((0, 2, 3))
    assert difference.abs().max() < 1e-5
    assert not torch.equal(low.bias, net.bias)


def test_by_the_start_nothing_but_quantizers_changes():
    net, x = nn.Conv2d(4, 4, 3), torch.rand(2, 4, 24, 24)
    low = quietly(net, 2)
    qsr.calibrate(low, x, method="start")
    assert torch.equal(low.bias, net.bias)
    assert torch.allclose(low.input_quantizer.step_size, 2 * x.mean() / 3**0.5)


def test_attentions_and_products_are_calibrated_by_outputs_too():
    net, _, inputs = attention_and_inputs({})
    for attention_bits in (None, 4):
        errors = both(net, *inputs, bits=4, attention_bits=attention_bits)
        assert errors["output"] < errors["start"]


@pytest.mark.parametrize("quantizer", [qsr.PAMS, qsr.DoReFa])
def test_baselines_keep_the_start_of_their_papers(quantizer):
    net, x = nn.Conv2d(4, 4, 3), torch.randn(2, 4, 12, 12)
    low = [quietly(net, 4, quantizer=quantizer) for _ in range(2)]
    for each, method in zip(low, ("start", "output"), strict=True):
        qsr.calibrate(each, x, method=method)
    for a, b in zip(*(each.modules() for each in low), strict=True):
        if isinstance(a, qsr.Quantizer):
            assert torch.equal(a.step_size, b.step_size)


def test_a_layer_of_zeros_stays_calibrated():
    net, x = nn.Conv2d(2, 2, 3), torch.zeros(1, 2, 8, 8)
    nn.init.zeros_(net.weight)
    low = quietly(net, 4)
    qsr.calibrate(low, x, method="output")
    assert low.weight_quantizer.step_size > 0 and low.input_quantizer.step_size > 0
    assert torch.equal(low(x), net(x))


def test_a_layer_used_twice_is_calibrated_by_what_came_first():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Conv2d(2, 2, 3, padding=1)

        def forward(self, x):
            return self.layer(self.layer(x))

    net, x = quietly(Twice()), torch.randn(1, 2, 8, 8)
    once = copy.deepcopy(net.layer)
    qsr.calibrate(once, x, method="output")
    qsr.calibrate(net, x, method="output")
    assert torch.equal(net.layer.input_quantizer.step_size, once.input_quantizer.step_size)


def test_another_method_is_refused():
    with pytest.raises(ValueError, match="`method` is 'mse'; it is one of 'start', 'output'"):
        qsr.calibrate(quietly(nn.Conv2d(2, 2, 3)), torch.rand(1, 2, 8, 8), method="mse")
