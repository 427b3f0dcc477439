"""The checkpoint that the authors of QuantSR released, as a network of this library.

They published test code and a 4-bit QuantSR-C x4 (github.com/htqin/QuantSR), written by BasicSR: a
.pth file {"params": {name: tensor}}, or "params_ema". Its names, and ours:

    conv_first.*                          head.*
    body.N.learnable_shortcut             blocks.N.shortcut.scale
    body.N.conv1.weight, .bias            blocks.N.conv1.weight, .bias          (conv2 likewise)
    body.N.conv1.alpha                    blocks.N.conv1.weight_quantizer.step_size
    body.N.conv1.channel_threshold        blocks.N.conv1.input_quantizer.tau
    body.N.conv1.ActOurs.alpha            blocks.N.conv1.input_quantizer.step_size
    body.N.conv1.ActOurs.signed           the sign of that quantizer's codes
    body.N.conv1[.ActOurs].init_state     whether a quantizer is calibrated
    conv_after_body.*                     body_conv.*, in full precision (the paper counts it as
                                          quantised)
    upsample.0.*, .2.*, conv_last.*       the convolutions of tail, in this order

The file does not say how many bits its codes have, nor which blocks a shallower network keeps. The
test script lists the blocks for 4 bits at x4, the most valuable first (`ORDER`). It then skips the
blocks whose place in the list, counted from 0, is *greater* than 16 (and than 8): so what is
reported as 16 and 8 blocks ran with 17 and 9. Here `net.plan(17)` and `net.plan(9)` are what the
script runs, `net.plan(16)` and `net.plan(8)` what the paper says.

Nothing in the file is executed (`torch.load` with `weights_only`); see docs/decisions/0013.
"""

from __future__ import annotations

import itertools
import os
import re
from typing import cast

import torch
from torch import Tensor, nn

from ..backbone import QuantSR, rank_blocks
from ..config import ConvConfig, NetworkConfig, quantsr_c
from ..layers import Bits, split_bits
from .foreign import read_tensors

# "Specified for QuantSR-C (4-bit, 4x), determined by training", says the script.
ORDER = (31, 30, 29, 8, 27, 13, 28, 15, 7, 10, 18, 17, 19, 20, 22, 6, 11, 16, 12, 23, 24, 25, 21,
         14, 9, 26, 5, 4, 3, 2, 1, 0)  # fmt: skip


def load_official(path: str | os.PathLike, config: NetworkConfig | None = None) -> QuantSR:
    """The network of a checkpoint with the released key layout, in eval mode, on the CPU.

    config: what the network is, as qsr.quantsr_c(scale, bits, quantize_body_conv=False). Without
    it scale, blocks and features are read from the shapes of the tensors, the codes have 4 bits as
    in the one released file, and the depths are those that the released script runs: 32, 17, 9.
    Blocks are ordered as in that script if it is its network (32 blocks, x4, 4 bits), else by their
    shortcuts (`rank_blocks`).
    Raises ValueError (one line) for a file that is missing, damaged or holds more than tensors, for
    other keys or shapes, steps that are not positive, layers that never saw data, or a
    configuration that the released code can't have.
    """
    released = read_tensors(path, "a QuantSR checkpoint", ("params", "params_ema"))
    if config is None:
        config = _config(path, released)
    _check_config(config)
    net = QuantSR(config)
    state = _translated(path, released, net)
    state["block_order"] = net.block_order
    net.load_state_dict(state)
    scripted = (config.scale, split_bits(cast(Bits, config.bits)), config.blocks) == (
        4,
        (4, 4),
        len(ORDER),
    )
    net.block_order.copy_(torch.tensor(ORDER if scripted else rank_blocks(net)))
    return net.eval()


