"""Functions that PyTorch gives no fixed bits, by formulas: near the truth, and everywhere alike."""

import pytest
import torch
from test_plan import ready
from torch import nn
from torch.nn import functional as F

from qsr.integer import formulas, plan_reference
from qsr.integer.executor import Executor
from qsr.integer.formulas import ELEMENTS

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
        y = formulas.apply(kind, x)
        assert alike(y, ELEMENTS[kind](x)) and y.stride() == x.stride()


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
