"""Scores of a model on a set of pictures, by the protocol of `images.metrics`."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from tqdm.auto import tqdm

from .backbone import QuantSR
from .images.data import Pair, pairs
from .images.metrics import psnr_y, ssim_y
from .images.resize import imresize
from .images.tensors import to_uint8
from .infer import Model, enlarge
from .integer.packed_layers import PackedLayer
from .integer.packing import PackedModel
from .layers import QConv2d, QLinear


@dataclass(frozen=True)
class Scores:
    """Mean PSNR (dB) and SSIM of the luma over a set, each picture's, and seconds spent."""

    psnr_y: float
    ssim_y: float
    names: tuple[str, ...]
    psnr_each: tuple[float, ...]
    ssim_each: tuple[float, ...]
    seconds: float

    def __str__(self) -> str:
        return f"{self.psnr_y:.3f} dB / {self.ssim_y:.4f} ({len(self.names)} pictures)"


def bicubic(lr: Tensor, scale: int) -> Tensor:
    """The baseline: MATLAB's bicubic of 8-bit pictures; float [N, 3, H, W] in [0, 1]."""
    return imresize(to_uint8(lr), scale).float() / 255


def evaluate(
    model: Model | str | Callable[[Tensor], Tensor],
    data: str | os.PathLike | Iterable[Pair],
    scale: int | None = None,
    blocks: int | None = None,
    progress: bool = False,
) -> Scores:
    """Run `model` over a set and score it.

    model: a network, any function lr -> sr (float RGB [1, 3, H, W] in [0, 1]), or "bicubic".
    data: the name of a set or a folder (then lr is made by MATLAB's bicubic at `scale`, which may
    be left out for a network), or pairs. `scale` pixels are cut from each border before scoring.
    blocks: depth of the network. Raises ValueError if scales differ, the set is missing, or a
    depth is asked of something that is no network.
    """
    own_scale = getattr(getattr(model, "config", None), "scale", None)
    scale = own_scale if scale is None else scale
    if scale is None:
        raise ValueError("`scale` is not given and the model does not say it; pass scale=2 or 4.")
    if own_scale not in (None, scale):
        raise ValueError(
            f"`scale` is {scale} and the model enlarges by {own_scale}; make them equal."
        )
    if isinstance(data, (str, os.PathLike)):
        data = pairs(data, scale)
    run = _runner(model, scale, blocks)
    names, psnr, ssim, seconds = [], [], [], 0.0
    for pair in tqdm(data, desc="evaluating", unit="picture", disable=not progress):
        began = time.perf_counter()
        with torch.inference_mode():
            sr = run(pair.lr)
        seconds += time.perf_counter() - began
        names.append(pair.name)
        psnr.append(psnr_y(sr, pair.hr, crop=scale).item())
        ssim.append(ssim_y(sr, pair.hr, crop=scale).item())
    if not names:
        raise ValueError("there was no picture to evaluate; check the set.")
    count = len(names)
    return Scores(
        sum(psnr) / count, sum(ssim) / count, tuple(names), tuple(psnr), tuple(ssim), seconds
    )


def _runner(model, scale: int, blocks: int | None) -> Callable[[Tensor], Tensor]:
    if hasattr(model, "config"):
        return lambda lr: enlarge(lr, model, blocks)
    if blocks is not None:
        raise ValueError(f"`blocks` is {blocks}; only a network has a depth. Leave it out.")
    if model == "bicubic":
        return lambda lr: bicubic(lr, scale)
    if isinstance(model, str):
        raise ValueError(
            f"`model` is {model!r}; the only model known by name here is 'bicubic'. Load others "
            "with qsr.load first."
        )
    return model


# Packed against trained ---------------------------------------------------------------------------


@dataclass(frozen=True)
class Agreement:
    """How a packed network differs from its float training graph on a set.

    mean_psnr: packed minus trained, mean PSNR-Y in dB. worst_psnr: the largest difference of one
    picture, dB. flipped: share of the activation codes that differ, because float sums in another
    order lie on the other side of a rounding threshold.
    """

    mean_psnr: float
    worst_psnr: float
    flipped: float


@torch.inference_mode()
def agreement(
    net: QuantSR,
    packed: PackedModel,
    data: str | os.PathLike | Iterable[Pair],
    blocks: int | None = None,
    window: int | None = None,
    progress: bool = False,
) -> Agreement:
    """Compare a trained network with its packed form, layer by layer and picture by picture.

    Pictures are scored whole. Codes are compared in the middle `window` x `window` lr pixels of
    each (None: everywhere): layers one by one give those of the program, and are 40 times as slow
    where they hold attention.
    """
    if isinstance(data, (str, os.PathLike)):
        data = pairs(data, net.config.scale)
    differences, flipped, total = [], 0, 0
    for pair in tqdm(data, "comparing", unit="picture", disable=not progress):
        crop = net.config.scale
        middle = pair.lr if window is None else _middle(pair.lr, window)
        with _recorded_codes(net) as floats:
            trained_sr = enlarge(middle, net, blocks)
        with _recorded_codes(packed.network) as integers:
            enlarge(middle, packed.network, blocks)
        if middle.shape != pair.lr.shape:
            trained_sr = enlarge(pair.lr, net, blocks)
        packed_sr = enlarge(pair.lr, packed, blocks)
        scores = [psnr_y(sr, pair.hr, crop=crop).item() for sr in (trained_sr, packed_sr)]
        differences.append(scores[1] - scores[0])
        for a, b in zip(floats, integers, strict=True):
            flipped += int((a != b).sum())
            total += a.numel()
    worst = max(map(abs, differences))
    return Agreement(sum(differences) / len(differences), worst, flipped / total)


def _middle(lr: Tensor, window: int) -> Tensor:
    """At most `window` rows and columns in the middle of [..., H, W]."""
    height, width = lr.shape[-2:]
    top, left = max(height - window, 0) // 2, max(width - window, 0) // 2
    return lr[..., top : top + window, left : left + window]


@contextlib.contextmanager
def _recorded_codes(network: torch.nn.Module) -> Iterator[list[Tensor]]:
    """The activation codes of every quantised layer, in the order of execution."""
    codes: list[Tensor] = []

    def record(layer: torch.nn.Module, args: tuple[Tensor, ...]) -> None:
        if isinstance(layer, PackedLayer):
            codes.append(layer.codes(args[0]))
        elif isinstance(layer, (QConv2d, QLinear)):
            codes.append(layer.input_quantizer.codes(args[0]))

    layers = (QConv2d, QLinear, PackedLayer)
    hooks = [
        layer.register_forward_pre_hook(record)
        for layer in network.modules()
        if isinstance(layer, layers)
    ]
    try:
        yield codes
    finally:
        for hook in hooks:
            hook.remove()
