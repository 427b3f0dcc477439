"""The integer Winograd transforms of csrc/conv3x3_*.cpp are the 3x3 convolution, multiplied out."""

import numpy as np
import pytest

# One dimension each: scale * y = A (H g * B d), y_k = sum_i d[k + i] g[i]. Rows are the forms that
# the headers of the two files list.
VNNI = {
    "scale": 4,
    "B": [
        [1, 0, 0, 0, -1, 0],
        [0, 1, 1, 1, 1, 0],
        [0, -1, 1, -1, 1, 0],
        [0, -1, -1, 1, 1, 0],
        [0, -1, 1, 1, -1, 0],
        [0, 1, 0, -1, 0, 0],
        [0, -1, 0, 0, 0, 1],
    ],
    "H": [[4, 0, 0], [1, 1, 1], [1, -1, 1], [1, 0, -1], [0, 1, 0], [1, 1, -1], [0, 0, 4]],
    "A": [
        [1, 1, 1, 2, 0, 2, 0],
        [0, 1, -1, 0, 2, 2, 0],
        [0, 1, 1, -2, 0, -2, 0],
        [0, 1, -1, 0, -2, -2, 1],
    ],
}
AVX2 = {
    "scale": 2,
    "B": [[1, 0, -1, 0], [0, 1, 1, 0], [0, -1, 1, 0], [0, 1, 0, -1]],
    "H": [[2, 0, 0], [1, 1, 1], [1, -1, 1], [0, 0, 2]],
    "A": [[1, 1, 1, 0], [0, 1, -1, -1]],
}
TRANSFORMS = {"winograd-vnni": VNNI, "winograd-avx2": AVX2}


def matrices(name):
    return (np.array(TRANSFORMS[name][key], dtype=np.int64) for key in "BHA")


@pytest.mark.parametrize("name", TRANSFORMS)
def test_the_forms_multiply_out_to_the_correlation(name):
    b, h, a = matrices(name)
    # coefficient of d[j] g[i] in output k: the sum over products p of A[k, p] H[p, i] B[p, j]
    coefficients = np.einsum("kp,pi,pj->kij", a, h, b)
    expected = np.zeros_like(coefficients)
    for k in range(len(a)):
        for i in range(3):
            expected[k, i, k + i] = TRANSFORMS[name]["scale"]
    assert np.array_equal(coefficients, expected)


def reach(forms, low, high):
    """The smallest and the largest value of each form of inputs in low..high."""
    positive, negative = forms.clip(min=0).sum(1), forms.clip(max=0).sum(1)
    return positive * low + negative * high, positive * high + negative * low


@pytest.mark.parametrize("name", TRANSFORMS)
@pytest.mark.parametrize("bits", [2, 3, 4])
def test_transformed_weights_fit_a_signed_byte(name, bits):
    _, h, _ = matrices(name)
    low, high = reach(np.kron(h, h), -(1 << (bits - 1)), (1 << (bits - 1)) - 1)
    assert low.min() >= -128 and high.max() <= 127


@pytest.mark.parametrize("name", TRANSFORMS)
@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("bits", [2, 3, 4])
def test_transformed_codes_fit_a_byte_with_one_offset(name, bits, signed):
    b, _, _ = matrices(name)
    forms = np.kron(b, b)
    zero = 1 << (bits - 1)
    low, high = reach(forms, -zero if signed else 0, zero - 1 if signed else 2 * zero - 1)
    # The offset of the AVX2 row depends on the width, that of the other is 128; none where all
    # signs are plus, at position (1, 1), if codes are unsigned.
    offset = np.full(len(forms), 128 if name == "winograd-vnni" else 4 * zero)
    if not signed:
        offset[len(b) + 1] = 0
    assert (low + offset).min() >= 0 and (high + offset).max() <= 255
