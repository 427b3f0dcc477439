"""From a trained network to one that runs on integers.

Training only pretends: it multiplies floats that happen to lie on a grid. `pack` makes it true. For
each quantised layer it computes the weight codes once, packs them into bit planes, and keeps what
is left of the steps:

    codes = clamp(round((x + tau) / step_a))          quantised and packed in one pass
    acc   = codes conv weight_codes                   integers, exact
    y     = acc * (step_a * step_w) + bias            float32, each operation rounded once

A packed network agrees with `qsr.reference` bit for bit (same integers, same three float
operations). With its float training graph it agrees up to float rounding: a value that lies on a
rounding threshold within the last bits may get the neighbouring code. The float convolutions of
head and tail sum in one fixed order, and LayerNorm, GELU and softmax are written out, so that a
picture in strips gives the same bits as a whole one.

Packed networks run forward only.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, cast, overload

import torch
from torch import Tensor, nn

from ..backbone import ChannelNorm, DepthPlan, QuantSR, check_pictures
from ..blocks import GELU, LayerNorm, WindowAttention
from ..config import NetworkConfig
from ..convert import copy_module, listed, not_packed, replace_layers, zero_padding
from ..layers import (
    Projection,
    QConv1d,
    QConv2d,
    QConvTranspose2d,
    QLinear,
    QMatmul,
    QMultiheadAttention,
    Quantized,
    become,
    no_autocast,
)
from ..quantizer import Quantizer, QuantSpec, to_codes
from ..system.once import SETTING_UP
from . import kernels, reference
from .bitplanes import BitPlanes, check_tail, words_for
from .layer import ConvShape, LaidOut, Phases
from .program import Program
from .reference import epilogue

Packable = QConv1d | QConv2d | QConvTranspose2d | QLinear


class PackedLayer(nn.Module):
    """Weight planes, steps, tau and bias of one quantised layer; base of the two below.

    The constructor makes buffers of the right shapes; `fill` or load_state_dict gives them values.
    kernel: which kernel runs the layer, see `qsr.kernels`. Those that multiply bytes run it in one
    call, from float to float (`qsr.integer.layer`), and so "auto" does; others by its planes.
    """

    _laid_out: LaidOut | Phases | None = None  # made of the values below at the first use
    weight: Tensor
    step_size: Tensor
    scale: Tensor
    tau: Tensor | None
    bias: Tensor | None

    def __init__(self, layer: Packable, kernel: str = "auto") -> None:
        super().__init__()
        self.kernel = kernel
        self.bits, self.narrow = layer.input_quantizer.bits, layer.input_quantizer.narrow
        self.signed = True  # sign of the activation codes; part of the state
        self.groups = getattr(layer, "groups", 1)
        weight_quantizer = layer.weight_quantizer
        out_channels, *taps, channels = _weights_channels_last(layer).shape
        words = (out_channels, *taps, 1, weight_quantizer.bits, words_for(channels))
        self.channels = channels  # of one group
        self.register_buffer("weight", torch.zeros(words, dtype=torch.int64))
        self.register_buffer("step_size", _ones(()))
        self.register_buffer("scale", _ones(weight_quantizer.step_size.shape))
        self.register_buffer("tau", _tau(layer.input_quantizer))
        self.register_buffer("bias", None if layer.bias is None else _ones((out_channels,)))

    def _apply(self, fn, recurse: bool = True):
        _refuse_another_type(fn)
        self._laid_out = None
        return super()._apply(fn, recurse)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_laid_out": None}

    @torch.no_grad()
    def fill(self, layer: Packable) -> PackedLayer:
        """Take the values of a trained layer. Raises ValueError if it is not calibrated, or if the
        kernel of this name does not run such a layer.
        """
        self._laid_out = None
        inputs, weights = layer.input_quantizer, layer.weight_quantizer
        codes = weights.codes(_weights_channels_last(layer).float())
        self.signed = inputs.spec.signed
        self.weight.copy_(kernels.pack_codes(codes, bits=weights.bits, signed=True).words)
        step_a = inputs.step(inputs.step_size).flatten().float()
        step_w = weights.step(layer.weight).flatten().float()
        self.step_size.copy_(step_a.reshape(()))
        self.scale.copy_((step_a * step_w).reshape(self.scale.shape))
        if self.tau is not None:
            self.tau.copy_(cast(Tensor, _tau(inputs)))
        if self.bias is not None:
            self.bias.copy_(cast(Tensor, layer.bias))
        self.multiply(self._smallest_input())  # raises if the kernel does not take it
        return self

    def multiply(self, codes: BitPlanes, kernel: str = "") -> Tensor:
        """Sums of products of packed input codes and weights, int32, channels last. kernel: another
        than the layer's.
        """
        raise NotImplementedError

    @property
    def shape(self) -> ConvShape:
        """The convolution that the layer is."""
        raise NotImplementedError

    def _lay_out(self) -> LaidOut | Phases:
        return LaidOut.of(self, self.shape)

    def laid_out(self) -> Any:
        """The values as one native call takes them. While PyTorch traces the layer nothing is laid
        out: unless that was done, what it traces runs by planes.
        """
        if self._laid_out is None:
            if torch.compiler.is_compiling():
                return LaidOut("", [], self.weight, self.scale, [])
            with SETTING_UP:  # by one of the threads that come together
                if self._laid_out is None:
                    self._laid_out = self._lay_out()
        return self._laid_out

    def running_kernel(self) -> str:
        """The kernel that runs the layer on its device: its own, or what "auto" means for it."""
        if row := self.laid_out().row:
            return row
        codes = self._smallest_input()
        if self.kernel == "auto":
            for name in kernels.available("conv2d", self.weight.device):
                with contextlib.suppress(ValueError):
                    self.multiply(codes, name)
                    return name
        return self.kernel

    def _smallest_input(self) -> BitPlanes:
        shape = (1, *self._smallest_sides(), self.groups * self.channels)
        codes = torch.zeros(shape, dtype=self.spec.dtype, device=self.weight.device)
        return kernels.pack_codes(codes, bits=self.bits, signed=self.signed, groups=self.groups)

    def _smallest_sides(self) -> list[int]:
        """Of a picture in which the kernel has room."""
        taps = zip(self.weight.shape[1:3], self.shape.dilation, strict=True)
        return [d * (k - 1) + 1 for k, d in taps]

    def codes(self, x: Tensor) -> Tensor:
        """The integer codes of the layer's input x, in the shape of x."""
        tau = self.tau
        if tau is not None and isinstance(self, PackedConv2d):
            tau = tau.view(-1, *[1] * (x.ndim - 2))
        return to_codes(x, self.step_size, self.spec, tau)

    @property
    def spec(self) -> QuantSpec:
        """The codes of the input."""
        return QuantSpec(self.bits, self.signed, self.narrow)

    def quantize(self, x: Tensor) -> BitPlanes:
        """Packed codes of x, float [N, C, H, W]."""
        x = x.float()
        if self.narrow and self.signed:  # kernels know the whole range of two's complement only
            x = x.clamp(min=self.spec.qmin * self.step_size)
        return kernels.quantize_pack(
            x,
            self.step_size,
            self.tau,
            bits=self.bits,
            signed=self.signed,
            groups=self.groups,
            kernel=_quantizing(self.kernel),
        )

    @property
    def planes(self) -> BitPlanes:
        """The packed weights."""
        return BitPlanes(self.weight, True, self.channels)

    def get_extra_state(self) -> Tensor:
        return torch.tensor([self.signed], dtype=torch.uint8)

    def set_extra_state(self, state: Tensor) -> None:
        self.signed = bool(state[0])
        self._laid_out = None

    def _load_from_state_dict(self, *args) -> None:
        super()._load_from_state_dict(*args)
        self._laid_out = None
        check_tail(self.planes)
        _check_steps(self.step_size, self.scale)


