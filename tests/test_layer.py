"""A packed layer in one call, from float to float: every row of csrc/network/conv.h equals the
reference, in both memory formats; and what is laid out follows the values of the layer.
"""

import copy
import functools
import pickle
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import nn

import qsr
from qsr.integer.layer import ConvShape
from qsr.layers import QConv1d, QConvTranspose2d

torch.set_num_threads(1)
PIXELS = torch.channels_last
if not ConvShape(1, 1, 1, (1, 1), (1, 1), (1, 1), (0, 0), (4, 4), True).rows():
    pytest.skip("no native code here", allow_module_level=True)


def packed(layer, x, kernel="auto"):
    """A layer calibrated by x and packed, by a row or "reference". portable is not for users."""
    qsr.calibrate(layer, x)
    made = qsr.pack(layer, "auto" if kernel == "portable" else kernel)
    made.kernel = kernel
    return made


def rows(layer):
    return layer.shape.rows()


def assert_rows_equal_the_reference(layer, x, values):
    """Of any layer of pictures; values: of another scale than those it was calibrated by."""
    slow = packed(layer, x, "reference")
    expected = slow(values)
    for row in rows(slow):
        fast = packed(layer, x, row)
        if row == "portable" and not fast.laid_out().row:
            continue  # by planes there is no such kernel
        assert torch.equal(fast(values), expected), row
        if values.ndim == 4:
            by_pixels = fast(values.to(memory_format=PIXELS))
            assert torch.equal(by_pixels, expected), row


# Values -------------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=120)
@given(
    bits=st.tuples(st.integers(2, 8), st.integers(2, 8)),
    groups=st.sampled_from([1, 1, 1, 2, 3, 8]),
    per_group=st.sampled_from([1, 2, 3, 16, 20, 52]),
    out_per_group=st.sampled_from([1, 2, 5, 16, 20, 48]),
    kernel=st.sampled_from([(3, 3), (3, 3), (1, 1), (2, 3), (5, 1)]),
    stride=st.sampled_from([(1, 1), (1, 1), (2, 2), (1, 3)]),
    padding=st.sampled_from([(1, 1), (0, 0), (2, 0)]),
    dilation=st.sampled_from([(1, 1), (1, 1), (2, 1), (3, 2)]),
    size=st.tuples(st.integers(1, 11), st.integers(1, 18)),
    batch=st.integers(0, 2),
    bias=st.booleans(),
    per_channel=st.booleans(),
    positive=st.booleans(),
    seed=st.integers(0, 2**20),
)
def test_every_row_equals_the_reference(
    bits, groups, per_group, out_per_group, kernel, stride, padding, dilation, size, batch, bias,
    per_channel, positive, seed,
):  # fmt: skip
    torch.manual_seed(seed)
    layer = qsr.QConv2d(
        groups * per_group, groups * out_per_group, kernel, bits=bits, per_channel=per_channel,
        stride=stride, padding=padding, dilation=dilation, groups=groups, bias=bias,
    )  # fmt: skip
    height, width = (
        max(n, d * (k - 1) + 1 - 2 * p)
        for n, d, k, p in zip(size, dilation, kernel, padding, strict=True)
    )
    x = torch.randn(batch, groups * per_group, height, width)
    sample = torch.randn(1, *x.shape[1:])
    if positive:
        x, sample = x.abs(), sample.abs()
    with torch.no_grad():
        layer.input_quantizer.tau.normal_()
    x[..., :1] *= 100  # beyond the last code
    assert_rows_equal_the_reference(layer, sample, x)


@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("low", [False, True])
def test_extreme_codes_and_weights_leave_no_integer(signed, bits, low):
    layer = qsr.QConv2d(64, 32, 3, bits=bits, padding=1)
    x = torch.ones(1, 64, 9, 10)
    x[0, 0, 0, 0] = -1.0 if signed else 1.0
    with torch.no_grad():
        layer.weight.fill_(-1e3 if low else 1e3)
        layer.weight[0, 0, 0, 0] = 1.0  # steps stay small
    assert_rows_equal_the_reference(layer, x, x * (-1e3 if low else 1e3))


def test_values_that_are_no_numbers_have_code_0_and_infinite_ones_the_last():
    layer = qsr.QConv2d(20, 20, 3, padding=1)
    x = torch.randn(1, 20, 6, 20)
    x.view(-1)[::7], x.view(-1)[::11], x.view(-1)[::13] = torch.nan, torch.inf, -torch.inf
    assert_rows_equal_the_reference(layer, torch.randn(1, 20, 6, 20), x)


def test_planes_longer_than_the_piece_that_is_turned_at_once_are_whole():
    layer = qsr.QConv2d(20, 36, 3, padding=1)
    x = torch.randn(2, 20, 7, 333)  # 36 channels: two strips of four rows at a time, 1332 pixels
    assert_rows_equal_the_reference(layer, x[:1, :, :4, :9], x)


