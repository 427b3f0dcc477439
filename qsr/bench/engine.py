"""How fast it is, beside what one could have instead.

Three levels, each timed in one run in which all contenders take turns, so that a change of the
clock or of the machine's mood meets all of them; the best and the median of the rounds count.
Nothing is timed before its output has been compared: a contender that computes something else is
reported, and has no time.

    kernel    integer convolutions, 64 -> 64 channels, 3x3, packed codes in, sums out
    layer     the same convolution as a layer of a network: float in and out; codes in and out
    network   float picture to float picture, against PyTorch and the engines of `peers`

In `network` each contender lives in a process of its own, with its own thread pool and its own
peak of memory: the largest resident size while it runs, less what was resident before it loaded the
network (Python, PyTorch and the engine's library). Those in waiting sleep.

What counts as work is the same for all: the products of the ordinary graph (`qsr.complexity`).
GMAC/s are those products over the time, and the share of the ceiling is that rate over the rate of
the processor's best instruction of this kind, measured in the same run
(csrc/bench/ceiling.cpp). Winograd convolution and the collapsed tail do fewer products than are
counted, so a share can pass 100 %.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import importlib.metadata
import multiprocessing
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from ..backbone import QuantSR
from ..calibration import calibrate
from ..config import NetworkConfig, quantsr_c
from ..images.data import photo
from ..integer import kernels, plan_table
from ..integer.packing import PackedModel, pack
from ..integer.stored import StoredNetwork
from ..layers import QConv2d, split_bits
from ..models import zoo
from ..models.enlarger import Enlarger
from ..models.file import load_model, save
from ..paper.costs import complexity
from ..system import native
from ..system.errors import first_line
from ..system.machine import check_threads, machine
from . import peers
from .peers import Peer, Runner, Task

LARGEST = 1e-3  # float32 contenders may differ so much from PyTorch, on values of 0 to 1
LEAST_PSNR = 35.0  # dB to the float32 output; random networks: 8 bits 53 to 60, wrong ones below 30
REFERENCE_SIDE = 24  # pixels of the crop on which packed networks meet qsr.reference
PAUSE = 0.02  # seconds between turns, for threads of the last contender to fall asleep
RUNS_A_TURN = 3  # of a network; the shortest counts: the first finds cold caches, sleeping threads

# Ceilings -----------------------------------------------------------------------------------------


def ceilings(seconds: float = 0.1) -> dict[str, float]:
    """Multiply-accumulates a second of one core by instruction, best of five measurements.

    Binary products for "popcnt" and "vpopcnt": w4a4 needs 16 of them for one. "clock" is the core's
    frequency in Hz. Empty without native code.
    """
    if not native.load().native:
        return {}
    names = torch.ops.qsr_native.peak_names().split(",")
    best = dict.fromkeys(names, 0.0)
    for _ in range(5):
        for name in names:
            best[name] = max(best[name], torch.ops.qsr_native.peak(name, seconds / 5))
    return best


def ceiling(rates: dict[str, float], kind: str, bits: tuple[int, int] = (8, 8)) -> float | None:
    """The best rate for "float32", "bfloat16" or "codes" of these widths; None if not measured."""
    planes = bits[0] * bits[1]
    kinds: dict[str, dict[str, float]] = {
        "float32": {"fma": 1, "fma512": 1},
        "bfloat16": {"bf16": 1},
        "codes": {
            "maddubs": 1,
            "dpbusd": 1,
            "popcnt": 1 / planes,
            "vpopcnt": 1 / planes,
            "shufb": planes <= 4,
        },
    }
    found = [rates[name] * factor for name, factor in kinds[kind].items() if name in rates]
    return max(found, default=None)


@contextlib.contextmanager
def threads_of(count: int) -> Iterator[None]:
    """PyTorch and the kernels on so many threads, and afterwards on as many as before."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


