"""A network that is its graph: what a `.qsr` file gives back where nobody brings the class.

Somebody's network has a class, and its forward is code. The graph of it (`trace`) is a list of
calls, each of a layer or of a function that `operators` knows, and can be a file
(`graph_json`). This module is the way back. It has the layers of that network, under the same
names, so that its state_dict is the same; its forward walks through the graph. As any packed
network it runs by a plan, which is made anew of the graph: a file of today gets the planner of
tomorrow.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, fx

from ..system.errors import first_line
from . import graph_json, layer_json
from .in_place import Untraceable, write_out
from .planned import Planned, run_node

CLASS_NAME = re.compile(r"\w{1,80}")


class StoredNetwork(Planned):
    """A packed network from a file, in eval mode, on the CPU.

    Takes and gives what the network took and gave that was packed, with its optional arguments
    left out. Raises ValueError where the graph does not fit what it is given.
    """

    _class_name: str

    def __init__(
        self,
        class_name: str,
        graph: Mapping[str, Any],
        layers: Mapping[str, Any],
        tensors: Mapping[str, Tensor],
    ) -> None:
        """graph, layers: as `graph_json` and `layer_json` describe them. tensors: those of the
        file, which give room here and not values. Raises ValueError (one line) for descriptions
        that are none; LookupError or TypeError for `layers`.
        """
        super().__init__()
        if not CLASS_NAME.fullmatch(class_name):
            raise ValueError(f"its class is called {class_name[:40]!r}")
        self._class_name, self._described = class_name, graph
        self._kernel, self._running, self._apart = "auto", None, ()
        self._graph, floats = graph_json.read(graph, tensors)
        rows = graph_json.rows_of(graph)
        for name, layer in floats.items():  # an attention before the packed layers in it
            if layer is not None:
                layer_json.put(self, name, layer)
            elif name not in layers:
                raise ValueError(f"the layer {name[:40]!r} is not described")
        for name, about in layers.items():
            held = layer_json.held_by(name, tensors)
            layer_json.put(self, name, layer_json.empty_layer(about, held, name in rows))
        there = self.state_dict()
        for name, tensor in tensors.items():
            if name not in there:  # a parameter that the forward reads, or nobody
                layer_json.put_tensor(self, name, tensor)
        try:
            write_out(self._graph, self)
        except Untraceable as error:
            raise ValueError(str(error)) from error
        self._inputs = sum(node.op == "placeholder" for node in self._graph.nodes)  # type: ignore[misc]
        self.eval().requires_grad_(False)

    @property
    def class_name(self) -> str:
        return self._class_name

    def traced(self) -> fx.Graph:
        return self._graph

    def forward(self, *inputs: Any, **options: Any) -> Any:
        try:
            return super().forward(*inputs, **options)
        except Exception as error:  # whatever PyTorch makes of operators that do not fit
            shapes = [list(x.shape) if isinstance(x, Tensor) else x for x in inputs]
            raise ValueError(
                f"the stored {self.class_name} cannot run on {shapes}: {first_line(error)}"
            ) from error

    def _forward_of_class(self, *inputs: Any) -> Any:
        values = self._values(inputs)
        (last,) = (node for node in self._graph.nodes if node.op == "output")
        return fx.node.map_arg(last.args[0], lambda n: values[n.name])

    def _values(self, inputs: Sequence[Any]) -> dict[str, Any]:
        """What each node gives, layer by layer."""
        given, values = iter(inputs), dict[str, Any]()
        for node in self._graph.nodes:
            if node.op == "placeholder":
                values[node.name] = next(given)
            elif node.op != "output":
                values[node.name] = run_node(node, self, values)
        return values

    def needed_bytes(self, *inputs: Tensor) -> int:
        """The most memory that values and workspaces take at once on these inputs. Raises as a
        call.
        """
        self(*inputs)
        running, values = self._ready(), dict[str, Any]()
        if not running.plan.plans:
            return _bytes(self._values(inputs))
        parts = running.walk(self, inputs, values)
        return max(running.workspace(part) + _bytes(values) for part in parts)

    def __getstate__(self) -> Any:
        return {**super().__getstate__(), "_graph": None}

    def __setstate__(self, state: Any) -> None:
        super().__setstate__(state)
        self._graph, _ = graph_json.read(self._described, set(self.state_dict()))
        write_out(self._graph, self)

    def __reduce_ex__(self, protocol: Any) -> Any:
        return object.__reduce_ex__(self, protocol)  # its class stands in a module


def _bytes(values: Mapping[str, Any]) -> int:
    tensors = (value for value in values.values() if isinstance(value, Tensor))
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)
