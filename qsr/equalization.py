"""The same float network, easier to quantise: powers of two moved between its layers.

One step size serves all channels of a layer's input. Where one channel reaches 100 and another 1,
the second is left with a hundredth of the codes. But who makes a channel may divide it by s and who
reads it multiply by s, and the network is the same:

    conv(leaky_relu(conv(x, W) + b), V)  =  conv(leaky_relu(conv(x, W / s) + b / s), V s)

since ReLU and its relatives, pooling, resizing and sums all let a factor through. If s is a power
of two, floats are only shifted, and the equalised network gives the same bits. So this comes
before `quantize`, at no price:

    net = qsr.equalize(net, batch);  low = qsr.quantize(net, 4, per_channel=True)

torch.fx says what reads what. A value and those that are added to it form one group with one s per
channel; a group that reaches anything else than what is named here (a sigmoid, the output, a layer
of another kind) keeps s = 1. Of a channel, r is how large its values are and w its weights over
the largest of their row (the rows have steps of their own); rounded to a power of two,

    s = geometric mean over the layers that read it of  sqrt(r / w),     mean over channels 1

Source: cross-layer equalisation (Nagel et al., ICCV 2019), with data, as in SmoothQuant.
"""

from __future__ import annotations

import copy
import operator
from collections import Counter
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F
from torch.nn.utils import parametrize

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d)
PASS = (  # f(s x) = s f(x) for s > 0, each channel for itself
    nn.ReLU, nn.LeakyReLU, nn.PReLU, nn.Identity, nn.Dropout, nn.Upsample,
    nn.MaxPool1d, nn.MaxPool2d, nn.AvgPool1d, nn.AvgPool2d,
    F.relu, F.leaky_relu, F.prelu, F.max_pool1d, F.max_pool2d, F.avg_pool2d, F.interpolate,
    torch.relu, "relu", "contiguous", "clone",
)  # fmt: skip
SUMS = (operator.add, operator.iadd, operator.sub, torch.add, torch.sub, "add", "sub")
PRODUCTS = (operator.mul, torch.mul, "mul")
SIZES = (getattr, "size", "dim")


class _Groups:
    """Values that share one s per channel, by their node: a union-find. None: s is 1."""

    def __init__(self) -> None:
        self.parent: dict[fx.Node, fx.Node] = {}
        self.fixed: set[fx.Node] = set()

    def of(self, node: fx.Node) -> fx.Node:
        while (above := self.parent.get(node, node)) is not node:
            node = above
        return node

    def join(self, nodes: Iterable[fx.Node]) -> None:
        first, *others = (self.of(node) for node in nodes)
        for other in others:
            if other is not first:
                self.parent[other] = first
                if other in self.fixed:
                    self.fixed.add(first)

    def fix(self, nodes: Iterable[fx.Node]) -> None:
        self.fixed.update(self.of(node) for node in nodes)

    def is_fixed(self, node: fx.Node) -> bool:
        return self.of(node) in self.fixed


@torch.no_grad()
def equalize(net: nn.Module, batch: Tensor, *more: Tensor) -> nn.Module:
    """A copy of a float network with channels of like size, the same function bit for bit.

    batch, more: what `net` takes; they say how large channels are. Raises ValueError if torch.fx
    cannot follow the network (a forward that branches on values), with its reason.

    >>> net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 3, 3))
    >>> _ = net[0].weight[0].data.mul_(100)
    >>> x = torch.rand(1, 3, 12, 12)
    >>> torch.equal(equalize(net, x)(x), net(x))
    True
    """
    net = copy.deepcopy(net)
    modes = {module: module.training for module in net.modules()}
    net.eval()
    try:
        graph = fx.Tracer().trace(net)
    except Exception as error:  # whatever a foreign forward provokes
        raise ValueError(
            f"torch.fx cannot follow this {type(net).__name__} ({error}); quantise it as it is."
        ) from error
    groups, layers = _grouped(net, graph)
    sizes = _input_sizes(net, [layer for layer, _, _ in layers], batch, *more)
    wishes: dict[fx.Node, list[Tensor]] = {}
    for layer, read, _ in layers:
        if not groups.is_fixed(read):
            wishes.setdefault(groups.of(read), []).append(_wish(layer, sizes[layer]))
    factors = {
        group: torch.exp2(torch.stack(found).mean(0).round()) for group, found in wishes.items()
    }
    for layer, read, made in layers:
        behind = [1] * (layer.weight.ndim - 2)
        if (factor := factors.get(groups.of(read))) is not None:
            layer.weight.mul_(factor.view(1, -1, *behind))
        if (factor := factors.get(groups.of(made))) is not None:
            layer.weight.div_(factor.view(-1, 1, *behind))
            if layer.bias is not None:
                layer.bias.div_(factor)
    for module, mode in modes.items():
        module.training = mode
    return net


