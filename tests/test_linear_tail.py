"""The tail in closed form: no other of its reach is better, and a known one is found again."""

import pytest
import torch
from torch.nn import functional as F

import qsr
from qsr.images.data import Pair
from qsr.runs.linear_tail import SIDE, _alike, fit_tail


def network(scale):
    torch.manual_seed(scale)
    features = {2: 16, 3: 15, 4: 60}[scale]
    return qsr.QuantSR(qsr.srresnet(scale, blocks=1, features=features)).double().eval()


def pictures(scale, count=3, side=20):
    generator = torch.Generator().manual_seed(scale)
    for i in range(count):
        lr = torch.rand(1, 3, side + 2, side, generator=generator, dtype=torch.double)
        size = (scale * (side + 2), scale * side)
        yield Pair(str(i), lr, torch.rand(1, 3, *size, generator=generator, dtype=torch.double))


def inside(x, scale, margin=2):
    """x without the lr pixels at the border, by lr pixel: [N, 3 scale^2, H, W]."""
    return F.pixel_unshuffle(x, scale)[:, :, margin:-margin, margin:-margin]


@pytest.mark.parametrize("scale", [2, 3, 4])
@torch.no_grad()
def test_what_is_left_is_at_right_angles_to_all_that_an_output_sees(scale):
    net = network(scale)
    # Few unknowns each: of 60 features at x4, 15 x 60 + 1, so many pixels.
    pairs = list(pictures(scale, side=20 if scale < 4 else 40))
    error = fit_tail(net, pairs)
    left = [inside(pair.hr - net(pair.lr), scale) for pair in pairs]
    assert 255 * torch.cat(left).square().mean().sqrt() == pytest.approx(error, rel=1e-6)
    for seen, rows in _alike(scale, net.tail[1].upscale_factor, net.config.features):
        products = 0
        for pair, rest in zip(pairs, left, strict=True):
            columns = F.unfold(net.features(pair.lr), SIDE)[0]
            columns = torch.cat([columns, columns.new_ones(1, columns.shape[1])])
            products = products + columns[seen] @ rest[0, rows].flatten(1).T
        scale_of = sum(F.unfold(net.features(p.lr), SIDE).abs().sum(-1).max() for p in pairs)
        assert products.abs().max() < 1e-6 * scale_of


@pytest.mark.parametrize("scale", [2, 4])
@torch.no_grad()
def test_a_tail_that_was_fitted_once_is_found_again_from_its_pictures(scale):
    net = network(scale)
    first = list(pictures(scale, side=20 if scale == 2 else 40))
    fit_tail(net, first)
    made = [Pair(p.name, p.lr, net(p.lr)) for p in first]
    again = network(scale)
    for p in again.tail.parameters():
        p.normal_()
    assert fit_tail(again, made) < 0.01  # grey levels; the ridge leaves some
    for pair in made:
        torch.testing.assert_close(
            inside(again(pair.lr), scale), inside(pair.hr, scale), rtol=0, atol=1e-4
        )


@torch.no_grad()
def test_channels_that_are_left_over_can_still_learn():
    net = network(2)
    fit_tail(net, pictures(2))
    with torch.enable_grad():
        lr = torch.rand(1, 3, 8, 8, dtype=torch.double)
        net(lr).square().mean().backward()
    last = net.tail[-1]
    assert (last.weight.grad.abs().amax(dim=(0, 2, 3)) > 0).all()
    assert (last.weight[:, 15:] == 0).all()  # 5 times 3 hold sums


def test_what_has_no_such_tail_is_refused():
    with pytest.raises(ValueError, match="made for an upsampler"):
        fit_tail(qsr.QuantSR(qsr.swinir_s(2, blocks=1, features=12, layers=2)), pictures(2))
    with pytest.raises(ValueError, match="a fitted tail at x2 needs 15"):
        fit_tail(qsr.QuantSR(qsr.srresnet(2, blocks=1, features=8)), pictures(2))
    with pytest.raises(ValueError, match="is empty"):
        fit_tail(network(2), [])
