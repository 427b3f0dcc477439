"""Pictures into files: whole or not at all, row by row where the format allows.

Whether a format can hold a picture is known before the work of enlarging it, as are the bytes that
its encoder needs: PNG is written as its rows come, JPEG and WebP are encoded whole.
"""

from __future__ import annotations

import io
import os
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from PIL import Image

from ..system.files import replacing
from . import png
from .formats import ENCODER_BYTES, FORMATS
from .picture import Picture

LONGEST_SIDE = {"PNG": 2**31 - 1, "JPEG": 65500, "WEBP": 16383}  # pixels, of the encoders


def write(picture: Picture, path: str | os.PathLike, *, overwrite: bool = False) -> None:
    """Write a picture as PNG, JPEG (quality 95, full colour resolution) or WebP (lossless).

    The file appears whole or not at all. Raises ValueError (one line) for an unknown suffix, an
    existing file unless `overwrite`, transparency or 16 bits in a format that has neither (an alpha
    that is 1 throughout is left out), or a folder that can't be written to.
    """
    write_rows([picture.array], path, picture, overwrite=overwrite)


def write_rows(
    rows: Iterable[np.ndarray],
    path: str | os.PathLike,
    picture: Picture,
    scale: int = 1,
    *,
    overwrite: bool = False,
) -> None:
    """`write` the picture that `picture` becomes when it is `scale` times as large, as it comes.

    rows: [rows, scale W, C], from the top to the bottom, see `Picture.enlarged_rows`. PNG is
    written row by row. JPEG and WebP are encoded whole, for which `encoder_bytes` are needed.
    """
    path = Path(path)
    kind = check_format(picture, path, scale)
    if kind == "JPEG" and picture.transparent:
        rows = (part[..., :-1] for part in rows)
    kinds: dict[str, dict[str, object]] = {
        "PNG": {},
        "JPEG": {"quality": 95, "subsampling": 0},
        "WEBP": {"lossless": True, "exact": True},
    }
    options = kinds[kind]
    if picture.icc is not None:
        options["icc_profile"] = picture.icc
    height, width = (scale * n for n in picture.size)
    options |= picture.about.of_size(width, height).options(kind)
    with replacing(path, overwrite=overwrite) as temporary, temporary.open("wb") as file:
        if kind == "PNG":
            png.write(file, rows, height, width, options)
        else:
            # Encoded in memory, so that an error while writing is the disk's and is told as such.
            encoded = io.BytesIO()
            _collected(rows, height, width).save(encoded, format=kind, **options)
            file.write(encoded.getbuffer())


def encoder_bytes(picture: Picture, path: str | os.PathLike, scale: int = 1) -> int:
    """Bytes that `write_rows` needs: those of formats that are encoded whole."""
    height, width = picture.size
    return ENCODER_BYTES[check_format(picture, path, scale)] * scale**2 * height * width


def check_format(picture: Picture, path: str | os.PathLike, scale: int = 1) -> str:
    """The format that `path` is written in, if it can hold `picture` enlarged `scale` times.

    Raises ValueError (one line) if it can't: so this is known before the work of enlarging.
    """
    path = Path(path)
    kind = FORMATS.get(path.suffix.lower())
    if kind is None:
        raise ValueError(
            f"{path} has the suffix {path.suffix!r}; pictures are written as "
            f"{', '.join(FORMATS)}. Choose one of these."
        )
    if lost := _lost(picture, kind, scale):
        raise ValueError(f"{path}: {kind} {lost}; write a .png.")
    return kind


def to_pil(picture: Picture) -> Image.Image:
    """The PIL image of a picture: mode L, LA, RGB, RGBA, or I;16 for 16-bit grey.

    Profile, resolution, EXIF and XMP are in its `info`, where Pillow puts them when it opens a
    file.
    """
    image = _image(picture.array)
    about = picture.about.of_size(*image.size)
    xmp = about.xmp and about.xmp.encode()
    info = {"icc_profile": picture.icc, "dpi": about.dpi, "exif": about.exif, "xmp": xmp}
    image.info.update({name: value for name, value in info.items() if value is not None})
    return image


def _collected(rows: Iterable[np.ndarray], height: int, width: int) -> Image.Image:
    image, top = None, 0
    for part in rows:
        strip = _image(part)
        image = Image.new(strip.mode, (width, height)) if image is None else image
        image.paste(strip, (0, top))
        top += strip.height
    assert image is not None and top == height
    return image


def _image(array: np.ndarray) -> Image.Image:
    return Image.fromarray(np.ascontiguousarray(array[..., 0] if array.shape[2] == 1 else array))


def _lost(picture: Picture, kind: str, scale: int) -> str | None:
    """Why a format can't hold a picture, or None."""
    longest = scale * max(picture.size)
    if kind == "JPEG" and not picture.opaque:
        return "has no transparency and this picture has"
    if kind != "PNG" and picture.levels > 255:
        return "has 8 bits and this picture has 16"
    if kind == "WEBP" and picture.grey and picture.icc is not None:
        return "stores grey as RGB, to which this picture's colour profile does not apply"
    if longest > LONGEST_SIDE[kind]:
        return f"ends at {LONGEST_SIDE[kind]} pixels a side and this picture has {longest}"
    return None
