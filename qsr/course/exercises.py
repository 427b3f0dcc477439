"""The exercises of the notebooks: for each its test, and in it what an answer is compared with.

A test begins with examples that a head can follow, as the first thing a student reads should be
one; then come drawn inputs, which no answer knows beforehand, with what is odd among them: ties,
borders, one element, other shapes, values that no byte holds.

Where rounding decides, inputs keep away from ties unless the tie is the question: whoever computes
in another order, or in float64, is right too.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from ..backbone import DepthPlan, QuantSR
from ..blocks import Shortcut
from ..config import srresnet
from ..images.metrics import psnr_y
from ..infer import upscale
from ..quantizer import Quantizer, QuantSpec, to_codes
from ..quantizer import phi_slope as slope_of_phi
from .claims import Claims, Draw, Exercise, exercise, numbers, same

# 00 Enlarge a photo -------------------------------------------------------------------------------


@exercise(
    "00_enlarge_a_photo",
    "my_error",
    decibels=(36, 32, 33, 34, 38, 39, 41),
    most=(255, 127, 511, 1023, 2047, 4095),
)
def grey_levels(f: Callable, draw: Draw, decibels: int, most: int) -> Claims:
    """The root of the mean squared error, in grey levels, at some decibels."""

    def right(db: float) -> float:
        return most / 10 ** (db / 20)

    yield same(f(0.0), most), f"at 0 dB the error is {most}"
    sentence = "20 dB more is a hundredth of the squared error; what is its root?"
    yield same(f(20.0), most / 10), sentence
    yield same(f(decibels), right(decibels)), f"at {decibels} dB"
    black, grey = torch.zeros(1, 3, 8, 8), torch.full((1, 3, 8, 8), 10 / 255)
    wrong_by = most / 255 * 10 * (65.481 + 128.553 + 24.966) / 255
    measured = psnr_y(grey, black, crop=0).item()
    yield same(f(measured), wrong_by), f"where each pixel is wrong by {wrong_by:.2f}"
    for _ in range(4):
        db = draw.real(1, 60)
        yield same(f(db), right(db)), f"at {db:.3f} dB"
    db = -draw.real(1, 9)
    yield same(f(db), right(db)), f"at {db:.3f} dB, worse than black for white"
    db = draw.whole(61, 90)
    yield same(f(db), right(db), atol=0), f"at {db} dB, a thousandth of {most} and less"


@exercise("00_enlarge_a_photo", "my_twice")
def twice_two(f: Callable, draw: Draw) -> Claims:
    """A picture enlarged by a model, and what comes out by the same model again."""

    def model(scale: int) -> QuantSR:
        torch_seed = draw.whole(0, 2**31)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(torch_seed)
            return QuantSR(srresnet(scale, blocks=1, features=4)).eval()

    for scale, shape, which in (
        (2, (1, 3, 7, 10), "a picture of 10 x 7 pixels and a model for 2"),
        (2, (2, 3, 6, 5), "two pictures at once"),
        (2, (3, 8, 6), "a picture without a batch, [3, H, W]"),
        (3, (1, 3, 5, 4), "a model for 3, which gives 9 times as many pixels a side"),
        (2, (1, 3, 1, 1), "a picture of one pixel"),
    ):
        lr, net = draw.uniform(0.0, 1.0, *shape), model(scale)
        right = upscale(upscale(lr, net), net)
        yield same(f(lr, net), right, atol=2e-3), f"{which}: not what the model given makes twice"


@exercise(
    "00_enlarge_a_photo",
    "my_depth",
    four=(12.0, 10.0, 11.0, 13.0, 14.0),
    eight=(21.0, 19.0, 20.0, 22.0, 23.0),
    sixteen=(39.0, 35.0, 37.0, 41.0, 43.0),
)
def deadline(f: Callable, draw: Draw, four: float, eight: float, sixteen: float) -> Claims:
    """The deepest network that is done in time, or the shallowest one."""

    def right(ms: dict, budget: float) -> int:
        return max((n for n, time in ms.items() if time <= budget), default=min(ms))

    ms = {16: sixteen, 4: four, 8: eight}
    yield same(f(ms, 25.0), 8), "in 25 ms, 8 blocks are done and 16 are not"
    yield same(f(ms, 100.0), 16), "with time for all, run all"
    yield same(f(ms, eight), 8), "done at the deadline is in time"
    sentence = f"16 blocks take {sixteen:g} ms; {sixteen - 1:g} are too few"
    yield same(f(ms, sixteen - 1), 8), sentence
    yield same(f(ms, 5.0), 4), "nothing is done in 5 ms: run the shallowest"
    for _ in range(4):
        depths = draw.some(draw.whole(3, 6), range(1, 64))
        ms = {n: 2.0 * n + draw.real(0, 1) for n in depths}
        budget = draw.real(min(ms.values()), max(ms.values()))
        yield same(f(ms, budget), right(ms, budget)), f"of {_table(ms)} in {budget:.1f} ms"
    few, many = sorted(draw.some(2, range(1, 64)))
    ms = {many: 30.0, few: 31.0}
    yield (
        same(f(ms, 32.0), many),
        f"{_table(ms)}: both are done in 32 ms, and more blocks are better",
    )
    yield same(f(ms, 9.0), few), f"{_table(ms)} in 9 ms: the shallowest, though it was slower here"
    yield same(f({few: 9.5}, 1.0), few), f"{_table({few: 9.5})} in 1 ms: there is only this one"


def _table(ms: dict[int, float]) -> str:
    return "{" + ", ".join(f"{n}: {time:.1f}" for n, time in ms.items()) + "}"


# 01 Redistribution and quantisation ---------------------------------------------------------------


@exercise("01_redistribution_quantization", "my_slope")
def phi_slope(f: Callable, draw: Draw) -> Claims:
    """The slope of phi for any sharpness."""
    yield same(f(torch.tensor(0.5), 1.0), 1.0820), "at the threshold, k = 1, it is 1.0820"
    yield same(f(torch.tensor(0.0), 1.0), 0.8509), "at a code, k = 1, it is 0.8509"
    for low, high in ((0.1, 0.8), (1.2, 3.0), (3.0, 9.0)):
        k, u = draw.real(low, high), draw.uniform(0.0, 1.0, 6)
        yield same(f(u, k), slope_of_phi(u, k), 1e-3), f"k = {k:.2f}, u = {_list(u)}"
    k, u = draw.real(0.5, 4.0), draw.uniform(0.0, 1.0, 2, 3, 4)
    yield same(f(u, k), slope_of_phi(u, k), 1e-3), f"k = {k:.2f} and u of shape [2, 3, 4]"
    middles = (torch.arange(1000) + 0.5) / 1000
    mean = numbers(f(middles, k))
    yield same(None if mean is None else mean.mean(), 1, 2e-3), f"its mean over u, for k = {k:.2f}"


@exercise("01_redistribution_quantization", "my_votes")
def votes(f: Callable, draw: Draw) -> Claims:
    """LSQ's derivative of a value by the step."""

    def right(z: Tensor, low: int, high: int) -> Tensor:
        return torch.where((z < low) | (z > high), z.clamp(low, high), z.round() - z)

    for one, vote in ((-2.6, -2.0), (-0.4, 0.4), (0.3, -0.3), (1.0, 0.0), (1.2, 1.0), (6.0, 1.0)):
        sentence = f"z = {one} votes {vote} with codes -2 to 1"
        yield same(f(torch.tensor([one]), -2, 1), [vote]), sentence
    for signed in (True, False):
        spec = QuantSpec(draw.whole(3, 6), signed)
        z = draw.uniform(2.0 * spec.qmin - 3, 2.0 * spec.qmax, 24)
        sentence = f"codes {spec.qmin} to {spec.qmax}, z = {_list(z)}"
        yield same(f(z, spec.qmin, spec.qmax), right(z, spec.qmin, spec.qmax)), sentence
    low, high = -draw.whole(3, 9), draw.whole(4, 9)
    ends = torch.tensor([float(low), float(high)])
    yield same(f(ends, low, high), [0, 0]), f"z = {low} and {high}, the codes at both ends: 0 to 0"
    past = torch.tensor([low - 0.2, high + 0.3])
    yield same(f(past, low, high), [low, high]), f"codes {low} to {high}, just past both ends"
    ties = torch.tensor([0.5, 1.5, -0.5, -1.5])
    yield same(f(ties, low, high), [-0.5, 0.5, 0.5, -0.5]), "a tie goes to the even code"
    z = draw.uniform(-4.0, 4.0, 2, 3, 2)
    yield same(f(z, -3, 2), right(z, -3, 2)), "z of shape [2, 3, 2], codes -3 to 2"


