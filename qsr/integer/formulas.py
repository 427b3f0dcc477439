"""Functions of PyTorch that have no fixed bits, exchanged for written formulas.

PyTorch computes sigmoid or a mean by vectorised code whose last bit differs from processor to
processor, and a last bit can tip a code over its threshold. So a packed network computes them by
the formulas of `reference`, wherever it calls them: `Formulas` is a mode of PyTorch that sees every
call of its forward. The plan of a network has the same formulas in its regions (the finishes of
csrc/network/finish.h), so that network and plan agree bit for bit, on any processor.

    function   at most so far from the true value (tests/test_formulas.py)
    sigmoid    1.2e-7
    silu       1.8e-7 |x|
    tanh       2.2e-7
    gelu       2.6e-7

Averages and bilinear interpolation of pictures are exchanged as well: sums have one order, and
a place between two pixels is an exact fraction. Where they run outside of regions, each is a region
of one step.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from ..system import native
from . import calls, reference
from .executor import Executor
from .layer import channels_first
from .maps import Unfit, run_region
from .plan import ONE, Plan, Size, Step, Value, pooled
from .reference import ELEMENTS
from .regions import RESAMPLING

JOINS = ("cat", "concat", "concatenate")


class Formulas(TorchFunctionMode):
    """In this mode functions of float32 tensors are computed by formulas, and, with `views`, x.view
    may give a copy, which is right where nobody writes into it.
    """

    def __init__(self, views: bool = True) -> None:
        super().__init__()
        self.views = views

    def __torch_function__(
        self,
        func: Any,
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        options = kwargs or {}
        called = getattr(func, "__name__", "")
        if called in JOINS:
            return _joined(func(*args, **options), args[0])
        if called == "view" and self.views:
            return _viewed(*args, **options)
        call = calls.read(called, args[1:], options)
        y = None if call is None or args[0].dtype != torch.float32 else _formula(args[0], *call)
        if y is None:
            return func(*args, **options)
        return args[0].copy_(y) if called.endswith("_") or options.get("inplace") else y


def _viewed(x: Tensor, *shape: Any, **options: Any) -> Tensor:
    """x.view(*shape), also where only planes have such a view and x lies channels last."""
    try:
        return x.view(*shape, **options)
    except RuntimeError:
        if x.ndim != 4 or channels_first(x):
            raise
        return x.contiguous().view(*shape, **options)


def _joined(y: Tensor, parts: Any) -> Tensor:
    """y, in the memory format of its first part, also where that is a part of other channels."""
    pictures = y.ndim == 4 and isinstance(parts, (tuple, list))
    last = pictures and not channels_first(parts[0])
    return y.contiguous(memory_format=torch.channels_last) if last else y


def _formula(x: Tensor, kind: str, numbers: tuple[Any, ...]) -> Tensor | None:
    """What a call gives by its formula; None if it has none."""
    if kind in ELEMENTS:
        return element(kind, x)
    if kind not in RESAMPLING or x.ndim != 4 or not x.numel():
        return None
    if kind == "bilinear":
        align, size, times = numbers
        if size is None:
            size = [n * t for n, t in zip(x.shape[2:], times, strict=True)]
        numbers = (align, *((size, size) if isinstance(size, int) else size))
    return resampled(kind, x, numbers)


def formulas(views: bool = True) -> AbstractContextManager[object]:
    """The mode, in which a packed network runs; none under torch.compile, which makes what it likes
    of PyTorch's functions.
    """
    return contextlib.nullcontext() if torch.compiler.is_compiling() else Formulas(views)


def element(kind: str, x: Tensor) -> Tensor:
    """A function of `ELEMENTS` of float32 x, by its fastest version, in the memory format of x."""
    if x.device.type != "cpu" or not native.load().native:
        return ELEMENTS[kind](x)
    if x.ndim == 4 and not channels_first(x):
        return element(kind, x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
    return torch.ops.qsr_native.element(x.detach().contiguous(), kind)


def resampled(kind: str, x: Tensor, numbers: tuple[Any, ...]) -> Tensor:
    """Averages of pictures, numbers as those of `reference.average`; or a picture of another size:
    (align corners, height, width). x: float32 [N, C, H, W].
    """
    if x.device.type == "cpu" and native.load().native:
        with contextlib.suppress(Unfit):  # PyTorch says it better
            plan, run = _alone(kind, x.shape[1], numbers)
            return run_region(plan, run, [x.detach()])[0]
    if kind == "average":
        return reference.average(x, *numbers)
    align, height, width = numbers
    return reference.bilinear(x, height, width, align)


@functools.lru_cache(maxsize=64)
def _alone(kind: str, channels: int, numbers: tuple[Any, ...]) -> tuple[Plan, Executor]:
    """A plan of one step."""
    if kind == "average":
        size = pooled(Size(0), *numbers[:3])
    else:
        size = Size(0, *(((*ONE[:3], n),) for n in numbers[1:]))
        numbers = numbers[:1]
    values = (Value("float", channels, Size(0)), Value("float", channels, size))
    step = Step(kind, 0, channels, size, numbers=numbers, out=1)
    plan = Plan(("x",), (("y", 1),), False, values, (step,), ())
    return plan, Executor(plan, nn.Module())


native.add_fakes(element=lambda x, name, kernel="auto": torch.empty_like(x))
