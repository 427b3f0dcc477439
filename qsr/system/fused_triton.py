"""Fake quantisation on a GPU: one Triton kernel forward, one backward.

What they compute stands in `quantizer`; csrc/train/fake_quantize.cpp does the same on the CPU. Only
fused.py imports this module, for a tensor on a GPU and where Triton is there. Triton and
not CUDA: it comes with PyTorch and needs no toolkit, and a pass over memory needs nothing more.

These kernels have not run on a GPU yet. tests/test_fake_quantize_triton.py runs them in Triton's
interpreter, compiles them for an H100 and looks at the outcome.

Memory is seen as lanes: all elements of a lane have one step size and one tau.

    layout                        lanes     from lane to lane    along a lane
    one step, tau None or one         1                     -               1
    a step for each x[i]           x[i]             its length              1
    tau, [N, C, H, W] in order      N C                   H W               1
    tau, channels last                C                     1               C

A program works on a tile of some lanes, and some elements of each. Backward also writes the tile's
sums, one for each of its lanes, and torch adds these up in float64: no atomics, so the same input
gives the same gradient bit for bit.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

TILE = 2048  # elements, 16 for each thread of four warps
WIDE = 64  # elements side by side that a tile has at least, where there are as many
OPTIONS = {"enable_fp_fusion": False}  # a b + c with two roundings, whatever Triton's default is
MIN_STEP_SIZE = tl.constexpr(1e-8)  # of fake_quantize.py
MAGIC = tl.constexpr(12582912.0)  # 1.5 * 2^23: floats of this size are whole


@triton.jit
def _tile(lanes, length, lane_stride, stride, LANES: tl.constexpr, LENGTH: tl.constexpr):
    """This program's (lanes, which of these exist, offsets, which of these exist, place in sums).

    Whole pictures in a batch can have more than 2^31 elements, hence 64 bits.
    """
    program = tl.program_id(0).to(tl.int64)
    tiles_across = tl.cdiv(lanes, LANES)
    part = program // tiles_across
    lane = program % tiles_across * LANES + tl.arange(0, LANES)
    at = part * LENGTH + tl.arange(0, LENGTH)
    offsets = lane[:, None] * lane_stride + at[None, :] * stride
    exist = (lane < lanes)[:, None] & (at < length)[None, :]
    return lane, lane < lanes, offsets, exist, part * lanes + lane


@triton.jit
def _divide(x, step, tau, lane, steps, channels):
    """(z = (x + tau) / step, step), with IEEE's division: `/` would be an approximation."""
    step = tl.load(step + lane % steps)
    step = tl.where(step < MIN_STEP_SIZE, MIN_STEP_SIZE, step)[:, None]
    if tau is not None:
        x += tl.load(tau + lane % channels)[:, None]
    return tl.div_rn(x, tl.broadcast_to(step, x.shape)), step


@triton.jit
def _clamp(z, low, high):
    """NaN stays NaN: training has to notice it."""
    z = tl.where(z < low, low, z)
    return tl.where(z > high, high, z)


@triton.jit
def _round_even(z):
    return (z + MAGIC) - MAGIC


@triton.jit
def _forward(
    x, step, tau, y, lanes, length, lane_stride, stride, steps, channels, qmin, qmax,
    CODES: tl.constexpr, LANES: tl.constexpr, LENGTH: tl.constexpr,
):  # fmt: skip
    lane, _, offsets, exist, _ = _tile(lanes, length, lane_stride, stride, LANES, LENGTH)
    values = tl.load(x + offsets, mask=exist, other=0.0)
    z, size = _divide(values, step, tau, lane, steps, channels)
    code = _round_even(_clamp(z, qmin, qmax))
    tl.store(y + offsets, code.to(tl.bfloat16) if CODES else code * size, mask=exist)


@triton.jit
def _backward(
    g, x, step, tau, dx, step_sums, tau_sums, lanes, length, lane_stride, stride, steps, channels,
    qmin, qmax, sharpness, slope_scale,
    CODES: tl.constexpr, STRAIGHT: tl.constexpr, LANES: tl.constexpr, LENGTH: tl.constexpr,
):  # fmt: skip
    lane, lane_exists, offsets, exist, place = _tile(
        lanes, length, lane_stride, stride, LANES, LENGTH
    )
    grad = tl.load(g + offsets, mask=exist, other=0.0)
    values = tl.load(x + offsets, mask=exist, other=0.0)
    z, size = _divide(values, step, tau, lane, steps, channels)
    if CODES:
        grad = grad.to(tl.float32) * tl.div_rn(tl.full(size.shape, 1.0, tl.float32), size)
    clamped = _clamp(z, qmin, qmax)
    code = _round_even(clamped)
    slope = (z == clamped).to(tl.float32)  # 1 inside, 0 outside
    if not STRAIGHT:
        # phi'(u) = k / (2 tanh(k / 2)) sech(k (u - 1/2))^2, sech(t)^2 = 4 e / (1 + e)^2,
        # e = exp(-2 |t|).
        u = clamped - (code - (code > clamped).to(tl.float32))
        e = tl.exp(-2.0 * tl.abs(sharpness * (u - 0.5)))
        slope *= slope_scale * (4.0 * e) / ((1.0 + e) * (1.0 + e))
    grad_x = grad * slope
    tl.store(dx + offsets, grad_x, mask=exist)
    tl.store(step_sums + place, tl.sum(grad * (code - slope * clamped), 1), mask=lane_exists)
    if tau is not None:
        tl.store(tau_sums + place, tl.sum(grad_x, 1), mask=lane_exists)


class _Plan(NamedTuple):
    """Arguments of the kernels that follow from shapes, and how many programs to start."""

    sizes: tuple[int, ...]  # lanes, length, lane_stride, stride, steps, channels
    tile: dict[str, int]
    parts: int  # programs along a lane
    programs: int