@exercise("01_redistribution_quantization", "my_thresholds")
def thresholds(f: Callable, draw: Draw) -> Claims:
    """Where one code ends and the next one begins."""
    got = numbers(f(0.5, 0.2, QuantSpec(2)))
    yield got is not None and got.shape == (3,), "four codes have three thresholds between them"
    for side, first in ((-1e-3, -2), (1e-3, -1)):
        where = "below" if side < 0 else "above"
        codes = None
        if got is not None:
            step_size, shift = torch.tensor(0.5), torch.tensor(0.2)
            codes = to_codes((got + side).float(), step_size, QuantSpec(2), shift)
        sentence = f"step 0.5, tau 0.2, codes -2 to 1: the codes just {where} your thresholds"
        yield same(codes, range(first, first + 3)), sentence
    for spec in (
        QuantSpec(draw.whole(3, 5)),
        QuantSpec(draw.whole(2, 4), signed=False),
        QuantSpec(draw.whole(3, 5), narrow=True),
        QuantSpec(8),
    ):
        step, tau = draw.real(0.1, 3.0), draw.real(-2.0, 2.0)
        right = [step * (code + 0.5) - tau for code in range(spec.qmin, spec.qmax)]
        sentence = f"step {step:.3f}, tau {tau:.3f}, codes {spec.qmin} to {spec.qmax}"
        yield same(f(step, tau, spec), right), sentence
    spec = QuantSpec(1, signed=False)
    yield same(f(0.5, 0.0, spec), [0.25]), "step 0.5, tau 0, codes 0 and 1"


# 02 Baselines -------------------------------------------------------------------------------------


@exercise("02_baselines", "my_dorefa")
def dorefa(f: Callable, draw: Draw) -> Claims:
    """DoReFa's weights, by the tanh."""

    def share(w: Tensor) -> Tensor:
        squashed = w.double().tanh()
        return squashed / (2 * squashed.abs().max()) + 0.5

    def right(w: Tensor, bits: int) -> Tensor:
        n = 2**bits - 1
        return 2 * (n * share(w)).round() / n - 1

    def weights(bits: int, deviation: float, *shape: int) -> Tensor:
        return draw.until(
            lambda w: _no_ties((2**bits - 1) * share(w)),
            lambda: deviation * draw.normal(*shape),
        )

    some = torch.tensor([-1.0, -0.3, 0.05, 0.2, 1.0])
    yield (
        same(f(some, 2), [-1, -1 / 3, 1 / 3, 1 / 3, 1]),
        "weights whose tanh / max|tanh| is -1, -0.38, 0.07, 0.26 and 1 become -1, -1/3, 1/3, 1/3 "
        "and 1 with 2 bits",
    )
    for bits, deviation in ((3, 0.3), (4, 0.05), (2, 1.0), (3, 2.0)):
        w = weights(bits, deviation, 8)
        yield same(f(w, bits), right(w, bits)), f"{bits} bits, w = {_list(w)}"
    w = weights(3, 0.3, 4, 3)
    yield same(f(w, 3), right(w, 3)), "3 bits and the weights of a linear layer, [4, 3]"
    w = weights(2, 0.3, 3, 2, 3, 3)
    yield same(f(w, 2), right(w, 2)), "2 bits and the weights of a convolution, [3, 2, 3, 3]"
    w = -weights(3, 0.3, 6).abs()
    yield same(f(w, 3), right(w, 3)), f"3 bits, w = {_list(w)}: all below zero"
    yield same(f(torch.tensor([0.7]), 8), [1.0]), "a single weight is the largest: it becomes 1"


@exercise("02_baselines", "my_alpha_gradient")
def alpha_gradient(f: Callable, draw: Draw) -> Claims:
    """PAMS's derivative by alpha."""

    def right(x: Tensor, alpha: float, n: int) -> Tensor:
        z = n * x / alpha
        return torch.where(x.abs() > alpha, x.sign(), (z.round() - z) / n)

    def inputs(alpha: float, n: int, *shape: int) -> Tensor:
        return draw.until(
            lambda x: _no_ties(n * x / alpha) and bool(((x.abs() - alpha).abs() > 1e-3).all()),
            lambda: draw.uniform(-2 * alpha, 2 * alpha, *shape),
        )

    yield same(f(torch.tensor([3.0]), 2.0, 1), [1]), "x = 3, alpha = 2: clipped, so the sign of x"
    yield same(f(torch.tensor([-5.0]), 2.0, 1), [-1]), "x = -5, alpha = 2: the sign of x"
    small = torch.tensor([0.4])
    yield same(f(small, 2.0, 1), [-0.2]), "x = 0.4, alpha = 2, n = 1: z = 0.2 is rounded to 0"
    for n in (1, 3, draw.whole(5, 9), 127):
        alpha = draw.real(0.5, 4.0)
        x = inputs(alpha, n, 8)
        sentence = f"alpha = {alpha:.3f}, n = {n}, x = {_list(x)}"
        yield same(f(x, alpha, n), right(x, alpha, n), atol=1e-4 / n), sentence
    x = inputs(1.5, 3, 2, 3, 2)
    yield same(f(x, 1.5, 3), right(x, 1.5, 3), atol=1e-5), "x of shape [2, 3, 2]"
    yield same(f(x, torch.tensor(1.5), 3), right(x, 1.5, 3), atol=1e-5), "alpha a tensor, 1.5"
    on_codes = torch.tensor([0.0, 0.5, -1.0])
    yield (
        same(f(on_codes, 1.5, 3), [0, 0, 0]),
        "alpha = 1.5, n = 3: these x are codes, without error",
    )


