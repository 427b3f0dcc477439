"""Fake quantisation: quantised values forward, a smoother function's gradient backward.

    forward     z = (x + tau) / step_size
                x_hat = step_size * clamp(round(z), qmin, qmax)

Rounding has derivative zero, so training pretends that a *surrogate* was there, whose slope inside
an interval is a function of u = z - floor(z). With G = dL/dx_hat and inside = (qmin <= z <= qmax):

    backward    dL/dx         = G slope(u) inside
                dL/dtau       = the same, summed over everything that shares one tau
                dL/dstep_size = g * sum G d,    d = round(z) - slope(u) z   inside
                                                d = qmin or qmax            outside
                g             = 1 / sqrt(n qmax),   n = elements that share one step size

g is LSQ's: it keeps the relative update of a step size about as large as that of a weight.

There are two versions, and `fake_quantize` picks one:

    FakeQuantize    the definition, in PyTorch: any slope, device and dtype; remembers z
    FusedForPhi     float32 and the slopes of LSQ and RLQ: one pass over memory forward and one
                    backward, remembers x alone, which the layer before mostly remembers anyway

The passes are kernels of the device: in C++ on the CPU (csrc/fake_quantize.cpp), in Triton on a GPU
(fake_quantize_triton.py). PyTorch for CUDA brings Triton along; where it is missing, the definition
runs. The Triton kernels have been run in Triton's interpreter and compiled for an H100, and not yet
run on a GPU.

In 16 bits a value of the grid would be rounded off it, but a code is exact: asked for bfloat16, all
this returns codes, x_hat / step_size, for a layer that multiplies codes and scales the sums. The
gradients are those of x_hat then, G = dL/dcodes / step_size.

Both versions give the same values, and gradients that differ by float32 rounding. Under
torch.compile the definition is used: the compiler fuses it by itself.

Sources: LSQ (Esser et al., ICLR 2020); phi: QuantSR (Qin et al., NeurIPS 2023), released code.
"""

from __future__ import annotations

import functools
import importlib.util
import math
from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from . import _native

MIN_STEP_SIZE = 1e-8  # the forward pass never divides by less: a learned step may cross zero


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
    """The definition. Arguments as `fake_quantize`."""

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


class FusedForPhi(torch.autograd.Function):
    """The same in the two kernels of `_kernels`; slope is a PhiSlope."""

    @staticmethod
    def forward(
        ctx,
        x: Tensor,
        step_size: Tensor,
        tau: Tensor | None,
        qmin: int,
        qmax: int,
        slope: PhiSlope,
        codes: torch.dtype | None = None,
    ) -> Tensor:
        channel = None if tau is None else _channel(tau)
        if not x.is_contiguous() and (
            channel not in (None, 1) or not x.is_contiguous(memory_format=torch.channels_last)
        ):
            x = x.contiguous()
        ctx.save_for_backward(x, step_size, tau)
        ctx.settings = channel or 0, qmin, qmax
        ctx.slope = slope
        y = torch.empty_like(x, dtype=codes)
        _kernels(x.device).fake_quantize(x, step_size, tau, *ctx.settings, y)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor):
        x, step_size, tau = ctx.saved_tensors
        if grad.stride() != x.stride():
            grad = torch.empty_like(x, dtype=grad.dtype).copy_(grad)
        grad_x, grad_step, grad_tau = _kernels(x.device).fake_quantize_backward(
            grad, x, step_size, tau, *ctx.settings, ctx.slope.sharpness
        )
        return grad_x, grad_step, None if tau is None else grad_tau, None, None, None, None


def _channel(tau: Tensor) -> int:
    """The dimension along which tau has its values."""
    return next((dim for dim, size in enumerate(tau.shape) if size > 1), 0)


def _kernels(device: torch.device) -> ModuleType | None:
    """What has the functions fake_quantize and fake_quantize_backward for this device, or None."""
    if device.type == "cuda":
        return _triton_kernels(device)
    return torch.ops.qsr_native if device.type == "cpu" and _native.load().native else None


@functools.cache
def _triton_kernels(device: torch.device) -> ModuleType | None:
    """The Triton kernels, imported on first use; None without Triton or on a GPU too old for it."""
    if not importlib.util.find_spec("triton") or torch.cuda.get_device_capability(device) < (7, 0):
        return None
    from . import fake_quantize_triton

    return fake_quantize_triton


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
    have x_hat / step_size in that dtype instead, the gradients still those of x_hat.
    """
    fused = (
        isinstance(slope, PhiSlope)
        and x.dtype == torch.float32 == step_size.dtype
        and not torch.compiler.is_compiling()
        and (tau is None or step_size.numel() == 1)
        and _kernels(x.device) is not None
    )
    version = FusedForPhi if fused else FakeQuantize
    return version.apply(x, step_size, tau, qmin, qmax, slope, codes)