@pytest.mark.parametrize("options", [{}, {"stride": 3}, {"padding": 4, "dilation": 2, "groups": 4}])
def test_a_convolution_of_rows_is_one_of_pictures_that_are_one_row_high(options):
    layer = QConv1d(12, 20, 5, bits=4, **options)
    x = torch.randn(2, 12, 31)
    assert_rows_equal_the_reference(layer, x, x)
    torch.testing.assert_close(qsr.pack(layer)(x), layer(x))


@settings(deadline=None, max_examples=60)
@given(
    kernel=st.tuples(st.integers(1, 5), st.integers(1, 4)),
    stride=st.tuples(st.integers(1, 4), st.integers(1, 3)),
    padding=st.tuples(st.integers(0, 4), st.integers(0, 3)),
    dilation=st.sampled_from([(1, 1), (1, 1), (1, 1), (2, 3)]),
    more=st.tuples(st.integers(0, 3), st.integers(0, 3)),
    groups=st.sampled_from([1, 1, 2]),
    size=st.tuples(st.integers(1, 6), st.integers(1, 6)),
    seed=st.integers(0, 2**20),
)
def test_a_transposed_convolution_likewise(
    kernel, stride, padding, dilation, more, groups, size, seed
):
    torch.manual_seed(seed)
    more = [min(m, max(s, d) - 1) for m, s, d in zip(more, stride, dilation, strict=True)]
    sides = zip(size, kernel, stride, padding, dilation, more, strict=True)
    assume(all(s * (n - 1) - 2 * p + d * (k - 1) + m >= 0 for n, k, s, p, d, m in sides))
    layer = QConvTranspose2d(
        2 * groups, 3 * groups, kernel, bits=4, stride=stride, padding=padding,
        dilation=dilation, output_padding=more, groups=groups,
    )  # fmt: skip
    with torch.no_grad():
        layer.input_quantizer.tau.normal_()  # 0 is not code 0
    x = torch.randn(2, 2 * groups, *size)
    assert_rows_equal_the_reference(layer, x, x)
    torch.testing.assert_close(qsr.pack(layer)(x), layer(x), rtol=1e-4, atol=1e-4)


def test_a_transposed_convolution_gives_the_size_that_is_asked_for():
    layer, x = QConvTranspose2d(3, 4, 3, bits=4, stride=2), torch.randn(1, 3, 5, 6)
    made = packed(layer, x)
    for size in ((11, 13), (12, 13), (12, 14)):
        torch.testing.assert_close(made(x, size), layer(x, output_size=size))
    with pytest.raises(ValueError, match=r"`output_size` is \(13, 13\); it is between"):
        made(x, (13, 13))


@pytest.mark.parametrize("count", [0, 1, 5, 47, 48, 49, 191, 192, 500])
@pytest.mark.parametrize("bits", [4, 8])
def test_rows_of_numbers_likewise(count, bits):
    layer = qsr.QLinear(70, 37, bits=bits)
    assert_rows_equal_the_reference(layer, torch.randn(9, 70), torch.randn(count, 70))


def test_threads_change_nothing():
    layer, x = qsr.QConv2d(48, 48, 3, padding=1), torch.randn(2, 48, 33, 41)
    made = packed(layer, x)
    for values in (x, x.to(memory_format=PIXELS)):
        expected = made(values)
        try:
            torch.set_num_threads(3)
            assert torch.equal(made(values), expected)
        finally:
            torch.set_num_threads(1)
        with ThreadPoolExecutor(4) as pool:
            assert all(torch.equal(y, expected) for y in pool.map(made, [values] * 8))


# Memory formats -----------------------------------------------------------------------------------


def test_the_result_has_the_memory_format_of_the_input():
    layer, x = qsr.QConv2d(5, 7, 3), torch.randn(2, 5, 8, 9)
    made = packed(layer, x)
    assert made(x).is_contiguous()
    assert made(x.to(memory_format=PIXELS)).is_contiguous(memory_format=PIXELS)
    strided = torch.randn(2, 5, 18, 16)[:, :, ::2, 1::2].transpose(2, 3)
    assert torch.equal(made(strided), made(strided.contiguous()))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_another_type_is_taken_as_float32(dtype):
    layer, x = qsr.QConv2d(5, 7, 3), torch.randn(2, 5, 8, 9).to(dtype)
    made = packed(layer, x.float())
    assert torch.equal(made(x), made(x.float()))
    assert made(x).dtype == torch.float32


def test_no_gradient_comes_back():
    layer, x = qsr.QConv2d(5, 7, 3), torch.randn(2, 5, 8, 9, requires_grad=True)
    assert not packed(layer, x.detach())(x).requires_grad


# What is laid out ---------------------------------------------------------------------------------


def other_values(layer):
    with torch.no_grad():
        layer.weight.mul_(-1)
    return layer


def test_new_values_are_laid_out_again():
    layer, x = qsr.QConv2d(5, 7, 3), torch.randn(2, 5, 8, 9)
    made = packed(layer, x)
    before = made(x)
    made.load_state_dict(packed(other_values(layer), x).state_dict())
    assert torch.equal(made(x), packed(layer, x, "reference")(x))
    assert not torch.equal(made(x), before)


