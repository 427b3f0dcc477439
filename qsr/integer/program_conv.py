"""QuantSR-C as one planned program (`program`): fused layers, only the residual stream in float.

body   lr -> features       one call of csrc/network/residual_network.cpp, on integers
tail   features -> sr       the collapsed convolution of qsr.integer.tail, in float

On a GPU the body is a row of launches (csrc/cuda/network.h): compiled and emulated on the
processor, bit for bit, but never run.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..backbone import DepthPlan, QuantSR
from ..blocks import ResidualBlock
from ..config import NetworkConfig
from ..layers import split_bits
from . import kernels
from .program import Buffers, CodeConv, Program, code_map_bytes, factor, filled, numbers

if TYPE_CHECKING:
    from .packing import PackedConv2d

MOST_BLOCKS = 64  # kMostSkips of csrc/cuda/imma.h


class ConvProgram(Program):
    """The body of a packed QuantSR-C, planned."""

    family = "conv"

    def __init__(
        self, network: QuantSR, kernel: str = "auto", device: str | torch.device = "cpu"
    ) -> None:
        super().__init__(network, kernel, device)
        fill = (0, self.channels - self.config.features)
        assert self.config.bits is not None  # else no program is available
        self.bits = split_bits(self.config.bits)[1]
        head_weight = F.pad(network.head.weight.permute(2, 3, 1, 0), fill).contiguous()
        self.head_weight = head_weight.to(self.device)
        self.head_bias = filled(network.head.bias, self.channels).to(self.device)
        self.shortcuts = numbers([factor(block) for block in network.blocks])
        self.runs = [isinstance(block, ResidualBlock) for block in network.blocks]
        layers: list[nn.Module] = []  # of a block two; of one that was sliced away nobody looks
        for block in network.blocks:
            if isinstance(block, ResidualBlock):
                layers += [block.conv1, block.conv2]
            else:
                layers += [network.body_conv] * 2
        packed = cast("list[PackedConv2d]", [*layers, network.body_conv])
        convs = [CodeConv(layer, self.channels) for layer in packed]
        self.arrays = torch.stack([conv.array for conv in convs]).to(self.device)
        self.numbers = torch.stack([conv.number for conv in convs])  # for the launcher, as above
        codes = torch.stack([conv.codes for conv in convs]).to(self.device)
        self.weights = torch.ops.qsr_native.lay_out_layers(
            codes, self.numbers, self.bits, self.kernel
        )

    @staticmethod
    def _rows(config: NetworkConfig, device: torch.device) -> tuple[str, ...]:
        """None for a network with a full-precision layer in the body, or deeper than MOST_BLOCKS
        on a GPU.
        """
        assert config.bits is not None
        fits = config.quantize_body_conv
        fits = fits and (device.type == "cpu" or config.blocks <= MOST_BLOCKS)
        most = max(split_bits(config.bits))
        return kernels.native_rows("conv3x3", device, most) if fits else ()

    @property
    def pixel_bytes(self) -> int:
        """Of the maps of csrc/network/residual_network.cpp, and of sr."""
        maps = 2 * 4 + 2 * 1  # float and codes
        return maps * self.channels + 4 * 2 * 3 + 4 * 3 * self.tail.scale**2

    def arguments(self, lr: Tensor, plan: DepthPlan, buffers: Buffers) -> tuple:
        """What the operator `residual_body` takes; the last is where the features come."""
        kept = [int(k and runs) for k, runs in zip(plan.keep, self.runs, strict=True)]
        return (
            lr.contiguous(),
            self.mean,
            self.config.pixel_range,
            self.head_weight,
            self.head_bias,
            self.weights,
            self.arrays,
            self.numbers,
            self.shortcuts,
            kept,
            self.bits,
            self.kernel,
            *buffers,
        )

    def features(self, lr: Tensor, plan: DepthPlan, buffers: Buffers) -> Tensor:
        torch.ops.qsr_native.residual_body(*self.arguments(lr, plan, buffers))
        return buffers[-1]

    def buffers(self, height: int, width: int) -> Buffers:
        """The workspace of the native call, and the features."""
        bytes_needed = workspace_bytes(height, width, self.channels)
        return (
            torch.empty(bytes_needed, dtype=torch.uint8, device=self.device),
            torch.empty(height, width, self.channels, dtype=torch.float32, device=self.device),
        )


def workspace_bytes(height: int, width: int, channels: int) -> int:
    """Room for the maps of csrc/network/residual_network.cpp, whose operator checks it: the
    normalised picture in its frame, the shallow features and two maps of codes.
    """
    picture, shallow = 4 * 3 * (height + 2) * (width + 2), 4 * channels * height * width
    codes = 2 * code_map_bytes(height, width, channels)
    return picture + shallow + codes + 5 * 64  # each begins at a multiple of 64
