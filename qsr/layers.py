"""Quantised layers: a familiar layer, with a quantizer on its weights and one on its input.

    y = conv(input_quantizer(x), weight_quantizer(weight)) + bias

That is all there is. Padding zeros are inserted after quantisation, so a padded pixel has code 0;
the bias stays full precision; `tau` of the input quantizer is not subtracted again (QuantSR,
released code). Because both factors are a step size times integers,

    y = (step_a * step_w) * (codes_a conv codes_w) + bias,

and the bracket on the right is the integer convolution that `qsr.pack` hands to the kernels. It is
also what runs under autocast: step_size * codes would leave the grid in 16 bits, but codes are
exact, and so are their products and sums, which are added up in 32 bits; only the sum that comes
out is rounded. That is how training in bfloat16 multiplies in 16 bits without changing a code.

`quantize` puts such layers into a copy of any network.
"""

from __future__ import annotations

import contextlib
import copy
import functools
from collections.abc import Callable, Collection, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .quantizer import RLQ, Quantizer

QuantizerFactory = Callable[..., Quantizer]  # a Quantizer class, or functools.partial of one
Bits = int | tuple[int, int]  # one width for both, or (weights, activations)


def split_bits(bits: Bits) -> tuple[int, int]:
    """(weight bits, activation bits) of `bits`.

    >>> split_bits(4), split_bits((2, 4))
    ((4, 4), (2, 4))
    """
    if isinstance(bits, int):
        return bits, bits
    weight_bits, activation_bits = bits
    return weight_bits, activation_bits


def _in_16_bits(x: Tensor, *quantizers: Quantizer) -> bool:
    """Whether autocast asks for bfloat16 on the device of x, and the quantizers can give codes."""
    kind = x.device.type
    asked = (
        torch.amp.is_autocast_available(kind)
        and torch.is_autocast_enabled(kind)
        and torch.get_autocast_dtype(kind) == torch.bfloat16
    )
    return asked and all(q.one_grid for q in quantizers)


def _no_autocast(x: Tensor) -> contextlib.AbstractContextManager:
    """Autocast switched off on the device of x, where there is such a thing (meta has none)."""
    kind = x.device.type
    there = torch.amp.is_autocast_available(kind)
    return torch.autocast(kind, enabled=False) if there else contextlib.nullcontext()


def _multiply_codes(
    product: Callable[[Tensor, Tensor], Tensor],
    a: tuple[Quantizer, Tensor],
    b: tuple[Quantizer, Tensor],
    channel_dim: int,
    bias: Tensor | None = None,
) -> Tensor:
    """product(a, b) of two factors, (quantizer, values) each, by their codes in bfloat16.

    channel_dim: that of the result along which b may have several steps.
    """
    (first, x), (second, y) = a, b
    sums = product(first.float_codes(x, torch.bfloat16), second.float_codes(y, torch.bfloat16))
    shape = [1] * sums.ndim
    shape[channel_dim] = -1
    scale = (first.step(x) * second.step(y).flatten()).detach().view(shape)
    scaled = sums.float() * scale
    return scaled if bias is None else scaled + bias.view(shape)


def _quantized_product(
    layer: QConv2d | QLinear, x: Tensor, product: Callable[..., Tensor], channel_dim: int
) -> Tensor:
    """product(x, weight, bias) of a layer, both factors quantised; channel_dim: of the result."""
    inputs, weights = layer.input_quantizer, layer.weight_quantizer
    in_16_bits = _in_16_bits(x, inputs, weights)
    with _no_autocast(x):
        x = x.to(layer.weight.dtype)
        if in_16_bits:
            sums = functools.partial(product, bias=None)
            factors = (inputs, x), (weights, layer.weight)
            return _multiply_codes(sums, *factors, channel_dim, layer.bias)
        return product(inputs(x), weights(layer.weight), layer.bias)