@pytest.mark.parametrize(
    "again", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m)), lambda m: m.to("cpu")]
)
def test_a_copy_lays_out_its_own(again):
    layer, x = qsr.QConv2d(5, 7, 3), torch.randn(2, 5, 8, 9)
    made = packed(layer, x)
    expected = made(x)
    other = again(made)
    assert other._laid_out is None
    assert torch.equal(other(x), expected)


def test_what_is_laid_out_is_no_part_of_the_state():
    made = packed(qsr.QConv2d(5, 7, 3), x := torch.randn(2, 5, 8, 9))
    names = set(made.state_dict())
    made(x)
    assert set(made.state_dict()) == names


def test_threads_that_come_together_lay_out_once():
    layer, x = qsr.QConv2d(48, 48, 3), torch.randn(1, 48, 8, 9)
    made = packed(layer, x)
    with ThreadPoolExecutor(8) as pool:
        found = {id(laid) for laid in pool.map(lambda _: made.laid_out(), range(32))}
    assert len(found) == 1


# PyTorch's compilers ------------------------------------------------------------------------------


@functools.cache
def network():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 20, 3, padding=1), nn.ReLU(), nn.Conv2d(20, 5, 1))
    net = qsr.quantize(net, bits=4)
    qsr.calibrate(net, torch.randn(1, 3, 12, 12))
    return net


def layer_by_layer(net, kernel="auto"):
    """Packed without a plan."""
    return nn.Sequential(*(m if isinstance(m, nn.ReLU) else qsr.pack(m, kernel) for m in net))


@pytest.mark.parametrize("warm", [False, True], ids=["by planes", "in one call"])
@pytest.mark.parametrize("dynamic", [False, True])
def test_a_network_of_packed_layers_is_exported_and_compiled(warm, dynamic):
    made, x = layer_by_layer(network()), torch.randn(1, 3, 9, 11)
    if warm:
        made(x)
    shapes = ({2: torch.export.Dim.AUTO, 3: torch.export.Dim.AUTO},) if dynamic else None
    with torch.no_grad():
        program = torch.export.export(made, (x,), dynamic_shapes=shapes, strict=False)
        called = {node.target for node in program.graph.nodes}
        one_call = torch.ops.qsr_native.packed_conv2d.default in called
        torch._dynamo.reset()
        compiled = torch.compile(made, fullgraph=True, dynamic=dynamic, backend="aot_eager")
        expected = layer_by_layer(network(), "reference")(x)
        assert torch.equal(program.module()(x), expected)
        assert torch.equal(compiled(x), expected)
        if dynamic:
            other = torch.randn(1, 3, 14, 8)
            assert torch.equal(program.module()(other), made(other))
    assert one_call == warm


def test_the_operators_keep_what_pytorch_asks_of_them():
    conv = packed(qsr.QConv2d(5, 7, 3, stride=2), torch.randn(1, 5, 9, 9)).laid_out()
    linear = packed(qsr.QLinear(5, 7), torch.randn(4, 5)).laid_out()
    ops = torch.ops.qsr_native
    for laid, x, op, more in (
        (conv, torch.randn(2, 5, 9, 8), ops.packed_conv2d, (False,)),
        (conv, torch.randn(2, 9, 8, 5), ops.packed_conv2d, (True,)),
        (linear, torch.randn(6, 5), ops.packed_linear, ()),
    ):
        values = (laid.weights, laid.arrays, laid.codes, laid.shape, *more, laid.row)
        torch.library.opcheck(op.default, (x, *values))


# Refusals -----------------------------------------------------------------------------------------


def changed(numbers, **places):
    return [places.get(f"n{i}", n) for i, n in enumerate(numbers)]


@pytest.mark.parametrize(
    "places",
    [
        {"n0": 0}, {"n0": 6}, {"n1": -1}, {"n2": 2}, {"n3": 2**62}, {"n4": 10}, {"n5": 0},
        {"n7": 2**16, "n8": 2**16}, {"n9": -1}, {"n11": 0}, {"n11": 9}, {"n12": 2**32 + 4},
        {"n0": 2**16, "n3": 2**16},
    ],
)  # fmt: skip
def test_a_shape_that_would_read_outside_a_tensor_is_refused(places):
    laid = packed(qsr.QConv2d(5, 7, 3), torch.randn(1, 5, 9, 9)).laid_out()
    shape = changed(laid.shape, **places)
    with pytest.raises((RuntimeError, ValueError)):
        torch.ops.qsr_native.packed_conv2d(
            torch.randn(1, 5, 9, 9), laid.weights, laid.arrays, laid.codes, shape, False, "auto"
        )


def test_a_picture_smaller_than_the_kernel_is_refused_in_one_line():
    made = packed(qsr.QConv2d(5, 7, 3), torch.randn(1, 5, 9, 9))
    with pytest.raises((RuntimeError, ValueError), match="kernel"):
        made(torch.randn(1, 5, 2, 9))
