"""A packed layer in one native call, from float to float.

Bit planes are the format of files and of the operators in `kernels`, and what any kernel and any
device can start from. A layer that runs alone would pay for them at every call: quantise, cut into
planes, put together again, lay the weights out, convert the sums. So on the processor it keeps its
weights as the best row of csrc/network/conv.h reads them, and one operator quantises into the bytes
that this row eats, multiplies, and finishes: the same integers, the same three float operations.

What is laid out is made at the first use, and again when the values of the layer change.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional as F

from ..system import native
from ..system.errors import floating
from . import kernels

if TYPE_CHECKING:
    from .packed_layers import PackedConvTranspose2d, PackedLayer

LANES = 16  # kMapLanes of csrc/network/conv.h


@dataclass(frozen=True)
class ConvShape:
    """What is known of a convolution before its picture; pairs are (height, width).

    A linear layer is the case of 1x1.
    """

    channels: int
    out_channels: int
    groups: int
    kernel_size: tuple[int, int]
    stride: tuple[int, int]
    dilation: tuple[int, int]
    padding: tuple[int, int]
    bits: tuple[int, int]  # of input and weights
    signed: bool

    @property
    def numbers(self) -> list[int]:
        """As csrc/torch/ops_layer.cpp takes it."""
        pairs = (self.kernel_size, self.stride, self.dilation, self.padding, self.bits)
        channels = (self.channels, self.out_channels, self.groups)
        return [*channels, *(n for pair in pairs for n in pair), int(self.signed)]

    @property
    def products(self) -> int:
        """How many make an output."""
        height, width = self.kernel_size
        return height * width * self.channels // self.groups

    def rows(self) -> tuple[str, ...]:
        """Names of the rows that run it on this processor, best first; () without native code."""
        if not native.load().native:
            return ()
        return tuple(torch.ops.qsr_native.layer_rows(self.numbers).split(","))


def laid_out(codes: Tensor, shape: ConvShape, row: str) -> Tensor:
    """Weight codes int8 [Cout, kh, kw, Cin of a group] as a row reads them: uint8 [bytes], at a
    multiple of 64 of them.
    """
    laid = torch.ops.qsr_native.lay_out_layer(codes, shape.numbers, row)  # with room to align
    begin = -laid.data_ptr() % 64
    return laid[begin : begin + len(laid) - 64]


@dataclass(frozen=True)
class LaidOut:
    """The values of a layer as `row` reads them; without a row it runs by its planes.

    weights: uint8 [bytes]; arrays: scale, bias and tau, float32 [3, channels]; codes: step size,
    lowest and highest code of the input.
    """

    row: str
    shape: list[int]
    weights: Tensor
    arrays: Tensor
    codes: list[float]

    @classmethod
    def of(cls, layer: PackedLayer, shape: ConvShape, codes: Tensor | None = None) -> LaidOut:
        """codes: of the weights, int8 [Cout, kh, kw, Cin of a group]; None: the layer's own."""
        names = shape.rows() if layer.weight.device.type == "cpu" else ()
        row = names[0] if names and layer.kernel == "auto" else layer.kernel
        if row not in names:
            return cls("", [], layer.weight, layer.scale, [])
        longest = max(shape.channels, shape.out_channels)
        longest += -longest % LANES

        def filled(x: Tensor | None) -> Tensor:
            return torch.zeros(longest) if x is None else F.pad(x, (0, longest - len(x)))

        with torch.inference_mode(False), torch.no_grad(), torch.device("cpu"):
            if codes is None:
                codes = kernels.unpack_codes(layer.planes)
            arrays = (layer.scale.expand(shape.out_channels), layer.bias, layer.tau)
            return cls(
                row,
                shape.numbers,
                torch.ops.qsr_native.lay_out_layer(codes.contiguous(), shape.numbers, row),
                torch.stack([filled(x).float() for x in arrays]),
                [layer.step_size.item(), layer.spec.qmin, layer.spec.qmax],
            )

    def conv2d(self, x: Tensor) -> Tensor:
        """float [N, C, H, W] -> float32 [N, Cout, Ho, Wo], in the memory format of x."""
        x = floating(x).detach().float()
        by_pixels = not channels_first(x)
        x = (x.permute(0, 2, 3, 1) if by_pixels else x).contiguous()
        values = (self.weights, self.arrays, self.codes, self.shape)
        y = torch.ops.qsr_native.packed_conv2d(x, *values, by_pixels, self.row)
        return y.permute(0, 3, 1, 2) if by_pixels else y

    def linear(self, x: Tensor) -> Tensor:
        """float [M, in] -> float32 [M, out]."""
        x = floating(x).detach().float().contiguous()
        values = (self.weights, self.arrays, self.codes, self.shape)
        return torch.ops.qsr_native.packed_linear(x, *values, self.row)


