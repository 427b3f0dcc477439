"""A training run: a loop around `train_step` that can stop, break, and go on anywhere.

QuantSR's two stages: first the deepest network alone; then its blocks are ranked, and every step
trains all depths. A run is a pure function of (network, data, TrainConfig): the patches of step n
depend on the seed and n alone and nothing else is drawn, so a run that is interrupted and resumed
ends bit for bit where one that was not ends (same machine, same number of threads and ranks).

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
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from tqdm.auto import tqdm

from ..backbone import QuantSR, rank_blocks
from ..config import TrainConfig
from ..convert import calibrate
from ..images.data import Pair, Patches
from ..objective import Objective
from ..quantizer import Quantizer
from ..scores import evaluate
from ..system import distributed
from ..train import make_optimizer, set_learning_rate, train_step
from .checkpoints import (
    best_score,
    clear_unfinished,
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
) -> Path:
    """Train `net` in place on `data`, from the last checkpoint in `folder` if there is one.

    An uncalibrated network is calibrated on the first batch. `max_seconds` ends the run after the
    current step with a checkpoint; so do Ctrl-C and SIGTERM, which then take their usual effect
    (KeyboardInterrupt, end of the process). Calling again goes on.

    validation: held-out pairs (`held_out`), scored every config.validate_every steps at the depths
    that are trained; the best network so far is kept in `folder`/best-N, and scores count for the
    moving average if there is one (config.ema). teacher: for config.transfer, see `Objective`.
    `folder`/log.jsonl is the diary; tensorboard writes it for TensorBoard too. Returns the folder
    of the last checkpoint.

    With a process group (`distributed.started`) the ranks share each batch.
    Raises ValueError before the first step if `folder` holds a run of another network or training
    configuration, the scales differ, or the batch cannot be shared.
    """
    run = Run(net, data, config, folder, validation, teacher, tensorboard)
    with _stop_signals() as stop, contextlib.closing(run):
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
    All ranks take each `step`; what `validate`, `save` and `write` do, rank 0 does alone.
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
    ) -> None:
        _check_batch(net, data, config)
        self.net, self.data, self.config, self.folder = net, data, config, folder
        self.validation = validation
        # 3x3 convolutions are faster so; torch's types lack it.
        net.train().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        objective = Objective(net, config, teacher)
        self.optimizer = make_optimizer(net, config)
        self.start, progress = _resume(net, self.optimizer, config, folder)
        self.done, self.recent = self.start, progress["recent"]
        quantizers = (m for m in net.modules() if isinstance(m, Quantizer))
        if self.done == 0 and not all(m.calibrated for m in quantizers):
            calibrate(net, data.batch(0)[0])  # the whole batch on every rank
        self.average = _average(net, config, folder)
        self.objective = distributed.parallel(objective)
        self.device = next(net.parameters()).device
        chief = distributed.rank() == 0
        if chief:
            clear_unfinished(folder)
        self.log = RunLog(folder, self.start, tensorboard) if chief else None
        self.before, self.began = progress["seconds"], time.monotonic()
        if self.log is not None and self.log.last < self.start:
            # Killed after the checkpoint, before its line.
            self.log.write(self.start, progress["line"], net)
        self.bar = tqdm(total=config.steps, initial=self.start, unit="step", disable=not chief)

    def step(self) -> None:
        """Train on the next batch."""
        net, config, step = self.net, self.config, self.done
        if config.joint and step == config.first_joint_step and len(net.config.depths) > 1:
            _rank(net, self.data, config)
        self.depths = trained_depths(net, config, step)
        self.learning_rate = config.learning_rate_at(step)
        set_learning_rate(self.optimizer, self.learning_rate)
        batch = self.data.batch(step, distributed.rank(), distributed.size())
        lr, hr = (x.to(memory_format=torch.channels_last) for x in batch)
        measured = train_step(
            net, self.optimizer, lr, hr, config,
            depths=self.depths, objective=self.objective, step=step,
        )  # fmt: skip
        if self.average is not None:
            update_average(self.average, net, config.ema, step)
        recent = self.recent
        for name, value in measured.items():  # a running mean over about 100 steps
            recent[name] = value if name not in recent else 0.99 * recent[name] + 0.01 * value
        self.done += 1
        self.rate = (self.done - self.start) * self.data.batch_size / self.seconds()
        self.bar.update()
        shown = {"L1*255": f"{255 * recent['loss']:.3f}", "dB": f"{recent['psnr']:.2f}"}
        self.bar.set_postfix({**shown, "images/s": f"{self.rate:.0f}"}, refresh=False)

    def seconds(self) -> float:
        """Of this call; `before` had gone by already."""
        return time.monotonic() - self.began

    def write(self, ends: bool = False) -> None:
        """What is due after a step: scores, a checkpoint, a line of the diary. ends: the run stops
        here."""
        if self.log is None:
            return
        done, config = self.done, self.config
        last = done == config.steps
        saves = done % config.checkpoint_every == 0 or last or ends
        values = {"learning_rate": self.learning_rate, "images_per_s": self.rate}
        if len(self.validation) and (done % config.validate_every == 0 or last):
            values |= self.validate()
        values |= {"seconds": self.before + self.seconds(), **self.recent}
        path = self.save(values) if saves else None
        if saves or done % config.log_every == 0 or "validation" in values:
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


def update_average(average: QuantSR, net: QuantSR, decay: float, step: int) -> None:
    """Move `average` towards `net`: weights, steps, tau and shortcuts; all else is copied.

    In the first steps the average is short, (1 + step) / (10 + step), so that it forgets where the
    network started.
    """
    decay = min(decay, (1 + step) / (10 + step))
    with torch.no_grad():
        own = dict(average.named_parameters())
        for name, value in net.named_parameters():
            own[name].lerp_(value, 1 - decay)
        for mine, theirs in zip(average.buffers(), net.buffers(), strict=True):
            mine.copy_(theirs)


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
    net: QuantSR, optimizer: torch.optim.Optimizer, config: TrainConfig, folder: str | os.PathLike
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
    for option in dataclasses.fields(config):
        old, new = getattr(earlier, option.name), getattr(config, option.name)
        if old != new and option.name not in free:
            raise ValueError(
                f"{folder} holds a run whose `{option.name}` is {old!r}, not {new!r}; a resumed "
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
def _stop_signals() -> Iterator[_Stop]:
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
