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

QuantSR trains one set of weights at several depths. A depth is a value, not a state of the network:
`net(lr, net.plan(16))` is a pure function of its arguments. A block that a plan drops still
multiplies by its learned shortcut (that is what "skipped" means in the released code). The order in
which blocks are kept is stored with the weights (`block_order`) and set by `rank_blocks`; plans
made from one order are nested: the 8 blocks of the small network are among the middle one's 16.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import functools
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any, cast

import torch
from torch import Tensor, nn

from .blocks import Block, LayerFactory, LayerNorm, ResidualBlock, Shortcut, SwinBlock
from .collapse import tail_inside
from .config import TAIL_REACH, NetworkConfig, SwinConfig
from .layers import Matmul, QConv2d, QLinear, QMatmul, set_bits
from .quantizer import QUANTIZERS, Quantizer
from .system.errors import whole

RGB_MEAN = (0.4488, 0.4371, 0.4040)  # of DIV2K; every network of this family subtracts it
SMALL_TAIL = 2**26  # bytes that a piece of the tail may always take


@dataclass(frozen=True)
class DepthPlan:
    """`keep[i]` says whether block i runs or only its shortcut does.

    >>> DepthPlan.from_order(order=(2, 0, 1), count=2)
    DepthPlan(keep=(True, False, True))
    >>> DepthPlan.full(3).count
    3
    """

    keep: tuple[bool, ...]

    @classmethod
    def full(cls, blocks: int) -> DepthPlan:
        """All blocks."""
        return cls((True,) * blocks)

    @classmethod
    def from_order(cls, order: Sequence[int], count: int) -> DepthPlan:
        """The `count` blocks that come first in `order` (block numbers, most valuable first).

        Raises ValueError if `order` is no permutation or `count` is not in 1..len(order).
        """
        if sorted(order) != list(range(len(order))):
            raise ValueError(
                f"`order` is {tuple(order)!r}; it must name each block 0..{len(order) - 1} once."
            )
        count = whole("count", count)
        if not 1 <= count <= len(order):
            raise ValueError(
                f"`count` is {count!r}; this network has {len(order)} blocks. "
                f"Keep 1 to {len(order)} of them."
            )
        kept = set(order[:count])
        return cls(tuple(i in kept for i in range(len(order))))

    @property
    def count(self) -> int:
        """Number of blocks that run."""
        return sum(self.keep)


class QuantSR(nn.Module):
    """A super-resolution network by its configuration.

    net(lr, plan=None): lr float RGB [N, 3, H, W] in [0, 1], any H and W from 1 up
    -> sr float [N, 3, scale H, scale W], not clipped. plan: a DepthPlan; None runs all blocks.

    >>> from qsr.config import srresnet
    >>> net = QuantSR(srresnet(scale=2, blocks=1, features=4))
    >>> net(torch.zeros(1, 3, 5, 7)).shape
    torch.Size([1, 3, 10, 14])
    """

    mean: Tensor  # of RGB, [1, 3, 1, 1]
    block_order: Tensor
    norm_in: nn.Module
    norm_out: nn.Module

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
        if config.family == "swin":
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
        with self.looking_at(lr):
            for block, runs in zip(cast("Iterable[Block]", self.blocks), plan.keep, strict=True):
                deep = block(deep) if runs else block.skip(deep)
                if watch is not None:
                    watch(deep)
            return self.body_conv(self.norm_out(deep)) + shallow

    def looking_at(self, lr: Tensor) -> contextlib.AbstractContextManager:
        """The scene of a pass on lr, for quantizers that look at the picture; else nothing."""
        return QUANTIZERS[self.config.quantizer].looking_at(lr)

    def reconstruct(self, features: Tensor) -> Tensor:
        """The tail: [N, features, H, W] -> sr [N, 3, scale H, scale W], with windows' padding."""
        return self.tail(features) / self.config.pixel_range + self.mean

    def reconstruct_inside(self, features: Tensor) -> Tensor:
        """The same without the outermost lr pixels, by one convolution (`qsr.collapse`): in
        training, where gradients reach the layers of the tail, the shorter way. H, W >= 3.
        """
        sr = tail_inside(self.tail, self.config.scale, features)
        return sr / self.config.pixel_range + self.mean

    # In pieces: what `infer` asks for, here and of a packed network ---------------------------

    @property
    def pixel_bytes(self) -> int:
        """Working memory for each lr pixel at once, bytes; an upper estimate.

        In float32 values per lr pixel: what the body holds (`config.body_values`), lr, sr and the
        codes. The tail needs more, but runs in pieces (`_tail_rows`).
        """
        return 4 * (self.config.body_values + 6 * self.config.scale**2 + 32)

    def pieces(
        self, lr: Tensor, plan: DepthPlan, first: int, last: int
    ) -> Iterator[tuple[int, Tensor]]:
        """(row, sr rows from there on), in turn: what becomes of the rows [first, last) of lr."""
        features = self.features(lr, plan)
        step = self._tail_rows(*lr.shape[2:])
        for row in range(first, last, step):
            yield row, self._tail_of(features, row, min(row + step, last))

    def _tail_rows(self, rows: int, width: int) -> int:
        """Rows of features that the tail takes at once, so that it needs no more than the body did.

        Around the last pixel shuffle live 3 copies of the features at full output resolution: 3
        scale^2 for each lr pixel of a piece and its 2 TAIL_REACH rows of halo. 8 copies for each
        pixel of the strip are left to it, beside the features of the whole strip. A small picture,
        in which the halo would be most of a piece, may take SMALL_TAIL bytes instead.
        """
        config = self.config
        share = 8 * rows // (3 * config.scale**2)
        small = SMALL_TAIL // (4 * 3 * config.scale**2 * config.features * width)
        return max(1, max(share, small) - 2 * TAIL_REACH)

    def _tail_of(self, features: Tensor, first: int, last: int) -> Tensor:
        """Rows [first, last) of what the tail makes of the features of a strip."""
        top = max(0, first - TAIL_REACH)
        sr = self.reconstruct(features[:, :, top : last + TAIL_REACH])
        scale = self.config.scale
        return sr[:, :, scale * (first - top) : scale * (last - top)]


