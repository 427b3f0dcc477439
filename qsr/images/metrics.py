"""PSNR and SSIM on luma, as super-resolution papers report them.

The protocol decides the number: the output is clipped and rounded to 8 bits, both pictures become
BT.601 luma (16..235, not rounded again), `crop` pixels (the scale) are cut from each side, and the
scores of a set are the mean over its pictures. PSNR over RGB, or with full-range luma, would be
lower by one to several decibels on the same pictures.

The bicubic rows of published tables were made on luma alone: `psnr_plane` and `ssim_plane` score
such planes as they are.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from .tensors import check_pictures, crop_border, rgb_to_y, to_uint8


def psnr_y(sr: Tensor, hr: Tensor, crop: int) -> Tensor:
    """Peak signal-to-noise ratio of the luma in dB: float64 [N]; equal pictures give inf.

    sr, hr: float RGB [N, 3, H, W] in [0, 1]; both are rounded to 8 bits first. Peak 255.
    `crop`: pixels to leave out on each side; papers take the scale.
    Raises ValueError if the shapes differ, a value is not finite or hr is not in [0, 1], TypeError
    for integer pictures.

    >>> hr = torch.zeros(1, 3, 8, 8)
    >>> round(psnr_y(hr + 1 / 255, hr, crop=2).item(), 3)  # 20 log10(255 / (219 / 255))
    49.453
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
    """PSNR of single planes [N, 1, H, W] in units of 0..255, not rounded: float64 [N].

    Raises ValueError if the shapes differ or a value is not finite.
    """
    _check_planes(a, b)
    difference = crop_border(a.double(), crop) - crop_border(b.double(), crop)
    return 10 * torch.log10(255**2 / difference.square().mean((1, 2, 3)))


def ssim_plane(a: Tensor, b: Tensor, crop: int) -> Tensor:
    """SSIM of single planes [N, 1, H, W] in units of 0..255: float64 [N].

    Raises ValueError as `psnr_plane`, and if less than one 11x11 window is left after the crop.
    """
    _check_planes(a, b)
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
    check_pictures(sr, "sr")
    check_pictures(hr, "hr")
    _check_same_shape("sr", sr, "hr", hr)
    if hr.max() > 2:  # what a network makes may be anything, but this is a picture
        raise ValueError(
            f"`hr` has values up to {hr.max():g}; pictures lie in [0, 1], and the rest would be "
            "clipped. Divide values of 8 bits by 255."
        )


def _check_planes(a: Tensor, b: Tensor) -> None:
    check_pictures(a, "a", channels=(1,))
    check_pictures(b, "b", channels=(1,))
    _check_same_shape("a", a, "b", b)


def _check_same_shape(a_name: str, a: Tensor, b_name: str, b: Tensor) -> None:
    if a.shape != b.shape:
        raise ValueError(
            f"`{a_name}` has shape {tuple(a.shape)} and `{b_name}` {tuple(b.shape)}; "
            "only pictures of one shape are compared. Cut the larger one."
        )
