import io
import itertools
import math
import resource
import struct
import subprocess
import sys
import warnings
import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import ExifTags, Image, ImageCms, PngImagePlugin

from qsr.images import png as png_rows
from qsr.images.colour import SRGB, SRGB_CURVE, profile
from qsr.images.data import photo
from qsr.images.metadata import Metadata
from qsr.images.picture import Picture, from_array, to_array
from qsr.images.reading import MAX_PIXELS, from_pil, read
from qsr.images.resize import imresize
from qsr.images.tensors import check_pictures, crop_border, rgb_to_y, to_uint8
from qsr.images.writing import to_pil, write

quick = settings(deadline=None, max_examples=40)


def one_line(error: pytest.ExceptionInfo) -> str:
    message = str(error.value)
    assert message and "\n" not in message
    return message


# imresize -----------------------------------------------------------------------------------------


def test_halving_weighs_eight_pixels_by_known_fractions() -> None:
    # Shrunk by 2 the kernel is stretched over 8 pixels, at distances 1/2, 3/2, 5/2, 7/2 on each
    # side; half the cubic of 1/4, 3/4, 5/4, 7/4 is (111, 29, -9, -3) / 256. Pixel 8 lies at 7/2,
    # 3/2, -1/2, -5/2 from outputs 2, 3, 4, 5. (One row takes all weights of the height, sum 1.)
    impulse = torch.zeros(1, 16, dtype=torch.float64)
    impulse[0, 8] = 256
    assert imresize(impulse, 0.5)[0].tolist() == [0, 0, -3, 29, 111, -9, 0, 0]


def test_doubling_weighs_four_pixels_by_known_fractions() -> None:
    # Outputs lie 1/4 before and behind an input; the cubic of 1/4, 3/4, 5/4, 7/4 is
    # (111, 29, -9, -3) / 128. Pixel 2 of 5 lies at the middle of outputs 4 and 5.
    impulse = torch.zeros(1, 5, dtype=torch.float64)
    impulse[0, 2] = 128
    assert imresize(impulse, 2)[0].tolist() == [0, -3, -9, 29, 111, 111, 29, -9, -3, 0]


def test_borders_are_mirrored_with_the_end_pixel_doubled() -> None:
    # The outputs of [0, 0, 255, 255] lie at 1/2 and 5/2. Of the first, pixels 2, 3 are 3/2 and 5/2
    # away, and the mirror shows 255 again at -7/2 and 7/2: (29 - 9 - 3 - 3) / 256 * 255 = 13.9.
    row = torch.tensor([[0, 0, 255, 255]])
    assert imresize(row.double(), 0.5)[0].tolist() == pytest.approx([13.9453125, 241.0546875])
    assert imresize(row.byte(), 0.5)[0].tolist() == [14, 241]


def test_uint8_halves_are_rounded_away_from_zero() -> None:
    # Two pixels 0 and 1 (and 2 and 3) have a mean of exactly 1/2 (5/2); half to even gives 0 (2).
    assert imresize(torch.tensor([[0, 1]], dtype=torch.uint8), 0.5).tolist() == [[1]]
    assert imresize(torch.tensor([[2, 3]], dtype=torch.uint8), 0.5).tolist() == [[3]]


def test_uint8_is_rounded_after_the_height_and_again_after_the_width() -> None:
    # Columns (0, 1) and (0, 0) become 1 (from 1/2) and 0; their mean 1/2 becomes 1. One rounding at
    # the end would see 1/4 and give 0.
    x = torch.tensor([[0, 0], [1, 0]], dtype=torch.uint8)
    assert imresize(x, 0.5).tolist() == [[1]]
    assert imresize(x.double(), 0.5).tolist() == [[0.25]]


def test_uint8_is_clipped_after_the_height() -> None:
    # The step between rows overshoots 0..255; clipped before the width is taken, rows stay equal.
    x = torch.tensor([0, 0, 255, 255] * 4, dtype=torch.uint8).view(-1, 1).expand(-1, 4)
    up = imresize(x, 2)
    assert up.min() == 0 and up.max() == 255
    assert (up == up[:, :1]).all()


def cubic(t: float) -> float:
    t = abs(t)
    if t <= 1:
        return 1.5 * t**3 - 2.5 * t**2 + 1
    return -0.5 * t**3 + 2.5 * t**2 - 4 * t + 2 if t <= 2 else 0


def by_the_formula(row: list[float], scale: float) -> list[float]:
    """MATLAB's bicubic of one row, pixel by pixel."""
    n, squeeze = len(row), min(scale, 1)
    out = []
    for i in range(math.ceil(scale * n)):
        centre = (i + 0.5) / scale - 0.5
        reach = math.ceil(2 / squeeze) + 1
        total = weights = 0.0
        for j in range(math.floor(centre) - reach, math.floor(centre) + reach + 1):
            weight = cubic(squeeze * (centre - j))
            mirrored = j % (2 * n)
            total += weight * row[min(mirrored, 2 * n - 1 - mirrored)]
            weights += weight
        out.append(total / weights)
    return out


@pytest.mark.parametrize(
    "scale, row, pixel, value",
    [
        (1.5, [71, 48, 128, 75, 158, 50], 8, 42),
        (1.5, [229, 193, 212, 16, 205, 214], 0, 231),
        (1.5, [148, 184, 202, 66, 150, 58], 0, 145),
        (1.5, [73, 253, 26, 110, 13, 181], 0, 60),
        (1.5, [172, 136, 21, 22, 26, 83], 0, 175),
        (2.7, [173, 143, 68, 218, 7, 195], 4, 131),
        (2.7, [13, 201, 228, 196, 100, 18], 4, 215),
        (2.7, [235, 125, 52, 82, 145, 55], 4, 110),
        (2.7, [3, 169, 44, 222, 231, 93], 4, 161),
        (2.7, [245, 59, 163, 78, 134, 61], 10, 95),
    ],
)
def test_where_exact_halves_meet_float64_the_last_bits_are_matlabs(
    scale: float, row: list[int], pixel: int, value: int
) -> None:
    # In rational arithmetic each of these pixels is k + 1/2. Which side of it float64 takes depends
    # on how the position is written: MATLAB's u = x / scale + 0.5 (1 - 1 / scale). The values are
    # those of that formula, computed number by number; (x - 0.5) / scale + 0.5 misses all ten.
    assert imresize(torch.tensor([row], dtype=torch.uint8), scale)[0, pixel] == value
    n = len(row)
    x = pixel + 1
    u = x / scale + 0.5 * (1 - 1 / scale)
    total = weights = 0.0
    taps = [math.floor(u - 2) + k for k in range(6)]
    for j in taps:
        weights += cubic(u - j)
    for j in taps:
        mirrored = (j - 1) % (2 * n)
        total += cubic(u - j) / weights * row[min(mirrored, 2 * n - 1 - mirrored)]
    assert math.floor(total + 0.5) == value


