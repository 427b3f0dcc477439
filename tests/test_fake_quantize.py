"""The fused kernels of fake quantisation against the definition in PyTorch.

On the CPU and on a GPU if there is one. With TRITON_INTERPRET=1 the kernels for the GPU take the
place of those for the CPU, in Triton's interpreter: test_fake_quantize_triton.py has it so.
"""

import os

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import qsr
from qsr.quantizer import FakeQuantize, PhiSlope, fake_quantize, phi_slope
from qsr.system import fused, native
from qsr.system.fused import FusedForPhi

SHARPNESS = st.sampled_from([0.0, 0.3, 1.0, 2.0, 7.0, 300.0])
SHAPES = [
    ((2, 3, 4, 5), 1),
    ((1, 64, 9, 7), 1),
    ((2, 60, 8, 8), 1),
    ((3, 16, 60), 2),
    ((5, 1, 3, 3), 1),
    ((1, 4097, 1, 3), 1),
    ((2, 32, 70, 70), 1),  # several chunks
    ((40000,), 0),
    ((0, 8, 4, 4), 1),
]


INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
GPU = pytest.param(
    "cuda",
    marks=[
        pytest.mark.cuda,
        pytest.mark.skipif(INTERPRETED or not torch.cuda.is_available(), reason="needs a GPU"),
    ],
)


@pytest.fixture(scope="module", params=["cpu", GPU])
def device(request):
    """Where the tensors of a test lie, so that the kernels under test are those that run there."""
    with pytest.MonkeyPatch.context() as patch:
        if INTERPRETED:
            from qsr.system import fused_triton

            patch.setattr(fused, "_kernels", lambda device: fused_triton)
        elif request.param == "cpu":
            assert native.load().native
        yield request.param


def random_case(device, shape, channel, signed, seed, with_tau=True):
    """(x, step, tau, grad, qmin, qmax) in float32, values in and around the range of 4 bits."""
    generator = torch.Generator().manual_seed(seed)
    spec = qsr.QuantSpec(4, signed)
    step = 0.1 + torch.rand((), generator=generator)
    tau_shape = [1] * len(shape)
    tau_shape[channel] = shape[channel]
    tau = torch.randn(tau_shape, generator=generator) if with_tau else None
    z = (spec.qmax - spec.qmin) * (1.4 * torch.rand(shape, generator=generator) - 0.2) + spec.qmin
    x = z * step - (0 if tau is None else tau)
    grad = torch.randn(shape, generator=generator)
    tensors = (t if t is None else t.to(device) for t in (x, step, tau, grad))
    return (*tensors, spec.qmin, spec.qmax)


def run(version, x, step, tau, grad, qmin, qmax, slope, codes=None):
    """(values, dx, dstep, dtau or None)."""
    leaves = [t.detach().clone(memory_format=torch.preserve_format).requires_grad_()
              for t in (x, step, tau) if t is not None]  # fmt: skip
    y = version.apply(
        leaves[0], leaves[1], leaves[2] if tau is not None else None, qmin, qmax, slope, codes
    )
    y.backward(grad.to(y.dtype))
    return (y.detach(), *(leaf.grad for leaf in leaves))


def assert_agree(case, slope, codes=None):
    values, *gradients = run(FusedForPhi, *case, slope, codes)
    expected, *wanted = run(FakeQuantize, *case, slope, codes)
    assert torch.equal(values, expected) and values.dtype == expected.dtype
    # float64 sums of the same float32 terms: what the sums would be without rounding.
    grad = case[3].double() / (1 if codes is None else case[1].double())
    size = grad.abs().sum().item() + 1e-6
    for name, ours, theirs in zip(("x", "step", "tau"), gradients, wanted, strict=False):
        limit = 2e-6 * max(1.0, grad.abs().amax().item() if codes and grad.numel() else 1.0)
        limit = limit if name == "x" else 3e-6 * size
        scale = 8 * phi_slope(torch.tensor(0.5), slope.sharpness).item()
        torch.testing.assert_close(ours, theirs, rtol=2e-5, atol=limit * scale, msg=name)


@settings(deadline=None, max_examples=60)
@given(
    case=st.sampled_from(SHAPES),
    layout=st.sampled_from(["contiguous", "channels_last", "strided"]),
    signed=st.booleans(),
    with_tau=st.booleans(),
    sharpness=SHARPNESS,
    codes=st.sampled_from([None, torch.bfloat16]),
    seed=st.integers(0, 2**20),
)
def test_the_fused_kernels_give_the_definitions_values_and_gradients(
    device, case, layout, signed, with_tau, sharpness, codes, seed
):
    shape, channel = case
    x, step, tau, grad, qmin, qmax = random_case(device, shape, channel, signed, seed, with_tau)
    if layout == "channels_last" and x.ndim == 4:
        x = x.to(memory_format=torch.channels_last)
    elif layout == "strided":
        x = torch.stack([x, x], -1)[..., 0]
    assert_agree((x, step, tau, grad, qmin, qmax), PhiSlope(sharpness), codes)


