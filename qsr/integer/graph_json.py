"""The graph of a network as data: what a `.qsr` file says so that nobody's class is needed.

    {"version": 1, "layers": {name: {"kind": .., option: ..}}, "nodes": [node ...], "result": value}

`trace` wrote down which layers and functions a network calls. Here each call is a node,

    {"name": "x", "input": true}                                   what the network is given
    {"name": "conv", "layer": "body.0", "args": [value ...]}       a layer, its weights in the file
    {"name": "relu", "function": "functional.relu", "args": ..}    of `operators`, as are methods
    {"name": "rows", "method": "flatten", "args": .., "options": {..}}
    {"name": "gain", "tensor": "gain"}                             a parameter of the file

in an order in which everything is there when it is read. A value is null, a number, a word, a list
for a tuple, or {"node": name}, {"slice": [a, b, c]}, {"list": [...]}, {"ellipsis": true}. Sizes are
nodes as well, {"function": "shape"}, so that one graph serves all pictures.

What is not in the tables of `operators` has no name and cannot be written: `describe` says which
node it is. `read` trusts nothing: it looks every name up, checks every number, and makes a graph of
torch.fx of it, as `trace` does, for whoever plans and runs it. Nothing of a file becomes code.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import Tensor, fx, nn

from ..layers import Matmul, QMultiheadAttention
from ..system.errors import first_line
from . import operators
from .packed_layers import PackedConv1d, PackedLayer, PackedMatmul

VERSION = 1
MOST_NODES, MOST_ARGUMENTS, MOST_DEPTH = 16_384, 1_024, 4
ATTENTION = ("embed_dim", "num_heads", "add_zero_attn", "batch_first")
PACKED = ("packed", "packed rows")  # kinds of packed layers; the second is a PackedConv1d
WRITES = "out"  # an option by which a function of PyTorch writes into something
NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


class Unstorable(Exception):
    """Why a graph is no data, in one line."""


# Writing ------------------------------------------------------------------------------------------


def describe(graph: fx.Graph, network: nn.Module) -> dict[str, Any]:
    """The graph of a packed network, to be written by json.dumps. Raises Unstorable."""
    layers: dict[str, Any] = {}
    nodes, result = [], None
    tensors = {*network.state_dict(), *constants(graph, network)}
    for node in graph.nodes:
        try:
            if node.op == "output":
                result = _written(node.args[0])
                continue
            if node.op == "call_module":
                layers[str(node.target)] = _layer(network.get_submodule(str(node.target)))
            nodes.append(_node(node, tensors))
        except Unstorable as error:
            raise Unstorable(f"the node {node.name!r} {error}") from error
    data = {"version": VERSION, "layers": layers, "nodes": nodes, "result": result}
    try:
        _graph(json.loads(json.dumps(data)), tensors)  # no file that nobody could read
    except ValueError as error:
        raise Unstorable(str(error)) from error
    return data


def constants(graph: fx.Graph, network: nn.Module) -> dict[str, Tensor]:
    """What a forward reads beside the state_dict: tensors that are plain attributes or buffers that
    are not persistent, and finite.
    """
    known, found = network.state_dict(), dict[str, Tensor]()
    for node in graph.nodes:
        if node.op == "get_attr" and node.target not in known:
            owner, _, name = node.target.rpartition(".")
            value = getattr(network.get_submodule(owner), name)
            if isinstance(value, Tensor) and value.isfinite().all():
                found[node.target] = value.detach()
    return found


def _node(node: fx.Node, tensors: Collection[str]) -> dict[str, Any]:
    target = node.target
    if node.op == "placeholder":
        return {"name": node.name, "input": True}
    if node.op == "get_attr":
        if target not in tensors:
            raise Unstorable(f"reads {target!r}, which is no finite tensor")
        return {"name": node.name, "tensor": target}
    args, options = node.args, node.kwargs
    called: dict[str, Any] = {"layer": target}
    if node.op == "call_method":
        if target not in operators.METHODS:
            raise Unstorable(f"calls the method {str(target)!r}, which files do not hold")
        called = {"method": target}
    elif target is getattr and args[1] == "shape":
        called, args = {"function": "shape"}, args[:1]
    elif node.op == "call_function":
        name = operators.name_of(target)
        if name is None:
            module = str(getattr(target, "__module__", None) or "").strip("_")
            whose = f"{module}.{getattr(target, '__name__', target)}"
            raise Unstorable(f"calls {whose}, which files do not hold")
        called = {"function": name}
    if options.get(WRITES) is not None:
        raise Unstorable("writes into something, which files do not hold")
    data: dict[str, Any] = {"name": node.name, **called, "args": [_written(a) for a in args]}
    if options:
        data["options"] = {name: _written(value) for name, value in options.items()}
    return data


def _layer(layer: nn.Module) -> dict[str, Any]:
    kind = type(layer).__name__
    if isinstance(layer, (PackedLayer, PackedMatmul)):
        return {"kind": PACKED[isinstance(layer, PackedConv1d)]}
    if isinstance(layer, QMultiheadAttention):
        options = {name: getattr(layer, name) for name in ATTENTION}
        return {"kind": "attention", **options, "add_bias_kv": layer.bias_k is not None}
    found = operators.module_options(layer)
    if found is None:
        raise Unstorable(f"calls a layer {kind}, which files do not hold")
    return {"kind": kind, **{name: _written(value) for name, value in found.items()}}


def _written(value: Any) -> Any:
    if isinstance(value, fx.Node):
        return {"node": value.name}
    if isinstance(value, slice):
        return {"slice": [_written(v) for v in (value.start, value.stop, value.step)]}
    if value is Ellipsis:
        return {"ellipsis": True}
    if isinstance(value, tuple):
        return [_written(v) for v in value]
    if isinstance(value, list):
        return {"list": [_written(v) for v in value]}
    try:
        operators.check(value, operators.MOST_NUMBER)
    except ValueError as error:
        raise Unstorable(str(error)) from error
    return value


# Reading ------------------------------------------------------------------------------------------


def read(data: Any, tensors: Collection[str]) -> tuple[fx.Graph, dict[str, nn.Module | None]]:
    """The graph that a file describes, and its layers, without values: None for packed ones, which
    `layer_json` makes. tensors: names of those in the file. Raises ValueError (one line).
    """
    try:
        return _graph(data, tensors)
    except (LookupError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        raise ValueError(f"the graph is not one: {first_line(error)}") from error


def _graph(data: Any, tensors: Collection[str]) -> tuple[fx.Graph, dict[str, nn.Module | None]]:
    if data["version"] != VERSION:
        raise ValueError(f"its version is {str(data['version'])[:40]}, not {VERSION}")
    if len(data["nodes"]) > MOST_NODES:
        raise ValueError(f"it has {len(data['nodes'])} nodes")
    layers = {str(name): _made(about) for name, about in data["layers"].items()}
    graph, nodes = fx.Graph(), dict[str, fx.Node]()
    for about in data["nodes"]:
        name = about["name"]
        if not isinstance(name, str) or not NAME.fullmatch(name) or name in nodes:
            raise ValueError(f"a node is called {str(name)[:40]!r}")
        try:
            nodes[name] = _add(graph, about, nodes, layers, tensors)
        except ValueError as error:
            raise ValueError(f"the node {name[:40]!r} {error}") from error
    graph.output(_value(data["result"], nodes, operators.MOST_NUMBER))
    return graph, layers


def _add(
    graph: fx.Graph,
    about: Mapping[str, Any],
    nodes: Mapping[str, fx.Node],
    layers: Collection[str],
    tensors: Collection[str],
) -> fx.Node:
    """A node more. Raises ValueError, or what it is made of does."""
    name = about["name"]
    (kind,) = set(about) - {"name", "args", "options"}
    op, target = kind, about[kind]
    most = operators.most_of(target)
    args = [_value(value, nodes, most) for value in about.get("args", ())]
    options = {
        option: _value(value, nodes, most) for option, value in about.get("options", {}).items()
    }
    known = False
    if kind == "input":
        op, target, known = "placeholder", name, not args
    elif kind == "tensor":
        op, known = "get_attr", target in tensors
    elif kind == "layer":
        op, known = "call_module", target in layers
    elif kind == "method":
        op, known = "call_method", target in operators.METHODS and isinstance(args[0], fx.Node)
    elif (kind, target) == ("function", "shape"):
        op, target, known = "call_function", getattr, len(args) == 1
        args.append("shape")
    elif kind == "function":
        op, target = "call_function", operators.function_of(target)
        known = target is not None
    if not known or options.get(WRITES) is not None:
        raise ValueError(f"calls {str(about[kind])[:40]!r}, which is not known")
    node = graph.create_node(op, target, tuple(args), options, name)
    if node.name != name:
        raise ValueError("has the name of something else")
    return node


def _value(value: Any, nodes: Mapping[str, fx.Node], most: int, depth: int = 0) -> Any:
    """What a value of a file is, given the nodes that are there; most: of its numbers."""

    def all_of(values: Any) -> list[Any]:
        if not isinstance(values, list) or len(values) > MOST_ARGUMENTS or depth > MOST_DEPTH:
            raise ValueError("has a list of values that is none, or too long")
        return [_value(v, nodes, most, depth + 1) for v in values]

    if isinstance(value, list):
        return tuple(all_of(value))
    if not isinstance(value, dict):
        operators.check(value, most)
        return value
    ((kind, content),) = value.items()
    if kind == "node" and content in nodes:
        return nodes[content]
    if kind == "slice":
        return slice(*all_of(content))
    if kind == "list":
        return all_of(content)
    if kind == "ellipsis":
        return Ellipsis
    raise ValueError(f"reads {str(content)[:40]!r}, which is not there yet")


# Layers -------------------------------------------------------------------------------------------


def _made(about: Mapping[str, Any]) -> nn.Module | None:
    """A layer of its description, without memory for its weights; None for a packed one."""
    kind = about["kind"]
    options = {
        name: _value(value, {}, operators.MOST_NUMBER)
        for name, value in about.items()
        if name != "kind"
    }
    if kind == "attention":
        return _attention(**options)
    return None if kind in PACKED else operators.make_module(kind, options)


def _attention(
    embed_dim: int, num_heads: int, add_zero_attn: bool, batch_first: bool, add_bias_kv: bool
) -> nn.Module:
    """An attention without weights, whose packed parts are put into it."""
    if not 1 <= num_heads <= embed_dim or embed_dim % num_heads:
        raise ValueError(f"an attention has {embed_dim} features for {num_heads} heads")
    options: dict[str, Any] = {"add_zero_attn": bool(add_zero_attn)}
    options |= {"add_bias_kv": bool(add_bias_kv), "batch_first": bool(batch_first)}
    with torch.device("meta"):
        attention = QMultiheadAttention(embed_dim, num_heads, **options)
    for name in ("in_proj_weight", "in_proj_bias"):
        attention.register_parameter(name, None)
    for name in ("query", "key", "value", "out_proj", "scores", "mix"):
        setattr(attention, name, Matmul())
    return attention.eval()


def rows_of(data: Mapping[str, Any]) -> set[str]:
    """Names of the packed layers that are convolutions of rows."""
    return {name for name, about in data["layers"].items() if about["kind"] == PACKED[1]}
