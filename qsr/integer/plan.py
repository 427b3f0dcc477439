"""A plan: the steps that a region of a network takes, and the values between them.

A step reads codes (a convolution) or floats, makes lanes of float32 numbers of them, does a row of
small operations on these, its *finish*, and stores what they have become: as floats, if somebody
wants floats, and as codes for each packed layer that reads them, by that layer's step and tau.
Whatever follows a convolution and has no other reader is in its finish, so that most values never
exist in memory. Moves (`qsr.integer.regions`) are steps from codes to codes, or no step at all: a
concatenation is two stores into one map, side by side.

A plan is a value: no weights (a step names its layer), no addresses and no picture's size. A size
is written as what becomes of the height and width of an input, `Size`. So a plan serves all
pictures, can be kept in a file and be run by whoever can read it; `qsr.integer.lifetimes` gives its
values places in memory, for one picture size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from torch import fx, nn

from .layer import reach
from .packed_layers import PackedConv2d, PackedConvTranspose2d, PackedLayer
from .regions import LANES, LAYERS, MOST_CODES, MOVES, RESAMPLING, Op, Region, part_of

MOST_OPERATIONS = 6  # of a finish; kMostOperations of csrc/network/conv.h
ROWS_WIDE = 48  # pixels of a row of rows; kWide of csrc/torch/ops_layer.cpp
Rule = tuple[int, int, int, int]  # n -> ((n + a) // b + c) * d
ONE: Rule = (0, 2**23, 1, 1)  # n -> 1: no picture has so many pixels in a row


@dataclass(frozen=True)
class Size:
    """Height and width of a map: what the rules make, one after another, of those of an input.

    >>> Size(0, rows=((2, 2, 1, 1),), columns=()).of([(9, 7)])
    (6, 7)
    """

    input: int
    rows: tuple[Rule, ...] = ()
    columns: tuple[Rule, ...] = ()

    def of(self, inputs: Sequence[tuple[int, int]]) -> tuple[int, int]:
        """For these sizes of the inputs. Not above 0 where the picture is too small."""
        height, width = inputs[self.input]
        for a, b, c, d in self.rows:
            height = ((height + a) // b + c) * d
        for a, b, c, d in self.columns:
            width = ((width + a) // b + c) * d
        return height, width

    @property
    def is_one(self) -> bool:
        """Whether it is one pixel whatever the input: then it serves all pixels of another map."""
        return self.rows == self.columns == (ONE,)

    def then(self, rows: Rule, columns: Rule) -> Size:
        """The size after one more rule; a rule that changes nothing is left out."""
        more = [() if rule == (0, 1, 0, 1) else (rule,) for rule in (rows, columns)]
        return Size(self.input, self.rows + more[0], self.columns + more[1])


def window(kernel: int, stride: int, padding: int, dilation: int = 1) -> Rule:
    """How many windows fit: of a convolution or a pool, along one dimension.

    >>> window(3, 1, 1), window(3, 2, 0)
    ((0, 1, 0, 1), (-3, 2, 1, 1))
    """
    reach = 2 * padding - dilation * (kernel - 1) - 1
    return (reach + 1, 1, 0, 1) if stride == 1 else (reach, stride, 1, 1)


def pooled(
    size: Size, kernel: tuple[int, int], stride: tuple[int, int], padding: tuple[int, int]
) -> Size:
    """The size of a pooled map; kernel (0, 0): one pixel."""
    if kernel == (0, 0):
        return Size(size.input, (ONE,), (ONE,))
    return size.then(*[window(*n) for n in zip(kernel, stride, padding, strict=True)])


@dataclass(frozen=True)
class Value:
    """A map in memory, channels last. kind: "codes", one byte each, or "float".

    channels: from a pixel to the next; of codes a multiple of 16. bits, signed: of codes. frame:
    pixels of code 0 around a map of codes, as its readers want them, (above and below, beside).
    """

    kind: str
    channels: int
    size: Size
    bits: int = 0
    signed: bool = False
    frame: tuple[int, int] = (0, 0)


@dataclass(frozen=True)
class Store:
    """Codes that a step writes: those of its lanes, into the channels from `at` on.

    `count` lanes from `first` on are read: as lane first + i by the layer `reader`, as its input
    channel (start + i) // repeat. What the others leave in memory is of no use.
    """

    value: int
    at: int
    first: int
    count: int
    reader: str
    start: int = 0
    repeat: int = 1

    def channels(self) -> list[int]:
        """The input channel of the reader that each of these lanes is.

        >>> Store(value=0, at=0, first=0, count=4, reader="layer", start=2, repeat=2).channels()
        [1, 1, 2, 2]
        """
        return [(self.start + i) // self.repeat for i in range(self.count)]


@dataclass(frozen=True)
class Step:
    """op: "conv" (also of rows); "float", "bilinear", "average", "float_conv" (a
    `packed_layers.FloatConv2d`), "norm" or "swin" (a norm or a layer of QuantSR-T), which read
    floats; or a move: "pool", "nearest", "shuffle", "pad".

    source: the value that it reads. layer: which one runs; a transposed convolution makes a square
    of outputs of each pixel, as a pixel shuffle wants them. places: where the input channels of the
    layer lie in the source, (count, first channel) each. numbers: see `regions.Op`; of a bilinear
    step, whether corners are aligned.
    channels: lanes of the result, zeros beyond those of its layer. finish: (operation, operand) in
    order; the operand is a value, a number or the key of a parameter, or None; of "scaled"
    (y + s * v) a value and its factor, of "factors" any number of these. out: the float value that
    it writes, or None. A move writes the source's codes to `codes[0]`.
    """

    op: str
    source: int
    channels: int
    size: Size
    layer: str = ""
    places: tuple[tuple[int, int], ...] = ()
    numbers: tuple[Any, ...] = ()
    finish: tuple[tuple[str, Any], ...] = ()
    out: int | None = None
    codes: tuple[Store, ...] = ()

    def reads(self) -> list[int]:
        """The values that it reads."""
        operands = [operand_value(*operation) for operation in self.finish]
        return [self.source, *(v for v in operands if v is not None)]

    def writes(self) -> list[int]:
        """The values that it writes, wholly or in part."""
        return [*([] if self.out is None else [self.out]), *(s.value for s in self.codes)]


OF_VALUES = ("add", "mul", "minus", "from")  # y + v, y * v, y - v, v - y


def operand_value(op: str, operand: Any) -> int | None:
    """The value that an operation of a finish reads, if it reads one."""
    return operand[0] if op == "scaled" else operand if op in OF_VALUES else None


@dataclass(frozen=True)
class Plan:
    """The steps of a region. values: its inputs first. equal: pairs of sizes that must agree, by
    the node that wants it.
    """

    inputs: tuple[str, ...]  # names of the nodes that give them
    outputs: tuple[tuple[str, int], ...]  # names of nodes, and their values
    rows: bool
    values: tuple[Value, ...]
    steps: tuple[Step, ...]
    equal: tuple[tuple[str, Size, Size], ...]

    @property
    def layers(self) -> tuple[str, ...]:
        """Names of the packed layers that run, in order."""
        return tuple(step.layer for step in self.steps if step.op == "conv")


# Making -------------------------------------------------------------------------------------------


@dataclass
class _Draft:
    """A step that is being made. result: the node whose value its lanes are now."""

    op: str
    source: fx.Node | int
    result: fx.Node
    layer: str = ""
    area: int = 1  # pixels of the result that its lanes are side by side
    places: list[tuple[int, int]] = field(default_factory=list)
    numbers: tuple[Any, ...] = ()
    finish: list[tuple[str, Any]] = field(default_factory=list)
    codes: list[Store] = field(default_factory=list)


def plan(region: Region, network: nn.Module) -> Plan:
    """The plan of a region of a network."""
    return _Planner(region, network).plan()


class _Planner:
    """Walks a region twice: forward, gathering what follows a layer into its finish; then from each
    packed layer back to what it reads, asking for codes.
    """

    def __init__(self, region: Region, network: nn.Module) -> None:
        self.region, self.ops, self.network = region, region.ops, network
        self.sizes: dict[fx.Node, Size] = {}
        self.equal: list[tuple[str, Size, Size]] = []
        for i, node in enumerate(region.inputs):
            self.sizes[node] = Size(i)
        for node, op in self.ops.items():
            self.sizes[node] = self._size(node, op)
        self.values = [
            Value("float", region.channels[node], self.sizes[node]) for node in region.inputs
        ]
        self.floats = {node: i for i, node in enumerate(region.inputs)}  # values by node
        self.drafts: list[_Draft] = []
        self.makers: dict[fx.Node, _Draft] = {}  # the step in which a node has its lanes
        self.turn: dict[int, int] = {}  # of a draft, by its id
        self.steps: list[_Draft] = []

    def plan(self) -> Plan:
        for node, op in self.ops.items():
            if op.kind not in MOVES or op.kind in LAYERS:
                self._place(node, op)
        for node in self.region.outputs:
            self._float(node)
        for draft in self.drafts:  # in an order in which everything is there when it is read
            if draft.op == "conv":
                assert isinstance(draft.source, fx.Node)
                draft.source = self._codes_for(draft, draft.source)
            self.steps.append(draft)
        for node in self.region.outputs:
            assert node in self.makers, f"nothing would write {node.name!r}"
        return Plan(
            inputs=tuple(node.name for node in self.region.inputs),
            outputs=tuple((node.name, self.floats[node]) for node in self.region.outputs),
            rows=self.region.rows,
            values=tuple(self.values),
            steps=tuple(self._finished(draft) for draft in self.steps),
            equal=tuple(self.equal),
        )

    def _size(self, node: fx.Node, op: Op) -> Size:
        size = self.sizes[op.inputs[0]]
        if op.kind == "bilinear":
            if len(op.inputs) == 2:
                return self.sizes[op.inputs[1]]
            down, across = op.numbers[1]
            return size.then((0, 1, 0, down), (0, 1, 0, across))
        if op.kind in ("add", "mul", "sub") and size.is_one:
            size = self.sizes[op.inputs[1]]
        for x in op.inputs[1:]:
            if self.sizes[x] != size and not (self.sizes[x].is_one and op.kind != "cat"):
                self.equal.append((node.name, self.sizes[x], size))
        if op.kind in ("nearest", "shuffle", "transposed"):
            return size.then((0, 1, 0, op.numbers[0]), (0, 1, 0, op.numbers[0]))
        if op.kind == "pad":
            rules = ((sum(pads), 1, 0, 1) for pads in op.numbers[:2])
            return size.then(*rules)
        if op.kind in ("pool", "average"):
            return pooled(size, *op.numbers[:3])
        if op.kind == "conv":
            layer = self.network.get_submodule(str(node.target))
            assert isinstance(layer, PackedConv2d)
            kernel = layer.weight.shape[1:3]
            each = zip(kernel, layer.stride, layer.padding, layer.dilation, strict=True)
            return size.then(*[window(*n) for n in each])
        return size

    # Forward: steps and their finishes

    def _place(self, node: fx.Node, op: Op) -> None:
        """Give a node its lanes: in a new step, or at the end of one that only it reads."""
        if op.kind in LAYERS:
            area = op.numbers[0] ** 2 if op.kind == "transposed" else 1
            self._begin(_Draft("conv", op.inputs[0], node, layer=str(node.target), area=area))
            return
        if op.kind in RESAMPLING:
            numbers = op.numbers[:1] if op.kind == "bilinear" else op.numbers
            self._begin(_Draft(op.kind, self._float(op.inputs[0]), node, numbers=numbers))
            return
        hosts = [
            x for i, x in enumerate(op.inputs) if self._can_host(x, node, op.inputs[1 - i :][:1])
        ]
        host = max(hosts, key=lambda x: self.turn[id(self.makers[x])], default=None)
        if host is None:
            host = next(x for x in op.inputs if self.sizes[x] == self.sizes[node])
            draft = self._begin(_Draft("float", self._float(host), node))
        else:
            draft = self.makers[host]
            draft.result = self._now(node, draft)
        others = [x for x in op.inputs if x is not host] or list(op.inputs[1:])
        kind: str = op.kind
        if kind == "sub":
            kind = "minus" if host is op.inputs[0] else "from"
        operand = self._float(others[0]) if others else op.numbers[0] if op.numbers else None
        draft.finish.append((kind, operand))

    def _begin(self, draft: _Draft) -> _Draft:
        self.turn[id(draft)] = len(self.drafts)
        self.drafts.append(draft)
        draft.result = self._now(draft.result, draft)
        return draft

    def _now(self, node: fx.Node, draft: _Draft) -> fx.Node:
        self.makers[node] = draft
        return node

    def _can_host(self, x: fx.Node, node: fx.Node, others: Sequence[fx.Node]) -> bool:
        """Whether the step of x can go on with `node`: nobody else reads x, and the other operand
        is there before that step begins.
        """
        draft = self.makers.get(x)
        if draft is None or draft.result is not x or x in self.region.outputs:
            return False
        if self.sizes[x].is_one != self.sizes[node].is_one:
            return False
        if x not in self.region.alone or len(draft.finish) == MOST_OPERATIONS or x in others:
            return False
        makers = [self.makers[y] for y in others if y in self.makers]
        return all(self.turn[id(maker)] < self.turn[id(draft)] for maker in makers)

    def _float(self, node: fx.Node) -> int:
        """The float value of a node; from now on its step stores it."""
        if node not in self.floats:
            self.floats[node] = len(self.values)
            self.values.append(Value("float", self.region.channels[node], self.sizes[node]))
        return self.floats[node]

    # Back: codes for each layer

    def _codes_for(self, draft: _Draft, source: fx.Node) -> int:
        """The map of codes that a layer reads; whoever makes a part of it stores it."""
        layer = self.network.get_submodule(draft.layer)
        assert isinstance(layer, PackedLayer)
        frame = layer.padding if isinstance(layer, PackedConv2d) else (0, 0)
        if isinstance(layer, PackedConvTranspose2d):
            frame = reach(layer)
        value = self._new_codes(layer, self.sizes[source], frame)
        draft.places = self._ask(source, draft.layer, (0, 1), value)
        return value

    def _new_codes(self, layer: PackedLayer, size: Size, frame: tuple[int, int] = (0, 0)) -> int:
        self.values.append(Value("codes", 0, size, layer.bits, layer.signed, frame))
        return len(self.values) - 1

    def _ask(
        self, node: fx.Node, reader: str, channel: tuple[int, int], value: int
    ) -> list[tuple[int, int]]:
        """Have the codes of `node` stored in `value`, beside what is there, where lane i is input
        channel (start + i) // repeat of the reader; channel: (start, repeat). Returns where the
        channels are, (count, first channel) each.
        """
        op, (start, repeat) = self.ops.get(node), channel
        count = self.region.channels[node]
        if op is None or op.kind not in MOVES:
            return self._store(node, (0, count), reader, channel, value)
        (x, *more) = op.inputs
        if op.kind in ("chunk", "part"):
            which = part_of(op, self.region.channels[x])
            return self._store(x, which, reader, channel, value)
        if op.kind == "cat":
            places: list[tuple[int, int]] = []
            for part in (x, *more):
                places += self._ask(part, reader, (start, repeat), value)
                start += self.region.channels[part]
            return places
        layer = self.network.get_submodule(reader)
        assert isinstance(layer, PackedLayer)
        area = op.numbers[0] ** 2 if op.kind in ("shuffle", "transposed") else 1
        source = self._new_codes(layer, self.sizes[x])
        before = (start * area, repeat * area)
        if op.kind == "transposed":
            self._room(source, count * area)
            inner = [(count * area, 0)]
            self.makers[node].codes.append(Store(source, 0, 0, count * area, reader, *before))
        else:
            inner = self._ask(x, reader, before, source)
        at = self._room(value, self.values[source].channels // area)
        moved = "shuffle" if op.kind == "transposed" else op.kind
        move = _Draft(moved, source, node, numbers=op.numbers)
        move.codes.append(Store(value, at, 0, self.values[source].channels // area, reader))
        self.steps.append(move)
        return [(n // area, at + place // area) for n, place in inner]

    def _room(self, value: int, channels: int) -> int:
        """The first channel of room for so many more in a map of codes."""
        old = self.values[value]
        self.values[value] = replace(old, channels=old.channels + lanes(channels))
        return old.channels

    def _store(
        self,
        node: fx.Node,
        part: tuple[int, int],
        reader: str,
        channel: tuple[int, int],
        value: int,
    ) -> list[tuple[int, int]]:
        """Let the step of a node store codes, of which the lanes `part`, (first, count), are read;
        or one more step that reads its floats, if the node has no step, being an input, or one that
        stores as many as it can. Returns as `_ask`.
        """
        at = self._room(value, self.region.channels[node])
        draft = self.makers.get(node)
        if draft is None or len(draft.codes) == MOST_CODES:
            draft = self._now_reads(node)
        first, count = part
        draft.codes.append(Store(value, at, first, count, reader, *channel))
        return [(count, at + first)]

    def _now_reads(self, node: fx.Node) -> _Draft:
        """A step from the floats of a node. It comes before the step that is being made."""
        draft = _Draft("float", self._float(node), node)
        self.makers[node] = draft
        self.steps.append(draft)
        return draft

    def _finished(self, draft: _Draft) -> Step:
        node, places = draft.result, tuple(draft.places)
        stored = None if draft.op in MOVES else self.floats.get(node)
        assert isinstance(draft.source, int)
        return Step(
            op=draft.op,
            source=draft.source,
            channels=self.region.channels[node] * draft.area,
            size=self.sizes[node if draft.area == 1 else self.ops[node].inputs[0]],
            layer=draft.layer,
            places=places,
            numbers=draft.numbers,
            finish=tuple(draft.finish),
            out=None if stored == draft.source else stored,
            codes=tuple(draft.codes),
        )


def as_picture(rows: int) -> tuple[int, int]:
    """Height and width of a picture whose pixels are these rows, and perhaps some more.

    >>> as_picture(20), as_picture(100)
    ((1, 20), (3, 48))
    """
    return (1, rows) if rows < ROWS_WIDE else (-(-rows // ROWS_WIDE), ROWS_WIDE)


def lanes(channels: int) -> int:
    """Channels filled up to whole vectors.

    >>> lanes(3), lanes(48)
    (16, 48)
    """
    return -(-channels // LANES) * LANES
