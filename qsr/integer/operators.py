"""The operators that a stored network may have beside packed layers, by their names.

A file says `functional.interpolate` or `LayerNorm`. Such a name is looked up here, in tables that
were written down, and what is not in them does not run, whatever the file says. A function is a
pure one of PyTorch or of Python's arithmetic; a method is one of tensors; a module is a layer of
PyTorch, made anew by the arguments of its constructor and without memory for its weights, which
come from the file.

Their arguments come from a file as well: `check` bounds every number and knows every word. Two
things cannot be seen before it runs. Arithmetic on sizes could make numbers without end of a few
that are small; so it is done by `bounded` operators. And an operator may not fit its input, which
PyTorch says.
"""

from __future__ import annotations

import functools
import inspect
import math
import operator
from collections.abc import Callable, Collection, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

MOST_NUMBER = 2**16  # of channels and such
MOST_SIDE = 64  # of windows, strides, paddings and factors
MOST_SIZE = 2**40  # that arithmetic may reach: all pixels of a batch
MOST_DIMENSIONS = 16


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


def _named(prefix: str, source: Any, names: str) -> dict[str, Callable[..., Any]]:
    return {f"{prefix}.{name}": getattr(source, name) for name in sorted(_words(names))}


WORDS = _words(
    "zeros constant reflect replicate circular same valid nearest nearest-exact bilinear bicubic "
    "area none tanh floor trunc"
)


ARITHMETIC = _named(
    "operator", operator, "add sub mul truediv floordiv mod pow neg abs iadd isub imul itruediv"
)
WINDOWED = (  # whose numbers are sides of windows, factors or paddings
    _named(
        "functional",
        F,
        "conv1d conv2d conv_transpose2d interpolate pad pixel_shuffle pixel_unshuffle max_pool2d "
        "avg_pool2d adaptive_avg_pool2d adaptive_max_pool2d",
    )
    | _named("torch", torch, "conv1d conv2d conv_transpose2d max_pool2d repeat_interleave")
)
FUNCTIONS = (
    _named("operator", operator, "getitem matmul")
    | _named(
        "functional",
        F,
        "relu relu6 leaky_relu prelu elu gelu silu mish softplus sigmoid tanh hardtanh hardswish "
        "hardsigmoid softmax linear layer_norm group_norm batch_norm instance_norm normalize "
        "dropout scaled_dot_product_attention",
    )
    | _named(
        "torch",
        torch,
        "add sub subtract mul multiply div neg relu relu_ sigmoid tanh softmax abs exp log sqrt "
        "rsqrt square pow clamp clamp_ clip maximum minimum mean sum var std max min amax amin cat "
        "concat stack chunk split unbind flatten reshape permute transpose movedim narrow select "
        "squeeze unsqueeze roll flip matmul bmm prelu layer_norm group_norm",
    )
    | ARITHMETIC
    | WINDOWED
)
REPEATS = _words("repeat repeat_interleave")  # methods whose numbers are factors
METHODS = REPEATS | _words(
    "add add_ sub sub_ mul mul_ div div_ neg relu relu_ sigmoid sigmoid_ tanh tanh_ softmax abs "
    "exp log sqrt rsqrt square pow clamp clamp_ clip mean sum var std max min amax amin chunk "
    "split unbind flatten unflatten reshape view view_as permute transpose movedim narrow select "
    "squeeze unsqueeze expand expand_as roll flip contiguous clone matmul bmm size float type_as"
)
MODULES: dict[str, type[nn.Module]] = {
    name: getattr(nn, name)
    for name in _words(
        "Conv1d Conv2d ConvTranspose2d Linear LayerNorm BatchNorm1d BatchNorm2d GroupNorm "
        "InstanceNorm2d PReLU ReLU ReLU6 LeakyReLU ELU GELU SiLU Mish Softplus Sigmoid Tanh "
        "Hardswish Hardsigmoid Softmax MaxPool2d AvgPool2d AdaptiveAvgPool2d AdaptiveMaxPool2d "
        "Upsample UpsamplingNearest2d UpsamplingBilinear2d PixelShuffle PixelUnshuffle "
        "ReflectionPad2d ReplicationPad2d ZeroPad2d ConstantPad2d Flatten Unflatten"
    )
}
COUNTS = _words(  # options of modules that are no sides
    "in_channels out_channels groups in_features out_features num_features num_groups num_channels "
    "num_parameters normalized_shape dim start_dim end_dim unflattened_size eps momentum threshold "
    "value init"
)
_NAMES = {function: name for name, function in reversed(FUNCTIONS.items())}


