"""Any network, quantised: the layers of a copy of it become quantised ones.

`quantize` changes the class of a layer and gives it two quantizers. So its weights, their ties,
parametrisations, hooks, names, device and dtype stay, without being copied one by one. What it
cannot quantise it names, and what can be trained but not be packed as well, before the training.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from fnmatch import fnmatchcase

from torch import Tensor, nn
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear  # MultiheadAttention.out_proj
from torch.nn.parameter import is_lazy
from torch.nn.utils import parametrize

from .layers import (
    Bits,
    Matmul,
    Projection,
    QConv1d,
    QConv2d,
    QConvTranspose2d,
    QLinear,
    QMatmul,
    QMultiheadAttention,
    Quantized,
    QuantizedConv,
    QuantizerFactory,
    become,
)
from .quantizer import RLQ

TWINS: dict[type[nn.Module], type[nn.Module]] = {
    nn.Conv1d: QConv1d,
    nn.Conv2d: QConv2d,
    nn.ConvTranspose2d: QConvTranspose2d,
    nn.Linear: QLinear,
    NonDynamicallyQuantizableLinear: QLinear,
    nn.MultiheadAttention: QMultiheadAttention,
}


def zero_padding(conv: QuantizedConv) -> tuple[int, ...] | None:
    """How many zeros a convolution adds on each side of its dimensions; None if it is another
    padding, or not the same on both sides.
    """
    if conv.padding_mode != "zeros":
        return None
    if not isinstance(conv.padding, str):
        return conv.padding
    reach = [d * (k - 1) for d, k in zip(conv.dilation, conv.kernel_size, strict=True)]
    both = [n if conv.padding == "same" else 0 for n in reach]
    return None if any(n % 2 for n in both) else tuple(n // 2 for n in both)


def why_not_packed(layer: nn.Module) -> str:
    """Why a quantised layer can be trained and not yet packed, in a few words; "" if it can be."""
    if isinstance(layer, QMatmul):
        quantizers = [layer.left_quantizer, layer.right_quantizer]
    elif isinstance(layer, Quantized):
        quantizers = [layer.input_quantizer]
    else:
        return ""
    for q in quantizers:
        if not q.one_grid:
            return (
                f"{type(q).__name__} chooses bits anew for every picture, and packed layers "
                "have one width"
            )
        if isinstance(layer, QMatmul) and q.shift(q.step_size) is not None:
            return f"{type(q).__name__} shifts its input, and packed products have no shift"
    if isinstance(layer, (QConv1d, QConv2d)) and zero_padding(layer) is None:
        return (
            f"padding {layer.padding!r} with mode {layer.padding_mode!r}; packed convolutions "
            "take as many zeros on both sides"
        )
    return ""


def not_packed(net: nn.Module) -> dict[str, str]:
    """Why not, by the name of each quantised layer that can be trained and not yet packed."""
    found = {}
    for name, layer in net.named_modules():
        if why := why_not_packed(layer):
            of_attention = isinstance(layer, Projection)
            found[name.rpartition(".")[0] if of_attention else name] = why
    return found


def left_in_float(net: nn.Module) -> dict[str, str]:
    """Why it is not quantised, by the name of each layer that multiplies in full precision.

    What a module's own forward writes out, F.conv2d, @ or torch.bmm of activations, is no layer and
    is not seen here; `qsr.report(net, batch)` runs the network and sees that too.
    """
    return {
        name: _obstacle(layer) or "not quantised"
        for name, layer in _layers(net)
        if _multiplies(layer) and not isinstance(layer, (Quantized, QMatmul, QMultiheadAttention))
    }


def _layers(net: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Modules by name, without those that are parts of a layer: its quantizers, parametrisations,
    and the out_proj of an attention that stays as it is, which reads the weight without a call.
    """
    parts: set[int] = set()
    for name, module in net.named_modules():
        if id(module) in parts:
            continue
        yield name, module
        attention = isinstance(module, nn.MultiheadAttention)
        stays = attention and not isinstance(module, QMultiheadAttention) and not _twin(module)
        if stays or isinstance(module, (Quantized, QMatmul)):
            parts.update(map(id, module.modules()))
        elif parametrize.is_parametrized(module):
            parts.update(map(id, module.parametrizations.modules()))


