"""CADyQ chooses a width for each picture and layer, hard forward and soft backward."""

import pytest
import torch
from torch.nn import functional as F

import qsr
from qsr.baselines.cadyq import enlarge_patchwise, looking_at

SMALL = {"features": 8, "blocks": 2, "depths": (2,), "quantizer": "cadyq"}


def pictures(seed, *shape):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def network(**changes):
    torch.manual_seed(0)
    net = qsr.QuantSR(qsr.quantsr_c(2, 8, **{**SMALL, **changes}))
    qsr.calibrate(net, pictures(1, 2, 3, 12, 12))
    return net


# The formulas of the source, written a second time ------------------------------------------------


def logits(quantizer, x, lr):
    rows = []
    for feature, picture in zip(x, lr, strict=True):
        grey = 0.299 * picture[0] + 0.587 * picture[1] + 0.114 * picture[2]
        across = (grey[:, 1:] - grey[:, :-1]).abs().mean()
        down = (grey[1:] - grey[:-1]).abs().mean()
        spread = [channel.var(unbiased=False).sqrt() for channel in feature]
        row = torch.stack([1000 * across, 1000 * down, *spread])
        rows.append(quantizer.selector.weight @ row + quantizer.selector.bias)
    return torch.stack(rows)


def pams(x, alpha, bits):
    n = 2 ** (bits - 1) - 1
    return torch.round(x.clamp(-alpha, alpha) * n / alpha) * alpha / n


def quantizer_and_data(seed=0):
    x, lr = 3 * pictures(seed, 4, 6, 5, 5) - 1, pictures(seed + 1, 4, 3, 5, 5)
    lr *= torch.tensor([0.001, 0.01, 0.1, 1.0]).view(4, 1, 1, 1)  # from flat to busy
    quantizer = qsr.CADyQ(8, channels=6)
    quantizer.calibrate(x)
    with torch.no_grad():  # so that several widths are chosen
        quantizer.selector.weight.normal_(generator=torch.Generator().manual_seed(3)).mul_(0.02)
    return quantizer, x, lr


def test_each_picture_gets_the_values_of_the_width_with_the_largest_logit():
    quantizer, x, lr = quantizer_and_data()
    with looking_at(lr) as scene:
        values = quantizer(x)
    chosen = logits(quantizer, x, lr).argmax(1)
    assert len(set(chosen.tolist())) > 1
    alpha = x.flatten(1).abs().amax(1).mean()
    for value, picture, choice in zip(values, x, chosen, strict=True):
        torch.testing.assert_close(value, pams(picture, alpha, (4, 6, 8)[choice]))
    assert scene.bits[0].tolist() == [(4.0, 6.0, 8.0)[choice] for choice in chosen]


def test_the_gradient_is_that_of_the_soft_choice_times_the_values_of_each_width():
    quantizer, x, lr = quantizer_and_data()
    with looking_at(lr) as scene:
        values = quantizer(x)
    (values.sum() + 0.5 * scene.bits[0].sum()).backward()
    gradient = quantizer.selector.weight.grad.clone()

    quantizer.selector.weight.grad = None
    soft = logits(quantizer, x, lr).softmax(1)
    alpha = x.flatten(1).abs().amax(1).mean()
    each = torch.stack([pams(x, alpha, bits).sum((1, 2, 3)) for bits in (4, 6, 8)], dim=1)
    ((soft * each).sum() + 0.5 * (soft @ torch.tensor([4.0, 6.0, 8.0])).sum()).backward()
    torch.testing.assert_close(gradient, quantizer.selector.weight.grad, rtol=1e-3, atol=1e-3)


def test_the_cost_is_the_chosen_width_over_the_expected_one_summed_over_layers():
    net, lr = network(), pictures(2, 3, 3, 10, 10)
    with looking_at(lr) as scene:
        net(lr)
    layers = 2 * 2 + 1  # two convolutions a block, and the one after the body
    assert len(scene.bits) == layers
    expected = sum((b / e).mean() for b, e in zip(scene.bits, scene.expected, strict=True))
    torch.testing.assert_close(scene.cost(), expected)
    assert scene.mean_bits() == torch.stack(scene.bits).mean().item()


def test_a_network_starts_at_the_widest_and_the_penalty_drives_it_down():
    net, lr = network(), pictures(2, 2, 3, 10, 10)
    hr = F.interpolate(lr, scale_factor=2)
    config = qsr.TrainConfig(learning_rate=3e-2, bit_weight=1.0, joint=False)
    optimizer = torch.optim.SGD([p for n, p in net.named_parameters() if "selector" in n], 3e-3)
    with looking_at(lr) as before:
        net(lr)
    for _ in range(30):
        qsr.train_step(net, optimizer, lr, hr, config)
    with looking_at(lr) as after:
        net(lr)
    assert before.mean_bits() == 8 and after.mean_bits() < 6


def test_weights_have_the_widest_width_as_in_pams():
    net = network()
    weight = net.blocks[0].conv1.weight
    theirs = qsr.PAMS(8, weights=True)
    theirs.calibrate(weight)
    assert torch.equal(net.blocks[0].conv1.weight_quantizer(weight), theirs(weight))


def test_patches_choose_apart_and_are_stitched_without_a_seam():
    net, lr = network(), pictures(4, 1, 3, 50, 34)
    sr, bits = enlarge_patchwise(net, lr, scale=2, side=24, overlap=8)
    whole, _ = enlarge_patchwise(net, lr, scale=2, side=64)
    assert sr.shape == (1, 3, 100, 68) and bits == 8
    # One width everywhere: patches differ from the whole only in what they see beyond their edge.
    assert (sr - whole).abs().mean() < 0.02 * whole.abs().mean()
    with torch.no_grad():
        assert torch.equal(whole, net(lr))


def test_a_trained_network_is_saved_and_loaded(tmp_path):
    net, lr = network(), pictures(5, 1, 3, 9, 9)
    qsr.save(tmp_path / "net.qsr", net)
    loaded = qsr.load(tmp_path / "net.qsr")
    with torch.no_grad():
        assert torch.equal(loaded(lr), net.eval()(lr))


def test_what_cadyq_cannot_do_is_refused_with_the_reason():
    with pytest.raises(ValueError, match="packed layers have one width"):
        qsr.pack(network())
    with pytest.raises(ValueError, match="which it was not shown"):
        network().blocks[0](torch.rand(1, 8, 5, 5))
    with pytest.raises(ValueError, match="Use 6 to 8"):
        qsr.CADyQ(4, channels=3)
    with pytest.raises(ValueError, match="inputs .N, channels, H, W. of convolutions"):
        qsr.CADyQ(8, channels=3, channel_dim=-1)
    with pytest.raises(ValueError, match="CADyQ is made for convolutions"):
        qsr.quantsr_t(2, 8, quantizer="cadyq")
    with pytest.raises(ValueError, match="6 .inputs. to 8"):
        qsr.quantsr_c(2, 4, quantizer="cadyq")
