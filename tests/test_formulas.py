"""Functions that PyTorch gives no fixed bits, by formulas: near the truth, and everywhere alike."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_plan import ready
from torch import nn
from torch.nn import functional as F

from qsr.integer import calls, formulas, plan_reference, reference
from qsr.integer.executor import Executor
from qsr.integer.reference import ELEMENTS
from qsr.system import native

TRUE = {"sigmoid": torch.sigmoid, "gelu": F.gelu, "silu": F.silu, "tanh": torch.tanh}
ODD = torch.tensor([float("nan"), float("inf"), -float("inf"), 0.0, -0.0, 1e30, -1e30, 1e-40])
ODD_NAN = torch.tensor([0x7FC00001, -1], dtype=torch.int32).view(torch.float32)
X = torch.cat([torch.linspace(-110, 110, 440_001), torch.linspace(-4, 4, 80_001), ODD, ODD_NAN])


def alike(a, b):
    return torch.equal(a.isnan(), b.isnan()) and torch.equal(a.nan_to_num(9), b.nan_to_num(9))


@pytest.mark.parametrize(
    ("kind", "error"), [("sigmoid", 1.2e-7), ("silu", 1.8e-7), ("tanh", 2.2e-7), ("gelu", 2.6e-7)]
)
def test_a_formula_is_as_near_to_the_truth_as_it_says(kind, error):
    x = X[X.abs() <= 110].double()
    allowed = error * (x.abs() if kind == "silu" else 1) + 1e-12
    assert ((ELEMENTS[kind](x.float()).double() - TRUE[kind](x)).abs() <= allowed).all()


@pytest.mark.parametrize("kind", ELEMENTS)
def test_the_native_function_has_the_bits_of_the_formula(kind):
    for x in (
        X,
        X[:7],
        X[:0],
        X[:24].view(2, 3, 2, 2).contiguous(memory_format=torch.channels_last),
    ):
        y = formulas.element(kind, x)
        assert alike(y, ELEMENTS[kind](x)) and y.stride() == x.stride()


SIZES = st.integers(1, 9)
PAIRS = st.tuples(SIZES, SIZES)


@settings(deadline=None, max_examples=100)
@given(PAIRS, PAIRS, st.booleans())
def test_bilinear_interpolation_is_that_of_pytorch(size, to, align):
    x = torch.randn(2, 3, *size)
    y = F.interpolate(x.double(), to, mode="bilinear", align_corners=align)
    torch.testing.assert_close(reference.bilinear(x, *to, align).double(), y, rtol=0, atol=2e-6)


@settings(deadline=None, max_examples=60)
@given(PAIRS, PAIRS, st.integers(1, 20), st.booleans())
def test_a_resampling_step_alone_has_the_bits_of_its_formula(size, to, channels, option):
    x = torch.randn(2, channels, *size).contiguous(memory_format=torch.channels_last)
    expected = reference.bilinear(x, *to, option)
    assert torch.equal(formulas.resampled("bilinear", x, (int(option), *to)), expected)
    kernel = tuple(map(min, to, size))
    for numbers in ((kernel, to, tuple(k // 2 for k in kernel), int(option)), calls.OF_ALL):
        expected = reference.average(x, *numbers)
        assert torch.equal(formulas.resampled("average", x, numbers), expected)


def test_corners_and_centres_lie_where_they_say():
    x = torch.tensor([[0.0, 4.0]])
    assert reference.bilinear(x, 1, 4, 0).tolist() == [[0, 1, 3, 4]]
    assert reference.bilinear(x, 1, 5, 1).tolist() == [[0, 1, 2, 3, 4]]


@settings(deadline=None, max_examples=100)
@given(PAIRS, PAIRS, PAIRS, st.tuples(st.integers(0, 4), st.integers(0, 4)), st.booleans())
def test_an_average_is_that_of_pytorch(size, kernel, stride, padding, counts):
    padding = tuple(min(p, k // 2) for p, k in zip(padding, kernel, strict=True))
    size = tuple(max(n, k) for n, k in zip(size, kernel, strict=True))
    x = torch.randn(2, 3, *size)
    y = F.avg_pool2d(x.double(), kernel, stride, padding, count_include_pad=counts)
    close = {"rtol": 0, "atol": 1e-6}
    torch.testing.assert_close(
        reference.average(x, kernel, stride, padding, counts).double(), y, **close
    )
    whole = reference.average(x, *calls.OF_ALL)
    torch.testing.assert_close(whole.double(), x.double().mean((2, 3), keepdim=True), **close)


@pytest.mark.parametrize("n", [1, 2, 3, 5, 8, 13, 24])
def test_a_tree_adds_each_number_once(n):
    assert reference.tree_sum(2.0 ** torch.arange(n)) == 2**n - 1


@pytest.mark.parametrize("row", ["portable", "avx2", "avx512"])
@pytest.mark.parametrize("kind", ELEMENTS)
def test_each_row_has_the_bits_of_the_formula(kind, row):
    if not native.load().native:
        pytest.skip("needs native code")
    try:
        y = torch.ops.qsr_native.element(X, kind, row)
    except RuntimeError as error:
        pytest.skip(f"{row}: {error}")
    assert alike(y, ELEMENTS[kind](X))


class Gates(nn.Module):
    """Each function of `ELEMENTS`, in all ways that it is written."""

    def __init__(self):
        super().__init__()
        self.convs = nn.ModuleList(nn.Conv2d(5, 5, 3, padding=1) for _ in range(5))
        self.acts = nn.ModuleList([nn.Sigmoid(), nn.SiLU(inplace=True), nn.GELU(), nn.Tanh()])

    def forward(self, x):
        for conv, act in zip(self.convs, self.acts, strict=False):
            x = act(conv(x))
        y = self.convs[4](3 * x)
        y = y.sigmoid() * F.silu(y) + F.gelu(y) * torch.tanh(y)
        return self.convs[4](y).sigmoid_() + F.gelu(x, approximate="tanh")


@pytest.mark.parametrize("row", ["auto", "portable", "winograd-avx2", "direct-avx2", "direct-vnni"])
def test_every_row_has_the_bits_of_the_formulas(row):
    torch.manual_seed(1)
    x = torch.randn(1, 5, 9, 7)
    net = ready(Gates(), x)
    if row not in ("auto", *net.convs[0].shape.rows()):
        pytest.skip(f"{row} does not run here")
    plan, *more = net.plan.plans
    assert len(plan.steps) > 5 and not more
    given = [torch.randn(9, 7, 5)]
    for a, b in zip(
        Executor(plan, net, row)(given), plan_reference.run(plan, net, given), strict=True
    ):
        assert torch.equal(a, b)
    assert torch.equal(net(x), net.layer_by_layer(x))


def test_what_stays_in_pytorch_has_the_formulas_too():
    torch.manual_seed(1)

    class Plain(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.last = nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1)

        def forward(self, x):
            return torch.sigmoid(self.last(F.gelu(self.first(x)).flatten(1).view_as(x)))

    x = torch.randn(1, 3, 6, 6)
    net = ready(Plain(), x, skip=["first"])
    with torch.no_grad():
        hidden = ELEMENTS["gelu"](net.first(x)).flatten(1).view_as(x)
        assert torch.equal(net(x), ELEMENTS["sigmoid"](net.last(hidden)))
    assert torch.equal(net(x), net.layer_by_layer(x))


def test_other_types_and_other_options_are_left_to_pytorch():
    x = torch.randn(100)
    with formulas.formulas():
        assert torch.equal(x.double().sigmoid(), torch.sigmoid(x.double()))
        assert torch.equal(F.gelu(x, approximate="tanh"), F.gelu(x, approximate="tanh"))
        assert torch.equal(F.silu(x), ELEMENTS["silu"](x))
        y = x.clone()
        assert torch.sigmoid_(y) is y and torch.equal(y, ELEMENTS["sigmoid"](x))
