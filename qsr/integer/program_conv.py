"""QuantSR-C as one planned program: weights laid out once, buffers allocated once.

Layer by layer, a packed network writes every float map to memory and reads it again, and allocates
as it goes. The program does the same arithmetic, in the same order for every pixel, in fused layers
(csrc/conv3x3.h): codes in, codes out, and only the residual stream in float. So its features are
those of the layers, bit for bit.

    body   lr -> features       one call of csrc/residual_network.cpp, on integers
    tail   features -> sr       the collapsed convolution of qsr.tail, in float

Between runs the program keeps its buffers for the last picture size. Threads are torch's.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..backbone import DepthPlan, QuantSR
from ..blocks import Shortcut
from ..config import NetworkConfig
from ..layers import split_bits
from ..system import native
from . import kernels
from .tail import CollapsedTail

MAP_CHANNELS, MAP_TILE = 64, 4  # kMapChannels and kMapTile of csrc/conv3x3.h


@torch.library.custom_op("qsr::residual_body", mutates_args=("workspace", "features"))
def _residual_body(
    lr: Tensor,
    mean: Tensor,
    pixel_range: float,
    head_weight: Tensor,
    head_bias: Tensor,
    weights: Tensor,
    arrays: Tensor,
    numbers: Tensor,
    shortcuts: Tensor,
    kept: list[int],
    bits: int,
    kernel: str,
    workspace: Tensor,
    features: Tensor,
) -> None:
    torch.ops.qsr_native.residual_body(
        lr.contiguous(),
        mean,
        pixel_range,
        head_weight,
        head_bias,
        weights,
        arrays,
        numbers,
        shortcuts,
        kept,
        bits,
        kernel,
        workspace,
        features,
    )


@_residual_body.register_fake
def _(
    lr, mean, pixel_range, head_weight, head_bias, weights, arrays, numbers, shortcuts, kept, bits,
    kernel, workspace, features
):  # fmt: skip
    return None


def padded(channels: int) -> int:
    """Channels of a feature map inside a program: filled up to a multiple of 64.

    >>> padded(60), padded(65)
    (64, 128)
    """
    return -(-channels // MAP_CHANNELS) * MAP_CHANNELS


class ConvProgram:
    """The body of a packed QuantSR-C, planned. `network`: one whose body is packed throughout.

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
        self.channels = padded(config.features)
        self.bits = split_bits(config.bits)[1]
        self.pixel_range = config.pixel_range
        self.mean = network.mean.flatten().contiguous()
        fill = (0, self.channels - config.features)
        self.head_weight = F.pad(network.head.weight.permute(2, 3, 1, 0), fill).contiguous()
        self.head_bias = F.pad(network.head.bias, fill)
        self.shortcuts = torch.stack([_factor(block) for block in network.blocks])
        self.runs = [not isinstance(block, Shortcut) for block in network.blocks]
        layers = []  # of every block two; a block that was sliced away leaves places unused
        for block, runs in zip(network.blocks, self.runs, strict=True):
            layers += [block.conv1, block.conv2] if runs else [None, None]
        layers.append(network.body_conv)
        self.arrays = torch.stack([_arrays(layer, config.features, fill) for layer in layers])
        self.numbers = torch.stack([_numbers(layer) for layer in layers])
        self.weights = torch.ops.qsr_native.lay_out_layers(
            torch.stack([_codes(layer, config.features, fill) for layer in layers]),
            self.numbers,
            self.bits,
            self.kernel,
        )
        self.tail = CollapsedTail(
            network.tail, config.scale, config.pixel_range, self.mean, self.channels
        )
        self._size, self._buffers = None, ()

    def __call__(self, lr: Tensor, plan: DepthPlan) -> Tensor:
        """lr float [N, 3, H, W], N >= 1 -> sr float32 [N, 3, scale H, scale W], not clipped."""
        pictures = [self.tail(self.features(picture, plan)) for picture in lr.float()]
        return pictures[0][None] if len(pictures) == 1 else torch.stack(pictures)

    @property
    def pixel_bytes(self) -> int:
        """Working memory per lr pixel: the maps of csrc/residual_network.cpp, and sr."""
        maps = 2 * 4 + 2 * 1  # float and codes
        return maps * self.channels + 4 * 2 * 3 + 4 * 3 * self.tail.scale**2

    def arguments(self, lr: Tensor, plan: DepthPlan) -> tuple:
        """What the operator `qsr::residual_body` takes; the last is where the features come."""
        kept = [int(k and runs) for k, runs in zip(plan.keep, self.runs, strict=True)]
        return (
            lr,
            self.mean,
            self.pixel_range,
            self.head_weight,
            self.head_bias,
            self.weights,
            self.arrays,
            self.numbers,
            self.shortcuts,
            kept,
            self.bits,
            self.kernel,
            *self._buffers_for(lr.shape[1], lr.shape[2]),
        )

    def features(self, lr: Tensor, plan: DepthPlan) -> Tensor:
        """lr float32 [3, H, W] -> float32 [H, W, C], C = padded(features).

        The result is a buffer of the program: it holds until the next call.
        """
        arguments = self.arguments(lr, plan)
        torch.ops.qsr.residual_body(*arguments)
        return arguments[-1]

    def _buffers_for(self, height: int, width: int) -> tuple[Tensor, Tensor]:
        if torch.compiler.is_compiling():  # a traced program owns its buffers
            return self._allocate(height, width)
        if self._size != (height, width):
            self._buffers = ()  # free the old ones first
            self._buffers = self._allocate(height, width)
            self._size = (height, width)
        return self._buffers

    def _allocate(self, height: int, width: int) -> tuple[Tensor, Tensor]:
        bytes_needed = workspace_bytes(height, width, self.channels)
        return (
            torch.empty(bytes_needed, dtype=torch.uint8),
            torch.empty(height, width, self.channels),
        )


