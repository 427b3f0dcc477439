"""The four networks: sizes, parameter counts, depths, and their configuration."""

import dataclasses

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

import qsr
from qsr.backbone import load_weights, reflect_to_multiple
from qsr.config import ConvConfig, SwinConfig, preset

SMALL_CONV = {"features": 4, "blocks": 4}
SMALL_SWIN = {"features": 4, "blocks": 4, "layers": 2, "heads": 2, "window": 4}
NETWORKS = {
    "srresnet": lambda scale: qsr.srresnet(scale, **SMALL_CONV),
    "quantsr_c": lambda scale: qsr.quantsr_c(scale, **SMALL_CONV),
    "swinir_s": lambda scale: qsr.swinir_s(scale, **SMALL_SWIN),
    "quantsr_t": lambda scale: qsr.quantsr_t(scale, **SMALL_SWIN),
}


def small(name, scale=2, shortcuts=True):
    """A calibrated small network with shortcuts of several sizes, in eval mode."""
    net = qsr.QuantSR(NETWORKS[name](scale))
    qsr.calibrate(net, torch.rand(1, 3, 8, 8))
    for i, block in enumerate(net.blocks):
        if block.shortcut.scale is not None and shortcuts:
            nn.init.constant_(block.shortcut.scale, 1 + 0.1 * (-1) ** i * i)
    return net.eval()


def parameters(net):
    return sum(p.numel() for p in net.parameters())


# Size ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("config", "count"),
    [
        (qsr.srresnet(2), 1_369_859),
        (qsr.srresnet(4), 1_517_571),
        (qsr.swinir_s(2), 910_152),
        (qsr.swinir_s(4), 929_628),
    ],
)
def test_full_precision_networks_have_the_parameters_of_the_paper(config, count):
    assert parameters(qsr.QuantSR(config)) == count


def test_a_quantised_network_adds_steps_tau_and_shortcuts_and_nothing_else():
    # QuantSR-C x4, 32 blocks: 65 quantised convolutions (two a block, one after the body), each
    # with two steps and 64 tau; 32 shortcuts.
    blocks = 32 * 2 * (64 * 64 * 9 + 64)
    plain = parameters(qsr.QuantSR(qsr.srresnet(4, blocks=32)))
    assert plain == 1_517_571 + blocks // 2
    assert parameters(qsr.QuantSR(qsr.quantsr_c(4))) == plain + 65 * (2 + 64) + 32


@pytest.mark.parametrize("scale", [2, 3, 4])
@pytest.mark.parametrize("name", NETWORKS)
def test_pictures_of_any_size_from_one_pixel_up_are_enlarged(name, scale):
    net = small(name, scale)
    with torch.no_grad():
        for height, width in [(1, 1), (1, 9), (3, 2), (4, 4), (7, 5)]:
            sr = net(torch.rand(2, 3, height, width))
            assert sr.shape == (2, 3, scale * height, scale * width)
            assert sr.isfinite().all()


@pytest.mark.parametrize("name", NETWORKS)
def test_pictures_of_a_batch_do_not_meet(name):
    net = small(name).double()
    lr = torch.rand(3, 3, 6, 5).double()
    with torch.no_grad():
        torch.testing.assert_close(net(lr)[1:2], net(lr[1:2]))


def test_the_mean_colour_and_the_range_are_taken_out_and_put_back():
    net = small("srresnet")
    for p in net.parameters():
        nn.init.zeros_(p)
    # With all weights zero what is left is the mean colour of DIV2K.
    colour = net(torch.rand(1, 3, 3, 3)).mean((0, 2, 3))
    torch.testing.assert_close(colour, torch.tensor([0.4488, 0.4371, 0.4040]))
    assert (qsr.srresnet().pixel_range, qsr.swinir_s().pixel_range) == (255.0, 1.0)


@settings(deadline=None)
@given(
    size=st.tuples(st.integers(1, 20), st.integers(1, 20)), multiple=st.sampled_from([1, 2, 4, 8])
)
def test_reflection_padding_goes_back_and_forth_and_agrees_with_f_pad(size, multiple):
    x = torch.rand(1, 2, *size)
    padded = reflect_to_multiple(x, multiple)
    extra = [-n % multiple for n in size]
    assert padded.shape[2:] == (size[0] + extra[0], size[1] + extra[1])
    assert torch.equal(padded[:, :, : size[0], : size[1]], x)
    if all(e < n for e, n in zip(extra, size, strict=True)):
        assert torch.equal(padded, F.pad(x, (0, extra[1], 0, extra[0]), mode="reflect"))


