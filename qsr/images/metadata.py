"""What a file says about a picture besides its pixels: resolution, EXIF, XMP, texts, copyright.

It goes with the picture into the new file as far as the format there holds it. Three things must
not go along as they are, because they speak of the old pixels: how to turn them (they are upright
now), how many they are, and a small copy of them (the thumbnail). What can't be read is left out,
as it is by viewers: a broken block of EXIF is no reason to refuse a picture.
"""

from __future__ import annotations

import contextlib
import re
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, replace

from PIL import ExifTags, Image, PngImagePlugin

IPTC = 0x0404  # the block of Adobe's list that holds caption and copyright
LONGEST = 65_000  # bytes; a JPEG segment ends at 65,533, its name included
# Tags of EXIF's first folder that say where and how pixels lie in a TIFF file.
# Source: TIFF 6.0; XMP, IPTC, Adobe's list and the profile are kept, or not, on their own.
LAYOUT = (
    *(254, 255, 256, 257, 258, 259, 262, 263, 266, 273, 277, 278, 279, 280, 281, 284, 292, 293),
    *(297, 301, 317, 318, 319, 320, 321, 322, 323, 324, 325, 330, 332, 334, 336, 338, 339, 340),
    *(341, 347, 512, 513, 514, 515, 519, 520, 521, 529, 530, 531, 532, 700, 33723, 34377, 34675),
)
# XMP, as attribute or element; the prefixes are those that every writer uses.
XMP_SIZES = (r"tiff:ImageWidth|exif:PixelXDimension", r"tiff:ImageLength|exif:PixelYDimension")
# Attributes that point to a second picture or film in the old file, which the new one has not.
XMP_PARTS = re.compile(r"""\s(?:hdrgm|GCamera):\w+\s*=\s*(?:"[^"<]*"|'[^'<]*')""")


@dataclass(frozen=True)
class Metadata:
    """dpi: (across, down). exif: as Pillow's `Exif.tobytes` gives it, without thumbnail. xmp: the
    packet. text: (keyword, text) of PNG; a comment of JPEG or GIF is ("Comment", text).
    iptc: caption, author and copyright as JPEG holds them.
    """

    dpi: tuple[float, float] | None = None
    exif: bytes | None = None
    xmp: str | None = None
    text: tuple[tuple[str, str], ...] = ()
    iptc: bytes | None = None

    @property
    def orientation(self) -> int:
        """How viewers turn the picture: 1 is not at all, others see `Picture.turned`."""
        return _parsed(self.exif).get(ExifTags.Base.Orientation, 1)

    def upright(self) -> Metadata:
        """The same of a picture that has been turned as `orientation` says."""
        exif, dpi = _parsed(self.exif), self.dpi
        if exif.get(ExifTags.Base.Orientation, 1) in (5, 6, 7, 8):
            dpi = dpi and dpi[::-1]
            across, down = ExifTags.Base.XResolution, ExifTags.Base.YResolution
            if across in exif and down in exif:
                exif[across], exif[down] = exif[down], exif[across]
        if ExifTags.Base.Orientation in exif:
            exif[ExifTags.Base.Orientation] = 1
        xmp = self.xmp and _with_number(self.xmp, "tiff:Orientation", 1)
        return replace(self, dpi=dpi, exif=_stored(exif), xmp=xmp)

    def of_size(self, width: int, height: int) -> Metadata:
        """The same of a picture of width x height pixels: only where sizes are named at all."""
        exif, xmp = _parsed(self.exif), self.xmp
        details = exif.get_ifd(ExifTags.IFD.Exif) if ExifTags.IFD.Exif in exif else {}
        for tag, value in (
            (ExifTags.Base.ExifImageWidth, width),
            (ExifTags.Base.ExifImageHeight, height),
        ):
            if tag in details:
                details[tag] = value
        if xmp:
            for names, value in zip(XMP_SIZES, (width, height), strict=True):
                xmp = _with_number(xmp, names, value)
        return replace(self, exif=_stored(exif), xmp=xmp)

    def options(self, kind: str) -> dict[str, object]:
        """What Pillow's `save` takes for a format: all that this format holds."""
        options: dict[str, object] = {}
        if self.dpi and kind != "WEBP":
            options["dpi"] = self.dpi
        if self.exif and (kind != "JPEG" or len(self.exif) <= LONGEST):
            options["exif"] = self.exif
        xmp = (self.xmp or "").encode()
        if kind == "PNG":
            options["pnginfo"] = self._chunks()
        elif xmp and (kind != "JPEG" or len(xmp) <= LONGEST):
            options["xmp"] = xmp
        if kind == "JPEG":
            comment = dict(self.text).get("Comment", "").encode()
            if 0 < len(comment) <= LONGEST:
                options["comment"] = comment
            if self.iptc and len(self.iptc) <= LONGEST:
                block = b"Photoshop 3.0\0" + b"8BIM" + IPTC.to_bytes(2) + b"\0\0"
                block += len(self.iptc).to_bytes(4) + self.iptc + bytes(len(self.iptc) % 2)
                options["extra"] = b"\xff\xed" + (len(block) + 2).to_bytes(2) + block
        return options

    def _chunks(self) -> PngImagePlugin.PngInfo:
        chunks = PngImagePlugin.PngInfo()
        for keyword, text in self.text:
            chunks.add_text(keyword, text, zip=len(text) > 1000)
        if self.xmp:
            chunks.add_itxt("XML:com.adobe.xmp", self.xmp)
        return chunks


