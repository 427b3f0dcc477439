"""The collapsed tail (`qsr.collapse`), run: upsampler and last convolution in one native call.

Inside a picture one 5x5 convolution, by Winograd; in the ring of outermost lr pixels, whose classes
have weights of their own, pixel by pixel.

The result equals the layers up to float32 rounding: sums are taken in another order.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..collapse import FIRST, INSIDE, LAST, ONLY, REACH, collapse
from . import kernels

OUT_LANES = 16  # kTailLanes of csrc/torch/ops_network.cpp: its outputs fill whole vectors


def axis_classes(length: int) -> list[tuple[int, int, int]]:
    """[(class, first, last)] of the pixels along an axis.

    >>> axis_classes(1), axis_classes(2), axis_classes(7)
    ([(3, 0, 1)], [(0, 0, 1), (2, 1, 2)], [(0, 0, 1), (1, 1, 6), (2, 6, 7)])
    """
    if length == 1:
        return [(ONLY, 0, 1)]
    parts = [(FIRST, 0, 1), (INSIDE, 1, length - 1), (LAST, length - 1, length)]
    return [part for part in parts if part[1] < part[2]]


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
