"""Attention inside windows, LayerNorm and GELU for training: each native row and the definition."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

import qsr
from qsr.blocks import (
    LayerNorm,
    SwinLayer,
    from_windows,
    relative_position_index,
    shift_mask,
    to_windows,
    window_attention,
)
from qsr.layers import Matmul
from qsr.system import native
from qsr.system.fused_swin import FusedAttention, FusedGELU, FusedNorm

ROWS = native.rows("swin_step")
# The largest error of one number in a result, over the largest number there. Products of bfloat16
# round both factors, to 2^-9 each.
LIMITS = {torch.float32: 3e-6, torch.bfloat16: 2e-2}


def definition(qkv, table, heads, window, shift):
    """`blocks.window_attention` of whole pictures."""
    moved = torch.roll(qkv, (-shift, -shift), dims=(1, 2))
    bias = table[relative_position_index(window)].permute(2, 0, 1)
    mask = shift_mask(*qkv.shape[1:3], window, qkv.device).to(qkv.dtype) if shift else None
    mixed = window_attention(to_windows(moved, window), bias, mask, heads)
    moved = from_windows(mixed, (*qkv.shape[:3], qkv.shape[3] // 3))
    return torch.roll(moved, (shift, shift), dims=(1, 2))


def with_gradients(function, tensors, grad):
    """[result, gradient of each tensor], as float64."""
    leaves = [t.detach().clone().requires_grad_() for t in tensors]
    result = function(*leaves)
    return [result.detach().double(), *(g.double() for g in
            torch.autograd.grad(result, leaves, grad.to(result.dtype)))]  # fmt: skip


def assert_agree(ours, exact, limit, names):
    for mine, other, name in zip(ours, exact, names, strict=True):
        assert mine.shape == other.shape, name
        largest = other.abs().max().item() if other.numel() else 0.0
        torch.testing.assert_close(mine, other, rtol=0, atol=limit * largest + 1e-9, msg=name)


def attention_case(pictures, down, across, heads, depth, window, dtype, seed):
    g = torch.Generator().manual_seed(seed)
    shape = pictures, down * window, across * window, 3 * heads * depth
    qkv = torch.randn(shape, generator=g).to(dtype)
    table = torch.randn((2 * window - 1) ** 2, heads, generator=g)
    return qkv, table, torch.randn(*shape[:3], heads * depth, generator=g).to(dtype)


@settings(deadline=None, max_examples=40)
@given(
    row=st.sampled_from(ROWS),
    pictures=st.integers(1, 2),
    down=st.integers(1, 3),
    across=st.integers(1, 3),
    heads=st.sampled_from([1, 2, 6]),
    depth=st.sampled_from([1, 3, 8, 10, 16, 17, 33]),
    window=st.sampled_from([1, 2, 4, 7, 8]),
    shifted=st.booleans(),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
    seed=st.integers(0, 2**20),
)
def test_attention_has_the_values_and_gradients_of_its_definition(
    row, pictures, down, across, heads, depth, window, shifted, dtype, seed
):
    qkv, table, grad = attention_case(pictures, down, across, heads, depth, window, dtype, seed)
    options = heads, window, window // 2 if shifted else 0

    def fused(*tensors):
        return FusedAttention.apply(*tensors, *options, dtype == torch.bfloat16, row)

    def exact(qkv, table):
        return definition(qkv.double(), table.double(), *options)

    ours, theirs = (with_gradients(f, (qkv, table), grad.double()) for f in (fused, exact))
    assert_agree(ours, theirs, LIMITS[dtype], ("values", "qkv", "table"))


@pytest.mark.parametrize("shift", [0, 4])
def test_in_bfloat16_attention_is_nearer_to_the_truth_than_pytorchs(shift):
    qkv, table, grad = attention_case(2, 3, 3, 6, 10, 8, torch.bfloat16, 1)
    options = 6, 8, shift

    def plain(qkv, table):
        with torch.autocast("cpu", torch.bfloat16):
            return definition(qkv, table, *options)

    exact = with_gradients(
        lambda *t: definition(*(x.double() for x in t), *options), (qkv, table), grad.double()
    )
    ours = with_gradients(lambda *t: FusedAttention.apply(*t, *options, True), (qkv, table), grad)
    theirs = with_gradients(plain, (qkv, table), grad)
    for name, mine, other, truth in zip(
        ("values", "qkv", "table"), ours, theirs, exact, strict=True
    ):
        assert (mine - truth).norm() < 1.1 * (other - truth).norm(), name


def test_float32_numbers_may_be_multiplied_in_bfloat16():
    qkv, table, grad = attention_case(1, 2, 2, 2, 10, 8, torch.float32, 2)
    half, single = (
        with_gradients(lambda *t, h=h: FusedAttention.apply(*t, 2, 8, 4, h), (qkv, table), grad)
        for h in (True, False)
    )
    assert_agree(half, single, LIMITS[torch.bfloat16], ("values", "qkv", "table"))


def test_gradients_are_those_of_finite_differences():
    qkv, table, grad = attention_case(1, 1, 2, 2, 3, 4, torch.float32, 3)
    _, dqkv, dtable = with_gradients(
        lambda *t: FusedAttention.apply(*t, 2, 4, 2, False), (qkv, table), grad
    )
    g = torch.Generator().manual_seed(4)
    along = torch.randn(qkv.shape, generator=g).double()
    along_table = torch.randn(table.shape, generator=g).double()
    ends = [
        (definition(qkv + s * along, table + s * along_table, 2, 4, 2) * grad.double()).sum()
        for s in (1e-5, -1e-5)
    ]
    slope = (ends[0] - ends[1]) / 2e-5
    assert abs((dqkv * along).sum() + (dtable * along_table).sum() - slope) < 1e-4 * abs(slope)


@settings(deadline=None, max_examples=40)
@given(
    row=st.sampled_from(ROWS),
    rows=st.sampled_from([0, 1, 5, 300]),
    channels=st.sampled_from([1, 15, 16, 17, 60, 64, 100]),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
    seed=st.integers(0, 2**20),
)
def test_layer_norm_has_the_values_and_gradients_of_its_definition(
    row, rows, channels, dtype, seed
):
    g = torch.Generator().manual_seed(seed)
    x = (2 * torch.randn(rows, channels, generator=g) + 1).to(dtype)
    weight, bias = torch.randn(2, channels, generator=g)
    grad = torch.randn(rows, channels, generator=g).to(dtype)
    ours = with_gradients(lambda *t: FusedNorm.apply(*t, 1e-5, row), (x, weight, bias), grad)
    theirs = with_gradients(
        lambda *t: F.layer_norm(t[0].double(), (channels,), t[1].double(), t[2].double()),
        (x, weight, bias), grad.double(),
    )  # fmt: skip
    limit = 3e-5 if dtype == torch.float32 else 5e-3
    assert_agree(ours, theirs, limit, ("values", "x", "weight", "bias"))


@settings(deadline=None, max_examples=30)
@given(
    row=st.sampled_from(ROWS),
    shape=st.sampled_from([(0,), (1,), (3, 5), (2, 2, 33), (9, 1000)]),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
    size=st.sampled_from([0.1, 2.0, 30.0]),
    seed=st.integers(0, 2**20),
)
def test_gelu_has_the_values_and_gradients_of_its_definition(row, shape, dtype, size, seed):
    g = torch.Generator().manual_seed(seed)
    x, grad = (size * torch.randn(2, *shape, generator=g)).to(dtype)
    ours = with_gradients(lambda x: FusedGELU.apply(x, row), (x,), grad)
    theirs = with_gradients(lambda x: F.gelu(x.double()), (x,), grad.double())
    atol = 1e-6 * (1 + max((t.abs().max().item() for t in (x, grad) if t.numel()), default=0.0))
    for mine, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(
            mine,
            other,
            rtol=1e-6 if dtype == torch.float32 else 2**-7,
            atol=atol,  # or the neighbour
        )


@pytest.mark.parametrize("row", ROWS)
def test_gelu_at_the_ends_of_its_range_is_its_definition(row):
    x = torch.tensor([0.0, -0.0, 1e4, -1e4, 3e38, -3e38, torch.inf, torch.nan])
    exact = F.gelu(x.double()).float()  # in float32 PyTorch gives inf for 3e38
    torch.testing.assert_close(FusedGELU.apply(x, row), exact, equal_nan=True)


@pytest.mark.parametrize("row", ROWS)
def test_results_do_not_depend_on_the_number_of_threads(row):
    qkv, table, grad = attention_case(5, 3, 3, 6, 10, 8, torch.bfloat16, 5)
    x, weight, bias = torch.randn(5000, 60), torch.rand(60), torch.rand(60)
    before = torch.get_num_threads()
    results = []
    try:
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            results.append(
                with_gradients(
                    lambda *t: FusedAttention.apply(*t, 6, 8, 4, True, row), (qkv, table), grad
                )
                + with_gradients(lambda *t: FusedNorm.apply(*t, 1e-5, row), (x, weight, bias), x)
            )
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


@pytest.mark.parametrize("row", ROWS)
@pytest.mark.parametrize("half", [False, True])
def test_values_that_are_not_finite_reach_the_loss(row, half):
    qkv, table, _ = attention_case(1, 1, 2, 1, 4, 4, torch.float32, 6)
    for part in (0, 4, 8):  # q, k, v
        broken = qkv.clone()
        broken[0, 1, 2, part] = torch.nan
        mixed = FusedAttention.apply(broken, table, 1, 4, 0, half, row)
        assert mixed[0, 1, 2].isnan().any() and mixed[0, :, 4:].isfinite().all()
    x = torch.tensor([[1.0, torch.nan, 2.0], [1.0, 2.0, 4.0]])
    y = FusedNorm.apply(x, torch.ones(3), torch.zeros(3), 1e-5, row)
    assert y[0].isnan().all() and y[1].isfinite().all()


def test_scores_may_be_as_large_as_they_like():
    qkv, table, grad = attention_case(1, 1, 1, 2, 8, 8, torch.float32, 7)
    ours, theirs = (
        with_gradients(f, (100 * qkv, table), grad)
        for f in (
            lambda *t: FusedAttention.apply(*t, 2, 8, 0, False),
            lambda *t: definition(*(x.double() for x in t), 2, 8, 0),
        )
    )
    assert ours[0].isfinite().all()
    torch.testing.assert_close(ours[0], theirs[0], rtol=1e-2, atol=1e-1)


def swin_layer(shifted=True):
    torch.manual_seed(0)
    return SwinLayer(12, 2, 4, shifted, 2, nn.Linear, Matmul)


def test_a_layer_runs_fused_where_it_learns_and_by_its_definition_where_it_does_not(monkeypatch):
    used = []
    for version in (FusedAttention, FusedGELU, FusedNorm):
        apply = version.apply

        def spy(*args, name=version.__name__, apply=apply):
            used.append(name)
            return apply(*args)

        monkeypatch.setattr(version, "apply", spy)
    layer, x = swin_layer(), torch.randn(1, 8, 8, 12)
    mask = shift_mask(8, 8, 4, x.device)  # the layer's own, if nobody gives it another

    def names(run):
        used.clear()
        run()
        return list(used)

    all_of_it = ["FusedNorm", "FusedAttention", "FusedNorm", "FusedGELU"]
    assert names(lambda: layer(x)) == all_of_it
    assert "FusedAttention" not in names(lambda: layer(x, mask)), "a mask that is given is obeyed"
    with torch.no_grad():
        assert names(lambda: layer(x)) == []
    assert names(lambda: layer.eval()(x)) == []
    assert names(lambda: layer.train().requires_grad_(False)(x)) == []
    assert names(lambda: swin_layer().double()(x.double())) == []
    assert names(lambda: LayerNorm(4)(torch.zeros(3, 4))) == ["FusedNorm"]


def test_quantised_products_keep_their_definition():
    config = qsr.quantsr_t(4, 4, attention_bits=4)
    layer = qsr.QuantSR(config).blocks[0].layers[1]
    assert not layer.attention.fuses(torch.zeros(1, 8, 8, 60))
    layer = qsr.QuantSR(qsr.quantsr_t(4, 4)).blocks[0].layers[1]
    assert layer.attention.fuses(torch.zeros(1, 8, 8, 60))


@pytest.mark.parametrize("shifted", [False, True])
@pytest.mark.parametrize("half", [False, True])
def test_a_layer_learns_fused_what_it_learns_by_its_definition(shifted, half):
    layer, x = swin_layer(shifted), torch.randn(2, 8, 12, 12)
    mask = shift_mask(8, 12, 4, x.device)
    gradients = {}
    for mode in (True, False):  # of norms and attention; there is nothing else that has one
        layer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, half):
            y = layer.train(mode)(x, None if mode else mask)
        y.float().square().sum().backward()
        gradients[mode] = {name: p.grad.double() for name, p in layer.named_parameters()}
    limit = 3e-2 if half else 1e-5
    assert_agree(*(gradients[m].values() for m in (True, False)), limit, gradients[True])


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"qkv": torch.zeros(1, 8, 8, 12).double()}, "qkv must be float32 or bfloat16"),
        ({"qkv": torch.zeros(1, 8, 8, 24)[..., ::2]}, "qkv must be contiguous"),
        ({"qkv": torch.zeros(8, 8, 12)}, "qkv must be"),
        ({"qkv": torch.zeros(1, 8, 8, 10)}, "heads must divide"),
        ({"heads": 0}, "heads must divide"),
        ({"heads": 2**62}, "heads must divide"),
        ({"window": 3}, "multiples of window"),
        ({"window": 0}, "multiples of window"),
        ({"shift": 4}, "shift less"),
        ({"shift": -1}, "shift less"),
        ({"table": torch.zeros(48, 2)}, "table must be of 98 elements"),
        ({"table": torch.zeros(49, 2).bfloat16()}, "table must be contiguous"),
        ({"softmax": torch.zeros(1, 2, 2, 32)}, "softmax must be of"),
        ({"g": torch.zeros(1, 8, 8, 5)}, "g must be"),
        ({"g": torch.zeros(1, 8, 8, 4).bfloat16()}, "g must be"),
        ({"kernel": "wings"}, "`kernel` is 'wings'"),
    ],
)
def test_the_kernels_refuse_what_could_read_outside(change, words):
    given = {
        "g": torch.zeros(1, 8, 8, 4), "qkv": torch.zeros(1, 8, 8, 12), "table": torch.zeros(49, 2),
        "softmax": torch.zeros(4, 2, 2, 32), "heads": 2, "window": 4, "shift": 2, "half": False,
    } | change  # fmt: skip
    with pytest.raises((RuntimeError, ValueError), match=words):
        torch.ops.qsr_native.window_attention_backward(**given)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"x": torch.zeros(5, 3).double()}, "x must be float32 or bfloat16"),
        ({"x": torch.zeros(3, 5).T}, "x must be contiguous"),
        ({"x": torch.zeros(())}, "x must have channels"),
        ({"weight": torch.zeros(4)}, "weight must be of 3 elements"),
        ({"bias": torch.zeros(2)}, "bias must be of 3 elements"),
        ({"moments": torch.zeros(5)}, "moments must be of 10 elements"),
        ({"g": torch.zeros(4, 3)}, "g must be"),
    ],
)
def test_the_norm_refuses_what_could_read_outside(change, words):
    given = {
        "g": torch.zeros(5, 3), "x": torch.zeros(5, 3), "weight": torch.zeros(3),
        "bias": torch.zeros(3), "moments": torch.zeros(5, 2),
    } | change  # fmt: skip
    with pytest.raises(RuntimeError, match=words):
        torch.ops.qsr_native.layer_norm_backward(**given)


def test_gelu_refuses_what_could_read_outside():
    for g, x in ((torch.zeros(2), torch.zeros(3)), (torch.zeros(3).bfloat16(), torch.zeros(3))):
        with pytest.raises(RuntimeError, match="g must be contiguous"):
            torch.ops.qsr_native.gelu_backward(g, x)
    with pytest.raises(RuntimeError, match="x must be float32 or bfloat16"):
        torch.ops.qsr_native.gelu(torch.zeros(3).double())
