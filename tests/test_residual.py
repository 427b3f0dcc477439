"""QuantSR-C by its plans: the bits of the layers, on every kernel, at every depth."""

import contextlib
import functools
import sys
import threading

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import qsr
from qsr.backbone import DepthPlan
from qsr.bench.steps import time_steps
from qsr.integer import plan_reference
from qsr.integer.lifetimes import places
from qsr.integer.residual import ResidualProgram, plan_of

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
    "64 features": qsr.quantsr_c(4, 4, blocks=3, depths=(3,)),
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


@functools.cache
def packed(name):
    return qsr.pack(trained(name))


def test_steps_are_timed_on_a_picture_of_the_size_that_is_asked_for():
    program = packed("4 bits").program
    if program is None:
        pytest.skip("no native code here")
    head, first, *_ = time_steps([program.plan], program.network, 9, rounds=1)
    assert head.products == 9 * 9 * 3 * 3 * 3 * 8
    assert first.products == 9 * 9 * 3 * 3 * 8 * 8


def features(program, lr, plan):
    """Of lr [3, H, W], in buffers that nobody else has."""
    return program.features(lr, plan, program.buffers(*lr.shape[1:]))


def arguments_of(program, lr, plan):
    """What the operator `run_plan` takes."""
    run, (workspace, features) = program.executor(plan.keep), program.buffers(*lr.shape[1:])
    picture = lr.permute(1, 2, 0).contiguous()
    tables = run.tables((tuple(lr.shape[1:]),))[0], run.constants, run.weights
    steps, kernels = (0, len(run.plan.steps)), (run.kernel, run.swin)
    return [[picture], *tables, *steps, *kernels, workspace, [features]]


@pytest.mark.parametrize("name", CONFIGS)
@given(st.integers(1, 13), st.integers(1, 13), st.integers(0, 999))
@settings(deadline=None, max_examples=8)
def test_a_program_equals_the_layers_bit_for_bit_on_every_kernel(name, height, width, seed):
    net = trained(name)
    lr = torch.rand(1, 3, height, width, generator=torch.Generator().manual_seed(seed))
    slow = qsr.pack(net, "reference")
    assert slow.program is None
    for kernel in ResidualProgram.available(net.config):
        program = ResidualProgram(qsr.pack(net).network, kernel)
        for blocks in range(1, len(net.blocks) + 1):
            plan = net.plan(blocks)
            with torch.inference_mode():
                expected = slow.network.features(lr, plan)[0].permute(1, 2, 0)
                got = features(program, lr[0], plan)
                assert torch.equal(got, expected), (kernel, blocks)
                sr = program(lr, plan)
            torch.testing.assert_close(sr, slow(lr, blocks), rtol=0, atol=1e-5)


def test_extreme_pictures_reach_the_extreme_codes_and_stay_exact():
    net = trained("4 bits")
    lr = torch.rand(1, 3, 11, 9).round() * 20 - 10  # far outside [0, 1]: every code clips
    slow, program = qsr.pack(net, "reference"), qsr.pack(net).program
    plan = net.plan()
    with torch.inference_mode():
        expected = slow.network.features(lr, plan)[0].permute(1, 2, 0)
        assert torch.equal(features(program, lr[0], plan), expected)


KEEPS = st.lists(st.booleans(), min_size=4, max_size=4).map(tuple)


@given(KEEPS, st.integers(0, 99))
@settings(deadline=None, max_examples=20)
def test_any_blocks_may_be_left_out_also_all_and_the_steps_mean_what_they_do(keep, seed):
    network = qsr.pack(trained("4 bits")).network
    program, plan = ResidualProgram(network), plan_of(network, keep)
    lr = torch.rand(3, 5, 6, generator=torch.Generator().manual_seed(seed))
    x = ((lr - network.mean[0]) * 255).permute(1, 2, 0)
    (slow,) = plan_reference.run(plan, network, [x])
    expected = network.features(lr[None], DepthPlan(keep))[0].permute(1, 2, 0)
    assert torch.equal(slow, expected)
    assert torch.equal(features(program, lr, DepthPlan(keep)), expected)


@given(KEEPS, st.integers(1, 99), st.integers(1, 99))
@settings(deadline=None)
def test_depths_share_weights_and_fit_the_workspace_of_the_deepest(keep, height, width):
    program = packed("4 bits").program
    assert program.executor(keep).weights is program.executor((True,) * 4).weights
    workspace, _ = program.buffers(height, width)
    assert program.executor(keep).tables(((height, width),))[1] <= len(workspace)


def test_beside_the_features_a_plan_needs_a_map_of_floats_and_two_of_codes():
    plan = plan_of(packed("64 features").network, (True,) * 3)
    floats, codes = 4 * 128 * 128 * 64, 130 * 130 * 64
    assert places(plan, [(128, 128)])[1] == floats + 2 * codes


def test_a_picture_does_not_depend_on_batch_threads_or_the_pictures_before_it():
    model, lr = qsr.pack(trained("4 bits")), torch.rand(3, 3, 21, 13)
    one = model(lr)
    model(torch.rand(1, 3, 40, 40))
    try:
        for threads in (2, 3, 8):
            torch.set_num_threads(threads)
            assert torch.equal(model(lr), one)
            assert torch.equal(model(lr[1:2]), one[1:2])
    finally:
        torch.set_num_threads(1)