def _config(path: str | os.PathLike, released: dict[str, Tensor]) -> ConvConfig:
    """What the shapes say: scale, blocks and features."""
    numbers = [int(m[1]) for m in map(re.compile(r"body\.(\d+)\.").match, released) if m]
    try:
        features = len(released["conv_first.weight"])
        blocks = max(numbers) + 1
        grown = len(released["upsample.0.weight"]) // features  # the square of the first factor
        scale = 4 if "upsample.2.weight" in released else {4: 2, 9: 3}[grown]
    except (KeyError, ValueError, TypeError, ZeroDivisionError) as error:
        raise ValueError(
            f"{path} does not look like the released QuantSR-C: its names and shapes do not say "
            "scale, blocks and features. No other network was released."
        ) from error
    # The script's skips, `place > blocks // 2`, leave one block more than a half and a quarter.
    depths = tuple(sorted({blocks, blocks // 2 + 1, blocks // 4 + 1}, reverse=True))
    return quantsr_c(
        scale,
        4,
        blocks,
        tuple(depth for depth in depths if depth <= blocks),
        features=features,
        quantize_body_conv=False,
    )


def _check_config(config: NetworkConfig) -> None:
    if config.family != "conv":
        raise ValueError(
            f"`config` is a {type(config).__name__}; only QuantSR-C was released. Make it with "
            "qsr.quantsr_c(scale, bits, quantize_body_conv=False)."
        )
    wanted = {
        "quantize_body_conv": False,
        "quantizer": "rlq",
        "per_channel": False,
        "learnable_shortcuts": True,
        "dropped": (),
    }
    for name, value in wanted.items():
        if (given := getattr(config, name)) != value:
            raise ValueError(
                f"`config.{name}` is {given!r} and that of the released network {value!r}; make it "
                "with qsr.quantsr_c(scale, bits, quantize_body_conv=False)."
            )
    if config.bits is None:
        raise ValueError("`config.bits` is None; the released network is quantised. Give it bits.")


def _translated(
    path: str | os.PathLike, released: dict[str, Tensor], net: QuantSR
) -> dict[str, Tensor]:
    """The state dict of `net` from released tensors, but for the order of blocks."""
    names, flags = _names(net)
    expected = {*names.values(), *itertools.chain(*flags.values())}
    lacking, foreign = expected - set(released), set(released) - expected
    for what, those in (("lacks", lacking), ("also has", foreign)):
        if those:
            raise ValueError(
                f"{path} {what} {min(those)!r} ({len(those)} in all), so it is no QuantSR-C of "
                "this configuration. Check scale and blocks; no other network was released."
            )
    state, own = {}, dict(net.named_parameters())
    for target, name in names.items():
        value, shape = released[name], own[target].shape
        if [n for n in value.shape if n > 1] != [n for n in shape if n > 1]:  # [1] for [], ...
            raise ValueError(
                f"{path} has {name!r} of shape {tuple(value.shape)}, and this configuration needs "
                f"{tuple(shape)}. Check scale and features."
            )
        if target.endswith("step_size") and not (value > 0 and value.isfinite()):
            raise ValueError(
                f"{path} has {name!r} = {value.item():g}, and a step size is positive and finite. "
                "Take a checkpoint from before that training went wrong."
            )
        state[target] = value.reshape(shape)
    for quantizer, (calibrated, *signed) in flags.items():
        if not released[calibrated].all():
            raise ValueError(
                f"{path} has {calibrated!r} = 0: this layer never saw data, so its step size means "
                "nothing. Take a checkpoint that was trained."
            )
        sign = all(released[name].all() for name in signed)  # of weights: always signed
        state[f"{quantizer}._extra_state"] = torch.tensor([True, sign], dtype=torch.uint8)
    return state


def _names(net: QuantSR) -> tuple[dict[str, str], dict[str, tuple[str, ...]]]:
    """({our parameter: released name}, {our quantizer: released names of its flags}).

    Flags: whether it is calibrated and, of inputs, whether it is signed.
    """
    convs = [f"tail.{i}" for i, layer in enumerate(net.tail) if isinstance(layer, nn.Conv2d)]
    layers = {"head": "conv_first", "body_conv": "conv_after_body", convs[-1]: "conv_last"}
    layers |= {conv: conv.replace("tail", "upsample") for conv in convs[:-1]}
    names: dict[str, str] = {}
    flags: dict[str, tuple[str, ...]] = {}
    for i in range(len(net.blocks)):
        names[f"blocks.{i}.shortcut.scale"] = f"body.{i}.learnable_shortcut"
        for conv in ("conv1", "conv2"):
            ours, theirs = f"blocks.{i}.{conv}", f"body.{i}.{conv}"
            layers[ours] = theirs
            weights, inputs = f"{ours}.weight_quantizer", f"{ours}.input_quantizer"
            names[f"{weights}.step_size"] = f"{theirs}.alpha"
            names[f"{inputs}.step_size"] = f"{theirs}.ActOurs.alpha"
            names[f"{inputs}.tau"] = f"{theirs}.channel_threshold"
            flags[weights] = (f"{theirs}.init_state",)
            flags[inputs] = (f"{theirs}.ActOurs.init_state", f"{theirs}.ActOurs.signed")
    for ours, theirs in layers.items():
        names |= {f"{ours}.{part}": f"{theirs}.{part}" for part in ("weight", "bias")}
    return names, flags