def of(image: Image.Image) -> Metadata:
    """What a decoded PIL image says, as far as it can be read."""
    info = image.info
    dpi = info.get("dpi")
    if not (isinstance(dpi, tuple) and len(dpi) == 2 and all(1 < float(n) < 65535 for n in dpi)):
        dpi = None  # no density of a picture, and NaN
    xmp = info.get("xmp")
    if isinstance(xmp, bytes):
        xmp = None if b"\0" in xmp else _decoded(xmp)
    if xmp:
        first, last = xmp.find("<xmp:Thumbnails"), xmp.rfind("</xmp:Thumbnails>")
        if 0 <= first < last:
            xmp = xmp[:first] + xmp[last + len("</xmp:Thumbnails>") :]
        xmp = XMP_PARTS.sub("", xmp)
    photoshop = info.get("photoshop")
    iptc = photoshop.get(IPTC) if isinstance(photoshop, dict) else None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            exif = _stored(image.getexif())
        except Exception:  # broken EXIF makes Pillow's parser warn, or raise errors of all kinds
            exif = None
    return Metadata(
        dpi=dpi and (float(dpi[0]), float(dpi[1])),
        exif=exif,
        xmp=xmp or None,
        text=tuple(_texts(image)),
        iptc=iptc if isinstance(iptc, bytes) else None,
    )


def _texts(image: Image.Image) -> Iterator[tuple[str, str]]:
    # ImageMagick writes whole EXIF and XMP blocks as text; Pillow has read the former.
    for keyword, text in getattr(image, "text", {}).items():
        about_pixels = keyword.startswith("Raw profile type") and not keyword.endswith("iptc")
        if keyword != "XML:com.adobe.xmp" and not about_pixels:
            yield str(keyword), text
    comment = image.info.get("comment")
    if isinstance(comment, bytes) and comment:
        yield "Comment", _decoded(comment)


def _parsed(exif: bytes | None) -> Image.Exif:
    parsed = Image.Exif()
    if exif:
        parsed.load(exif)
    return parsed


def _stored(exif: Image.Exif) -> bytes | None:
    """The bytes of EXIF without thumbnail and without what describes the layout of pixels."""
    kept = Image.Exif()
    kept.load(exif.tobytes())
    for tag in LAYOUT:
        kept.pop(tag, None)
    return kept.tobytes() if len(kept) else None


def _with_number(xmp: str, names: str, value: int) -> str:
    return re.sub(rf"""\b((?:{names})(?:\s*=\s*["']|\s*>)\s*)\d+""", rf"\g<1>{value}", xmp)


def _decoded(text: bytes) -> str:
    with contextlib.suppress(UnicodeDecodeError):
        return text.decode()
    return text.decode("latin-1")
