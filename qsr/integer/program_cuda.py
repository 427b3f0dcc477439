"""QuantSR-C on a GPU: the steps of its plan (`residual`), launched one after another.

One native call (csrc/cuda/network.h) takes a table of the steps. Maps have whole 64 channels; the
head and what follows it are one launch. Compiled and emulated on the processor, bit for bit, but
never run.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import cast

import torch
from torch import Tensor
from torch.nn import functional as F

from ..backbone import DepthPlan, QuantSR
from ..config import NetworkConfig
from ..layers import split_bits
from . import kernels
from .lifetimes import places
from .packed_layers import PackedConv2d
from .plan import operand_value
from .plan_reference import parameter
from .program import Buffers, Program, filled
from .residual import plan_of

MOST_BLOCKS = 64  # kMostSkips of csrc/cuda/imma.h


class CudaProgram(Program):
    """A packed QuantSR-C with its layers laid out for tensor cores. device: "cpu" for the emulation
    of tests, which lays them out itself.
    """

    family = "conv"

    def __init__(
        self, network: QuantSR, kernel: str = "auto", device: str | torch.device = "cpu"
    ) -> None:
        super().__init__(network, kernel, device)
        fill = (0, self.channels - self.config.features)
        weight = F.pad(network.head.weight.permute(2, 3, 1, 0), fill).contiguous()
        self.head = weight.to(self.device), filled(network.head.bias, self.channels).to(self.device)
        self.plan = plan_of(network, [True] * len(network.blocks))
        self.layers = self.plan.layers
        packed = [cast(PackedConv2d, network.get_submodule(name)) for name in self.layers]
        convs = [CodeConv(layer, self.channels) for layer in packed]
        self.codes = torch.stack([conv.codes for conv in convs]).to(self.device)
        self.arrays = torch.stack([conv.array for conv in convs]).to(self.device)
        self.numbers = torch.stack([conv.number for conv in convs])  # for the launcher
        if self.device.type == "cuda":
            self.weights = torch.ops.qsr_native.lay_out_imma(self.codes)
        self.table = lru_cache()(self._table)

    @staticmethod
    def _rows(config: NetworkConfig, device: torch.device) -> tuple[str, ...]:
        """None on the processor, for a full-precision layer in the body, or beyond MOST_BLOCKS."""
        assert config.bits is not None
        fits = config.quantize_body_conv and config.blocks <= MOST_BLOCKS and device.type != "cpu"
        return kernels.native_rows("conv3x3", device, max(split_bits(config.bits))) if fits else ()

    def buffers(self, height: int, width: int) -> Buffers:
        """A workspace and behind it, as a view, the features."""
        *_, needed = self.table((True,) * len(self.network.blocks), height, width)
        count = height * width * self.channels
        room = torch.empty(needed + 4 * count, dtype=torch.uint8, device=self.device)
        return room, room[needed:].view(torch.float32).view(height, width, self.channels)

    def features(self, lr: Tensor, plan: DepthPlan, buffers: Buffers) -> Tensor:
        table, factors, _ = self.table(plan.keep, *lr.shape[1:])
        arrays = self.weights, self.arrays, self.numbers, table, factors, buffers[0]
        picture = lr.contiguous(), self.mean, self.config.pixel_range
        torch.ops.qsr_native.run_imma(*picture, *self.head, *arrays)
        return buffers[1]

    def _table(self, keep: Sequence[bool], height: int, width: int) -> tuple[Tensor, Tensor, int]:
        """Steps as an ImmaStep each, int64 [steps, 10]; factors; bytes of the workspace."""
        plan = plan_of(self.network, keep, self.channels)
        offsets, _ = places(plan, [(height, width)])
        whole = plan_of(self.network, [True] * len(keep), self.channels)
        needed = places(whole, [(height, width)])[1]
        offsets[plan.outputs[0][1]] = needed
        index, factors = {name: i for i, name in enumerate(self.layers)}, [1.0]
        rows: list[list[int]] = []
        for step in plan.steps:
            source, out = step.source, step.out
            if step.op == "float_conv":
                source, out = cast(int, out), None
            at = -1 if out is None else offsets[out]
            row = [index.get(step.layer, -1), offsets[source], 0, -1, 0, 0, 0, at, -1, 0]
            for op, operand in step.finish:
                row[2] |= op == "relu"
                if (value := operand_value(op, operand)) is not None:
                    row[3:5] = offsets[value], len(factors) if op == "scaled" else 0
                keys = operand if op == "factors" else operand[1:] if op == "scaled" else ()
                if op == "factors":
                    row[5:7] = len(factors), len(keys)
                factors += [parameter(key, self.network).item() for key in keys]
            for store in step.codes:
                row[8:] = offsets[store.value], index[store.reader]
            if step.op == "float":  # the head goes on
                rows.pop()
            rows.append(row)
        return torch.tensor(rows, device="cpu"), numbers(factors), needed


def numbers(values: Sequence[float]) -> Tensor:
    """float32 [n], whatever PyTorch's default type is."""
    return torch.tensor(values, dtype=torch.float32, device="cpu")


class CodeConv:
    """A packed 3x3 layer, channels filled up.

    codes: int8 [C, 3, 3, C]; array: scale, bias and tau, float32 [3, C]; number: step size, lowest
    and highest code of the input, and whether it is signed, float32 [4].
    """

    def __init__(self, conv: PackedConv2d, channels: int) -> None:
        features = len(conv.weight)
        fill = (0, channels - features)
        self.codes = F.pad(kernels.unpack_codes(conv.planes), (*fill, 0, 0, 0, 0, *fill))
        arrays = (conv.scale.expand(features), conv.bias, conv.tau)
        self.array = torch.stack([filled(x, channels) for x in arrays])
        spec, step = conv.spec, conv.step_size.item()
        self.number = numbers([step, spec.qmin, spec.qmax, spec.signed])
