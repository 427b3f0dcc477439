"""QuantSR-T as one planned program (`program`): a native call a Swin layer, in place on its stream.

Layer by layer, a packed Swin network writes scores, probabilities and hidden values of the whole
picture to memory: at 128x128 the scores of one layer alone are 25 MB. But between reading the
stream and writing it back, everything a Swin layer does stays inside one window of 64 pixels. The
program runs a layer window by window (csrc/network/swin.h), with all that lies between in scratch
memory of each thread, and picks the pixels of a shifted window by their index, so nothing is
rolled, cut into windows or copied.

    lr -> head                           float32, fixed order of summation
       -> layers of each block           csrc/network/swin_kernel.h, on integers
       -> convolution of each block      csrc/network/conv.h, on integers
       -> body_conv -> tail              float32
"""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..backbone import DepthPlan, QuantSR, reflect_to_multiple
from ..blocks import SwinBlock, SwinLayer
from ..config import SwinConfig
from ..layers import split_bits
from ..system import native
from . import kernels
from .layer import ConvShape, laid_out
from .lifetimes import value_bytes
from .plan import Size, Value
from .program import (
    Buffers,
    CodeConv,
    Program,
    factor,
    filled,
    numbers,
    padded,
)

if TYPE_CHECKING:
    from .packed_layers import FloatConv2d, PackedConv2d, PackedLinear
    from .packed_swin import PackedAttention

NEVER = -1e30  # kNever of csrc/torch/ops_swin.cpp, bias of a pair that is not there: its exp is 0


