"""What a pass is judged by: L1, and what a teacher and the baselines add to it.

A pass through a network at one depth gives a picture and, on the way, features. L1 compares the
picture with the truth, or in part with that of a full-precision teacher, which at a small budget
teaches more. PAMS and CADyQ also compare features, by *attention maps*: where in the picture they
are large, whatever their number of channels (`attention_map`). CADyQ pays for bits besides.

Sources: PAMS (Li et al., ECCV 2020), CADyQ (Hong et al., ECCV 2022), and their released codes.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .backbone import DepthPlan, QuantSR
from .schedule import TrainConfig


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

    A compares attention maps with those of a teacher, the last term is CADyQ's, whose weight grows
    (`TrainConfig.bit_weight_at`). What has weight 0 is not computed. teacher: a network of as many
    blocks, which does not learn.

    Raises ValueError if a term needs a teacher that is not there or does not fit, or the weights of
    the depths are not one for each.
    """

    def __init__(self, net: QuantSR, config: TrainConfig, teacher: QuantSR | None = None) -> None:
        super().__init__()
        weights = {n: getattr(config, n) for n in ("distill", "transfer", "transfer_blocks")}
        needed = [name for name, weight in weights.items() if weight > 0]
        if not needed:
            teacher = None
        elif teacher is None:
            raise ValueError(
                f"`{needed[0]}` is {weights[needed[0]]}, which compares with a teacher, and there "
                "is none. Pass one, or set it to 0."
            )
        if teacher is not None and teacher.config.scale != net.config.scale:
            raise ValueError(
                f"the teacher has scale {teacher.config.scale} and the network {net.config.scale}; "
                "choose a teacher of the same scale."
            )
        if (
            teacher is not None
            and config.transfer_blocks > 0
            and (len(teacher.blocks) != len(net.blocks))
        ):
            raise ValueError(
                f"the teacher has {len(teacher.blocks)} blocks and the network {len(net.blocks)}; "
                "with `transfer_blocks` both have the same number. Choose another teacher."
            )
        if config.joint and len(config.depth_weights) not in (0, len(net.config.depths)):
            raise ValueError(
                f"`depth_weights` is {config.depth_weights!r}; this run trains the depths "
                f"{net.config.depths}, one weight each."
            )
        if config.collapsed_tail and net.config.family != "conv":
            raise ValueError(
                "`collapsed_tail` is set, and the tail of this network is one convolution already; "
                "it is for networks with an upsampler. Leave it out."
            )
        self.net, self.config = net, config
        # In a tuple: a teacher is no part of what is trained, saved or averaged.
        self.teacher = () if teacher is None else (teacher.eval().requires_grad_(False),)

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
            picture = self._picture(teacher, features, lr) if config.distill > 0 else None
        return Lesson(picture, tuple(seen), features if config.transfer > 0 else None)

    def forward(
        self, lr: Tensor, hr: Tensor, plan: DepthPlan, lesson: Lesson, bit_weight: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """(loss, L1 from the truth, mean squared error) of one depth; `lesson` is that of lr.

        bit_weight: of this step, a tensor as it changes from step to step.
        """
        net, config = self.net, self.config
        seen: list[Tensor] = []
        with self._autocast(lr), net.looking_at(lr) as scene:
            watch = seen.append if config.transfer_blocks > 0 else None
            features = net.features(lr, plan, watch)
            sr = self._picture(net, features, lr).float()
        if config.collapsed_tail:
            hr = F.pad(hr, [-net.config.scale] * 4)
        l1 = F.l1_loss(sr, hr)
        loss = l1
        if lesson.picture is not None:
            loss = (1 - config.distill) * l1 + config.distill * F.l1_loss(
                sr, lesson.picture.float()
            )
        if lesson.features is not None:
            loss = loss + config.transfer * transfer_loss(features, lesson.features)
        for mine, theirs in zip(seen, lesson.blocks, strict=True):
            loss = loss + config.transfer_blocks * transfer_loss(mine, theirs)
        if config.bit_weight > 0 and scene is not None and scene.bits:
            loss = loss + bit_weight * scene.cost()
        return loss, l1.detach(), F.mse_loss(sr.detach(), hr)

    def _autocast(self, lr: Tensor) -> torch.autocast:
        return torch.autocast(lr.device.type, torch.bfloat16, self.config.precision == "bfloat16")

    def _picture(self, net: QuantSR, features: Tensor, lr: Tensor) -> Tensor:
        """The picture of features, without the padding of windows; by a collapsed tail, without the
        outermost lr pixels.
        """
        collapsed, scale = self.config.collapsed_tail, net.config.scale
        height, width = (scale * (n - 2 * collapsed) for n in lr.shape[2:])
        made = net.reconstruct_inside(features) if collapsed else net.reconstruct(features)
        return made[:, :, :height, :width]


def attention_map(features: Tensor) -> Tensor:
    """A(F) of [N, C, H, W]: [N, H * W], each row of length 1 (0 where all features are 0).

    >>> import torch
    >>> attention_map(torch.tensor([[[[3.0, 0.0]], [[0.0, 3.0]]]])).tolist()
    [[0.7071067690849304, 0.7071067690849304]]
    """
    return F.normalize(features.square().mean(1).flatten(1), dim=1)


def transfer_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean squared difference of the attention maps of two [N, C, H, W]; C may differ."""
    mine, theirs = attention_map(student), attention_map(teacher)
    # In 16 bits one may be of another type; before 2.13 torch had no gradient for such a pair.
    common = torch.promote_types(mine.dtype, theirs.dtype)
    return F.mse_loss(mine.to(common), theirs.to(common))
