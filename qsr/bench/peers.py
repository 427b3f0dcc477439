"""The same network in other engines, so that "fast" means faster than what one could have.

A peer is an engine that runs the full-precision network of the same layout (srresnet or swinir_s),
or its 8-bit version: PyTorch, ONNX Runtime, OpenVINO, ncnn. None of them runs 4 or 2 bits. Each is
given what suits it: a static shape, its own file format, its own quantiser where it has one.
OpenVINO runs bfloat16 by its own choice where the processor has it, so that is a peer as well.

Two graphs. The ordinary one is what a user gets by exporting the network. `collapse_inside`
gives the other: upsampler and last convolution have no activation between them, so they are one 5x5
convolution and a pixel shuffle, at x4 a tenth of the products. That is a favour: no engine finds it
by itself. It ignores that the zero padding between the stages makes other weights within one pixel
(of the small picture) of the border, so this graph is for its time, not for its border.

ONNX files are those of `qsr export`, for pictures of one size. For ncnn a residual network is
written down as a list of `Node`s; PyTorch runs the network itself, and OpenVINO reads that. A Swin
network is timed in these two only. Weights are random: the time of a convolution does not depend on
them.
"""

from __future__ import annotations

import copy
import importlib.util
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..backbone import QuantSR
from ..config import NetworkConfig, SwinConfig
from ..export.onnx import onnx_model, walk

Runner = Callable[[np.ndarray], np.ndarray]  # float32 [1, 3, H, W] -> [1, 3, scale H, scale W]

# The graph ----------------------------------------------------------------------------------------


def collapse_inside(net: QuantSR) -> QuantSR:
    """A copy of a full-precision residual network whose tail is one 5x5 convolution and a shuffle.

    Equal to `net` but for the outermost pixel of the small picture. A tail is linear, so its
    weights are what it makes of a single 1: an impulse in each channel, less what it makes of 0.
    """
    features, scale = net.config.features, net.config.scale
    middle, size = 4, 9  # the tail reaches 2 pixels; nothing here comes near the border
    with torch.no_grad():
        impulses = torch.zeros(features + 1, features, size, size)
        impulses[torch.arange(features), torch.arange(features), middle, middle] = 1
        out = F.pixel_unshuffle(net.tail.cpu()(impulses), scale)
    bias = out[-1, :, middle, middle]
    # An output at offset d from the impulse used the weight at -d: the response, mirrored.
    response = (out[:-1] - out[-1:])[:, :, middle - 2 : middle + 3, middle - 2 : middle + 3]
    conv = nn.Conv2d(features, 3 * scale**2, 5, padding=2)
    conv.weight.data = response.flip(2, 3).transpose(0, 1).contiguous()
    conv.bias = nn.Parameter(bias)
    collapsed = copy.deepcopy(net)
    collapsed.tail = nn.Sequential(conv, nn.PixelShuffle(scale))
    return collapsed


NONE = torch.empty(0)  # the weights of a step that has none


@dataclass(frozen=True)
class Node:
    """One step of a residual network.

    inputs: numbers of earlier nodes; -1 is the picture.
    scale: weight * x + bias for each channel. conv: stride 1, padded to the same size, then ReLU if
    `relu`. add: the sum of two. shuffle: pixel shuffle by `factor`.
    """

    kind: Literal["scale", "conv", "add", "shuffle"]
    inputs: tuple[int, ...]
    weight: Tensor = NONE
    bias: Tensor = NONE
    relu: bool = False
    factor: int = 1


class _NodeSteps:
    """The steps of `walk` as nodes; values are their numbers."""

    def __init__(self) -> None:
        self.nodes: list[Node] = []

    def _append(self, *node, **options) -> int:
        self.nodes.append(Node(*node, **options))
        return len(self.nodes) - 1

    def scale(self, x: int, weight: Tensor, bias: Tensor | None = None) -> int:
        assert bias is not None  # only shortcuts that are learned have none
        return self._append("scale", (x,), weight.expand(len(bias)), bias)

    def conv(self, x: int, weight: Tensor, bias: Tensor, relu: bool = False) -> int:
        return self._append("conv", (x,), weight, bias, relu=relu)

    def add(self, a: int, b: int) -> int:
        return self._append("add", (a, b))

    def shuffle(self, x: int, factor: int) -> int:
        return self._append("shuffle", (x,), factor=factor)


