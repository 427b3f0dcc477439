"""QuantSR-T by its plans: the bits of the layers, on every kernel, at every depth."""

import functools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_residual import aligned, arguments_of, features, run_changed
from torch import nn

import qsr
from qsr.backbone import DepthPlan
from qsr.integer import plan_reference, reference
from qsr.integer.executor import Executor
from qsr.integer.lifetimes import places
from qsr.integer.packed_swin import FixedLayerNorm
from qsr.integer.plan import Plan, Size, Step, Value
from qsr.integer.program import padded
from qsr.integer.swin import SwinProgram, plan_of

TINY = {"blocks": 2, "features": 12, "layers": 2, "heads": 2, "window": 4}
CONFIGS = {
    "paper": qsr.quantsr_t(2, 4, **TINY),
    "attention": qsr.quantsr_t(4, 4, attention_bits=4, **TINY),
    "two bits": qsr.quantsr_t(2, 2, attention_bits=2, **TINY),
    "eight bits": qsr.quantsr_t(3, 8, attention_bits=8, **TINY),
    "body": qsr.quantsr_t(2, (3, 4), quantize_body_conv=True, per_channel=True, **TINY),
    "wide": qsr.quantsr_t(2, 4, attention_bits=4, **{**TINY, "features": 66, "heads": 3}),
}


@functools.cache
def trained(name: str) -> qsr.QuantSR:
    """A network with moved parameters, as training leaves them."""
    torch.manual_seed(2)
    net = qsr.QuantSR(CONFIGS[name])
    for parameter_name, p in net.named_parameters():
        if parameter_name.endswith(("position_bias", "norm1.bias", "fc1.bias")):
            nn.init.normal_(p)
    qsr.calibrate(net, torch.rand(2, 3, 12, 12))
    with torch.no_grad():
        for parameter_name, p in net.named_parameters():
            if parameter_name.endswith(("tau", "step_size", "shortcut.scale")):
                p.mul_(1 + 0.1 * torch.randn(p.shape)).add_(0.05 * p.abs().mean() + 1e-3)
    net.block_order.copy_(torch.tensor([1, 0]))
    return net.eval()


@functools.cache
def packed(name):
    return qsr.pack(trained(name))


