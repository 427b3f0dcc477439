"""What the numbers in a file mean as colours.

Every format that qsr writes can carry an ICC profile, so this is how a `Picture` says it: values
stay as they are, and the profile goes with them. PNG has three other ways of saying it, and AVIF
one, which no format knows that is written from them (`png_profile` and `avif_profile` make a
profile of them). Where the numbers are no RGB, but inks or Lab, nothing but converting them helps
(`srgb_conversion`).
"""

from __future__ import annotations

import io
import struct
import warnings
from collections.abc import Callable, Iterator
from typing import IO

import numpy as np
from PIL import Image, ImageCms

from ..system.errors import first_line

# Chromaticities x, y of white, red, green and blue, by their number in ITU-T H.273, table 2.
D65 = (0.3127, 0.3290)
SRGB = (*D65, 0.64, 0.33, 0.30, 0.60, 0.15, 0.06)
SMPTE170 = (*D65, 0.630, 0.340, 0.310, 0.595, 0.155, 0.070)
PRIMARIES = {
    1: SRGB,
    5: (*D65, 0.64, 0.33, 0.29, 0.60, 0.15, 0.06),
    6: SMPTE170,
    7: SMPTE170,
    9: (*D65, 0.708, 0.292, 0.170, 0.797, 0.131, 0.046),
    11: (0.314, 0.351, 0.680, 0.320, 0.265, 0.690, 0.150, 0.060),
    12: (*D65, 0.680, 0.320, 0.265, 0.690, 0.150, 0.060),
}
# Light of a value v: (a v + b)^g from d on, c v below, as (g, a, b, c, d); by number, table 3.
SRGB_CURVE = (2.4, 1 / 1.055, 0.055 / 1.055, 1 / 12.92, 0.04045)
BT1886_CURVE = (2.4, 1.0, 0.0, 0.0, 0.0)  # of the screens for which BT.709 to BT.2020 are made
CURVES = {
    **dict.fromkeys((1, 6, 14, 15), BT1886_CURVE),
    4: (2.2, 1.0, 0.0, 0.0, 0.0),
    5: (2.8, 1.0, 0.0, 0.0, 0.0),
    8: (1.0, 1.0, 0.0, 0.0, 0.0),
    13: SRGB_CURVE,
    # PQ and HLG have no such form; programs that can show them read the tag `cicp` instead.
    16: SRGB_CURVE,
    18: SRGB_CURVE,
}
HDR = (16, 18)


def png_profile(file: IO[bytes]) -> bytes | None:
    """The ICC profile that says what the chunks cICP, or gAMA and cHRM, of a PNG say, or None.

    None too if an iCCP or sRGB chunk goes before them, or they say no more than sRGB. cHRM without
    gAMA means nothing, as in Chromium. Raises ValueError for grey in PQ or HLG.
    Source: PNG specification (W3C, third edition), section 4.3.
    """
    chunks = dict(_chunks(file))
    grey = chunks.get(b"IHDR", b"")[9:10] in (b"\0", b"\4")
    codes = chunks.get(b"cICP", b"")
    if len(codes) == 4 and codes[0] in PRIMARIES and codes[1] in CURVES and codes[2:] == b"\0\1":
        return _profile_of_codes(codes[0], codes[1], grey)
    if b"iCCP" in chunks or b"sRGB" in chunks or len(chunks.get(b"gAMA", b"")) != 4:
        return None
    (gamma,) = struct.unpack(">I", chunks[b"gAMA"])
    primaries = SRGB
    if len(chunks.get(b"cHRM", b"")) == 32:
        primaries = tuple(n / 1e5 for n in struct.unpack(">8I", chunks[b"cHRM"]))
    elif gamma == 45455:
        return None  # what sRGB is called where only a number fits
    try:
        return profile(primaries, (1e5 / gamma, 1.0, 0.0, 0.0, 0.0), grey)
    except (ZeroDivisionError, np.linalg.LinAlgError, struct.error):
        return None  # these numbers are no colours


def avif_profile(header: bytes, grey: bool) -> bytes | None:
    """The ICC profile that says what the code points of an AVIF say, by its first bytes, or None.

    None too without them, or if they say no more than sRGB. What they say of luma is undone by the
    decoder. Raises ValueError for grey in PQ or HLG. Source: ISO/IEC 14496-12, 12.1.5.
    """
    at = header.find(b"colrnclx")
    primaries, curve = struct.unpack(">HH", (header[at + 8 : at + 12] + bytes(4))[:4])
    if at < 0 or primaries not in PRIMARIES or curve not in CURVES:
        return None
    if CURVES[curve] is BT1886_CURVE:
        curve = 13  # the curves of cameras: here, other than in PNG, Chromium shows them as sRGB
    return _profile_of_codes(primaries, curve, grey)


def _profile_of_codes(primaries: int, curve: int, grey: bool) -> bytes | None:
    """The profile of code points of ITU-T H.273; None for those of sRGB."""
    if grey and curve in HDR:
        raise ValueError(
            "the picture is grey in PQ or HLG (its code points, CICP), which no profile of grey "
            "can say; convert it to RGB, or to sRGB, first."
        )
    if (primaries, curve) == (1, 13):
        return None
    cicp = bytes([primaries, curve, 0, 1]) if curve in HDR else None
    return profile(PRIMARIES[primaries], CURVES[curve], grey, cicp)


