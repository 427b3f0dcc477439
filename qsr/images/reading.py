"""Pictures out of files: whatever Pillow opens and we can keep, or one line that says why not.

A file is a stranger's. Its header is read before anything is decoded: how many pixels it claims,
whether Pillow would cut its bits, whether there is more than one picture in it. Damage, of which
Pillow has a dozen kinds of error, becomes one.
"""

from __future__ import annotations

import contextlib
import os
import struct
import warnings
import zlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import IO, Protocol

import numpy as np
from PIL import Image, TiffImagePlugin

from ..system.errors import first_line
from . import metadata
from .colour import avif_profile, png_profile, srgb_conversion
from .formats import DECODER_BYTES
from .picture import BAND, Picture

READABLE = ("PNG", "JPEG", "WEBP", "TIFF", "BMP", "GIF", "AVIF")
MAX_PIXELS = 2**27  # 134 megapixels; a header that claims more is refused before decoding

# What Pillow raises on damaged files, besides ValueError (which a block of text too large makes).
_DAMAGE: tuple[type[Exception], ...] = (
    *(OSError, SyntaxError, EOFError, ValueError, struct.error, zlib.error),
    *(RuntimeError, LookupError, ArithmeticError, TypeError),
)
_TOO_LARGE = f"claims more than {MAX_PIXELS} pixels, the limit; crop or reduce it first."


class PictureFile(Protocol):
    """What else can be read: anything that opens as a Path does, and whose str() names it."""

    def open(self, mode: str) -> IO[bytes]: ...


def read(path: str | os.PathLike | PictureFile) -> Picture:
    """Read a PNG, JPEG or WebP file, or a TIFF, BMP, GIF or AVIF file.

    Grey PNG and TIFF keep 16 bits. EXIF rotation is applied. What PNG and AVIF say of their colours
    without a profile becomes one. Of the several pictures that some cameras put into one JPEG, the
    first, which every viewer shows, is read.
    Raises ValueError (one line) for anything that is no such picture, is damaged, has more than
    MAX_PIXELS pixels, is animated or has pages, and for more than 8 bits with colour or
    transparency: Pillow would silently cut them to 8.
    """
    with _opened(path) as image:
        try:
            picture = from_pil(image)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error
    return replace(picture.turned(picture.about.orientation), about=picture.about.upright())


def size(path: str | os.PathLike | PictureFile) -> tuple[int, int]:
    """(height, width) as stored, from the header: nothing is decoded. Errors as `read`."""
    with _opened(path) as image:
        return image.height, image.width


def check_decoder(path: str | os.PathLike | PictureFile, memory: float) -> None:
    """Raise ValueError if `memory` (GB) does not hold what the decoder needs beside the picture."""
    with _opened(path) as image:
        needed = DECODER_BYTES.get(image.format or "", 10) * image.height * image.width / 1e9
        if needed > memory:
            raise ValueError(
                f"{path} is {image.width} x {image.height} pixels of {image.format}, which "
                f"need {needed:.3g} GB to decode, and `memory` is {memory:g} GB. Allow more."
            )