@exercise("02_baselines", "my_best_step", power=(2, 3, 4))
def best_step(f: Callable, draw: Draw, power: int) -> Claims:
    """The step of the smallest mean of a power of the error, such as the square."""

    def loss(x: Tensor, step: float, spec: QuantSpec) -> float:
        codes = (x.double() / step).round().clamp(spec.qmin, spec.qmax)
        return (step * codes - x).abs().pow(power).mean().item()

    def worse(x: Tensor, spec: QuantSpec) -> tuple[bool, str]:
        step = numbers(f(x, spec))
        if step is None or step.numel() != 1:
            return False, "a step is one number"
        largest = (x.abs().max() / spec.qmax).item()
        if not 0 < step.item() <= 1.001 * largest:
            return False, f"step {step.item():.4g} is not above 0 and up to {largest:.4g}"
        best = min((largest * part / 100 for part in range(1, 101)), key=lambda s: loss(x, s, spec))
        found, least = loss(x, step.item(), spec), loss(x, best, spec)
        said = f"step {step.item():.4g} has an error of {found:.4g}, step {best:.4g} of {least:.4g}"
        return found <= 1.002 * least, said

    for bits, make, what in (
        (2, lambda: draw.normal(400), "normal numbers"),
        (4, lambda: draw.normal(400), "normal numbers"),
        (3, lambda: 500 * draw.normal(400).abs(), "numbers of 0 to 1500"),
        (3, lambda: -draw.normal(400).exp(), "numbers below zero"),
        (2, lambda: draw.normal(4, 5, 6, 4), "numbers of shape [4, 5, 6, 4]"),
        (3, lambda: draw.normal(400) ** 5, "numbers with outliers"),
        (2, lambda: torch.cat([0.3 + draw.normal(300) / 500, 2 + draw.normal(6) / 20]), "heaps"),
        (8, lambda: draw.uniform(-1.0, 1.0, 400), "even numbers"),
    ):
        x = make()
        spec = QuantSpec(bits, signed=bool(x.min() < 0))
        holds, said = worse(x, spec)
        yield holds, f"{what} with codes {spec.qmin} to {spec.qmax}: {said}"


# 03 Depth-dynamic training ------------------------------------------------------------------------


class Twice(nn.Module):
    """A block to count with: shortcut * x + 2 x. It counts its runs, and refuses `skip`."""

    def __init__(self, scale: float) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(scale))
        self.shortcut = Shortcut(learnable=True)
        self.shortcut.scale = self.scale
        self.runs = 0

    def forward(self, x: Tensor) -> Tensor:
        self.runs += 1
        return self.shortcut(x) + 2 * x

    def skip(self, x: Tensor) -> Tensor:
        raise RuntimeError("`skip` is off limits here")


@exercise("03_depth_dynamic_training", "my_body")
def body(f: Callable, draw: Draw) -> Claims:
    """What features become in the blocks of a network under a plan."""

    def right(blocks: Sequence[Twice], x: Tensor, keep: Sequence[bool]) -> Tensor:
        for block, runs in zip(blocks, keep, strict=True):
            x = (block.scale + 2 * runs) * x
        return x

    def plan(count: int) -> tuple[bool, ...]:
        """Some run and some do not."""
        return draw.until(
            lambda keep: 0 < sum(keep) < count,
            lambda: tuple(draw.one((True, False)) for _ in range(count)),
        )

    one = torch.ones(())
    for keep, expected, why in (
        ((True, True, True), 45, "3 · 2.5 · 6"),
        ((True, False, True), 9, "3 · 0.5 · 6: a skipped block multiplies"),
        ((False, True, False), 10, "1 · 2.5 · 4: a skipped block multiplies"),
    ):
        blocks = [Twice(1.0), Twice(0.5), Twice(4.0)]
        yield same(f(blocks, one, DepthPlan(keep)), expected), f"{keep} gives {why}"
        ran = sum(block.runs for block in blocks)
        yield ran == sum(keep), f"{keep}: {sum(keep)} blocks run, and {ran} did"
    for shape in ((3,), (2, 3, 4, 5)):
        drawn = plan(draw.whole(4, 7))
        blocks = [Twice(draw.real(-2, 2)) for _ in drawn]
        x = draw.normal(*shape).requires_grad_()
        inputs = [x, *(block.scale for block in blocks)]
        wanted = right(blocks, x, drawn)
        gradients = torch.autograd.grad(wanted.sum(), inputs)
        got = f(nn.ModuleList(blocks), x, DepthPlan(drawn))
        yield same(got, wanted), f"{drawn}, x of shape {list(shape)}"
        found = _gradients(got, inputs)
        said = f"{drawn}, x of shape {list(shape)}: the gradient of"
        yield same(found and found[0], gradients[0]), f"{said} x is lost or another"
        said = f"{said} the shortcuts, those of skipped blocks too,"
        yield same(found and found[1:], gradients[1:]), f"{said} is lost or another"


def _gradients(result: object, of: Sequence[Tensor]) -> list[Tensor] | None:
    """Gradients of the sum of a result, zeros where it does not depend on something."""
    if not isinstance(result, Tensor) or not result.requires_grad:
        return None
    found = torch.autograd.grad(result.sum(), of, allow_unused=True)
    return [torch.zeros_like(x) if g is None else g for x, g in zip(of, found, strict=True)]


@exercise("03_depth_dynamic_training", "my_keep")
def order_to_plan(f: Callable, draw: Draw) -> Claims:
    """For block 0, 1, 2, … whether it is one of those that run."""
    order: Sequence[int] = (2, 0, 3, 1)
    yield (
        same(f(order, 1), (False, False, True, False)),
        "block 2 comes first in (2, 0, 3, 1), so with count 1 it runs alone",
    )
    yield same(f(order, 2), (True, False, True, False)), "with count 2, blocks 2 and 0 run"
    yield same(f(order, 4), (True,) * 4), "with count 4 of 4, all run"
    for blocks in (5, 8, 12):
        order = tuple(draw.some(blocks, range(blocks)))
        count = draw.whole(2, blocks - 2)
        right = DepthPlan.from_order(order, count).keep
        yield same(f(order, count), right), f"order {order}, count {count}"
    order = draw.some(6, range(6))
    right = DepthPlan.from_order(order, 3).keep
    yield same(f(order, 3), right), f"the order may be a list, {order}, count 3"
    yield same(f((0,), 1), (True,)), "a network of one block runs it"


