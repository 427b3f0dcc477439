"""Colours as a viewer sees them: Chromium shows a picture, and the same picture enlarged by qsr.

The enlarged one is shown at its own size and its pixels averaged in squares, so that the two can be
compared. What a profile or a chunk of PNG does to colours is tens of levels; what is left when it
is kept are the network's own details. Chromium of the system, as in `test_browser.py`.
"""

import base64
import io
import struct
import zlib
from collections.abc import Callable, Iterator

import numpy as np
import pytest
from PIL import Image, ImageCms
from playwright.sync_api import sync_playwright
from test_browser import CHROMIUM, FLAGS

from qsr.images.colour import PRIMARIES, SRGB, SRGB_CURVE, profile
from qsr.images.reading import read
from qsr.images.writing import write
from qsr.infer import upscale_picture
from qsr.models import zoo

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="no chromium; Debian: apt-get install chromium"),
]
SCALE = 2
TYPES = {".png": "image/png", ".jpg": "image/jpeg", ".webp": "image/webp"}
AVIF = {".avif": "image/avif"}  # read only


@pytest.fixture(scope="module")
def shown() -> Iterator[Callable[[bytes, str], np.ndarray]]:
    """shown(file, suffix): the pixels of a picture on Chromium's white page, 0..255."""
    with sync_playwright() as playwright:
        flags = (*FLAGS, "--force-color-profile=srgb")
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=flags)
        page = browser.new_page(viewport={"width": 400, "height": 400})

        def show(file: bytes, suffix: str) -> np.ndarray:
            data = f"data:{(TYPES | AVIF)[suffix]};base64,{base64.b64encode(file).decode()}"
            page.set_content(f'<body style="margin:0"><img style="display:block" src="{data}">')
            page.wait_for_function("document.images[0].complete")
            pixels = page.locator("img").screenshot()
            return np.asarray(Image.open(io.BytesIO(pixels)).convert("RGB")).astype(float)

        yield show
        browser.close()


@pytest.fixture(scope="module")
def model():
    return zoo.load("quantsr-c-x2-w4a4")