def from_pil(image: Image.Image) -> Picture:
    """A PIL image of any common mode: palette, bilevel, CMYK and so on become grey or RGB.

    CMYK goes through its profile. Otherwise the image is taken as it is: no EXIF rotation, of an
    animation the current frame, and of a 16-bit colour PNG the 8 bits that Pillow has made of it
    (`read` looks after these). What Pillow does not tell of an open PNG is lost: its chunk cICP,
    and, once it is decoded, that a transparent value has 2 or 4 bits.
    Raises ValueError for 32-bit modes, whose range of values is not known, for 16 bits with a
    transparent value, for a damaged picture that was not decoded yet, and for one without pixels.
    """
    if 0 in image.size:
        raise ValueError(f"the picture is {image.width} x {image.height} pixels, so there is none.")
    icc = image.info.get("icc_profile")
    transparent = image.has_transparency_data
    if transparent and (tile := getattr(image, "tile", None)) and tile[0][3] in ("L;2", "L;4"):
        # Of a PNG, Pillow spreads 2 and 4 bits over 0..255, but not the value that is transparent.
        largest = 3 if tile[0][3] == "L;2" else 15
        image.info["transparency"] = (image.info["transparency"] & largest) * 255 // largest
    about = metadata.of(_decoded(image))
    if image.mode.startswith("I;16"):
        if transparent:
            raise ValueError(
                "the picture is 16-bit grey with a transparent value, which can't be kept; "
                "convert it to 8 bits, or remove the transparency, first."
            )
        return Picture(np.asarray(image, dtype=np.uint16)[..., None], icc, about)
    if image.mode in ("I", "F"):
        raise ValueError(
            f"the picture has mode {image.mode!r} (32 bits), whose range of values is not known; "
            "convert it to 8-bit or 16-bit grey."
        )
    convert = None
    if image.mode in ("CMYK", "LAB"):
        convert = srgb_conversion(image)
        icc = None  # that profile speaks of inks or of Lab, not of RGB
    grey = image.mode in ("1", "L", "LA", "La")
    mode = ("LA" if grey else "RGBA") if transparent else ("L" if grey else "RGB")
    array = np.empty((image.height, image.width, len(mode)), np.uint8)
    step = max(1, BAND // image.width)
    for top in range(0, image.height, step):
        part = image.crop((0, top, image.width, min(image.height, top + step)))
        part = convert(part) if convert else part
        array[top : top + step] = np.asarray(part.convert(mode)).reshape(-1, *array.shape[1:])
    return Picture(array, icc, about)


@contextlib.contextmanager
def _opened(path: str | os.PathLike | PictureFile) -> Iterator[Image.Image]:
    """The picture before it is decoded. Errors as `read`."""
    path = Path(path) if isinstance(path, (str, os.PathLike)) else path
    with contextlib.ExitStack() as stack:
        try:
            file = stack.enter_context(path.open("rb"))
            header = file.read(4096)
            file.seek(0)
            said = png_profile(file)
            file.seek(0)
        except FileNotFoundError:
            raise ValueError(f"{path} does not exist; name a PNG, JPEG or WebP picture.") from None
        except IsADirectoryError:
            raise ValueError(f"{path} is a folder; name a picture in it.") from None
        except OSError as error:
            raise ValueError(f"{path} cannot be read: {error.strerror}; check the file.") from error
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error
        with warnings.catch_warnings():
            # Pillow warns from 89 megapixels on and refuses from twice that on; our limit is
            # between.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            try:
                image = Image.open(file, formats=READABLE)
                frames = getattr(image, "n_frames", 1)  # only some kinds of PIL image have it
                cut = _is_cut(header, image)
            except Image.DecompressionBombError:
                raise ValueError(f"{path} {_TOO_LARGE}") from None
            except _DAMAGE as error:
                raise _unreadable(path, error) from error
        if image.width * image.height > MAX_PIXELS:
            raise ValueError(f"{path} ({image.width} x {image.height}) {_TOO_LARGE}")
        if cut:
            raise ValueError(
                f"{path} has more than 8 bits and is not plain 16-bit grey, so it would be cut to "
                "8; convert it to 8 bits, or to 16-bit grey, first."
            )
        if frames > 1 and image.format != "MPO":
            raise ValueError(
                f"{path} is animated ({frames} frames); qsr takes still pictures. "
                "Extract the frames first."
            )
        if image.format == "AVIF" and not image.info.get("icc_profile"):
            try:
                said = avif_profile(header, image.mode == "L")
            except ValueError as error:
                raise ValueError(f"{path}: {error}") from error
        if said is not None:
            image.info["icc_profile"] = said
        stack.callback(image.close)  # and what it has decoded is freed
        yield image


def _decoded(image: Image.Image) -> Image.Image:
    """Pillow opens lazily: decode now, so that damage shows here and as one kind of error."""
    try:
        image.load()
    except _DAMAGE as error:
        raise _unreadable("the picture", error) from error
    return image


def _unreadable(what: object, error: Exception) -> ValueError:
    reason = first_line(error)
    if isinstance(error, Image.UnidentifiedImageError):
        reason = "its content is none of these formats"
    return ValueError(f"{what} is not a readable picture ({reason}); check or re-export it.")


def _is_cut(header: bytes, image: Image.Image) -> bool:
    """Whether Pillow's image has not all that the file has, by the file's first bytes.

    Of PNG, byte 24 is the depth and byte 25 the colour type, 0 for plain grey; of AVIF, the third
    byte of `av1C` has a bit for more than 8 bits; TIFF of 12 bits, or with 0 for white in 16 bits,
    is not stretched or turned. Sources: PNG specification (W3C), 11.2.2; AV1 in ISO BMFF, 2.3.3;
    TIFF 6.0.
    """
    if image.format == "PNG":
        return header[24] == 16 and header[25] != 0
    if image.format == "AVIF":
        at = header.find(b"av1C")
        return at > 0 and (header[at:] + bytes(7))[6] & 0x40 > 0
    if isinstance(image, TiffImagePlugin.TiffImageFile):
        bits = max(image.tag_v2.get(258, (1,)))
        plain = image.mode.startswith("I;16") and bits == 16 and image.tag_v2.get(262) == 1
        return bits > 8 and image.mode not in ("I", "F") and not plain
    return False
