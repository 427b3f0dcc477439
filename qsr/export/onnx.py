"""Networks as ONNX files, for every engine that reads them.

One file for every picture: batch, height and width are open. The graph is written down operator by
operator, not traced, because tracing fixes what a Swin network derives from the size of its
picture: the padding to whole windows, the windows, and the mask of the shifted ones. Here these are
computed in the graph, from the shape of its input.

Weights are stored as their codes, int4 up to 4 bits, else int8. A quantised layer is written in one
of two forms:

    "plain"   Add tau, Div by the step size, Round, Clip to the lowest and highest code: codes, as
              floats. Conv or MatMul with the codes of the weights (Cast to float). Mul by the
              product of the step sizes, Add the bias.
    "qdq"     Add tau, Clip, QuantizeLinear to 8 bits (int8 where signed, else uint8),
              DequantizeLinear; weights through DequantizeLinear; Add the bias.

"plain" is the definition of a packed layer (`qsr.integer.reference`), line by line, out of
operators that every engine computes alike; its sums are of integers, exact in any order. "qdq" is
how ONNX marks integers, for engines that make integer layers of it: onnxruntime does so in the
products of attention and of 8-bit weights. It is not right everywhere: OpenVINO computes it wrong
(docs/upstream-openvino.md). And where 4-bit weights come through DequantizeLinear to a MatMul,
engines may round its inputs to 8 bits, unasked: OpenVINO does by default, onnxruntime where the
inputs are no such pair. Behind the Cast neither does.

Why 8 bits for the codes of inputs, which no file holds: onnxruntime quantises to them several
times as fast as to 4 bits, and no engine multiplies narrower ones. Why 4 bits for weights of 2:
ONNX has int2 only from opset 25 on; the file of a 2-bit QuantSR-C x4 is 0.6 MB larger for it. Head
and tail are float32, the tail as trained: their sums may tip a value that lies on a rounding
threshold within its last bits, and `engines.compare` says how far that carries.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Protocol, TypeVar, cast

import numpy as np
import torch
from torch import Tensor, nn

from ..backbone import DepthPlan, QuantSR, block_shortcut
from ..blocks import ResidualBlock, Shortcut, SwinBlock, SwinLayer, WindowAttention
from ..config import SwinConfig
from ..infer import Model
from ..integer import kernels
from ..integer.packed_layers import PackedConv2d, PackedLinear, PackedMatmul
from ..integer.packing import PackedModel, pack
from ..quantizer import QuantSpec
from ..system.files import replacing
from ..system.version import __version__
from . import FORMS
from .engines import Comparison, compare, require

if TYPE_CHECKING:
    import onnx

OPSET, IR_VERSION = 21, 10  # int4; casts of it run in onnxruntime from 1.23 on
WAY_OUT = " Update that engine, or leave out the check (check=False, --no-check)."

# A network, step by step --------------------------------------------------------------------------

Value = TypeVar("Value")


class Steps(Protocol[Value]):
    """What a residual network is made of, for `walk`: each takes and gives a writer's values."""

    def scale(self, x: Value, weight: Tensor, bias: Tensor | None = None) -> Value:
        """weight * x + bias; both float32 [C], or [] for all channels."""

    def conv(self, x: Value, weight: Tensor, bias: Tensor, relu: bool = False) -> Value:
        """Convolution of stride 1, padded to the same size, then ReLU if asked."""

    def add(self, a: Value, b: Value) -> Value:
        """a + b."""

    def shuffle(self, x: Value, factor: int) -> Value:
        """Pixel shuffle."""


class MoreSteps(Steps[Value], Protocol[Value]):
    """What packed layers and Swin networks are made of beside."""

    def quantised_conv(self, x: Value, layer: PackedConv2d, relu: bool) -> Value:
        """A convolution of codes, then ReLU if asked."""

    def pad_to_windows(self, lr: Value) -> Value:
        """Pad right and bottom by reflection, as `backbone.reflect_to_multiple` does."""

    def crop(self, sr: Value) -> Value:
        """sr without what became of the padding."""

    def channel_norm(self, x: Value, norm: nn.LayerNorm) -> Value:
        """`backbone.ChannelNorm`."""

    def swin_layers(self, x: Value, layers: nn.ModuleList) -> Value:
        """The layers of a Swin block, with which its convolution begins."""


