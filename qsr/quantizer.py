"""Learnable quantizers: from real numbers to a few integers, and a gradient back.

A b-bit quantizer writes a tensor as `step_size * codes`, where the codes are integers of b bits:

    z = (x + tau) / step_size            where on the integer grid does x lie?
    codes = clamp(round(z), qmin, qmax)
    x_hat = step_size * codes

Rounding has derivative zero, so a network could never learn through it. The cure is a *surrogate*:
forward uses the rounded value, backward pretends that something smoother was there. All quantizers
here share one forward pass and differ only in the slope that the surrogate has inside an interval,
that is, as a function of u = z - floor(z):

    LSQ    slope = 1                 the straight-through estimator: rounding looks like identity
    RLQ    slope = phi'(u)           QuantSR: an interval keeps its ends, phi(0) = 0 and phi(1) = 1,
                                     but is steepest in its middle, where the rounding decision is

and RLQ moves the activations by a learned `tau` per input channel, so that each channel uses its
codes well ("redistribution"). With G = dL/dx_hat and inside = (qmin <= z <= qmax):

    dL/dx         = G slope(u) inside
    dL/dtau       = the same, summed over everything that shares one tau
    dL/dstep_size = g * sum G d,    d = round(z) - slope(u) z   inside
                                    d = qmin or qmax            outside
    g             = 1 / sqrt(n qmax),   n = elements that share one step size

The step size is learned too: d says how the error of an element changes when the grid widens, and
g, which is LSQ's, keeps its relative update about as large as that of a weight.

`FakeQuantize` is all of this in plain PyTorch, and the definition. Where they can, `system.fused`
does the same in one pass over memory; tests hold both together.

Nothing initialises itself behind your back: `calibrate(x)` sets the step size and, for activations,
whether the codes are signed. A quantizer that was never calibrated refuses to run.

Write your own by overriding one method:

    class Steeper(qsr.Quantizer):
        def slope(self, u):
            return 6 * u * (1 - u)

Sources: QuantSR (Qin et al., NeurIPS 2023) and its released code; LSQ (Esser et al., ICLR 2020).
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from .system.errors import whole
from .system.fused import FusedForPhi, fuses

MIN_STEP_SIZE = 1e-8  # the forward pass never divides by less: a learned step may cross zero
SIGNED_BELOW = -1e-5  # activations with a value below this need signed codes (released code)

# The definition -----------------------------------------------------------------------------------


def phi(u: Tensor, sharpness: float = 1.0) -> Tensor:
    """RLQ's transformation of one interval: [0, 1] onto [0, 1], steepest at u = 1/2.

        phi(u) = (tanh(k (u - 1/2)) / tanh(k / 2) + 1) / 2,    k = sharpness

    The paper's released code has k = 1; k -> 0 is the straight line of LSQ. u: float, any shape.

    >>> phi(torch.tensor([0.0, 0.5, 1.0])).tolist()
    [0.0, 0.5, 1.0]
    """
    if sharpness == 0:
        return u
    return (torch.tanh(sharpness * (u - 0.5)) / math.tanh(sharpness / 2) + 1) / 2


def phi_slope(u: Tensor, sharpness: float = 1.0) -> Tensor:
    """The derivative of `phi`: phi'(u) = k (1 - tanh(k (u - 1/2))^2) / (2 tanh(k / 2)).

    Its mean over the interval is 1, so the gradient is moved about, not made larger.

    >>> [round(v, 4) for v in phi_slope(torch.tensor([0.0, 0.25, 0.5])).tolist()]
    [0.8509, 1.0171, 1.082]
    """
    if sharpness == 0:
        return torch.ones_like(u)
    t = torch.tanh(sharpness * (u - 0.5))
    return (1 - t * t) * (sharpness / (2 * math.tanh(sharpness / 2)))


@dataclass(frozen=True)
class PhiSlope:
    """`phi_slope` with its sharpness, as a value: a slope that the fused kernels know.

    >>> PhiSlope(0.0)(torch.tensor([0.2, 0.7])).tolist()
    [1.0, 1.0]
    """

    sharpness: float

    def __call__(self, u: Tensor) -> Tensor:
        return phi_slope(u, self.sharpness)


class FakeQuantize(torch.autograd.Function):
    """The definition: any slope, device and dtype. Arguments as `fake_quantize`."""

    @staticmethod
    def forward(
        ctx,
        x: Tensor,
        step_size: Tensor,
        tau: Tensor | None,
        qmin: int,
        qmax: int,
        slope: Callable[[Tensor], Tensor],
        codes: torch.dtype | None = None,
    ) -> Tensor:
        step = step_size.clamp(min=MIN_STEP_SIZE)
        z = x / step if tau is None else (x + tau) / step
        ctx.save_for_backward(z, None if codes is None else step)
        ctx.range, ctx.slope = (qmin, qmax), slope
        ctx.step_shape = step_size.shape
        ctx.tau_shape = None if tau is None else tau.shape
        rounded = z.round().clamp_(qmin, qmax)
        return rounded.mul_(step) if codes is None else rounded.to(codes)

    @staticmethod
    def backward(ctx, grad: Tensor):
        z, step = ctx.saved_tensors
        if step is not None:
            grad = grad.to(z.dtype) / step
        (qmin, qmax), wants = ctx.range, ctx.needs_input_grad
        inside = (z >= qmin) & (z <= qmax)
        slope = ctx.slope(z - z.floor()).mul_(inside)
        grad_x = grad * slope
        grad_step = grad_tau = None
        if wants[1]:
            shared = max(1, z.numel() // math.prod(ctx.step_shape))
            # round(clamp(z)) is round(z) inside and qmin or qmax outside; slope is zero outside.
            d = z.clamp(qmin, qmax).round_().sub_(slope.mul_(z))
            grad_step = (d * grad).sum_to_size(ctx.step_shape) / math.sqrt(shared * qmax)
        if wants[2]:
            grad_tau = grad_x.sum_to_size(ctx.tau_shape)
        return (grad_x if wants[0] else None), grad_step, grad_tau, None, None, None, None


def fake_quantize(
    x: Tensor,
    step_size: Tensor,
    tau: Tensor | None,
    qmin: int,
    qmax: int,
    slope: Callable[[Tensor], Tensor],
    codes: torch.dtype | None = None,
) -> Tensor:
    """x_hat, the shape of x, with the surrogate's gradients for x, step_size and tau.

    x: float, any shape. step_size: units of x, a scalar or one value along dimension 0, shaped to
    be broadcast. tau: units of x, one value along one dimension, shaped to be broadcast, or None.
    qmin <= 0 < qmax: the codes. slope: u in [0, 1) -> slope, the shape of u. codes: bfloat16, to
    have x_hat / step_size in that dtype instead, the gradients still those of x_hat: in 16 bits a
    value of the grid would be rounded off it, but a code is exact.

    One pass over memory where `fuses` says so, else the definition: the same values, and gradients
    that differ by float32 rounding.
    """
    fused = isinstance(slope, PhiSlope) and fuses(x, step_size, tau)
    version = FusedForPhi if fused else FakeQuantize
    return version.apply(x, step_size, tau, qmin, qmax, slope, codes)


# Quantizers ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class QuantSpec:
    """The integers that `bits` bits can write.

    Signed codes are two's complement, so 2 bits give -2, -1, 0, 1: one more below zero than above.

    >>> QuantSpec(4).qmin, QuantSpec(4).qmax, QuantSpec(2, signed=False).qmax
    (-8, 7, 3)
    """

    bits: int
    signed: bool = True
    narrow: bool = False  # without the lowest signed code, so that the range is symmetric

    def __post_init__(self) -> None:
        object.__setattr__(self, "bits", whole("bits", self.bits))  # a byte of numpy would wrap
        if self.bits not in range(1, 9):
            raise ValueError(
                f"`bits` is {self.bits!r}; codes have 1 to 8 bits. Choose a width in that range."
            )

    @property
    def qmin(self) -> int:
        return self.narrow - (1 << (self.bits - 1)) if self.signed else 0

    @property
    def qmax(self) -> int:
        return (1 << (self.bits - 1)) - 1 if self.signed else (1 << self.bits) - 1

    @property
    def dtype(self) -> torch.dtype:
        """The byte that holds a code: int8 when signed, uint8 when not."""
        return torch.int8 if self.signed else torch.uint8


def to_codes(x: Tensor, step_size: Tensor, spec: QuantSpec, tau: Tensor | None = None) -> Tensor:
    """The integer codes of x: clamp(round((x + tau) / step_size), qmin, qmax), halves to even.

    x: float, any shape; step_size: float > 0, units of x, broadcastable to x; tau likewise.
    Returns int8 (signed) or uint8 (unsigned), the shape of x. The quotient is a division, never a
    product with 1 / step_size: the two differ at rounding thresholds (design: exactness contract).

    >>> to_codes(torch.tensor([-0.9, 0.2, 0.25, 5.0]), torch.tensor(0.5), QuantSpec(2)).tolist()
    [-2, 0, 0, 1]
    """
    z = x / step_size if tau is None else (x + tau) / step_size
    return z.round().clamp(spec.qmin, spec.qmax).to(spec.dtype)


class Quantizer(nn.Module):
    """Base of all quantizers: a learned step size, codes, and fake-quantised values.

    bits: 2 to 8 (one signed bit has qmax = 0, nothing above zero could be written).
    signed: True or False, or None to let `calibrate` decide from the data.
    channels: number of input channels, on `channel_dim`, for quantizers that treat each apart.
    steps: None for one step size (the paper), or the number of step sizes along dimension 0.
    weights: whether it quantises weights, for methods that treat them in another way than inputs.

    Three things make a quantizer, and a network that uses any subclass can be packed:
    `step()`, `shift()` and `slope(u)`; then `codes(x)` and `forward(x)` follow, and
    forward(x) == step() * codes(x).

    >>> q = LSQ(bits=2, signed=True)
    >>> x = torch.tensor([-1.0, 0.4, 1.0])
    >>> q.calibrate(x)
    >>> round(q.step_size.item(), 3), q.codes(x).tolist(), q(x).requires_grad
    (1.6, [-1, 0, 1], True)
    """

    # What networks, training and packing have to know of a class, besides its methods.
    narrow: ClassVar[bool] = False  # whether signed codes leave out the lowest, see QuantSpec
    one_grid: ClassVar[bool] = True  # whether forward(x) lies on one grid of step(x)
    least_bits: ClassVar[tuple[int, int]] = (2, 2)  # of weights and of inputs
    convolutions_only: ClassVar[bool] = False
    settings: ClassVar[tuple[str, ...]] = ()  # arguments that a network's configuration gives
    recipe: ClassVar[dict[str, float]] = {}  # what its paper trains with, as TrainConfig has it

    @staticmethod
    def looking_at(lr: Tensor) -> contextlib.AbstractContextManager:
        """The scene of a pass through a network on lr, for quantizers that look at the picture."""
        return contextlib.nullcontext()

    def __init__(
        self,
        bits: int,
        *,
        signed: bool | None = None,
        channels: int | None = None,
        channel_dim: int = 1,
        steps: int | None = None,
        weights: bool = False,
    ) -> None:
        super().__init__()
        self.set_bits(bits)
        self.channels = channels
        self.channel_dim = channel_dim
        self.weights = weights
        self.signed = signed
        self.step_size = nn.Parameter(torch.ones(() if steps is None else (steps,)))

    def set_bits(self, bits: int) -> None:
        """Change the width; the step size is another one then, so calibrate afterwards."""
        bits = whole("bits", bits)
        if bits not in range(2, 9):
            why = ", because one signed bit has no code above zero" if bits == 1 else ""
            raise ValueError(
                f"`bits` is {bits!r}; quantizers take 2 to 8{why}. Use 2 bits or more, "
                "or leave the layer in full precision."
            )
        self.bits = bits
        self.calibrated = False

    # What a subclass may change -----------------------------------------------------------------

    @property
    def slope(self) -> Callable[[Tensor], Tensor]:
        """Derivative of the surrogate at position u in [0, 1) of its interval. Here: 1.

        A subclass may as well define it as a method `slope(self, u)`.
        """
        return PhiSlope(0.0)

    def shift(self, x: Tensor) -> Tensor | None:
        """What is added to x before the division, broadcastable to x, or None. Here: None."""
        return None

    @property
    def step_rate(self) -> float:
        """Learning rate of the step size, in units of `TrainConfig.quantizer_rate`. Here: 1; less
        where the parameter of a paper is a multiple of the step."""
        return 1.0

    def initial_step_size(self, x: Tensor) -> Tensor:
        """LSQ's start for the (shifted) data x: 2 mean|x| / sqrt(qmax), shape of `step_size`."""
        magnitude = x.abs()
        mean = magnitude.mean() if self.step_size.ndim == 0 else magnitude.flatten(1).mean(1)
        # All zeros (a new residual branch) say nothing about the scale: assume the mean |x| of
        # PyTorch's default initialisation, uniform within 1 / sqrt(elements per output).
        fallback = 0.5 / math.sqrt(max(1, x[0].numel() if x.ndim else 1))
        mean = torch.where(mean > 0, mean, torch.full_like(mean, fallback))
        return 2 * mean / math.sqrt(self.spec.qmax)

    # What follows from it -----------------------------------------------------------------------

    @property
    def spec(self) -> QuantSpec:
        """Bits and sign of the codes. Raises ValueError while the sign is undecided."""
        if self.signed is None:
            raise ValueError(
                "this quantizer has not seen data yet, so the sign of its codes is unknown; "
                "call qsr.calibrate(net, batch) first, or load trained weights."
            )
        return QuantSpec(self.bits, self.signed, self.narrow)

    def step(self, x: Tensor) -> Tensor:
        """The positive step size(s), shaped to multiply x. Raises ValueError if not calibrated."""
        self._require_calibration()
        step = self.step_size.clamp(min=MIN_STEP_SIZE)
        return step if step.ndim == 0 else step.view(-1, *[1] * (x.ndim - 1))

    @torch.no_grad()
    def calibrate(self, x: Tensor) -> None:
        """Set the step size, and the sign if it is undecided, from the data x.

        Raises ValueError if x is empty or not finite.
        """
        if x.numel() == 0 or not torch.isfinite(x).all():
            raise ValueError(
                f"calibration data of shape {tuple(x.shape)} is empty or not finite; "
                "a step size needs real numbers. Check the batch."
            )
        shift = self.shift(x)
        x = x if shift is None else x + shift
        if self.signed is None:
            self.signed = bool(x.min() < SIGNED_BELOW)
        self.step_size.copy_(self.initial_step_size(x))
        self.calibrated = True

    def codes(self, x: Tensor) -> Tensor:
        """Integer codes of x: int8 (signed) or uint8 (unsigned), the shape of x."""
        return to_codes(x, self.step(x), self.spec, self.shift(x))

    def forward(self, x: Tensor) -> Tensor:
        """Fake-quantised values step() * codes(x), float, with the surrogate's gradient."""
        return self._fake_quantize(x)

    def float_codes(self, x: Tensor, dtype: torch.dtype) -> Tensor:
        """forward(x) / step(x): codes in a float dtype that holds them (bfloat16 does), with the
        surrogate's gradient as if the division were by a constant.
        """
        return self._fake_quantize(x, dtype)

    def _fake_quantize(self, x: Tensor, codes: torch.dtype | None = None) -> Tensor:
        self._require_calibration()
        step: Tensor = self.step_size
        if step.ndim:
            step = step.view(-1, *[1] * (x.ndim - 1))
        spec = self.spec
        return fake_quantize(x, step, self.shift(x), spec.qmin, spec.qmax, self.slope, codes)

    def merge_pieces(self, pieces: int) -> None:
        """Make the step size's gradient that of one batch, after a batch that came in `pieces`.

        LSQ's factor 1 / sqrt(n qmax) counts the elements n of an input, and a piece has fewer.
        """
        if not self.weights and self.step_size.grad is not None:
            self.step_size.grad /= math.sqrt(pieces)

    def _require_calibration(self) -> None:
        if not self.calibrated:
            raise ValueError(
                "this quantizer has no step size yet; call qsr.calibrate(net, batch) first, "
                "or load trained weights."
            )

    # The sign and the width for which the step size is (0 if there is none yet) travel with the
    # weights, as a tensor of two bytes, so that a state dict holds tensors only (safetensors) and
    # copies, EMA and resume just work.
    def get_extra_state(self) -> Tensor:
        signed = 2 if self.signed is None else int(self.signed)
        return torch.tensor([self.bits if self.calibrated else 0, signed], dtype=torch.uint8)

    def set_extra_state(self, state: Tensor) -> None:
        bits, signed = state.tolist()
        if bits not in (0, 1, self.bits):  # 1 is what was written before for any width
            raise ValueError(
                f"this quantizer has {self.bits} bits, and the step size to be loaded is one of "
                f"{bits} bits; make the network with these."
            )
        self.calibrated = bits > 0
        self.signed = None if signed == 2 else bool(signed)

    def extra_repr(self) -> str:
        sign = {None: "sign undecided", True: "signed", False: "unsigned"}[self.signed]
        return f"{self.bits} bits, {sign}" + ("" if self.calibrated else ", not calibrated")