def _own_parameters(layer: nn.Module) -> list[nn.Parameter]:
    own = list(layer.parameters(recurse=False))
    if parametrize.is_parametrized(layer):
        own += layer.parametrizations.parameters()  # type: ignore[union-attr]
    return own


def _multiplies(layer: nn.Module) -> bool:
    """Whether a module multiplies, as far as can be seen: of a known kind, or with a matrix."""
    if isinstance(layer, (Matmul, *TWINS)):
        return True
    if isinstance(layer, (nn.LayerNorm, nn.RMSNorm)):
        return False
    return any(is_lazy(p) or sum(n > 1 for n in p.shape) > 1 for p in _own_parameters(layer))


def _twin(layer: nn.Module) -> type[nn.Module] | None:
    """The kind that quantize makes of a layer, or None."""
    kind = TWINS.get(parametrize.type_before_parametrizations(layer))
    return None if kind is None or _obstacle(layer) else kind


def _obstacle(layer: nn.Module) -> str:
    """What keeps quantize from a layer that multiplies, "" if nothing does."""
    parameters = _own_parameters(layer)
    if any(is_lazy(p) for p in parameters):
        return "has no shape yet; run the network once before"
    if parametrize.type_before_parametrizations(layer) in TWINS:
        if "forward" in vars(layer):
            return "has a forward of its own"
        if any(isinstance(value, Tensor) for value in vars(layer).values()):
            return (
                "a hook makes its weight (weight_norm, spectral_norm or pruning of the old kind); "
                "use torch.nn.utils.parametrizations"
            )
        if not all(p.is_floating_point() for p in parameters):
            return "its numbers are not real"
        return ""
    if isinstance(layer, Matmul):
        return "a product of two activations; `attention_bits` or qsr.QMatmul would quantise it"
    if isinstance(layer, tuple(TWINS)):
        return "a subclass, whose forward may be another"
    return "no quantised layer is of this kind; its matrix stays as it is"


def copy_module(module: nn.Module) -> nn.Module:
    """A deep copy. Tensors that a hook computed, which copy.deepcopy refuses, are copied as values;
    the hook will compute them again. As with copy.deepcopy, hooks on tensors are not copied.
    """
    values = [value for part in module.modules() for value in vars(part).values()]
    computed = [v for v in values if isinstance(v, Tensor) and not v.is_leaf]
    return copy.deepcopy(module, {id(v): v.detach().clone() for v in computed})


# Any network --------------------------------------------------------------------------------------


