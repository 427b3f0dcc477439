"""Pictures: files to tensors and back, luma and borders.

Everywhere in qsr a picture is a float tensor of RGB values in [0, 1], shape [N, 3, H, W], unless a
docstring says uint8. A file holds more than that: transparency, one channel instead of three,
16 bits, a colour profile (`colour`), and what is said about it (`metadata`). `Picture` keeps these
beside the values, so that what goes in as a transparent grey PNG of 300 dpi also comes out as one.
"""

from __future__ import annotations

import contextlib
import io
import os
import struct
import warnings
import zlib
from collections.abc import Iterator
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
from . import metadata
from .colour import png_profile, to_srgb
from .metadata import Metadata
from .resize import imresize

FORMATS = {
    ".png": "PNG",
    ".webp": "WEBP",
    **dict.fromkeys((".jpg", ".jpeg", ".jpe", ".jfif"), "JPEG"),
}
READABLE = ("PNG", "JPEG", "WEBP", "TIFF", "BMP", "GIF", "AVIF")
MAX_PIXELS = 2**27  # 134 megapixels; a header that claims more is refused before decoding
LONGEST_SIDE = {"PNG": 2**31 - 1, "JPEG": 65500, "WEBP": 16383}  # pixels, of the encoders

# Files --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Picture:
    """A decoded picture.

    colour: float [1, 3, H, W] in [0, 1], or [1, 1, H, W] for grey.
    alpha: float [1, 1, H, W] in [0, 1], or None. levels: 255 or 65535, the largest stored value;
    65535 (16 bits) only for grey without alpha, since Pillow stores nothing else in 16 bits.
    icc: the colour profile's bytes, or None. about: resolution, EXIF, XMP, texts.
    Raises ValueError if a field breaks its rule, TypeError if the values are not floating point.
    """

    colour: Tensor
    alpha: Tensor | None = None
    levels: int = 255
    icc: bytes | None = None
    about: Metadata = Metadata()

    def __post_init__(self) -> None:
        check_pictures(self.colour, "colour", channels=(1, 3))
        if self.colour.shape[0] != 1:
            raise ValueError(f"`colour` holds {self.colour.shape[0]} pictures; a Picture is one.")
        if self.alpha is not None:
            check_pictures(self.alpha, "alpha", channels=(1,))
            if self.alpha.shape[-2:] != self.colour.shape[-2:]:
                raise ValueError(
                    f"`alpha` is {_size(self.alpha)} pixels and `colour` {_size(self.colour)}; "
                    "make both of one size."
                )
        if self.levels not in (255, 65535):
            raise ValueError(f"`levels` is {self.levels}; it is 255 (8 bits) or 65535 (16 bits).")
        if self.levels == 65535 and not (self.grey and self.alpha is None):
            raise ValueError(
                "`levels` is 65535 for a picture with colour or alpha; 16 bits are kept for plain "
                "grey only. Use levels=255."
            )

    @property
    def grey(self) -> bool:
        return self.colour.shape[1] == 1

    @property
    def rgb(self) -> Tensor:
        """float [1, 3, H, W], as stored; grey is repeated."""
        return self.colour.expand(-1, 3, -1, -1)

    @property
    def visible_rgb(self) -> Tensor:
        """float [1, 3, H, W]: what a network takes to enlarge the picture.

        Pixels with alpha 0 have a colour in the file, often black, that nobody sees. A network
        would draw it into its neighbours, as a dark rim, so they get the colours around them.
        """
        colour = self.colour if self.alpha is None else _spread(self.colour, self.alpha)
        return colour.expand(-1, 3, -1, -1)

    @property
    def opaque(self) -> bool:
        """Whether nothing shines through, as stored: without alpha, or with alpha 1 throughout."""
        return self.alpha is None or bool((to_uint8(self.alpha) == 255).all())

    def turned(self, orientation: int) -> Picture:
        """The picture as EXIF says to show it: 5 to 8 mirror it in its diagonal, as 1 does not;
        then 2 and 6 swap left and right, 4 and 8 top and bottom, 3 and 7 both.

        Source: EXIF 2.32, tag 274. Any other number means 1, as in every viewer.
        """
        if orientation not in range(2, 9):
            return self
        flips = ((), (-1,), (-2, -1), (-2,))[(orientation - 1) % 4]

        def turn(x: Tensor) -> Tensor:
            return (x.mT if orientation > 4 else x).flip(flips).contiguous()

        alpha = None if self.alpha is None else turn(self.alpha)
        return replace(self, colour=turn(self.colour), alpha=alpha)

    def enlarged(self, sr: Tensor, scale: int) -> Picture:
        """The picture of the same kind whose colours are sr [1, 3, scale H, scale W].

        Grey becomes the luma of sr; transparency is enlarged by bicubic interpolation.
        Raises ValueError if sr has another shape.
        """
        expected = (1, 3, *(scale * n for n in self.colour.shape[-2:]))
        if tuple(sr.shape) != expected:
            raise ValueError(f"`sr` has shape {tuple(sr.shape)}; this picture needs {expected}.")
        luma = torch.tensor([0.299, 0.587, 0.114], dtype=sr.dtype, device=sr.device)
        colour = (sr * luma.view(1, 3, 1, 1)).sum(1, keepdim=True) if self.grey else sr
        alpha = None if self.alpha is None else imresize(self.alpha, scale).clamp(0, 1)
        return replace(self, colour=colour.clamp(0, 1).cpu(), alpha=alpha)


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
        yield image


