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

`quantize` makes such layers of those in a copy of any network: it changes the class of a layer and
gives it two quantizers. So its weights, their ties, parametrisations, hooks, names, device and
dtype stay, without being copied one by one. What it cannot quantise it names.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import math
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear  # MultiheadAttention.out_proj
from torch.nn.parameter import is_lazy
from torch.nn.utils import parametrize

from .quantizer import RLQ, Quantizer
from .system.errors import whole

QuantizerFactory = Callable[..., Quantizer]  # a Quantizer class, or functools.partial of one
Bits = int | tuple[int, int]  # one width for both, or (weights, activations)


def split_bits(bits: Bits) -> tuple[int, int]:
    """(weight bits, activation bits) of `bits`. Raises ValueError unless they are one or two,
    TypeError unless they are whole numbers.

    >>> split_bits(4), split_bits((2, 4))
    ((4, 4), (2, 4))
    """
    pair = bits if isinstance(bits, (tuple, list)) else (bits, bits)
    if len(pair) != 2:
        raise ValueError(f"`bits` is {bits!r}; it is one width or a pair (weights, activations).")
    return whole("bits", pair[0]), whole("bits", pair[1])


def _in_16_bits(x: Tensor, *quantizers: Quantizer) -> bool:
    """Whether autocast asks for bfloat16 on the device of x, and the quantizers can give codes."""
    kind = x.device.type
    asked = (
        torch.amp.is_autocast_available(kind)
        and torch.is_autocast_enabled(kind)
        and torch.get_autocast_dtype(kind) == torch.bfloat16
    )
    return asked and all(q.one_grid for q in quantizers)


def no_autocast(x: Tensor) -> contextlib.AbstractContextManager:
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


def never_fused(module: nn.Module, args: tuple) -> None:
    """A forward pre-hook that does nothing, and by being there keeps PyTorch from a short cut:
    TransformerEncoderLayer hands the weights of its layers to one fused kernel, without calling
    the layers, unless one of them has a hook.
    """


class Quantized(nn.Module):
    """What quantised layers share: two quantizers, and the product of what they make.

    A kind of layer puts it in front of the float layer that it is: `class QLinear(Quantized,
    nn.Linear)`.
    """

    weight: Tensor
    bias: Tensor | None
    weight_quantizer: Quantizer
    input_quantizer: Quantizer
    channel_dim: ClassVar[int] = 1  # of the channels in the input and in the result

    def __init__(
        self,
        *sizes: Any,
        bits: Bits = 4,
        quantizer: QuantizerFactory = RLQ,
        per_channel: bool = False,
        **options: Any,
    ) -> None:
        super().__init__(*sizes, **options)
        self.add_quantizers(bits, quantizer, per_channel)

    def add_quantizers(
        self,
        bits: Bits,
        quantizer: QuantizerFactory,
        per_channel: bool,
        weight: Tensor | None = None,
    ) -> None:
        """What makes a float layer of this class a quantised one. weight: if it isn't its own."""
        weight = self.by_output(self.weight) if weight is None else weight
        channels = weight.shape[1] * getattr(self, "groups", 1)
        weight_bits, activation_bits = split_bits(bits)
        steps = len(weight) if per_channel else None
        self.weight_quantizer = quantizer(weight_bits, signed=True, steps=steps, weights=True)
        self.input_quantizer = quantizer(
            activation_bits, channels=channels, channel_dim=self.channel_dim
        )
        for part in (self.weight_quantizer, self.input_quantizer):
            part.to(weight.device, weight.dtype).train(self.training)
        self.register_forward_pre_hook(never_fused)

    def by_output(self, weight: Tensor) -> Tensor:
        """The weight with the output channels first, of which each may have a step of its own."""
        return weight

    def _product(
        self, product: Callable[..., Tensor], x: Tensor, weight: Tensor, bias: Tensor | None
    ) -> Tensor:
        """product(x, weight, bias), both factors quantised."""
        inputs, weights = self.input_quantizer, self.weight_quantizer
        in_16_bits = _in_16_bits(x, inputs, weights)
        with no_autocast(x):
            x = x.to(weight.dtype)
            if in_16_bits:
                sums = functools.partial(product, bias=None)
                return _multiply_codes(sums, (inputs, x), (weights, weight), self.channel_dim, bias)
            return product(inputs(x), weights(weight), bias)


