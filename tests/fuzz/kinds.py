"""What is fuzzed: `KINDS[name](folder)` gives a function that tries one case."""

from __future__ import annotations

import contextlib
import io
import json
import random
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn import functional as F

import qsr
from qsr.images import archive, picture, reading, writing
from qsr.images.formats import FORMATS
from qsr.integer import kernels
from qsr.models import file
from qsr.runs import checkpoints
from qsr.system.errors import first_line

Attempt = Callable[[random.Random], object]

NUMBERS = (
    0,
    1,
    -1,
    2,
    7,
    127,
    255,
    256,
    65535,
    65536,
    2**31 - 1,
    2**31,
    2**32,
    2**62,
    2**63,
    1e308,
)
TYPES = (torch.float64, torch.float16, torch.int8, torch.bool, torch.int64)
JUNK = (None, True, "", "x", [], {}, [0], [[]], 0.5, float("nan"), "9" * 400, *NUMBERS)


# Changes ------------------------------------------------------------------------------------------


def change_bytes(content: bytes, rng: random.Random) -> bytes:
    """`content` with one to four bytes or slices changed, lost, doubled or moved."""
    for _ in range(rng.randint(1, 4)):
        at = rng.randrange(len(content) + 1)
        length = rng.choice((1, 1, 2, 4, 8, 100, len(content)))
        part = content[at : at + length]
        new = rng.choice(
            (
                bytes(byte ^ 1 << rng.randrange(8) for byte in part),
                rng.randbytes(len(part)),
                b"",
                part + part,
                int(rng.choice(NUMBERS[:-1]) % 2**64).to_bytes(8, rng.choice(("big", "little")))[
                    :length
                ],
            )
        )
        content = content[:at] + new + content[at + length :]
    return content


def change_value(value: object, rng: random.Random) -> object:
    """A JSON value with something in it exchanged for another of its kind, or for junk."""
    if isinstance(value, dict) and value and rng.random() < 0.9:
        name = rng.choice(sorted(value))
        if rng.random() < 0.1:
            return {k: v for k, v in value.items() if k != name}
        return {**value, name: change_value(value[name], rng)}
    if isinstance(value, list) and value and rng.random() < 0.6:
        at = rng.randrange(len(value))
        new = [change_value(value[at], rng)] * rng.choice((0, 1, 1, 2, 1000))
        return value[:at] + new + value[at + 1 :]
    if isinstance(value, int) and rng.random() < 0.6:
        return rng.choice(
            (value + 1, value - 1, -value, value * rng.choice(NUMBERS[2:]), value * 64)
        )
    return rng.choice(JUNK)


def change_tensor(t: torch.Tensor, rng: random.Random) -> torch.Tensor:
    """A tensor with other values, or another shape or type."""
    flat = t.flatten()
    ways = (
        lambda: t * 0,
        lambda: -t,
        lambda: t + rng.choice(NUMBERS[:10]),
        lambda: t * rng.choice((float("nan"), float("inf"), 1e30, 1e-45)),
        lambda: t[None],
        lambda: flat[: rng.randint(0, len(flat))],
        lambda: torch.cat([flat, flat]),
        lambda: t.to(rng.choice(TYPES)),
        lambda: flat.view(torch.uint8),
        lambda: flat[rng.sample(range(len(flat)), len(flat))].view_as(t),
    )  # fmt: skip
    return rng.choice(ways)().contiguous()


# Kinds --------------------------------------------------------------------------------------------

NETWORKS = {
    "srresnet": qsr.srresnet(2, blocks=2, features=4),
    "quantsr_c": qsr.quantsr_c(4, (2, 4), blocks=3, features=4, per_channel=True),
    "quantsr_t": qsr.quantsr_t(
        2, attention_bits=4, quantizer="lsq", blocks=2, layers=2, heads=2, window=4, features=4
    ),
}
LR = torch.rand(1, 3, 5, 6, generator=torch.Generator().manual_seed(0))


