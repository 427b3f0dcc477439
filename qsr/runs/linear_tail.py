"""The best tail for a body that stays as it is, without training: a linear problem.

Between the features of a network and its picture stand convolutions and pixel shuffles, nothing
else. So sr is linear in the tail as a whole: each output of an lr pixel is a weighted sum of the
features around it, and a bias. Of all sums over 3 x 3 pixels, the one with the smallest squared
error solves the normal equations

    (X^T X) w = X^T y          a row of X: the features of 3 x 3 pixels, and 1
                               y: an output of the pixel in their middle, as the truth has it

summed over many pictures, in float64. (5 x 5 pixels, which the stages of a tail can reach, explain
no more: 0.03 grey levels on the pictures of the fit, nothing on others. docs/log.md)

The weights then move into the stages: the first convolution makes all outputs, by its finer grid,
and the following ones pass them on. Channels that are left over keep the weights they had, and who
reads them starts at zero, so that training can still use them. (A Swin network's tail is the first
convolution alone, and holds the solution as it is.)

At the border of a picture the first stage sees zeros where features end. So that a zero means the
average and not some extreme, the features are moved by their mean, in the bias of the convolution
before the tail, and the tail's bias takes it back: inside the picture nothing changes.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm.auto import tqdm

from ..backbone import QuantSR
from ..images.data import Pair

RIDGE = 1e-12  # added to the diagonal, in parts of its mean: features that are 0 everywhere


@torch.no_grad()
def fit_tail(net: QuantSR, pairs: Iterable[Pair], progress: bool = False) -> float:
    """Give `net` the tail with the smallest squared error on `pairs`, in place; its features get a
    mean of 0.

    pairs: as of `qsr.data.pairs` or `qsr.data.held_out`; 100 pictures of 48 x 48 lr pixels and more
    determine it well. Time grows with their pixels and the square of the features. Returns the
    root of the mean squared error there, in 8-bit grey levels.

    Raises ValueError for an upsampler of too few features to hold the outputs, or for no pictures.
    """
    config, outputs = net.config, 3 * net.config.scale**2
    factor = next(layer.upscale_factor for layer in net.tail if isinstance(layer, nn.PixelShuffle))
    if config.family == "conv" and config.features < outputs // factor**2:
        raise ValueError(
            f"`net` has {config.features} features; a fitted tail at x{config.scale} needs "
            f"{outputs // factor**2}. Use a wider one."
        )
    normal, right, squares, count = _sums(net, pairs, progress)
    if count == 0:
        raise ValueError("`pairs` is empty; fit_tail needs pictures.")
    normal.diagonal().add_(RIDGE * normal.diagonal().mean())
    solved = torch.linalg.solve(normal, right)  # [9 features + 1, outputs]
    weights, bias = solved[:-1].T.reshape(outputs, config.features, 3, 3), solved[-1]
    mean = normal[-1, 4:-1:9] / count  # of the features of the pixel in the middle
    own = net.get_parameter("body_conv.bias")
    own.sub_(mean.to(own))
    _write(net.tail, config.scale, factor, weights, bias + torch.einsum("ofyx,f->o", weights, mean))
    error = (squares - (solved * right).sum()).clamp(min=0) / (count * outputs)
    return 255 / config.pixel_range * error.sqrt().item()


def _sums(
    net: QuantSR, pairs: Iterable[Pair], progress: bool
) -> tuple[Tensor, Tensor, Tensor, int]:
    """X^T X, X^T Y, sum Y^2 and the number of pixels; X [pixels, 9 features + 1]."""
    config = net.config
    size = 9 * config.features + 1
    normal = torch.zeros(size, size, dtype=torch.float64)
    right = torch.zeros(size, 3 * config.scale**2, dtype=torch.float64)
    squares, count = torch.zeros((), dtype=torch.float64), 0
    for pair in tqdm(pairs, "normal equations", disable=not progress):
        lr = pair.lr.to(net.mean)
        features = net.features(lr)[:, :, : lr.shape[2], : lr.shape[3]]  # up to whole windows
        columns = F.unfold(features, 3)[0]  # without the border
        x = torch.cat([columns, columns.new_ones(1, columns.shape[1])]).double().cpu()
        wanted = (pair.hr.to(net.mean) - net.mean) * config.pixel_range
        y = F.pixel_unshuffle(wanted, config.scale)[0, :, 1:-1, 1:-1].flatten(1).double().cpu()
        normal += x @ x.T
        right += x @ y.T
        squares += y.square().sum()
        count += x.shape[1]
    return normal, right, squares, count


def _write(tail: nn.Module, scale: int, factor: int, weights: Tensor, bias: Tensor) -> None:
    """Put a convolution [3 scale^2, features, 3, 3] and a pixel shuffle into the stages of a tail.

    The first stage shuffles by `factor`, which may be smaller than `scale`, so its channel c at the
    place (a, b) of its grid has the output of colour and finer place that c counts.
    """
    first, *others = (layer for layer in tail.children() if isinstance(layer, nn.Conv2d))
    finer = scale // factor
    number = torch.arange(3 * scale**2).view(3, factor, finer, factor, finer)
    outputs = number.permute(0, 2, 4, 1, 3).flatten()  # channel by channel, then the place
    assert first.bias is not None
    first.weight[: len(outputs)] = weights[outputs].to(first.weight)
    first.bias[: len(outputs)] = bias[outputs].to(first.bias)
    passed = 3 * finer**2
    for stage in others:
        assert stage.bias is not None
        stage.weight[:passed] = 0
        stage.bias[:passed] = 0
        stage.weight[range(passed), range(passed), 1, 1] = 1
        passed = 3
