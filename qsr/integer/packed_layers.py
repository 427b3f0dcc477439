"""Quantised layers whose weights are integers, packed into bit planes: what `pack` makes of each.

A packed layer keeps the planes of its weight codes and what is left of the steps, and runs from
float to float (`layer`): codes of its input, integer sums, one epilogue. `PackedMatmul` is the same
for a product of two activations, which has nothing to pack. `FloatConv2d`, for the layers that stay
in float, sums in one fixed order, so that a picture in strips gives the bits of a whole one.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from ..convert import zero_padding
from ..layers import (
    QConv1d,
    QConv2d,
    QConvTranspose2d,
    QLinear,
    QMatmul,
    no_autocast,
)
from ..quantizer import Quantizer, QuantSpec, to_codes
from ..system.errors import floating
from ..system.once import SETTING_UP
from . import kernels
from .bitplanes import BitPlanes, check_tail, words_for
from .layer import ConvShape, LaidOut, Phases
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
        refuse_another_type(fn)
        self._laid_out = None
        return super()._apply(fn, recurse)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_laid_out": None}

    @torch.no_grad()
    def fill(self, layer: Packable) -> PackedLayer:
        """Take the values of a trained layer. Raises ValueError if it is not calibrated, if values
        are not finite, or if the kernel of this name does not run such a layer.
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
        for values in (layer.weight, self.step_size, self.scale, self.tau, self.bias):
            if values is not None and not torch.isfinite(values).all():  # codes would hide them
                raise ValueError(
                    "a layer has values that are no finite numbers (NaN or infinity), as after a "
                    "training that diverged; go back to a checkpoint from before."
                )
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
        x = floating(x).float()
        if self.narrow and self.signed:  # kernels know the whole range of two's complement only
            x = x.clamp(min=self.spec.qmin * self.step_size)
        return kernels.quantize_pack(
            x,
            self.step_size,
            self.tau,
            bits=self.bits,
            signed=self.signed,
            groups=self.groups,
            kernel=quantizing(self.kernel),
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


class FixedBatchNorm(nn.Module):
    """A BatchNorm2d in eval mode: a factor and a number to add for each channel, which the finish
    of a packed layer can do. x: float32 [N, C, H, W].
    """

    scale: Tensor  # both float32 [1, C, 1, 1]
    shift: Tensor

    def __init__(self, norm: nn.BatchNorm2d) -> None:
        super().__init__()
        assert norm.running_mean is not None and norm.running_var is not None
        scale = (norm.running_var.double() + norm.eps).rsqrt()
        shift = torch.zeros_like(scale)
        if norm.affine:
            scale, shift = scale * norm.weight.double(), norm.bias.double()
        shift = shift - norm.running_mean.double() * scale
        for name, value in (("scale", scale), ("shift", shift)):
            self.register_buffer(name, value.detach().float().view(1, -1, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.scale + self.shift


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
        refuse_another_type(fn)
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
            floating(x).float().permute(0, 2, 3, 1),
            self.weight,
            self.bias,
            self.padding,
            quantizing(self.kernel),
        )
        return out.permute(0, 3, 1, 2)


def _check_steps(*steps: Tensor) -> None:
    """Raises ValueError unless all step sizes are above 0."""
    for step in steps:
        if not (step > 0).all():
            raise ValueError(f"a step size is {float(step.min()):g}; it is above 0.")


def _ones(shape: Sequence[int]) -> Tensor:
    """Room for values: float32, whatever PyTorch's default type is."""
    return torch.ones(shape, dtype=torch.float32)


def refuse_another_type(fn: Callable[[Tensor], Tensor]) -> None:
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


def quantizing(kernel: str) -> str:
    """Kernel names speak of integer convolutions; everything around them is best or reference."""
    return kernel if kernel == kernels.REFERENCE else "auto"
