"""The CUDA kernels: their arithmetic on the host, their device code through the compiler, and on a
GPU, where there is one, the operators themselves.
"""

import contextlib
import ctypes
import importlib.util
import itertools
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

from qsr.backbone import DepthPlan, QuantSR
from qsr.calibration import calibrate
from qsr.config import quantsr_c
from qsr.integer import kernels, reference
from qsr.integer.packed_layers import PackedConv2d
from qsr.integer.packing import pack
from qsr.integer.program_cuda import CudaProgram
from qsr.integer.residual import ResidualProgram
from qsr.quantizer import QuantSpec
from qsr.system import native

CSRC = native.CSRC


def cuda_tool(name):
    """Path of a program of the CUDA toolkit: installed, or from the packages of `qsr[cuda]`."""
    spec = importlib.util.find_spec("nvidia")
    folders = spec.submodule_search_locations if spec else ()
    packaged = [str(p) for folder in folders for p in Path(folder).glob(f"cu*/bin/{name}")]
    return next((p for p in [*packaged, shutil.which(name)] if p), None)


NVCC, NVDISASM = cuda_tool("nvcc"), cuda_tool("nvdisasm")
HINT = "pip install -e '.[cuda]' in a clone of qsr"
needs_nvcc = pytest.mark.skipif(NVCC is None, reason=f"no CUDA toolkit: nvcc not found; {HINT}")


def needs_gpu(test):
    there = torch.cuda.is_available() and native.load().cuda
    return pytest.mark.cuda(
        pytest.mark.skipif(not there, reason="no GPU, or no CUDA kernels")(test)
    )


KERNELS = [source for source in native.CUDA_SOURCES if source.endswith(".cu")]


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


# The tensor cores, emulated -----------------------------------------------------------------------


