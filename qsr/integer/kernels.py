"""The operators of packed networks, and which kernel runs them.

Seven operators, registered with PyTorch's dispatcher as `torch.ops.qsr.*` (with fake tensors, so
that torch.compile and torch.export see them); all are exact and forward only:

    quantize_pack   float32 [N, C, H, W] -> packed codes
    pack_codes      codes [N, H, W, C] -> packed codes, and unpack_codes back
    conv2d          packed activations, packed weights -> int32 sums
    linear          the same for rows
    conv2d_float    float convolution in one fixed order of summation, for head and tail
    attention       window attention with quantised q, k, v and probabilities

Every operator takes `kernel`: "auto" for the best that this processor runs and that takes the job,
"reference" for the slow definition in `qsr.reference`, or a name from `available()`. All give the
same integers. A named kernel runs or raises ValueError: none hands its job to another. Where the
native code is missing, "auto" is the reference, and `qsr info` says why.

The functions below take `BitPlanes`, check their arguments and call the operators.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from ..quantizer import QuantSpec
from ..system import native
from . import reference
from .bitplanes import BitPlanes, check_codes, pack_words, unpack_words, words_for

REFERENCE = "reference"
FLOAT_LANES = 16  # kFloatLanes of csrc/kernels.h
NATIVE_OPS = ("conv2d", "linear", "quantize_pack", "conv2d_float", "attention")
CUDA_ROWS = {  # best first; "conv3x3": layers inside programs
    "conv2d": ("cuda-imma", "cuda"),
    "linear": ("cuda",),
    "attention": ("cuda",),
    "conv3x3": ("cuda-imma",),
}
TENSOR_CORES = (7, 5)  # compute capability from which cuda-imma runs

# Choice -------------------------------------------------------------------------------------------


def available(op: str = "conv2d", device: str | torch.device = "cpu") -> tuple[str, ...]:
    """Names of the kernels that run `op` on `device` here, best first; the last is "reference".

    op: "conv2d", "linear" (the same kernels), "quantize_pack", "conv2d_float" or "attention".
    """
    if op not in NATIVE_OPS:
        raise ValueError(f"`op` is {op!r}; kernels are chosen for {', '.join(NATIVE_OPS)}.")
    return (*native_rows(op, device), REFERENCE)


def native_rows(op: str, device: str | torch.device = "cpu", bits: int = 1) -> tuple[str, ...]:
    """Names of the native kernels that run `op` on `device` here, best first; () without any.

    op, bits: as in `native.rows`, and "linear".
    """
    device = torch.device(device)
    if device.type == "cpu":
        return native.rows("conv2d" if op == "linear" else op, bits)
    if device.type != "cuda" or not native.load().cuda or not torch.cuda.is_available():
        return ()
    old = torch.cuda.get_device_capability(device) < TENSOR_CORES
    return tuple(row for row in CUDA_ROWS.get(op, ()) if not (old and row == "cuda-imma"))


def _is_reference(op: str, kernel: str, device: torch.device) -> bool:
    """Whether the reference runs `op`: by name, or as there is nothing else. Raises ValueError for
    a name that is not available here; csrc/dispatch.cpp chooses among the others.
    """
    names = available(op, device)
    if kernel not in ("auto", *names):
        raise ValueError(
            f"`kernel` is {kernel!r}; on this machine {op} has {', '.join(names)}, or 'auto'."
        )
    return kernel == REFERENCE or names == (REFERENCE,)


# Operators ----------------------------------------------------------------------------------------
#
# Their last argument is `kernel` of the functions below, by another name: torch.compile keeps that
# word for itself. "row", for what it names is a row of a table in csrc/dispatch.cpp.


@torch.library.custom_op("qsr::quantize_pack", mutates_args=())
def _quantize_pack(
    x: Tensor,
    step_size: Tensor,
    tau: Tensor | None,
    bits: int,
    signed: bool,
    groups: int,
    row: str = "auto",
) -> Tensor:
    step = step_size.item()
    if not step > 0:  # here and not below, where torch.export could not look at it
        raise ValueError(f"`step_size` is {step:g}; it is one positive number, in units of x.")
    if _is_reference("quantize_pack", row, x.device):
        return reference.quantize(x, step_size, tau, bits, signed, groups).words
    tau = None if tau is None else tau.contiguous()
    return torch.ops.qsr_native.quantize_pack(x, step, tau, bits, signed, groups, row)


@_quantize_pack.register_fake
def _(x, step_size, tau, bits, signed, groups, row="auto"):
    n, channels, height, width = x.shape
    words = words_for(channels // groups)
    return x.new_empty(n, height, width, groups, bits, words, dtype=torch.int64)


@torch.library.custom_op("qsr::pack_codes", mutates_args=())
def _pack_codes(codes: Tensor, bits: int, groups: int) -> Tensor:
    if codes.device.type == "cpu" and native.load().native:
        return torch.ops.qsr_native.pack_codes(codes.contiguous(), bits, groups)
    return pack_words(codes, bits, groups)


@_pack_codes.register_fake
def _(codes, bits, groups):
    n, height, width, channels = codes.shape
    words = words_for(channels // groups)
    return codes.new_empty(n, height, width, groups, bits, words, dtype=torch.int64)


@torch.library.custom_op("qsr::unpack_codes", mutates_args=())
def _unpack_codes(words: Tensor, signed: bool, channels: int) -> Tensor:
    if words.device.type == "cpu" and native.load().native:
        return torch.ops.qsr_native.unpack_codes(words.contiguous(), signed, channels)
    return unpack_words(words, signed, channels)


@_unpack_codes.register_fake
def _(words, signed, channels):
    dtype = torch.int8 if signed else torch.uint8
    return words.new_empty(*words.shape[:3], channels, dtype=dtype)


@torch.library.custom_op("qsr::conv2d", mutates_args=())
def _conv2d(
    a: Tensor,
    w: Tensor,
    a_signed: bool,
    w_signed: bool,
    stride: Sequence[int],
    padding: Sequence[int],
    row: str = "auto",
) -> Tensor:
    if _is_reference("conv2d", row, a.device):
        return reference.conv2d(*_planes(a, w, a_signed, w_signed), stride, padding)
    return torch.ops.qsr_native.conv2d(
        a.contiguous(), w.contiguous(), a_signed, w_signed, list(stride), list(padding), row
    )


@_conv2d.register_fake
def _(a, w, a_signed, w_signed, stride, padding, row="auto"):
    height, width = (
        (a.shape[1 + i] + 2 * padding[i] - w.shape[1 + i]) // stride[i] + 1 for i in (0, 1)
    )
    return a.new_empty(a.shape[0], height, width, w.shape[0], dtype=torch.int32)


@torch.library.custom_op("qsr::linear", mutates_args=())
def _linear(a: Tensor, w: Tensor, a_signed: bool, w_signed: bool, row: str = "auto") -> Tensor:
    return torch.ops.qsr.conv2d(a, w, a_signed, w_signed, [1, 1], [0, 0], row).flatten(1)


@_linear.register_fake
def _(a, w, a_signed, w_signed, row="auto"):
    return a.new_empty(a.shape[0], w.shape[0], dtype=torch.int32)


@torch.library.custom_op("qsr::conv2d_float", mutates_args=())
def _conv2d_float(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    padding: Sequence[int],
    row: str = "auto",
) -> Tensor:
    padded = F.pad(x, (0, 0, padding[1], padding[1], padding[0], padding[0]))
    if _is_reference("conv2d_float", row, x.device):
        return reference.conv2d_float(padded, weight, bias)
    # The kernel wants [kh, kw, Cin, Cout], filled up to whole tiles of output channels.
    laid_out = F.pad(weight.permute(2, 3, 1, 0), (0, -len(weight) % FLOAT_LANES)).contiguous()
    return torch.ops.qsr_native.conv2d_float(padded.contiguous(), laid_out, bias, len(weight))


@_conv2d_float.register_fake
def _(x, weight, bias, padding, row="auto"):
    height, width = (x.shape[1 + i] + 2 * padding[i] - weight.shape[2 + i] + 1 for i in (0, 1))
    return x.new_empty(x.shape[0], height, width, len(weight))


@torch.library.custom_op("qsr::attention", mutates_args=())
def _attention(
    qkv: Tensor,
    steps: Tensor,
    bias: Tensor,
    mask: Tensor | None,
    heads: int,
    bits: Sequence[int],
    signed: Sequence[bool],
    row: str = "auto",
) -> Tensor:
    if not (steps > 0).all():  # here and not below, as above
        raise ValueError(f"`steps` is {steps.tolist()}; steps are positive.")
    if _is_reference("attention", row, qkv.device):
        return reference.attention(qkv, steps, bias, mask, heads, bits, signed)
    width = qkv.shape[2] // (3 * heads)
    return torch.ops.qsr_native.attention(
        qkv.contiguous(),
        steps.cpu().contiguous(),  # numbers for the launcher
        bias.contiguous(),
        None if mask is None else mask.contiguous(),
        heads,
        width**-0.5,
        list(bits),
        [int(s) for s in signed],
        row,
    )


@_attention.register_fake
def _(qkv, steps, bias, mask, heads, bits, signed, row="auto"):
    return qkv.new_empty(*qkv.shape[:2], qkv.shape[2] // 3)


def _planes(a: Tensor, w: Tensor, a_signed: bool, w_signed: bool) -> tuple[BitPlanes, BitPlanes]:
    """Bare words as BitPlanes for the reference; unused lanes are zero and change no sum."""
    lanes = a.shape[5] * 64
    return BitPlanes(a, a_signed, lanes * a.shape[3]), BitPlanes(w, w_signed, lanes)


# Checked functions --------------------------------------------------------------------------------


def quantize_pack(
    x: Tensor,
    step_size: Tensor,
    tau: Tensor | None = None,
    *,
    bits: int,
    signed: bool,
    groups: int = 1,
    kernel: str = "auto",
) -> BitPlanes:
    """Packed codes clamp(round((x + tau) / step_size), qmin, qmax) of x, in one pass.

    x: float32 [N, C, H, W] of any strides; step_size: float32 [] > 0; tau: float32 [C] or None.
    NaN gives code 0. Raises ValueError or TypeError with the value and the rule.
    """
    QuantSpec(bits, signed)
    if x.dtype != torch.float32 or (tau is not None and tau.dtype != torch.float32):
        raise TypeError(f"`x` is {x.dtype}; values are quantised from float32 (tau likewise).")
    if x.ndim != 4:
        raise ValueError(f"`x` has shape {tuple(x.shape)}; values are [N, C, H, W].")
    channels = x.shape[1]
    if groups < 1 or channels < 1 or channels % groups:
        raise ValueError(f"`groups` is {groups} for {channels} channels; it must divide them.")
    if tau is not None and tau.shape != (channels,):
        raise ValueError(f"`tau` has shape {tuple(tau.shape)} for {channels} channels; one each.")
    if step_size.numel() != 1:
        raise ValueError(
            f"`step_size` has shape {tuple(step_size.shape)}; it is one positive number."
        )
    words = torch.ops.qsr.quantize_pack(x, step_size.reshape(()), tau, bits, signed, groups, kernel)
    return BitPlanes(words, signed, channels)


def pack_codes(codes: Tensor, *, bits: int, signed: bool, groups: int = 1) -> BitPlanes:
    """Pack integer codes [N, H, W, C], int8 or uint8, natively where possible."""
    check_codes(codes, bits, signed, groups)
    words = torch.ops.qsr.pack_codes(codes, bits, groups)
    return BitPlanes(words, signed, codes.shape[3])


def unpack_codes(planes: BitPlanes) -> Tensor:
    """The codes [N, H, W, C] of `planes`, int8 if signed else uint8."""
    return torch.ops.qsr.unpack_codes(planes.words, planes.signed, planes.channels)


def conv2d(
    a: BitPlanes,
    w: BitPlanes,
    stride: int | tuple[int, int] = 1,
    padding: int | tuple[int, int] = 0,
    kernel: str = "auto",
) -> Tensor:
    """Exact integer convolution: int32 [N, Ho, Wo, Cout].

    a: activations [N, H, W, groups, bits, words]; w: weights [Cout, kh, kw, 1, bits, words].
    A padded pixel has code 0. Raises ValueError with the value and the rule.
    """
    stride, padding = _pair(stride), _pair(padding)
    _check_operands(a, w)
    if min(stride) < 1 or min(padding) < 0:
        raise ValueError(
            f"`stride` is {stride} and `padding` {padding}; "
            "strides are 1 or more, paddings 0 or more."
        )
    if any(a.words.shape[i] + 2 * padding[i - 1] < w.words.shape[i] for i in (1, 2)):
        raise ValueError(
            f"the picture of {a.words.shape[1]} x {a.words.shape[2]} pixels, padded by {padding}, "
            f"is smaller than the kernel of {w.words.shape[1]} x {w.words.shape[2]}; pad more."
        )
    return torch.ops.qsr.conv2d(a.words, w.words, a.signed, w.signed, stride, padding, kernel)


def linear(a: BitPlanes, w: BitPlanes, kernel: str = "auto") -> Tensor:
    """Exact integer matrix product: rows [M, 1, 1, 1, ...] by [Cout, 1, 1, 1, ...] -> [M, Cout]."""
    _check_operands(a, w)
    for name, planes in (("a", a), ("w", w)):
        if tuple(planes.words.shape[1:4]) != (1, 1, 1):
            raise ValueError(
                f"`{name}` has shape {tuple(planes.words.shape)}; "
                "the rows of a matrix are packed as [M, 1, 1, 1, bits, words]."
            )
    return torch.ops.qsr.linear(a.words, w.words, a.signed, w.signed, kernel)


def _pair(value: int | tuple[int, int]) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else (value[0], value[1])


def _check_operands(a: BitPlanes, w: BitPlanes) -> None:
    if a.words.device != w.words.device:
        raise ValueError(
            f"`a` is on {a.words.device} and `w` on {w.words.device}; move both to one device."
        )
    if w.groups != 1 or a.channels // a.groups != w.channels:
        raise ValueError(
            f"`a` has {a.channels} channels in {a.groups} groups and `w` takes {w.channels} "
            f"(in {w.groups} groups); the channels of one group must be those of w."
        )
    if len(w.words) % a.groups:
        raise ValueError(
            f"`w` has {len(w.words)} output channels for {a.groups} groups; "
            "the groups must divide them."
        )
    depth = w.words.shape[1] * w.words.shape[2] * w.words.shape[5] * 64
    largest = max(-a.spec.qmin, a.spec.qmax) * max(-w.spec.qmin, w.spec.qmax)
    if depth * largest >= 2**31:
        raise ValueError(
            f"{depth} products of up to {largest} could leave int32; "
            "use fewer channels, a smaller kernel or fewer bits."
        )


def conv2d_float(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    padding: int | tuple[int, int] = 0,
    kernel: str = "auto",
) -> Tensor:
    """Float convolution, stride 1, whose result does not depend on size, batch or threads.

    x: float32 [N, H, W, Cin]; weight: float32 [Cout, Cin, kh, kw]; bias: float32 [Cout] or None
    -> float32 [N, Ho, Wo, Cout]. Zero padding. Raises ValueError or TypeError.
    """
    padding = _pair(padding)
    if x.dtype != torch.float32 or weight.dtype != torch.float32:
        raise TypeError(f"`x` is {x.dtype} and `weight` {weight.dtype}; both must be float32.")
    if x.ndim != 4 or weight.ndim != 4 or x.shape[3] != weight.shape[1]:
        raise ValueError(
            f"`x` has shape {tuple(x.shape)} and `weight` {tuple(weight.shape)}; "
            "x is [N, H, W, Cin] and weight [Cout, Cin, kh, kw]."
        )
    if any(x.shape[i] + 2 * padding[i - 1] < weight.shape[i + 1] for i in (1, 2)):
        raise ValueError(
            f"the picture of {x.shape[1]} x {x.shape[2]} pixels, padded by {padding}, is smaller "
            f"than the kernel of {weight.shape[2]} x {weight.shape[3]}; pad more."
        )
    return torch.ops.qsr.conv2d_float(x, weight, bias, padding, kernel)


def attention(
    qkv: Tensor,
    steps: Tensor,
    bias: Tensor,
    mask: Tensor | None,
    *,
    heads: int,
    bits: Sequence[int],
    signed: Sequence[bool],
    kernel: str = "auto",
) -> Tensor:
    """Window attention on integers; the formula stands in `qsr.reference.attention`.

    qkv: float32 [windows, T, 3 * features]; steps: float32 [4] > 0 of q, k, probabilities and v,
    and likewise four `bits` (1 to 8) and `signed`; bias: float32 [heads, T, T]; mask: float32
    [M, T, T] or None, M a divisor of windows -> float32 [windows, T, features].
    Raises ValueError or TypeError with the value and the rule.
    """
    for width, sign in zip(bits, signed, strict=True):
        QuantSpec(width, sign)
    arguments = {"qkv": qkv, "steps": steps, "bias": bias, "mask": mask}
    for name, value in arguments.items():
        if value is not None and value.dtype != torch.float32:
            raise TypeError(f"`{name}` is {value.dtype}; attention takes float32.")
    if qkv.ndim != 3 or heads < 1 or qkv.shape[2] < 1 or qkv.shape[2] % (3 * heads):
        raise ValueError(
            f"`qkv` has shape {tuple(qkv.shape)} for {heads} heads; "
            "it is [windows, T, 3 * features], and the heads divide the features."
        )
    windows, pixels, _ = qkv.shape
    if bias.shape != (heads, pixels, pixels):
        raise ValueError(
            f"`bias` has shape {tuple(bias.shape)}; it is [heads, T, T], here "
            f"[{heads}, {pixels}, {pixels}]."
        )
    if mask is not None and (
        mask.shape[1:] != (pixels, pixels) or len(mask) < 1 or windows % len(mask)
    ):
        raise ValueError(
            f"`mask` has shape {tuple(mask.shape)} for {windows} windows; it is [M, {pixels}, "
            f"{pixels}] with M a divisor of the windows."
        )
    if steps.shape != (4,) or len(bits) != 4:
        raise ValueError(
            f"`steps` has shape {tuple(steps.shape)} and `bits` is {list(bits)}; both have four "
            "entries, for q, k, probabilities and v."
        )
    return torch.ops.qsr.attention(qkv, steps, bias, mask, heads, list(bits), list(signed), kernel)
