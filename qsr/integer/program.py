"""What planned programs share: one kernel, weights laid out once, buffers that are used again.

Layer by layer, a packed network writes every float map to memory and reads it again, and allocates
as it goes. A program does the same arithmetic, in the same order for every pixel, in fused native
calls. So its features are those of the layers, bit for bit; only the tail, collapsed into one
convolution (`qsr.integer.tail`), sums in another order.

A program may be called by several threads at once. What it has laid out nobody changes; the maps in
between are a call's own, from the first picture of a batch to the last. Then they wait for the next
call (`Idle`): memory that comes fresh from the system has to be cleared page by page. Inside a call
threads are torch's.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterable
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from ..backbone import DepthPlan, QuantSR
from ..config import NetworkConfig
from .plan import Plan
from .tail import CollapsedTail

Buffers = tuple[Tensor, ...]
MAP_CHANNELS = 64  # kProgramChannels of csrc/torch


class Program:
    """A packed network, planned. `network`: one whose layers are packed throughout, on the CPU.

    kernel: "auto" or a name from `available(network.config, device)`. Raises ValueError for
    another. device: where the program runs, and its pictures are.
    The program copies what it lays out: later changes of the network do not reach it.
    """

    family: ClassVar[str]  # of the configurations that it runs
    plan: Plan  # of all blocks
    maps: ClassVar[int] = 2 * 4 + 2 * 1  # bytes of a channel: two maps of floats and two of codes

    def __init__(
        self, network: QuantSR, kernel: str = "auto", device: str | torch.device = "cpu"
    ) -> None:
        config = network.config
        self.device = torch.device(device)
        names = self.available(config, self.device)
        if kernel not in ("auto", *names):
            raise ValueError(
                f"`kernel` is {kernel!r}; programs of this network have {', '.join(names)}."
            )
        self.kernel = names[0] if kernel == "auto" else kernel
        self.network, self.config, self.channels = network, config, padded(config.features)
        self.mean = network.mean.float().contiguous().to(self.device)
        self.tail = CollapsedTail(
            network.tail,
            config.scale,
            config.pixel_range,
            network.mean.float().flatten(),
            self.channels,
            device=self.device,
        )
        self._idle = Idle()

    @classmethod
    def available(
        cls, config: NetworkConfig, device: str | torch.device = "cpu"
    ) -> tuple[str, ...]:
        """Names of the kernels that a program of this network can run on, best first.

        Empty: no program; the network runs layer by layer. So it is without native code, for a
        network of another family, without quantised layers or with layers of several widths.
        """
        fits = config.family == cls.family and config.bits is not None and not config.layer_bits
        return cls._rows(config, torch.device(device)) if fits else ()

    @staticmethod
    def _rows(config: Any, device: torch.device) -> tuple[str, ...]:
        """The same for a network of the family whose quantised layers have one width."""
        raise NotImplementedError

    @property
    def pixel_bytes(self) -> int:
        """Working memory per lr pixel: maps, lr and sr."""
        return self.maps * self.channels + 4 * 2 * 3 + 4 * 3 * self.tail.scale**2

    def buffers(self, height: int, width: int) -> Buffers:
        """New ones for lr of this size. The last of them is where `features` come."""
        raise NotImplementedError

    def features(self, lr: Tensor, plan: DepthPlan, buffers: Buffers) -> Tensor:
        """lr float32 [3, H, W] -> float32 [H, W, C], H and W up to whole windows, C filled up.

        What is in `buffers` is overwritten, and the result may be one of them.
        """
        raise NotImplementedError

    def __call__(self, lr: Tensor, plan: DepthPlan) -> Tensor:
        """lr float [N, 3, H, W], N >= 1 -> sr float32 [N, 3, scale H, scale W], not clipped."""
        size = (lr.shape[-2], lr.shape[-1])
        buffers = self._idle.take(size)
        if buffers is None:
            with torch.inference_mode(False):  # the next call may come without that mode
                buffers = self.buffers(*size)
        sr = self._run(lr, plan, buffers)
        self._idle.give(size, buffers)
        return sr

    def __str__(self) -> str:
        return f"a program without a plan of steps, on {self.kernel}"

    def release(self) -> None:
        """Free the buffers that wait for the next call."""
        self._idle.clear()

    def _run(self, lr: Tensor, plan: DepthPlan, buffers: Buffers) -> Tensor:
        features = (self.features(picture, plan, buffers) for picture in lr.float())
        return self.enlarged(features, *lr.shape[-2:])

    def enlarged(self, features: Iterable[Tensor], height: int, width: int) -> Tensor:
        """What the tail makes of the features [H, W, C] of pictures of this size."""
        height, width = self.config.scale * height, self.config.scale * width
        pictures = [self.tail(x)[:, :height, :width] for x in features]
        return pictures[0][None] if len(pictures) == 1 else torch.stack(pictures)


class Idle:
    """Buffers between two calls, as many as there are processors; more calls at once gain nothing.

    `take` and `give` are one operation of a deque each, which no other thread can divide. Who finds
    buffers of another size drops them before making new ones: so there never are more of them, idle
    or in use, than calls ran at once.
    """

    def __init__(self) -> None:
        self._waiting: deque[tuple[tuple[int, int], Buffers]] = deque(maxlen=os.cpu_count())

    def take(self, size: tuple[int, int]) -> Buffers | None:
        """Those given last, which the caches may still hold; None if they have another size."""
        try:
            given, buffers = self._waiting.pop()
        except IndexError:
            return None
        return buffers if given == size else None

    def give(self, size: tuple[int, int], buffers: Buffers) -> None:
        """Beyond the limit those that wait longest are freed."""
        self._waiting.append((size, buffers))

    def clear(self) -> None:
        self._waiting.clear()


# Laying out ---------------------------------------------------------------------------------------


def padded(channels: int) -> int:
    """Channels inside a program: filled up to a multiple of 64.

    >>> padded(60), padded(180)
    (64, 192)
    """
    return -(-channels // MAP_CHANNELS) * MAP_CHANNELS


def filled(x: Tensor | None, length: int) -> Tensor:
    """float32 [n] -> [length], filled up with zeros; zeros for None."""
    if x is None:
        return torch.zeros(length, dtype=torch.float32)
    return F.pad(x.detach().float(), (0, length - len(x)))
