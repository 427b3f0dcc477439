"""How long a training step takes: quantised beside full precision, several depths beside one; and
of a network in full precision, each precision with our native passes and without.

Contenders take turns, each in a process of its own, on one batch of random patches. Of a quantised
network:

    full precision           the same network without quantizers, its deepest depth alone
    quantised                the deepest depth alone, with the fused passes of `qsr.system`
    plain PyTorch            the same by PyTorch's own operators (QSR_NATIVE=off)
    joint                    all depths of the network, a backward pass each, one step of Adam
    joint, collapsed tail    the same with upsampler and last convolution as one (QuantSR-C)

and of one in full precision float32 and bfloat16, with the fused passes and by plain PyTorch.

Before anything is timed the first steps must agree. Of the two quantised ones, which compute the
same, the losses, to 1e-3. In full precision the gradients, taken together as one vector: those of
plain PyTorch in float32 are the measure, from which ours in float32 may be 1e-4 of its length away,
and ours in bfloat16 no further than PyTorch's in bfloat16, or a tenth of that more.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from ..backbone import QuantSR
from ..calibration import calibrate
from ..config import NetworkConfig
from ..paper.costs import complexity
from ..paper.report import markdown
from ..schedule import TrainConfig
from ..system import native
from ..system.machine import check_threads, machine
from ..train import make_optimizer, train_step
from .engine import Worker, answer_times, take_turns, timed


class Contender(NamedTuple):
    """What a process of its own trains; plain: by PyTorch's operators alone."""

    config: NetworkConfig
    training: TrainConfig
    plain: bool = False


@dataclass(frozen=True)
class Step:
    """One contender. memory: bytes that a step adds at its peak: activations and gradients.

    over: time over that of the first contender. gradient: how far that of the first step lies from
    the one by which it is judged, over its length; None where the losses are compared.
    """

    name: str
    threads: int
    best_ms: float
    median_ms: float
    over: float
    memory: int
    gradient: float | None = None


def bench_train(
    config: NetworkConfig,
    patch: int = 24,
    batch: int = 8,
    threads: Sequence[int] = (1,),
    rounds: int = 5,
    precision: Literal["float32", "bfloat16"] = "float32",
) -> dict:
    """Time steps of a network: the report, as JSON takes it.

    config: quantised with rlq, or in full precision. patch: side of the lr patches. precision: of a
    quantised network; of another, both are timed. Raises ValueError for another quantizer,
    RuntimeError if the contenders disagree.
    """
    if config.bits is not None and config.quantizer != "rlq":
        raise ValueError(
            f"`quantizer` is {config.quantizer!r}; training is timed for networks with rlq, or in "
            "full precision. Name a preset."
        )
    contenders = _quantised(config, precision) if config.bits else _full_precision(config)
    macs = sum(layer.macs for layer in complexity(config, (patch, patch)).layers) * batch
    rows: list[Step] = []
    for count in threads:
        check_threads(count)
        rows += _steps(contenders, patch, batch, count, rounds)
    return {
        "title": f"{config.blocks} blocks, x{config.scale}, "
        + (f"{config.bits} bits, " if config.bits else "full precision, ")
        + f"{batch} patches of {patch} x {patch}"
        + (f", {precision}" if config.bits else ""),
        "machine": machine(),
        "forward_gmacs": macs / 1e9,
        "rounds": rounds,
        "rows": [dataclasses.asdict(row) for row in rows],
    }


def _quantised(
    config: NetworkConfig, precision: Literal["float32", "bfloat16"]
) -> dict[str, Contender]:
    once = TrainConfig(joint=False, precision=precision)
    joint = TrainConfig(precision=precision)
    contenders = {
        "full precision": Contender(dataclasses.replace(config, bits=None), once),
        "quantised": Contender(config, once),
        "quantised, plain PyTorch": Contender(config, once, plain=True),
        "joint, " + "/".join(map(str, config.depths)): Contender(config, joint),
    }
    if config.family == "conv":
        collapsed = dataclasses.replace(joint, collapsed_tail=True)
        contenders["joint, collapsed tail"] = Contender(config, collapsed)
    return contenders


def _full_precision(config: NetworkConfig) -> dict[str, Contender]:
    single, half = (TrainConfig(joint=False, precision=p) for p in ("float32", "bfloat16"))
    return {
        "float32, plain PyTorch": Contender(config, single, plain=True),
        "bfloat16, plain PyTorch": Contender(config, half, plain=True),
        "float32": Contender(config, single),
        "bfloat16": Contender(config, half),
    }


