"""PSNR and SSIM on luma, as super-resolution papers report them.

The protocol decides the number: the output is clipped and rounded to 8 bits, both pictures become
BT.601 luma (16..235, not rounded again), `crop` pixels (the scale) are cut from each side, and the
scores of a set are the mean over its pictures. PSNR over RGB, or with full-range luma, would be
lower or higher by one to several decibels on the same pictures.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from .image import crop_border, rgb_to_y, to_uint8


def psnr_y(sr: Tensor, hr: Tensor, crop: int) -> Tensor:
    """Peak signal-to-noise ratio of the luma in dB: float64 [N]; equal pictures give inf.

    sr, hr: float RGB [N, 3, H, W] in [0, 1]; both are rounded to 8 bits first. Peak 255.
    Raises ValueError if the shapes differ or a value is not a number.
    """
    _check(sr, hr)
    return psnr_plane(_luma(sr), _luma(hr), crop)


def ssim_y(sr: Tensor, hr: Tensor, crop: int) -> Tensor:
    """Structural similarity of the luma: float64 [N]. Arguments as `psnr_y`.

    11x11 Gaussian window, sigma 1.5, valid region only, K1 = 0.01, K2 = 0.03, L = 255.
    Source: Wang et al., Image quality assessment, IEEE TIP 2004.
    """
    _check(sr, hr)
    return ssim_plane(_luma(sr), _luma(hr), crop)


def psnr_plane(a: Tensor, b: Tensor, crop: int) -> Tensor:
    """PSNR of single planes [N, 1, H, W] in units of 0..255, not rounded: float64 [N]."""
    difference = crop_border(a.double(), crop) - crop_border(b.double(), crop)
    return 10 * torch.log10(255**2 / difference.square().mean((1, 2, 3)))


def ssim_plane(a: Tensor, b: Tensor, crop: int) -> Tensor:
    """SSIM of single planes [N, 1, H, W] in units of 0..255: float64 [N].

    Raises ValueError if less than one 11x11 window is left after the crop.
    """
    a, b = crop_border(a.double(), crop), crop_border(b.double(), crop)
    if min(a.shape[-2:]) < 11:
        raise ValueError(
            f"{a.shape[-2]} x {a.shape[-1]} pixels are left after the crop; "
            "SSIM needs a window of 11 x 11. Use a larger picture."
        )
    offset = torch.arange(-5, 6, dtype=torch.float64, device=a.device)
    window = torch.exp(-offset.square() / (2 * 1.5**2))
    window = window / window.sum()

    def local_mean(x: Tensor) -> Tensor:
        return F.conv2d(F.conv2d(x, window.view(1, 1, 11, 1)), window.view(1, 1, 1, 11))

    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    mean_a, mean_b = local_mean(a), local_mean(b)
    var_a = local_mean(a * a) - mean_a.square()
    var_b = local_mean(b * b) - mean_b.square()
    covariance = local_mean(a * b) - mean_a * mean_b
    similarity = ((2 * mean_a * mean_b + c1) * (2 * covariance + c2)) / (
        (mean_a.square() + mean_b.square() + c1) * (var_a + var_b + c2)
    )
    return similarity.mean((1, 2, 3))


def _luma(rgb: Tensor) -> Tensor:
    return rgb_to_y(to_uint8(rgb).double() / 255)


def _check(sr: Tensor, hr: Tensor) -> None:
    if sr.shape != hr.shape or sr.ndim != 4 or sr.shape[1] != 3:
        raise ValueError(
            f"`sr` has shape {tuple(sr.shape)} and `hr` {tuple(hr.shape)}; "
            "both must be RGB [N, 3, H, W] of one size."
        )
    for name, x in (("sr", sr), ("hr", hr)):
        if not x.is_floating_point():
            raise TypeError(f"`{name}` is {x.dtype}; scores take floating point RGB in [0, 1].")
        if torch.isnan(x).any():
            raise ValueError(f"`{name}` has values that are not numbers (NaN); check the network.")
