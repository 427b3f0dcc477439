"""Packed and trained networks compute the same picture; the integers are the packed one's."""

import pytest
import torch

import qsr
from qsr.images.data import make_pair, pairs, textures
from qsr.scores import agreement


@pytest.fixture(scope="module")
def trained():
    """A small network, trained for a few steps so that tau, steps and shortcuts have moved."""
    torch.manual_seed(0)
    net = qsr.QuantSR(qsr.quantsr_c(scale=2, bits=4, blocks=4, features=16))
    data = qsr.Patches("embedded", scale=2, patch=16, batch=4)
    qsr.calibrate(net, data.batch(0)[0])
    optimizer = torch.optim.Adam(net.parameters(), lr=3e-3)
    config = qsr.TrainConfig(steps=20)
    for step in range(20):
        qsr.train_step(net, optimizer, *data.batch(step), config)
    return net.eval()


def test_a_packed_network_scores_as_its_training_graph(trained):
    """The contract: each picture within 0.01 dB, the mean within 0.001 dB, few codes flipped."""
    packed = qsr.pack(trained)
    some = [pair for pair in pairs("embedded", 2) if pair.hr.numel() < 200_000]
    for blocks in trained.config.depths:
        result = agreement(trained, packed, some, blocks)
        assert abs(result.mean_psnr) < 0.001
        assert result.worst_psnr < 0.01
        assert result.flipped < 1e-4


def test_a_wrong_step_size_would_be_noticed(trained):
    packed = qsr.pack(trained)
    packed.network.blocks[0].conv1.step_size *= 1.3
    pair = make_pair("noise", textures()["noise"], 2)
    whole = agreement(trained, packed, [pair])
    assert whole.flipped > 0.01 and whole.worst_psnr > 0.01
    middle = agreement(trained, packed, [pair], window=8)
    assert middle.worst_psnr == whole.worst_psnr  # pictures are scored whole
    assert middle.flipped > 0.01 and middle.flipped != whole.flipped
