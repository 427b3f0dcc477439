"""The super-resolution network: head, body of blocks, tail.

    lr -> normalise -> head -> blocks -> body_conv -> + head's output -> tail -> sr

One class serves all four networks of the paper; they differ in their blocks:

    srresnet(scale)          residual blocks, full precision      (EDSR-baseline shape, no BN)
    quantsr_c(scale, bits)   the same, quantised, 32 blocks run at depths 32, 16 and 8
    swinir_s(scale)          Swin transformer blocks, full precision (SwinIR, lightweight)
    quantsr_t(scale, bits)   the same, quantised, 4 blocks run at depths 4, 2 and 1

What stays in full precision: the head (first convolution) and the tail (upsampler and last
convolution). The convolution after the body is quantised in C and full precision in T: that is
what the paper's Table 2 counts; the released code keeps it in full precision for C as well
(`quantize_body_conv=False`).

Depth is an argument: `net(lr, net.plan(16))`. The order in which blocks are kept is stored with
the weights (`block_order`) and set by `rank_blocks`.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import functools
import itertools
import re
from collections.abc import Callable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Literal

import torch
from torch import Tensor, nn

from .baselines import PAMS, DoReFa
from .blocks import Matmul, ResidualBlock, Shortcut, SwinBlock
from .cadyq import CADyQ, looking_at
from .depth import DepthPlan
from .layers import Bits, QConv2d, QLinear, QMatmul, set_bits, split_bits
from .quantizer import LSQ, RLQ

RGB_MEAN = (0.4488, 0.4371, 0.4040)  # of DIV2K; every network of this family subtracts it
QUANTIZERS = {"rlq": RLQ, "lsq": LSQ, "dorefa": DoReFa, "pams": PAMS, "cadyq": CADyQ}


@dataclass(frozen=True)
class NetworkConfig:
    """What both families share. Use the presets `srresnet`, `quantsr_c`, `swinir_s`, `quantsr_t`.

    Raises ValueError on construction if a field breaks its rule.
    """

    scale: int = 4  # 2, 3 or 4
    bits: Bits | None = None  # one width or (weights, activations); None: full precision
    layer_bits: tuple[tuple[str, Bits], ...] = ()  # (layer name or pattern, bits) of exceptions
    blocks: int = 16
    depths: tuple[int, ...] = ()  # block counts trained together, deepest first; () = (blocks,)
    features: int = 64
    quantizer: Literal["rlq", "lsq", "dorefa", "pams", "cadyq"] = "rlq"
    sharpness: float = 1.0  # phi's k (rlq)
    per_channel: bool = False  # one weight step size per output channel
    quantize_body_conv: bool = True
    learnable_shortcuts: bool = False
    dropped: tuple[int, ...] = ()  # blocks sliced away: only their shortcut is left

    def __post_init__(self) -> None:
        # Lists become tuples, so that a config read from JSON equals the one that was written.
        for name in ("depths", "dropped"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        object.__setattr__(self, "bits", _hashable(self.bits))
        layer_bits = tuple((name, _hashable(bits)) for name, bits in self.layer_bits)
        object.__setattr__(self, "layer_bits", layer_bits)
        object.__setattr__(self, "depths", self.depths or (self.blocks,))
        _require(self.scale in (2, 3, 4), "scale", self.scale, "is 2, 3 or 4")
        _require(self.blocks in range(1, 1025), "blocks", self.blocks, "is 1 to 1024")
        _require(self.features in range(1, 4097), "features", self.features, "is 1 to 4096")
        known = ", ".join(QUANTIZERS)
        _require(self.quantizer in QUANTIZERS, "quantizer", self.quantizer, f"is one of {known}")
        for bits in [] if self.bits is None else [self.bits, *dict(self.layer_bits).values()]:
            least = (2, 6 if self.quantizer == "cadyq" else 2)  # CADyQ's inputs: the widest of 3
            rule = f"has widths from {least[0]} (weights) and {least[1]} (inputs) to 8"
            holds = all(
                low <= width <= 8 for low, width in zip(least, split_bits(bits), strict=True)
            )
            _require(holds, "bits", bits, rule)
        _require(
            self.bits is not None or not self.layer_bits,
            "layer_bits",
            self.layer_bits,
            "is empty in full precision",
        )
        falls = all(a > b for a, b in itertools.pairwise((*self.depths, 0)))
        _require(
            self.depths[0] == self.blocks and falls,
            "depths",
            self.depths,
            f"starts with all {self.blocks} blocks and falls, each 1 or more",
        )
        _require(
            set(self.dropped) < set(range(self.blocks)),
            "dropped",
            self.dropped,
            f"names some, not all, of the blocks 0..{self.blocks - 1}",
        )


@dataclass(frozen=True)
class ConvConfig(NetworkConfig):
    """SRResNet and QuantSR-C: residual blocks of two 3x3 convolutions."""

    @property
    def pixel_range(self) -> float:
        return 255.0  # features of size 1 to 100, as the released code

    @property
    def window(self) -> int:
        return 1


@dataclass(frozen=True)
class SwinConfig(NetworkConfig):
    """SwinIR_S and QuantSR-T: residual Swin transformer blocks (RSTB)."""

    features: int = 60
    quantize_body_conv: bool = False
    layers: int = 6  # per block
    heads: int = 6
    window: int = 8
    mlp_ratio: int = 2
    attention_bits: Bits | None = None  # of q.k and probabilities.v; None as in the paper

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "attention_bits", _hashable(self.attention_bits))
        _require(
            self.bits is None or self.quantizer != "cadyq",
            "quantizer",
            self.quantizer,
            "is another one for Swin blocks: CADyQ is made for convolutions",
        )
        for width in [] if self.attention_bits is None else split_bits(self.attention_bits):
            _require(
                width in range(2, 9), "attention_bits", self.attention_bits, "has widths 2 to 8"
            )
        _require(
            self.attention_bits is None or not QUANTIZERS[self.quantizer].narrow,
            "attention_bits",
            self.attention_bits,
            f"is None with {self.quantizer}: its kernel takes the whole range of two's complement",
        )
        for name in ("layers", "heads", "mlp_ratio"):
            _require(getattr(self, name) >= 1, name, getattr(self, name), "is 1 or more")
        _require(
            self.features % self.heads == 0,
            "features",
            self.features,
            f"is a multiple of heads ({self.heads})",
        )
        _require(
            self.window >= 2 and self.window % 2 == 0, "window", self.window, "is even, 2 or more"
        )

    @property
    def pixel_range(self) -> float:
        return 1.0


def _hashable(bits: Bits | list | None) -> Bits | None:
    return bits if bits is None or isinstance(bits, int) else tuple(bits)


def _require(holds: bool, name: str, value: object, rule: str) -> None:
    if not holds:
        raise ValueError(f"`{name}` is {value!r}; it {rule}. Change the configuration.")


def srresnet(scale: int = 4, blocks: int = 16, **changes) -> ConvConfig:
    """SRResNet in full precision as the paper's backbone: 1,369,859 parameters at x2."""
    return ConvConfig(scale=scale, blocks=blocks, **changes)


