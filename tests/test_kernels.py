"""Every kernel of this machine gives the integers of the reference, whatever the shape."""

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from qsr.integer import kernels, reference
from qsr.integer.bitplanes import BitPlanes
from qsr.quantizer import QuantSpec


def make_codes(shape, bits, signed, fill="random", seed=0):
    """Codes [.., channels]: random, or all at one end of the range, where sums are largest."""
    spec = QuantSpec(bits, signed)
    if fill != "random":
        return torch.full(shape, spec.qmin if fill == "minimum" else spec.qmax, dtype=spec.dtype)
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(spec.qmin, spec.qmax + 1, shape, generator=generator).to(spec.dtype)


def make_planes(shape, bits, signed, groups=1, fill="random", seed=0):
    codes = make_codes(shape, bits, signed, fill, seed)
    return kernels.pack_codes(codes, bits=bits, signed=signed, groups=groups)


def takes(name, a, w, stride=(1, 1), padding=(0, 0)):
    """Whether the kernel of this name runs a convolution, as the files of csrc/conv2d say."""
    largest_a, largest_w = (max(-p.spec.qmin, p.spec.qmax) for p in (a, w))
    _, kernel_h, kernel_w, _, _, words = w.words.shape
    if name.startswith("winograd"):
        same_size_3x3 = (kernel_h, kernel_w, *stride, *padding) == (3, 3, 1, 1, 1, 1)
        return same_size_3x3 and a.groups == 1 and max(a.bits, w.bits + (not w.signed)) <= 4
    if name == "vpopcnt":
        whole = a.groups == 1 or len(w.words) // a.groups % 8 == 0
        return whole and w.signed and a.bits == w.bits and a.bits in (2, 3)
    if name == "table":
        largest_sum = kernel_h * kernel_w * words * 64 * largest_a * largest_w
        return max(a.bits, w.bits) <= 2 and stride[1] == 1 and largest_sum <= 32767
    return not name.startswith("direct") or w.signed or w.bits < 8


def check(name, a, w, stride, padding, expected):
    """A named kernel gives these sums, or says that it does not take the job."""
    if takes(name, a, w, stride, padding):
        assert torch.equal(kernels.conv2d(a, w, stride, padding, name), expected), name
    else:
        with pytest.raises(ValueError, match=f"`kernel` is '{name}', which does not run"):
            kernels.conv2d(a, w, stride, padding, name)


def native(op):
    """Names of the compiled kernels of `op`; the reference is compared with, not tested, here."""
    return kernels.available(op)[:-1]


BITS, FILLS = st.integers(1, 8), st.sampled_from(["random", "random", "minimum", "maximum"])
PAIRS = [(a, w) for a in range(1, 9) for w in range(1, 9)]


# Convolution --------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=300)
@given(
    bits=st.tuples(BITS, BITS),
    signed=st.tuples(st.booleans(), st.booleans()),
    fills=st.tuples(FILLS, FILLS),
    groups=st.integers(1, 3),
    per_group=st.sampled_from([1, 3, 63, 64, 65, 256]),
    out_per_group=st.integers(1, 3),
    batch=st.integers(0, 2),
    size=st.tuples(st.integers(1, 5), st.integers(1, 5)),
    kernel=st.tuples(st.sampled_from([1, 2, 3, 3, 5, 7]), st.sampled_from([1, 3, 3, 4, 5])),
    stride=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    padding=st.tuples(st.integers(0, 4), st.integers(0, 4)),
    seed=st.integers(0, 2**20),
)
def test_every_kernel_equals_the_reference(
    bits,
    signed,
    fills,
    groups,
    per_group,
    out_per_group,
    batch,
    size,
    kernel,
    stride,
    padding,
    seed,
):
    assume(all(size[i] + 2 * padding[i] >= kernel[i] for i in (0, 1)))
    a = make_planes((batch, *size, groups * per_group), bits[0], signed[0], groups, fills[0], seed)
    w = make_planes(
        (groups * out_per_group, *kernel, per_group), bits[1], signed[1], 1, fills[1], seed + 1
    )
    expected = reference.conv2d(a, w, stride, padding)
    assert torch.equal(kernels.conv2d(a, w, stride, padding), expected)
    for name in native("conv2d"):
        check(name, a, w, stride, padding, expected)