def test_a_picture_smaller_than_its_padding_is_reflected_several_times():
    row = torch.tensor([0.0, 1, 2]).view(1, 1, 1, 3)
    assert reflect_to_multiple(row, 8)[0, 0, 0].tolist() == [0, 1, 2, 1, 0, 1, 2, 1]


@pytest.mark.parametrize(
    ("lr", "error", "words"),
    [
        (torch.zeros(3, 8, 8), ValueError, "(3, 8, 8)"),
        (torch.zeros(1, 1, 8, 8), ValueError, "Repeat a grey picture"),
        (torch.zeros(1, 3, 0, 8), ValueError, "(1, 3, 0, 8)"),
        (torch.zeros(1, 3, 8, 8, dtype=torch.uint8), TypeError, "torch.uint8"),
    ],
)
def test_what_is_no_rgb_picture_is_refused_in_one_line(lr, error, words):
    with pytest.raises(error) as raised:
        small("srresnet")(lr)
    assert words in str(raised.value)
    assert "\n" not in str(raised.value)


# What is quantised --------------------------------------------------------------------------------


def quantised_layers(net):
    return {n for n, m in net.named_modules() if isinstance(m, (qsr.QConv2d, qsr.QLinear))}


def test_head_and_tail_stay_in_full_precision_and_all_of_the_body_is_quantised():
    names = quantised_layers(small("quantsr_c"))
    assert names == {f"blocks.{i}.conv{j}" for i in range(4) for j in (1, 2)} | {"body_conv"}
    released = qsr.QuantSR(qsr.quantsr_c(2, quantize_body_conv=False, **SMALL_CONV))
    assert "body_conv" not in quantised_layers(released)


def test_quantsr_t_keeps_its_attention_products_and_body_conv_in_full_precision_unless_asked():
    net = small("quantsr_t")
    names = quantised_layers(net)
    inside = ["attention.qkv", "attention.proj", "fc1", "fc2"]
    wanted = {f"blocks.{i}.layers.{j}.{k}" for i in range(4) for j in (0, 1) for k in inside}
    assert names == wanted | {f"blocks.{i}.conv" for i in range(4)}
    assert not any(isinstance(m, qsr.QMatmul) for m in net.modules())
    asked = qsr.QuantSR(qsr.quantsr_t(2, attention_bits=(8, 4), **SMALL_SWIN))
    products = [m for m in asked.modules() if isinstance(m, qsr.QMatmul)]
    assert len(products) == 4 * 2 * 2
    assert (products[0].left_quantizer.bits, products[0].right_quantizer.bits) == (8, 4)


def test_bits_quantizer_sharpness_and_per_channel_reach_every_layer():
    config = qsr.quantsr_c(2, bits=(2, 3), sharpness=0.5, per_channel=True, **SMALL_CONV)
    for layer in qsr.QuantSR(config).modules():
        if isinstance(layer, qsr.QConv2d):
            assert (layer.weight_quantizer.bits, layer.input_quantizer.bits) == (2, 3)
            assert layer.input_quantizer.sharpness == layer.weight_quantizer.sharpness == 0.5
            assert layer.weight_quantizer.step_size.shape == (4,)
            assert layer.input_quantizer.tau.shape == (4,)
    lsq = qsr.QuantSR(qsr.quantsr_c(2, quantizer="lsq", **SMALL_CONV))
    assert type(lsq.body_conv.input_quantizer) is qsr.LSQ


# Depth --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["quantsr_c", "quantsr_t", "srresnet"])
def test_a_sliced_network_equals_the_plan_exactly(name):
    net = small(name)
    net.block_order.copy_(torch.tensor([2, 0, 3, 1]))
    lr = torch.rand(2, 3, 6, 5)
    for count in (1, 2, 3, 4):
        plan = net.plan(count)
        sliced = qsr.slice_depth(net, plan)
        assert torch.equal(sliced(lr), net(lr, plan))
        assert sliced.config.dropped == tuple(sorted(net.order[count:]))
        assert (parameters(sliced) < parameters(net)) == (count < 4)
    assert net.config.dropped == ()