def test_imresize_to_a_size_is_matlabs_with_a_factor_for_each_side() -> None:
    x = torch.randint(0, 256, (2, 9, 12), dtype=torch.uint8)
    assert torch.equal(imresize(x, size=(3, 4)), imresize(x, 1 / 3))
    up = imresize(x.double(), size=(18, 6))
    down_first = imresize(imresize(x.double(), size=(9, 6)), size=(18, 6))
    assert torch.allclose(up, down_first, atol=1e-12) and up.shape == (2, 18, 6)
    # The side that shrinks more comes first: with uint8, where each pass rounds, it can be seen.
    assert torch.equal(imresize(x, size=(18, 6)), imresize(imresize(x, size=(9, 6)), size=(18, 6)))
    assert torch.equal(imresize(x, size=(3, 24)), imresize(imresize(x, size=(3, 12)), size=(3, 24)))


@pytest.mark.parametrize("size", [(0, 4), (4, -1), (4,), (4, 4, 4)])
def test_imresize_refuses_a_size_that_is_none(size: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="height, width") as error:
        imresize(torch.zeros(4, 4), size=size)
    one_line(error)
    for both in ({}, {"scale": 2, "size": (4, 4)}):
        with pytest.raises(ValueError, match="one of them"):
            imresize(torch.zeros(4, 4), **both)


scales = st.sampled_from([1 / 4, 1 / 3, 0.37, 1 / 2, 0.9, 1, 1.5, 2, 3, 4])
sizes = st.tuples(st.integers(1, 13), st.integers(1, 13))


@given(st.lists(st.floats(-1, 1), min_size=1, max_size=20), scales)
@quick
def test_imresize_follows_the_formula_at_any_length_and_scale(
    row: list[float], scale: float
) -> None:
    expected = by_the_formula(row, scale)
    along_width = imresize(torch.tensor([row], dtype=torch.float64), scale)
    along_height = imresize(torch.tensor([row], dtype=torch.float64).T, scale)
    assert along_width[0].tolist() == pytest.approx(expected, abs=1e-12)
    assert along_height[:, 0].tolist() == pytest.approx(expected, abs=1e-12)


@given(sizes, scales, st.integers(0, 99))
@quick
def test_imresize_keeps_flat_pictures_and_commutes_with_flips(
    size: tuple[int, int], scale: float, seed: int
) -> None:
    x = torch.rand(2, 3, *size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    y = imresize(x, scale)
    assert y.shape == (2, 3, *(math.ceil(scale * n) for n in size))
    if scale * size[1] == y.shape[-1]:  # a size that was rounded up is not symmetric
        assert torch.allclose(imresize(x.flip(-1), scale).flip(-1), y, atol=1e-12)
    assert torch.allclose(imresize(x.mT, scale), y.mT, atol=1e-12)
    assert torch.allclose(imresize(torch.full_like(x, 0.7), scale), torch.full_like(y, 0.7))
    assert torch.equal(imresize(x[1, 2], scale), y[1, 2])


@given(sizes, st.integers(0, 99))
@quick
def test_imresize_by_one_changes_nothing(size: tuple[int, int], seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randint(0, 256, size, generator=generator, dtype=torch.uint8)
    assert torch.equal(imresize(x, 1), x)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float16, torch.float32, torch.float64])
def test_imresize_keeps_the_type(dtype: torch.dtype) -> None:
    assert imresize(torch.ones(3, 4, 4, dtype=dtype), 2).dtype == dtype


def test_imresize_does_not_depend_on_the_number_of_threads() -> None:
    x = torch.randint(0, 256, (3, 90, 120), dtype=torch.uint8)
    threads = torch.get_num_threads()
    try:
        results = []
        for n in (1, 4):
            torch.set_num_threads(n)
            results.append((imresize(x, 1 / 3), imresize(x.float(), 1 / 3)))
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_imresize_is_differentiable() -> None:
    x = torch.rand(1, 5, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: imresize(x, 0.5), x)


@pytest.mark.parametrize("scale", [2, 3, 4])
def test_imresize_equals_matlab_on_set5_bit_for_bit(qsr_data: Path, scale: int) -> None:
    files = sorted((qsr_data / "matlab" / "Set5" / f"X{scale}").glob("*.png"))
    if not files:
        pytest.skip(f"needs MATLAB's pictures in {qsr_data}/matlab/Set5/X{scale}")
    for file in files:
        name = file.stem.removesuffix(f"x{scale}")
        hr = to_uint8(read(qsr_data / "eval" / "Set5" / "HR" / f"{name}.png").rgb[0])
        height, width = (n // scale * scale for n in hr.shape[1:])
        lr = imresize(hr[:, :height, :width], 1 / scale)
        assert torch.equal(lr, to_uint8(read(file).rgb[0])), name


@pytest.mark.parametrize("scale", [0, -1, math.nan, math.inf])
def test_imresize_refuses_a_scale_that_is_not_positive(scale: float) -> None:
    with pytest.raises(ValueError, match="positive") as error:
        imresize(torch.zeros(4, 4), scale)
    one_line(error)


def test_imresize_refuses_integers_and_empty_pictures() -> None:
    with pytest.raises(TypeError, match="int64"):
        imresize(torch.zeros(4, 4, dtype=torch.int64), 2)
    with pytest.raises(ValueError, match=r"\(4, 0\)"):
        imresize(torch.zeros(4, 0), 2)


# Tensors ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "rgb, y",
    # ITU-R BT.601: black 16, white 235; the primaries add their weights to 16.
    [((0, 0, 0), 16), ((1, 1, 1), 235), ((1, 0, 0), 81.481), ((0, 1, 0), 144.553),
     ((0, 0, 1), 40.966)],
)  # fmt: skip
def test_luma_is_studio_range_bt601(rgb: tuple[float, float, float], y: float) -> None:
    x = torch.tensor(rgb, dtype=torch.float64).view(1, 3, 1, 1)
    assert rgb_to_y(x).item() == pytest.approx(y, abs=1e-12)


def test_luma_refuses_grey_and_uint8() -> None:
    with pytest.raises(ValueError, match=r"\(2, 1, 4, 4\)"):
        rgb_to_y(torch.zeros(2, 1, 4, 4))
    with pytest.raises(TypeError, match="uint8"):
        rgb_to_y(torch.zeros(2, 3, 4, 4, dtype=torch.uint8))


def test_crop_takes_as_much_from_each_side_and_leaves_something() -> None:
    x = torch.arange(20).view(4, 5)
    assert crop_border(x, 1).tolist() == [[6, 7, 8], [11, 12, 13]]
    assert torch.equal(crop_border(x, 0), x)
    for crop in (-1, 2):
        with pytest.raises(ValueError, match="crop"):
            crop_border(x, crop)


def test_eight_bits_are_rounded_half_to_even_and_clipped() -> None:
    x = torch.tensor([0.5, 1.5, 2.5, 300, -7], dtype=torch.float64) / 255
    assert to_uint8(x).tolist() == [0, 2, 2, 255, 0]
    with pytest.raises(TypeError, match="uint8"):  # 255 * uint8 would wrap around in silence
        to_uint8(torch.zeros(3, dtype=torch.uint8))