def _network(name: str) -> qsr.QuantSR:
    torch.manual_seed(1)
    net = qsr.QuantSR(NETWORKS[name])
    qsr.calibrate(net, torch.rand(1, 3, 8, 8))
    return net.eval()


def models(folder: Path) -> Attempt:
    """.qsr files with changed descriptions and tensors and a checksum that fits, and raw bytes."""
    sources = []
    for name in NETWORKS:
        net = _network(name)
        kinds = [net] if net.config.bits is None else [net, qsr.pack(net)]
        for model in kinds:
            sources.append(folder / f"{name}-{len(sources)}.qsr")
            qsr.save(sources[-1], model, note="a note")
    changed = folder / "changed.qsr"

    def attempt(rng: random.Random) -> None:
        source = rng.choice(sources)
        metadata, tensors = file.describe(source), load_file(source)
        way = rng.choice(("config", "config", "tensor", "tensor", "metadata", "bytes"))
        if way == "bytes":
            changed.write_bytes(change_bytes(source.read_bytes(), rng))
        else:
            if way == "config":
                config = change_value(json.loads(metadata["config"]), rng)
                metadata["config"] = json.dumps(config)
            elif way == "metadata":
                name = rng.choice(sorted(metadata))
                metadata[name] = str(change_value(metadata[name], rng))
            else:
                name = rng.choice(sorted(tensors))
                tensors[name] = change_tensor(tensors[name], rng)
            metadata["sha256"] = file.digest(metadata, tensors)
            save_file(tensors, changed, metadata)
        model = file.load_model(changed)
        sr = qsr.upscale(LR, model)
        assert sr.shape == (1, 3, 5 * model.config.scale, 6 * model.config.scale)

    return attempt


