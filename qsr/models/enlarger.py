"""A network of somebody's own as what enlarges pictures: `qsr upscale --model mine.qsr`.

A `StoredNetwork` takes tensors and gives tensors; nothing says that it enlarges pictures, by how
much, or of which sides. So it is tried: on small pictures whose sides are multiples of 1, 2, 4 ...,
until one comes back S times as large. What it wants of pictures is then made so: rows and columns
are repeated up to a multiple of that number, and up to the least side it takes, and cut away from
the result.

How far such a network sees is not known (attention looks at all), so pictures are done as a whole,
and `memory` says whether they fit.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ..backbone import DepthPlan
from ..integer.stored import StoredNetwork
from ..system.errors import first_line

MULTIPLES = (1, 2, 4, 8, 16, 32, 64)
COPIES = 1.3  # of what is counted, with what regions and PyTorch copy on the way (RLFN-S: 1.25)
SIDE = 32  # at least, of the pictures that it is tried on


@dataclass(frozen=True)
class Whole:
    """What `infer` asks of a configuration: one depth, and every pixel may see every other."""

    scale: int
    blocks: int = 1
    depths: tuple[int, ...] = (1,)
    window: int = 1

    def reach(self, blocks: int) -> int:
        """Rows that a pixel sees: all of any picture."""
        return 2**31


@dataclass(frozen=True)
class Enlarger:
    """A stored network that makes sr [N, 3, S H, S W] of lr [N, 3, H, W]; an `infer.Model`.

    multiple, least: of the sides of lr. pixel_bytes: working memory for each of its pixels.
    """

    network: StoredNetwork
    config: Any
    multiple: int
    least: int
    pixel_bytes: int

    @classmethod
    @torch.no_grad()
    def of(cls, network: StoredNetwork, name: str) -> Enlarger:
        """Try a network on small pictures; name: of it, for messages. Seconds at most.

        Raises ValueError (one line) if it does not enlarge pictures by a whole number above 1.
        """
        why = ""
        for multiple in MULTIPLES:
            height = -(-SIDE // multiple) * multiple + multiple
            shape = (1, 3, height, height + 2 * multiple)
            try:
                scale = _scale(network, shape)
            except ValueError as error:
                why = why or str(error)
                continue
            sides = range(multiple, height, multiple)
            least = next((n for n in sides if _takes(network, n, scale)), height)
            needed = COPIES * network.needed_bytes(torch.zeros(shape)) / (shape[2] * shape[3])
            return cls(network, Whole(scale), multiple, least, int(needed))
        raise ValueError(
            f"{name} does not enlarge pictures ({why}); a model here makes [N, 3, S H, S W] of "
            "[N, 3, H, W], S a whole number above 1."
        )

    @property
    def mean(self) -> Tensor:
        """Zeros, where a QuantSR has what it subtracts: of the type and device of its pictures."""
        return torch.zeros(1, 3, 1, 1)

    def plan(self, blocks: int | None = None) -> DepthPlan:
        """The only depth. Raises ValueError for another than 1 or None."""
        if blocks not in (None, 1):
            raise ValueError(f"`blocks` is {blocks}; this network has one depth. Leave it out.")
        return DepthPlan.from_order((0,), 1)

    def pieces(
        self, lr: Tensor, plan: DepthPlan, first: int, last: int
    ) -> Iterator[tuple[int, Tensor]]:
        """(first, sr rows from there on) for the rows [first, last) of lr [N, 3, H, W]."""
        scale = self.config.scale
        yield first, self(lr)[:, :, scale * first : scale * last]

    @torch.no_grad()
    def __call__(self, lr: Tensor, blocks: int | None = None) -> Tensor:
        """lr float [N, 3, H, W] in [0, 1] -> sr [N, 3, S H, S W]."""
        height, width = lr.shape[2:]
        bottom, right = (self._missing(n) for n in (height, width))
        filled = F.pad(lr, (0, right, 0, bottom), "replicate") if bottom or right else lr
        scale = self.config.scale
        return self.network(filled)[:, :, : scale * height, : scale * width]

    def _missing(self, side: int) -> int:
        """How many pixels a side lacks."""
        return max(-(-side // self.multiple) * self.multiple, self.least) - side

    def release(self) -> None:
        """Free the working memory that is kept for the next call."""
        self.network.release()


def _scale(network: StoredNetwork, shape: tuple[int, ...]) -> int:
    """By how much a network enlarges pictures of this shape. Raises ValueError."""
    try:
        sr = network.layer_by_layer(torch.zeros(shape))  # a plan remembers what did not fit
    except Exception as error:  # whatever PyTorch makes of operators that do not fit
        raise ValueError(f"it does not take {list(shape)}: {first_line(error)}") from error
    n, _, height, width = shape
    scale = sr.shape[2] // height if isinstance(sr, Tensor) and sr.ndim == 4 else 0
    if scale < 2 or sr.shape != (n, 3, scale * height, scale * width):
        made = list(sr.shape) if isinstance(sr, Tensor) else f"a {type(sr).__name__}"
        raise ValueError(f"it makes {made} of {list(shape)}")
    return scale


def _takes(network: StoredNetwork, side: int, scale: int) -> bool:
    """Whether pictures of this side are enlarged too."""
    try:
        return _scale(network, (1, 3, side, side)) == scale
    except ValueError:
        return False
