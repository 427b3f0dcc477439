"""CADyQ: quantizers that choose their width for every picture and every layer.

A flat sky needs fewer bits than a fence. Content-Aware Dynamic Quantization puts three PAMS
quantizers of 4, 6 and 8 bits beside each other in front of every layer, and a *selector* that picks
one of them for each picture of the batch:

    logits = Linear([mean |d/dx|, mean |d/dy|, standard deviation of each channel of the input])
    x_hat  = the values of the width with the largest logit        forward
             sum over widths of softmax(logits) x their values     backward, and so for the bits

Backward is that of the mixture, so the clips of widths that were not chosen learn too, each by its
share. The two gradients are those of the low-resolution picture, grey, by Sobel's filter over its
magnitude of 8, edges repeated, times 1000: the same for all layers of a pass. So a pass through a
network has a *scene*, which the quantizers look at and in which they note the bits that they chose:

    with looking_at(lr) as scene:
        sr = net(lr)
    scene.mean_bits()

Training adds `bit_weight * scene.cost()` to the loss, which pulls towards fewer bits. Weights have
one width always, 8 in the paper. Large pictures are worked off in patches of 96 x 96 pixels, each
with bits of its own (`enlarge_patchwise`). Since widths change from picture to picture, such a
network is not packed.

Source: CADyQ (Hong et al., ECCV 2022) and its released code (model/cadyq.py, model/edsr_cadyq.py,
main.py). Differs: the quantizers stand where those of all methods here stand, before each
convolution of the body; the source leaves the one after the body in full precision, adds the
quantised input of a block to its output, and quantises that too.
"""

from __future__ import annotations

import contextlib
import contextvars
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .largest import GREY_LEVELS, PAMS

GREY = (0.299, 0.587, 0.114)  # of RGB, BT.601
SOBEL = ((-1.0, 0.0, 1.0), (-2.0, 0.0, 2.0), (-1.0, 0.0, 1.0))  # d/dx; its transpose is d/dy


@dataclass
class Scene:
    """What the quantizers of one pass look at, and what they chose.

    lr: float RGB [N, 3, H, W] in [0, 1]. bits: for each quantizer in the order of execution, the
    width chosen for each picture, [N], with the gradient of the expected width. expected: the
    expected widths, [N], without gradient.
    """

    lr: Tensor
    bits: list[Tensor] = field(default_factory=list)
    expected: list[Tensor] = field(default_factory=list)

    @cached_property
    def gradients(self) -> Tensor:
        """1000 times the mean of |d/dx| and of |d/dy| of each grey picture: [N, 2]."""
        lr = self.lr.detach()
        grey = torch.einsum("nchw,c->nhw", lr, _constants(lr, GREY))
        sobel = torch.stack([_constants(lr, row) for row in SOBEL])
        filters = torch.stack([sobel, sobel.T])[:, None] / sobel.abs().sum()  # [2, 1, 3, 3]
        edges = F.conv2d(F.pad(grey[:, None], (1, 1, 1, 1), "replicate"), filters)
        return 1000 * edges.abs().mean((2, 3))

    def cost(self) -> Tensor:
        """Sum over the quantizers of chosen / expected width, mean over the pictures: a scalar."""
        ratios = (b / e for b, e in zip(self.bits, self.expected, strict=True))
        return sum(ratios, start=self.lr.new_zeros(())).mean()

    def mean_bits(self) -> float:
        """The mean width of activations over pictures and quantizers."""
        return torch.stack(self.bits).mean().item()


_scene: contextvars.ContextVar[Scene | None] = contextvars.ContextVar("scene", default=None)


@contextlib.contextmanager
def looking_at(lr: Tensor) -> Iterator[Scene]:
    """The scene of a pass through a network with CADyQ quantizers. Inside another one: that one."""
    scene = _scene.get()
    if scene is not None:
        yield scene
        return
    scene = Scene(lr)
    token = _scene.set(scene)
    try:
        yield scene
    finally:
        _scene.reset(token)


