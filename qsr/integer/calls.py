"""What a call of PyTorch is in the words of plans, whichever way it is written.

`F.max_pool2d(x, 2)`, `nn.MaxPool2d(2)` and `torch.max_pool2d(x, kernel_size=2)` are one operation.
Here it gets one name and the numbers that make it what it is, or None, which says that a plan does
not know it. The functions below have the parameters of PyTorch's own, without the input.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import nn

Call = tuple[str, tuple[Any, ...]]  # kind and numbers, see `regions.Op` and `formulas`
OF_ALL = ((0, 0), (1, 1), (0, 0), 1)  # an average over a whole picture


def _relu(inplace: bool = False) -> Call | None:
    return "relu", ()


def _leaky(negative_slope: Any = 0.01, inplace: bool = False) -> Call | None:
    number = isinstance(negative_slope, (int, float))
    return ("leaky", (float(negative_slope),)) if number else None


def _sigmoid() -> Call | None:
    return "sigmoid", ()


def _silu(inplace: bool = False) -> Call | None:
    return "silu", ()


def _tanh() -> Call | None:
    return "tanh", ()


def _gelu(approximate: str = "none") -> Call | None:
    return ("gelu", ()) if approximate == "none" else None


def _shuffle(upscale_factor: Any) -> Call | None:
    return ("shuffle", (upscale_factor,)) if isinstance(upscale_factor, int) else None


def _max_pool(
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    dilation: Any = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> Call | None:
    plain = _pair(dilation) == (1, 1) and not ceil_mode and not return_indices
    return _window("pool", kernel_size, stride, padding) if plain else None


def _window(kind: str, kernel_size: Any, stride: Any, padding: Any) -> Call | None:
    pairs = tuple(map(_pair, (kernel_size, stride or kernel_size, padding)))
    return None if None in pairs else (kind, pairs)


def _avg_pool(
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: None = None,
) -> Call | None:
    plain = not ceil_mode and divisor_override is None
    call = _window("average", kernel_size, stride, padding) if plain else None
    return None if call is None else ("average", (*call[1], int(count_include_pad)))


def _adaptive_avg_pool(output_size: Any) -> Call | None:
    return ("average", OF_ALL) if _pair(output_size) == (1, 1) else None


def _mean(dim: Any, keepdim: bool = False) -> Call | None:
    of_pictures = isinstance(dim, (tuple, list)) and sorted(dim) in ([2, 3], [-2, -1])
    return ("average", OF_ALL) if of_pictures and keepdim else None


def _resize(
    size: Any = None,
    scale_factor: Any = None,
    mode: str = "nearest",
    align_corners: Any = None,
    recompute_scale_factor: Any = None,
    antialias: bool = False,
) -> Call | None:
    factors = scale_factor if isinstance(scale_factor, (tuple, list)) else (scale_factor,) * 2
    whole = all(isinstance(f, (int, float)) and f == int(f) and f >= 1 for f in factors)
    if antialias or (size is None and not whole):
        return None
    times = None if size is not None else (int(factors[0]), int(factors[1]))
    if mode == "bilinear":
        return "bilinear", (int(bool(align_corners)), size, times)
    same = mode == "nearest" and times is not None and times[0] == times[1]
    return ("nearest", times[:1]) if times is not None and same else None


def _pad(pad: Any, mode: str = "constant", value: Any = None) -> Call | None:
    whole = isinstance(pad, (tuple, list)) and all(isinstance(n, int) and n >= 0 for n in pad)
    if not whole or len(pad) != 4 or mode not in ("reflect", "replicate"):
        return None
    left, right, top, bottom = pad
    return "pad", ((top, bottom), (left, right), int(mode == "reflect"))


def _pair(value: Any) -> tuple[int, int] | None:
    """(down, across); None for what is no number or two."""
    pair = (value, value) if isinstance(value, int) else value
    whole = isinstance(pair, (tuple, list)) and all(isinstance(n, int) for n in pair)
    return (pair[0], pair[-1]) if whole and len(pair) in (1, 2) else None


FUNCTIONS: dict[str, Callable[..., Call | None]] = {
    "relu": _relu,
    "leaky_relu": _leaky,
    "sigmoid": _sigmoid,
    "gelu": _gelu,
    "silu": _silu,
    "tanh": _tanh,
    "pixel_shuffle": _shuffle,
    "max_pool2d": _max_pool,
    "avg_pool2d": _avg_pool,
    "adaptive_avg_pool2d": _adaptive_avg_pool,
    "mean": _mean,
    "interpolate": _resize,
    "pad": _pad,
}
MODULES: dict[type[nn.Module], str] = {  # which of these a module calls
    nn.ReLU: "relu",
    nn.LeakyReLU: "leaky_relu",
    nn.Sigmoid: "sigmoid",
    nn.GELU: "gelu",
    nn.SiLU: "silu",
    nn.Tanh: "tanh",
    nn.PixelShuffle: "pixel_shuffle",
    nn.MaxPool2d: "max_pool2d",
    nn.AvgPool2d: "avg_pool2d",
    nn.AdaptiveAvgPool2d: "adaptive_avg_pool2d",
    nn.Upsample: "interpolate",
    nn.UpsamplingNearest2d: "interpolate",
    nn.UpsamplingBilinear2d: "interpolate",
}
PADS = {nn.ReflectionPad2d: "reflect", nn.ReplicationPad2d: "replicate"}


def read(name: str, more: Sequence[Any], options: Mapping[str, Any]) -> Call | None:
    """The operation of a function of this name (also in place, "relu_"); more, options: what it is
    given beside its input.

    >>> read("leaky_relu_", (0.1,), {}), read("max_pool2d", (2,), {"padding": 1})
    (('leaky', (0.1,)), ('pool', ((2, 2), (2, 2), (1, 1))))
    >>> read("gelu", (), {"approximate": "tanh"})
    """
    function = FUNCTIONS.get(name.rstrip("_"))
    if function is None:
        return None
    try:
        return function(*more, **options)
    except TypeError:  # it is given something that is not known here
        return None


def read_module(layer: nn.Module) -> Call | None:
    """The operation of a layer of PyTorch."""
    if type(layer) in PADS:
        return _pad(layer.padding, PADS[type(layer)])
    name = MODULES.get(type(layer))
    if name is None:
        return None
    names = inspect.signature(FUNCTIONS[name]).parameters
    return read(name, (), {n: getattr(layer, n) for n in names if hasattr(layer, n)})
