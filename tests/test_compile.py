"""Packed networks inside torch.compile and torch.export."""

import copy
import subprocess
import sys

import pytest
import torch

import qsr

NETWORKS = {
    "QuantSR-C": qsr.quantsr_c(2, 4, features=8, blocks=2, depths=(2, 1)),
    "QuantSR-T": qsr.quantsr_t(
        2, 4, attention_bits=4, features=8, blocks=2, depths=(2, 1), layers=2, heads=2, window=4
    ),
}


@pytest.fixture(params=NETWORKS)
def packed(request):
    torch._dynamo.reset()
    torch.manual_seed(0)
    net = qsr.QuantSR(NETWORKS[request.param])
    qsr.calibrate(net, torch.rand(1, 3, 16, 16))
    return qsr.pack(net)


def test_an_exported_network_gives_the_same_picture(packed):
    lr = torch.rand(1, 3, 11, 9)
    packed(lr)  # plans the program
    with torch.no_grad():
        program = torch.export.export(packed, (lr,))
    assert torch.equal(program.module()(lr), packed(lr))


@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize("count, blocks", [(1, None), (2, 1)])
def test_a_compiled_network_gives_the_same_pictures(packed, count, blocks, dynamic):
    lr = torch.rand(count, 3, 11, 9)
    compiled = torch.compile(packed, fullgraph=True, dynamic=dynamic)
    assert torch.equal(compiled(lr, blocks), packed(lr, blocks))


def test_what_stands_around_a_packed_network_is_compiled_in_one_piece_with_it(packed):
    other = copy.deepcopy(packed)
    with torch.no_grad():
        other.network.head.bias += 0.1

    def both(lr):
        return packed(lr * 0.5).clamp(0, 1) - other(lr).mean()

    lr = torch.rand(1, 3, 11, 9)
    compiled = torch.compile(both, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(lr), both(lr))
    state = {name: value.clone() for name, value in other.state_dict().items()}
    packed.load_state_dict(state)
    assert torch.equal(compiled(lr), both(lr))
    with pytest.raises(ValueError, match="blocks"):
        torch.compile(packed)(lr, 3)


def test_a_packed_network_is_an_operator_as_pytorch_asks(packed):
    for height in (11, 8):
        lr = torch.rand(1, 3, height, 9)
        torch.library.opcheck(torch.ops.qsr.packed.default, (lr, packed._number, 1))


TUNED_FIRST = """
import torch, qsr
low = qsr.quantize(torch.nn.Sequential(torch.nn.Conv2d(3, 16, 3), torch.nn.Conv2d(16, 3, 3)), 4)
x = torch.rand(1, 3, 9, 9)
qsr.calibrate(low, x)
low.train()(x).sum().backward()  # training loads the library, packing is not imported yet
packed = qsr.pack(low)
assert torch.equal(torch.export.export(packed, (x,)).module()(x), packed.layer_by_layer(x))
"""


def test_a_network_can_be_exported_also_if_it_was_trained_in_the_same_process():
    done = subprocess.run([sys.executable, "-c", TUNED_FIRST], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
