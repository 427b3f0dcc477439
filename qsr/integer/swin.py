"""The plans of QuantSR-T (`depths`).

    lr -> head -> norm_in                   float32, in one fixed order of summation
       -> layers of a block                 one step each, window by window, on integers
       -> its convolution, + s x            on integers
       -> norm_out -> body_conv, + head's result
       -> tail                              float, collapsed (`qsr.integer.tail`)

Layer by layer, a packed Swin network writes scores, probabilities and hidden values of the whole
picture to memory: at 128x128 the scores of one layer alone are 25 MB. But between reading the
stream and writing it back, everything a Swin layer does stays inside one window of 64 pixels. So a
layer is one step, which runs window by window (csrc/network/swin.h), with all that lies between in
scratch memory of each thread, and picks the pixels of a shifted window by their index: nothing is
rolled, cut into windows or copied.

Maps have whole 64 channels, as the layers read and write them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch

from ..backbone import QuantSR
from ..blocks import SwinBlock
from ..config import SwinConfig
from ..layers import split_bits
from ..system import native
from .depths import PICTURE, SHALLOW, STREAM, DepthProgram, Writer, shortcut, split
from .executor import Executor
from .plan import Plan
from .program import padded


def plan_of(network: QuantSR, keep: Sequence[bool]) -> Plan:
    """Head and body of a packed network without the blocks that `keep` drops."""
    write = Writer(network, padded(network.config.features))
    blocks, factors = split(network, keep)
    write.step("float_conv", PICTURE, "head", (), SHALLOW)
    write.step("norm", SHALLOW, "norm_in", factors[0], STREAM)
    for name, skipped in zip(blocks, factors[1:], strict=True):
        *layers, last = range(len(cast(SwinBlock, network.get_submodule(name)).layers))
        source, inside = STREAM, write.map()  # the stream in a block, which needs its input later
        for i in layers:
            write.step("swin", source, f"{name}.layers.{i}", (), inside)
            source = inside
        codes = write.step("swin", source, f"{name}.layers.{last}", (), inside, f"{name}.conv")
        finish = (shortcut(network, name, STREAM), *skipped)
        write.step("conv", codes, f"{name}.conv", finish, STREAM)
    added = (("add", SHALLOW),)
    if network.config.quantize_body_conv:
        codes = write.step("norm", STREAM, "norm_out", reader="body_conv")
        write.step("conv", codes, "body_conv", added, STREAM)
    else:
        normed = write.map()
        write.step("norm", STREAM, "norm_out", (), normed)
        write.step("float_conv", normed, "body_conv", added, STREAM)
    return write.plan()


class SwinProgram(DepthProgram):
    """A packed QuantSR-T with the executors of its plans. Its kernel is that of layers in windows;
    convolutions take the best.
    """

    family, plan_of = "swin", staticmethod(plan_of)
    maps = 3 * 4 + 1

    def _executor(self, plan: Plan, like: Executor | None = None) -> Executor:
        return Executor(plan, self.network, swin=self.kernel, like=like)

    @staticmethod
    def _rows(config: SwinConfig, device: torch.device) -> tuple[str, ...]:
        """By the most bits that two factors of the network have together; none on a GPU."""
        if device.type != "cpu":
            return ()
        assert config.bits is not None  # else no program is available
        most = sum(split_bits(config.bits))  # weights are signed
        if config.attention_bits is not None:
            # One more where k or v is unsigned: so the kernel fits whatever calibration decided.
            most = max(most, min(16, sum(split_bits(config.attention_bits)) + 1))
        return native.rows("attention", most)