@exercise(
    "03_depth_dynamic_training",
    "my_step",
    deep=(32, 24, 28, 40, 48),
    middle=(16, 10, 12, 18, 20),
    shallow=(8, 3, 5, 6, 7),
)
def joint_step(f: Callable, draw: Draw, deep: int, middle: int, shallow: int) -> Claims:
    """Work and peak of memory of a joint step, in steps of the deepest network alone."""

    def right(depths: Sequence[int], block: float, shared: float) -> tuple[float, float]:
        each = [shared + block * depth for depth in depths]
        return sum(each) / max(each), 1.0

    def parts(*given: object) -> tuple[Tensor | None, Tensor | None]:
        both = numbers(f(*given))
        if both is None or both.shape != (2,):
            return None, None
        return both[0], both[1]

    three = (deep, middle, shallow)
    work, memory = parts(three, 1.0, 0.0)
    yield work is not None, "it returns two numbers: work and memory"
    sentence = f"the work of {deep}, {middle} and {shallow} blocks: {sum(three)} over {deep}"
    yield same(work, sum(three) / deep), sentence
    sentence = "one depth's activations are gone before the next begins, so the peak of memory"
    yield same(memory, 1), sentence
    work, _ = parts((4, 2, 1), 1.0, 1.0)
    yield same(work, 2), "5 + 3 + 2 over 5: what is shared counts at each depth"
    yield same(f((8,), 2.0, 3.0), (1, 1)), "a single depth is no dearer"
    for _ in range(3):
        depths = tuple(draw.some(draw.whole(2, 5), range(1, 40)))
        block, shared = draw.real(0.2, 3), draw.real(0.2, 9)
        sentence = f"depths {depths}, block {block:.2f}, shared {shared:.2f}: the work"
        work, memory = parts(depths, block, shared)
        yield same(work, right(depths, block, shared)[0]), sentence
        yield same(memory, 1), sentence.replace("the work", "the peak of memory")
    yield same(f((4, 8), 1.0, 0.0), (1.5, 1)), "depths 4 and 8, in rising order, are 12 over 8"
    yield same(f([8, 4], 0.0, 2.0), (2, 1)), "where blocks cost nothing, two depths are twice one"


@exercise("03_depth_dynamic_training", "my_greedy")
def greedy(f: Callable, draw: Draw) -> Claims:
    """Blocks by value, found by dropping one at a time from those that are left."""

    def right(count: int, error: Callable[[set[int]], float]) -> tuple[int, ...]:
        kept, dropped = set(range(count)), []
        while len(kept) > 1:
            worst = min(kept, key=lambda block: error(kept - {block}))
            kept.remove(worst)
            dropped.append(worst)
        return (*kept, *reversed(dropped))

    value = {0: 5.0, 1: 1.0, 2: 3.0}
    yield (
        same(f(3, lambda kept: -sum(value[i] for i in kept)), (0, 2, 1)),
        "of three that only add up, worth 5, 1 and 3, the most valuable first is (0, 2, 1)",
    )

    def twins(kept: set[int]) -> float:  # blocks 0 and 1 do the same, and it matters most
        return -10 * bool(kept & {0, 1}) - 2 * (2 in kept)

    found = f(3, twins)
    holds = bool(same(found, (0, 2, 1))) or bool(same(found, (1, 2, 0)))
    yield holds, f"one of the twins 0 and 1 goes first, the other stays longest; {found} does not"
    for count in (4, 5, 6):
        errors = _errors(draw, count)
        wanted = right(count, errors)
        yield same(f(count, errors), wanted), f"errors drawn for every set of {count} blocks"
    apart = {i: draw.real(0, 1) for i in range(7)}
    by_value = tuple(sorted(apart, key=lambda i: -apart[i]))
    sentence = f"seven blocks that add up, the most valuable first: {by_value}"
    yield same(f(7, lambda kept: 10 - sum(apart[i] for i in kept)), by_value), sentence
    yield same(f(1, lambda kept: 0.0), (0,)), "a single block is the order (0,)"


def _errors(draw: Draw, count: int) -> Callable[[set[int]], float]:
    """A number for each set of blocks, where no dropping of one block equals another, and where
    looking at each block once, or beginning with none, gives another order."""
    every = [
        frozenset(s) for n in range(count + 1) for s in itertools.combinations(range(count), n)
    ]

    def orders_differ(errors: dict) -> bool:
        def order(start: frozenset, pick: Callable) -> list[int]:
            kept, found = start, list[int]()
            while len(found) < count:
                block = pick(kept)
                kept = kept ^ {block}
                found.append(block)
            return found

        full = frozenset(range(count))
        back = order(full, lambda kept: min(kept, key=lambda i: errors[kept - {i}]))[::-1]
        ahead = order(frozenset(), lambda kept: min(full - kept, key=lambda i: errors[kept | {i}]))
        once = sorted(full, key=lambda i: -errors[full - {i}])
        return back != ahead and back != once

    table = draw.until(orders_differ, lambda: {kept: draw.real(0, 1) for kept in every})
    return lambda kept: table[frozenset(kept)]


# 04a Windows and attention ------------------------------------------------------------------------


@exercise("04a_windows_and_attention", "my_regions", rolled=(2, 3, 4, 5, 7, 9))
def regions(f: Callable, draw: Draw, rolled: int) -> Claims:
    """The region of each position along a side of the rolled picture."""

    def right(length: int, window: int, shift: int) -> list[int]:
        return [0] * (length - window) + [1] * (window - shift) + [rolled] * shift

    yield (
        same(f(16, 8, 4), right(16, 8, 4)),
        f"windows of 8 moved by 4: the last window is half 1, half {rolled}",
    )
    yield (
        same(f(12, 4, 1), right(12, 4, 1)),
        "windows of 4 moved by 1: only the last position was rolled in",
    )
    for _ in range(4):
        window = draw.whole(4, 12)
        shift = draw.one([s for s in range(1, window) if 2 * s != window])
        length = window * draw.whole(3, 6)
        sentence = f"length {length}, windows of {window} moved by {shift}"
        yield same(f(length, window, shift), right(length, window, shift)), sentence
    window = draw.whole(5, 9)
    yield same(f(window, window, 2), right(window, window, 2)), f"one window of {window} is all"
    yield same(f(14, 7, 6), right(14, 7, 6)), "windows of 7 moved by 6: one position is left to 1"
    yield same(f(12, 6, 0), right(12, 6, 0)), "moved by 0: nothing was rolled in"


@exercise("04a_windows_and_attention", "my_pairs")
def allowed_pairs(f: Callable, draw: Draw) -> Claims:
    """How many pairs of pixels may ask each other in a picture that was rolled by the shift."""

    def along(length: int, window: int, shift: int) -> int:
        whole = length // window - 1  # windows before the last one, which is in two parts
        return whole * window**2 + (window - shift) ** 2 + shift**2

    def right(height: int, width: int, window: int, shift: int) -> int:
        return along(height, window, shift) * along(width, window, shift)

    yield same(f(8, 8, 8, 0), 4096), "one window of 8 × 8, not shifted: 64 · 64"
    yield same(f(8, 8, 8, 4), 1024), "one window of 8 × 8 that is all corner, four quarters"
    yield same(f(16, 8, 8, 4), 3072), "16 × 8, windows of 8 moved by 4: 2048 and 1024"
    yield same(f(4, 4, 4, 1), 100), "one window of 4 × 4 moved by 1: (3² + 1²)²"
    for _ in range(4):
        window = draw.whole(3, 9)
        shift = draw.one([s for s in range(1, window) if 2 * s != window])
        across, down = draw.some(2, range(2, 7))
        sizes = window * across, window * down, window, shift
        sentence = "{} × {} pixels, windows of {} moved by {}".format(*sizes)
        yield same(f(*sizes), right(*sizes)), sentence
    window, count = draw.whole(2, 9), draw.whole(3, 7)
    sizes = count * window, window, window, 0
    yield same(f(*sizes), right(*sizes)), "{} × {}, windows of {}, not shifted".format(*sizes[:3])
    sizes = 16384, 8192, 8, 4
    sentence = "16384 × 8192 pixels, windows of 8 moved by 4, more pairs than int32 holds"
    yield same(f(*sizes), right(*sizes), rtol=0), sentence


