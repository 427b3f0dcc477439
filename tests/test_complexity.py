"""Counts of the real networks against hand counts, torch's own counter, and the paper's rules."""

import itertools
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode

from qsr.backbone import DepthPlan, QuantSR, slice_depth
from qsr.calibration import calibrate
from qsr.config import quantsr_c, quantsr_t, srresnet, swinir_s
from qsr.paper.costs import RULES, complexity, layer_table

quick = settings(deadline=None, max_examples=15)
SCALES = st.sampled_from([2, 3, 4])
BITS = st.sampled_from([2, 3, 4, 7])
ANY_BITS = st.none() | BITS | st.just((2, 4))
SMALL_T = {"features": 12, "layers": 2, "heads": 3, "window": 4}


@st.composite
def small_configs(draw, bits=ANY_BITS):
    """A small network of any family, with 24 features where it has a tail to collapse."""
    scale, blocks, width = draw(SCALES), draw(st.integers(1, 3)), draw(bits)
    if draw(st.booleans()):
        if width is None:
            return srresnet(scale, blocks, features=24)
        return quantsr_c(scale, width, blocks, features=24)
    if width is None:
        return swinir_s(scale, blocks, **SMALL_T)
    attention = width if draw(st.booleans()) else None
    return quantsr_t(scale, width, blocks, attention_bits=attention, **SMALL_T)


@pytest.mark.parametrize(
    ("config", "count"),
    [
        (srresnet(2), 1_369_859),
        (srresnet(4), 1_517_571),
        (swinir_s(2), 910_152),
        (swinir_s(4), 929_628),
    ],
)
def test_full_precision_networks_have_the_published_number_of_parameters(config, count):
    cost = complexity(config, (8, 8))
    assert (cost.elements, cost.parameters, cost.bytes) == (count, count, 4 * count)


@quick
@given(small_configs())
def test_every_parameter_is_in_exactly_one_row(config):
    assert complexity(config, (4, 4)).elements == sum(
        p.numel() for p in QuantSR(config).parameters()
    )


@settings(deadline=None, max_examples=8)
@given(small_configs(), st.integers(1, 9), st.integers(1, 9))
def test_macs_are_half_the_flops_that_torch_counts(config, height, width):
    net = QuantSR(config)
    if config.bits is not None:
        calibrate(net, torch.rand(1, 3, 8, 8))
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        net(torch.rand(1, 3, height, width))
    cost = complexity(config, (height, width))
    assert 2 * (cost.float_macs + cost.quantised_macs) == counter.get_total_flops()