# Turns --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Timing:
    """What one contender did.

    column: "packed" (ours), "ordinary" or "collapsed" (peers), "depth" (a model of the zoo at one
    of its depths, for the plot), else "". gmacs: 1e9 products of the
    ordinary graph a second. share: of the ceiling, 0.5 is half. memory: bytes, see the module.
    largest, psnr: how the output differs from what it should be; dB over a range of 1.
    note: why it was not timed; then the times are None.
    """

    name: str
    column: str = ""
    threads: int = 1
    blocks: int | None = None
    best_ms: float | None = None
    median_ms: float | None = None
    gmacs: float | None = None
    share: float | None = None
    memory: int | None = None
    largest: float | None = None
    psnr: float | None = None
    note: str = ""

    @property
    def ms(self) -> float:
        """`best_ms` of a contender that was timed."""
        assert self.best_ms is not None, self.note
        return self.best_ms


def take_turns(
    runs: Sequence[Callable[[], float]], rounds: int, what: str
) -> list[tuple[float, float]]:
    """Call each of `runs`, which return seconds, `rounds` times -> [(best, median)] in ms.

    what: stands before the progress bar, which only a terminal gets.
    """
    times: list[list[float]] = [[] for _ in runs]
    with tqdm(total=rounds * len(runs), desc=what, leave=False, disable=None) as bar:
        for _ in range(rounds):
            for run, seconds in zip(runs, times, strict=True):
                seconds.append(run())
                bar.update()
    return [(1e3 * min(t), 1e3 * statistics.median(t)) for t in times]


def timed(function: Callable[[], object]) -> Callable[[], float]:
    """A function that calls `function` and returns its seconds."""

    def run() -> float:
        began = time.perf_counter()
        function()
        return time.perf_counter() - began

    return run


# Kernel and layer ---------------------------------------------------------------------------------


def kernel_rows(size: int, threads: int, rounds: int, rates: dict[str, float]) -> list[Timing]:
    """Every integer convolution of this machine at 4, 3 and 2 bits, and the float one.

    Raises RuntimeError if two kernels disagree.
    """
    macs = size**2 * 64 * 64 * 9
    named, limits = {}, {}
    for bits in (4, 3, 2):
        a, w = _codes(1, size, size, bits=bits), _codes(64, 3, 3, bits=bits)
        outputs = {}
        for name in kernels.available("conv2d"):
            if name != kernels.REFERENCE:
                run = functools.partial(kernels.conv2d, a, w, padding=1, kernel=name)
                try:
                    outputs[name] = run()
                except ValueError:
                    continue  # it does not take codes of this width
                named[f"conv2d {name} w{bits}a{bits}"] = run
                limits[f"conv2d {name} w{bits}a{bits}"] = ceiling(rates, "codes", (bits, bits))
        if any(not torch.equal(out, outputs[name]) for name in outputs for out in outputs.values()):
            raise RuntimeError(f"w{bits}a{bits}: kernels disagree; nothing was timed.")
    for name in kernels.available("conv2d_float"):
        if name != kernels.REFERENCE:
            x, w = torch.rand(1, size, size, 64), torch.rand(64, 64, 3, 3)
            named[f"conv2d_float {name}"] = functools.partial(
                kernels.conv2d_float, x, w, padding=1, kernel=name
            )
            limits[f"conv2d_float {name}"] = ceiling(rates, "float32")
    return _local_rows(named, limits, macs, threads, rounds, "kernels")


def _codes(*shape: int, bits: int):
    """Random signed codes [*shape, 64], packed."""
    low, high = -(1 << (bits - 1)), 1 << (bits - 1)
    codes = torch.randint(low, high, (*shape, 64), dtype=torch.int8)
    return kernels.pack_codes(codes, bits=bits, signed=True)


def _local_rows(named, limits, macs, threads: int, rounds: int, what: str) -> list[Timing]:
    """Time functions of this process: {name: function}, {name: ceiling}, one number of products."""
    for run in named.values():
        run()
    times = take_turns([timed(run) for run in named.values()], rounds, what)
    return [
        _with_times(Timing(name, threads=threads), *ms, macs, limits[name])
        for name, ms in zip(named, times, strict=True)
    ]


