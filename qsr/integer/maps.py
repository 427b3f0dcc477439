"""Tensors of PyTorch as the maps of a region, and back.

A region takes one picture at a time, [H, W, C], or rows of a linear layer as such a picture.
PyTorch has batches, planes, and any number of dimensions before the last.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from .layer import channels_first
from .plan import Plan, as_picture


class Unfit(Exception):
    """Why a plan does not fit what the network was given; node: whose values have another size."""

    def __init__(self, why: str, node: str = "") -> None:
        super().__init__(why)
        self.node = node


def channels_last(value: Any) -> Any:
    """Pictures as the layers of a packed network like them; anything else as it is."""
    if isinstance(value, Tensor) and value.ndim == 4 and value.device.type == "cpu":
        return value.contiguous(memory_format=torch.channels_last)
    return value


def run_region(plan: Plan, run: Any, inputs: Sequence[Tensor]) -> list[Tensor]:
    """The outputs of a region for its inputs as PyTorch has them: [N, C, H, W], or [..., C] of
    rows, pictures in the memory format of the input that each is made of. run: gives those of one
    picture, [H, W, C] to [H, W, C]. Raises Unfit.
    """
    first = inputs[0]
    for x, value in zip(inputs, plan.values, strict=False):
        if not isinstance(x, Tensor) or x.dtype != torch.float32 or x.device.type != "cpu":
            raise Unfit("plans are for float32 on the processor")
        if plan.rows:
            fits = x.ndim >= 1 and x.shape[-1] == value.channels
        else:
            fits = x.ndim == 4 and x.shape[1] == value.channels and len(x) == len(first)
        if not fits or x.numel() == 0:
            raise Unfit(f"an input has the shape {tuple(x.shape)}")
    sizes = [
        as_picture(math.prod(x.shape[:-1])) if plan.rows else (x.shape[2], x.shape[3])
        for x in inputs
    ]
    for node, a, b in plan.equal:
        leading = plan.rows and inputs[a.input].shape[:-1] != inputs[b.input].shape[:-1]
        if leading or a.of(sizes) != b.of(sizes):
            raise Unfit(f"{node!r} joins values of different sizes", node)
    if any(min(value.size.of(sizes)) < 1 for value in plan.values):
        raise Unfit("the picture is too small")
    if plan.rows:
        outputs = run([_rows(x) for x in inputs])
        shapes = [inputs[plan.values[v].size.input].shape[:-1] for _, v in plan.outputs]
        return [
            y.flatten(0, 1)[: math.prod(shape)].view(*shape, -1)
            for y, shape in zip(outputs, shapes, strict=True)
        ]
    pictures = [x.permute(0, 2, 3, 1).contiguous() for x in inputs]
    results = [run([x[i] for x in pictures]) for i in range(len(first))]
    stacked = [
        ys[0][None] if len(ys) == 1 else torch.stack(ys) for ys in zip(*results, strict=True)
    ]
    formed = zip((inputs[plan.values[v].size.input] for _, v in plan.outputs), stacked, strict=True)
    return [_formed(y.permute(0, 3, 1, 2), like) for like, y in formed]


def _formed(y: Tensor, like: Tensor) -> Tensor:
    """Pictures in the memory format of others. Planes are copied also where PyTorch takes one
    format for the other, as of pictures of one pixel: their strides decide how it sums later.
    """
    return y.clone(memory_format=torch.contiguous_format) if channels_first(like) else y


def _rows(x: Tensor) -> Tensor:
    """[..., C] -> [H, W, C], filled up with zeros."""
    x = x.reshape(-1, x.shape[-1])
    height, width = as_picture(len(x))
    return F.pad(x, (0, 0, 0, height * width - len(x))).view(height, width, -1).contiguous()
