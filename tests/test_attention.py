"""Window attention on integers, and the float functions around it, are one written formula."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from qsr.integer import kernels, reference
from qsr.quantizer import QuantSpec, to_codes

# Float functions ----------------------------------------------------------------------------------


def test_exp_agrees_with_torch():
    x = torch.linspace(-80, 80, 100_001)
    torch.testing.assert_close(reference.exp(x), x.exp(), rtol=1e-5, atol=0)
    x = torch.linspace(-1, 1, 100_001)
    torch.testing.assert_close(reference.exp(x), x.exp(), rtol=4e-7, atol=0)


def test_exp_of_a_masked_pair_is_nothing():
    x = torch.tensor([-88.0, -100.0, -1e30, -torch.inf])
    assert not reference.exp(x).any()


def test_gelu_agrees_with_torch_everywhere():
    x = torch.cat([torch.linspace(-15, 15, 100_001), torch.tensor([-1e4, 1e4, -1e30, 1e30])])
    torch.testing.assert_close(reference.gelu(x), F.gelu(x.double()).float(), rtol=3e-7, atol=3e-7)


@pytest.mark.parametrize("features", [1, 15, 16, 17, 60, 64, 100])
def test_layer_norm_and_softmax_agree_with_torch(features):
    x, weight, bias = 3 * torch.randn(50, features) + 1, torch.rand(features), torch.rand(features)
    expected = F.layer_norm(x, (features,), weight, bias)
    torch.testing.assert_close(
        reference.layer_norm(x, weight, bias), expected, rtol=2e-6, atol=2e-6
    )
    e, total = reference.softmax_parts(x)
    torch.testing.assert_close(e / total, x.softmax(-1), rtol=2e-6, atol=1e-6)


# Attention ----------------------------------------------------------------------------------------


def case(windows, pixels, heads, width, masks, bits, signed, fill="random", seed=0):
    """Arguments of kernels.attention: random, or q, k and v all at one end of their ranges."""
    g = torch.Generator().manual_seed(seed)
    qkv = torch.randn(windows, pixels, 3 * heads * width, generator=g)
    if fill != "random":
        qkv = torch.full_like(qkv, -1e6 if fill == "minimum" else 1e6)
    steps = torch.rand(4, generator=g) * 0.3 + 0.05
    bias = torch.randn(heads, pixels, pixels, generator=g)
    mask = None
    if masks:
        mask = -100.0 * torch.randint(0, 2, (masks, pixels, pixels), generator=g)
    return (qkv, steps, bias, mask), {"heads": heads, "bits": bits, "signed": signed}


def test_attention_is_what_its_definition_says():
    (qkv, steps, bias, mask), options = case(4, 5, 2, 3, 2, [4, 4, 4, 4], [True, True, False, True])
    q, k, v = qkv.view(4, 5, 3, 2, 3).permute(2, 0, 3, 1, 4)
    specs = [QuantSpec(b, s) for b, s in zip(options["bits"], options["signed"], strict=True)]
    q, k, v = (
        to_codes(x, steps[i], specs[i]).double() for x, i in ((q * 3**-0.5, 0), (k, 1), (v, 3))
    )
    scores = (q @ k.mT).float() * (steps[0] * steps[1]) + bias
    scores = (scores.view(2, 2, 2, 5, 5) + mask[None, :, None]).flatten(0, 1)
    p = to_codes(scores.softmax(-1), steps[2], specs[2]).double()
    mixed = (p @ v).float() * (steps[2] * steps[3])
    expected = mixed.transpose(1, 2).reshape(4, 5, 6)
    result = kernels.attention(qkv, steps, bias, mask, **options, kernel="reference")
    torch.testing.assert_close(result, expected)


BITS = st.lists(st.integers(1, 8), min_size=4, max_size=4)
SIGNS = st.lists(st.booleans(), min_size=4, max_size=4)


@settings(deadline=None, max_examples=200)
@given(
    windows=st.integers(0, 5),
    pixels=st.sampled_from([1, 4, 16, 17, 64]),
    heads=st.sampled_from([1, 2, 6]),
    width=st.sampled_from([1, 4, 6, 10, 16, 17]),
    masked=st.booleans(),
    bits=BITS,
    signed=SIGNS,
    fill=st.sampled_from(["random", "random", "minimum", "maximum"]),
    seed=st.integers(0, 2**20),
)
def test_every_kernel_equals_the_reference(
    windows, pixels, heads, width, masked, bits, signed, fill, seed
):
    masks = max(1, windows) if masked else 0
    tensors, options = case(windows, pixels, heads, width, masks, bits, signed, fill, seed)
    expected = reference.attention(*tensors, heads, bits, signed)
    # Bits of two bytes together; unsigned codes below 8 bits take one more as a right factor.
    pairs = zip(bits[::2], bits[1::2], signed[1::2], strict=True)
    most = max(a + b + (0 if s or b == 8 else 1) for a, b, s in pairs)
    for name in kernels.available("attention")[:-1]:
        if name == "avx2" and most > 15:
            with pytest.raises(ValueError, match="`kernel` is 'avx2', which does not run Swin"):
                kernels.attention(*tensors, **options, kernel=name)
            continue
        result = kernels.attention(*tensors, **options, kernel=name)
        assert torch.equal(result, expected), name


def test_a_window_does_not_depend_on_its_neighbours_or_on_threads():
    (qkv, steps, bias, mask), options = case(
        6, 16, 2, 5, 3, [4, 4, 4, 4], [True, True, False, True]
    )
    whole = kernels.attention(qkv, steps, bias, mask, **options)
    alone = kernels.attention(qkv[4:5], steps, bias, mask[1:2], **options)
    assert torch.equal(whole[4:5], alone)
    torch.set_num_threads(3)
    try:
        assert torch.equal(kernels.attention(qkv, steps, bias, mask, **options), whole)
    finally:
        torch.set_num_threads(1)


def test_nan_has_code_0():
    (qkv, steps, bias, _), options = case(1, 4, 1, 4, 0, [4] * 4, [True, True, False, True])
    zeroed = qkv.clone()
    qkv[0, 2, 5], zeroed[0, 2, 5] = torch.nan, 0.0
    for name in ("auto", *kernels.available("attention")):
        a, b = (
            kernels.attention(x, steps, bias, None, **options, kernel=name) for x in (qkv, zeroed)
        )
        assert torch.equal(a, b), name


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"heads": 4}, "heads divide the features"),
        ({"bits": [9, 4, 4, 4]}, "`bits` is 9"),
        ({"kernel": "wings"}, "`kernel` is 'wings'"),
    ],
)
def test_a_wrong_argument_is_told_in_one_line(change, message):
    tensors, options = case(2, 4, 2, 3, 0, [4] * 4, [True, True, False, True])
    with pytest.raises(ValueError, match=message):
        kernels.attention(*tensors, **{**options, **change})
