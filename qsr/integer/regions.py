"""Which parts of a traced network run on integers: regions around its packed layers.

A region is a connected piece of the graph that holds a packed layer and, around it, what can be
done between two of them without leaving the pass over the picture:

    lanes   packed layers, and functions of what they give, number by number: ReLU, LeakyReLU,
            PReLU, add, multiply, and those with a formula (`formulas`): sigmoid, GELU, SiLU, tanh
    resampling  average pooling and bilinear interpolation: numbers of several numbers, in a fixed
            order, so they read floats
    moves   what only brings numbers to other places: concat, split, max pooling, nearest, shuffle,
            padding by reflected or repeated edges

A move commutes with the quantizer of the layer that reads it: the codes of a concatenation are the
concatenated codes, and as rounding never falls where x rises, the code of a maximum is the largest
code (NaN apart, which has code 0). So a region moves bytes, not floats, and only takes a move that
packed layers alone read.

Everything else runs in PyTorch, before, between and after the regions. To find them, each node gets
a level: that of what it reads, and one more where the kind changes. Nodes of one kind and level can
run in any order that their edges allow, so no path can leave a region and come back.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

from . import calls
from .packed_layers import (
    FloatConv2d,
    PackedConv2d,
    PackedConvTranspose2d,
    PackedLayer,
    PackedLinear,
)

LAYERS = ("conv", "linear", "transposed")
RESAMPLING = ("bilinear", "average")
MOVES = ("cat", "chunk", "part", "pool", "nearest", "shuffle", "pad", "transposed")
MOST_CODES = 4  # packed layers that get codes of one step; kMostCodes of csrc/network/conv.h
TO_THE_END = 2**16  # as many channels as there are
LANES = 16  # kMapLanes of csrc/network/conv.h: a map of codes has a multiple of this


@dataclass(frozen=True)
class Op:
    """What a node does, whichever way it is written: kind, what it reads, and numbers.

    conv, linear     numbers: ()               `node.target` names the layer
    transposed       (stride,)                 the same, of a transposed convolution: a layer whose
                                               result is shuffled, so that it is a move as well
    relu, sigmoid, gelu, silu, tanh  ()
    leaky            (slope,)
    prelu            (key of the slopes,)
    times, plus      (a number, or the key of a parameter: one number, or one for each channel)
    add, sub, mul    ()                        two inputs
    cat              ()                        of channels, any number of inputs
    chunk            (index, parts)            channels [index, index + 1) / parts
    part             (first, most)             channels from the first on, as many as there are
    pool             (kernel, stride, padding) pairs; the maximum
    nearest, shuffle (factor,)
    pad              ((above, below), (left, right), 1: reflected, 0: repeated)
    average          (kernel, stride, padding, counts padding); kernel (0, 0): the whole picture
    bilinear         (align corners, factors) of one input; or (align corners,) of two, the second
                     of which has the size
    """

    kind: str
    inputs: tuple[fx.Node, ...]
    numbers: tuple[Any, ...] = ()


@dataclass(frozen=True)
class Region:
    """Nodes in the order of execution, with what they read from outside and what leaves them.

    rows: whether values are [..., channels] (linear layers) instead of [N, channels, H, W]. alone:
    nodes that one node reads.
    """

    ops: dict[fx.Node, Op]
    channels: dict[fx.Node, int]
    rows: bool
    inputs: tuple[fx.Node, ...]
    outputs: tuple[fx.Node, ...]
    alone: frozenset[fx.Node]


# What a node does ---------------------------------------------------------------------------------


def read(node: fx.Node, network: nn.Module) -> Op | None:
    """The operation of a node, or None for one that runs in PyTorch."""
    if node.op == "call_module":
        return _read_module(node, network.get_submodule(str(node.target)))
    if node.op not in ("call_function", "call_method"):
        return None
    name = node.target if isinstance(node.target, str) else node.target.__name__
    name = name.rstrip("_")
    args: tuple[Any, ...] = node.args
    options: dict[str, Any] = dict(node.kwargs)
    x = args[0] if args else None
    if name == "getitem":
        return _part(node, network)
    if name in ("cat", "concat", "concatenate") and isinstance(x, (tuple, list)):
        dim = args[1] if len(args) > 1 else options.get("dim", 0)
        whole = all(isinstance(part, fx.Node) for part in x)
        return Op("cat", tuple(x)) if dim in (1, -3) and whole and len(x) > 1 else None
    if not isinstance(x, fx.Node):
        if name in _COMMUTE and len(args) == 2 and not options and isinstance(args[1], fx.Node):
            return _binary(_COMMUTE[name], args[1], x, network)
        return None
    if name in _BINARY and len(args) == 2 and not options:
        return _binary(_BINARY[name], x, args[1], network)
    return _of_call(calls.read(name, args[1:], options), x)


_COMMUTE = {"add": "add", "iadd": "add", "mul": "mul", "imul": "mul", "multiply": "mul"}
_BINARY = {**_COMMUTE, "sub": "sub", "isub": "sub", "subtract": "sub"}
_SCALAR = {"add": "plus", "mul": "times"}


def _read_module(node: fx.Node, layer: nn.Module) -> Op | None:
    if len(node.args) != 1 or node.kwargs or not isinstance(node.args[0], fx.Node):
        return None
    x, kind = node.args[0], type(layer)
    if kind in (PackedConv2d, PackedLinear, PackedConvTranspose2d):
        assert isinstance(layer, PackedLayer)
        if layer.narrow and layer.signed and layer.tau is not None:
            return None  # clamps before it shifts
        if isinstance(layer, PackedConvTranspose2d):
            return Op("transposed", (x,), layer.stride[:1]) if layer.shuffles else None
        return Op("linear" if isinstance(layer, PackedLinear) else "conv", (x,))
    if kind is nn.PReLU:
        return Op("prelu", (x,), (f"{node.target}.weight",))
    return _of_call(calls.read_module(layer), x)


def _of_call(call: calls.Call | None, x: fx.Node) -> Op | None:
    if call is None or call[0] != "bilinear":
        return None if call is None else Op(call[0], (x,), call[1])
    align, size, factors = call[1]
    if size is None:
        return Op("bilinear", (x,), (align, factors))
    like = _whose_size(size)
    return None if like is None or like is x else Op("bilinear", (x, like), (align,))


def _whose_size(size: Any) -> fx.Node | None:
    """The node whose height and width `size` is: x.shape[2:], or (x.size(2), x.size(3)) ..."""
    if not isinstance(size, (tuple, list)):
        return _dimension(size, (slice(2, None), slice(-2, None), slice(2, 4)))
    if len(size) != 2:
        return None
    height, width = _dimension(size[0], (2, -2)), _dimension(size[1], (3, -1))
    return height if height is width else None


def _dimension(node: Any, which: tuple[Any, ...]) -> fx.Node | None:
    """x, if a node is x.shape[d] or x.size(d) for a d of `which`."""
    if not isinstance(node, fx.Node) or len(node.args) != 2:
        return None
    x, d = node.args
    if node.target is operator.getitem and isinstance(x, fx.Node):
        attribute = x.target is getattr and x.args[1] == "shape"
        shape = attribute or (x.target == "size" and len(x.args) == 1)
        x = x.args[0] if shape else None
    elif (node.op, node.target) != ("call_method", "size"):
        return None
    return x if isinstance(x, fx.Node) and d in which else None


def _binary(kind: str, a: fx.Node, b: Any, network: nn.Module) -> Op | None:
    if isinstance(b, bool) or not isinstance(b, (int, float, fx.Node)):
        return None
    if not isinstance(b, fx.Node):
        return _scalar(kind, a, float(b))
    for x, other in ((a, b), (b, a)):
        if other.op == "get_attr":
            value = _attribute(network, str(other.target))
            if value is None or x.op == "get_attr" or kind == "sub" or not _of_channels(value):
                return None
            return _scalar(kind, x, str(other.target))
    return Op(kind, (a, b))


def _of_channels(value: Tensor) -> bool:
    """Whether a parameter is one number, or one for each channel: [C] of rows, and [C, 1, 1] or
    [1, C, 1, 1] of pictures.
    """
    dimensions, count = value.ndim, value.numel()
    return dimensions < 2 or tuple(value.shape) in ((count, 1, 1), (1, count, 1, 1))


def _scalar(kind: str, x: fx.Node, number: float | str) -> Op | None:
    if kind == "sub":
        return None if isinstance(number, str) else Op("plus", (x,), (-number,))
    return Op(_SCALAR[kind], (x,), (number,))


def _attribute(network: nn.Module, name: str) -> Tensor | None:
    parent, _, last = name.rpartition(".")
    value = getattr(network.get_submodule(parent), last)
    return value if isinstance(value, Tensor) and value.dtype == torch.float32 else None


def _part(node: fx.Node, network: nn.Module) -> Op | None:
    """One of the parts of torch.chunk or torch.split along the channels, or x[:, a:b]."""
    source, index = node.args
    if isinstance(source, fx.Node) and isinstance(index, tuple):
        return _slice(source, index)
    if not isinstance(source, fx.Node) or not isinstance(index, int) or index < 0:
        return None
    name = source.target if isinstance(source.target, str) else source.target.__name__
    x, *more = source.args or (None,)
    options: dict[str, Any] = dict(zip(("sizes", "dim"), more, strict=False)) | dict(source.kwargs)
    if options.pop("dim", 0) not in (1, -3) or not isinstance(x, fx.Node) or len(options) != 1:
        return None
    (sizes,) = options.values()
    if name == "chunk" and isinstance(sizes, int):
        return Op("chunk", (x,), (index, sizes)) if index < sizes else None
    if name == "split" and isinstance(sizes, int):
        return Op("part", (x,), (index * sizes, sizes))
    if name != "split" or not all(isinstance(n, int) for n in sizes) or index >= len(sizes):
        return None
    return Op("part", (x,), (sum(sizes[:index]), sizes[index]))


def _slice(x: fx.Node, index: tuple[Any, ...]) -> Op | None:
    """x[:, a:b], perhaps with more of : or ..."""
    every, channels, *more = (*index, slice(None))[: max(2, len(index))]
    if every != slice(None) or any(m not in (slice(None), Ellipsis) for m in more):
        return None
    if not isinstance(channels, slice) or channels.step not in (None, 1):
        return None
    first, last = channels.start or 0, TO_THE_END if channels.stop is None else channels.stop
    known = isinstance(first, int) and isinstance(last, int)
    return Op("part", (x,), (first, last - first)) if known and 0 <= first < last else None


def part_of(op: Op, channels: int) -> tuple[int, int]:
    """First channel and count of a part of so many."""
    if op.kind == "chunk":
        index, parts = op.numbers
        return channels // parts * index, channels // parts
    first, most = op.numbers
    return first, min(most, channels - first)


# Which nodes together -----------------------------------------------------------------------------


def find(graph: fx.Graph, network: nn.Module, without: Collection[str] = ()) -> list[Region]:
    """The regions of a network, in the order of execution.

    without: names of nodes that run in PyTorch whatever they are.
    """
    ops = {n: op for n in graph.nodes if n.name not in without and (op := read(n, network))}
    while True:
        facts = _Facts(ops, network)
        pieces = _pieces(graph, ops)
        wrong = facts.wrong | {
            n for piece in pieces for n in piece if not any(ops[m].kind in LAYERS for m in piece)
        }
        home = {n: piece for piece in pieces for n in piece}
        wrong |= {n for n, op in ops.items() if op.kind in MOVES and not _moves(n, ops, home[n])}
        if not wrong:
            return [_region(piece, ops, facts) for piece in pieces]
        for node in wrong:
            del ops[node]


class _Facts:
    """Channels of each value and whether it is rows, as far as its neighbours tell."""

    def __init__(self, ops: dict[fx.Node, Op], network: nn.Module) -> None:
        self.channels: dict[fx.Node, int] = {}
        self.rows: dict[fx.Node, bool] = {}
        self.wrong: set[fx.Node] = set()
        self.ops, self.network = ops, network
        known = -1
        while known != len(self.channels) + len(self.rows):
            known = len(self.channels) + len(self.rows)
            for node, op in ops.items():
                self._learn(node, op)
        self.wrong |= {n for n in ops for m in (n, *ops[n].inputs) if m not in self.channels}

    def _know(self, user: fx.Node, node: fx.Node, channels: int | None, rows: bool | None) -> None:
        """Set what is not known yet; the user of a value that is something else is wrong."""
        if channels is not None and self.channels.setdefault(node, channels) != channels:
            self.wrong.add(user)
        if rows is not None and self.rows.setdefault(node, rows) != rows:
            self.wrong.add(user)

    def _learn(self, node: fx.Node, op: Op) -> None:
        if op.kind in LAYERS:
            layer = self.network.get_submodule(str(node.target))
            assert isinstance(layer, PackedLayer)
            rows = op.kind == "linear"  # a transposed convolution has pictures, as all moves
            self._know(node, op.inputs[0], layer.groups * layer.channels, rows)
            self._know(node, node, len(layer.weight), rows)
            return
        if op.kind in (*MOVES, *RESAMPLING):
            for n in (node, *op.inputs):
                self._know(node, n, None, False)
            self._learn_move(node, op)
            return
        if op.numbers and isinstance(op.numbers[0], str):
            self._learn_parameter(node, op, _attribute(self.network, op.numbers[0]))
        for a in (node, *op.inputs):
            for b in (node, *op.inputs):
                self._know(node, b, self.channels.get(a), self.rows.get(a))

    def _learn_parameter(self, node: fx.Node, op: Op, value: Tensor | None) -> None:
        """What a parameter says of the value that it meets. PReLU's has one dimension, and stands
        for the second one of its input.
        """
        if value is None:
            self.wrong.add(node)
        elif value.numel() > 1:
            of_rows = value.ndim == 1 and op.kind != "prelu"
            self._know(node, op.inputs[0], value.numel(), of_rows)
        elif value.ndim > 1:  # it would give rows more dimensions
            self._know(node, op.inputs[0], None, False)

    def _learn_move(self, node: fx.Node, op: Op) -> None:
        if op.kind == "cat":
            unknown = [n for n in (node, *op.inputs) if n not in self.channels]
            parts = sum(self.channels.get(n, 0) for n in op.inputs)
            if not unknown or unknown == [node]:
                self._know(node, node, parts, None)
            elif len(unknown) == 1 and op.inputs.count(unknown[0]) == 1:
                self._know(node, unknown[0], self.channels[node] - parts, None)
            return
        x = op.inputs[0]
        if op.kind == "part":
            if x in self.channels:
                count = part_of(op, self.channels[x])[1]
                self._know(node, node, count, None)
                self.wrong |= {node} if count < 1 else set()
            return
        factor = {"chunk": op.numbers[-1], "shuffle": op.numbers[0]}.get(op.kind, 1)
        factor **= 2 if op.kind == "shuffle" else 1
        if x in self.channels:
            if self.channels[x] % factor:
                self.wrong.add(node)
            self._know(node, node, self.channels[x] // factor, None)
        elif node in self.channels:
            self._know(node, x, self.channels[node] * factor, None)


def _moves(node: fx.Node, ops: dict[fx.Node, Op], piece: Collection[fx.Node]) -> bool:
    """Whether a move can be done on codes: packed layers read it, perhaps through other moves, and
    all of them in its own region, as codes do not leave one.
    """
    op = ops[node]
    read_by_layers = all(u in piece and ops[u].kind in (*LAYERS, *MOVES) for u in node.users)
    if op.kind == "transposed":
        return read_by_layers and _reading_layers(node, ops) <= MOST_CODES
    if op.kind in ("chunk", "part", "shuffle"):  # of what a step has in its registers
        return read_by_layers and not _is_move(op.inputs[0], ops)
    return read_by_layers


def _reading_layers(node: fx.Node, ops: dict[fx.Node, Op]) -> int:
    """How many packed layers read a node, through moves too."""
    kinds = [(u, ops[u].kind) for u in node.users]
    return sum(1 if kind in LAYERS else _reading_layers(u, ops) for u, kind in kinds)


def _is_move(node: fx.Node, ops: dict[fx.Node, Op]) -> bool:
    return node in ops and ops[node].kind in MOVES


def levels(graph: fx.Graph, ops: Mapping[fx.Node, Op]) -> dict[fx.Node, int]:
    """The level of each node; even ones run in PyTorch, odd ones in regions."""
    level: dict[fx.Node, int] = {}
    for node in graph.nodes:
        inputs = ops[node].inputs if node in ops else node.all_input_nodes
        before = max((level[n] for n in inputs), default=0)
        level[node] = before + ((before % 2 == 1) != (node in ops))
    return level


def _pieces(graph: fx.Graph, ops: dict[fx.Node, Op]) -> list[list[fx.Node]]:
    """Nodes that edges within one level connect, in the order of execution."""
    level, group = levels(graph, ops), dict[fx.Node, fx.Node]()

    def root(node: fx.Node) -> fx.Node:
        while group[node] is not node:
            node = group[node]
        return node

    for node, op in ops.items():
        group[node] = node
        for x in op.inputs:
            if x in ops and level[x] == level[node]:
                group[root(x)] = node
    pieces: dict[fx.Node, list[fx.Node]] = {}
    for node in ops:
        pieces.setdefault(root(node), []).append(node)
    return sorted(pieces.values(), key=lambda piece: level[piece[0]])


def _region(piece: list[fx.Node], ops: dict[fx.Node, Op], facts: _Facts) -> Region:
    inside = set(piece)
    inputs = dict.fromkeys(x for n in piece for x in ops[n].inputs if x not in inside)
    outputs = [n for n in piece if any(u not in inside for u in _readers(n, ops))]
    return Region(
        ops={n: ops[n] for n in piece},
        channels={n: facts.channels[n] for n in (*inputs, *piece)},
        rows=facts.rows[piece[0]],
        inputs=tuple(inputs),
        outputs=tuple(outputs),
        alone=frozenset(n for n in piece if len(list(_readers(n, ops))) == 1),
    )


def _readers(node: fx.Node, ops: Mapping[fx.Node, Op]) -> Iterator[fx.Node]:
    """Who reads the numbers of a node. Not torch.chunk or x.shape, if only nodes of regions read
    those: they know their place in x, or its size, by themselves.
    """
    for user in node.users:
        if user in ops or not _is_known(user, ops):
            yield user
        else:
            yield from _readers(user, ops)


def _is_known(node: fx.Node, ops: Mapping[fx.Node, Op]) -> bool:
    """Whether no node of a region has it as an input, and nothing else reads it."""
    if node in ops or not node.users:
        return False
    return all(
        node not in ops[user].inputs if user in ops else _is_known(user, ops) for user in node.users
    )


def multiplications(layer: nn.Module) -> int:
    """Multiply-accumulates of a layer for each pixel of its result; 0 for what has no matrix."""
    if isinstance(layer, PackedLayer):
        return len(layer.weight) * math.prod(layer.weight.shape[1:3]) * layer.channels
    if isinstance(layer, (nn.Conv2d, nn.Linear, FloatConv2d)):
        return layer.weight.numel()
    return 0