def _steps(
    contenders: dict[str, Contender], patch: int, batch: int, threads: int, rounds: int
) -> list[Step]:
    with contextlib.ExitStack() as stack:
        workers = [
            stack.enter_context(Worker(_serve, *contender, patch, batch, threads))
            for contender in contenders.values()
        ]
        answers = dict(zip(contenders, (worker.ask() for worker in workers), strict=True))
        apart = _agreement({n: (loss, torch.from_numpy(g)) for n, (loss, g, _) in answers.items()})
        times = take_turns([worker.time for worker in workers], rounds, f"{threads} threads")
    return [
        Step(name, threads, best, median, best / times[0][0], answers[name][2], apart.get(name))
        for name, (best, median) in zip(contenders, times, strict=True)
    ]


def _agreement(firsts: dict[str, tuple[float, Tensor]]) -> dict[str, float]:
    """How far gradients lie from those of plain float32, from (loss, gradient) of first steps.

    Raises RuntimeError where contenders that compute the same disagree.
    """
    if "quantised" in firsts:
        ours, plain = (firsts[n][0] for n in ("quantised", "quantised, plain PyTorch"))
        if abs(ours - plain) > 1e-3 * plain:
            raise RuntimeError(f"the quantised losses {ours} and, by PyTorch, {plain} disagree.")
        return {}
    exact = firsts["float32, plain PyTorch"][1]
    apart = {name: ((g - exact).norm() / exact.norm()).item() for name, (_, g) in firsts.items()}
    limits = {"float32": 1e-4, "bfloat16": 1.1 * apart["bfloat16, plain PyTorch"]}
    for name, limit in limits.items():
        if not apart[name] <= limit:
            raise RuntimeError(f"the gradient in {name} is {apart[name]:.2g} off, not {limit:.2g}.")
    return apart


def _serve(
    connection: Connection,
    config: NetworkConfig,
    training: TrainConfig,
    plain: bool,
    patch: int,
    batch: int,
    threads: int,
) -> None:
    """Take steps: report loss, gradient and memory, then the seconds of a step whenever asked."""
    if plain:
        os.environ["QSR_NATIVE"] = "off"  # of this process alone
    native.load()
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    net = QuantSR(config)
    net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch's types lack it
    lr = torch.rand(batch, 3, patch, patch).to(memory_format=torch.channels_last)
    hr = torch.rand(batch, 3, config.scale * patch, config.scale * patch)
    hr = hr.to(memory_format=torch.channels_last)
    if config.bits is not None:
        calibrate(net, lr)
    optimizer = make_optimizer(net, training)

    def step() -> float:
        return train_step(net, optimizer, lr, hr, training)["loss"]

    loss = step()
    gradient = torch.cat([p.grad.flatten() for p in net.parameters() if p.grad is not None])
    connection.send(("ready", (loss, gradient.numpy(), peak_memory(step))))
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
        parts.append(_full_table(rows) if rows[0]["gradient"] is not None else _joint_table(rows))
    return "\n\n".join(parts)


def _full_table(rows: list[dict]) -> str:
    half = next(row for row in rows if row["name"] == "bfloat16, plain PyTorch")
    lines = [
        (
            row["name"],
            f"{row['best_ms']:.0f} ({row['median_ms']:.0f})",
            f"{half['best_ms'] / row['best_ms']:.2f}x",
            f"{row['gradient']:.1g}",
            f"{row['memory'] / 1e6:.0f}",
        )
        for row in rows
    ]
    heads = ("training step", "ms", "bfloat16, plain, over it", "gradient off by", "peak MB")
    return markdown(heads, lines)


def _joint_table(rows: list[dict]) -> str:
    lines = []
    quantised = next(row for row in rows if row["name"] == "quantised")
    for row in rows:
        joint = row["name"].startswith("joint")
        over = f"{row['best_ms'] / quantised['best_ms']:.2f}x" if joint else "-"
        ms, memory = f"{row['best_ms']:.0f} ({row['median_ms']:.0f})", row["memory"] / 1e6
        lines.append((row["name"], ms, f"{row['over']:.2f}x", over, f"{memory:.0f}"))
    heads = ("training step", "ms", "over full precision", "over one depth", "peak MB")
    return markdown(heads, lines)
