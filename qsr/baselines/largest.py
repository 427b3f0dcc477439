"""The quantizers that QuantSR is compared with: DoReFa and PAMS, in the same layers and trainer.

Both choose the range by the largest value where LSQ and RLQ learn a step size:

    DoReFa   weights      tanh(w), on a grid up to its largest magnitude
             inputs       clipped to the largest magnitude of the calibration batch, fixed
    PAMS     weights      w, on a grid up to its largest magnitude: never clipped
             inputs       clipped to a learned alpha, signed even where nothing is negative

with the grid step_size * codes, where codes = round(z) is passed straight through in the backward
pass, z = clamp(x / step_size, -n, n). Signed grids are symmetric: at 2 bits the codes are -1, 0, 1.

What the sources leave open. DoReFa was made for classification: its weights are odd multiples of
1 / (2^b - 1) between -1 and 1, its inputs lie in [0, 1]. In super-resolution inputs are signed and
tens large, and every table that lists DoReFa used an adaptation that nobody published. Ours keeps
the two ideas, tanh and a fixed clip, on grids of integers, so that the same kernels run it: weights
keep the magnitude of tanh(w), which for the small weights of a trained network is that of w; the
clip is max|x| at calibration. PAMS learns alpha = n * step_size; here the parameter is the step
size, which learns at 1/n of the rate that its paper gives alpha (`step_rate`). Its teacher-student
loss is in no quantizer.

Sources: DoReFa-Net (Zhou et al., 2016); PAMS (Li et al., ECCV 2020) and its released code.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..quantizer import MIN_STEP_SIZE, Quantizer, to_codes

# A white pixel in the sources, 1 here: weights of terms beside L1 are theirs divided by it.
GREY_LEVELS = 255


def straight_through(z: Tensor) -> Tensor:
    """round(z), whose derivative is taken to be 1.

    >>> import torch
    >>> straight_through(torch.tensor([0.4, 1.6])).tolist()
    [0.0, 2.0]
    """
    return z + (z.round() - z).detach()


class LargestValue(Quantizer):
    """What the two have in common: a symmetric grid whose end is the largest value."""

    narrow = True
    learns_clip = True  # whether the step size of inputs has a gradient

    def __init__(self, bits: int, **options) -> None:
        super().__init__(bits, **options)
        self.step_size.requires_grad_(self.learns_clip and not self.weights)

    def squash(self, x: Tensor) -> Tensor:
        """What is put on the grid instead of x. Here: x."""
        return x

    def initial_step_size(self, x: Tensor) -> Tensor:
        """max|x| / qmax: nothing of the calibration data is clipped."""
        values = x if self.step_size.ndim == 0 else x.flatten(1)
        largest = values.abs().amax() if self.step_size.ndim == 0 else values.abs().amax(1)
        return (largest / self.spec.qmax).clamp(min=MIN_STEP_SIZE)

    def step(self, x: Tensor) -> Tensor:
        """The step size: of weights from the weights x as they are, without gradient; of inputs the
        parameter.
        """
        self._require_calibration()
        if not self.weights:
            step = super().step(x)
            return step if self.learns_clip else step.detach()
        step = self.initial_step_size(self.squash(x.detach()))
        return step if step.ndim == 0 else step.view(-1, *[1] * (x.ndim - 1))

    def merge_pieces(self, pieces: int) -> None:
        """Nothing: no gradient here depends on the number of elements."""

    def codes(self, x: Tensor) -> Tensor:
        """Integer codes of x: int8 (signed) or uint8 (unsigned), the shape of x."""
        return to_codes(self.squash(x), self.step(x), self.spec)

    def forward(self, x: Tensor) -> Tensor:
        """step(x) * codes(x), float; gradient 1 inside the range, 0 outside."""
        step, spec = self.step(x), self.spec
        z = self.squash(x) / step
        return step * straight_through(z if self.weights else z.clamp(spec.qmin, spec.qmax))

    def float_codes(self, x: Tensor, dtype: torch.dtype) -> Tensor:
        """forward(x) / step(x), whose quotient is a code up to a rounding that dtype takes away."""
        return (self(x) / self.step(x).detach()).to(dtype)


class PAMS(LargestValue):
    """Parameterised max scale (Li et al., 2020): inputs are clipped to a learned alpha.

    Inputs are signed always, as in the released code, which after a ReLU leaves half of the codes
    unused. alpha starts at the mean over the pictures of a batch of each picture's max|x|.
    """

    recipe = {"transfer": 1000 / GREY_LEVELS, "quantizer_rate": 100.0}

    def __init__(self, bits: int, **options) -> None:
        super().__init__(bits, **{**options, "signed": True})

    @property
    def step_rate(self) -> float:
        """1 / n: alpha = n * step_size moves as fast as if it were the parameter itself."""
        return 1 / self.spec.qmax

    def initial_step_size(self, x: Tensor) -> Tensor:
        """alpha / qmax for inputs; see `LargestValue` for weights."""
        if self.weights or x.ndim < 2:
            return super().initial_step_size(x)
        alpha = x.flatten(1).abs().amax(1).mean()
        return (alpha / self.spec.qmax).clamp(min=MIN_STEP_SIZE)


class DoReFa(LargestValue):
    """DoReFa (Zhou et al., 2016), adapted: tanh of the weights, a fixed clip of the inputs."""

    learns_clip = False

    def squash(self, x: Tensor) -> Tensor:
        """tanh of weights; inputs as they are."""
        return x.tanh() if self.weights else x
