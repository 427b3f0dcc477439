"""The tail in closed form: no other of its reach is better, and a known one is found again."""

import pytest
import torch
from torch.nn import functional as F

import qsr
from qsr.images.data import Pair
from qsr.runs.linear_tail import fit_tail

FEATURES = {2: 6, 3: 5, 4: 13}  # of 3 (x2, x3) and 12 (x4) that hold outputs, and some


KINDS = [("conv", 2), ("conv", 3), ("conv", 4), ("swin", 2), ("swin", 4)]  # of tails, and scales


def network(scale, family="conv"):
    torch.manual_seed(scale)
    if family == "swin":
        config = qsr.swinir_s(scale, blocks=1, features=6, layers=2)
    else:
        config = qsr.srresnet(scale, blocks=1, features=FEATURES[scale])
    return qsr.QuantSR(config).double().eval()


def pictures(scale, count=3, side=16):
    generator = torch.Generator().manual_seed(scale)
    for i in range(count):
        lr = torch.rand(1, 3, side + 2, side, generator=generator, dtype=torch.double)
        size = (scale * (side + 2), scale * side)
        yield Pair(str(i), lr, torch.rand(1, 3, *size, generator=generator, dtype=torch.double))


def features(net, lr):
    """Of lr, without the padding of windows."""
    return net.features(lr)[:, :, : lr.shape[2], : lr.shape[3]]


def inside(x, scale):
    """x without the lr pixels at the border, by lr pixel: [N, 3 scale^2, H, W]."""
    return F.pixel_unshuffle(x, scale)[:, :, 1:-1, 1:-1]


@pytest.mark.parametrize(("family", "scale"), KINDS)
@torch.no_grad()
def test_what_is_left_is_at_right_angles_to_the_features_around(family, scale):
    net, pairs = network(scale, family), list(pictures(scale))
    error = fit_tail(net, pairs)
    left = [inside(pair.hr - net(pair.lr), scale) for pair in pairs]
    assert 255 * torch.cat(left).square().mean().sqrt() == pytest.approx(error, rel=1e-6)
    columns = [F.unfold(features(net, pair.lr), 3)[0] for pair in pairs]
    columns = [torch.cat([x, x.new_ones(1, x.shape[1])]) for x in columns]
    products = sum(x @ rest[0].flatten(1).T for x, rest in zip(columns, left, strict=True))
    size = sum(x.abs() @ rest[0].flatten(1).abs().T for x, rest in zip(columns, left, strict=True))
    assert (products.abs() < 1e-6 * size).all()


@pytest.mark.parametrize(("family", "scale"), KINDS)
@torch.no_grad()
def test_a_tail_that_was_fitted_once_is_found_again_from_its_pictures(family, scale):
    net, first = network(scale, family), list(pictures(scale))
    fit_tail(net, first)
    made = [Pair(p.name, p.lr, net(p.lr)) for p in first]
    again = network(scale, family)
    for p in again.tail.parameters():
        p.normal_()
    assert fit_tail(again, made) < 0.01  # grey levels; the ridge leaves some
    for pair in made:
        ours, theirs = (inside(x, scale) for x in (again(pair.lr), pair.hr))
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-4)


@pytest.mark.parametrize("family", ["conv", "swin"])
@torch.no_grad()
def test_where_a_picture_ends_the_tail_sees_average_features(family):
    net, pairs = network(2, family), list(pictures(2))
    fit_tail(net, pairs)
    seen = torch.cat([features(net, p.lr)[..., 1:-1, 1:-1].flatten(2) for p in pairs], dim=2)
    assert seen.mean(2).abs().max() < 1e-3 * seen.std()


@torch.no_grad()
def test_channels_that_are_left_over_can_still_learn():
    net = network(2)
    fit_tail(net, pictures(2))
    with torch.enable_grad():
        lr = torch.rand(1, 3, 8, 8, dtype=torch.double)
        net(lr).square().mean().backward()
    last = net.tail[-1]
    assert (last.weight.grad.abs().amax(dim=(0, 2, 3)) > 0).all()
    assert (last.weight[:, 3:] == 0).all()


def test_what_holds_no_such_tail_is_refused():
    with pytest.raises(ValueError, match="a fitted tail at x4 needs 12"):
        fit_tail(qsr.QuantSR(qsr.srresnet(4, blocks=1, features=8)), pictures(4))
    with pytest.raises(ValueError, match="is empty"):
        fit_tail(network(2), [])
