"""The tail collapsed: upsampler and last convolution as one convolution.

The tail of a super-resolution network has no activation in it: convolution, pixel shuffle,
convolution, pixel shuffle, convolution. Such a chain is linear, and it looks the same from every
lr pixel. So it *is* one convolution, from 64 features to the 3 * scale^2 values of the sr pixels
over one lr pixel, then one pixel shuffle. How far does it see? At x4 the last convolution sees 1
sr pixel further, the one before it half an lr pixel, the first a whole one: less than 2 lr pixels
to each side, 5x5 in all. At x4 that is 76,800 multiplications per lr pixel instead of 764,928.

One thing is not the same everywhere: each convolution of the chain pads *its own* input with
zeros, and a bias that was added before a padding is missing beyond the border. This changes the
outermost lr pixels, and only them: there the tail is the same kind of 5x5 convolution with other
weights. Along each axis a pixel is the first, the last, inside, or all there is (in a picture 1
pixel wide): 4 x 4 classes, of which a picture of at least 3x3 shows nine.

Where do the weights come from? Row i of a linear map is what its transpose makes of the unit vector
i: the gradient of output i. So they are read off by running the chain backwards, in float64, on
pictures that are just large enough to show each class.

A packed network runs so (`qsr.integer.tail`). A network in training may as well (`tail_inside`):
the weights of the one convolution are a function of those of the chain, and gradients flow through
it.
"""

from __future__ import annotations

import itertools
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

REACH = 2  # lr pixels to each side; kReach of csrc/network/tail_kernel.h
FIRST, INSIDE, LAST, ONLY = range(4)
# The shortest picture that shows a class, and where: class -> (length, position).
SHOWN = {FIRST: (3, 0), INSIDE: (5, 2), LAST: (3, 2), ONLY: (1, 0)}


def collapse(tail: nn.Sequential, scale: int) -> tuple[Tensor, Tensor]:
    """The tail as weights [4, 4, 3 scale^2, C, 5, 5] and biases [4, 4, 3 scale^2], float64.

    The first two dimensions are the classes of the row and the column. tail: convolutions 3x3 with
    padding 1, and pixel shuffles, nothing else (ValueError).
    """
    for layer in tail:
        if not isinstance(layer, nn.PixelShuffle) and getattr(layer, "padding", None) != (1, 1):
            raise ValueError(
                f"the tail has a layer {type(layer).__name__}; only 3x3 convolutions with padding "
                "1 and pixel shuffles collapse. Use the layers as they are."
            )
    channels, outputs = _conv(tail[0]).weight.shape[1], 3 * scale**2
    weights = torch.zeros(4, 4, outputs, channels, 2 * REACH + 1, 2 * REACH + 1, dtype=torch.double)
    biases = torch.zeros(4, 4, outputs, dtype=torch.double)
    for row, column in itertools.product(SHOWN, repeat=2):
        (height, y), (width, x) = SHOWN[row], SHOWN[column]
        # Picture i holds a 1 at output i of the pixel, and zeros.
        ones = torch.zeros(outputs, outputs, height, width, dtype=torch.double)
        ones[:, :, y, x] = torch.eye(outputs, dtype=torch.double)
        parts = [_adjoint(tail, F.pixel_shuffle(part, scale)) for part in ones.split(8)]
        rows = F.pad(torch.cat(parts), [REACH] * 4)
        weights[row, column] = rows[:, :, y : y + 5, x : x + 5]
        zeros = torch.zeros(1, channels, height, width, dtype=torch.double)
        biases[row, column] = F.pixel_unshuffle(_run(tail, zeros), scale)[0, :, y, x]
    return weights, biases


def _conv(layer: nn.Module) -> nn.Conv2d:
    """A layer that is no shuffle; of a packed network what stands for a convolution."""
    return cast(nn.Conv2d, layer)


def _run(tail: nn.Sequential, x: Tensor) -> Tensor:
    """sr values, before the scaling, of features x [N, C, H, W], in the type of x."""
    for layer in tail:
        if isinstance(layer, nn.PixelShuffle):
            x = F.pixel_shuffle(x, layer.upscale_factor)
        else:
            conv = _conv(layer)
            bias = None if conv.bias is None else conv.bias.to(x)
            x = F.conv2d(x, conv.weight.to(x), bias, padding=1)
    return x


def _adjoint(tail: nn.Sequential, sr: Tensor) -> Tensor:
    """The transposed map, without biases, from sr [N, 3, H, W] back to features."""
    for layer in reversed(tail):
        if isinstance(layer, nn.PixelShuffle):
            sr = F.pixel_unshuffle(sr, layer.upscale_factor)
        else:
            sr = F.conv_transpose2d(sr, _conv(layer).weight.to(sr), padding=1)
    return sr


def inside(tail: nn.Sequential) -> tuple[Tensor, Tensor]:
    """Weights [3 scale^2, C, 5, 5] and biases [3 scale^2] of the pixels inside a picture, in the
    type of the tail's, with gradients to them. tail: as of `collapse`; of a single convolution the
    weights stay 3x3.

    From the end to the beginning: what follows a layer is a convolution with few outputs, three
    colours times the finer places of a pixel there. Passing a convolution it grows by its taps,
    passing a shuffle its outputs stand at each place of the coarser pixel.
    """
    like = _conv(tail[0]).weight
    kernel = torch.eye(3, dtype=like.dtype, device=like.device)[:, None, None, :, None, None]
    biases = kernel.new_zeros(3, 1, 1)  # [colour, y, x], the kernel [..., channel, tap, tap]
    for layer in reversed(tail):
        if isinstance(layer, nn.PixelShuffle):
            kernel = _before_shuffle(kernel, layer.upscale_factor)
            biases = biases.repeat(1, layer.upscale_factor, layer.upscale_factor)
        else:
            conv = _conv(layer)
            if conv.bias is not None:
                biases = biases + torch.einsum("oyxcij,c->oyx", kernel, conv.bias)
            grown = F.conv_transpose2d(kernel.flatten(0, 2), conv.weight)
            kernel = grown.unflatten(0, kernel.shape[:3])
    return kernel.flatten(0, 2), biases.flatten()


def _before_shuffle(kernel: Tensor, factor: int) -> Tensor:
    """A kernel [colours, s, s, C, k, k] after a pixel shuffle as the one before it,
    [colours, factor s, factor s, factor^2 C, n, n].
    """
    center = kernel.shape[-1] // 2
    m = -(-center // factor)  # coarser pixels to each side
    # Its top left corner, and what is left below it, where its output is at place i of the middle.
    room = [(factor * m + i - center, factor * (m + 1) - 1 - i - center) for i in range(factor)]
    placed = torch.stack([torch.stack([F.pad(kernel, (*x, *y)) for x in room], 1) for y in room], 1)
    # [colours, place y, place x, s, s, ...]: a finer place counts within a coarser one
    ordered = placed.transpose(2, 3).flatten(1, 2).flatten(2, 3)
    return F.pixel_unshuffle(ordered.flatten(0, 2), factor).unflatten(0, ordered.shape[:3])


def tail_inside(tail: nn.Sequential, scale: int, features: Tensor) -> Tensor:
    """tail(features) without the outermost lr pixels, by one convolution: [N, C, H, W], H and W at
    least 3 -> [N, 3, scale (H - 2), scale (W - 2)]. The weights are collapsed in their own type,
    whatever autocast says.
    """
    with torch.autocast(features.device.type, enabled=False):
        weights, biases = inside(tail)
    padding = weights.shape[-1] // 2 - 1
    return F.pixel_shuffle(F.conv2d(features, weights, biases, padding=padding), scale)
