"""The integer Winograd transforms of csrc/network/conv_winograd_*.cpp are the 3x3 convolution,
multiplied out. The matrices are those that the kernels are compiled from: weights and constants are
laid out by them, and what is done with vectors is held to them when it is compiled (`computes`).
"""

import ast
import re

import numpy as np
import pytest

from qsr.system import native

ROWS = {"winograd-vnni": "conv_winograd_vnni.cpp", "winograd-avx2": "conv_winograd_avx2.cpp"}


def constant(name, key):
    """The value of a constexpr int of a source: a number, or nested lists of its array."""
    source = (native.CSRC / "network" / ROWS[name]).read_text()
    (text,) = re.findall(rf"[ ,]{key}(?:\[[^=]*\])? = (\{{[^;]*\}}|\d+)[;,]", source)
    return ast.literal_eval(text.replace("{", "[").replace("}", "]"))


def scale(name):
    """How many times too large the outputs of one dimension are, scale * y = A (H g * B d) with
    y_k = sum_i d[k + i] g[i]: its square is the 2^kShift that the finish divides by."""
    return 1 << constant(name, "kShift") // 2


def matrices(name):
    return (np.array(constant(name, key), dtype=np.int64) for key in ("kB", "kH", "kA"))


@pytest.mark.parametrize("name", ROWS)
def test_the_forms_multiply_out_to_the_correlation(name):
    b, h, a = matrices(name)
    # coefficient of d[j] g[i] in output k: the sum over products p of A[k, p] H[p, i] B[p, j]
    coefficients = np.einsum("kp,pi,pj->kij", a, h, b)
    expected = np.zeros_like(coefficients)
    for k in range(len(a)):
        for i in range(3):
            expected[k, i, k + i] = scale(name)
    assert np.array_equal(coefficients, expected)


def reach(forms, low, high):
    """The smallest and the largest value of each form of inputs in low..high."""
    positive, negative = forms.clip(min=0).sum(1), forms.clip(max=0).sum(1)
    return positive * low + negative * high, positive * high + negative * low


@pytest.mark.parametrize("name", ROWS)
@pytest.mark.parametrize("bits", [2, 3, 4])
def test_transformed_weights_fit_a_signed_byte(name, bits):
    _, h, _ = matrices(name)
    low, high = reach(np.kron(h, h), -(1 << (bits - 1)), (1 << (bits - 1)) - 1)
    assert low.min() >= -128 and high.max() <= 127


@pytest.mark.parametrize("name", ROWS)
@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("bits", [2, 3, 4])
def test_transformed_codes_fit_a_byte_with_one_offset(name, bits, signed):
    b, _, _ = matrices(name)
    forms = np.kron(b, b)
    zero = 1 << (bits - 1)
    low, high = reach(forms, -zero if signed else 0, zero - 1 if signed else 2 * zero - 1)
    # One offset for all positions; none where all signs are plus, at position (1, 1), if codes are
    # unsigned.
    offset = np.full(len(forms), constant(name, "kOffsets")[bits])
    if not signed:
        offset[len(b) + 1] = 0
    assert (low + offset).min() >= 0 and (high + offset).max() <= 255


def test_the_usual_points_give_inputs_that_no_byte_holds():
    """The numbers of decision 0009 and of notebook 05: points 0, 1, -1, 2, -2 and infinity."""
    b = np.array(
        [
            [4, 0, -5, 0, 1, 0],
            [0, -4, -4, 1, 1, 0],
            [0, 4, -4, -1, 1, 0],
            [0, -2, -1, 2, 1, 0],
            [0, 2, -1, -2, 1, 0],
            [0, 4, 0, -5, 0, 1],
        ]
    )
    for (smallest, largest), extremes in (((0, 15), (-750, 1020)), ((-8, 7), (-768, 750))):
        low, high = reach(np.kron(b, b), smallest, largest)
        assert (low.min(), high.max(), (high - low).max()) == (*extremes, 1500)
