"""The reference against PyTorch's own operators, which know nothing of codes or planes."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from qsr.integer import reference
from qsr.integer.bitplanes import pack_codes, unpack_codes
from qsr.quantizer import QuantSpec


def random_codes(shape, bits, signed, seed):
    spec = QuantSpec(bits, signed)
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(spec.qmin, spec.qmax + 1, shape, generator=generator).to(spec.dtype)


@settings(deadline=None)
@given(
    bits=st.tuples(st.integers(1, 8), st.integers(1, 8)),
    signed=st.tuples(st.booleans(), st.booleans()),
    groups=st.integers(1, 3),
    per_group=st.sampled_from([1, 5, 65]),
    kernel=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    stride=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    padding=st.tuples(st.integers(0, 3), st.integers(0, 3)),
    seed=st.integers(0, 2**20),
)
def test_conv2d_is_the_convolution_of_float64(
    bits, signed, groups, per_group, kernel, stride, padding, seed
):
    a = random_codes((2, 4, 3, groups * per_group), bits[0], signed[0], seed)
    w = random_codes((2 * groups, *kernel, per_group), bits[1], signed[1], seed + 1)
    acc = reference.conv2d(
        pack_codes(a, bits[0], signed[0], groups),
        pack_codes(w, bits[1], signed[1]),
        stride,
        padding,
    )
    # float64 holds these integers exactly; its zero padding is code 0.
    expected = F.conv2d(
        a.permute(0, 3, 1, 2).double(),
        w.permute(0, 3, 1, 2).double(),
        stride=stride,
        padding=padding,
        groups=groups,
    )
    assert acc.dtype == torch.int32
    assert torch.equal(acc, expected.permute(0, 2, 3, 1).to(torch.int32))


def test_linear_is_the_matrix_product():
    a, w = random_codes((7, 1, 1, 70), 4, True, 0), random_codes((5, 1, 1, 70), 3, True, 1)
    acc = reference.linear(pack_codes(a, 4, True), pack_codes(w, 3, True))
    assert torch.equal(acc, (a.view(7, 70).long() @ w.view(5, 70).long().T).to(torch.int32))


def test_quantisation_rounds_halves_to_even_and_clips():
    step = torch.tensor(0.25)  # a power of two: every quotient here is exact
    halves = torch.tensor([-2.5, -1.5, -0.5, 0.5, 1.5, 2.5, 100.0, -100.0]) * step
    planes = reference.quantize(halves.view(1, 1, 1, -1), step, None, 3, True)
    assert unpack_codes(planes).flatten().tolist() == [-2, -2, 0, 0, 2, 2, 3, -4]


def test_quantisation_divides_by_the_step():
    # On a rounding threshold the quotient and the product with 1 / step can fall on either side.
    steps = torch.linspace(0.05, 0.5, 2000)
    for step in steps:
        x = (torch.arange(7, dtype=torch.float32) + 0.5) * step
        quotient, product = (x / step).round(), (x * (1 / step)).round()
        if not torch.equal(quotient, product):
            break
    else:
        pytest.fail("no step tells the two apart, so this test could not fail")
    codes = unpack_codes(reference.quantize(x.view(1, 1, 1, -1), step, None, 4, True))
    assert torch.equal(codes.flatten(), quotient.to(torch.int8))


def test_nan_gives_code_zero_whatever_tau_is():
    x = torch.full((1, 2, 1, 1), float("nan"))
    planes = reference.quantize(x, torch.tensor(0.5), torch.tensor([0.0, 1.5]), 4, True)
    assert not planes.words.any()


def test_infinities_clip():
    x = torch.tensor([float("inf"), float("-inf")]).view(1, 1, 1, 2)
    planes = reference.quantize(x, torch.tensor(0.5), None, 4, True)
    assert unpack_codes(planes).flatten().tolist() == [7, -8]


def test_the_epilogue_rounds_product_and_sum_separately():
    # acc * scale = 1 + 2^-23 + 2^-24 + ... needs more than 24 bits; fused with bias -1 the low bits
    # would survive. Rounded first, the product is a float32 and so is the difference.
    acc = torch.tensor([[[[4097]]]], dtype=torch.int32)
    scale = torch.tensor(4097.0 / 2**24, dtype=torch.float32)
    bias = torch.tensor([-1.0])
    product = (acc.double() * scale.double()).float()
    fused = (acc.double() * scale.double() + bias.double()).float()
    y = reference.epilogue(acc, scale, bias)
    assert y.dtype == torch.float32
    assert torch.equal(y, product + bias)
    assert not torch.equal(y, fused)  # so the test tells the two apart


@pytest.mark.parametrize("scale", [torch.tensor(0.5), torch.tensor([0.5, 2.0])])
def test_the_epilogue_takes_one_scale_or_one_per_channel(scale):
    acc = torch.tensor([[4, -4]], dtype=torch.int32)
    assert torch.equal(reference.epilogue(acc, scale, None), acc.float() * scale)