def scene(mode: str) -> Image.Image:
    """All pairs of red and green with blue between, 64 x 64; for alpha, a slope from the left."""
    ramp = np.linspace(0, 255, 64).astype(np.uint8)
    red, green = np.meshgrid(ramp, ramp)
    image = Image.fromarray(np.stack([red, green, red // 2 + green // 2], -1))
    if "A" in mode:
        image.putalpha(Image.fromarray(255 - red))
    return image.convert(mode)


def encoded(image: Image.Image, kind: str, *chunks: tuple[bytes, bytes], **options) -> bytes:
    """A file of a format; chunks: (name, content) put first into a PNG."""
    file = io.BytesIO()
    image.save(file, kind, **options)
    more = b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        for name, data in chunks
    )
    content = file.getvalue()
    return content[:33] + more + content[33:] if chunks else content


def coded(mode: str, primaries: int, curve: int) -> tuple[str, bytes]:
    """An AVIF with other code points of colour."""
    content = encoded(scene(mode), "AVIF", quality=95)
    head, found, rest = content.partition(b"colrnclx")
    return ".avif", head + found + bytes([0, primaries, 0, curve]) + rest[4:]


def gamma(number: float) -> tuple[bytes, bytes]:
    return b"gAMA", struct.pack(">I", round(1e5 / number))


WIDE = (b"cHRM", struct.pack(">8I", 31270, 32900, 68000, 32000, 26500, 69000, 15000, 6000))
P3 = profile(PRIMARIES[12], SRGB_CURVE)
CASES = {
    "plain": [],
    "gAMA 1.0": [gamma(1)],
    "gAMA 1.8": [gamma(1.8)],
    "gAMA 2.2": [gamma(2.2)],
    "cHRM": [WIDE],
    "cHRM and gAMA": [WIDE, gamma(1.8)],
    "sRGB before gAMA": [gamma(1), (b"sRGB", b"\0")],
    "cICP P3": [(b"cICP", bytes([12, 13, 0, 1]))],
    "cICP BT.2020": [(b"cICP", bytes([9, 14, 0, 1]))],
    "cICP BT.709": [(b"cICP", bytes([1, 1, 0, 1]))],
    "cICP PQ": [(b"cICP", bytes([9, 16, 0, 1]))],
    "cICP HLG": [(b"cICP", bytes([9, 18, 0, 1]))],
}
FILES = {  # name: (suffix, content)
    f"{name} {mode}": (".png", encoded(scene(mode), "PNG", *chunks))
    for name, chunks in CASES.items()
    for mode in ("RGB", "L")
    if not (mode == "L" and name.endswith(("PQ", "HLG")))
} | {
    "P3 PNG": (".png", encoded(scene("RGB"), "PNG", icc_profile=P3)),
    "P3 JPEG": (".jpg", encoded(scene("RGB"), "JPEG", icc_profile=P3, quality=95)),
    "P3 WebP": (".webp", encoded(scene("RGB"), "WEBP", icc_profile=P3, lossless=True)),
    "grey profile": (
        ".png",
        encoded(scene("L"), "PNG", icc_profile=profile(SRGB, (1.8, 1, 0, 0, 0), grey=True)),
    ),
    "broken profile": (".png", encoded(scene("RGB"), "PNG", icc_profile=b"nothing at all")),
    "palette": (".png", encoded(scene("RGB").quantize(64), "PNG", gamma(1.8))),
    "RGBA": (".png", encoded(scene("RGBA"), "PNG", gamma(1.8))),
    "LA": (".png", encoded(scene("LA"), "PNG", gamma(1.8))),
    "AVIF P3": coded("RGB", 12, 13),
    "AVIF P3 RGBA": coded("RGBA", 12, 13),
    "AVIF BT.2020": coded("RGB", 9, 14),
    "AVIF BT.709": coded("RGB", 1, 1),
    "AVIF BT.709 L": coded("L", 1, 1),
    "AVIF BT.601": coded("RGB", 6, 6),
    "AVIF PQ": coded("RGB", 9, 16),
    "AVIF unspecified": coded("RGB", 2, 2),
    "AVIF linear": coded("RGB", 1, 8),
    "CMYK without profile": (".jpg", encoded(scene("RGB").convert("CMYK"), "JPEG", quality=95)),
}


@pytest.mark.parametrize("name", FILES)
def test_an_enlarged_picture_is_shown_in_the_colours_of_the_small_one(name, model, shown, tmp_path):
    suffix, content = FILES[name]
    (tmp_path / f"in{suffix}").write_bytes(content)
    before = shown(content, suffix)
    small = read(tmp_path / f"in{suffix}")
    large = upscale_picture(small, model)
    for out in TYPES:
        transparent = not large.opaque and out == ".jpg"
        profile_of_grey = large.grey and large.icc is not None and out == ".webp"
        if transparent or profile_of_grey:  # which are refused: tests/test_image.py
            continue
        write(large, tmp_path / f"out{out}", overwrite=True)
        after = shown((tmp_path / f"out{out}").read_bytes(), out)
        squares = after.reshape(64, SCALE, 64, SCALE, 3).mean((1, 3))
        assert np.abs(squares - before).mean() < 5, out


def test_the_chunks_of_these_tests_change_what_is_shown(shown):
    plain = shown(encoded(scene("RGB"), "PNG"), ".png")
    for name in ("gAMA 1.8", "cHRM and gAMA", "cICP P3", "cICP BT.2020", "cICP PQ", "cICP HLG"):
        other = shown(FILES[f"{name} RGB"][1], ".png")
        assert np.abs(other - plain).mean() > 5, name


def test_the_profile_of_chromiums_srgb_is_ours():
    mine = ImageCms.ImageCmsProfile(io.BytesIO(profile(SRGB, SRGB_CURVE))).profile
    theirs = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).profile
    for colour in ("red_colorant", "green_colorant", "blue_colorant"):
        assert getattr(mine, colour)[0] == pytest.approx(getattr(theirs, colour)[0], abs=2e-3)