def test_a_skipped_block_keeps_its_shortcut():
    net = small("quantsr_c")
    lr = torch.rand(1, 3, 5, 5)
    plan = qsr.DepthPlan((True, False, True, True))
    before = net(lr, plan)
    nn.init.constant_(net.blocks[1].conv1.weight, 0.3)  # in the skipped block: changes nothing
    assert torch.equal(net(lr, plan), before)
    nn.init.constant_(net.blocks[1].shortcut.scale, 0.25)  # its shortcut: changes the picture
    assert not torch.equal(net(lr, plan), before)


def test_a_network_cut_twice_keeps_only_what_both_plans_keep():
    net = small("quantsr_c")
    lr = torch.rand(1, 3, 5, 5)
    once = qsr.slice_depth(net, qsr.DepthPlan((True, False, True, True)))
    twice = qsr.slice_depth(once, qsr.DepthPlan((True, True, False, True)))
    assert twice.config.dropped == (1, 2)
    assert torch.equal(twice(lr), net(lr, qsr.DepthPlan((True, False, False, True))))
    assert qsr.QuantSR(twice.config).load_state_dict(twice.state_dict())


def test_plans_that_do_not_fit_the_network_are_refused():
    net = small("quantsr_c")
    for call in (
        lambda: net(torch.rand(1, 3, 4, 4), qsr.DepthPlan.full(3)),
        lambda: qsr.slice_depth(net, qsr.DepthPlan.full(5)),
        lambda: qsr.slice_depth(net, qsr.DepthPlan.full(3)),
    ):
        with pytest.raises(ValueError, match=r"make it with net.plan\(count\)"):
            call()
    with pytest.raises(ValueError, match="`count` is 0"):
        net.plan(0)


@pytest.mark.parametrize("name", ["quantsr_c", "quantsr_t"])
def test_without_pictures_blocks_rank_by_the_size_of_their_shortcut_small_first(name):
    net = small(name)
    for block, scale in zip(net.blocks, [0.9, -0.1, 1.2, 0.5], strict=True):
        nn.init.constant_(block.shortcut.scale, scale)
    assert qsr.rank_blocks(net) == (1, 3, 0, 2)


def test_fixed_shortcuts_rank_nothing():
    with pytest.raises(ValueError, match="pass lr and hr"):
        qsr.rank_blocks(small("srresnet"))


def test_with_pictures_the_block_that_is_missed_most_comes_first():
    net = small("quantsr_c", shortcuts=False)
    lr = torch.rand(2, 3, 6, 6)
    with torch.no_grad():
        hr = net(lr)  # the whole network is right, so each block's absence shows alone
        nn.init.zeros_(net.blocks[2].conv2.bias)
        errors = []
        for i in range(4):
            without = qsr.DepthPlan(tuple(j != i for j in range(4)))
            errors.append((net(lr, without) - hr).abs().mean().item())
    ranking = qsr.rank_blocks(net, lr, hr)
    assert [errors[i] for i in ranking] == sorted(errors, reverse=True)
    assert len(set(errors)) == 4


def test_the_stored_order_decides_which_blocks_a_plan_keeps():
    net = small("quantsr_c")
    net.block_order.copy_(torch.tensor([3, 1, 0, 2]))
    copy = qsr.QuantSR(net.config)
    copy.load_state_dict(net.state_dict())
    assert copy.order == (3, 1, 0, 2)
    assert copy.plan(2).keep == (False, True, False, True)
    assert copy.plan().count == 4


