"""QuantSR-T as one planned program: a native call for each Swin layer, in place on its stream.

Layer by layer, a packed Swin network writes scores, probabilities and hidden values of the whole
picture to memory: at 128x128 the scores of one layer alone are 25 MB. But between reading the
stream and writing it back, everything a Swin layer does stays inside one window of 64 pixels. The
program runs a layer window by window (csrc/swin.h), with all that lies between in scratch memory of
each thread, and picks the pixels of a shifted window by their index, so nothing is rolled, cut into
windows or copied. The arithmetic is that of the layers, in the same order: the same bits.

    lr -> head                           float32, fixed order of summation
       -> layers of each block           csrc/swin_kernel.h, on integers
       -> convolution of each block      csrc/conv3x3.h, on integers
       -> body_conv -> tail              float32

Weights are laid out once. Buffers are kept for the last picture size. Threads are torch's.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..backbone import DepthPlan, QuantSR, reflect_to_multiple
from ..blocks import Shortcut, SwinLayer
from ..config import NetworkConfig, SwinConfig
from ..layers import split_bits
from ..system import native
from . import kernels
from .program_conv import code_map_bytes
from .tail import CollapsedTail

FILL = 64  # channels inside a program are filled up to a multiple of this
NEVER = -1e30  # bias of a pair of pixels that is not there: its exp is 0


@torch.library.custom_op("qsr::swin_layer", mutates_args=("stream",))
def _swin_layer(
    stream: Tensor,
    shape: list[int],
    weights: Tensor,
    starts: Tensor,
    arrays: Tensor,
    numbers: Tensor,
    position_bias: Tensor,
    attention_bits: list[int],
    attention_signed: list[int],
    bits: int,
    kernel: str,
) -> None:
    torch.ops.qsr_native.swin_layer(
        stream,
        shape,
        weights,
        starts,
        arrays,
        numbers,
        position_bias,
        attention_bits,
        attention_signed,
        bits,
        kernel,
    )


@torch.library.custom_op("qsr::swin_conv", mutates_args=("stream", "codes"))
def _swin_conv(
    stream: Tensor,
    residual: Tensor,
    shortcut: float,
    weights: Tensor,
    array: Tensor,
    number: Tensor,
    bits: int,
    kernel: str,
    codes: Tensor,
) -> None:
    torch.ops.qsr_native.swin_conv(
        stream, residual, shortcut, weights, array, number, bits, kernel, codes
    )


@torch.library.custom_op("qsr::swin_norm", mutates_args=("out",))
def _swin_norm(
    x: Tensor, weight: Tensor, bias: Tensor, eps: float, features: int, kernel: str, out: Tensor
) -> None:
    torch.ops.qsr_native.swin_norm(x, weight, bias, eps, features, kernel, out)


@_swin_layer.register_fake
@_swin_conv.register_fake
@_swin_norm.register_fake
def _(*arguments, **options):
    return None


def available(config: NetworkConfig) -> tuple[str, ...]:
    """Names of the kernels that a program of this network can run on, best first.

    Empty: no program; the network runs layer by layer. So it is without native code, without
    quantised layers or with layers of several widths, and for networks without Swin blocks.
    """
    fits = config.family == "swin" and config.bits is not None and not config.layer_bits
    if not fits or not native.load().native:
        return ()
    return tuple(torch.ops.qsr_native.swin_kernels(_largest_bits(config)).split(","))


def _largest_bits(config: SwinConfig) -> int:
    """Bits of two factors together, the most that any product of the network has."""
    linear = sum(split_bits(config.bits))  # weights are signed
    if config.attention_bits is None:
        return linear
    # One more where k or v is unsigned: with it the kernel fits whatever calibration decided.
    return max(linear, min(16, sum(split_bits(config.attention_bits)) + 1))


class SwinProgram:
    """A packed QuantSR-T, planned. `network`: one whose layers are packed throughout.

    kernel: "auto" or a name from `available(network.config)`. Raises ValueError for another.
    The program copies what it needs: later changes of the network do not reach it.
    """

    def __init__(self, network: QuantSR, kernel: str = "auto") -> None:
        config = network.config
        names = available(config)
        if kernel not in ("auto", *names):
            raise ValueError(
                f"`kernel` is {kernel!r}; programs of this network have {', '.join(names)}."
            )
        self.kernel = names[0] if kernel == "auto" else kernel
        self.config = config
        self.channels = padded(config.features)
        self.mean = network.mean
        self.head = _FloatConv(network.head, self.channels)
        self.norm_in, self.norm_out = (
            _Norm(norm, self.channels) for norm in (network.norm_in, network.norm_out)
        )
        self.blocks = [self._block(block) for block in network.blocks]
        if config.quantize_body_conv:
            self.body_conv = _CodeConv(network.body_conv, self.channels)
        else:
            self.body_conv = _FloatConv(network.body_conv, self.channels)
        self.tail = CollapsedTail(
            network.tail, config.scale, config.pixel_range, self.mean.flatten(), self.channels
        )
        self._size, self._buffers = None, ()

    def _block(self, block: nn.Module) -> tuple[float, list[_Layer], _CodeConv | None]:
        """Shortcut, layers and convolution; of a block that was sliced away the shortcut."""
        if isinstance(block, Shortcut):
            return _factor(block), [], None
        layers = [_Layer(layer, self.config) for layer in block.layers]
        return _factor(block.shortcut), layers, _CodeConv(block.conv, self.channels)

    def __call__(self, lr: Tensor, plan: DepthPlan) -> Tensor:
        """lr float [N, 3, H, W], N >= 1 -> sr float32 [N, 3, scale H, scale W], not clipped."""
        height, width = (self.config.scale * n for n in lr.shape[-2:])
        pictures = [
            self.tail(self.features(picture, plan))[:, :height, :width] for picture in lr.float()
        ]
        return pictures[0][None] if len(pictures) == 1 else torch.stack(pictures)

    @property
    def pixel_bytes(self) -> int:
        """Working memory per lr pixel, as measured: around body_conv live four float maps and the
        codes; beside these lr and sr.
        """
        return (4 * 4 + 2) * self.channels + 4 * 2 * 3 + 2 * 4 * 3 * self.tail.scale**2

    def features(self, lr: Tensor, plan: DepthPlan) -> Tensor:
        """lr float32 [3, H, W] -> float32 [H, W, C], H and W up to whole windows, C filled up.

        The result is a buffer of the program: it holds until the next call.
        """
        x = (lr[None] - self.mean) * self.config.pixel_range
        x = reflect_to_multiple(x, self.config.window).permute(0, 2, 3, 1)
        stream, residual, codes = self._buffers_for(*x.shape[1:3])
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
        if isinstance(self.body_conv, _CodeConv):
            self._conv(self.body_conv, stream, shallow, 1.0, codes)
            return stream
        return self.body_conv(stream[None])[0].add_(shallow)

    def _norm(self, norm: _Norm, x: Tensor, out: Tensor) -> None:
        features = self.config.features
        torch.ops.qsr.swin_norm(x, norm.weight, norm.bias, norm.eps, features, self.kernel, out)

    def _layer(self, layer: _Layer, stream: Tensor) -> None:
        torch.ops.qsr.swin_layer(
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
        self, conv: _CodeConv, stream: Tensor, residual: Tensor, shortcut: float, codes: Tensor
    ) -> None:
        torch.ops.qsr.swin_conv(
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

    def _buffers_for(self, height: int, width: int) -> tuple[Tensor, Tensor, Tensor]:
        """The stream, what it was before a block, and the codes of a convolution's input."""
        if torch.compiler.is_compiling():  # a traced program owns its buffers
            return self._allocate(height, width)
        if self._size != (height, width):
            self._buffers = ()  # free the old ones first
            with torch.inference_mode(False):  # the next call may come without that mode
                self._buffers = self._allocate(height, width)
            self._size = (height, width)
        return self._buffers

    def _allocate(self, height: int, width: int) -> tuple[Tensor, Tensor, Tensor]:
        codes = torch.empty(code_map_bytes(height, width, self.channels), dtype=torch.uint8)
        stream, residual = (torch.empty(height, width, self.channels) for _ in range(2))
        return stream, residual, codes


