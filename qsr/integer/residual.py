"""The plans of QuantSR-C (`depths`).

    lr -> head                              float, in one fixed order of summation
       -> conv1, ReLU -> conv2, + s x       for each block that runs, on integers
       -> body_conv, + head's result        on integers
       -> tail                              float, collapsed (`qsr.integer.tail`)

Only the residual stream exists as floats, in one map that each block writes over. So a block costs
what its two convolutions do, or nothing.

On a GPU `program_cuda` runs the same plans.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ..backbone import QuantSR
from ..config import NetworkConfig
from ..layers import split_bits
from ..system import native
from .depths import PICTURE, SHALLOW, STREAM, DepthProgram, Writer, shortcut, split
from .plan import Plan


def plan_of(network: QuantSR, keep: Sequence[bool], channels: int = 0) -> Plan:
    """Head and body of a packed network without the blocks that `keep` drops. channels: of maps
    that are filled up (0: `features`).
    """
    write = Writer(network, channels or network.config.features)
    blocks, factors = split(network, keep)
    readers = [*(f"{name}.conv1" for name in blocks), "body_conv"]
    codes = write.step("float_conv", PICTURE, "head", (), SHALLOW, "" if factors[0] else readers[0])
    if factors[0]:
        codes = write.step("float", SHALLOW, "", factors[0], STREAM, readers[0])
    source = STREAM if factors[0] else SHALLOW
    for name, skipped, reader in zip(blocks, factors[1:], readers[1:], strict=True):
        relu = (("relu", None),)
        codes = write.step("conv", codes, f"{name}.conv1", relu, None, f"{name}.conv2")
        finish = (shortcut(network, name, source), *skipped)
        out = None if reader == "body_conv" else STREAM
        codes = write.step("conv", codes, f"{name}.conv2", finish, out, reader)
        source = STREAM
    write.step("conv", codes, "body_conv", (("add", SHALLOW),), STREAM)
    return write.plan()


class ResidualProgram(DepthProgram):
    """A packed QuantSR-C with the executors of its plans."""

    family, plan_of = "conv", staticmethod(plan_of)

    @staticmethod
    def _rows(config: NetworkConfig, device: torch.device) -> tuple[str, ...]:
        """None for a network with a full-precision layer in the body."""
        assert config.bits is not None
        fits = device.type == "cpu" and config.quantize_body_conv
        return native.rows("conv3x3", max(split_bits(config.bits))) if fits else ()
