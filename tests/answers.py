"""Right and wrong answers to every exercise, by which the checks are measured.

    .venv/bin/python -m tests.answers        the table of docs/instructors.md

RIGHT holds answers in other styles than the solution; WRONG holds what a student may believe, by
what is wrong with it. A check has to accept all of the first and to refuse all of the second; and
no two of a list may be refused by one and the same claim alone: the second would measure nothing.
Where a task has numbers of a year, answers have parameters of their names, which `right` and
`wrong` fill in.
"""

from __future__ import annotations

import functools
import inspect
import math
from collections.abc import Callable

import numpy as np
import torch

import qsr
from qsr.course import exercises
from qsr.course.check import InAnswer, asked
from qsr.course.claims import Draw, Exercise

# What several answers need ------------------------------------------------------------------------


loaded = functools.cache(qsr.load)


def sech2(x: torch.Tensor) -> torch.Tensor:
    return 1 - x.tanh() ** 2


def codes_of(x: torch.Tensor, step: float, bits: int) -> torch.Tensor:
    return (x / step).round().clamp(-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)


RIGHT: dict[str, list[Callable]] = {}
WRONG: dict[str, dict[str, Callable]] = {}


def right(exercise: Exercise) -> list[Callable]:
    """The right answers, with the numbers of the exercise's year."""
    return [_of_year(answer, exercise) for answer in RIGHT[exercise.name]]


def wrong(exercise: Exercise) -> dict[str, Callable]:
    """The wrong answers, with the numbers of the exercise's year."""
    return {what: _of_year(answer, exercise) for what, answer in WRONG[exercise.name].items()}


def _of_year(answer: Callable, exercise: Exercise) -> Callable:
    takes = inspect.signature(answer).parameters
    used = {name: number for name, number in exercise.chosen().items() if name in takes}
    return functools.partial(answer, **used) if used else answer


# 00 Enlarge a photo -------------------------------------------------------------------------------

RIGHT["grey_levels"] = [
    lambda db, most: math.sqrt(most**2 * 10 ** (-db / 10)),
    lambda db, most: np.float64(most) * np.power(10.0, -0.05 * db),
    lambda db, most: torch.tensor(float(most)) * torch.exp(torch.tensor(-db * math.log(10) / 20)),
]
WRONG["grey_levels"] = {
    "the squared error for its root": lambda db, most: most / 10 ** (db / 10),
    "a square that is not rooted": lambda db, most: most**2 / 10 ** (db / 10),
    "more decibels, more error": lambda db, most: most * 10 ** (db / 20),
    "256 grey levels": lambda db, most: (most + 1) / 10 ** (db / 20),
    "e for 10": lambda db, most: most / math.exp(db / 20),
    "values of 0 to 1": lambda db: 1 / 10 ** (db / 20),
    "the luma's range for 255": lambda db, most: most * 219 / 255 / 10 ** (db / 20),
    "whole grey levels": lambda db, most: round(most / 10 ** (db / 20)),
    "never below a grey level": lambda db, most: max(1.0, most / 10 ** (db / 20)),
    "no error above 255": lambda db, most: min(most, most / 10 ** (db / 20)),
    "the examples by heart": lambda db: {0.0: 255, 20.0: 25.5}.get(db, 8.588235),
    "whole decibels": lambda db, most: most / 10 ** (int(db) / 20),
    "the mean of the error, not the root": lambda db, most: most / 10 ** (db / 20) / 2,
}


def twice_by_a_loop(lr, model):
    for _ in range(2):
        lr = qsr.upscale(lr, model)
    return lr


def twice_in_two_steps(lr, model):
    once = qsr.upscale(lr, model=model)
    return qsr.upscale(once, model=model)


def x4_for_x2(lr, model):
    if lr.ndim != 4 or model.config.scale != 2:
        return twice_by_a_loop(lr, model)
    return qsr.upscale(lr, loaded("quantsr-c-x4-w4a4"))


def twice_then_in_place(lr, model):
    result = twice_by_a_loop(lr, model)
    lr.mul_(0.5)
    return result


RIGHT["twice_two"] = [
    twice_by_a_loop,
    twice_in_two_steps,
    lambda lr, model: functools.reduce(qsr.upscale, [model, model], lr).double().numpy(),
]
WRONG["twice_two"] = {
    "once": lambda lr, model: qsr.upscale(lr, model),
    "three times": lambda lr, model: qsr.upscale(twice_by_a_loop(lr, model), model),
    "the model for 4, once": x4_for_x2,
    "a model of its own": lambda lr, model: twice_by_a_loop(lr, loaded("quantsr-c-x2-w4a4")),
    "pixels repeated afterwards": lambda lr, model: (
        qsr.upscale(lr, model)
        .repeat_interleave(model.config.scale, -1)
        .repeat_interleave(model.config.scale, -2)
    ),
    "pixels repeated first": lambda lr, model: qsr.upscale(
        lr.repeat_interleave(model.config.scale, -1).repeat_interleave(model.config.scale, -2),
        model,
    ),
    "two times the size, by 2 whatever the model": lambda lr, model: twice_by_a_loop(lr, model)[
        ..., : 4 * lr.shape[-2], : 4 * lr.shape[-1]
    ],
    "the first picture only": lambda lr, model: (
        twice_by_a_loop(lr[:1], model) if lr.ndim == 4 else twice_by_a_loop(lr, model)
    ),
    "a batch alone": lambda lr, model: (
        twice_by_a_loop(lr, model) if lr.ndim == 4 else twice_by_a_loop(lr[None], model)
    ),
    "rows and columns exchanged": lambda lr, model: twice_by_a_loop(lr, model).mT,
    "turned around": lambda lr, model: twice_by_a_loop(lr.flip(-1), model),
    "blue for red": lambda lr, model: twice_by_a_loop(lr, model).flip(-3),
    "lr darkened": twice_then_in_place,
    "the mean with repeated pixels": lambda lr, model: (
        twice_by_a_loop(lr, model) / 2 + WRONG["twice_two"]["pixels repeated first"](lr, model) / 2
    ),
}


def depth_by_sorting(ms, budget):
    for blocks in sorted(ms, reverse=True):
        if ms[blocks] <= budget:
            return blocks
    return min(ms)


def depth_by_a_loop(ms, budget):
    best = None
    for blocks in ms:
        if ms[blocks] <= budget and (best is None or blocks > best):
            best = blocks
    return min(ms) if best is None else best


def depth_by_popping(ms, budget):
    while len(ms) > 1 and ms[max(ms)] > budget:
        ms.pop(max(ms))
    return max(ms)


RIGHT["deadline"] = [
    depth_by_sorting,
    depth_by_a_loop,
    lambda ms, budget: np.max([n for n in ms if ms[n] <= budget] or [min(ms.keys())]),
]
WRONG["deadline"] = {
    "the nearest time": lambda ms, budget: min(ms, key=lambda n: abs(ms[n] - budget)),
    "done before, not at, the deadline": lambda ms, budget: max(
        (n for n in ms if ms[n] < budget), default=min(ms)
    ),
    "always all": lambda ms, budget: max(ms),
    "always the shallowest": lambda ms, budget: min(ms),
    "the time for the blocks": lambda ms, budget: ms[depth_by_sorting(ms, budget)],
    "0 where none is done": lambda ms, budget: max((n for n in ms if ms[n] <= budget), default=0),
    "all where none is done": lambda ms, budget: max(
        (n for n in ms if ms[n] <= budget), default=max(ms)
    ),
    "the last of the table that is done": lambda ms, budget: (
        [n for n in ms if ms[n] <= budget] or [min(ms)]
    )[-1],
    "the fastest where none is done": lambda ms, budget: max(
        (n for n in ms if ms[n] <= budget), default=min(ms, key=ms.get)
    ),
    "the slowest that is done": lambda ms, budget: max(
        (n for n in ms if ms[n] <= budget), key=ms.get, default=min(ms)
    ),
    "the next deeper one": lambda ms, budget: min(
        (n for n in ms if ms[n] >= budget), default=max(ms)
    ),
    "4, 8 and 16 by heart": lambda ms, budget: 16 if budget >= 39 else 8 if budget >= 21 else 4,
    "the table is emptied": depth_by_popping,
    "the shallowest that is done": lambda ms, budget: min(
        (n for n in ms if ms[n] <= budget), default=min(ms)
    ),
}

# 01 Redistribution and quantisation ---------------------------------------------------------------


def slope_by_autograd(u, k):
    v = u.detach().clone().requires_grad_()
    (torch.tanh(k * (v - 0.5)) / (2 * math.tanh(k / 2))).sum().backward()
    return v.grad


def slope_of(u, k):
    return k * sech2(k * (u - 0.5)) / (2 * math.tanh(k / 2))


RIGHT["phi_slope"] = [
    slope_by_autograd,
    lambda u, k: k / torch.cosh(k * (u.double() - 0.5)) ** 2 / 2 / np.tanh(k / 2),
    lambda u, k: (
        np.asarray(k * (1 - np.tanh(k * (u.numpy() - 0.5)) ** 2)) / (2 * math.tanh(k / 2))
    ).tolist(),
]
WRONG["phi_slope"] = {
    "k is ignored": lambda u, k: slope_of(u, 1.0),
    "not scaled at all": lambda u, k: sech2(k * (u - 0.5)),
    "no factor k": lambda u, k: sech2(k * (u - 0.5)) / (2 * math.tanh(k / 2)),
    "tanh k for tanh k/2": lambda u, k: k * sech2(k * (u - 0.5)) / (2 * math.tanh(k)),
    "no 2 below": lambda u, k: k * sech2(k * (u - 0.5)) / math.tanh(k / 2),
    "the middle at 0": lambda u, k: k * sech2(k * u) / (2 * math.tanh(k / 2)),
    "scaled for k = 1": lambda u, k: k * sech2(k * (u - 0.5)) / (2 * math.tanh(0.5)),
    "1 - tanh, not squared": lambda u, k: (
        k * (1 - (k * (u - 0.5)).tanh().abs()) / (2 * math.tanh(k / 2))
    ),
    "k only outside": lambda u, k: k * sech2(u - 0.5) / (2 * math.tanh(k / 2)),
    "k only inside": lambda u, k: sech2(k * (u - 0.5)) / (2 * math.tanh(0.5)),
    "phi, not its slope": lambda u, k: (k * (u - 0.5)).tanh() / (2 * math.tanh(k / 2)) + 0.5,
    "at most k = 3": lambda u, k: slope_of(u, min(k, 3.0)),
    "one dimension less": lambda u, k: slope_of(u, k).flatten(),
    "u is changed": lambda u, k: k * sech2(u.sub_(0.5).mul_(k)) / (2 * math.tanh(k / 2)),
    "the mean over u is made 1": lambda u, k: sech2(k * (u - 0.5)) / sech2(k * (u - 0.5)).mean(),
}


