import math
import warnings

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from skimage.metrics import peak_signal_noise_ratio, structural_similarity
from torch import Tensor

from qsr.images.metrics import psnr_plane, psnr_y, ssim_plane, ssim_y
from qsr.images.tensors import crop_border, rgb_to_y, to_uint8

quick = settings(deadline=None, max_examples=25)


@st.composite
def two_pictures(draw: st.DrawFn) -> tuple[Tensor, Tensor, int]:
    """A noisy sr (some values below 0 and above 1), hr, and a crop that leaves one SSIM window."""
    crop = draw(st.integers(0, 4))
    sides = (draw(st.integers(11, 24)) + 2 * crop for _ in range(2))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 9999)))
    hr = torch.rand(draw(st.integers(1, 3)), 3, *sides, generator=generator)
    sr = hr + 0.2 * torch.randn(hr.shape, generator=generator)
    return sr, hr, crop


def luma(rgb: Tensor, crop: int) -> Tensor:
    return crop_border(rgb_to_y(to_uint8(rgb).double() / 255), crop)


@given(two_pictures())
@quick
def test_psnr_equals_scikit_image_on_the_cropped_luma(case: tuple[Tensor, Tensor, int]) -> None:
    sr, hr, crop = case
    scores = psnr_y(sr, hr, crop)
    assert scores.dtype == torch.float64 and scores.shape == hr.shape[:1]
    for score, a, b in zip(scores, luma(sr, crop), luma(hr, crop), strict=True):
        expected = peak_signal_noise_ratio(a.numpy(), b.numpy(), data_range=255)
        assert score.item() == pytest.approx(expected, abs=1e-9)


@given(two_pictures())
@quick
def test_ssim_equals_scikit_image_with_the_window_of_the_paper(
    case: tuple[Tensor, Tensor, int],
) -> None:
    sr, hr, crop = case
    scores = ssim_y(sr, hr, crop)
    assert scores.dtype == torch.float64 and scores.shape == hr.shape[:1]
    for score, a, b in zip(scores, luma(sr, crop), luma(hr, crop), strict=True):
        expected = structural_similarity(
            a[0].numpy(), b[0].numpy(), data_range=255,
            gaussian_weights=True, sigma=1.5, use_sample_covariance=False,
        )  # fmt: skip
        assert score.item() == pytest.approx(expected, abs=1e-9)


@given(st.integers(1, 9))
@quick
def test_psnr_of_a_constant_offset_has_a_closed_form(levels: int) -> None:
    # RGB off by `levels` steps of 8 bits is luma off by 219 / 255 of that.
    hr = torch.full((1, 3, 6, 6), 100 / 255)
    score = psnr_y(hr + levels / 255, hr, crop=1).item()
    assert score == pytest.approx(20 * math.log10(255 / (levels * 219 / 255)), abs=1e-9)
    a = torch.zeros(1, 1, 6, 6)
    assert psnr_plane(a + levels, a, crop=0).item() == pytest.approx(20 * math.log10(255 / levels))


def test_ssim_of_two_flat_pictures_has_a_closed_form() -> None:
    # No variance: only the term of the means is left.
    a, b, c1 = 100.0, 130.0, (0.01 * 255) ** 2
    flat = torch.ones(1, 1, 12, 12)
    expected = (2 * a * b + c1) / (a * a + b * b + c1)
    assert ssim_plane(a * flat, b * flat, crop=0).item() == pytest.approx(expected, abs=1e-12)


def test_equal_pictures_score_infinity_and_one() -> None:
    x = torch.rand(2, 3, 16, 16)
    assert psnr_y(x, x, crop=2).tolist() == [math.inf] * 2
    assert ssim_y(x, x, crop=2).tolist() == pytest.approx([1, 1], abs=1e-12)


def test_the_output_is_clipped_and_rounded_half_to_even_before_scoring() -> None:
    hr = torch.tensor([0.0, 1.0, 2 / 255, 2 / 255]).view(1, 1, 2, 2).expand(1, 3, 2, 2)
    sr = torch.tensor([-0.3, 1.7, 1.6 / 255, 2.5 / 255]).view(1, 1, 2, 2).expand(1, 3, 2, 2)
    assert psnr_y(sr, hr, crop=0).item() == math.inf


def test_pixels_within_the_crop_do_not_count() -> None:
    hr = torch.rand(1, 3, 17, 17)
    sr = hr.clone()
    sr[..., :3, :] = sr[..., -3:, :] = sr[..., :3] = sr[..., -3:] = 0
    assert psnr_y(sr, hr, crop=3).item() == math.inf
    assert psnr_y(sr, hr, crop=2).item() < math.inf
    assert ssim_y(sr, hr, crop=3).item() == pytest.approx(1)


rgb = torch.zeros(1, 3, 16, 16)


@pytest.mark.parametrize(
    "sr, hr, crop, error, part",
    [
        (rgb, torch.zeros(1, 3, 16, 17), 0, ValueError, "(1, 3, 16, 17)"),
        (rgb, rgb.expand(2, -1, -1, -1), 0, ValueError, "(2, 3, 16, 16)"),
        (rgb[:, :1], rgb[:, :1], 0, ValueError, "(1, 1, 16, 16)"),
        (rgb[0], rgb[0], 0, ValueError, "(3, 16, 16)"),
        (rgb.byte(), rgb, 0, TypeError, "uint8"),
        (rgb * math.nan, rgb, 0, ValueError, "`sr`"),
        (rgb, rgb + math.inf, 0, ValueError, "`hr`"),
        (rgb, rgb + 255, 0, ValueError, "`hr` has values up to 255"),
        (rgb, rgb, 8, ValueError, "`crop` is 8"),
        (rgb, rgb, -1, ValueError, "`crop` is -1"),
    ],
)
@pytest.mark.parametrize("metric", [psnr_y, ssim_y])
def test_bad_input_gives_one_clear_line(
    metric, sr: Tensor, hr: Tensor, crop: int, error: type[Exception], part: str
) -> None:
    with warnings.catch_warnings(), pytest.raises(error) as caught:
        warnings.simplefilter("error")
        metric(sr, hr, crop)
    assert part in str(caught.value) and "\n" not in str(caught.value)


def test_planes_are_checked_too() -> None:
    for metric in (psnr_plane, ssim_plane):
        with pytest.raises(ValueError, match=r"\(1, 3, 16, 16\)"):
            metric(rgb, rgb, 0)
        with pytest.raises(ValueError, match="NaN"):
            metric(rgb[:, :1] * math.nan, rgb[:, :1], 0)


def test_ssim_refuses_less_than_one_window() -> None:
    with pytest.raises(ValueError, match="11 x 11"):
        ssim_y(rgb, rgb, crop=3)  # 10 x 10 are left