class SwinProgram(Program):
    """A packed QuantSR-T, planned."""

    family = "swin"
    config: SwinConfig

    def __init__(
        self, network: QuantSR, kernel: str = "auto", device: str | torch.device = "cpu"
    ) -> None:
        super().__init__(network, kernel, device)
        self.head = _FloatConv(network.head, self.channels)
        self.norm_in, self.norm_out = (
            _Norm(cast(nn.LayerNorm, norm), self.channels)
            for norm in (network.norm_in, network.norm_out)
        )
        self.blocks = [self._block(block) for block in network.blocks]
        self.body_conv: _LaidOutConv | _FloatConv
        if self.config.quantize_body_conv:
            self.body_conv = _LaidOutConv(cast("PackedConv2d", network.body_conv), self.channels)
        else:
            self.body_conv = _FloatConv(cast("FloatConv2d", network.body_conv), self.channels)

    @staticmethod
    def _rows(config: SwinConfig, device: torch.device) -> tuple[str, ...]:
        """By the most bits that two factors of the network have together; none on a GPU."""
        if device.type != "cpu":
            return ()
        assert config.bits is not None  # else no program is available
        most = sum(split_bits(config.bits))  # weights are signed
        if config.attention_bits is not None:
            # One more where k or v is unsigned: so the kernel fits whatever calibration decided.
            most = max(most, min(16, sum(split_bits(config.attention_bits)) + 1))
        return native.rows("attention", most)

    def _block(self, block: nn.Module) -> tuple[float, list[_Layer], _LaidOutConv | None]:
        """Shortcut, layers and convolution; of a block that was sliced away the shortcut."""
        if not isinstance(block, SwinBlock):
            return factor(block), [], None
        layers = [_Layer(cast(SwinLayer, layer), self.config) for layer in block.layers]
        conv = _LaidOutConv(cast("PackedConv2d", block.conv), self.channels)
        return factor(block), layers, conv

    @property
    def pixel_bytes(self) -> int:
        """As measured: around body_conv live four float maps and the codes; then lr and sr."""
        return (4 * 4 + 2) * self.channels + 4 * 2 * 3 + 2 * 4 * 3 * self.tail.scale**2

    def features(self, lr: Tensor, plan: DepthPlan, buffers: Buffers) -> Tensor:
        x = (lr[None] - self.mean) * self.config.pixel_range
        x = reflect_to_multiple(x, self.config.window).permute(0, 2, 3, 1)
        codes, residual, stream = buffers
        shallow = self.head(x)[0]
        self._norm(self.norm_in, shallow, stream)
        for (shortcut, layers, conv), keep in zip(self.blocks, plan.keep, strict=True):
            if conv is None or not keep:
                stream.mul_(shortcut)
                continue
            residual.copy_(stream)
            for layer in layers:
                self._layer(layer, stream)
            self._conv(conv, stream, residual, shortcut, codes)
        self._norm(self.norm_out, stream, stream)
        if isinstance(self.body_conv, _LaidOutConv):
            self._conv(self.body_conv, stream, shallow, 1.0, codes)
            return stream
        return self.body_conv(stream[None])[0].add_(shallow)

    def _norm(self, norm: _Norm, x: Tensor, out: Tensor) -> None:
        features = self.config.features
        torch.ops.qsr_native.swin_norm(
            x, norm.weight, norm.bias, norm.eps, features, self.kernel, out
        )

    def _layer(self, layer: _Layer, stream: Tensor) -> None:
        torch.ops.qsr_native.swin_layer(
            stream,
            [*stream.shape[:2], *layer.shape],
            layer.weights,
            layer.starts,
            layer.arrays,
            layer.numbers,
            layer.position_bias,
            layer.attention_bits,
            layer.attention_signed,
            layer.bits,
            self.kernel,
        )

    def _conv(
        self, conv: _LaidOutConv, stream: Tensor, residual: Tensor, shortcut: float, codes: Tensor
    ) -> None:
        torch.ops.qsr_native.swin_conv(
            stream,
            residual,
            shortcut,
            conv.weights,
            conv.array,
            conv.number,
            conv.bits,
            conv.kernel,
            codes,
        )

    def buffers(self, height: int, width: int) -> Buffers:
        """The codes of a convolution's input, the stream before a block, and the stream."""
        window = self.config.window
        rows, columns = (-(-n // window) * window for n in (height, width))
        codes = Value("codes", self.channels, Size(0), frame=(1, 1))
        count = value_bytes(codes, (rows, columns))
        streams = (
            torch.empty(rows, columns, self.channels, dtype=torch.float32, device="cpu")
            for _ in range(2)
        )
        return torch.empty(count, dtype=torch.uint8, device="cpu"), *streams


# Laying out ---------------------------------------------------------------------------------------


class _Norm:
    """Weight and bias of a LayerNorm, filled up."""

    def __init__(self, norm: nn.LayerNorm, channels: int) -> None:
        self.weight, self.bias = filled(norm.weight, channels), filled(norm.bias, channels)
        self.eps = norm.eps


class _FloatConv:
    """A float 3x3 convolution, [1, H, W, Cin] -> [1, H, W, C], with zeros in unused channels."""

    def __init__(self, conv: nn.Conv2d | FloatConv2d, channels: int) -> None:
        inside = conv.weight.shape[1] if conv.weight.shape[1] == 3 else channels
        fill = (inside - conv.weight.shape[1], channels - len(conv.weight))
        self.weight = F.pad(conv.weight.detach(), (0, 0, 0, 0, 0, fill[0], 0, fill[1]))
        self.bias = filled(conv.bias, channels)

    def __call__(self, x: Tensor) -> Tensor:
        return kernels.conv2d_float(x, self.weight, self.bias, 1)


class _LaidOutConv(CodeConv):
    """The same with its weights laid out for the best kernel of its bits."""

    def __init__(self, conv: PackedConv2d, channels: int) -> None:
        super().__init__(conv, channels)
        self.kernel = native.rows("conv3x3", self.bits)[0]
        ones, bits, signed = (1, 1), (self.bits, self.bits), conv.signed
        shape = ConvShape(channels, channels, 1, (3, 3), ones, ones, ones, bits, signed)
        self.weights = laid_out(self.codes, shape, self.kernel)


class _Layer:
    """A packed Swin layer in the arrays that csrc/torch/ops_swin.cpp reads one after the other."""

    def __init__(self, layer: SwinLayer, config: SwinConfig) -> None:
        attention = cast("PackedAttention", layer.attention)
        channels = padded(config.features)
        hidden = config.mlp_ratio * config.features
        self.shape = [layer.window, layer.shift, config.features, hidden, attention.heads]
        norms = [layer.norm1, layer.norm2]
        linears = cast("list[PackedLinear]", [attention.qkv, attention.proj, layer.fc1, layer.fc2])
        arrays = [filled(x, channels) for norm in norms for x in (norm.weight, norm.bias)]
        scalars: list[float] = [norm.eps for norm in norms]
        weights, starts = [], []
        for linear in linears:
            codes = kernels.unpack_codes(linear.planes)[:, 0, 0, :]
            rows, columns = codes.shape
            outputs, inputs = padded(rows), padded(columns)
            codes = F.pad(codes, (0, inputs - columns, 0, outputs - rows))
            spec = linear.spec
            offset = -spec.qmin  # makes a signed code a byte without sign
            weights.append(codes.view(outputs // 16, 16, inputs // 4, 4).transpose(1, 2).flatten())
            starts.append(-offset * codes.sum(1, dtype=torch.int32))
            arrays += [
                filled(linear.tau, inputs),
                filled(linear.scale.expand(rows), outputs),
                filled(linear.bias, outputs),
            ]
            scalars += [linear.step_size.item(), spec.qmin, spec.qmax, offset]
        scalars += [(config.features // attention.heads) ** -0.5]
        self.attention_bits = [spec.bits for spec in attention.specs]
        self.attention_signed = [int(spec.signed) for spec in attention.specs]
        scalars += attention.steps.tolist() if attention.specs else [1.0] * 4
        assert config.bits is not None
        self.bits = sum(split_bits(config.bits))
        self.weights, self.starts, self.arrays = map(torch.cat, (weights, starts, arrays))
        self.numbers = numbers(scalars)
        bias = attention.bias.detach().float()
        self.position_bias = F.pad(bias, (0, -bias.shape[-1] % 16), value=NEVER).contiguous()
