"""Enlarging pictures: any kind in, the same kind out, in bounded memory.

A network needs some kilobytes per pixel while it runs. A large picture is therefore cut into strips
of full width. A strip carries a *halo*: as many extra rows above and below as the network can see
from a pixel, so that every row that is kept has seen exactly what it would have seen in the whole
picture. With packed networks, whose sums have one fixed order, the result is the same to the bit.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from typing import overload

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from tqdm.auto import tqdm

from .backbone import NetworkConfig, QuantSR, SwinConfig
from .depth import DepthPlan
from .image import Picture, check_pictures, from_array, from_pil, read, to_array, to_pil, to_uint8
from .pack import PackedModel

Model = QuantSR | PackedModel
DEFAULT_MEMORY = 2.0  # GB of planned working memory
SMALL_TAIL = 2**26  # bytes that a piece of the tail may always take
TAIL_TILE = 4  # kTailRows of csrc/tail.h: lr rows
TAIL_REACH = 2  # lr rows that a tail sees beyond its own: its stages see 1, 1/2 and 1/4 of a row

# How far a network sees ---------------------------------------------------------------------------


def halo(config: NetworkConfig, blocks: int | None = None) -> int:
    """Rows above (and below) a strip that its rows can depend on, in lr pixels.

    Found by walking backwards through the layers: a 3x3 convolution adds a row, a window attention
    widens the rows to whole windows. For QuantSR-C this is 2 blocks + 4. Rounded up to whole
    windows, so that strips cut a Swin network between windows.

    >>> from qsr.backbone import quantsr_c, quantsr_t
    >>> [halo(quantsr_c(), n) for n in (32, 16, 8)], halo(quantsr_t())
    ([68, 36, 20], 104)
    """
    count = config.blocks if blocks is None else blocks
    if isinstance(config, SwinConfig):
        window = config.window
        first = -2  # the tail's convolution and body_conv
        for _ in range(count):
            first -= 1  # the block's convolution
            for layer in reversed(range(config.layers)):
                start = window // 2 if layer % 2 else 0  # shifted windows begin here
                first = (first - start) // window * window + start
        first -= 1  # the head
        return math.ceil(-first / window) * window
    return 1 + 2 * count + 1 + TAIL_REACH  # head, two convolutions a block, body_conv, tail


def pixel_bytes(model: Model) -> int:
    """Working memory for each lr pixel at once, bytes; an upper estimate.

    A packed network with a program knows what it allocates. Layer by layer, in float32 values per
    lr pixel, as measured: around a convolution of the body live 10 copies of the features; the tail
    needs more, but runs in pieces (`_tail_rows`). A Swin layer holds 14 copies of the features and
    5 of its attention scores (window^2 a head). Beside these are lr, sr and the codes.
    """
    if isinstance(model, PackedModel) and model.program is not None:
        return model.program.pixel_bytes
    config = model.config
    if isinstance(config, SwinConfig):
        values = 14 * config.features + 5 * config.heads * config.window**2
    else:
        values = 10 * config.features
    return 4 * (values + 6 * config.scale**2 + 32)


def _tail_rows(config: NetworkConfig, rows: int, width: int) -> int:
    """Rows of features that the tail takes at once, so that it needs no more than the body did.

    Around the last pixel shuffle live 3 copies of the features at full output resolution: 3 scale^2
    for each lr pixel of a piece and its 2 TAIL_REACH rows of halo. 8 copies for each pixel of the
    strip are left to it, beside the features of the whole strip. A small picture, in which the halo
    would be most of a piece, may take SMALL_TAIL bytes instead.
    """
    share = 8 * rows // (3 * config.scale**2)
    small = SMALL_TAIL // (4 * 3 * config.scale**2 * config.features * width)
    return max(1, max(share, small) - 2 * TAIL_REACH)


def strips(
    height: int, width: int, config: NetworkConfig, blocks: int, memory: float, pixel_bytes: int
) -> list[tuple[int, int, int, int]]:
    """[(first, last, top, bottom)]: rows to keep, and rows to compute, of each strip.

    One strip if `memory` (GB) holds the whole picture. Strips begin between windows and between the
    tiles of the tail, so that their tiles are those of the whole picture. Raises ValueError if
    `memory` holds no strip.
    """
    if pixel_bytes * height * width <= memory * 1e9:
        return [(0, height, 0, height)]
    unit = math.lcm(config.window, TAIL_TILE)
    reach = -(-halo(config, blocks) // unit) * unit
    rows = int(memory * 1e9 / (pixel_bytes * width)) - 2 * reach
    rows = rows // unit * unit
    if rows < unit:
        needed = pixel_bytes * width * (2 * reach + unit) / 1e9
        raise ValueError(
            f"`memory` is {memory:g} GB, which do not hold one strip of a picture {width} pixels "
            f"wide; this network needs {math.ceil(needed * 1000) / 1000:g} GB. Allow more, or use "
            "fewer blocks."
        )
    return [
        (first, min(height, first + rows), max(0, first - reach), min(height, first + rows + reach))
        for first in range(0, height, rows)
    ]


# Enlarging ----------------------------------------------------------------------------------------


@torch.inference_mode()
def enlarge(
    lr: Tensor,
    model: Model,
    blocks: int | None = None,
    memory: float = DEFAULT_MEMORY,
    progress: bool = False,
) -> Tensor:
    """lr float RGB [N, 3, H, W] in [0, 1] -> sr [N, 3, scale H, scale W] in [0, 1].

    blocks: depth of the network, None for all. memory: GB to plan with; a larger picture is done in
    strips. Strips are computed on the device and in the type of the model, sr has those of lr.
    Raises ValueError for another shape, values that are no finite numbers, a depth that the network
    does not have, or too little memory; TypeError for integers.
    """
    check_pictures(lr, "lr")
    if not memory > 0:
        raise ValueError(f"`memory` is {memory!r}; it is a positive number of GB. Allow more.")
    network = model.network if isinstance(model, PackedModel) else model
    config, depth = network.config, network.plan(blocks)
    n, _, height, width = lr.shape
    plan = strips(height, width, config, depth.count, memory / n, pixel_bytes(model))
    scale = config.scale
    sr = lr.new_empty(n, 3, scale * height, scale * width)
    bar = tqdm(plan, "strips", leave=False, disable=not progress or len(plan) == 1)
    for first, last, top, bottom in bar:
        strip = lr[:, :, top:bottom].to(network.mean)
        for row, rows in _pieces(model, network, strip, depth, first - top, last - top):
            row += top
            sr[:, :, scale * row : scale * row + rows.shape[2]] = rows[..., : scale * width]
    return sr.clamp_(0, 1)


def _pieces(
    model: Model, network: QuantSR, strip: Tensor, depth: DepthPlan, first: int, last: int
) -> Iterator[tuple[int, Tensor]]:
    """(row, sr rows from there on), in turn: what becomes of the rows [first, last) of a strip."""
    scale = network.config.scale
    if isinstance(model, PackedModel) and model.program is not None:
        yield first, model.program(strip, depth)[:, :, scale * first : scale * last]
        return
    features = network.features(strip, depth)
    step = _tail_rows(network.config, strip.shape[2], strip.shape[3])
    for row in range(first, last, step):
        yield row, _tail_of(network, features, row, min(row + step, last))


def _tail_of(network: QuantSR, features: Tensor, first: int, last: int) -> Tensor:
    """Rows [first, last) of what the tail makes of the features of a strip."""
    top = max(0, first - TAIL_REACH)
    sr = network.reconstruct(features[:, :, top : last + TAIL_REACH])
    scale = network.config.scale
    return sr[:, :, scale * (first - top) : scale * (last - top)]


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
        return to_uint8(enlarge(image.float() / 255, model, **options))
    return enlarge(image, model, **options)


def upscale_picture(picture: Picture, model: Model, **options) -> Picture:
    """Enlarge a `Picture`, keeping what it is. Options as `enlarge`."""
    return picture.enlarged(enlarge(picture.rgb, model, **options), model.config.scale)
