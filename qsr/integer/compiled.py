"""A packed network inside torch.compile: one operator.

Compiled layer by layer, a network would be what its program saves: QuantSR-C x4 took five times as
long (docs/log.md), after half a minute of Inductor's time, and a transformer minutes. So a compiled
function calls the network as it is. An operator takes tensors and numbers, no modules; it
knows a network by its number, for as long as that lives.

torch.export writes layers: a file has no use for such a number.
"""

from __future__ import annotations

import itertools
from typing import Any
from weakref import WeakValueDictionary

import torch
from torch import Tensor

_NETWORKS = WeakValueDictionary[int, Any]()
_NUMBERS = itertools.count()


def number(network: Any) -> int:
    """A new one, by which `run` knows this packed QuantSR."""
    one = next(_NUMBERS)
    _NETWORKS[one] = network
    return one


@torch.library.custom_op("qsr::packed", mutates_args=())
def run(lr: Tensor, network: int, blocks: int | None) -> Tensor:
    """What network `network` makes of lr with `blocks` blocks (None: all). Has no gradient."""
    return _NETWORKS[network](lr, blocks).contiguous()  # a whole picture, where it cuts off windows


@run.register_fake
def _(lr: Tensor, network: int, blocks: int | None) -> Tensor:
    scale = _NETWORKS[network].config.scale
    size = len(lr), 3, scale * lr.shape[2], scale * lr.shape[3]
    return torch.empty(size, dtype=torch.float32, device=lr.device)
