"""From a module to a graph: what a packed network does, as a list of named steps.

torch.fx runs a network's forward once on stand-ins for tensors and writes down what is called. Here
whole layers are written down, not what they are made of: everything in torch.nn and every packed
layer is a *leaf*. So a node keeps the name of its module, which is where its weights are, and the
graph reads like the network. Sizes are nodes as well (`x.shape[2] // 2`), so that one graph serves
all pictures.

What such a run cannot see is refused, with the node where it happened: a branch that depends on
values or sizes, autocast, some operations in place (`in_place`). Nor is in a graph
what happens beside it: a forward that keeps something for the next call, or draws a random number
that depends on no input, would do so once and for all. That is looked for, undone and refused
(`self.mean = self.mean.to(x)` keeps nothing new).
"""

from __future__ import annotations

import contextlib
import copy
import inspect
import operator
import threading
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils._python_dispatch import TorchDispatchMode

from ..system.errors import first_line
from .in_place import Untraceable, write_out
from .packed_layers import FixedBatchNorm

LEAVES = ("torch.nn.", "qsr.layers", "qsr.integer.")  # modules that define layers
NO_LEAVES = (nn.Sequential, nn.ModuleList, nn.ModuleDict, FixedBatchNorm)  # though defined there
LAYER_BY_LAYER = "_forward_of_class"  # the forward of a network whose class has another one by now
NOTHING = (nn.Identity, nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d)  # in eval mode


def _augmented(called: Any) -> Any:
    def write(self: fx.Proxy, other: Any) -> fx.Proxy:
        return self.tracer.create_proxy("call_function", called, (self, other), {})

    return write


class _Proxy(fx.Proxy):
    """A stand-in for which x += y stays what it is; torch.fx would write x = x + y."""

    __iadd__ = _augmented(operator.iadd)
    __isub__ = _augmented(operator.isub)
    __imul__ = _augmented(operator.imul)
    __itruediv__ = _augmented(operator.itruediv)


class _Tracer(fx.Tracer):
    """torch.fx writes down what every module of the process does meanwhile: here, of one thread."""

    def __init__(self) -> None:
        super().__init__()
        self.thread = threading.get_ident()
        self.autocast = torch.is_autocast_enabled("cpu")

    def call_module(self, m: nn.Module, forward: Any, args: Any, kwargs: Any) -> Any:
        if threading.get_ident() != self.thread:
            return forward(*args, **kwargs)
        return super().call_module(m, forward, args, kwargs)

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: dict[str, Any]) -> Any:
        if threading.get_ident() != self.thread:
            return attr_val
        return super().getattr(attr, attr_val, parameter_proxy_cache)

    def proxy(self, node: fx.Node) -> fx.Proxy:
        return _Proxy(node, self)

    def create_node(self, *args: Any, **options: Any) -> fx.Node:
        if torch.is_autocast_enabled("cpu") != self.autocast:
            raise Untraceable("its forward switches autocast")
        return super().create_node(*args, **options)

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return m.__module__.startswith(LEAVES) and not isinstance(m, NO_LEAVES)

    def create_args_for_root(
        self, root_fn: Any, is_module: bool, concrete_args: Any = None
    ) -> tuple[Any, list[Any]]:
        """The required arguments as placeholders; the others keep their defaults."""
        names = required_arguments(type(self.root))
        proxies = [self.create_proxy("placeholder", name, (), {}) for name in names]
        return root_fn, [self.root, *proxies]


def required_arguments(kind: type[nn.Module]) -> list[str]:
    """Names of what the forward of a kind of network must be given."""
    forward = getattr(kind, LAYER_BY_LAYER, kind.forward)
    parameters = list(inspect.signature(forward).parameters.values())[1:]
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return [p.name for p in parameters if p.kind in positional and p.default is p.empty]


def trace(network: nn.Module) -> fx.Graph:
    """The graph of a packed network in eval mode; optional arguments at their defaults.

    Nodes that do nothing (nn.Identity, dropout) are left out. Raises Untraceable.
    """
    if "forward" in vars(network):
        raise Untraceable("its forward is not that of its class")
    tracer = _Tracer()
    if hasattr(network, LAYER_BY_LAYER):
        tracer.traced_func_name = LAYER_BY_LAYER
    try:
        with torch.no_grad(), _nothing_beside(tracer, network):  # as it will run
            graph = tracer.trace(network)
    except Untraceable:
        raise
    except Exception as error:  # whatever a foreign forward makes of a stand-in
        last = next(reversed(tracer.graph.nodes), None)
        after = f" after {last.name!r}" if last is not None else ""
        raise Untraceable(f"it cannot be traced{after}: {first_line(error)}") from error
    for node in list(graph.nodes):
        if node.op == "call_module" and type(network.get_submodule(node.target)) in NOTHING:
            node.replace_all_uses_with(node.args[0])
            graph.erase_node(node)
    write_out(graph, network)
    for node in reversed(graph.nodes):
        if not node.users and (node.op == "call_module" or not node.is_impure()):
            graph.erase_node(node)
    return graph


class _NothingRandom(TorchDispatchMode):
    """Untraceable where something is drawn by lot, in this thread."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if torch.Tag.nondeterministic_seeded in func.tags:
            raise Untraceable("its forward draws random numbers")
        return func(*args, **(kwargs or {}))


@contextlib.contextmanager
def _nothing_beside(tracer: _Tracer, network: nn.Module) -> Iterator[None]:
    """Undo what a forward does beside its graph; Untraceable if it did something.

    Attributes and buffers of modules that are no leaves are compared: forwards of others don't run.
    """
    named = network.named_modules()
    places: list[Any] = [vars(m) for name, m in named if not tracer.is_leaf_module(m, name)]
    places += [v for place in places for v in place.values() if isinstance(v, (dict, list))]
    values = [v for place in places for v in (place if isinstance(place, list) else place.values())]
    tensors = [v for v in values if isinstance(v, Tensor) and not isinstance(v, nn.Parameter)]
    before = [copy.copy(place) for place in places], [tensor.clone() for tensor in tensors]
    try:
        with _NothingRandom():
            yield
    finally:
        changed = [key for pair in zip(places, before[0], strict=True) for key in _put_back(*pair)]
        for tensor, was in zip(tensors, before[1], strict=True):
            if not torch.equal(tensor, was):
                changed.append("a buffer")
                tensor.copy_(was)
    if changed:
        raise Untraceable(f"its forward changes {changed[0]} for the next call")


def _put_back(place: Any, was: Any) -> list[str]:
    """Make the items of a dict or list those that they were; the names of those that were not."""
    if isinstance(place, list):
        same = len(place) == len(was) and all(map(operator.is_, place, was))
        place[:] = was
        return [] if same else ["a list"]
    changed = [
        key
        for key in {**was, **place}
        if place.get(key, was) is not was.get(key, was)
        and not str(key).startswith("_tensor_constant")  # which the tracer makes
    ]
    kept = [key for key in changed if not _is_constant(place.get(key), key)]
    for key in changed:
        place.pop(key, None)
    place.update({key: was[key] for key in changed if key in was})
    return [repr(key) for key in kept]


def _is_constant(value: Any, key: str) -> bool:
    """Whether this is the tensor that a module has under this name, perhaps moved to a type."""
    node: Any = value.node if isinstance(value, fx.Proxy) else None
    while isinstance(node, fx.Node) and node.target in ("to", "type_as"):
        node = node.args[0]
    return (
        isinstance(node, fx.Node)
        and node.op == "get_attr"
        and str(node.target).split(".")[-1] == key
    )
