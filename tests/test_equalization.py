"""Powers of two moved between layers: the same float network, easier to quantise."""

import copy

import pytest
import torch
from test_quantize import quietly
from torch import nn
from torch.nn import functional as F

from qsr.calibration import calibrate
from qsr.equalization import equalize


class Foreign(nn.Module):
    """What equalisation can follow, and what it must leave alone."""

    def __init__(self):
        super().__init__()
        self.head = nn.Conv2d(3, 8, 3, padding=1)
        self.one, self.two = nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.gate, self.depthwise = nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.middle, self.twice = nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 1)
        self.tied, self.also = nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 1)
        self.also.weight = self.tied.weight
        self.act, self.norm, self.tail = nn.PReLU(8), nn.BatchNorm2d(8), nn.Conv2d(8, 3, 3)
        for layer in (self.head, self.one, self.middle, self.tied):
            layer.weight.data *= torch.logspace(-1, 1, 8).view(-1, 1, 1, 1)

    def forward(self, x):
        first = self.head(2 * x - 1)
        y = self.two(self.act(self.one(first))) + first
        y = y * torch.sigmoid(self.gate(y))
        y = F.interpolate(F.max_pool2d(y, 2), size=x.shape[2:], mode="bilinear")
        y = self.depthwise(F.relu(self.twice(self.twice(self.middle(y)))))
        y = self.norm(self.also(self.tied(y) - y)) + 0.5
        return self.tail(torch.cat([y[:, :4], y[:, 4:]], dim=1))


def spread(net):
    """`net` with channels between its two layers that differ by hundreds, the same function."""
    factor = torch.logspace(-2, 2, len(net[0].bias))
    net[0].weight.data *= factor.view(-1, 1, 1, 1)
    net[0].bias.data *= factor
    net[2].weight.data /= factor.view(1, -1, 1, 1)
    return net


@pytest.mark.parametrize("training", [False, True])
def test_an_equalised_network_gives_the_same_bits(training):
    net = Foreign().train(training)
    before = copy.deepcopy(net.state_dict())
    net.norm.momentum = 0.0
    x = torch.rand(2, 3, 12, 14)
    equal = equalize(net, x)
    assert torch.equal(equal(x), net(x)) and equal.training == training
    assert torch.equal(equal.eval()(x), net.eval()(x))
    changed = {n for n, p in equal.named_parameters() if not torch.equal(p, before[n])}
    assert {"head.weight", "one.weight", "two.weight", "gate.weight", "middle.weight"} <= changed
    left = ("depthwise", "twice", "tied", "also", "act", "norm", "tail")
    assert not any(name.startswith(left) for name in changed)
    assert torch.equal(net.one.weight, before["one.weight"])


def test_channels_of_unlike_size_lose_less_after_it():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 16, 3), nn.LeakyReLU(0.1), nn.Conv2d(16, 3, 3))
    spread(net)
    x, errors = torch.rand(2, 3, 24, 24), []
    for each in (net, equalize(net, x)):
        low = quietly(each, 4, per_channel=True)
        calibrate(low, x, method="output")
        errors.append((low(x) - net(x)).square().mean())
    assert errors[1] < 0.3 * errors[0]


def test_a_dead_channel_and_a_layer_of_zeros_are_no_trouble():
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 3, 3)).requires_grad_(False)
    net[0].weight[0], net[0].bias[0] = 0, -1
    x = torch.rand(1, 3, 8, 8)
    assert torch.equal(equalize(net, x)(x), net(x))
    net[2].weight.zero_()
    assert torch.equal(equalize(net, x)(x), net(x))


def test_a_sum_that_spreads_one_channel_over_all_keeps_its_channels():
    class Spread(nn.Module):
        def __init__(self):
            super().__init__()
            self.wide, self.thin = nn.Conv2d(3, 8, 1), nn.Conv2d(3, 1, 1)
            self.last = nn.Conv2d(8, 3, 1)
            self.wide.weight.data[0] *= 100

        def forward(self, x):
            return self.last(self.wide(x) + self.thin(x))

    net, x = Spread(), torch.rand(1, 3, 8, 8)
    assert torch.equal(equalize(net, x)(x), net(x))


def test_a_forward_that_branches_is_refused_with_its_reason():
    class Branch(nn.Module):
        def forward(self, x):
            return x if x.sum() > 0 else -x

    with pytest.raises(ValueError, match=r"cannot follow this Branch \(symbolically traced"):
        equalize(Branch(), torch.rand(1, 3, 8, 8))