@pytest.mark.parametrize("name", native("conv2d"))
@pytest.mark.parametrize("signed", [(False, True), (True, True), (True, False), (False, False)])
def test_every_bit_pair_at_the_network_s_own_shape(name, signed):
    for a_bits, w_bits in PAIRS:
        a = make_planes((1, 4, 5, 64), a_bits, signed[0])
        w = make_planes((16, 3, 3, 64), w_bits, signed[1], seed=1)
        check(name, a, w, (1, 1), (1, 1), reference.conv2d(a, w, (1, 1), (1, 1)))


@pytest.mark.parametrize("name", native("conv2d"))
def test_the_largest_sum_that_is_allowed_is_exact(name):
    # 65,728 products of 255 * -128 are -2,145,361,920: 0.1 % inside int32.
    a = make_planes((1, 1, 1, 65728), 8, False, fill="maximum")
    w = make_planes((1, 1, 1, 65728), 8, True, fill="minimum")
    expected = torch.full((1, 1, 1, 1), 65728 * 255 * -128, dtype=torch.int32)
    check(name, a, w, (1, 1), (0, 0), expected)


def test_shapes_whose_sums_could_leave_int32_are_refused():
    a = make_planes((1, 1, 1, 65856), 8, False)
    w = make_planes((1, 1, 1, 65856), 8, True)
    with pytest.raises(ValueError, match="could leave int32"):
        kernels.conv2d(a, w)


@pytest.mark.parametrize("name", native("conv2d"))
def test_words_may_begin_anywhere_in_memory(name):
    a, w = make_planes((1, 6, 7, 64), 2, True), make_planes((8, 3, 3, 64), 2, True, seed=1)
    expected = reference.conv2d(a, w, (1, 1), (1, 1))

    def moved(planes):  # to eight bytes after an aligned address
        words = torch.cat([torch.zeros(1, dtype=torch.int64), planes.words.flatten()])[1:]
        return BitPlanes(words.view(planes.words.shape), planes.signed, planes.channels)

    assert torch.equal(kernels.conv2d(moved(a), moved(w), 1, 1, name), expected)


@pytest.mark.parametrize("name", native("conv2d"))
@pytest.mark.parametrize("threads", range(1, 9))
def test_the_number_of_threads_changes_nothing(name, threads):
    a = make_planes((2, 17, 33, 64), 2, False)  # 2 bits, which every kernel takes
    w = make_planes((64, 3, 3, 64), 2, True, seed=1)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(threads)
        acc = kernels.conv2d(a, w, 1, 1, name)
    finally:
        torch.set_num_threads(before)
    assert torch.equal(acc, reference.conv2d(a, w, (1, 1), (1, 1)))


def test_zero_padding_is_code_zero():
    # The corner of a picture of ones sees 4 of 9 taps, an edge 6, the inside 9.
    a = make_planes((1, 3, 3, 1), 1, False, fill="maximum")
    w = make_planes((1, 3, 3, 1), 1, False, fill="maximum")
    expected = torch.tensor([[4, 6, 4], [6, 9, 6], [4, 6, 4]], dtype=torch.int32)
    for name in kernels.available("conv2d"):
        check(name, a, w, (1, 1), (1, 1), expected.view(1, 3, 3, 1))


@pytest.mark.parametrize("name", kernels.available("conv2d"))
def test_non_contiguous_words_are_read_in_their_own_order(name):
    a, w = make_planes((1, 4, 6, 64), 2, True), make_planes((8, 3, 3, 64), 2, True, seed=1)
    turned = BitPlanes(a.words.transpose(1, 2), True, 64)
    assert not turned.words.is_contiguous()
    straight = BitPlanes(turned.words.contiguous(), True, 64)
    assert torch.equal(
        kernels.conv2d(turned, w, 1, 1, name), kernels.conv2d(straight, w, 1, 1, "reference")
    )