def write(picture: Picture, path: str | os.PathLike, *, overwrite: bool = False) -> None:
    """Write a picture as PNG, JPEG (quality 95, full colour resolution) or WebP (lossless).

    The file appears whole or not at all. Raises ValueError (one line) for an unknown suffix, an
    existing file unless `overwrite`, transparency or 16 bits in a format that has neither (an alpha
    that is 1 throughout is left out), or a folder that can't be written to.
    """
    path = Path(path)
    kind = check_format(picture, path)
    if kind == "JPEG":
        picture = replace(picture, alpha=None)
    kinds: dict[str, dict[str, object]] = {
        "PNG": {},
        "JPEG": {"quality": 95, "subsampling": 0},
        "WEBP": {"lossless": True, "exact": True},
    }
    options = kinds[kind]
    if picture.icc is not None:
        options["icc_profile"] = picture.icc
    image = to_pil(picture)
    options |= picture.about.of_size(*image.size).options(kind)
    # Encoded in memory, so that an error while writing is the disk's and is told as such.
    encoded = io.BytesIO()
    image.save(encoded, format=kind, **options)
    with replacing(path, overwrite=overwrite) as temporary:
        temporary.write_bytes(encoded.getbuffer())


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
        return replace(from_array(np.asarray(image, dtype=np.uint16), icc), about=about)
    if image.mode in ("I", "F"):
        raise ValueError(
            f"the picture has mode {image.mode!r} (32 bits), whose range of values is not known; "
            "convert it to 8-bit or 16-bit grey."
        )
    if image.mode in ("CMYK", "LAB"):
        image = to_srgb(image)
        icc = None  # that profile speaks of inks or of Lab, not of RGB
    grey = image.mode in ("1", "L", "LA", "La")
    mode = ("LA" if grey else "RGBA") if transparent else ("L" if grey else "RGB")
    return replace(from_array(np.array(image.convert(mode)), icc), about=about)


def to_pil(picture: Picture) -> Image.Image:
    """The PIL image of a picture: mode L, LA, RGB, RGBA, or I;16 for 16-bit grey.

    Values are rounded half to even. Profile, resolution, EXIF and XMP are in its `info`, where
    Pillow puts them when it opens a file.
    """
    image = Image.fromarray(to_array(picture))
    about = picture.about.of_size(*image.size)
    xmp = about.xmp and about.xmp.encode()
    info = {"icc_profile": picture.icc, "dpi": about.dpi, "exif": about.exif, "xmp": xmp}
    image.info.update({name: value for name, value in info.items() if value is not None})
    return image


def from_array(array: np.ndarray, icc: bytes | None = None) -> Picture:
    """An array [H, W] (grey) or [H, W, C], C = 1, 2 (grey, alpha), 3 (RGB) or 4 (RGB, alpha).

    uint8, or uint16 for plain grey, or floating point in [0, 1] (stored with 8 bits when written).
    Raises ValueError for other shapes, TypeError for other types.
    """
    planes = array[..., None] if array.ndim == 2 else array
    if planes.ndim != 3 or planes.shape[2] not in (1, 2, 3, 4):
        raise ValueError(
            f"the array has shape {array.shape}; pictures are [H, W] or [H, W, C] with 1 to 4 "
            "channels. Rearrange it."
        )
    if not (array.dtype in (np.uint8, np.uint16) or np.issubdtype(array.dtype, np.floating)):
        raise TypeError(
            f"the array holds {array.dtype}; pictures are uint8, uint16 or floating point in "
            "[0, 1]. Convert it."
        )
    levels = 65535 if array.dtype == np.uint16 else 255
    values = torch.from_numpy(planes.astype(np.float32)).permute(2, 0, 1)[None].contiguous()
    if not np.issubdtype(array.dtype, np.floating):
        values.div_(levels)
    if planes.shape[2] % 2 == 0:
        return Picture(values[:, :-1], values[:, -1:], levels, icc)
    return Picture(values, None, levels, icc)


def to_array(picture: Picture) -> np.ndarray:
    """uint8 or uint16 [H, W] for grey, [H, W, C] for the rest; rounded half to even."""
    planes = picture.colour
    if picture.alpha is not None:
        planes = torch.cat([planes, picture.alpha.to(planes)], dim=1)
    values = planes[0].mul(picture.levels).round().clamp(0, picture.levels)
    array = values.permute(1, 2, 0).squeeze(-1).cpu().numpy()
    return array.astype(np.uint16 if picture.levels > 255 else np.uint8)


def _spread(colour: Tensor, alpha: Tensor) -> Tensor:
    """colour [1, C, H, W] where alpha [1, 1, H, W] is above 0, and elsewhere the colours around.

    These come from the picture at half the size, each of its pixels the mean of four weighted by
    their alpha, whose own gaps are filled in the same way.
    """
    seen = alpha > 0
    if seen.all() or alpha.numel() == 1:
        return colour
    weight = functional.avg_pool2d(alpha, 2, ceil_mode=True)
    mean = functional.avg_pool2d(colour * alpha, 2, ceil_mode=True) / weight.clamp(min=1e-30)
    around = functional.interpolate(_spread(mean, weight), scale_factor=2, mode="bilinear")
    height, width = colour.shape[-2:]
    return torch.where(seen, colour, around[..., :height, :width])


def _lost(picture: Picture, kind: str, scale: int) -> str | None:
    """Why a format can't hold a picture, or None."""
    longest = scale * max(picture.colour.shape[-2:])
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
