"""What the stages of `make gpu` do, each in a process of its own (see `gpu`): lines, as they come.

    python -m qsr.bench.gpu_stages OUT check --device cuda

A stage goes through its parts whatever became of the one before: on a machine that nobody has seen,
what an operator raises is a result too.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..backbone import QuantSR
from ..calibration import calibrate
from ..config import NetworkConfig, quantsr_c, srresnet
from ..images.data import PICTURES, Patches
from ..integer import kernels
from ..quantizer import RLQ, FakeQuantize, PhiSlope, Quantizer, QuantSpec, phi_slope
from ..schedule import TrainConfig
from ..system import fused, graphs, native
from ..system.errors import first_line
from ..train import Stage, make_optimizer

TESTS = Path(__file__).parents[2] / "tests"
WAYS = ("eager plain", "eager fused", "graph plain", "graph fused")
NET = "quantsr-c-x4-w4a4, joint"  # whose times choose among them
MODULES = ("triton", "numpy", "PIL", "safetensors", "tqdm", "filelock", "pybind11")

Lines = Iterator[dict[str, Any]]


class PlainRLQ(RLQ):
    """RLQ whose slope is a function that the fused kernels do not know."""

    def slope(self, u: Tensor) -> Tensor:  # type: ignore[override]  # see `Quantizer.slope`
        """phi'(u), the same values."""
        return phi_slope(u, self.sharpness)


def write(out: Path, line: dict) -> None:
    """Add a line to the report, and print it."""
    with (out / "gpu.jsonl").open("a") as file:
        file.write(json.dumps(line) + "\n")
    print(json.dumps(line), flush=True)


def build(device: str, tiny: bool) -> Lines:
    """What machine this is, and what of the native code there is."""
    found = {name: importlib.util.find_spec(name) is not None for name in MODULES}
    card = torch.cuda.get_device_name() if device == "cuda" else platform.processor() or "CPU"
    yield {
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "cuda": torch.version.cuda,
        "card": card,
        "nvcc": shutil.which("nvcc") or "missing: CUDA operators run as the reference",
        "missing": [name for name, there in found.items() if not there],
    }
    status = native.load()
    yield {"native": status.how, "cuda_operators": status.cuda or "none", "reason": status.reason}


def tests(device: str, tiny: bool) -> Lines:
    """The tests that need a GPU, if pytest is here."""
    if any(importlib.util.find_spec(name) is None for name in ("pytest", "hypothesis")):
        yield {"skipped": "no pytest or no hypothesis here"}
        return
    if not TESTS.is_dir():
        yield {"skipped": "no tests beside this package; run from a clone"}
        return
    # Not all files: others may need packages that are missing here.
    marked = [path for path in TESTS.glob("test_*.py") if "pytest.mark.cuda" in path.read_text()]
    files = [str(path) for path in sorted(marked) if not tiny or path.name == "test_data.py"]
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", "cuda", *files]
    code = subprocess.run(command).returncode
    yield {"pytest": code, **({"error": "tests failed"} if code else {})}


def check(device: str, tiny: bool) -> Lines:
    """Fast versions against their definitions: whether they agree, and how long they take."""
    for name, function in {"fused": _check_fused, "packed": _check_packed}.items():
        try:
            yield from function(device, tiny)
        except Exception as error:  # what a kernel raises on a new machine is the result
            yield {"check": name, "error": first_line(error)}


def _check_fused(device: str, tiny: bool) -> Lines:
    generator = torch.Generator().manual_seed(0)
    shape = (2, 8, 12, 12) if tiny else (16, 64, 48, 48)
    x = (20 * torch.randn(shape, generator=generator)).to(device)
    x = x.to(memory_format=torch.channels_last)
    step = torch.tensor(5.0, device=device)
    tau = torch.randn(1, shape[1], 1, 1, generator=generator).to(device)
    if not fused.fuses(x, step, tau):
        yield {"check": "fused", "skipped": "no fused kernels for this device"}
        return
    for codes in (None, torch.bfloat16):
        found, times = [], []
        for version in (FakeQuantize, fused.FusedForPhi):
            inputs = [t.clone().requires_grad_() for t in (x, step, tau)]

            def both(version=version, inputs=inputs, codes=codes) -> list[Tensor]:
                y = version.apply(*inputs, -8, 7, PhiSlope(1.0), codes)
                return [y.detach(), *torch.autograd.grad(y, inputs, torch.ones_like(y))]

            found.append(both())
            times.append(_ms(both, device, tiny))
        (y, *grads), (z, *others) = found
        apart = [
            ((a - b).abs().max() / a.abs().max()).item() for a, b in zip(grads, others, strict=True)
        ]
        names = ("x", "step", "tau")
        yield {
            "check": "fused codes" if codes else "fused values",
            "agrees": torch.equal(y, z) and max(apart) < 1e-4,
            "largest_gradient_difference": dict(zip(names, apart, strict=True)),
            "plain_ms": times[0],
            "fused_ms": times[1],
        }


