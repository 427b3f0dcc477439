"""Pictures: files to tensors and back, luma and borders.

Everywhere in qsr a picture is a float tensor of RGB values in [0, 1], shape [N, 3, H, W], unless a
docstring says uint8. A file holds more than that: transparency, one channel instead of three,
16 bits, a colour profile (`colour`), and what is said about it (`metadata`). `Picture` keeps these
beside the values, so that what goes in as a transparent grey PNG of 300 dpi also comes out as one.

A large picture is never a float tensor as a whole, which would be 12 bytes a pixel: a `Picture` has
the integers of the file, makes floats of some rows when asked, and is written as its rows come.
"""

from __future__ import annotations

import contextlib
import functools
import io
import os
import struct
import warnings
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Protocol

import numpy as np
import torch
from PIL import Image, TiffImagePlugin
from torch import Tensor
from torch.nn import functional

from ..system.errors import first_line
from ..system.files import replacing
from . import metadata, png
from .colour import png_profile, srgb_conversion
from .formats import DECODER_BYTES, ENCODER_BYTES, FORMATS
from .metadata import Metadata
from .resize import imresize_rows

READABLE = ("PNG", "JPEG", "WEBP", "TIFF", "BMP", "GIF", "AVIF")
MAX_PIXELS = 2**27  # 134 megapixels; a header that claims more is refused before decoding
BAND = 2**18  # pixels that are converted at once
LONGEST_SIDE = {"PNG": 2**31 - 1, "JPEG": 65500, "WEBP": 16383}  # pixels, of the encoders

