"""Attention inside windows, LayerNorm and GELU in one pass over memory each way: the fast versions
of `blocks.window_attention`, nn.LayerNorm and nn.GELU, for training on the CPU.

PyTorch writes scores, biased and masked scores and probabilities of all windows to memory, and what
belongs to one window or head is copied together before and apart after each product: of a step of
SwinIR_S in bfloat16 two thirds pass that way. Here a head of a window is read, worked on in the
first-level cache, and written (csrc/train/swin_step_kernel.h). Windows are only a way to count the
pixels of a picture, which is never cut up. Backward keeps q, k and v and two numbers a query.

Both versions give the same values and gradients up to rounding, which is why these run only where
something learns: what is computed for its own sake stays, bit by bit, what the definition says.
Under torch.compile the definition is used: the compiler fuses it by itself.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from . import native


def learns(module: nn.Module, tensor: Tensor, x: Tensor) -> bool:
    """Whether the passes here run in the place of a module on x: it is in training, `tensor` (its
    parameter, or x where it has none) gets a gradient, and x is on the CPU in float32 or bfloat16,
    with native code. A parameter must be float32.
    """
    return (
        module.training
        and tensor.requires_grad
        and torch.is_grad_enabled()
        and x.device.type == "cpu"
        and x.dtype in (torch.float32, torch.bfloat16)
        and (tensor is x or tensor.dtype == torch.float32)
        and not torch.compiler.is_compiling()
        and native.load().native
    )


def in_16_bits(x: Tensor) -> bool:
    """Whether products of x are in bfloat16: it has such numbers, or autocast asks for them."""
    kind = x.device.type
    asked = torch.is_autocast_enabled(kind) and torch.get_autocast_dtype(kind) == torch.bfloat16
    return asked or x.dtype == torch.bfloat16


class FusedAttention(torch.autograd.Function):
    """`blocks.window_attention` of whole pictures.

    qkv: [N, H, W, 3 * features], H and W multiples of window; position_bias: float32
    [(2 window - 1)^2, heads] -> [N, H, W, features].

    shift: how far windows are shifted; then the pixels that come together from opposite edges do
    not see each other. half: multiply in bfloat16, sums are float32 still. kernel: a name of
    `native.rows("swin_step")`.
    """

    @staticmethod
    def forward(
        ctx,
        qkv: Tensor,
        position_bias: Tensor,
        heads: int,
        window: int,
        shift: int,
        half: bool,
        kernel: str = "auto",
    ) -> Tensor:
        qkv, position_bias = qkv.contiguous(), position_bias.contiguous()
        ctx.options = heads, window, shift, half, kernel
        mixed, softmax = torch.ops.qsr_native.window_attention(qkv, position_bias, *ctx.options)
        ctx.save_for_backward(qkv, position_bias, softmax)
        return mixed

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor):
        gradients = torch.ops.qsr_native.window_attention_backward(
            grad.contiguous(), *ctx.saved_tensors, *ctx.options
        )
        return *gradients, None, None, None, None, None


class FusedNorm(torch.autograd.Function):
    """LayerNorm over the last dimension of x, float32 or bfloat16; weight and bias are float32."""

    @staticmethod
    def forward(
        ctx, x: Tensor, weight: Tensor, bias: Tensor, eps: float, kernel: str = "auto"
    ) -> Tensor:
        x = x.contiguous()
        y, moments = torch.ops.qsr_native.layer_norm(x, weight, bias, eps, kernel)
        ctx.save_for_backward(x, weight, bias, moments)
        ctx.kernel = kernel
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor):
        x, weight, bias, moments = ctx.saved_tensors
        gradients = torch.ops.qsr_native.layer_norm_backward(
            grad.contiguous(), x, weight, bias, moments, ctx.kernel
        )
        return *gradients, None, None


class FusedGELU(torch.autograd.Function):
    """GELU of x, float32 or bfloat16, to 1e-7 of |x|."""

    @staticmethod
    def forward(ctx, x: Tensor, kernel: str = "auto") -> Tensor:
        x = x.contiguous()
        ctx.save_for_backward(x)
        ctx.kernel = kernel
        return torch.ops.qsr_native.gelu(x, kernel)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor):
        (x,) = ctx.saved_tensors
        return torch.ops.qsr_native.gelu_backward(grad.contiguous(), x, ctx.kernel), None
