"""The packed format (docs/packed-format.md), as the plain PyTorch version writes it."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from qsr.integer.bitplanes import BitPlanes, pack_codes, unpack_codes, words_for
from qsr.quantizer import QuantSpec


def random_codes(shape, bits, signed, seed=0):
    """int8 or uint8 codes over the whole range of `bits`."""
    spec = QuantSpec(bits, signed)
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(spec.qmin, spec.qmax + 1, shape, generator=generator).to(spec.dtype)


@settings(deadline=None)
@given(
    bits=st.integers(1, 8),
    signed=st.booleans(),
    per_group=st.sampled_from([1, 63, 64, 65, 130]),
    groups=st.integers(1, 3),
    pixels=st.tuples(st.integers(0, 2), st.integers(1, 3), st.integers(1, 3)),
    seed=st.integers(0, 2**20),
)
def test_unpacking_is_the_inverse_of_packing(bits, signed, per_group, groups, pixels, seed):
    codes = random_codes((*pixels, groups * per_group), bits, signed, seed)
    planes = pack_codes(codes, bits, signed, groups)
    assert planes.words.shape == (*pixels, groups, bits, words_for(per_group))
    assert (planes.bits, planes.groups, planes.channels) == (bits, groups, groups * per_group)
    back = unpack_codes(planes)
    assert back.dtype == codes.dtype
    assert torch.equal(back, codes)


@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("bits", range(1, 9))
def test_code_zero_is_the_all_zero_word(bits, signed):
    codes = torch.zeros(1, 2, 2, 70, dtype=torch.int8 if signed else torch.uint8)
    assert not pack_codes(codes, bits, signed).words.any()


@pytest.mark.parametrize("channels", [1, 63, 64, 65, 130])
def test_bits_beyond_the_last_channel_are_zero(channels):
    # Signed -1 has all its bits set, so a plane of it shows exactly which lanes are in use.
    words = pack_codes(torch.full((1, 1, 1, channels), -1, dtype=torch.int8), 3, True).words
    lanes = (words[..., None] >> torch.arange(64)) & 1
    used = lanes.flatten(-2).bool()
    assert used[..., :channels].all()
    assert not used[..., channels:].any()


def test_the_worked_example_of_the_format_page():
    codes = torch.tensor([3, -1, 0, -4], dtype=torch.int8).view(1, 1, 1, 4)
    assert pack_codes(codes, 3, True).words.flatten().tolist() == [0b0011, 0b0011, 0b1010]


def test_channel_63_is_the_sign_bit_of_the_word_and_channel_64_starts_the_next():
    codes = torch.zeros(1, 1, 1, 65, dtype=torch.uint8)
    codes[..., 63] = codes[..., 64] = 1
    assert pack_codes(codes, 1, False).words.flatten().tolist() == [-(2**63), 1]


def test_each_group_starts_a_new_word():
    codes = torch.tensor([1, 0, 0, 1], dtype=torch.uint8).view(1, 1, 1, 4)
    assert pack_codes(codes, 1, False, groups=2).words.flatten().tolist() == [0b01, 0b10]


def test_non_contiguous_codes_pack_like_contiguous_ones():
    nchw = random_codes((2, 70, 3, 5), 4, True)
    nhwc = nchw.permute(0, 2, 3, 1)
    assert not nhwc.is_contiguous()
    assert torch.equal(
        pack_codes(nhwc, 4, True, groups=2).words,
        pack_codes(nhwc.contiguous(), 4, True, groups=2).words,
    )


@pytest.mark.parametrize(
    ("codes", "bits", "signed", "groups", "error", "words"),
    [
        (torch.zeros(1, 1, 1, 4, dtype=torch.int8), 9, True, 1, ValueError, "`bits` is 9"),
        (torch.zeros(1, 1, 1, 4, dtype=torch.int8), 0, True, 1, ValueError, "`bits` is 0"),
        (torch.zeros(1, 1, 1, 4), 4, True, 1, TypeError, "torch.float32"),
        (torch.zeros(1, 1, 4, dtype=torch.int8), 4, True, 1, ValueError, "(1, 1, 4)"),
        (torch.zeros(1, 1, 1, 4, dtype=torch.int8), 4, True, 3, ValueError, "`groups` is 3"),
        (torch.full((1, 1, 1, 4), 8, dtype=torch.int8), 4, True, 1, ValueError, "-8 to 7"),
        (torch.full((1, 1, 1, 4), -1, dtype=torch.int8), 4, False, 1, ValueError, "0 to 15"),
    ],
)
def test_codes_that_do_not_fit_are_refused_in_one_line(codes, bits, signed, groups, error, words):
    with pytest.raises(error) as raised:
        pack_codes(codes, bits, signed, groups)
    assert words in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("words", "channels", "error"),
    [
        (torch.zeros(1, 1, 1, 1, 4, 1, dtype=torch.int32), 64, TypeError),
        (torch.zeros(1, 1, 1, 4, 1, dtype=torch.int64), 64, ValueError),  # a dimension is missing
        (torch.zeros(1, 1, 1, 1, 9, 1, dtype=torch.int64), 64, ValueError),  # nine planes
        (torch.zeros(1, 1, 1, 1, 4, 1, dtype=torch.int64), 65, ValueError),  # needs two words
        (torch.zeros(1, 1, 1, 2, 4, 1, dtype=torch.int64), 65, ValueError),  # odd in two groups
    ],
)
def test_words_that_do_not_fit_their_description_are_refused(words, channels, error):
    with pytest.raises(error):
        BitPlanes(words, True, channels)