def available(config: NetworkConfig) -> tuple[str, ...]:
    """Names of the kernels that a program of this network can run on, best first.

    Empty: no program; the network runs layer by layer. So it is without native code, with a
    full-precision layer in the body or layers of several widths, and for Swin networks.
    """
    fits = config.family == "conv" and config.bits is not None
    fits = fits and config.quantize_body_conv and not config.layer_bits
    if not fits or not native.load().native:
        return ()
    return tuple(torch.ops.qsr_native.conv3x3_kernels(max(split_bits(config.bits))).split(","))


def code_map_bytes(height: int, width: int, channels: int) -> int:
    """Bytes of a CodeMap of csrc/conv3x3.h: whole tiles of pixels in a frame."""
    tiles = [-(-n // MAP_TILE) * MAP_TILE + 2 for n in (height, width)]
    return tiles[0] * tiles[1] * channels


def workspace_bytes(height: int, width: int, channels: int) -> int:
    """Room for the maps of csrc/residual_network.cpp, whose operator checks it: the normalised
    picture in its frame, the shallow features and two maps of codes.
    """
    picture, shallow = 4 * 3 * (height + 2) * (width + 2), 4 * channels * height * width
    codes = 2 * code_map_bytes(height, width, channels)
    return picture + shallow + codes + 5 * 64  # each begins at a multiple of 64


def _factor(block: nn.Module) -> Tensor:
    """The number with which a block multiplies the stream, float32 []."""
    shortcut = block if isinstance(block, Shortcut) else block.shortcut
    return torch.ones(()) if shortcut.scale is None else shortcut.scale.detach().float()


def _codes(layer: nn.Module | None, features: int, fill: tuple[int, int]) -> Tensor:
    """Weight codes int8 [C, 3, 3, C]."""
    if layer is None:
        codes = torch.zeros(features, 3, 3, features, dtype=torch.int8)
    else:
        codes = kernels.unpack_codes(layer.planes)
    return F.pad(codes, (*fill, 0, 0, 0, 0, *fill))


def _arrays(layer: nn.Module | None, features: int, fill: tuple[int, int]) -> Tensor:
    """Scale, bias and tau, float32 [3, C]."""
    zeros = torch.zeros(features)
    if layer is None:
        return F.pad(zeros.expand(3, -1), fill)
    bias = zeros if layer.bias is None else layer.bias
    tau = zeros if layer.tau is None else layer.tau
    return F.pad(torch.stack([layer.scale.expand(features), bias, tau]), fill)


def _numbers(layer: nn.Module | None) -> Tensor:
    """Step size, lowest and highest code of the input, and whether it is signed: float32 [4]."""
    if layer is None:
        return torch.tensor([1.0, 0.0, 0.0, 0.0])
    spec = layer.spec
    return torch.tensor([layer.step_size.item(), spec.qmin, spec.qmax, float(spec.signed)])
