"""Each step of a plan, beside the least time that it could take.

A step cannot be faster than its multiplications at the rate of the processor's best instruction for
codes of its bits, nor than its bytes at the rate of a copy in memory: the longer of both is its
roofline. Both rates are measured in the same run, on as many threads. Winograd does fewer products
than are counted and a small map stays in the cache, so a step can be above its roofline.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn

from ..integer.executor import Executor, kernel_of
from ..integer.plan import Plan, as_picture
from ..integer.plan_table import bits_of, products, step_bytes
from . import engine

COPIED = 2**26  # bytes, for the rate of a copy; more than the caches hold


@dataclass(frozen=True)
class TimedStep:
    """ms: the shortest of all rounds. products, bytes: of the step. roofline: ms."""

    step: str
    kernel: str
    ms: float
    products: int
    bytes: int
    roofline: float


def time_steps(
    plans: Sequence[Plan], layers: nn.Module, size: int, threads: int = 1, rounds: int = 5
) -> list[TimedStep]:
    """All steps of some regions in turn, for inputs of size x size random numbers.

    layers: the network, or whatever has its packed layers by their names. Raises ValueError where
    inputs of one size do not fit together.
    """
    with engine.threads_of(threads):
        rates, copied = engine.ceilings(), _copy_rate()
        found = []
        for plan in plans:
            found += _time_region(plan, layers, size, rounds, rates, threads, copied)
        return found


def _time_region(
    plan: Plan,
    layers: nn.Module,
    size: int,
    rounds: int,
    rates: dict[str, float],
    threads: int,
    copied: float,
) -> list[TimedStep]:
    run = Executor(plan, layers)
    sizes = [as_picture(size * size) if plan.rows else (size, size) for _ in plan.inputs]
    for node, a, b in plan.equal:
        if a.of(sizes) != b.of(sizes):
            raise ValueError(f"{node!r} joins values of other sizes than {size} x {size}.")
    inputs = [torch.randn(*s, v.channels) for s, v in zip(sizes, plan.values, strict=False)]
    numbers, workspace, outputs = run.prepare(inputs)
    best = [math.inf] * len(plan.steps)
    for _ in range(rounds):
        for i in range(len(plan.steps)):  # in turn, so that each finds what the one before left
            begin = time.perf_counter()
            run.run(inputs, numbers, workspace, outputs, i, i + 1)
            best[i] = min(best[i], time.perf_counter() - begin)
    found = []
    for step, seconds in zip(plan.steps, best, strict=True):
        count, rate = products(step, layers, sizes), math.inf
        if bits := bits_of(step, layers):
            rate = threads * (engine.ceiling(rates, "codes", bits) or math.inf)
        moved = step_bytes(plan, step, sizes)
        least = max(count / rate, moved / copied)
        kernel = kernel_of(plan, step, layers) or "-"
        found.append(
            TimedStep(step.layer or step.op, kernel, 1e3 * seconds, count, moved, 1e3 * least)
        )
    return found


def _copy_rate() -> float:
    """Bytes a second that a copy reads and writes, the best of five."""
    source = torch.zeros(COPIED, dtype=torch.uint8)
    target, best = torch.empty_like(source), math.inf
    for _ in range(5):
        begin = time.perf_counter()
        target.copy_(source)
        best = min(best, time.perf_counter() - begin)
    return 2 * COPIED / best


def table(timed: Sequence[TimedStep]) -> str:
    """One row a step, and what they take together."""
    heads = ("step", "kernel", "ms", "roofline ms", "of it", "MMAC", "KB")
    rows = [heads]
    for t in timed:
        share = f"{100 * t.roofline / t.ms:.0f} %"
        numbers = f"{t.ms:.3f}", f"{t.roofline:.3f}", share, f"{t.products / 1e6:.1f}"
        rows.append((t.step, t.kernel, *numbers, f"{t.bytes / 1024:.0f}"))
    total, least = sum(t.ms for t in timed), sum(t.roofline for t in timed)
    rows.append(("all", "", f"{total:.3f}", f"{least:.3f}", f"{100 * least / total:.0f} %", "", ""))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join([*map(str.ljust, row[:2], widths), *map(str.rjust, row[2:], widths[2:])]).rstrip()
        for row in rows
    )
