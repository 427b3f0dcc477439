"""The quantizers against their definition and the closed forms of their gradients."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import qsr
from qsr.quantizer import phi, phi_slope, to_codes

BITS = st.integers(2, 8)
SEEDS = st.integers(0, 2**20)


def make(cls, bits, signed, step, tau=None, **options):
    """A calibrated float64 quantizer with the given parameters."""
    channels = None if tau is None else len(tau)
    quantizer = cls(bits, signed=signed, channels=channels, **options).double()
    quantizer.calibrated = True
    with torch.no_grad():
        quantizer.step_size.copy_(torch.as_tensor(step))
        if tau is not None:
            quantizer.tau.copy_(tau)
    return quantizer


def random_case(seed, bits, signed):
    """x [2, 3, 4, 5] with many elements on clip boundaries, exact integers and halves."""
    generator = torch.Generator().manual_seed(seed)
    step = 0.1 + torch.rand((), generator=generator, dtype=torch.float64)
    tau = torch.randn(3, generator=generator, dtype=torch.float64)
    spec = qsr.QuantSpec(bits, signed)
    span = spec.qmax - spec.qmin
    z = spec.qmin - 0.2 * span + 1.4 * span * torch.rand(2, 3, 4, 5, generator=generator).double()
    z[0, :, 0] = z[0, :, 0].round()
    z[0, :, 1] = z[0, :, 1].floor() + 0.5
    z[1, :, 0, :2] = torch.tensor([spec.qmin, spec.qmax], dtype=torch.float64)
    x = z * step - tau.view(1, 3, 1, 1)
    grad = torch.randn(x.shape, generator=generator, dtype=torch.float64)
    return x, step, tau, spec, grad


@settings(deadline=None, max_examples=60)
@given(SEEDS, BITS, st.booleans(), st.sampled_from([0.0, 0.5, 1.0, 2.0]))
def test_rlq_gradients_equal_the_closed_forms_of_the_paper(seed, bits, signed, k):
    x, step, tau, spec, grad = random_case(seed, bits, signed)
    quantizer = make(qsr.RLQ, bits, signed, step, tau, sharpness=k)
    x.requires_grad_()
    quantizer(x).backward(grad)

    # Written from the formulas, element by element, without the library's code.
    z = (x.detach() + tau.view(1, 3, 1, 1)) / step
    inside = (z >= spec.qmin) & (z <= spec.qmax)
    u = z - z.floor()
    slope = torch.ones_like(u)
    if k:
        slope = k / torch.cosh(k * (u - 0.5)) ** 2 / (2 * math.tanh(k / 2))
    d_x = torch.where(inside, grad * slope, 0)
    d = torch.where(inside, z.round() - slope * z, torch.where(z < 0, spec.qmin, spec.qmax))
    d_step = (grad * d).sum() / math.sqrt(x.numel() * spec.qmax)
    torch.testing.assert_close(x.grad, d_x, atol=1e-12, rtol=1e-12)
    torch.testing.assert_close(quantizer.tau.grad, d_x.sum((0, 2, 3)), atol=1e-12, rtol=1e-12)
    torch.testing.assert_close(quantizer.step_size.grad, d_step, atol=1e-12, rtol=1e-12)


@settings(deadline=None, max_examples=40)
@given(SEEDS, BITS, st.booleans())
def test_rlq_gradients_equal_autograd_through_the_surrogate(seed, bits, signed):
    """The surrogate is floor(z) + phi(u) with floor held constant; autograd derives the rest."""
    x, step, tau, spec, grad = random_case(seed, bits, signed)
    leaves = [
        x.clone().requires_grad_(),
        step.clone().requires_grad_(),
        tau.clone().requires_grad_(),
    ]
    z = (leaves[0] + leaves[2].view(1, 3, 1, 1)) / leaves[1]
    z = z.clamp(spec.qmin, spec.qmax)
    smooth = z.detach().floor() + phi(z - z.detach().floor())
    rounded = smooth + (z.round() - smooth).detach()
    (leaves[1] * rounded).backward(grad)

    quantizer = make(qsr.RLQ, bits, signed, step, tau)
    x.requires_grad_()
    quantizer(x).backward(grad)
    g = 1 / math.sqrt(x.numel() * spec.qmax)
    torch.testing.assert_close(x.grad, leaves[0].grad, atol=1e-12, rtol=1e-10)
    torch.testing.assert_close(quantizer.step_size.grad, g * leaves[1].grad, atol=1e-12, rtol=1e-10)
    torch.testing.assert_close(quantizer.tau.grad, leaves[2].grad, atol=1e-12, rtol=1e-10)


@settings(deadline=None, max_examples=40)
@given(SEEDS, BITS, st.booleans(), st.floats(0, 4))
def test_phi_changes_no_forward_value(seed, bits, signed, k):
    x, step, tau, *_ = random_case(seed, bits, signed)
    bent = make(qsr.RLQ, bits, signed, step, tau, sharpness=k)(x)
    straight = make(qsr.RLQ, bits, signed, step, tau, sharpness=0)(x)
    assert torch.equal(bent, straight)


@settings(deadline=None, max_examples=40)
@given(SEEDS, BITS, st.booleans())
def test_the_forward_pass_is_the_step_size_times_codes_in_range(seed, bits, signed):
    x, step, tau, spec, _ = random_case(seed, bits, signed)
    quantizer = make(qsr.RLQ, bits, signed, step, tau)
    codes = quantizer.codes(x)
    assert codes.dtype == spec.dtype
    assert int(codes.min()) >= spec.qmin and int(codes.max()) <= spec.qmax
    assert torch.equal(quantizer(x), codes.double() * step)


@settings(deadline=None, max_examples=30)
@given(SEEDS, BITS, st.booleans())
def test_quantising_is_monotone_and_idempotent_without_a_shift(seed, bits, signed):
    x, step, *_ = random_case(seed, bits, signed)
    quantizer = make(qsr.LSQ, bits, signed, step)
    ordered = x.flatten().sort().values
    once = quantizer(ordered)
    assert (once.diff() >= 0).all()
    assert torch.equal(quantizer(once), once)


def test_phi_keeps_the_ends_of_an_interval_and_its_slope_has_mean_one():
    u = torch.linspace(0, 1, 100_001, dtype=torch.float64)
    for k in (0.0, 1.0, 2.0):
        ends = phi(torch.tensor([0.0, 0.5, 1.0], dtype=torch.float64), k)
        torch.testing.assert_close(ends, torch.tensor([0, 0.5, 1], dtype=torch.float64))
        assert abs(torch.trapezoid(phi_slope(u, k), u).item() - 1) < 1e-9


def test_codes_round_halves_to_even():
    codes = to_codes(torch.tensor([0.5, 1.5, 2.5, -0.5, -1.5]), torch.tensor(1.0), qsr.QuantSpec(4))
    assert codes.tolist() == [0, 2, 2, 0, -2]


def test_a_step_size_below_zero_is_held_at_its_floor_and_still_learns():
    quantizer = make(qsr.LSQ, 4, True, -0.3)
    out = quantizer(torch.tensor([1.0, -1.0], dtype=torch.float64))
    out.sum().backward()
    assert torch.isfinite(out).all() and quantizer.step_size.grad.item() != 0


def test_calibration_follows_lsq_and_decides_the_sign_once():
    x = torch.randn(4, 3, 8, 8)
    signed, unsigned = qsr.RLQ(4, channels=3), qsr.RLQ(4, channels=3)
    signed.calibrate(x)
    unsigned.calibrate(x.relu())
    assert signed.signed is True and unsigned.signed is False
    torch.testing.assert_close(signed.step_size.data, 2 * x.abs().mean() / math.sqrt(7))
    torch.testing.assert_close(unsigned.step_size.data, 2 * x.relu().mean() / math.sqrt(15))


def test_each_output_channel_may_have_its_own_step_size():
    weight = torch.randn(6, 5, 3, 3) * torch.arange(1, 7).view(6, 1, 1, 1)
    quantizer = qsr.RLQ(4, signed=True, steps=6)
    quantizer.calibrate(weight)
    for i in range(6):
        alone = qsr.RLQ(4, signed=True)
        alone.calibrate(weight[i])
        torch.testing.assert_close(quantizer(weight)[i], alone(weight[i]))
    quantizer(weight).square().sum().backward()
    assert quantizer.step_size.grad.shape == (6,)


def test_calibrating_on_zeros_leaves_a_step_size_that_weights_can_grow_from():
    weight = torch.zeros(8, 4, 3, 3)
    quantizer = qsr.RLQ(4, signed=True)
    quantizer.calibrate(weight)
    assert 0.01 < quantizer.step_size.item() < 1


def test_ten_lines_make_a_quantizer():
    class Steeper(qsr.Quantizer):
        def slope(self, u):
            return 6 * u * (1 - u)

    net = qsr.quantize(torch.nn.Linear(4, 2), bits=3, quantizer=Steeper)
    x = torch.randn(5, 4, requires_grad=True)
    qsr.calibrate(net, x)
    net(x).sum().backward()
    assert x.grad.abs().sum() > 0


def test_sign_and_calibration_travel_with_the_state_dict():
    source, target = qsr.RLQ(4, channels=2), qsr.RLQ(4, channels=2)
    source.calibrate(torch.rand(1, 2, 3, 3))
    target.load_state_dict(source.state_dict())
    assert target.calibrated and target.signed is False
    assert all(isinstance(value, torch.Tensor) for value in source.state_dict().values())


@pytest.mark.parametrize(
    ("make_it", "words"),
    [
        (lambda: qsr.QuantSpec(9), "`bits` is 9"),
        (lambda: qsr.RLQ(1), "`bits` is 1"),
        (lambda: qsr.RLQ(4, sharpness=-1), "`sharpness` is -1"),
        (lambda: qsr.RLQ(4, signed=True)(torch.ones(2)), "calibrate"),
        (lambda: qsr.RLQ(4).calibrate(torch.tensor([float("nan")])), "not finite"),
    ],
)
def test_a_broken_rule_is_named_with_its_value(make_it, words):
    with pytest.raises(ValueError, match=words):
        make_it()
