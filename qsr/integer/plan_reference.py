"""What a plan means: its steps in plain PyTorch, slow and obvious.

csrc/network/executor.cpp runs the same steps and gives the same bits; every test of a plan runs
over both. Values are whole tensors here, without frames, places and threads: codes int32 [H, W, C],
floats float32 [H, W, C].
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..blocks import SwinLayer
from ..quantizer import to_codes
from . import kernels
from .packed_layers import FloatConv2d, PackedConv2d, PackedConvTranspose2d, PackedLayer
from .plan import Plan, Step, Store
from .reference import ELEMENTS, average, bilinear, conv2d_float, epilogue, layer_norm


def run(plan: Plan, network: nn.Module, inputs: Sequence[Tensor]) -> list[Tensor]:
    """inputs: float32 [H, W, C] of one picture, or of rows with W = 1 -> the outputs, likewise."""
    sizes = [(x.shape[0], x.shape[1]) for x in inputs]
    values: list[Tensor] = list(inputs)
    for value in plan.values[len(inputs) :]:
        kind = torch.float32 if value.kind == "float" else torch.int32
        values.append(torch.zeros(*value.size.of(sizes), value.channels, dtype=kind))
    for step in plan.steps:
        source = values[step.source]
        if step.op in _MOVES:
            (store,) = step.codes
            moved = _MOVES[step.op](source, *step.numbers)
            values[store.value][:, :, store.at : store.at + store.count] = moved
            continue
        y = _lanes(step, source, network, step.size.of(sizes))
        for op, operand in step.finish:
            y = _operation(op, y, operand, values, network)
        if step.out is not None:
            values[step.out].copy_(y)
        for store in step.codes:
            codes = _codes(y, store, network)
            at = store.at + store.first
            values[store.value][:, :, at : at + store.count] = codes
    return [values[v] for _, v in plan.outputs]


def _lanes(step: Step, source: Tensor, network: nn.Module, size: tuple[int, int]) -> Tensor:
    """What a step makes of its source before its finish: float32 [H, W, C]."""
    if step.layer:
        y = _of_layer(step, source, network)
        return F.pad(y, (0, step.channels - y.shape[2]))
    if step.op == "bilinear":
        return bilinear(source.permute(2, 0, 1), *size, *step.numbers).permute(1, 2, 0)
    if step.op == "average":
        return average(source.permute(2, 0, 1), *step.numbers).permute(1, 2, 0)
    return source


def _of_layer(step: Step, source: Tensor, network: nn.Module) -> Tensor:
    """scale * sums + bias of a packed layer, or what one of floats gives: float32 [H, W, Cout]."""
    layer = network.get_submodule(step.layer)
    if isinstance(layer, FloatConv2d):
        (top, left), x = layer.padding, source[None, :, :, : layer.weight.shape[1]]
        return conv2d_float(F.pad(x, (0, 0, left, left, top, top)), layer.weight, layer.bias)[0]
    if isinstance(layer, SwinLayer):
        return layer(source[None, :, :, : len(layer.norm1.weight)])[0]
    if isinstance(layer, nn.LayerNorm):
        x = source[:, :, : len(layer.weight)]
        return layer_norm(x, layer.weight, layer.bias, layer.eps)
    assert isinstance(layer, PackedLayer)
    codes = torch.cat([source[:, :, at : at + count] for count, at in step.places], 2)
    weights = kernels.unpack_codes(layer.planes).permute(0, 3, 1, 2)
    options: dict[str, Any] = {"groups": layer.groups}
    if isinstance(layer, PackedConv2d):
        options |= {"stride": layer.stride, "padding": layer.padding, "dilation": layer.dilation}
    planes = codes.permute(2, 0, 1)[None].double()
    if isinstance(layer, PackedConvTranspose2d):
        (stride, _), options["output_padding"] = layer.stride, layer.output_padding
        by_input = torch.cat([w.transpose(0, 1) for w in weights.flip(2, 3).chunk(layer.groups)])
        sums = F.conv_transpose2d(planes, by_input.double(), **options)
        y = epilogue(sums[0].permute(1, 2, 0).int(), layer.scale, layer.bias)
        return F.pixel_unshuffle(y.permute(2, 0, 1), stride).permute(1, 2, 0)
    sums = F.conv2d(planes, weights.double(), **options)
    return epilogue(sums[0].permute(1, 2, 0).int(), layer.scale, layer.bias)


def _operation(
    op: str, y: Tensor, operand: Any, values: Sequence[Tensor], network: nn.Module
) -> Tensor:
    """One operation of a finish; operand: as `Step` says."""
    if op == "relu":
        return torch.where(y < 0, 0.0, y)
    if op in ELEMENTS:
        return ELEMENTS[op](y)
    if op in ("leaky", "prelu"):
        slope = parameter(operand, network)
        return torch.where(y > 0, y, y * slope)
    if op == "times":
        return y * parameter(operand, network)
    if op == "plus":
        return y + parameter(operand, network)
    if op == "factors":
        for factor in operand:
            y = y * parameter(factor, network)
        return y
    if op == "scaled":
        other, factor = operand
        return y + parameter(factor, network) * values[other]
    other = values[operand]
    if op == "mul":
        return y * other
    return {"add": y + other, "minus": y - other, "from": other - y}[op]


def parameter(operand: float | str, network: nn.Module) -> Tensor:
    """A number, or the parameter with this key: float32 [1] or [C]."""
    if not isinstance(operand, str):
        return torch.tensor([operand], dtype=torch.float32)
    name, _, last = operand.rpartition(".")
    return getattr(network.get_submodule(name), last).detach().float().flatten()


def _codes(y: Tensor, store: Store, network: nn.Module) -> Tensor:
    layer = network.get_submodule(store.reader)
    assert isinstance(layer, PackedLayer)
    shifted = y[:, :, store.first : store.first + store.count]
    if layer.tau is not None:
        shifted = shifted + layer.tau[store.channels()]
    shifted = torch.where(shifted.isnan(), 0.0, shifted)
    return to_codes(shifted, layer.step_size, layer.spec).int()


def _pool(
    codes: Tensor, kernel: tuple[int, int], stride: tuple[int, int], padding: tuple[int, int]
) -> Tensor:
    planes = codes.permute(2, 0, 1).double()
    return F.max_pool2d(planes, kernel, stride, padding).int().permute(1, 2, 0)


def _nearest(codes: Tensor, factor: int) -> Tensor:
    return codes.repeat_interleave(factor, 0).repeat_interleave(factor, 1)


def _shuffle(codes: Tensor, factor: int) -> Tensor:
    whole = codes.shape[2] // factor**2 * factor**2  # beyond are lanes that fill a vector
    return F.pixel_shuffle(codes[:, :, :whole].permute(2, 0, 1), factor).permute(1, 2, 0)


def _pad(codes: Tensor, rows: tuple[int, int], columns: tuple[int, int], reflect: int) -> Tensor:
    planes = codes.permute(2, 0, 1)[None].double()
    mode = "reflect" if reflect else "replicate"
    return F.pad(planes, (*columns, *rows), mode)[0].int().permute(1, 2, 0)


_MOVES: dict[str, Callable[..., Tensor]] = {
    "pool": _pool,
    "nearest": _nearest,
    "shuffle": _shuffle,
    "pad": _pad,
}