# Names of what a network calls --------------------------------------------------------------------


def name_of(function: Any) -> str | None:
    """The name of a function in the tables, or None.

    >>> name_of(F.leaky_relu), name_of(torch.linalg.svd)
    ('functional.leaky_relu', None)
    """
    return _NAMES.get(getattr(function, "__wrapped__", function))


def function_of(name: str) -> Callable[..., Any] | None:
    """The function of a name, or None."""
    if name in ARITHMETIC:
        return bounded(ARITHMETIC[name])
    return FUNCTIONS.get(name)


def module_options(layer: nn.Module) -> dict[str, Any] | None:
    """The arguments that make such a layer, but for those that say the usual; None for a layer that
    is not in the table.

    >>> module_options(nn.Conv2d(3, 8, 3, padding=1, bias=False))["padding"]
    (1, 1)
    """
    if MODULES.get(type(layer).__name__) is not type(layer):
        return None
    options = {}
    for name, parameter in inspect.signature(type(layer)).parameters.items():
        if hasattr(layer, name):
            value = getattr(layer, name)
            value = value is not None if name == "bias" else value
            if value is not parameter.default and value != parameter.default:
                options[name] = value
    return options


def make_module(kind: str, options: Mapping[str, Any]) -> nn.Module:
    """The layer of a name and its options, on the device meta. Raises ValueError."""
    if kind not in MODULES:
        raise ValueError(f"there is no operator {kind!r}")
    names = inspect.signature(MODULES[kind]).parameters
    for name, value in options.items():
        if name not in names or name in ("device", "dtype", "args", "kwargs"):
            raise ValueError(f"{kind} has no option {name!r}")
        check(value, MOST_NUMBER if name in COUNTS else MOST_SIDE)
    try:
        with torch.device("meta"):
            return MODULES[kind](**options).eval()
    except (RuntimeError, TypeError, IndexError, ZeroDivisionError, AssertionError) as error:
        raise ValueError(f"{kind} cannot be made: {error}") from error


# What arguments may be ----------------------------------------------------------------------------


def most_of(name: str) -> int:
    """The largest number that an argument of this function or method may be."""
    return MOST_SIDE if name in WINDOWED or name in REPEATS else MOST_NUMBER


def check(value: Any, most: int) -> None:
    """Raises ValueError unless a value may be an argument; most: of its numbers, whole ones or,
    where it is MOST_SIDE, all.
    """
    if isinstance(value, (tuple, list)):
        for part in value:
            check(part, most)
        return
    if isinstance(value, float):
        known = math.isfinite(value) and (abs(value) <= most or most != MOST_SIDE)
    elif isinstance(value, int):
        known = abs(value) <= most
    else:
        known = value is None or value in WORDS
    if not known:
        raise ValueError(f"has {str(value)[:40]!r}, which no argument may be")


def bounded(function: Callable[..., Any]) -> Callable[..., Any]:
    """An operator of Python that is for tensors, and for sizes that a picture can have.

    >>> bounded(operator.mul)(4, 5)
    20
    >>> bounded(operator.mul)(2**30, 2**30)
    Traceback (most recent call last):
    ...
    ValueError: sizes become too large
    """

    @functools.wraps(function)
    def run(*args: Any) -> Any:
        if function is operator.pow and not any(isinstance(x, Tensor) for x in args):
            raise ValueError("sizes become too large")  # some would take for ever to compute
        result = function(*args)
        if isinstance(result, Tensor):
            return result
        large = isinstance(result, Collection) and len(result) > MOST_DIMENSIONS
        if large or (isinstance(result, (int, float)) and abs(result) > MOST_SIZE):
            raise ValueError("sizes become too large")
        return result

    return run