# Laying out ---------------------------------------------------------------------------------------


def padded(channels: int) -> int:
    """Channels inside a program: filled up to a multiple of 64.

    >>> padded(60), padded(180)
    (64, 192)
    """
    return -(-channels // FILL) * FILL


def _fill(x: Tensor | None, length: int) -> Tensor:
    """float32 [n] -> [length], filled up with zeros; zeros for None."""
    return torch.zeros(length) if x is None else F.pad(x.detach().float(), (0, length - len(x)))


def _factor(shortcut: Shortcut) -> float:
    return 1.0 if shortcut.scale is None else shortcut.scale.item()


class _Norm:
    """Weight and bias of a LayerNorm, filled up."""

    def __init__(self, norm: nn.LayerNorm, channels: int) -> None:
        self.weight, self.bias = _fill(norm.weight, channels), _fill(norm.bias, channels)
        self.eps = norm.eps


class _FloatConv:
    """A float 3x3 convolution, [1, H, W, Cin] -> [1, H, W, C], with zeros in unused channels."""

    def __init__(self, conv: nn.Module, channels: int) -> None:
        inside = conv.weight.shape[1] if conv.weight.shape[1] == 3 else channels
        fill = (inside - conv.weight.shape[1], channels - len(conv.weight))
        self.weight = F.pad(conv.weight.detach(), (0, 0, 0, 0, 0, fill[0], 0, fill[1]))
        self.bias = _fill(conv.bias, channels)

    def __call__(self, x: Tensor) -> Tensor:
        return kernels.conv2d_float(x, self.weight, self.bias, 1)


class _CodeConv:
    """A packed 3x3 convolution, laid out for the best kernel of its bits."""

    def __init__(self, conv: nn.Module, channels: int) -> None:
        features = len(conv.weight)
        fill = (0, channels - features)
        self.bits = max(conv.bits, conv.planes.bits)
        self.kernel = torch.ops.qsr_native.conv3x3_kernels(self.bits).split(",")[0]
        scale = _fill(conv.scale.expand(features), channels)
        tau, bias = _fill(conv.tau, channels), _fill(conv.bias, channels)
        self.array = torch.stack([scale, bias, tau])
        spec = conv.spec
        step = conv.step_size.item()
        self.number = torch.tensor([step, spec.qmin, spec.qmax, float(spec.signed)])
        codes = F.pad(kernels.unpack_codes(conv.planes), (*fill, 0, 0, 0, 0, *fill))
        self.weights = torch.ops.qsr_native.lay_out_layers(
            codes[None], self.number[None], self.bits, self.kernel
        )


class _Layer:
    """A packed Swin layer in the arrays that csrc/ops_swin.cpp reads one after the other."""

    def __init__(self, layer: SwinLayer, config: SwinConfig) -> None:
        attention, channels = layer.attention, padded(config.features)
        hidden = config.mlp_ratio * config.features
        self.shape = [layer.window, layer.shift, config.features, hidden, attention.heads]
        norms = [layer.norm1, layer.norm2]
        linears = [attention.qkv, attention.proj, layer.fc1, layer.fc2]
        arrays = [_fill(x, channels) for norm in norms for x in (norm.weight, norm.bias)]
        numbers = [norm.eps for norm in norms]
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
                _fill(linear.tau, inputs),
                _fill(linear.scale.expand(rows), outputs),
                _fill(linear.bias, outputs),
            ]
            numbers += [linear.step_size.item(), spec.qmin, spec.qmax, offset]
        numbers += [(config.features // attention.heads) ** -0.5]
        self.attention_bits = [spec.bits for spec in attention.specs]
        self.attention_signed = [int(spec.signed) for spec in attention.specs]
        numbers += attention.steps.tolist() if attention.specs else [1.0] * 4
        self.bits = sum(split_bits(config.bits))
        self.weights, self.starts, self.arrays = map(torch.cat, (weights, starts, arrays))
        self.numbers = torch.tensor(numbers)
        bias = attention.bias.detach().float()
        self.position_bias = F.pad(bias, (0, -bias.shape[-1] % 16), value=NEVER).contiguous()
