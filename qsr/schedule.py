"""How a network is trained: steps, rates and losses, as one frozen value.

Each field says what it means, so the command line offers them all with these words. No torch is
needed for that, and `qsr train --help` does not wait for it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal


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
    transfer: float = _option(0.0, "weight of the teacher's attention map at the end (PAMS: 3.9)")
    transfer_blocks: float = _option(0.0, "weight of those after each block (CADyQ: 0.39)")
    bit_weight: float = _option(0.0, "weight of the bits that CADyQ chooses (CADyQ: 6.3e-6)")
    precision: Literal["float32", "bfloat16"] = _option(
        "float32", "of products in layers; bfloat16 where the machine has it"
    )
    collapsed_tail: bool = _option(
        False,
        "train the tail as one convolution, without the outermost lr pixel of patches: a step of "
        "QuantSR-C x4 takes four fifths of the time",
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

    def bit_weight_at(self, step: int) -> float:
        """The weight of CADyQ's bits at step 0, 1, ...: a hundredth more every 1000 steps."""
        return self.bit_weight * (1 + step // 1000 / 100)

    @property
    def first_joint_step(self) -> int:
        """The step before which blocks are ranked."""
        return math.ceil(self.joint_from * self.steps)