@pytest.mark.parametrize(
    "x, error, part",
    [
        (torch.zeros(1, 3, 4, 4, dtype=torch.uint8), TypeError, "torch.uint8"),
        (torch.zeros(1, 4, 4, 4), ValueError, "(1, 4, 4, 4)"),
        (torch.zeros(3, 4, 4), ValueError, "(3, 4, 4)"),
        (torch.zeros(1, 3, 0, 4), ValueError, "(1, 3, 0, 4)"),
        (torch.full((1, 3, 4, 4), math.nan), ValueError, "NaN"),
        (torch.full((1, 3, 4, 4), math.inf), ValueError, "infinity"),
    ],
)
def test_pictures_of_wrong_type_shape_or_value_are_refused(
    x: torch.Tensor, error: type[Exception], part: str
) -> None:
    with pytest.raises(error) as caught:
        check_pictures(x, "lr")
    message = one_line(caught)
    assert part in message and "`lr`" in message


# Picture ------------------------------------------------------------------------------------------


@given(
    st.sampled_from([(np.uint8, ()), (np.uint8, (2,)), (np.uint8, (3,)), (np.uint8, (4,)),
                     (np.uint16, ())]),
    sizes,
    st.integers(0, 99),
)  # fmt: skip
@quick
def test_every_kind_of_picture_survives_png_unchanged(
    kind: tuple[type, tuple[int, ...]], size: tuple[int, int], seed: int
) -> None:
    dtype, channels = kind
    random = np.random.default_rng(seed)
    array = random.integers(
        np.iinfo(dtype).max, size=(*size, *channels), dtype=dtype, endpoint=True
    )
    picture = from_array(array)
    assert np.array_equal(to_array(picture), array)
    file = io.BytesIO()
    to_pil(picture).save(file, "PNG")
    assert np.array_equal(to_array(from_pil(Image.open(file))), array)


def test_subclasses_of_arrays_are_taken_as_arrays() -> None:
    values = np.arange(12, dtype=np.uint8).reshape(3, 4)
    for array in (np.asmatrix(values), np.ma.masked_array(values)):  # a matrix crashed the process
        picture = from_array(array)
        assert type(picture.array) is np.ndarray and np.array_equal(to_array(picture), values)


def test_all_levels_survive_floating_point() -> None:
    for dtype in (np.uint8, np.uint16):
        array = np.arange(np.iinfo(dtype).max + 1, dtype=dtype).reshape(16, -1)
        assert np.array_equal(to_array(from_array(array)), array)


@pytest.mark.parametrize("shape", [(5,), (2, 2, 5), (1, 2, 2, 3), (0, 4, 3)])
def test_arrays_of_other_shapes_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError) as error:
        from_array(np.zeros(shape, np.uint8))
    one_line(error)


def test_arrays_of_other_types_are_refused() -> None:
    for dtype in (np.int64, bool, complex):
        with pytest.raises(TypeError, match=np.dtype(dtype).name):
            from_array(np.zeros((4, 4, 3), dtype))
    with pytest.raises(ValueError, match="NaN"):
        from_array(np.full((4, 4), np.nan))
    with pytest.raises(ValueError, match="16 bits"):
        from_array(np.zeros((4, 4, 3), np.uint16))


@pytest.mark.parametrize("mode", ["CMYK", "YCbCr", "HSV", "RGBX", "P"])
def test_other_colour_modes_become_rgb(mode: str) -> None:
    image = Image.new("RGB", (2, 3), (255, 0, 0)).convert(mode)
    picture = from_pil(image)
    assert to_pil(picture).mode == "RGB"
    red, green, blue = picture.colour[0, :, 0, 0].mul(255).tolist()
    assert red > 250 and green < 5 and blue < 5


def test_bilevel_becomes_grey() -> None:
    assert to_array(from_pil(Image.new("1", (2, 2), 1))).tolist() == [[255, 255]] * 2
    with pytest.raises(ValueError, match="0 x 5 pixels"):
        from_pil(Image.new("L", (0, 5)))


@pytest.mark.parametrize(
    "image, mode",
    [
        (Image.new("L", (2, 2), 7), "LA"),
        (Image.new("RGB", (2, 2), (7, 8, 9)), "RGBA"),
        (Image.new("RGB", (2, 2), (7, 8, 9)).convert("P", palette=Image.Palette.ADAPTIVE), "RGBA"),
    ],
)
def test_a_transparent_value_becomes_alpha(image: Image.Image, mode: str, tmp_path: Path) -> None:
    image.save(tmp_path / "a.png", transparency=image.getpixel((0, 0)))
    picture = read(tmp_path / "a.png")
    assert to_pil(picture).mode == mode
    assert picture.alpha is not None and picture.alpha.max() == 0


