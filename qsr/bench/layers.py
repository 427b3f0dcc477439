"""How fast a packed layer is that someone takes into their own network, beside the float one.

Float in and float out, in both memory formats; each kind of layer that networks have. A layer is
compared with `qsr.reference` before it is timed, and all that stands in a line of the table took
turns in one run. "Faster" is the better format of the float layer over the better one of ours.

The last line is the 64-channel layer inside a packed network, fused with its neighbours: the time
by which one more layer lengthens it. That is what a layer alone is to be held to.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..calibration import calibrate
from ..config import quantsr_c
from ..convert import quantize
from ..integer.packing import pack
from ..paper import report as tables
from .engine import DEEPER, picture, random_network, take_turns, threads_of, timed

SMALL = 20  # side of the crop on which a layer meets the reference
PIXELS = torch.channels_last


@dataclass(frozen=True)
class Kind:
    """A layer of networks: what makes it in float, the channels and the side of its pictures."""

    name: str
    make: Callable[[], nn.Conv2d]
    size: int
    bits: int = 4


def kinds(size: int) -> tuple[Kind, ...]:
    """The lines of the table, for pictures of this side; two have a quarter of it, and twice."""
    conv = functools.partial(nn.Conv2d, kernel_size=3, padding=1)
    wide = functools.partial(conv, 64, 64)
    return (
        Kind("3x3, 64 channels", wide, size),
        Kind("3x3, 64, 8 bits", wide, size, 8),
        Kind("1x1, 64, 8 bits", functools.partial(nn.Conv2d, 64, 64, 1), size, 8),
        Kind("3x3, 64, stride 2", functools.partial(wide, stride=2), size),
        Kind("3x3, 64, groups 4", functools.partial(wide, groups=4), size),
        Kind("3x3, 64, depthwise", functools.partial(wide, groups=64), size),
        Kind("3x3, 48", functools.partial(conv, 48, 48), size),
        Kind("3x3, 52", functools.partial(conv, 52, 52), size),
        Kind("3x3, 60", functools.partial(conv, 60, 60), size),
        Kind("3x3, 3 to 64, 8 bits", functools.partial(conv, 3, 64), size, 8),
        Kind("3x3, 64 to 3", functools.partial(conv, 64, 3), size),
        Kind(f"3x3, 64, {size // 4} pixels", wide, size // 4),
        Kind(f"3x3, 64, {2 * size} pixels", wide, 2 * size),
    )


@dataclass(frozen=True)
class Line:
    """Best times in ms: ours and float, by planes (NCHW) and by pixels (channels-last)."""

    name: str
    kernel: str
    ours: tuple[float, float]
    float32: tuple[float, float]

    @property
    def faster(self) -> float:
        return min(self.float32) / min(self.ours)


@dataclass(frozen=True)
class LayerReport:
    """inside: ms of the 64-channel layer inside a packed network."""

    size: int
    threads: int
    rounds: int
    lines: tuple[Line, ...]
    linear: tuple[float, float]  # ours and float, 4096 rows of 768 to 768
    inside: float

    def as_dict(self) -> dict[str, Any]:
        lines = [{**asdict(line), "faster": line.faster} for line in self.lines]
        return {**asdict(self), "lines": lines}

    @property
    def alone(self) -> tuple[float, float]:
        """Of the 64-channel layer alone, by planes and by pixels: times as long as inside."""
        planes, pixels = (ms / self.inside for ms in self.lines[0].ours)
        return planes, pixels


@torch.inference_mode()
def bench_layers(size: int, threads: int, rounds: int) -> LayerReport:
    """Compare and time. Raises RuntimeError for a layer that differs from the reference."""
    with threads_of(threads):
        return _timed(size, threads, rounds)


def _timed(size: int, threads: int, rounds: int) -> LayerReport:
    network = pack(random_network(quantsr_c(2, 4, blocks=1 + DEEPER, depths=(1 + DEEPER, 1)), size))
    lr = picture(size)
    depths = [functools.partial(network, lr, blocks=blocks) for blocks in (1, 1 + DEEPER)]
    first, *others = kinds(size)
    # The line that is held to the network shares its turns.
    line, (few, many) = _line(first, rounds, depths)
    lines = (line, *(_line(kind, rounds)[0] for kind in others))
    x, layer = torch.randn(4096, 768), nn.Linear(768, 768)
    packed = _packed(layer, x, x[:64])
    linear = _best([functools.partial(packed, x), functools.partial(layer, x)], rounds)
    inside = (many - few) / (2 * DEEPER)
    return LayerReport(size, threads, rounds, lines, (linear[0], linear[1]), inside)


def _line(
    kind: Kind, rounds: int, more: Sequence[Callable[[], object]] = ()
) -> tuple[Line, list[float]]:
    """A line, and the times of what else takes turns with it."""
    layer = kind.make()
    x = torch.randn(1, layer.in_channels, kind.size, kind.size)
    packed = _packed(layer, x, x[..., :SMALL, :SMALL], kind.bits)
    last = kind.make().to(memory_format=PIXELS)  # type: ignore[call-overload]
    by_pixels = x.contiguous(memory_format=PIXELS)
    runs: list[Callable[[], object]] = [
        functools.partial(packed, x),
        functools.partial(packed, by_pixels),
        functools.partial(layer, x),
        functools.partial(last, by_pixels),
    ]
    times = _best([*runs, *more], rounds)
    ours, float32 = (times[0], times[1]), (times[2], times[3])
    return Line(kind.name, packed.running_kernel(), ours, float32), times[4:]


def _packed(layer: nn.Module, x: Tensor, crop: Tensor, bits: int = 4) -> Any:
    low = quantize(layer, bits=bits)
    calibrate(low, x)
    fast, slow = pack(low), pack(low, "reference")
    if not torch.equal(fast(crop), slow(crop)):
        raise RuntimeError(f"{layer} differs from the reference; nothing was timed.")
    return fast


def _best(runs: Sequence[Callable[[], object]], rounds: int) -> list[float]:
    for run in runs:
        run()
    return [best for best, _ in take_turns([timed(run) for run in runs], rounds, "layers")]


def table(report: LayerReport) -> str:
    """Markdown."""
    plural = "s" if report.threads > 1 else ""
    heads = ["", "kernel", "packed, NCHW", "channels-last", "float, NCHW", "channels-last", ""]
    cells = []
    for line in report.lines:
        times = [f"{ms:.3f}" for ms in (*line.ours, *line.float32)]
        cells.append([line.name, line.kernel, *times, f"{line.faster:.1f}x"])
    ours, float32 = report.linear
    linear = ["4096 rows, 768 to 768", "", f"{ours:.2f}", "", f"{float32:.2f}", ""]
    cells.append([*linear, f"{float32 / ours:.1f}x"])
    size, (planes, pixels) = report.size, report.alone
    return "\n".join(
        [
            f"**Packed layers, {size} x {size} pixels, {report.threads} thread{plural}**, ms, best "
            f"of {report.rounds}",
            "",
            tables.markdown(heads, cells, right=2),
            "",
            f"Inside a network the first takes {report.inside:.3f} ms: alone {pixels:.2f} times as "
            f"long by channels-last, {planes:.2f} by NCHW.",
        ]
    )