class QuantizedConv(Quantized):
    """What quantised convolutions share."""

    kernel_size: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[int, ...] | str
    dilation: tuple[int, ...]
    groups: int
    _conv_forward: Callable[..., Tensor]

    def forward(self, x: Tensor) -> Tensor:
        return self._convolve(self._conv_forward, x)

    def _convolve(self, product: Callable[..., Tensor], x: Tensor) -> Tensor:
        weight = self.by_output(self.weight)  # once: a parametrised weight is made anew each time
        if x.ndim != weight.ndim:
            raise ValueError(
                f"the input has shape {tuple(x.shape)}; a quantised convolution takes "
                f"{weight.ndim} dimensions here, [N, channels, ...]. Add that of the batch."
            )
        return self._product(product, x, weight, self.bias)


class QConv1d(QuantizedConv, nn.Conv1d):
    """nn.Conv1d whose weights and input are quantised; see `QConv2d`.

    x: float [N, in_channels, L]. It can be trained, not yet packed.
    """


class QConv2d(QuantizedConv, nn.Conv2d):
    """nn.Conv2d whose weights and input are quantised; sizes and options are those of nn.Conv2d.

    bits: one width, or (weight bits, activation bits), 2 to 8.
    quantizer: a `Quantizer` class (or functools.partial of one) for both roles.
    per_channel: one weight step size per output channel instead of one per layer; costs nothing
    at inference. x: float [N, in_channels, H, W].

    Padding comes after the quantizer: zeros are the code 0, reflected pixels have the code of the
    pixel that they reflect. `why_not_packed` says what can be trained and not yet packed.
    """