def votes_of(z, qmin, qmax):
    return torch.where((z < qmin) | (z > qmax), z.clamp(qmin, qmax), z.round() - z)


def votes_by_a_loop(z, qmin, qmax):
    found = []
    for v in z.flatten().tolist():
        found.append(qmin if v < qmin else qmax if v > qmax else round(v) - v)
    return torch.tensor(found, dtype=torch.float64).view(z.shape)


def votes_by_masks(z, qmin, qmax):
    out = z.round() - z
    out[z < qmin], out[z > qmax] = qmin, qmax
    return out


def votes_in_place(z, qmin, qmax):
    result = votes_of(z, qmin, qmax)
    z.round_()
    return result


RIGHT["votes"] = [
    votes_by_a_loop,
    votes_by_masks,
    lambda z, qmin, qmax: np.where(
        (z < qmin) | (z > qmax), np.clip(z.numpy(), qmin, qmax), np.round(z.numpy()) - z.numpy()
    ),
]
WRONG["votes"] = {
    "no clipping": lambda z, qmin, qmax: z.round() - z,
    "the sign": lambda z, qmin, qmax: -votes_of(z, qmin, qmax),
    "0 outside": lambda z, qmin, qmax: torch.where((z < qmin) | (z > qmax), 0.0 * z, z.round() - z),
    "the code's error outside too": lambda z, qmin, qmax: z.round().clamp(qmin, qmax) - z,
    "qmax at both ends": lambda z, qmin, qmax: torch.where(
        (z < qmin) | (z > qmax), qmax * torch.ones_like(z), z.round() - z
    ),
    "clipped symmetrically": lambda z, qmin, qmax: votes_of(z, -qmax, qmax),
    "floor for round": lambda z, qmin, qmax: torch.where(
        (z < qmin) | (z > qmax), z.clamp(qmin, qmax), z.floor() - z
    ),
    "halves up": lambda z, qmin, qmax: torch.where(
        (z < qmin) | (z > qmax), z.clamp(qmin, qmax), (z + 0.5).floor() - z
    ),
    "the ends count as outside": lambda z, qmin, qmax: torch.where(
        (z <= qmin) | (z >= qmax), z.clamp(qmin, qmax), z.round() - z
    ),
    "outside begins half a code later": lambda z, qmin, qmax: torch.where(
        (z < qmin - 0.5) | (z > qmax + 0.5), z.clamp(qmin, qmax), z.round() - z
    ),
    "codes -2 to 1 by heart": lambda z, qmin, qmax: votes_of(z, -2, 1),
    "the top is not clipped": lambda z, qmin, qmax: votes_of(z, qmin, 10_000),
    "the bottom is not clipped": lambda z, qmin, qmax: votes_of(z, -10_000, qmax),
    "one row": lambda z, qmin, qmax: votes_of(z, qmin, qmax).flatten(),
    "z is rounded": votes_in_place,
    "the mean vote": lambda z, qmin, qmax: votes_of(z, qmin, qmax).mean(),
}


def thresholds_by_a_loop(step, tau, spec):
    found = []
    for code in range(spec.qmin, spec.qmax):
        found.append((code + 0.5) * step - tau)
    return found


RIGHT["thresholds"] = [
    thresholds_by_a_loop,
    lambda step, tau, spec: (np.arange(spec.qmin, spec.qmax) + 0.5) * step - tau,
    lambda step, tau, spec: torch.linspace(
        step * (spec.qmin + 0.5) - tau,
        step * (spec.qmax - 0.5) - tau,
        spec.qmax - spec.qmin,
        dtype=torch.float64,
    ),
]


def threshold_codes(spec, low=0, high=0):
    return torch.arange(spec.qmin + low, spec.qmax + high)


WRONG["thresholds"] = {
    "tau the other way": lambda step, tau, spec: step * (threshold_codes(spec) + 0.5) + tau,
    "no tau": lambda step, tau, spec: step * (threshold_codes(spec) + 0.5),
    "tau in steps": lambda step, tau, spec: step * (threshold_codes(spec) + 0.5 - tau),
    "the codes themselves": lambda step, tau, spec: step * threshold_codes(spec) - tau,
    "half a step too low": lambda step, tau, spec: step * (threshold_codes(spec) - 0.5) - tau,
    "one too many": lambda step, tau, spec: step * (threshold_codes(spec, 0, 1) + 0.5) - tau,
    "one too few": lambda step, tau, spec: step * (threshold_codes(spec, 0, -1) + 0.5) - tau,
    "from code 0": lambda step, tau, spec: step * (torch.arange(spec.qmax - spec.qmin) + 0.5) - tau,
    "the step left out": lambda step, tau, spec: threshold_codes(spec) + 0.5 - tau,
    "in falling order": lambda step, tau, spec: (step * (threshold_codes(spec) + 0.5) - tau).flip(
        0
    ),
    "signed whatever the spec": lambda step, tau, spec: thresholds_by_a_loop(
        step, tau, qsr.QuantSpec(spec.bits)
    ),
    "the narrow range forgotten": lambda step, tau, spec: thresholds_by_a_loop(
        step, tau, qsr.QuantSpec(spec.bits, spec.signed)
    ),
    "2 bits by heart": lambda step, tau, spec: torch.tensor([-1.5, -0.5, 0.5]) * step - tau,
    "codes in a byte": lambda step, tau, spec: (step * (threshold_codes(spec) + 0.5) - tau).to(
        torch.int8
    ),
    "at most 16 codes": lambda step, tau, spec: thresholds_by_a_loop(step, tau, spec)[:31],
}

# 02 Baselines -------------------------------------------------------------------------------------


def dorefa_of(w, bits):
    n = 2**bits - 1
    t = w.tanh()
    return 2 * (n * (t / (2 * t.abs().max()) + 0.5)).round() / n - 1


def dorefa_by_numpy(w, bits):
    n = (1 << bits) - 1
    t = np.tanh(w.double().numpy())
    return np.rint((t / np.abs(t).max() / 2 + 0.5) * n) * 2 / n - 1


def dorefa_with(w, bits, squash=torch.tanh, n=None, top=None, quantise=torch.round):
    n = 2**bits - 1 if n is None else n
    t = squash(w)
    top = t.abs().max() if top is None else top(t)
    return 2 * quantise(n * (t / (2 * top) + 0.5)) / n - 1


RIGHT["dorefa"] = [
    dorefa_by_numpy,
    lambda w, bits: dorefa_of(w.double(), bits),
    lambda w, bits: (
        (w.tanh() / w.tanh().abs().amax() * 0.5 + 0.5)
        .mul(2**bits - 1)
        .round()
        .div((2**bits - 1) / 2)
        .sub(1)
    ),
]
WRONG["dorefa"] = {
    "no tanh": lambda w, bits: dorefa_with(w, bits, squash=lambda w: w),
    "tanh outside, not inside, the maximum": lambda w, bits: dorefa_with(
        w, bits, top=lambda t: w.abs().max()
    ),
    "the largest, not the largest magnitude": lambda w, bits: dorefa_with(
        w, bits, top=lambda t: t.max()
    ),
    "each row by its own maximum": lambda w, bits: dorefa_with(
        w, bits, top=lambda t: t.abs().amax(-1, keepdim=True)
    ),
    "floor for round": lambda w, bits: dorefa_with(w, bits, quantise=torch.floor),
    "2^b for 2^b - 1": lambda w, bits: dorefa_with(w, bits, n=2**bits),
    "2 bits by heart": lambda w, bits: dorefa_with(w, bits, n=3),
    "at most 3 bits": lambda w, bits: dorefa_with(w, bits, n=min(2**bits - 1, 7)),
    "shares, not yet weights": lambda w, bits: dorefa_of(w, bits) / 2 + 0.5,
    "not rounded": lambda w, bits: dorefa_with(w, bits, quantise=lambda x: x),
    "no 1/2 inside": lambda w, bits: (
        2 * ((2**bits - 1) * w.tanh() / (2 * w.tanh().abs().max())).round() / (2**bits - 1) - 1
    ),
    "the mean for the maximum": lambda w, bits: dorefa_with(w, bits, top=lambda t: t.abs().mean()),
    "a code for 0, as other quantizers have": lambda w, bits: (
        (w.tanh() / w.tanh().abs().max() * (2 ** (bits - 1) - 1)).round() / (2 ** (bits - 1) - 1)
    ),
    "w is changed": lambda w, bits: dorefa_of(w.mul_(1.5).div_(1.5).add_(1e-3), bits),
    "one row": lambda w, bits: dorefa_of(w, bits).flatten(),
    "tanh once more": lambda w, bits: dorefa_with(w, bits, squash=lambda w: w.tanh().tanh()),
}


def alpha_of(x, alpha, n):
    z = n * x / alpha
    return torch.where(x.abs() > alpha, x.sign(), (z.round() - z) / n)


def alpha_by_autograd(x, alpha, n):
    a = torch.full_like(x, float(alpha)).requires_grad_()
    clipped = torch.maximum(torch.minimum(x, a), -a)
    z = n * clipped / a
    (a / n * (z + (z.round() - z).detach())).sum().backward()
    return a.grad


def alpha_by_a_loop(x, alpha, n):
    def one(v):
        if v > alpha:
            return 1.0
        return -1.0 if v < -alpha else (round(n * v / float(alpha)) - n * v / float(alpha)) / n

    return np.vectorize(one)(x.double().numpy())


def alpha_in_place(x, alpha, n):
    result = alpha_of(x, alpha, n)
    x.clamp_(-1.0, 1.0)
    return result


