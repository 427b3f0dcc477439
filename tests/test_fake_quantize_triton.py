"""The kernels for the GPU, as far as they can be tested where there is none."""

import os
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from qsr.system.fused import _kernels, _triton_kernels

FLOATS = ("qmin", "qmax", "sharpness", "slope_scale")
SIZES = ("lanes", "length", "lane_stride", "stride", "steps", "channels")
needs_triton = pytest.mark.skipif(
    not find_spec("triton"), reason="needs Triton: pip install triton"
)


def test_importing_qsr_does_not_import_triton():
    source = "import sys, qsr; sys.exit('triton' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", source]).returncode == 0


def test_without_triton_or_on_a_gpu_too_old_for_it_the_definition_runs(monkeypatch):
    choose, gpu = _triton_kernels.__wrapped__, torch.device("cuda:0")
    assert _kernels(torch.device("meta")) is None
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert choose(gpu) is None
    monkeypatch.setattr("importlib.util.find_spec", lambda name: name)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (6, 1))
    assert choose(gpu) is None


def test_without_native_code_the_definition_runs_on_a_gpu_too(monkeypatch):
    monkeypatch.setenv("QSR_NATIVE", "off")
    assert _triton_kernels.__wrapped__(torch.device("cuda:0")) is None


@needs_triton
def test_a_tensor_on_a_gpu_gets_the_kernels_in_triton(monkeypatch):
    monkeypatch.delenv("QSR_NATIVE", raising=False)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    kernels = _triton_kernels.__wrapped__(torch.device("cuda:0"))
    assert kernels.__name__ == "qsr.system.fused_triton"


@needs_triton
@pytest.mark.slow
def test_in_tritons_interpreter_the_kernels_pass_the_tests_of_those_in_cpp():
    # A process of its own: Triton decides on import whether functions are compiled.
    tests = Path(__file__).with_name("test_fake_quantize.py")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", tests]
    done = subprocess.run(
        [*command, "-k", "not compiled and not threads"],  # the definition; C++
        env={**os.environ, "TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def compiled(kernel, x, step, tau, **constants):
    """The kernel as a launch on an H100 would have it: sizes 1 are constants, 16 n are known."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from qsr.system import fused_triton

    plan = fused_triton._plan(x, step, tau, 1, -8, 7)
    sizes = dict(zip(SIZES, plan.sizes, strict=True))
    constants |= {**plan.tile, **{name: 1 for name, size in sizes.items() if size == 1}}
    if tau is None:
        constants["tau"] = None
    signature, attributes = {}, {}
    for place, name in enumerate(kernel.arg_names):
        pointer = name not in (*FLOATS, *SIZES)
        signature[name] = "fp32" if name in FLOATS else "*fp32" if pointer else "i32"
        if constants["CODES"] and name == ("g" if "g" in kernel.arg_names else "y"):
            signature[name] = "*bf16"
        if name in constants:
            signature[name] = "constexpr"
        elif pointer or sizes.get(name, 1) % 16 == 0:
            attributes[place,] = [["tt.divisibility", 16]]
    source = ASTSource(kernel, signature, constants, attributes)
    target = GPUTarget("cuda", 90, 32)
    return triton.compile(source, target=target, options=fused_triton.OPTIONS)


@needs_triton
@pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") == "1", reason="nothing is compiled then")
@pytest.mark.parametrize("layout", ["in order", "channels last", "weights", "odd"])
@pytest.mark.parametrize("which", ["forward", "backward of LSQ", "backward of RLQ"])
@pytest.mark.parametrize("codes", [False, True], ids=["values", "codes in 16 bits"])
def test_the_kernels_compile_for_an_h100(layout, which, codes, tmp_path, monkeypatch):
    from triton import knobs

    from qsr.system import fused_triton

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    x, step, tau = torch.zeros(8, 64, 24, 24), torch.ones(()), torch.zeros(1, 64, 1, 1)
    if layout == "channels last":
        x = x.to(memory_format=torch.channels_last)
    elif layout == "weights":
        x, step, tau = torch.zeros(64, 64, 3, 3), torch.ones(64, 1, 1, 1), None
    elif layout == "odd":
        x, tau = torch.zeros(2, 3, 17, 19), torch.zeros(1, 3, 1, 1)
    if which == "forward":
        kernel = compiled(fused_triton._forward, x, step, tau, CODES=codes)
    else:
        straight = which == "backward of LSQ"
        kernel = compiled(fused_triton._backward, x, step, tau, STRAIGHT=straight, CODES=codes)

    ptx = kernel.asm["ptx"]
    assert "div.rn.f32" in ptx  # IEEE's, as PyTorch's
    assert ("div.full.f32" in ptx) == (which == "backward of RLQ")  # in the slope alone
    assert "0f4B400000" in ptx and "0fCB400000" in ptx  # rounds to even: + and - 1.5 * 2^23
    assert ".ftz" not in ptx and "fma" not in ptx and "atom" not in ptx
    assert ("ld.global.v4" in ptx and "st.global.v4" in ptx) == (layout != "odd")
    cubin = tmp_path / "kernel.cubin"
    cubin.write_bytes(kernel.asm["cubin"])
    usage = subprocess.check_output([knobs.nvidia.cuobjdump.path, "-res-usage", cubin], text=True)
    assert re.search(r"REG:\d+ STACK:0 .*LOCAL:0 ", usage), usage  # no register is spilled