class QConvTranspose2d(QuantizedConv, nn.ConvTranspose2d):
    """nn.ConvTranspose2d whose weights and input are quantised; options as `QConv2d`.

    x: float [N, in_channels, H, W]; output_size as nn.ConvTranspose2d takes it. It can be trained,
    not yet packed.
    """

    padding: tuple[int, ...]  # never a word

    def by_output(self, weight: Tensor) -> Tensor:
        """[in, out of a group, kh, kw] -> [out, in of a group, kh, kw]; its own inverse."""
        groups = weight.unflatten(0, (self.groups, -1))
        return groups.transpose(1, 2).flatten(0, 1)

    def forward(self, x: Tensor, output_size: list[int] | None = None) -> Tensor:
        options = (self.stride, self.padding, self.kernel_size, 2, self.dilation)
        output_padding = self._output_padding(x, output_size, *options)  # type: ignore[arg-type]

        def product(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
            return F.conv_transpose2d(
                x,
                self.by_output(weight),
                bias,
                self.stride,
                self.padding,
                output_padding,
                self.groups,
                self.dilation,
            )

        return self._convolve(product, x)


class QLinear(Quantized, nn.Linear):  # type: ignore[misc]  # `bias`: PyTorch says Tensor
    """nn.Linear whose weights and input are quantised; options as `QConv2d`.

    x: float [..., in_features].
    """

    channel_dim = -1

    def forward(self, x: Tensor) -> Tensor:
        return self._product(F.linear, x, self.weight, self.bias)


class Matmul(nn.Module):
    """a @ b as a module, so that QMatmul can stand in its place."""

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        return a @ b


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
        with no_autocast(a):
            a, b = a.to(left.step_size.dtype), b.to(right.step_size.dtype)
            if in_16_bits:
                return _multiply_codes(torch.matmul, (left, a), (right, b), -1)
            return left(a) @ right(b)


class Projection(Quantized):
    """The quantizers of one of the projections of an attention, whose weight is a part of a larger.

    x: float [..., features], weight: float [out, features], bias: float [out] or None.
    """

    channel_dim = -1

    def __init__(
        self, weight: Tensor, bits: Bits, quantizer: QuantizerFactory, per_channel: bool
    ) -> None:
        nn.Module.__init__(self)
        self.add_quantizers(bits, quantizer, per_channel, weight)

    def forward(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return self._product(F.linear, x, weight, bias)


class QMultiheadAttention(nn.MultiheadAttention):
    """nn.MultiheadAttention whose four projections are quantised; options as `QConv2d`.

    Queries, keys and values have quantizers of their own, as if each had a linear layer; `out_proj`
    is a `QLinear`. The two products of activations stay in full precision, as in the paper, unless
    attention_bits gives their width: (queries, keys) and again (probabilities, values).

    Takes and gives what nn.MultiheadAttention does, but for nested tensors, and writes the
    probabilities [N, heads, L, S] out. A query that may look at no key gets zeros, never NaN.
    It can be trained, not yet packed.
    """

    def __init__(
        self,
        *sizes: Any,
        bits: Bits = 4,
        quantizer: QuantizerFactory = RLQ,
        per_channel: bool = False,
        attention_bits: Bits | None = None,
        **options: Any,
    ) -> None:
        super().__init__(*sizes, **options)
        self.add_quantizers(bits, quantizer, per_channel, attention_bits)
        _become(self.out_proj, QLinear).add_quantizers(bits, quantizer, per_channel)

    def add_quantizers(
        self,
        bits: Bits,
        quantizer: QuantizerFactory,
        per_channel: bool,
        attention_bits: Bits | None = None,
    ) -> None:
        """What makes a float attention of this class a quantised one, but for `out_proj`."""
        weights = self._in_projections()
        self.query, self.key, self.value = (
            Projection(weight, bits, quantizer, per_channel) for weight in weights
        )
        self.scores, self.mix = (
            Matmul()
            if attention_bits is None
            else QMatmul(bits=attention_bits, quantizer=quantizer).to(weights[0])
            for _ in range(2)
        )
        for part in (self.query, self.key, self.value, self.scores, self.mix):
            part.train(self.training)

    def _in_projections(self) -> tuple[Tensor, ...]:
        """The weights of queries, keys and values, [embed_dim, features] each."""
        weight = self.in_proj_weight
        if weight is None:
            return self.q_proj_weight, self.k_proj_weight, self.v_proj_weight
        return weight.chunk(3)

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        if is_causal and attn_mask is None:
            raise ValueError("`is_causal` only says what `attn_mask` is; give that mask too.")
        if query.is_nested or key.is_nested or value.is_nested:
            raise ValueError(
                "nested tensors are for PyTorch's fused attention, which knows no quantizers; "
                "build nn.TransformerEncoder with enable_nested_tensor=False."
            )
        batched = query.ndim == 3
        inputs = [self._batch_first(x, batched) for x in (query, key, value)]
        biases = [None] * 3 if self.in_proj_bias is None else self.in_proj_bias.chunk(3)
        layers = (self.query, self.key, self.value)
        parts = zip(layers, inputs, self._in_projections(), biases, strict=True)
        q, k, v = (layer(x, weight, bias) for layer, x, weight, bias in parts)  # [N, L, features]
        if self.bias_k is not None and self.bias_v is not None:
            k, v = (
                torch.cat([x, bias.expand(len(x), 1, -1)], 1)
                for x, bias in ((k, self.bias_k), (v, self.bias_v))
            )
        if self.add_zero_attn:
            k, v = F.pad(k, (0, 0, 0, 1)), F.pad(v, (0, 0, 0, 1))
        q, k, v = (x.unflatten(2, (self.num_heads, -1)).transpose(1, 2) for x in (q, k, v))
        scores = self.scores(q * math.sqrt(1 / self.head_dim), k.transpose(-2, -1))
        mask = _added_mask(scores, attn_mask, key_padding_mask)
        if mask is None:
            probabilities = scores.softmax(-1)  # [N, heads, L, S]
        else:
            blind = (mask == -math.inf).all(-1, keepdim=True)
            probabilities = (scores + mask).masked_fill(blind, 0).softmax(-1).masked_fill(blind, 0)
        probabilities = F.dropout(probabilities, self.dropout, self.training)
        mixed = self.mix(probabilities, v).transpose(1, 2).flatten(2)  # [N, L, features]
        out = self.out_proj(mixed)
        out = self._batch_first(out, batched) if batched else out[0]
        if not need_weights:
            return out, None
        shown = probabilities.mean(1) if average_attn_weights else probabilities
        return out, shown if batched else shown[0]

    def _batch_first(self, x: Tensor, batched: bool) -> Tensor:
        """x as [N, L, features]; for a batch its own inverse."""
        if not batched:
            return x[None]
        return x if self.batch_first else x.transpose(0, 1)


def _added_mask(
    scores: Tensor, attn_mask: Tensor | None, key_padding_mask: Tensor | None
) -> Tensor | None:
    """What is added to the scores [N, heads, L, S] for the masks of nn.MultiheadAttention."""
    n, heads, _, keys = scores.shape
    masks = []
    if attn_mask is not None:  # [L, S] or [N * heads, L, S]
        masks.append(attn_mask if attn_mask.ndim == 2 else attn_mask.unflatten(0, (n, heads)))
    if key_padding_mask is not None:  # [N, S], or [S] for one
        masks.append(key_padding_mask.view(n, 1, 1, -1))
    total = None
    for mask in masks:
        if mask.dtype == torch.bool:  # True: not to be looked at
            mask = torch.zeros_like(mask, dtype=scores.dtype).masked_fill(mask, -math.inf)
        mask = F.pad(mask, (0, keys - mask.shape[-1]))  # all see what the layer appends
        total = mask if total is None else total + mask
    return total


def set_bits(layer: Quantized | QMatmul, bits: Bits) -> None:
    """Change the widths of a quantised layer, (weights, inputs) or (left, right); calibrate it
    afterwards.
    """
    if isinstance(layer, QMatmul):
        quantizers = (layer.left_quantizer, layer.right_quantizer)
    else:
        quantizers = (layer.weight_quantizer, layer.input_quantizer)
    for quantizer, width in zip(quantizers, split_bits(bits), strict=True):
        quantizer.set_bits(width)


# What can be quantised, and what can be packed ----------------------------------------------------

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
    if isinstance(layer, Projection):
        return "there is no packed MultiheadAttention"
    if isinstance(layer, QConv1d):
        return "there is no packed Conv1d"
    if isinstance(layer, QConvTranspose2d):
        return "there is no packed ConvTranspose2d"
    if isinstance(layer, QConv2d):
        if set(layer.dilation) != {1}:
            return f"`dilation` is {layer.dilation}; packed convolutions take 1"
        if zero_padding(layer) is None:
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


def _become(layer: nn.Module, kind: type[nn.Module]) -> Any:
    """`layer`, which is one of `kind` from now on: nothing but its class changes.

    torch.nn.utils.parametrize does the same; the properties of its class are kept in a new one.
    """
    if parametrize.is_parametrized(layer):
        kind = type(f"Parametrized{kind.__name__}", (kind,), dict(vars(type(layer))))
    layer.__class__ = kind
    return layer


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
        made, options = _become(layer, twin), (widths[id(layer)], quantizer, per_channel)
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


@torch.no_grad()
def calibrate(net: nn.Module, batch: Tensor, *more: Tensor) -> None:
    """Initialise every quantizer of `net` by what reaches it first, in one forward pass.

    batch: what `net` takes, for a QuantSR float RGB [N, 3, H, W] in [0, 1]; more: what it takes
    besides. So a weight is calibrated by itself and an input by what comes through the quantised
    layers before it, in the order of execution. The same batch gives the same steps on every device
    and rank. Raises ValueError if a quantizer is never reached.
    """
    waiting = {name: m for name, m in net.named_modules() if isinstance(m, Quantizer)}
    reached: set[int] = set()

    def calibrate_first(quantizer: Quantizer, args: tuple[Tensor, ...]) -> None:
        if id(quantizer) not in reached:
            quantizer.calibrate(args[0])
            reached.add(id(quantizer))

    hooks = [m.register_forward_pre_hook(calibrate_first) for m in waiting.values()]
    modes = {module: module.training for module in net.modules()}
    try:
        net.eval()(batch, *more)  # the statistics of a user's batch normalisation stay as they are
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