@settings(deadline=None, max_examples=50)
@given(
    quantizer=st.sampled_from([qsr.RLQ, qsr.PAMS, qsr.DoReFa]),
    bits=st.integers(2, 8),
    weights=st.booleans(),
    seed=st.integers(0, 2**20),
)
def test_codes_in_16_bits_are_the_codes_and_have_the_gradients_of_the_values(
    device, quantizer, bits, weights, seed
):
    x = 3 * torch.randn(4, 6, 5, 5, generator=torch.Generator().manual_seed(seed)).to(device)
    options = {"weights": True} if weights else {"channels": 6}
    q = quantizer(bits, **options).to(device)
    q.calibrate(x)
    parameters = [p for p in q.parameters() if p.requires_grad]
    codes = q.float_codes(x.requires_grad_(), torch.bfloat16)
    assert codes.dtype == torch.bfloat16 and torch.equal(codes, q.codes(x).to(torch.bfloat16))
    grad = torch.randn(x.shape, device=device).to(torch.bfloat16)
    ours = torch.autograd.grad(codes, [x, *parameters], grad)
    step = q.step(x).detach()
    theirs = torch.autograd.grad(q(x), [x, *parameters], grad.float() / step)
    size = (grad.float() / step).abs().sum().item()
    for mine, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-2, atol=1e-5 * size)


@settings(deadline=None, max_examples=20)
@given(st.booleans(), SHARPNESS, st.sampled_from([None, torch.bfloat16]), st.integers(0, 2**20))
def test_each_output_channel_of_weights_may_have_its_own_step_size(
    device, last, sharpness, codes, seed
):
    x, _, _, grad, qmin, qmax = random_case(device, (7, 5, 3, 3), 0, True, seed, False)
    step = torch.rand(7, 1, 1, 1, device=device) + 0.05
    x = x.to(memory_format=torch.channels_last) if last else x
    assert_agree((x, step, None, grad, qmin, qmax), PhiSlope(sharpness), codes)


@pytest.mark.parametrize("size", [0.1, 0.3, 1 / 3, 0.7])
def test_at_the_edges_of_the_intervals_values_are_the_definitions(device, size):
    step = torch.tensor(size, device=device)
    edges = (torch.arange(-10, 10, device=device) + 0.5) * step
    up, down = (edges.nextafter(torch.tensor(s * torch.inf, device=device)) for s in (1, -1))
    x = torch.cat([down, edges, up])
    assert not torch.equal(x / step, x * (1 / step))  # a reciprocal would be seen
    ours, theirs = (
        v.apply(x, step, None, -8, 7, PhiSlope(0.0)) for v in (FusedForPhi, FakeQuantize)
    )
    assert torch.equal(ours, theirs)


def test_the_definition_in_double_precision_bounds_the_error_of_the_fused_gradient(device):
    x, step, tau, grad, qmin, qmax = random_case(device, (4, 64, 24, 24), 1, True, 5)
    exact = run(
        FakeQuantize, *(t.double() for t in (x, step, tau, grad)), qmin, qmax, PhiSlope(1.0)
    )
    fused = run(FusedForPhi, x, step, tau, grad, qmin, qmax, PhiSlope(1.0))
    same_code = (fused[0].double() - exact[0]).abs() < step.item() / 2
    assert same_code.double().mean() > 0.9999  # else an element lies on a threshold
    assert (fused[1].double() - exact[1])[same_code].abs().max() < 5e-6
    assert (fused[2].double() - exact[2]).abs() < 1e-3 * exact[2].abs() + 1e-3


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_gradients_do_not_depend_on_the_number_of_threads(device, layout):
    x, step, tau, grad, qmin, qmax = random_case(device, (8, 48, 24, 24), 1, True, 3)
    case = (x.to(memory_format=layout), step, tau, grad, qmin, qmax)
    before = torch.get_num_threads()
    try:
        results = []
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            results.append(run(FusedForPhi, *case, PhiSlope(1.0)))
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


def test_the_memory_layout_of_the_input_is_kept(device):
    x, step, tau, grad, qmin, qmax = random_case(device, (2, 16, 8, 8), 1, True, 3)
    x = x.to(memory_format=torch.channels_last)
    y, grad_x, *_ = run(FusedForPhi, x, step, tau, grad, qmin, qmax, PhiSlope(1.0))
    assert y.is_contiguous(memory_format=torch.channels_last)
    assert grad_x.is_contiguous(memory_format=torch.channels_last)