def _with_times(
    row: Timing, best: float, median: float, macs: int | None, ceiling: float | None
) -> Timing:
    """The row with its times in ms, and the rates that follow from them if products are counted."""
    if macs is None:
        return replace(row, best_ms=best, median_ms=median)
    rate = 1e3 * macs / best
    share = None if ceiling is None else rate / (ceiling * row.threads)
    return replace(row, best_ms=best, median_ms=median, gmacs=rate / 1e9, share=share)


DEEPER = 8  # blocks by which two depths differ, when one layer inside a network is timed


@torch.inference_mode()
def layer_rows(size: int, threads: int, rounds: int, rates: dict[str, float]) -> list[Timing]:
    """One 64 -> 64 layer: float in and out, packed and in PyTorch; and inside a packed network.

    Inside a network a layer takes codes and gives codes, fused with what lies between. Its time is
    the difference of two depths of one network, divided by the layers between them.
    """
    macs = size**2 * 64 * 64 * 9
    x = torch.rand(1, 64, size, size)
    plain = nn.Conv2d(64, 64, 3, padding=1).requires_grad_(False)
    last = nn.Conv2d(64, 64, 3, padding=1)
    last.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch's types lack it
    x_last = x.contiguous(memory_format=torch.channels_last)
    named = {
        "nn.Conv2d": functools.partial(plain, x),
        "nn.Conv2d channels-last": functools.partial(last, x_last),
    }
    limits: dict[str, float | None] = dict.fromkeys(named, ceiling(rates, "float32"))
    inside = {}
    for bits in (4, 3, 2):
        layer = QConv2d(64, 64, 3, padding=1, bits=bits)
        calibrate(layer, x)
        packed = pack(layer)
        name = f"packed w{bits}a{bits}"
        difference = (packed(x) - layer(x)).abs().max().item()
        if not difference <= LARGEST * layer(x).abs().max().item():
            raise RuntimeError(f"{name} differs from its training layer by {difference:.3g}.")
        named[name] = functools.partial(packed, x)
        config = quantsr_c(2, bits, blocks=1 + DEEPER, depths=(1 + DEEPER, 1))
        inside[f"{name}, inside a network"] = pack(random_network(config, size))
        limits[name] = ceiling(rates, "codes", (bits, bits))
    rows = _local_rows(named, limits, macs, threads, rounds, "layers")
    lr = picture(size)
    runs = []
    for model in inside.values():
        for blocks in (1, 1 + DEEPER):
            model(lr, blocks=blocks)
            runs.append(timed(functools.partial(model, lr, blocks=blocks)))
    times = take_turns(runs, rounds, "layers inside")
    for i, name in enumerate(inside):
        few, many = times[2 * i], times[2 * i + 1]
        best, median = ((m - f) / (2 * DEEPER) for f, m in zip(few, many, strict=True))
        row, limit = Timing(name, threads=threads), limits[name.partition(",")[0]]
        rows.append(_with_times(row, best, median, macs, limit))
    return rows


# Networks -----------------------------------------------------------------------------------------


