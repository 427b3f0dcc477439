"""One training step: several depths, one loss, one step of the optimiser.

QuantSR trains one set of weights at several depths: a step runs the network at every depth of its
plan, adds the L1 losses and takes one Adam step. Backward follows each forward at once, so the
memory is that of a single depth; the gradients are the same, since a sum has the sum of gradients.

A batch may be worked off in pieces (`accumulate`), or by several processes (`distributed`); the
step that is taken is that of the whole batch, up to float rounding.

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

from .backbone import QuantSR
from .config import TrainConfig
from .objective import Objective
from .quantizer import Quantizer
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
    if objective is None:
        objective = Objective(net, config)
    if depths is None:
        depths = net.config.depths if config.joint else net.config.depths[:1]
    equal = (1 / len(depths),) * len(depths)
    weights = (config.depth_weights or equal) if len(depths) > 1 else equal
    optimizer.zero_grad(set_to_none=True)
    means = _backward(objective, lr, hr, list(zip(depths, weights, strict=True)), config, step)
    _merge_pieces(net, config.accumulate * distributed.size())
    gradients = {name: p.grad for name, p in net.named_parameters() if p.grad is not None}
    norm = nn.utils.get_total_norm(list(gradients.values()))
    *each, error = distributed.mean(means).tolist()
    loss = sum(w * value for w, value in zip(weights, each, strict=True))
    if not (math.isfinite(loss) and norm.isfinite()):
        raise ValueError(_diagnosis(net, lr, hr, depths, loss, gradients))
    if config.clip_gradient is not None:
        nn.utils.clip_grads_with_norm_(net.parameters(), config.clip_gradient, norm)
    if config.relative_steps:
        relative_step(net, optimizer)
    else:
        optimizer.step()
    return {
        **{f"loss_{depth}": value for depth, value in zip(depths, each, strict=True)},
        "loss": loss,
        "psnr": -10 * math.log10(max(error, 1e-12)),
        "gradient": norm.item(),
    }


def _backward(
    objective: Objective | DistributedDataParallel,
    lr: Tensor,
    hr: Tensor,
    weighted: Sequence[tuple[int, float]],
    config: TrainConfig,
    step: int,
) -> Tensor:
    """Add the gradients of all depths, (blocks, weight of its loss), over all pieces of the batch.

    Returns the means over the pieces: L1 of each depth, and the squared error of the deepest.
    """
    if len(lr) % config.accumulate:
        raise ValueError(
            f"`accumulate` is {config.accumulate} and the batch {len(lr)}; it must divide it."
        )
    sums = torch.zeros(len(weighted) + 1, device=lr.device)
    pieces = list(zip(lr.chunk(config.accumulate), hr.chunk(config.accumulate), strict=True))
    for number, (piece_lr, piece_hr) in enumerate(pieces, start=1):
        judge: Any = getattr(objective, "module", objective)
        lesson = judge.lesson(piece_lr)
        # The deepest depth last: it has all parameters, so ranks average gradients once, after it.
        for i, (depth, weight) in reversed(list(enumerate(weighted))):
            apart = number < len(pieces) or i > 0
            with _apart(objective) if apart else contextlib.nullcontext():
                loss, l1, error = objective(piece_lr, piece_hr, depth, lesson, step)
                (weight / len(pieces) * loss).backward()
            sums[i] += l1
        sums[-1] += error
    return sums / len(pieces)


def make_optimizer(net: QuantSR, config: TrainConfig) -> torch.optim.Adam:
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
    optimizer = torch.optim.Adam(groups, betas=config.betas, fused=True)
    set_learning_rate(optimizer, config.learning_rate)
    return optimizer


def set_learning_rate(optimizer: torch.optim.Optimizer, learning_rate: float) -> None:
    """The learning rate of weights; other groups follow by their factor."""
    for group in optimizer.param_groups:
        group["lr"] = group["rate"] * learning_rate


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
    0, and weights and inputs move at one rate (config.quantizer_rate times that of weights).
    """
    quantizers = [m for m in net.modules() if isinstance(m, Quantizer)]
    steps: list[Tensor] = [q.step_size for q in quantizers if q.step_size.grad is not None]
    taus: list[Tensor] = []
    units = [step.clone() for step in steps]
    for quantizer in quantizers:
        tau = getattr(quantizer, "tau", None)
        if tau is not None and tau.grad is not None:
            taus.append(tau)
            units.append(quantizer.step_size.clone())
    starts = [tau.clone() for tau in taus]
    moved = [*steps, *taus]
    if not moved:  # full precision
        optimizer.step()
        return
    torch._foreach_mul_([p.grad for p in moved if p.grad is not None], units)
    torch._foreach_zero_(moved)  # so that the optimiser leaves the change of l or t, unrounded
    optimizer.step()
    for step in steps:
        step.exp_()
    torch._foreach_mul_(moved, units)
    for tau, start in zip(taus, starts, strict=True):
        tau.add_(start)


def _apart(objective: nn.Module) -> contextlib.AbstractContextManager:
    """A pass after which ranks do not average gradients yet."""
    if isinstance(objective, DistributedDataParallel):
        return objective.no_sync()
    return contextlib.nullcontext()


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