@pytest.mark.parametrize("matrix", "ABD")
def test_the_fragments_lie_as_cute_says(host, matrix):
    """An independent source: the strides of MMA_Traits<SM80_16x8x32_S32S8S8S32_TN> and of
    SM80_16x8_Row in cute/atom/mma_traits_sm80.hpp of CUTLASS 3. They lead from the thread
    (lane % 4, lane / 4) and the number of a value to a place in A [16, 32], B [8, 32] (transposed)
    or D [16, 8], counted down the columns.
    """
    height, values, thread_strides, value_shape, value_strides = {
        "A": (16, slice(0, 16), (64, 1), (4, 2, 2), (16, 8, 256)),
        "B": (8, slice(16, 24), (32, 1), (4, 2), (8, 128)),
        "D": (16, slice(24, 28), (32, 1), (2, 2), (16, 8)),
    }[matrix]
    places = torch.full((32, 28, 2), -1, dtype=torch.int32)
    host.fragments(pointer(places))
    for lane in range(32):
        for i, place in enumerate(places[lane, values].tolist()):
            at = lane % 4 * thread_strides[0] + lane // 4 * thread_strides[1]
            for size, stride in zip(value_shape, value_strides, strict=True):
                at, i = at + i % size * stride, i // size
            expected = [at % height, at // height]
            assert place == (expected[::-1] if matrix == "B" else expected)


def test_four_products_of_turing_make_one_of_its_successors(host):
    """imma.cu takes registers a[half + 2 * k], b[k] and d[2 * half] for the products of rows
    8 * half and summands 16 * k and on; strides of MMA_Traits<SM75_8x8x16_S32S8S8S32_TN>.
    """
    places = torch.empty(32, 28, 2, dtype=torch.int32)
    host.fragments(pointer(places))
    a, b, d = places.split((16, 8, 4), 1)
    a, b = a.unflatten(1, (4, 4)), b.unflatten(1, (2, 4))
    for lane, half, k, i in itertools.product(range(32), range(2), range(2), range(4)):
        at = 32 * (lane % 4) + lane // 4 + 8 * i  # in [8, 16], counted down the columns
        row, summand = at % 8, at // 8
        assert a[lane, half + 2 * k, i].tolist() == [8 * half + row, 16 * k + summand]
        assert b[lane, k, i].tolist() == [16 * k + summand, row]
        at = 16 * (lane % 4) + lane // 4 + 8 * (i % 2)
        assert d[lane, 2 * half + i % 2].tolist() == [8 * half + at % 8, at // 8]


def test_the_threads_of_a_quarter_warp_read_32_different_banks(host):
    """16 bytes a thread are served to 8 threads at a time, from 32 banks of 4 bytes."""
    addresses = torch.empty(9, 4, 128, dtype=torch.int32)
    host.reads_of_codes(pointer(addresses))
    assert (addresses % 16 == 0).all()
    words = addresses.view(9, 4, 16, 8, 1) // 4 + torch.arange(4)
    banks = (words % 32).flatten(-2).sort().values
    assert (banks == torch.arange(32)).all()


@st.composite
def layers(draw):
    """Operands of a 3x3 layer that the tensor cores take."""
    g = torch.Generator().manual_seed(draw(st.integers(0, 2**20)))
    channels = draw(st.sampled_from([1, 3, 17, 63, 64, 65, 130]))
    outputs = draw(st.sampled_from([1, 3, 5, 48, 64, 65, 70]))
    size = [draw(st.integers(1, 18)), draw(st.integers(1, 34))]
    a = {"bits": draw(st.integers(1, 8)), "signed": draw(st.booleans())}
    w = {"signed": draw(st.booleans())}
    w["bits"] = draw(st.integers(1, 8 if w["signed"] else 7))
    for kind in (a, w):
        kind["fill"] = draw(st.sampled_from(["random", "minimum", "maximum"]))
    return planes(g, draw(st.integers(0, 2)), *size, channels, **a), planes(
        g, outputs, 3, 3, channels, **w
    )


def imma_on_host(host, a, w, backwards=False):
    n, height, width, _, bits, words = a.words.shape
    sizes = [n, height, width, words, len(w.words), bits, a.signed, w.words.shape[4], w.signed]
    sizes = torch.tensor([int(size) for size in sizes])
    laid_out = torch.empty(-(-len(w.words) // 64) * words * 9 * 4096, dtype=torch.uint8)
    found = torch.full((n, height, width, len(w.words)), -(2**30), dtype=torch.int32)
    host.imma_on_host(
        *(pointer(x) for x in (sizes, a.words, w.words)),
        ctypes.c_bool(backwards),
        pointer(laid_out),
        pointer(found),
    )
    return found


@settings(deadline=None, max_examples=100)
@given(case=layers(), backwards=st.booleans())
def test_the_blocks_of_the_tensor_cores_compute_what_the_reference_says(host, case, backwards):
    expected = kernels.conv2d(*case, 1, 1, kernel="reference")
    assert torch.equal(imma_on_host(host, *case, backwards), expected)


@pytest.mark.parametrize("size", [(1, 1), (8, 16), (9, 17), (7, 15), (1, 33), (17, 1)])
@pytest.mark.parametrize("signs", ["uu", "us", "su", "ss"])
def test_the_largest_sums_of_8_bits_are_exact_at_every_border(host, size, signs):
    g = torch.Generator().manual_seed(0)
    for fills in itertools.product(["minimum", "maximum"], repeat=2):
        kinds = [
            {"bits": 7 if s == "u" and i else 8, "signed": s == "s", "fill": fill}
            for i, (s, fill) in enumerate(zip(signs, fills, strict=True))
        ]
        a, w = planes(g, 1, *size, 64, **kinds[0]), planes(g, 64, 3, 3, 64, **kinds[1])
        expected = kernels.conv2d(a, w, 1, 1, kernel="reference")
        assert torch.equal(imma_on_host(host, a, w), expected)


class Emulated(CudaProgram):
    """On the processor, in the order of `backwards`."""

    host, backwards = None, False

    @staticmethod
    def _rows(config, device):
        return ("emulated",)

    def features(self, lr, plan, buffers):
        height, width = lr.shape[1:]
        table, factors, _ = self.table(plan.keep, height, width)
        laid_out = torch.empty(self.codes.numel(), dtype=torch.uint8)
        counts = map(ctypes.c_int64, (len(self.codes) * self.channels, self.channels // 64))
        self.host.lay_out_on_host(pointer(self.codes), *counts, pointer(laid_out))
        sizes = [height, width, self.channels, len(self.layers), len(factors), len(table)]
        sizes = torch.tensor([*sizes, len(buffers[0])])
        assert self.host.run_imma_on_host(
            *map(pointer, (sizes, lr, self.mean)),
            ctypes.c_float(self.config.pixel_range),
            *map(pointer, (*self.head, laid_out, self.arrays, self.numbers, table, factors)),
            ctypes.c_bool(self.backwards),
            pointer(buffers[0]),
        )
        return buffers[1]


def any_network(bits, features, signed):
    """A packed network of three blocks with any codes, shortcuts and tau; some values are NaN."""
    network = QuantSR(quantsr_c(2, bits, features=features, blocks=3, depths=(3, 1))).eval()
    for block in network.blocks:
        block.shortcut.scale.data.uniform_(0.5, 1.5)
    calibrate(network, torch.rand(1, 3, 12, 12))
    network = pack(network).network
    half = 1 << bits - 1
    for layer in network.modules():
        if isinstance(layer, PackedConv2d):
            layer.signed = signed  # also between conv1 and conv2, where it leaves ReLU its work
            layer.tau.copy_(torch.randn(features) * layer.step_size)
            codes = torch.randint(-half, half, (features, 3, 3, features), dtype=torch.int8)
            layer.weight.copy_(kernels.pack_codes(codes, bits=bits, signed=True).words)
    network.blocks[1].conv1.bias[0] = torch.nan
    return network


@settings(deadline=None, max_examples=12)
@given(
    size=st.tuples(st.integers(1, 10), st.integers(1, 18)),
    bits=st.integers(2, 8),
    features=st.sampled_from([5, 64, 70]),
    keep=st.lists(st.booleans(), min_size=3, max_size=3),
    signed=st.booleans(),
    backwards=st.booleans(),
    seed=st.integers(0, 2**20),
)
def test_a_network_on_the_tensor_cores_has_the_features_of_the_processor(
    host, size, bits, features, keep, signed, backwards, seed
):
    """Heads, layers, shortcuts, skipped blocks and codes, bit for bit."""
    torch.manual_seed(seed)
    network, plan, lr = (
        any_network(bits, features, signed),
        DepthPlan(tuple(keep)),
        torch.rand(3, *size),
    )
    program, there = ResidualProgram(network, "portable"), Emulated(network)
    there.host, there.backwards = host, backwards
    expected = program.features(lr, plan, program.buffers(*size))
    found = there.features(lr, plan, there.buffers(*size))
    torch.testing.assert_close(found[:, :, :features], expected, rtol=0, atol=0, equal_nan=True)


@settings(deadline=None, max_examples=60)
@given(st.data())
def test_steps_that_leave_the_workspace_are_refused(host, data):
    network = any_network(4, 5, True)
    there = Emulated(network)
    there.host = host
    table, *others = there.table((True, False, True), 3, 4)
    table = table.clone()
    places = st.sampled_from([-2, -1, 0, 1, 8, 64, 1 << 20, 1 << 62, -(1 << 62)])
    table.view(-1)[data.draw(st.integers(0, table.numel() - 1))] = data.draw(places)
    there.table = lambda *_: (table, *others)  # also for the buffers
    with contextlib.suppress(AssertionError):  # or it runs, and reads nothing else
        there.features(torch.rand(3, 3, 4), DepthPlan.full(3), there.buffers(3, 4))


# Through the compiler -----------------------------------------------------------------------------


# What the tensor cores of an architecture multiply at once, in its machine code.
TENSOR_CORES = {"sm_75": "IMMA.8816", "sm_80": "IMMA.16832", "sm_90": "IMMA.16832"}


@needs_nvcc
@pytest.mark.parametrize("architecture", TENSOR_CORES)
def test_the_device_code_compiles_without_spilling_registers(tmp_path, architecture):
    for name in KERNELS:
        cubin = tmp_path / f"{Path(name).stem}.cubin"
        options = [*native.NVCC_FLAGS, f"-I{CSRC}", "-std=c++20", f"-arch={architecture}", "-cubin"]
        command = [NVCC, *options, "-Xptxas", "-v", str(CSRC / name), "-o", str(cubin)]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        spills = re.findall(r"(\d+) bytes spill (?:stores|loads)", done.stderr)
        assert spills and set(spills) == {"0"}, f"{name}: {done.stderr}"
    if NVDISASM is None:
        pytest.skip(f"compiled; nvdisasm, which shows the instructions, not found; {HINT}")
    imma = str(tmp_path / "imma.cubin")
    sass = subprocess.run([NVDISASM, imma], capture_output=True, text=True, check=True).stdout
    products = set(re.findall(r"IMMA\S+", sass))
    assert products == {f"{TENSOR_CORES[architecture]}.S8.{sign}" for sign in ("S8", "U8")}
    assert {"LDG", "LDS", "STG"} <= set(re.findall(r"(LD[GS]|STG)\S*\.128", sass))  # 16 bytes each


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
@settings(deadline=None, max_examples=100)
@given(case=layers())
def test_the_tensor_cores_of_the_gpu_convolve_as_the_reference(case):
    a, w = case
    expected = kernels.conv2d(a, w, 1, 1, kernel="reference")
    for kernel in ("cuda-imma", "auto", "cuda"):
        found = kernels.conv2d(on_gpu(a), on_gpu(w), 1, 1, kernel=kernel)
        assert torch.equal(found.cpu(), expected), kernel


@needs_gpu
@pytest.mark.parametrize("stride, padding", [(2, 1), (1, 0)])
def test_the_tensor_cores_refuse_what_they_do_not_run(stride, padding):
    g = torch.Generator().manual_seed(0)
    a = on_gpu(planes(g, 1, 5, 5, 64, bits=4, signed=True))
    w = on_gpu(planes(g, 64, 3, 3, 64, bits=4, signed=True))
    with pytest.raises(ValueError, match="cuda-imma"):
        kernels.conv2d(a, w, stride, padding, kernel="cuda-imma")


@needs_gpu
@pytest.mark.parametrize("blocks", [1, 3])
@pytest.mark.parametrize("bits", [2, 4])
def test_a_network_on_the_gpu_has_the_features_of_the_processor(bits, blocks):
    torch.manual_seed(0)
    network = QuantSR(quantsr_c(4, bits, blocks=3, depths=(3, 1))).eval()
    calibrate(network, torch.rand(1, 3, 24, 24))
    packed, lr = pack(network), torch.rand(1, 3, 33, 50)
    plan = packed.plan(blocks)
    program, sr = packed.program, packed(lr, blocks)
    features = program.features(lr[0], plan, program.buffers(33, 50))
    packed, lr = packed.cuda(), lr.cuda()
    there = packed.program
    assert there.kernel == "cuda-imma"
    assert torch.equal(there.features(lr[0], plan, there.buffers(33, 50)).cpu(), features)
    torch.testing.assert_close(packed(lr, blocks).cpu(), sr, rtol=0, atol=2e-3)  # TF32 in the tail


@needs_gpu
@pytest.mark.parametrize("masks", [0, 4])
def test_attention_on_the_gpu_is_within_one_unit_of_the_reference(masks):
    qkv, steps, bias, mask = attention_case(8, 64, 6, 10, masks, 0)
    options = {"heads": 6, "bits": [4] * 4, "signed": [True, True, False, True]}
    expected = kernels.attention(qkv, steps, bias, mask, **options, kernel="reference")
    tensors = [None if t is None else t.cuda() for t in (qkv, steps, bias, mask)]
    found = kernels.attention(*tensors, **options, kernel="cuda")
    torch.testing.assert_close(found.cpu(), expected, rtol=2e-7, atol=0)