class PackedConv2d(PackedLayer):
    """A QConv2d on integers. x: float [N, C, H, W] -> float32 [N, Cout, Ho, Wo], in the memory
    format of x.
    """

    def __init__(self, layer: QConv1d | QConv2d | QConvTranspose2d, kernel: str = "auto") -> None:
        super().__init__(layer, kernel)
        self.stride, self.dilation = _pair(layer.stride, 1), _pair(layer.dilation, 1)
        self.padding = _pair(cast(tuple[int, ...], zero_padding(layer)), 0)  # or `pack` refuses it

    @property
    def shape(self) -> ConvShape:
        return ConvShape(
            self.groups * self.channels,
            len(self.weight),
            self.groups,
            (self.weight.shape[1], self.weight.shape[2]),
            self.stride,
            self.dilation,
            self.padding,
            (self.bits, self.planes.bits),
            self.signed,
        )

    @property
    def spread(self) -> BitPlanes:
        """The weights with taps of code 0 where a dilated kernel has none."""
        if self.dilation == (1, 1):
            return self.planes
        (dy, dx), (out_channels, height, width, *rest) = self.dilation, self.weight.shape
        words = self.weight.new_zeros(
            out_channels, dy * (height - 1) + 1, dx * (width - 1) + 1, *rest
        )
        words[:, ::dy, ::dx] = self.weight
        return BitPlanes(words, True, self.channels)

    def multiply(self, codes: BitPlanes, kernel: str = "") -> Tensor:
        return kernels.conv2d(codes, self.spread, self.stride, self.padding, kernel or self.kernel)

    def forward(self, x: Tensor) -> Tensor:
        laid_out = self.laid_out()
        if laid_out.row:
            return laid_out.conv2d(x)
        acc = self.multiply(self.quantize(x))
        return epilogue(acc, self.scale, self.bias).permute(0, 3, 1, 2)


