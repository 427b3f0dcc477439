"""Several processes that train one network, each on its share of every batch.

`torchrun --nproc-per-node 2 -m qsr.cli train ...` starts equal processes (ranks) and tells each its
number in the environment; `started` joins them. Gradients are averaged by PyTorch's
DistributedDataParallel, whose result is that of one process with the whole batch. What only one may
do, writing files above all, rank 0 does while the others wait.

Without torchrun there is one process, and every function here does what that one needs.
"""

from __future__ import annotations

import contextlib
import os
import warnings
from collections.abc import Iterator
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch import distributed as dist
from torch.nn.parallel import DistributedDataParallel

AnyModule = TypeVar("AnyModule", bound=nn.Module)


@contextlib.contextmanager
def started(device: str) -> Iterator[torch.device]:
    """Join the ranks that torchrun started, if it did, and leave them at the end.

    device: "cpu" or "cuda". Yields the device of this rank: with several ranks on GPUs, one each.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1 or dist.is_initialized():
        yield torch.device(device)
        return
    here = torch.device(device)
    if here.type == "cuda":
        here = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(here)
    dist.init_process_group("nccl" if here.type == "cuda" else "gloo")
    try:
        yield here
    finally:
        dist.destroy_process_group()


def _several() -> bool:
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def rank() -> int:
    """The number of this process, 0 if it is alone."""
    return dist.get_rank() if _several() else 0


def size() -> int:
    """The number of processes."""
    return dist.get_world_size() if _several() else 1


def parallel(module: AnyModule) -> AnyModule | DistributedDataParallel:
    """`module` in the wrapper that averages gradients, or as it is if this process is alone.

    All ranks start from rank 0's values, quantizers' signs among them.
    """
    if not _several():
        return module
    state = {name: value.contiguous() for name, value in module.state_dict().items()}
    for value in state.values():
        dist.broadcast(value, 0)
    module.load_state_dict(state)
    with warnings.catch_warnings():  # torch 2.13 renames the option and keeps the old name
        warnings.simplefilter("ignore", FutureWarning)
        return DistributedDataParallel(module, broadcast_buffers=False)


def mean(values: Tensor) -> Tensor:
    """The mean of `values` over all ranks; the same on each of them."""
    if _several():
        dist.all_reduce(values)
        values /= dist.get_world_size()
    return values


def any_rank(flag: bool, device: torch.device) -> bool:
    """Whether the flag is set on some rank; the same on each of them."""
    if not _several():
        return flag
    value = torch.tensor(float(flag), device=device)
    dist.all_reduce(value, dist.ReduceOp.MAX)
    return bool(value)


def wait() -> None:
    """Until all ranks are here."""
    if _several():
        dist.barrier()
