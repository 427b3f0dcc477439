"""A picture with all that its file says: more than three channels of numbers.

Transparency, one channel instead of three, 16 bits, a colour profile (`colour`), and what is said
about it (`metadata`): `Picture` keeps these beside the values, so that what goes in as a
transparent grey PNG of 300 dpi also comes out as one. `reading` makes it of a file, `writing` a
file of it.

A large picture is never a float tensor as a whole, which would be 12 bytes a pixel: a `Picture` has
the integers of the file, makes floats of some rows when asked, and is written as its rows come.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from .metadata import Metadata
from .resize import imresize_rows
from .tensors import to_uint8

BAND = 2**18  # pixels that are converted at once


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


def from_array(array: np.ndarray, icc: bytes | None = None) -> Picture:
    """An array [H, W] (grey) or [H, W, C], C = 1, 2 (grey, alpha), 3 (RGB) or 4 (RGB, alpha).

    uint8, or uint16 for plain grey, or floating point in [0, 1], which becomes uint8, clipped and
    rounded half to even. Raises ValueError for other shapes, and for values that are no finite
    numbers; TypeError for other types.
    """
    array = np.asarray(array)  # of numpy.matrix, which cannot have three dimensions, the array
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