class PackedConv1d(PackedConv2d):
    """A QConv1d on integers: a convolution of pictures that are one row high.

    x: float [N, C, L] -> float32 [N, Cout, Lo].
    """

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.unsqueeze(2)).squeeze(2)


class PackedConvTranspose2d(PackedConv2d):
    """A QConvTranspose2d on integers: a convolution of codes with zeros between them, by the kernel
    turned by 180 degrees.

    x: float [N, C, H, W] -> float32 [N, Cout, Ho, Wo]; output_size as nn.ConvTranspose2d takes it.
    """

    def __init__(self, layer: QConvTranspose2d, kernel: str = "auto") -> None:
        super().__init__(layer, kernel)
        self.output_padding = _pair(layer.output_padding, 0)

    @property
    def shuffles(self) -> bool:
        """Whether it gives stride times as many rows and columns as it takes, so that it is a
        convolution followed by a pixel shuffle.
        """
        sides = zip(
            self.weight.shape[1:3], self.stride, self.padding, self.output_padding, strict=True
        )
        even = all(k - s - 2 * p + more == 0 for k, s, p, more in sides)
        return even and self.stride[0] == self.stride[1] and self.dilation == (1, 1)

    def _smallest_sides(self) -> list[int]:
        return [1 + 2 * pad for pad in self.padding]  # of which padding takes away

    def _lay_out(self) -> LaidOut | Phases:
        if self.dilation == (1, 1):
            return Phases.of(self, self.shape)
        return LaidOut("", [], self.weight, self.scale, [])

    def multiply(
        self, codes: BitPlanes, kernel: str = "", more: tuple[int, int] = (0, 0)
    ) -> Tensor:
        """more: rows and columns of output beside the fewest."""
        n, height, width, *rest = codes.words.shape
        (sy, sx), spread = self.stride, self.spread
        rows, columns = sy * (height - 1) + 1, sx * (width - 1) + 1
        words = codes.words.new_zeros(n, rows + more[0], columns + more[1], *rest)
        words[:, :rows:sy, :columns:sx] = codes.words
        reach = [k - 1 - p for k, p in zip(spread.words.shape[1:3], self.padding, strict=True)]
        for side, outside in enumerate(reach, 1):
            cut = max(-outside, 0)  # padding takes away more than the kernel reaches over the edge
            words = words.narrow(side, cut, words.shape[side] - 2 * cut)
        padding = (max(reach[0], 0), max(reach[1], 0))
        codes = BitPlanes(words.contiguous(), codes.signed, codes.channels)
        return kernels.conv2d(codes, spread, 1, padding, kernel or self.kernel)

    def forward(self, x: Tensor, output_size: Sequence[int] | None = None) -> Tensor:
        taps = zip(self.stride, self.padding, self.dilation, self.weight.shape[1:3], strict=True)
        least = [
            s * (n - 1) - 2 * p + d * (k - 1) + 1
            for n, (s, p, d, k) in zip(x.shape[2:], taps, strict=True)
        ]
        more = self.output_padding
        if output_size is not None:
            more = (output_size[-2] - least[0], output_size[-1] - least[1])
            most = [max(s, d) for s, d in zip(self.stride, self.dilation, strict=True)]
            if not all(0 <= m < limit for m, limit in zip(more, most, strict=True)):
                raise ValueError(
                    f"`output_size` is {tuple(output_size[-2:])}; it is between {tuple(least)} and "
                    f"{tuple(n + limit - 1 for n, limit in zip(least, most, strict=True))}."
                )
        laid_out = self.laid_out()
        if isinstance(laid_out, Phases) and laid_out.row:
            return laid_out.conv2d(x, least[0] + more[0], least[1] + more[1])
        acc = self.multiply(self.quantize(x), more=more)
        return epilogue(acc, self.scale, self.bias).permute(0, 3, 1, 2)


