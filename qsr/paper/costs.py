"""What a network costs: parameters, multiply-accumulates and bytes, and who counted how.

"88 % fewer operations" means nothing until one knows which operations were counted, at which scale,
and what a 4-bit multiplication weighs. So this module counts in two steps. First it walks the real
network: a forward pass without data (torch's meta device) gives one `Layer` row for each module
that owns parameters or multiplies. Then a rule, a small pure function, sums the rows:

    printed     Table 2 of the paper (QuantSR supplement), cell for cell. Its caption says x4; its
                numbers are those of the x2 network. A 4-bit value counts 1/8, a 2-bit one 1/128.
    stated      the rule in the text of the supplement, b/32, on the same network and layers
    honest      the scale asked for, every parameter, every product: weights at b bits, all else
                (biases, step sizes, tau, shortcuts, norms, position tables) at 32; attention's
                products are counted too
    collapsed   honest, with the tail of SRResNet (upsampler and last convolution, no activation
                between them) as the single 5x5 convolution that it equals away from the border

Parameters and operations are given in units of 32 bit: a 4-bit weight is 1/8 parameter, a product
of 4-bit codes 1/8 operation. That is a convention, not a time: how fast a product runs depends on
the kernel. Nobody counts normalisation, softmax, GELU, quantisation itself, or (but for the
paper's convolutions) the addition of biases. Bytes are those of the numbers themselves; the packed
format rounds channels up to whole 64-bit words.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from ..backbone import QuantSR
from ..config import NetworkConfig, SwinConfig
from ..layers import Matmul, QConv2d, QLinear, QMatmul
from ..quantizer import Quantizer

Rule = Literal["printed", "stated", "honest", "collapsed"]
RULES: tuple[Rule, ...] = get_args(Rule)
PRINTED_FACTORS = {32: 1, 4: 1 / 8, 2: 1 / 128}  # 1/128 = 1/8 * 1/16; the text says 2/32 = 1/16


@dataclass(frozen=True)
class Layer:
    """One row of the table that every rule sums.

    kind: "conv", "linear", "product" (of two activations), "other" (norms, shortcuts, tables).
    weights, biases, others: numbers of parameters; others are steps, tau, norms, shortcuts, tables.
    macs: multiply-accumulates for one picture, additions of biases not among them.
    weight_bits, activation_bits: of the two factors of a product; 32 is full precision.
    """

    name: str
    kind: Literal["conv", "linear", "product", "other"]
    weights: int = 0
    biases: int = 0
    others: int = 0
    macs: int = 0
    weight_bits: int = 32
    activation_bits: int = 32

    @property
    def bits(self) -> int:
        """What a product of this layer is charged: the wider of its two factors."""
        return max(self.weight_bits, self.activation_bits)

    @property
    def quantised(self) -> bool:
        return self.bits < 32


@dataclass(frozen=True)
class Complexity:
    """The cost of a network for one picture, under one rule.

    parameters: in units of 32 bit; ops: multiply-accumulates in units of 32 bit, both as the rule
    weighs them. layers: the rows that were summed.
    """

    rule: Rule
    parameters: float
    ops: float
    layers: tuple[Layer, ...]

    @property
    def bytes(self) -> int:
        """Size of the parameters: 4 * parameters, rounded up."""
        return math.ceil(4 * self.parameters)

    @property
    def elements(self) -> int:
        """How many numbers the rows hold, of whatever width."""
        return sum(layer.weights + layer.biases + layer.others for layer in self.layers)

    @property
    def float_macs(self) -> int:
        """Multiply-accumulates on floats."""
        return sum(layer.macs for layer in self.layers if not layer.quantised)

    @property
    def quantised_macs(self) -> int:
        """Multiply-accumulates on codes."""
        return sum(layer.macs for layer in self.layers if layer.quantised)


def complexity(
    config: NetworkConfig,
    input: tuple[int, int] = (256, 256),
    rule: Rule = "honest",
    blocks: int | None = None,
) -> Complexity:
    """The cost of the network `config` for one low-resolution picture under a counting rule.

    input: (height, width) of the picture in pixels, before enlargement. rule: see the module.
    blocks: a depth variant that runs so many blocks; the others are sliced away (`slice_depth`),
    their shortcuts stay. None: all blocks. Under "printed" and "stated" the scale is always 2.
    Raises ValueError for an unknown rule, a size below 1, more blocks than there are, and bits
    that the rule does not know (printed: 2 and 4).

    >>> from qsr import quantsr_c, srresnet
    >>> complexity(srresnet(scale=2)).elements
    1369859
    >>> cost = complexity(quantsr_c(bits=4), rule="printed", blocks=16)
    >>> f"{cost.parameters / 1e3:.0f} K, {cost.ops / 1e9:.1f} G"
    '303 K, 20.2 G'
    """
    if rule not in RULES:
        raise ValueError(f"`rule` is {rule!r}; the rules are {', '.join(RULES)}. Choose one.")
    sliced = _at_depth(config, blocks)
    input = tuple(input)  # type: ignore[assignment]  # layer_table says if these are not two
    if rule in ("printed", "stated"):
        factor = _printed_factor if rule == "printed" else _stated_factor
        return _as_in_table_2(rule, sliced, input, factor)
    layers = layer_table(sliced, input)
    if rule == "collapsed":
        layers = collapse_tail(layers, config)
    parameters = sum(x.weights * x.weight_bits / 32 + x.biases + x.others for x in layers)
    ops = sum(layer.macs * layer.bits / 32 for layer in layers)
    return Complexity(rule, parameters, ops, layers)


def _at_depth(config: NetworkConfig, blocks: int | None) -> NetworkConfig:
    """The configuration of a sliced network; which blocks go makes no difference to the cost."""
    if blocks is None:
        return config
    running = [i for i in range(config.blocks) if i not in config.dropped]
    if not 1 <= blocks <= len(running):
        raise ValueError(
            f"`blocks` is {blocks!r}; this network has {len(running)}. "
            f"Count a variant of 1 to {len(running)} blocks."
        )
    dropped = (*config.dropped, *running[blocks:])
    return replace(config, dropped=dropped, depths=(config.blocks,))


# The table ---------------------------------------------------------------------------------------


@functools.lru_cache(maxsize=64)
def layer_table(config: NetworkConfig, input: tuple[int, int] = (256, 256)) -> tuple[Layer, ...]:
    """The rows of a network, from its modules and one forward pass without data.

    Each parameter is in exactly one row. input: (height, width) of the picture in pixels.

    >>> from qsr import srresnet
    >>> [layer.name for layer in layer_table(srresnet(scale=2, blocks=1), (8, 8))]
    ['head', 'blocks.0.conv1', 'blocks.0.conv2', 'body_conv', 'tail.0', 'tail.2']
    """
    if len(input) != 2 or min(input) < 1:
        raise ValueError(
            f"`input` is {input!r}; it is (height, width) of a picture, 1 or more each."
        )
    macs: dict[nn.Module, int] = {}

    def count(module: nn.Module, args: tuple[Tensor, ...], out: Tensor) -> None:
        # Each output value is a sum over one row of the weights, or of the left factor.
        weight = getattr(module, "weight", None)
        terms = args[0].shape[-1] if weight is None else weight[0].numel()
        macs[module] = macs.get(module, 0) + terms * out.numel()

    with torch.device("meta"), torch.no_grad():
        net = QuantSR(config)
        for module in net.modules():
            if isinstance(module, Quantizer):
                # Keeps the shape; there is no data to calibrate by.
                module.forward = lambda x: x  # type: ignore[method-assign]
            elif _kind(module) != "other":
                module.register_forward_hook(count)
        net(torch.empty(1, 3, *input))
    return tuple(_rows(net, "", macs))


def _rows(module: nn.Module, name: str, macs: dict[nn.Module, int]) -> Iterable[Layer]:
    """The rows of `module` and of what is inside it, in the order of their names."""
    kind = _kind(module)
    if kind == "other":
        others = sum(p.numel() for p in module.parameters(recurse=False))
        if others:
            yield Layer(name, kind, others=others)
        for child_name, child in module.named_children():
            yield from _rows(child, f"{name}.{child_name}".lstrip("."), macs)
        return
    sizes = {part: p.numel() for part, p in module.named_parameters()}
    weights, biases = sizes.pop("weight", 0), sizes.pop("bias", 0)
    others, bits = sum(sizes.values()), _bits(module)
    yield Layer(name, kind, weights, biases, others, macs.get(module, 0), *bits)


def _kind(module: nn.Module) -> Literal["conv", "linear", "product", "other"]:
    if isinstance(module, nn.Conv2d):
        return "conv"
    if isinstance(module, nn.Linear):
        return "linear"
    return "product" if isinstance(module, (Matmul, QMatmul)) else "other"


def _bits(module: nn.Module) -> tuple[int, int]:
    """Bits of (weight, input), or of both factors of a product."""
    if isinstance(module, (QConv2d, QLinear)):
        return module.weight_quantizer.bits, module.input_quantizer.bits
    if isinstance(module, QMatmul):
        return module.left_quantizer.bits, module.right_quantizer.bits
    return 32, 32


# The rules ---------------------------------------------------------------------------------------


def collapse_tail(layers: tuple[Layer, ...], config: NetworkConfig) -> tuple[Layer, ...]:
    """The rows with those of the tail replaced by one 5x5 convolution features -> 3 scale^2.

    A chain of convolutions and pixel shuffles without activation is one linear map. It sees 2
    pixels to each side: a step of 1 in the last, large grid reaches the neighbouring pixel of the
    grid before, at x4 two pixels of the middle grid, so again the neighbour in the small one, and
    the first convolution adds 1. Within 3 pixels of the picture's border the zero padding between
    the stages makes other weights, at the same number of products. A tail of one layer (SwinIR's)
    stays. With fewer than about 20 features the chain has fewer parameters than the 5x5.
    """
    tail = [layer for layer in layers if layer.name.startswith("tail.")]
    if len(tail) == 1:
        return layers
    outputs = 3 * config.scale**2
    weights = 25 * config.features * outputs
    positions = tail[0].macs // tail[0].weights  # of the small grid
    merged = Layer("tail", "conv", weights, outputs, macs=weights * positions)
    return (*(layer for layer in layers if layer not in tail), merged)


def _stated_factor(layer: Layer, bits: int) -> float:
    return bits / 32


def _printed_factor(layer: Layer, bits: int) -> float:
    if bits not in PRINTED_FACTORS:
        raise ValueError(
            f"{layer.name!r} has {bits} bits; Table 2 prints networks of 2, 4 and 32 bits. "
            "Count other widths by the rule 'stated' or 'honest'."
        )
    return PRINTED_FACTORS[bits]


def _as_in_table_2(
    rule: Rule,
    config: NetworkConfig,
    input: tuple[int, int],
    factor: Callable[[Layer, int], float],
) -> Complexity:
    """What Table 2 counts: convolutions and linear layers of the x2 network, nothing else.

    Operations: products, and for convolutions one addition of a bias per output value.
    """
    layers = _multiplying(layer_table(replace(config, scale=2), input))
    ops = sum(factor(x, x.bits) * (x.macs + _bias_additions(x)) for x in layers)
    count = _swin_parameters if config.family == "swin" else _conv_parameters
    return Complexity(rule, count(config, layers, factor), ops, layers)


def _multiplying(layers: tuple[Layer, ...]) -> tuple[Layer, ...]:
    return tuple(layer for layer in layers if layer.kind in ("conv", "linear"))


def _bias_additions(layer: Layer) -> int:
    return layer.biases * (layer.macs // layer.weights) if layer.kind == "conv" else 0


def _conv_parameters(
    config: NetworkConfig, layers: tuple[Layer, ...], factor: Callable[[Layer, int], float]
) -> float:
    """All weights, and the biases of full-precision layers; the SRResNet row has no biases."""
    parameters = sum(factor(layer, layer.weight_bits) * layer.weights for layer in layers)
    if config.bits is not None:
        parameters += sum(layer.biases for layer in layers if not layer.quantised)
    return parameters


def _swin_parameters(
    config: NetworkConfig, layers: tuple[Layer, ...], factor: Callable[[Layer, int], float]
) -> float:
    """All parameters of the x4 SwinIR_S, rounded to 930K, times the fraction left of the x2 one.

    Not a count of anything that exists, but the one rule found that gives all the printed cells:
    the fraction is taken over weights and biases of convolutions and linear layers at x2.
    """
    assert isinstance(config, SwinConfig)
    full = replace(config, bits=None, attention_bits=None, learnable_shortcuts=False, dropped=())
    smallest = (config.window, config.window)  # parameters do not depend on the picture
    whole = _multiplying(layer_table(replace(full, scale=2), smallest))
    total = sum(
        x.weights + x.biases + x.others for x in layer_table(replace(full, scale=4), smallest)
    )
    left = sum(factor(x, x.weight_bits) * (x.weights + x.biases) for x in layers)
    return round(total, -3) * left / sum(x.weights + x.biases for x in whole)