def quantsr_c(
    scale: int = 4,
    bits: Bits = 4,
    blocks: int = 32,
    depths: tuple[int, ...] | None = None,
    **changes,
) -> ConvConfig:
    """QuantSR-C: 32 residual blocks, quantised, also run with 16 and 8 of them.

    >>> quantsr_c(scale=2, bits=2).depths
    (32, 16, 8)
    """
    return ConvConfig(
        scale=scale,
        bits=bits,
        blocks=blocks,
        depths=_halvings(blocks, depths),
        **{"learnable_shortcuts": True, **changes},
    )


def swinir_s(scale: int = 4, blocks: int = 4, **changes) -> SwinConfig:
    """SwinIR_S in full precision: 929,628 parameters at x4."""
    return SwinConfig(scale=scale, blocks=blocks, **changes)


def quantsr_t(
    scale: int = 4,
    bits: Bits = 4,
    blocks: int = 4,
    depths: tuple[int, ...] | None = None,
    **changes,
) -> SwinConfig:
    """QuantSR-T: 4 Swin transformer blocks, quantised, also run with 2 and 1 of them."""
    return SwinConfig(
        scale=scale,
        bits=bits,
        blocks=blocks,
        depths=_halvings(blocks, depths),
        **{"learnable_shortcuts": True, **changes},
    )


PRESET_NAME = re.compile(
    r"(srresnet|swinir-s)-x(\d)|(quantsr-[ct])-x(\d)-w(\d+)a(\d+)(-attn)?", re.ASCII
)


