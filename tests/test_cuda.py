"""The CUDA kernels: their arithmetic on the host, their device code through the compiler, and on a
GPU, where there is one, the operators themselves.
"""

import ctypes
import os
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from qsr.integer import kernels, reference
from qsr.quantizer import QuantSpec
from qsr.system import native

CSRC = native.CSRC
NVCC = shutil.which("nvcc")
needs_nvcc = pytest.mark.skipif(NVCC is None, reason="no CUDA toolkit: nvcc not found")
needs_gpu = pytest.mark.skipif(
    not torch.cuda.is_available() or not native.load().cuda, reason="no GPU, or no CUDA kernels"
)
KERNELS = ("cuda/conv2d.cu", "cuda/linear.cu", "cuda/attention.cu")


def planes(generator, *shape, bits, signed, fill="random", groups=1):
    """Packed codes [*shape]: random, or all the smallest or the largest code."""
    spec = QuantSpec(bits, signed)
    low, high = {
        "random": (spec.qmin, spec.qmax),
        "minimum": (spec.qmin, spec.qmin),
        "maximum": (spec.qmax, spec.qmax),
    }[fill]
    codes = torch.randint(low, high + 1, shape, generator=generator).to(spec.dtype)
    return kernels.pack_codes(codes, bits=bits, signed=signed, groups=groups)