@pytest.mark.parametrize("depth", [1, 2, 4, 8])
def test_the_transparent_value_of_few_bits_is_kept(depth: int, tmp_path: Path) -> None:
    # One byte of pixels 0, 1, 2, ... of which value 1 is transparent.
    values = [i % 2**depth for i in range(8 // depth)] if depth < 8 else [1]
    row = int("".join(f"{v:0{depth}b}" for v in values), 2)
    content = png(len(values), 1, depth, 0, bytes([0, row]), b"tRNS\0\1")
    (tmp_path / "a.png").write_bytes(content)
    pictures = [read(tmp_path / "a.png"), from_pil(Image.open(io.BytesIO(content)))]
    for picture in pictures:
        grey, alpha = to_array(picture)[0].T.tolist()
        assert grey == [v * 255 // (2**depth - 1) for v in values]
        assert alpha == [0 if v == 1 else 255 for v in values]


@pytest.mark.parametrize("mode", ["I", "F"])
def test_32_bit_pictures_are_refused(mode: str) -> None:
    with pytest.raises(ValueError, match="32 bits") as error:
        from_pil(Image.new(mode, (2, 2)))
    one_line(error)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("mode", ["RGB", "I;16"])
def test_exif_rotation_is_applied(orientation: int, mode: str, tmp_path: Path) -> None:
    # A dark corner at the top left of the stored pixels goes where EXIF says (TIFF 6.0, tag 274):
    # orientation 1 leaves it at the top left, 2 top right, 3 bottom right, 4 bottom left, and
    # 5 to 8 the same for the transposed picture.
    array = np.full((8, 12), 60000, np.uint16)
    array[0, 0] = 0
    image = Image.fromarray(array if mode == "I;16" else (array // 256).astype(np.uint8))
    exif = Image.Exif()
    exif[274] = orientation
    (image if mode == "I;16" else image.convert("RGB")).save(tmp_path / "a.png", exif=exif)
    picture = read(tmp_path / "a.png")
    assert picture.levels == (65535 if mode == "I;16" else 255)
    height, width = picture.colour.shape[-2:]
    assert (height, width) == ((8, 12) if orientation < 5 else (12, 8))
    corner = {1: (0, 0), 2: (0, -1), 3: (-1, -1), 4: (-1, 0),
              5: (0, 0), 6: (0, -1), 7: (-1, -1), 8: (-1, 0)}[orientation]  # fmt: skip
    assert picture.colour[0, 0][corner] == 0


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".webp"])
def test_the_colour_profile_is_kept(suffix: str, tmp_path: Path) -> None:
    picture = from_array(np.zeros((8, 8, 3), np.uint8), icc=b"a profile")
    write(picture, tmp_path / f"a{suffix}")
    assert read(tmp_path / f"a{suffix}").icc == b"a profile"


def lab_of(inks: tuple[int, ...]) -> np.ndarray:
    """L, a, b of full or no cyan, magenta, yellow, black, as somebody's press might print them."""
    c, m, y, k = inks
    colour = np.array([100 - 30 * c - 35 * m - 10 * y, 35 * m - 20 * c, 30 * y - 25 * c - 5 * m])
    return colour * (1 - k)


def profile_of_inks() -> bytes:
    """An ICC profile (version 2) whose table has the two ends of each ink."""
    corners = [lab_of(inks) for inks in itertools.product((0, 1), repeat=4)]
    grid = np.array([(255 * n / 100, a + 128, b + 128) for n, a, b in corners])
    ramp = bytes(range(256))
    table = b"mft1\0\0\0\0\4\3\2\0" + struct.pack(">9i", *(65536 * np.eye(3, dtype=int)).ravel())
    table += 4 * ramp + grid.round().astype(np.uint8).tobytes() + 3 * ramp
    d50 = struct.pack(">3i", 63190, 65536, 54061)
    tags = {b"wtpt": b"XYZ \0\0\0\0" + d50, b"A2B0": table + bytes(-len(table) % 4)}
    at, index = 132 + 12 * len(tags), struct.pack(">I", len(tags))
    for name, content in tags.items():
        index += struct.pack(">4sII", name, at, len(content))
        at += len(content)
    head = (
        struct.pack(">I4xI", at, 0x02400000)
        + b"prtrCMYKLab "
        + struct.pack(">6H", 2026, 1, 1, 0, 0, 0)
    )
    return head + b"acsp" + bytes(28) + d50 + bytes(48) + index + b"".join(tags.values())


def srgb_of(lab: np.ndarray) -> np.ndarray:
    """0..255. Sources: CIE 1976 L*a*b*; IEC 61966-2-1, its matrix adapted to D50 by Bradford's."""
    f = (lab[0] + 16) / 116 + np.array([lab[1] / 500, 0, -lab[2] / 200])
    xyz = np.where(f > 6 / 29, f**3, (f - 4 / 29) * 108 / 841) * [0.9642, 1, 0.8249]
    matrix = [[3.1339, -1.6169, -0.4906], [-0.9788, 1.9161, 0.0335], [0.0719, -0.2290, 1.4052]]
    light = np.clip(matrix @ xyz, 0, 1)
    return 255 * np.where(light <= 0.0031308, 12.92 * light, 1.055 * light ** (1 / 2.4) - 0.055)


@pytest.mark.parametrize("kind", ["JPEG", "TIFF"])  # of which JPEG stores inks upside down
def test_inks_become_rgb_through_their_profile(kind: str, tmp_path: Path) -> None:
    for inks in itertools.product((0, 1), repeat=4):
        image = Image.new("CMYK", (8, 8), tuple(255 * ink for ink in inks))
        image.save(tmp_path / "a", kind, icc_profile=profile_of_inks())
        picture = read(tmp_path / "a")
        expected = srgb_of(lab_of(inks))
        assert np.abs(to_array(picture)[0, 0] - expected).max() < 4, inks
        assert picture.icc is None  # which speaks of inks, and is not given to RGB


def test_inks_without_a_profile_that_can_be_used_are_taken_as_plain_ones() -> None:
    image = Image.new("CMYK", (2, 2), (255, 0, 0, 0))
    assert to_array(from_pil(image))[0, 0].tolist() == [0, 255, 255]
    for icc in (b"inks", profile(SRGB, SRGB_CURVE)):
        image.info["icc_profile"] = icc
        with pytest.warns(UserWarning, match="profile of this CMYK picture can't be used"):
            picture = from_pil(image)
        assert to_array(picture)[0, 0].tolist() == [0, 255, 255] and picture.icc is None


def test_lab_becomes_rgb() -> None:
    image = Image.new(
        "LAB", (2, 2), (round(60 * 2.55), 40 + 128, 128 - 20)
    )  # L = 60, a = 40, b = -20
    expected = srgb_of(np.array([60, 40, -20]))
    assert np.abs(to_array(from_pil(image))[0, 0] - expected).max() < 2


def test_a_profile_made_for_srgb_changes_nothing_and_one_for_gamma_follows_it() -> None:
    values = np.arange(256, dtype=np.uint8).reshape(16, 16)
    image = Image.fromarray(np.stack([values, values[::-1], values.T], -1))
    srgb = ImageCms.createProfile("sRGB")

    def shown(icc: bytes, image: Image.Image) -> np.ndarray:
        mine = ImageCms.ImageCmsProfile(io.BytesIO(icc))
        rgb = ImageCms.profileToProfile(image, mine, srgb, outputMode="RGB")
        return np.asarray(rgb).astype(int)

    assert np.abs(shown(profile(SRGB, SRGB_CURVE), image) - np.asarray(image)).max() <= 1
    # Light of 1 / 2 is the value 255 * 0.5 ** (1 / 1.8) in one and 187.5 in the other.
    half = Image.new("L", (1, 1), round(255 * 0.5 ** (1 / 1.8)))
    for grey, mode in ((True, "L"), (False, "RGB")):
        icc = profile(SRGB, (1.8, 1.0, 0.0, 0.0, 0.0), grey)
        assert np.abs(shown(icc, half.convert(mode)) - 187.5).max() < 1.5


GAMMA = (b"gAMA", struct.pack(">I", 100000))
WIDE = (b"cHRM", struct.pack(">8I", 31270, 32900, 68000, 32000, 26500, 69000, 15000, 6000))


@pytest.mark.parametrize(
    "chunks, there",
    [
        ((), False),
        ((GAMMA,), True),
        (((b"gAMA", struct.pack(">I", 45455)),), False),  # as sRGB is often called
        ((WIDE,), False),
        ((GAMMA, WIDE), True),
        ((GAMMA, (b"sRGB", b"\0")), False),
        (((b"sRGB", b"\0"), (b"cICP", b"\x0c\x0d\0\1")), True),
        (((b"cICP", b"\1\x0d\0\1"),), False),  # which is sRGB
        (((b"cICP", b"\2\2\0\1"), GAMMA), True),  # unknown code points are no word
        (((b"gAMA", b"\0\0\0\0"), WIDE), False),
        ((GAMMA, (b"cHRM", bytes(32))), False),
        ((GAMMA, (b"cHRM", b"\0\0\0\1" * 8)), False),
        (((b"cICP", b"\1"),), False),
    ],
)
@pytest.mark.parametrize("colour", [0, 2])
def test_what_a_png_says_of_its_colours_becomes_a_profile(
    chunks: tuple, there: bool, colour: int, tmp_path: Path
) -> None:
    row = bytes([0, 7]) if colour == 0 else bytes([0, 7, 8, 9])
    (tmp_path / "a.png").write_bytes(png(1, 1, 8, colour, row, *(n + c for n, c in chunks)))
    icc = read(tmp_path / "a.png").icc
    assert (icc is not None) == there
    if icc:
        space = ImageCms.ImageCmsProfile(io.BytesIO(icc)).profile.xcolor_space
        assert space.strip() == ("GRAY" if colour == 0 else "RGB")


@pytest.mark.parametrize("transfer", [16, 18])
def test_high_dynamic_range_is_kept_in_colour_and_refused_in_grey(
    transfer: int, tmp_path: Path
) -> None:
    codes = bytes([9, transfer, 0, 1])
    (tmp_path / "a.png").write_bytes(png(1, 1, 8, 2, bytes([0, 7, 8, 9]), b"cICP" + codes))
    icc = read(tmp_path / "a.png").icc
    assert icc is not None and b"cicp\0\0\0\0" + codes in icc
    (tmp_path / "a.png").write_bytes(png(1, 1, 8, 0, bytes([0, 7]), b"cICP" + codes))
    with pytest.raises(ValueError, match="PQ or HLG") as error:
        read(tmp_path / "a.png")
    assert "a.png" in one_line(error)


@pytest.mark.parametrize(("codes", "there"), [((12, 13), True), ((1, 1), False), ((2, 2), False)])
def test_what_an_avif_says_of_its_colours_becomes_a_profile(codes, there, tmp_path):
    for mode, space in (("RGB", "RGB"), ("L", "GRAY")):
        Image.new(mode, (8, 8)).save(tmp_path / "a.avif")
        head, found, rest = (tmp_path / "a.avif").read_bytes().partition(b"colrnclx")
        (tmp_path / "a.avif").write_bytes(head + found + struct.pack(">HH", *codes) + rest[4:])
        icc = read(tmp_path / "a.avif").icc
        assert (icc is not None) == there
        if icc:
            said = ImageCms.ImageCmsProfile(io.BytesIO(icc)).profile.xcolor_space
            assert said.strip() == space


# Formats that are read only -----------------------------------------------------------------------


@pytest.mark.parametrize(
    "kind, mode, kept",
    [
        ("TIFF", "RGB", "RGB"), ("TIFF", "RGBA", "RGBA"), ("TIFF", "L", "L"), ("TIFF", "1", "L"),
        ("TIFF", "I;16", "I;16"), ("BMP", "RGB", "RGB"), ("BMP", "L", "L"), ("BMP", "1", "L"),
        ("GIF", "P", "RGB"), ("GIF", "L", "RGB"), ("PNG", "LA", "LA"), ("PNG", "1", "L"),
        ("WEBP", "RGBA", "RGBA"), ("AVIF", "RGB", "RGB"), ("AVIF", "RGBA", "RGBA"),
    ],
)  # fmt: skip
def test_each_format_gives_what_it_holds(kind: str, mode: str, kept: str, tmp_path: Path) -> None:
    values = np.random.default_rng(0).integers(2**16, size=(9, 8), dtype=np.uint16)
    image = Image.fromarray(values if mode == "I;16" else (values // 256).astype(np.uint8))
    if mode != "I;16":
        image.putalpha(Image.linear_gradient("L").resize(image.size))
        image = image.convert("RGBA" if "A" in mode else "RGB").convert(mode)
    image.save(tmp_path / "a", kind, **({"lossless": True} if kind == "WEBP" else {}))
    picture = to_pil(read(tmp_path / "a"))
    assert picture.mode == kept and picture.size == (8, 9)
    if kind != "AVIF":
        assert np.array_equal(np.asarray(picture), np.asarray(image.convert(kept)))


def tiff(bits: int, samples: int, photometric: int, data: bytes, *more: tuple[int, int]) -> bytes:
    """A TIFF of one pixel, written by hand. more: (tag, value) of short numbers."""
    tags = {256: 1, 257: 1, 258: bits, 259: 1, 262: photometric, 273: 0, 277: samples, 278: 1,
            279: len(data), **dict(more)}  # fmt: skip
    at = 8 + 2 + 12 * len(tags) + 4
    tags[273] = at + 2 * samples
    body = struct.pack("<H", len(tags))
    for tag, value in sorted(tags.items()):
        count, value = (samples, at) if tag == 258 and samples > 2 else (1, value)
        body += struct.pack("<HHII", tag, 3, count, value)
    return b"II*\0\x08\0\0\0" + body + bytes(4) + struct.pack("<H", bits) * samples + data


def test_colour_stored_times_its_alpha_is_divided_by_it(tmp_path: Path) -> None:
    content = tiff(8, 4, 2, bytes([100, 50, 0, 128]), (338, 1))
    (tmp_path / "a.tif").write_bytes(content)
    assert to_array(read(tmp_path / "a.tif"))[0, 0].tolist() == [199, 99, 0, 128]


@pytest.mark.parametrize(
    "content",
    [
        tiff(16, 3, 2, bytes(6)),  # 16-bit RGB
        tiff(16, 1, 0, bytes(2)),  # 16-bit grey with 0 for white
        tiff(12, 1, 1, bytes(2)),
    ],
)
def test_a_tiff_that_would_be_cut_or_misread_is_refused(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "a.tif").write_bytes(content)
    with pytest.raises(ValueError, match="more than 8 bits") as error:
        read(tmp_path / "a.tif")
    one_line(error)
    (tmp_path / "b.tif").write_bytes(tiff(16, 1, 1, b"\1\2"))
    assert to_array(read(tmp_path / "b.tif")).tolist() == [[0x0201]]


def test_an_interlaced_png_is_read_as_any_other(tmp_path: Path) -> None:
    # Adam7 of 2 x 1 pixels: the first pass has the left one, the sixth the right one.
    content = png(2, 1, 8, 0, bytes([0, 7, 0, 9]))
    header = content[12:28] + b"\1"  # IHDR with its last byte, which says interlaced
    head = content[:12] + header + struct.pack(">I", zlib.crc32(header))
    (tmp_path / "a.png").write_bytes(head + content[33:])
    assert to_array(read(tmp_path / "a.png")).tolist() == [[7, 9]]


# Metadata -----------------------------------------------------------------------------------------

XMP = (
    '<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF><rdf:Description tiff:Orientation="6" '
    'tiff:ImageWidth="99" GCamera:MicroVideo="1" hdrgm:Version="1.0">'
    "<exif:PixelYDimension>77</exif:PixelYDimension><dc:rights>mine, &#169; 2026</dc:rights>"
    "<xmp:Thumbnails><rdf:Alt>abc</rdf:Alt></xmp:Thumbnails></rdf:Description></rdf:RDF>"
    "</x:xmpmeta>"
)


def exif_with_everything(orientation: int = 6) -> bytes:
    """EXIF as a camera writes it: orientation, sizes, copyright, place, and a thumbnail."""
    exif = Image.Exif()
    exif[274], exif[0x8298], exif[0x010E] = orientation, "mine", "a hill"
    exif[0x011A], exif[0x011B], exif[0x0128] = 300.0, 150.0, 2
    exif[256], exif[273], exif[279] = 12, 8, 99  # where pixels lie: of the old file only
    exif.get_ifd(0x8769).update({0xA002: 12, 0xA003: 8, 0x9003: "2026:11:28 10:00:00"})
    exif.get_ifd(0x8825).update({1: "N", 2: (52.0, 31.0, 12.0)})
    plain = exif.tobytes()
    # The first folder ends with the place of the next one, which has a thumbnail.
    at = 6 + 8
    end = at + 2 + 12 * struct.unpack_from("<H" if plain[6:8] == b"II" else ">H", plain, at)[0]
    order = "<" if plain[6:8] == b"II" else ">"
    place = len(plain) - 6
    thumbnail = encoded("JPEG")
    folder = struct.pack(order + "H", 2)
    folder += struct.pack(order + "HHII", 513, 4, 1, place + 2 + 24 + 4)
    folder += struct.pack(order + "HHII", 514, 4, 1, len(thumbnail)) + bytes(4)
    return plain[:end] + struct.pack(order + "I", place) + plain[end + 4 :] + folder + thumbnail


def test_the_exif_of_these_tests_has_a_thumbnail() -> None:
    exif = Image.Exif()
    exif.load(exif_with_everything())
    assert exif.get_ifd(ExifTags.IFD.IFD1)[514] == len(encoded("JPEG"))


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".webp"])
@pytest.mark.parametrize("source", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_metadata_goes_with_the_picture_and_speaks_of_it(
    source: str, suffix: str, tmp_path: Path
) -> None:
    image = Image.fromarray(np.zeros((8, 12, 3), np.uint8))
    options: dict = {"exif": exif_with_everything()}
    if source == "PNG":
        texts = PngImagePlugin.PngInfo()
        texts.add_itxt("XML:com.adobe.xmp", XMP)
        texts.add_text("Copyright", "mine")
        texts.add_itxt("Title", "\u5c71")
        texts.add_text("Raw profile type exif", "\nexif\n       4\n00000000\n")
        options |= {"pnginfo": texts, "dpi": (300, 150)}
    elif source == "JPEG":
        notice = b"\x1c\x02\x74\0\4mine"  # IPTC's copyright notice
        block = b"Photoshop 3.0\x008BIM\4\4\0\0" + struct.pack(">I", len(notice)) + notice + b"\0"
        extra = b"\xff\xed" + struct.pack(">H", len(block) + 2) + block
        options |= {"xmp": XMP.encode(), "dpi": (300, 150), "comment": b"hello", "extra": extra}
    elif source == "WEBP":
        options |= {"xmp": XMP.encode()}
    image.save(tmp_path / "a", source, **options)
    small = read(tmp_path / "a")
    large = replace(small, array=np.zeros((24, 16, small.array.shape[2]), np.uint8))
    path = tmp_path / f"b{suffix}"
    write(large, path)
    with Image.open(path) as written:
        written.load()
        assert written.size == (16, 24)
        exif, info = written.getexif(), written.info
    assert exif.get(274, 1) == 1 and exif[0x8298] == "mine" and exif[0x010E] == "a hill"
    assert not set(exif) & {256, 273, 279} and not exif.get_ifd(ExifTags.IFD.IFD1)
    details, place = exif.get_ifd(0x8769), exif.get_ifd(0x8825)
    assert (details[0xA002], details[0xA003]) == (16, 24)
    assert details[0x9003] == "2026:11:28 10:00:00" and place[2] == (52.0, 31.0, 12.0)
    assert b"JFIF" not in info["exif"]
    if source in ("JPEG", "PNG"):
        assert (exif[0x011A], exif[0x011B]) == (150, 300)  # it has been turned
        if suffix != ".webp":
            assert info["dpi"] == pytest.approx((150, 300), abs=0.02)
    if source != "TIFF":
        xmp = info["xmp"].decode()
        assert 'tiff:Orientation="1"' in xmp and 'tiff:ImageWidth="16"' in xmp
        assert "<exif:PixelYDimension>24<" in xmp and "mine, &#169; 2026" in xmp
        assert not any(word in xmp for word in ("Thumbnails", "MicroVideo", "hdrgm"))
    if (source, suffix) == ("JPEG", ".jpg"):
        assert info["comment"] == b"hello" and info["photoshop"] == {0x0404: notice}
    if suffix == ".png":
        texts = {name: text for name, text in written.text.items() if "adobe" not in name}
        wanted = {"PNG": {"Copyright": "mine", "Title": "\u5c71"}, "JPEG": {"Comment": "hello"}}
        assert texts == wanted.get(source, {})


def test_a_pil_image_keeps_its_metadata_and_its_turn(tmp_path: Path) -> None:
    image = Image.fromarray(np.zeros((8, 12, 3), np.uint8))
    image.save(tmp_path / "a.jpg", exif=exif_with_everything(), dpi=(300, 300))
    with Image.open(tmp_path / "a.jpg") as opened:
        same = to_pil(from_pil(opened))
    assert same.size == (12, 8) and same.getexif()[274] == 6 and same.info["dpi"] == (300, 300)


def test_a_picture_without_metadata_gets_none(tmp_path: Path) -> None:
    for suffix in (".png", ".jpg", ".webp"):
        write(from_array(np.zeros((8, 8, 3), np.uint8)), tmp_path / f"a{suffix}")
        assert read(tmp_path / f"a{suffix}").about in (Metadata(), Metadata(dpi=(72, 72)))
        write(read(tmp_path / f"a{suffix}"), tmp_path / f"b{suffix}")
        with Image.open(tmp_path / f"b{suffix}") as written:
            assert not written.getexif() and not {"xmp", "exif", "dpi"} & set(written.info)


@pytest.mark.parametrize("exif", [b"", b"Exif\0\0", b"Exif\0\0MM\0*\0\0\xff\xff", b"nonsense" * 9])
def test_broken_exif_is_left_out(exif: bytes, tmp_path: Path) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "a.jpg", exif=exif)
    write(read(tmp_path / "a.jpg"), tmp_path / "b.png")
    assert "exif" not in to_pil(read(tmp_path / "b.png")).info


def test_what_is_too_long_for_a_jpeg_is_left_out_there(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x010E] = "long " * 20_000
    picture = from_array(np.zeros((8, 8, 3), np.uint8))
    about = Metadata(exif=exif.tobytes(), xmp="x" * 99_999, text=(("Comment", "c" * 99_999),))
    for suffix, kept in ((".jpg", False), (".png", True)):
        write(replace(picture, about=about), tmp_path / f"a{suffix}")
        there = read(tmp_path / f"a{suffix}").about
        assert bool(there.exif) == bool(there.xmp) == bool(there.text) == kept


def test_a_text_of_many_megabytes_gives_one_line(tmp_path: Path) -> None:
    texts = PngImagePlugin.PngInfo()
    texts.add_text("bomb", "0" * 20_000_000, zip=True)
    Image.new("L", (8, 8)).save(tmp_path / "a.png", pnginfo=texts)
    with pytest.raises(ValueError, match="too large") as error:
        read(tmp_path / "a.png")
    one_line(error)


def test_webp_is_lossless_with_hidden_colours(tmp_path: Path) -> None:
    array = np.random.default_rng(0).integers(256, size=(9, 7, 4), dtype=np.uint8)
    array[:4, :, 3] = 0
    write(from_array(array), tmp_path / "a.webp")
    assert np.array_equal(to_array(read(tmp_path / "a.webp")), array)


@given(st.sampled_from([2, 4]), sizes, st.integers(0, 99))
@quick
def test_colours_that_nobody_sees_change_nothing_that_a_network_sees(
    channels: int, size: tuple[int, int], seed: int
) -> None:
    random = np.random.default_rng(seed)
    array = random.integers(256, size=(*size, channels), dtype=np.uint8)
    alpha = random.choice(np.array([0, 1, 200, 255], np.uint8), size)
    array[..., -1] = alpha
    other = array.copy()
    other[alpha == 0, :-1] = random.integers(256, dtype=np.uint8)
    if alpha.any():
        assert torch.equal(from_array(array).visible_rgb, from_array(other).visible_rgb)
    # What can be seen at all stays, and the rest lies between colours that can be seen.
    seen = torch.from_numpy(alpha > 0)
    colour, rgb = from_array(array).colour[0], from_array(array).visible_rgb[0]
    assert torch.equal(rgb[:, seen], colour.expand(3, -1, -1)[:, seen])
    if alpha.any():
        visible = colour[:, seen]
        assert rgb.max() <= visible.max() + 1e-6 and rgb.min() >= visible.min() - 1e-6


@pytest.mark.parametrize("channels, levels", [(1, 255), (1, 65535), (2, 255), (3, 255), (4, 255)])
def test_an_enlarged_picture_is_of_the_same_kind(channels: int, levels: int) -> None:
    dtype = np.uint16 if levels > 255 else np.uint8
    array = np.full((4, 5, channels), levels, dtype).squeeze()
    small = from_array(array, icc=b"a profile")
    large = replace(small, array=small.enlarged_rows(torch.ones(1, 3, 12, 15), 0, 3))
    assert to_array(large).shape[:2] == (12, 15) and to_array(large).dtype == dtype
    assert to_pil(large).mode == to_pil(small).mode
    assert (to_array(large) == levels).all() and large.icc == b"a profile"
    for sr, first in ((torch.ones(1, 3, 8, 10), 0), (torch.ones(1, 3, 6, 15), 7)):
        with pytest.raises(ValueError, match=r"\(1, 3, 12, 15\)"):
            small.enlarged_rows(sr, first, 3)


@given(st.sampled_from([2, 4]), sizes, st.sampled_from([2, 3, 4]), st.data())
@quick
def test_rows_of_a_picture_are_those_of_the_whole(
    channels: int, size: tuple[int, int], scale: int, data: st.DataObject
) -> None:
    random = np.random.default_rng(size[0])
    array = random.integers(256, size=(*size, channels), dtype=np.uint8)
    array[..., -1] = random.choice(np.array([0, 0, 0, 1, 255], np.uint8), size)
    array[size[0] // 4 :, size[1] // 4 :, -1] = 0  # a gap of more than one pixel
    picture = from_array(array)
    top = data.draw(st.integers(0, size[0] - 1))
    bottom = data.draw(st.integers(top + 1, size[0]))
    assert torch.equal(picture.visible_rows()(top, bottom), picture.visible_rgb[:, :, top:bottom])
    sr = torch.rand(1, 3, scale * size[0], scale * size[1])
    whole = picture.enlarged_rows(sr, 0, scale)
    part = slice(scale * top, scale * bottom - 1)
    assert np.array_equal(picture.enlarged_rows(sr[:, :, part], part.start, scale), whole[part])
    alpha = imresize(picture.alpha, scale).clamp(0, 1)
    assert np.array_equal(whole[..., -1], to_uint8(alpha)[0, 0].numpy())


def test_the_luma_of_equal_channels_is_that_value() -> None:
    grey = from_array(np.zeros((1, 256), np.uint8))
    ramp = (torch.arange(256) / 255).view(1, 1, 1, 256)
    sr = ramp.expand(1, 3, 1, 256)
    assert grey.enlarged_rows(sr, 0, 1)[..., 0].tolist() == [list(range(256))]


@pytest.mark.parametrize(
    "array, error, part",
    [
        (np.zeros((4, 4), np.uint8), ValueError, "(4, 4)"),
        (np.zeros((4, 4, 5), np.uint8), ValueError, "(4, 4, 5)"),
        (np.zeros((4, 4, 3), np.uint16), ValueError, "16 bits"),
        (np.zeros((4, 4, 3), np.float32), TypeError, "float32"),
    ],
)
def test_an_array_that_no_file_holds_is_refused(
    array: np.ndarray, error: type[Exception], part: str
) -> None:
    with pytest.raises(error) as told:
        Picture(array)
    assert part in one_line(told)


def decoded(file: bytes) -> tuple:
    """All that Pillow tells of a PNG."""
    with Image.open(io.BytesIO(file)) as image:
        array = np.asarray(image)
        return image.mode, array.tolist(), dict(image.info), image.getexif().tobytes()


@given(
    st.sampled_from([(np.uint8, 1), (np.uint8, 2), (np.uint8, 3), (np.uint8, 4), (np.uint16, 1)]),
    sizes,
    st.integers(1, 9),
    st.integers(0, 99),
)
@quick
def test_a_png_in_rows_is_the_one_that_pillow_writes(
    kind: tuple[type, int], size: tuple[int, int], rows: int, seed: int
) -> None:
    dtype, channels = kind
    random = np.random.default_rng(seed)
    array = random.integers(np.iinfo(dtype).max, size=(*size, channels), dtype=dtype)
    exif = Image.Exif()
    exif[315] = "somebody"
    texts = PngImagePlugin.PngInfo()
    texts.add_itxt("Title", "a text")
    options = {"icc_profile": b"a profile", "dpi": (300, 72), "exif": exif, "pnginfo": texts}
    ours, theirs = io.BytesIO(), io.BytesIO()
    parts = [array[top : top + rows] for top in range(0, size[0], rows)]
    png_rows.write(ours, parts, *size, options)
    to_pil(Picture(array)).save(theirs, "PNG", **options)
    assert decoded(ours.getvalue()) == decoded(theirs.getvalue())


def test_a_png_in_rows_is_as_small_as_the_one_that_pillow_writes() -> None:
    array = to_array(photo())
    ours, theirs = io.BytesIO(), io.BytesIO()
    png_rows.write(ours, [array], *array.shape[:2])
    to_pil(photo()).save(theirs, "PNG")
    assert ours.tell() < 1.01 * theirs.tell()


def test_a_png_that_lacks_rows_is_no_png() -> None:
    for rows in (7, 9):
        with pytest.raises(ValueError, match=f"{rows} rows .* has 8"):
            png_rows.write(io.BytesIO(), [np.zeros((rows, 4, 3), np.uint8)], 8, 4)


# Hostile files ------------------------------------------------------------------------------------


def png(width: int, height: int, depth: int, colour: int, data: bytes, *more: bytes) -> bytes:
    """A PNG written by hand: `data` is the content of IDAT before compression."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        checksum = zlib.crc32(kind + content)
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", checksum)

    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    body = chunk(b"IHDR", header) + b"".join(chunk(c[:4], c[4:]) for c in more)
    return b"\x89PNG\r\n\x1a\n" + body + chunk(b"IDAT", zlib.compress(data)) + chunk(b"IEND", b"")


def encoded(kind: str) -> bytes:
    random = np.random.default_rng(0)
    image = Image.fromarray(random.integers(256, size=(24, 24, 3), dtype=np.uint8))
    file = io.BytesIO()
    image.save(file, kind)
    return file.getvalue()


def animation(kind: str) -> bytes:
    file = io.BytesIO()
    frames = [Image.new("RGB", (8, 8), (60 * i, 9, 9)) for i in range(3)]
    frames[0].save(file, kind, save_all=True, append_images=frames[1:])
    return file.getvalue()


@pytest.mark.parametrize(
    "content, part",
    [
        (b"hello, this is no picture", "none of these formats"),
        (b"", "none of these formats"),
        (encoded("JPEG")[:300], "not a readable"),
        (encoded("JPEG")[:-200], "truncated"),
        (encoded("PNG")[:600], "truncated"),
        (encoded("WEBP")[:300], "not a readable"),
        (encoded("AVIF")[:-200], "not a readable"),
        (encoded("PPM"), "none of these formats"),
        (animation("GIF"), "animated (3 frames)"),
        (animation("TIFF"), "animated (3 frames)"),
        (animation("PNG"), "animated (3 frames)"),
        (animation("WEBP"), "animated (3 frames)"),
        (png(30000, 30000, 8, 2, b""), str(MAX_PIXELS)),
        (png(12000, 12000, 8, 2, b""), "12000 x 12000"),
        (png(1, 1, 16, 2, b"\0" + b"\1" * 6), "16-bit"),
        (png(1, 1, 16, 6, b"\0" + b"\1" * 8), "16-bit"),
        (png(1, 1, 16, 4, b"\0" + b"\1" * 4), "16-bit"),
        (png(1, 1, 16, 0, b"\0" + b"\1" * 2, b"tRNS\1\1"), "transparent value"),
        (png(0, 1, 8, 0, b"\0"), ""),
    ],
)
@pytest.mark.parametrize("name", ["a.png", "a.jpg"])  # the content counts, not the name
def test_a_hostile_file_gives_one_clear_line(
    content: bytes, part: str, name: str, tmp_path: Path
) -> None:
    (tmp_path / name).write_bytes(content)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(ValueError) as error:
            read(tmp_path / name)
    message = one_line(error)
    assert str(tmp_path / name) in message and part in message


def test_a_missing_file_and_a_folder_give_one_clear_line(tmp_path: Path) -> None:
    for path, part in (
        (tmp_path / "no.png", "does not exist"),
        (tmp_path, "is a folder"),
        (tmp_path / ("a" * 300), "cannot be read"),
    ):
        with pytest.raises(ValueError, match=part) as error:
            read(path)
        one_line(error)


def test_the_first_picture_of_a_camera_jpeg_with_several_is_read(tmp_path: Path) -> None:
    first, second = Image.new("RGB", (16, 16), (200, 0, 0)), Image.new("RGB", (8, 8))
    first.save(tmp_path / "a.jpg", "MPO", save_all=True, append_images=[second])
    assert read(tmp_path / "a.jpg").colour.shape == (1, 3, 16, 16)


@given(
    st.sampled_from(["PNG", "JPEG", "WEBP", "TIFF", "BMP", "GIF", "AVIF"]),
    st.lists(st.tuples(st.integers(0, 2000), st.integers(0, 255)), min_size=1, max_size=4),
    st.integers(0, 2000) | st.none(),
)
@settings(deadline=None, max_examples=200)
def test_damage_gives_a_picture_or_one_line(
    tmp_path_factory: pytest.TempPathFactory,
    kind: str,
    changes: list[tuple[int, int]],
    end: int | None,
) -> None:
    content = bytearray(encoded(kind)[:end])
    for at, value in changes:
        if at < len(content):
            content[at] = value
    path = tmp_path_factory.getbasetemp() / "damaged"
    path.write_bytes(content)
    try:
        picture = read(path)
    except ValueError as error:
        assert "\n" not in str(error) and str(path) in str(error)
    else:
        assert torch.isfinite(picture.colour).all()


# Writing ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "array, name, part",
    [
        (np.zeros((4, 4, 3), np.uint8), "a.tiff", "'.tiff'"),
        (np.zeros((4, 4, 3), np.uint8), "a", "''"),
        (np.zeros((4, 4, 4), np.uint8), "a.jpg", "transparency"),
        (np.zeros((4, 4), np.uint16), "a.webp", "16"),
        (np.zeros((4, 4), np.uint16), "a.jpg", "16"),
        (np.zeros((1, 65501), np.uint8), "a.jpg", "65501"),
        (np.zeros((16384, 1), np.uint8), "a.webp", "16384"),
        (np.zeros((4, 4, 3), np.uint8), "missing/a.png", "missing/a.png"),
    ],
)
def test_what_cannot_be_written_gives_one_line_and_no_file(
    array: np.ndarray, name: str, part: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError) as error:
        write(from_array(array), tmp_path / name)
    assert part in one_line(error)
    assert list(tmp_path.iterdir()) == []


def test_an_alpha_that_hides_nothing_is_left_out_where_there_is_none(tmp_path: Path) -> None:
    array = np.random.default_rng(0).integers(256, size=(8, 8, 4), dtype=np.uint8)
    array[..., 3] = 255
    write(from_array(array), tmp_path / "a.jpg")
    assert read(tmp_path / "a.jpg").alpha is None
    array[3, 3, 3] = 254
    with pytest.raises(ValueError, match="transparency"):
        write(from_array(array), tmp_path / "b.jpg")


def test_grey_with_a_profile_is_not_written_where_grey_is_stored_as_rgb(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="profile"):
        write(from_array(np.zeros((4, 4), np.uint8), icc=b"gamma"), tmp_path / "a.webp")


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="needs a folder closed even to root")
def test_a_read_only_folder_gives_one_line() -> None:
    with pytest.raises(ValueError, match="/proc/a.png") as error:
        write(from_array(np.zeros((4, 4), np.uint8)), "/proc/a.png")
    one_line(error)


def test_nothing_is_overwritten_unless_asked(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    black, white = from_array(np.zeros((4, 4), np.uint8)), from_array(np.full((4, 4), 9, np.uint8))
    write(black, path)
    with pytest.raises(ValueError, match="exists") as error:
        write(white, path)
    one_line(error)
    assert to_array(read(path)).max() == 0
    write(white, path, overwrite=True)
    assert to_array(read(path)).max() == 9
    assert list(tmp_path.iterdir()) == [path]


def test_a_full_disk_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    write(from_array(np.zeros((4, 4), np.uint8)), path)
    before = path.read_bytes()
    # A limit on the size of files makes the write itself fail, as a full disk does.
    program = f"""
import resource, signal, numpy as np
from qsr.images.picture import from_array
from qsr.images.writing import write
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, ({len(before)}, {resource.RLIM_INFINITY}))
noise = np.random.default_rng(0).integers(256, size=(99, 99, 3), dtype=np.uint8)
try:
    write(from_array(noise), {str(path)!r}, overwrite=True)
except ValueError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("\n") == 1 and str(path) in done.stdout
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]
