"""A network that was trained in full precision, quantised: tuned in minutes against itself.

    student = qsr.quantize(teacher, bits=4)
    print(qsr.tune(student, teacher, patches, steps=2000, folder="runs/mine"))

The float network is the teacher, and all that its quantised copy has to learn is to be the same
function: no labels are needed, only pictures, and the start is close. What few minutes can do
depends on three things.

The start: `calibrate` by the least error of outputs, not by the start of long trainings.

What is compared: not only the picture at the end. Every quantised layer has its twin in the
teacher, and what both give on the same picture should be equal:

    loss = (1 - truth) L1(student, teacher) + truth L1(student, hr)
           + match * mean over layers of  mean (y - y_teacher)^2 / Var(y_teacher)

so each layer hears about its own error at once, as in layer-wise reconstruction (BRECQ, AdaRound),
yet all learn in one pass, each around the errors of those before it.

What moves how fast: Adam on weights, on the logarithm of step sizes and on tau in parts of a step
(`train.relative_step`), so that all change by comparable parts, a cosine down to zero, and a moving
average, of which the best on held-out pictures stays.

A run is a pure function of (student, teacher, pictures, configuration), as in `fit`: interrupted
and called again with the same folder it ends with the same bytes.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import json
import math
import os
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm.auto import tqdm

from ..calibration import calibrate
from ..images.data import Patches, held_out
from ..layers import Quantized
from ..quantizer import Quantizer
from ..schedule import TrainConfig
from ..train import decay_at, make_optimizer, relative_step, set_learning_rate, update_average
from .checkpoints import (
    best_score,
    clear_half_deleted,
    find_best,
    list_checkpoints,
    load_average,
    load_optimizer,
    load_state,
    save_best,
    save_checkpoint,
)
from .fit import stop_signals
from .log import RunLog

Batches = Callable[[int], Tensor | tuple[Tensor, Tensor]]  # step -> inputs, or (inputs, truth)


def recipe(steps: int = 2000) -> TrainConfig:
    """The configuration of `tune` where none is given; what it does not name is not used."""
    return TrainConfig(
        steps=steps,
        learning_rate=2e-4,
        schedule="cosine",
        warmup=min(100, max(1, steps // 20)),
        quantizer_rate=15.0,  # a step size changes by up to 0.3 % a step
        relative_steps=True,
        distill=1.0,
        ema=0.998,
        validate_every=max(1, steps // 20),
        checkpoint_every=max(1, min(200, steps // 4)),
        log_every=max(1, min(100, steps // 20)),
    )


@dataclass(frozen=True)
class Tuned:
    """PSNR (dB) of the student's output against the float network's, on held-out pictures: at the
    start of papers, calibrated and tuned. `steps` were done, in `seconds`; all are, if `finished`.
    """

    start: float
    calibrated: float
    tuned: float
    steps: int
    seconds: float
    finished: bool

    def __str__(self) -> str:
        return (
            f"against float: {self.start:.2f} dB at the start, {self.calibrated:.2f} calibrated, "
            f"{self.tuned:.2f} tuned ({self.steps} steps, {self.seconds:.0f} s)"
        )


def tune(
    student: nn.Module,
    teacher: nn.Module,
    pictures: Patches | Batches,
    steps: int = 2000,
    folder: str | os.PathLike | None = None,
    *,
    config: TrainConfig | None = None,
    match: float = 0.1,
    held_out: Sequence[Tensor] | None = None,
    peak: float = 1.0,
    max_seconds: float | None = None,
) -> Tuned:
    """Tune `student`, in place, to be the function that `teacher` is, and keep the best state.

    student: of `quantize`; calibrated first (by outputs, on the first batch) if it is not. teacher:
    the float network, which takes the same inputs; it stays as it is. pictures: `Patches`, or any
    function of the number of a step, 0, 1, ..., that gives a batch, or (batch, truth); the same
    number gives the same batch. steps: 2000 are some minutes for a small network. folder: for
    checkpoints and the diary; calling again goes on from there. None: a temporary one.

    config: see `recipe` (learning rate, precision, ema, ...; `distill` below 1 gives the truth the
    rest). match: weight of what layers give; 0: outputs alone. held_out: inputs to choose the best
    state by, which are not trained on; None: pictures that `Patches` holds back, else four batches
    after the last step. peak: the value that PSNR takes for the largest. max_seconds: stop after
    that time, with a checkpoint; so does Ctrl-C.

    Both networks run in eval mode: statistics of batch normalisation stay as they are. Raises
    ValueError if the folder holds another run, and if the loss is not finite; TypeError for
    pictures that are neither.
    """
    if not (isinstance(pictures, Patches) or callable(pictures)):
        raise TypeError(
            f"`pictures` is a {type(pictures).__name__}; it is qsr.Patches, or a function of the "
            "number of a step: `lambda step: batches[step % len(batches)]` takes turns in a list."
        )
    config = recipe(steps) if config is None else config
    with contextlib.ExitStack() as stack:
        if folder is None:
            folder = stack.enter_context(tempfile.TemporaryDirectory())
        stack.enter_context(_evaluating(student, teacher))
        clear_half_deleted(folder)
        run = _Run(student, teacher, pictures, config, Path(folder), match, held_out, peak)
        stop = stack.enter_context(stop_signals())
        stack.callback(run.close)
        ends = run.done >= config.steps
        while not ends:
            run.step()
            late = max_seconds is not None and run.seconds() > max_seconds
            ends = late or bool(stop) or run.done == config.steps
            run.write(ends)
        tuned = run.finish()
    if stop.number is not None:
        signal.raise_signal(stop.number)
    return tuned


class _Run:
    """The run between two steps, `done` of which are behind it."""

    def __init__(
        self,
        student: nn.Module,
        teacher: nn.Module,
        pictures: Patches | Batches,
        config: TrainConfig,
        folder: Path,
        match: float,
        held_out: Sequence[Tensor] | None,
        peak: float,
    ) -> None:
        self.student, self.teacher, self.config, self.folder = student, teacher, config, folder
        self.match, self.peak = match, peak
        self.batches: Batches = pictures.batch if isinstance(pictures, Patches) else pictures
        self.held_out = _held_out(pictures, config) if held_out is None else list(held_out)
        with torch.no_grad():
            self.wanted = [teacher(x) for x in self.held_out]
        student.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.optimizer = make_optimizer(student, config)
        self.identity: dict[str, object] = {"match": match, "student": _described(student)}
        self.identity |= {"training": dataclasses.asdict(config)}
        self.identity |= pictures.identity if isinstance(pictures, Patches) else {}
        self.done, self.progress = self._resume()
        self.average = copy.deepcopy(student) if config.ema else None
        if self.done and self.average is not None:
            load_average(list_checkpoints(folder)[-1], self.average)
        names = {name for name, m in student.named_modules() if isinstance(m, Quantized)}
        there = {name for name, _ in teacher.named_modules()}
        self.matched = sorted(names & there) if match else []
        self.log = RunLog(folder, self.done)
        self.bar = tqdm(total=config.steps, initial=self.done, unit="step", mininterval=1)
        self.before, self.began = self.progress["seconds"], time.monotonic()
        self.first = self.done

    def _resume(self) -> tuple[int, dict]:
        """(steps done, what is remembered): from the last checkpoint, or calibrated."""
        checkpoints = list_checkpoints(self.folder)
        if checkpoints:
            state, tensors = load_state(checkpoints[-1])
            asked = json.loads(json.dumps(self.identity))  # JSON knows no tuples
            for name, value in asked.items():
                if state.get(name) != value:
                    raise ValueError(
                        f"{self.folder} holds a run whose `{name}` is {state.get(name)!r}, not "
                        f"{value!r}; a resumed run keeps it. Choose another folder."
                    )
            self.student.load_state_dict(tensors)
            load_optimizer(checkpoints[-1], self.student, self.optimizer)
            return state["step"], state["progress"]
        progress = {"seconds": 0.0, "start": math.nan}
        quantizers = [m for m in self.student.modules() if isinstance(m, Quantizer)]
        if not all(m.calibrated for m in quantizers):
            inputs = _inputs(self.batches(0))
            rough = copy.deepcopy(self.student)
            calibrate(rough, inputs)
            progress["start"] = self.score(rough)
            calibrate(self.student, inputs, method="output")
        progress["calibrated"] = score = self.score(self.student)
        if math.isnan(progress["start"]):  # it came calibrated
            progress["start"] = score
        save_best(self.folder, self.student, 0, self.config, 1, score, {})
        return 0, progress

    def step(self) -> None:
        """Learn from the next batch."""
        config, student = self.config, self.student
        batch = self.batches(self.done)
        inputs = _inputs(batch)
        set_learning_rate(self.optimizer, config.learning_rate_at(self.done))
        self.optimizer.zero_grad(set_to_none=True)
        loss = self._loss(inputs, None if isinstance(batch, Tensor) else batch[1])
        loss.backward()
        self.value = loss.item()
        if not math.isfinite(self.value):
            raise ValueError(
                f"step {self.done + 1}: the loss is {self.value}; tuning diverged. The last "
                "checkpoint is kept: go on from it in another folder with a smaller learning rate."
            )
        if config.clip_gradient is not None:
            nn.utils.clip_grad_norm_(student.parameters(), config.clip_gradient)
        if config.relative_steps:
            relative_step(student, self.optimizer)
        else:
            self.optimizer.step()
        if self.average is not None:
            forget = torch.tensor(1 - decay_at(config, self.done))
            update_average(self.average, student, forget.to(inputs.device))
        self.done += 1
        self.bar.update()

    def _loss(self, inputs: Tensor, truth: Tensor | None) -> Tensor:
        config = self.config
        low = torch.autocast(inputs.device.type, torch.bfloat16, config.precision == "bfloat16")
        with low, torch.no_grad(), _outputs(self.teacher, self.matched) as theirs:
            wanted = self.teacher(inputs).float()
        with low, _outputs(self.student, self.matched) as mine:
            found = self.student(inputs).float()
        loss = F.l1_loss(found, wanted)
        if config.distill < 1:
            if truth is None:
                raise ValueError(
                    f"`distill` is {config.distill}, and the batches have no truth; give pairs "
                    "(inputs, truth), or set it to 1."
                )
            loss = config.distill * loss + (1 - config.distill) * F.l1_loss(found, truth)
        errors = [_relative_error(mine[name], theirs[name]) for name in self.matched]
        return loss + self.match * sum(errors) / len(errors) if errors else loss

    @torch.no_grad()
    def score(self, net: nn.Module) -> float:
        """PSNR in dB against the teacher's outputs on held-out pictures, all pixels alike."""
        error = [
            (net(x) - y).square().mean() for x, y in zip(self.held_out, self.wanted, strict=True)
        ]
        return 10 * math.log10(self.peak**2 / max(1e-20, torch.stack(error).mean().item()))

    def write(self, ends: bool) -> None:
        """What is due after a step: a score, a checkpoint, a line of the diary."""
        config, done = self.config, self.done
        last = done == config.steps
        net = self.average or self.student
        scores = done % config.validate_every == 0 or last
        values = {"loss": self.value, "learning_rate": config.learning_rate_at(done - 1)}
        if scores:
            values["against_float"] = score = self.score(net)
            if score > best_score(self.folder)[1]:
                save_best(self.folder, net, done, config, 1, score, {})
            self.bar.set_postfix({"dB": f"{score:.2f}"}, refresh=False)
        if ends or done % config.checkpoint_every == 0:
            progress = {**self.progress, "seconds": self.before + self.seconds()}
            save_checkpoint(
                self.folder, self.student, self.optimizer, done, config, 1, self.average,
                {"progress": progress, **self.identity},
            )  # fmt: skip
        if scores or ends or done % config.log_every == 0:
            values["seconds"] = self.before + self.seconds()
            self.log.write(done, values, self.student if scores else None)

    def finish(self) -> Tuned:
        """Put the best state into the student: as calibrated, if nothing was better."""
        if (path := find_best(self.folder)) is not None:
            self.student.load_state_dict(load_state(path)[1])
        seconds = self.before + self.seconds()
        tuned = Tuned(
            self.progress["start"], self.progress["calibrated"], best_score(self.folder)[1],
            self.done, seconds, self.done >= self.config.steps,
        )  # fmt: skip
        self.bar.write(f"qsr: {tuned}", file=sys.stderr)
        return tuned

    def seconds(self) -> float:
        """Of this call; `before` had gone by already."""
        return time.monotonic() - self.began

    def close(self) -> None:
        """End the progress bar and the diary."""
        self.bar.close()
        self.log.close()