@settings(deadline=None)
@given(
    bits=st.tuples(BITS, BITS),
    signed=st.tuples(st.booleans(), st.booleans()),
    rows=st.integers(0, 5),
    channels=st.sampled_from([1, 63, 64, 65, 130]),
    seed=st.integers(0, 2**20),
)
def test_linear_is_the_matrix_product(bits, signed, rows, channels, seed):
    a = make_codes((rows, 1, 1, channels), bits[0], signed[0], seed=seed)
    w = make_codes((3, 1, 1, channels), bits[1], signed[1], seed=seed + 1)
    expected = (a.flatten(1).long() @ w.flatten(1).long().T).to(torch.int32)
    pa = kernels.pack_codes(a, bits=bits[0], signed=signed[0])
    pw = kernels.pack_codes(w, bits=bits[1], signed=signed[1])
    for name in ("auto", *(name for name in kernels.available("linear") if takes(name, pa, pw))):
        assert torch.equal(kernels.linear(pa, pw, name), expected), name


# Packing and quantisation -------------------------------------------------------------------------


@settings(deadline=None)
@given(
    bits=BITS,
    signed=st.booleans(),
    groups=st.integers(1, 3),
    per_group=st.sampled_from([1, 3, 63, 64, 65, 256]),
    size=st.tuples(st.integers(0, 2), st.integers(1, 3), st.integers(1, 3)),
    seed=st.integers(0, 2**20),
)
def test_native_packing_writes_the_words_of_the_format(bits, signed, groups, per_group, size, seed):
    from qsr.integer import bitplanes

    codes = make_codes((*size, groups * per_group), bits, signed, seed=seed)
    planes = kernels.pack_codes(codes, bits=bits, signed=signed, groups=groups)
    assert torch.equal(planes.words, bitplanes.pack_codes(codes, bits, signed, groups).words)
    assert torch.equal(kernels.unpack_codes(planes), codes)


LAYOUTS = {
    "nchw": lambda x: x,
    "channels_last": lambda x: x.to(memory_format=torch.channels_last),
    "turned": lambda x: x.transpose(2, 3),
    "every_other_column": lambda x: x[..., ::2],
    "one_picture_thrice": lambda x: x[:1].expand(3, -1, -1, -1),
}


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
@pytest.mark.parametrize("name", native("quantize_pack"))
@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("with_tau", [False, True])
def test_quantize_pack_equals_the_formula(layout, name, signed, with_tau):
    x = layout(torch.randn(2, 70, 5, 6))
    tau = torch.randn(70) if with_tau else None
    for bits in range(1, 9):
        step = torch.tensor(4.0 / 2**bits)
        planes = kernels.quantize_pack(x, step, tau, bits=bits, signed=signed, kernel=name)
        expected = reference.quantize(x, step, tau, bits, signed)
        assert torch.equal(planes.words, expected.words), bits


@settings(deadline=None, max_examples=200)
@given(
    bits=st.integers(1, 8),
    signed=st.booleans(),
    step=st.floats(2**-10, 8, width=32),
    nudges=st.lists(st.integers(-2, 2), min_size=1, max_size=20),
    start=st.integers(-140, 260),
)
def test_quantize_pack_agrees_on_and_beside_every_rounding_threshold(
    bits, signed, step, nudges, start
):
    # Thresholds lie at (k + 1/2) step; step up to two floats to either side of them.
    step = torch.tensor(step)
    x = (start + torch.arange(len(nudges)) + 0.5) * step
    for i, nudge in enumerate(nudges):
        for _ in range(abs(nudge)):
            x[i] = torch.nextafter(x[i], torch.tensor(float("inf") if nudge > 0 else -float("inf")))
    x = x.view(1, -1, 1, 1)
    expected = reference.quantize(x, step, None, bits, signed)
    for name in native("quantize_pack"):
        planes = kernels.quantize_pack(x, step, bits=bits, signed=signed, kernel=name)
        assert torch.equal(planes.words, expected.words), name


