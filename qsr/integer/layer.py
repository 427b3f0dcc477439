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
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional as F

from ..system import native
from . import kernels

if TYPE_CHECKING:
    from .packing import PackedLayer

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

    def rows(self) -> tuple[str, ...]:
        """Names of the rows that run it on this processor, best first; () without native code."""
        if not native.load().native:
            return ()
        return tuple(torch.ops.qsr_native.layer_rows(self.numbers).split(","))


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
    def of(cls, layer: PackedLayer, shape: ConvShape) -> LaidOut:
        names = shape.rows() if layer.weight.device.type == "cpu" else ()
        row = names[0] if names and layer.kernel == "auto" else layer.kernel
        if row not in names:
            return cls("", [], layer.weight, layer.scale, [])
        longest = max(shape.channels, shape.out_channels)
        longest += -longest % LANES

        def filled(x: Tensor | None) -> Tensor:
            return torch.zeros(longest) if x is None else F.pad(x, (0, longest - len(x)))

        with torch.inference_mode(False), torch.no_grad(), torch.device("cpu"):
            arrays = (layer.scale.expand(shape.out_channels), layer.bias, layer.tau)
            return cls(
                row,
                shape.numbers,
                torch.ops.qsr_native.lay_out_layer(
                    kernels.unpack_codes(layer.planes).contiguous(), shape.numbers, row
                ),
                torch.stack([filled(x).float() for x in arrays]),
                [layer.step_size.item(), layer.spec.qmin, layer.spec.qmax],
            )

    def conv2d(self, x: Tensor) -> Tensor:
        """float [N, C, H, W] -> float32 [N, Cout, Ho, Wo], in the memory format of x."""
        x = x.detach().float()
        by_pixels = x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()
        x = x.permute(0, 2, 3, 1) if by_pixels else x.contiguous()
        values = (self.weights, self.arrays, self.codes, self.shape)
        y = torch.ops.qsr_native.packed_conv2d(x, *values, by_pixels, self.row)
        return y.permute(0, 3, 1, 2) if by_pixels else y

    def linear(self, x: Tensor) -> Tensor:
        """float [M, in] -> float32 [M, out]."""
        x = x.detach().float().contiguous()
        values = (self.weights, self.arrays, self.codes, self.shape)
        return torch.ops.qsr_native.packed_linear(x, *values, self.row)


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
    return x.new_empty(x.shape[0], shape[1])


native.FAKES.update(packed_conv2d=fake_conv2d, packed_linear=fake_linear)