class PackedLinear(PackedLayer):
    """A QLinear on integers. x: float32 [..., in_features] -> float32 [..., out_features]."""

    @property
    def shape(self) -> ConvShape:
        one, none = (1, 1), (0, 0)
        bits = (self.bits, self.planes.bits)
        return ConvShape(self.channels, len(self.weight), 1, one, one, one, none, bits, self.signed)

    def multiply(self, codes: BitPlanes, kernel: str = "") -> Tensor:
        return kernels.linear(codes, self.planes, kernel or self.kernel)

    def forward(self, x: Tensor) -> Tensor:
        laid_out = self.laid_out()
        if laid_out.row:
            return laid_out.linear(x.reshape(-1, x.shape[-1])).view(*x.shape[:-1], len(self.weight))
        acc = self.multiply(self.quantize(x.reshape(-1, x.shape[-1], 1, 1)))
        return epilogue(acc, self.scale, self.bias).view(*x.shape[:-1], len(self.weight))


class PackedProjection(PackedLinear):
    """A projection of a QMultiheadAttention on integers. It has its weight and bias, and takes no
    others. x: float32 [..., features].
    """

    def forward(self, x: Tensor, weight: None = None, bias: None = None) -> Tensor:
        return super().forward(x)


class PackedMatmul(nn.Module):
    """A QMatmul on integers: codes as float32, whose products and sums are exact below 2^24."""

    left_step: Tensor
    right_step: Tensor

    def __init__(self, matmul: QMatmul) -> None:
        super().__init__()
        self.specs = {  # signs are part of the state
            side: QuantSpec(quantizer.bits, narrow=quantizer.narrow)
            for side, quantizer in (
                ("left", matmul.left_quantizer),
                ("right", matmul.right_quantizer),
            )
        }
        self.register_buffer("left_step", _ones(()))
        self.register_buffer("right_step", _ones(()))

    def _apply(self, fn, recurse: bool = True):
        _refuse_another_type(fn)
        return super()._apply(fn, recurse)

    @torch.no_grad()
    def fill(self, matmul: QMatmul) -> PackedMatmul:
        """Take the values of a trained product. Raises ValueError if it is not calibrated."""
        left, right = matmul.left_quantizer, matmul.right_quantizer
        self.specs = {"left": left.spec, "right": right.spec}
        self.left_step.copy_(left.step(left.step_size))
        self.right_step.copy_(right.step(right.step_size))
        return self

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        largest = [max(-spec.qmin, spec.qmax) for spec in self.specs.values()]
        if a.shape[-1] * largest[0] * largest[1] >= 2**24:
            raise ValueError(
                f"{a.shape[-1]} products of codes up to {largest[0]} and {largest[1]} are not "
                "exact in float32; use fewer bits or shorter rows."
            )
        left = to_codes(a, self.left_step, self.specs["left"]).float()
        right = to_codes(b, self.right_step, self.specs["right"]).float()
        with no_autocast(a):  # bfloat16 does not hold the sums
            return (left @ right) * (self.left_step * self.right_step)

    def _load_from_state_dict(self, *args) -> None:
        super()._load_from_state_dict(*args)
        _check_steps(self.left_step, self.right_step)

    def get_extra_state(self) -> Tensor:
        return torch.tensor([spec.signed for spec in self.specs.values()], dtype=torch.uint8)

    def set_extra_state(self, state: Tensor) -> None:
        self.specs = {
            side: QuantSpec(spec.bits, bool(signed), spec.narrow)
            for (side, spec), signed in zip(self.specs.items(), state.tolist(), strict=True)
        }


