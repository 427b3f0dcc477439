"""Learning from a teacher: what a student's features should have in common with a larger network's.

A low-bit network that was copied from a full-precision one still knows where that one looked.
Structured knowledge transfer compares just that: the *attention map* of features F, which pixels
they respond to, without what each channel means,

    A(F) = a / ||a||,    a = the mean over channels of F^2, one value for each pixel

and charges the student the mean squared difference of its map from the teacher's.

Source: PAMS (Li et al., ECCV 2020), on the features before the tail; CADyQ (Hong et al., ECCV 2022)
also on those after each block.
"""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F


def attention_map(features: Tensor) -> Tensor:
    """A(F) of [N, C, H, W]: [N, H * W], each row of length 1 (0 where all features are 0).

    >>> import torch
    >>> attention_map(torch.tensor([[[[3.0, 0.0]], [[0.0, 3.0]]]])).tolist()
    [[0.7071067690849304, 0.7071067690849304]]
    """
    return F.normalize(features.square().mean(1).flatten(1), dim=1)


def transfer_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean squared difference of the attention maps of two [N, C, H, W]; C may differ."""
    return F.mse_loss(attention_map(student), attention_map(teacher))
