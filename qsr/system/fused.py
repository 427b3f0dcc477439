"""Fake quantisation in one pass over memory: the fast version of `quantizer.FakeQuantize`.

The definition remembers z = (x + tau) / step_size and walks over memory a dozen times. Here forward
is one pass and backward one, and only x is remembered, which the layer before mostly remembers
anyway. It takes float32 and the slopes of LSQ and RLQ, phi'(u) with a sharpness.

The passes are kernels of the device: in C++ on the CPU (csrc/train/fake_quantize.cpp), in Triton on
a GPU (fused_triton.py). PyTorch for CUDA brings Triton along; where it is missing, the definition
runs. The Triton kernels have been run in Triton's interpreter and compiled for an H100, and not yet
run on a GPU.

Both versions give the same values, and gradients that differ by float32 rounding. Under
torch.compile the definition is used: the compiler fuses it by itself.
"""

from __future__ import annotations

import functools
import importlib.util
import os
from types import ModuleType
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from . import native


class Sharp(Protocol):
    """A slope phi'(u), told by its sharpness: `quantizer.PhiSlope`."""

    sharpness: float


def fuses(x: Tensor, step_size: Tensor, tau: Tensor | None) -> bool:
    """Whether the passes here take these tensors, on this device, now."""
    return (
        x.dtype == torch.float32 == step_size.dtype
        and not torch.compiler.is_compiling()
        and (tau is None or step_size.numel() == 1)
        and _kernels(x.device) is not None
    )


class FusedForPhi(torch.autograd.Function):
    """`quantizer.FakeQuantize` in the two kernels of `_kernels`; its arguments."""

    @staticmethod
    def forward(
        ctx,
        x: Tensor,
        step_size: Tensor,
        tau: Tensor | None,
        qmin: int,
        qmax: int,
        slope: Sharp,
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


def _kernels(device: torch.device) -> Any:
    """What has the functions fake_quantize and fake_quantize_backward for this device, or None."""
    if device.type == "cuda":
        return _triton_kernels(device)
    return torch.ops.qsr_native if device.type == "cpu" and native.load().native else None


@functools.cache
def _triton_kernels(device: torch.device) -> ModuleType | None:
    """The Triton kernels, imported on first use; None without Triton, on a GPU too old for it, and
    where QSR_NATIVE is "off".
    """
    if os.environ.get("QSR_NATIVE") == "off" or not importlib.util.find_spec("triton"):
        return None
    if torch.cuda.get_device_capability(device) < (7, 0):
        return None
    from . import fused_triton

    return fused_triton
