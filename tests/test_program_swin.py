"""A packed QuantSR-T as a program gives the pictures of its layers, bit for bit."""

import functools

import pytest
import torch
from torch import nn

import qsr
from qsr.integer import reference
from qsr.integer.lifetimes import value_bytes
from qsr.integer.plan import Size, Value
from qsr.integer.program import padded
from qsr.integer.program_swin import SwinProgram
from qsr.system import native

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
    packed, lr = qsr.pack(net), torch.rand(1, 3, 17, 24)
    assert isinstance(packed.program, SwinProgram)
    sr = packed(lr)
    close(sr, qsr.pack(net, "reference")(lr))
    with torch.no_grad():
        torch.testing.assert_close(sr, net(lr), rtol=0, atol=2e-3)


def test_a_picture_does_not_depend_on_batch_threads_or_the_pictures_before_it():
    net = trained("attention")
    packed, lr = qsr.pack(net), torch.rand(3, 3, 21, 34)
    together = packed(lr)
    torch.set_num_threads(3)
    try:
        assert torch.equal(packed(lr), together)
    finally:
        torch.set_num_threads(1)
    packed(torch.rand(1, 3, 6, 6))
    assert torch.equal(packed(lr[1:2]), together[1:2])


def test_a_packed_network_runs_in_and_out_of_inference_mode():
    """qsr.evaluate runs it in that mode; the buffers that it keeps must serve a plain call too."""
    packed, lr = qsr.pack(trained("attention")), torch.rand(1, 3, 8, 12)
    with torch.inference_mode():
        expected = packed(lr)
    assert torch.equal(packed(lr), expected)


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


# The operators ------------------------------------------------------------------------------------


@pytest.mark.parametrize("features", [1, 12, 60, 64, 130])
def test_layer_norm_of_every_kernel_is_the_reference(features):
    native.load()
    channels = padded(features)
    x = torch.zeros(50, channels)
    x[:, :features] = 3 * torch.randn(50, features) + 1
    x[7] = 0
    weight, bias = (torch.zeros(channels) for _ in range(2))
    weight[:features], bias[:features] = torch.randn(features), torch.randn(features)
    expected = reference.layer_norm(x[:, :features], weight[:features], bias[:features])
    for name in SwinProgram.available(qsr.quantsr_t(2, 4)):
        out = torch.empty_like(x)
        torch.ops.qsr_native.swin_norm(x, weight, bias, 1e-5, features, name, out)
        assert torch.equal(out[:, :features], expected), name
        assert not out[:, features:].any()


def samples():
    """(operator, arguments) of a small program."""
    program = SwinProgram(qsr.pack(trained("attention")).network)
    _, (layer, *_), conv = program.blocks[0]
    x, out = torch.randn(8, 8, 64), torch.empty(8, 8, 64)
    x[:, :, 12:] = 0
    norm = program.norm_in
    yield "swin_norm", (x, norm.weight, norm.bias, norm.eps, 12, program.kernel, out)
    yield (
        "swin_layer",
        (
            x,
            [8, 8, *layer.shape],
            layer.weights,
            layer.starts,
            layer.arrays,
            layer.numbers,
            layer.position_bias,
            layer.attention_bits,
            layer.attention_signed,
            layer.bits,
            program.kernel,
        ),
    )
    size = value_bytes(Value("codes", 64, Size(0), frame=(1, 1)), (8, 8))
    codes = torch.empty(size, dtype=torch.uint8)
    arguments = (x, out.zero_(), 0.5, conv.weights, conv.array, conv.number, conv.bits)
    yield "swin_conv", (*arguments, conv.kernel, codes)


def test_the_operators_pass_opcheck_and_refuse_what_does_not_fit():
    for name, arguments in samples():
        operator = getattr(torch.ops.qsr_native, name).default
        torch.library.opcheck(operator, arguments)
        for i, argument in enumerate(arguments):
            if isinstance(argument, torch.Tensor) and argument.numel() > 1 and name != "swin_norm":
                short = (*arguments[:i], argument.flatten()[:-1], *arguments[i + 1 :])
                # of `arrays` only the layer knows how many there must be
                called = operator._schema.arguments[i].name
                with pytest.raises(RuntimeError, match=f"{called} (must|of a Swin layer are too)"):
                    operator(*short)