def quantize(
    module: nn.Module,
    bits: Bits | Mapping[str, Bits] = 4,
    quantizer: QuantizerFactory = RLQ,
    skip: Sequence[str] = (),
    per_channel: bool = False,
    *,
    attention_bits: Bits | None = None,
    strict: bool = False,
) -> nn.Module:
    """A copy of `module` in which Conv1d, Conv2d, ConvTranspose2d, Linear and MultiheadAttention
    became quantised layers.

    A layer stays the same module with two quantizers more: weights that are tied, frozen or
    parametrised stay so (quantizers learn also around frozen weights), hooks, names, device, dtype
    and mode too, and a layer used in two places is one layer. bits: one width, (weight bits,
    activation bits), or either for each layer: {"body.*": 2, "*": (8, 4)}, of which the first name
    that matches counts. skip: names as in `module.named_modules()`, wildcards allowed ("head",
    "tail.*"; * matches dots too), of layers that stay in full precision. A name stands for all that
    is in it. attention_bits: of the products in a MultiheadAttention, see `QMultiheadAttention`.

    One warning names what stays in full precision without being in `skip`: other kinds of layers,
    subclasses, and weights that a hook makes (`left_in_float` says what cannot be seen); and what
    can be trained and not yet packed. strict: refuse both instead.

    Calibrate the result before use: `qsr.calibrate(net, batch)`. Raises ValueError if there is
    nothing to quantise, a name matches nothing, or a layer no name.

    >>> net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 3, 3))
    >>> [type(layer).__name__ for layer in quantize(net, bits=2, skip=["2"])]
    ['QConv2d', 'ReLU', 'Conv2d']
    """
    net = copy_module(module)
    named = list(net.named_modules(remove_duplicate=False))

    def within(pattern: str, option: str) -> set[int]:
        """Ids of the modules of this name, and of all that is in them."""
        found = [m for name, m in named if name == pattern or fnmatchcase(name, pattern)]
        if not found:
            raise ValueError(
                f"`{option}` has {pattern!r}, which no layer is called; names are those of "
                "module.named_modules(), for example "
                + ", ".join(repr(name) for name, _ in named[1:4])
            )
        return {id(part) for m in found for part in m.modules()}

    patterns = (skip,) if isinstance(skip, str) else skip
    skipped = {part for pattern in patterns for part in within(pattern, "skip")}
    widths: dict[int, Bits] = {}  # by id of the layer
    for pattern, width in (bits if isinstance(bits, Mapping) else {"*": bits}).items():
        for layer_id in within(pattern, "bits"):
            widths.setdefault(layer_id, width)

    twins = [(name, layer, twin) for name, layer in _layers(net) if (twin := _twin(layer))]
    if not twins:
        raise ValueError(
            f"nothing to quantise in this {type(net).__name__}: "
            + (listed(net, left_in_float(net)) or "no layer has weights that are not quantised")
        )
    for name, layer, twin in twins:
        if id(layer) in skipped:
            continue
        if id(layer) not in widths:
            raise ValueError(
                f"`bits` names no width for the layer {name!r}; add it, or '*' for all others."
            )
        made, options = become(layer, twin), (widths[id(layer)], quantizer, per_channel)
        if isinstance(made, QMultiheadAttention):
            made.add_quantizers(*options, attention_bits)
        else:
            made.add_quantizers(*options)
    for encoder in net.modules():
        inside = any(isinstance(part, Quantized) for part in encoder.modules())
        if isinstance(encoder, nn.TransformerEncoder) and inside:
            encoder.use_nested_tensor = False  # for the fused path only

    kept = {name for name, layer in named if id(layer) in skipped}
    left = {name: why for name, why in left_in_float(net).items() if name not in kept}
    said = [
        f"{what}: {listed(net, found)}"
        for what, found in (
            ("layers in full precision", left),
            ("layers that can be trained, not yet packed", not_packed(net)),
        )
        if found
    ]
    if said:
        text = f"{'; '.join(said)}. `skip` names those that are meant to stay in full precision."
        if strict:
            raise ValueError(f"`strict` allows no {text}")
        warnings.warn(f"quantize leaves {text} qsr.report(net) lists all layers.", stacklevel=2)
    return net


def listed(net: nn.Module, reasons: Mapping[str, str], most: int = 8) -> str:
    """Names of layers by kind and reason: 'a', 'b' (LSTM: why), 'c' (Conv3d: why)."""
    layers, groups = dict(net.named_modules()), dict[str, list[str]]()
    for name, why in reasons.items():
        kind = type(layers[name]).__name__
        groups.setdefault(f"{kind}: {why}", []).append(repr(name or "(root)"))
    return ", ".join(
        ", ".join(names[:most])
        + (f" and {len(names) - most} more" if len(names) > most else "")
        + f" ({why})"
        for why, names in groups.items()
    )


def replace_layers(
    module: nn.Module,
    twin: Callable[[nn.Module], nn.Module | None],
    skipped: Collection[int] = (),
) -> nn.Module:
    """Put `twin(layer)` in the place of each layer of `module` for which it is not None, in place.

    A layer that is used in several places gets one twin for all of them. skipped: ids of modules
    that are left as they are, with all that is in them. Returns `module`, or its own twin.
    """
    twins: dict[int, nn.Module] = {}

    def replace(layer: nn.Module) -> nn.Module:
        if id(layer) in skipped:
            return layer
        if id(layer) not in twins:
            made = twin(layer)
            twins[id(layer)] = layer if made is None else made
            if made is None:
                for name, child in list(layer._modules.items()):
                    if child is not None:
                        setattr(layer, name, replace(child))
        return twins[id(layer)]

    return replace(module)