def _held_out(pictures: Patches | Batches, config: TrainConfig) -> list[Tensor]:
    if isinstance(pictures, Patches):
        pairs = held_out(pictures.sets, pictures.scale, side=64, most=10)
        return [pair.lr.to(pictures.pixels.device) for pair in pairs]
    return [_inputs(pictures(config.steps + i)) for i in range(4)]


def _inputs(batch: Tensor | tuple[Tensor, Tensor]) -> Tensor:
    return batch if isinstance(batch, Tensor) else batch[0]


def _described(net: nn.Module) -> str:
    """What two runs of the same network have in common."""
    shapes = sum(p.numel() for p in net.parameters())
    widths = [str(m.bits) for m in net.modules() if isinstance(m, Quantizer)]
    return f"{type(net).__name__} of {shapes} parameters, bits {' '.join(widths)}"


def _relative_error(mine: Tensor, theirs: Tensor) -> Tensor:
    theirs = theirs.float()
    return F.mse_loss(mine.float(), theirs) / theirs.var().clamp(min=1e-12)


@contextlib.contextmanager
def _outputs(net: nn.Module, names: Sequence[str]) -> Iterator[dict[str, Tensor]]:
    """What these layers give while the block runs."""
    found: dict[str, Tensor] = {}

    def keep(name: str) -> Callable[..., None]:
        return lambda layer, args, output: found.__setitem__(name, output)

    hooks = [net.get_submodule(name).register_forward_hook(keep(name)) for name in names]
    try:
        yield found
    finally:
        for hook in hooks:
            hook.remove()


@contextlib.contextmanager
def _evaluating(*nets: nn.Module) -> Iterator[None]:
    """Eval mode, and as before at the end."""
    modes = {module: module.training for net in nets for module in net.modules()}
    for net in nets:
        net.eval()
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode
