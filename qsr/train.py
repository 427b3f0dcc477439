"""Training: one readable step, and a loop around it that can stop and go on anywhere.

QuantSR trains one set of weights at several depths, in two stages: first the deepest network alone;
then its blocks are ranked, and each step runs the network at every depth of its plan, adds the L1
losses and takes one Adam step. Backward follows each forward at once, so the memory is that of a
single depth; the gradients are the same, since a sum has the sum of gradients.

A run is a pure function of (network, data, TrainConfig): the patches of step n depend on the seed
and n alone and nothing else is drawn, so a run that is interrupted and resumed ends bit for bit
where one that was not ends (same machine, same number of threads and ranks).

With several processes (`distributed`) or `accumulate` above 1 a batch is worked off in pieces; the
step that is taken is that of the whole batch, up to float rounding.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import math
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel
from tqdm.auto import tqdm

from . import distributed
from .backbone import QuantSR, rank_blocks
from .checkpoint import (
    best_score,
    clear_unfinished,
    list_checkpoints,
    load_average,
    load_checkpoint,
    load_optimizer,
    save_best,
    save_checkpoint,
)
from .data import Pair, Patches
from .evaluate import evaluate
from .layers import calibrate
from .quantizer import Quantizer
from .runlog import RunLog


def _option(default: object, help: str):
    return field(default=default, metadata={"help": help})


@dataclass(frozen=True)
class TrainConfig:
    """How to train. The defaults are the paper's schedule as far as it is known.

    Raises ValueError on construction if a field breaks its rule.
    """

    steps: int = _option(300_000, "steps of the optimiser")
    learning_rate: float = _option(2e-4, "of Adam, at its highest")
    schedule: Literal["halve", "cosine"] = _option("halve", "how the learning rate falls")
    halve_at: tuple[float, ...] = _option((250 / 300,), "fractions of the steps where it halves")
    warmup: int = _option(0, "steps over which the learning rate rises from 0")
    betas: tuple[float, float] = _option((0.9, 0.99), "of Adam")
    joint: bool = _option(True, "train all depths of the network, or the deepest alone")
    joint_from: float = _option(
        0.5, "fraction of the steps after which blocks are ranked and all depths are trained"
    )
    rank_by: Literal["shortcut", "sensitivity"] = _option(
        "shortcut", "what ranks blocks: their learned shortcut, or what is lost without them"
    )
    depth_weights: tuple[float, ...] = _option((), "loss weight of each depth; none: equal, sum 1")
    clip_gradient: float | None = _option(None, "largest norm of the gradient")
    precision: Literal["float32", "bfloat16"] = _option(
        "float32", "of layers that are not quantised"
    )
    accumulate: int = _option(1, "pieces in which a batch is worked off, to save memory")
    ema: float = _option(0.0, "decay of the moving average of weights; 0: none")
    validate_every: int = _option(1000, "steps between scores on held-out pictures")
    checkpoint_every: int = _option(1000, "steps between checkpoints")
    log_every: int = _option(100, "steps between lines of the log")
    keep: int = _option(2, "checkpoints that stay on the disk")

    def __post_init__(self) -> None:
        for name in ("halve_at", "betas", "depth_weights"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        counts = ("steps", "accumulate", "validate_every", "checkpoint_every", "log_every", "keep")
        rules = {name: (getattr(self, name) >= 1, "is 1 or more") for name in counts}
        rules |= {
            "learning_rate": (0 < self.learning_rate < math.inf, "is above 0"),
            "schedule": (self.schedule in ("halve", "cosine"), "is halve or cosine"),
            "precision": (self.precision in ("float32", "bfloat16"), "is float32 or bfloat16"),
            "rank_by": (self.rank_by in ("shortcut", "sensitivity"), "is shortcut or sensitivity"),
            "joint_from": (0 <= self.joint_from < 1, "is 0 or more and below 1"),
            "ema": (0 <= self.ema < 1, "is 0 or more and below 1"),
            "warmup": (self.warmup >= 0, "is 0 or more"),
            "clip_gradient": (self.clip_gradient is None or self.clip_gradient > 0, "is above 0"),
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

    @property
    def first_joint_step(self) -> int:
        """The step before which blocks are ranked."""
        return math.ceil(self.joint_from * self.steps)


# One step -----------------------------------------------------------------------------------------


def train_step(
    net: QuantSR,
    optimizer: torch.optim.Optimizer,
    lr: Tensor,
    hr: Tensor,
    config: TrainConfig,
    *,
    depths: Sequence[int] | None = None,
    parallel: DistributedDataParallel | None = None,
) -> dict[str, float]:
    """One step on one batch. lr [N, 3, H, W], hr [N, 3, scale H, scale W], float RGB in [0, 1].

    depths: which are trained; None: all, or without config.joint the deepest alone. parallel: `net`
    wrapped by `distributed.parallel`; then lr and hr are this rank's share of the batch.

    Returns the L1 loss of each depth ("loss_32", ...), their weighted sum ("loss"), the PSNR (dB,
    RGB) of the deepest and the norm of the gradient. Raises ValueError if loss or gradient are not
    finite, with the layer where that began; the weights are then as before the step.

    With precision "bfloat16" the full-precision layers run in 16 bits (weights stay float32), the
    quantised ones in float32: on processors that have bfloat16, SRResNet trains in half the time.
    """
    if depths is None:
        depths = net.config.depths if config.joint else net.config.depths[:1]
    weights = config.depth_weights or (1 / len(depths),) * len(depths)
    weights = weights if len(depths) > 1 else (1.0,)
    if len(weights) != len(depths):
        raise ValueError(
            f"`depth_weights` is {weights!r}; this run trains the depths {tuple(depths)}, one "
            "weight each."
        )
    if len(lr) % config.accumulate:
        raise ValueError(
            f"`accumulate` is {config.accumulate} and the batch {len(lr)}; it must divide it."
        )
    pieces = list(zip(lr.chunk(config.accumulate), hr.chunk(config.accumulate), strict=True))
    # The deepest depth last: it has all parameters, so ranks average gradients once, after it.
    passes = [(piece, i) for i in reversed(range(len(depths))) for piece in pieces]
    optimizer.zero_grad(set_to_none=True)
    sums = torch.zeros(len(depths) + 1, device=lr.device)
    for number, ((piece_lr, piece_hr), i) in enumerate(passes, start=1):
        apart = parallel is not None and number < len(passes)
        with parallel.no_sync() if apart else contextlib.nullcontext():
            with torch.autocast(lr.device.type, torch.bfloat16, config.precision == "bfloat16"):
                sr = (parallel or net)(piece_lr, net.plan(depths[i]))
            loss = F.l1_loss(sr.float(), piece_hr)
            (weights[i] / len(pieces) * loss).backward()
        sums[i] += loss.detach()
        if i == 0:
            sums[-1] += F.mse_loss(sr.detach().float(), piece_hr)
    _merge_pieces(net, len(pieces) * distributed.size())
    gradients = {name: p.grad for name, p in net.named_parameters() if p.grad is not None}
    norm = nn.utils.get_total_norm(list(gradients.values()))
    *each, error = distributed.mean(sums / len(pieces)).tolist()
    loss = sum(w * value for w, value in zip(weights, each, strict=True))
    if not (math.isfinite(loss) and norm.isfinite()):
        raise ValueError(_diagnosis(net, lr, hr, depths, loss, gradients))
    if config.clip_gradient is not None:
        nn.utils.clip_grads_with_norm_(net.parameters(), config.clip_gradient, norm)
    optimizer.step()
    return {
        **{f"loss_{depth}": value for depth, value in zip(depths, each, strict=True)},
        "loss": loss,
        "psnr": -10 * math.log10(max(error, 1e-12)),
        "gradient": norm.item(),
    }


def _merge_pieces(net: nn.Module, pieces: int) -> None:
    for quantizer in net.modules() if pieces > 1 else ():
        if isinstance(quantizer, Quantizer):
            quantizer.merge_pieces(pieces)


@torch.no_grad()
def _diagnosis(
    net: QuantSR,
    lr: Tensor,
    hr: Tensor,
    depths: Sequence[int],
    loss: float,
    gradients: dict[str, Tensor],
) -> str:
    """Where a value that is not finite came from: pictures, weights, a layer or a gradient."""
    where: list[str] = []

    def look(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, inputs: tuple, output: object) -> None:
            if not where and isinstance(output, Tensor) and not output.isfinite().all():
                where.append(f"it began in the layer {name}")

        return hook

    def broken(values: dict[str, Tensor]) -> str | None:
        return next((name for name, value in values.items() if not value.isfinite().all()), None)

    if not (lr.isfinite().all() and hr.isfinite().all()):
        where.append("the pictures of the batch hold such values")
    elif name := broken(dict(net.named_parameters())):
        where.append(f"the parameter {name} holds such values")
    else:
        hooks = [m.register_forward_hook(look(n)) for n, m in net.named_modules() if n]
        try:
            for depth in depths:
                net(lr, net.plan(depth))
        finally:
            for hook in hooks:
                hook.remove()
    if not where:
        where.append(f"the gradient of {broken(gradients) or 'some parameter'} is not finite")
    return (
        f"the loss is {loss:.6g}; training diverged: {where[0]}. The last checkpoint is kept: "
        "resume from it with a smaller learning rate."
    )


# A run --------------------------------------------------------------------------------------------


def fit(
    net: QuantSR,
    data: Patches,
    config: TrainConfig,
    folder: str | os.PathLike = "runs/qsr",
    max_seconds: float | None = None,
    validation: Sequence[Pair] = (),
    tensorboard: bool = False,
) -> Path:
    """Train `net` in place on `data`, from the last checkpoint in `folder` if there is one.

    An uncalibrated network is calibrated on the first batch. `max_seconds` ends the run after the
    current step with a checkpoint; so do Ctrl-C and SIGTERM, which then take their usual effect
    (KeyboardInterrupt, end of the process). Calling again goes on.

    validation: held-out pairs (`held_out`), scored every config.validate_every steps at the depths
    that are trained; the best network so far is kept in `folder`/best-N, and scores count for the
    moving average if there is one (config.ema). `folder`/log.jsonl is the diary; tensorboard writes
    it for TensorBoard too. Returns the folder of the last checkpoint.

    With a process group (`distributed.started`) the ranks share each batch.
    Raises ValueError if `folder` holds a run of another network or training configuration, or if
    the scales differ.
    """
    if data.scale != net.config.scale:
        raise ValueError(
            f"the data have scale {data.scale} and the network {net.config.scale}; make both equal."
        )
    net.train().to(memory_format=torch.channels_last)  # 3x3 convolutions are faster so
    optimizer = make_optimizer(net, config)
    start, before = _resume(net, optimizer, config, folder)
    if start == 0 and not all(m.calibrated for m in net.modules() if isinstance(m, Quantizer)):
        calibrate(net, data.batch(0)[0])  # the whole batch on every rank
    average = _average(net, config, folder)
    parallel = distributed.parallel(net)
    chief = distributed.rank() == 0
    if chief:
        clear_unfinished(folder)
    log = RunLog(folder, start, tensorboard) if chief else None
    began, recent = time.monotonic(), {}
    path = None
    bar = tqdm(total=config.steps, initial=start, unit="step", disable=not chief)
    with _stop_signals() as stop, bar, contextlib.closing(log or contextlib.ExitStack()):
        for step in range(start, config.steps):
            if config.joint and step == config.first_joint_step and len(net.config.depths) > 1:
                _rank(net, data, config)
            for group in optimizer.param_groups:
                group["lr"] = config.learning_rate_at(step)
            batch = data.batch(step, distributed.rank(), distributed.size())
            lr, hr = (x.to(memory_format=torch.channels_last) for x in batch)
            depths = trained_depths(net, config, step)
            measured = train_step(net, optimizer, lr, hr, config, depths=depths, parallel=parallel)
            done = step + 1
            if average is not None:
                update_average(average, net, config.ema, step)
            for name, value in measured.items():  # a running mean over about 100 steps
                recent[name] = value if name not in recent else 0.99 * recent[name] + 0.01 * value
            bar.update()
            rate = (done - start) * len(lr) * distributed.size() / (time.monotonic() - began)
            bar.set_postfix(
                {
                    "L1*255": f"{255 * recent['loss']:.3f}",
                    "dB": f"{recent['psnr']:.2f}",
                    "images/s": f"{rate:.0f}",
                },
                refresh=False,
            )
            late = max_seconds is not None and time.monotonic() - began > max_seconds
            ends = distributed.any_rank(late or bool(stop), lr.device)
            last = done == config.steps
            saves = done % config.checkpoint_every == 0 or last or ends
            if chief:
                values = {"learning_rate": config.learning_rate_at(step), "images_per_s": rate}
                if len(validation) and (done % config.validate_every == 0 or last):
                    values |= _validate(average or net, validation, depths, folder, done, config)
                    bar.write(_score_line(done, values), file=sys.stderr)
                seconds = before + time.monotonic() - began
                if saves:
                    path = save_checkpoint(
                        folder, net, optimizer, done, config, config.keep, average, seconds
                    )
                if saves or done % config.log_every == 0 or "validation" in values:
                    values |= {"seconds": seconds, **recent}
                    log.write(done, values, net if saves else None)
            if ends:
                remark = f"stopped after step {done}; the same call goes on from {path}"
                if chief:
                    bar.write(remark, file=sys.stderr)
                break
        distributed.wait()
    if stop:
        signal.raise_signal(stop.number)  # checkpoint saved: now let it do what it does
    return path or list_checkpoints(folder)[-1]


def make_optimizer(net: QuantSR, config: TrainConfig) -> torch.optim.Adam:
    """Adam over all parameters of `net` (weights, biases, steps, tau, shortcuts)."""
    return torch.optim.Adam(
        net.parameters(), lr=config.learning_rate, betas=config.betas, fused=True
    )


def trained_depths(net: QuantSR, config: TrainConfig, step: int) -> tuple[int, ...]:
    """The depths that step 0, 1, ... trains: the deepest alone, and later all of them."""
    joint = config.joint and step >= config.first_joint_step
    return net.config.depths if joint else net.config.depths[:1]


def _rank(net: QuantSR, data: Patches, config: TrainConfig) -> None:
    """Set the order of blocks. Sensitivity is measured on patches that no step trains on."""
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


def _validate(
    net: QuantSR,
    validation: Sequence[Pair],
    depths: Sequence[int],
    folder: str | os.PathLike,
    step: int,
    config: TrainConfig,
) -> dict[str, float]:
    """PSNR-Y at each depth and their mean ("validation"); keeps the network if that is the best."""
    scores = {f"validation_{d}": evaluate(net, validation, blocks=d).psnr_y for d in depths}
    mean = sum(scores.values()) / len(scores)
    # A network that has learned all its depths goes before one that has learned the deepest alone.
    if (len(depths), mean) > best_score(folder):
        save_best(folder, net, step, config, len(depths), mean, scores)
    return {"validation": mean, **scores}


def _score_line(step: int, values: dict[str, float]) -> str:
    parts = [
        f"{name.removeprefix('validation_')} blocks {value:.3f}"
        for name, value in values.items()
        if name.startswith("validation_")
    ]
    return f"step {step}: held-out pictures, dB: {', '.join(parts)}"


def _resume(
    net: QuantSR, optimizer: torch.optim.Optimizer, config: TrainConfig, folder: str | os.PathLike
) -> tuple[int, float]:
    """Load the last checkpoint of `folder`, if any: (steps done, seconds spent)."""
    checkpoints = list_checkpoints(folder)
    if not checkpoints:
        return 0, 0.0
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
    return state["step"], state["seconds"]


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
