"""QuantSR-C as a planned program: the bits of the layers, on every kernel, at every depth."""

import functools
import sys
import threading

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import qsr
from qsr.integer.program_conv import ConvProgram

torch.set_num_threads(1)
SMALL = {"features": 8, "blocks": 4, "depths": (4, 2, 1)}
CONFIGS = {
    "4 bits": qsr.quantsr_c(4, 4, **SMALL),
    "2 bits": qsr.quantsr_c(2, 2, **SMALL),
    "weights 2, activations 4": qsr.quantsr_c(2, (2, 4), **SMALL),
    "weights 4, activations 3": qsr.quantsr_c(3, (4, 3), **SMALL),
    "8 bits": qsr.quantsr_c(2, 8, **SMALL),
    "lsq": qsr.quantsr_c(2, 4, quantizer="lsq", **SMALL),
    "step per channel": qsr.quantsr_c(2, 4, per_channel=True, **SMALL),
    "plain shortcuts": qsr.quantsr_c(2, 4, learnable_shortcuts=False, **SMALL),
    "70 features": qsr.quantsr_c(2, 4, features=70, blocks=1, depths=(1,)),
}


@functools.cache
def trained(name):
    """A calibrated network whose blocks, shortcuts and order are all different."""
    torch.manual_seed(11)
    net = qsr.QuantSR(CONFIGS[name])
    qsr.calibrate(net, torch.rand(2, 3, 16, 16))
    with torch.no_grad():
        for block in net.blocks:
            if block.shortcut.scale is not None:
                block.shortcut.scale.copy_(0.7 + 0.6 * torch.rand(()))
    net.block_order.copy_(torch.randperm(len(net.blocks)))
    return net.eval()


def features(program, lr, plan):
    """Of lr [3, H, W], in buffers that nobody else has."""
    return program.features(lr, plan, program.buffers(*lr.shape[1:]))


def arguments_of(program, lr, plan):
    return program.arguments(lr, plan, program.buffers(*lr.shape[1:]))


@pytest.mark.parametrize("name", CONFIGS)
@given(st.integers(1, 13), st.integers(1, 13), st.integers(0, 999))
@settings(deadline=None, max_examples=8)
def test_a_program_equals_the_layers_bit_for_bit_on_every_kernel(name, height, width, seed):
    net = trained(name)
    lr = torch.rand(1, 3, height, width, generator=torch.Generator().manual_seed(seed))
    slow = qsr.pack(net, "reference")
    assert slow.program is None
    for kernel in ConvProgram.available(net.config):
        program = ConvProgram(qsr.pack(net).network, kernel)
        for blocks in range(1, len(net.blocks) + 1):
            plan = net.plan(blocks)
            with torch.inference_mode():
                expected = slow.network.features(lr, plan)[0].permute(1, 2, 0)
                got = features(program, lr[0], plan)
                assert torch.equal(got[:, :, : expected.shape[2]], expected), (kernel, blocks)
                assert not got[:, :, expected.shape[2] :].any(), "the filling is not zero"
                sr = program(lr, plan)
            torch.testing.assert_close(sr, slow(lr, blocks), rtol=0, atol=1e-5)


def test_extreme_pictures_reach_the_extreme_codes_and_stay_exact():
    net = trained("4 bits")
    lr = torch.rand(1, 3, 11, 9).round() * 20 - 10  # far outside [0, 1]: every code clips
    slow, program = qsr.pack(net, "reference"), qsr.pack(net).program
    plan = net.plan()
    with torch.inference_mode():
        expected = slow.network.features(lr, plan)[0].permute(1, 2, 0)
        assert torch.equal(features(program, lr[0], plan)[:, :, :8], expected)


def test_a_picture_does_not_depend_on_batch_threads_or_the_pictures_before_it():
    packed, lr = qsr.pack(trained("4 bits")), torch.rand(3, 3, 21, 13)
    one = packed(lr)
    packed(torch.rand(1, 3, 40, 40))
    try:
        for threads in (2, 3, 8):
            torch.set_num_threads(threads)
            assert torch.equal(packed(lr), one)
            assert torch.equal(packed(lr[1:2]), one[1:2])
    finally:
        torch.set_num_threads(1)


def test_a_sliced_network_has_a_program_of_the_same_bits():
    net = trained("4 bits")
    lr = torch.rand(1, 3, 9, 6)
    sliced = qsr.pack(qsr.slice_depth(net, net.plan(2)))
    assert isinstance(sliced.program, ConvProgram)
    assert torch.equal(sliced(lr), qsr.pack(net)(lr, blocks=2))


