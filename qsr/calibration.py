"""Step sizes before any training: where each grid of codes begins and ends.

A quantizer has to know its data before it can write them as codes. `calibrate` runs the network
once on some pictures, and whatever reaches a quantizer first decides. By which rule is a choice:

    "start"    each quantizer's own start, for LSQ and RLQ 2 mean|x| / sqrt(qmax): where papers
               begin a training that will move it
    "output"   the step, of many, with which the layer's output changes least: for a network that
               is used as it is, or is tuned for minutes

The difference is in the tails. Features of networks are small nearly everywhere and large at a few
edges, and an output is a sum of many of them, in which a clipped edge is missed more than rounded
noise. LSQ's start does not see that: in 8 bits it clips the features before RLFN-S' last block
convolution (mean |x| 0.4, largest 40) at 9, which alone is an error of 12 % of their power.

"output" takes layer after layer, in the order of execution. With y the output in full precision of
what arrives through the quantised layers before, and y' that of quantised factors, it looks for

    min over step (and sign)  of  sum over channels  Var(y - y')

first of the weight, each output channel by itself where it has a step of its own, then of the
input. The mean of y - y' costs nothing, as the bias takes it up (a layer without a bias counts it
into the error). The sign is a choice as well: after a LeakyReLU little is below zero, and a signed
grid spends half of its codes there; unsigned ones clip it and round the rest twice as finely.

    RLFN-S on Set5 x4, 3x3 convolutions of the body    w8a8 31.44 -> 32.13 dB (float: 32.24)
    by "start" -> by "output"                          w4a4 29.24 -> 29.79
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Literal

import torch
from torch import Tensor, nn

from .layers import no_autocast
from .quantizer import Quantizer

METHODS = ("start", "output")
COARSE = tuple(1.5**-i for i in range(10))  # of the step that clips nothing; the last clips 97 %
FINE = tuple(1.1**i for i in (-4, -3, -2, -1, 1, 2, 3, 4))  # of the best of these


@torch.no_grad()
def calibrate(
    net: nn.Module,
    batch: Tensor,
    *more: Tensor,
    method: Literal["start", "output"] = "start",
) -> None:
    """Set every quantizer of `net` by what reaches it first, in one forward pass.

    batch: what `net` takes, for a QuantSR float RGB [N, 3, H, W] in [0, 1]; more: what it takes
    besides. So a weight is calibrated by itself and an input by what comes through the quantised
    layers before it, in the order of execution. The same batch gives the same steps on every device
    and rank.

    method: "start", that of papers, before a training; or "output", which searches what changes
    outputs least, and lets biases follow (a network that was trained is changed by that).
    It takes a hundred passes through each layer: some 10,000 pixels are enough. Quantizers that are
    more than a step and a shift (PAMS, DoReFa, CADyQ) have their own start by both.

    Raises ValueError if a quantizer is never reached, or for another method; TypeError if the batch
    is no tensor, or holds whole numbers where layers are quantised.

    >>> from qsr.convert import quantize
    >>> from qsr.quantizer import RLQ
    >>> net, x = nn.Sequential(nn.Conv2d(3, 8, 3), nn.LeakyReLU(0.1)), torch.randn(2, 3, 16, 16)
    >>> errors = []
    >>> for method in ("start", "output"):
    ...     low = quantize(net, bits=4)
    ...     calibrate(low, x, method=method)
    ...     errors.append((low(x) - net(x)).square().mean().item())
    >>> errors[1] < errors[0]
    True
    """
    if method not in METHODS:
        raise ValueError(f"`method` is {method!r}; it is one of {', '.join(map(repr, METHODS))}.")
    if not isinstance(batch, Tensor):
        raise TypeError(
            f"`batch` is a {type(batch).__name__}; it is one tensor, for pictures [N, 3, H, W] in "
            "[0, 1]. torch.cat makes it of several of one size, torch.as_tensor of an array."
        )
    waiting = {name: m for name, m in net.named_modules() if isinstance(m, Quantizer)}
    reached: dict[int, Tensor] = {}  # what came, by id of the quantizer
    fitted: set[int] = set()

    def reach(quantizer: Quantizer, args: tuple[Tensor, ...]) -> None:
        if id(quantizer) not in reached:
            quantizer.calibrate(args[0])
            reached[id(quantizer)] = args[0] if method == "output" else args[0].new_empty(0)

    def fit(layer: nn.Module, args: tuple, kwargs: dict) -> None:
        if id(layer) not in fitted:
            fitted.add(id(layer))
            with no_autocast(batch):
                _fit_to_output(layer, lambda: layer.forward(*args, **kwargs), reached)

    for quantizer in waiting.values():
        quantizer.calibrated = False  # so that under autocast too its forward is called
    hooks = [m.register_forward_pre_hook(reach) for m in waiting.values()]
    if method == "output":
        hooks += [
            m.register_forward_pre_hook(fit, with_kwargs=True)
            for m in net.modules()
            if any(True for _ in _own_quantizers(m))
        ]
    modes = {module: module.training for module in net.modules()}
    try:
        net.eval()(batch, *more)  # the statistics of a user's batch normalisation stay as they are
    finally:
        for module, mode in modes.items():
            module.training = mode
        for hook in hooks:
            hook.remove()
    missed = [name for name, m in waiting.items() if id(m) not in reached]
    if missed:
        raise ValueError(
            f"calibration never reached {missed[0]!r} ({len(missed)} in all); every quantised "
            "layer must run in net(batch). Remove the unused layer, or skip it in quantize()."
        )


class _Exact(nn.Module):
    """In the place of a quantizer: values as they are."""

    def __init__(self, quantizer: Quantizer) -> None:
        super().__init__()
        self.step_size = quantizer.step_size  # products ask for its dtype

    def forward(self, x: Tensor) -> Tensor:
        return x


def _own_quantizers(layer: nn.Module) -> Iterator[tuple[str, Quantizer]]:
    for name, part in layer.named_children():
        if isinstance(part, Quantizer) and not isinstance(layer, Quantizer):
            yield name, part


def _fit_to_output(layer: nn.Module, run: Callable[[], Tensor], reached: dict[int, Tensor]) -> None:
    """Search steps and signs of one layer; run: its forward on what arrives."""
    quantizers = dict(_own_quantizers(layer))
    undecided = [q for q in quantizers.values() if q.signed is None]
    bias, channel = layer._parameters.get("bias"), getattr(layer, "channel_dim", -1)
    run()  # each has its own start now, and what came is in `reached`
    for name in quantizers:
        setattr(layer, name, _Exact(quantizers[name]))
    exact = run()

    def errors() -> Tensor:
        """Of each output channel."""
        difference = (run() - exact).movedim(channel, 0).flatten(1)
        if bias is not None:
            difference -= difference.mean(1, keepdim=True)
        return difference.square().mean(1)

    for name, quantizer in quantizers.items():  # weights come first
        setattr(layer, name, quantizer)
        data, reached[id(quantizer)] = reached[id(quantizer)], torch.empty(0)  # seen; may go
        if type(quantizer).forward is not Quantizer.forward or data.numel() == 0:
            continue
        _search(quantizer, data, errors)
        if quantizer in undecided and quantizer.signed:  # perhaps better clipped at zero
            signed = quantizer.step_size.clone(), errors().sum()
            quantizer.signed = False
            _search(quantizer, data, errors)
            if errors().sum() >= signed[1]:
                quantizer.signed = True
                quantizer.step_size.copy_(signed[0])
    if bias is not None:
        bias.add_((exact - run()).movedim(channel, 0).flatten(1).mean(1))


def _largest_step(quantizer: Quantizer, data: Tensor) -> Tensor:
    """With which nothing is clipped, or, of unsigned codes, nothing above zero."""
    spec = quantizer.spec
    rows = data.flatten(1) if quantizer.step_size.ndim else data.flatten()
    above = rows.amax(-1) / spec.qmax
    return torch.maximum(above, rows.amin(-1) / spec.qmin) if spec.qmin else above


def _search(quantizer: Quantizer, data: Tensor, errors: Callable[[], Tensor]) -> None:
    """Leave the best step (of each channel, if it has its own) in the quantizer."""
    step = quantizer.step_size

    def error() -> Tensor:
        return errors() if step.ndim else errors().sum()

    best, least = step.clone(), error()
    middle = _largest_step(quantizer, data)
    for factors in (COARSE, FINE):
        for factor in factors:
            step.copy_(middle * factor)
            found = error()
            best = torch.where(found < least, step, best)
            least = torch.minimum(found, least)
        middle = best.clone()
    step.copy_(best)