# Files --------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Picture:
    """A decoded picture.

    array: uint8 [H, W, C] as stored, C = 1 (grey), 2 (grey, alpha), 3 (RGB) or 4 (RGB, alpha); or
    uint16 for grey without alpha, since Pillow stores nothing else in 16 bits.
    icc: the colour profile's bytes, or None. about: resolution, EXIF, XMP, texts.
    Raises ValueError or TypeError if the array is another one.
    """

    array: np.ndarray
    icc: bytes | None = None
    about: Metadata = Metadata()

    def __post_init__(self) -> None:
        shape, dtype = self.array.shape, self.array.dtype
        if len(shape) != 3 or 0 in shape or shape[2] > 4:
            raise ValueError(
                f"the array has shape {shape}; pictures are [H, W] or [H, W, C] with 1 to 4 "
                "channels, none of them 0. Rearrange it."
            )
        if dtype not in (np.uint8, np.uint16):
            raise TypeError(f"the array holds {dtype}; stored pictures are uint8 or uint16.")
        if dtype == np.uint16 and shape[2] > 1:
            raise ValueError(
                "the array is uint16 with colour or alpha; 16 bits are kept for plain grey only. "
                "Make it uint8."
            )

    @property
    def size(self) -> tuple[int, int]:
        """(height, width)."""
        return self.array.shape[0], self.array.shape[1]

    @property
    def levels(self) -> int:
        """The largest value that can be stored, 255 or 65535."""
        return int(np.iinfo(self.array.dtype).max)

    @property
    def grey(self) -> bool:
        return self.array.shape[2] < 3

    @property
    def transparent(self) -> bool:
        """Whether there is an alpha."""
        return self.array.shape[2] % 2 == 0

    @property
    def opaque(self) -> bool:
        """Whether nothing shines through: without alpha, or with alpha 1 throughout."""
        return not self.transparent or bool(self.array[..., -1].min() == 255)

    @property
    def colour(self) -> Tensor:
        """float [1, 3, H, W] in [0, 1], or [1, 1, H, W] for grey, as stored."""
        return self._floats(0, self.size[0])[0]

    @property
    def alpha(self) -> Tensor | None:
        """float [1, 1, H, W] in [0, 1], or None."""
        return self._floats(0, self.size[0])[1]

    @property
    def rgb(self) -> Tensor:
        """float [1, 3, H, W], as stored; grey is repeated."""
        return self.colour.expand(-1, 3, -1, -1)

    @property
    def visible_rgb(self) -> Tensor:
        """float [1, 3, H, W]: all rows of `visible_rows`."""
        return self.visible_rows()(0, self.size[0])

    @property
    def gap_bytes(self) -> int:
        """Bytes that the first of `visible_rows` take: none without pixels of alpha 0."""
        height, width, channels = self.array.shape
        if not self.transparent or self.array[..., -1].min() > 0:
            return 0
        return (4 * channels + 2) * height * width

    def visible_rows(self) -> Callable[[int, int], Tensor]:
        """part(top, bottom) -> float [1, 3, bottom - top, W]: what a network takes of these rows.

        Pixels with alpha 0 have a colour in the file, often black, that nobody sees. A network
        would draw it into its neighbours, as a dark rim, so they get the colours around them.
        """
        around = functools.cache(self._around)

        def part(top: int, bottom: int) -> Tensor:
            colour, alpha = self._floats(top, bottom)
            if alpha is not None and (half := around()) is not None:
                colour = torch.where(alpha > 0, colour, _doubled(half, top, bottom, colour))
            return colour.expand(-1, 3, -1, -1)

        return part

    def turned(self, orientation: int) -> Picture:
        """The picture as EXIF says to show it: 5 to 8 mirror it in its diagonal, as 1 does not;
        then 2 and 6 swap left and right, 4 and 8 top and bottom, 3 and 7 both. No pixel is copied.

        Source: EXIF 2.32, tag 274. Any other number means 1, as in every viewer.
        """
        if orientation not in range(2, 9):
            return self
        array = self.array.swapaxes(0, 1) if orientation > 4 else self.array
        flips = ((), (1,), (0, 1), (0,))[(orientation - 1) % 4]
        return replace(self, array=np.flip(array, flips))

    def enlarged_rows(self, sr: Tensor, first: int, scale: int) -> np.ndarray:
        """What is stored, [rows, scale W, C], of the rows from `first` on of the picture `scale`
        times as large, if sr [1, 3, rows, scale W] are their colours.

        Grey becomes the luma of sr; transparency is enlarged by bicubic interpolation. Values are
        rounded half to even. Raises ValueError if sr has another shape.
        """
        height, width = self.size
        rows = sr.shape[2]
        if sr.shape != (1, 3, rows, scale * width) or not 0 <= first <= scale * height - rows:
            raise ValueError(
                f"`sr` has shape {tuple(sr.shape)} from row {first} on; this picture becomes "
                f"{(1, 3, scale * height, scale * width)}."
            )
        planes = sr.float().clamp(0, 1)
        if self.grey:
            luma = sr.new_tensor([0.299, 0.587, 0.114], dtype=torch.float32)
            planes = (planes * luma.view(1, 3, 1, 1)).sum(1, keepdim=True).clamp(0, 1)
        planes = planes.cpu()
        if self.transparent:

            def alpha(top: int, bottom: int) -> Tensor:
                return _plane(self.array[top:bottom, :, -1:], 255)

            wide = imresize_rows(alpha, height, scale, first, first + rows).clamp(0, 1)
            planes = torch.cat([planes, wide], dim=1)
        values = planes[0].mul_(self.levels).round_().permute(1, 2, 0).numpy()
        return values.astype(self.array.dtype, order="C")

    def _floats(self, top: int, bottom: int) -> tuple[Tensor, Tensor | None]:
        """(colour, alpha) of some rows."""
        values = _plane(self.array[top:bottom], self.levels)
        return (values[:, :-1], values[:, -1:]) if self.transparent else (values, None)

    def _around(self) -> Tensor | None:
        """The picture at half the size, without gaps; None where the picture itself has none."""
        if self.gap_bytes == 0 or self.array.shape[:2] == (1, 1):
            return None
        height, width, channels = self.array.shape
        mean = torch.empty(1, channels - 1, -(-height // 2), -(-width // 2), dtype=torch.float32)
        weight = torch.empty_like(mean[:, :1])
        step = max(2, BAND // width // 2 * 2)
        for top in range(0, height, step):
            colour, alpha = self._floats(top, min(height, top + step))
            assert alpha is not None
            half = slice(top // 2, top // 2 + -(-colour.shape[2] // 2))
            mean[:, :, half], weight[:, :, half] = _halved(colour, alpha)
        return _spread(mean, weight)


class PictureFile(Protocol):
    """What else can be read: anything that opens as a Path does, and whose str() names it."""

    def open(self, mode: str) -> IO[bytes]: ...


def read(path: str | os.PathLike | PictureFile) -> Picture:
    """Read a PNG, JPEG or WebP file, or a TIFF, BMP, GIF or AVIF file.

    Grey PNG and TIFF keep 16 bits. EXIF rotation is applied. What PNG says of its colours without a
    profile becomes one. Of the several pictures that some cameras put into one JPEG, the first,
    which every viewer shows, is read.
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
        if said is not None:
            image.info["icc_profile"] = said
        stack.callback(image.close)  # and what it has decoded is freed
        yield image


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


def _collected(rows: Iterable[np.ndarray], height: int, width: int) -> Image.Image:
    image, top = None, 0
    for part in rows:
        strip = _image(part)
        image = Image.new(strip.mode, (width, height)) if image is None else image
        image.paste(strip, (0, top))
        top += strip.height
    assert image is not None and top == height
    return image


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


def from_pil(image: Image.Image) -> Picture:
    """A PIL image of any common mode: palette, bilevel, CMYK and so on become grey or RGB.

    CMYK goes through its profile. Otherwise the image is taken as it is: no EXIF rotation, of an
    animation the current frame, and of a 16-bit colour PNG the 8 bits that Pillow has made of it
    (`read` looks after these). What Pillow does not tell of an open PNG is lost: its chunk cICP,
    and, once it is decoded, that a transparent value has 2 or 4 bits.
    Raises ValueError for 32-bit modes, whose range of values is not known, for 16 bits with a
    transparent value, for a damaged picture that was not decoded yet, and for one without pixels.
    """
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


def from_array(array: np.ndarray, icc: bytes | None = None) -> Picture:
    """An array [H, W] (grey) or [H, W, C], C = 1, 2 (grey, alpha), 3 (RGB) or 4 (RGB, alpha).

    uint8, or uint16 for plain grey, or floating point in [0, 1], which becomes uint8, clipped and
    rounded half to even. Raises ValueError for other shapes, and for values that are no finite
    numbers; TypeError for other types.
    """
    planes = array[..., None] if array.ndim == 2 else array
    if not (array.dtype in (np.uint8, np.uint16) or np.issubdtype(array.dtype, np.floating)):
        raise TypeError(
            f"the array holds {array.dtype}; pictures are uint8, uint16 or floating point in "
            "[0, 1]. Convert it."
        )
    if np.issubdtype(array.dtype, np.floating):
        if not np.isfinite(array).all():
            raise ValueError(
                "the array has values that are no finite numbers (NaN or infinity); check where it "
                "comes from."
            )
        planes = to_uint8(torch.from_numpy(planes.astype(np.float32))).numpy()
    return Picture(planes, icc)


def to_array(picture: Picture) -> np.ndarray:
    """uint8 or uint16 [H, W] for grey, [H, W, C] for the rest."""
    array = picture.array
    return array[..., 0] if array.shape[2] == 1 else array


def _image(array: np.ndarray) -> Image.Image:
    return Image.fromarray(np.ascontiguousarray(array[..., 0] if array.shape[2] == 1 else array))


def _plane(array: np.ndarray, levels: int) -> Tensor:
    """Stored [H, W, C] -> float32 [1, C, H, W] in [0, 1]."""
    values = torch.from_numpy(array.astype(np.float32, order="C"))
    return values.permute(2, 0, 1)[None].contiguous().div_(levels)


def _spread(colour: Tensor, alpha: Tensor) -> Tensor:
    """colour [1, C, H, W] where alpha [1, 1, H, W] is above 0, and elsewhere the colours around.

    These come from the picture at half the size, whose own gaps are filled in the same way.
    """
    seen = alpha > 0
    if seen.all() or alpha.numel() == 1:
        return colour
    around = _spread(*_halved(colour, alpha))
    return torch.where(seen, colour, _doubled(around, 0, colour.shape[2], colour))


def _halved(colour: Tensor, alpha: Tensor) -> tuple[Tensor, Tensor]:
    """(colour, alpha) at half the size: each pixel the mean of four, weighted by their alpha."""
    weight = functional.avg_pool2d(alpha, 2, ceil_mode=True)
    mean = functional.avg_pool2d(colour * alpha, 2, ceil_mode=True)
    return mean.div_(weight.clamp(min=1e-30)), weight


def _doubled(half: Tensor, top: int, bottom: int, like: Tensor) -> Tensor:
    """Rows [top, bottom) of the picture of `half` at twice the size, cut to the width of `like`."""
    first = max(0, top // 2 - 1)  # a row more at either end, of which a row at the border is made
    rows = half[:, :, first : (bottom + 1) // 2 + 1]
    wide = functional.interpolate(rows, scale_factor=2, mode="bilinear")
    return wide[:, :, top - 2 * first : bottom - 2 * first, : like.shape[3]]


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


# What Pillow raises on damaged files, besides ValueError (which a block of text too large makes).
_DAMAGE: tuple[type[Exception], ...] = (
    *(OSError, SyntaxError, EOFError, ValueError, struct.error, zlib.error),
    *(RuntimeError, LookupError, ArithmeticError, TypeError),
)
_TOO_LARGE = f"claims more than {MAX_PIXELS} pixels, the limit; crop or reduce it first."


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


def _size(x: Tensor) -> str:
    return f"{x.shape[-2]} x {x.shape[-1]}"


# Tensors ------------------------------------------------------------------------------------------


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
            f"`crop` is {crop} and the picture {_size(x)}; "
            "at least one pixel must be left. Use a smaller crop."
        )
    return x[..., crop : height - crop, crop : width - crop]


# MATLAB's bicubic ---------------------------------------------------------------------------------