class FloatConv2d(nn.Module):
    """A full-precision convolution, stride 1, with one fixed order of summation.

    x: float32 [N, C, H, W] -> float32 [N, Cout, Ho, Wo]; strips of a picture give the same bits.
    """

    weight: Tensor
    bias: Tensor | None

    def __init__(self, conv: nn.Conv2d, kernel: str = "auto") -> None:
        super().__init__()
        self.kernel = kernel
        self.padding = cast(tuple[int, int], conv.padding)  # networks pad by numbers
        self.register_buffer("weight", conv.weight.detach().float().clone())
        bias = None if conv.bias is None else conv.bias.detach().float().clone()
        self.register_buffer("bias", bias)

    def forward(self, x: Tensor) -> Tensor:
        out = kernels.conv2d_float(
            x.float().permute(0, 2, 3, 1),
            self.weight,
            self.bias,
            self.padding,
            _quantizing(self.kernel),
        )
        return out.permute(0, 3, 1, 2)


class FixedLayerNorm(nn.LayerNorm):
    """A LayerNorm by the written formula of qsr.reference: the same bits on every processor."""

    def __init__(self, norm: nn.LayerNorm) -> None:
        super().__init__(norm.normalized_shape, norm.eps)
        self.load_state_dict(norm.state_dict())

    def forward(self, x: Tensor) -> Tensor:
        return reference.layer_norm(x.float(), self.weight, self.bias, self.eps)