def _check_packed(device: str, tiny: bool) -> Lines:
    generator = torch.Generator().manual_seed(0)
    spec = QuantSpec(4)

    def codes(*shape: int) -> Tensor:
        drawn = torch.randint(spec.qmin, spec.qmax + 1, shape, generator=generator)
        return drawn.to(spec.dtype)

    side = 8 if tiny else 256
    layers: dict[str, tuple[Callable[..., Tensor], tuple, tuple, dict]] = {
        "conv2d": (kernels.conv2d, (1, side, side, 64), (64, 3, 3, 64), {"padding": 1}),
        "linear": (kernels.linear, (side * side, 1, 1, 64), (64, 1, 1, 64), {}),
    }
    for name, (operator, a_shape, w_shape, more) in layers.items():
        operands = [codes(*shape) for shape in (a_shape, w_shape)]
        here, there = (
            [kernels.pack_codes(x.to(where), bits=4, signed=True) for x in operands]
            for where in ("cpu", device)
        )
        expected = operator(*here, **more, kernel="reference")
        yield _packed(name, device, tiny, expected, operator, there, more, exact=True)
    windows = 2 if tiny else 1024
    qkv = torch.randn(windows, 64, 180, generator=generator)
    steps = torch.tensor([0.1, 0.1, 0.02, 0.1])
    bias = torch.randn(6, 64, 64, generator=generator)
    options: dict[str, Any] = {"heads": 6, "bits": [4] * 4, "signed": [True, True, False, True]}
    expected = kernels.attention(qkv, steps, bias, None, **options, kernel="reference")
    moved = [qkv.to(device), steps.to(device), bias.to(device), None]
    # The exponential of a GPU may differ in its last bit.
    yield _packed(
        "attention",
        device,
        tiny,
        expected,
        kernels.attention,
        moved,
        options,
        exact=device == "cpu",
    )


def _packed(
    name: str, device: str, tiny: bool, expected: Tensor, operator: Callable, inputs: list,
    options: dict, exact: bool,
) -> dict:  # fmt: skip
    found = operator(*inputs, **options)
    apart = (found.cpu() - expected).abs().max().item()
    agrees = apart == 0 if exact else apart <= 2e-7 * expected.abs().max().item()
    return {
        "check": name,
        "kernels": kernels.available(name, device),
        "agrees": agrees,
        "largest_difference": apart,
        "ms": _ms(lambda: operator(*inputs, **options), device, tiny),
    }


def speed(device: str, tiny: bool) -> Lines:
    """Milliseconds of a training step. The ways agree if their losses after some steps do."""
    small: dict[str, Any] = {"blocks": 2, "features": 8} if tiny else {}
    nets: dict[str, NetworkConfig] = {
        "srresnet-x4": srresnet(4, **small),
        NET: quantsr_c(4, 4, **small),
    }
    data = Patches(PICTURES, 4, *((8, 2) if tiny else (48, 16)), device=device)
    for name, config in nets.items():
        first = None  # loss
        for way in WAYS:
            if config.bits is None and way.endswith("fused"):
                continue  # nothing to fuse
            try:
                line = {"net": name, "way": way, **_time_steps(config, way, data, device, tiny)}
                first = line["loss"] if first is None else first
                yield {**line, "agrees": abs(line["loss"] - first) <= 0.01 * first}
            except Exception as error:
                yield {"net": name, "way": way, "error": first_line(error)}


def _time_steps(
    config: NetworkConfig, way: str, data: Patches, device: str, tiny: bool
) -> dict[str, Any]:
    torch.manual_seed(0)
    net = QuantSR(config).to(device)
    net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch's types lack it
    if config.bits is not None:
        calibrate(net, data.batch(0)[0])
    if way.endswith("plain"):
        for module in net.modules():
            if isinstance(module, Quantizer):
                module.__class__ = PlainRLQ
    options = TrainConfig(precision="bfloat16")
    stage = Stage(net, make_optimizer(net, options), options)
    stage.prepare(0)
    drawn = data.draw(0).to(device)
    told: list[str] = []

    def function() -> Tensor:
        return stage(*data.cut(drawn))

    step: Callable[[], Tensor] = function
    if way.startswith("graph"):
        step = graphs.recorded(function, torch.device(device), told.append)
    for _ in range(graphs.FIRST + 2):
        row = step()
    loss = {"loss": stage.told(row.tolist())["loss"]}
    memory = {"memory_gb": torch.cuda.max_memory_allocated() / 1e9} if device == "cuda" else {}
    return {"ms": _ms(step, device, tiny, 10), **loss, **memory, "told": told}


def _ms(function: Callable[[], object], device: str, tiny: bool, count: int = 50) -> float:
    """Milliseconds of a call, the best of three times `count`."""
    wait = torch.cuda.synchronize if device == "cuda" else lambda: None
    best, count = float("inf"), 2 if tiny else count
    function()
    for _ in range(3):
        wait()
        began = time.perf_counter()
        for _ in range(count):
            function()
        wait()
        best = min(best, (time.perf_counter() - began) / count)
    return 1000 * best


STAGES = {"build": build, "tests": tests, "check": check, "speed": speed}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one stage; 1 if something failed or disagreed."""
    parser = argparse.ArgumentParser(prog="qsr.bench.gpu_stages")
    parser.add_argument("out", type=Path)
    parser.add_argument("stage", choices=STAGES)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--tiny", action="store_true", help="as fast as it goes, to rehearse")
    args = parser.parse_args(argv)
    failed = False
    for line in STAGES[args.stage](args.device, args.tiny):
        write(args.out, {"stage": args.stage, **line})
        failed |= "error" in line or line.get("agrees") is False
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