def picture(size: int) -> Tensor:
    """float RGB [1, 3, size, size]: the bundled photograph, repeated where it is too small."""
    rgb = photo().rgb
    times = [-(-size // side) for side in rgb.shape[2:]]
    return rgb.repeat(1, 1, *times)[:, :, :size, :size].contiguous()


def random_network(config: NetworkConfig, size: int) -> QuantSR:
    """A calibrated network with random weights, the same at every call."""
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(0)
        net = QuantSR(config).eval()
    calibrate(net, picture(min(size, 64)))
    return net


@dataclass(frozen=True)
class Contender:
    """Something to time. open(threads) -> a Runner, in a process of its own.

    needs: modules to import before memory is counted. exact: float32. expected: its output, or None
    if there is nothing to compare with; border: pixels of it that may differ.
    """

    name: str
    column: str
    open: Callable[[int], Runner]
    needs: tuple[str, ...] = ()
    exact: bool = False
    expected: np.ndarray | None = None
    border: int = 0
    bits: tuple[int, int] = (8, 8)
    blocks: int | None = None
    write: Callable[[], object] | None = None  # makes its files, in a process of its own

    @property
    def kind(self) -> str:
        """The kind of arithmetic, for its ceiling."""
        return "float32" if self.exact else "bfloat16" if "bf16" in self.name else "codes"


def network_rows(
    contenders: Sequence[Contender],
    picture: np.ndarray,
    macs: int | None,
    threads: int,
    rounds: int,
    rates: dict[str, float],
) -> list[Timing]:
    """Open all contenders, compare what they give, and let those that agree take turns."""
    rows: list[Timing] = []
    with contextlib.ExitStack() as stack:
        ready: list[tuple[Contender, Timing, Worker]] = []
        for contender in tqdm(contenders, "opening", leave=False, disable=None):
            row = Timing(contender.name, contender.column, threads, contender.blocks)
            try:
                if contender.write is not None:
                    _in_process(_write, contender.write)
                arguments = (contender.needs, contender.open, threads, picture)
                process = stack.enter_context(Worker(_serve, *arguments))
                output, memory = process.ask()
                largest, psnr = _difference(output, contender)
                row = replace(row, memory=memory, largest=largest, psnr=psnr)
                _check_agreement(row, contender.exact)
                ready.append((contender, row, process))
            except Failed as error:
                rows.append(replace(row, note=str(error)))
        times = take_turns(
            [process.time for _, _, process in ready], rounds, f"{threads} thread(s)"
        )
        for (contender, row, _), (best, median) in zip(ready, times, strict=True):
            limit = ceiling(rates, contender.kind, contender.bits)
            rows.append(_with_times(row, best, median, macs, limit))
    return sorted(rows, key=lambda row: (row.column != "packed", row.best_ms or 1e9))


def _difference(
    output: np.ndarray, contender: Contender
) -> tuple[float, float] | tuple[None, None]:
    """How an output differs from the expected one, if there is one: largest and PSNR."""
    if contender.expected is None:
        return None, None
    if output.shape != contender.expected.shape:
        raise Failed(f"gives the shape {output.shape}, not {contender.expected.shape}")
    b = contender.border
    inner = (..., slice(b, output.shape[2] - b), slice(b, output.shape[3] - b))
    difference = (output[inner] - contender.expected[inner]).astype(np.float64)
    mean_square = max(float((difference**2).mean()), 1e-20)
    return float(np.abs(difference).max()), -10 * float(np.log10(mean_square))


def _check_agreement(row: Timing, exact: bool) -> None:
    """Raise Failed for an output that is not what it should be; NaN is not."""
    if row.psnr is None or row.largest is None:
        return
    if exact and not row.largest <= LARGEST:
        raise Failed(f"differs by {row.largest:.2g}, more than {LARGEST:g}: not timed")
    if not exact and not row.psnr >= LEAST_PSNR:
        raise Failed(f"{row.psnr:.1f} dB, less than {LEAST_PSNR:g}: not timed")


# A process each -----------------------------------------------------------------------------------


class Failed(Exception):
    """Why a contender has no time, in one line."""


class Worker:
    """A process that runs serve(connection, ...) and is asked and answers over a pipe."""

    def __init__(self, serve: Callable[..., None], *args) -> None:
        context = multiprocessing.get_context("spawn")  # a fork would inherit our threads' locks
        self.connection, theirs = context.Pipe()
        self.process = context.Process(target=_guarded, args=(theirs, serve, *args), daemon=True)
        self.process.start()
        theirs.close()

    def ask(self, what: object = None) -> Any:
        """Send `what` unless it is None, and wait for the answer. Raises Failed."""
        try:
            if what is not None:
                self.connection.send(what)
            kind, answer = self.connection.recv()
        except (EOFError, OSError) as error:
            self.process.join()
            raise Failed(f"its process ended with code {self.process.exitcode}") from error
        if kind == "failed":
            raise Failed(answer)
        return answer

    def time(self) -> float:
        time.sleep(PAUSE)
        return self.ask("run")

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *exception) -> None:
        self.process.terminate()
        self.process.join()
        self.connection.close()


def _in_process(serve: Callable[..., None], *args) -> Any:
    with Worker(serve, *args) as process:
        return process.ask()


def _guarded(connection: Connection, serve: Callable[..., None], *args) -> None:
    """Run in the child: engines print what they like to nowhere, errors go back in one line."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for stream in (sys.stdout, sys.stderr):
        os.dup2(nowhere, stream.fileno())
    try:
        serve(connection, *args)
    except EOFError:  # nobody is listening any more
        return
    except Exception as error:
        connection.send(("failed", first_line(error)))


def _write(connection: Connection, write: Callable[[], object]) -> None:
    write()
    connection.send(("done", None))


def _serve(
    connection: Connection,
    needs: Sequence[str],
    open: Callable[[int], Runner],
    threads: int,
    picture: np.ndarray,
) -> None:
    """Open, run, report output and memory; then run and report seconds whenever asked."""
    for module in needs:
        importlib.import_module(module)
    native.load()
    before = resident("VmRSS")
    run = open(threads)
    output = np.array(run(picture))
    forget_peak()
    run(picture)
    peak = resident("VmHWM")
    memory = None if peak is None or before is None else peak - before
    connection.send(("ready", (output, memory)))
    once = timed(functools.partial(run, picture))
    answer_times(connection, lambda: min(once() for _ in range(RUNS_A_TURN)))


def answer_times(connection: Connection, run: Callable[[], float]) -> None:
    """Send the seconds of a run whenever asked, until nobody asks any more."""
    while True:
        connection.recv()
        connection.send(("seconds", run()))


def resident(field: str) -> int | None:
    """VmRSS (now) or VmHWM (peak) of this process in bytes; None where Linux does not say."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith(field + ":"):
                return 1024 * int(line.split()[1])
    return None


def forget_peak() -> None:
    """Let VmHWM start again from what is resident now: loading and compiling are not running."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


# Who takes part -----------------------------------------------------------------------------------


def choose_peers(names: Sequence[str]) -> tuple[tuple[Peer, ...], str]:
    """(peers, a remark about what is not installed) for ["all"], ["none"] or names.

    Raises ValueError for a name that is none, or that is asked for by name and not installed.
    """
    if list(names) == ["none"]:
        return (), ""
    known = {peer.name: peer for peer in peers.PEERS}
    install = "pip install -e '.[bench]' in a clone of qsr"
    if list(names) == ["all"]:
        missing = sorted({module for peer in peers.PEERS for module in peer.missing})
        remark = f"not installed: {', '.join(missing)}. For all peers: {install}" if missing else ""
        return tuple(peer for peer in peers.PEERS if not peer.missing), remark
    for name in names:
        if name not in known:
            raise ValueError(
                f"no peer is called {name!r}; there are {', '.join(known)}, all, none."
            )
        if known[name].missing:
            raise ValueError(f"{name} needs {', '.join(known[name].missing)}: {install}")
    return tuple(known[name] for name in dict.fromkeys(names)), ""


def _open_packed(path: Path, blocks: int, threads: int) -> Runner:
    torch.set_num_threads(threads)
    model = load_model(path)
    return lambda picture: model(torch.from_numpy(picture), blocks=blocks).numpy()


def packed_contender(
    name: str,
    model: QuantSR | PackedModel,
    blocks: int,
    lr: Tensor,
    folder: Path,
    column: str = "packed",
) -> Contender:
    """A packed network in a file of its own. A trained network also says what is expected.

    Raises ValueError if it does not give what qsr.reference gives on a crop of the picture.
    """
    packed = pack(model) if isinstance(model, QuantSR) else model
    crop = lr[..., :REFERENCE_SIDE, :REFERENCE_SIDE]
    slow = PackedModel.empty(packed.config, kernels.REFERENCE)
    slow.load_state_dict(packed.state_dict())
    difference = (slow(crop, blocks=blocks) - packed(crop, blocks=blocks)).abs().max().item()
    if not difference <= LARGEST:
        raise ValueError(f"{name} differs from qsr.reference by {difference:.2g}; nothing to time.")
    expected = None
    if isinstance(model, QuantSR):
        with torch.inference_mode():
            expected = model(lr, model.plan(blocks)).numpy()
    path = folder / f"{column}-{name}-{blocks}.qsr"
    save(path, packed)
    run = functools.partial(_open_packed, path, blocks)
    assert packed.config.bits is not None
    bits = split_bits(packed.config.bits)
    return Contender(name, column, run, expected=expected, bits=bits, blocks=blocks)


def _open_stored(path: Path, by_layers: bool, threads: int) -> Runner:
    torch.set_num_threads(threads)
    network = load_model(path)
    assert isinstance(network, StoredNetwork)
    run = network.layer_by_layer if by_layers else network

    @torch.inference_mode()
    def enlarged(picture: np.ndarray) -> np.ndarray:
        return run(torch.from_numpy(picture)).numpy()

    return enlarged


def stored_contenders(
    name: str, model: Enlarger, lr: Tensor, folder: Path
) -> tuple[Contender, Contender]:
    """A packed network of any class, in a file of its own: by its plan, and layer by layer, which
    says what is expected. Raises ValueError if it takes no picture of this size.
    """
    network, path = model.network, folder / f"stored-{name}.qsr"
    network(lr)
    expected = network.layer_by_layer(lr).numpy()
    save(path, network)
    ours, layers = (
        Contender(
            name if column else f"{name}, layer by layer",
            column,
            functools.partial(_open_stored, path, not column),
            expected=expected,
        )
        for column in ("packed", "")
    )
    return ours, layers


def peer_contenders(
    chosen: Sequence[Peer], config: NetworkConfig, lr: np.ndarray, folder: Path
) -> Iterator[Contender]:
    """The peers on the network of this full-precision configuration, on both graphs.

    A Swin network has one convolution after its body: nothing to collapse.
    """
    swin = config.family == "swin"
    ordinary = Task(config, False, lr, folder)
    expected = peers.PEERS[0].open(ordinary, torch.get_num_threads())(lr)
    for task in (ordinary,) if swin else (ordinary, replace(ordinary, collapsed=True)):
        for peer in chosen:
            if swin and not peer.swin:
                continue
            yield Contender(
                peer.name,
                "collapsed" if task.collapsed else "ordinary",
                functools.partial(peer.open, task),
                peer.needs,
                peer.exact,
                expected,
                border=config.scale * task.collapsed,
                blocks=config.blocks,
                write=functools.partial(peer.write, task),
            )


# The three levels ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Report:
    """All rows of one run, and what is needed to read them.

    what: "kernel", "layer" or "network". macs: products of one run of it. ceilings: see there.
    """

    what: str
    title: str
    machine: dict[str, str]
    size: int
    rounds: int
    macs: int
    ceilings: dict[str, float]
    rows: tuple[Timing, ...]

    def ratios(self) -> list[dict]:
        """For each packed network and thread count: over which peer it is how many times as fast.

        "ordinary" and "collapsed" are (ratio, the fastest peer) or None; "pytorch" is the ratio to
        PyTorch eager; "scaling" is over the same network on the fewest threads.
        """
        timed = [row for row in self.rows if row.best_ms is not None]
        found = []
        for own in (row for row in timed if row.column == "packed"):
            same = [row for row in timed if row.threads == own.threads]
            ratios: dict = {"name": own.name, "threads": own.threads}
            for column in ("ordinary", "collapsed"):
                others = [row for row in same if row.column == column]
                best = min(others, key=lambda row: row.ms, default=None)
                ratios[column] = best and (best.ms / own.ms, best.name)
            eager = [r for r in same if (r.name, r.column) == ("pytorch", "ordinary")]
            ratios["pytorch"] = eager[0].ms / own.ms if eager else None
            alone = min(
                (r for r in timed if (r.name, r.column) == (own.name, "packed")),
                key=lambda row: row.threads,
            )
            ratios["scaling"] = alone.ms / own.ms if alone is not own else None
            found.append(ratios)
        return found


def bench_local(what: str, size: int, threads: Sequence[int], rounds: int) -> Report:
    """`what`: "kernel" or "layer". size: side of the square feature map."""
    for count in threads:
        check_threads(count)
    measure = {"kernel": kernel_rows, "layer": layer_rows}[what]
    rates, rows = ceilings(), list[Timing]()
    for count in threads:
        with threads_of(count):
            rows += measure(size, count, rounds, rates)
    title = f"3x3 convolution, 64 -> 64 channels, {size} x {size}"
    return Report(what, title, machine(), size, rounds, size**2 * 64 * 64 * 9, rates, tuple(rows))


def bench_stored(
    name: str, model: Enlarger, size: int = 128, threads: Sequence[int] = (1,), rounds: int = 5
) -> Report:
    """Time a packed network of any class by its plan and layer by layer, float picture to float
    picture of size x size. Raises ValueError if it takes no such picture, or has no plan.
    """
    for count in threads:
        check_threads(count)
    plan = model.network.plan
    if plan.reason:
        raise ValueError(f"{name} runs {plan}, so there is no plan to time.")
    products = plan_table.measure(plan, model.network).products
    macs = products * size**2 // plan_table.SIDE**2
    lr, rates, rows = picture(size), ceilings(), list[Timing]()
    with tempfile.TemporaryDirectory(prefix="qsr-bench-") as folder:
        both = stored_contenders(name, model, lr, Path(folder))
        for count in threads:
            rows += network_rows(both, lr.numpy(), macs, count, rounds, rates)
    title = f"{name} x{model.config.scale}, {size} x {size} pixels in"
    return Report("network", title, machine(), size, rounds, macs, rates, tuple(rows))


def bench_network(
    models: Mapping[str, QuantSR | PackedModel],
    size: int = 128,
    threads: Sequence[int] = (1,),
    rounds: int = 5,
    chosen: Sequence[Peer] = (),
    blocks: int | None = None,
    depths: bool = False,
) -> Report:
    """Time packed networks against `chosen` peers, float picture to float picture.

    models: {name: trained or packed network}, all of one layout. size: side of the square picture.
    blocks: depth of the models, None for all. depths: also time the zoo's models at their depths.
    Raises ValueError for models of several layouts, or one that disagrees with qsr.reference.
    """
    for count in threads:
        check_threads(count)
    layouts = {peers.float_config(model.config, blocks) for model in models.values()}
    if len(layouts) != 1:
        raise ValueError(
            f"{', '.join(models)} have different layouts; one run compares networks of one scale, "
            "size and depth. Bench them one by one."
        )
    (config,) = layouts
    macs = sum(layer.macs for layer in complexity(config, (size, size)).layers)
    lr, rates = picture(size), ceilings()
    rows: list[Timing] = []
    with tempfile.TemporaryDirectory(prefix="qsr-bench-") as name:
        folder = Path(name)
        ours = [
            packed_contender(name, model, config.blocks, lr, folder)
            for name, model in models.items()
        ]
        for zoo_name in zoo.names() if depths else ():
            model = zoo.load(zoo_name)
            if isinstance(model, PackedModel) and model.config.scale == config.scale:
                for depth in model.config.depths:
                    ours.append(packed_contender(zoo_name, model, depth, lr, folder, "depth"))
        theirs = list(peer_contenders(chosen, config, lr.numpy(), folder))
        for count in threads:
            rows += network_rows([*ours, *theirs], lr.numpy(), macs, count, rounds, rates)
    family = "QuantSR-T" if config.family == "swin" else "QuantSR-C"
    title = f"{family} x{config.scale}, {config.blocks} blocks, {size} x {size} pixels in"
    return Report("network", title, machine(), size, rounds, macs, rates, tuple(rows))
