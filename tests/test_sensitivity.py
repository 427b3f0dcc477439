"""Which layer costs most at few bits: one that was planted, and bits within a budget."""

import pytest
import torch
from torch import nn

import qsr
from qsr.images.data import Pair, held_out
from qsr.runs.sensitivity import sensitivity


class Planted(nn.Module):
    """Enlarges by two; its layer `bad` has features whose sizes differ by thousands."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Conv2d(3, 12, 3, padding=1)
        self.bad = nn.Conv2d(12, 12, 3, padding=1)
        self.last = nn.Conv2d(12, 12, 3, padding=1)
        self.shuffle = nn.PixelShuffle(2)
        self.attention = nn.MultiheadAttention(12, 2, batch_first=True)
        self.scale = torch.logspace(-2, 2, 12).view(1, 12, 1, 1)
        self.bad.weight.data /= self.scale

    def forward(self, x):
        y = self.bad(self.first(x) * self.scale)
        tokens = y.flatten(2).transpose(1, 2)
        y = y + 0.1 * self.attention(tokens, tokens, tokens)[0].transpose(1, 2).view_as(y)
        up = nn.functional.interpolate(x, scale_factor=2, mode="bilinear")
        return up + 0.3 * self.shuffle(self.last(y))


@pytest.fixture(scope="module")
def pairs():
    """What the network gives, nearly, is the truth: as if it had been trained."""
    net, found = Planted().eval(), []
    for pair in held_out("embedded", scale=2, side=16)[:3]:
        with torch.no_grad():
            sr = net(pair.lr)
        found.append(Pair(pair.name, pair.lr, sr + 0.005 * torch.randn_like(sr)))
    return found


@pytest.fixture(scope="module")
def table(pairs):
    return sensitivity(Planted().eval(), pairs, bits=3)


def test_the_layer_that_was_planted_costs_most(table):
    assert table.layers[0].layer == "bad"
    assert {row.layer for row in table.layers} == {"first", "bad", "last", "attention"}
    assert table.layers[0].error > 2 * table.layers[1].error
    errors = [row.error for row in table.layers]
    assert errors == sorted(errors, reverse=True)
    assert sum(row.share for row in table.layers) == pytest.approx(1)
    assert "bad        QConv2d" in repr(table)


def test_a_budget_gives_the_worst_layers_more_bits_and_no_more_than_needed(table, pairs):
    net, costs = Planted().eval(), {}
    for budget in ("2.8 dB", 2.1):
        widths = table.within(budget)
        order = [row.layer for row in table.layers]
        eight = [name for name in order if widths[name] == 8]
        assert eight == order[: len(eight)] and set(widths.values()) <= {3, 8}
        low = qsr.quantize(net, widths)
        qsr.calibrate(low, pairs[0].lr, method="output")
        scores = [
            sum((model(p.lr) - p.hr).square().mean().item() for p in pairs) for model in (low, net)
        ]
        limit = float(str(budget).split()[0])
        assert 10 * torch.tensor(scores[0] / scores[1]).log10() <= limit + 1e-3
        costs[budget] = len(eight)
    assert costs["2.8 dB"] < costs[2.1]


def test_a_budget_that_no_bits_meet_says_what_is_lost(table):
    with pytest.raises(ValueError, match="with all layers at 2 bits the loss is"):
        table.within("0.001 dB", more=2)
    with pytest.raises(ValueError, match="it is a loss above 0"):
        table.within("much")


def test_a_network_that_is_one_layer_is_a_row(pairs):
    net = nn.Sequential(nn.Conv2d(3, 12, 3, padding=1), nn.PixelShuffle(2)).eval()
    (row,) = sensitivity(net, pairs, bits=2).layers
    assert row.layer == "0" and row.share == 1
    with pytest.raises(ValueError, match="`pairs` is empty"):
        sensitivity(net, [])


def test_the_plot_has_a_bar_for_each_layer(table):
    pytest.importorskip("matplotlib")
    (axes,) = table.plot(most=3).axes
    assert [label.get_text() for label in axes.get_yticklabels()][-1] == "bad"
    assert len(axes.patches) == 3
