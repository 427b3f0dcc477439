"""Enlarging pictures: any kind in, the same kind out, in bounded memory.

A network needs some kilobytes per pixel while it runs. A large picture is therefore cut into strips
of full width. A strip carries a *halo*: as many extra rows above and below as the network can see
from a pixel, so that every row that is kept has seen exactly what it would have seen in the whole
picture. With packed networks, whose sums have one fixed order, the result is the same to the bit.

What comes out of a strip is rounded to what is stored and handed on before the next begins: so the
memory in use is the plan, the picture as it is stored, and what the receiver keeps.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Protocol, overload

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from tqdm.auto import tqdm

from .backbone import DepthPlan
from .config import NetworkConfig
from .images.formats import DEFAULT_MEMORY
from .images.picture import BAND, Picture, from_array, to_array
from .images.reading import from_pil, read
from .images.resize import mirrored
from .images.tensors import check_pictures, to_uint8
from .images.writing import to_pil

SHORTEST = 8  # lr pixels; pictures with a shorter side are enlarged with a frame around them
SLACK = 1.0  # how far values may lie outside [0, 1]: noise and overshoot do, 0..255 does not
TAIL_TILE = 4  # kTailRows of csrc/network/tail.h: lr rows


class Model(Protocol):
    """What can enlarge: `QuantSR`, its packed form, and whatever has these four.

    pieces(lr, plan, first, last) gives (row, sr rows from there on) for the rows [first, last) of a
    strip lr [N, 3, H, W], which it may do in parts; plan(blocks) is a depth, None the whole.
    pixel_bytes: working memory for each lr pixel.
    """

    @property
    def config(self) -> NetworkConfig: ...
    @property
    def pixel_bytes(self) -> int: ...
    @property
    def mean(self) -> Tensor: ...
    def plan(self, blocks: int | None = None) -> DepthPlan: ...
    def pieces(
        self, lr: Tensor, plan: DepthPlan, first: int, last: int
    ) -> Iterator[tuple[int, Tensor]]: ...


# Strips -------------------------------------------------------------------------------------------


def strips(
    height: int,
    width: int,
    config: NetworkConfig,
    blocks: int,
    memory: float,
    pixel_bytes: int,
    held: int = 0,
) -> list[tuple[int, int, int, int]]:
    """[(first, last, top, bottom)]: rows to keep, and rows to compute, of each strip.

    One strip if `memory` (GB), without the bytes that are `held` for something else, holds the
    whole picture. Strips begin between windows and between the tiles of the tail, so that their
    tiles are those of the whole picture. Raises ValueError if `memory` holds no strip.
    """
    free = memory * 1e9 - held
    if pixel_bytes * height * width <= free:
        return [(0, height, 0, height)]
    unit = math.lcm(config.window, TAIL_TILE)
    reach = -(-config.reach(blocks) // unit) * unit
    rows = int(free / (pixel_bytes * width)) - 2 * reach
    rows = rows // unit * unit
    if rows < unit:
        needed = (held + pixel_bytes * width * min(2 * reach + unit, height)) / 1e9
        whole = f", {held / 1e9:.3g} of it for what is held whole" if held else ""
        raise ValueError(
            f"`memory` is {memory:g} GB, which do not hold one strip of a picture {width} pixels "
            f"wide; this network needs {math.ceil(needed * 1000) / 1000:g} GB{whole}. Allow more"
            f"{', or use fewer blocks' if blocks > min(config.depths) else ''}."
        )
    return [
        (first, min(height, first + rows), max(0, first - reach), min(height, first + rows + reach))
        for first in range(0, height, rows)
    ]


# Enlarging ----------------------------------------------------------------------------------------


def enlarge(
    lr: Tensor,
    model: Model,
    blocks: int | None = None,
    memory: float = DEFAULT_MEMORY,
    progress: bool = False,
) -> Tensor:
    """lr float RGB [N, 3, H, W] in [0, 1] -> sr [N, 3, scale H, scale W] in [0, 1].

    blocks: depth of the network, None for all. memory: GB to plan with, beside lr and sr; a larger
    picture is done in strips. Strips are computed on the device and in the type of the model, sr
    has those of lr.
    Raises ValueError for another shape, values that are no finite numbers or far outside [0, 1], a
    depth that the network does not have, or too little memory; TypeError for integers.
    """
    return _enlarge(lr, model, 0, blocks, memory, progress)


@torch.inference_mode()
def _enlarge(
    lr: Tensor, model: Model, frame: int, blocks: int | None, memory: float, progress: bool
) -> Tensor:
    _check_values(lr)
    n, _, height, width = lr.shape
    source = _Source(lambda top, bottom: lr[:, :, top:bottom], n, height, width, frame)
    scale = model.config.scale
    sr = lr.new_empty(n, 3, scale * height, scale * width)
    for row, rows in _pieces(source, model, blocks, memory, progress):
        sr[:, :, row : row + rows.shape[2]] = rows
        del rows
    return sr.clamp_(0, 1)


def _check_values(lr: Tensor) -> None:
    """Raise unless lr is a batch of pictures, see `enlarge`."""
    if lr.is_meta:
        raise ValueError("`lr` is on the meta device, which holds no values; make it on another.")
    check_pictures(lr, "lr")
    low, high = (x.item() for x in torch.aminmax(lr.float()))
    if low < -SLACK or high > 1 + SLACK:
        raise ValueError(
            f"`lr` has values from {low:g} to {high:g}; pictures lie in [0, 1], or nearly. "
            "Divide values of 8 bits by 255, or pass them as uint8."
        )


@dataclass(frozen=True)
class _Source:
    """Pictures [count, 3, height, width], rows of which are given by part(top, bottom), with a
    `frame` of so many pixels of their mirror image around them.
    """

    part: Callable[[int, int], Tensor]
    count: int
    height: int
    width: int
    frame: int

    def rows(self, top: int, bottom: int) -> Tensor:
        """Rows [top, bottom) of the framed picture."""
        if self.frame == 0:
            return self.part(top, bottom)
        rows = mirrored(torch.arange(top, bottom) - self.frame, self.height)
        columns = mirrored(torch.arange(-self.frame, self.width + self.frame), self.width)
        first, last = int(rows.min()), int(rows.max()) + 1
        return self.part(first, last)[..., rows[:, None] - first, columns]


def _frame(height: int, width: int) -> int:
    """How many pixels of its mirror image are put around a picture, and cut away afterwards.

    A network pads with zeros, which are no colour of the picture. That shows for a few pixels from
    the border, and of a tiny picture nothing else is left: the networks of `qsr models` are up to
    126 levels off in a flat one. Framed, 4 at most. Of three ways to continue a picture, with the
    end pixels mirrored was nearest on crops of photographs, repeated or left out in the mirror not.
    """
    return SHORTEST if 0 < min(height, width) < SHORTEST else 0


def _pieces(
    source: _Source,
    model: Model,
    blocks: int | None,
    memory: float,
    progress: bool,
    held: int = 0,
) -> Iterator[tuple[int, Tensor]]:
    """(row, sr rows from there on, not clipped), from the top to the bottom, without the frame.

    Whoever takes them drops them before asking for the next, or two strips of sr are in memory.
    """
    if not memory > 0:
        raise ValueError(f"`memory` is {memory!r}; it is a positive number of GB. Allow more.")
    config, depth, frame = model.config, model.plan(blocks), source.frame
    height, width = source.height + 2 * frame, source.width + 2 * frame
    budget = memory / source.count
    plan = strips(height, width, config, depth.count, budget, model.pixel_bytes, held)
    scale = config.scale
    columns = slice(scale * frame, scale * (frame + source.width))
    bar = tqdm(plan, "strips", leave=False, disable=not progress or len(plan) == 1)
    for first, last, top, bottom in bar:
        strip = source.rows(top, bottom).to(model.mean)
        for row, rows in model.pieces(strip, depth, first - top, last - top):
            row = scale * (row + top - frame)
            kept = slice(max(0, -row), max(0, scale * source.height - row))
            if rows[:, :, kept].shape[2]:
                yield row + kept.start, rows[:, :, kept, columns]
            del rows


@overload
def upscale(image: str | os.PathLike | Image.Image, model: Model) -> Image.Image: ...
@overload
def upscale(image: np.ndarray, model: Model) -> np.ndarray: ...
@overload
def upscale(image: Tensor, model: Model) -> Tensor: ...
def upscale(
    image,
    model: Model,
    blocks: int | None = None,
    memory: float = DEFAULT_MEMORY,
    progress: bool = False,
):
    """Enlarge a picture; the result is of the same kind.

    image: a path or PIL image -> PIL image (transparency, grey, 16-bit grey and profile are kept);
    uint8 array [H, W] (grey) or [H, W, C] (RGB, or either with alpha), uint16 for grey -> the same;
    tensor RGB [3, H, W] or [N, 3, H, W], float in [0, 1] or uint8 -> the same.
    blocks, memory: see `enlarge`.
    Raises TypeError for anything else, ValueError for pictures that can't be read.
    """
    if not hasattr(model, "pieces"):
        raise TypeError(
            f"`model` is a {type(model).__name__}; pass what qsr.load(name), qsr.QuantSR or "
            "qsr.pack(net) of one gives. A network of another class is called on tensors."
        )
    options = {"blocks": blocks, "memory": memory, "progress": progress}
    if isinstance(image, (str, os.PathLike)):
        return to_pil(upscale_picture(read(image), model, **options))
    if isinstance(image, Image.Image):
        return to_pil(upscale_picture(from_pil(image), model, **options))
    if isinstance(image, np.ndarray):
        if image.dtype not in (np.uint8, np.uint16):
            raise TypeError(
                f"the array holds {image.dtype}; arrays are uint8 or uint16. "
                "Pass a float tensor [N, 3, H, W] in [0, 1] for other values."
            )
        return to_array(upscale_picture(from_array(image), model, **options))
    if isinstance(image, Tensor):
        return _upscale_tensor(image, model, options)
    raise TypeError(
        f"`image` is a {type(image).__name__}; pass a path, a PIL image, an array or a tensor."
    )


def _upscale_tensor(image: Tensor, model: Model, options: dict) -> Tensor:
    if image.ndim == 3:
        return _upscale_tensor(image[None], model, options)[0]
    if image.dtype == torch.uint8:
        return to_uint8(_upscale_tensor(image.float() / 255, model, options))
    frame = _frame(*image.shape[-2:]) if image.ndim == 4 else 0
    return _enlarge(image, model, frame, **options)


def upscale_picture(picture: Picture, model: Model, **options) -> Picture:
    """Enlarge a `Picture`, keeping what it is. Options as `enlarge`."""
    height, width, channels = picture.array.shape
    scale = model.config.scale
    array = np.empty((scale * height, scale * width, channels), picture.array.dtype)
    top = 0
    for rows in upscaled_rows(picture, model, **options):
        array[top : top + len(rows)] = rows
        top += len(rows)
    return replace(picture, array=array)


@torch.inference_mode()
def upscaled_rows(
    picture: Picture,
    model: Model,
    blocks: int | None = None,
    memory: float = DEFAULT_MEMORY,
    progress: bool = False,
    held: int = 0,
) -> Iterator[np.ndarray]:
    """What is stored of the enlarged picture, [rows, scale W, C], from the top to the bottom.

    memory: GB, beside the picture itself and what is done with the rows; `held` bytes of it are
    left free for that. Filling what alpha hides needs `Picture.gap_bytes`. Errors as `enlarge`.
    """
    height, width = picture.size
    held += picture.gap_bytes
    scale = model.config.scale
    source = _Source(picture.visible_rows(), 1, height, width, _frame(height, width))
    step = max(1, BAND // (scale * width))
    for row, sr in _pieces(source, model, blocks, memory, progress, held):
        for top in range(0, sr.shape[2], step):
            yield picture.enlarged_rows(sr[:, :, top : top + step], row + top, scale)
        del sr
