"""One training step: several depths, one loss, one step of the optimiser.

QuantSR trains one set of weights at several depths: a step runs the network at every depth of its
plan, adds the L1 losses and takes one Adam step. Backward follows each forward at once, so the
memory is that of a single depth; the gradients are the same, since a sum has the sum of gradients.

A batch may be worked off in pieces (`accumulate`), or by several processes (`distributed`); the
step that is taken is that of the whole batch, up to float rounding.

`train_step` is one step, of which everything is told at once. A run takes the same step thousands
of times (`Stage`), and on a GPU a look at one number would stop it each time: so there shapes are
fixed, what changes from step to step is written into tensors before, what is measured stays on the
device, and there it is decided what becomes of a gradient that is not finite. Such a step can be
recorded as a CUDA graph (`system.graphs`); on the CPU it is the same step.

What a pass is judged by is in `objective`; the loop around the step is in `runs.fit`.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from .backbone import DepthPlan, QuantSR
from .objective import Objective
from .quantizer import Quantizer
from .schedule import TrainConfig
from .system import distributed


def train_step(
    net: QuantSR,
    optimizer: torch.optim.Optimizer,
    lr: Tensor,
    hr: Tensor,
    config: TrainConfig,
    *,
    depths: Sequence[int] | None = None,
    objective: Objective | DistributedDataParallel | None = None,
    step: int = 0,
) -> dict[str, float]:
    """One step on one batch. lr [N, 3, H, W], hr [N, 3, scale H, scale W], float RGB in [0, 1].

    depths: which are trained; None: all, or without config.joint the deepest alone. objective: what
    judges a pass, as `Objective` (None: without a teacher) or in `distributed.parallel`; then lr
    and hr are this rank's share of the batch. step: its number, from 0.

    Returns the L1 loss of each depth ("loss_32", ...), their weighted sum ("loss"), the PSNR (dB,
    RGB) of the deepest and the norm of the gradient. Raises ValueError if loss or gradient are not
    finite, with the layer where that began; the weights are then as before the step.

    With precision "bfloat16" layers multiply in 16 bits, quantised ones their codes, which are
    exact there (`layers`); weights, quantizers and the optimiser stay in float32.
    """
    stage = Stage(net, optimizer, config, depths=depths, objective=objective)
    stage.prepare(step)
    row = stage.measure(lr, hr)
    values = stage.told(numbers := row.tolist())
    if stage.broke(numbers):
        raise ValueError(_diagnosis(net, lr, hr, stage.plans, values["loss"]))
    stage.take(row)
    return values


class Stage:
    """The steps of a run that train the same depths. Arguments as `train_step`.

    stage(lr, hr) is a step of which nothing is read: it returns a row of numbers on the device, for
    `told` and `broke` later. The first gradient that is not finite stops the stage: from there on
    weights and moments stay as they are, whatever steps follow, and the row counts these.
    optimizer: of `make_optimizer`. average: moves along with the network (config.ema).
    """

    def __init__(
        self,
        net: QuantSR,
        optimizer: torch.optim.Optimizer,
        config: TrainConfig,
        *,
        depths: Sequence[int] | None = None,
        objective: Objective | DistributedDataParallel | None = None,
        average: QuantSR | None = None,
    ) -> None:
        if depths is None:
            depths = net.config.depths if config.joint else net.config.depths[:1]
        self.net, self.optimizer, self.config, self.average = net, optimizer, config, average
        self.objective = Objective(net, config) if objective is None else objective
        self.depths = tuple(depths)
        self.plans = [net.plan(depth) for depth in depths]  # the order of blocks is read here
        equal = (1 / len(depths),) * len(depths)
        self.weights = (config.depth_weights or equal) if len(depths) > 1 else equal
        device = net.mean.device
        self.bit_weight = torch.zeros((), device=device)
        self.forget = torch.zeros((), device=device)  # of the average: 1 - its decay
        self.broken = torch.zeros((), device=device)  # steps since a gradient was not finite

    def prepare(self, step: int) -> None:
        """Write what depends on the number of the step, but for the learning rate."""
        self.bit_weight.fill_(self.config.bit_weight_at(step))
        self.forget.fill_(1 - decay_at(self.config, step))

    def __call__(self, lr: Tensor, hr: Tensor) -> Tensor:
        """A step on a batch; returns its row."""
        row = self.measure(lr, hr)
        # As mixed precision does it: where this is 1, fused Adam leaves all as it is.
        self.optimizer.found_inf = (self.broken > 0).float()  # type: ignore[attr-defined]
        try:
            self.take(row)
        finally:
            del self.optimizer.found_inf  # type: ignore[attr-defined]
        if self.average is not None:
            update_average(self.average, self.net, self.forget)
        return row

    def measure(self, lr: Tensor, hr: Tensor) -> Tensor:
        """Leave the gradients of a batch in the parameters. Returns the row: L1 of each depth, the
        squared error of the deepest, the norm of the gradient, the count of broken steps.
        """
        self.optimizer.zero_grad(set_to_none=True)
        means = self._backward(lr, hr)
        _merge_pieces(self.net, self.config.accumulate * distributed.size())
        means = distributed.mean(means)
        norm = nn.utils.get_total_norm(list(_gradients(self.net).values()))
        finite = means[:-1].isfinite().all() & norm.isfinite()
        self.broken += (self.broken > 0) | ~finite
        return torch.cat([means, torch.stack([norm, self.broken])])

    def take(self, row: Tensor) -> None:
        """Change the weights along the gradients that `measure` left when it returned the row."""
        clip = self.config.clip_gradient
        if clip is not None:
            nn.utils.clip_grads_with_norm_(self.net.parameters(), clip, row[-2])
        if self.config.relative_steps:
            relative_step(self.net, self.optimizer)
        else:
            self.optimizer.step()

    def told(self, row: Sequence[float]) -> dict[str, float]:
        """What `train_step` returns, from a row that was read."""
        *each, error, norm, _ = row
        return {
            **{f"loss_{depth}": value for depth, value in zip(self.depths, each, strict=True)},
            "loss": sum(w * value for w, value in zip(self.weights, each, strict=True)),
            "psnr": -10 * math.log10(max(error, 1e-12)),
            "gradient": norm,
        }

    def broke(self, row: Sequence[float]) -> bool:
        """Whether the step of a row left the weights as they were."""
        return row[-1] > 0

    def _backward(self, lr: Tensor, hr: Tensor) -> Tensor:
        """Add the gradients of all depths over all pieces of the batch.

        Returns the means over the pieces: L1 of each depth, and the squared error of the deepest.
        """
        objective, count = self.objective, self.config.accumulate
        if len(lr) % count:
            raise ValueError(f"`accumulate` is {count} and the batch {len(lr)}; it must divide it.")
        judge: Any = getattr(objective, "module", objective)
        sums = torch.zeros(len(self.plans) + 1, device=lr.device)
        for number, (piece_lr, piece_hr) in enumerate(
            zip(lr.chunk(count), hr.chunk(count), strict=True), start=1
        ):
            lesson = judge.lesson(piece_lr)
            # The deepest depth last: it has all parameters, so ranks average gradients once, after
            # it.
            for i in reversed(range(len(self.plans))):
                apart = number < count or i > 0
                with _apart(objective) if apart else contextlib.nullcontext():
                    loss, l1, error = objective(
                        piece_lr, piece_hr, self.plans[i], lesson, self.bit_weight
                    )
                    (self.weights[i] / count * loss).backward()
                sums[i] += l1
            sums[-1] += error
        return sums / count


def make_optimizer(net: nn.Module, config: TrainConfig) -> torch.optim.Adam:
    """Adam over all parameters of `net`: weights, biases, shortcuts, and with a learning rate of
    their own (config.quantizer_rate times as large, and times `Quantizer.step_rate`) step sizes and
    tau. (CADyQ's paper has a second optimiser for its selectors, of the same rate: this one does
    for both.)
    """
    own: dict[float, list[Tensor]] = {}  # by their rate
    for quantizer in net.modules():
        if isinstance(quantizer, Quantizer):
            rate = 1.0 if config.relative_steps else quantizer.step_rate
            tau = getattr(quantizer, "tau", None)
            learned = [p for p in (quantizer.step_size, tau) if p is not None and p.requires_grad]
            own.setdefault(config.quantizer_rate * rate, []).extend(learned)
    apart = {id(p) for parameters in own.values() for p in parameters}
    rest = [p for p in net.parameters() if p.requires_grad and id(p) not in apart]
    groups = [{"params": rest, "rate": 1.0}]
    groups += [{"params": p, "rate": rate} for rate, p in own.items() if p]
    device = next(net.parameters()).device
    for group in groups:  # rates in tensors, which a recorded step reads when it is replayed
        # The kernel for GPUs takes them in 32 bits, that for the CPU as a float of Python.
        dtype = torch.float64 if device.type == "cpu" else torch.float32
        group["lr"] = torch.zeros((), dtype=dtype, device=device)
    optimizer = torch.optim.Adam(groups, betas=config.betas, fused=True, capturable=True)
    set_learning_rate(optimizer, config.learning_rate)
    return optimizer


def set_learning_rate(optimizer: torch.optim.Optimizer, learning_rate: float) -> None:
    """The learning rate of weights; other groups follow by their factor."""
    for group in optimizer.param_groups:
        group["lr"].fill_(group["rate"] * learning_rate)


@torch.no_grad()
def relative_step(net: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """`optimizer.step()` on the logarithm of step sizes, and on tau in units of the step.

    Adam changes every parameter by about its learning rate, whatever its unit. Weights have steps
    of about 0.02: 2e-4 is a hundredth of that, and a hundred such changes one way end at 0, where a
    block is dead. Inputs, in grey levels, have steps of about 20: 2e-4 is a hundred thousandth of
    that. And their gradients are of about 1e-8, as Adam's epsilon, which damps them further. So
    they, and tau, stay where calibration left them unless training is very long. Instead, let

        step = exp(l),  tau = step t:    dL/dl = step dL/dstep,  dL/dt = step dL/dtau

    and let the optimiser change l and t: steps by factors, tau by parts of a step. Nothing crosses
    0, and weights and inputs move at one rate (config.quantizer_rate times that of weights). Where
    the optimiser takes no step, values stay as they are, bit for bit.
    """
    quantizers = [m for m in net.modules() if isinstance(m, Quantizer)]
    steps: list[Tensor] = [q.step_size for q in quantizers if q.step_size.grad is not None]
    taus: list[Tensor] = []
    units = [step.clone() for step in steps]
    for quantizer in quantizers:
        tau = getattr(quantizer, "tau", None)
        if tau is not None and tau.grad is not None:
            taus.append(tau)
            # Of the shape of tau: on a GPU, pairs of one shape are multiplied in one launch.
            units.append(quantizer.step_size.expand_as(tau).clone())
    starts = [tau.clone() for tau in taus]
    moved = [*steps, *taus]
    if not moved:  # full precision
        optimizer.step()
        return
    torch._foreach_mul_([p.grad for p in moved if p.grad is not None], units)
    torch._foreach_zero_(moved)  # so that the optimiser leaves the change of l or t, unrounded
    optimizer.step()
    torch._foreach_exp_(steps)
    torch._foreach_mul_(moved, units)
    if taus:
        torch._foreach_add_(taus, starts)


def decay_at(config: TrainConfig, step: int) -> float:
    """The decay of the moving average at step 0, 1, ...

    In the first steps the average is short, (1 + step) / (10 + step), so that it forgets where the
    network started.
    """
    return min(config.ema, (1 + step) / (10 + step))


@torch.no_grad()
def update_average(average: nn.Module, net: nn.Module, forget: Tensor) -> None:
    """Move `average` a part `forget` of the way to `net`: weights, steps, tau and shortcuts; all
    else is copied. forget: float [], 1 - the decay.
    """
    own: list[Tensor] = list(average.parameters())
    new: list[Tensor] = list(net.parameters())
    torch._foreach_lerp_(own, new, [forget] * len(own))
    if buffers := list(average.buffers()):
        torch._foreach_copy_(buffers, list(net.buffers()))


def _apart(objective: nn.Module) -> contextlib.AbstractContextManager:
    """A pass after which ranks do not average gradients yet."""
    if isinstance(objective, DistributedDataParallel):
        return objective.no_sync()
    return contextlib.nullcontext()


def _merge_pieces(net: nn.Module, pieces: int) -> None:
    for quantizer in net.modules() if pieces > 1 else ():
        if isinstance(quantizer, Quantizer):
            quantizer.merge_pieces(pieces)


def _gradients(net: nn.Module) -> dict[str, Tensor]:
    return {name: p.grad for name, p in net.named_parameters() if p.grad is not None}


@torch.no_grad()
def _diagnosis(
    net: QuantSR,
    lr: Tensor,
    hr: Tensor,
    plans: Sequence[DepthPlan],
    loss: float,
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
            for plan in plans:
                net(lr, plan)
        finally:
            for hook in hooks:
                hook.remove()
    if not where:
        name = broken(_gradients(net)) or "some parameter"
        where.append(f"the gradient of {name} is not finite")
    return (
        f"the loss is {loss:.6g}; training diverged: {where[0]}. The last checkpoint is kept: "
        "resume from it with a smaller learning rate."
    )