def _plan(x: Tensor, step: Tensor, tau: Tensor | None, channel: int, qmin: int, qmax: int) -> _Plan:
    """Raises ValueError for what the kernels would read or round wrongly."""
    if not -1024 <= qmin <= 0 < qmax <= 1024:
        raise ValueError(
            f"the range is {qmin} to {qmax}; codes are small, from below 1 to above 0."
        )
    last = not x.is_contiguous()
    if x.dtype != torch.float32 or not (
        x.is_contiguous() or x.is_contiguous(memory_format=torch.channels_last)
    ):
        raise ValueError(
            f"x is {x.dtype} with strides {x.stride()}; x must be float32, contiguous or channels "
            "last. Copy it first."
        )
    for name, t in (("step", step), ("tau", tau)):
        if t is not None and (t.device, t.dtype, t.is_contiguous()) != (x.device, x.dtype, True):
            raise ValueError(f"{name} must be contiguous float32 on {x.device}, where x is.")
    steps, channels = step.numel(), 1 if tau is None else tau.numel()
    shape = tuple(x.shape)
    if steps != 1 and shape[:1] != (steps,):
        raise ValueError(
            f"there are {steps} steps for x of shape {shape}; step must have one value, or one "
            "along dimension 0 of x."
        )
    if tau is not None and (steps != 1 or channels not in (1, *shape[channel : channel + 1])):
        raise ValueError(
            f"there are {channels} taus and {steps} steps for dimension {channel} of x of shape "
            f"{shape}; tau must have one value for each channel of x, and step a single one."
        )
    if last and channels > 1 and channel != 1:
        raise ValueError(f"tau lies along dimension {channel} of {shape}: x must be contiguous.")

    inner = 1 if last else math.prod(shape[channel + 1 :])
    if channels == 1:
        lanes, length = steps, x.numel() // max(1, steps)
        strides = length, 1
    elif inner == 1:
        lanes, length = channels, x.numel() // max(1, channels)
        strides = 1, channels
    else:
        lanes, length = x.numel() // max(1, inner), inner
        strides = inner, 1
    # The axis that is contiguous in memory first, what is left for the other, and again.
    wide, other = (lanes, length) if strides[0] == 1 else (length, lanes)
    breadth = min(_power(wide), WIDE)
    depth = min(_power(other), TILE // breadth)
    breadth = min(_power(wide), TILE // depth)
    block = (breadth, depth) if strides[0] == 1 else (depth, breadth)
    parts = triton.cdiv(length, block[1])
    return _Plan(
        (lanes, length, *strides, steps, channels),
        {"LANES": block[0], "LENGTH": block[1]},
        parts,
        parts * triton.cdiv(lanes, block[0]),
    )


def _require_like(t: Tensor, x: Tensor, name: str) -> None:
    alike = (t.device, t.shape, t.stride()) == (x.device, x.shape, x.stride())
    if not alike or t.dtype not in (torch.float32, torch.bfloat16):
        raise ValueError(
            f"{name} must be float32 or bfloat16 with the device, sizes and strides of x."
        )


def _power(n: int) -> int:
    return triton.next_power_of_2(max(1, n))


def fake_quantize(
    x: Tensor, step: Tensor, tau: Tensor | None, channel: int, qmin: int, qmax: int, y: Tensor
) -> None:
    """Write x_hat to y, or if y is bfloat16 the codes. Arguments: `FusedForPhi`, fake_quantize.py.

    Raises ValueError for layouts, types and numbers of steps and taus that the kernel cannot take.
    """
    plan = _plan(x, step, tau, channel, qmin, qmax)
    _require_like(y, x, "y")
    if plan.programs:
        with torch.cuda.device_of(x):
            _forward[(plan.programs,)](
                x, step, tau, y, *plan.sizes, float(qmin), float(qmax),
                CODES=y.dtype == torch.bfloat16, **plan.tile, **OPTIONS,
            )  # fmt: skip


def fake_quantize_backward(
    grad: Tensor,
    x: Tensor,
    step: Tensor,
    tau: Tensor | None,
    channel: int,
    qmin: int,
    qmax: int,
    sharpness: float,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """The gradients of x, step and tau (None where tau is), each the shape of its own.

    grad: dL/dx_hat, or in bfloat16 dL/dcodes, with the sizes and strides of x. sharpness: phi's k,
    0 or more.
    """
    plan = _plan(x, step, tau, channel, qmin, qmax)
    _require_like(grad, x, "grad")
    lanes, *_, steps, channels = plan.sizes
    grad_x = torch.empty_like(x)
    sums = x.new_empty((1 if tau is None else 2, plan.parts, lanes))
    if plan.programs:
        scale = 1.0 if sharpness == 0 else sharpness / (2 * math.tanh(sharpness / 2))
        with torch.cuda.device_of(x):
            _backward[(plan.programs,)](
                grad, x, step, tau, grad_x, sums[0], sums[-1], *plan.sizes, float(qmin),
                float(qmax), float(sharpness), scale, CODES=grad.dtype == torch.bfloat16,
                STRAIGHT=sharpness == 0, **plan.tile, **OPTIONS,
            )  # fmt: skip
    by_lane = sums.sum(1, dtype=torch.float64)
    shared = max(1, x.numel() // max(1, steps))
    grad_step = (by_lane[0] if steps == lanes else by_lane[0].sum()) / math.sqrt(shared * qmax)
    grad_tau = None
    if tau is not None:
        grad_tau = (
            by_lane[1]
            .view(lanes // max(1, channels), channels)
            .sum(0)
            .to(tau.dtype)
            .view(tau.shape)
        )
    return grad_x, grad_step.to(step.dtype).view(step.shape), grad_tau
