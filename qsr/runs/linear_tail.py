"""The best tail for a body that stays as it is, without training: a linear problem.

Between the features of a network and its picture stand convolutions and pixel shuffles, nothing
else. So sr is linear in the tail as a whole: each output is a weighted sum of the features around
its lr pixel, and a bias. The weights with the smallest squared error solve the normal equations

    (X^T X) w = X^T y          a row of X: the features that a pixel's outputs may see, and 1
                               y: that output in the true picture

summed over many pictures, in float64. What an output may see: the tail's stages read one pixel
around them at 1, 2, ... times the resolution, so an output in the left half of its pixel sees one
lr pixel to the right and two to the left; likewise up and down. That is 4 x 4 pixels, less the far
corner: the taps `_seen`.

Then the weights move into the stages (`_write`). The first convolution makes, for each pixel of its
finer grid, the outputs' sums over the near 3 x 3, and in channels of their own the sums that belong
to the neighbour's outputs: the far row and the far column. The following convolutions pass the near
sums on and add the others, which they find one pixel to the side. Channels that are left over keep
the weights they had, and who reads them starts at zero, so that training can still use them.

At the border of a picture the stages see zeros where features end. So that a zero means the average
and not some extreme, the features are moved by their mean, in the bias of the convolution before
the tail, and the tail's bias takes it back: inside the picture nothing changes.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm.auto import tqdm

from ..backbone import QuantSR
from ..config import TAIL_REACH
from ..images.data import Pair

SIDE = 2 * TAIL_REACH + 1  # of the lr pixels around one that are looked at
RIDGE = 1e-12  # added to the diagonal, in parts of its mean: features that are 0 everywhere


@torch.no_grad()
def fit_tail(net: QuantSR, pairs: Iterable[Pair], progress: bool = False) -> float:
    """Give `net` the tail with the smallest squared error on `pairs`, in place; its features get a
    mean of 0.

    pairs: as of `qsr.data.pairs` or `qsr.data.held_out`; 100 pictures of 48 x 48 lr pixels and more
    determine it well. Time grows with their pixels and the square of the features. Returns the
    root of the mean squared error there, in 8-bit grey levels.

    Raises ValueError for a network whose tail is not of two or three 3x3 convolutions (a Swin
    network), has too few features to hold the sums, or for no pictures.
    """
    config, outputs = net.config, 3 * net.config.scale**2
    if config.family != "conv":
        raise ValueError(
            "this network's tail is one convolution; fit_tail is made for an upsampler."
        )
    stages = [layer for layer in net.tail if isinstance(layer, nn.Conv2d)]
    factor = next(s.upscale_factor for s in net.tail if isinstance(s, nn.PixelShuffle))
    needed = 5 * outputs // factor**2
    if config.features < needed:
        raise ValueError(
            f"`net` has {config.features} features; a fitted tail at x{config.scale} needs "
            f"{needed}. Use a wider one."
        )
    normal, right, squares, count = _sums(net, pairs, progress)
    if count == 0:
        raise ValueError("`pairs` is empty; fit_tail needs pictures.")
    weights = torch.zeros(outputs, len(normal), dtype=torch.float64)
    error = squares
    for seen, rows in _alike(config.scale, factor, config.features):
        matrix = normal[seen][:, seen]
        matrix.diagonal().add_(RIDGE * matrix.diagonal().mean())
        solved = torch.linalg.solve(matrix, right[seen][:, rows])
        weights[rows[:, None], seen] = solved.T
        error = error - (solved * right[seen][:, rows]).sum()
    mean = normal[-1, _column(config.features, 0, 0)] / count
    taps = weights[:, :-1].view(outputs, config.features, -1)
    weights[:, -1] += torch.einsum("oft,f->o", taps, mean)
    bias = net.get_parameter("body_conv.bias")
    bias.sub_(mean.to(bias))
    _write(stages, weights, factor)
    levels = 255 / config.pixel_range
    return levels * max(0.0, (error / (count * outputs)).item()) ** 0.5


def _sums(
    net: QuantSR, pairs: Iterable[Pair], progress: bool
) -> tuple[Tensor, Tensor, Tensor, int]:
    """X^T X, X^T Y, sum Y^2 and the number of pixels; X [pixels, SIDE^2 features + 1]."""
    config = net.config
    size = config.features * SIDE**2 + 1
    normal = torch.zeros(size, size, dtype=torch.float64)
    right = torch.zeros(size, 3 * config.scale**2, dtype=torch.float64)
    squares, count = torch.zeros((), dtype=torch.float64), 0
    for pair in tqdm(pairs, "normal equations", disable=not progress):
        features = net.features(pair.lr.to(net.mean))
        # Without a margin, in which the stages' padding would change the sums.
        columns = F.unfold(features, SIDE)[0].double().cpu()
        x = torch.cat([columns, columns.new_ones(1, columns.shape[1])])
        wanted = F.pixel_unshuffle(
            (pair.hr.to(net.mean) - net.mean) * config.pixel_range, config.scale
        )
        m = TAIL_REACH
        y = wanted[0, :, m : wanted.shape[2] - m, m : wanted.shape[3] - m].flatten(1).double().cpu()
        normal += x @ x.T
        right += x @ y.T
        squares += y.square().sum()
        count += x.shape[1]
    return normal, right, squares, count


def _seen(half_y: int, half_x: int) -> list[tuple[int, int]]:
    """(dy, dx) of the lr pixels that an output sees; half: -1 first, 1 last, 0 between.

    >>> len(_seen(-1, 1)), len(_seen(0, 0))
    (15, 9)
    """
    near = [(dy, dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1)]
    far = [(2 * half_y, d) for d in (-1, 0, 1) if half_y] + [
        (d, 2 * half_x) for d in (-1, 0, 1) if half_x
    ]
    return near + far


def _half(position: int, factor: int) -> int:
    """-1, 0 or 1: the first, a middle or the last of `factor` pixels of the first stage."""
    return -1 if position == 0 else 1 if position == factor - 1 else 0


def _column(features: int, dy: int, dx: int) -> Tensor:
    """Where X has the features of the pixel at (dy, dx)."""
    place = (dy + TAIL_REACH) * SIDE + dx + TAIL_REACH
    return torch.arange(features) * SIDE**2 + place


def _alike(scale: int, factor: int, features: int) -> Iterator[tuple[Tensor, Tensor]]:
    """(columns of X, outputs that see them) for each place on the grid of the first stage."""
    finer = scale // factor
    number = torch.arange(3 * scale**2).view(3, factor, finer, factor, finer)
    for a in range(factor):
        for b in range(factor):
            places = _seen(_half(a, factor), _half(b, factor))
            bias = torch.tensor([features * SIDE**2])
            seen = torch.cat([*(_column(features, dy, dx) for dy, dx in places), bias])
            yield seen, number[:, a, :, b, :].flatten()


def _write(stages: Sequence[nn.Conv2d], weights: Tensor, factor: int) -> None:
    """Put weights [3 scale^2, SIDE^2 features + 1] of all outputs into the stages of a tail."""
    first, features = stages[0], stages[0].weight.shape[1]
    scale = factor ** (len(stages) - 1)
    finer = scale // factor
    each = 3 * finer**2  # outputs of a pixel of the first stage's grid
    taps = weights[:, :-1].view(-1, features, SIDE, SIDE)
    bias = _bias(first)
    number = torch.arange(3 * scale**2).view(3, factor, finer, factor, finer)
    # Rows of the first convolution: channel c at place (a, b) of the finer grid.
    row = torch.arange(len(first.weight)).view(-1, factor, factor)
    m = TAIL_REACH
    for a in range(factor):
        for b in range(factor):
            mine = number[:, a, :, b, :].flatten()
            near = row[:each, a, b]
            first.weight[near] = taps[mine][:, :, m - 1 : m + 2, m - 1 : m + 2].to(first.weight)
            bias[near] = weights[mine, -1].to(bias)
            for group, (dy, dx) in enumerate(SIDES, start=1):
                # This pixel is the neighbour at (dy, dx) of the one whose outputs are meant, if it
                # lies in another lr pixel; what that one sees at 2 (dy, dx) lies at (dy, dx) here.
                theirs = row[each * group : each * (group + 1), a, b]
                first.weight[theirs] = 0
                bias[theirs] = 0
                y, x = a - dy, b - dx
                if 0 <= y < factor and 0 <= x < factor:
                    continue  # in this lr pixel: it is near
                owner = number[:, y % factor, :, x % factor, :].flatten()
                ys = slice(m + 2 * dy, m + 2 * dy + 1) if dy else slice(m - 1, m + 2)
                xs = slice(m + 2 * dx, m + 2 * dx + 1) if dx else slice(m - 1, m + 2)
                here_y = slice(1 + dy, 2 + dy) if dy else slice(0, 3)
                here_x = slice(1 + dx, 2 + dx) if dx else slice(0, 3)
                for theirs_k, owner_k in zip(theirs.tolist(), owner.tolist(), strict=True):
                    first.weight[theirs_k, :, here_y, here_x] = taps[owner_k, :, ys, xs].to(
                        first.weight
                    )
    _pass_on(stages[1], each, groups=True)
    for stage in stages[2:]:
        _pass_on(stage, 3, groups=False)


SIDES = ((-1, 0), (1, 0), (0, -1), (0, 1))  # of the neighbours that hold sums for a pixel


def _pass_on(stage: nn.Conv2d, outputs: int, groups: bool) -> None:
    """Make the first `outputs` of a convolution sums of what the stage before prepared."""
    stage.weight[:outputs] = 0
    _bias(stage)[:outputs] = 0
    k = torch.arange(outputs)
    stage.weight[k, k, 1, 1] = 1
    for group, (dy, dx) in enumerate(SIDES if groups else (), start=1):
        stage.weight[k, outputs * group + k, 1 + dy, 1 + dx] = 1


def _bias(stage: nn.Conv2d) -> Tensor:
    assert stage.bias is not None  # an upsampler's convolutions have one
    return stage.bias
