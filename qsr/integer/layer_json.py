"""Packed layers as data: what their tensors do not say.

The tensors of a packed layer tell its channels out, its window, the bits of its weights, whether it
has a bias and a shift. What is left is small, strides and such, and stands in a file as JSON, by
the names of the layers. `describe` writes it, `empty_layer` makes a layer of such a description and
of the tensors that are to fill it, and trusts neither.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from ..layers import QConv1d, QConv2d, QConvTranspose2d, QLinear, QMatmul
from ..quantizer import LSQ, RLQ, QuantSpec
from .packed_layers import (
    PackedConv1d,
    PackedConv2d,
    PackedConvTranspose2d,
    PackedLayer,
    PackedLinear,
    PackedMatmul,
    PackedProjection,
)

MOST = 64  # of a stride, a padding, a dilation
GEOMETRY = {"stride": 1, "padding": 0, "dilation": 1, "output_padding": 0}  # the least of each


def describe(network: nn.Module) -> dict[str, dict[str, Any]]:
    """What the tensors of packed layers do not say, by their names."""
    found: dict[str, dict[str, Any]] = {}
    for name, layer in network.named_modules():
        if isinstance(layer, PackedMatmul):
            specs = [[spec.bits, spec.narrow] for spec in layer.specs.values()]
            found[name] = {"kind": "matmul", "bits": specs}
        elif isinstance(layer, PackedLayer):
            bits = [layer.planes.bits, layer.bits]
            about = {"kind": type(layer).__name__.removeprefix("Packed").lower(), "bits": bits}
            if isinstance(layer, PackedConv2d):
                geometry = {"stride": layer.stride, "padding": layer.padding}
                about |= {"kind": "conv", **geometry, "dilation": layer.dilation}
            if isinstance(layer, PackedConvTranspose2d):
                about |= {"kind": "transposed", "output_padding": layer.output_padding}
            sizes = {"channels": layer.channels, "groups": layer.groups}
            found[name] = {**about, **sizes, "narrow": layer.narrow}
    return found


def empty_layer(
    about: Mapping[str, Any], held: Mapping[str, Tensor], rows: bool = False
) -> PackedLayer | PackedMatmul:
    """A packed layer without values, as it is described, with room for these tensors.

    rows: whether a convolution is one of rows, [N, C, L]. Raises ValueError, LookupError or
    TypeError for what is no description.
    """
    if about["kind"] == "matmul":
        return _empty_matmul(about)
    out, *window, _, weight_bits, _ = held["weight"].shape
    most = 64 * held["weight"].shape[-1]
    if not (1 <= about["channels"] <= most and 1 <= about["groups"] <= out):
        raise ValueError(f"a layer has {about['channels']} channels in {about['groups']} groups")
    options: dict = {
        "bias": "bias" in held,
        "bits": (max(2, weight_bits), max(2, about["bits"][1])),
        "quantizer": RLQ if "tau" in held else LSQ,
        "per_channel": held["scale"].ndim > 0,
    }
    channels = about["groups"] * about["channels"]
    geometry = {
        name: _pair(about[name], least) for name, least in GEOMETRY.items() if name in about
    }
    layer: PackedLayer
    if about["kind"] == "conv":
        options |= geometry | {"groups": about["groups"]}
        if rows:
            options |= {name: pair[1:] for name, pair in geometry.items()}
            layer = PackedConv1d(QConv1d(channels, out, window[1], **options))
        else:
            layer = PackedConv2d(QConv2d(channels, out, tuple(window), **options))
    elif about["kind"] == "transposed":
        options |= geometry | {"groups": about["groups"]}
        layer = PackedConvTranspose2d(QConvTranspose2d(channels, out, tuple(window), **options))
    else:
        kind = {"linear": PackedLinear, "projection": PackedProjection}[about["kind"]]
        layer = kind(QLinear(channels, out, **options))
    layer.narrow = bool(about["narrow"])
    return layer.eval()


def _empty_matmul(about: Mapping[str, Any]) -> PackedMatmul:
    (left, left_narrow), (right, right_narrow) = about["bits"]
    matmul = PackedMatmul(QMatmul(bits=(left, right)))
    narrow = (bool(left_narrow), bool(right_narrow))
    matmul.specs = {
        side: QuantSpec(spec.bits, spec.signed, n)
        for (side, spec), n in zip(matmul.specs.items(), narrow, strict=True)
    }
    return matmul.eval()


def _pair(numbers: Any, least: int) -> tuple[int, int]:
    """Two numbers of a geometry, down and across."""
    down, across = numbers
    for n in (down, across):
        if type(n) is not int or not least <= n <= MOST:
            raise ValueError(f"a layer has {str(n)[:40]} as a stride, padding or dilation")
    return down, across


# Places -------------------------------------------------------------------------------------------


def held_by(name: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of the layer of a name, by their names in it."""
    start = f"{name}."
    return {key.removeprefix(start): t for key, t in tensors.items() if key.startswith(start)}


def owner_of(root: nn.Module, name: str) -> nn.Module:
    """The module whose part a name is; where there is none, empty ones are made."""
    for part in name.split(".")[:-1]:
        if part not in root._modules:
            root.add_module(part, nn.Module())
        root = root._modules[part]  # type: ignore[assignment]
    return root


def put(root: nn.Module, name: str, module: nn.Module) -> None:
    """`module` in its place under `root`, instead of what is there."""
    owner, last = owner_of(root, name), name.rpartition(".")[2]
    owner._modules.pop(last, None)
    owner.add_module(last, module)


def put_tensor(root: nn.Module, name: str, tensor: Tensor) -> None:
    """A tensor in its place under `root`, as a buffer."""
    owner_of(root, name).register_buffer(name.rpartition(".")[2], tensor)