# 04b Attention on integers ------------------------------------------------------------------------


@exercise("04b_attention_on_integers", "my_scores")
def scores(f: Callable, draw: Draw) -> Claims:
    """Scores of queries and keys, by their codes."""

    def right(q: Tensor, k: Tensor, step_q: float, step_k: float, bits: int) -> Tensor:
        low, high = -(1 << (bits - 1)), (1 << (bits - 1)) - 1
        codes_q = (q.double() / step_q).round().clamp(low, high)
        codes_k = (k.double() / step_k).round().clamp(low, high)
        return codes_q @ codes_k.T * (step_q * step_k)

    def factor(step: float, bits: int, *shape: int) -> Tensor:
        """Values to 1.5 times the range, away from ties."""
        reach = 1.5 * 2 ** (bits - 1)
        return step * draw.until(_no_ties, lambda: draw.uniform(-reach, reach, *shape))

    q, k = torch.tensor([[0.6, -0.9]]), torch.tensor([[1.0, 2.0], [9.0, 0.0]])
    # q / 0.5 = 1.2, -1.8 -> 1, -2;  k -> 1, 2 -> 1, 1 and 9, 0 -> 1, 0
    yield (
        same(f(q, k, 0.5, 1.0, 2), [[-0.5, 0.5]]),
        "codes 1, -2 by 1, 1 and 1, 0 (2 signed bits end at 1: the 9 is clipped), times 0.5",
    )
    yield same(f(q, k, 0.5, 1.0, 8), [[-1.5, 4.5]]), "with 8 bits nothing is clipped"
    for bits, rows, columns, length in ((4, 3, 3, 5), (3, 2, 5, 4), (8, 4, 3, 6), (2, 1, 1, 9)):
        step_q, step_k = draw.real(0.05, 0.7), draw.real(1.5, 4.0)
        q, k = factor(step_q, bits, rows, length), factor(step_k, bits, columns, length)
        sentence = f"{bits} bits, steps {step_q:.3f} and {step_k:.3f}, q {list(q.shape)}, k "
        got = f(q, k, step_q, step_k, bits)
        yield same(got, right(q, k, step_q, step_k, bits)), sentence + str(list(k.shape))
    low = torch.full((2, 8), -99.0)
    sentence = "4 bits, steps 1, both far below zero: eight times (-8) · (-8)"
    yield same(f(low, low, 1.0, 1.0, 4), torch.full((2, 2), 512.0)), sentence
    ties = torch.tensor([[0.5, 1.5, -0.5, -2.5]])
    sentence = "4 bits, steps 1: ties go to the even code, 0.5, 1.5, -0.5, -2.5 to 0, 2, 0, -2"
    yield same(f(ties, torch.eye(4), 1.0, 1.0, 4), [[0, 2, 0, -2]]), sentence
    high = torch.full((1, 300), 1e4)
    sentence = "8 bits, steps 1, 300 products of 127 · 127, a sum that no byte and no int16 holds"
    yield same(f(high, high, 1.0, 1.0, 8), [[300 * 127 * 127]]), sentence


@exercise("04b_attention_on_integers", "my_bias")
def fold_shift(f: Callable, draw: Draw) -> Claims:
    """The bias that makes a linear layer forget the shift of its input."""
    weight, bias = torch.tensor([[1.0, 3.0], [2.0, -2.0]]), torch.tensor([1.0, 0.0])
    sentence = "weights 2 and -2, bias 0: the shift cancels by itself"
    yield same(f(weight[1:], bias[1:], 0.5), [0]), sentence
    sentence = "weights 1, 3 and 2, -2, bias 1, 0, tau 0.5: 1 - 0.5 · (1 + 3) is -1"
    yield same(f(weight, bias, 0.5), [-1, 0]), sentence
    for out, into in ((3, 5), (4, 2), (1, 6)):
        weight, bias, tau = draw.normal(out, into), draw.normal(out), draw.real(-3, 3)
        right = bias.double() - tau * weight.double().sum(1)
        yield same(f(weight, bias, tau), right, atol=1e-5), f"weight [{out}, {into}], tau {tau:.3f}"
    right = bias - 0.75 * weight.sum(1)
    yield same(f(weight, bias, torch.tensor(0.75)), right, atol=1e-5), "tau a tensor, 0.75"
    square, zero = draw.normal(3, 3), torch.zeros(3)
    sentence = "a square weight: sums go along the inputs"
    yield same(f(square, zero, 1.0), -square.sum(1), atol=1e-5), sentence
    yield same(f(square, square[0], 0.0), square[0]), "without a shift the bias stays"


# 05 Bit-packed kernels ----------------------------------------------------------------------------


@exercise("05_bit_packed_kernels", "my_sign_dot")
def sign_dot(f: Callable, draw: Draw) -> Claims:
    """The dot product of numbers +1 and -1 that are bits of words."""

    def right(a: int, w: int, n: int) -> int:
        return sum(1 if (a >> i & 1) == (w >> i & 1) else -1 for i in range(n))

    yield same(f(0b1, 0b1, 1), 1), "1 times 1 is 1"
    yield same(f(0b00, 0b00, 2), 2), "(-1)(-1) + (-1)(-1) is 2"
    yield same(f(0b101, 0b010, 3), -3), "opposite signs: each product is -1"
    yield same(f(0b1011, 0b0011, 4), 2), "three products +1, one -1"
    for n in (7, draw.whole(9, 31), 64, draw.whole(65, 200)):
        a, w = draw.whole(0, 2**n - 1), draw.whole(0, 2**n - 1)
        sentence = f"n = {n}, a = {a:#x}, w = {w:#x}"
        yield same(f(a, w, n), right(a, w, n)), sentence
    n = draw.whole(10, 60)
    yield same(f(1, 2, n), n - 4), f"n = {n}, a = 0b1, w = 0b10: the zeros above count, as -1"
    full = 2**n - 1
    yield same(f(full, 0, n), -n), f"n = {n}, all 1 against all 0"


@exercise("05_bit_packed_kernels", "my_reach", most=(15, 3, 7, 31, 63))
def reach(f: Callable, draw: Draw, most: int) -> Claims:
    """The smallest and the largest value of a sum of codes with coefficients."""

    def right(form: Sequence[int], low: int, high: int) -> tuple[int, int]:
        ends = [sorted((c * low, c * high)) for c in form]
        return sum(a for a, _ in ends), sum(b for _, b in ends)

    hint = "a coefficient -1 is smallest where its code is largest"
    yield same(f((0, 1, 1, 0), -8, 7), (-16, 14)), "(0, 1, 1, 0), -8..7: two codes add up"
    yield same(f((1, 0, -1, 0), -8, 7), (-15, 15)), f"(1, 0, -1, 0), -8..7: {hint}"
    yield same(f((4, 0, -5, 0, 1, 0), 0, 15), (-75, 75)), f"(4, 0, -5, 0, 1, 0), 0..15: {hint}"
    row = np.array((4, 0, -5, 0, 1, 0))
    usual = np.outer(row, row).ravel().tolist()  # a plain loop over it is right too
    ends = (-50 * most, 50 * most)
    yield same(f(usual, 0, most), ends), f"both axes, 0..{most}: 50 codes with each sign"
    for low, high in ((-8, 7), (0, 15), (2, 9), (-9, -4)):
        form = tuple(draw.whole(-5, 5) for _ in range(draw.whole(3, 7))) + (-2, 3)
        yield same(f(form, low, high), right(form, low, high)), f"{form}, codes {low}..{high}"
    yield same(f((1, 2), 2, 9), (6, 27)), "(1, 2), 2..9: zero is out of reach"
    yield same(f((-3,), -128, 127), (-381, 384)), "(-3,), -128..127: no byte holds that"
    yield same(f((0, 0), -8, 7), (0, 0)), "(0, 0): no code counts"


