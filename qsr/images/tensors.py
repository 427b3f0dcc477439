"""Pictures as tensors: what is checked, rounded, weighed and cut.

Everywhere in qsr a picture is a float tensor of RGB values in [0, 1], shape [N, 3, H, W], unless a
docstring says uint8.
"""

from __future__ import annotations

import torch
from torch import Tensor


def check_pictures(x: Tensor, name: str, channels: tuple[int, ...] = (3,)) -> None:
    """Raise TypeError or ValueError unless x is float [N, C, H, W], C in `channels`, all finite.

    Values outside [0, 1] pass: a network's output has some, and rounding to 8 bits clips them.
    """
    if not x.is_floating_point():
        raise TypeError(
            f"`{name}` is {x.dtype}; pictures are floating point. "
            "Convert it (uint8 RGB: divide by 255)."
        )
    if x.ndim != 4 or x.shape[1] not in channels or 0 in x.shape:
        wanted = " or ".join(str(c) for c in channels)
        raise ValueError(
            f"`{name}` has shape {tuple(x.shape)}; pictures are [N, {wanted}, H, W], "
            "none of them 0. Rearrange it."
        )
    if not torch.isfinite(x).all():
        raise ValueError(
            f"`{name}` has values that are no finite numbers (NaN or infinity); check where it "
            "comes from."
        )


def to_uint8(x: Tensor) -> Tensor:
    """float in [0, 1] -> uint8, clipped, halves to even. Raises TypeError for other types.

    >>> to_uint8(torch.tensor([-0.1, 0.5, 2.0])).tolist()
    [0, 128, 255]
    """
    if not x.is_floating_point():
        raise TypeError(f"`x` is {x.dtype}; only floating point in [0, 1] is rounded to 8 bits.")
    return (x * 255).round_().clamp_(0, 255).to(torch.uint8)


def rgb_to_y(rgb: Tensor) -> Tensor:
    """Luma of BT.601 in studio range: float [N, 3, H, W] in [0, 1] -> [N, 1, H, W] in 16..235.

    MATLAB's rgb2ycbcr, not rounded. Source: ITU-R BT.601. Raises ValueError unless there are 3
    channels, TypeError unless x is floating point.

    >>> rgb_to_y(torch.ones(1, 3, 1, 1)).item()
    235.0
    """
    if not rgb.is_floating_point():
        raise TypeError(f"`rgb` is {rgb.dtype}; it is floating point in [0, 1]. Divide by 255.")
    if rgb.ndim != 4 or rgb.shape[1] != 3:
        raise ValueError(f"`rgb` has shape {tuple(rgb.shape)}; luma is taken of [N, 3, H, W].")
    weights = torch.tensor([65.481, 128.553, 24.966], dtype=rgb.dtype, device=rgb.device)
    return (rgb * weights.view(1, 3, 1, 1)).sum(1, keepdim=True) + 16


def crop_border(x: Tensor, crop: int) -> Tensor:
    """x [..., H, W] without `crop` pixels on each side. Raises ValueError if nothing is left."""
    height, width = x.shape[-2:]
    if crop < 0 or min(height, width) <= 2 * crop:
        raise ValueError(
            f"`crop` is {crop} and the picture {height} x {width}; "
            "at least one pixel must be left. Use a smaller crop."
        )
    return x[..., crop : height - crop, crop : width - crop]