# Configuration ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("config", "depths"),
    [
        (qsr.quantsr_c(), (32, 16, 8)),
        (qsr.quantsr_t(), (4, 2, 1)),
        (qsr.srresnet(), (16,)),
        (qsr.quantsr_c(blocks=3), (3, 1)),
        (qsr.quantsr_c(blocks=1), (1,)),
        (qsr.quantsr_c(blocks=5, depths=(5, 4)), (5, 4)),
    ],
)
def test_presets_have_the_depths_of_the_paper(config, depths):
    assert config.depths == depths


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: qsr.quantsr_c(scale=5), "`scale` is 5"),
        (lambda: qsr.quantsr_c(bits=1), "`bits` is 1"),
        (lambda: qsr.quantsr_c(bits=(4, 9)), "`bits` is (4, 9)"),
        (lambda: qsr.quantsr_c(blocks=0), "`blocks` is 0"),
        (lambda: qsr.quantsr_c(features=0), "`features` is 0"),
        (lambda: qsr.quantsr_c(blocks=4, depths=(2, 4)), "`depths` is (2, 4)"),
        (lambda: qsr.quantsr_c(blocks=4, depths=(4, 4)), "`depths` is (4, 4)"),
        (lambda: qsr.quantsr_c(quantizer="ternary"), "`quantizer` is 'ternary'"),
        (lambda: qsr.quantsr_c(blocks=2, dropped=(0, 1)), "`dropped` is (0, 1)"),
        (lambda: qsr.quantsr_t(features=64), "`features` is 64"),
        (lambda: qsr.quantsr_t(heads=0), "`heads` is 0"),
        (lambda: qsr.quantsr_t(layers=0), "`layers` is 0"),
        (lambda: qsr.quantsr_t(window=5), "`window` is 5"),
        (lambda: qsr.quantsr_t(attention_bits=1), "`attention_bits` is 1"),
    ],
)
def test_configurations_that_make_no_network_are_refused_in_one_line(make, words):
    with pytest.raises(ValueError) as raised:
        make()
    assert words in str(raised.value)
    assert "\n" not in str(raised.value)


def test_configurations_are_frozen_values():
    assert qsr.quantsr_c(depths=[32, 16, 8]) == qsr.quantsr_c()  # a list, as JSON has it
    with pytest.raises(dataclasses.FrozenInstanceError):
        qsr.srresnet().scale = 2


@pytest.mark.parametrize(
    ("name", "config"),
    [
        ("srresnet-x2", qsr.srresnet(2)),
        ("swinir-s-x4", qsr.swinir_s(4)),
        ("quantsr-c-x4-w4a4", qsr.quantsr_c(4, 4)),
        ("quantsr-c-x2-w2a4", qsr.quantsr_c(2, (2, 4))),
        ("quantsr-t-x2-w2a2-attn", qsr.quantsr_t(2, 2, attention_bits=2)),
    ],
)
def test_a_model_name_is_its_configuration(name, config):
    assert preset(name) == config
    assert type(preset(name)) is (ConvConfig if "-c-" in name or "res" in name else SwinConfig)


@pytest.mark.parametrize(
    "name", ["", "srresnet", "quantsr-c-x4", "quantsr-c-x4-w4a4-attn", "swinir-s-x4-w4a4", "edsr"]
)
def test_other_names_are_refused(name):
    with pytest.raises(ValueError) as raised:
        preset(name)
    assert repr(name) in str(raised.value)


# Starting from another network --------------------------------------------------------------------


def test_weights_come_from_a_full_precision_network_and_quantizers_do_not():
    source, net = small("srresnet", scale=2), qsr.QuantSR(NETWORKS["quantsr_c"](2))
    load_weights(net, source)
    own = net.state_dict()
    for name, value in source.state_dict().items():
        assert torch.equal(own[name], value), name
    assert not net.body_conv.input_quantizer.calibrated
    qsr.calibrate(net, torch.rand(1, 3, 8, 8))
    assert net(torch.rand(1, 3, 4, 4)).isfinite().all()


def test_the_tail_is_copied_only_at_the_same_scale():
    source, net = small("srresnet", scale=2), qsr.QuantSR(NETWORKS["srresnet"](4))
    tail = net.tail[0].weight.detach().clone()
    load_weights(net, source)
    assert torch.equal(net.head.weight, source.head.weight)
    assert torch.equal(net.tail[0].weight, tail)


def test_a_network_of_another_shape_is_refused():
    with pytest.raises(ValueError, match="as many, or a whole multiple"):
        load_weights(small("srresnet"), qsr.QuantSR(qsr.srresnet(2, blocks=5, features=4)))


@pytest.mark.parametrize("family", ["srresnet", "swinir_s"])
def test_a_deeper_network_starts_as_the_shallower_one_it_was_made_from(family):
    """Its new blocks, between the old ones, change next to nothing: their last convolution is
    faint, but not zero, whose codes would all be 0."""
    changes = {"features": 6} if family == "srresnet" else {"features": 6, "layers": 2, "heads": 2}
    config = getattr(qsr, family)(2, blocks=2, **changes)
    deep = dataclasses.replace(config, blocks=4, depths=(4,))
    source, net = qsr.QuantSR(config), qsr.QuantSR(deep)
    load_weights(net, source)
    lr = torch.rand(2, 3, 8, 8)
    torch.testing.assert_close(net(lr), source(lr), atol=2 / 255, rtol=0)
    last = net.blocks[1].conv2 if family == "srresnet" else net.blocks[1].conv
    assert 0 < last.weight.abs().max() < 0.01 and not last.bias.any()
    kept = dict(net.blocks[2].named_parameters())
    for name, value in source.blocks[1].named_parameters():
        assert torch.equal(kept[name], value)