def close(a, b):
    torch.testing.assert_close(a, b, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("size", [(1, 1), (5, 7), (16, 16), (4, 13)])
def test_a_program_equals_the_layers_bit_for_bit_on_every_kernel_at_every_depth(name, size):
    net = trained(name)
    lr = torch.rand(2, 3, *size)
    slow, names = qsr.pack(net, "reference"), SwinProgram.available(net.config)
    assert slow.program is None and names
    for kernel in names:
        program = SwinProgram(qsr.pack(net).network, kernel)
        for blocks in net.config.depths:
            plan = net.plan(blocks)
            with torch.inference_mode():
                layers = slow.network.features(lr, plan)
                for picture, expected in zip(lr, layers, strict=True):
                    got = program.features(picture, plan, program.buffers(*size))
                    got = got[:, :, : len(expected)].permute(2, 0, 1)
                    assert torch.equal(got, expected), kernel
                close(program(lr, plan), slow(lr, blocks))  # the tail is float


@pytest.mark.parametrize("attention_bits", [None, 4])
def test_the_network_of_the_paper_runs_as_a_program(attention_bits):
    config = qsr.quantsr_t(4, 4, blocks=1, attention_bits=attention_bits)
    net = qsr.QuantSR(config)
    qsr.calibrate(net, torch.rand(1, 3, 16, 16))
    model, lr = qsr.pack(net), torch.rand(1, 3, 17, 24)
    assert isinstance(model.program, SwinProgram)
    sr = model(lr)
    close(sr, qsr.pack(net, "reference")(lr))
    with torch.no_grad():
        torch.testing.assert_close(sr, net(lr), rtol=0, atol=2e-3)


def test_a_picture_does_not_depend_on_batch_threads_or_the_pictures_before_it():
    model, lr = qsr.pack(trained("attention")), torch.rand(3, 3, 21, 34)
    together = model(lr)
    torch.set_num_threads(3)
    try:
        assert torch.equal(model(lr), together)
    finally:
        torch.set_num_threads(1)
    model(torch.rand(1, 3, 6, 6))
    assert torch.equal(model(lr[1:2]), together[1:2])


def test_a_packed_network_runs_in_and_out_of_inference_mode():
    """qsr.evaluate runs it in that mode; the buffers that it keeps must serve a plain call too."""
    model, lr = qsr.pack(trained("attention")), torch.rand(1, 3, 8, 12)
    with torch.inference_mode():
        expected = model(lr)
    assert torch.equal(model(lr), expected)


def test_a_block_that_was_sliced_away_leaves_its_shortcut():
    net = trained("attention")
    plan = net.plan(1)
    lr = torch.rand(1, 3, 9, 9)
    sliced = qsr.pack(qsr.slice_depth(net, plan))
    assert isinstance(sliced.program, SwinProgram)
    assert torch.equal(sliced(lr), qsr.pack(net)(lr, 1))


def test_a_wrong_kernel_is_refused_and_a_float_network_has_no_program():
    network = qsr.pack(trained("paper")).network
    with pytest.raises(ValueError, match="`kernel` is 'wings'"):
        SwinProgram(network, "wings")
    assert SwinProgram.available(qsr.swinir_s(2)) == ()
    assert SwinProgram.available(qsr.quantsr_c(2)) == ()


KEEPS = st.lists(st.booleans(), min_size=2, max_size=2).map(tuple)


@pytest.mark.parametrize("name", ["attention", "paper", "body"])
@given(KEEPS, st.integers(0, 99))
@settings(deadline=None, max_examples=5)
def test_any_blocks_may_be_left_out_also_all_and_the_steps_mean_what_they_do(name, keep, seed):
    network = qsr.pack(trained(name)).network
    program, plan = SwinProgram(network), plan_of(network, keep)
    lr = torch.rand(3, 8, 12, generator=torch.Generator().manual_seed(seed))
    x = ((lr - network.mean[0]) * network.config.pixel_range).permute(1, 2, 0)
    (slow,) = plan_reference.run(plan, network, [x])
    expected = network.features(lr[None], DepthPlan(keep))[0].permute(1, 2, 0)
    assert torch.equal(slow[:, :, :12], expected)
    assert torch.equal(features(program, lr, DepthPlan(keep)), slow)


@given(KEEPS, st.integers(1, 99), st.integers(1, 99))
@settings(deadline=None)
def test_depths_share_weights_and_fit_the_workspace_of_the_deepest(keep, height, width):
    program = packed("attention").program
    assert program.executor(keep).weights is program.executor((True,) * 2).weights
    workspace, windows = program.buffers(height, width)
    assert program.executor(keep).tables((tuple(windows.shape[:2]),))[1] <= len(workspace)


def test_beside_the_features_a_plan_needs_two_maps_of_floats_and_one_of_codes():
    for name in ("paper", "body"):  # body_conv in floats, and on codes
        plan = plan_of(packed(name).network, (True,) * 2)
        floats, codes = 4 * 128 * 128 * 64, 130 * 130 * 64
        assert places(plan, [(128, 128)])[1] == 2 * floats + codes


@pytest.mark.parametrize(
    ("name", "scale", "quantised"), [("attention", 4, True), ("paper", 2, False)]
)
def test_a_plan_can_be_read_and_says_how_much_runs_on_integers(name, scale, quantised):
    model = packed(name)
    *shown, last = str(model.plan).splitlines()
    blocks = [(f"blocks.{i}.layers.0", f"blocks.{i}.layers.1", f"blocks.{i}.conv") for i in (0, 1)]
    names = ["head", "norm_in", *blocks[0], *blocks[1], "norm_out", "body_conv", "tail"]
    assert [line.split()[1] for line in shown[1:]] == names
    attention, linear, conv = 2 * 16 * 12, 12 * 12 * (3 + 1 + 2 + 2), 9 * 12 * 12
    integers = 4 * (quantised * attention + linear) + 2 * conv
    whole = 4 * (attention + linear) + 3 * conv + 9 * 3 * 12 + 25 * 12 * 3 * scale**2
    assert model.plan.coverage == integers / whole
    assert f"{integers / whole:.1%} of the products" in last


# The operator -------------------------------------------------------------------------------------


@pytest.mark.parametrize("features", [1, 12, 60, 64, 130])
def test_layer_norm_of_every_kernel_is_the_reference(features):
    network = nn.Module()
    network.norm_in = norm = FixedLayerNorm(nn.LayerNorm(features))
    nn.init.normal_(norm.weight), nn.init.normal_(norm.bias)
    channels = padded(features)
    x = torch.zeros(5, 10, channels)
    x[:, :, :features] = 3 * torch.randn(5, 10, features) + 1
    x[1, 3] = 0
    maps = (Value("float", channels, Size(0)),) * 2
    step = Step("norm", 0, channels, Size(0), "norm_in", out=1)
    plan = Plan(("x",), (("y", 1),), False, maps, (step,), ())
    expected = reference.layer_norm(x[:, :, :features], norm.weight, norm.bias)
    for name in SwinProgram.available(qsr.quantsr_t(2, 4)):
        (out,) = Executor(plan, network, swin=name)([x])
        assert torch.equal(out[:, :, :features], expected), name
        assert not out[:, :, features:].any()


def arguments_of_one(name="attention"):
    return arguments_of(packed(name).program, torch.zeros(3, 8, 4), trained(name).plan())


def test_opcheck_of_the_operator():
    torch.library.opcheck(torch.ops.qsr_native.run_plan.default, arguments_of_one())


@pytest.mark.parametrize(
    ("position", "value", "words"),
    [
        (2, torch.zeros(20), "place of a constant"),
        (3, torch.zeros(64, dtype=torch.uint8), "place of weights"),
        (7, "warp", "no kernel of this name"),
    ],
)
def test_the_raw_operator_refuses_what_could_read_outside(position, value, words):
    arguments = arguments_of_one()
    arguments[position] = aligned(value) if isinstance(value, torch.Tensor) else value
    with pytest.raises((RuntimeError, ValueError), match=words):
        torch.ops.qsr_native.run_plan(*arguments)


@settings(deadline=None, max_examples=300)
@given(st.sampled_from(["attention", "paper", "body"]), st.data())
def test_changed_tables_are_refused_or_run_and_never_read_outside(name, data):
    run_changed(arguments_of_one(name), data)