@pytest.mark.parametrize("name", kernels.available("quantize_pack"))
def test_values_that_are_no_numbers_have_defined_codes(name):
    nan, inf = float("nan"), float("inf")
    x = torch.tensor([nan, inf, -inf, 3e38, -3e38, nan]).view(1, 6, 1, 1)
    tau = torch.tensor([2.0, 0, 0, 3e38, -3e38, 0])
    planes = kernels.quantize_pack(x, torch.tensor(0.5), tau, bits=4, signed=True, kernel=name)
    assert kernels.unpack_codes(planes).flatten().tolist() == [0, 7, -8, 7, -8, 0]


@pytest.mark.parametrize("name", native("quantize_pack"))
def test_quantize_pack_takes_groups_and_empty_batches(name):
    for shape in ((2, 130, 3, 2), (0, 130, 3, 2)):
        x = torch.randn(shape)
        step = torch.tensor(0.3)
        planes = kernels.quantize_pack(x, step, bits=4, signed=True, groups=2, kernel=name)
        assert torch.equal(planes.words, reference.quantize(x, step, None, 4, True, 2).words)


# Float convolution --------------------------------------------------------------------------------


@pytest.mark.parametrize("channels", [(3, 64), (64, 48), (1, 1), (5, 17)])
@pytest.mark.parametrize("bias", [False, True])
def test_float_convolution_has_the_bits_of_its_definition(channels, bias):
    x, weight = torch.randn(2, 7, 9, channels[0]), torch.randn(channels[1], channels[0], 3, 3)
    bias = torch.randn(channels[1]) if bias else None
    expected = kernels.conv2d_float(x, weight, bias, 1, "reference")
    for name in native("conv2d_float"):
        assert torch.equal(kernels.conv2d_float(x, weight, bias, 1, name), expected), name
    library = F.conv2d(x.permute(0, 3, 1, 2), weight, bias, padding=1).permute(0, 2, 3, 1)
    torch.testing.assert_close(expected, library, rtol=1e-4, atol=1e-4)


def test_float_convolution_of_a_strip_is_the_strip_of_the_convolution():
    x, weight = torch.randn(1, 20, 23, 8), torch.randn(12, 8, 5, 5)
    whole = kernels.conv2d_float(x, weight)
    strip = kernels.conv2d_float(x[:, 6:15, 3:18], weight)
    assert torch.equal(strip, whole[:, 6:11, 3:14])


# The operators as PyTorch sees them ---------------------------------------------------------------


def operator_samples():
    """(name, arguments) of every operator, once per kernel that it has."""
    a, w = make_planes((2, 4, 5, 70), 2, False), make_planes((6, 3, 3, 70), 2, True, seed=1)
    rows, matrix = make_planes((4, 1, 1, 70), 2, False), make_planes((6, 1, 1, 70), 2, True)
    codes, step = make_codes((1, 2, 3, 70), 4, True), torch.tensor(0.5)
    x, tau = torch.randn(2, 70, 4, 5), torch.randn(70)
    picture, weight, bias = torch.randn(1, 5, 6, 3), torch.randn(8, 3, 3, 3), torch.randn(8)
    yield "pack_codes", (codes, 4, 2)
    yield "unpack_codes", (a.words, False, 70)
    for kernel in kernels.available("conv2d"):
        yield "conv2d", (a.words, w.words, False, True, [1, 1], [1, 1], kernel)
    yield "conv2d", (a.words, w.words, False, True, [2, 1], [1, 1], "auto")
    for kernel in kernels.available("linear"):
        if takes(kernel, rows, matrix):
            yield "linear", (rows.words, matrix.words, False, True, kernel)
    for kernel in kernels.available("quantize_pack"):
        yield "quantize_pack", (x, step, tau, 4, True, 2, kernel)
        yield "quantize_pack", (x, step, None, 4, True, 1, kernel)
    for kernel in kernels.available("conv2d_float"):
        yield "conv2d_float", (picture, weight, bias, [1, 1], kernel)
    qkv, steps, table = torch.randn(2, 4, 18), torch.full((4,), 0.1), torch.randn(2, 4, 4)
    for kernel in kernels.available("attention"):
        for mask in (None, torch.zeros(2, 4, 4)):
            numbers = [4, 4, 4, 4], [True, True, False, True]
            yield "attention", (qkv, steps, table, mask, 2, *numbers, kernel)