def walk(net: QuantSR, x: Value, steps: Steps[Value], plan: DepthPlan | None = None) -> Value:
    """Let `steps` compute what net(lr, plan) computes of the picture x, and return sr.

    net: in full precision or the network of a PackedModel; the latter, and Swin networks, ask more
    of `steps`, which then are `MoreSteps`. What follows the tail, the division by the pixel range
    and the mean, is folded into its last convolution.
    """
    swin, more = net.config.family == "swin", cast("MoreSteps[Value]", steps)
    mean, pixel_range = net.mean.flatten(), net.config.pixel_range

    def conv(layer: nn.Module, x: Value, relu: bool = False) -> Value:
        if isinstance(layer, PackedConv2d):
            return more.quantised_conv(x, layer, relu)
        return steps.conv(x, *_values(layer), relu)

    x = steps.scale(x, torch.tensor(pixel_range), -mean * pixel_range)
    if swin:
        x = more.pad_to_windows(x)
    shallow = conv(net.head, x)
    deep = more.channel_norm(shallow, cast(nn.LayerNorm, net.norm_in)) if swin else shallow
    keep = (plan or net.plan()).keep
    for block, runs in zip(net.blocks, keep, strict=True):
        factor = block_shortcut(block).scale
        shortcut = deep if factor is None else steps.scale(deep, factor.detach())
        if not runs or isinstance(block, Shortcut):
            deep = shortcut
        elif isinstance(block, SwinBlock):
            deep = steps.add(conv(block.conv, more.swin_layers(deep, block.layers)), shortcut)
        else:
            block = cast(ResidualBlock, block)
            deep = steps.add(conv(block.conv2, conv(block.conv1, deep, relu=True)), shortcut)
    deep = more.channel_norm(deep, cast(nn.LayerNorm, net.norm_out)) if swin else deep
    x = steps.add(conv(net.body_conv, deep), shallow)
    last = max(i for i, layer in enumerate(net.tail) if not isinstance(layer, nn.PixelShuffle))
    for i, layer in enumerate(net.tail):
        if isinstance(layer, nn.PixelShuffle):
            x = steps.shuffle(x, layer.upscale_factor)
        elif i < last:
            x = conv(layer, x)
        else:  # the shuffle after it, if any, gathers colour c from channels c * s^2 + i
            weight, bias = (values / pixel_range for values in _values(layer))
            x = steps.conv(x, weight, bias + mean.repeat_interleave(len(bias) // 3))
    return more.crop(x) if swin else x


def _values(layer: nn.Module) -> tuple[Tensor, Tensor]:
    """(weight, bias) of a convolution."""
    conv = cast(nn.Conv2d, layer)
    return conv.weight.detach(), cast(Tensor, conv.bias).detach()


# ONNX ---------------------------------------------------------------------------------------------


class OnnxSteps:
    """The steps as nodes of an ONNX graph; values are names of tensors, float32 [N, C, H, W].

    network: what is written; codes are named like its layers. form: of its quantised layers, one of
    FORMS. The methods after `shuffle` are for packed and for Swin networks.
    """

    def __init__(self, network: QuantSR, form: str = "plain") -> None:
        self.form = form
        self.config = cast(SwinConfig, network.config)  # where it is not, nobody asks for windows
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []
        self._layers = {id(module): name for name, module in network.named_modules()}
        self._known: dict[tuple, str] = {}
        self._count = 0

    # Nodes and constants

    def node(self, kind: str, *inputs: str, **attributes) -> str:
        """Add a node with one output, and return the name of that."""
        from onnx import helper

        self._count += 1
        name = f"{kind}_{self._count}"
        self.nodes.append(helper.make_node(kind, inputs, [name], name, **attributes))
        return name

    def constant(self, value: Tensor, name: str = "constant") -> str:
        """A constant tensor, float32 or int64; equal ones are stored once."""
        from onnx import numpy_helper

        value = value.detach().cpu()
        array = (value.float() if value.is_floating_point() else value).contiguous().numpy()
        key = (array.dtype, array.shape, array.tobytes())
        if key not in self._known:
            self._known[key] = f"{name}_{len(self.constants)}"
            self.constants.append(numpy_helper.from_array(array, self._known[key]))
        return self._known[key]

    def integers(self, *values: int) -> str:
        """A constant int64 [n]."""
        return self.constant(torch.tensor(values))

    def number(self, value: int) -> str:
        """A constant int64 []."""
        return self.constant(torch.tensor(value))

    # The steps of a residual network

    def scale(self, x: str, weight: Tensor, bias: Tensor | None = None) -> str:
        x = self.node("Mul", x, self.constant(_per_channel(weight)))
        return x if bias is None else self.node("Add", x, self.constant(_per_channel(bias)))

    def conv(self, x: str, weight: Tensor, bias: Tensor, relu: bool = False) -> str:
        inputs = x, self.constant(weight, "weight"), self.constant(bias, "bias")
        x = self._conv(*inputs, taps=weight.shape[-1])
        return self.node("Relu", x) if relu else x

    def _conv(self, *inputs: str, taps: int) -> str:
        return self.node("Conv", *inputs, kernel_shape=[taps, taps], pads=[taps // 2] * 4)

    def add(self, a: str, b: str) -> str:
        return self.node("Add", a, b)

    def shuffle(self, x: str, factor: int) -> str:
        return self.node("DepthToSpace", x, blocksize=factor, mode="CRD")

    # Quantised layers

    def quantised_conv(self, x: str, layer: PackedConv2d, relu: bool) -> str:
        codes = kernels.unpack_codes(layer.planes).permute(0, 3, 1, 2)
        tau, bias = (None if v is None else _per_channel(v) for v in (layer.tau, layer.bias))
        x = self.quantised(x, layer.step_size, layer.spec, tau)
        x = self._conv(x, self._weight(layer, codes, axis=0), taps=codes.shape[-1])
        x = self._in_units(x, _per_channel(layer.scale))
        # onnxruntime (1.32) rounds the bias of a Conv to multiples of the product of its step
        # sizes if nothing but ReLU and Clip lies between it and a quantiser: keep it outside.
        x = self.node("Add", x, self.constant(cast(Tensor, bias), "bias"))
        return self.node("Relu", x) if relu else x

    def linear(self, x: str, layer: nn.Module) -> str:
        """x: [..., in_features]."""
        if isinstance(layer, PackedLinear):
            x = self.quantised(x, layer.step_size, layer.spec, layer.tau)
            weight = self._weight(layer, kernels.unpack_codes(layer.planes)[:, 0, 0].T, axis=1)
            x = self._in_units(self.node("MatMul", x, weight), layer.scale)
        else:
            layer = cast(nn.Linear, layer)
            x = self.node("MatMul", x, self.constant(layer.weight.T, "weight"))
        return self.node("Add", x, self.constant(cast(Tensor, layer.bias), "bias"))

    def quantised(self, x: str, step: Tensor, spec: QuantSpec, shift: Tensor | None = None) -> str:
        """clamp(round((x + shift) / step)), and in the form "qdq" times the step."""
        from onnx import TensorProto

        if shift is not None:
            x = self.node("Add", x, self.constant(shift))
        ends = torch.tensor([spec.qmin, spec.qmax], dtype=torch.float32)
        if self.form == "plain":
            x = self.node("Round", self.node("Div", x, self.constant(step)))
            return self.node("Clip", x, *map(self.constant, ends))
        if (spec.qmin, spec.qmax) != ((-128, 127) if spec.signed else (0, 255)):
            x = self.node("Clip", x, *map(self.constant, step * ends))
        kind = TensorProto.INT8 if spec.signed else TensorProto.UINT8
        pair = self.constant(step), self._codes(torch.zeros((), dtype=torch.int8), kind, "zero")
        return self.node("DequantizeLinear", self.node("QuantizeLinear", x, *pair), *pair)

    def _in_units(self, product: str, scale: Tensor) -> str:
        """A product of what `quantised` gives, in units of its values; scale: of its codes."""
        if self.form == "plain":
            return self.node("Mul", product, self.constant(scale))
        return product

    def _weight(self, layer: PackedConv2d | PackedLinear, codes: Tensor, axis: int) -> str:
        """The codes of a packed layer's weights, in the form "qdq" times the step size of each
        output."""
        from onnx import TensorProto

        kind = TensorProto.INT4 if layer.planes.bits <= 4 else TensorProto.INT8
        constant = self._codes(codes, kind, self._layers[id(layer)])
        if self.form == "plain":
            return self.node("Cast", constant, to=TensorProto.FLOAT)
        step = self.constant(layer.scale / layer.step_size)
        attributes = {"axis": axis} if layer.scale.ndim else {}
        return self.node("DequantizeLinear", constant, step, **attributes)

    def _codes(self, codes: Tensor, kind: int, name: str) -> str:
        """A constant of integers, int8 here, stored as `kind`."""
        from onnx import TensorProto, helper

        raw: np.ndarray = codes.contiguous().numpy().view(np.uint8).flatten()
        if kind == TensorProto.INT4:  # two in a byte, the first in its low half
            raw = np.pad(raw, (0, len(raw) % 2)) & 15
            raw = raw[::2] | raw[1::2] << 4
        key = (kind, tuple(codes.shape), raw.tobytes())
        if key not in self._known:
            self._known[key] = f"{name}_{len(self.constants)}"
            self.constants.append(
                helper.make_tensor(self._known[key], kind, codes.shape, raw.tobytes(), raw=True)
            )
        return self._known[key]

    # Swin networks

    def pad_to_windows(self, lr: str) -> str:
        """Pad right and bottom by reflection, as `backbone.reflect_to_multiple` does, and keep what
        else the graph needs of the picture's size.
        """
        config, zero = self.config, self.integers(0)
        x, counts, sizes, ends, regions = lr, [], [], [], []
        for dim in (2, 3):
            length = self.node("Squeeze", self.node("Shape", lr, start=dim, end=dim + 1))
            side = self.number(config.window)
            count = self.node("Div", self.node("Add", length, self.number(config.window - 1)), side)
            padded = self.node("Mul", count, side)
            position = self.node("Range", self.number(0), padded, self.number(1))
            x = self.node("Gather", x, self._reflected(position, length), axis=dim)
            regions.append(self._regions(position, padded))
            counts.append(self.node("Unsqueeze", count, zero))
            sizes.append(self.node("Unsqueeze", padded, zero))
            end = self.node("Mul", length, self.number(config.scale))
            ends.append(self.node("Unsqueeze", end, zero))
        batch, side = self.node("Shape", lr, start=0, end=1), self.integers(config.window)
        grid = counts[0], side, counts[1], side
        channels = self.integers(config.features)
        self._cut = self.node("Concat", batch, *grid, channels, axis=0)
        self._joint = self.node("Concat", batch, counts[0], counts[1], side, side, channels, axis=0)
        self._picture = self.node("Concat", batch, *sizes, channels, axis=0)
        self._ends = self.node("Concat", *ends, axis=0)
        self._mask = self._shift_mask(regions[0], regions[1], self.node("Concat", *grid, axis=0))
        tokens = self.integers(config.heads, config.window**2, config.window**2)
        self._masked = self.node("Concat", batch, self.node("Mul", *counts), tokens, axis=0)
        return x

    def _reflected(self, position: str, length: str) -> str:
        """The row or column of the picture at a position of the padded one. Back and forth: abc,
        padded to 8, becomes abcbabcb."""
        one = self.number(1)
        period = self.node("Mul", self.node("Sub", length, one), self.number(2))
        period = self.node("Max", period, one)
        place = self.node("Mod", position, period)
        place = self.node("Min", place, self.node("Sub", period, place))
        return self.node("Mod", place, length)

    def _regions(self, position: str, padded: str) -> str:
        """Which part of the picture a row or column belongs to, after the shift: 0, 1 or 2."""
        starts = self.number(self.config.window), self.number(self.config.window // 2)
        parts = [
            self.node("GreaterOrEqual", position, self.node("Sub", padded, start))
            for start in starts
        ]
        return self.node("Add", *(self.node("Cast", part, to=7) for part in parts))  # 7: int64

    def _shift_mask(self, rows: str, columns: str, grid: str) -> str:
        """The mask of shifted windows, as `blocks.shift_mask`: [1, windows, 1, T, T]; rows and
        columns as `_regions`, grid: the shape that cuts the picture into windows."""
        rows = self.node("Unsqueeze", self.node("Mul", rows, self.number(3)), self.integers(1))
        region = self.node("Add", rows, self.node("Unsqueeze", columns, self.integers(0)))
        region = self.node("Transpose", self.node("Reshape", region, grid), perm=[0, 2, 1, 3])
        shape = self.integers(1, -1, 1, 1, self.config.window**2)
        region = self.node("Reshape", region, shape)
        same = self.node("Equal", region, self.node("Transpose", region, perm=[0, 1, 2, 4, 3]))
        values = (self.constant(torch.tensor(value)) for value in (0.0, -100.0))
        return self.node("Where", same, *values)

    def crop(self, sr: str) -> str:
        """sr without what became of the padding."""
        return self.node("Slice", sr, self.integers(0, 0), self._ends, self.integers(2, 3))

    def channel_norm(self, x: str, norm: nn.LayerNorm) -> str:
        x = self._norm(self.node("Transpose", x, perm=[0, 2, 3, 1]), norm)
        return self.node("Transpose", x, perm=[0, 3, 1, 2])

    def swin_layers(self, x: str, layers: nn.ModuleList) -> str:
        """The layers of a Swin block, with which its convolution begins."""
        x = self.node("Transpose", x, perm=[0, 2, 3, 1])
        for layer in cast("Iterable[SwinLayer]", layers):
            moved = self._roll(self._norm(x, layer.norm1), layer.shift)
            moved = self._attention(moved, layer.attention, layer.shift > 0)
            x = self.node("Add", x, self._roll(moved, -layer.shift))
            hidden = self.node("Gelu", self.linear(self._norm(x, layer.norm2), layer.fc1))
            x = self.node("Add", x, self.linear(hidden, layer.fc2))
        return self.node("Transpose", x, perm=[0, 3, 1, 2])

    def _norm(self, x: str, norm: nn.LayerNorm) -> str:
        values = self.constant(norm.weight), self.constant(norm.bias)
        return self.node("LayerNormalization", x, *values, epsilon=norm.eps)

    def _roll(self, x: str, shift: int) -> str:
        """x [N, H, W, C] with its first `shift` rows and columns moved to the end."""
        for axis in (1, 2) if shift else ():
            cut, dim = self.integers(shift), self.integers(axis)
            first = self.node("Slice", x, self.integers(0), cut, dim)
            rest = self.node("Slice", x, cut, self.integers(2**31 - 1), dim)
            x = self.node("Concat", rest, first, axis=axis)
        return x

    def _attention(self, x: str, attention: WindowAttention, masked: bool) -> str:
        """Of the windows of x [N, H, W, C], and back."""
        config = self.config
        pixels, width = config.window**2, config.features // config.heads
        x = self.node("Transpose", self.node("Reshape", x, self._cut), perm=[0, 1, 3, 2, 4, 5])
        x = self.node("Reshape", x, self.integers(-1, pixels, config.features))
        qkv = self.linear(x, attention.qkv)
        qkv = self.node("Reshape", qkv, self.integers(-1, pixels, 3, config.heads, width))
        qkv = self.node("Transpose", qkv, perm=[2, 0, 3, 1, 4])
        q, k, v = (self.node("Gather", qkv, self.number(i), axis=0) for i in range(3))
        q = self.node("Mul", q, self.constant(torch.tensor(width**-0.5)))
        scores = self._matmul(q, self.node("Transpose", k, perm=[0, 1, 3, 2]), attention.scores)
        table, index = attention.position_bias, attention.position_index  # 18 times smaller
        bias = self.node("Gather", self.constant(table), self.constant(index), axis=0)
        scores = self.node("Add", scores, self.node("Transpose", bias, perm=[2, 0, 1]))
        if masked:
            shape = self.integers(-1, config.heads, pixels, pixels)
            scores = self.node("Add", self.node("Reshape", scores, self._masked), self._mask)
            scores = self.node("Reshape", scores, shape)
        x = self._matmul(self.node("Softmax", scores, axis=-1), v, attention.mix)
        x = self.node("Transpose", x, perm=[0, 2, 1, 3])
        x = self.node("Reshape", x, self.integers(-1, pixels, config.features))
        x = self.linear(x, attention.proj)
        x = self.node("Transpose", self.node("Reshape", x, self._joint), perm=[0, 1, 3, 2, 4, 5])
        return self.node("Reshape", x, self._picture)

    def _matmul(self, a: str, b: str, matmul: nn.Module) -> str:
        if not isinstance(matmul, PackedMatmul):
            return self.node("MatMul", a, b)
        a = self.quantised(a, matmul.left_step, matmul.specs["left"])
        b = self.quantised(b, matmul.right_step, matmul.specs["right"])
        return self._in_units(self.node("MatMul", a, b), matmul.left_step * matmul.right_step)


def _per_channel(values: Tensor) -> Tensor:
    """[C], or [], shaped to meet [N, C, H, W]."""
    return values.view(-1, 1, 1) if values.ndim else values


def onnx_model(
    model: Model,
    blocks: int | None = None,
    size: tuple[int, int] | None = None,
    form: str = "plain",
) -> onnx.ModelProto:
    """A network as an ONNX model: "lr" float32 [N, 3, H, W] -> "sr" [N, 3, scale H, scale W].

    lr: RGB in [0, 1]; sr is not clipped. blocks: the depth (None: all); of the other blocks only
    their shortcuts are left. size: (height, width) of the only pictures that it takes, one at a
    time; None leaves batch, height and width open. form: of the quantised layers, "plain" or "qdq",
    as the module explains.
    Raises ValueError for a depth that the network has not, for another form, if it can't be packed
    (not calibrated, or CADyQ), or if onnx is not installed; TypeError for another network.
    """
    require("onnx")
    if not isinstance(model, (QuantSR, PackedModel)):
        raise TypeError(
            f"`model` is a {type(model).__name__}; ONNX files are written of a QuantSR, trained or "
            "packed. Export your own network as it was before qsr.pack, by torch.export."
        )
    if form not in FORMS:
        raise ValueError(
            f"`form` is {form!r}; quantised layers are written as {' or '.join(FORMS)}."
        )
    import onnx
    from onnx import TensorProto, helper

    plan, scale = model.plan(blocks), model.config.scale
    packed = pack(model) if isinstance(model, QuantSR) and model.config.bits is not None else model
    network = packed.network if isinstance(packed, PackedModel) else packed
    steps = OnnxSteps(network, form)
    walk(network, "lr", steps, plan)
    steps.nodes[-1].output[0] = "sr"
    shapes: tuple[list[Any], list[Any]]
    if size is None:
        shapes = ["N", 3, "H", "W"], ["N", 3, f"{scale}*H", f"{scale}*W"]
    else:
        shapes = [1, 3, *size], [1, 3, *(scale * n for n in size)]
    lr, sr = (
        helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)
        for name, shape in zip(("lr", "sr"), shapes, strict=True)
    )
    made = helper.make_model(
        helper.make_graph(steps.nodes, "qsr", [lr], [sr], steps.constants),
        opset_imports=[helper.make_opsetid("", OPSET)],
        ir_version=IR_VERSION,
        producer_name="qsr",
        producer_version=__version__,
    )
    onnx.checker.check_model(made)
    return made


def export_onnx(
    model: Model,
    path: str | os.PathLike,
    blocks: int | None = None,
    *,
    form: str = "plain",
    check: bool = True,
    overwrite: bool = False,
) -> Comparison:
    """Write a network to an ONNX file, whole or not at all, once the engines agree with qsr.

    Arguments and errors as `onnx_model`; check: also `compare` it, and return what that says. More
    errors: ValueError if the file exists and `overwrite` is False, if it can't be written, or if an
    installed engine computes something else. Of the form "qdq" only onnxruntime has to be right;
    which others are not is in what is returned.
    """
    made = onnx_model(model, blocks, form=form)
    with replacing(path, overwrite=overwrite) as temporary:
        temporary.write_bytes(made.SerializeToString())
        comparison = compare(temporary, model, blocks) if check else Comparison()
        wrong = [line for line in comparison.differ if form == "plain" or "onnxruntime" in line]
        if wrong:
            raise ValueError(wrong[0] + WAY_OUT)
        return comparison