def hard_forward(hard: Tensor, soft: Tensor) -> Tensor:
    """The values of `hard`, bit for bit, with the gradient of `soft`.

    >>> soft = torch.tensor([0.2, 0.8], requires_grad=True)
    >>> hard_forward(torch.tensor([0.0, 1.0]), soft).tolist()
    [0.0, 1.0]
    """
    return hard.detach() + (soft - soft.detach())


class CADyQ(PAMS):
    """PAMS with two narrower ones beside it and a selector. For weights: PAMS.

    bits: the widest of three widths: 4, 6, 8 in the paper; 2, 4, 6 for 6; and, since a symmetric
    grid has 2 bits at least, 2, 3, 4 for 4. channels: of the input, [N, channels, H, W]. Starts at
    the widest. Raises ValueError for other inputs or fewer bits.

    >>> q = CADyQ(8, channels=4)
    >>> x = torch.rand(2, 4, 6, 6, generator=torch.Generator().manual_seed(0))
    >>> q.calibrate(x)
    >>> with looking_at(torch.zeros(2, 3, 6, 6)) as scene:
    ...     _ = q(x)
    >>> scene.bits[0].tolist()
    [8.0, 8.0]
    """

    one_grid = False  # pictures of a batch are on grids of their own
    least_bits = (2, 4)  # of inputs the widest of three
    convolutions_only = True
    recipe = {  # The source sums its price of bits, 1e-4, over a batch of 16; here it is the mean.
        **PAMS.recipe,
        "transfer_blocks": 100 / GREY_LEVELS,
        "bit_weight": 16 * 1e-4 / GREY_LEVELS,
    }
    looking_at = staticmethod(looking_at)

    def __init__(
        self,
        bits: int = 8,
        *,
        channels: int | None = None,
        channel_dim: int = 1,
        weights: bool = False,
        **options,
    ) -> None:
        options = {"channels": channels, "channel_dim": channel_dim, **options}
        super().__init__(bits, weights=weights, **options)
        if weights:
            return
        if channels is None or channel_dim != 1:
            raise ValueError(
                f"`channels` is {channels} on dimension {channel_dim}; CADyQ is made for the "
                "inputs [N, channels, H, W] of convolutions. Use another quantizer here."
            )
        self.narrower = nn.ModuleList(PAMS(8, **options) for _ in range(2))
        self.set_bits(bits)
        self.selector = nn.Linear(channels + 2, 3)
        nn.init.ones_(self.selector.weight)  # no width is preferred, but for the bias
        with torch.no_grad():
            self.selector.bias.copy_(torch.tensor([0.0, 0.0, 1.0]))

    def set_bits(self, bits: int) -> None:
        """Change the widths, `bits` the widest of inputs; of weights to bits."""
        super().set_bits(bits)
        if hasattr(self, "narrower"):
            narrower = cast("Iterable[PAMS]", self.narrower)
            for quantizer, width in zip(narrower, widths_up_to(bits), strict=False):
                quantizer.set_bits(width)

    @property
    def widths(self) -> Tensor:
        """The three widths, narrowest first, float [3]."""
        return _constants(self.selector.bias, widths_up_to(self.bits))

    def calibrate(self, x: Tensor) -> None:
        """Set the clip of each width from the data x, as PAMS."""
        super().calibrate(x)
        for quantizer in () if self.weights else cast("Iterable[PAMS]", self.narrower):
            quantizer.calibrate(x)

    def choose(self, x: Tensor, scene: Scene) -> tuple[Tensor, Tensor]:
        """(width chosen for each picture, by its number, [N], share of each, [N, 3]); narrowest
        first.
        """
        values = x.detach().flatten(2)
        pixels = values.shape[2]
        spread = values.std(2, correction=min(1, pixels - 1))  # [N, channels]; of one pixel: 0
        soft = self.selector(torch.cat([scene.gradients, spread], dim=1)).softmax(1)
        return soft.argmax(1), soft

    def forward(self, x: Tensor) -> Tensor:
        """x on the grid of the width chosen for each picture. Raises ValueError without a scene."""
        if self.weights:
            return super().forward(x)
        scene = _scene.get()
        if scene is None:
            raise ValueError(
                "CADyQ chooses bits by the picture, which it was not shown; run the network "
                "inside `with qsr.CADyQ.looking_at(lr):`."
            )
        choice, soft = self.choose(x, scene)
        expected = soft @ self.widths
        scene.bits.append(hard_forward(self.widths[choice], expected))
        scene.expected.append(expected.detach())
        narrower = cast("Iterable[PAMS]", self.narrower)
        values = torch.stack([*(q(x) for q in narrower), super().forward(x)], dim=1)
        chosen = values[torch.arange(len(x), device=x.device), choice]
        return hard_forward(chosen, torch.einsum("nk,nkchw->nchw", soft, values))