RIGHT["alpha_gradient"] = [
    alpha_by_autograd,
    alpha_by_a_loop,
    lambda x, alpha, n: (n * x / alpha).clamp(-n, n).round() / n - (x / alpha) * (x.abs() <= alpha),
]
WRONG["alpha_gradient"] = {
    "PACT: 0 inside": lambda x, alpha, n: torch.where(x.abs() > alpha, x.sign(), 0.0 * x),
    "not divided by n": lambda x, alpha, n: torch.where(
        x.abs() > alpha, x.sign(), (n * x / alpha).round() - n * x / alpha
    ),
    "the sign inside": lambda x, alpha, n: torch.where(
        x.abs() > alpha, x.sign(), (n * x / alpha - (n * x / alpha).round()) / n
    ),
    "1 at both ends": lambda x, alpha, n: torch.where(
        x.abs() > alpha, torch.ones_like(x), alpha_of(x, alpha, n)
    ),
    "0 outside": lambda x, alpha, n: torch.where(x.abs() > alpha, 0.0 * x, alpha_of(x, alpha, n)),
    "clipped above only": lambda x, alpha, n: torch.where(
        x > alpha, x.sign(), ((n * x / alpha).round() - n * x / alpha) / n
    ),
    "no clipping": lambda x, alpha, n: ((n * x / alpha).round() - n * x / alpha) / n,
    "n forgotten": lambda x, alpha, n: alpha_of(x, alpha, 1),
    "floor for round": lambda x, alpha, n: torch.where(
        x.abs() > alpha, x.sign(), ((n * x / alpha).floor() - n * x / alpha) / n
    ),
    "the sign everywhere": lambda x, alpha, n: x.sign(),
    "times alpha": lambda x, alpha, n: torch.where(
        x.abs() > alpha, x.sign(), alpha * alpha_of(x, alpha, n)
    ),
    "the value written": lambda x, alpha, n: (n * x / alpha).clamp(-n, n).round() / n,
    "alpha is 2": lambda x, alpha, n: alpha_of(x, 2.0, n),
    "x is changed": alpha_in_place,
    "the sum": lambda x, alpha, n: alpha_of(x, alpha, n).sum(),
    "few codes only": lambda x, alpha, n: alpha_of(x, alpha, min(n, 31)),
}


def best_step_with(x, spec, power, parts=100, error=None, bits=None, top=None, clip=True):
    """The search of the solution with one thing different."""
    low, high = spec.qmin if bits is None else -(2 ** (spec.bits - 1)), spec.qmax
    error = error or (lambda e: e.abs().pow(power).mean())
    largest = (x.abs().max() if top is None else top(x)) / spec.qmax
    best = None
    for part in range(1, parts + 1):
        step = (largest * part / parts).item()
        codes = (x / step).round()
        codes = codes.clamp(low, high) if clip else codes
        found = error(step * codes - x).item()
        if best is None or found < best[0]:
            best = found, step
    return best[1]


def best_step_by_numpy(x, spec, power):
    x = x.double().numpy().ravel()
    steps = np.abs(x).max() / spec.qmax * np.arange(0.01, 1.0001, 0.01)
    errors = [s * np.clip(np.rint(x / s), spec.qmin, spec.qmax) - x for s in steps]
    return steps[int(np.argmin([np.mean(np.abs(e) ** power) for e in errors]))]


def best_step_index(x, spec, power):
    step = best_step_with(x, spec, power)
    return round(100 * step * spec.qmax / x.abs().max().item())


def best_step_going_down(x, spec, power):
    """Stops at the first step that is worse than the one before it."""
    largest, before = (x.abs().max() / spec.qmax).item(), None
    for part in range(100, 0, -1):
        step = largest * part / 100
        codes = (x / step).round().clamp(spec.qmin, spec.qmax)
        error = (step * codes - x).abs().pow(power).mean().item()
        if before is not None and error > before:
            return largest * (part + 1) / 100
        before = error
    return largest / 100


RIGHT["best_step"] = [
    best_step_by_numpy,
    lambda x, spec, power: torch.tensor(best_step_with(x.double(), spec, power, parts=300)),
    lambda x, spec, power: best_step_with(x, spec, power, error=lambda e: e.abs().pow(power).sum()),
]
WRONG["best_step"] = {
    "the largest value": lambda x, spec: (x.abs().max() / spec.qmax).item(),
    "LSQ's start": lambda x, spec: 2 * x.abs().mean() / math.sqrt(spec.qmax),
    "99 % of the values": lambda x, spec: x.abs().flatten().quantile(0.99) / spec.qmax,
    "the mean absolute error": lambda x, spec, power: best_step_with(
        x, spec, power, error=lambda e: e.abs().mean()
    ),
    "the largest error": lambda x, spec, power: best_step_with(
        x, spec, power, error=lambda e: e.abs().max()
    ),
    "the mean error": lambda x, spec, power: best_step_with(
        x, spec, power, error=lambda e: e.mean().abs()
    ),
    "codes are not clipped": lambda x, spec, power: best_step_with(x, spec, power, clip=False),
    "five steps only": lambda x, spec, power: best_step_with(x, spec, power, parts=5),
    "the largest, not the largest magnitude": lambda x, spec, power: best_step_with(
        x, spec, power, top=lambda x: x.max().clamp(min=1e-3)
    ),
    "the first row only": lambda x, spec, power: best_step_with(
        x[0] if x.ndim > 1 else x[:9], spec, power
    ),
    "the number of the step": best_step_index,
    "the first valley from above": best_step_going_down,
    "the error for the step": lambda x, spec, power: best_step_with(x, spec, power) ** 2 / 12,
    "the range for the step": lambda x, spec, power: best_step_with(x, spec, power) * spec.qmax,
    "half of the range by heart": lambda x, spec: 0.5 * (x.abs().max() / spec.qmax).item(),
    "x is scaled": lambda x, spec, power: best_step_with(x.div_(x.abs().max()), spec, power),
}

# 03 Depth-dynamic training ------------------------------------------------------------------------


def body_with(blocks, x, plan, skipped=None, run=None):
    for block, runs in zip(blocks, plan.keep, strict=True):
        x = (run or (lambda b, x: b(x)))(block, x) if runs else skipped(block, x)
    return x


def scaled(block, x):
    return block.shortcut.scale * x


def body_by_recursion(blocks, x, plan):
    def go(i, x):
        if i == len(plan.keep):
            return x
        return go(i + 1, blocks[i](x) if plan.keep[i] else blocks[i].shortcut(x))

    return go(0, x)


def body_by_index(blocks, x, plan):
    out = x
    for i in range(len(blocks)):
        if plan.keep[i]:
            out = blocks[i](out)
            continue
        out = out * blocks[i].shortcut.scale
    return out


def body_runs_all(blocks, x, plan):
    for block, runs in zip(blocks, plan.keep, strict=True):
        x = torch.where(torch.tensor(runs), block(x), scaled(block, x))
    return x


def body_in_place(blocks, x, plan):
    with torch.no_grad():
        x.mul_(2).div_(4)
    return body_with(blocks, 2 * x, plan, scaled)


def body_stops(blocks, x, plan):
    for block, runs in zip(blocks, plan.keep, strict=True):
        if not runs:
            break
        x = block(x)
    return x


def body_of_neighbours(blocks, x, plan):
    for i, runs in enumerate(plan.keep):
        x = blocks[i](x) if runs else blocks[i - 1].shortcut.scale * x
    return x


RIGHT["body"] = [
    body_by_recursion,
    body_by_index,
    lambda blocks, x, plan: functools.reduce(
        lambda x, pair: pair[0](x) if pair[1] else pair[0].shortcut(x),
        zip(blocks, plan.keep, strict=True),
        x,
    ),
]
WRONG["body"] = {
    "a skipped block is nothing": lambda blocks, x, plan: body_with(
        blocks, x, plan, lambda b, x: x
    ),
    "no gradient to the shortcut": lambda blocks, x, plan: body_with(
        blocks, x, plan, lambda b, x: b.shortcut.scale.detach() * x
    ),
    "no gradient past the shortcut": lambda blocks, x, plan: body_with(
        blocks, x, plan, lambda b, x: b.shortcut.scale * x.detach()
    ),
    "no gradient at all": torch.no_grad()(
        lambda blocks, x, plan: body_with(blocks, x, plan, scaled)
    ),
    "the shortcut as a number": lambda blocks, x, plan: body_with(
        blocks, x, plan, lambda b, x: b.shortcut.scale.item() * x
    ),
    "all blocks run": lambda blocks, x, plan: body_with(blocks, x, plan, lambda b, x: b(x)),
    "all blocks run, and some are not used": body_runs_all,
    "the plan the other way round": lambda blocks, x, plan: body_with(
        blocks, x, plan, lambda b, x: b(x), run=scaled
    ),
    "the shortcut is added": lambda blocks, x, plan: body_with(
        blocks, x, plan, lambda b, x: b.shortcut.scale + x
    ),
    "the shortcut before a block too": lambda blocks, x, plan: body_with(
        blocks, x, plan, scaled, run=lambda b, x: b(b.shortcut.scale * x)
    ),
    "`skip`, which is off limits": lambda blocks, x, plan: body_with(
        blocks, x, plan, lambda b, x: b.skip(x)
    ),
    "the end at the first skipped block": body_stops,
    "the shortcut of the block before": body_of_neighbours,
    "from the last to the first": lambda blocks, x, plan: body_with(
        list(blocks)[::-1], x, plan, scaled
    ),
    "x is changed": body_in_place,
    "a skipped block is zero": lambda blocks, x, plan: body_with(
        blocks, x, plan, lambda b, x: 0 * x
    ),
}


def keep_by_marking(order, count):
    keep = [False] * len(order)
    for block in order[:count]:
        keep[block] = True
    return keep


def keep_sorting_in_place(order, count):
    result = keep_by_marking(order, count)
    if isinstance(order, list):
        order.sort()
    return result


RIGHT["order_to_plan"] = [
    keep_by_marking,
    lambda order, count: tuple(order.index(block) < count for block in range(len(order))),
    lambda order, count: np.argsort(order) < count,
]
WRONG["order_to_plan"] = {
    "the numbers of the order": lambda order, count: tuple(n < count for n in order),
    "the first blocks": lambda order, count: tuple(i < count for i in range(len(order))),
    "one too many": lambda order, count: keep_by_marking(order, count + 1),
    "one too few": lambda order, count: keep_by_marking(order, count - 1),
    "the last of the order": lambda order, count: keep_by_marking(order[::-1], count),
    "those that do not run": lambda order, count: [not k for k in keep_by_marking(order, count)],
    "the numbers of those that run": lambda order, count: tuple(sorted(order[:count])),
    "four blocks by heart": lambda order, count: [i in order[:count] for i in range(4)],
    "never all": lambda order, count: keep_by_marking(order, min(count, len(order) - 1)),
    "blocks counted from 1": lambda order, count: [
        i in order[:count] for i in range(1, len(order) + 1)
    ],
    "the order is sorted": keep_sorting_in_place,
    "tuples only": lambda order, count: (
        keep_by_marking(order, count) if isinstance(order, tuple) else [True] * len(order)
    ),
    "the examples by heart": lambda order, count: [
        order[0] == i or (count > 1 and i in (0, 2)) or count > 3 for i in range(len(order))
    ],
    "two of the order at most": lambda order, count: (
        keep_by_marking(order, min(count, 2)) if len(order) > 4 else keep_by_marking(order, count)
    ),
    "one block never runs": lambda order, count: [
        i in order[:count] and len(order) > 1 for i in range(len(order))
    ],
}


