"""Training: one readable step, and a loop around it that can stop and go on anywhere.

QuantSR trains one set of weights at several depths: each step runs the network at every depth of
its plan, adds the L1 losses and takes one Adam step. Backward follows each forward at once, so the
memory is that of a single depth; the gradients are the same, since a sum has the sum of gradients.

A run is a pure function of (network, data, TrainConfig): the patches of step n depend on the seed
and n alone, so a run that is interrupted and resumed ends bit for bit where one that was not ends
(same machine, same number of threads).
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import os
import signal
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F
from tqdm.auto import tqdm

from .backbone import QuantSR
from .checkpoint import list_checkpoints, load_checkpoint, load_optimizer, save_checkpoint
from .data import Patches
from .layers import calibrate
from .quantizer import Quantizer


@dataclass(frozen=True)
class TrainConfig:
    """How to train. The defaults are the paper's schedule as far as it is known.

    Raises ValueError on construction if a field breaks its rule.
    """

    steps: int = 300_000
    learning_rate: float = 2e-4
    schedule: Literal["halve", "cosine"] = "halve"
    halve_at: tuple[float, ...] = (250 / 300,)  # fractions of `steps` ("halve")
    warmup: int = 0  # steps over which the learning rate rises from 0
    betas: tuple[float, float] = (0.9, 0.99)
    depth_weights: tuple[float, ...] = ()  # loss weight of each depth; () = equal, sum 1
    joint: bool = True  # train all depths of the network together, or the deepest alone
    clip_gradient: float | None = None  # largest norm of the gradient
    precision: Literal["float32", "bfloat16"] = "float32"  # of the forward pass; see `train_step`
    checkpoint_every: int = 1000  # steps
    keep: int = 2  # checkpoints

    def __post_init__(self) -> None:
        for name in ("halve_at", "betas", "depth_weights"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        rules = {
            "steps": (self.steps >= 1, "is 1 or more"),
            "learning_rate": (self.learning_rate > 0, "is above 0"),
            "schedule": (self.schedule in ("halve", "cosine"), "is halve or cosine"),
            "precision": (self.precision in ("float32", "bfloat16"), "is float32 or bfloat16"),
            "warmup": (self.warmup >= 0, "is 0 or more"),
            "clip_gradient": (self.clip_gradient is None or self.clip_gradient > 0, "is above 0"),
            "checkpoint_every": (self.checkpoint_every >= 1, "is 1 or more"),
            "keep": (self.keep >= 1, "is 1 or more"),
        }
        for name, (holds, rule) in rules.items():
            if not holds:
                raise ValueError(f"`{name}` is {getattr(self, name)!r}; it {rule}.")

    def learning_rate_at(self, step: int) -> float:
        """The learning rate of step 0, 1, ...

        >>> config = TrainConfig(steps=100, learning_rate=1.0, schedule="cosine")
        >>> config.learning_rate_at(0), round(config.learning_rate_at(50), 3)
        (1.0, 0.5)
        """
        rate = self.learning_rate
        if self.schedule == "cosine":
            rate *= 0.5 * (1 + math.cos(math.pi * step / self.steps))
        else:
            rate *= 0.5 ** sum(step >= fraction * self.steps for fraction in self.halve_at)
        return rate * min(1.0, (step + 1) / self.warmup) if self.warmup else rate


def train_step(
    net: QuantSR, optimizer: torch.optim.Optimizer, lr: Tensor, hr: Tensor, config: TrainConfig
) -> dict[str, float]:
    """One step on one batch. lr [N, 3, H, W], hr [N, 3, scale H, scale W], float RGB in [0, 1].

    Returns the L1 loss of each depth ("loss_32", ...) and their weighted sum ("loss"). Raises
    ValueError if the loss is not finite; the weights are then as before the step.

    With precision "bfloat16" the full-precision layers run in 16 bits (weights stay float32), the
    quantised ones in float32: on processors that have bfloat16, SRResNet trains in half the time.
    """
    half = config.precision == "bfloat16"
    depths = net.config.depths if config.joint else net.config.depths[:1]
    weights = config.depth_weights or (1 / len(depths),) * len(depths)
    if len(weights) != len(depths):
        raise ValueError(
            f"`depth_weights` is {weights!r}; this run trains the depths {depths}, one weight each."
        )
    optimizer.zero_grad(set_to_none=True)
    losses = {}
    for depth, weight in zip(depths, weights, strict=True):
        with torch.autocast(lr.device.type, torch.bfloat16, enabled=half):
            sr = net(lr, net.plan(depth))
        loss = F.l1_loss(sr.float(), hr)
        (weight * loss).backward()
        losses[f"loss_{depth}"] = loss.item()
    losses["loss"] = sum(w * loss for w, loss in zip(weights, losses.values(), strict=True))
    if not math.isfinite(losses["loss"]):
        raise ValueError(
            f"the loss is {losses['loss']}; training diverged. The last checkpoint is kept: resume "
            "from it with a smaller learning rate."
        )
    if config.clip_gradient is not None:
        torch.nn.utils.clip_grad_norm_(net.parameters(), config.clip_gradient)
    optimizer.step()
    return losses


def fit(
    net: QuantSR,
    data: Patches,
    config: TrainConfig,
    folder: str | os.PathLike = "runs/qsr",
    max_seconds: float | None = None,
) -> Path:
    """Train `net` in place on `data`, from the last checkpoint in `folder` if there is one.

    An uncalibrated network is calibrated on the first batch. `max_seconds` ends the run after the
    current step with a checkpoint; so do Ctrl-C and SIGTERM, which then take their usual effect
    (KeyboardInterrupt, end of the process). Calling again goes on. `folder`/log.jsonl has one line
    per checkpoint. Returns the folder of the last checkpoint.
    Raises ValueError if `folder` holds a run of another network or training configuration, or if
    the scales differ.
    """
    if data.scale != net.config.scale:
        raise ValueError(
            f"the data have scale {data.scale} and the network {net.config.scale}; make both equal."
        )
    net.train().to(memory_format=torch.channels_last)  # 3x3 convolutions are faster so
    optimizer = make_optimizer(net, config)
    start = _resume(net, optimizer, config, folder)
    if start == 0 and not all(m.calibrated for m in net.modules() if isinstance(m, Quantizer)):
        calibrate(net, data.batch(0)[0])
    began, recent = time.monotonic(), {}
    path = None
    with _stop_signals() as stop, tqdm(total=config.steps, initial=start, unit="step") as bar:
        for step in range(start, config.steps):
            for group in optimizer.param_groups:
                group["lr"] = config.learning_rate_at(step)
            lr, hr = (x.to(memory_format=torch.channels_last) for x in data.batch(step))
            losses = train_step(net, optimizer, lr, hr, config)
            for name, value in losses.items():  # a running mean over about 100 steps
                recent[name] = value if name not in recent else 0.99 * recent[name] + 0.01 * value
            bar.update()
            bar.set_postfix({"L1*255": f"{255 * recent['loss']:.3f}"}, refresh=False)
            done = step + 1
            late = max_seconds is not None and time.monotonic() - began > max_seconds
            if done % config.checkpoint_every == 0 or done == config.steps or late or stop:
                path = save_checkpoint(folder, net, optimizer, done, config, config.keep)
                _log(folder, {"step": done, "seconds": time.monotonic() - began, **recent})
            if late or stop:
                remark = f"stopped after step {done}; the same call goes on from {path}"
                bar.write(remark, file=sys.stderr)
                break
    if stop:
        signal.raise_signal(stop.number)  # checkpoint saved: now let it do what it does
    return path or list_checkpoints(folder)[-1]


def make_optimizer(net: QuantSR, config: TrainConfig) -> torch.optim.Adam:
    """Adam over all parameters of `net` (weights, biases, steps, tau, shortcuts)."""
    return torch.optim.Adam(
        net.parameters(), lr=config.learning_rate, betas=config.betas, fused=True
    )


def _resume(
    net: QuantSR, optimizer: torch.optim.Optimizer, config: TrainConfig, folder: str | os.PathLike
) -> int:
    """Load the last checkpoint of `folder`, if any, and return the number of steps done."""
    checkpoints = list_checkpoints(folder)
    if not checkpoints:
        return 0
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
    for field in dataclasses.fields(config):
        old, new = getattr(earlier, field.name), getattr(config, field.name)
        if old != new:
            raise ValueError(
                f"{folder} holds a run whose `{field.name}` is {old!r}, not {new!r}; a resumed run "
                "keeps its configuration. Choose another folder, or the old value."
            )
    net.load_state_dict(saved.state_dict())
    load_optimizer(checkpoints[-1], net, optimizer)
    return state["step"]


def _log(folder: str | os.PathLike, line: dict[str, float]) -> None:
    with open(Path(folder) / "log.jsonl", "a") as file:
        file.write(json.dumps({k: round(v, 6) for k, v in line.items()}) + "\n")


class _Stop:
    """True once a signal asked to stop; `number` says which."""

    number: int | None = None

    def __bool__(self) -> bool:
        return self.number is not None


@contextlib.contextmanager
def _stop_signals() -> Iterator[_Stop]:
    """Let Ctrl-C and SIGTERM end the loop after its current step; a second one ends it at once."""
    stop = _Stop()
    previous = {}

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
        for number, handler in previous.items():
            signal.signal(number, handler)