def test_a_sliced_network_has_a_program_of_the_same_bits():
    net = trained("4 bits")
    lr = torch.rand(1, 3, 9, 6)
    sliced = qsr.pack(qsr.slice_depth(net, net.plan(2)))
    assert isinstance(sliced.program, ResidualProgram)
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
            torch.ops.qsr_native.run_plan(*arguments)
            if ran:
                break
        assert ran
    finally:
        sys.setswitchinterval(usual)
        thread.join()


def test_networks_without_a_program_run_layer_by_layer():
    released = qsr.quantsr_c(2, 4, quantize_body_conv=False, **SMALL)
    assert ResidualProgram.available(released) == ()
    assert ResidualProgram.available(qsr.srresnet(2)) == ()
    assert ResidualProgram.available(qsr.quantsr_t(2)) == ()
    net = qsr.QuantSR(released)
    qsr.calibrate(net, torch.rand(1, 3, 8, 8))
    model = qsr.pack(net)
    assert model.program is None and model(torch.rand(1, 3, 4, 5)).shape == (1, 3, 8, 10)
    assert str(model.plan) == "layer by layer: no program fits the network"


def test_a_kernel_that_is_not_there_is_refused_with_those_that_are():
    with pytest.raises(ValueError, match="`kernel` is 'warp'; programs of this network have "):
        ResidualProgram(qsr.pack(trained("4 bits")).network, "warp")


def test_a_network_that_was_moved_leaves_its_program_behind():
    model = qsr.pack(trained("4 bits"))
    program = model.program
    assert program is not None and model.program is program
    assert model.to("meta").program is None  # a device for which there are no kernels


def test_a_plan_can_be_read():
    model = packed("64 features")
    shown = str(model.plan).splitlines()
    assert shown[0].split() == ["step", "then", "shape", "bits", "kernel", "buffer", "MMAC", "KB"]
    layers = [f"blocks.{i}.conv{k}" for i in range(3) for k in (1, 2)]
    assert [line.split()[1] for line in shown[1:-1]] == ["head", *layers, "body_conv", "tail"]
    assert model.plan.coverage == 7 * 36864 / (7 * 36864 + 1728 + 76800)
    assert f"{model.plan.coverage:.1%} of the products" in shown[-1]
    assert model.plan(2) == trained("64 features").plan(2)


# The operator -------------------------------------------------------------------------------------


def arguments_of_one():
    return arguments_of(packed("4 bits").program, torch.zeros(3, 6, 5), trained("4 bits").plan())


def test_opcheck_of_the_operator():
    torch.library.opcheck(torch.ops.qsr_native.run_plan.default, arguments_of_one())


@pytest.mark.parametrize(
    ("position", "value", "words"),
    [
        (0, [torch.zeros(6, 4, 3)], "size of an input"),
        (0, [torch.zeros(6, 5, 3).double()], "inputs must be"),
        (2, torch.zeros(20), "place of a constant"),
        (3, torch.zeros(64, dtype=torch.uint8), "place of weights"),
        (8, torch.zeros(64, dtype=torch.uint8), "place of a value"),
        (5, 999, "steps are counted"),
        (6, "warp", "no kernel of this name"),
    ],
)
def test_the_raw_operator_refuses_what_could_read_outside(position, value, words):
    arguments = arguments_of_one()
    if isinstance(value, torch.Tensor):  # aligned as it must be
        value = aligned(value)
    arguments[position] = value
    with pytest.raises((RuntimeError, ValueError), match=words):
        torch.ops.qsr_native.run_plan(*arguments)


def aligned(value):
    room = torch.zeros(value.nbytes + 64, dtype=torch.uint8)
    begin = -room.data_ptr() % 64
    return room[begin : begin + value.nbytes].view(value.dtype)


@settings(deadline=None, max_examples=300)
@given(st.data())
def test_changed_tables_are_refused_or_run_and_never_read_outside(data):
    run_changed(arguments_of_one(), data)


def run_changed(arguments, data):
    """Call `run_plan` with some of its numbers changed."""
    numbers = arguments[1] = arguments[1].clone()
    for _ in range(data.draw(st.integers(1, 3))):
        numbers[data.draw(st.integers(0, len(numbers) - 1))] = data.draw(
            st.sampled_from([-1, 0, 1, 2, 16, 63, 64, 1 << 20, 1 << 40, 1 << 62])
            | st.integers(-3, 100)
        )
    with contextlib.suppress(ValueError, RuntimeError):
        torch.ops.qsr_native.run_plan(*arguments)


@pytest.mark.parametrize("kernel", ResidualProgram.available(qsr.quantsr_c(2, 4)))
@pytest.mark.parametrize("byte", [0, 255])
def test_weights_that_no_kernel_laid_out_give_wrong_sums_and_no_crash(kernel, byte):
    # One row keeps a number in front of them, by which it divides.
    program = ResidualProgram(qsr.pack(trained("4 bits")).network, kernel)
    arguments = arguments_of(program, torch.rand(3, 6, 5), trained("4 bits").plan())
    arguments[3].fill_(byte)
    torch.ops.qsr_native.run_plan(*arguments)
