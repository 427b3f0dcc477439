"""MATLAB's bicubic resize, which super-resolution is measured with.

All published numbers use low resolution pictures made by it; a resize without its antialiasing, or
with another treatment of the borders, moves the scores of every method. Each output pixel is a
weighted sum of a few input pixels (`_taps`), first down the columns, then along the rows.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor


def imresize(
    x: Tensor, scale: float | None = None, *, size: tuple[int, int] | None = None
) -> Tensor:
    """Resize as MATLAB's `imresize(x, scale)`: bicubic, antialiased when shrinking.

    x: [..., H, W] on any device -> [..., ceil(scale H), ceil(scale W)], same type; or, with `size`
    (height, width) in place of `scale`, of that size, as MATLAB's `imresize(x, [height width])`.
    uint8: rounded (halves away from zero) and clipped after each dimension, as MATLAB does; with
    one rounding at the end 10 to 15 % of the pixels of Set5 would differ. Float: not rounded,
    computed in float64. Raises ValueError if scale or size is not positive, or not one of them is
    given; TypeError for other types.
    Source: equal to MATLAB's output in every pixel of Set5 at 1/2, 1/3 and 1/4.

    >>> imresize(torch.tensor([[0, 0, 255, 255]] * 4, dtype=torch.uint8), 0.5).tolist()
    [[14, 241], [14, 241]]
    >>> imresize(torch.zeros(3, 4, 4), size=(2, 9)).shape
    torch.Size([3, 2, 9])
    """
    if (scale is None) == (size is None):
        raise ValueError("imresize takes a `scale` or a `size`; give one of them.")
    if not isinstance(x, Tensor):
        raise TypeError(f"`x` is a {type(x).__name__}; imresize takes tensors [..., H, W].")
    if x.dtype != torch.uint8 and not x.is_floating_point():
        raise TypeError(f"`x` is {x.dtype}; imresize takes uint8 or floating point pictures.")
    if x.ndim < 2 or 0 in x.shape[-2:]:
        raise ValueError(f"`x` has shape {tuple(x.shape)}; a picture is [..., H, W], neither 0.")
    rows, columns = x.shape[-2:]
    if size is not None:
        if len(size) != 2 or min(size) < 1:
            raise ValueError(f"`size` is {size!r}; it is (height, width), both positive.")
        down, across = size[0] / rows, size[1] / columns
    elif scale is not None and scale > 0 and math.isfinite(scale):
        size, down, across = (math.ceil(scale * rows), math.ceil(scale * columns)), scale, scale
    else:
        raise ValueError(f"`scale` is {scale!r}; pictures are resized by a positive factor.")
    # MATLAB begins with the dimension that shrinks more, with the height if both do alike.
    if down <= across:
        out = _resize(_resize(x, down, size[0], dim=-2), across, size[1], dim=-1)
    else:
        out = _resize(_resize(x, across, size[1], dim=-1), down, size[0], dim=-2)
    return out.to(x.dtype).contiguous()


def imresize_rows(
    part: Callable[[int, int], Tensor], height: int, scale: int, first: int, last: int
) -> Tensor:
    """Rows [first, last) of `imresize(x, scale)`, scale >= 1, of a float picture that is not there
    as a whole: part(top, bottom) gives x[..., top:bottom, :] of its `height` rows.
    """
    source, weight = (t[first:last] for t in _taps(height, scale, scale * height))
    top, bottom = int(source.min()), int(source.max()) + 1
    x = part(top, bottom)
    out = _resize(_weighted(x, source - top, weight, -2), scale, scale * x.shape[-1], dim=-1)
    return out.to(x.dtype).contiguous()


def _resize(x: Tensor, scale: float, size: int, dim: int) -> Tensor:
    """x resized along one dimension: float64, or uint8 if x is uint8."""
    return _weighted(x, *_taps(x.shape[dim], scale, size), dim)


def _weighted(x: Tensor, source: Tensor, weight: Tensor, dim: int) -> Tensor:
    """Sums of x along one dimension, by the indices and weights of `_taps`; types as `_resize`."""
    source, weight = source.to(x.device), weight.to(x.device)
    rows = x.movedim(dim, 0)
    out = torch.zeros(len(source), *rows.shape[1:], dtype=torch.float64, device=x.device)
    # Tap by tap, not as a product with a matrix: the order of the sum, and with it the rounding of
    # exact halves, must not depend on the number of threads or on the processor.
    for k in range(source.shape[1]):
        out += weight[:, k].view(-1, *[1] * (rows.ndim - 1)) * rows[source[:, k]]
    if x.dtype == torch.uint8:
        out = (out + 0.5).floor().clamp(0, 255).to(torch.uint8)
    return out.movedim(0, dim)


def _taps(length: int, scale: float, size: int) -> tuple[Tensor, Tensor]:
    """Each output pixel is a weighted sum of a few input pixels: their indices and weights.

    Both [size, taps], int64 and float64. When shrinking, the kernel is widened by 1 / scale
    (antialiasing). Beyond its ends the input is mirrored, the end pixels included.
    """
    stretch = min(scale, 1.0)
    # Output pixel n = 1, 2, ... sits at (n - 1/2) / scale + 1/2 of the input. It is written as
    # MATLAB writes it, because at factors like 1.5 the last bits decide how halves are rounded.
    n = torch.arange(1, size + 1, dtype=torch.float64)
    centre = n / scale + 0.5 * (1 - 1 / scale)
    first = (centre - 2 / stretch).floor()
    source = first[:, None] + torch.arange(math.ceil(4 / stretch) + 2)
    weight = stretch * _cubic(stretch * (centre[:, None] - source))
    weight = weight / weight.cumsum(1)[:, -1:]
    source = mirrored(source.long() - 1, length)
    used = (weight != 0).any(0)
    return source[:, used], weight[:, used]


def mirrored(index: Tensor, length: int) -> Tensor:
    """Indices beyond [0, length) as a mirror shows them, the end pixels included.

    >>> mirrored(torch.arange(-3, 5), 3).tolist()
    [2, 1, 0, 0, 1, 2, 2, 1]
    """
    index = index % (2 * length)
    return torch.minimum(index, 2 * length - 1 - index)


def _cubic(x: Tensor) -> Tensor:
    """Keys' cubic kernel with a = -1/2. Source: Keys, IEEE Trans. ASSP 29 (1981)."""
    x = x.abs()
    square, cube = x * x, x * x * x
    near = 1.5 * cube - 2.5 * square + 1
    far = -0.5 * cube + 2.5 * square - 4 * x + 2
    return torch.where(x <= 1, near, torch.where(x <= 2, far, 0))
