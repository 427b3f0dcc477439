"""One training step: several depths, one loss, one step of the optimiser.

QuantSR trains one set of weights at several depths: a step runs the network at every depth of its
plan, adds the L1 losses and takes one Adam step. Backward follows each forward at once, so the
memory is that of a single depth; the gradients are the same, since a sum has the sum of gradients.

A batch may be worked off in pieces (`accumulate`), or by several processes (`distributed`); the
step that is taken is that of the whole batch, up to float rounding.

What a pass is judged by is in `Objective`: L1, and the terms that PAMS and CADyQ add. The loop
around the step is in `runs`.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel

from . import distributed
from .backbone import QuantSR
from .cadyq import looking_at
from .distill import transfer_loss
from .quantizer import Quantizer


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
    rank_by: Literal["shortcut", "sensitivity", "given"] = _option(
        "shortcut",
        "what ranks blocks: their learned shortcut, what is lost without them, or the order of the "
        "network that training starts from",
    )
    depth_weights: tuple[float, ...] = _option((), "loss weight of each depth; none: equal, sum 1")
    clip_gradient: float | None = _option(None, "largest norm of the gradient")
    quantizer_rate: float = _option(
        1.0, "learning rate of step sizes and tau over that of weights (PAMS: 100)"
    )
    relative_steps: bool = _option(
        False,
        "change step sizes by factors and tau by parts of a step, not both by absolute amounts; "
        "with --quantizer-rate 30 or so",
    )
    distill: float = _option(
        0.0, "share of the L1 loss that compares with the teacher's picture, not the truth"
    )
    transfer: float = _option(0.0, "weight of the teacher's attention map at the end (PAMS: 1000)")
    transfer_blocks: float = _option(0.0, "weight of those after each block (CADyQ: 100)")
    bit_weight: float = _option(0.0, "weight of the bits that CADyQ chooses (CADyQ: 1e-4)")
    precision: Literal["float32", "bfloat16"] = _option(
        "float32", "of products in layers; bfloat16 where the machine has it"
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
            "rank_by": (
                self.rank_by in ("sensitivity", "given", "shortcut")[: 3 if self.joint_from else 2],
                "is shortcut, sensitivity or given; with `joint_from` 0, before shortcuts have "
                "learned anything, not shortcut",
            ),
            "joint_from": (0 <= self.joint_from < 1, "is 0 or more and below 1"),
            "ema": (0 <= self.ema < 1, "is 0 or more and below 1"),
            "distill": (0 <= self.distill <= 1, "is 0 to 1"),
            "quantizer_rate": (0 < self.quantizer_rate < math.inf, "is above 0"),
            "clip_gradient": (self.clip_gradient is None or self.clip_gradient > 0, "is above 0"),
        }
        weights = ("warmup", "transfer", "transfer_blocks", "bit_weight")
        rules |= {name: (0 <= getattr(self, name) < math.inf, "is 0 or more") for name in weights}
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


# What the papers of the baselines add: weights of their losses, learning rate of their clips.
RECIPES = {
    "pams": {"transfer": 1000.0, "quantizer_rate": 100.0},
    "cadyq": {"transfer": 1000.0, "transfer_blocks": 100.0, "bit_weight": 1e-4},
}


# One step -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Lesson:
    """What a teacher says about a batch: its picture sr, its features after each block and the last
    ones, [N, C, H, W]; only what counts.
    """

    picture: Tensor | None = None
    blocks: tuple[Tensor, ...] = ()
    features: Tensor | None = None


class Objective(nn.Module):
    """The loss of one pass through `net`:

        (1 - distill) L1(truth) + distill L1(teacher's picture)
        + transfer A(last features) + transfer_blocks sum A(blocks) + bit_weight cost of bits

    A compares attention maps with those of a teacher (`distill`), the last term is CADyQ's, whose
    weight grows by a hundredth every 1000 steps. What has weight 0 is not computed. teacher: a
    network of as many blocks, which does not learn.

    Raises ValueError if a term needs a teacher that is not there or does not fit, or the weights of
    the depths are not one for each.
    """

    def __init__(self, net: QuantSR, config: TrainConfig, teacher: QuantSR | None = None) -> None:
        super().__init__()
        weights = {n: getattr(config, n) for n in ("distill", "transfer", "transfer_blocks")}
        needed = [name for name, weight in weights.items() if weight > 0]
        if needed and teacher is None:
            raise ValueError(
                f"`{needed[0]}` is {weights[needed[0]]}, which compares with a teacher, and there "
                "is none. Pass one, or set it to 0."
            )
        if needed and teacher.config.scale != net.config.scale:
            raise ValueError(
                f"the teacher has scale {teacher.config.scale} and the network {net.config.scale}; "
                "choose a teacher of the same scale."
            )
        if config.transfer_blocks > 0 and len(teacher.blocks) != len(net.blocks):
            raise ValueError(
                f"the teacher has {len(teacher.blocks)} blocks and the network {len(net.blocks)}; "
                "with `transfer_blocks` both have the same number. Choose another teacher."
            )
        if config.joint and len(config.depth_weights) not in (0, len(net.config.depths)):
            raise ValueError(
                f"`depth_weights` is {config.depth_weights!r}; this run trains the depths "
                f"{net.config.depths}, one weight each."
            )
        self.net, self.config = net, config
        # In a tuple: a teacher is no part of what is trained, saved or averaged.
        self.teacher = (teacher.eval().requires_grad_(False),) if needed else ()

    @torch.no_grad()
    def lesson(self, lr: Tensor) -> Lesson:
        """What the teacher says about lr; nothing without one."""
        if not self.teacher:
            return Lesson()
        (teacher,), config = self.teacher, self.config
        seen: list[Tensor] = []
        with self._autocast(lr):
            features = teacher.features(
                lr, watch=seen.append if config.transfer_blocks > 0 else None
            )
            picture = _reconstructed(teacher, features, lr) if config.distill > 0 else None
        return Lesson(picture, tuple(seen), features if config.transfer > 0 else None)

    def forward(
        self, lr: Tensor, hr: Tensor, depth: int, lesson: Lesson, step: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        """(loss, L1 from the truth, mean squared error) of one depth; `lesson` is that of lr."""
        net, config = self.net, self.config
        seen: list[Tensor] = []
        with self._autocast(lr), looking_at(lr) as scene:
            watch = seen.append if config.transfer_blocks > 0 else None
            features = net.features(lr, net.plan(depth), watch)
            sr = _reconstructed(net, features, lr).float()
        l1 = F.l1_loss(sr, hr)
        loss = l1
        if config.distill > 0:
            loss = (1 - config.distill) * l1 + config.distill * F.l1_loss(
                sr, lesson.picture.float()
            )
        if config.transfer > 0:
            loss = loss + config.transfer * transfer_loss(features, lesson.features)
        for mine, theirs in zip(seen, lesson.blocks, strict=True):
            loss = loss + config.transfer_blocks * transfer_loss(mine, theirs)
        if config.bit_weight > 0 and scene.bits:
            loss = loss + config.bit_weight * (1 + step // 1000 / 100) * scene.cost()
        return loss, l1.detach(), F.mse_loss(sr.detach(), hr)

    def _autocast(self, lr: Tensor) -> torch.autocast:
        return torch.autocast(lr.device.type, torch.bfloat16, self.config.precision == "bfloat16")


def _reconstructed(net: QuantSR, features: Tensor, lr: Tensor) -> Tensor:
    """The picture of features, without the padding of windows."""
    height, width = (net.config.scale * n for n in lr.shape[2:])
    return net.reconstruct(features)[:, :, :height, :width]


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
    if len(lr) % config.accumulate:
        raise ValueError(
            f"`accumulate` is {config.accumulate} and the batch {len(lr)}; it must divide it."
        )
    optimizer.zero_grad(set_to_none=True)
    sums = torch.zeros(len(depths) + 1, device=lr.device)
    pieces = list(zip(lr.chunk(config.accumulate), hr.chunk(config.accumulate), strict=True))
    for number, (piece_lr, piece_hr) in enumerate(pieces, start=1):
        lesson = getattr(objective, "module", objective).lesson(piece_lr)
        # The deepest depth last: it has all parameters, so ranks average gradients once, after it.
        for i in reversed(range(len(depths))):
            apart = number < len(pieces) or i > 0
            with _apart(objective) if apart else contextlib.nullcontext():
                loss, l1, error = objective(piece_lr, piece_hr, depths[i], lesson, step)
                (weights[i] / len(pieces) * loss).backward()
            sums[i] += l1
        sums[-1] += error
    _merge_pieces(net, len(pieces) * distributed.size())
    gradients = {name: p.grad for name, p in net.named_parameters() if p.grad is not None}
    norm = nn.utils.get_total_norm(list(gradients.values()))
    *each, error = distributed.mean(sums / len(pieces)).tolist()
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


def make_optimizer(net: QuantSR, config: TrainConfig) -> torch.optim.Adam:
    """Adam over all parameters of `net`: weights, biases, shortcuts, and with a learning rate of
    their own (config.quantizer_rate times as large) step sizes and tau.

    CADyQ's second optimiser, for its selectors, has the same rate and so is this one.
    """
    named = [(name.rpartition(".")[2], p) for name, p in net.named_parameters() if p.requires_grad]
    own = [p for name, p in named if name in ("step_size", "tau")]
    groups = [{"params": [p for name, p in named if name not in ("step_size", "tau")], "rate": 1.0}]
    if own:
        groups.append({"params": own, "rate": config.quantizer_rate})
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
    shifted = [q for q in quantizers if getattr(q, "tau", None) is not None]
    steps = [q.step_size for q in quantizers if q.step_size.grad is not None]
    taus = [q.tau for q in shifted if q.tau.grad is not None]
    starts = [tau.clone() for tau in taus]
    units = [step.clone() for step in steps]
    units += [q.step_size.clone() for q in shifted if q.tau.grad is not None]
    moved = [*steps, *taus]
    if not moved:  # full precision
        optimizer.step()
        return
    torch._foreach_mul_([p.grad for p in moved], units)
    torch._foreach_zero_(moved)  # so that the optimiser leaves the change of l or t, unrounded
    optimizer.step()
    for step in steps:
        step.exp_()
    torch._foreach_mul_(moved, units)
    for tau, start in zip(taus, starts, strict=True):
        tau.add_(start)


def _apart(objective: nn.Module) -> contextlib.AbstractContextManager:
    """A pass after which ranks do not average gradients yet."""
    several = isinstance(objective, DistributedDataParallel)
    return objective.no_sync() if several else contextlib.nullcontext()


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