class Small(nn.Module):
    """A network that somebody brings: float layers, packed ones, sizes and attention."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 12, 3, padding=1)
        self.body, self.norm = nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.attention = nn.MultiheadAttention(4, 2, batch_first=True)
        self.pool, self.gain = nn.MaxPool2d(2), nn.Parameter(torch.ones(1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = torch.relu(self.norm(self.body(self.first(x))))
        far = F.interpolate(self.pool(y), size=y.shape[2:], mode="bilinear")
        rows = y.flatten(2).transpose(1, 2)
        rows = self.attention(rows, rows, rows)[0].transpose(1, 2)
        y = self.gain * y + rows.reshape(-1, 4, x.shape[2], x.shape[3]) - far
        return F.pixel_shuffle(self.last(y), 2)


def networks(folder: Path) -> Attempt:
    """.qsr files of a network of somebody's own: with changed graphs, layers, plans and tensors."""
    torch.manual_seed(1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what stays in float
        net = qsr.quantize(Small(), 4, skip=["first"])
    qsr.calibrate(net, LR)
    source, changed = folder / "whole.qsr", folder / "changed.qsr"
    qsr.save(source, qsr.pack(net))
    whole = file.describe(source)

    def attempt(rng: random.Random) -> None:
        metadata, tensors = dict(whole), load_file(source)
        way = rng.choice(("graph", "graph", "graph", "layers", "plan", "tensor"))
        if way == "tensor":
            name = rng.choice(sorted(tensors))
            tensors[name] = change_tensor(tensors[name], rng)
        else:
            metadata[way] = json.dumps(change_value(json.loads(metadata[way]), rng))
        metadata["sha256"] = file.digest(metadata, tensors)
        save_file(tensors, changed, metadata)
        qsr.load(changed)(LR)

    return attempt


def pictures(folder: Path) -> Attempt:
    """Pictures of every format that is read, with changed bytes."""
    gradient = torch.arange(24 * 20 * 4).view(24, 20, 4).to(torch.uint8).numpy()
    whole = {}
    modes = ("RGB", "RGBA", "L", "LA", "P", "1", "I;16", "CMYK")
    for suffix in sorted(FORMATS):
        for mode in modes:
            out = io.BytesIO()
            image = Image.fromarray(gradient, "RGBA")
            try:
                image.convert("L" if mode == "I;16" else mode).save(
                    out, Image.registered_extensions()[suffix]
                )
            except (OSError, KeyError, ValueError):
                continue  # this format has no such pictures
            whole[f"{mode}{suffix}"] = out.getvalue()
    names = sorted(whole)

    def attempt(rng: random.Random) -> None:
        name = rng.choice(names)
        changed = (folder / "changed").with_suffix(Path(name).suffix)
        changed.write_bytes(change_bytes(whole[name], rng))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow's, of odd but readable files
            height, width = reading.size(changed)
            if height * width < 10_000_000:  # larger ones may take what they say
                writing.write(reading.read(changed), folder / "again.png", overwrite=True)

    return attempt


def archives(folder: Path) -> Attempt:
    """Files of `qsr data pack`: with a changed index, and with changed bytes."""
    for i in range(3):
        writing.write(
            picture.from_array((torch.rand(12, 9, 3) * 255).byte().numpy()), folder / f"{i}.png"
        )
    sources = [archive.Source(folder / f"{i}.png", "a set", "train") for i in range(3)]
    archive.write(folder / "whole.zip", sources)
    whole, changed = (folder / "whole.zip").read_bytes(), folder / "changed.zip"

    def attempt(rng: random.Random) -> None:
        if rng.random() < 0.5:
            changed.write_bytes(change_bytes(whole, rng))
        else:
            with zipfile.ZipFile(folder / "whole.zip") as old, zipfile.ZipFile(changed, "w") as new:
                for info in old.infolist():
                    content = old.read(info)
                    if info.filename == archive.INDEX:
                        content = json.dumps(change_value(json.loads(content), rng)).encode()
                    elif rng.random() < 0.2:
                        content = change_bytes(content, rng)
                    new.writestr(info, content)
        for source in archive.read(changed):
            reading.read(source.file)

    return attempt


def run_folders(folder: Path) -> Attempt:
    """Checkpoints of training with changed files."""
    net = _network("quantsr_c").train()
    optimizer = torch.optim.Adam(net.parameters())
    net(LR).mean().backward()
    optimizer.step()
    path = checkpoints.save_checkpoint(folder, net, optimizer, 1, qsr.TrainConfig(steps=3))
    whole = {file.name: file.read_bytes() for file in path.iterdir()}

    def attempt(rng: random.Random) -> None:
        name = rng.choice(sorted(whole))
        content = change_bytes(whole[name], rng)
        if name == "state.json" and rng.random() < 0.8:
            content = json.dumps(change_value(json.loads(whole[name]), rng)).encode()
        (path / name).write_bytes(content)
        try:
            again, state = checkpoints.load_checkpoint(path)
            checkpoints.load_optimizer(path, again, torch.optim.Adam(again.parameters()))
            again.train()(LR)
        finally:
            (path / name).write_bytes(whole[name])

    return attempt


class _Recorder:
    """Stands in for torch.ops.qsr_native, and remembers the calls of its operators."""

    def __init__(self, operators) -> None:
        self.operators = operators
        self.made: dict[str, list] = {}

    def __getattr__(self, name: str):
        def call(*args):
            copies = [a.detach().clone() if isinstance(a, torch.Tensor) else a for a in args]
            self.made.setdefault(name, []).append((getattr(self.operators, name), copies))
            return getattr(self.operators, name)(*args)

        return call


def _native_calls() -> list[list]:
    """Calls of each native operator, as networks make them: [(operator, arguments), ...]."""
    calls = _Recorder(torch.ops.qsr_native)
    with mock.patch.object(torch.ops, "qsr_native", calls):
        for name in ("quantsr_c", "quantsr_t"):
            net = _network(name)
            net.train()(LR).mean().backward()
            for kernel in ("auto", *kernels.available()):
                with contextlib.suppress(ValueError):  # not every kernel runs every layer
                    qsr.pack(net, kernel)(LR)
        codes = torch.randint(0, 16, (1, 3, 4, 70), dtype=torch.uint8)
        kernels.unpack_codes(kernels.pack_codes(codes, bits=4, signed=False))
        for x, layer in (
            (LR, qsr.QConv2d(3, 5, 3, bits=4, padding=1)),
            (LR.contiguous(memory_format=torch.channels_last), qsr.QConv2d(3, 3, 2, groups=3)),
            (LR, qsr.QLinear(6, 7)),
        ):
            qsr.calibrate(layer, x)
            qsr.pack(layer)(x)
        wide = qsr.QuantSR(qsr.quantsr_c(2, 4, blocks=2, features=64))
        qsr.calibrate(wide, LR)
        qsr.pack(wide)(LR)
    return [calls.made[name] for name in sorted(calls.made)]


def solid(t: torch.Tensor) -> torch.Tensor:
    """A contiguous copy, unless that would be the fuzzer's own gigabytes."""
    return t.contiguous() if t.numel() < 2**24 else t


def change_layout(t: torch.Tensor, rng: random.Random) -> torch.Tensor:
    """A tensor with other strides, sizes or dimensions, also without elements or far too large."""
    dims = t.dim() or 1
    t = t.reshape(t.shape or (1,))
    dim, other = rng.randrange(dims), rng.randrange(dims)
    longer = rng.choice((7, 1000, 2**40))
    ways = (
        lambda: t.transpose(dim, other),
        lambda: solid(t.transpose(dim, other)),
        lambda: t.narrow(dim, 0, rng.randint(0, t.shape[dim])),
        lambda: solid(t.narrow(dim, 0, rng.randint(0, t.shape[dim]))),
        lambda: t.narrow(dim, 0, 1).expand(*t.shape[:dim], longer, *t.shape[dim + 1 :]),
        lambda: torch.empty((*t.shape[:dim], 0, *t.shape[dim:]), dtype=t.dtype),
        lambda: torch.empty((2**40, *t.shape[:dim], 0, *t.shape[dim + 1 :]), dtype=t.dtype),
        lambda: t.squeeze(),
        lambda: t.unsqueeze(dim),
        lambda: t.flip(dim),
        lambda: t.to(torch.device("meta")),
    )  # fmt: skip
    return rng.choice(ways)()


def native(folder: Path) -> Attempt:
    """Native operators with other arguments than the library gives them."""
    calls = _native_calls()
    names = ["", "auto", "reference", "scalar", "\x00", "x" * 10_000, *kernels.available()]

    def change(value: object, rng: random.Random) -> object:
        if isinstance(value, torch.Tensor):
            return change_layout(value, rng) if rng.random() < 0.5 else change_tensor(value, rng)
        if isinstance(value, str):
            return rng.choice(names)
        if isinstance(value, list):
            return change_value(value, rng)
        if isinstance(value, bool) or value is None:
            return not value
        if isinstance(value, float):
            return rng.choice((0.0, -1.0, 1e-45, 1e308, float("nan"), float("inf")))
        return rng.choice((value + 1, value - 1, -value, value * 64, *NUMBERS[:-2]))

    def attempt(rng: random.Random) -> None:
        function, args = rng.choice(rng.choice(calls))
        args = [a.clone() if isinstance(a, torch.Tensor) else a for a in args]
        try:
            for _ in range(rng.randint(1, 3)):
                at = rng.randrange(len(args))
                args[at] = change(args[at], rng)
            function(*args)
        except (RuntimeError, TypeError, MemoryError) as error:  # how PyTorch refuses
            raise ValueError(first_line(error)) from error

    return attempt


KINDS: dict[str, Callable[[Path], Attempt]] = {
    "models": models,
    "networks": networks,
    "pictures": pictures,
    "archives": archives,
    "run_folders": run_folders,
    "native": native,
}
