"""What each layer of a network is, and what runs it: a table to read before training, and after.

    layer  kind              bits  signed   kernel         why not
    0      Conv2d            -     -        float          not quantised
    2      QConv2d           4/4   yes/no   winograd-vnni
    4      QConv1d           4/4   yes/yes  float          padding (1,) with mode 'reflect'; ...

Bits and signs are those of weights and input, or of both factors of a product. The kernel is the
one that runs the layer on this machine; of a network that is not packed yet, the one that will. Of
a layer that PyTorch runs faster in float it says so.

A layer is a module, and modules are what can be listed. But a forward may multiply by itself:
F.conv2d, @, torch.bmm, scaled_dot_product_attention. Given an input, `report` runs the network once
and names the modules that do. Even so it sees no branch that this input does not take, and nothing
that PyTorch does not call a product (operators of other packages).
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from ..backbone import QuantSR
from ..convert import left_in_float, not_packed
from ..layers import Projection, QMatmul, Quantized
from ..quantizer import Quantizer, QuantSpec
from .packed_layers import FloatConv2d, PackedLayer, PackedMatmul
from .packing import PackedModel, pack
from .residual import ResidualProgram
from .swin import SwinProgram

FLOAT = "float"
# A layer that makes each output of so few products (a depthwise one, or the first of a network)
# spends its time on quantising its input: alone it is slower than in float (`qsr bench layers`).
FEW_PRODUCTS, FASTER = 32, ", float is faster"


@dataclass(frozen=True)
class LayerReport:
    """One row. bits, signed: of weights and input, or of both factors; None in full precision, and
    for a sign before calibration. kernel: what runs the layer, or will. why_not: why that is not on
    integers, or "".
    """

    layer: str
    kind: str
    bits: tuple[int, int] | None
    signed: tuple[bool | None, bool | None] | None
    kernel: str
    why_not: str

    def cells(self) -> tuple[str, ...]:
        """The row as it is shown."""
        sign = {True: "yes", False: "no", None: "?"}
        bits = "-" if self.bits is None else "/".join(map(str, self.bits))
        signed = "-" if self.signed is None else "/".join(sign[s] for s in self.signed)
        return self.layer or "(root)", self.kind, bits, signed, self.kernel, self.why_not


@dataclass(frozen=True)
class Report:
    """The rows, in the order of the modules; shown as a table."""

    layers: tuple[LayerReport, ...]

    def __repr__(self) -> str:
        heads = tuple(field.name.replace("_", " ") for field in fields(LayerReport))
        table = [heads, *(layer.cells() for layer in self.layers)]
        widths = [max(map(len, column)) for column in zip(*table, strict=True)]
        return "\n".join("  ".join(map(str.ljust, row, widths)).rstrip() for row in table)


def report(model: nn.Module, *inputs: Tensor) -> Report:
    """A table of the layers of a network: kind, bits, signs, the kernel that runs each, why not.

    model: in full precision, quantised or packed; it stays as it is. inputs: what it takes, to run
    it once and also name the modules that write out products themselves.

    >>> from qsr.convert import quantize
    >>> report(quantize(nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3)), 2, skip=["0"]))
    layer  kind     bits  signed  kernel  why not
    0      Conv2d   -     -       float   not quantised
    1      QConv2d  2/2   yes/?   float   not calibrated
    """
    network = model.network if isinstance(model, PackedModel) else model
    left, waiting, program = left_in_float(network), not_packed(network), _program(model)
    rows, layers = [], dict(network.named_modules())
    for name, layer in layers.items():
        kind, factors = type(layer).__name__, _factors(layer)
        if factors is not None:
            whole = name.rpartition(".")[0]  # of an attention, if the layer is a part of one
            why_not = waiting.get(name) or waiting.get(whole) or _uncalibrated(factors)
            if isinstance(layer, Projection) and not why_not:
                layer = getattr(pack(layers[whole]), name.rpartition(".")[2])
            kernel = FLOAT if why_not else program or _kernel(layer)
            (a, b), signs = factors, tuple(factor.signed for factor in factors)
            rows.append(LayerReport(name, kind, (a.bits, b.bits), signs, kernel, why_not))
        elif name in left or isinstance(layer, FloatConv2d):
            why_not = left.get(name, "not quantised")
            rows.append(LayerReport(name, kind, None, None, FLOAT, why_not))
    named = {row.layer for row in rows}
    for name, products in (_products(model, network, inputs) if inputs else {}).items():
        if name not in named:
            kind = type(layers[name]).__name__
            why_not = f"its forward multiplies by {', '.join(sorted(products))}"
            rows.append(LayerReport(name, kind, None, None, FLOAT, why_not))
    return Report(tuple(rows))


def _factors(layer: nn.Module) -> tuple[Any, Any] | None:
    """Whatever has bits and a sign of the two factors of a quantised layer; None for another."""
    if isinstance(layer, Quantized):
        return layer.weight_quantizer, layer.input_quantizer
    if isinstance(layer, QMatmul):
        return layer.left_quantizer, layer.right_quantizer
    if isinstance(layer, PackedLayer):
        return QuantSpec(layer.planes.bits), layer.spec
    if isinstance(layer, PackedMatmul):
        return layer.specs["left"], layer.specs["right"]
    return None


def _uncalibrated(factors: tuple[Any, Any]) -> str:
    quantizers = [factor for factor in factors if isinstance(factor, Quantizer)]
    return "" if all(quantizer.calibrated for quantizer in quantizers) else "not calibrated"


def _kernel(layer: nn.Module) -> str:
    packed = layer if isinstance(layer, (PackedLayer, PackedMatmul)) else pack(layer)
    if isinstance(packed, PackedLayer):
        slow = packed.shape.products < FEW_PRODUCTS and packed.laid_out().row
        return packed.running_kernel() + (FASTER if slow else "")
    return "float32 of codes"  # exact, see PackedMatmul


def _program(model: nn.Module) -> str:
    """What runs all quantised layers of a network together: kernel and how, or ""."""
    if isinstance(model, PackedModel):
        return "" if model.program is None else f"{model.program.kernel}, program"
    if isinstance(model, QuantSR):
        for program in (ResidualProgram, SwinProgram):
            if names := program.available(model.config):
                return f"{names[0]}, program"
    return ""


# Products without a layer -------------------------------------------------------------------------


class _Products(TorchDispatchMode):
    """Notes which module runs while PyTorch multiplies, and by what."""

    def __init__(self) -> None:
        super().__init__()
        self.running: list[str] = []
        self.found: dict[str, set[str]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.overloadpacket in flop_registry:  # what torch.utils.flop_counter counts
            self.found.setdefault(self.running[-1], set()).add(func.overloadpacket.__name__)
        return func(*args, **(kwargs or {}))


@torch.no_grad()
def _products(
    model: nn.Module, network: nn.Module, inputs: tuple[Tensor, ...]
) -> dict[str, set[str]]:
    """The products of one forward pass, by the name of the module whose forward asks for them."""
    products = _Products()
    products.running.append("")

    def enter(name: str) -> Callable[..., None]:
        return lambda *_: products.running.append(name)

    def leave(*_: Any) -> None:
        products.running.pop()

    with contextlib.ExitStack() as hooks, products:
        for name, module in network.named_modules():
            hooks.callback(module.register_forward_pre_hook(enter(name)).remove)
            hooks.callback(module.register_forward_hook(leave).remove)
        model(*inputs)
    return {name.split(".parametrizations")[0]: found for name, found in products.found.items()}