def test_values_that_are_not_finite_reach_the_loss(device):
    x = torch.tensor([0.3, float("nan"), float("inf"), -float("inf")], device=device)
    y = FusedForPhi.apply(x, torch.tensor(0.5, device=device), None, -8, 7, PhiSlope(1.0))
    assert y[1].isnan()
    assert y[[0, 2, 3]].tolist() == [0.5, 3.5, -4.0]


def test_a_step_size_below_zero_is_held_at_its_floor(device):
    x, step = torch.tensor([1e-9, 1.0], device=device), torch.tensor(-0.5, device=device)
    case = (x, step, None, torch.ones_like(x), -8, 7)
    ours, theirs = (run(v, *case, PhiSlope(1.0)) for v in (FusedForPhi, FakeQuantize))
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b)


def test_lsq_and_rlq_run_fused_and_a_slope_of_ones_own_runs_the_definition(device, monkeypatch):
    used = []
    for version in (FakeQuantize, FusedForPhi):
        apply = version.apply

        def spy(*args, name=version.__name__, apply=apply):
            used.append(name)
            return apply(*args)

        monkeypatch.setattr(version, "apply", spy)

    class Steeper(qsr.RLQ):
        def slope(self, u):
            return 6 * u * (1 - u)

    x = torch.randn(4, 3, 5, 5, device=device)
    for quantizer in (qsr.LSQ(4), qsr.RLQ(4, channels=3), Steeper(4, channels=3)):
        quantizer.to(device).calibrate(x)
        quantizer(x)
    qsr.LSQ.forward(quantizer.double(), x.double())
    expected = ["FusedForPhi", "FusedForPhi", "FakeQuantize", "FakeQuantize"]
    assert used == expected


def test_a_compiled_layer_learns_as_one_that_is_not():
    torch.manual_seed(0)
    layer = qsr.QConv2d(4, 4, 3, padding=1)
    x = torch.randn(2, 4, 9, 9)
    qsr.calibrate(layer, x)
    layer(x).square().sum().backward()
    eager = {name: p.grad.clone() for name, p in layer.named_parameters()}
    layer.zero_grad()
    torch.compile(layer)(x).square().sum().backward()
    for name, p in layer.named_parameters():
        torch.testing.assert_close(p.grad, eager[name], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (lambda x: (x, torch.ones(3), None, 0, -8, 7), "one along dimension 0"),
        (lambda x: (x, torch.ones(1), torch.ones(3), 1, -8, 7), "one value for each channel"),
        (lambda x: (x, torch.ones(1), torch.ones(2), 2, -8, 7), "one value for each channel"),
        (lambda x: (x, torch.ones(2), torch.ones(2), 0, -8, 7), "one value for each channel"),
        (lambda x: (x.double(), torch.ones(1), None, 1, -8, 7), "x must be float32"),
        (lambda x: (x[:, ::2], torch.ones(1), None, 1, -8, 7), "contiguous or channels last"),
        (lambda x: (x, torch.ones(4)[::2], None, 1, -8, 7), "step must be contiguous"),
        (lambda x: (x, torch.ones(1), None, 1, 1, 7), "codes are small"),
    ],
)
def test_the_kernels_refuse_what_could_read_outside(device, arguments, words):
    kernels = fused._kernels(torch.device(device))
    with torch.device(device), pytest.raises((RuntimeError, ValueError), match=words):
        kernels.fake_quantize(*arguments(torch.zeros(2, 4)), torch.zeros(2, 4))


def test_an_empty_tensor_has_an_empty_result_and_zero_gradients(device):
    x = torch.zeros(0, 3, 4, 4, device=device, requires_grad=True)
    tau = torch.zeros(1, 3, 1, 1, device=device, requires_grad=True)
    step = torch.ones((), device=device, requires_grad=True)
    fake_quantize(x, step, tau, -8, 7, PhiSlope(1.0)).sum().backward()
    assert x.grad.shape == x.shape and step.grad == 0 and not tau.grad.any()


def test_a_weight_without_elements_has_no_step_sizes_and_no_crash():
    x = torch.zeros(0, 3, 3, 3, requires_grad=True)
    step = torch.zeros(0, 1, 1, 1, requires_grad=True)
    y = fake_quantize(x, step, None, -8, 7, PhiSlope(1.0))
    y.sum().backward()
    assert y.shape == x.grad.shape == x.shape and step.grad.shape == step.shape