def test_honest_bytes_of_quantsr_c_equal_a_count_by_hand():
    """x4, 4 bits, 16 blocks, body convolution in full precision as in the released code."""
    cost = complexity(quantsr_c(4, 4, blocks=16, quantize_body_conv=False))
    conv = 64 * 64 * 9
    floats = (27 * 64 + 64) + (conv + 64) + 2 * (4 * conv + 256) + (27 * 64 + 3)
    per_layer = 64 + 64 + 2  # bias, tau, two step sizes
    assert cost.bytes == 4 * floats + 32 * (conv // 2 + 4 * per_layer) + 4 * 16
    assert cost.quantised_macs == 256 * 256 * 32 * conv
    tail = 4 * conv + 4 * 4 * conv + 16 * 27 * 64  # products per pixel: 1, 4 and 16 positions
    assert cost.float_macs == 256 * 256 * (27 * 64 + conv + tail)
    assert cost.ops == cost.float_macs + cost.quantised_macs / 8


def test_attention_products_are_counted_and_quantised_only_when_asked():
    products = 24 * 2 * 64 * 60  # layers, q.k and probabilities.v, window, features: per pixel
    plain, quantised = quantsr_t(4, 4), quantsr_t(4, 4, attention_bits=4)
    difference = complexity(plain).float_macs - complexity(quantised).float_macs
    assert difference == products * 256 * 256
    assert not any(layer.kind == "product" for layer in complexity(plain, rule="stated").layers)


@quick
@given(small_configs())
def test_the_collapsed_network_never_costs_more_than_the_honest_one(config):
    honest, collapsed = (complexity(config, (8, 8), rule) for rule in ("honest", "collapsed"))
    assert collapsed.ops <= honest.ops and collapsed.bytes <= honest.bytes
    assert collapsed.quantised_macs == honest.quantised_macs


def test_the_tail_of_srresnet_collapses_to_a_tenth_and_that_of_swinir_stays():
    def tail_macs_per_pixel(config, rule):
        layers = complexity(config, (16, 16), rule).layers
        return sum(x.macs for x in layers if x.name.startswith("tail")) / 256

    assert tail_macs_per_pixel(srresnet(4), "honest") == 764_928
    assert tail_macs_per_pixel(srresnet(4), "collapsed") == 76_800
    assert complexity(swinir_s(4), rule="collapsed").layers == layer_table(swinir_s(4))


@torch.no_grad()
@pytest.mark.parametrize("scale", [2, 3, 4])
def test_one_output_pixel_of_the_tail_sees_5x5_pixels_with_all_its_phases_together(scale):
    tail = QuantSR(srresnet(scale, blocks=1, features=3)).tail.double()
    base = torch.zeros(1, 3, 13, 13, dtype=torch.float64)
    poked = base.clone()
    poked[0, :, 6, 6] = 1.0
    changed = (tail(poked) != tail(base)).any(1)[0]
    blocks = changed.view(13, scale, 13, scale).any(3).any(1)  # of the small grid
    expected = torch.zeros(13, 13, dtype=torch.bool)
    expected[4:9, 4:9] = True
    assert torch.equal(blocks, expected)


@quick
@given(small_configs(BITS), st.sampled_from(RULES[1:]))
def test_cost_grows_with_bits_and_with_depth(config, rule):
    def cost(config, blocks=None):
        found = complexity(config, (8, 8), rule, blocks)
        return found.parameters, found.ops

    here, wider = cost(config), cost(replace(config, bits=config.bits + 1))
    assert here[0] < wider[0] and here[1] < wider[1]
    depths = [cost(config, blocks) for blocks in range(1, config.blocks + 1)]
    for fewer, more in itertools.pairwise(depths):
        assert fewer[0] < more[0] and fewer[1] < more[1]
    assert depths[-1] == here


@quick
@given(small_configs(), st.data())
def test_a_depth_variant_costs_what_the_sliced_network_holds(config, data):
    count = data.draw(st.integers(1, config.blocks))
    order = data.draw(st.permutations(range(config.blocks)))
    sliced = slice_depth(QuantSR(config), DepthPlan.from_order(order, count))
    cost = complexity(config, (4, 4), blocks=count)
    assert cost.elements == sum(p.numel() for p in sliced.parameters())
    again = complexity(sliced.config, (4, 4))
    assert (again.parameters, again.ops) == (cost.parameters, cost.ops)


@pytest.mark.parametrize("rule", ["printed", "stated"])
def test_the_paper_counts_the_x2_network_whatever_the_caption_says(rule):
    x2, x4 = (complexity(quantsr_c(scale, 2), (16, 16), rule) for scale in (2, 4))
    assert (x2.parameters, x2.ops) == (x4.parameters, x4.ops)


def test_printed_and_stated_differ_by_the_factor_of_two_bits_alone():
    """1/128 against 1/16; at 4 bits both are 1/8. Values: b/32 applied to the x2 network."""
    for preset in (quantsr_c, quantsr_t):
        four, stated_four = (complexity(preset(2, 4), rule=rule) for rule in ("printed", "stated"))
        assert (four.parameters, four.ops) == (stated_four.parameters, stated_four.ops)
    stated = complexity(quantsr_c(2, 2), rule="stated", blocks=16)
    assert f"{stated.parameters / 1e3:.1f} {stated.ops / 1e9:.1f}" == "227.3 15.2"


def test_walking_leaves_the_random_numbers_of_the_caller_alone():
    before = torch.get_rng_state()
    layer_table(srresnet(2, blocks=1, features=7), (3, 5))
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"rule": "fair"}, "fair"),
        ({"blocks": 0}, "blocks"),
        ({"blocks": 33}, "33"),
        ({"input": (0, 8)}, "input"),
        ({"input": (8,)}, "input"),
    ],
)
def test_bad_questions_get_one_clear_line(options, word):
    with pytest.raises(ValueError, match=word) as error:
        complexity(quantsr_c(), **options)
    assert "\n" not in str(error.value)


def test_the_printed_rule_refuses_widths_that_the_paper_does_not_have():
    with pytest.raises(ValueError, match="3 bits.*'stated'"):
        complexity(quantsr_c(bits=3), (8, 8), "printed")