def graph(net: QuantSR) -> list[Node]:
    """A full-precision residual network as nodes in the order of execution, the result last."""
    steps = _NodeSteps()
    walk(net, -1, steps)
    return steps.nodes


@torch.inference_mode()
def run_graph(nodes: Sequence[Node], x: Tensor) -> list[Tensor]:
    """The output of every node: what the writers must reproduce, and 8-bit ranges are read from."""
    out: list[Tensor] = []
    for node in nodes:
        first, *rest = (x if i < 0 else out[i] for i in node.inputs)
        if node.kind == "scale":
            y = first * node.weight.view(-1, 1, 1) + node.bias.view(-1, 1, 1)
        elif node.kind == "conv":
            y = F.conv2d(first, node.weight, node.bias, padding=node.weight.shape[-1] // 2)
            y = y.relu() if node.relu else y
        else:
            y = first + rest[0] if node.kind == "add" else F.pixel_shuffle(first, node.factor)
        out.append(y)
    return out


# ncnn ---------------------------------------------------------------------------------------------


def _name(nodes: Sequence[Node], number: int) -> str:
    """What files call the output of a node: "lr" goes in, "sr" comes out."""
    return "lr" if number < 0 else "sr" if number == len(nodes) - 1 else f"n{number}"


def write_ncnn(nodes: Sequence[Node], path: Path, ranges: Sequence[Tensor] | None = None) -> None:
    """Write the graph as path.param (text) and path.bin (numbers).

    ranges: what `run_graph` gave for a typical picture, for 8 bits: weights one scale per output
    channel, activations one per tensor, both from the largest magnitude. Between two convolutions
    in a row the codes stay 8 bits (ncnn's "requantise").
    """
    users = {i: [j for j, node in enumerate(nodes) if i in node.inputs] for i in range(len(nodes))}
    lines, numbers = ["Input lr 0 1 lr"], []
    blobs = 1
    copies: dict[int, list[str]] = {}  # a blob with several readers has to be split by hand

    def source(number: int) -> str:
        return copies[number].pop() if number in copies else _name(nodes, number)

    def step(number: int) -> float:
        """127 / the largest magnitude: what ncnn multiplies by to get codes."""
        assert ranges is not None
        return 127 / ranges[number].abs().max().item()

    for i, node in enumerate(nodes):
        sources = " ".join(source(j) for j in node.inputs)
        head = f"{i} {len(node.inputs)} 1 {sources} {_name(nodes, i)}"
        if node.kind == "scale":
            lines.append(f"Scale s{head} 0=3 1=1")
            numbers += [node.weight, node.bias]
        elif node.kind == "conv":
            outputs, _, taps, _ = node.weight.shape
            options = f"0={outputs} 1={taps} 4={taps // 2} 5=1 6={node.weight.numel()}"
            options += " 9=1" * node.relu
            if ranges is None:
                numbers += [torch.zeros(1), node.weight, node.bias]  # 0: float32 follows
            else:
                requantise = len(users[i]) == 1 and nodes[users[i][0]].kind == "conv"
                options += " 8=101" if requantise else " 8=1"
                scales = 127 / node.weight.abs().amax(dim=(1, 2, 3))
                codes = (node.weight * scales.view(-1, 1, 1, 1)).round().to(torch.int8).flatten()
                tag = torch.tensor([0x000D4B38], dtype=torch.int32)  # 8-bit codes follow
                numbers += [tag, F.pad(codes, (0, -len(codes) % 4)), node.bias, scales]
                numbers.append(torch.tensor([step(node.inputs[0])]))
                if requantise:
                    numbers.append(torch.tensor([step(i)]))
            lines.append(f"Convolution c{head} {options}")
        elif node.kind == "add":
            lines.append(f"BinaryOp a{head} 0=0")
        else:
            lines.append(f"PixelShuffle p{head} 0={node.factor}")
        blobs += 1
        if len(users[i]) > 1:
            copies[i] = [f"n{i}_{k}" for k in range(len(users[i]))]
            lines.append(f"Split d{i} 1 {len(copies[i])} n{i} {' '.join(copies[i])}")
            blobs += len(copies[i])
    text = "\n".join(["7767517", f"{len(lines)} {blobs}", *lines, ""])
    path.with_suffix(".param").write_text(text)
    raw = b"".join(tensor.contiguous().numpy().tobytes() for tensor in numbers)
    path.with_suffix(".bin").write_bytes(raw)


# Peers --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Task:
    """What a peer is asked to run, and the folder where it keeps its files.

    config: of a full-precision network. picture: float32 [1, 3, H, W] in [0, 1]; 8-bit ranges are
    read from it.
    """

    config: NetworkConfig
    collapsed: bool
    picture: np.ndarray
    folder: Path

    def network(self) -> QuantSR:
        """The network; the same weights wherever it is made."""
        with torch.random.fork_rng(devices=()):
            torch.manual_seed(0)
            net = QuantSR(self.config).eval().requires_grad_(False)
        return collapse_inside(net) if self.collapsed else net

    def file(self, name: str) -> Path:
        return self.folder / f"{'collapsed' if self.collapsed else 'ordinary'}-{name}"

    @property
    def swin(self) -> bool:
        return self.config.family == "swin"


def float_config(config: NetworkConfig, blocks: int | None = None) -> NetworkConfig:
    """The full-precision configuration with the layout of a quantised one at a depth."""
    blocks = config.blocks if blocks is None else blocks
    plain = replace(
        config, blocks=blocks, depths=(blocks,), bits=None, learnable_shortcuts=False, dropped=()
    )
    return replace(plain, attention_bits=None) if isinstance(plain, SwinConfig) else plain


def _nothing(task: Task) -> None:
    pass


def _open_torch(task: Task, threads: int, how: str = "eager") -> Runner:
    """how: "eager", "compile" or "channels-last"."""
    torch.set_num_threads(threads)
    last = how == "channels-last"
    memory_format = torch.channels_last if last else torch.contiguous_format
    net = task.network()
    net.to(memory_format=memory_format)  # type: ignore[call-overload]  # torch's types lack it
    call = torch.compile(net) if how == "compile" else net

    def run(picture: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            lr = torch.from_numpy(picture).contiguous(memory_format=memory_format)
            return call(lr).contiguous().numpy()

    return run


def _write_onnx_float(task: Task, name: str = "fp32.onnx") -> Path:
    made = onnx_model(task.network(), size=task.picture.shape[2:])
    task.file(name).write_bytes(made.SerializeToString())
    return task.file(name)


def _write_onnx_int8(task: Task) -> None:
    """ONNX Runtime's own static quantisation: 8-bit codes, unsigned activations, weights signed
    and by output channel."""
    from onnxruntime.quantization import CalibrationDataReader, QuantType, quantize_static

    class Once(CalibrationDataReader):
        pictures = iter([{"lr": task.picture}])

        def get_next(self):
            return next(self.pictures, None)

    quantize_static(
        str(_write_onnx_float(task, "source.onnx")),
        str(task.file("int8.onnx")),
        Once(),
        per_channel=True,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
    )


def _open_onnx(task: Task, threads: int, name: str) -> Runner:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    # Between its runs it must not keep a core busy that another contender is timed on.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    session = onnxruntime.InferenceSession(str(task.file(name)), options, ["CPUExecutionProvider"])
    return lambda picture: session.run(None, {"lr": picture})[0]


def _write_openvino_float(task: Task) -> None:
    import openvino

    openvino.save_model(_openvino_model(task), task.file("fp32.xml"), compress_to_fp16=False)


def _write_openvino_int8(task: Task) -> None:
    """NNCF, OpenVINO's quantiser; for a Swin network by its rules for transformers."""
    import nncf
    import openvino

    kind = nncf.ModelType.TRANSFORMER if task.swin else None
    pictures = nncf.Dataset([task.picture])
    model = nncf.quantize(_openvino_model(task), pictures, subset_size=1, model_type=kind)
    openvino.save_model(model, task.file("int8.xml"), compress_to_fp16=False)


def _openvino_model(task: Task):
    import openvino

    example = torch.from_numpy(task.picture)
    return openvino.convert_model(
        task.network(), example_input=example, input=list(task.picture.shape)
    )


def _open_openvino(task: Task, threads: int, name: str, precision: str | None = None) -> Runner:
    return compile_openvino(str(task.file(name)), threads, precision)


def compile_openvino(model, threads: int, precision: str | None = None) -> Runner:
    """model: a file, or OpenVINO's own object. precision: of what is not 8 bits; None leaves it to
    OpenVINO.
    """
    import openvino

    core = openvino.Core()
    if precision == "bf16" and "BF16" not in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        raise ValueError("this processor has no bfloat16 arithmetic")
    options = {"INFERENCE_NUM_THREADS": threads, "PERFORMANCE_HINT": "LATENCY"}
    if precision is not None:
        options["INFERENCE_PRECISION_HINT"] = precision
    compiled = core.compile_model(model, "CPU", options)
    request = compiled.create_infer_request()
    return lambda picture: request.infer({0: picture}, share_inputs=True)[compiled.output(0)]


def _write_ncnn_float(task: Task) -> None:
    write_ncnn(graph(task.network()), task.file("fp32.param"))


def _write_ncnn_int8(task: Task) -> None:
    nodes = graph(task.network())
    ranges = run_graph(nodes, torch.from_numpy(task.picture))
    write_ncnn(nodes, task.file("int8.param"), ranges)


def _open_ncnn(task: Task, threads: int, name: str) -> Runner:
    import ncnn

    path, net = task.file(name), ncnn.Net()
    net.opt.num_threads = threads
    if net.load_param(str(path)) or net.load_model(str(path.with_suffix(".bin"))):
        raise ValueError(f"ncnn does not read {path.name}")

    def run(picture: np.ndarray) -> np.ndarray:
        extractor = net.create_extractor()
        extractor.input("lr", ncnn.Mat(picture[0]).clone())  # ncnn wants memory of its own
        return np.array(extractor.extract("sr")[1])[None]

    return run


@dataclass(frozen=True)
class Peer:
    """An engine and a number format.

    needs: modules that must be installed. exact: float32, so it must agree with PyTorch to 1e-3.
    write: makes its files, once. open: loads them in the process that runs them.
    """

    name: str
    needs: tuple[str, ...]
    exact: bool
    write: Callable[[Task], object]
    open: Callable[[Task, int], Runner]
    swin: bool = False  # also runs Swin networks

    @property
    def missing(self) -> tuple[str, ...]:
        """Which modules are not installed."""
        return tuple(name for name in self.needs if importlib.util.find_spec(name) is None)


_ONNX, _OPENVINO = ("onnx", "onnxruntime"), ("openvino",)
PEERS = (
    Peer("pytorch", (), True, _nothing, _open_torch, swin=True),
    Peer("pytorch-channels-last", (), True, _nothing,
         partial(_open_torch, how="channels-last"), swin=True),
    Peer("pytorch-compile", (), True, _nothing, partial(_open_torch, how="compile"), swin=True),
    Peer("onnxruntime-fp32", _ONNX, True, _write_onnx_float, partial(_open_onnx, name="fp32.onnx")),
    Peer("onnxruntime-int8", _ONNX, False, _write_onnx_int8, partial(_open_onnx, name="int8.onnx")),
    Peer("openvino-fp32", _OPENVINO, True, _write_openvino_float,
         partial(_open_openvino, name="fp32.xml", precision="f32"), swin=True),
    Peer("openvino-bf16", _OPENVINO, False, _write_openvino_float,
         partial(_open_openvino, name="fp32.xml", precision="bf16"), swin=True),
    Peer("openvino-int8", (*_OPENVINO, "nncf"), False, _write_openvino_int8,
         partial(_open_openvino, name="int8.xml"), swin=True),
    Peer("ncnn-fp32", ("ncnn",), True, _write_ncnn_float, partial(_open_ncnn, name="fp32.param")),
    Peer("ncnn-int8", ("ncnn",), False, _write_ncnn_int8, partial(_open_ncnn, name="int8.param")),
)  # fmt: skip