def widths_up_to(bits: int) -> tuple[int, int, int]:
    """Three widths, `bits` the widest: 2 apart, as in the paper, or 1 where that would go below 2.

    >>> widths_up_to(8), widths_up_to(6), widths_up_to(4)
    ((4, 6, 8), (2, 4, 6), (2, 3, 4))
    """
    gap = 2 if bits >= 6 else 1
    if bits - 2 * gap < 2:
        raise ValueError(
            f"`bits` is {bits}; CADyQ chooses among three widths of 2 or more, of which this is "
            "the widest. Use 4 to 8 (8 in the paper)."
        )
    return bits - 2 * gap, bits - gap, bits


def _constants(like: Tensor, numbers: Sequence[float]) -> Tensor:
    """Numbers as a tensor like another, [n], filled on its device: a copy from the host could not
    be part of a CUDA graph.
    """
    return torch.stack([like.new_full((), number) for number in numbers])


@torch.no_grad()
def enlarge_patchwise(
    net: Callable[[Tensor], Tensor], lr: Tensor, scale: int, side: int = 96, overlap: int = 6
) -> tuple[Tensor, float]:
    """Enlarge lr [1, 3, H, W] in patches that choose their bits apart: (sr, mean bits).

    side: of a patch, in pixels of lr. overlap: of neighbours, halved between them. The mean is over
    patches and layers, each patch counted once.
    """
    height, width = lr.shape[2:]
    sr = lr.new_empty(1, 3, scale * height, scale * width)
    bits = []
    for top, first_row in _starts(height, side, overlap):
        for left, first_column in _starts(width, side, overlap):
            patch = lr[:, :, top : top + side, left : left + side]
            with looking_at(patch) as scene:
                out = net(patch)
            bits.append(scene.mean_bits())
            rows = slice(scale * first_row, scale * (top + side))
            columns = slice(scale * first_column, scale * (left + side))
            below, right = scale * (first_row - top), scale * (first_column - left)
            sr[:, :, rows, columns] = out[:, :, below:, right:]
    return sr, sum(bits) / len(bits)


@dataclass
class Patchwise:
    """A network with CADyQ quantizers as a function lr -> sr that works patch by patch. bits: the
    mean width of each picture so far."""

    net: Any  # a QuantSR, which is built on these quantizers
    bits: list[float] = field(default_factory=list)

    def __call__(self, lr: Tensor) -> Tensor:
        sr, mean = enlarge_patchwise(self.net, lr, self.net.config.scale)
        self.bits.append(mean)
        return sr


def _starts(length: int, side: int, overlap: int) -> list[tuple[int, int]]:
    """(start of a patch, first pixel taken from it) along one dimension, in order.

    >>> _starts(200, 96, 6)
    [(0, 0), (90, 93), (104, 145)]
    """
    starts = [*range(0, max(1, length - side), side - overlap), max(0, length - side)]
    starts = list(dict.fromkeys(starts))
    ends = [0] + [start + side for start in starts]
    return [
        (start, start and (start + end) // 2) for start, end in zip(starts, ends[:-1], strict=True)
    ]
