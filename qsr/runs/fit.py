"""A training run: a loop around the steps of `train` that can stop, break, and go on anywhere.

QuantSR's two stages: first the deepest network alone; then its blocks are ranked, and every step
trains all depths. A run is a pure function of (network, data, TrainConfig): the patches of step n
depend on the seed and n alone and nothing else is drawn, so a run that is interrupted and resumed
ends bit for bit where one that was not ends (same machine, same number of threads and ranks).

On a GPU the steps of a stage are recorded as a CUDA graph, and what they measured is read when the
log is due: a look at a number waits for the GPU. On the CPU it costs nothing and comes each step.

A folder holds all of a run: its last checkpoints, the network that did best on held-out pictures,
and the diary (`log`).
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm.auto import tqdm

from ..backbone import QuantSR, rank_blocks
from ..calibration import calibrate
from ..images.data import Pair, Patches
from ..objective import Objective
from ..quantizer import Quantizer
from ..schedule import TrainConfig
from ..scores import evaluate
from ..system import distributed, graphs
from ..train import Stage, make_optimizer, set_learning_rate, train_step
from .checkpoints import (
    best_score,
    clear_half_deleted,
    list_checkpoints,
    load_average,
    load_checkpoint,
    load_optimizer,
    save_best,
    save_checkpoint,
)
from .log import RunLog


def fit(
    net: QuantSR,
    data: Patches,
    config: TrainConfig,
    folder: str | os.PathLike = "runs/qsr",
    max_seconds: float | None = None,
    validation: Sequence[Pair] = (),
    teacher: QuantSR | None = None,
    tensorboard: bool = False,
    graph: bool = True,
) -> Path:
    """Train `net` in place on `data`, from the last checkpoint in `folder` if there is one.

    An uncalibrated network is calibrated on the first batch. `max_seconds` ends the run after the
    current step with a checkpoint; so do Ctrl-C and SIGTERM, which then take their usual effect
    (KeyboardInterrupt, end of the process). Calling again goes on.

    validation: held-out pairs (`held_out`), scored every config.validate_every steps at the depths
    that are trained; the best network so far is kept in `folder`/best-N, and scores count for the
    moving average if there is one (config.ema). teacher: for config.transfer, see `Objective`.
    `folder`/log.jsonl is the diary; tensorboard writes it for TensorBoard too. graph: whether a
    GPU records the step as a CUDA graph. Returns the folder of the last checkpoint.

    With a process group (`distributed.started`) the ranks share each batch, without a graph.
    Raises ValueError before the first step if `folder` holds a run of another network, training
    configuration or data, the scales differ, or the batch cannot be shared; and if training
    diverges, with the step and the layer where that began, at the next line of the log.
    """
    run = Run(net, data, config, folder, validation, teacher, tensorboard, graph)
    with stop_signals() as stop, contextlib.closing(run):
        while run.done < config.steps:
            run.step()
            late = max_seconds is not None and run.seconds() > max_seconds
            ends = distributed.any_rank(late or bool(stop), run.device)
            run.write(ends)
            if ends:
                break
        distributed.wait()
    if stop.number is not None:
        signal.raise_signal(stop.number)  # checkpoint saved: now let it do what it does
    return list_checkpoints(folder)[-1]


class Run:
    """A training run between two steps, `done` of which are behind it.

    Made from the last checkpoint in its folder, else from the start. Arguments and errors as `fit`.
    All ranks take each `step` and `look`; what `validate` and `save` do, rank 0 does alone.
    """

    def __init__(
        self,
        net: QuantSR,
        data: Patches,
        config: TrainConfig,
        folder: str | os.PathLike,
        validation: Sequence[Pair] = (),
        teacher: QuantSR | None = None,
        tensorboard: bool = False,
        graph: bool = True,
    ) -> None:
        _check_batch(net, data, config)
        self.net, self.data, self.config, self.folder = net, data, config, folder
        self.validation = validation
        # 3x3 convolutions are faster so; torch's types lack it.
        net.train().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        objective = Objective(net, config, teacher)
        self.optimizer = make_optimizer(net, config)
        self.identity = data.identity
        self.start, progress = _resume(net, self.optimizer, config, self.identity, folder)
        self.done, self.recent = self.start, progress["recent"]
        quantizers = (m for m in net.modules() if isinstance(m, Quantizer))
        if self.done == 0 and not all(m.calibrated for m in quantizers):
            calibrate(net, data.batch(0)[0])  # the whole batch on every rank
        self.average = _average(net, config, folder)
        self.objective = distributed.parallel(objective)
        self.device = next(net.parameters()).device
        self.looks_every = 1 if self.device.type == "cpu" else config.log_every
        self.unread: list[Tensor] = []  # what the last steps measured, on the device
        self.graph = graph
        chief = distributed.rank() == 0
        if chief:
            clear_half_deleted(folder)
        self.log = RunLog(folder, self.start, tensorboard) if chief else None
        self.before, self.began = progress["seconds"], time.monotonic()
        if self.log is not None and self.log.last < self.start:
            # Killed after the checkpoint, before its line.
            self.log.write(self.start, progress["line"], net)
        self.bar = tqdm(total=config.steps, initial=self.start, unit="step", disable=not chief)
        self.drawn = self._draw(self.start).to(self.device)
        self._begin()

    def step(self) -> None:
        """Train on the next batch."""
        net, config, step = self.net, self.config, self.done
        if config.joint and step == config.first_joint_step and len(net.config.depths) > 1:
            _rank(net, self.data, config)
            self._begin()
        self.learning_rate = config.learning_rate_at(step)
        set_learning_rate(self.optimizer, self.learning_rate)
        self.stage.prepare(step)
        self.drawn.copy_(self._draw(step), non_blocking=True)
        self.unread.append(self.repeat().clone())
        self.done += 1

    def _begin(self) -> None:
        """What the steps of a stage have in common, from the next one on."""
        self.depths = trained_depths(self.net, self.config, self.done)
        self.stage = stage = Stage(
            self.net, self.optimizer, self.config,
            depths=self.depths, objective=self.objective, average=self.average,
        )  # fmt: skip

        def repeat() -> Tensor:
            return stage(*self._cut(self.drawn))

        self.repeat: Callable[[], Tensor] = repeat
        if self.graph and self.device.type == "cuda" and distributed.size() > 1:
            self.tell("several processes share each step, which runs without a CUDA graph")
        elif self.graph:
            self.repeat = graphs.recorded(repeat, self.device, self.tell)

    def _draw(self, step: int) -> Tensor:
        return self.data.draw(step, distributed.rank(), distributed.size())

    def _cut(self, drawn: Tensor) -> tuple[Tensor, Tensor]:
        lr, hr = self.data.cut(drawn)
        last = torch.channels_last
        return lr.to(memory_format=last), hr.to(memory_format=last)

    def look(self) -> None:
        """Read what the steps since the last look measured: for the bar, the log, a checkpoint.

        Raises ValueError if one of them had a gradient that is not finite. The weights are those
        before it.
        """
        rows = torch.stack(self.unread).tolist() if self.unread else []
        self.unread = []
        recent = self.recent
        for step, row in enumerate(rows, start=self.done - len(rows)):
            if self.stage.broke(row):
                raise self._diverged(step)
            for name, value in self.stage.told(row).items():  # a running mean over some 100 steps
                recent[name] = value if name not in recent else 0.99 * recent[name] + 0.01 * value
        if rows:
            self.rate = (self.done - self.start) * self.data.batch_size / self.seconds()
            self.bar.update(len(rows))
            shown = {"L1*255": f"{255 * recent['loss']:.3f}", "dB": f"{recent['psnr']:.2f}"}
            self.bar.set_postfix({**shown, "images/s": f"{self.rate:.0f}"}, refresh=False)

    def _diverged(self, step: int) -> ValueError:
        """The diagnosis, by taking a step once more that left the weights as they were."""
        lr, hr = self._cut(self._draw(step).to(self.device))
        try:
            train_step(
                self.net, self.optimizer, lr, hr, self.config,
                depths=self.depths, objective=self.objective, step=step,
            )  # fmt: skip
            why = "its gradient was not finite, and is when it is taken again; train without graph"
        except ValueError as error:
            why = str(error)
        return ValueError(f"step {step + 1}: {why}")

    def tell(self, line: str) -> None:
        """One line on stderr, past the progress bar, from one of the ranks."""
        if self.log is not None:
            self.bar.write(f"qsr: {line}", file=sys.stderr)

    def seconds(self) -> float:
        """Of this call; `before` had gone by already."""
        return time.monotonic() - self.began

    def write(self, ends: bool = False) -> None:
        """What is due after a step: a look, scores, a checkpoint, a line of the diary. ends: the
        run stops here."""
        done, config = self.done, self.config
        last = done == config.steps
        saves = done % config.checkpoint_every == 0 or last or ends
        scores = len(self.validation) > 0 and (done % config.validate_every == 0 or last)
        tells = saves or scores or done % config.log_every == 0
        if tells or done % self.looks_every == 0 or done == config.first_joint_step:
            self.look()
        if self.log is None or not tells:
            return
        values = {"learning_rate": self.learning_rate, "images_per_s": self.rate}
        if scores:
            values |= self.validate()
        values |= {"seconds": self.before + self.seconds(), **self.recent}
        path = self.save(values) if saves else None
        self.log.write(done, values, self.net if saves else None)
        if ends and not last:
            remark = f"stopped after step {done}; the same call goes on from {path}"
            self.bar.write(remark, file=sys.stderr)

    def validate(self) -> dict[str, float]:
        """PSNR-Y on held-out pictures at each depth, and their mean ("validation"); keeps the
        network, or its average, if that is the best."""
        net, depths = self.average or self.net, self.depths
        each = {d: evaluate(net, self.validation, blocks=d).psnr_y for d in depths}
        scores = {f"validation_{d}": score for d, score in each.items()}
        mean = sum(each.values()) / len(each)
        # A network that has learned all depths goes before one that has learned the deepest alone.
        if (len(depths), mean) > best_score(self.folder):
            save_best(self.folder, net, self.done, self.config, len(depths), mean, scores)
        told = ", ".join(f"{d} blocks {score:.3f}" for d, score in each.items())
        self.bar.write(f"step {self.done}: held-out pictures, dB: {told}", file=sys.stderr)
        return {"validation": mean, **scores}

    def save(self, line: dict[str, float]) -> Path:
        """Write a checkpoint; line: of the diary, in case that the run is killed before it."""
        progress = {"seconds": line["seconds"], "recent": self.recent, "line": line}
        progress |= {"data": self.identity}
        return save_checkpoint(
            self.folder, self.net, self.optimizer, self.done, self.config, self.config.keep,
            self.average, progress,
        )  # fmt: skip

    def close(self) -> None:
        """End the progress bar and the diary."""
        self.bar.close()
        if self.log is not None:
            self.log.close()


def _check_batch(net: QuantSR, data: Patches, config: TrainConfig) -> None:
    if data.scale != net.config.scale:
        raise ValueError(
            f"the data have scale {data.scale} and the network {net.config.scale}; make both equal."
        )
    if data.batch_size % (distributed.size() * config.accumulate):
        raise ValueError(
            f"the batch is {data.batch_size}, and {distributed.size()} processes with `accumulate` "
            f"{config.accumulate} share it; it must be a multiple of their product."
        )


def trained_depths(net: QuantSR, config: TrainConfig, step: int) -> tuple[int, ...]:
    """The depths that step 0, 1, ... trains: the deepest alone, and later all of them."""
    joint = config.joint and step >= config.first_joint_step
    return net.config.depths if joint else net.config.depths[:1]


def _rank(net: QuantSR, data: Patches, config: TrainConfig) -> None:
    """Set the order of blocks. Sensitivity is measured on patches that no step trains on."""
    if config.rank_by == "given":
        return
    pictures = data.batch(config.steps) if config.rank_by == "sensitivity" else ()
    order = rank_blocks(net, *pictures)
    net.block_order.copy_(torch.tensor(order))


def _average(net: QuantSR, config: TrainConfig, folder: str | os.PathLike) -> QuantSR | None:
    """The moving average: that of the last checkpoint, else a copy of the calibrated network."""
    if config.ema == 0:
        return None
    average = copy.deepcopy(net)
    checkpoints = list_checkpoints(folder)
    if checkpoints:
        load_average(checkpoints[-1], average)
    return average


def _resume(
    net: QuantSR,
    optimizer: torch.optim.Optimizer,
    config: TrainConfig,
    identity: Mapping[str, object],
    folder: str | os.PathLike,
) -> tuple[int, dict]:
    """Load the last checkpoint of `folder`, if any: (steps done, its progress: seconds spent,
    running means, line of the log)."""
    checkpoints = list_checkpoints(folder)
    if not checkpoints:
        return 0, {"seconds": 0.0, "recent": {}}
    saved, state = load_checkpoint(checkpoints[-1])
    if saved.config != net.config:
        raise ValueError(
            f"{folder} holds a run of another network ({saved.config}); choose another folder."
        )
    try:
        earlier = TrainConfig(**state["training"])
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"{folder} holds a run of another version of qsr ({error}). Choose another folder."
        ) from error
    # How a batch is worked off, and what is written when, may change; what is computed may not.
    free = ("accumulate", "validate_every", "checkpoint_every", "log_every", "keep")
    before = {**dataclasses.asdict(earlier), **state.get("data", {})}
    for option, new in {**dataclasses.asdict(config), **identity}.items():
        old = before.get(option, new)  # a run of an older version does not tell its data
        if old != new and option not in free:
            raise ValueError(
                f"{folder} holds a run whose `{option}` is {old!r}, not {new!r}; a resumed "
                "run keeps its configuration. Choose another folder, or the old value."
            )
    net.load_state_dict(saved.state_dict())
    load_optimizer(checkpoints[-1], net, optimizer)
    return state["step"], state


class _Stop:
    """True once a signal asked to stop; `number` says which."""

    number: int | None = None

    def __bool__(self) -> bool:
        return self.number is not None


@contextlib.contextmanager
def stop_signals() -> Iterator[_Stop]:
    """Let Ctrl-C and SIGTERM end the loop after its current step; a second one ends it at once."""
    stop = _Stop()
    previous: dict[int, Any] = {}

    def ask(number: int, frame: object) -> None:
        if stop:
            signal.signal(number, previous[number])
            signal.raise_signal(number)
        stop.number = number

    with contextlib.suppress(ValueError):  # not the main thread: signals go elsewhere
        for number in (signal.SIGINT, signal.SIGTERM):
            previous[number] = signal.signal(number, ask)
    try:
        yield stop
    finally:
        for which, handler in previous.items():
            signal.signal(which, handler)
