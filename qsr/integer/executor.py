"""A plan with the weights of a network: laid out once, then run for pictures of any size.

What csrc/network/executor.h wants is made here: tables of numbers. What depends on the network is
made when an executor is: laid out weights, and arrays filled up to whole vectors. What depends on
the size of the picture is made when it changes: sizes, places in memory, the workspace. The
workspace of a call is its own, so that several threads may call at once, and waits for the next
call of that size (`program.Idle`); results are new tensors.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..blocks import SwinLayer
from ..system import native
from . import kernels
from .layer import ConvShape, laid_out, side_by_side
from .lifetimes import ALIGNMENT, places
from .packed_layers import FloatConv2d, PackedConvTranspose2d, PackedLayer
from .packed_swin import laid_out_layer, product_bits
from .plan import Plan, Step, lanes, operand_value
from .plan_reference import parameter
from .program import Idle, filled
from .reference import ELEMENTS
from .regions import LANES, MOVES

STEPS = (
    "conv",
    "float",
    "float_conv",
    "norm",
    "swin",
    "bilinear",
    "average",
    "pool",
    "nearest",
    "shuffle",
    "pad",
)  # Op of executor.h
FINISHES = (
    *("relu", "leaky", "times", "plus", "add", "mul", "minus", "from", "scaled", "factors"),
    *ELEMENTS,
)
HOMES = {"workspace": 0, "input": 1, "output": 2}


class Executor:
    """One region of a network, ready to run. plan, network: which; kernel, swin: "auto" or the name
    of a row of csrc/network/conv.h, and of swin.h. like: an executor of the same network and kernel
    with all these layers, whose weights it shares.

    It copies what it needs; `stale` says whether the network has other values since (of packed
    layers, and numbers of a finish).
    """

    def __init__(
        self,
        plan: Plan,
        network: nn.Module,
        kernel: str = "auto",
        swin: str = "auto",
        like: Executor | None = None,
    ) -> None:
        self.plan, self.kernel, self.swin = plan, kernel, swin
        # Of a layer that is laid out, by name and places: the numbers of its step up to where.
        self._laid: dict[tuple, list[int]] = {} if like is None else like._laid
        self._constants: list[Tensor] = []
        self._weights: list[Tensor] = []
        self._ends = [0, 0]  # how much both hold: numbers, and bytes
        self._layers = {name: _layer(network, name) for name in names_of(plan)}
        self._made_of = [(x, _writes(x)) for x in self._sources(network)]
        with torch.device("cpu"):  # another may be the user's default
            self._steps = [self._step(step, network) for step in plan.steps]
            constants = torch.cat(self._constants) if self._constants else torch.zeros(0)
        self.constants = constants.float().contiguous()
        self.weights: Tensor = aligned(self._ends[1]) if like is None else like.weights
        end = 0
        for laid in self._weights:
            self.weights[end : end + len(laid)] = laid
            end += _up(len(laid))
        self._weights, self._constants = [], []
        self._known: tuple[tuple[tuple[int, int], ...], Tensor, int] | None = None
        self._idle = Idle()

    def __call__(self, inputs: Sequence[Tensor]) -> list[Tensor]:
        """float32 [H, W, C] each, contiguous -> the outputs, likewise, new."""
        sizes = _sizes(inputs)
        numbers, needed = self.tables(sizes)
        buffers = self._idle.take(sizes)  # type: ignore[arg-type]
        if buffers is None:
            with torch.inference_mode(False):  # the next call may come without that mode
                buffers = (aligned(needed),)
        outputs = self.outputs(sizes)
        self.run(inputs, numbers, buffers[0], outputs, 0, len(self.plan.steps))
        self._idle.give(sizes, buffers)  # type: ignore[arg-type]
        return outputs

    def prepare(self, inputs: Sequence[Tensor]) -> tuple[Tensor, Tensor, list[Tensor]]:
        """What `run` wants beside its inputs: tables, a workspace and room for the outputs."""
        sizes = _sizes(inputs)
        numbers, needed = self.tables(sizes)
        return numbers, aligned(needed), self.outputs(sizes)

    def outputs(self, sizes: Sequence[tuple[int, int]]) -> list[Tensor]:
        """Room for them."""
        values = [self.plan.values[v] for _, v in self.plan.outputs]
        return [
            torch.empty(*v.size.of(sizes), v.channels, dtype=torch.float32, device="cpu")
            for v in values
        ]

    def run(
        self,
        inputs: Sequence[Tensor],
        numbers: Tensor,
        workspace: Tensor,
        outputs: Sequence[Tensor],
        first: int,
        last: int,
    ) -> None:
        """The steps [first, last)."""
        torch.ops.qsr_native.run_plan(
            list(inputs),
            numbers,
            self.constants,
            self.weights,
            first,
            last,
            self.kernel,
            self.swin,
            workspace,
            list(outputs),
        )

    def stale(self, network: nn.Module) -> bool:
        """Whether a value was changed or replaced since."""
        now = self._sources(network)
        return any(
            x is not y or _writes(x) != writes
            for x, (y, writes) in zip(now, self._made_of, strict=True)
        )

    def release(self) -> None:
        """Free the workspaces that wait for the next call."""
        self._idle.clear()

    @property
    def workspace(self) -> int:
        """Bytes of the workspace for inputs of the sizes that were last."""
        return 0 if self._known is None else self._known[2]

    # For a size

    def tables(self, sizes: tuple[tuple[int, int], ...]) -> tuple[Tensor, int]:
        """The tables for inputs of these sizes, and the bytes of the workspace."""
        known = self._known
        if known is None or known[0] != sizes:
            offsets, needed = places(self.plan, sizes)
            known = self._known = (sizes, self._tables(sizes, offsets), needed)
        return known[1], known[2]

    def _tables(self, sizes: Sequence[tuple[int, int]], offsets: Sequence[int]) -> Tensor:
        plan = self.plan
        outputs = {value: i for i, (_, value) in enumerate(plan.outputs)}
        table = [len(plan.values), len(plan.steps)]
        for i, value in enumerate(plan.values):
            home, at = HOMES["workspace"], offsets[i]
            if i < len(plan.inputs):
                home, at = HOMES["input"], i
            elif i in outputs:
                home, at = HOMES["output"], outputs[i]
            table += [int(value.kind == "float"), home, at, *value.size.of(sizes), value.channels]
            table += [*value.frame, value.bits, int(value.signed)]
        for step, (before, after) in zip(plan.steps, self._steps, strict=True):
            table += [*before, *step.size.of(sizes), *after]
        return torch.tensor(table, dtype=torch.int64, device="cpu")

    # For a network

    def _sources(self, network: nn.Module) -> list[object]:
        """All that tables are made of."""
        found: list[object] = []
        for name in self._layers:
            layer = _layer(network, name)
            found += [layer.weight, layer.scale, layer.step_size, layer.tau, layer.bias]
            found.append(layer.signed)
        for step in self.plan.steps:
            found += [_tensor(v, network) for _, v in step.finish if isinstance(v, str)]
        return found

    def _step(self, step: Step, network: nn.Module) -> tuple[list[int], list[int]]:
        """The numbers of a step, before and after its height and width."""
        before = [STEPS.index(step.op), step.source, -1 if step.out is None else step.out]
        after = [step.channels]
        if step.op == "conv":
            after += self._convolution(step)
        if step.op == "float_conv":
            after += self._float_convolution(step, network)
        if step.op == "norm":
            after += self._norm(step, network)
        if step.op == "swin":
            after += self._swin(step, network)
        for number in step.numbers:
            after += number if isinstance(number, (tuple, list)) else [number]
        after.append(len(step.finish))
        width = lanes(step.channels)
        for op, operand in step.finish:
            value, at = operand_value(op, operand), 0
            if op == "factors":
                value = len(operand)
                at = self._constant(torch.cat([parameter(x, network) for x in operand]), value)
            elif op == "scaled":
                at = self._constant(parameter(operand[1], network), 1)
            elif value is None and operand is not None:
                at = self._constant(parameter(operand, network).expand(step.channels), width)
            name = "leaky" if op == "prelu" else op
            after += [FINISHES.index(name), -1 if value is None else value, at]
        after.append(len(step.codes))
        for store in step.codes:
            after += [store.value, store.at]
            if step.op in MOVES:
                continue
            layer, tau = self._layers[store.reader], torch.zeros(width)
            if layer.tau is not None:
                read = slice(store.first, store.first + store.count)
                tau[read] = layer.tau.detach().cpu()[store.channels()]
            grid = torch.tensor([layer.step_size.item(), layer.spec.qmin, layer.spec.qmax])
            after += [self._constant(tau, width), self._constant(grid, 3)]
        return before, after

    def _convolution(self, step: Step) -> list[int]:
        layer, key = self._layers[step.layer], (step.layer, step.places)
        if key not in self._laid:
            self._laid[key] = self._lay_out(step, layer)
        width = lanes(step.channels)
        out, area = len(layer.weight), 1
        if isinstance(layer, PackedConvTranspose2d):  # it makes several side by side
            area = math.prod(layer.stride)
        biases = torch.zeros(out) if layer.bias is None else layer.bias.detach()
        scale, _ = (
            self._constant(x.expand(out).repeat_interleave(area), width)
            for x in (layer.scale.detach(), biases)
        )
        return [*self._laid[key], scale]

    def _lay_out(self, step: Step, layer: PackedLayer) -> list[int]:
        shape, codes = conv_shape(self.plan, step, layer)
        place = self._weight(laid_out(codes, shape, self.kernel))
        first = 0 if _in_gaps(step) else step.places[0][1]
        channels, _, groups, *windows, _, weight_bits, _ = shape.numbers
        return [first, channels, groups, *windows, weight_bits, place]

    def _float_convolution(self, step: Step, network: nn.Module) -> list[int]:
        layer = network.get_submodule(step.layer)
        assert isinstance(layer, FloatConv2d)
        width, kernel = lanes(step.channels), layer.weight.shape[2:]
        out, inside, *_ = layer.weight.shape
        fill = (0, width - out, 0, self.plan.values[step.source].channels - inside)
        weight = F.pad(layer.weight.permute(2, 3, 1, 0), fill).flatten()
        places = self._constant(weight, len(weight)), self._constant(layer.bias, width)
        return [*kernel, *layer.padding, *places]

    def _norm(self, step: Step, network: nn.Module) -> list[int]:
        norm, width = network.get_submodule(step.layer), step.channels
        assert isinstance(norm, nn.LayerNorm)
        arrays = [filled(norm.weight, width), filled(norm.bias, width), torch.tensor([norm.eps])]
        return [len(norm.weight), self._constant(torch.cat(arrays), 2 * width + 1)]

    def _swin(self, step: Step, network: nn.Module) -> list[int]:
        layer, key = network.get_submodule(step.layer), (step.layer, ())
        assert isinstance(layer, SwinLayer)
        numbers, weights, constants = laid_out_layer(layer, step.channels)
        if key not in self._laid:
            self._laid[key] = [self._weight(weights)]
        return [*numbers, *self._laid[key], self._constant(constants, len(constants))]

    def _weight(self, laid: Tensor) -> int:
        """Where these bytes lie."""
        place = self._ends[1]
        self._weights.append(laid)
        self._ends[1] += _up(len(laid))
        return place

    def _constant(self, values: Tensor | None, length: int) -> int:
        """Where these numbers lie, filled up with zeros to whole vectors."""
        place, length = self._ends[0], lanes(length)
        values = torch.zeros(0) if values is None else values.detach().float().cpu()
        self._constants.append(F.pad(values, (0, length - len(values))))
        self._ends[0] += length
        return place


def names_of(plan: Plan) -> list[str]:
    """Of all layers that run in a region or read its codes."""
    readers = (store.reader for step in plan.steps for store in step.codes)
    return list(dict.fromkeys((*plan.layers, *readers)))


def conv_shape(plan: Plan, step: Step, layer: PackedLayer) -> tuple[ConvShape, Tensor]:
    """The shape of a convolution step and its weight codes, int8 [out, kh, kw, in / groups]; where
    the layer reads a concatenation, or a part that begins within a vector, with zeros for the
    channels that it does not read, and for outputs that only fill up its map.
    """
    codes, shape = kernels.unpack_codes(layer.planes), layer.shape
    if isinstance(layer, PackedConvTranspose2d):
        shape, codes = side_by_side(layer)
    if _in_gaps(step):
        whole = codes.new_zeros(*codes.shape[:3], plan.values[step.source].channels)
        parts = _dense(codes, shape.groups).split([count for count, _ in step.places], 3)
        for (count, at), part in zip(step.places, parts, strict=True):
            whole[..., at : at + count] = part
        codes, shape = whole, replace(shape, channels=whole.shape[3], groups=1)
    if len(codes) < step.channels:
        codes = F.pad(codes, (0, 0, 0, 0, 0, 0, 0, step.channels - len(codes)))
        shape = replace(shape, out_channels=step.channels)
    return shape, codes.contiguous()


def _in_gaps(step: Step) -> bool:
    """Whether a convolution reads all channels of its source, some of them times zeros."""
    return len(step.places) > 1 or step.places[0][1] % LANES != 0


def _dense(codes: Tensor, groups: int) -> Tensor:
    """[out, kh, kw, in / groups] -> [out, kh, kw, in], zeros for channels of other groups."""
    blocks = codes.chunk(groups)
    width = codes.shape[3]
    return torch.cat(
        [F.pad(b, (i * width, (groups - 1 - i) * width)) for i, b in enumerate(blocks)]
    )


def kernel_of(plan: Plan, step: Step, network: nn.Module) -> str:
    """The row of csrc/network/conv.h or swin.h that runs a step; "" for a step without a layer."""
    if step.op in ("norm", "swin"):
        layer = network.get_submodule(step.layer)
        bits = product_bits(layer) if isinstance(layer, SwinLayer) else 0
        return next(iter(native.rows("attention", bits)), "layers")
    if step.op != "conv":
        return "float" if step.op == "float_conv" else ""
    shape, _ = conv_shape(plan, step, _layer(network, step.layer))
    return next(iter(shape.rows()), "layers")


def _layer(network: nn.Module, name: str) -> PackedLayer:
    layer = network.get_submodule(name)
    assert isinstance(layer, PackedLayer)
    return layer


def _tensor(key: str, network: nn.Module) -> Tensor:
    name, _, last = key.rpartition(".")
    return getattr(network.get_submodule(name), last)


def _sizes(inputs: Sequence[Tensor]) -> tuple[tuple[int, int], ...]:
    return tuple((x.shape[0], x.shape[1]) for x in inputs)


def _writes(x: object) -> int:
    """How often a tensor was written to."""
    return x._version if isinstance(x, Tensor) and not x.is_inference() else 0


def _up(size: int) -> int:
    return -(-size // ALIGNMENT) * ALIGNMENT


def aligned(size: int) -> Tensor:
    """uint8 [size, filled up], at a multiple of 64 bytes."""
    whole = torch.empty(_up(size) + ALIGNMENT, dtype=torch.uint8, device="cpu")
    begin = -whole.data_ptr() % ALIGNMENT
    return whole[begin : begin + _up(size)]