def preset(name: str, **changes) -> NetworkConfig:
    """The configuration that a model name stands for. `changes` override its fields.

    Names: srresnet-x2, swinir-s-x4, quantsr-c-x4-w4a4, quantsr-t-x2-w2a2, and with -attn when the
    attention products are quantised too. Raises ValueError for other names.

    >>> preset("quantsr-c-x2-w2a4").bits
    (2, 4)
    """
    match = PRESET_NAME.fullmatch(name)
    if match is None:
        raise ValueError(
            f"no preset is called {name!r}; names are srresnet-xS, swinir-s-xS, quantsr-c-xS-wWaA "
            "and quantsr-t-xS-wWaA[-attn], for example quantsr-c-x4-w4a4."
        )
    plain, plain_scale, quantised, scale, weight_bits, activation_bits, attention = match.groups()
    if plain:
        return (srresnet if plain == "srresnet" else swinir_s)(int(plain_scale), **changes)
    bits = (int(weight_bits), int(activation_bits))
    bits = bits[0] if bits[0] == bits[1] else bits
    if quantised == "quantsr-t":
        if attention:
            changes = {"attention_bits": int(activation_bits), **changes}
        return quantsr_t(int(scale), bits, **changes)
    if attention:
        raise ValueError(f"{name!r}: QuantSR-C has no attention; leave -attn out.")
    return quantsr_c(int(scale), bits, **changes)


