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
"""

from __future__ import annotations

import contextlib
import functools
import math
from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrize

from .quantizer import RLQ, Quantizer
from .system.errors import floating, whole

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
    return asked and all(q.one_grid and q.calibrated for q in quantizers)


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


def become(layer: nn.Module, kind: type[nn.Module]) -> Any:
    """`layer`, which is one of `kind` from now on: nothing but its class changes.

    torch.nn.utils.parametrize does the same; the properties of its class are kept in a new one.
    """
    if parametrize.is_parametrized(layer):
        kind = type(f"Parametrized{kind.__name__}", (kind,), dict(vars(type(layer))))
    layer.__class__ = kind
    return layer


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
            x = floating(x).to(weight.dtype)
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

    x: float [N, in_channels, L].
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

    x: float [N, in_channels, H, W]; output_size as nn.ConvTranspose2d takes it.
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
        become(self.out_proj, QLinear).add_quantizers(bits, quantizer, per_channel)

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
