"""DoReFa and PAMS are their formulas, and run in the same layers, files and kernels as RLQ."""

import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import qsr
from qsr.baselines.largest import LargestValue

METHODS = [qsr.PAMS, qsr.DoReFa]


def calibrated(method, bits, x, **options):
    quantizer = method(bits, **options)
    quantizer.calibrate(x)
    return quantizer


def values(seed, *shape):
    return 3 * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


# The formulas of the sources, written a second time -----------------------------------------------


def pams_weights(w, bits):
    n, m = 2 ** (bits - 1) - 1, w.abs().max()
    return torch.round(w * n / m) * m / n


def pams_inputs(x, alpha, bits):
    n = 2 ** (bits - 1) - 1
    return torch.round(x.clamp(-alpha, alpha) * n / alpha) * alpha / n


def pams_alpha_gradient(x, alpha, bits):
    """d x_hat / d alpha: the sign outside, round(z) / n - x / alpha inside."""
    n = 2 ** (bits - 1) - 1
    inside = torch.round(x * n / alpha) / n - x / alpha
    return torch.where(x.abs() > alpha, x.sign(), inside)


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_pams_weights_are_rounded_on_a_grid_up_to_the_largest(bits):
    w = values(bits, 16, 8, 3, 3)
    quantizer = calibrated(qsr.PAMS, bits, w, weights=True)
    torch.testing.assert_close(quantizer(w), pams_weights(w, bits))
    w.requires_grad_()
    quantizer(w).sum().backward()
    torch.testing.assert_close(w.grad, torch.ones_like(w))  # nothing is clipped


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_pams_inputs_are_clipped_to_alpha_which_learns(bits):
    x, n = values(bits, 4, 8, 5, 5), 2 ** (bits - 1) - 1
    quantizer = calibrated(qsr.PAMS, bits, x, channels=8)
    alpha = x.flatten(1).abs().amax(1).mean()
    torch.testing.assert_close(quantizer.step_size.detach() * n, alpha)
    torch.testing.assert_close(quantizer(x).detach(), pams_inputs(x, alpha, bits))
    x.requires_grad_()
    quantizer(x).sum().backward()
    torch.testing.assert_close(x.grad, (x.abs() <= alpha).float())
    expected = pams_alpha_gradient(x.detach(), alpha, bits).sum() * n  # alpha = n step_size
    torch.testing.assert_close(quantizer.step_size.grad, expected, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_dorefa_weights_are_tanh_on_a_grid_up_to_the_largest(bits):
    w = values(bits, 16, 8, 3, 3)
    quantizer = calibrated(qsr.DoReFa, bits, w, weights=True, signed=True)
    torch.testing.assert_close(quantizer(w), pams_weights(w.tanh(), bits))
    w.requires_grad_()
    quantizer(w).sum().backward()
    torch.testing.assert_close(w.grad, 1 - w.detach().tanh() ** 2)


@pytest.mark.parametrize("low", [-3.0, 0.0])
def test_dorefa_inputs_have_a_fixed_clip_and_a_sign_of_their_own(low):
    x = values(1, 4, 8, 5, 5).clamp(min=low)
    quantizer = calibrated(qsr.DoReFa, 4, x, channels=8)
    top = 15 if low == 0 else 7
    assert quantizer.signed == (low < 0)
    torch.testing.assert_close(quantizer.step_size * top, x.abs().max())
    larger = (2 * x).requires_grad_()
    torch.testing.assert_close(quantizer(larger).max(), x.abs().max())
    quantizer(larger).sum().backward()
    assert not quantizer.step_size.requires_grad
    inside = larger.detach().clamp(low if low == 0 else -x.abs().max(), x.abs().max())
    assert torch.equal(larger.grad, (larger.detach() == inside).float())


@settings(deadline=None, max_examples=100)
@given(
    method=st.sampled_from(METHODS),
    bits=st.integers(2, 8),
    weights=st.booleans(),
    seed=st.integers(0, 2**20),
)
def test_values_are_steps_times_codes_of_a_symmetric_range(method, bits, weights, seed):
    x = values(seed, 3, 5, 4)
    quantizer = calibrated(method, bits, x, weights=weights)
    codes, spec = quantizer.codes(x), quantizer.spec
    assert torch.equal(quantizer(x).detach(), quantizer.step(x).detach() * codes)
    assert spec.qmin == -spec.qmax and codes.abs().max() <= spec.qmax
    order = x.flatten().argsort()
    assert (codes.flatten()[order].int().diff() >= 0).all()  # larger values, no smaller codes


@pytest.mark.parametrize("method", METHODS)
def test_steps_of_weights_may_be_one_for_each_output(method):
    w = values(0, 6, 4, 3, 3)
    quantizer = calibrated(method, 4, w, weights=True, steps=6)
    rows = [calibrated(method, 4, row[None], weights=True)(row[None]) for row in w]
    torch.testing.assert_close(quantizer(w), torch.cat(rows))


# In networks --------------------------------------------------------------------------------------

SMALL = {"features": 8, "blocks": 2, "depths": (2, 1)}
CONFIGS = [
    qsr.quantsr_c(2, bits, quantizer=name, per_channel=per_channel, **SMALL)
    for name in ("pams", "dorefa")
    for bits, per_channel in ((4, False), (2, True))
]
CONFIGS += [qsr.quantsr_t(2, 4, quantizer=name, layers=2, heads=2, window=4, **SMALL)
            for name in ("pams", "dorefa")]  # fmt: skip


@pytest.mark.parametrize("config", CONFIGS, ids=str)
def test_a_network_trains_is_saved_and_runs_packed(config, tmp_path):
    torch.manual_seed(0)
    net, lr = qsr.QuantSR(config), torch.rand(2, 3, 12, 12)
    qsr.calibrate(net, lr)
    optimizer = torch.optim.Adam(net.parameters(), 1e-3)
    losses = [
        qsr.train_step(net, optimizer, lr, torch.rand(2, 3, 24, 24), qsr.TrainConfig())["loss"]
        for _ in range(3)
    ]
    assert all(loss > 0 for loss in losses)
    qsr.save(tmp_path / "net.qsr", net)
    loaded = qsr.load(tmp_path / "net.qsr")
    net.eval()
    assert torch.equal(loaded(lr), net(lr))
    packed = qsr.pack(loaded)
    qsr.save(tmp_path / "packed.qsr", packed)
    packed = qsr.load(tmp_path / "packed.qsr")
    for blocks in config.depths:
        expected = packed.network(lr, packed.network.plan(blocks))  # layer by layer
        torch.testing.assert_close(packed(lr, blocks), expected, rtol=0, atol=1e-4)
    # As for RLQ: some codes beside a threshold flip, and what follows from them differs.
    assert qsr.psnr_y(packed(lr).clamp(0, 1), net(lr).detach().clamp(0, 1), 2).min() > 40


def test_attention_products_take_quantizers_with_the_whole_range():
    with pytest.raises(ValueError, match="`attention_bits`"):
        qsr.quantsr_t(2, 4, quantizer="pams", attention_bits=4)
    assert LargestValue.narrow


def test_a_file_that_names_a_baseline_is_read_also_where_nobody_imported_it(tmp_path):
    config = qsr.quantsr_c(2, 4, blocks=1, features=8, quantizer="pams")
    qsr.save(tmp_path / "pams.qsr", qsr.QuantSR(config))
    source = f"from qsr.models.file import load_model; load_model({str(tmp_path / 'pams.qsr')!r})"
    assert subprocess.run([sys.executable, "-c", source]).returncode == 0
