"""What right is: convolution, linear layer, quantisation and epilogue, slow and obvious.

Every kernel must give the same integers as the functions here, for every shape. They unpack the
codes and multiply plain integers; they share no trick with any kernel, not even the bit planes.

A packed layer is then, in float32, each operation rounded once and none fused:

    codes = clamp(round((x + tau) / step_size), qmin, qmax)        halves to even, a true division
    acc   = sum of codes times weight codes                        int32, exact
    y     = acc * scale + bias                                     scale = step_a * step_w
"""

from __future__ import annotations

import torch
from torch import Tensor

from .bitplanes import BitPlanes, pack_words, unpack_codes
from .quantizer import QuantSpec, to_codes


def quantize(
    x: Tensor, step_size: Tensor, tau: Tensor | None, bits: int, signed: bool, groups: int = 1
) -> BitPlanes:
    """float32 [N, C, H, W] -> packed codes; step_size: [] > 0; tau: [C] or None. NaN: code 0."""
    shifted = x if tau is None else x + tau.view(1, -1, 1, 1)
    shifted = torch.where(shifted.isnan(), 0.0, shifted)  # after tau, or NaN would give tau's code
    codes = to_codes(shifted, step_size, QuantSpec(bits, signed))
    return BitPlanes(pack_words(codes.permute(0, 2, 3, 1), bits, groups), signed, x.shape[1])


def conv2d(
    a: BitPlanes, w: BitPlanes, stride: tuple[int, int] = (1, 1), padding: tuple[int, int] = (0, 0)
) -> Tensor:
    """Integer convolution: int32 [N, Ho, Wo, Cout].

    a: activations; w: weights [Cout, kh, kw, 1, bits, words]. Groups are those of `a`; a padded
    pixel has code 0.
    """
    codes = unpack_codes(a).long()
    weights = unpack_codes(w).long()
    n, height, width, channels = codes.shape
    out_channels, kh, kw, per_group = weights.shape
    groups = a.groups
    (sy, sx), (py, px) = stride, padding
    padded = codes.new_zeros(n, height + 2 * py, width + 2 * px, channels)
    padded[:, py : py + height, px : px + width] = codes
    out_h = (height + 2 * py - kh) // sy + 1
    out_w = (width + 2 * px - kw) // sx + 1
    padded = padded.view(n, height + 2 * py, width + 2 * px, groups, per_group)
    weights = weights.view(groups, out_channels // groups, kh, kw, per_group)
    out = codes.new_zeros(n, out_h, out_w, groups, out_channels // groups)
    for dy in range(kh):
        for dx in range(kw):
            rows = slice(dy, dy + sy * (out_h - 1) + 1, sy)
            columns = slice(dx, dx + sx * (out_w - 1) + 1, sx)
            out += torch.einsum("nyxgc,goc->nyxgo", padded[:, rows, columns], weights[:, :, dy, dx])
    return out.view(n, out_h, out_w, out_channels).to(torch.int32)


def linear(a: BitPlanes, w: BitPlanes) -> Tensor:
    """Integer matrix product: a [M, 1, 1, 1, ...], w [Cout, 1, 1, 1, ...] -> int32 [M, Cout]."""
    codes, weights = unpack_codes(a).long(), unpack_codes(w).long()
    return (codes.flatten(1) @ weights.flatten(1).T).to(torch.int32)


def conv2d_float(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Float convolution with one fixed order of summation: over dy, then dx, then channels.

    x: float32 [N, H, W, Cin], padded; weight: float32 [Cout, Cin, kh, kw]; stride 1. Each product
    and each sum is rounded once, so the result of a pixel depends on nothing but its operands.
    """
    _, channels, kh, kw = weight.shape
    height, width = x.shape[1] - kh + 1, x.shape[2] - kw + 1
    out = x.new_zeros(x.shape[0], height, width, len(weight))
    for dy in range(kh):
        for dx in range(kw):
            for c in range(channels):
                pixel = x[:, dy : dy + height, dx : dx + width, c, None]
                out = out + pixel * weight[:, c, dy, dx]
    return out if bias is None else out + bias


def epilogue(acc: Tensor, scale: Tensor, bias: Tensor | None) -> Tensor:
    """int32 sums [..., Cout] -> float32 layer output acc * scale + bias.

    scale: float32 [] or [Cout]; bias: float32 [Cout] or None. The conversion to float32 is exact
    below 2^24; a 64-channel 3x3 layer at 4 bits reaches 576 * 8 * 15 = 69,120.
    """
    y = acc.to(torch.float32) * scale
    return y if bias is None else y + bias