class LSQ(Quantizer):
    """Learned step size quantisation (Esser et al., 2020): straight through, no shift.

    The ablation baseline of QuantSR: RLQ without redistribution.
    """


class RLQ(Quantizer):
    """The redistribution-driven learnable quantizer of QuantSR: LSQ + phi + tau.

    With `channels`, activations are moved by `tau` (one value per input channel, starts at 0,
    units of x) before quantisation; tau is never subtracted again, the layer learns around it.
    Without `channels` (weights) there is no tau. `sharpness` is phi's k; 1 is the released code.
    """

    settings = ("sharpness",)

    def __init__(self, bits: int, *, sharpness: float = 1.0, **options) -> None:
        super().__init__(bits, **options)
        if not sharpness >= 0:
            raise ValueError(
                f"`sharpness` is {sharpness!r}; phi needs 0 (straight line) or more. "
                "The paper has 1."
            )
        self.sharpness = sharpness
        self.tau = None if self.channels is None else nn.Parameter(torch.zeros(self.channels))

    @property
    def slope(self) -> PhiSlope:
        """phi'(u), see `phi_slope`."""
        return PhiSlope(self.sharpness)

    def shift(self, x: Tensor) -> Tensor | None:
        """tau, shaped to be added to x along its channel dimension."""
        if self.tau is None:
            return None
        shape = [1] * x.ndim
        shape[self.channel_dim] = -1
        return self.tau.view(shape)


# The quantizers that configurations know by name. `qsr.baselines` adds its own.
QUANTIZERS: dict[str, type[Quantizer]] = {"rlq": RLQ, "lsq": LSQ}