@dataclass(frozen=True)
class Phases:
    """A transposed convolution of stride s as s * s convolutions, each of which makes every s-th
    output of every s-th row: those take the same taps of the kernel, every s-th too.

    parts: (first row, first column, rows and columns to leave out before them, the convolution).
    """

    row: str
    stride: tuple[int, int]
    parts: tuple[tuple[int, int, int, int, LaidOut], ...]

    @classmethod
    def of(cls, layer: PackedLayer, shape: ConvShape) -> Phases:
        """shape: of the transposed convolution, whose kernel the layer keeps turned by 180 degrees.
        Raises ValueError for a dilated one.
        """
        if shape.dilation != (1, 1):
            raise ValueError(f"`dilation` is {shape.dilation}; phases have taps beside each other.")
        codes = kernels.unpack_codes(layer.planes).flip(1, 2)
        sides = [
            [_phase(*side, first) for first in range(side[1])]
            for side in zip(shape.kernel_size, shape.stride, shape.padding, strict=True)
        ]
        parts = []
        for y, (rows, top, skip_y) in enumerate(sides[0]):
            for x, (columns, left, skip_x) in enumerate(sides[1]):
                taps = codes[:, rows][:, :, columns].flip(1, 2)
                height, width = (max(n, 1) for n in taps.shape[1:3])
                part = taps.new_zeros(len(taps), height, width, taps.shape[3])
                part[:, : taps.shape[1], : taps.shape[2]] = taps  # none: an output of no products
                of_part = replace(
                    shape, kernel_size=(height, width), stride=(1, 1), padding=(top, left)
                )
                parts.append((y, x, skip_y, skip_x, LaidOut.of(layer, of_part, part)))
        return cls(parts[0][-1].row, shape.stride, tuple(parts))

    def conv2d(self, x: Tensor, height: int, width: int) -> Tensor:
        """float [N, C, H, W] -> float32 [N, Cout, height, width], in the memory format of x."""
        (sy, sx), by_pixels = self.stride, not channels_first(x)
        # By pixels in any case: strided copies by planes take ten times as long as turning twice.
        x = x.contiguous(memory_format=torch.channels_last)
        size = (x.shape[0], self.parts[0][-1].shape[1], height, width)
        y = torch.empty(size, memory_format=torch.channels_last)
        for first, left, skip_y, skip_x, part in self.parts:
            to = y[:, :, first::sy, left::sx]
            made = part.conv2d(x)
            to.copy_(made[:, :, skip_y : skip_y + to.shape[2], skip_x : skip_x + to.shape[3]])
        return y if by_pixels else y.contiguous()


def reach(layer: PackedConvTranspose2d) -> tuple[int, int]:
    """How many pixels a transposed convolution looks to each side of the one it enlarges."""
    sides = zip(layer.weight.shape[1:3], layer.stride, layer.padding, strict=True)
    rows, columns = (max((s - 1 + p) // s, (k - 1 - p) // s) for k, s, p in sides)
    return rows, columns


def side_by_side(layer: PackedConvTranspose2d) -> tuple[ConvShape, Tensor]:
    """A transposed convolution as one that makes a square of outputs of each pixel, channel by
    channel (nn.PixelShuffle puts them in their places), with zeros for taps that an output does not
    have. Its shape and weight codes.

    Output stride * i + first takes tap k of input i + (first + padding - k) / stride.
    """
    codes, (s, _), (ry, rx) = (
        kernels.unpack_codes(layer.planes).flip(1, 2),
        layer.stride,
        reach(layer),
    )
    out, rows, columns, channels = codes.shape
    whole = codes.new_zeros(out, s, s, 2 * ry + 1, 2 * rx + 1, channels)
    for ky in range(rows):
        for kx in range(columns):
            y, x = (ky - layer.padding[0]) % s, (kx - layer.padding[1]) % s
            dy, dx = (y + layer.padding[0] - ky) // s, (x + layer.padding[1] - kx) // s
            whole[:, y, x, ry + dy, rx + dx] = codes[:, ky, kx]
    shape = replace(
        layer.shape,
        out_channels=out * s * s,
        kernel_size=(2 * ry + 1, 2 * rx + 1),
        stride=(1, 1),
        padding=(ry, rx),
    )
    return shape, whole.flatten(0, 2)


def channels_first(x: Tensor) -> bool:
    """Whether pictures are not channels-last, nor a part of the channels of such pictures."""
    return x.stride(1) != 1 or x.is_contiguous()


def _phase(kernel: int, stride: int, padding: int, first: int) -> tuple[slice, int, int]:
    """Along one side, of the outputs first, first + stride, ...: their taps, the padding of their
    convolution, and how many of its outputs come before them.

    Output stride * i + first takes the taps k = k0 + stride * m at the inputs i + q - m.
    """
    k0 = (first + padding) % stride
    q = (first + padding - k0) // stride
    taps = slice(k0, None, stride)
    count = max(len(range(kernel)[taps]), 1)
    # As many outputs as there can be, with the largest output padding: of input h at most h + more.
    more = -(-(kernel - 2 * padding - 1 + stride - first) // stride) - 1
    pad = max(0, count - 1 - q, more + q + 1)
    return taps, pad, q - (count - 1) + pad


def fake_conv2d(
    x: Tensor,
    weights: Tensor,
    arrays: Tensor,
    codes: Sequence[float],
    shape: Sequence[int],
    by_pixels: bool,
    row: str,
) -> Tensor:
    """What torch.compile and torch.export learn of the result."""
    if x.ndim != 4 or len(shape) < 11 or min(shape[5:7]) < 1:
        raise RuntimeError("x must be a batch of pictures, and the shape that of a convolution")
    kernel, stride, dilation, padding = (shape[i : i + 2] for i in (3, 5, 7, 9))
    height, width = (
        (x.shape[i + (1 if by_pixels else 2)] + 2 * padding[i] - dilation[i] * (kernel[i] - 1) - 1)
        // stride[i]
        + 1
        for i in (0, 1)
    )
    size = (height, width, shape[1]) if by_pixels else (shape[1], height, width)
    return x.new_empty(x.shape[0], *size)


def fake_linear(
    x: Tensor,
    weights: Tensor,
    arrays: Tensor,
    codes: Sequence[float],
    shape: Sequence[int],
    row: str,
) -> Tensor:
    if x.ndim != 2 or len(shape) < 2:
        raise RuntimeError("x must be rows, and the shape that of a linear layer")
    return x.new_empty(x.shape[0], shape[1])


native.add_fakes(packed_conv2d=fake_conv2d, packed_linear=fake_linear)