@pytest.mark.parametrize(
    ("name", "arguments"),
    [pytest.param(*sample, id=f"{sample[0]}-{sample[1][-1]}") for sample in operator_samples()],
)
def test_opcheck(name, arguments):
    torch.library.opcheck(getattr(torch.ops.qsr, name).default, arguments)


def test_every_operator_has_a_sample_for_opcheck():
    registered = {
        name.split("::")[1]
        for name in torch._C._dispatch_get_all_op_names()
        if name.startswith("qsr::")
    }
    whole = {"packed"}  # a network: test_compile
    assert registered - whole == {name for name, _ in operator_samples()}


# Choice and refusal -------------------------------------------------------------------------------


@pytest.mark.parametrize("op", kernels.NATIVE_OPS)
def test_the_reference_is_always_available_and_last(op):
    names = kernels.available(op)
    assert names[-1] == "reference"
    assert len(set(names)) == len(names)
    assert kernels.available(op, "meta") == ("reference",)


def test_an_unknown_kernel_is_an_error_that_names_the_known_ones():
    a, w = make_planes((1, 1, 1, 64), 4, True), make_planes((1, 1, 1, 64), 4, True)
    for call in (
        lambda: kernels.conv2d(a, w, kernel="warp"),
        lambda: kernels.linear(a, w, kernel="warp"),
        lambda: kernels.quantize_pack(
            torch.zeros(1, 1, 1, 1), torch.tensor(1.0), bits=4, signed=True, kernel="warp"
        ),
        lambda: kernels.conv2d_float(
            torch.zeros(1, 1, 1, 1), torch.zeros(1, 1, 1, 1), kernel="warp"
        ),
    ):
        with pytest.raises(ValueError, match="'warp'.*reference"):
            call()
    with pytest.raises(ValueError, match="`op` is 'conv3d'"):
        kernels.available("conv3d")


def test_a_named_kernel_that_cannot_take_a_job_says_what_it_is_and_which_can():
    a, w = make_planes((1, 3, 3, 64), 8, False), make_planes((4, 3, 3, 64), 8, True)
    if "winograd-avx2" not in native("conv2d"):
        pytest.skip("no such kernel here")
    with pytest.raises(ValueError) as raised:
        kernels.conv2d(a, w, 1, 1, "winograd-avx2")
    assert str(raised.value).startswith(
        "`kernel` is 'winograd-avx2', which does not run a convolution of 8 unsigned bits by "
        "weights of 8 signed bits, kernel 3x3, stride 1x1, padding 1x1, groups 1 here; choose one "
    )
    assert "scalar, or 'auto'." in str(raised.value) and "\n" not in str(raised.value)
    with pytest.raises(ValueError, match="`kernel` is 'winograd-avx2'"):
        kernels.linear(*(make_planes((2, 1, 1, 64), 4, True) for _ in "aw"), "winograd-avx2")