class ChannelNorm(LayerNorm):
    """LayerNorm over the channels of each pixel of [N, C, H, W]."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


def _layer_factories(config: NetworkConfig) -> tuple[LayerFactory, LayerFactory]:
    """(conv, linear) constructors for the body: plain, or quantised as the configuration says."""
    if config.bits is None:
        return nn.Conv2d, nn.Linear
    quantizer: Callable[..., Quantizer] = QUANTIZERS[config.quantizer]
    settings = {name: getattr(config, name) for name in QUANTIZERS[config.quantizer].settings}
    quantizer = functools.partial(quantizer, **settings) if settings else quantizer
    options: dict[str, Any] = {
        "bits": config.bits,
        "quantizer": quantizer,
        "per_channel": config.per_channel,
    }
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


def _make_block(config: NetworkConfig, conv: LayerFactory, linear: LayerFactory) -> Block:
    if config.family == "conv":
        return ResidualBlock(config.features, conv, config.learnable_shortcuts)
    config = cast(SwinConfig, config)
    matmul: LayerFactory = Matmul
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
    if not isinstance(lr, Tensor):
        raise TypeError(
            f"`lr` is a {type(lr).__name__}; a network takes a tensor. qsr.upscale takes pictures "
            "of other kinds."
        )
    if lr.ndim == 3:
        raise ValueError(
            f"`lr` has shape {tuple(lr.shape)}; a network takes pictures [N, 3, H, W]. "
            "Pass lr[None] for a single one."
        )
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
        scales = (cast(Tensor, block_shortcut(block).scale) for block in net.blocks)
        value = [-scale.abs().item() for scale in scales]
    else:
        value = [
            (net(lr, DepthPlan(tuple(j != i for j in range(count)))) - hr).abs().mean().item()
            for i in range(count)
        ]
    return tuple(sorted(range(count), key=lambda i: -value[i]))


def block_shortcut(block: nn.Module) -> Shortcut:
    """The Shortcut of a block, also of one that was sliced away."""
    return block if isinstance(block, Shortcut) else cast(Shortcut, block.shortcut)


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

    Of an equal network everything is copied, also if it was trained at other depths; of one of
    another scale all but the tail, which `fit_tail` can find. Else weights and biases of head,
    blocks and body_conv, and of the tail if both have one scale; shortcuts and the order of blocks
    if the source has learned them for as many blocks. Quantizers are not touched then: calibrate
    afterwards.
    A source with a half, a third, ... of the blocks gives every second, third, ... block its
    values; the last convolution of the blocks between starts FAINT, so that they change next to
    nothing yet. tail_only: body_conv and tail alone, as QuantSR's released code does.
    Raises ValueError if a part does not fit.
    """
    one_scale = net.config.scale == source.config.scale
    if _alike(net.config, source.config) and not tail_only:
        values = source.state_dict().items()
        state = {name: v for name, v in values if one_scale or not name.startswith("tail.")}
        net.load_state_dict(state, strict=one_scale)
        return
    every = 1 if tail_only else _spacing(net, source)
    parts = {"body_conv", "norm_out"} | (set() if tail_only else {"head", "blocks", "norm_in"})
    if one_scale:
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
                f"the source has {name!r} of shape {tuple(value.shape)} and this network lacks it; "
                "both must be of one family and have the same features."
            )
    net.load_state_dict(wanted, strict=False)
    for i, block in enumerate(net.blocks):
        if i % every:
            last = cast(nn.Conv2d, block.conv2 if isinstance(block, ResidualBlock) else block.conv)
            last.weight.detach().mul_(FAINT)
            nn.init.zeros_(cast(Tensor, last.bias))


def _alike(one: NetworkConfig, other: NetworkConfig) -> bool:
    """Whether two networks differ in scale and depths at most."""
    may_differ = {"scale", "depths"}
    names = {field.name for field in dataclasses.fields(one)} - may_differ
    return type(one) is type(other) and all(getattr(one, n) == getattr(other, n) for n in names)


def _spacing(net: QuantSR, source: QuantSR) -> int:
    """How many blocks of `net` there are for one of `source`."""
    mine, theirs = len(net.blocks), len(source.blocks)
    if mine % theirs:
        raise ValueError(
            f"the source has {theirs} blocks and this network {mine}; it must have as many, or a "
            "whole multiple."
        )
    return mine // theirs