@exercise("05_bit_packed_kernels", "my_intensity", width=(1024, 512, 640, 768, 1536, 2048))
def intensity(f: Callable, draw: Draw, width: int) -> Claims:
    """Products per byte of a linear layer."""

    def right(rows: int, bits: int) -> float:
        read, written = (rows + width) * width * bits / 8, rows * width * 4
        return rows * width * width / (read + written)

    # 1024 rows of as many: 2^30 products, 2^19 + 2^19 + 2^22 bytes, 204.8 products per byte
    sentence = f"{width} rows of 4 bits, in products per byte"
    yield same(f(width, 4), right(width, 4)), sentence
    yield same(f(1, 8), right(1, 8)), "one row of bytes, just below 1"
    one, half = numbers(f(1, 8)), numbers(f(1, 4))
    ratio = half / one if one is not None and half is not None and one.numel() else None
    yield same(ratio, right(1, 4) / right(1, 8)), "half the bits, one row: half the bytes, nearly"
    for rows in (draw.whole(2, 9), draw.whole(20, 200), draw.whole(2000, 9000)):
        bits = draw.one((1, 2, 3, 5, 8))
        yield same(f(rows, bits), right(rows, bits)), f"{rows} rows of {bits} bits"
    bits = draw.one((16, 32))
    yield same(f(64, bits), right(64, bits)), f"64 rows of {bits} bits"


# 06 Full reproduction -----------------------------------------------------------------------------


@exercise("06_full_reproduction", "my_suspects")
def suspects(f: Callable, draw: Draw) -> Claims:
    """The positions of values that are not below the one before them."""

    def right(values: Sequence[str]) -> list[int]:
        found = [float(value) for value in values]
        return [i for i in range(1, len(found)) if found[i] >= found[i - 1]]

    yield same(f(["32.17", "32.00", "31.75"]), []), "32.17, 32.00, 31.75: nothing rises here"
    yield same(f(["27.41", "27.27", "27.29"]), [2]), "27.41, 27.27, 27.29: the last one rises"
    yield (
        same(f(["31.0", "30.0", "30.5", "29.0"]), [2]),
        "30.5 is above the value before it, though not above the first",
    )
    yield same(f(["9.98", "10.02"]), [1]), "as numbers, 10.02 is above 9.98"
    yield same(f(["10.02", "9.98"]), []), "as numbers, 9.98 is below 10.02"
    yield same(f(["30.1", "30.10"]), [1]), "30.1 and 30.10 are equal, and equal is not below"
    yield same(f(["30.1"]), []), "a single value has none before it"
    yield same(f([]), []), "an empty column has no suspects"
    for _ in range(4):
        values = [f"{draw.whole(2995, 3005) / 100:.2f}" for _ in range(draw.whole(5, 9))]
        shown, wanted = ", ".join(values), right(values)
        yield same(f(values), wanted), shown
    fine = draw.real(28, 33)
    values = [f"{fine:.4f}", f"{fine - 0.0004:.4f}", f"{fine - 0.0002:.4f}"]
    sentence = f"{', '.join(values)}: small differences count"
    yield same(f(values), [2]), sentence


