"""Configurations of networks: frozen values, checked when they are made.

A network is of one of two families, which differ in their blocks:

    ConvConfig    residual blocks        SRResNet and QuantSR-C     srresnet, quantsr_c
    SwinConfig    Swin transformers      SwinIR_S and QuantSR-T     swinir_s, quantsr_t

The four functions are the paper's networks; `preset` finds them by a model's name. What depends on
the family stands in the configuration, as a property or method: nobody else asks which it is.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar, cast

from .layers import Bits, split_bits
from .quantizer import QUANTIZERS
from .system.errors import whole

TAIL_REACH = 2  # lr rows that a tail sees beyond its own: its stages see 1, 1/2 and 1/4 of a row

# Networks -----------------------------------------------------------------------------------------


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
    quantizer: str = "rlq"  # a name of `quantizer.QUANTIZERS`
    sharpness: float = 1.0  # phi's k (rlq)
    per_channel: bool = False  # one weight step size per output channel
    quantize_body_conv: bool = True
    learnable_shortcuts: bool = False
    dropped: tuple[int, ...] = ()  # blocks sliced away: only their shortcut is left

    family: ClassVar[str]  # of the blocks, "conv" or "swin"

    @property
    def window(self) -> int:
        """Side of the windows that pictures are padded to, lr pixels; 1 without windows."""
        raise NotImplementedError

    @property
    def pixel_range(self) -> float:
        """The value of a white pixel inside the network."""
        raise NotImplementedError

    @property
    def body_values(self) -> int:
        """Values that the body holds for each lr pixel, measured."""
        raise NotImplementedError

    def reach(self, blocks: int) -> int:
        """Rows above, and below, that a row of sr depends on with so many blocks; lr pixels."""
        raise NotImplementedError

    @property
    def body_layers(self) -> int:
        """Layers in the blocks that are not sliced away."""
        raise NotImplementedError

    @property
    def body_weights(self) -> int:
        """Weights of these layers."""
        raise NotImplementedError

    def __post_init__(self) -> None:
        self._freeze()
        self._check_sizes()
        self._check_bits()
        self._check_depths()

    def _freeze(self) -> None:
        """Lists become tuples, so that a config read from JSON equals the one that was written, and
        whole numbers of any kind (NumPy's, say) become int. Everything else is refused here.
        """
        for name in ("scale", "blocks", "features"):
            self._set(name, _whole(name, getattr(self, name)))
        self._set("bits", _widths("bits", self.bits))
        for name in ("depths", "dropped"):
            self._set(name, tuple(_whole(name, n) for n in _several(name, getattr(self, name))))
        self._set("depths", self.depths or (self.blocks,))
        pairs = [tuple(_several("layer_bits", p)) for p in _several("layer_bits", self.layer_bits)]
        for pair in pairs:
            holds = len(pair) == 2 and isinstance(pair[0], str)
            _require(holds, "layer_bits", pair, "has pairs of a layer's name and its bits")
        self._set("layer_bits", tuple((name, _widths("layer_bits", bits)) for name, bits in pairs))
        for name in ("per_channel", "quantize_body_conv", "learnable_shortcuts"):
            value = getattr(self, name)
            _require(isinstance(value, bool), name, value, "is True or False")

    def _set(self, name: str, value: object) -> None:
        object.__setattr__(self, name, value)

    def _check_sizes(self) -> None:
        _require(self.scale in (2, 3, 4), "scale", self.scale, "is 2, 3 or 4")
        _require(self.blocks in range(1, 1025), "blocks", self.blocks, "is 1 to 1024")
        _require(self.features in range(1, 4097), "features", self.features, "is 1 to 4096")
        number = isinstance(self.sharpness, (int, float)) and 0 <= self.sharpness < math.inf
        _require(number, "sharpness", self.sharpness, "is a number, 0 or more")

    def _check_bits(self) -> None:
        known = ", ".join(QUANTIZERS)
        named = isinstance(self.quantizer, str) and self.quantizer in QUANTIZERS
        _require(named, "quantizer", self.quantizer, f"is one of {known}")
        least = QUANTIZERS[self.quantizer].least_bits
        rule = f"has widths from {least[0]} (weights) and {least[1]} (inputs) to 8"
        for bits in [] if self.bits is None else [self.bits, *dict(self.layer_bits).values()]:
            widths = zip(least, split_bits(bits), strict=True)
            _require(all(low <= width <= 8 for low, width in widths), "bits", bits, rule)
        holds = self.bits is not None or not self.layer_bits
        _require(holds, "layer_bits", self.layer_bits, "is empty in full precision")
        some = len(self.layer_bits) <= 1024
        _require(some, "layer_bits", f"a list of {len(self.layer_bits)}", "has at most 1024 pairs")

    def _check_depths(self) -> None:
        falls = all(a > b for a, b in itertools.pairwise((*self.depths, 0)))
        rule = f"starts with all {self.blocks} blocks and falls, each 1 or more"
        _require(self.depths[0] == self.blocks and falls, "depths", self.depths, rule)
        some = set(self.dropped) < set(range(self.blocks))
        rule = f"names some, not all, of the blocks 0..{self.blocks - 1}"
        _require(some, "dropped", self.dropped, rule)


@dataclass(frozen=True)
class ConvConfig(NetworkConfig):
    """SRResNet and QuantSR-C: residual blocks of two 3x3 convolutions."""

    family = "conv"

    @property
    def pixel_range(self) -> float:
        return 255.0  # features of size 1 to 100, as the released code

    @property
    def window(self) -> int:
        return 1

    @property
    def body_values(self) -> int:
        """Values that the body holds for each lr pixel, measured: 10 copies of the features."""
        return 10 * self.features

    @property
    def body_layers(self) -> int:
        """Layers in the blocks that are not sliced away: two 3x3 convolutions in each."""
        return 2 * (self.blocks - len(set(self.dropped)))

    @property
    def body_weights(self) -> int:
        """Weights of these layers."""
        return self.body_layers * 9 * self.features**2

    def reach(self, blocks: int) -> int:
        """Rows above, and below, that a row of sr depends on with so many blocks; lr pixels.

        A 3x3 convolution sees a row further: the head, two in each block, body_conv; then the tail.

        >>> [quantsr_c().reach(n) for n in (32, 16, 8)]
        [68, 36, 20]
        """
        return 1 + 2 * blocks + 1 + TAIL_REACH


@dataclass(frozen=True)
class SwinConfig(NetworkConfig):
    """SwinIR_S and QuantSR-T: residual Swin transformer blocks (RSTB)."""

    family = "swin"

    features: int = 60
    quantize_body_conv: bool = False
    layers: int = 6  # per block
    heads: int = 6
    window: int = 8
    mlp_ratio: int = 2
    attention_bits: Bits | None = None  # of q.k and probabilities.v; None as in the paper

    def __post_init__(self) -> None:
        super().__post_init__()
        self._set("attention_bits", _widths("attention_bits", self.attention_bits))
        for name, most in (("layers", 64), ("heads", 256), ("mlp_ratio", 64)):
            number = _whole(name, getattr(self, name))
            _require(number in range(1, most + 1), name, number, f"is 1 to {most}")
            self._set(name, number)
        self._set("window", _whole("window", self.window))
        _require(
            self.bits is None or not QUANTIZERS[self.quantizer].convolutions_only,
            "quantizer",
            self.quantizer,
            f"is another one here: {QUANTIZERS[self.quantizer].__name__} is made for convolutions",
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
        _require(
            self.features % self.heads == 0,
            "features",
            self.features,
            f"is a multiple of heads ({self.heads})",
        )
        _require(self.window in range(2, 33, 2), "window", self.window, "is even, 2 to 32")

    @property
    def pixel_range(self) -> float:
        return 1.0

    @property
    def body_values(self) -> int:
        """Values that the body holds for each lr pixel, measured: 14 copies of the features and 5
        of a layer's attention scores, window^2 a head.
        """
        return 14 * self.features + 5 * self.heads * self.window**2

    @property
    def body_layers(self) -> int:
        """Layers in the blocks that are not sliced away: qkv, proj and the two of the MLP in each
        transformer layer, and a 3x3 convolution at the end of the block.
        """
        return (self.blocks - len(set(self.dropped))) * (4 * self.layers + 1)

    @property
    def body_weights(self) -> int:
        """Weights of these layers."""
        of_block = self.layers * (4 + 2 * self.mlp_ratio) + 9
        return (self.blocks - len(set(self.dropped))) * of_block * self.features**2

    def reach(self, blocks: int) -> int:
        """Rows above, and below, that a row of sr depends on with so many blocks; lr pixels.

        Found by walking backwards through the layers: a 3x3 convolution adds a row, a window
        attention widens the rows to whole windows. Rounded up to whole windows, so that strips cut
        a network between windows.

        >>> quantsr_t().reach(4)
        104
        """
        window = self.window
        first = -2  # the tail's convolution and body_conv
        for _ in range(blocks):
            first -= 1  # the block's convolution
            for layer in reversed(range(self.layers)):
                start = window // 2 if layer % 2 else 0  # shifted windows begin here
                first = (first - start) // window * window + start
        first -= 1  # the head
        return math.ceil(-first / window) * window


def _whole(name: str, value: object) -> int:
    """`whole`, whose refusal is a ValueError here, as of every field."""
    try:
        return whole(name, value)
    except TypeError:
        raise ValueError(
            f"`{name}` is {value!r}; it is a whole number. Change the configuration."
        ) from None


def _several(name: str, value: object) -> Iterable:
    """`value`, if it is a list or a tuple."""
    _require(isinstance(value, (list, tuple)), name, value, "is a list")
    return cast(Iterable, value)


def _widths(name: str, bits: object) -> Bits | None:
    """A width, a pair of widths, or None."""
    if not isinstance(bits, (list, tuple)):
        return None if bits is None else _whole(name, bits)
    _require(len(bits) == 2, name, bits, "is one width or (weights, activations)")
    return _whole(name, bits[0]), _whole(name, bits[1])


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
    widths = (int(weight_bits), int(activation_bits))
    bits = widths[0] if widths[0] == widths[1] else widths
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
    blocks = _whole("blocks", blocks)
    return tuple(n for n in (blocks, blocks // 2, blocks // 4) if n >= 1)