class QConv2d(nn.Conv2d):
    """nn.Conv2d whose weights and input are quantised. Zero padding only.

    bits: one width, or (weight bits, activation bits), 2 to 8.
    quantizer: a `Quantizer` class (or functools.partial of one) for both roles.
    per_channel: one weight step size per output channel instead of one per layer; costs nothing
    at inference. x: float [N, in_channels, H, W].
    """

    stride: tuple[int, int]
    padding: tuple[int, int]  # never a word

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, int],
        *,
        bits: Bits = 4,
        quantizer: QuantizerFactory = RLQ,
        per_channel: bool = False,
        **conv_options,
    ) -> None:
        super().__init__(in_channels, out_channels, kernel_size, **conv_options)
        if self.padding_mode != "zeros" or isinstance(self.padding, str):
            raise ValueError(
                f"padding {self.padding!r} with mode {self.padding_mode!r}; a quantised "
                "convolution pads by a number of pixels with the code 0. Pad before it instead."
            )
        weight_bits, activation_bits = split_bits(bits)
        self.weight_quantizer = quantizer(
            weight_bits, signed=True, steps=out_channels if per_channel else None, weights=True
        )
        self.input_quantizer = quantizer(activation_bits, channels=in_channels, channel_dim=1)

    def forward(self, x: Tensor) -> Tensor:
        return _quantized_product(self, x, self._conv_forward, 1)


