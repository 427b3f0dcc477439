"""The two kinds of body block: residual (QuantSR-C) and Swin transformer (QuantSR-T).

A block maps features [N, C, H, W] to features of the same shape and has two methods:

    block(x)        s * x + F(x)
    block.skip(x)   s * x                what a depth plan leaves of a dropped block

where s is the block's `shortcut`: one scalar, learned (start 1) in a depth-dynamic network, fixed
at 1 in the full-precision backbones. A small s says that the block changes its input a lot, a
large one that it is nearly the identity: that is how blocks are ranked.

The layers inside come from two factories, `conv` and `linear`, so that one class serves full
precision (nn.Conv2d, nn.Linear) and every quantizer (functools.partial(QConv2d, bits=4, ...)).

Sources: the BN-free residual block of EDSR; SwinIR (Liang et al., ICCVW 2021), lightweight.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .layers import Matmul
from .system.fused_swin import FusedAttention, FusedGELU, FusedNorm, in_16_bits, learns

LayerFactory = Callable[..., nn.Module]


class Shortcut(nn.Module):
    """s * x: the shortcut of a block, and all that is left of a block sliced away.

    learnable: a parameter that starts at 1, or the constant 1 (not stored).
    """

    def __init__(self, learnable: bool) -> None:
        super().__init__()
        self.learnable = learnable
        self.scale = nn.Parameter(torch.ones(())) if learnable else None

    def forward(self, x: Tensor) -> Tensor:
        return x if self.scale is None else self.scale * x

    def skip(self, x: Tensor) -> Tensor:
        """The same: there is nothing to skip."""
        return self(x)


class ResidualBlock(nn.Module):
    """s * x + conv2(relu(conv1(x))), 3x3, without normalisation. x: float [N, features, H, W]."""

    def __init__(self, features: int, conv: LayerFactory, learnable_shortcut: bool) -> None:
        super().__init__()
        self.shortcut = Shortcut(learnable_shortcut)
        self.conv1 = conv(features, features, 3, padding=1)
        self.conv2 = conv(features, features, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.shortcut(x) + self.conv2(F.relu(self.conv1(x)))

    def skip(self, x: Tensor) -> Tensor:
        """The block without its convolutions."""
        return self.shortcut(x)


# Swin transformer --------------------------------------------------------------------------------
#
# Attention inside windows of 8x8 pixels costs the same per pixel for every picture size. Every
# second layer moves the windows by half their size, so that neighbours across a border meet.


def to_windows(x: Tensor, window: int) -> Tensor:
    """[N, H, W, C] -> [N * H/window * W/window, window * window, C]; H, W multiples of window."""
    n, h, w, c = x.shape
    x = x.view(n, h // window, window, w // window, window, c)
    return x.transpose(2, 3).reshape(-1, window * window, c)


def from_windows(windows: Tensor, shape: torch.Size) -> Tensor:
    """The inverse of `to_windows`; shape: (N, H, W, C) of the result.

    >>> x = torch.arange(128.0).view(1, 8, 16, 1)
    >>> torch.equal(from_windows(to_windows(x, 4), x.shape), x)
    True
    """
    n, h, w, c = shape
    window = int(windows.shape[1] ** 0.5)
    x = windows.view(n, h // window, w // window, window, window, c)
    return x.transpose(2, 3).reshape(n, h, w, c)


def shift_mask(height: int, width: int, window: int, device: torch.device) -> Tensor:
    """Attention mask of shifted windows: [windows, window^2, window^2], 0 or -100.

    The shift is a cyclic roll, which brings pixels from opposite edges into one window. The mask
    keeps such pixels apart: -100 before the softmax leaves nothing after it.
    """

    def regions(length: int) -> Tensor:
        position = torch.arange(length, device=device)
        return (position >= length - window).int() + (position >= length - window // 2).int()

    region = regions(height)[:, None] * 3 + regions(width)[None, :]
    region = to_windows(region[None, :, :, None], window)  # [windows, window^2, 1]
    return (region != region.transpose(1, 2)) * -100.0


def relative_position_index(window: int) -> Tensor:
    """Row of the bias table for each pair of pixels of a window: int64 [window^2, window^2]."""
    y, x = torch.meshgrid(torch.arange(window), torch.arange(window), indexing="ij")
    position = torch.stack([y.flatten(), x.flatten()])  # [2, window^2]
    offset = position[:, :, None] - position[:, None, :] + window - 1  # 0 .. 2 window - 2
    return offset[0] * (2 * window - 1) + offset[1]


def window_attention(
    qkv: Tensor,
    bias: Tensor,
    mask: Tensor | None,
    heads: int,
    scores: Callable[[Tensor, Tensor], Tensor] = torch.matmul,
    mix: Callable[[Tensor, Tensor], Tensor] = torch.matmul,
) -> Tensor:
    """softmax(q k / sqrt(width) + bias + mask) v, in each window and head, with two products.

    qkv: float [windows, T, 3 * features]; bias: [heads, T, T]; mask: [windows per picture, T, T] or
    None -> [windows, T, features]. T: pixels of a window; width: features of a head.
    `fused_swin.FusedAttention` is its fast version, on whole pictures.
    """
    windows, pixels, features = len(qkv), qkv.shape[1], qkv.shape[2] // 3
    width = features // heads
    q, k, v = qkv.view(windows, pixels, 3, heads, width).permute(2, 0, 3, 1, 4)
    weights = scores(q * width**-0.5, k.transpose(-2, -1)) + bias  # [windows, heads, T, T]
    if mask is not None:
        weights = weights.view(-1, len(mask), *weights.shape[1:]) + mask[None, :, None]
        weights = weights.flatten(0, 1)
    mixed = mix(weights.softmax(-1), v)  # [windows, heads, T, width]
    return mixed.transpose(1, 2).reshape(windows, pixels, features)


class LayerNorm(nn.LayerNorm):
    """nn.LayerNorm over the last dimension of x; in training in one pass (`fused_swin`)."""

    def forward(self, x: Tensor) -> Tensor:
        if learns(self, self.weight, x):
            return FusedNorm.apply(x, self.weight, self.bias, self.eps)
        return super().forward(x)


class GELU(nn.GELU):
    """nn.GELU; in training in one pass (`fused_swin`)."""

    def forward(self, x: Tensor) -> Tensor:
        return FusedGELU.apply(x) if learns(self, x, x) else super().forward(x)


class WindowAttention(nn.Module):
    """Multi-head self-attention inside windows with a learned bias per relative position.

    x: float [windows, window^2, features]; mask: [windows per picture, window^2, window^2] or None.
    """

    position_index: Tensor

    def __init__(
        self, features: int, heads: int, window: int, linear: LayerFactory, matmul: LayerFactory
    ) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = linear(features, 3 * features)
        self.proj = linear(features, features)
        self.scores = matmul()
        self.mix = matmul()
        self.position_bias = nn.Parameter(torch.zeros((2 * window - 1) ** 2, heads))
        nn.init.trunc_normal_(self.position_bias, std=0.02)
        self.register_buffer("position_index", relative_position_index(window), persistent=False)

    @property
    def bias(self) -> Tensor:
        """[heads, T, T]: the learned bias of each pair of pixels."""
        return self.position_bias[self.position_index].permute(2, 0, 1)

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        products = self.scores, self.mix
        return self.proj(window_attention(self.qkv(x), self.bias, mask, self.heads, *products))

    def fuses(self, x: Tensor) -> bool:
        """Whether `of_picture` takes x now; it multiplies in full precision."""
        plain = type(self.scores) is type(self.mix) is Matmul
        return plain and learns(self, self.position_bias, x)

    def of_picture(self, x: Tensor, window: int, shift: int) -> Tensor:
        """The same of [N, H, W, features] that is not cut up: linear layers see single pixels, and
        `FusedAttention` counts them by windows, shifted or not.
        """
        options = self.heads, window, shift, in_16_bits(x)
        return self.proj(FusedAttention.apply(self.qkv(x), self.position_bias, *options))


class SwinLayer(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x)). x: float [N, H, W, features]."""

    def __init__(
        self,
        features: int,
        heads: int,
        window: int,
        shifted: bool,
        mlp_ratio: int,
        linear: LayerFactory,
        matmul: LayerFactory,
    ) -> None:
        super().__init__()
        self.window = window
        self.shift = window // 2 if shifted else 0
        self.norm1 = LayerNorm(features)
        self.attention = WindowAttention(features, heads, window, linear, matmul)
        self.norm2 = LayerNorm(features)
        self.fc1 = linear(features, mlp_ratio * features)
        self.gelu = GELU()
        self.fc2 = linear(mlp_ratio * features, features)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        x = x + self.attend(self.norm1(x), mask)
        return x + self.fc2(self.gelu(self.fc1(self.norm2(x))))

    def fuses(self, x: Tensor) -> bool:
        """Whether attention of x runs in one pass, which needs no mask."""
        return isinstance(self.attention, WindowAttention) and self.attention.fuses(x)

    def attend(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Attention inside windows of a picture; mask: of shifted windows (None: `shift_mask`)."""
        if mask is None:
            if self.fuses(x):
                return self.attention.of_picture(x, self.window, self.shift)
            height, width = x.shape[1:3]
            mask = shift_mask(height, width, self.window, x.device).to(x.dtype)
        moved = torch.roll(x, (-self.shift, -self.shift), dims=(1, 2))
        windows = self.attention(to_windows(moved, self.window), mask if self.shift else None)
        moved = from_windows(windows, x.shape)
        return torch.roll(moved, (self.shift, self.shift), dims=(1, 2))


class SwinBlock(nn.Module):
    """Residual Swin transformer block (RSTB): s * x + conv(layers(x)).

    x: float [N, features, H, W] with H and W multiples of `window`.
    """

    def __init__(
        self,
        features: int,
        conv: LayerFactory,
        learnable_shortcut: bool,
        *,
        linear: LayerFactory,
        matmul: LayerFactory,
        layers: int,
        heads: int,
        window: int,
        mlp_ratio: int,
    ) -> None:
        super().__init__()
        self.window = window
        self.shortcut = Shortcut(learnable_shortcut)
        self.layers = nn.ModuleList(
            SwinLayer(features, heads, window, i % 2 == 1, mlp_ratio, linear, matmul)
            for i in range(layers)
        )
        self.conv = conv(features, features, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        deep = x.permute(0, 2, 3, 1)  # channels last: tokens are rows
        layers = cast("list[SwinLayer]", self.layers)
        mask = None
        if not layers[0].fuses(deep):  # one mask for all layers
            height, width = x.shape[2:]
            mask = shift_mask(height, width, self.window, x.device).to(x.dtype)
        for layer in layers:
            deep = layer(deep, mask)
        return self.shortcut(x) + self.conv(deep.permute(0, 3, 1, 2))

    def skip(self, x: Tensor) -> Tensor:
        """The block without its layers and its convolution."""
        return self.shortcut(x)


Block = Shortcut | ResidualBlock | SwinBlock
