"""The packed parts of QuantSR-T that no other network has: attention in windows, and the functions
whose bits must be fixed.

LayerNorm, GELU and softmax are written out (`reference`), so that packed networks give the same
bits everywhere.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..blocks import WindowAttention
from ..quantizer import QuantSpec
from . import kernels, reference
from .packed_layers import PackedMatmul, quantizing


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
            kernel=quantizing(self.kernel),
        )
        return self.proj(mixed)