class QLinear(nn.Linear):
    """nn.Linear whose weights and input are quantised; options as `QConv2d`.

    x: float [..., in_features].
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        bits: Bits = 4,
        quantizer: QuantizerFactory = RLQ,
        per_channel: bool = False,
        **linear_options,
    ) -> None:
        super().__init__(in_features, out_features, **linear_options)
        weight_bits, activation_bits = split_bits(bits)
        self.weight_quantizer = quantizer(
            weight_bits, signed=True, steps=out_features if per_channel else None, weights=True
        )
        self.input_quantizer = quantizer(activation_bits, channels=in_features, channel_dim=-1)

    def forward(self, x: Tensor) -> Tensor:
        return _quantized_product(self, x, F.linear, -1)


class QMatmul(nn.Module):
    """A matrix product of two activations, both quantised: attention's q.k and probabilities.v.

    a: float [..., M, K], b: float [..., K, N] -> float [..., M, N]. One step size per factor.
    """

    def __init__(self, *, bits: Bits = 4, quantizer: QuantizerFactory = RLQ) -> None:
        super().__init__()
        left, right = split_bits(bits)
        self.left_quantizer = quantizer(left)
        self.right_quantizer = quantizer(right)

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        left, right = self.left_quantizer, self.right_quantizer
        in_16_bits = _in_16_bits(a, left, right)
        with _no_autocast(a):
            a, b = a.to(left.step_size.dtype), b.to(right.step_size.dtype)
            if in_16_bits:
                return _multiply_codes(torch.matmul, (left, a), (right, b), -1)
            return left(a) @ right(b)


def set_bits(layer: QConv2d | QLinear | QMatmul, bits: Bits) -> None:
    """Change the widths of a quantised layer, (weights, inputs) or (left, right); calibrate it
    afterwards.
    """
    if isinstance(layer, QMatmul):
        quantizers = (layer.left_quantizer, layer.right_quantizer)
    else:
        quantizers = (layer.weight_quantizer, layer.input_quantizer)
    for quantizer, width in zip(quantizers, split_bits(bits), strict=True):
        quantizer.set_bits(width)


def quantize(
    module: nn.Module,
    bits: Bits | Mapping[str, Bits] = 4,
    quantizer: QuantizerFactory = RLQ,
    skip: Sequence[str] = (),
    per_channel: bool = False,
) -> nn.Module:
    """A copy of `module` in which every Conv2d and Linear became a QConv2d or QLinear.

    Weights and biases are copied; a layer used in two places stays one layer. bits: one width,
    (weight bits, activation bits), or either for each layer: {"body.*": 2, "*": (8, 4)}, of which
    the first name that matches counts. skip: names as in `module.named_modules()`, wildcards
    allowed ("head", "tail.*"), of layers that stay in full precision, with all that is in them.
    Calibrate the result before use: `qsr.calibrate(net, batch)`. Raises ValueError if a name
    matches nothing, or a layer no name.

    >>> net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 3, 3))
    >>> [type(layer).__name__ for layer in quantize(net, bits=2, skip=["2"])]
    ['QConv2d', 'ReLU', 'Conv2d']
    """
    net = copy.deepcopy(module)
    named = list(net.named_modules(remove_duplicate=False))

    def matches(pattern: str, option: str) -> list[int]:
        found = [id(layer) for name, layer in named if fnmatchcase(name, pattern)]
        if not found:
            raise ValueError(
                f"`{option}` has {pattern!r}, which no layer is called; names are those of "
                "module.named_modules(), for example "
                + ", ".join(repr(name) for name, _ in named[1:4])
            )
        return found

    skipped = {layer for pattern in skip for layer in matches(pattern, "skip")}
    widths: dict[int, Bits] = {}  # by id of the layer
    for pattern, width in (bits if isinstance(bits, Mapping) else {"*": bits}).items():
        for layer in matches(pattern, "bits"):
            widths.setdefault(layer, width)

    def twin(layer: nn.Module) -> nn.Module | None:
        if not (type(layer) is nn.Conv2d or type(layer) is nn.Linear):
            return None
        if id(layer) not in widths:
            name = next(name for name, module in named if module is layer)
            raise ValueError(
                f"`bits` names no width for the layer {name!r}; add it, or '*' for all others."
            )
        options = {"quantizer": quantizer, "per_channel": per_channel}
        return _quantized_twin(layer, {"bits": widths[id(layer)], **options})

    return replace_layers(net, twin, skipped)


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


def _quantized_twin(layer: nn.Conv2d | nn.Linear, options: dict) -> nn.Module:
    """The QConv2d or QLinear with the geometry and the values of `layer`."""
    twin: QConv2d | QLinear
    if isinstance(layer, nn.Conv2d):
        twin = QConv2d(
            layer.in_channels,
            layer.out_channels,
            cast(tuple[int, int], layer.kernel_size),
            stride=layer.stride,
            padding=layer.padding,
            dilation=layer.dilation,
            groups=layer.groups,
            bias=layer.bias is not None,
            padding_mode=layer.padding_mode,
            **options,
        )
    else:
        twin = QLinear(
            layer.in_features, layer.out_features, bias=layer.bias is not None, **options
        )
    with torch.no_grad():
        twin.weight.copy_(layer.weight)
        if layer.bias is not None:
            cast(Tensor, twin.bias).copy_(layer.bias)
    return twin.to(layer.weight.device, layer.weight.dtype).train(layer.training)


@torch.no_grad()
def calibrate(net: nn.Module, batch: Tensor) -> None:
    """Initialise every quantizer of `net`: weights from themselves, inputs from one forward pass.

    batch: what `net` takes, for a QuantSR float RGB [N, 3, H, W] in [0, 1]. In the forward pass
    each input quantizer is calibrated by what reaches it through the quantised layers before it,
    in the order of execution. The same batch gives the same steps on every device and rank.
    Raises ValueError if a quantizer is never reached.
    """
    waiting = {name: m for name, m in net.named_modules() if isinstance(m, Quantizer)}
    for layer in net.modules():
        if isinstance(layer, (QConv2d, QLinear)):
            layer.weight_quantizer.calibrate(layer.weight)
    weight_quantizers = {
        id(m.weight_quantizer) for m in net.modules() if isinstance(m, (QConv2d, QLinear))
    }
    waiting = {n: m for n, m in waiting.items() if id(m) not in weight_quantizers}
    reached: set[int] = set()

    def calibrate_first(quantizer: Quantizer, args: tuple[Tensor, ...]) -> None:
        if id(quantizer) not in reached:
            quantizer.calibrate(args[0])
            reached.add(id(quantizer))

    hooks = [m.register_forward_pre_hook(calibrate_first) for m in waiting.values()]
    modes = {module: module.training for module in net.modules()}
    try:
        net.eval()(batch)  # the statistics of a user's batch normalisation stay as they are
    finally:
        for module, mode in modes.items():
            module.training = mode
        for hook in hooks:
            hook.remove()
    missed = [name for name, m in waiting.items() if id(m) not in reached]
    if missed:
        raise ValueError(
            f"calibration never reached {missed[0]!r} ({len(missed)} in all); every quantised "
            "layer must run in net(batch). Remove the unused layer, or skip it in quantize()."
        )
