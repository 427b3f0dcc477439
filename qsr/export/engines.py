"""An ONNX file in the engines of others: which of them compute what qsr computes.

An engine rewrites the graph that it reads, and may do so wrongly: OpenVINO 2026.4 gives all
channels the tau of the first where an Add per channel, a Clip and a quantiser follow each other
(docs/upstream-openvino.md). So a file is tried in every engine that is installed before it is
written.

How near is near enough? Engines sum floats in another order than qsr, a value that lies on a
threshold within its last bits may get the neighbouring code, and a deep network of 4 bits makes
50 dB of that. The yardstick is therefore the network itself: how far its own picture moves when the
one it is given is moved by a rounding. Right engines are as near as that or nearer; in the models
of the package OpenVINO's fault was 9 to 15 dB farther.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import cast

import numpy as np
import torch
from torch import Tensor, nn

from ..images.data import photo
from ..images.resize import imresize
from ..infer import Model
from ..integer.packing import PackedModel
from ..system.errors import first_line

SIZES = ((1, 1), (7, 13), (61, 45))  # (height, width) that a file is tried on
ROUNDING = 2.0**-22  # the most by which the yardstick moves a value, relative to it
MARGIN = 6.0  # dB: four times the squared error of the yardstick
NEAR = 60.0  # dB: what is nearer than this is right, whatever the yardstick says

Run = Callable[[np.ndarray], np.ndarray]  # float32 [N, 3, H, W] -> [N, 3, scale H, scale W]


# Engines ------------------------------------------------------------------------------------------


def _open_onnxruntime(path: str) -> Run:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 4  # what it says is raised as well
    session = onnxruntime.InferenceSession(path, options, ["CPUExecutionProvider"])
    return lambda lr: session.run(None, {"lr": lr})[0]


def _open_openvino(path: str, options: dict[str, str]) -> Run:
    import openvino

    threads = {"INFERENCE_NUM_THREADS": torch.get_num_threads()}
    model = openvino.Core().compile_model(path, "CPU", {**options, **threads})
    return lambda lr: model(lr)[model.output(0)]


def _open_openvino_exact(path: str) -> Run:
    # Not the precision alone: "ACCURACY" also keeps it from rounding inputs of linear layers.
    return _open_openvino(path, {"EXECUTION_MODE_HINT": "ACCURACY"})


def _open_openvino_default(path: str) -> Run:
    return _open_openvino(path, {})


def _open_ncnn(path: str) -> Run:
    """By pnnx, its converter, which writes beside the file: in a folder of its own, then."""
    import ncnn
    import pnnx

    net = ncnn.Net()
    net.opt.num_threads = torch.get_num_threads()
    net.opt.use_fp16_packed = net.opt.use_fp16_storage = net.opt.use_fp16_arithmetic = False
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "m.onnx"
        source.write_bytes(Path(path).read_bytes())
        command = [pnnx.EXEC_PATH, source.name, "inputshape=[1,3,8,8]", "fp16=0"]
        # ncnn speaks of what it can't read on stderr, but with these calls its answer is enough.
        done = subprocess.run(command, cwd=folder, capture_output=True, timeout=300)
        made = source.with_suffix(".ncnn.param"), source.with_suffix(".ncnn.bin")
        if done.returncode or not all(file.exists() for file in made):
            raise ValueError("its converter, pnnx, does not read the file")
        unknown = {line.split()[0] for line in made[0].read_text().splitlines()[2:]}
        unknown = {name for name in unknown if "." in name}  # as pnnx calls what ncnn has not
        if unknown:
            raise ValueError(f"it has no layer for {', '.join(sorted(unknown))}")
        if net.load_param(str(made[0])) or net.load_model(str(made[1])):
            raise ValueError("it does not read what its converter wrote")

    def one(lr: np.ndarray) -> np.ndarray:
        extractor = net.create_extractor()
        lr = np.ascontiguousarray(lr)  # a name, or its memory is gone before it is copied
        extractor.input("in0", ncnn.Mat(lr).clone())
        return np.array(extractor.extract("out0")[1])

    return lambda lr: np.stack([one(picture) for picture in lr])


@dataclass(frozen=True)
class Engine:
    """One that runs ONNX files.

    needs: packages. exact: it is asked for float32, so that it has to be right.
    open: the path of a file -> what runs it; raises whatever it likes.
    """

    name: str
    needs: tuple[str, ...]
    exact: bool
    open: Callable[[str], Run]

    @property
    def installed(self) -> bool:
        return all(importlib.util.find_spec(name) is not None for name in self.needs)


ENGINES = (
    Engine("onnxruntime", ("onnxruntime",), True, _open_onnxruntime),
    Engine("openvino", ("openvino",), True, _open_openvino_exact),
    Engine("openvino by default", ("openvino",), False, _open_openvino_default),
    Engine("ncnn", ("ncnn", "pnnx"), True, _open_ncnn),
)


# Comparison ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Match:
    """How two engines, one of which may be "qsr", differ on pictures of height x width.

    psnr: of the difference, in dB over RGB, peak 1, nothing rounded (inf: equal); largest: the
    largest difference of a value; levels: that of the 8-bit pictures, of 255.
    """

    engines: tuple[str, str]
    height: int
    width: int
    psnr: float
    largest: float
    levels: int

    def __str__(self) -> str:
        return f"{self.height}x{self.width} {self.psnr:.1f} dB, {self.levels} levels"


@dataclass(frozen=True)
class Comparison:
    """What `compare` found.

    matches: each engine beside qsr, and each two that were asked for float32, at each size; differ:
    a line for each engine that is not right; unread: a line for each that can't run the file;
    missing: those that are not installed.
    """

    matches: tuple[Match, ...] = ()
    differ: tuple[str, ...] = ()
    unread: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()

    def lines(self) -> list[str]:
        """A line for each two engines, then what else there is to say."""
        pairs: dict[tuple[str, str], list[str]] = {}
        for match in self.matches:
            pairs.setdefault(match.engines, []).append(str(match))
        agreed = [f"{a} and {b}: {'; '.join(sizes)}" for (a, b), sizes in pairs.items()]
        missing = (
            [f"not compared, not installed: {', '.join(self.missing)}"] if self.missing else []
        )
        return [*agreed, *self.unread, *missing]


@torch.no_grad()
def compare(path: str | os.PathLike, model: Model, blocks: int | None = None) -> Comparison:
    """Run an ONNX file in every engine that is installed, on the CPU, beside its network.

    Pictures: for each of SIZES three at once, a crop of a photograph and two mirror images of it.
    Raises ValueError if onnxruntime is not installed or can't open the file.
    """
    require("onnxruntime")
    runs: dict[str, Run] = {}
    unread: list[str] = []
    for engine in (engine for engine in ENGINES if engine.installed):
        try:
            runs[engine.name] = engine.open(str(path))
        except Exception as error:  # their errors have no base of their own
            if engine.name == "onnxruntime":
                import onnxruntime

                raise ValueError(
                    f"onnxruntime {onnxruntime.__version__} can't open the file "
                    f"({first_line(error)}); this needs 1.23 or newer."
                ) from error
            unread.append(f"{engine.name} can't run the file: {first_line(error)}")

    def ours(lr: Tensor) -> Tensor:
        depth = blocks if isinstance(model, PackedModel) else model.plan(blocks)
        return cast(nn.Module, model)(lr.to(mean), depth).cpu()

    exact = {engine.name for engine in ENGINES if engine.exact and engine.name in runs}
    mean = (model.network if isinstance(model, PackedModel) else model).mean
    photograph = imresize(photo().rgb, 1 / model.config.scale).float()
    matches: list[Match] = []
    for height, width in SIZES:
        lr = photograph[:, :, 8 : 8 + height, 40 : 40 + width]
        lr = torch.cat([lr, lr.flip(3), lr.flip(2)])
        pictures = {"qsr": ours(lr)}
        for name, run in runs.items():
            pictures[name] = torch.from_numpy(run(lr.numpy()))
        for a, b in combinations(pictures, 2):
            if a == "qsr" or {a, b} <= exact:
                matches.append(_match((b, a), lr, pictures[a], pictures[b]))
    moved = torch.rand(lr.shape, generator=torch.Generator().manual_seed(0)) * 2 - 1
    yardstick = _match(("qsr", "qsr"), lr, pictures["qsr"], ours(lr * (1 + moved * ROUNDING)))
    limit = min(yardstick.psnr - MARGIN, NEAR)
    differ = []
    for name in (engine.name for engine in ENGINES if engine.name in exact):
        own = [match for match in matches if match.engines == (name, "qsr")]
        worst = min(own, key=lambda match: match.psnr)
        if not worst.psnr >= limit:
            differ.append(
                f"{name} and qsr differ too much ({worst}); float sums in another order "
                f"make at most {limit:.1f} dB of this network."
            )
    missing = tuple(
        f"{engine.name} (pip install {' '.join(engine.needs)})"
        for engine in ENGINES
        if engine.exact and not engine.installed
    )
    return Comparison(tuple(matches), tuple(differ), tuple(unread), missing)


def _match(engines: tuple[str, str], lr: Tensor, x: Tensor, y: Tensor) -> Match:
    """x, y: what the two made of lr, in whichever order."""
    difference = x.double() - y.double()
    psnr = -10 * difference.square().mean().log10().item()
    levels = (x.clamp(0, 1) * 255).round() - (y.clamp(0, 1) * 255).round()
    largest = difference.abs().max().item(), int(levels.abs().max())
    height, width = lr.shape[2:]
    return Match(engines, height, width, psnr, *largest)


def require(package: str) -> None:
    """Raise ValueError if a package is not installed."""
    if importlib.util.find_spec(package) is None:
        raise ValueError(f"{package} is not installed; pip install -e '.[onnx]' in a clone of qsr.")
