"""Published full-precision weights as a start: EDSR-baseline is our `srresnet`, by other names.

EDSR-baseline (Lim et al., CVPRW 2017) has 64 features, 16 residual blocks without batch norm and
no activation after the body: the network that `qsr.srresnet` builds. Its weights circulate in three
layouts:

    EDSR-PyTorch    head.0, body.N.body.0 and .2, body.16, tail.0.0 (and .2), tail.1
    BasicSR         conv_first, body.N.conv1 and .conv2, conv_after_body, upsample.0 (and .2),
                    conv_last; perhaps under "params" or "params_ema"
    LIIF            as EDSR-PyTorch, without a tail, perhaps under "encoder." in "model"/"sd"

The first two take (x - mean) * 255 like ours, so they are the same numbers. LIIF's encoder takes
(x - 1/2) * 2. That change goes into the first convolution, exactly but for the outermost pixels,
where padding zeros mean another grey: with x' = (x - mean) * 255 what it takes is

    2 x - 1 = x' / 127.5 + (2 mean - 1)       so    W' = W / 127.5,   b' = b + sum W (2 mean - 1)

and since a body of convolutions and ReLU without biases is linear in the scale of its input, we
multiply its biases and the first convolution by 127.5, so that features are of our size. Its tail
is missing: `qsr.fit_tail` finds the best one in closed form.

Nothing in a file is executed (`weights_only`, or safetensors).
"""

from __future__ import annotations

import os
import re
import warnings

import torch
from torch import Tensor

from ..backbone import RGB_MEAN, QuantSR
from ..config import srresnet
from .foreign import read_tensors

NAMES = {  # of modules, in either layout: ours
    r"head\.0|conv_first": "head",
    r"body\.(\d+)\.(?:body\.0|conv1)": r"blocks.\1.conv1",
    r"body\.(\d+)\.(?:body\.2|conv2)": r"blocks.\1.conv2",
    r"body\.\d+|conv_after_body": "body_conv",
    r"(?:tail\.0|upsample)\.(\d)": r"tail.\1",
    r"tail\.1|conv_last": "tail.last",
}
WRAPPED = ("model", "sd", "state_dict", "params", "params_ema")  # around the tensors
UNITS = 127.5  # of our input in one of LIIF's


def load_edsr(path: str | os.PathLike, scale: int) -> QuantSR:
    """A full-precision `srresnet(scale)` with the weights of an EDSR-baseline, in eval mode.

    path: a .pth file of tensors, or safetensors, in one of the layouts above. Where the file has no
    tail, or one of another scale, the network has a random one, and a warning says so.
    Raises ValueError (one line) for a file that is missing or damaged, holds code, or is another
    network than 16 blocks (or any number) of residual convolutions without batch norm.
    """
    state = _renamed(read_tensors(path, "EDSR-baseline", WRAPPED))
    blocks = 1 + max((int(n.split(".")[1]) for n in state if n.startswith("blocks.")), default=-1)
    if blocks < 1 or "head.weight" not in state or "body_conv.weight" not in state:
        raise ValueError(
            f"{path} has no EDSR-baseline: names of head, body or the convolution after it are "
            "missing. Layouts of EDSR-PyTorch, BasicSR and LIIF's encoder are read."
        )
    net = QuantSR(srresnet(scale, blocks, features=len(state["head.weight"])))
    own = net.state_dict()
    tail = {name: value for name, value in own.items() if name.startswith("tail.")}
    if not any(name.startswith("tail.") for name in state):
        _into_our_range(state, blocks)
    if any(name not in state or state[name].shape != value.shape for name, value in tail.items()):
        warnings.warn(
            f"{path} has no tail for x{scale}, so the network's is random; find it by qsr.fit_tail",
            stacklevel=2,
        )
        state = {n: v for n, v in state.items() if not n.startswith("tail.")} | tail
    state["block_order"] = net.block_order
    for name, value in own.items():
        if name not in state or state[name].shape != value.shape:
            has = "nothing" if name not in state else f"shape {tuple(state[name].shape)}"
            raise ValueError(
                f"{path} has {has} where srresnet has {name!r} of shape {tuple(value.shape)}; "
                "EDSR-baseline is 3x3 convolutions of one width, without batch norm."
            )
    net.load_state_dict({name: state[name].to(value.dtype) for name, value in own.items()})
    return net.eval()


def _renamed(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Our names for the tensors that are an EDSR's; others (a mean, an MLP) are left out."""
    state: dict[str, Tensor] = {}
    for name, value in tensors.items():
        module, _, kind = re.sub(r"^encoder\.", "", name).rpartition(".")
        for pattern, ours in NAMES.items():
            if (match := re.fullmatch(pattern, module)) and kind in ("weight", "bias"):
                state[f"{match.expand(ours)}.{kind}"] = value
                break
    stages = {name.split(".")[1] for name in state if re.match(r"tail\.\d", name)}
    last = str(2 * len(stages))  # each stage is a convolution and a pixel shuffle
    return {name.replace("tail.last", f"tail.{last}"): value for name, value in state.items()}


def _into_our_range(state: dict[str, Tensor], blocks: int) -> None:
    """Change LIIF's encoder from (x - 1/2) * 2 to (x - mean) * 255, features times UNITS."""
    shift = 2 * torch.tensor(RGB_MEAN, dtype=torch.float64) - 1
    weight = state["head.weight"].double()
    state["head.bias"] = state["head.bias"] + torch.einsum("ocyx,c->o", weight, shift)
    convolutions = [f"blocks.{i}.conv{k}" for i in range(blocks) for k in (1, 2)]
    for name in ("head", "body_conv", *convolutions):
        state[f"{name}.bias"] = UNITS * state[f"{name}.bias"].double()
