"""Functions of PyTorch that have no fixed bits, exchanged for written formulas.

PyTorch computes sigmoid or GELU by vectorised code whose last bit differs from processor to
processor, and a last bit can tip a code over its threshold. So a packed network computes them by
the formulas of `reference`, wherever it calls them: `Formulas` is a mode of PyTorch that sees every
call of its forward. The plan of a network has the same formulas in its regions (the finishes of
csrc/network/finish.h), so that network and plan agree bit for bit, on any processor.

    function   at most so far from the true value (tests/test_formulas.py)
    sigmoid    1.2e-7
    silu       1.8e-7 |x|
    tanh       2.2e-7
    gelu       2.6e-7
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from ..system import native
from . import calls, reference

ELEMENTS: dict[str, Callable[[Tensor], Tensor]] = {
    "sigmoid": reference.sigmoid,
    "gelu": reference.gelu,
    "silu": reference.silu,
    "tanh": reference.tanh,
}


class Formulas(TorchFunctionMode):
    """In this mode functions of float32 tensors are computed by formulas."""

    def __torch_function__(
        self,
        func: Any,
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        options = kwargs or {}
        called = getattr(func, "__name__", "")
        kind, _ = calls.read(called, args[1:], options) or ("", ())
        if kind not in ELEMENTS or args[0].dtype != torch.float32:
            return func(*args, **options)
        y = apply(kind, args[0])
        return args[0].copy_(y) if called.endswith("_") or options.get("inplace") else y


def formulas() -> AbstractContextManager[object]:
    """The mode, in which a packed network runs; none under torch.compile, which makes what it likes
    of PyTorch's functions.
    """
    return contextlib.nullcontext() if torch.compiler.is_compiling() else Formulas()


def apply(kind: str, x: Tensor) -> Tensor:
    """A function of `ELEMENTS` of float32 x, by its fastest version, in the memory format of x."""
    if x.device.type != "cpu" or not native.load().native:
        return ELEMENTS[kind](x)
    if x.ndim == 4 and x.is_contiguous(memory_format=torch.channels_last) > x.is_contiguous():
        return apply(kind, x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
    return torch.ops.qsr_native.element(x.detach().contiguous(), kind)


native.FAKES.update(element=lambda x, kind: torch.empty_like(x))