class FixedChannelNorm(FixedLayerNorm):
    """The same over the channels of [N, C, H, W]."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class FixedGELU(nn.Module):
    """GELU by the written formula of qsr.reference."""

    def forward(self, x: Tensor) -> Tensor:
        return reference.gelu(x)


class PackedAttention(nn.Module):
    """A WindowAttention by the written formulas of qsr.reference, on integers where its products
    are quantised. x: float32 [windows, T, features]; mask: [windows per picture, T, T] or None.
    """

    qkv: nn.Module
    proj: nn.Module
    scores: nn.Module  # both a PackedMatmul, or neither is
    mix: nn.Module
    position_bias: Tensor
    position_index: Tensor

    def __init__(self, attention: WindowAttention, kernel: str = "auto") -> None:
        super().__init__()
        self.kernel = kernel
        self.heads = attention.heads
        for name in ("qkv", "proj", "scores", "mix", "position_bias"):
            setattr(self, name, getattr(attention, name))
        self.register_buffer("position_index", attention.position_index, persistent=False)

    @property
    def bias(self) -> Tensor:
        """float32 [heads, T, T]: the learned bias of each pair of pixels."""
        return self.position_bias[self.position_index].permute(2, 0, 1)

    @property
    def products(self) -> list[PackedMatmul]:
        """Scores and mix; empty if they are in full precision."""
        return [p for p in (self.scores, self.mix) if isinstance(p, PackedMatmul)]

    @property
    def specs(self) -> list[QuantSpec]:
        """Of q, k, probabilities and v; empty if the products are in full precision."""
        return [spec for p in self.products for spec in p.specs.values()]

    @property
    def steps(self) -> Tensor:
        """float32 [4]: step sizes of q, k, probabilities and v."""
        return torch.stack([step for p in self.products for step in (p.left_step, p.right_step)])

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        qkv = self.qkv(x)
        if not self.specs:
            return self.proj(reference.attention_float(qkv, self.bias, mask, self.heads))
        mixed = kernels.attention(
            qkv,
            self.steps,
            self.bias,
            mask,
            heads=self.heads,
            bits=[spec.bits for spec in self.specs],
            signed=[spec.signed for spec in self.specs],
            kernel=_quantizing(self.kernel),
        )
        return self.proj(mixed)


class PackedModel(nn.Module):
    """A packed QuantSR, all its depths together.

    packed(lr, blocks=None): lr float RGB [N, 3, H, W] in [0, 1] -> sr [N, 3, scale H, scale W], not
    clipped. blocks: how many blocks run (None: all); it was trained at `config.depths`.

    Where there are fused kernels for the network it runs as a planned program (`self.program`),
    else layer by layer (`self.network`): the same integers and the same features. The program is
    planned at the first call and again after load_state_dict; torch.compile and torch.export take
    the model after that first call.

    Several threads may call one model at once: each gets the bytes that it would get alone. Loading
    values or moving the model to another device is for a moment when none does. A copy and a pickle
    take the values along and not the program, which belongs to a processor.
    """

    def __init__(self, network: QuantSR, kernel: str = "auto") -> None:
        super().__init__()
        self.network: QuantSR = network.eval().requires_grad_(False)
        self.kernel = kernel
        self._forget()
        self.register_load_state_dict_post_hook(self._forget)
        network.register_load_state_dict_post_hook(self._forget)

    def _forget(self, *_: object) -> None:
        """Other values, or on another device: what was derived from them is to be made again."""
        self._program: Program | None = None
        self._order: tuple[int, ...] | None = None

    def _apply(self, fn, recurse: bool = True):
        _refuse_another_type(fn)
        self._forget()
        return super()._apply(fn, recurse)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_program": None}

    @property
    def config(self) -> NetworkConfig:
        return self.network.config

    @classmethod
    def empty(cls, config: NetworkConfig, kernel: str = "auto") -> PackedModel:
        """The packed network of a configuration, without values: load_state_dict gives them."""
        network = QuantSR(config)
        _replace_layers(network, kernel, fill=False)
        return cls(network, kernel)

    @property
    def program(self) -> Program | None:
        """The planned program, or None where the network runs layer by layer."""
        if self._program is None:
            with SETTING_UP:  # by one of the threads that come together
                if self._program is None:
                    self._program = self._planned()
        return self._program

    def _planned(self) -> Program | None:
        device = self.mean.device
        programs: tuple[type[Program], ...]
        if device.type == "cpu":
            from .program_swin import SwinProgram
            from .residual import ResidualProgram  # which know the layers above

            programs = ResidualProgram, SwinProgram
        else:
            from .program_cuda import CudaProgram

            programs = (CudaProgram,)
        for program in programs:
            names = program.available(self.config, device)
            if names and self.kernel in ("auto", *names):
                network = self.network
                if device.type != "cpu":  # it is planned here and runs there
                    network = cast(QuantSR, copy_module(network)).cpu()
                with torch.device("cpu"):  # another may be the user's default
                    return program(network, self.kernel, device)
        return None

    @property
    def plan(self) -> ModelPlan:
        """How the network runs: print it. plan(blocks) is the depth plan that keeps the `blocks`
        most valuable blocks (None: all).
        """
        return ModelPlan(self)

    @property
    def mean(self) -> Tensor:
        """What the network subtracts from pictures: float32 [1, 3, 1, 1], on its device."""
        return self.network.mean

    @property
    def pixel_bytes(self) -> int:
        """Working memory for each lr pixel at once, bytes: a program knows what it allocates."""
        return (self.program or self.network).pixel_bytes

    def pieces(
        self, lr: Tensor, plan: DepthPlan, first: int, last: int
    ) -> Iterator[tuple[int, Tensor]]:
        """(row, sr rows from there on): what becomes of the rows [first, last) of lr."""
        program = self.program
        if program is None:
            yield from self.network.pieces(lr, plan, first, last)
        else:
            scale = self.config.scale
            yield first, program(lr, plan)[:, :, scale * first : scale * last]

    def release(self) -> None:
        """Free the working memory that is kept for the next call."""
        if self._program is not None:
            self._program.release()

    @torch.no_grad()  # not inference_mode, which torch.compile does not take here
    def forward(self, lr: Tensor, blocks: int | None = None) -> Tensor:
        check_pictures(lr)
        if lr.device != self.mean.device:
            raise ValueError(
                f"`lr` is on {lr.device} and the network on {self.mean.device}; move one of them."
            )
        plan, program = self.plan(blocks), self.program
        if program is None:
            return self.network(lr, plan)
        if torch.compiler.is_compiling() and not program.traced:  # the same bits
            features = self.network.features(lr.float(), plan).permute(0, 2, 3, 1)
            return program.enlarged(features, *lr.shape[2:])
        return program(lr, plan)


@dataclass(frozen=True)
class ModelPlan:
    """The plan of a packed QuantSR: of its steps, and called, of its blocks."""

    model: PackedModel

    def __call__(self, blocks: int | None = None) -> DepthPlan:
        model = self.model
        if model._order is None:  # remembered as numbers, not as a tensor: torch.export needs them
            model._order = model.network.order
        return DepthPlan.from_order(model._order, model.config.blocks if blocks is None else blocks)

    def __str__(self) -> str:
        return str(self.model.program or "layer by layer: no program fits the network")


@overload
def pack(module: QuantSR, kernel: str = "auto") -> PackedModel: ...
@overload
def pack(module: nn.Module, kernel: str = "auto") -> nn.Module: ...
def pack(module: nn.Module, kernel: str = "auto") -> nn.Module:
    """A copy of `module` whose quantised layers run on packed integers, in eval mode, on the CPU.

    It computes in float32: a module of another type is converted first, as `module.float()` would.
    A QuantSR becomes a `PackedModel`; any other module stays what it is, with packed layers inside.
    kernel: "auto", "reference", or a name from qsr.kernels.available(), which then runs every
    quantised layer (a network of linear layers needs one that multiplies 1x1).
    Forward hooks of a quantised layer stay with the packed one.
    Raises ValueError if there is nothing to pack, a layer that can be trained but not yet packed
    (`qsr.report` lists them), or one that the kernel can't run.
    """
    if kernel != "auto" and kernel not in kernels.available("conv2d"):
        raise ValueError(
            f"`kernel` is {kernel!r}; this machine has {', '.join(kernels.available('conv2d'))}."
        )
    if isinstance(module, PackedModel):
        raise ValueError("this network is packed already.")
    if not any(isinstance(m, (Quantized, QMatmul)) for m in module.modules()):
        raise ValueError(
            "nothing to pack: the network has no quantised layer. Build it with bits=4 or 2, "
            "or pass it through qsr.quantize first."
        )
    if waiting := not_packed(module):
        raise ValueError(
            f"layers can be trained, not yet packed: {listed(module, waiting)}. "
            "Keep them in full precision (skip them in qsr.quantize)."
        )
    with torch.device("cpu"):  # another may be the user's default
        packed = _replace_layers(copy_module(module).cpu().float(), kernel, fill=True).eval()
    if isinstance(packed, QuantSR):
        return PackedModel(packed, kernel)
    from .planned import planned  # which knows the layers above

    return planned(packed, kernel)


def pack_empty(module: nn.Module) -> nn.Module:
    """As `pack`, without values: load_state_dict gives them. module: quantised, calibrated or not,
    and no QuantSR (`PackedModel.empty`).
    """
    if not any(isinstance(m, (Quantized, QMatmul)) for m in module.modules()):
        raise ValueError("the network has no quantised layer; pass it through qsr.quantize.")
    from .planned import planned

    packed = _replace_layers(copy_module(module).cpu().float(), "auto", fill=False)
    return planned(packed.eval(), "auto")


def _replace_layers(module: nn.Module, kernel: str, fill: bool) -> nn.Module:
    """`module` with packed layers in place of quantised ones, in place."""
    exact_floats = isinstance(module, QuantSR)
    fixed: dict[type[nn.Module], Callable[[Any], nn.Module]] = {
        nn.Conv2d: lambda conv: FloatConv2d(conv, kernel),
        LayerNorm: FixedLayerNorm,
        ChannelNorm: FixedChannelNorm,
        GELU: lambda gelu: FixedGELU(),
    }

    def packed_twin(layer: nn.Module) -> nn.Module | None:
        if exact_floats and type(layer) in fixed:
            return fixed[type(layer)](layer)
        if isinstance(layer, WindowAttention):
            for name in ("qkv", "proj", "scores", "mix"):
                setattr(layer, name, replace_layers(getattr(layer, name), packed_twin))
            return PackedAttention(layer, kernel)
        if isinstance(layer, QMultiheadAttention):
            return _pack_attention(layer, kernel, packed_twin, fill)
        packed: PackedLayer | PackedMatmul
        if isinstance(layer, QMatmul):
            packed = PackedMatmul(layer)
        elif isinstance(layer, QConv2d):
            packed = PackedConv2d(layer, kernel)
        elif isinstance(layer, QConv1d):
            packed = PackedConv1d(layer, kernel)
        elif isinstance(layer, QConvTranspose2d):
            packed = PackedConvTranspose2d(layer, kernel)
        elif isinstance(layer, QLinear):
            packed = PackedLinear(layer, kernel)
        else:
            return None
        for hooks in _FORWARD_HOOKS:
            getattr(packed, hooks).update(getattr(layer, hooks))
        return packed.fill(layer) if fill else packed  # type: ignore[arg-type]

    return replace_layers(module, packed_twin)


def _pack_attention(
    attention: QMultiheadAttention,
    kernel: str,
    packed_twin: Callable[[nn.Module], nn.Module | None],
    fill: bool,
) -> QMultiheadAttention:
    """`attention` with packed parts in place of quantised ones, and without their weights."""
    joined = attention.in_proj_bias
    biases = [None] * 3 if joined is None else joined.chunk(3)
    parts = zip(("query", "key", "value"), attention._in_projections(), biases, strict=True)
    for name, weight, bias in parts:
        projection = cast(Projection, getattr(attention, name))
        linear = become(nn.Linear(weight.shape[1], len(weight), bias is not None), QLinear)
        linear.weight.data = weight.detach()
        if bias is not None:
            linear.bias.data = bias.detach()
        linear.weight_quantizer = projection.weight_quantizer
        linear.input_quantizer = projection.input_quantizer
        packed = PackedProjection(linear, kernel)
        setattr(attention, name, packed.fill(linear) if fill else packed)
    for name in ("scores", "mix", "out_proj"):
        setattr(attention, name, replace_layers(getattr(attention, name), packed_twin))
    for name in ("in_proj_weight", "in_proj_bias", *(f"{x}_proj_weight" for x in "qkv")):
        attention.register_parameter(name, None)
    return attention


def _check_steps(*steps: Tensor) -> None:
    """Raises ValueError unless all step sizes are above 0."""
    for step in steps:
        if not (step > 0).all():
            raise ValueError(f"a step size is {float(step.min()):g}; it is above 0.")


_FORWARD_HOOKS = (  # where nn.Module keeps them
    "_forward_hooks",
    "_forward_hooks_with_kwargs",
    "_forward_hooks_always_called",
    "_forward_pre_hooks",
    "_forward_pre_hooks_with_kwargs",
)


def _ones(shape: Sequence[int]) -> Tensor:
    """Room for values: float32, whatever PyTorch's default type is."""
    return torch.ones(shape, dtype=torch.float32)


