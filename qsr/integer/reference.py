"""What right is: each operator on integers and the float functions between them, slow and obvious.

Every kernel must give the same integers as the functions here, for every shape. They unpack the
codes and multiply plain integers; they share no trick with any kernel, not even the bit planes.
The float functions between them (LayerNorm, GELU, softmax, attention, sigmoid) every kernel gives
bit for bit.

A packed layer is then, in float32, each operation rounded once and none fused:

    codes = clamp(round((x + tau) / step_size), qmin, qmax)        halves to even, a true division
    acc   = sum of codes times weight codes                        int32, exact
    y     = acc * scale + bias                                     scale = step_a * step_w
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ..quantizer import QuantSpec, to_codes
from .bitplanes import BitPlanes, pack_words, unpack_codes


def quantize(
    x: Tensor, step_size: Tensor, tau: Tensor | None, bits: int, signed: bool, groups: int = 1
) -> BitPlanes:
    """float32 [N, C, H, W] -> packed codes; step_size: [] > 0; tau: [C] or None. NaN: code 0."""
    shifted = x if tau is None else x + tau.view(1, -1, 1, 1)
    shifted = torch.where(shifted.isnan(), 0.0, shifted)  # after tau, or NaN would give tau's code
    codes = to_codes(shifted, step_size, QuantSpec(bits, signed))
    return BitPlanes(pack_words(codes.permute(0, 2, 3, 1), bits, groups), signed, x.shape[1])


def conv2d(
    a: BitPlanes, w: BitPlanes, stride: Sequence[int] = (1, 1), padding: Sequence[int] = (0, 0)
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
    return conv2d(a, w).flatten(1)


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


# Float functions ----------------------------------------------------------------------------------
#
# A library may compute exp or a sum in another order on another processor, and a last bit can tip a
# code over its threshold. So the float functions between the integers are written out here, each
# product, sum and division rounded once: every kernel gives these bits. QuantSR-T is made of them;
# other networks get those of `qsr.integer.formulas`.

LANES = 16  # partial sums of a row: element i goes to lane i % 16
# 2^f on [-1/2, 1/2], relative error 7.5e-8; log2 Phi(-a) on [0, 6], error of GELU 1.0e-8. Both are
# minimax fits in double precision (iteratively reweighted least squares), lowest power first.
EXP2 = (1.0000000716557271, 0.6931469670621001, 0.2402211971865223,
        0.055507132753364594, 0.009675541616274378, 0.001327647219098223)  # fmt: skip
LOG2_PHI = (-0.9999999034337361, -1.15110972878805, -0.4591722180581767,
            -0.05260304785582369, 0.0072163873829500565, -0.00025343496184706345,
            -0.0001380887993409274, 2.927210329788054e-05, -1.9919060036525777e-06)  # fmt: skip
LOG2_E = 1.4426950408889634


def exp2(t: Tensor) -> Tensor:
    """2^t for float32 t <= 127: 2^n from the exponent's bits, 2^f from a polynomial, t = n + f.

    n is the nearest integer, halves to even (adding 1.5 * 2^23 leaves no room for a fraction).
    Below -125 the result is 0, so a masked pair of attention counts exactly nothing.
    """
    shifted = t + 12582912.0
    f = t - (shifted - 12582912.0)
    n = shifted.view(torch.int32) - 0x4B400000
    two_to_n = ((n.clamp(-126, 127) + 127) << 23).view(torch.float32)
    return torch.where(t < -125.0, 0.0, _horner(EXP2, f) * two_to_n)


def exp(x: Tensor) -> Tensor:
    """e^x = 2^(x log2 e) for float32 x <= 88."""
    return exp2(x * LOG2_E)


def gelu(x: Tensor) -> Tensor:
    """x Phi(x) of float32 x, Phi the normal distribution, as max(x, 0) - |x| Phi(-|x|).

    log Phi(-a) is nearly a parabola, so one polynomial and one exp2 serve the whole line, and
    nothing cancels in the negative tail.
    """
    a = x.abs()
    return x.clamp(min=0.0) - a * exp2(_horner(LOG2_PHI, a))


def sigmoid(x: Tensor) -> Tensor:
    """1 / (1 + e^-x) of float32 x, by e^-|x|, which is at most 1; 0 below -86.6."""
    e = exp(-x.abs())
    return torch.where(x < 0, e, 1.0) / (1.0 + e)


def silu(x: Tensor) -> Tensor:
    """x sigmoid(x) of float32 x."""
    return x * sigmoid(x)


def tanh(x: Tensor) -> Tensor:
    """2 sigmoid(2 x) - 1 of float32 x: as exact as 1 is, not as a small x is."""
    return 2.0 * sigmoid(2.0 * x) - 1.0


ELEMENTS: dict[str, Callable[[Tensor], Tensor]] = {  # of single numbers; csrc/network/executor.cpp
    "sigmoid": sigmoid,
    "gelu": gelu,
    "silu": silu,
    "tanh": tanh,
}


def row_sum(x: Tensor) -> Tensor:
    """Sums of float32 rows [..., K] -> [..., 1]: 16 partial sums, then a tree of halves."""
    x = torch.nn.functional.pad(x, (0, -x.shape[-1] % LANES))
    sums = x.new_zeros(*x.shape[:-1], LANES)
    for part in x.split(LANES, -1):
        sums = sums + part
    for half in (8, 4, 2, 1):
        sums = sums[..., :half] + sums[..., half:]
    return sums


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float = 1e-5) -> Tensor:
    """(x - mean) / sqrt(variance + eps) * weight + bias over rows. x: float32 [..., K]."""
    mean = row_sum(x) / x.shape[-1]
    centred = x - mean
    variance = row_sum(centred * centred) / x.shape[-1]
    # torch's float32 sqrt may be one unit off; of float64, rounded once more, it is the nearest.
    root = (variance + eps).double().sqrt().float()
    return centred * (1.0 / root) * weight + bias


def bilinear(x: Tensor, height: int, width: int, align_corners: int) -> Tensor:
    """Float32 [..., H, W] resized: between two rows first, then between two columns, each as
    a + weight * (b - a). Where a number lies between its two is exact, and rounded once.
    """
    for side, length in ((-2, height), (-1, width)):
        first, second, weight = _between(x.shape[side], length, align_corners)
        a, b = x.index_select(side, first.to(x.device)), x.index_select(side, second.to(x.device))
        x = a + weight.to(x.device).view(-1, *[1] * (-1 - side)) * (b - a)
    return x


def _between(n: int, length: int, align_corners: int) -> tuple[Tensor, Tensor, Tensor]:
    """Each of `length` numbers lies between two of n: which, and how far, 0 to 1.

    Pixels are squares, and the pictures cover each other; or their outermost centres do.
    """
    i = torch.arange(length)
    at, unit = (2 * i + 1) * n - length, 2 * length  # (i + 1/2) n / length - 1/2
    if align_corners:
        at, unit = i * (n - 1), max(length - 1, 1)
    at = at.clamp(min=0)
    first = at // unit
    return first, (first + 1).clamp(max=n - 1), (at % unit).float() / float(unit)


def average(
    x: Tensor,
    kernel: tuple[int, int],
    stride: tuple[int, int],
    padding: tuple[int, int],
    counts_padding: int,
) -> Tensor:
    """Averages over windows of float32 [..., H, W]; kernel (0, 0): over all of it. Each row of a
    window is summed by `tree_sum`, then the sums are, then divided by how many there were.
    """
    if kernel == (0, 0):
        return tree_sum(tree_sum(x))[..., None, None] / float(x.shape[-2] * x.shape[-1])
    (top, left), (below, beside), (down, across) = padding, kernel, stride

    def windows(x: Tensor) -> Tensor:
        padded = torch.nn.functional.pad(x, (left, left, top, top))
        return padded.unfold(-2, below, down).unfold(-2, beside, across)

    sums = tree_sum(tree_sum(windows(x)))
    inside = windows(torch.ones_like(x)).sum((-2, -1))
    return sums / (float(below * beside) if counts_padding else inside)


def tree_sum(x: Tensor) -> Tensor:
    """Sums of float32 rows [..., n] -> [...]: number i and i + h, where h is the largest power of
    two below n, until one is left.
    """
    while x.shape[-1] > 1:
        half = 1 << (x.shape[-1] - 1).bit_length() - 1
        rest = x[..., half:]
        x = torch.cat([x[..., : rest.shape[-1]] + rest, x[..., rest.shape[-1] : half]], -1)
    return x[..., 0]


def softmax_parts(scores: Tensor) -> tuple[Tensor, Tensor]:
    """Numerators [..., K] and denominators [..., 1] of the softmax over float32 rows [..., K]."""
    numerators = exp(scores - scores.amax(-1, keepdim=True))
    return numerators, row_sum(numerators)


def attention(
    qkv: Tensor,
    steps: Tensor,
    bias: Tensor,
    mask: Tensor | None,
    heads: int,
    bits: Sequence[int],
    signed: Sequence[bool],
) -> Tensor:
    """Window attention on integers: float32 [windows, T, 3 * features] -> [.., T, features].

    steps: float32 [4] > 0 of q, k, probabilities and v, with `bits` and `signed` in that order;
    bias: float32 [heads, T, T]; mask: float32 [M, T, T], added to window i from mask[i % M], or
    None. Rows of qkv are q, k, v, each heads * width long. With codes(x) = clamp(round(x / step)):

        scores = (codes(q * width^-1/2) . codes(k)) * (step_q * step_k) + bias (+ mask)
        e, sum = softmax_parts(scores)
        codes_p = clamp(round(e * (1 / (sum * step_p))))      e / sum, divided by step_p
        out    = (codes_p . codes(v)) * (step_p * step_v)

    Both products are sums of integers, exact. NaN has code 0.
    """
    q, k, v = _heads(qkv, heads)
    specs = [QuantSpec(b, s) for b, s in zip(bits, signed, strict=True)]
    q, k, v = (_codes(x, steps[i], specs[i]).long() for x, i in ((q, 0), (k, 1), (v, 3)))
    scores = (q @ k.transpose(-2, -1)).float() * (steps[0] * steps[1])
    e, total = softmax_parts(_biased(scores, bias, mask))
    p = _codes(e * (1.0 / (total * steps[2])), torch.ones_like(steps[2]), specs[2]).long()
    return _rows((p @ v).float() * (steps[2] * steps[3]))


def attention_float(qkv: Tensor, bias: Tensor, mask: Tensor | None, heads: int) -> Tensor:
    """The same without quantisation: products in float32, each summed in order of its index.

    scores = sum over c of (q * width^-1/2)[c] * k[c], + bias (+ mask)
    out    = (sum over j of e[j] * v[j]) * (1 / sum)
    """
    q, k, v = _heads(qkv, heads)
    scores = q.new_zeros(*q.shape[:-1], k.shape[-2])
    for c in range(q.shape[-1]):
        scores = scores + q[..., c, None] * k[..., None, :, c]
    e, total = softmax_parts(_biased(scores, bias, mask))
    out = torch.zeros_like(v)
    for j in range(v.shape[-2]):
        out = out + e[..., j, None] * v[..., None, j, :]
    return _rows(out * (1.0 / total))


def _horner(coefficients: Sequence[float], x: Tensor) -> Tensor:
    y = torch.full_like(x, coefficients[-1])
    for c in reversed(coefficients[:-1]):
        y = y * x + c
    return y


def _codes(x: Tensor, step_size: Tensor, spec: QuantSpec) -> Tensor:
    return to_codes(torch.where(x.isnan(), 0.0, x), step_size, spec)


def _heads(qkv: Tensor, heads: int) -> list[Tensor]:
    """q * width^-1/2, k and v, each [windows, heads, T, width]."""
    windows, pixels, columns = qkv.shape
    q, k, v = qkv.view(windows, pixels, 3, heads, columns // (3 * heads)).permute(2, 0, 3, 1, 4)
    return [q * q.shape[-1] ** -0.5, k, v]


def _biased(scores: Tensor, bias: Tensor, mask: Tensor | None) -> Tensor:
    scores = scores + bias
    if mask is None:
        return scores
    return scores + mask[torch.arange(len(scores), device=mask.device) % len(mask), None]


def _rows(mixed: Tensor) -> Tensor:
    """[windows, heads, T, width] -> [windows, T, features]."""
    return mixed.transpose(1, 2).flatten(2)
