"""The curve that a user needs: how good a picture, in how many milliseconds.

`network` compares engines on one network. Whoever wants pictures enlarged has another choice: a
network made for speed, in full precision or made 8-bit by an engine's own tool, beside a larger one
of few bits. So here any ONNX files take part, with what OpenVINO makes of them:

    openvino-fp32   float32 forced; openvino-bf16 is what it picks by itself where it can
    openvino-int8   NNCF's post-training quantisation with its preset "mixed" and no other option,
                    on patches of 48x48 of a training set

and our packed networks at each of their depths, or packed networks of any class, which have one.
All are scored on the same set by the same
function, and timed in turns on one picture as in `bench_network`. An int8 network computes another
function: its score says how good that one is.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import io
import itertools
import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from ..course import viewers
from ..images.data import pairs
from ..integer.packing import PackedModel
from ..models.enlarger import Enlarger
from ..paper import report as tables
from ..scores import evaluate
from ..system.errors import first_line
from ..system.machine import check_threads, machine
from .engine import (
    Contender,
    Timing,
    network_rows,
    packed_contender,
    picture,
    stored_contenders,
)
from .peers import Runner, compile_openvino
from .report import COLLAPSED, ORDINARY, OWN, SECOND, dress, heading, logarithmic

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FORMS = {"openvino-fp32": "f32", "openvino-bf16": "bf16", "openvino-int8": None}
PACKED = "packed"  # the form of a packed network of any class
MULTIPLE = 8  # some networks take sides of these only
PATCHES, PATCH = 200, 48  # what int8 ranges are read from: the number, and the side in lr pixels
OWN_STYLES = (("o", OWN), ("s", "#E69F00"), ("P", "#CC79A7"), ("X", "#B22222"))
TRAINING = "General100"  # the set that they are cut from


@dataclass(frozen=True)
class Point:
    """One network in one form: a depth of ours, or what an engine made of an ONNX file.

    psnr: mean PSNR-Y of the set in dB. timing: its time and memory, or in its note why it has none.
    """

    network: str
    form: str
    psnr: float
    timing: Timing


@dataclass(frozen=True)
class Curve:
    """All points of one run: lr of `size` x `size` pixels, enlarged `scale` times, scored on a set
    `data`.
    """

    data: str
    scale: int
    size: int
    rounds: int
    machine: dict[str, str]
    points: tuple[Point, ...]


def bench_curve(
    models: Mapping[str, PackedModel | Enlarger],
    files: Sequence[str | os.PathLike],
    data: str = "Set5",
    size: int = 128,
    threads: int = 1,
    rounds: int = 5,
    forms: Sequence[str] = tuple(FORMS),
    training: str | None = None,
) -> Curve:
    """Score and time packed networks, at all their depths, and ONNX files in each of `forms`.

    files: networks float32 [1, 3, H, W] in [0, 1] -> [1, 3, scale H, scale W], of any size or of
    sides that are multiples of 8. data: the set that all are scored on. size: side of the picture
    that is timed. training: the set that ranges of 8 bits are read from (General100).
    Raises ValueError for files that are no such network, for several scales, and for engines or
    sets that are not there.
    """
    check_threads(threads)
    if missing := [m for m in ("openvino", "nncf") if importlib.util.find_spec(m) is None]:
        raise ValueError(
            f"networks in ONNX files need {', '.join(missing)}: pip install -e '.[bench]' in a "
            "clone of qsr."
        )
    networks = [OnnxFile.read(path) for path in files]
    scales = {net.scale for net in networks} | {net.config.scale for net in models.values()}
    if len(scales) != 1:
        raise ValueError(
            f"the networks enlarge {' and '.join(map(str, sorted(scales)))} times; one curve is of "
            "one scale. Draw them one by one."
        )
    (scale,) = scales
    lr, patches = picture(size), _patches(training or TRAINING, scale)
    with tempfile.TemporaryDirectory(prefix="qsr-curve-") as name:
        folder = Path(name)
        contenders, labels, scores = [], [], []
        for label, model in models.items():
            if isinstance(model, Enlarger):
                contenders.append(stored_contenders(label, model, lr, folder)[0])
                labels.append((label, PACKED))
                scores.append(evaluate(model, data).psnr_y)
                continue
            for depth in model.config.depths:
                contenders.append(packed_contender(label, model, depth, lr, folder))
                labels.append((label, f"{depth} block{'s' * (depth > 1)}"))
                scores.append(evaluate(model, data, blocks=depth).psnr_y)
        for net in networks:
            expected = net.expected(lr.numpy())
            for form in forms:
                made = net if form != "openvino-int8" else net.int8(folder, patches)
                precision = FORMS[form]
                contenders.append(
                    Contender(
                        f"{net.name} {form}",
                        "onnx",
                        functools.partial(made.open, precision, size),
                        needs=("openvino",),
                        exact=form == "openvino-fp32",
                        expected=expected if made is net else None,
                    )
                )
                labels.append((net.name, form))
                scores.append(evaluate(made.upscaler(precision), data, scale).psnr_y)
        rows = network_rows(contenders, lr.numpy(), None, threads, rounds, {})
    timings = {(row.name, row.blocks): row for row in rows}
    points = (
        Point(*label, score, timings[contender.name, contender.blocks])
        for contender, label, score in zip(contenders, labels, scores, strict=True)
    )
    return Curve(data, scale, size, rounds, machine(), tuple(points))


@dataclass(frozen=True)
class OnnxFile:
    """A network in a file that OpenVINO reads. multiple: sides of lr are multiples of it."""

    path: Path
    name: str
    scale: int
    multiple: int

    @classmethod
    def read(cls, path: str | os.PathLike) -> OnnxFile:
        """Raises ValueError if it is no network from pictures to pictures."""
        path = Path(path)
        if not path.is_file():
            raise ValueError(f"{path} does not exist; name an ONNX file.")
        reasons = []
        for multiple in (1, MULTIPLE):
            sides = (2 * MULTIPLE + multiple, 3 * MULTIPLE)
            try:
                made = _reshaped(path, *sides).output(0).shape
            except RuntimeError as error:
                reasons.append(first_line(error))
                continue
            scale = made[2] // sides[0] if len(made) == 4 else 0
            if scale > 0 and list(made) == [1, 3, *(scale * n for n in sides)]:
                return cls(path, path.stem, scale, multiple)
            reasons.append(f"lr of {sides} become {list(made)}")
        raise ValueError(
            f"{path} is no network from [1, 3, H, W] to [1, 3, scale H, scale W] that OpenVINO "
            f"reads ({reasons[-1]}); export it so."
        )

    def expected(self, lr: np.ndarray) -> np.ndarray:
        """What onnxruntime makes of lr: who is timed in full precision must agree with it."""
        import onnxruntime

        session = onnxruntime.InferenceSession(str(self.path), providers=["CPUExecutionProvider"])
        return session.run(None, {session.get_inputs()[0].name: lr})[0]

    def int8(self, folder: Path, patches: Sequence[np.ndarray]) -> OnnxFile:
        """The network after NNCF's quantisation, as a file in `folder`. Seconds to minutes."""
        import nncf
        import openvino

        preset = nncf.QuantizationPreset.MIXED
        options = {"preset": preset, "subset_size": len(patches)}
        with contextlib.redirect_stdout(io.StringIO()):  # its progress bars
            made = nncf.quantize(
                openvino.Core().read_model(str(self.path)), nncf.Dataset(patches), **options
            )
        path = folder / f"{self.name}-int8.xml"
        openvino.save_model(made, path, compress_to_fp16=False)
        return replace(self, path=path)

    def open(self, precision: str | None, size: int, threads: int) -> Runner:
        """A runner for pictures of size x size, which are the only ones it takes."""
        return compile_openvino(_reshaped(self.path, size, size), threads, precision)

    def upscaler(self, precision: str | None) -> Callable[[Tensor], Tensor]:
        """lr [1, 3, H, W] -> sr: compiled for each size; filled up to `multiple`, and cut again."""

        def run(lr: Tensor) -> Tensor:
            height, width = lr.shape[2:]
            filled = F.pad(lr, (0, -width % self.multiple, 0, -height % self.multiple), "replicate")
            runner = compile_openvino(
                _reshaped(self.path, *filled.shape[2:]), torch.get_num_threads(), precision
            )
            sr = torch.from_numpy(np.array(runner(filled.numpy())))
            return sr[:, :, : self.scale * height, : self.scale * width]

        return run