@st.composite
def convolutions(draw):
    """Operands of any convolution, with its stride and padding."""
    g = torch.Generator().manual_seed(draw(st.integers(0, 2**20)))
    groups = draw(st.sampled_from([1, 1, 2]))
    channels = groups * draw(st.sampled_from([1, 3, 63, 64, 65, 256]))
    kernel = [draw(st.sampled_from([1, 2, 3, 5])) for _ in "hw"]
    stride = tuple(draw(st.integers(1, 3)) for _ in "hw")
    padding = tuple(draw(st.integers(0, 2)) for _ in "hw")
    size = [max(k - 2 * p, draw(st.integers(1, 7))) for k, p in zip(kernel, padding, strict=True)]
    kinds = [
        {"bits": draw(st.integers(1, 8)), "signed": draw(st.booleans()), "fill": fill}
        for fill in (draw(st.sampled_from(["random", "minimum", "maximum"])) for _ in "aw")
    ]
    a = planes(g, draw(st.integers(0, 2)), *size, channels, groups=groups, **kinds[0])
    w = planes(g, groups * draw(st.integers(1, 5)), *kernel, channels // groups, **kinds[1])
    return a, w, stride, padding


BITS = st.lists(st.integers(1, 8), min_size=4, max_size=4)
SIGNS = st.lists(st.booleans(), min_size=4, max_size=4)


def attention_case(windows, pixels, heads, width, masks, seed):
    g = torch.Generator().manual_seed(seed)
    qkv = torch.randn(windows, pixels, 3 * heads * width, generator=g)
    steps = torch.rand(4, generator=g) * 0.3 + 0.05
    bias = torch.randn(heads, pixels, pixels, generator=g)
    mask = -100.0 * torch.randint(0, 2, (masks, pixels, pixels), generator=g) if masks else None
    return qkv, steps, bias, mask


# On the host --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def host(tmp_path_factory):
    """What a thread computes, compiled for the processor."""
    compiler = shlex.split(os.environ.get("CXX", "c++"))
    if shutil.which(compiler[0]) is None:
        pytest.skip("no C++ compiler")
    library = tmp_path_factory.mktemp("cuda") / "host.so"
    source = Path(__file__).with_name("cuda_on_host.cpp")
    options = ["-O2", "-std=c++20", "-ffp-contract=off", "-Wall", "-Werror", "-fPIC", "-shared"]
    options.append(f"-I{CSRC}")
    subprocess.run([*compiler, *options, str(source), "-o", str(library)], check=True)
    return ctypes.CDLL(str(library))


def pointer(tensor):
    return ctypes.c_void_p(None if tensor is None else tensor.data_ptr())


def conv2d_on_host(host, a, w, stride, padding, linear=False):
    out = kernels.conv2d(a, w, stride, padding, kernel="reference")
    found = torch.full(out.shape, -(2**30), dtype=out.dtype)
    n, height, width, groups, a_bits, words = a.words.shape
    sizes = [n, height, width, groups, words, len(w.words), *w.words.shape[1:3], *out.shape[1:3]]
    sizes += [*stride, *padding, a_bits, w.words.shape[4], a.signed, w.signed]
    sizes = torch.tensor([int(size) for size in sizes])
    operands = [pointer(x) for x in (sizes, a.words, w.words)]
    host.conv2d_on_host(*operands, ctypes.c_bool(linear), pointer(found))
    return found, out


@settings(deadline=None, max_examples=150)
@given(case=convolutions())
def test_a_thread_of_the_convolution_computes_what_the_reference_says(host, case):
    found, expected = conv2d_on_host(host, *case)
    assert torch.equal(found, expected)


@pytest.mark.parametrize("channels", [1, 3, 63, 64, 65, 256])
def test_a_thread_of_the_linear_layer_computes_what_the_reference_says(host, channels):
    g = torch.Generator().manual_seed(channels)
    a = planes(g, 7, 1, 1, channels, bits=4, signed=False)
    w = planes(g, 5, 1, 1, channels, bits=3, signed=True)
    found, expected = conv2d_on_host(host, a, w, (1, 1), (0, 0), linear=True)
    assert torch.equal(found, expected)


@settings(deadline=None, max_examples=100)
@given(
    windows=st.integers(0, 3),
    pixels=st.sampled_from([1, 4, 16, 17, 64]),
    heads=st.sampled_from([1, 2, 6]),
    width=st.sampled_from([1, 6, 10, 17]),
    masked=st.booleans(),
    bits=BITS,
    signed=SIGNS,
    seed=st.integers(0, 2**20),
)
def test_the_threads_of_attention_compute_the_bits_of_the_reference(
    host, windows, pixels, heads, width, masked, bits, signed, seed
):
    masks = max(1, windows) if masked else 0
    qkv, steps, bias, mask = attention_case(windows, pixels, heads, width, masks, seed)
    expected = reference.attention(qkv, steps, bias, mask, heads, bits, signed)
    specs = [QuantSpec(b, s) for b, s in zip(bits, signed, strict=True)]
    ranges = torch.tensor([[x, s.qmin, s.qmax] for x, s in zip(steps, specs, strict=True)])
    codes = torch.empty(qkv.shape, dtype=torch.int16)
    probabilities = torch.empty(windows, heads, pixels, pixels, dtype=torch.int16)
    found = torch.full(expected.shape, torch.nan)
    sizes = torch.tensor([windows, pixels, heads, width, masks])
    tensors = (ranges, qkv, bias, mask, codes, probabilities, found)
    host.attention_on_host(pointer(sizes), ctypes.c_float(width**-0.5), *map(pointer, tensors))
    assert torch.equal(found, expected)


# Through the compiler -----------------------------------------------------------------------------


@needs_nvcc
@pytest.mark.parametrize("architecture", ["sm_75", "sm_80", "sm_90"])
def test_the_device_code_compiles_without_spilling_registers(tmp_path, architecture):
    for name in KERNELS:
        options = [*native.NVCC_FLAGS, f"-I{CSRC}", "-std=c++20", f"-arch={architecture}", "-cubin"]
        command = [NVCC, *options, "-Xptxas", "-v", str(CSRC / name), "-o", str(tmp_path / "x")]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        spills = re.findall(r"(\d+) bytes spill (?:stores|loads)", done.stderr)
        assert spills and set(spills) == {"0"}, f"{name}: {done.stderr}"


@needs_nvcc
def test_the_launcher_compiles_against_this_torch(tmp_path):
    include = Path(torch.__file__).parent / "include"
    options = ["-std=c++20", f"-I{include}", f"-I{CSRC}", native.TORCH_TARGET, "-DUSE_CUDA"]
    options += ["-arch=sm_90"]
    source = ["-x", "cu", "-c", str(CSRC / "torch" / "ops_cuda.cpp"), "-o", str(tmp_path / "ops.o")]
    done = subprocess.run(
        [NVCC, *native.NVCC_FLAGS, *options, *source], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


# On a GPU -----------------------------------------------------------------------------------------


def on_gpu(planes):
    return type(planes)(planes.words.cuda(), planes.signed, planes.channels)


@needs_gpu
@settings(deadline=None, max_examples=100)
@given(case=convolutions())
def test_the_gpu_convolves_as_the_reference(case):
    a, w, stride, padding = case
    expected = kernels.conv2d(a, w, stride, padding, kernel="reference")
    found = kernels.conv2d(on_gpu(a), on_gpu(w), stride, padding, kernel="cuda")
    assert torch.equal(found.cpu(), expected)


@needs_gpu
@pytest.mark.parametrize("masks", [0, 4])
def test_attention_on_the_gpu_is_within_one_unit_of_the_reference(masks):
    qkv, steps, bias, mask = attention_case(8, 64, 6, 10, masks, 0)
    options = {"heads": 6, "bits": [4] * 4, "signed": [True, True, False, True]}
    expected = kernels.attention(qkv, steps, bias, mask, **options, kernel="reference")
    tensors = [None if t is None else t.cuda() for t in (qkv, steps, bias, mask)]
    found = kernels.attention(*tensors, **options, kernel="cuda")
    torch.testing.assert_close(found.cpu(), expected, rtol=2e-7, atol=0)
