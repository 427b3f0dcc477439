"""QuantSR by plans (`qsr.integer.plan`): written down from the network, not traced, one a depth.

A depth plan is a value, which no trace sees. So the steps of head and body are written for the
blocks that run, and of a block that does not its shortcut s is left, a number that multiplies the
stream: these numbers are the end of the finish of the step before. `residual` writes the steps of
QuantSR-C, `swin` those of QuantSR-T. All depths run on the same laid out weights, and in the
workspace of the deepest.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import cast

import torch
from torch import Tensor, nn

from ..backbone import DepthPlan, QuantSR, block_shortcut, reflect_to_multiple
from ..blocks import Shortcut
from . import plan_table
from .executor import Executor, aligned
from .packed_layers import PackedConv2d
from .plan import Plan, Size, Step, Store, Value, lanes
from .program import Buffers, Program

PICTURE, SHALLOW, STREAM = range(3)  # the values that all plans begin with; STREAM comes out
SIZE = Size(0)  # of every map
Finish = tuple[tuple[str, object], ...]


class DepthProgram(Program):
    """A packed QuantSR with the executors of its plans."""

    def __init__(
        self, network: QuantSR, kernel: str = "auto", device: str | torch.device = "cpu"
    ) -> None:
        super().__init__(network, kernel, device)
        self.plan = self.plan_of(network, [True] * len(network.blocks))
        self._whole = self._executor(self.plan)
        self.executor = lru_cache()(self._executor_of)

    @staticmethod
    def plan_of(network: QuantSR, keep: Sequence[bool]) -> Plan:
        """Head and body of a packed network without the blocks that `keep` drops."""
        raise NotImplementedError

    def _executor(self, plan: Plan, like: Executor | None = None) -> Executor:
        """One on `self.kernel`."""
        return Executor(plan, self.network, self.kernel, like=like)

    def _executor_of(self, keep: tuple[bool, ...]) -> Executor:
        return self._executor(self.plan_of(self.network, keep), self._whole)

    def __str__(self) -> str:
        return plan_table.of_quantsr(self)

    def buffers(self, height: int, width: int) -> Buffers:
        """A workspace, and the features."""
        window = self.config.window
        sizes = ((-(-height // window) * window, -(-width // window) * window),)
        return aligned(self._whole.tables(sizes)[1]), *self._whole.outputs(sizes)

    def features(self, lr: Tensor, plan: DepthPlan, buffers: Buffers) -> Tensor:
        workspace, features = buffers
        x = (lr[None] - self.mean) * self.config.pixel_range
        x = reflect_to_multiple(x, self.config.window)[0].permute(1, 2, 0).contiguous()
        run = self.executor(plan.keep)
        numbers, _ = run.tables(((x.shape[0], x.shape[1]),))
        run.run([x], numbers, workspace, [features], 0, len(run.plan.steps))
        return features


# Writing ------------------------------------------------------------------------------------------


class Writer:
    """The steps of a plan as they are written. channels: of maps, `features` of them used. Its
    input is the normalised picture, float32 [H, W, 3], its output the features, [H, W, channels].
    """

    def __init__(self, network: QuantSR, channels: int) -> None:
        self.network, self.channels = network, channels
        self.values = [Value("float", n, SIZE) for n in (3, channels, channels)]
        self.steps: list[Step] = []

    def map(self) -> int:
        """One more map of floats."""
        self.values.append(Value("float", self.channels, SIZE))
        return len(self.values) - 1

    def step(
        self,
        op: str,
        source: int,
        layer: str,
        finish: Finish = (),
        out: int | None = None,
        reader: str = "",
    ) -> int:
        """Add a step. Returns the value of the codes that it stores for the layer `reader`."""
        codes: tuple[Store, ...] = ()
        features, channels = self.network.config.features, self.channels
        if reader:
            conv = cast(PackedConv2d, self.network.get_submodule(reader))
            codes = (Store(len(self.values), 0, 0, features, reader),)
            self.values.append(
                Value("codes", lanes(channels), SIZE, conv.bits, conv.signed, conv.padding)
            )
        places = ((features, 0),) if op == "conv" else ()
        self.steps.append(Step(op, source, channels, SIZE, layer, places, (), finish, out, codes))
        return len(self.values) - 1

    def plan(self) -> Plan:
        """What has been written."""
        output = (("features", STREAM),)
        return Plan(("lr",), output, False, tuple(self.values), tuple(self.steps), ())


def split(network: QuantSR, keep: Sequence[bool]) -> tuple[list[str], list[Finish]]:
    """Names of blocks that run, and what is left of the others: before the first, after each."""
    blocks: list[str] = []
    skipped: list[list[str]] = [[]]
    for i, (block, runs) in enumerate(zip(network.blocks, keep, strict=True)):
        if runs and not isinstance(block, Shortcut):
            blocks.append(f"blocks.{i}")
            skipped.append([])
        elif key := _factor(block, f"blocks.{i}"):
            skipped[-1].append(key)
    return blocks, [(("factors", tuple(keys)),) if keys else () for keys in skipped]


def shortcut(network: QuantSR, name: str, source: int) -> tuple[str, object]:
    """The operation that adds the shortcut of a block, of which `source` is the input."""
    key = _factor(network.get_submodule(name), name)
    return ("scaled", (source, key)) if key else ("add", source)


def _factor(block: nn.Module, name: str) -> str:
    """The key of the number with which a block multiplies the stream; "" if it is always 1."""
    key = f"{name}.scale" if isinstance(block, Shortcut) else f"{name}.shortcut.scale"
    return "" if block_shortcut(block).scale is None else key
