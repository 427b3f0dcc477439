"""Packed networks inside torch.compile and torch.export."""

import pytest
import torch

import qsr

NETWORKS = {
    "QuantSR-C": qsr.quantsr_c(2, 4, features=8, blocks=2, depths=(2, 1)),
    "QuantSR-T": qsr.quantsr_t(  # one block, as each of its layers is compiled
        2, 4, attention_bits=4, features=8, blocks=1, depths=(1,), layers=2, heads=2, window=4
    ),
}
# Inductor takes minutes for the layers of QuantSR-T; what it is given can be seen without it.
BACKENDS = {"QuantSR-C": "inductor", "QuantSR-T": "aot_eager"}


@pytest.fixture(params=NETWORKS)
def packed(request):
    torch.manual_seed(0)
    net = qsr.QuantSR(NETWORKS[request.param])
    qsr.calibrate(net, torch.rand(1, 3, 16, 16))
    packed = qsr.pack(net)
    packed(torch.rand(1, 3, 8, 8))  # plans the program
    return packed


def test_an_exported_network_gives_the_same_picture(packed):
    lr = torch.rand(1, 3, 11, 9)
    with torch.no_grad():
        program = torch.export.export(packed, (lr,))
    assert torch.equal(program.module()(lr), packed(lr))


@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize("count, blocks", [(1, None), (2, 1)])
def test_a_compiled_network_gives_the_same_pictures(packed, request, count, blocks, dynamic):
    torch._dynamo.reset()
    lr = torch.rand(count, 3, 11, 9)
    backend = BACKENDS[request.node.callspec.params["packed"]]
    compiled = torch.compile(packed, fullgraph=True, dynamic=dynamic, backend=backend)
    assert torch.equal(compiled(lr, blocks), packed(lr, blocks))