def test_the_tail_alone_is_copied_as_the_released_code_does():
    source, net = small("srresnet", scale=2), qsr.QuantSR(NETWORKS["quantsr_c"](2))
    head = net.head.weight.detach().clone()
    load_weights(net, source, tail_only=True)
    assert torch.equal(net.head.weight, head)
    assert torch.equal(net.tail[0].weight, source.tail[0].weight)
    assert torch.equal(net.body_conv.weight, source.body_conv.weight)


def test_fewer_bits_start_from_more_with_their_shortcuts_and_their_order_of_blocks():
    four, two = (qsr.QuantSR(qsr.quantsr_c(2, b, blocks=4, features=4)) for b in (4, 2))
    with torch.no_grad():
        four.blocks[1].shortcut.scale.fill_(0.5)
    four.block_order.copy_(torch.tensor([2, 0, 3, 1]))
    load_weights(two, four)
    assert two.blocks[1].shortcut.scale == 0.5 and two.order == (2, 0, 3, 1)
    assert not two.body_conv.input_quantizer.calibrated


def test_another_scale_and_other_depths_start_with_all_but_the_tail():
    small = {"blocks": 2, "features": 4}
    source = qsr.QuantSR(qsr.quantsr_c(4, 4, **small))
    net = qsr.QuantSR(qsr.quantsr_c(2, 4, depths=(2,), **small))
    qsr.calibrate(source, torch.rand(1, 3, 8, 8))
    tail = [value.clone() for value in net.tail.state_dict().values()]
    load_weights(net, source)
    lr = torch.rand(1, 3, 6, 6)
    assert torch.equal(net.features(lr), source.features(lr))
    assert all(map(torch.equal, net.tail.state_dict().values(), tail))


def test_an_equal_network_is_copied_with_all_its_quantizers():
    source = qsr.QuantSR(qsr.quantsr_c(2, 4, blocks=2, features=4))
    qsr.calibrate(source, torch.rand(1, 3, 8, 8))
    net = qsr.QuantSR(source.config)
    load_weights(net, source)
    lr = torch.rand(1, 3, 6, 6)
    assert torch.equal(net(lr), source(lr))


# Widths by layer ----------------------------------------------------------------------------------


def test_layers_that_are_named_have_widths_of_their_own(tmp_path):
    config = qsr.quantsr_c(
        2, 2, blocks=2, features=8, layer_bits=[("blocks.0.*", 8), ("body_conv", (4, 3))]
    )
    net, lr = qsr.QuantSR(config), torch.rand(1, 3, 9, 9)
    qsr.calibrate(net, lr)
    widths = {
        name: (layer.weight_quantizer.bits, layer.input_quantizer.bits)
        for name, layer in net.named_modules()
        if isinstance(layer, qsr.QConv2d)
    }
    assert widths == {
        "blocks.0.conv1": (8, 8), "blocks.0.conv2": (8, 8), "blocks.1.conv1": (2, 2),
        "blocks.1.conv2": (2, 2), "body_conv": (4, 3),
    }  # fmt: skip
    packed = qsr.pack(net.eval())  # layer by layer: its program has one width
    qsr.save(tmp_path / "m.qsr", packed)
    assert torch.equal(qsr.load(tmp_path / "m.qsr")(lr), packed(lr))
    assert (packed(lr) - net(lr)).abs().mean() < 1e-3


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"layer_bits": [("head", 4)]}, "'head', which no quantised layer is called"),
        ({"layer_bits": [("body_conv", 9)]}, "`bits` is 9; it has widths from 2"),
        ({"bits": None, "layer_bits": [("body_conv", 4)]}, "is empty in full precision"),
    ],
)
def test_widths_of_layers_that_make_no_sense_are_refused(changes, words):
    with pytest.raises(ValueError, match=words.replace("(", "[(]")):
        qsr.QuantSR(qsr.quantsr_c(2, **{"bits": 4, "blocks": 1, "features": 4, **changes}))
