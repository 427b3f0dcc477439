"""Which layer costs most at few bits, and who gets more of them.

    table = qsr.sensitivity(net, pairs, bits=4)     one layer at a time at 4 bits, the rest in float
    print(table)                                    worst first
    low = qsr.quantize(net, table.within("0.1 dB"))

The loss of a picture is what the quantised network adds to the float network's own error,

    loss (dB) = 10 log10(MSE(quantised, truth) / MSE(float, truth))

over the pictures. Errors of layers are nearly independent, so their squared differences from float
nearly add up, and a list of layers one at a time says what all of them together will do; only at
large errors they do not. So `within` takes the order from the list, and measures the rest: how many
of the worst layers must get `more` bits until the calibrated network is within the budget.
"""

from __future__ import annotations

import copy
import math
import re
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from tqdm.auto import tqdm

from ..calibration import calibrate
from ..convert import quantize
from ..images.data import Pair
from ..layers import Bits, split_bits


@dataclass(frozen=True)
class LayerCost:
    """One row. loss: dB against the truth, with this layer alone quantised; error: the root of the
    mean squared difference from float, in units of the output; share: of the products of all these
    layers, so that a layer that costs much and computes little can be seen.
    """

    layer: str
    kind: str
    loss: float
    error: float
    share: float


@dataclass(frozen=True)
class Sensitivity:
    """The rows, worst first; shown as a table."""

    layers: tuple[LayerCost, ...]
    bits: Bits
    net: nn.Module = field(repr=False)
    pairs: tuple[Pair, ...] = field(repr=False)
    options: dict[str, Any] = field(repr=False)

    def __repr__(self) -> str:
        rows = [("layer", "kind", "loss, dB", "error", "products")]
        rows += [
            (c.layer or "(root)", c.kind, f"{c.loss:.3f}", f"{c.error:.2e}", f"{c.share:.1%}")
            for c in self.layers
        ]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        return "\n".join("  ".join(map(str.ljust, row, widths)).rstrip() for row in rows)

    def plot(self, most: int = 30) -> Any:
        """A matplotlib figure: the loss of the worst layers, as bars."""
        from matplotlib.figure import Figure

        rows = self.layers[:most][::-1]
        figure = Figure(figsize=(7, 0.8 + 0.22 * len(rows)), layout="constrained")
        axes = figure.add_subplot()
        axes.barh([c.layer for c in rows], [c.loss for c in rows])
        weights, inputs = split_bits(self.bits)
        axes.set_xlabel(f"loss with this layer alone at w{weights}a{inputs}, dB")
        axes.spines[["top", "right"]].set_visible(False)
        return figure

    def within(self, budget: str | float, more: Bits = 8) -> dict[str, Bits]:
        """Bits for each layer, as `quantize` takes them: as few layers as possible, the worst
        first, get `more`, so that the calibrated network loses at most `budget` (dB, a number or
        "0.1 dB") on the pictures.

        Tuning comes after, and wins most of that back: what is 1 dB here may be 0.2 then. Raises
        ValueError if even all layers at `more` bits lose more.
        """
        allowed = _decibels(budget)
        names = [c.layer for c in self.layers]

        def widths(count: int) -> dict[str, Bits]:
            return {name: more if i < count else self.bits for i, name in enumerate(names)}

        def loss(count: int) -> float:
            low = _quantised(self.net, widths(count), self.options)
            calibrate(low, self.pairs[0].lr, method="output")
            return _loss(low, self.net, self.pairs)[0]

        if (least := loss(len(names))) > allowed:
            raise ValueError(
                f"`budget` is {allowed:g} dB, and with all layers at {more} bits the loss is "
                f"{least:.3f} dB; allow more, or leave the worst layers in float (`skip`)."
            )
        low, high = -1, len(names)  # too few, enough
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (low, middle) if loss(middle) <= allowed else (middle, high)
        return widths(high)


@torch.no_grad()
def sensitivity(
    net: nn.Module,
    pairs: Sequence[Pair],
    bits: Bits = 4,
    *,
    skip: Sequence[str] = (),
    progress: bool = False,
    **options: Any,
) -> Sensitivity:
    """The layers of a float network by what each costs alone at `bits`, worst first.

    net: as `quantize` takes it; it stays as it is. pairs: pictures and truth (`qsr.data.held_out`);
    the first one calibrates. skip, options: as of `quantize`. Time: one pass over the pairs for
    each layer, and the calibration.

    >>> net = nn.Sequential(nn.Conv2d(3, 12, 3, padding=1), nn.PixelShuffle(2)).eval()
    >>> from qsr.images.data import held_out
    >>> table = sensitivity(net, held_out("embedded", scale=2, side=16)[:2])
    >>> [row.layer for row in table.layers]
    ['0']
    """
    pairs = tuple(pairs)
    if not pairs:
        raise ValueError("`pairs` is empty; a loss is measured on pictures. Give one or more.")
    options = {"skip": skip, **options}
    net = copy.deepcopy(net).eval()
    low = _quantised(net, bits, options)
    counted = FlopCounterMode(display=False)
    with counted, torch.enable_grad():  # without gradients, attention is one step that isn't seen
        net(pairs[0].lr)
    products = {
        name: sum(counted.get_flop_counts().get(_counted(net, name), {}).values())
        for name in _changed(net, low)
    }
    rows = []
    for name in tqdm(products, "layers", disable=not progress):
        layer, alone = copy.deepcopy(low.get_submodule(name)), copy.deepcopy(net)
        if name:
            alone.set_submodule(name, layer)
        else:
            alone = layer
        calibrate(alone, pairs[0].lr, method="output")
        loss, error = _loss(alone, net, pairs)
        share = products[name] / max(1, sum(products.values()))
        rows.append(LayerCost(name, type(layer).__name__, loss, error, share))
    rows.sort(key=lambda row: -row.error)
    return Sensitivity(tuple(rows), bits, net, pairs, options)


def _changed(net: nn.Module, low: nn.Module) -> list[str]:
    """Names of the layers that `quantize` changed, without those inside of others."""
    changed: list[str] = []
    for name, layer in net.named_modules():
        inside = any(name.startswith(f"{outer}.") for outer in changed)
        if not inside and type(low.get_submodule(name)) is not type(layer):
            changed.append(name)
    return changed


def _counted(net: nn.Module, name: str) -> str:
    """What PyTorch's counter calls a module."""
    return f"{type(net).__name__}.{name}".rstrip(".")


def _quantised(net: nn.Module, bits: Any, options: dict[str, Any]) -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what stays in float is not in the table
        return quantize(net, bits, **options)


@torch.no_grad()
def _loss(low: nn.Module, net: nn.Module, pairs: Sequence[Pair]) -> tuple[float, float]:
    """(dB against the truth, root of the mean squared difference from float)."""
    difference, mine, theirs = 0.0, 0.0, 0.0
    for pair in pairs:
        found, wanted = low(pair.lr), net(pair.lr)
        difference += (found - wanted).square().mean().item()
        mine += (found - pair.hr).square().mean().item()
        theirs += (wanted - pair.hr).square().mean().item()
    return 10 * math.log10(mine / theirs), math.sqrt(difference / len(pairs))


def _decibels(budget: str | float) -> float:
    match = re.fullmatch(r"\s*([0-9.]+)\s*(dB)?\s*", str(budget))
    if match is None or not (value := float(match[1])) > 0:
        raise ValueError(f'`budget` is {budget!r}; it is a loss above 0, as 0.1 or "0.1 dB".')
    return value