def _refuse_another_type(fn: Callable[[Tensor], Tensor]) -> None:
    """Raise TypeError if `fn`, which `half`, `double` or `to` apply to all values, changes their
    type: rounded steps would be other steps, and kernels take float32.
    """
    made = fn(_ones((1,)))
    if made.dtype != torch.float32:
        raise TypeError(
            f"packed layers compute in float32 and do not become {made.dtype}; leave them as they "
            "are. Pictures may be of any floating point type."
        )


def _weights_channels_last(layer: Packable) -> Tensor:
    """[Cout, kh, kw, Cin of a group], as the packed format wants them."""
    weight = layer.by_output(layer.weight.detach())
    if isinstance(layer, QConvTranspose2d):
        weight = weight.flip(-2, -1)
    weight = weight.movedim(1, -1)
    return weight.reshape(len(weight), *[1] * (4 - weight.ndim), *weight.shape[1:])


def _pair(values: Sequence[int], first: int) -> tuple[int, int]:
    """(height, width) of a convolution of pictures or, as pictures of one row, of rows."""
    height, width = (first, *values)[-2:]
    return height, width


def _tau(quantizer: Quantizer) -> Tensor | None:
    """The shift of an input quantizer as float32 [channels], or None."""
    dims = [1] * (4 if quantizer.channel_dim == 1 else 2)
    dims[quantizer.channel_dim] = cast(int, quantizer.channels)
    shift = quantizer.shift(torch.zeros(dims, device=quantizer.step_size.device))
    return None if shift is None else shift.detach().float().expand(dims).flatten().clone()


def _quantizing(kernel: str) -> str:
    """Kernel names speak of integer convolutions; everything around them is best or reference."""
    return kernel if kernel == kernels.REFERENCE else "auto"