def profile(
    primaries: tuple[float, ...],
    curve: tuple[float, ...],
    grey: bool = False,
    cicp: bytes | None = None,
) -> bytes:
    """An ICC profile of three primaries, or of grey, and one curve. Source: ICC.1:2022.

    primaries: x, y of white, red, green, blue. curve: (g, a, b, c, d) as in CURVES. cicp: the code
    points to put beside them. Raises LinAlgError, ZeroDivisionError or struct.error for numbers
    that are no colours.
    """
    white, *colours = (
        np.array([x / y, 1, (1 - x - y) / y])
        for x, y in zip(primaries[::2], primaries[1::2], strict=True)
    )
    d50 = np.array([0.9642, 1, 0.8249])
    # Profiles speak of colours under D50: Bradford's cones adapt to it.
    cones = np.array(
        [[0.8951, 0.2664, -0.1614], [-0.7502, 1.7135, 0.0367], [0.0389, -0.0685, 1.0296]]
    )
    adapt = np.linalg.inv(cones) @ np.diag((cones @ d50) / (cones @ white)) @ cones
    mix = np.stack(colours, 1)
    mix = adapt @ mix * np.linalg.solve(mix, white)
    tags = {
        b"desc": _text("qsr: as the PNG said"),
        b"cprt": _text("no copyright"),
        b"wtpt": b"XYZ \0\0\0\0" + _fixed(*d50),
        b"chad": b"sf32\0\0\0\0" + _fixed(*adapt.ravel()),
    }
    light = b"para\0\0\0\0\0\3\0\0" + _fixed(*curve)
    if grey:
        tags[b"kTRC"] = light
    else:
        for letter, column in zip((b"r", b"g", b"b"), mix.T, strict=True):
            tags[letter + b"XYZ"] = b"XYZ \0\0\0\0" + _fixed(*column)
            tags[letter + b"TRC"] = light
        if cicp:
            tags[b"cicp"] = b"cicp\0\0\0\0" + cicp
    start, table, data = 132 + 12 * len(tags), b"", b""
    for name, content in tags.items():
        table += struct.pack(">4sII", name, start + len(data), len(content))
        data += content + bytes(-len(content) % 4)
    return (
        struct.pack(">I4xI", start + len(data), 0x04400000)
        + b"mntr" + (b"GRAY" if grey else b"RGB ") + b"XYZ "
        + struct.pack(">6H", 2026, 1, 1, 0, 0, 0) + b"acsp" + bytes(28)
        + _fixed(*d50) + bytes(48) + struct.pack(">I", len(tags)) + table + data
    )  # fmt: skip


def srgb_conversion(image: Image.Image) -> Callable[[Image.Image], Image.Image]:
    """What makes RGB of an image, CMYK or Lab, or of a part of it.

    CMYK goes through its profile if it has one that can be used. Without, ink by ink, as browsers
    do; a profile that is damaged or not of inks is told by a warning.
    """
    icc = image.info.get("icc_profile")
    if icc and image.mode == "CMYK":
        try:
            # Paper to white and full ink to black, as programs for pictures do. (Browsers are no
            # judges of it: Chromium loses the black ink.)
            transform = ImageCms.buildTransform(
                ImageCms.ImageCmsProfile(io.BytesIO(icc)),
                ImageCms.createProfile("sRGB"),
                "CMYK",
                "RGB",
                renderingIntent=ImageCms.Intent.RELATIVE_COLORIMETRIC,
                flags=ImageCms.Flags.BLACKPOINTCOMPENSATION,
            )
            return transform.apply
        except (ImageCms.PyCMSError, OSError, ValueError) as error:
            warnings.warn(
                f"the profile of this CMYK picture can't be used ({first_line(error)}), so its "
                "inks are taken as plain ones; convert it to RGB where the profile is known.",
                stacklevel=2,
            )
    return lambda part: part.convert("RGB")


def _chunks(file: IO[bytes]) -> Iterator[tuple[bytes, bytes]]:
    """(name, content) of the small chunks of a PNG before its pixels; of other files nothing."""
    if file.read(8) != b"\x89PNG\r\n\x1a\n":
        return
    while len(head := file.read(8)) == 8 and head[4:] not in (b"IDAT", b"IEND"):
        length = struct.unpack(">I", head[:4])[0]
        yield head[4:], file.read(min(length, 32))
        file.seek(max(0, length - 32) + 4, io.SEEK_CUR)


def _fixed(*numbers: float) -> bytes:
    """s15Fixed16 numbers."""
    return struct.pack(f">{len(numbers)}i", *(round(n * 65536) for n in numbers))


def _text(line: str) -> bytes:
    """A multiLocalizedUnicode of one language."""
    text = line.encode("utf-16-be")
    return b"mluc\0\0\0\0" + struct.pack(">II4sII", 1, 12, b"enUS", len(text), 28) + text
