"""How long a training step takes: quantised beside full precision, several depths beside one.

Contenders take turns, each in a process of its own, on one batch of random patches:

    full precision           the same network without quantizers, its deepest depth alone
    quantised                the deepest depth alone, with the fused kernels of `fused`
    plain PyTorch            the same by PyTorch's own operators (the definition, `FakeQuantize`)
    joint                    all depths of the network, a backward pass each, one step of Adam

Before anything is timed, the losses of the first step must agree: of the two quantised ones, which
compute the same, to 1e-3.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Literal

import torch
from torch import Tensor

from ..backbone import QuantSR
from ..config import NetworkConfig, TrainConfig
from ..convert import calibrate
from ..paper.costs import complexity
from ..paper.report import markdown
from ..quantizer import RLQ, Quantizer, phi_slope
from ..system import native
from ..system.machine import machine
from ..train import make_optimizer, train_step
from .engine import Worker, answer_times, take_turns, timed


class PlainRLQ(RLQ):
    """RLQ whose slope is a function that the fused kernels do not know."""

    def slope(self, u: Tensor) -> Tensor:  # type: ignore[override]  # see `Quantizer.slope`
        """phi'(u), the same values."""
        return phi_slope(u, self.sharpness)


@dataclass(frozen=True)
class Step:
    """One contender. memory: bytes that a step adds at its peak: activations and gradients.

    over: time over that of the full-precision step.
    """

    name: str
    threads: int
    best_ms: float
    median_ms: float
    over: float
    memory: int


def bench_train(
    config: NetworkConfig,
    patch: int = 24,
    batch: int = 8,
    threads: Sequence[int] = (1,),
    rounds: int = 5,
    precision: Literal["float32", "bfloat16"] = "float32",
) -> dict:
    """Time steps of a quantised network: the report, as JSON takes it.

    config: a network with bits. patch: side of the lr patches. Raises ValueError for a network in
    full precision, RuntimeError if the contenders disagree.
    """
    if config.bits is None or config.quantizer != "rlq":
        raise ValueError(
            f"`bits` is {config.bits!r} and `quantizer` {config.quantizer!r}; training is compared "
            "for networks with bits and rlq. Name a quantsr-* preset."
        )
    plain_float = dataclasses.replace(config, bits=None)
    once = TrainConfig(joint=False, precision=precision)
    contenders = {
        "full precision": (plain_float, once, False),
        "quantised": (config, once, False),
        "quantised, plain PyTorch": (config, once, True),
        "joint, " + "/".join(map(str, config.depths)): (
            config, TrainConfig(precision=precision), False,
        ),
    }  # fmt: skip
    macs = sum(layer.macs for layer in complexity(config, (patch, patch)).layers) * batch
    rows: list[Step] = []
    for count in threads:
        rows += _steps(contenders, patch, batch, count, rounds)
    return {
        "title": f"{config.blocks} blocks, x{config.scale}, {config.bits} bits, {batch} patches of "
        f"{patch} x {patch}, {precision}",
        "machine": machine(),
        "forward_gmacs": macs / 1e9,
        "rounds": rounds,
        "rows": [dataclasses.asdict(row) for row in rows],
    }


def _steps(contenders: dict, patch: int, batch: int, threads: int, rounds: int) -> list[Step]:
    with contextlib.ExitStack() as stack:
        workers = [
            stack.enter_context(Worker(_serve, *options, patch, batch, threads))
            for options in contenders.values()
        ]
        answers = [worker.ask() for worker in workers]
        ours, plain = (answers[list(contenders).index(n)][0] for n in _SAME)
        if abs(ours - plain) > 1e-3 * plain:
            raise RuntimeError(f"the losses {ours} and {plain} of {_SAME} disagree.")
        times = take_turns([worker.time for worker in workers], rounds, f"{threads} threads")
    return [
        Step(name, threads, best, median, best / times[0][0], memory)
        for name, (best, median), (_, memory) in zip(contenders, times, answers, strict=True)
    ]


_SAME = ("quantised", "quantised, plain PyTorch")


def _serve(
    connection: Connection,
    config: NetworkConfig,
    training: TrainConfig,
    plain: bool,
    patch: int,
    batch: int,
    threads: int,
) -> None:
    """Take steps: report loss and memory, then the seconds of a step whenever asked."""
    native.load()
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    net = QuantSR(config)
    net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch's types lack it
    if plain:
        for module in net.modules():
            if isinstance(module, Quantizer):
                module.__class__ = PlainRLQ
    lr = torch.rand(batch, 3, patch, patch).to(memory_format=torch.channels_last)
    hr = torch.rand(batch, 3, config.scale * patch, config.scale * patch)
    hr = hr.to(memory_format=torch.channels_last)
    if config.bits is not None:
        calibrate(net, lr)
    optimizer = make_optimizer(net, training)

    def step() -> float:
        return train_step(net, optimizer, lr, hr, training)["loss"]

    loss = step()
    connection.send(("ready", (loss, peak_memory(step))))
    answer_times(connection, timed(step))


def peak_memory(step: Callable[[], object]) -> int:
    """The most bytes of tensors that were alive at one moment of step(), over those before it."""
    with torch.profiler.profile(
        activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True
    ) as profile:
        step()
    events = [e for e in profile.profiler.kineto_results.events() if e.name() == "[memory]"]
    events.sort(key=lambda event: event.start_ns())
    return max(itertools.accumulate((event.nbytes() for event in events), initial=0))


def table(report: dict) -> str:
    """Markdown, one table for each number of threads."""
    machine_line = f"{report['machine']['cpu']}, torch {report['machine']['torch']}"
    parts = [machine_line]
    for threads in dict.fromkeys(row["threads"] for row in report["rows"]):
        rows = [row for row in report["rows"] if row["threads"] == threads]
        plural = "s" if threads > 1 else ""
        parts.append(
            f"**{report['title']}, {threads} thread{plural}**, best (median) of "
            f"{report['rounds']}; forward {report['forward_gmacs']:.3g} GMAC"
        )
        lines = []
        quantised = next(row for row in rows if row["name"] == "quantised")
        for row in rows:
            joint = row["name"].startswith("joint")
            over = f"{row['best_ms'] / quantised['best_ms']:.2f}x" if joint else "-"
            ms, memory = f"{row['best_ms']:.0f} ({row['median_ms']:.0f})", row["memory"] / 1e6
            lines.append((row["name"], ms, f"{row['over']:.2f}x", over, f"{memory:.0f}"))
        heads = ("training step", "ms", "over full precision", "over one depth", "peak MB")
        parts.append(markdown(heads, lines))
    return "\n\n".join(parts)
