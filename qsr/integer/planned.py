"""A packed network of any class, with its plan: integer regions in one call each, PyTorch between.

`pack` gives a network this second nature: it keeps its class, its attributes and its layers, and
its forward runs the plan instead. The layers stay the definition. They run when the plan does not
fit: without native code, in training mode, while a module has a hook, with optional arguments, for
inputs that are not float32 on the CPU; and they always give the same bits, as the regions do the
same operations in the same order, and everything else is the same PyTorch on the same values.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import fx, nn

from ..layers import never_fused
from ..system import native
from ..system.once import SETTING_UP
from . import plan_table, regions
from .executor import Executor
from .formulas import formulas
from .in_place import Untraceable
from .maps import Unfit, channels_last, run_region
from .plan import Plan, plan
from .regions import levels
from .trace import LAYER_BY_LAYER, required_arguments, trace


@dataclass(frozen=True)
class NetworkPlan:
    """How a network runs: plans of regions, and nodes of its graph in PyTorch, in turn.

    reason: why there are no regions, or "". graph: None if the network cannot be traced.
    """

    order: tuple[Plan | fx.Node, ...]
    result: Any = None
    reason: str = ""
    graph: fx.Graph | None = field(default=None, repr=False, compare=False)
    network: nn.Module | None = field(default=None, repr=False, compare=False)

    @functools.cached_property
    def coverage(self) -> float:
        """The share of the multiply-accumulates that integer regions have, 0 to 1, for a picture
        of 128 x 128 (`plan_table`). Raises ValueError if the network does not take one.
        """
        return 0.0 if self.network is None else plan_table.coverage(self, self.measured)

    @functools.cached_property
    def measured(self) -> plan_table.Measured:
        """Sizes and products for that picture. Raises ValueError."""
        assert self.network is not None
        return plan_table.measure(self, self.network)

    def __str__(self) -> str:
        if self.network is None:
            return f"layer by layer: {self.reason}"
        return plan_table.table(self, self.network)

    @property
    def plans(self) -> tuple[Plan, ...]:
        """Those of the regions."""
        return tuple(part for part in self.order if isinstance(part, Plan))


def plan_network(network: Planned, without: Sequence[str] = ()) -> NetworkPlan:
    """The plan of a packed network. without: names of nodes that stay in PyTorch."""
    if type(network).__module__.startswith("torch.nn.") and not isinstance(network, nn.Sequential):
        return NetworkPlan((), reason=f"{type(network).__name__} is a layer of PyTorch")
    try:
        graph = network.traced()
    except Untraceable as error:
        return NetworkPlan((), reason=str(error))
    found = regions.find(graph, network, without)
    if not found:
        return NetworkPlan((), reason="no packed layer can be in a region", graph=graph)
    ops = {node: op for region in found for node, op in region.ops.items()}
    level, turn = levels(graph, ops), {node: i for i, node in enumerate(graph.nodes)}
    parts: list[tuple[int, int, Plan | fx.Node]] = []
    for region in found:
        first = next(iter(region.ops))
        parts.append((level[first], turn[first], plan(region, network)))
    (last,) = (node for node in graph.nodes if node.op == "output")
    needed = set(last.all_input_nodes)  # torch.chunk is not, where its parts are in regions
    for node in reversed(graph.nodes):
        if node in ops:
            needed.update(ops[node].inputs)
        elif node in needed or node.op == "placeholder":
            needed.update(node.all_input_nodes)
            parts.append((level[node], turn[node], node))
    parts.sort(key=lambda part: part[:2])
    return NetworkPlan(
        tuple(part for *_, part in parts), last.args[0], graph=graph, network=network
    )


# Running ------------------------------------------------------------------------------------------


class Running:
    """A plan with the laid out weights of a network, and what is remembered between calls."""

    def __init__(self, network: nn.Module, plan: NetworkPlan) -> None:
        self.plan = plan
        there = native.load().native
        self.executors = {id(p): Executor(p, network) for p in plan.plans if there}
        last = {name: i for i, part in enumerate(plan.order) for name in _reads(part)}
        kept = {node.name for node in _nodes(plan.result)}
        self.forget: list[list[str]] = [[] for _ in plan.order]
        for name, i in last.items():
            if name not in kept:
                self.forget[i].append(name)

    def workspace(self, part: Plan | fx.Node) -> int:
        """Bytes of the workspace that a part had when it last ran."""
        return self.executors[id(part)].workspace if isinstance(part, Plan) else 0

    def stale(self, network: nn.Module) -> bool:
        """Whether the network has other values since."""
        return any(executor.stale(network) for executor in self.executors.values())

    def __call__(self, network: nn.Module, inputs: Sequence[Any]) -> Any:
        values = dict[str, Any]()
        for _ in self.walk(network, inputs, values):
            pass
        return fx.node.map_arg(self.plan.result, lambda n: values[n.name])

    def walk(
        self, network: nn.Module, inputs: Sequence[Any], values: dict[str, Any]
    ) -> Iterator[Plan | fx.Node]:
        """Run part after part, and give each. values: what there is of them, by the names of nodes;
        forgotten when nobody reads it any more.
        """
        given = iter(inputs)
        for part, done in zip(self.plan.order, self.forget, strict=True):
            if isinstance(part, Plan):
                got = run_region(part, self.executors[id(part)], [values[n] for n in part.inputs])
                values.update(zip((name for name, _ in part.outputs), got, strict=True))
            elif part.op == "placeholder":
                values[part.name] = next(given)
            else:
                with formulas():
                    values[part.name] = run_node(part, network, values)
            yield part
            for name in done:
                del values[name]


def run_node(node: fx.Node, network: nn.Module, values: dict[str, Any]) -> Any:
    """What a node gives in PyTorch; values: of the nodes before it, by their names."""
    args = fx.node.map_arg(node.args, lambda n: values[n.name])
    options = fx.node.map_arg(node.kwargs, lambda n: values[n.name])
    target = node.target
    if node.op == "get_attr":
        parent, _, name = str(target).rpartition(".")
        return getattr(network.get_submodule(parent), name)
    if node.op == "call_module":
        return network.get_submodule(str(target))(*args, **options)
    if node.op == "call_method":
        return getattr(args[0], str(target))(*args[1:], **options)
    assert callable(target)
    return target(*args, **options)


def _reads(part: Plan | fx.Node) -> Iterator[str]:
    yield from part.inputs if isinstance(part, Plan) else (n.name for n in part.all_input_nodes)


def _nodes(result: Any) -> list[fx.Node]:
    found: list[fx.Node] = []
    fx.node.map_arg(result, found.append)
    return found


# The network --------------------------------------------------------------------------------------


class Planned(nn.Module):
    """What a packed network of any class has besides: a plan, and `layer_by_layer`."""

    _inputs: ClassVar[int]  # that its forward must be given
    _kernel: str
    _running: Running | None
    _apart: tuple[str, ...]  # nodes that turned out to run in PyTorch

    @property
    def plan(self) -> NetworkPlan:
        """How the network runs; print it."""
        plan = self._ready().plan
        while node := plan_table.misfit(plan):  # which a call would find out
            self._apart, self._running = (*self._apart, node), None
            plan = self._ready().plan
        return plan

    @property
    def original(self) -> type[nn.Module]:
        """The class that the network had."""
        return type(self).__mro__[2]

    @property
    def class_name(self) -> str:
        """The name of that class."""
        return self.original.__name__

    def traced(self) -> fx.Graph:
        """The graph of the network. Raises Untraceable."""
        return trace(self)

    def _ready(self) -> Running:
        running = self._running
        if running is None or running.stale(self):
            with SETTING_UP:  # by one of the threads that come together
                running = self._running
                if running is None or running.stale(self):
                    running = self._running = Running(self, plan_network(self, self._apart))
        return running

    def release(self) -> None:
        """Free the working memory that is kept for the next call."""
        self._running = None

    def forward(self, *args: Any, **options: Any) -> Any:
        args = tuple(map(channels_last, args))
        while self._may_plan(args, options) and (running := self._ready()).plan.plans:
            try:
                with torch.no_grad():
                    return running(self, args)
            except Unfit as error:
                if not error.node:
                    break
                self._apart, self._running = (*self._apart, error.node), None
        return self.layer_by_layer(*args, **options)

    def layer_by_layer(self, *args: Any, **options: Any) -> Any:
        """The forward of its class with functions by `formulas`: what the plan does, and its
        definition. Pictures go through it channels last, which is how packed layers are fastest.
        """
        forward = getattr(self, LAYER_BY_LAYER)
        options = {name: channels_last(value) for name, value in options.items()}
        traced = torch.compiler.is_compiling() or self._ready().plan.graph is not None
        with formulas(views=traced):  # who writes into views has no graph
            return forward(*map(channels_last, args), **options)

    def _may_plan(self, args: Sequence[Any], options: dict[str, Any]) -> bool:
        """Whether the plan may stand for the layers in this call."""
        return (
            not options
            and self._kernel == "auto"
            and not torch.compiler.is_compiling()
            and len(args) == self._inputs
            and not any(module.training or hooked(module) for module in self.modules())
            and native.load().native
        )

    def __getstate__(self) -> Any:
        return {**self.__dict__, "_running": None}

    def __reduce_ex__(self, protocol: Any) -> Any:
        """Pickled by the class that it had, as the one that it has stands in no module."""
        return _new, (self.original,), self.__getstate__()


def hooked(module: nn.Module) -> bool:
    """Whether somebody is to be told when this module runs."""
    before = module._forward_pre_hooks
    return bool(module._forward_hooks) or any(hook is not never_fused for hook in before.values())


@functools.cache
def _kind(kind: Any) -> type[nn.Module]:
    """The class that a network of this class gets."""
    inputs = len(required_arguments(kind))
    own = {LAYER_BY_LAYER: kind.forward, "_inputs": inputs, "__module__": kind.__module__}
    return type(f"Packed{kind.__name__}", (Planned, kind), own)


def _new(kind: Any) -> nn.Module:
    return _kind(kind).__new__(_kind(kind))


def planned(network: nn.Module, kernel: str) -> nn.Module:
    """A packed network, which from now on runs by its plan. One warning says if it has none."""
    if type(network).__module__.startswith("qsr.") or not any(network.children()):
        return network  # one layer
    kind: Any = type(network)
    network.__class__ = _kind(kind)
    assert isinstance(network, Planned)
    network._kernel, network._running, network._apart = kernel, None, ()
    if reason := network._ready().plan.reason:
        warnings.warn(f"the network runs layer by layer: {reason}.", stacklevel=3)
    return network
