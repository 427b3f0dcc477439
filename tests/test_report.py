"""qsr.report: a row for each layer that multiplies, what runs it, and why not integers."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations

import qsr
from qsr.integer import kernels
from qsr.integer.packed_layers import PackedLayer
from qsr.system import native

SMALL = {"features": 8, "blocks": 2, "depths": (2, 1)}


class Net(nn.Module):
    """Layers that pack, that wait, that stay, and products that are written out."""

    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, padding=1)
        self.body = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 1))
        self.up = nn.Conv2d(8, 8, 3, padding=1, padding_mode="reflect")
        self.product = qsr.QMatmul(bits=(8, 4))
        self.cell = nn.GRUCell(8, 8)
        self.written = Written()

    def forward(self, x):
        x = self.up(self.body(self.first(x)))
        x = self.product(x.softmax(-1), x.transpose(-2, -1))
        return self.written(x), self.cell(x.mean((2, 3)))


class Written(nn.Module):
    def __init__(self):
        super().__init__()
        self.scale = parametrizations.weight_norm(nn.Conv2d(8, 8, 1))

    def forward(self, x):
        x = self.scale(x)
        return F.conv2d(x @ x.transpose(-2, -1), torch.ones(1, 8, 1, 1))


@pytest.fixture
def net():
    with pytest.warns(UserWarning, match="not yet packed: 'up'"):
        net = qsr.quantize(Net(), (4, 2), skip=["first"])
    return net


def rows(model, *inputs):
    return {row.layer: row for row in qsr.report(model, *inputs).layers}


def test_each_layer_that_multiplies_has_a_row(net):
    table = rows(net)
    assert list(table) == [
        "first", "body.0", "body.2", "up", "product", "cell", "written.scale",
    ]  # fmt: skip
    assert (table["first"].kernel, table["first"].why_not) == ("float", "not quantised")
    assert (table["first"].bits, table["first"].signed) == (None, None)
    assert (table["body.2"].bits, table["body.2"].signed) == ((4, 2), (True, None))
    assert table["body.2"].why_not == "not calibrated"
    assert "mode 'reflect'" in table["up"].why_not
    assert "no quantised layer is of this kind" in table["cell"].why_not


def test_after_calibration_signs_and_kernels_are_known_and_packing_keeps_them(net):
    x = torch.rand(1, 3, 6, 6)
    qsr.calibrate(net, x)
    table = rows(net)
    assert table["body.2"].signed == (True, False) and table["product"].signed[0] is False
    assert table["body.2"].kernel.partition(",")[0] in kernels.available("conv2d")
    assert table["up"].kernel == "float"
    del net.up
    packed = rows(qsr.pack(net))
    for name in ("body.0", "body.2", "product", "written.scale"):
        assert packed[name].kind.startswith("Packed") and not packed[name].why_not
        shown = [(row.bits, row.signed, row.kernel) for row in (packed[name], table[name])]
        assert shown[0] == shown[1]


@pytest.mark.parametrize("kernel", kernels.available("conv2d"))
def test_the_kernel_of_a_row_runs_the_layer(kernel):
    layer = qsr.QConv2d(64, 64, 3, padding=1, bits=4)
    qsr.calibrate(layer, torch.rand(1, 64, 4, 4))
    auto = qsr.pack(layer).running_kernel()
    qsr.pack(layer, auto)  # raises for a kernel that does not take it
    try:
        packed = qsr.pack(layer, kernel)
    except ValueError:
        assert auto != kernel
    else:
        assert packed.running_kernel() == kernel
        names = kernels.available("conv2d")
        assert names.index(auto) <= names.index(kernel)  # the best that takes it


def test_with_an_input_the_products_that_a_forward_writes_out_have_rows_too(net):
    x = torch.rand(1, 3, 6, 6)
    qsr.calibrate(net, x)
    hooks = [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in net.modules()]
    table = rows(net, x)
    assert set(table) - set(rows(net)) == {"written"}
    assert table["written"].kind == "Written"
    assert table["written"].why_not == "its forward multiplies by bmm, convolution"
    after = [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in net.modules()]
    assert after == hooks


def test_a_float_model_and_a_lone_layer_have_a_table():
    assert [row.why_not for row in qsr.report(nn.Sequential(nn.Linear(2, 2))).layers] == [
        "not quantised"
    ]
    assert "(root)" in repr(qsr.report(nn.LSTM(2, 2)))
    assert qsr.report(nn.ReLU()).layers == ()


def test_the_parts_of_an_attention_are_layers_before_packing_and_after():
    net = qsr.quantize(nn.Sequential(nn.MultiheadAttention(4, 2)), attention_bits=4)
    table = rows(net)
    parts = ("out_proj", "query", "key", "value", "scores", "mix")
    assert list(table) == [f"0.{part}" for part in parts]
    assert {row.why_not for row in table.values()} == {"not calibrated"}
    qsr.calibrate(net[0], *[torch.randn(3, 2, 4)] * 3)
    before, after = rows(net), rows(qsr.pack(net[0]))
    kernels = {row.layer[2:]: row.kernel for row in before.values()}
    assert kernels == {row.layer: row.kernel for row in after.values()}
    assert "float" not in kernels.values()


@pytest.mark.parametrize(
    "config",
    [
        qsr.quantsr_c(2, 4, **SMALL),
        qsr.quantsr_t(2, 4, attention_bits=4, layers=2, heads=2, window=4, **SMALL),
    ],
    ids=["QuantSR-C", "QuantSR-T"],
)
def test_a_network_that_runs_as_a_program_says_so_before_and_after_packing(config):
    net, lr = qsr.QuantSR(config), torch.rand(1, 3, 8, 8)
    qsr.calibrate(net, lr)
    packed = qsr.pack(net)
    before, after = rows(net), rows(packed, lr)
    layers = [n for n, m in packed.network.named_modules() if isinstance(m, PackedLayer)]
    assert layers
    for name in layers:
        assert before[name].kernel == after[name].kernel == f"{packed.program.kernel}, program"
    assert before["head"].kernel == after["head"].kernel == "float"


def test_the_table_is_text_with_a_head_and_straight_columns(net):
    lines = repr(qsr.report(net)).split("\n")
    assert lines[0].split() == ["layer", "kind", "bits", "signed", "kernel", "why", "not"]
    column = lines[0].index("kernel")
    assert all(line[column - 1] == " " and line[column] != " " for line in lines)
    assert lines[2].split()[:4] == ["body.0", "QConv2d", "4/2", "yes/?"]


def test_a_layer_that_float_runs_faster_is_said_to_be_one():
    net = qsr.quantize(
        nn.Sequential(nn.Conv2d(16, 16, 3, groups=16), nn.Conv2d(16, 16, 3), nn.Conv2d(16, 4, 1))
    )
    qsr.calibrate(net, torch.rand(1, 16, 9, 9))
    kernels = [row.kernel for row in qsr.report(net).layers]
    if native.load().native:
        assert [kernel.endswith(", float is faster") for kernel in kernels] == [True, False, True]