def test_values_loaded_after_the_first_call_reach_the_program():
    full = qsr.pack(trained("2 bits"))
    other = qsr.PackedModel.empty(full.config)
    lr = torch.rand(1, 3, 5, 6)
    assert not torch.equal(other(lr), full(lr))
    other.network.load_state_dict(full.network.state_dict())
    assert torch.equal(other(lr), full(lr))


def test_other_threads_of_python_run_while_a_program_does():
    program, plan = qsr.pack(trained("70 features")).program, trained("70 features").plan()
    arguments = arguments_of(program, torch.rand(3, 96, 96), plan)
    may_run, ran = threading.Lock(), []

    def other():
        with may_run:
            ran.append(True)

    thread, usual = threading.Thread(target=other), sys.getswitchinterval()
    sys.setswitchinterval(1000)  # from here on no one runs until another gives up Python's lock
    try:
        with may_run:
            thread.start()
        sum(range(100_000))
        assert not ran, "a call that keeps the lock"
        for _ in range(1000):  # the system may be slow to wake the other
            torch.ops.qsr_native.residual_body(*arguments)
            if ran:
                break
        assert ran
    finally:
        sys.setswitchinterval(usual)
        thread.join()


def test_networks_without_a_program_run_layer_by_layer():
    released = qsr.quantsr_c(2, 4, quantize_body_conv=False, **SMALL)
    assert ConvProgram.available(released) == ()
    assert ConvProgram.available(qsr.srresnet(2)) == ()
    assert ConvProgram.available(qsr.quantsr_t(2)) == ()
    net = qsr.QuantSR(released)
    qsr.calibrate(net, torch.rand(1, 3, 8, 8))
    packed = qsr.pack(net)
    assert packed.program is None and packed(torch.rand(1, 3, 4, 5)).shape == (1, 3, 8, 10)


def test_a_kernel_that_is_not_there_is_refused_with_those_that_are():
    with pytest.raises(ValueError, match="`kernel` is 'warp'; programs of this network have "):
        ConvProgram(qsr.pack(trained("4 bits")).network, "warp")


def test_a_network_that_was_moved_leaves_its_program_behind():
    packed = qsr.pack(trained("4 bits"))
    program = packed.program
    assert program is not None and packed.program is program
    assert packed.to("meta").program is None  # a device for which there are no kernels


def test_opcheck_of_the_operator():
    program, plan = qsr.pack(trained("4 bits")).program, trained("4 bits").plan()
    arguments = arguments_of(program, torch.rand(3, 6, 5), plan)
    torch.library.opcheck(torch.ops.qsr_native.residual_body.default, arguments)


@pytest.mark.parametrize(
    ("position", "value", "words"),
    [
        (0, torch.rand(1, 6, 5), "lr must be"),
        (6, torch.rand(3, 3, 64), "arrays must be"),
        (5, torch.zeros(9, 5, dtype=torch.uint8), "laid out for this kernel"),
        (12, torch.zeros(5, dtype=torch.uint8), "workspace must be"),
        (13, torch.zeros(6, 5, 63), "multiple of 64"),
    ],
)
def test_the_raw_operator_refuses_what_could_read_outside(position, value, words):
    program, plan = qsr.pack(trained("4 bits")).program, trained("4 bits").plan()
    arguments = list(arguments_of(program, torch.rand(3, 6, 5), plan))
    arguments[position] = value
    with pytest.raises(RuntimeError, match=words):
        torch.ops.qsr_native.residual_body(*arguments)


@pytest.mark.parametrize("kernel", ConvProgram.available(qsr.quantsr_c(2, 4)))
@pytest.mark.parametrize("byte", [0, 255])
def test_weights_that_no_kernel_laid_out_give_wrong_sums_and_no_crash(kernel, byte):
    # One row keeps a number in front of them, by which it divides.
    program = ConvProgram(qsr.pack(trained("4 bits")).network, kernel)
    plan = trained("4 bits").plan()
    arguments = list(arguments_of(program, torch.rand(3, 6, 5), plan))
    arguments[5] = torch.full_like(arguments[5], byte)
    torch.ops.qsr_native.residual_body(*arguments)


def test_the_raw_operator_refuses_a_kernel_that_is_not_there():
    program, plan = qsr.pack(trained("4 bits")).program, trained("4 bits").plan()
    arguments = list(arguments_of(program, torch.rand(3, 6, 5), plan))
    arguments[11] = "warp"
    with pytest.raises(ValueError, match="`kernel` is 'warp', which does not run 3x3 layers of 4"):
        torch.ops.qsr_native.residual_body(*arguments)
