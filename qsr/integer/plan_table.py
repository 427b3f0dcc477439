"""A plan to read: each step with its shape, bits, kernel, buffer, products and bytes.

A plan knows no sizes, so they are measured: the network runs once, layer by layer, on a small
picture, and what each layer multiplies is counted, also in the parts that run in PyTorch. The share
of these products that integer regions have is the plan's *coverage*.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, fx, nn
from torch.utils.flop_counter import FlopCounterMode

from ..blocks import SwinLayer
from ..system.errors import first_line
from .executor import kernel_of
from .lifetimes import places, value_bytes
from .packed_layers import PackedConvTranspose2d, PackedLayer
from .plan import OF_VALUES, Plan, Step, as_picture
from .program import Program
from .regions import multiplications
from .tail import REACH

if TYPE_CHECKING:
    from .planned import NetworkPlan

SIDE = 128  # of the picture


@dataclass(frozen=True)
class Measured:
    """Of one pass: sizes of what nodes give, (height, width), of rows (number, 1); multiply-
    accumulates of each packed layer by name; and of all that PyTorch multiplies.
    """

    sizes: dict[str, tuple[int, int]]
    layers: dict[str, int]
    floats: int

    @property
    def products(self) -> int:
        """All multiply-accumulates."""
        return sum(self.layers.values()) + self.floats


def measure(plan: NetworkPlan, network: nn.Module) -> Measured:
    """Run the network once, layer by layer, on a picture of SIDE x SIDE. Raises ValueError (one
    line) if its inputs are not pictures or rows, or more than one of sizes that do not match.
    """
    sizes: dict[str, tuple[int, int]] = {}
    layers: dict[str, int] = {}

    def count(name: str) -> Any:
        def hook(layer: nn.Module, args: tuple[Tensor, ...], y: Tensor) -> None:
            assert isinstance(layer, PackedLayer)
            pixels = y.numel() // len(layer.weight)
            if isinstance(layer, PackedConvTranspose2d):  # multiplies what it reads, once
                pixels = args[0].numel() // (layer.groups * layer.channels)
            layers[name] = layers.get(name, 0) + pixels * multiplications(layer)

        return hook

    class Watch(fx.Interpreter):
        def run_node(self, n: fx.Node) -> Any:
            y = super().run_node(n)
            if isinstance(y, Tensor) and y.ndim == 4:
                sizes[n.name] = (y.shape[2], y.shape[3])
            elif isinstance(y, Tensor):
                sizes[n.name] = as_picture(math.prod(y.shape[:-1]))
            return y

    with contextlib.ExitStack() as stack, torch.no_grad():
        for name, layer in network.named_modules():
            if isinstance(layer, PackedLayer):
                stack.callback(layer.register_forward_hook(count(name)).remove)
        flops = stack.enter_context(FlopCounterMode(display=False))
        assert plan.graph is not None
        inputs = examples(plan.graph, network)
        try:
            Watch(network, graph=plan.graph).run(*inputs)
        except Exception as error:  # whatever a foreign forward makes of a guess
            guess = ", ".join(str(list(x.shape)) for x in inputs)
            raise ValueError(
                f"the network does not take inputs of {guess}: {first_line(error)}"
            ) from error
    return Measured(sizes, layers, flops.get_total_flops() // 2)


def examples(graph: fx.Graph, network: nn.Module) -> list[Tensor]:
    """Zeros for each input: a picture for what a convolution reads, rows for a linear layer."""
    made = []
    for node in graph.nodes:
        if node.op == "placeholder":
            shape = _shape(node, network, set())
            if shape is None:
                raise ValueError(f"the input {node.name!r} is read by no layer with channels")
            made.append(torch.zeros(shape))
    return made


def _shape(node: fx.Node, network: nn.Module, seen: set[fx.Node]) -> tuple[int, ...] | None:
    """By the first layer on the way from a node."""
    seen.add(node)
    for user in node.users:
        if user.op == "call_module":
            layer = network.get_submodule(str(user.target))
            if isinstance(layer, PackedLayer):
                channels = layer.groups * layer.channels
                picture = hasattr(layer, "stride")
                return (1, channels, SIDE, SIDE) if picture else (SIDE, channels)
            if isinstance(layer, nn.Conv2d):
                return (1, layer.in_channels, SIDE, SIDE)
            if isinstance(layer, nn.Linear):
                return (SIDE, layer.in_features)
            if isinstance(layer, nn.LayerNorm):
                return (SIDE, *layer.normalized_shape)
        if user not in seen and (found := _shape(user, network, seen)):
            return found
    return None


def misfit(plan: NetworkPlan) -> str:
    """A node that a region cannot have, as it joins values whose sizes turn out to differ; "" if
    there is none, or no sizes are known.
    """
    with contextlib.suppress(ValueError):
        for part in plan.plans:
            for node, a, b in part.equal:  # mostly there is none, and nothing need be measured
                sizes = [plan.measured.sizes[name] for name in part.inputs]
                if a.of(sizes) != b.of(sizes):
                    return node
    return ""


def coverage(plan: NetworkPlan, measured: Measured) -> float:
    """The share of all multiply-accumulates that integer regions have, 0 to 1."""
    inside = {name for part in plan.plans for name in part.layers}
    covered = sum(n for name, n in measured.layers.items() if name in inside)
    return covered / measured.products if measured.products else 0.0


# The table ----------------------------------------------------------------------------------------

HEADS = ("", "step", "then", "shape", "bits", "kernel", "buffer", "MMAC", "KB")


def table(plan: NetworkPlan, network: nn.Module) -> str:
    """All steps in the order of execution, and what they need together."""
    try:
        measured = plan.measured
    except ValueError as error:  # an input of another kind than guessed
        return f"{len(plan.plans)} integer regions; sizes unknown ({error})"
    rows: list[tuple[str, ...]] = []
    arenas = []
    for part in plan.order:
        if isinstance(part, Plan):
            sizes = [measured.sizes[name] for name in part.inputs]
            offsets, needed = places(part, sizes)
            arenas.append(needed)
            rows += [_row(part, step, network, sizes, offsets) for step in part.steps]
        elif part.op != "placeholder":
            name = str(part.target) if part.op == "call_module" else part.name
            height, width = measured.sizes.get(part.name, (0, 0))
            shape = f"{height}x{width}" if height else "-"
            rows.append(_row_apart(name, shape, network, measured.layers))
    return _text(rows, len(arenas), coverage(plan, measured), max(arenas))


def _row_apart(
    name: str, shape: str, network: nn.Module, products: Mapping[str, int]
) -> tuple[str, ...]:
    """Of what runs outside of regions: in PyTorch, or a packed layer by itself."""
    if name not in products:
        return ("torch", name, "", shape, "-", "float", "-", "", "")
    layer = network.get_submodule(name)
    assert isinstance(layer, PackedLayer)
    bits, count = f"{layer.planes.bits}/{layer.bits}", f"{products[name] / 1e6:,.1f}"
    return ("layer", name, "", shape, bits, layer.running_kernel(), "-", count, "")


def of_quantsr(program: Program) -> str:
    """The same of a packed QuantSR, whose plan has head and body; its tail is collapsed."""
    plan, network, sizes = program.plan, program.network, [(SIDE, SIDE)]
    offsets, needed = places(plan, sizes)
    rows = [_row(plan, step, network, sizes, offsets) for step in plan.steps]
    last = f"{_tail_products(program) / 1e6:,.1f}"
    rows.append(("own", "tail", "", f"{SIDE}x{SIDE}", "-", "collapsed", "-", last, ""))
    return _text(rows, 1, coverage_of_quantsr(program), needed)


def coverage_of_quantsr(program: Program) -> float:
    """The share of all multiply-accumulates that its steps do on integers, 0 to 1."""
    steps, network = program.plan.steps, program.network
    integers, of_all = (
        sum(products(step, network, [(SIDE, SIDE)], only) for step in steps)
        for only in (True, False)
    )
    return integers / (of_all + _tail_products(program))


def _tail_products(program: Program) -> int:
    return (SIDE * (2 * REACH + 1)) ** 2 * program.config.features * program.tail.outputs


def products(
    step: Step, network: nn.Module, sizes: Sequence[tuple[int, int]], integers: bool = False
) -> int:
    """Multiply-accumulates of a step; integers: only those on integers."""
    if not step.layer:
        return 0
    layer = network.get_submodule(step.layer)
    parts = [x for x in layer.modules() if isinstance(x, PackedLayer) or not integers]
    each = sum(map(multiplications, parts))
    if isinstance(layer, SwinLayer) and (layer.attention.specs or not integers):
        each += 2 * layer.window**2 * len(layer.norm1.weight)  # scores, and what is mixed
    return math.prod(step.size.of(sizes)) * each


def bits_of(step: Step, network: nn.Module) -> tuple[int, int] | None:
    """Of weights and of the codes that they meet; None for a step without."""
    layer = network.get_submodule(step.layer) if step.layer else None
    packed = layer.fc1 if isinstance(layer, SwinLayer) else layer
    return (packed.planes.bits, packed.bits) if isinstance(packed, PackedLayer) else None


def _text(rows: list[tuple[str, ...]], regions: int, share: float, workspace: int) -> str:
    widths = [max(map(len, column)) for column in zip(HEADS, *rows, strict=True)]
    lines = ["  ".join(map(str.ljust, row, widths)).rstrip() for row in (HEADS, *rows)]
    lines.append(
        f"{regions} region{'s' * (regions > 1)} with {share:.1%} of the products; workspace "
        f"{workspace / 1024:,.0f} KB; for an input of {SIDE} x {SIDE}"
    )
    return "\n".join(lines)


def step_bytes(plan: Plan, step: Step, sizes: Sequence[tuple[int, int]]) -> int:
    """Bytes that a step reads and writes in memory, without weights."""
    total = 0
    for v in step.reads():
        value = plan.values[v]
        total += value_bytes(value, value.size.of(sizes))
    height, width = step.size.of(sizes)
    total += 0 if step.out is None else 4 * height * width * step.channels
    return total + sum(height * width * store.count for store in step.codes)


def _row(
    plan: Plan,
    step: Step,
    network: nn.Module,
    sizes: Sequence[tuple[int, int]],
    offsets: Sequence[int],
) -> tuple[str, ...]:
    height, width = step.size.of(sizes)
    bits, kernel = bits_of(step, network), kernel_of(plan, step, network) or "-"
    count = products(step, network, sizes)
    home = {v: f"out {i}" for i, (_, v) in enumerate(plan.outputs)}
    written = [home.get(v, f"{offsets[v] / 1024:,.0f}") for v in step.writes()]
    then = [_operation(op, operand) for op, operand in step.finish]
    return (
        "int",
        step.layer or step.op,
        ", ".join(then),
        f"{height}x{width}x{step.channels}",
        "/".join(map(str, bits)) if bits else "-",
        kernel,
        ", ".join(dict.fromkeys(written)),
        f"{count / 1e6:,.1f}" if count else "",
        f"{step_bytes(plan, step, sizes) / 1024:,.0f}",
    )


def _operation(op: str, operand: Any) -> str:
    if op == "factors":
        return f"x {len(operand)} factors"
    if op == "scaled":
        return f"+ {operand[1]} v{operand[0]}"
    if op in OF_VALUES:
        return {"add": "+", "mul": "x", "minus": "-", "from": "from"}[op] + f" v{operand}"
    return (
        op
        if operand is None or op == "prelu"
        else f"{op} {operand:.4g}"
        if isinstance(operand, float)
        else f"{op} {operand}"
    )
