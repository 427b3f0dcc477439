"""The packed parts of QuantSR-T that no other network has: attention in windows, the functions
whose bits must be fixed, and a whole layer laid out for the executor.

LayerNorm, GELU and softmax are written out (`reference`), so that packed networks give the same
bits everywhere.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..blocks import SwinLayer, WindowAttention
from ..quantizer import QuantSpec
from . import kernels, reference
from .packed_layers import PackedLinear, PackedMatmul, quantizing
from .program import filled, padded

NEVER = -1e30  # kNever of csrc/torch/ops_swin.cpp, bias of a pair that is not there: its exp is 0


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


# Laying out ---------------------------------------------------------------------------------------


def laid_out_layer(layer: SwinLayer, channels: int) -> tuple[list[int], Tensor, Tensor]:
    """A packed layer on maps of `channels` as `swin` of csrc/network/executor.cpp reads it: its
    numbers, weights uint8 [bytes] and constants float32 [..].
    """
    attention = cast(PackedAttention, layer.attention)
    arrays = [filled(x, channels) for n in (layer.norm1, layer.norm2) for x in (n.weight, n.bias)]
    grids, weights, offsets = [], [], []
    for linear in _linears(layer):
        codes = kernels.unpack_codes(linear.planes)[:, 0, 0, :]
        rows, columns = codes.shape
        outputs, inputs = padded(rows), padded(columns)
        codes = F.pad(codes, (0, inputs - columns, 0, outputs - rows))
        scale = linear.scale.expand(rows)
        offsets.append(-linear.spec.qmin)  # makes a signed code a byte without sign
        start = -offsets[-1] * codes.sum(1, dtype=torch.int32)
        laid = codes.view(outputs // 16, 16, inputs // 4, 4).transpose(1, 2)
        weights += [laid.flatten().view(torch.uint8), start.view(torch.uint8)]
        for x, length in ((linear.tau, inputs), (scale, outputs), (linear.bias, outputs)):
            arrays.append(filled(x, length))
        grids += [linear.step_size.item(), linear.spec.qmin, linear.spec.qmax]
    bias = attention.bias.detach().float()
    arrays.append(F.pad(bias, (0, -bias.shape[-1] % 16), value=NEVER).flatten())
    features, heads = len(layer.norm1.weight), attention.heads
    steps = attention.steps.tolist() if attention.specs else [1.0] * 4
    numbers = [layer.norm1.eps, layer.norm2.eps, *grids, (features // heads) ** -0.5, *steps]
    arrays.append(torch.tensor(numbers, dtype=torch.float32))
    hidden = len(_linears(layer)[2].weight)
    shape = [layer.window, layer.shift, features, heads, hidden]
    kinds = [n for spec in attention.specs for n in (spec.bits, int(spec.signed))]
    bits = max(linear.bits + linear.planes.bits for linear in _linears(layer))
    table = [*shape, bits, *offsets, int(bool(kinds)), *kinds]
    return table, torch.cat(weights), torch.cat(arrays)


def product_bits(layer: SwinLayer) -> int:
    """The most bits that two factors of a packed layer have together."""
    pairs = [linear.bits + linear.planes.bits for linear in _linears(layer)]
    specs = cast(PackedAttention, layer.attention).specs
    for left, right in zip(specs[::2], specs[1::2], strict=True):
        pairs.append(left.bits + right.bits + (not right.signed and right.bits < 8))
    return max(pairs)


def _linears(layer: SwinLayer) -> list[PackedLinear]:
    attention = cast(PackedAttention, layer.attention)
    return cast("list[PackedLinear]", [attention.qkv, attention.proj, layer.fc1, layer.fc2])