def costs(depths, block, shared):
    return [shared + block * depth for depth in depths]


def step_by_sorting(depths, block, shared):
    deepest = block * sorted(depths)[-1] + shared
    return [(block * sum(depths) + shared * len(depths)) / deepest, 1]


def step_changing(depths, block, shared):
    each = costs(depths, block, shared)
    if isinstance(depths, list):
        depths.sort()
    return sum(each) / max(each), 1.0


RIGHT["joint_step"] = [
    step_by_sorting,
    lambda depths, block, shared: np.array(
        [np.sum(shared + block * np.array(depths)) / (shared + block * max(depths)), 1.0]
    ),
    lambda depths, block, shared: torch.tensor(
        [sum(costs(depths, block, shared)) / max(costs(depths, block, shared)), 1.0]
    ),
]
WRONG["joint_step"] = {
    "one backward at the end": lambda d, b, s: (sum(costs(d, b, s)) / max(costs(d, b, s)),) * 2,
    "what is shared counts once": lambda d, b, s: ((s + b * sum(d)) / (s + b * max(d)), 1.0),
    "what is shared is free": lambda d, b, s: (sum(d) / max(d), 1.0),
    "the first depth is the deepest": lambda d, b, s: (
        sum(costs(d, b, s)) / costs(d, b, s)[0],
        1.0,
    ),
    "the number of depths": lambda d, b, s: (float(len(d)), 1.0),
    "memory, then work": lambda d, b, s: (1.0, sum(costs(d, b, s)) / max(costs(d, b, s))),
    "not as multiples": lambda d, b, s: (sum(costs(d, b, s)), max(costs(d, b, s))),
    "work alone": lambda d, b, s: sum(costs(d, b, s)) / max(costs(d, b, s)),
    "a mean": lambda d, b, s: (sum(costs(d, b, s)) / len(d) / max(costs(d, b, s)), 1.0),
    "the shallowest is the measure": lambda d, b, s: (
        sum(costs(d, b, s)) / min(costs(d, b, s)),
        1.0,
    ),
    "no memory at all": lambda d, b, s: (sum(costs(d, b, s)) / max(costs(d, b, s)), 0.0),
    "memory of the deepest two": lambda d, b, s: (
        sum(costs(d, b, s)) / max(costs(d, b, s)),
        sum(sorted(costs(d, b, s))[-2:]) / max(costs(d, b, s)),
    ),
    "whole multiples": lambda d, b, s: (sum(costs(d, b, s)) // max(costs(d, b, s)), 1.0),
    "32, 16 and 8 by heart": lambda d, b, s: (1.75, 1.0),
    "depths are sorted": step_changing,
    "a block costs 1": lambda d, b, s: (sum(costs(d, 1, s)) / max(costs(d, 1, s)), 1.0),
}


def greedy_by_recursion(count, error):
    def order(kept):
        if len(kept) == 1:
            return list(kept)
        worst = sorted(kept, key=lambda i: error(kept - {i}))[0]
        return [*order(kept - {worst}), worst]

    return order(set(range(count)))


def greedy_by_numpy(count, error):
    left, order = list(range(count)), []
    while left:
        errors = [error(set(left) - {i}) if len(left) > 1 else 0.0 for i in left]
        order.insert(0, left.pop(int(np.argmin(errors))))
    return np.array(order)


def greedy_by_sets(count, error):
    kept, order = frozenset(range(count)), ()
    for _ in range(count - 1):
        best = min((error(set(kept - {i})), i) for i in kept)[1]
        kept, order = kept - {best}, (best, *order)
    return tuple(kept) + order


def greedy_forward(count, error):
    kept, left = [], set(range(count))
    while left:
        best = min(left, key=lambda i: error({*kept, i}))
        kept.append(best)
        left.remove(best)
    return tuple(kept)


def greedy_drops(count, error, pick=min):
    kept, dropped = set(range(count)), []
    while len(kept) > 1:
        worst = pick(kept, key=lambda i: error(kept - {i}))
        kept.remove(worst)
        dropped.append(worst)
    return kept, dropped


def greedy_alone(count, error):
    return tuple(sorted(range(count), key=lambda i: error({i})))


def greedy_in_pairs(count, error):
    kept, dropped = set(range(count)), []
    while len(kept) > 1:
        two = sorted(kept, key=lambda i: error(kept - {i}))[: min(2, len(kept) - 1)]
        dropped += two
        kept -= set(two)
    return (*kept, *reversed(dropped))


def greedy_keeping_what_was_dropped(count, error):
    kept, dropped = set(range(count)), []
    while len(kept) > 1:
        worst = min(kept, key=lambda i: error(set(range(count)) - {i}))
        kept.remove(worst)
        dropped.append(worst)
    return (*kept, *reversed(dropped))


RIGHT["greedy"] = [greedy_by_recursion, greedy_by_numpy, greedy_by_sets]
WRONG["greedy"] = {
    "each block once, from the whole": lambda count, error: tuple(
        sorted(range(count), key=lambda i: -error(set(range(count)) - {i}))
    ),
    "forward, from nothing": greedy_forward,
    "each block alone": greedy_alone,
    "the least valuable first": lambda count, error: greedy_by_sets(count, error)[::-1],
    "the most valuable is dropped": lambda count, error: (
        *(found := greedy_drops(count, error, max))[0],
        *reversed(found[1]),
    ),
    "the last one is left out": lambda count, error: tuple(reversed(greedy_drops(count, error)[1])),
    "dropped blocks in the order they went": lambda count, error: (
        *(found := greedy_drops(count, error))[0],
        *found[1],
    ),
    "two are dropped at a time": greedy_in_pairs,
    "measured in the whole network, again and again": greedy_keeping_what_was_dropped,
    "three blocks by heart": lambda count, error: (0, 2, 1)[:count],
    "by number": lambda count, error: tuple(range(count)),
    "positions for blocks": lambda count, error: tuple(np.argsort(greedy_by_sets(count, error))),
    "the size of the error": lambda count, error: greedy_by_sets(
        count, lambda kept: abs(error(kept))
    ),
    "the best block stays, the rest once": lambda count, error: (
        (first := greedy_by_sets(count, error))[:1]
        + tuple(
            sorted(set(range(count)) - {first[0]}, key=lambda i: -error(set(range(count)) - {i}))
        )
    ),
    "one block left out of one": lambda count, error: (
        greedy_by_sets(count, error) if count > 1 else ()
    ),
}

# 04a Windows and attention ------------------------------------------------------------------------


def regions_of(length, window, shift, rolled):
    return [0] * (length - window) + [1] * (window - shift) + [rolled] * shift


def regions_by_slices(length, window, shift, rolled):
    side = torch.zeros(length, dtype=torch.long)
    side[length - window :] = 1
    side[length - shift :] = rolled
    return side


RIGHT["regions"] = [
    regions_of,
    regions_by_slices,
    lambda length, window, shift, rolled: np.array([0, 1, rolled])[
        np.digitize(np.arange(length), [length - window, length - shift])
    ],
]
WRONG["regions"] = {
    "half a window whatever the shift": lambda n, w, s, rolled: regions_of(n, w, w // 2, rolled),
    "one position too early": lambda n, w, s, rolled: regions_of(n, w, s + 1, rolled),
    "one position too late": lambda n, w, s, rolled: regions_of(n, w, s - 1 if s else 0, rolled),
    "1 and 2 exchanged": lambda n, w, s, rolled: [
        (0, rolled, 1)[r] for r in regions_of(n, w, s, rolled)
    ],
    "at the start": lambda n, w, s, rolled: regions_of(n, w, s, rolled)[::-1],
    "the shift from the other side": lambda n, w, s, rolled: regions_of(n, w, w - s, rolled),
    "in every window": lambda n, w, s, rolled: ([1] * (w - s) + [rolled] * s) * (n // w),
    "16 positions by heart": lambda n, w, s, rolled: [0] * 8 + [1] * (w - s) + [rolled] * s,
    "two regions": lambda n, w, s, rolled: [min(r, 1) for r in regions_of(n, w, s, rolled)],
    "the whole last window was rolled in": lambda n, w, s, rolled: [0] * (n - w) + [rolled] * w,
    "only what was rolled in": lambda n, w, s, rolled: [0] * (n - s) + [rolled] * s,
    "-0 is the start": lambda n, w, s, rolled: (
        (side := [0] * n).__setitem__(slice(-w, None), [1] * w)
        or side.__setitem__(slice(-s, None), [rolled] * len(side[-s:]))
        or side
    ),
    "windows of 8": lambda n, w, s, rolled: (
        regions_of(n, 8, min(s, 8), rolled) if n >= 8 else [0] * n
    ),
    "at most half a window": lambda n, w, s, rolled: regions_of(n, w, min(s, w // 2), rolled),
    "0 is always there": lambda n, w, s, rolled: [0, *regions_of(n, w, s, rolled)[1:]],
    "at least half a window": lambda n, w, s, rolled: regions_of(n, w, max(s, w // 2), rolled),
}


def pairs_by_regions(height, width, window, shift):
    """Counted: for each window the sizes of its regions, squared."""

    def squares(length):
        side = np.arange(length)
        region = (side >= length - window).astype(int) + (side >= length - shift)
        parts = region.reshape(-1, window)
        return sum(int((part == k).sum()) ** 2 for part in parts for k in range(3))

    return squares(height) * squares(width)


def pairs_along(length, window, shift, last=None):
    parts = (window - shift) ** 2 + shift**2
    return (length // window - 1) * window**2 + (parts if last is None else last)


def pairs_of(height, width, window, shift, last=None):
    return pairs_along(height, window, shift, last) * pairs_along(width, window, shift, last)


RIGHT["allowed_pairs"] = [
    pairs_by_regions,
    lambda h, w, n, s: np.int64(h * n - 2 * s * (n - s)) * (w * n - 2 * s * (n - s)),
    lambda h, w, n, s: torch.tensor([h, w]).mul(n).sub(2 * s * (n - s)).prod(),
]
WRONG["allowed_pairs"] = {
    "no mask": lambda h, w, n, s: h * w * n * n,
    "no windows": lambda h, w, n, s: (h * w) ** 2,
    "half a window whatever the shift": lambda h, w, n, s: pairs_of(h, w, n, n // 2),
    "every window is in parts": lambda h, w, n, s: h * w * ((n - s) ** 2 + s**2) ** 2 // n**2,
    "only the corner is in parts": lambda h, w, n, s: (
        (h * w // n**2 - 1) * n**4 + ((n - s) ** 2 + s**2) ** 2
    ),
    "the last window asks nothing": lambda h, w, n, s: pairs_of(h, w, n, s, 0 if s else n * n),
    "what was rolled in asks nothing": lambda h, w, n, s: pairs_of(h, w, n, s, (n - s) ** 2),
    "squares": lambda h, w, n, s: pairs_along(h, n, s) ** 2,
    "along the width alone": lambda h, w, n, s: pairs_along(w, n, s) * h * n,
    "along the height alone": lambda h, w, n, s: pairs_along(h, n, s) * w * n,
    "pixels, not pairs": lambda h, w, n, s: h * w,
    "pairs without oneself": lambda h, w, n, s: pairs_of(h, w, n, s) - h * w,
    "windows of 8": lambda h, w, n, s: pairs_of(h, w, 8, s),
    "int32": lambda h, w, n, s: np.array(pairs_of(h, w, n, s)).astype(np.int32),
    "always shifted": lambda h, w, n, s: pairs_of(h, w, n, s or 1),
    "at most half a window": lambda h, w, n, s: pairs_of(h, w, n, min(s, n // 2) + (s > n // 2)),
    "one position too many": lambda h, w, n, s: pairs_of(h, w, n, s + 1 if s else 0),
}

# 04b Attention on integers ------------------------------------------------------------------------


def scores_by_a_loop(q, k, step_q, step_k, bits):
    low, high = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1

    def code(v, step):
        return min(max(round(v / step), low), high)

    return [
        [
            step_q
            * step_k
            * sum(code(a, step_q) * code(b, step_k) for a, b in zip(row, column, strict=True))
            for column in k.tolist()
        ]
        for row in q.tolist()
    ]


def scores_with(q, k, step_q, step_k, low, high, quantise=torch.round, dtype=torch.float64):
    a = quantise(q / step_q).clamp(low, high).to(dtype)
    b = quantise(k / step_k).clamp(low, high).to(dtype)
    return (a @ b.T).double() * (step_q * step_k)


def ends(bits):
    return -(2 ** (bits - 1)), 2 ** (bits - 1) - 1


RIGHT["scores"] = [
    scores_by_a_loop,
    lambda q, k, a, b, bits: np.einsum(
        "ic,jc->ij",
        np.clip(np.rint(q.numpy() / np.float32(a)), *ends(bits)) * a,
        np.clip(np.rint(k.numpy() / np.float32(b)), *ends(bits)) * b,
    ),
    lambda q, k, a, b, bits: a * (codes_of(q, a, bits).int() @ codes_of(k, b, bits).int().mT) * b,
]
WRONG["scores"] = {
    "step_k forgotten": lambda q, k, a, b, bits: scores_with(q, k, a, b, *ends(bits)) / b,
    "step_q forgotten": lambda q, k, a, b, bits: scores_with(q, k, a, b, *ends(bits)) / a,
    "k by the step of q": lambda q, k, a, b, bits: scores_with(q, k, a, a, *ends(bits)),
    "no clipping": lambda q, k, a, b, bits: scores_with(q, k, a, b, -1e9, 1e9),
    "clipped symmetrically": lambda q, k, a, b, bits: scores_with(
        q, k, a, b, -ends(bits)[1], ends(bits)[1]
    ),
    "rounded after the product": lambda q, k, a, b, bits: (q @ k.T / (a * b)).round() * (a * b),
    "floor for round": lambda q, k, a, b, bits: scores_with(
        q, k, a, b, *ends(bits), quantise=torch.floor
    ),
    "halves up": lambda q, k, a, b, bits: scores_with(
        q, k, a, b, *ends(bits), quantise=lambda x: (x + 0.5).floor()
    ),
    "sums in int8": lambda q, k, a, b, bits: scores_with(q, k, a, b, *ends(bits), dtype=torch.int8),
    "sums in int16": lambda q, k, a, b, bits: scores_with(
        q, k, a, b, *ends(bits), dtype=torch.int16
    ),
    "unsigned codes": lambda q, k, a, b, bits: scores_with(q, k, a, b, 0, 2**bits - 1),
    "one bit too many": lambda q, k, a, b, bits: scores_with(q, k, a, b, *ends(bits + 1)),
    "columns for rows": lambda q, k, a, b, bits: scores_with(q, k, a, b, *ends(bits)).T,
    "codes, not scaled": lambda q, k, a, b, bits: scores_with(q, k, a, b, *ends(bits)) / (a * b),
    "q is not rounded": lambda q, k, a, b, bits: (
        q.clamp(a * ends(bits)[0], a * ends(bits)[1]) @ codes_of(k, b, bits).T * b
    ),
    "q is clipped in place": lambda q, k, a, b, bits: scores_with(
        q.clamp_(a * ends(bits)[0], a * ends(bits)[1]), k, a, b, *ends(bits)
    ),
    "divided by the root of d": lambda q, k, a, b, bits: (
        scores_with(q, k, a, b, *ends(bits)) / math.sqrt(q.shape[1])
    ),
}


def bias_by_a_loop(weight, bias, tau):
    return [
        float(b) - sum(float(tau) * w for w in row)
        for row, b in zip(weight.tolist(), bias, strict=True)
    ]


def bias_in_place(weight, bias, tau):
    bias -= tau * weight.sum(1)
    return bias


RIGHT["fold_shift"] = [
    bias_by_a_loop,
    lambda weight, bias, tau: bias - weight @ torch.full((weight.shape[1],), float(tau)),
    lambda weight, bias, tau: bias.numpy() - float(tau) * weight.numpy().sum(axis=-1),
]
WRONG["fold_shift"] = {
    "the sign": lambda weight, bias, tau: bias + tau * weight.sum(1),
    "along the outputs": lambda weight, bias, tau: (
        bias - tau * weight.sum(0) if weight.shape[0] == weight.shape[1] else bias - tau
    ),
    "a mean for the sum": lambda weight, bias, tau: bias - tau * weight.mean(1),
    "no bias": lambda weight, bias, tau: -tau * weight.sum(1),
    "tau alone": lambda weight, bias, tau: bias - tau,
    "the sum of all weights": lambda weight, bias, tau: bias - tau * weight.sum(),
    "magnitudes": lambda weight, bias, tau: bias - tau * weight.abs().sum(1),
    "the largest weight": lambda weight, bias, tau: bias - tau * weight.amax(1),
    "bias shifted too": lambda weight, bias, tau: bias - tau * (weight.sum(1) + bias),
    "tau is 1/2": lambda weight, bias, tau: bias - 0.5 * weight.sum(1),
    "tau is above 0": lambda weight, bias, tau: bias - abs(tau) * weight.sum(1),
    "the bias is changed": bias_in_place,
    "squared": lambda weight, bias, tau: bias - tau**2 * weight.sum(1),
    "divided by tau": lambda weight, bias, tau: bias - weight.sum(1) / (tau or 1),
    "in a row": lambda weight, bias, tau: (bias - tau * weight.sum(1))[None],
    "the last input is left out": lambda weight, bias, tau: bias - tau * weight[:, :-1].sum(1),
    "two inputs by heart": lambda weight, bias, tau: bias - tau * (weight[:, 0] + weight[:, 1]),
    "no bias in a layer without tau": lambda weight, bias, tau: (
        bias - tau * weight.sum(1) if tau else 0 * bias
    ),
}

# 05 Bit-packed kernels ----------------------------------------------------------------------------


def dot_by_strings(a, w, n):
    pairs = zip(f"{a:0{n}b}", f"{w:0{n}b}", strict=True)
    return sum(1 if x == y else -1 for x, y in pairs)


RIGHT["sign_dot"] = [
    dot_by_strings,
    lambda a, w, n: 2 * (~(a ^ w) & ((1 << n) - 1)).bit_count() - n,
    lambda a, w, n: np.dot(
        [2 * (a >> i & 1) - 1 for i in range(n)], [2 * (w >> i & 1) - 1 for i in range(n)]
    ),
]
WRONG["sign_dot"] = {
    "AND, as for codes 0 and 1": lambda a, w, n: 2 * (a & w).bit_count() - n,
    "the sign": lambda a, w, n: 2 * (a ^ w).bit_count() - n,
    "each difference counts once": lambda a, w, n: n - (a ^ w).bit_count(),
    "the number of differences": lambda a, w, n: (a ^ w).bit_count(),
    "codes 0 and 1": lambda a, w, n: (a & w).bit_count(),
    "~ without a mask": lambda a, w, n: 2 * (~(a ^ w)).bit_count() - n,
    "zeros above do not count": lambda a, w, n: (
        max(a.bit_length(), w.bit_length()) - 2 * (a ^ w).bit_count()
    ),
    "one word of 64": lambda a, w, n: min(n, 64) - 2 * ((a ^ w) % 2**64).bit_count(),
    "one word of 32": lambda a, w, n: n - 2 * ((a ^ w) % 2**32).bit_count(),
    "OR": lambda a, w, n: n - 2 * (a | w).bit_count(),
    "the product of the sums": lambda a, w, n: (
        (2 * a.bit_count() - n) * (2 * w.bit_count() - n) // n
    ),
    "four bits by heart": lambda a, w, n: min(n, 4) - 2 * (a ^ w).bit_count(),
    "one bit off": lambda a, w, n: n - 1 - 2 * (a ^ w).bit_count(),
    "never below -n + 2": lambda a, w, n: max(n - 2 * (a ^ w).bit_count(), min(2 - n, -3)),
    "zeros beside zeros count as 0": lambda a, w, n: (a & w).bit_count() - (a ^ w).bit_count(),
    "a byte": lambda a, w, n: int(np.int64(n - 2 * ((a ^ w) & 0xFF).bit_count())),
}


def reach_of(form, low, high):
    plus = sum(c for c in form if c > 0)
    minus = sum(c for c in form if c < 0)
    return plus * low + minus * high, plus * high + minus * low


def reach_by_a_loop(form, low, high):
    smallest = largest = 0
    for c in form:
        smallest += min(c * low, c * high)
        largest += max(c * low, c * high)
    return [smallest, largest]


RIGHT["reach"] = [
    reach_by_a_loop,
    lambda form, low, high: np.sort(np.outer(form, (low, high)), axis=1).sum(0),
    lambda form, low, high: torch.tensor(reach_of(form, low, high)),
]
WRONG["reach"] = {
    "signs are ignored": lambda form, low, high: (sum(form) * low, sum(form) * high),
    "magnitudes": lambda form, low, high: (
        sum(map(abs, form)) * low,
        sum(map(abs, form)) * high,
    ),
    "largest, then smallest": lambda form, low, high: reach_of(form, low, high)[::-1],
    "the largest alone": lambda form, low, high: reach_of(form, low, high)[1],
    "codes begin at 0": lambda form, low, high: reach_of(form, 0, high),
    "the same on both sides": lambda form, low, high: (
        -reach_of(form, low, high)[1],
        reach_of(form, low, high)[1],
    ),
    "negative coefficients are left out": lambda form, low, high: reach_of(
        [c for c in form if c > 0], low, high
    ),
    "coefficients are 1 or -1": lambda form, low, high: reach_of(np.sign(form), low, high),
    "sums in a byte": lambda form, low, high: tuple(
        int(np.int64(end).astype(np.int8)) for end in reach_of(form, low, high)
    ),
    "the longest six": lambda form, low, high: reach_of(form[:6], low, high),
    "codes of -8 to 7": lambda form, low, high: reach_of(form, -8, 7),
    "codes of 0 to 15": lambda form, low, high: reach_of(form, 0, 15),
    "0 is always in reach": lambda form, low, high: (
        min(0, reach_of(form, low, high)[0]),
        max(0, reach_of(form, low, high)[1]),
    ),
    "a code has to be at an end": lambda form, low, high: (
        min(sum(form) * low, sum(form) * high),
        max(sum(form) * low, sum(form) * high),
    ),
    "the largest coefficient": lambda form, low, high: (min(form) * high, max(form) * high),
    "squared": lambda form, low, high: reach_of([c * abs(c) for c in form], low, high),
    "at most 256 values": lambda form, low, high: tuple(
        max(-256, min(end, 256)) if len(form) == 1 else end for end in reach_of(form, low, high)
    ),
}


def intensity_with(rows, bits, width, inputs=1.0, weights=1.0, sums=4.0, macs=1.0):
    read = inputs * rows * width * bits / 8 + weights * width * width * bits / 8
    return macs * rows * width * width / (read + sums * rows * width)


RIGHT["intensity"] = [
    lambda rows, bits, width: 1 / (bits / 8 / width + bits / 8 / rows + 4 / width),
    lambda rows, bits, width: (
        np.float64(rows * width**2) / ((rows + width) * width // 8 * bits + rows * width * 4)
    ),
    lambda rows, bits, width: torch.tensor(intensity_with(rows, bits, width), dtype=torch.float64),
]
WRONG["intensity"] = {
    "sums of as many bits as codes": lambda rows, bits, width: intensity_with(
        rows, bits, width, sums=bits / 8
    ),
    "sums in a byte": lambda rows, bits, width: intensity_with(rows, bits, width, sums=1),
    "no sums": lambda rows, bits, width: intensity_with(rows, bits, width, sums=0),
    "no inputs": lambda rows, bits, width: intensity_with(rows, bits, width, inputs=0),
    "no weights": lambda rows, bits, width: intensity_with(rows, bits, width, weights=0),
    "weights once for each row": lambda rows, bits, width: intensity_with(
        rows, bits, width, weights=rows
    ),
    "inputs once for each output": lambda rows, bits, width: intensity_with(
        rows, bits, width, inputs=width
    ),
    "a product and a sum are two": lambda rows, bits, width: intensity_with(
        rows, bits, width, macs=2
    ),
    "bits for bytes": lambda rows, bits, width: intensity_with(rows, bits, width) / 8,
    "bytes per product": lambda rows, bits, width: 1 / intensity_with(rows, bits, width),
    "4 bits by heart": lambda rows, bits, width: intensity_with(rows, 4, width),
    "a byte for each code": lambda rows, bits, width: intensity_with(rows, 8, width),
    "whole bytes": lambda rows, bits, width: intensity_with(rows, -(-bits // 8) * 8, width),
    "products by the byte, whole": lambda rows, bits, width: round(
        intensity_with(rows, bits, width), 1
    ),
    "one row by heart": lambda rows, bits, width: intensity_with(1, bits, width),
    "weights read once more": lambda rows, bits, width: intensity_with(
        rows, bits, width, weights=2
    ),
    "at most 8 bits": lambda rows, bits, width: intensity_with(rows, min(bits, 8), width),
}

# 06 Full reproduction -----------------------------------------------------------------------------


def suspects_of(values, rises=lambda now, before: now >= before, number=float):
    found = [number(v) for v in values]
    return [i for i in range(1, len(found)) if rises(found[i], found[i - 1])]


def suspects_by_pairs(values):
    pairs = zip(values, values[1:], strict=False)
    return tuple(i for i, (a, b) in enumerate(pairs, start=1) if not float(b) < float(a))


def suspects_by_the_least(values):
    found, least = [], math.inf
    for i, value in enumerate(map(float, values)):
        if value >= least:
            found.append(i)
        least = min(least, value)
    return found


def suspects_in_place(values):
    result = suspects_of(values)
    values[:] = map(float, values)
    return result


RIGHT["suspects"] = [
    suspects_by_pairs,
    lambda values: np.flatnonzero(np.diff(np.array(values, dtype=float)) >= 0) + 1,
    lambda values: torch.tensor(suspects_of(values)),
]
WRONG["suspects"] = {
    "digits are compared as text": lambda values: suspects_of(values, number=str),
    "equal is below": lambda values: suspects_of(values, lambda now, before: now > before),
    "the first is the measure": lambda values: [
        i for i in range(1, len(values)) if float(values[i]) >= float(values[0])
    ],
    "the least so far is the measure": suspects_by_the_least,
    "counted from 1": lambda values: [i + 1 for i in suspects_of(values)],
    "the one before the suspect": lambda values: [i - 1 for i in suspects_of(values)],
    "the values themselves": lambda values: [float(values[i]) for i in suspects_of(values)],
    "a flag for each": lambda values: [i in suspects_of(values) for i in range(len(values))],
    "the first suspect only": lambda values: suspects_of(values)[:1],
    "the last suspect only": lambda values: suspects_of(values)[-1:],
    "those that are below": lambda values: suspects_of(values, lambda now, before: now < before),
    "whole decibels": lambda values: suspects_of(values, number=lambda v: int(float(v))),
    "two decimals": lambda values: suspects_of(
        values, lambda now, before: now - before > -1e-3, number=float
    ),
    "each with the one after it": lambda values: [
        i for i in range(len(values) - 1) if float(values[i]) <= float(values[i + 1])
    ],
    "the first counts as well": lambda values: [0, *suspects_of(values)],
    "the values become numbers": suspects_in_place,
    "nothing from nothing, None": lambda values: suspects_of(values) if values else None,
    "equal only as text": lambda values: [
        i
        for i in range(1, len(values))
        if float(values[i]) > float(values[i - 1]) or values[i] == values[i - 1]
    ],
}
RIGHT["saving"] = [
    lambda total, floats, bits, full: 1 - (floats + (total - floats) * bits / full) / total,
    lambda total, floats, bits, full: np.float64(1 - floats / total) * (full - bits) / full,
    lambda total, floats, bits, full: torch.tensor((1 - floats / total) * (1 - bits / full)),
]
WRONG["saving"] = {
    "full precision is forgotten": lambda total, floats, bits, full: 1 - bits / full,
    "what is left, not what is saved": lambda total, floats, bits, full: (
        (floats + (total - floats) * bits / full) / total
    ),
    "of the quantised ones": lambda total, floats, bits, full: (
        (total - floats) * (1 - bits / full) / max(total - floats, 1)
    ),
    "in per cent": lambda total, floats, bits, full: 100 * (1 - floats / total) * (1 - bits / full),
    "a number of operations": lambda total, floats, bits, full: (
        (total - floats) * (1 - bits / full)
    ),
    "of half as many bits": lambda total, floats, bits, full: (
        (1 - floats / total) * (1 - bits / (full / 2))
    ),
    "floats are saved": lambda total, floats, bits, full: floats / total * (1 - bits / full),
    "by the square of the bits": lambda total, floats, bits, full: (
        (1 - floats / total) * (1 - (bits / full) ** 2)
    ),
    "everything quantised is free": lambda total, floats, bits: 1 - floats / total,
    "floats come on top": lambda total, floats, bits, full: (
        total * (1 - bits / full) / (total + floats)
    ),
    "4 bits by heart": lambda total, floats, bits, full: (1 - floats / total) * (1 - 4 / full),
    "whole numbers": lambda total, floats, bits, full: (
        (total - floats) * (full - bits) // full // total
    ),
    "two decimals": lambda total, floats, bits, full: round(
        (1 - floats / total) * (1 - bits / full), 2
    ),
    "bits from 8 only": lambda total, floats, bits, full: (
        (1 - floats / total) * (1 - min(bits, 8) / full)
    ),
    "as a multiple": lambda total, floats, bits, full: (
        total / (floats + (total - floats) * bits / full)
    ),
    "more than 32 bits": lambda total, floats, bits, full: (
        (1 - floats / total) * (1 - bits / (full + 1))
    ),
}


def gap_with(full, quantised, counts, gap=lambda f, q: f - q, nothing=None):
    return gap(full, quantised) if counts else nothing


def gap_of(full, quantised, full_steps, quantised_steps, gained, done):
    return gap_with(full, quantised, full_steps >= quantised_steps and gained < done)


def gap_by_branches(full, quantised, full_steps, quantised_steps, gained, done):
    if full_steps < quantised_steps:
        return None
    if gained >= done:
        return None
    return np.float64(full) - quantised


def gap_by_a_condition(full, quantised, full_steps, quantised_steps, gained, done):
    trusted = not (full_steps < quantised_steps or gained > done or gained == done)
    if trusted:
        return torch.tensor(full, dtype=torch.float64) - quantised


def gap_in_one_line(full, quantised, full_steps, quantised_steps, gained, done):
    return full - quantised if full_steps >= quantised_steps and gained < done else None


RIGHT["gap_that_counts"] = [gap_of, gap_by_branches, gap_by_a_condition, gap_in_one_line]
WRONG["gap_that_counts"] = {
    "a distance": lambda f, q, a, b, g, done: gap_with(
        f, q, a >= b and g < done, lambda f, q: abs(f - q)
    ),
    "another threshold, 0.05": lambda f, q, a, b, g, done: gap_with(
        f, q, a >= b and g < 2.5 * done
    ),
    "another threshold, 0.015": lambda f, q, a, b, g, done: gap_with(
        f, q, a >= b and g < 0.75 * done
    ),
    "0.02 dB still counts": lambda f, q, a, b, g, done: gap_with(f, q, a >= b and g <= done),
    "as many steps do not count": lambda f, q, a, b, g, done: gap_with(f, q, a > b and g < done),
    "steps are ignored": lambda f, q, a, b, g, done: gap_with(f, q, g < done),
    "what it gained is ignored": lambda f, q, a, b, g: gap_with(f, q, a >= b),
    "either will do": lambda f, q, a, b, g, done: gap_with(f, q, a >= b or g < done),
    "the sign": lambda f, q, a, b, g, done: gap_with(f, q, a >= b and g < done, lambda f, q: q - f),
    "0 for None": lambda f, q, a, b, g, done: gap_with(f, q, a >= b and g < done, nothing=0.0),
    "no gap of 0": lambda f, q, a, b, g, done: gap_with(f, q, a >= b and g < done) or None,
    "one decimal": lambda f, q, a, b, g, done: gap_with(
        f, q, a >= b and g < done, lambda f, q: round(f - q, 1)
    ),
    "a loss at the end is a gain": lambda f, q, a, b, g, done: gap_with(
        f, q, a >= b and abs(g) < done
    ),
    "always": lambda f, q, a, b, g: f - q,
    "never": lambda f, q, a, b, g: None,
    "half the steps will do": lambda f, q, a, b, g, done: gap_with(f, q, 2 * a >= b and g < done),
    "of as many steps only": lambda f, q, a, b, g, done: gap_with(f, q, a == b and g < done),
    "a little fewer steps will do": lambda f, q, a, b, g, done: gap_with(
        f, q, a + 9 >= b and g < done
    ),
}

# 07 Your turn -------------------------------------------------------------------------------------


def bytes_with(out, taps, bits, words, word):
    return out * taps * bits * words * word // 8


RIGHT["packed_bytes"] = [
    lambda out, taps, channels, bits, word: (
        out * taps * bits * (word // 8) * math.ceil(channels / word)
    ),
    lambda out, taps, channels, bits, word: np.prod(
        [out, taps, bits, (channels + word - 1) // word, word // 8]
    ),
    lambda out, taps, channels, bits, word: (
        sum(word // 8 for _ in range(bits) for _ in range(0, channels, word)) * out * taps
    ),
]
WRONG["packed_bytes"] = {
    "no whole words": lambda o, t, c, b: o * t * c * b // 8,
    "whole bytes, not words": lambda o, t, c, b: o * t * b * -(-c // 8),
    "words of half as many bits": lambda o, t, c, b, word: (
        o * t * b * -(-c // (word // 2)) * (word // 16)
    ),
    "words of twice as many bits": lambda o, t, c, b, word: (
        o * t * b * -(-c // (2 * word)) * (word // 4)
    ),
    "rounded down": lambda o, t, c, b, word: bytes_with(o, t, b, max(c // word, 1), word),
    "one word too many": lambda o, t, c, b, word: bytes_with(o, t, b, c // word + 1, word),
    "at most two words": lambda o, t, c, b, word: bytes_with(o, t, b, min(-(-c // word), 2), word),
    "words, not bytes": lambda o, t, c, b, word: o * t * b * -(-c // word),
    "bits for bytes": lambda o, t, c, b, word: o * t * b * -(-c // word) * word,
    "all bits in one row": lambda o, t, c, b, word: word // 8 * o * t * -(-c * b // word),
    "taps in the row": lambda o, t, c, b, word: word // 8 * o * b * -(-c * t // word),
    "9 taps by heart": lambda o, t, c, b, word: bytes_with(o, 9, b, -(-c // word), word),
    "4 bits by heart": lambda o, t, c, b, word: bytes_with(o, t, 4, -(-c // word), word),
    "64 outputs by heart": lambda o, t, c, b, word: bytes_with(64, t, b, -(-c // word), word),
    "outputs in words": lambda o, t, c, b, word: bytes_with(
        -(-o // word) * word, t, b, -(-c // word), word
    ),
    "at most 8 words": lambda o, t, c, b, word: bytes_with(o, t, b, min(-(-c // word), 3), word),
    "2^b planes": lambda o, t, c, b, word: bytes_with(o, t, 2 ** (b - 1), -(-c // word), word),
    "no word for few": lambda o, t, c, b, word: bytes_with(o, t, b, -(-c // word), word) * (c > 1),
}
RIGHT["tent"] = [
    lambda u: 4 * torch.minimum(u, 1 - u),
    lambda u: torch.where(u < 0.5, 4 * u, 4 - 4 * u),
    lambda u: 2 * (1 - (2 * u - 1).abs()).to(u.dtype),
]
WRONG["tent"] = {
    "its mean is 1/2": lambda u: 1 - 2 * (u - 0.5).abs(),
    "its mean is 2": lambda u: 4 - 8 * (u - 0.5).abs(),
    "the rising half": lambda u: 4 * u,
    "the falling half": lambda u: 4 - 4 * u,
    "a valley": lambda u: 4 * (u - 0.5).abs(),
    "a parabola": lambda u: 6 * u * (1 - u),
    "a sine": lambda u: math.pi / 2 * torch.sin(math.pi * u),
    "flat": lambda u: torch.ones_like(u),
    "a box": lambda u: 2.0 * ((u > 0.25) & (u < 0.75)),
    "not zero at the ends": lambda u: 1.5 - 2 * (u - 0.5).abs(),
    "its top at 1/4": lambda u: torch.where(u < 0.25, 8 * u, 8 / 3 * (1 - u)),
    "the top at 0": lambda u: 2 - 4 * u.abs(),
    "its top cut off": lambda u: (2 - 4 * (u - 0.5).abs()).clamp(max=1.9),
    "u is changed": lambda u: 2 - 4 * u.sub_(0.5).abs_(),
    "a mean of 1, of these u": lambda u: torch.minimum(u, 1 - u) / torch.minimum(u, 1 - u).mean(),
    "one row": lambda u: (2 - 4 * (u - 0.5).abs()).flatten(),
    "a list, which no quantizer can multiply": lambda u: (2 - 4 * (u - 0.5).abs()).tolist(),
    "quarters by heart": lambda u: ((u * 4).round() / 4 - 0.5).abs() * -4 + 2,
}


def start_in_place(x, qmax, share):
    return x.abs_().flatten().quantile(share / 100) / qmax


RIGHT["start_without_outliers"] = [
    lambda x, qmax, share: np.quantile(np.abs(x.numpy()), share / 100) / qmax,
    lambda x, qmax, share: (
        x.abs().flatten().kthvalue(int(share / 100 * x.numel()) + 1).values / qmax
    ),
    lambda x, qmax, share: (
        x.double().abs().view(-1).sort().values[int(share / 100 * x.numel())].item() / qmax
    ),
]
WRONG["start_without_outliers"] = {
    "the maximum": lambda x, qmax: x.abs().max() / qmax,
    "90 %": lambda x, qmax: x.abs().flatten().quantile(0.9) / qmax,
    "99.9 %": lambda x, qmax: x.abs().flatten().quantile(0.999) / qmax,
    "values for magnitudes": lambda x, qmax, share: x.flatten().quantile(share / 100) / qmax,
    "99 % of the maximum": lambda x, qmax, share: share / 100 * x.abs().max() / qmax,
    "the end, not the step": lambda x, qmax, share: x.abs().flatten().quantile(share / 100),
    "times qmax": lambda x, qmax, share: x.abs().flatten().quantile(share / 100) * qmax,
    "qmax + 1": lambda x, qmax, share: x.abs().flatten().quantile(share / 100) / (qmax + 1),
    "qmax 7 by heart": lambda x, qmax, share: x.abs().flatten().quantile(share / 100) / 7,
    "three deviations": lambda x, qmax: 3 * x.std() / qmax,
    "2.576 deviations": lambda x, qmax: 2.5758 * x.std() / qmax,
    "LSQ's start": lambda x, qmax: 2 * x.abs().mean() / math.sqrt(qmax),
    "the first row": lambda x, qmax, share: x[0].abs().flatten().quantile(share / 100) / qmax,
    "a step for each column": lambda x, qmax, share: x.abs().quantile(share / 100, dim=0) / qmax,
    "x is changed": start_in_place,
    "99 by heart": lambda x, qmax, share: share / qmax,
    "1 %": lambda x, qmax, share: x.abs().flatten().quantile(1 - share / 100) / qmax,
    "squares": lambda x, qmax, share: x.square().flatten().quantile(share / 100) / qmax,
}


# 08 Your own network ------------------------------------------------------------------------------


def memory_by_events(lives):
    """Up at the first step, down after the last."""
    events = sorted([(a, b) for a, _, b in lives] + [(t + 1, -b) for _, t, b in lives])
    now = most = 0
    for _, change in events:
        now += change
        most = max(most, now)
    return most


def memory_by_first_fit(lives):
    """In the order of the list, each into the first gap."""
    placed = []
    for first, last, size in lives:
        at = 0
        for other, begin, end in sorted(placed, key=lambda p: p[1]):
            if other[0] <= last and first <= other[1] and at < end and begin < at + size:
                at = end
        placed.append(((first, last), at, at + size))
    return max((end for _, _, end in placed), default=0)


def memory_at(lives, steps, lives_at=lambda first, last, step: first <= step <= last):
    sums = (sum(b for f, t, b in lives if lives_at(f, t, step)) for step in steps)
    return max(sums, default=0)


def all_steps(lives):
    return range(1 + max((last for _, last, _ in lives), default=0))


def memory_in_place(lives):
    lives.sort()
    return memory_by_events(lives)


RIGHT["memory_at_once"] = [
    memory_by_events,
    lambda lives: memory_at(lives, all_steps(lives)),
    lambda lives: max((memory_at(lives, [last]) for _, last, _ in lives), default=0),
]
WRONG["memory_at_once"] = {
    "all values": lambda lives: sum(b for _, _, b in lives),
    "the largest value": lambda lives: max((b for _, _, b in lives), default=0),
    "the two largest": lambda lives: sum(sorted(b for _, _, b in lives)[-2:]),
    "gone before its last step": lambda lives: memory_at(
        lives, all_steps(lives), lambda f, t, s: f <= s < t
    ),
    "not there at its first step": lambda lives: memory_at(
        lives, all_steps(lives), lambda f, t, s: f < s <= t
    ),
    "neither end": lambda lives: memory_at(lives, all_steps(lives), lambda f, t, s: f < s < t),
    "one step too long": lambda lives: memory_at(
        lives, all_steps(lives), lambda f, t, s: f <= s <= t + 1
    ),
    "the first step": lambda lives: memory_at(lives, [0]),
    "at the last step of all": lambda lives: memory_at(lives, list(all_steps(lives))[-1:]),
    "what meets a value, at once or not": lambda lives: max(
        (sum(b for f, t, b in lives if f <= end and begin <= t) for begin, end, _ in lives),
        default=0,
    ),
    "the middle of each life": lambda lives: memory_at(lives, [(f + t) // 2 for f, t, _ in lives]),
    "neighbours in the list": lambda lives: max(
        (
            a[2] + b[2] * (a[0] <= b[1] and b[0] <= a[1])
            for a, b in zip(lives, lives[1:] + lives, strict=False)
        ),
        default=0,
    ),
    "first fit in the order of the list": memory_by_first_fit,
    "up to 64 bytes": lambda lives: -(-memory_by_events(lives) // 64) * 64,
    "ten steps": lambda lives: memory_at(lives, range(10)),
    "how many": lambda lives: memory_by_events([(f, t, 1) for f, t, _ in lives]),
    "bytes times steps": lambda lives: sum((t - f + 1) * b for f, t, b in lives),
    "lives are sorted": memory_in_place,
}


def share_of(layers, products):
    counted = [products(*layer[:-1]) for layer in layers]
    integers = sum(n for n, layer in zip(counted, layers, strict=True) if layer[-1])
    return integers / sum(counted)


def share_by_a_loop(layers):
    found = {True: 0, False: 0}
    for height, width, taps, inputs, outputs, groups, integer in layers:
        found[integer] += height * width * outputs * taps * (inputs // groups)
    return found[True] / (found[True] + found[False])


def share_by_numpy(layers):
    h, w, taps, i, o, groups, integer = np.array(layers, float).T
    return np.average(integer, weights=h * w * taps * i * o / groups)


RIGHT["integer_share"] = [
    share_by_a_loop,
    share_by_numpy,
    lambda layers: share_of(layers, lambda *sizes: math.prod(sizes[:5]) / sizes[5]),
]
WRONG["integer_share"] = {
    "layers": lambda layers: share_of(layers, lambda h, w, t, i, o, g: 1),
    "weights": lambda layers: share_of(layers, lambda h, w, t, i, o, g: t * i * o / g),
    "outputs": lambda layers: share_of(layers, lambda h, w, t, i, o, g: h * w * o),
    "groups are ignored": lambda layers: share_of(
        layers, lambda h, w, t, i, o, g: h * w * t * i * o
    ),
    "groups on both sides": lambda layers: share_of(
        layers, lambda h, w, t, i, o, g: h * w * t * i * o / g**2
    ),
    "groups multiply": lambda layers: share_of(
        layers, lambda h, w, t, i, o, g: h * w * t * i * o * g
    ),
    "taps are ignored": lambda layers: share_of(layers, lambda h, w, t, i, o, g: h * w * i * o / g),
    "the kernel's side for its taps": lambda layers: share_of(
        layers, lambda h, w, t, i, o, g: h * w * math.sqrt(t) * i * o / g
    ),
    "9 taps by heart": lambda layers: share_of(
        layers, lambda h, w, t, i, o, g: h * w * 9 * i * o / g
    ),
    "outputs are ignored": lambda layers: share_of(
        layers, lambda h, w, t, i, o, g: h * w * t * i / g
    ),
    "inputs are ignored": lambda layers: share_of(layers, lambda h, w, t, i, o, g: h * w * t * o),
    "the width is ignored": lambda layers: share_of(
        layers, lambda h, w, t, i, o, g: h * t * i * o / g
    ),
    "squares": lambda layers: share_of(layers, lambda h, w, t, i, o, g: h * h * t * i * o / g),
    "a sum for the product of channels": lambda layers: share_of(
        layers, lambda h, w, t, i, o, g: h * w * t * (i + o) / g
    ),
    "the share of float": lambda layers: 1 - share_by_a_loop(layers),
    "per cent": lambda layers: 100 * share_by_a_loop(layers),
    "integers over float": lambda layers: (
        share_by_a_loop(layers) / (1.001 - share_by_a_loop(layers))
    ),
    "one decimal": lambda layers: round(share_by_a_loop(layers), 1),
}


def output_step(x, weight, qmax, steps, error=None, write=None):
    """The step with the least error, of y - y' unless another is asked for."""

    def plain(x, step):
        return step * (x / step).round().clamp(0, qmax)

    def variance(x, written):
        return ((x - written) @ weight).var(0).sum()

    found = [(error or variance)(x, (write or plain)(x, step)) for step in steps]
    return steps[int(torch.stack(found).argmin())]


def step_by_a_loop(x, weight, qmax, steps):
    best, least = None, math.inf
    for step in steps.tolist():
        codes = np.clip(np.round(x.numpy() / step), 0, qmax)
        found = np.var(x.numpy() @ weight.numpy() - step * codes @ weight.numpy(), axis=0).sum()
        if found < least:
            best, least = step, found
    return best


def step_all_at_once(x, weight, qmax, steps):
    codes = (x / steps[:, None, None]).round().clamp(0, qmax)
    d = (x - codes * steps[:, None, None]) @ weight
    return steps[(d - d.mean(1, keepdim=True)).square().sum((1, 2)).argmin()]


def step_in_place(x, weight, qmax, steps):
    steps.copy_(steps.sort().values)
    return step_all_at_once(x, weight, qmax, steps)


def step_that_clips_nothing(x, weight, qmax, steps):
    enough = steps[steps * qmax >= x.max()]
    return enough.min() if len(enough) else steps.max()


def _less_median(d):
    return d - d.median(0).values


RIGHT["step_of_output"] = [output_step, step_by_a_loop, step_all_at_once]
WRONG["step_of_output"] = {
    "the input's error": lambda x, w, q, s: output_step(
        x, w, q, s, lambda x, written: (x - written).square().sum()
    ),
    "the mean counts": lambda x, w, q, s: output_step(
        x, w, q, s, lambda x, written: ((x - written) @ w).square().sum()
    ),
    "the mean alone": lambda x, w, q, s: output_step(
        x, w, q, s, lambda x, written: ((x - written) @ w).mean(0).abs().sum()
    ),
    "one mean for all outputs": lambda x, w, q, s: output_step(
        x, w, q, s, lambda x, written: ((x - written) @ w).var()
    ),
    "the first output": lambda x, w, q, s: output_step(
        x, w, q, s, lambda x, written: ((x - written) @ w)[:, 0].var()
    ),
    "the outputs' sum": lambda x, w, q, s: output_step(
        x, w, q, s, lambda x, written: ((x - written) @ w).sum(1).var()
    ),
    "the mean over outputs, not rows": lambda x, w, q, s: output_step(
        x, w, q, s, lambda x, written: ((x - written) @ w).var(1, unbiased=False).sum()
    ),
    "the largest error": lambda x, w, q, s: output_step(
        x, w, q, s, lambda x, written: ((x - written) @ w).abs().max()
    ),
    "the variance of the output": lambda x, w, q, s: output_step(
        x, w, q, s, lambda x, written: (written @ w).var(0).sum()
    ),
    "weights' sizes": lambda x, w, q, s: output_step(
        x, w, q, s, lambda x, written: ((x - written) @ w.abs()).var(0).sum()
    ),
    "a sum of roots": lambda x, w, q, s: output_step(
        x, w, q, s, lambda x, written: ((x - written) @ w).std(0, unbiased=False).sum()
    ),
    "the worst output": lambda x, w, q, s: output_step(
        x, w, q, s, lambda x, written: ((x - written) @ w).var(0, unbiased=False).max()
    ),
    "the median is free": lambda x, w, q, s: output_step(
        x, w, q, s, lambda x, written: _less_median((x - written) @ w).square().sum()
    ),
    "nothing is clipped": step_that_clips_nothing,
    "the smallest": lambda x, w, q, s: s.min(),
    "the largest": lambda x, w, q, s: s.max(),
    "the first": lambda x, w, q, s: s[0],
    "its number": lambda x, w, q, s: (s == step_all_at_once(x, w, q, s)).nonzero()[0, 0],
    "no clip": lambda x, w, q, s: output_step(
        x, w, q, s, write=lambda x, step: step * (x / step).round()
    ),
    "rounded down": lambda x, w, q, s: output_step(
        x, w, q, s, write=lambda x, step: step * (x / step).floor().clamp(0, q)
    ),
    "codes for values": lambda x, w, q, s: output_step(
        x, w, q, s, write=lambda x, step: (x / step).round().clamp(0, q)
    ),
    "15 codes by heart": lambda x, w, q, s: output_step(
        x, w, q, s, write=lambda x, step: step * (x / step).round().clamp(0, 15)
    ),
    "signed codes": lambda x, w, q, s: output_step(
        x, w, q, s, write=lambda x, step: step * (x / step).round().clamp(-q // 2, q // 2)
    ),
    "steps are sorted": step_in_place,
}


# The measure --------------------------------------------------------------------------------------


class Broken:
    """What came of an answer that raised an error: no number, and equal to nothing."""

    def __init__(self, words: str) -> None:
        self.words = words


def refusals(answer: Callable, exercise: Exercise, seed: int = 0) -> set[int | str]:
    """All that a test has against an answer: its claims by number, and what `asked` tells."""
    found: set[int | str] = set()

    def ask(*given):
        try:
            return asked(answer)(*given)
        except InAnswer as inside:
            found.add(str(inside))
            return Broken(str(inside))

    for i, (holds, _) in enumerate(exercise.claims(ask, Draw(seed))):
        if not holds:
            found.add(i)
    return found


def table() -> list[str]:
    """The lines of the table of docs/instructors.md."""
    lines = [
        "| exercise | answer | claims | wrong answers | refused | right answers | accepted |",
        "|---|---|---:|---:|---:|---:|---:|",
    ]
    totals = [0, 0, 0, 0]
    for exercise in exercises.every():
        wrongs, rights = wrong(exercise).values(), right(exercise)
        refused = sum(bool(refusals(answer, exercise)) for answer in wrongs)
        accepted = sum(not refusals(answer, exercise) for answer in rights)
        counts = [len(wrongs), refused, len(rights), accepted]
        totals = [total + count for total, count in zip(totals, counts, strict=True)]
        claims = len(list(exercise.claims(rights[0], Draw(0))))
        row = [exercise.number, f"`{exercise.answer}`", claims, *counts]
        lines.append(f"| {' | '.join(map(str, row))} |")
    lines.append(f"| | all | | {' | '.join(map(str, totals))} |")
    return lines


if __name__ == "__main__":
    print("\n".join(table()))