def _reshaped(path: Path, height: int, width: int):
    """OpenVINO's model for pictures of this size."""
    import openvino

    model = openvino.Core().read_model(str(path))
    model.reshape([1, 3, height, width])
    return model


def _patches(training: str, scale: int) -> list[np.ndarray]:
    """Cut from the middle of the pictures of a set, in their order and from the first again."""
    found = []
    for pair in pairs(training, scale):
        top, left = ((n - PATCH) // 2 for n in pair.lr.shape[2:])
        if min(top, left) >= 0:
            found.append(pair.lr[:, :, top : top + PATCH, left : left + PATCH].numpy())
        if len(found) == PATCHES:
            break
    if not found:
        raise ValueError(f"{training} has no picture of {PATCH * scale} x {PATCH * scale} pixels.")
    return found


# What is printed and drawn ------------------------------------------------------------------------


def markdown(curve: Curve) -> str:
    """A table, best score first; what has no time stands below with its reason."""
    drawn = sorted(curve.points, key=lambda point: -point.psnr)
    lines = [
        [
            f"**{p.network}**" if p.timing.column == "packed" else p.network,
            p.form,
            f"{p.psnr:.2f}",
            f"{p.timing.best_ms:.1f} ({p.timing.median_ms:.1f})",
            "?" if p.timing.memory is None else f"{p.timing.memory / 1e6:.0f}",
        ]
        for p in drawn
        if p.timing.best_ms is not None
    ]
    heads = ["network", "form", f"PSNR-Y on {curve.data}, dB", "ms", "peak MB"]
    parts = [heading(curve.machine), title(curve), tables.markdown(heads, lines, aligned=True)]
    notes = [f"- {p.network}, {p.form}: {p.timing.note}" for p in drawn if p.timing.note]
    return "\n\n".join([*parts, "\n".join(notes)][: 3 + bool(notes)])


def title(curve: Curve) -> str:
    """What was timed, in a line."""
    threads = curve.points[0].timing.threads
    return (
        f"Enlarging {curve.size} x {curve.size} pixels {curve.scale} times, "
        f"{threads} thread{'s' * (threads > 1)}, best (median) of {curve.rounds}"
    )


def figure(curve: Curve, dark: bool = False) -> Figure:
    """PSNR over milliseconds. A QuantSR is a line through its depths; of another network a thin
    line goes from float32 to what its engine and we make of it.
    """
    from matplotlib.collections import LineCollection
    from matplotlib.figure import Figure

    paper, ink, faint = viewers.DARK if dark else viewers.LIGHT
    drawn = Figure(figsize=(9, 6.2), dpi=120, facecolor=paper)
    axes = drawn.subplots()
    timed = [p for p in curve.points if p.timing.best_ms is not None]
    own = dict.fromkeys(p.network for p in timed if p.timing.column == "packed")
    for name, (marker, shade) in zip(own, itertools.cycle(OWN_STYLES), strict=False):
        points = sorted((p for p in timed if p.network == name), key=lambda p: p.timing.ms)
        alone = points[0].form == PACKED
        at = [p.timing.ms for p in points], [p.psnr for p in points]
        (line,) = axes.plot(*at, marker=marker, color=shade, label=name, linewidth=2, zorder=3)
        line.set(marker="*" if alone else marker, markersize=16 if alone else 8)
        for p in points:
            _label(axes, p, name if alone else p.form, ink, (-8, 12) if alone else (4, -15))
    forms = zip(FORMS, (ORDINARY, COLLAPSED, SECOND), "^vD", strict=True)
    for form, colour, marker in forms:
        points = [p for p in timed if p.form == form]
        at = [p.timing.ms for p in points], [p.psnr for p in points]
        if points:
            says = form.replace("openvino-", "OpenVINO, ")
            axes.plot(*at, marker, color=colour, markersize=8, label=says)
    chains = _chains(timed)
    for name, points in chains.items():
        _label(axes, points[0], name, ink, (4, 8), rotation=70, rotation_mode="anchor")
    lines = [[(p.timing.ms, p.psnr) for p in points] for points in chains.values()]
    axes.add_collection(LineCollection(lines, colors=faint, linewidths=1, alpha=0.6, zorder=1))
    logarithmic(axes, [p.timing.ms for p in timed])
    axes.margins(y=0.1)
    low, high = axes.get_ylim()
    axes.set_ylim(low, high + 0.15 * (high - low))  # for the names of the best
    axes.tick_params(labelsize=11)
    axes.set_xlabel("ms (less is better)", color=ink, fontsize=12)
    axes.set_ylabel(f"PSNR-Y on {curve.data}, dB (more is better)", color=ink, fontsize=12)
    axes.set_title(title(curve), fontsize=12, loc="left", color=ink)
    axes.legend(
        loc="upper center", bbox_to_anchor=(0.46, -0.12), ncols=4,
        frameon=False, labelcolor=ink, fontsize=11,
    )  # fmt: skip
    dress(axes, paper, ink)
    drawn.tight_layout()
    return drawn


def _label(axes, p: Point, text: str, ink: str, shift: tuple[int, int], **options) -> None:
    at = (p.timing.ms, p.psnr)
    axes.annotate(text, at, shift, textcoords="offset points", fontsize=10, color=ink, **options)


def _chains(points: Sequence[Point]) -> dict[str, list[Point]]:
    """Of each network in an ONNX file its points, from float32 on, and at last those of packed
    networks that are named after it.
    """
    chains: dict[str, list[Point]] = {}
    for form in FORMS:
        for p in points:
            if p.form == form:
                chains.setdefault(p.network, []).append(p)
    for p in points:
        if p.form == PACKED:
            for name in chains:
                if p.network.startswith(name):
                    chains[name].append(p)
    return chains