A = make_planes((1, 3, 3, 64), 4, True)
W = make_planes((4, 3, 3, 64), 4, True)
ONE = torch.tensor(1.0)


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda: kernels.conv2d(A, W, stride=0), ValueError, "`stride`"),
        (lambda: kernels.conv2d(A, W, padding=-1), ValueError, "`padding`"),
        (lambda: kernels.conv2d(make_planes((1, 2, 3, 64), 4, True), W), ValueError, "2 x 3"),
        (lambda: kernels.conv2d(A, make_planes((4, 3, 3, 65), 4, True)), ValueError, "65"),
        (
            lambda: kernels.conv2d(make_planes((1, 3, 3, 192), 4, True, 3), W),
            ValueError,
            "4 output channels for 3 groups",
        ),
        (lambda: kernels.linear(A, W), ValueError, "[M, 1, 1, 1, bits, words]"),
        (
            lambda: kernels.quantize_pack(torch.zeros(1, 2, 3), ONE, bits=4, signed=True),
            ValueError,
            "[N, C, H, W]",
        ),
        (
            lambda: kernels.quantize_pack(
                torch.zeros(1, 2, 3, 3).double(), ONE, bits=4, signed=True
            ),
            TypeError,
            "float64",
        ),
        (
            lambda: kernels.quantize_pack(
                torch.zeros(1, 2, 3, 3), ONE, torch.zeros(3), bits=4, signed=True
            ),
            ValueError,
            "`tau`",
        ),
        *(
            (
                lambda step=step: kernels.quantize_pack(
                    torch.zeros(1, 2, 3, 3), torch.tensor(step), bits=4, signed=True
                ),
                ValueError,
                "`step_size`",
            )
            for step in (0.0, -1.0, float("nan"), [1.0, 1.0])
        ),
        (
            lambda: kernels.quantize_pack(torch.zeros(1, 2, 3, 3), ONE, bits=9, signed=True),
            ValueError,
            "`bits` is 9",
        ),
    ],
)
def test_bad_arguments_are_refused_in_one_line(call, error, words):
    with pytest.raises(error) as raised:
        call()
    assert words in str(raised.value)
    assert "\n" not in str(raised.value)


def native_ops():
    return torch.ops.qsr_native


@pytest.mark.parametrize(
    "call",
    [
        lambda: native_ops().conv2d(A.words.int(), W.words, True, True, [1, 1], [1, 1], "auto"),
        lambda: native_ops().conv2d(A.words[0], W.words, True, True, [1, 1], [1, 1], "auto"),
        lambda: native_ops().conv2d(A.words, W.words, True, True, [1], [1, 1], "auto"),
        lambda: native_ops().conv2d(A.words, W.words, True, True, [0, 1], [1, 1], "auto"),
        lambda: native_ops().conv2d(
            A.words.expand(-1, -1, -1, 3, -1, -1), W.words, True, True, [1, 1], [1, 1], "auto"
        ),
        lambda: native_ops().pack_codes(torch.zeros(1, 1, 1, 4), 4, 1),
        lambda: native_ops().pack_codes(torch.zeros(1, 1, 1, 4, dtype=torch.int8), 9, 1),
        lambda: native_ops().unpack_codes(A.words, True, 65),
        lambda: native_ops().quantize_pack(torch.zeros(1, 2, 3), 1.0, None, 4, True, 1, "auto"),
        lambda: native_ops().quantize_pack(
            torch.zeros(1, 2, 3, 3), 1.0, torch.zeros(1), 4, True, 1, "auto"
        ),
        # Sizes that wrap when they are multiplied, or divide by zero: these died, or returned.
        lambda: native_ops().conv2d(
            A.words, W.words, True, True, [1, 1], [2**63 - 1, 2**63 - 1], "auto"
        ),
        lambda: native_ops().conv2d(A.words, W.words, True, True, [2**62, 1], [1, 1], "auto"),
        lambda: native_ops().unpack_codes(A.words[:, :, :, :0], True, 64),
        lambda: native_ops().unpack_codes(torch.zeros(2**40, 2**40, 0, 1, 4, 1).long(), True, 64),
        lambda: native_ops().attention(
            torch.zeros(1, 4, 6),
            torch.ones(4),
            torch.zeros(1, 4, 4),
            None,
            2**62,
            1.0,
            [4] * 4,
            [1] * 4,
            "auto",
        ),
        lambda: native_ops().peak("clock", float("inf")),
        lambda: native_ops().peak("clock", float("nan")),
        lambda: native_ops().available("conv2d", 2**32 + 1),
    ],
)
def test_the_raw_operators_refuse_what_would_read_outside_their_tensors(call):
    if not native("conv2d"):
        pytest.skip("no native code here")
    with pytest.raises(RuntimeError):
        call()
