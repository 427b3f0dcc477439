"""The collapsed tail: upsampler and last convolution as one convolution.

The tail of a super-resolution network has no activation in it: convolution, pixel shuffle,
convolution, pixel shuffle, convolution. Such a chain is linear, and it looks the same from every
lr pixel. So it *is* one convolution, from 64 features to the 3 * scale^2 values of the sr pixels
over one lr pixel, then one pixel shuffle. How far does it see? At x4 the last convolution sees 1
sr pixel further, the one before it half an lr pixel, the first a whole one: less than 2 lr pixels
to each side, 5x5 in all. At x4 that is 76,800 multiplications per lr pixel instead of 764,928.

One thing is not the same everywhere: each convolution of the chain pads *its own* input with
zeros, and a bias that was added before a padding is missing beyond the border. This changes the
outermost lr pixels, and only them: there the tail is the same kind of 5x5 convolution with other
weights. Along each axis a pixel is the first, the last, inside, or all there is (in a picture 1
pixel wide): 4 x 4 classes, of which a picture of at least 3x3 shows nine.

Where do the weights come from? Row i of a linear map is what its transpose makes of the unit vector
i: the gradient of output i. So they are read off by running the chain backwards, in float64, on
pictures that are just large enough to show each class.

The result equals the layers up to float32 rounding: sums are taken in another order.
"""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from . import kernels

if TYPE_CHECKING:
    from .packed_layers import FloatConv2d

REACH = 2  # lr pixels to each side; kReach of csrc/network/tail_kernel.h
FIRST, INSIDE, LAST, ONLY = range(4)
# The shortest picture that shows a class, and where: class -> (length, position).
SHOWN = {FIRST: (3, 0), INSIDE: (5, 2), LAST: (3, 2), ONLY: (1, 0)}
OUT_LANES = 16  # kTailLanes of csrc/torch/ops_network.cpp: its outputs fill whole vectors

# Deriving -----------------------------------------------------------------------------------------


def collapse(tail: nn.Sequential, scale: int) -> tuple[Tensor, Tensor]:
    """The tail as weights [4, 4, 3 scale^2, C, 5, 5] and biases [4, 4, 3 scale^2], float64.

    The first two dimensions are the classes of the row and the column. tail: convolutions 3x3 with
    padding 1, and pixel shuffles, nothing else (ValueError).
    """
    for layer in tail:
        if not isinstance(layer, nn.PixelShuffle) and getattr(layer, "padding", None) != (1, 1):
            raise ValueError(
                f"the tail has a layer {type(layer).__name__}; only 3x3 convolutions with padding "
                "1 and pixel shuffles collapse. Use the layers as they are."
            )
    channels, outputs = _conv(tail[0]).weight.shape[1], 3 * scale**2
    weights = torch.zeros(4, 4, outputs, channels, 2 * REACH + 1, 2 * REACH + 1, dtype=torch.double)
    biases = torch.zeros(4, 4, outputs, dtype=torch.double)
    for row, column in itertools.product(SHOWN, repeat=2):
        (height, y), (width, x) = SHOWN[row], SHOWN[column]
        # Picture i holds a 1 at output i of the pixel, and zeros.
        ones = torch.zeros(outputs, outputs, height, width, dtype=torch.double)
        ones[:, :, y, x] = torch.eye(outputs, dtype=torch.double)
        parts = [_adjoint(tail, F.pixel_shuffle(part, scale)) for part in ones.split(8)]
        rows = F.pad(torch.cat(parts), [REACH] * 4)
        weights[row, column] = rows[:, :, y : y + 5, x : x + 5]
        zeros = torch.zeros(1, channels, height, width, dtype=torch.double)
        biases[row, column] = F.pixel_unshuffle(_run(tail, zeros), scale)[0, :, y, x]
    return weights, biases


def _conv(layer: nn.Module) -> nn.Conv2d | FloatConv2d:
    """A layer that is no shuffle."""
    return cast("nn.Conv2d | FloatConv2d", layer)


def _run(tail: nn.Sequential, x: Tensor) -> Tensor:
    """sr values, before the scaling, of features x [N, C, H, W], in the type of x."""
    for layer in tail:
        if isinstance(layer, nn.PixelShuffle):
            x = F.pixel_shuffle(x, layer.upscale_factor)
        else:
            conv = _conv(layer)
            bias = None if conv.bias is None else conv.bias.to(x)
            x = F.conv2d(x, conv.weight.to(x), bias, padding=1)
    return x


def _adjoint(tail: nn.Sequential, sr: Tensor) -> Tensor:
    """The transposed map, without biases, from sr [N, 3, H, W] back to features."""
    for layer in reversed(tail):
        if isinstance(layer, nn.PixelShuffle):
            sr = F.pixel_unshuffle(sr, layer.upscale_factor)
        else:
            sr = F.conv_transpose2d(sr, _conv(layer).weight.to(sr), padding=1)
    return sr


