"""A packed network on a GPU, beside the half-precision network that one could have instead.

    qsr bench [network] --device cuda      float picture to float picture
    qsr bench kernel --device cuda         one 3x3 convolution, 64 -> 64 channels

Everything is held in a CUDA graph, so nobody waits for Python: the packed network, and its
full-precision layout in float16, channels last, which cuDNN runs on its tensor cores, as it is and
compiled by torch.compile. As on the CPU, nothing is timed before its output has been compared, all
contenders take turns, and best and median of the rounds count. A turn is RUNS runs between two
events of the device.

**This has never run on a GPU.** The tests rehearse it on the CPU, where there is no graph to hold.
"""

from __future__ import annotations

import copy
import functools
import json
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ..backbone import QuantSR
from ..integer import kernels
from ..integer.bitplanes import BitPlanes
from ..integer.packing import PackedModel, pack
from ..paper import report as tables
from ..system.errors import first_line
from ..system.files import replacing
from .engine import LEAST_PSNR, picture, take_turns
from .peers import collapse_inside, float_config

RUNS = 20  # of a turn
PACKED_PSNR = 60.0  # dB to the packed network on the CPU: the tail may run in TF32

Run = Callable[[], Tensor]  # every call gives the same output, perhaps in the same memory


@dataclass(frozen=True)
class Row:
    """A contender. tail: "collapsed" or "ordinary", "" for a kernel. agrees: how its output differs
    from what it should be. note: why it was not timed; then times are None.
    """

    name: str
    tail: str = ""
    agrees: str = ""
    best_ms: float | None = None
    median_ms: float | None = None
    note: str = ""


# A device -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Held:
    """A run in a CUDA graph, which reads the weights and the picture of `run`: it stays alive."""

    run: Run
    graph: torch.cuda.CUDAGraph
    out: Tensor

    def __call__(self) -> Tensor:
        self.graph.replay()
        return self.out


def hold(run: Run, device: torch.device) -> Run:
    """`run` as a CUDA graph; as it is on a device without."""
    if device.type != "cuda":
        return run
    aside = torch.cuda.Stream(device)
    aside.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(aside):  # libraries choose and allocate before anything is held
        for _ in range(3):
            run()
    torch.cuda.current_stream(device).wait_stream(aside)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = run()
    return Held(run, graph, out)


def seconds(run: Run, device: torch.device) -> float:
    """Of one run, as the device sees it; the mean over RUNS."""
    if device.type != "cuda":
        began = time.perf_counter()
        run()
        return time.perf_counter() - began
    first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    first.record()
    for _ in range(RUNS):
        run()
    last.record()
    last.synchronize()
    return first.elapsed_time(last) / 1e3 / RUNS


def time_all(
    contenders: Iterator[tuple[Row, Run, Callable[[Tensor], str]]],
    device: torch.device,
    rounds: int,
) -> tuple[Row, ...]:
    """(row, run, agrees) of each -> rows with times. agrees: of an output, raises ValueError."""
    rows, runs = [], []
    for row, run, agrees in contenders:
        try:
            held = hold(run, device)
            rows.append(replace(row, agrees=agrees(held().cpu())))
            runs.append(functools.partial(seconds, held, device))
        except Exception as error:  # of one contender: the others go on
            rows.append(replace(row, note=first_line(error)))
    times = iter(take_turns(runs, rounds, str(device)))
    done = []
    for row in rows:
        best, median = (None, None) if row.note else next(times)
        done.append(replace(row, best_ms=best, median_ms=median))
    return tuple(done)


# Networks -----------------------------------------------------------------------------------------


def bench_network(
    model: QuantSR | PackedModel,
    size: int,
    rounds: int,
    blocks: int | None = None,
    device: str = "cuda",
    compiled: bool = True,
) -> tuple[Row, ...]:
    """The packed network and its full-precision layout. compiled: also by torch.compile.

    Raises ValueError for a network that has no program on the device.
    """
    where = torch.device(device)
    packed = pack(model) if isinstance(model, QuantSR) else model
    lr = picture(size)
    expected = packed(lr, blocks=blocks)
    packed = packed.to(where)
    if packed.program is None:
        raise ValueError(
            f"this network has no program on {device} (`qsr info` says whether there are CUDA "
            "kernels); a QuantSR-C of one width has one on GPUs from compute capability 7.5 on."
        )
    with torch.inference_mode():
        return time_all(_networks(packed, lr, expected, blocks, where, compiled), where, rounds)


