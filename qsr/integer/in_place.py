"""Operations in place, written out of a graph: `x += y` and `nn.ReLU(inplace=True)`.

A graph says by its edges what depends on what, and a plan runs it in any order that these allow. An
operation in place breaks that: who reads x after it wants the new values and has an edge to the old
ones. So whoever comes later is given an edge to the operation instead, and where somebody read x
before, the operation makes a new value and leaves the old one alone.

That is right only if no other node sees the memory of x. Views of it do (`y = x[:, 1:]; x += 1`),
so what has views is refused: only values of operators that are known to make memory of their own
are overwritten.
"""

from __future__ import annotations

import inspect
import operator
from typing import Any

from torch import fx, nn

from . import calls


class Untraceable(Exception):
    """Why a network has no graph, in one line."""


def write_out(graph: fx.Graph, network: nn.Module) -> None:
    """Whoever reads a value after an operation in place on it gets the result of that instead, and
    where somebody read it before, the operation makes a new value: an order of execution may then
    be any that the edges allow. Raises Untraceable where others may see the same memory.
    """
    turn = {node: i for i, node in enumerate(graph.nodes)}
    for node in list(graph.nodes):
        if not in_place(node, network):
            continue
        x = node.args[0]
        if not _owns(x, network) or not all(_is_fresh(n, network) for n in x.users):
            raise Untraceable(f"{node.name!r} works in place on {x.name!r}, which has views")
        for user in list(x.users):
            if turn[user] > turn[node]:
                user.replace_input_with(x, node)
        if len(x.users) > 1:
            _out_of_place(node, graph)


def in_place(node: fx.Node, network: nn.Module) -> bool:
    """Whether a node overwrites its first argument."""
    if not (node.args and isinstance(node.args[0], fx.Node)):
        return False
    if node.op == "call_module":
        return getattr(network.get_submodule(str(node.target)), "inplace", False)
    if _option(node, "inplace") or node.kwargs.get("out") is not None:
        return True
    name = _name(node)
    if _is_operator(node):
        return name in _IN_PLACE and not _is_size(node.args[0])
    return name == "setitem" or (name.endswith("_") and not name.startswith("__"))


def _out_of_place(node: fx.Node, graph: fx.Graph) -> None:
    """The same operation on a copy, or, where it has a name of its own, one that makes a value."""
    name = _name(node)
    if _is_operator(node):
        node.target = getattr(operator, name[1:])
    elif node.op == "call_method":
        node.target = name.rstrip("_")
    else:
        with graph.inserting_before(node):
            copied = graph.call_method("clone", (node.args[0],))
        node.replace_input_with(node.args[0], copied)  # type: ignore[arg-type]


def _option(node: fx.Node, name: str) -> Any:
    """What a function is given under this name, also by its position."""
    if node.op != "call_function" or name in node.kwargs:
        return node.kwargs.get(name)
    assert callable(node.target)
    try:
        names = list(inspect.signature(node.target).parameters)
    except ValueError:  # one that is not written in Python
        return None
    at = names.index(name) if name in names else len(node.args)
    return node.args[at] if at < len(node.args) else None


def _is_operator(node: fx.Node) -> bool:
    return node.op == "call_function" and node.target in vars(operator).values()


def _name(node: fx.Node) -> str:
    return node.target if isinstance(node.target, str) else node.target.__name__


def _is_size(node: fx.Node) -> bool:
    """Whether a node is no tensor but a size, or made of sizes."""
    if node.target in (getattr, "size", "dim", "numel"):
        return True
    made = node.all_input_nodes
    return _is_operator(node) and bool(made) and all(map(_is_size, made))


def _owns(node: fx.Node, network: nn.Module) -> bool:
    """Whether a node has memory that no other node sees: its own, or all of that of such a one."""
    if _is_fresh(node, network):
        return True
    x = node.args[0] if node.args else None
    return isinstance(x, fx.Node) and len(x.users) == 1 and _owns(x, network)


def _is_fresh(node: fx.Node, network: nn.Module) -> bool:
    """Whether what a node gives is memory of its own, or was given to it to be overwritten."""
    if node.op == "call_module":
        return not isinstance(network.get_submodule(str(node.target)), _VIEWING)
    if node.op in ("placeholder", "output"):
        return True
    return node.op != "get_attr" and (_name(node) in _IN_PLACE or _name(node).rstrip("_") in _FRESH)


_IN_PLACE = ("iadd", "isub", "imul", "itruediv")
_FRESH = set(calls.FUNCTIONS) | {
    *("add", "sub", "subtract", "mul", "multiply", "div", "truediv", "neg", "pow", "exp", "sqrt"),
    *("sum", "abs", "clamp", "clip", "matmul", "bmm", "cat", "concat", "stack", "prelu", "relu6"),
    *("elu", "softmax", "hardswish", "conv2d", "clone"),
}
_VIEWING = (nn.Flatten, nn.Unflatten)  # modules that give what they take