def axis_classes(length: int) -> list[tuple[int, int, int]]:
    """[(class, first, last)] of the pixels along an axis.

    >>> axis_classes(1), axis_classes(2), axis_classes(7)
    ([(3, 0, 1)], [(0, 0, 1), (2, 1, 2)], [(0, 0, 1), (1, 1, 6), (2, 6, 7)])
    """
    if length == 1:
        return [(ONLY, 0, 1)]
    parts = [(FIRST, 0, 1), (INSIDE, 1, length - 1), (LAST, length - 1, length)]
    return [part for part in parts if part[1] < part[2]]


# Running ------------------------------------------------------------------------------------------

# Winograd's F(4x4, 5x5) on the points 0, 1, -1, 2, -2, 1/2, -1/2 and infinity
# (csrc/network/tail_kernel.h): weights g become c_p * (g0 + g1 p + ... + g4 p^4).
POINTS = (0.0, 1.0, -1.0, 2.0, -2.0, 0.5, -0.5)
FACTORS = (1.0, -2 / 9, -2 / 9, 1 / 90, 1 / 90, 32 / 45, 32 / 45)


def winograd_weights(weight: Tensor) -> Tensor:
    """Float64 [outputs, C, 5, 5] -> [8, 8, C, outputs], transformed along y and x."""
    powers = torch.tensor(POINTS, dtype=torch.double)[:, None] ** torch.arange(5)
    finite = torch.tensor(FACTORS, dtype=torch.double)[:, None] * powers
    infinite = torch.tensor([[0.0, 0, 0, 0, 1]], dtype=torch.double)
    forms = torch.cat([finite, infinite])  # [8, 5]
    return torch.einsum("iy,jx,ocyx->ijco", forms, forms, weight)


class CollapsedTail:
    """A tail collapsed: features of one picture -> sr.

    tail, scale: see `collapse`; sr = tail(features) / pixel_range + mean, mean: float32 [3].
    channels: of the float maps that it reads (at least the tail's own; the others are ignored).
    kernel: "auto", "reference" or a name from `CollapsedTail.kernels(device)`. device: of the
    features. On a GPU torch's own convolution runs it, in torch's precision: TF32, unless
    torch.backends.cudnn.allow_tf32 is off.
    """

    def __init__(
        self,
        tail: nn.Sequential,
        scale: int,
        pixel_range: float,
        mean: Tensor,
        channels: int | None = None,
        kernel: str = "auto",
        device: str | torch.device = "cpu",
    ) -> None:
        names = self.kernels(device)
        if kernel not in ("auto", *names):
            raise ValueError(f"`kernel` is {kernel!r}; a tail has {', '.join(names)}, or 'auto'.")
        self.kernel = names[0] if kernel == "auto" else kernel
        self.scale, self.outputs = scale, 3 * scale**2
        weights, biases = collapse(tail, scale)
        biases = biases / pixel_range + mean.double().repeat_interleave(scale**2)
        weights = weights / pixel_range
        self.channels = channels or weights.shape[3]
        fill = self.channels - weights.shape[3]
        self.weights = F.pad(weights, (0, 0, 0, 0, 0, fill)).float().to(device)
        self.biases = biases.float().to(device)
        if self.kernel != kernels.REFERENCE:
            lanes = (0, -self.outputs % OUT_LANES)
            inside = winograd_weights(weights[INSIDE, INSIDE])
            self.inside = F.pad(inside, (*lanes, 0, fill)).float().contiguous()
            ring = self.weights.permute(0, 1, 4, 5, 3, 2)
            self.ring = F.pad(ring, lanes).contiguous()  # [4, 4, 5, 5, C, lanes]
            self.lane_biases = F.pad(self.biases, lanes).contiguous()

    @staticmethod
    def kernels(device: str | torch.device = "cpu") -> tuple[str, ...]:
        """Names of the kernels that run a tail here, best first; the last is "reference"."""
        return (*kernels.native_rows("tail", device), kernels.REFERENCE)

    def __call__(self, features: Tensor) -> Tensor:
        """features float32 [H, W, channels or fewer] -> sr float32 [3, scale H, scale W]."""
        if features.shape[2] < self.channels:
            features = F.pad(features, (0, self.channels - features.shape[2]))
        if self.kernel == kernels.REFERENCE:
            return self.reference(features)
        height, width, _ = features.shape
        sr = features.new_empty(3, self.scale * height, self.scale * width)
        torch.ops.qsr_native.tail(
            features.contiguous(),
            self.inside,
            self.ring,
            self.lane_biases,
            self.scale,
            self.kernel,
            sr,
        )
        return sr

    def reference(self, features: Tensor) -> Tensor:
        """The same, class by class with PyTorch's convolution."""
        x = F.pad(features.permute(2, 0, 1)[None], [REACH] * 4)
        values = features.new_empty(1, self.outputs, *features.shape[:2])
        for row, top, bottom in axis_classes(features.shape[0]):
            for column, left, right in axis_classes(features.shape[1]):
                window = x[:, :, top : bottom + 2 * REACH, left : right + 2 * REACH]
                values[:, :, top:bottom, left:right] = F.conv2d(
                    window, self.weights[row, column], self.biases[row, column]
                )
        return F.pixel_shuffle(values, self.scale)[0]