def _networks(packed, lr, expected, blocks, device, compiled) -> Iterator:
    there = lr.to(device)
    run = functools.partial(packed, there, blocks=blocks)
    check = functools.partial(_agrees, expected=expected, least=PACKED_PSNR)
    yield Row(packed.program.kernel, "collapsed"), run, check
    config = float_config(packed.config, blocks)
    torch.manual_seed(0)
    ordinary = QuantSR(config).eval().requires_grad_(False)
    half = there.half().contiguous(memory_format=torch.channels_last)
    for tail in ("ordinary", "collapsed"):
        net = ordinary if tail == "ordinary" else collapse_inside(ordinary)
        check = functools.partial(_agrees, expected=net(lr), least=LEAST_PSNR)
        net = copy.deepcopy(net).to(device, torch.float16)
        net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch's types
        yield Row("cudnn-fp16", tail), functools.partial(net, half), check
        if compiled:  # tuned; the graph is ours, as for everybody
            tuned = torch.compile(net, mode="max-autotune-no-cudagraphs")
            yield Row("compile-fp16", tail), functools.partial(tuned, half), check


def _agrees(out: Tensor, expected: Tensor, least: float) -> str:
    """The PSNR in dB over a range of 1. Raises ValueError below `least`; NaN is below."""
    psnr = -10 * (out.double() - expected.double()).square().mean().clamp(min=1e-20).log10().item()
    if not psnr >= least:
        raise ValueError(f"{psnr:.1f} dB, less than {least:g}: not timed")
    return f"{psnr:.0f} dB"


# Kernels ------------------------------------------------------------------------------------------


def bench_kernel(size: int, rounds: int, device: str = "cuda") -> tuple[Row, ...]:
    """Every integer convolution of the device at 4 and 2 bits, packed codes in and sums out, and
    cuDNN's in half precision.
    """
    where = torch.device(device)
    with torch.inference_mode():
        return time_all(_kernels(size, where), where, rounds)


def _kernels(size: int, device: torch.device) -> Iterator:
    for bits in (4, 2):
        half = 1 << bits - 1
        a, w = (
            kernels.pack_codes(
                torch.randint(-half, half, (*shape, 64), dtype=torch.int8), bits=bits, signed=True
            )
            for shape in ((1, size, size), (64, 3, 3))
        )
        expected = kernels.conv2d(a, w, padding=1)
        a, w = (BitPlanes(x.words.to(device), x.signed, x.channels) for x in (a, w))
        for name in kernels.native_rows("conv2d", device):
            run = functools.partial(kernels.conv2d, a, w, padding=1, kernel=name)
            check = functools.partial(_is, expected=expected)
            yield Row(f"{name} w{bits}a{bits}"), run, check
    x, weight = torch.rand(1, 64, size, size), torch.rand(64, 64, 3, 3) / 24
    expected = F.conv2d(x, weight, padding=1)
    options: dict[str, Any] = {"device": device, "dtype": torch.float16}
    x, weight = (t.to(**options).contiguous(memory_format=torch.channels_last) for t in (x, weight))
    run = functools.partial(F.conv2d, x, weight, padding=1)
    check = functools.partial(_agrees, expected=expected, least=LEAST_PSNR)
    yield Row("cudnn-fp16"), run, check


def _is(out: Tensor, expected: Tensor) -> str:
    if not torch.equal(out, expected):
        raise ValueError(f"{(out != expected).sum().item()} sums are wrong: not timed")
    return "exact"


# Text ---------------------------------------------------------------------------------------------


def gpu(device: str) -> str:
    """What the device is called, and the versions that take part."""
    where = torch.device(device)
    name = torch.cuda.get_device_name(where) if where.type == "cuda" else "a rehearsal on the CPU"
    return f"{name}; torch {torch.__version__}, cuDNN {torch.backends.cudnn.version()}"


def markdown(title: str, rows: Sequence[Row], device: str = "cuda") -> str:
    """The table; the first row is what the others are compared with."""
    ours, lines = rows[0].best_ms, []
    for row in rows:
        if row.best_ms is not None and row.median_ms is not None:
            ratio = f"{row.best_ms / ours:.2f}x" if ours else "-"
            times = f"{row.best_ms:.3f} ({row.median_ms:.3f})"
            lines.append([row.name, row.tail or "-", times, ratio, row.agrees])
    heads = ["", "tail", "ms, best (median)", f"over {rows[0].name}", "agrees"]
    notes = [f"- {row.name} {row.tail}".rstrip() + f": {row.note}" for row in rows if row.note]
    parts = [gpu(device), f"**{title}**", tables.markdown(heads, lines, 2, aligned=True)]
    return "\n\n".join([*parts, *(["\n".join(notes)] if notes else [])])


def write_json(
    reports: Mapping[str, Sequence[Row]], path: str | os.PathLike, device: str = "cuda"
) -> None:
    """{title: rows}, whole or not at all. Raises ValueError for a place that can't be written."""
    tables = {title: [asdict(row) for row in rows] for title, rows in reports.items()}
    with replacing(path) as temporary:
        temporary.write_text(json.dumps({"gpu": gpu(device), "tables": tables}, indent=1) + "\n")
