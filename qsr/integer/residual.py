"""QuantSR-C by plans (`qsr.integer.plan`): written down from the network, not traced, one a depth.

    lr -> head                              float, in one fixed order of summation
       -> conv1, ReLU -> conv2, + s x       for each block that runs, on integers
       -> body_conv, + head's result        on integers
       -> tail                              float, collapsed (`qsr.integer.tail`)

Only the residual stream exists as floats, in one map that each block writes over. Of a block that a
depth plan drops its shortcut s is left, a number that multiplies the stream: these numbers are the
end of the finish of the step before. So a block costs what its two convolutions do, or nothing.

On a GPU `program_cuda` runs the same plans.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import cast

import torch
from torch import Tensor

from ..backbone import DepthPlan, QuantSR, block_shortcut
from ..blocks import ResidualBlock, Shortcut
from ..config import NetworkConfig
from ..layers import split_bits
from ..system import native
from . import plan_table
from .executor import Executor, aligned
from .packed_layers import PackedConv2d
from .plan import Plan, Size, Step, Store, Value, lanes
from .program import Buffers, Program
from .tail import REACH


class ResidualProgram(Program):
    """A packed QuantSR-C with the executors of its plans."""

    family, traced = "conv", False  # tables are for sizes that are numbers

    def __init__(
        self, network: QuantSR, kernel: str = "auto", device: str | torch.device = "cpu"
    ) -> None:
        super().__init__(network, kernel, device)
        self.plan = plan_of(network, [True] * len(network.blocks))  # that of all blocks
        self._whole = Executor(self.plan, network, self.kernel)
        self.executor = lru_cache()(self._executor)

    @staticmethod
    def _rows(config: NetworkConfig, device: torch.device) -> tuple[str, ...]:
        """None for a network with a full-precision layer in the body."""
        assert config.bits is not None
        fits = device.type == "cpu" and config.quantize_body_conv
        return native.rows("conv3x3", max(split_bits(config.bits))) if fits else ()

    def _executor(self, keep: tuple[bool, ...]) -> Executor:
        return Executor(plan_of(self.network, keep), self.network, self.kernel, like=self._whole)

    def __str__(self) -> str:
        tail = (2 * REACH + 1) ** 2 * self.config.features * self.tail.outputs
        return plan_table.of_quantsr(self.plan, self.network, tail)

    def buffers(self, height: int, width: int) -> Buffers:
        """A workspace, and the features."""
        sizes = ((height, width),)
        return aligned(self._whole.tables(sizes)[1]), *self._whole.outputs(sizes)

    def features(self, lr: Tensor, plan: DepthPlan, buffers: Buffers) -> Tensor:
        workspace, features = buffers
        x = ((lr - self.mean[0]) * self.config.pixel_range).permute(1, 2, 0).contiguous()
        run = self.executor(plan.keep)
        numbers, _ = run.tables(((x.shape[0], x.shape[1]),))
        run.run([x], numbers, workspace, [features], 0, len(run.plan.steps))
        return features


# The plan -----------------------------------------------------------------------------------------


def plan_of(network: QuantSR, keep: Sequence[bool], channels: int = 0) -> Plan:
    """Head and body of a packed network without the blocks that `keep` drops.

    Its input is the normalised picture, float32 [H, W, 3], and its output the features,
    [H, W, channels]. channels: of maps that are filled up (0: `features`).
    """
    size, channels = Size(0), channels or network.config.features
    values = [Value("float", 3, size), *[Value("float", channels, size)] * 2]
    picture, shallow, stream = range(3)  # the stream is also what comes out
    steps: list[Step] = []

    def step(op: str, source: int, layer: str, finish: tuple, out: int | None, reader: str) -> int:
        """Add a step. Returns the value of the codes that it stores for a layer, if any."""
        codes: tuple[Store, ...] = ()
        if reader:
            conv = cast(PackedConv2d, network.get_submodule(reader))
            codes = (Store(len(values), 0, 0, channels, reader),)
            values.append(
                Value("codes", lanes(channels), size, conv.bits, conv.signed, conv.padding)
            )
        places = ((channels, 0),) if op == "conv" else ()
        steps.append(Step(op, source, channels, size, layer, places, (), finish, out, codes))
        return len(values) - 1

    blocks, factors = _split(network, keep)
    readers = [*(f"{name}.conv1" for name in blocks), "body_conv"]
    codes = step("float_conv", picture, "head", (), shallow, "" if factors[0] else readers[0])
    if factors[0]:
        codes = step("float", shallow, "", factors[0], stream, readers[0])
    source = stream if factors[0] else shallow
    for name, skipped, reader in zip(blocks, factors[1:], readers[1:], strict=True):
        codes = step("conv", codes, f"{name}.conv1", (("relu", None),), None, f"{name}.conv2")
        key = _factor(network, name)
        added = ("scaled", (source, key)) if key else ("add", source)
        out = None if reader == "body_conv" else stream
        codes = step("conv", codes, f"{name}.conv2", (added, *skipped), out, reader)
        source = stream
    step("conv", codes, "body_conv", (("add", shallow),), stream, "")
    return Plan(("lr",), (("features", stream),), False, tuple(values), tuple(steps), ())


def _split(network: QuantSR, keep: Sequence[bool]) -> tuple[list[str], list[tuple]]:
    """Names of blocks that run, and what is left of the others: before the first, after each."""
    blocks: list[str] = []
    skipped: list[list[str]] = [[]]
    for i, (block, runs) in enumerate(zip(network.blocks, keep, strict=True)):
        if runs and isinstance(block, ResidualBlock):
            blocks.append(f"blocks.{i}")
            skipped.append([])
        elif key := _factor(network, f"blocks.{i}"):
            skipped[-1].append(key)
    return blocks, [(("factors", tuple(keys)),) if keys else () for keys in skipped]


def _factor(network: QuantSR, name: str) -> str:
    """The key of the number with which a block multiplies the stream; "" if it is always 1."""
    block = network.get_submodule(name)
    key = f"{name}.scale" if isinstance(block, Shortcut) else f"{name}.shortcut.scale"
    return "" if block_shortcut(block).scale is None else key