def _grouped(net: nn.Module, graph: fx.Graph) -> tuple[_Groups, list[tuple[Any, fx.Node, fx.Node]]]:
    """The groups, and of each convolution that may be changed: it, what it reads, what it makes."""
    groups, modules = _Groups(), dict(net.named_modules())
    calls = Counter(node.target for node in graph.nodes if node.op == "call_module")
    owners = Counter(id(p) for m in modules.values() for p in m.parameters(recurse=False))
    layers: list[tuple[Any, fx.Node, fx.Node]] = []
    silent: set[fx.Node] = set()  # sizes, through which no value goes
    for node in graph.nodes:
        module = modules[node.target] if node.op == "call_module" else None
        kind = node.target if module is None else type(module)
        read = [n for n in node.all_input_nodes if n not in silent]
        if kind in SIZES or (node.all_input_nodes and not read):
            silent.add(node)
        elif isinstance(module, CONVOLUTIONS) and _own(module, calls[node.target], owners):
            layers.append((module, read[0], node))
        elif kind in (SUMS if len(read) == 2 else (*PASS, *PRODUCTS)):
            groups.join([*read, node])
        elif kind in PRODUCTS and sum(groups.is_fixed(n) for n in read) == 1:
            groups.join([next(n for n in read if not groups.is_fixed(n)), node])
        else:
            groups.fix([*read, node])
    widths: dict[fx.Node, int] = {}
    for layer, before, behind in layers:  # one channel may be added to many
        for value, width in ((before, layer.weight.shape[1]), (behind, len(layer.weight))):
            if widths.setdefault(groups.of(value), width) != width:
                groups.fix([value])
    return groups, layers


def _own(layer: Any, calls: int, owners: Counter) -> bool:
    """Whether a convolution reads all channels, runs once, and shares its weights with nobody."""
    mine = all(owners[id(p)] == 1 for p in layer.parameters(recurse=False))
    whole = layer.groups == 1 and layer.padding_mode == "zeros"
    return mine and whole and calls == 1 and not parametrize.is_parametrized(layer)


def _input_sizes(net: nn.Module, layers: list[Any], *inputs: Tensor) -> dict[nn.Module, Tensor]:
    """How large each input channel is: (mean x^4)^(1/4), between rms and the largest."""
    sizes: dict[nn.Module, Tensor] = {}

    def look(layer: nn.Module, args: tuple[Tensor, ...]) -> None:
        sizes[layer] = args[0].movedim(1, 0).flatten(1).pow(4).mean(1).pow(0.25)

    hooks = [layer.register_forward_pre_hook(look) for layer in layers]
    try:
        net(*inputs)
    finally:
        for hook in hooks:
            hook.remove()
    return sizes


def _wish(layer: Any, size: Tensor) -> Tensor:
    """log2 of the s that the layer would choose for its input channels alone, mean 0."""
    rows = layer.weight / layer.weight.abs().flatten(1).amax(1).clamp(min=1e-12).view(
        -1, *[1] * (layer.weight.ndim - 1)
    )
    weights = rows.transpose(0, 1).flatten(1).pow(4).mean(1).pow(0.25)
    logs = [v.clamp(min=1e-3 * v.max().clamp(min=1e-12)).log2() for v in (size, weights)]
    wish = (logs[0] - logs[1]) / 2
    return wish - wish.mean()