@exercise("06_full_reproduction", "my_saving", full=(32, 16, 24, 48, 64))
def saving(f: Callable, draw: Draw, full: int) -> Claims:
    """The share of the operations that is saved."""

    def right(total: float, floats: float, bits: float) -> float:
        return (total - floats) * (1 - bits / full) / total

    yield same(f(100, 0, full), 0), f"{full} bits save nothing"
    yield same(f(100, 0, full // 4), 0.75), f"{full // 4} bits of everything save 3/4"
    yield same(f(100, 100, 2), 0), "where everything stays in full precision nothing is saved"
    for bits in (1, 4, draw.one((2, 3, 6))):
        total = draw.whole(10**8, 10**12)
        floats = int(total * draw.real(0.1, 0.8))
        sentence = f"{floats:,} of {total:,} in full precision, {bits} bits"
        yield same(f(total, floats, bits), right(total, floats, bits)), sentence
    giga = draw.real(3, 90)
    bits = full // 2
    sentence = f"{giga / 4:.3f} of {giga:.3f} G, {bits} bits"
    yield same(f(giga, giga / 4, bits), right(giga, giga / 4, bits)), sentence


@exercise("06_full_reproduction", "my_gap", done=(0.02, 0.01, 0.03, 0.04, 0.06))
def gap_that_counts(f: Callable, draw: Draw, done: float) -> Claims:
    """The gap to full precision, or None where it does not count."""

    def nothing(sentence: str, *given: float) -> tuple[bool, str]:
        found = f(*given)
        shown = f"{found:.4g}" if isinstance(found, float) else found
        return found is None, f"{sentence}: None, not {shown}"

    yield nothing("100 steps of full precision are fewer than 200", 32.0, 31.8, 100, 200, 0.0)
    sentence = f"what gains {2.5 * done:g} dB at the end is not done"
    yield nothing(sentence, 32.0, 31.8, 200, 200, 2.5 * done)
    yield nothing(f"what gains {done} dB is not done", 32.0, 31.8, 300, 200, done)
    sentence = "as many steps, and done: this one counts, and is 0.2 dB"
    yield same(f(32.0, 31.8, 200, 200, done / 2), 0.2), sentence
    yield same(f(32.0, 32.1, 300, 200, 0.0), -0.1), "it may be better: then it is below 0"
    yield same(f(31.0, 31.0, 300, 200, 0.0), 0), "a gap of 0 is a gap"
    yield same(f(31.2, 31.0, 300, 200, -0.3), 0.2), "what lost 0.3 dB at the end gained nothing"
    steps = draw.whole(100, 9000)
    full, quantised = draw.real(30, 33), draw.real(28, 33)
    gap = full - quantised
    gained = draw.real(0.75, 0.995) * done
    sentence = f"{full:.3f} and {quantised:.3f} dB, {steps} steps both, gained {gained:.4f}"
    yield same(f(full, quantised, steps, steps, gained), gap), sentence
    sentence = f"{full:.3f} and {quantised:.3f} dB, {10 * steps} and {steps} steps, gained 0"
    yield same(f(full, quantised, 10 * steps, steps, 0.0), gap), sentence
    sentence = f"{steps - 1} steps of full precision are fewer than {steps}"
    yield nothing(sentence, full, quantised, steps - 1, steps, 0.0)
    gained = draw.real(1.005, 1.5) * done
    yield nothing(f"gained {gained:.4f} dB", full, quantised, steps, steps, gained)


# 07 Your turn -------------------------------------------------------------------------------------


@exercise("07_your_turn", "my_bytes", word=(64, 32, 96, 128, 256))
def packed_bytes(f: Callable, draw: Draw, word: int) -> Claims:
    """Bytes of the packed weights of a convolution."""

    def right(out: int, taps: int, channels: int, bits: int) -> int:
        return out * taps * bits * math.ceil(channels / word) * word // 8

    sentence = f"{word} channels of 1 bit are one word, {word // 8} bytes"
    yield same(f(1, 1, word, 1), word // 8), sentence
    whole = 64 * 9 * 4 * word // 8
    yield same(f(64, 9, word, 4), whole), f"{word} -> 64, 3 x 3, 4 bits"
    yield same(f(64, 9, 12, 4), whole), "12 channels pay for a whole word"
    sentence = f"{word + 1} channels need two words in each plane"
    yield same(f(1, 1, word + 1, 2), word // 2), sentence
    for words in (1, 2, 3, draw.whole(4, 9)):
        out, taps, bits = draw.whole(2, 90), draw.one((1, 9, 25)), draw.whole(2, 8)
        channels = word * words - draw.whole(1, word - 2)
        sentence = f"{channels} -> {out} channels, {taps} taps, {bits} bits"
        yield same(f(out, taps, channels, bits), right(out, taps, channels, bits)), sentence
    channels = word * draw.whole(3, 9)
    yield same(f(1, 1, channels, 1), channels / 8), f"{channels} channels fill their words"
    yield same(f(1, 1, 1, 1), word // 8), "a single channel pays for a word"


@exercise("07_your_turn", "my_slope")
def tent(f: Callable, draw: Draw) -> Claims:
    """A slope that is a tent over the interval."""
    u = (torch.arange(1000) + 0.5) / 1000
    whole = numbers(f(u))
    yield same(None if whole is None else whole.mean(), 1, 1e-3), "its mean over an interval"
    ends = torch.tensor([0.0, 1.0])
    yield same(f(ends), [0, 0]), "it is 0 at both ends of an interval"
    yield same(f(torch.tensor([0.25, 0.5, 0.75])), [1, 2, 1]), "u = 1/4, 1/2, 3/4"
    for low, high in ((0.0, 0.5), (0.5, 1.0)):
        u = draw.uniform(low, high, 8)
        yield same(f(u), 4 * torch.minimum(u, 1 - u), atol=1e-5), f"u = {_list(u)}"
    u = draw.uniform(0.0, 1.0, 2, 3, 2)
    yield same(f(u), 4 * torch.minimum(u, 1 - u), atol=1e-5), "u of shape [2, 3, 2]"
    u = torch.tensor(draw.real(0.1, 0.4))
    yield same(f(u), 4 * u, atol=1e-5), "u a tensor of one number"

    class Tent(Quantizer):
        def slope(self, u: Tensor) -> Tensor:
            return f(u)

    x = torch.tensor([0.5, 1.25, 9.0], requires_grad=True)
    tent = Tent(4, signed=True)
    tent.calibrated = True  # step size 1
    written = tent(x) if isinstance(f(x.detach()), Tensor) else None
    gradients = _gradients(written, [x])
    sentence = "in a quantizer: 2 on a threshold, 1 at 1/4, 0 where clipped"
    yield same(gradients and gradients[0], [2, 1, 0]), sentence


@exercise("07_your_turn", "my_start", share=(99, 93, 94, 95, 96, 97, 98))
def start_without_outliers(f: Callable, draw: Draw, share: int) -> Claims:
    """The step at which a share, such as 99 %, of the magnitudes lies below the last code."""

    def near(x: Tensor, qmax: int) -> tuple[bool, str]:
        step = numbers(f(x, qmax))
        if step is None or step.numel() != 1:
            return False, f"a step is one number, not {step}"
        size = x.abs().flatten().double()
        below = (size < step.item() * qmax).double().mean().item()
        near_by = 2 / len(size) + 1e-3
        said = f"below {qmax} steps of {step.item():.4g} lie {100 * below:.1f} % of the magnitudes"
        return abs(below - share / 100) < near_by and step.item() * qmax < size.max().item(), said

    x = torch.linspace(-100, 100, 2001)
    for qmax, make, what in (
        (7, lambda: x, "-100 to 100 evenly"),
        (7, lambda: torch.cat([x, torch.tensor([1e6])]), "one outlier of 1e6 changes nothing"),
        (127, lambda: draw.normal(2000), "normal numbers"),
        (1, lambda: draw.normal(2000) / 100, "normal numbers, 1/100"),
        (3, lambda: -draw.normal(2000).exp(), "numbers below zero"),
        (15, lambda: draw.normal(3, 23, 29) ** 3, "x of shape [3, 23, 29]"),
        (draw.whole(8, 40), lambda: draw.uniform(0.0, 9.0, 40, 50), "0 to 9 evenly, [40, 50]"),
    ):
        holds, said = near(make(), qmax)
        yield holds, f"{what}, qmax = {qmax}: {said}"


# 08 Your own network ------------------------------------------------------------------------------


@exercise("08_your_own_network", "my_memory")
def memory_at_once(f: Callable, draw: Draw) -> Claims:
    """Bytes of the values that live at once, at the worst step; no plan runs in fewer."""

    def right(lives: list) -> int:
        steps = {first for first, _, _ in lives}
        return max((sum(b for f, t, b in lives if f <= step <= t) for step in steps), default=0)

    def random(count: int, steps: int) -> list:
        ends = [sorted(draw.some(2, range(steps))) for _ in range(count)]
        return [(first, last, draw.whole(1, 999)) for first, last in ends]

    yield same(f([(0, 3, 100)]), 100), "one value of 100 bytes"
    yield same(f([(0, 1, 100), (2, 3, 64)]), 100), "64 bytes from step 2 on may lie where 100 lay"
    lives = [(0, 4, 100), (4, 8, 64)]
    yield same(f(lives), 164), "step 4 reads 100 bytes while it writes 64; both live"
    lives = [(0, 1, 10), (0, 3, 10), (2, 3, 15)]
    yield same(f(lives), 25), "10 bytes of steps 0 to 1, 10 of 0 to 3, 15 of 2 to 3"
    lives = [(0, 1, 30), (0, 5, 20), (4, 5, 40)]
    yield same(f(lives), 60), "20 bytes of steps 0 to 5 meet 30 and 40, but not at once"
    picture, codes = 4 * 128 * 128 * 64, 130 * 132 * 64
    block = [(1, 4, picture), (3, 4, picture), (1, 2, codes), (2, 3, codes), (3, 4, codes)]
    yield same(f(block), 2 * (picture + codes)), "the residual block of docs/plan.md"
    step, size = draw.whole(200, 900), draw.whole(2, 99)
    sentence = f"{size} bytes that steps {step} to {step} need, between 7 and 5"
    yield same(f([(0, 9, 7), (step, step, size), (step + 1, step + 4, 5)]), max(7, size)), sentence
    for count, steps in ((4, 6), (9, 12), (30, 40)):
        lives = random(count, steps)
        yield same(f(lives), right(lives)), f"{count} values in {steps} steps, {lives[:3]} first"
    yield same(f([]), 0), "nothing lives"


@exercise("08_your_own_network", "my_share")
def integer_share(f: Callable, draw: Draw) -> Claims:
    """The share of the products of convolutions that integers have."""

    def right(layers: list) -> float:
        products = [h * w * taps * i * o / g for h, w, taps, i, o, g, _ in layers]
        integers = sum(p for p, layer in zip(products, layers, strict=True) if layer[-1])
        return integers / sum(products)

    def layer(integer: bool, most: int = 4) -> tuple:
        groups = 2 ** draw.whole(0, most)
        inputs, outputs = (groups * draw.whole(1, 9) for _ in range(2))
        h, w = draw.whole(8, 99), draw.whole(8, 99)
        return h, w, draw.one((1, 9, 25)), inputs, outputs, groups, integer

    body, small = (8, 8, 9, 16, 16, 1), (8, 8, 1, 16, 16, 1)
    yield same(f([(*body, True), (*body, False)]), 0.5), "two layers alike, one on integers"
    yield same(f([(*body, True), (*small, False)]), 0.9), "3 x 3 taps on integers, 1 x 1 in float"
    wide = (8, 8, 9, 48, 16, 1)
    yield (
        same(f([(*body, True), (*wide, False)]), 0.25),
        "the float layer reads three times as many",
    )
    large = (8, 24, 9, 16, 16, 1)
    yield same(f([(*large, True), (*body, False)]), 0.75), "a map that is three times as wide"
    depthwise = (8, 8, 9, 16, 16, 16)
    sentence = "16 groups: each output reads one channel"
    yield same(f([(*body, True), (*depthwise, False)]), 16 / 17), sentence
    yield same(f([(*body, False)]), 0), "all in float"
    yield same(f([(*body, True), (*small, True)]), 1), "all on integers"
    for count, most in ((2, 0), (3, 0), (5, 4), (draw.whole(9, 20), 4)):
        layers = [layer(i % 2 == 0, most) for i in range(count)]
        sentence = f"{count} layers, {f'up to {2**most} groups' if most else 'one group each'}"
        yield same(f(layers), right(layers)), sentence


@exercise("08_your_own_network", "my_step")
def step_of_output(f: Callable, draw: Draw) -> Claims:
    """The step of an input with which the output changes least, but for its mean."""

    def written(x: Tensor, qmax: int, step: Tensor) -> Tensor:
        return step * (x / step).round().clamp(0, qmax)

    def free(d: Tensor) -> Tensor:
        return (d - d.mean(0)).square().sum()

    def errors(given: tuple, of: Callable[[Tensor], Tensor] = free) -> Tensor:
        x, weight, qmax, steps = given
        differences = [(written(x, qmax, step) - x).double() @ weight.double() for step in steps]
        return torch.stack([of(d) for d in differences])

    def clear(given: tuple) -> bool:
        """Whether one step is best by far."""
        least, second = errors(given).sort().values[:2].tolist()
        return least < 0.95 * second

    def make(rows: int, inputs: int, outputs: int, qmax: int) -> tuple:
        x = draw.normal(rows, inputs).relu() ** 2 * draw.uniform(0.2, 3.0, inputs)
        steps = x.max() / qmax * draw.uniform(0.15, 1.0, 6)
        return x, draw.normal(inputs, outputs), qmax, steps

    one = torch.ones(1, 1)
    x = torch.tensor([[0.0], [1.0], [2.0], [3.0]])
    yield same(f(x, one, 3, torch.tensor([0.5, 1.0, 2.0])), 1), "0, 1, 2, 3 in codes 0 to 3"
    x = torch.tensor([[0.4], [1.4], [2.4]])
    sentence = "0.4, 1.4, 2.4: with step 1 the output is 0.4 less everywhere, which a bias mends"
    yield same(f(x, one, 3, torch.tensor([0.7, 1.0])), 1), sentence
    both = torch.tensor([[1.0, -1.0]])
    sentence = "the same with weights 1 and -1: each output has a bias of its own"
    yield same(f(x, both, 3, torch.tensor([0.7, 1.0])), 1), sentence
    x = torch.tensor([[0.9], [1.9], [3.1]])
    sentence = "0.9, 1.9, 3.1 round to 1, 2, 3"
    yield same(f(x, one, 3, torch.tensor([0.8, 1.0])), 1), sentence
    x, steps = torch.tensor([[0.5, 0.0], [1.0, 0.0], [1.5, 60.0]]), torch.tensor([20.0, 0.5])
    weight = torch.tensor([[1.0], [0.0]])
    yield same(f(x, weight, 3, steps), 0.5), "an outlier of 60 whose weight is 0"
    yield same(f(x, weight.flip(0), 3, steps), 20), "an outlier of 60 whose weight is 1"
    sentence = "an outlier of 60 that the second of two outputs sees"
    yield same(f(x, torch.eye(2), 3, steps), 20), sentence
    x, weight = x[:, [0, 1, 1]], torch.tensor([[1.0], [1.0], [-1.0]])
    yield same(f(x, weight, 3, steps), 0.5), "outliers of 60 whose weights are 1 and -1"
    sizes = ((40, 3, 1, 15), (60, 4, 3, 7), (90, 6, 5, 3), (50, 5, 8, 31), (99, 2, 2, 7))
    for rows, inputs, outputs, qmax in sizes:
        given = draw.until(clear, functools.partial(make, rows, inputs, outputs, qmax))
        x, weight, _, steps = given
        best = steps[errors(given).argmin()]
        sentence = f"x {[*x.shape]}, weight {[*weight.shape]}, qmax {qmax}, steps {_list(steps)}"
        yield same(f(*given), best), sentence
    yield same(f(x, weight, qmax, steps[2:3]), steps[2]), "a single step to choose from"
    others: dict[str, Callable[[Tensor], Tensor]] = {
        "squares are added, not their roots": lambda d: d.std(0).sum(),
        "all outputs count, not the worst alone": lambda d: d.var(0).max(),
        "the mean is free, not the median": lambda d: (d - d.median(0).values).square().sum(),
    }
    for sentence, other in others.items():

        def tells(given: tuple, other: Callable[[Tensor], Tensor] = other) -> bool:
            return clear(given) and bool(errors(given).argmin() != errors(given, other).argmin())

        given = draw.until(tells, functools.partial(make, 31, 4, 3, 3))
        yield same(f(*given), given[3][errors(given).argmin()]), sentence


def _no_ties(z: Tensor) -> bool:
    """Whether no number lies so near to the middle of two whole ones that rounding is a matter of
    the last digits."""
    return bool(((z - z.floor() - 0.5).abs() > 1e-3).all())


def _list(x: Tensor) -> str:
    """A few numbers, to be read."""
    shown = ", ".join(f"{value:.3f}" for value in x.flatten()[:6].tolist())
    return f"{shown}, …" if x.numel() > 6 else shown


def every() -> Iterator[Exercise]:
    """All exercises, in the order of the course."""
    return (value for value in globals().values() if isinstance(value, Exercise))