def _halvings(blocks: int, depths: tuple[int, ...] | None) -> tuple[int, ...]:
    """The paper's three depths: all blocks, half of them, a quarter."""
    if depths is not None:
        return depths
    return tuple(n for n in (blocks, blocks // 2, blocks // 4) if n >= 1)


class QuantSR(nn.Module):
    """A super-resolution network by its configuration.

    net(lr, plan=None): lr float RGB [N, 3, H, W] in [0, 1], any H and W from 1 up
    -> sr float [N, 3, scale H, scale W], not clipped. plan: a DepthPlan; None runs all blocks.

    >>> net = QuantSR(srresnet(scale=2, blocks=1, features=4))
    >>> net(torch.zeros(1, 3, 5, 7)).shape
    torch.Size([1, 3, 10, 14])
    """

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        self.config = config
        features = config.features
        conv, linear = _layer_factories(config)
        body_conv = conv if config.quantize_body_conv else nn.Conv2d
        self.head = nn.Conv2d(3, features, 3, padding=1)
        self.blocks = nn.ModuleList(
            Shortcut(config.learnable_shortcuts)
            if i in config.dropped
            else _make_block(config, conv, linear)
            for i in range(config.blocks)
        )
        self.body_conv = body_conv(features, features, 3, padding=1)
        if isinstance(config, SwinConfig):
            self.norm_in, self.norm_out = ChannelNorm(features), ChannelNorm(features)
            self.tail = nn.Sequential(
                nn.Conv2d(features, 3 * config.scale**2, 3, padding=1),
                nn.PixelShuffle(config.scale),
            )
            self.apply(_init_linear)
        else:
            self.norm_in, self.norm_out = nn.Identity(), nn.Identity()
            self.tail = _upsampler(features, config.scale)
        _set_layer_bits(self, config)
        self.register_buffer("mean", torch.tensor(RGB_MEAN).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("block_order", torch.arange(config.blocks))

    @property
    def order(self) -> tuple[int, ...]:
        """Block numbers, the most valuable first."""
        return tuple(self.block_order.tolist())

    def plan(self, blocks: int | None = None) -> DepthPlan:
        """The depth plan that keeps the `blocks` most valuable blocks; None keeps all."""
        count = self.config.blocks if blocks is None else blocks
        return DepthPlan.from_order(self.order, count)

    def forward(self, lr: Tensor, plan: DepthPlan | None = None) -> Tensor:
        height, width = (self.config.scale * n for n in lr.shape[-2:])
        return self.reconstruct(self.features(lr, plan))[:, :, :height, :width]

    def features(
        self,
        lr: Tensor,
        plan: DepthPlan | None = None,
        watch: Callable[[Tensor], object] | None = None,
    ) -> Tensor:
        """Head and body: lr [N, 3, H, W] -> [N, features, H, W], H and W up to whole windows.

        watch: called with what each block returns, for those who want to look inside.
        """
        check_pictures(lr)
        plan = plan or DepthPlan.full(len(self.blocks))
        _check_plan(self, plan)
        x = (lr - self.mean) * self.config.pixel_range
        shallow = self.head(reflect_to_multiple(x, self.config.window))
        deep = self.norm_in(shallow)
        with looking_at(lr) if self.config.quantizer == "cadyq" else contextlib.nullcontext():
            for block, runs in zip(self.blocks, plan.keep, strict=True):
                deep = block(deep) if runs else block.skip(deep)
                if watch is not None:
                    watch(deep)
            return self.body_conv(self.norm_out(deep)) + shallow

    def reconstruct(self, features: Tensor) -> Tensor:
        """The tail: [N, features, H, W] -> sr [N, 3, scale H, scale W], with windows' padding."""
        return self.tail(features) / self.config.pixel_range + self.mean


class ChannelNorm(nn.LayerNorm):
    """LayerNorm over the channels of each pixel of [N, C, H, W]."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


def _layer_factories(config: NetworkConfig):
    """(conv, linear) constructors for the body: plain, or quantised as the configuration says."""
    if config.bits is None:
        return nn.Conv2d, nn.Linear
    quantizer = QUANTIZERS[config.quantizer]
    if config.quantizer == "rlq":
        quantizer = functools.partial(quantizer, sharpness=config.sharpness)
    options = {"bits": config.bits, "quantizer": quantizer, "per_channel": config.per_channel}
    return functools.partial(QConv2d, **options), functools.partial(QLinear, **options)


def _set_layer_bits(net: nn.Module, config: NetworkConfig) -> None:
    """Give the layers that config.layer_bits names their widths. Raises ValueError for no match."""
    layers = {n: m for n, m in net.named_modules() if isinstance(m, (QConv2d, QLinear, QMatmul))}
    for pattern, bits in config.layer_bits:
        matches = [layer for name, layer in layers.items() if fnmatchcase(name, pattern)]
        if not matches and not config.dropped:  # a sliced network may have lost them
            raise ValueError(
                f"`layer_bits` has {pattern!r}, which no quantised layer is called; names are, for "
                f"example, {', '.join(list(layers)[:3])}."
            )
        for layer in matches:
            set_bits(layer, bits)


def _make_block(config: NetworkConfig, conv, linear) -> nn.Module:
    if not isinstance(config, SwinConfig):
        return ResidualBlock(config.features, conv, config.learnable_shortcuts)
    matmul = Matmul
    if config.attention_bits is not None:
        quantizer = QUANTIZERS[config.quantizer]
        matmul = functools.partial(QMatmul, bits=config.attention_bits, quantizer=quantizer)
    return SwinBlock(
        config.features,
        conv,
        config.learnable_shortcuts,
        linear=linear,
        matmul=matmul,
        layers=config.layers,
        heads=config.heads,
        window=config.window,
        mlp_ratio=config.mlp_ratio,
    )


def _upsampler(features: int, scale: int) -> nn.Sequential:
    """Convolution and pixel shuffle (twice for x4), then the last convolution. No activation."""
    layers: list[nn.Module] = []
    for factor in (2, 2) if scale == 4 else (scale,):
        layers += [nn.Conv2d(features, features * factor**2, 3, padding=1), nn.PixelShuffle(factor)]
    return nn.Sequential(*layers, nn.Conv2d(features, 3, 3, padding=1))


def _init_linear(module: nn.Module) -> None:
    """SwinIR's start: small normal weights in linear layers, zero biases."""
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def reflect_to_multiple(x: Tensor, multiple: int) -> Tensor:
    """Pad right and bottom by reflection to a multiple; works for pictures of any size.

    The reflection goes back and forth where a picture is smaller than its padding, which
    F.pad refuses: 3 pixels abc become abcbabcb.
    """
    for dim in (2, 3):
        length = x.shape[dim]
        padded = -(-length // multiple) * multiple
        if padded > length:
            period = max(1, 2 * (length - 1))
            position = torch.arange(padded, device=x.device) % period
            x = x.index_select(dim, torch.minimum(position, period - position) % length)
    return x


def _check_plan(net: QuantSR, plan: DepthPlan) -> None:
    if len(plan.keep) != len(net.blocks):
        raise ValueError(
            f"the plan speaks of {len(plan.keep)} blocks and this network has {len(net.blocks)}; "
            "make it with net.plan(count)."
        )


def check_pictures(lr: Tensor) -> None:
    """Raise ValueError or TypeError unless lr is float [N, 3, H, W], none of the sizes 0."""
    if lr.ndim != 4 or lr.shape[1] != 3 or 0 in lr.shape:
        raise ValueError(
            f"`lr` has shape {tuple(lr.shape)}; a network takes RGB pictures [N, 3, H, W], none of "
            "the sizes 0. Repeat a grey picture to three channels."
        )
    if not lr.is_floating_point():
        raise TypeError(
            f"`lr` is {lr.dtype}; a network takes floating point RGB in [0, 1]. "
            "Divide 8-bit pictures by 255."
        )


# Depth -------------------------------------------------------------------------------------------


@torch.no_grad()
def rank_blocks(
    net: QuantSR, lr: Tensor | None = None, hr: Tensor | None = None
) -> tuple[int, ...]:
    """Block numbers, the most valuable first.

    Without pictures, by the learned shortcut as in the paper: a small |s| means that the block
    changes its input a lot, so it comes first. (The paper does not state the direction; this is
    the reading under which a nearly-identity block is dropped first.)
    With lr [N, 3, H, W] and hr [N, 3, scale H, scale W] in [0, 1]: by measured sensitivity, the
    mean absolute error of the network without the block; the block that is missed most comes first.

    Store the result: `net.block_order.copy_(torch.tensor(rank_blocks(net)))`.
    """
    count = len(net.blocks)
    if lr is None:
        if not net.config.learnable_shortcuts:
            raise ValueError(
                "this network's shortcuts are fixed at 1, so they rank nothing; "
                "pass lr and hr to rank by measured sensitivity."
            )
        value = [-block_shortcut(block).scale.abs().item() for block in net.blocks]
    else:
        value = [
            (net(lr, DepthPlan(tuple(j != i for j in range(count)))) - hr).abs().mean().item()
            for i in range(count)
        ]
    return tuple(sorted(range(count), key=lambda i: -value[i]))


def block_shortcut(block: nn.Module) -> Shortcut:
    """The Shortcut of a block, also of one that was sliced away."""
    return block if isinstance(block, Shortcut) else block.shortcut


def slice_depth(net: QuantSR, plan: DepthPlan) -> QuantSR:
    """A static, smaller copy of `net` that holds only the blocks of `plan`.

    slice_depth(net, plan)(lr) equals net(lr, plan) exactly: the dropped blocks stay as their
    shortcuts, a scalar each. It has one depth, the one it was cut to. Raises ValueError if the plan
    is for another number of blocks, or keeps none.
    """
    _check_plan(net, plan)
    # A block that an earlier cut took away stays away, whatever this plan says.
    dropped = tuple(i for i, runs in enumerate(plan.keep) if not runs or i in net.config.dropped)
    config = dataclasses.replace(net.config, dropped=dropped, depths=(net.config.blocks,))
    sliced = copy.deepcopy(net)
    sliced.config = config
    for i in dropped:
        sliced.blocks[i] = block_shortcut(sliced.blocks[i])
    return sliced


# Weights of a new block's last convolution over those of an ordinary start. Not zero: all codes of
# zeros are 0, and where the learned step grew faster than the weights, whole blocks stayed dead.
FAINT = 0.01


def load_weights(net: QuantSR, source: QuantSR, tail_only: bool = False) -> None:
    """Start `net` from the values of another network, quantised or not.

    Of an equal network everything is copied. Else weights and biases of head, blocks and body_conv,
    and of the tail if both have one scale; shortcuts and the order of blocks if the source has
    learned them for as many blocks. Quantizers are not touched then: calibrate afterwards.
    A source with a half, a third, ... of the blocks gives every second, third, ... block its
    values; the last convolution of the blocks between starts FAINT, so that they change next to
    nothing yet. tail_only: body_conv and tail alone, as QuantSR's released code does.
    Raises ValueError if a part does not fit.
    """
    if net.config == source.config and not tail_only:
        net.load_state_dict(source.state_dict())
        return
    every = 1 if tail_only else _spacing(net, source)
    parts = {"body_conv", "norm_out"} | (set() if tail_only else {"head", "blocks", "norm_in"})
    if net.config.scale == source.config.scale:
        parts.add("tail")
    ordered = source.config.learnable_shortcuts and net.config.learnable_shortcuts and every == 1
    if ordered and not tail_only:
        parts.add("block_order")
    wanted = {}
    for name, value in source.state_dict().items():
        part, *rest = name.split(".")
        if part not in parts or "quantizer" in name or ("shortcut" in name and not ordered):
            continue
        if part == "blocks":
            name = ".".join([part, str(every * int(rest[0])), *rest[1:]])
        wanted[name] = value
    own = net.state_dict()
    for name, value in wanted.items():
        if name not in own or own[name].shape != value.shape:
            raise ValueError(
                f"the source has {name!r} of shape {tuple(value.shape)} and this network has not; "
                "both must be of one family and have the same features."
            )
    net.load_state_dict(wanted, strict=False)
    for i, block in enumerate(net.blocks):
        if i % every:
            last = block.conv2 if isinstance(block, ResidualBlock) else block.conv
            last.weight.detach().mul_(FAINT)
            nn.init.zeros_(last.bias)


def _spacing(net: QuantSR, source: QuantSR) -> int:
    """How many blocks of `net` there are for one of `source`."""
    mine, theirs = len(net.blocks), len(source.blocks)
    if mine % theirs:
        raise ValueError(
            f"the source has {theirs} blocks and this network {mine}; it must have as many, or a "
            "whole multiple."
        )
    return mine // theirs
