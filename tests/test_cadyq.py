"""CADyQ chooses a width for each picture and layer, hard forward and soft backward.

Each fact of the released code has a test, against its formula written a second time.
"""

import pytest
import torch
from torch.nn import functional as F

import qsr
from qsr.baselines.cadyq import Scene, enlarge_patchwise, looking_at, widths_up_to
from qsr.train import make_optimizer

SMALL = {"features": 8, "blocks": 2, "depths": (2,), "quantizer": "cadyq"}


def pictures(seed, *shape):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def network(**changes):
    torch.manual_seed(0)
    net = qsr.QuantSR(qsr.quantsr_c(2, 8, **{**SMALL, **changes}))
    qsr.calibrate(net, pictures(1, 2, 3, 12, 12))
    return net


# The formulas of the source, written a second time ------------------------------------------------


def sobel(grey, y, x):
    """(d/dx, d/dy) at one pixel: neighbours weighted 1, 2, 1, edges repeated, over 8."""
    height, width = grey.shape

    def at(i, j):
        return grey[min(max(i, 0), height - 1), min(max(j, 0), width - 1)]

    across = sum(w * (at(y + i, x + 1) - at(y + i, x - 1)) for i, w in ((-1, 1), (0, 2), (1, 1)))
    down = sum(w * (at(y + 1, x + i) - at(y - 1, x + i)) for i, w in ((-1, 1), (0, 2), (1, 1)))
    return across / 8, down / 8


def logits(quantizer, x, lr):
    rows = []
    for feature, picture in zip(x, lr, strict=True):
        grey = 0.299 * picture[0] + 0.587 * picture[1] + 0.114 * picture[2]
        places = [(y, x) for y in range(grey.shape[0]) for x in range(grey.shape[1])]
        edges = torch.tensor([sobel(grey, *place) for place in places]).abs().mean(0)
        spread = torch.stack([channel.var(unbiased=True).sqrt() for channel in feature])
        row = torch.cat([1000 * edges, spread])
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
        quantizer.selector.weight.normal_(generator=torch.Generator().manual_seed(2)).mul_(0.02)
    return quantizer, x, lr


def test_gradients_are_normalised_sobel_with_edges_repeated():
    """Columns 0, 0, 0, 1, 1: the step is seen by the two columns beside it, each with 1/2."""
    lr = torch.tensor([0.0, 0, 0, 1, 1]).expand(1, 3, 4, 5)
    across, down = Scene(lr).gradients[0].tolist()
    assert across == pytest.approx(1000 * (0.5 + 0.5) / 5) and down == 0
    assert Scene(lr.transpose(2, 3)).gradients[0].tolist() == pytest.approx([0, across])
    one = Scene(torch.rand(1, 3, 1, 1)).gradients[0].tolist()
    assert one == pytest.approx([0, 0], abs=1e-4), "a single pixel has no gradient"


def test_the_spread_of_a_channel_is_unbiased_and_that_of_one_pixel_nothing():
    quantizer = qsr.CADyQ(8, channels=1)
    x = torch.tensor([[[[0.0, 2.0]]]])  # mean 1, variance 2 with n - 1, 1 with n
    with torch.no_grad():
        quantizer.selector.weight.copy_(torch.tensor([[0.0, 0, 0], [0, 0, 0], [0, 0, 1]]))
        quantizer.selector.bias.zero_()
        for values, spread in ((x, 2**0.5), (x[..., :1], 0.0)):
            _, soft = quantizer.choose(values, Scene(torch.zeros(1, 3, 1, 2)))
            assert torch.allclose(soft, torch.tensor([[0.0, 0, spread]]).softmax(1))


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


def test_the_gradient_of_values_is_that_of_the_mixture_so_clips_of_all_widths_learn():
    """d x_hat / d alpha of a width is its share times that of PAMS, and d x_hat / d x the sum over
    widths: of the width that was chosen, and of those that were not."""
    quantizer, x, lr = quantizer_and_data()
    widths = [*quantizer.narrower, quantizer]
    with torch.no_grad():  # so that each clips other values
        for q, part in zip(widths, (0.3, 0.5, 0.8), strict=True):
            q.step_size.mul_(part)
    inputs = x.clone().requires_grad_()
    with looking_at(lr) as scene:
        quantizer(inputs).square().sum().backward()
        choice, soft = quantizer.choose(x, scene)
    hard = torch.stack([qsr.PAMS.forward(q, x) for q in widths], 1)[torch.arange(4), choice]
    mine, alone = inputs.grad, torch.zeros_like(x)
    assert len(set(choice.tolist())) > 1
    for q, share in zip(widths, soft.detach().unbind(1), strict=True):
        got, q.step_size.grad = q.step_size.grad, None
        again = x.clone().requires_grad_()
        weighted = share[:, None, None, None] * qsr.PAMS.forward(q, again)
        (weighted * 2 * hard.detach()).sum().backward()
        alone += again.grad
        assert got.abs() > 0
        torch.testing.assert_close(got, q.step_size.grad)
    torch.testing.assert_close(mine, alone)


def test_alpha_has_a_hundred_times_the_learning_rate_of_weights_at_every_width():
    net = network()
    config = qsr.TrainConfig(**qsr.CADyQ.recipe)
    rates = {
        id(p): group["lr"] for group in make_optimizer(net, config).param_groups
        for p in group["params"]
    }  # fmt: skip
    q = net.blocks[0].conv1.input_quantizer
    for quantizer, n in ((q.narrower[0], 7), (q.narrower[1], 31), (q, 127)):
        # alpha = n * step_size, and Adam moves a parameter by about its learning rate
        assert n * rates[id(quantizer.step_size)] == pytest.approx(100 * config.learning_rate)
    assert rates[id(q.selector.weight)] == config.learning_rate


def test_the_losses_weigh_as_in_the_source_whose_pictures_reach_to_255():
    """There: L1 of grey levels + 1000 attention + 100 each block + 1e-4 bits, summed over 16."""
    recipe = qsr.CADyQ.recipe
    assert 255 * recipe["transfer"] == pytest.approx(1000) == 255 * qsr.PAMS.recipe["transfer"]
    assert 255 * recipe["transfer_blocks"] == pytest.approx(100)
    assert 255 * recipe["bit_weight"] == pytest.approx(16 * 1e-4)


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


@pytest.mark.parametrize("widest", [4, 5, 6, 7, 8])
def test_three_widths_rise_to_the_widest_and_none_is_below_2(widest):
    low, middle, high = widths_up_to(widest)
    assert 2 <= low < middle < high == widest and high - middle == middle - low
    quantizer = qsr.CADyQ(widest, channels=2)
    assert quantizer.widths.tolist() == [low, middle, high]
    assert [q.bits for q in quantizer.narrower] == [low, middle]


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
    with pytest.raises(ValueError, match="Use 4 to 8"):
        qsr.CADyQ(3, channels=3)
    with pytest.raises(ValueError, match="inputs .N, channels, H, W. of convolutions"):
        qsr.CADyQ(8, channels=3, channel_dim=-1)
    with pytest.raises(ValueError, match="CADyQ is made for convolutions"):
        qsr.quantsr_t(2, 8, quantizer="cadyq")
    with pytest.raises(ValueError, match="4 .inputs. to 8"):
        qsr.quantsr_c(2, 2, quantizer="cadyq")
