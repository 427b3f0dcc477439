"""What quantize() makes of every kind of layer, what it keeps, and what it names."""

import copy
import warnings

import numpy as np
import pytest
import torch
from torch import nn
from torch.func import functional_call
from torch.nn import functional as F
from torch.nn.utils import parametrizations, parametrize, prune

import qsr
from qsr.convert import left_in_float, not_packed
from qsr.integer.packed_layers import PackedConv2d, PackedLinear
from qsr.layers import Matmul, QConv1d, QConvTranspose2d, QMultiheadAttention, set_bits
from qsr.quantizer import Quantizer


def quietly(module, *args, **options):
    """quantize() without its warning, which has tests of its own."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return qsr.quantize(module, *args, **options)


def moved(net):
    """The net with every tau away from zero, where nobody would notice a forgotten one."""
    for quantizer in net.modules():
        if getattr(quantizer, "tau", None) is not None:
            nn.init.normal_(quantizer.tau, std=0.2)
    return net


# Kinds --------------------------------------------------------------------------------------------

KINDS = {
    "conv1d": (lambda: nn.Conv1d(4, 6, 3, stride=2, padding=1, dilation=2, groups=2), (2, 4, 9)),
    "conv1d, circular": (lambda: nn.Conv1d(4, 3, 3, padding=1, padding_mode="circular"), (2, 4, 9)),
    "conv2d": (lambda: nn.Conv2d(4, 6, 3, stride=2, padding=(1, 0), groups=2), (2, 4, 6, 7)),
    "conv2d, dilated": (lambda: nn.Conv2d(4, 6, 3, padding=2, dilation=2), (2, 4, 6, 7)),
    "conv2d, same": (lambda: nn.Conv2d(4, 6, (3, 2), padding="same", bias=False), (2, 4, 6, 7)),
    "conv2d, reflect": (
        lambda: nn.Conv2d(4, 6, 3, padding=1, padding_mode="reflect"),
        (2, 4, 6, 7),
    ),
    "transposed": (
        lambda: nn.ConvTranspose2d(
            4, 6, 3, stride=2, padding=1, output_padding=1, groups=2, dilation=2
        ),
        (2, 4, 5, 4),
    ),
    "transposed, one group": (lambda: nn.ConvTranspose2d(4, 6, 2, 2, bias=False), (2, 4, 5, 4)),
    "linear": (lambda: nn.Linear(4, 6), (2, 3, 4)),
}


def on_fake_quantised(float_layer, layer, x):
    """The float layer, applied on fake-quantised input and weight."""
    weight = layer.by_output(layer.weight_quantizer(layer.by_output(layer.weight)))
    return functional_call(float_layer, {"weight": weight}, (layer.input_quantizer(x),))


@pytest.mark.parametrize("per_channel", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_a_quantised_layer_is_the_float_layer_on_fake_quantised_factors(kind, per_channel):
    make, shape = KINDS[kind]
    float_layer, x = make(), torch.randn(shape, requires_grad=True)
    layer = quietly(float_layer, (3, 5), per_channel=per_channel)
    assert type(layer).__name__ == f"Q{type(float_layer).__name__}"
    qsr.calibrate(layer, x)
    moved(layer)
    same = copy.deepcopy(layer)
    if layer.bias is not None:
        same.bias = float_layer.bias
    y, expected = layer(x), on_fake_quantised(float_layer, same, x)
    assert torch.equal(y, expected)
    assert not torch.equal(y, float_layer(x))
    target = torch.randn_like(y)
    (gradient,) = torch.autograd.grad((y * target).sum(), x, retain_graph=True)
    (wanted,) = torch.autograd.grad((expected * target).sum(), x, retain_graph=True)
    assert torch.equal(gradient, wanted)
    (y * target).sum().backward()
    (expected * target).sum().backward()
    for (name, mine), other in zip(layer.named_parameters(), same.parameters(), strict=True):
        assert mine.grad.abs().sum() > 0, name
        assert torch.equal(mine.grad, other.grad), name


@pytest.mark.parametrize("kind", KINDS)
def test_a_step_per_channel_belongs_to_one_output_channel(kind):
    make, shape = KINDS[kind]
    layer, x = quietly(make(), per_channel=True), torch.randn(shape)
    qsr.calibrate(layer, x)
    assert layer.weight_quantizer.step_size.shape == (layer.by_output(layer.weight).shape[0],)
    before = layer(x)
    with torch.no_grad():
        layer.weight_quantizer.step_size[1] *= 3
    changed = (layer(x) != before).movedim(layer.channel_dim, 0).flatten(1).any(1)
    assert changed.tolist() == [channel == 1 for channel in range(len(changed))]


@pytest.mark.parametrize("kind", KINDS)
def test_in_16_bits_a_layer_of_any_kind_multiplies_codes(kind):
    make, shape = KINDS[kind]
    layer, x = quietly(make()), torch.randn(shape)
    qsr.calibrate(layer, x)
    with torch.autocast("cpu", torch.bfloat16):
        y = layer(x)
    torch.testing.assert_close(y, layer(x), rtol=2**-7, atol=1e-6)  # one rounding to 8 bits


@pytest.mark.parametrize("kind", KINDS)
def test_autocast_changes_nothing_of_a_calibration(kind):
    make, shape = KINDS[kind]
    layer, x = quietly(make()), torch.randn(shape)
    with torch.autocast("cpu", torch.bfloat16):
        qsr.calibrate(layer, 2 * x)
        qsr.calibrate(layer, x)  # again, as after a change of the data
    steps = [q.step_size.clone() for q in (layer.weight_quantizer, layer.input_quantizer)]
    qsr.calibrate(layer, x)
    assert torch.equal(layer.weight_quantizer.step_size, steps[0])
    assert torch.equal(layer.input_quantizer.step_size, steps[1])


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "linear"])
def test_a_picture_without_a_batch_is_refused_before_tau_meets_the_wrong_dimension(kind):
    make, shape = KINDS[kind]
    layer, x = quietly(make()), torch.randn(shape)
    qsr.calibrate(layer, x)
    with pytest.raises(ValueError, match="Add that of the batch"):
        layer(x[0])


def test_a_transposed_convolution_takes_the_size_of_its_output():
    layer, x = quietly(nn.ConvTranspose2d(3, 3, 3, stride=2)), torch.randn(1, 3, 4, 4)
    qsr.calibrate(layer, x)
    assert layer(x, output_size=[10, 9]).shape == (1, 3, 10, 9)


def test_layers_of_each_kind_are_made_by_hand_too():
    layers = (QConv1d(3, 2, 3, bits=2), QConvTranspose2d(3, 2, 3, bits=(2, 4), per_channel=True))
    assert [q.bits for layer in layers for q in layer.children()] == [2, 2, 2, 4]
    set_bits(layers[0], (3, 5))
    assert [q.bits for q in layers[0].children()] == [3, 5]


# Attention ----------------------------------------------------------------------------------------

ATTENTIONS = {
    "as it is": {},
    "batch first": {"batch_first": True},
    "no bias": {"bias": False, "batch_first": True},
    "other widths": {"kdim": 6, "vdim": 10, "batch_first": True},
    "what PyTorch appends": {"add_bias_kv": True, "add_zero_attn": True},
}


def attention_and_inputs(options, batched=True):
    float_layer = nn.MultiheadAttention(8, 2, dtype=torch.float64, **options)
    layer = quietly(float_layer, (3, 5))
    widths, lengths = (8, options.get("kdim", 8), options.get("vdim", 8)), (4, 5, 5)
    inputs = [torch.randn(length, 3, n).double() for length, n in zip(lengths, widths, strict=True)]
    if options.get("batch_first"):
        inputs = [x.transpose(0, 1) for x in inputs]
    qsr.calibrate(layer, *inputs)
    return float_layer, moved(layer), inputs


def attention_on_fake_quantised(float_layer, layer, inputs, **options):
    """The float attention on fake-quantised factors; its last product apart, for its input is
    quantised in the middle.
    """
    roles, plain = (layer.query, layer.key, layer.value), copy.deepcopy(float_layer)
    weights = [
        role.weight_quantizer(weight)
        for role, weight in zip(roles, layer._in_projections(), strict=True)
    ]
    inputs = [role.input_quantizer(x) for role, x in zip(roles, inputs, strict=True)]
    swapped = dict(
        zip(("q_proj_weight", "k_proj_weight", "v_proj_weight"), weights, strict=True)
        if float_layer.in_proj_weight is None
        else {"in_proj_weight": torch.cat(weights)}.items()
    )
    swapped["out_proj.weight"] = torch.eye(8).double()
    if plain.out_proj.bias is not None:
        swapped["out_proj.bias"] = torch.zeros(8).double()
    mixed, shown = functional_call(plain, swapped, tuple(inputs), options)
    out = layer.out_proj
    return F.linear(out.input_quantizer(mixed), out.weight_quantizer(out.weight), out.bias), shown


@pytest.mark.parametrize("name", ATTENTIONS)
def test_a_quantised_attention_is_the_float_attention_on_fake_quantised_factors(name):
    float_layer, layer, inputs = attention_and_inputs(ATTENTIONS[name])
    assert isinstance(layer, QMultiheadAttention) and isinstance(layer.out_proj, qsr.QLinear)
    first = torch.zeros(4, 5, dtype=torch.bool)
    first[:, 3:] = True
    last = torch.tensor([[0, 0, 0, 0, 1], [0] * 5, [1, 1, 0, 0, 0]], dtype=torch.bool)
    table = torch.randn(6, 4, 5).double()
    for options in (
        {},
        {"average_attn_weights": False},
        {"attn_mask": first, "key_padding_mask": last},
        {"attn_mask": table},
    ):
        y, shown = layer(*inputs, **options)
        expected = attention_on_fake_quantised(float_layer, layer, inputs, **options)
        torch.testing.assert_close((y, shown), expected, rtol=1e-12, atol=1e-12)
        if not options:
            assert torch.equal(y, expected[0])
        assert layer(*inputs, **options, need_weights=False)[1] is None
        (y * torch.randn_like(y)).sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in layer.parameters())


def test_the_gradients_of_an_attention_are_those_of_the_float_one():
    float_layer, layer, inputs = attention_and_inputs({})
    same = copy.deepcopy(layer)
    y = layer(*inputs)[0]
    expected = attention_on_fake_quantised(float_layer, same, inputs)[0]
    target = torch.randn_like(y)
    (y * target).sum().backward()
    (expected * target).sum().backward()
    for name in ("in_proj_weight", "out_proj.weight", "key.input_quantizer.tau"):
        mine, other = layer.get_parameter(name).grad, same.get_parameter(name).grad
        torch.testing.assert_close(mine, other, rtol=1e-10, atol=1e-12)


def test_an_attention_takes_one_sequence_and_causal_masks():
    _, layer, (query, key, value) = attention_and_inputs({})
    alone, shown = layer(query[:, 0], key[:, 0], value[:, 0])
    y, probabilities = layer(query, key, value)
    torch.testing.assert_close((alone, shown), (y[:, 0], probabilities[0]))
    mask = nn.Transformer.generate_square_subsequent_mask(4, dtype=torch.float64)
    causal = layer(query, query, query, attn_mask=mask, is_causal=True)[1]
    assert causal.triu(1).eq(0).all()
    with pytest.raises(ValueError, match="give that mask too"):
        layer(query, query, query, is_causal=True)


def test_a_query_that_may_look_nowhere_gets_zeros_and_harms_no_other():
    _, layer, (query, key, value) = attention_and_inputs({})
    mask = torch.zeros(4, 5, dtype=torch.bool)
    mask[1] = True
    y, shown = layer(query, key, value, attn_mask=mask)
    assert shown[:, 1].eq(0).all()
    torch.testing.assert_close(y[2:], layer(query, key, value)[0][2:])
    y.sum().backward()
    assert all(p.grad.isfinite().all() for p in layer.parameters())


def test_in_16_bits_an_attention_projects_by_codes():
    layer = quietly(nn.MultiheadAttention(8, 2, add_bias_kv=True))
    x = torch.randn(4, 3, 8)
    qsr.calibrate(layer, x, x, x)
    with torch.autocast("cpu", torch.bfloat16):
        q = layer.query(x, layer.in_proj_weight[:8], None)
        y = layer(x, x, x)[0]
    exact = layer.query(x, layer.in_proj_weight[:8], None)
    torch.testing.assert_close(q, exact, rtol=2**-7, atol=1e-6)
    assert (y - layer(x, x, x)[0]).square().mean() < 0.05 * y.var()


def test_products_of_attention_are_quantised_on_demand():
    layer = nn.MultiheadAttention(8, 2)
    assert isinstance(quietly(layer).scores, Matmul)
    layer = quietly(layer, attention_bits=(8, 4))
    assert isinstance(layer.mix, qsr.QMatmul) and layer.scores.left_quantizer.bits == 8
    qsr.calibrate(layer, *[torch.randn(4, 3, 8)] * 3)
    assert not left_in_float(layer)
    by_hand = QMultiheadAttention(8, 2, bits=2, attention_bits=3)
    assert by_hand.out_proj.weight_quantizer.bits == by_hand.key.input_quantizer.bits == 2


# Fast paths of PyTorch ----------------------------------------------------------------------------


def encoder(**options):
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, **options)
    return nn.TransformerEncoder(layer, 2).eval()


@pytest.mark.parametrize(
    "skip", [[], ["*.self_attn"], ["*.linear?"], ["*.out_proj", "*.linear?"], ["layers.0"]]
)
@pytest.mark.parametrize("padded", [False, True])
def test_no_fast_path_of_pytorch_runs_past_the_quantizers(skip, padded):
    net, x = encoder(), torch.randn(3, 5, 8)
    lengths = torch.tensor([5, 3, 4])
    mask = torch.arange(5) >= lengths[:, None] if padded else None
    low = quietly(net, 2, skip=skip)
    qsr.calibrate(low, x)
    slow = low(x, src_key_padding_mask=mask).detach()  # with gradients there is no fast path
    with torch.no_grad():
        fast = low(x, src_key_padding_mask=mask)
        seen = slice(None) if mask is None else ~mask
        torch.testing.assert_close(fast[seen], slow[seen], rtol=1e-4, atol=1e-5)
        assert (fast[seen] - net(x, src_key_padding_mask=mask)[seen]).abs().max() > 0.1


def test_a_layer_put_into_an_encoder_by_hand_is_not_passed_by_either():
    layer, x = encoder().layers[0], torch.randn(1, 5, 8)
    exact = layer(x)
    layer.linear1 = qsr.QLinear(8, 16, bits=2)
    qsr.calibrate(layer, x)
    with torch.no_grad():
        low = layer(x)
        assert (low - exact).abs().max() > 0.1
        assert (qsr.pack(layer)(x) - low).abs().max() < 1e-4  # packed, it has a hook too


def test_nested_tensors_are_refused_by_the_attention():
    layer = quietly(nn.MultiheadAttention(8, 2, batch_first=True))
    x = torch.nested.nested_tensor([torch.randn(3, 8), torch.randn(2, 8)])
    with pytest.raises(ValueError, match="enable_nested_tensor=False"):
        layer(x, x, x)


def test_recurrent_layers_and_their_flat_weights_are_left_and_named():
    net = nn.Sequential(nn.Linear(4, 4), nn.LSTM(4, 4))
    with pytest.warns(UserWarning, match=r"'1' \(LSTM: "):
        assert type(qsr.quantize(net)[1]) is nn.LSTM


# What stays ---------------------------------------------------------------------------------------


class Mixed(nn.Module):
    """Two tied layers, a frozen one, one under two names, and one in eval mode."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)
        self.b.weight = self.a.weight
        self.frozen = nn.Linear(4, 4).requires_grad_(False)
        self.other_name = self.frozen
        self.table = nn.Embedding(4, 4)
        self.head = nn.Linear(4, 4, bias=False)
        self.head.weight = self.table.weight
        self.a.note = "mine"
        self.frozen.eval()

    def forward(self, x):
        return self.head(self.other_name(self.b(self.a(x).relu())) + self.frozen(x))


def test_tied_and_frozen_weights_names_modes_and_notes_stay():
    net = Mixed()
    low = quietly(net)
    assert low.a.weight is low.b.weight and low.head.weight is low.table.weight
    assert low.a.weight is not net.a.weight
    assert low.other_name is low.frozen and isinstance(low.frozen, qsr.QLinear)
    assert low.a.note == "mine"
    assert not low.frozen.weight.requires_grad and not low.frozen.bias.requires_grad
    assert low.frozen.weight_quantizer.step_size.requires_grad
    assert [m.training for m in (low, low.a, low.frozen)] == [True, True, False]
    assert not any(m.training for m in low.frozen.modules())
    x = torch.randn(5, 4)
    qsr.calibrate(low, x)
    before = low.frozen.weight.clone()
    optimizer = torch.optim.SGD(low.parameters(), lr=0.1)
    low(x).square().sum().backward()
    optimizer.step()
    assert torch.equal(low.frozen.weight, before) and low.a.weight is low.b.weight


def test_a_layer_that_is_skipped_by_one_of_its_names_is_skipped():
    low = quietly(Mixed(), skip=["other_name"])
    assert low.other_name is low.frozen and type(low.frozen) is nn.Linear


@pytest.mark.parametrize("kind", ["conv2d", "transposed", "linear"])
@pytest.mark.parametrize("place", [{"dtype": torch.float64}, {"device": "meta"}])
def test_dtype_and_device_stay(kind, place):
    low = quietly(KINDS[kind][0]().to(**place))
    wanted = (place.get("dtype", torch.float32), place.get("device", "cpu"))
    assert {(p.dtype, p.device.type) for p in low.parameters()} == {wanted}


def test_hooks_of_every_kind_stay_also_on_a_packed_layer():
    layer, calls = nn.Conv2d(3, 3, 1), []
    layer.register_forward_pre_hook(lambda m, args: calls.append("before"))
    layer.register_forward_hook(lambda m, args, y: calls.append("after") or y + 1)
    layer.register_full_backward_pre_hook(lambda m, grad: calls.append("backward, before"))
    layer.register_full_backward_hook(lambda m, a, b: calls.append("backward"))
    layer.register_state_dict_pre_hook(lambda *_: calls.append("saving"))
    layer.register_state_dict_post_hook(lambda *_: calls.append("saved"))
    layer.register_load_state_dict_pre_hook(lambda *_: calls.append("loading"))
    layer.register_load_state_dict_post_hook(lambda *_: calls.append("loaded"))
    low, x = qsr.quantize(layer), torch.randn(1, 3, 4, 4, requires_grad=True)
    qsr.calibrate(low, x)
    calls.clear()
    y = low(x)
    y.sum().backward()
    low.load_state_dict(low.state_dict())
    assert calls == [
        "before", "after", "backward, before", "backward", "saving", "saved", "loading", "loaded",
    ]  # fmt: skip
    packed = qsr.pack(low)
    torch.testing.assert_close(packed(x), y)  # with the 1 that a hook adds
    assert calls[-2:] == ["before", "after"]


PARAMETRISATIONS = {
    "weight_norm": parametrizations.weight_norm,
    "spectral_norm": parametrizations.spectral_norm,
    "orthogonal": parametrizations.orthogonal,
}


@pytest.mark.parametrize("name", PARAMETRISATIONS)
@pytest.mark.parametrize("make", [lambda: nn.Conv2d(3, 3, 1), lambda: nn.Linear(3, 3)])
def test_a_parametrised_layer_is_quantised_and_stays_parametrised(name, make):
    float_layer = PARAMETRISATIONS[name](make()).eval()
    low = qsr.quantize(float_layer)
    x = torch.randn(2, 3, 4, 4) if isinstance(low, nn.Conv2d) else torch.randn(2, 3)
    qsr.calibrate(low, x)
    assert isinstance(low, (qsr.QConv2d, qsr.QLinear)) and parametrize.is_parametrized(low)
    assert torch.equal(low.weight, float_layer.weight)
    y = low(x)
    y.square().sum().backward()
    assert all(p.grad is not None for p in low.parametrizations.parameters() if p.requires_grad)
    assert torch.equal(copy.deepcopy(low)(x), y)
    packed = qsr.pack(low)
    assert isinstance(packed, (PackedConv2d, PackedLinear))
    torch.testing.assert_close(packed(x), y)
    parametrize.remove_parametrizations(low, "weight")
    assert type(low) in (qsr.QConv2d, qsr.QLinear)
    torch.testing.assert_close(low(x), y)


def test_a_parametrised_weight_is_made_once_in_each_pass():
    made = []

    class Noted(nn.Module):
        def forward(self, weight):
            made.append(weight)
            return weight

    for make, shape in KINDS.values():
        layer = make()
        parametrize.register_parametrization(layer, "weight", Noted())
        low, x = quietly(layer), torch.randn(shape)
        qsr.calibrate(low, x)
        made.clear()
        low(x)
        assert len(made) == 1


def test_a_module_used_twice_in_a_sequence_is_quantised_once():
    layer = nn.Linear(4, 4)
    low = quietly(nn.Sequential(layer, nn.ReLU(), layer))
    assert low[0] is low[2] and isinstance(low[0], qsr.QLinear)


# What is left, and said ---------------------------------------------------------------------------


class OwnConv(nn.Conv2d):
    def forward(self, x):
        return super().forward(F.pad(x, (1, 1, 1, 1)))


class OwnLinear(nn.Linear):
    pass


class Written(nn.Module):
    """Multiplies by a matrix of its own."""

    def __init__(self):
        super().__init__()
        self.matrix = nn.Parameter(torch.randn(3, 3))

    def forward(self, x):
        return x @ self.matrix


def patched():
    layer = nn.Linear(3, 3)
    layer.forward = lambda x: x
    return layer


def ran(net, *shape):
    net(torch.randn(shape))
    return net


@pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning")
@pytest.mark.parametrize(
    ("make", "why"),
    [
        (lambda: OwnConv(3, 3, 3), "a subclass"),
        (lambda: OwnLinear(3, 3), "a subclass"),
        (patched, "a forward of its own"),
        (lambda: nn.LazyConv2d(3, 3), "run the network once"),
        (lambda: nn.LazyLinear(3), "run the network once"),
        (lambda: nn.utils.weight_norm(nn.Conv2d(3, 3, 3)), "a hook makes its weight"),
        (lambda: ran(nn.utils.spectral_norm(nn.Linear(3, 3)), 2, 3), "a hook makes its weight"),
        (lambda: prune.l1_unstructured(nn.Linear(3, 3), "weight", 0.5), "a hook makes its weight"),
        (lambda: nn.Linear(3, 3, dtype=torch.complex64), "not real"),
        (lambda: nn.Conv3d(3, 3, 3), "no quantised layer"),
        (lambda: nn.ConvTranspose1d(3, 3, 3), "no quantised layer"),
        (lambda: nn.Bilinear(3, 3, 3), "no quantised layer"),
        (lambda: nn.Embedding(3, 3), "no quantised layer"),
        (lambda: nn.GRU(3, 3), "no quantised layer"),
        (lambda: nn.LSTMCell(3, 3), "no quantised layer"),
        (lambda: parametrizations.weight_norm(nn.Conv3d(3, 3, 3)), "no quantised layer"),
        (lambda: Matmul(), "a product of two activations"),
        (lambda: Written(), "its matrix stays"),
    ],
)
def test_what_is_not_quantised_is_named_in_one_warning_and_refused_when_strict(make, why):
    net = nn.Sequential(nn.Linear(3, 3), nn.ModuleDict({"inner": make(), "norm": nn.LayerNorm(3)}))
    with pytest.warns(UserWarning) as said:
        low = qsr.quantize(net)
    assert len(said) == 1 and str(said[0].message).count("'1.inner'") == 1
    assert why in str(said[0].message) and "\n" not in str(said[0].message)
    assert type(low[1]["inner"]).__name__ == type(net[1]["inner"]).__name__
    with pytest.raises(ValueError, match=r"`strict` .*'1\.inner'"):
        qsr.quantize(net, strict=True)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        qsr.quantize(net, skip=["1.inner"], strict=True)
    with pytest.raises(ValueError, match=r"nothing to quantise in this .*" + why):
        qsr.quantize(make())


def test_what_can_be_trained_and_not_yet_packed_is_said_before_the_training():
    unpacked = {
        "padding 'same'": "conv2d, same",
        "'reflect'": "conv2d, reflect",
    }
    for word, kind in unpacked.items():
        make, shape = KINDS[kind]
        net = nn.Sequential(make())
        with pytest.warns(UserWarning, match=f"can be trained, not yet packed: '0'.*{word}"):
            low = qsr.quantize(net)
        with pytest.raises(ValueError, match="`strict`"):
            qsr.quantize(net, strict=True)
        qsr.calibrate(low, torch.randn(shape))
        with pytest.raises(ValueError, match=f"can be trained, not yet packed: '0'.*{word}"):
            qsr.pack(low)
    with pytest.warns(UserWarning, match="not yet packed: '0' .*CADyQ chooses bits anew"):
        qsr.quantize(nn.Sequential(nn.Conv2d(3, 3, 1)), 8, qsr.CADyQ)
    assert not_packed(quietly(encoder())) == {}


@pytest.mark.parametrize("padding", ["valid", "same"])
def test_padding_by_a_word_packs_where_it_is_the_same_on_both_sides(padding):
    layer, x = qsr.quantize(nn.Conv2d(3, 4, (3, 5), padding=padding)), torch.randn(1, 3, 7, 8)
    qsr.calibrate(layer, x)
    torch.testing.assert_close(qsr.pack(layer)(x), layer(x))


def test_widths_may_be_integers_of_numpy():
    low = qsr.quantize(nn.Linear(2, 2), bits={"*": (np.int64(4), np.uint8(2))})
    assert [type(q.bits) for q in low.children()] == [int, int]
    assert qsr.quantize(nn.Linear(2, 2), bits=np.int64(4)).weight_quantizer.bits == 4


def test_many_names_make_one_line_that_counts_the_rest():
    net = nn.Sequential(nn.Linear(2, 2), *(nn.Embedding(2, 2) for _ in range(20)))
    with pytest.warns(UserWarning, match=r"'8' and 12 more \(Embedding"):
        qsr.quantize(net)


@pytest.mark.parametrize(
    "make",
    [
        nn.ReLU,
        lambda: quietly(nn.Linear(2, 2)),
        lambda: nn.LSTM(2, 2),
        lambda: torch.jit.trace(nn.Linear(2, 2), torch.randn(1, 2)),
        lambda: torch.export.export(nn.Linear(2, 2), (torch.randn(1, 2),)).module(),
    ],
)
def test_a_model_with_nothing_to_quantise_is_refused(make):
    with pytest.raises(ValueError, match="nothing to quantise"):
        qsr.quantize(make())


def test_a_graph_of_modules_is_a_network_like_any_other():
    low = qsr.quantize(torch.fx.symbolic_trace(nn.Sequential(nn.Conv2d(3, 3, 1), nn.ReLU())))
    x = torch.randn(1, 3, 4, 4)
    qsr.calibrate(low, x)
    layer = low.get_submodule("0")
    assert torch.equal(low(x), layer(x).relu()) and isinstance(layer, qsr.QConv2d)


def test_the_rest_is_quantised_by_a_second_call_with_other_bits():
    net = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    low = qsr.quantize(qsr.quantize(net, 8, skip=["1"]), 2)
    assert [layer.weight_quantizer.bits for layer in low] == [8, 2]


def test_names_stand_for_all_that_is_in_them_and_may_have_brackets():
    net = nn.ModuleDict({"a[0]": nn.Sequential(nn.Linear(2, 2)), "b": nn.Linear(2, 2)})
    low = qsr.quantize(net, bits={"a[0]": 8, "*": 2})
    assert (low["a[0]"][0].weight_quantizer.bits, low["b"].weight_quantizer.bits) == (8, 2)
    assert type(qsr.quantize(net, skip="a[0]")["a[0]"][0]) is nn.Linear  # a word is one name
    with pytest.raises(ValueError, match="`skip` has 'a.1', which no layer is called"):
        qsr.quantize(net, skip=["a.1"])


def test_parts_of_an_attention_have_widths_and_can_be_skipped():
    net = nn.ModuleDict({"attn": nn.MultiheadAttention(4, 2)})
    low = quietly(net, bits={"*.out_proj": 8, "*": 2})["attn"]
    assert (low.out_proj.weight_quantizer.bits, low.value.weight_quantizer.bits) == (8, 2)
    low = quietly(net, skip=["attn.out_proj"])["attn"]
    assert isinstance(low, QMultiheadAttention) and not isinstance(low.out_proj, qsr.QLinear)
    net["other"] = nn.Linear(4, 4)
    low = quietly(net, skip=["attn"])  # which reads the weight of its out_proj
    assert not any(isinstance(m, Quantizer) for m in low["attn"].modules())


def test_an_attention_of_one_s_own_keeps_its_parts():
    class Own(nn.MultiheadAttention):
        pass

    net = nn.ModuleDict({"attn": Own(4, 2), "other": nn.Linear(4, 4)})
    net["attn"].out_proj = nn.Linear(4, 4)  # read by the attention, never called
    low = quietly(net)
    assert not any(isinstance(m, Quantizer) for m in low["attn"].modules())
    assert list(left_in_float(low)) == ["attn"]


def test_the_original_is_never_touched():
    net = nn.Sequential(encoder(), nn.ConvTranspose2d(3, 3, 2), Mixed())
    before = {name: value.clone() for name, value in net.state_dict().items()}
    kinds = [type(m) for m in net.modules()]
    hooks = [len(m._forward_pre_hooks) for m in net.modules()]
    quietly(net)
    assert [type(m) for m in net.modules()] == kinds
    assert [len(m._forward_pre_hooks) for m in net.modules()] == hooks
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert net[0].use_nested_tensor


def test_every_name_of_the_float_model_is_in_the_quantised_state():
    net = nn.Sequential(encoder(), nn.ConvTranspose2d(3, 3, 2), nn.Conv1d(3, 3, 1))
    low = quietly(net).state_dict()
    extra = {name for name in low if "quantizer" not in name}
    assert extra == set(net.state_dict())
    assert all(torch.equal(low[name], value) for name, value in net.state_dict().items())


def test_step_sizes_for_another_width_are_not_loaded():
    net, x = nn.Sequential(nn.Conv2d(3, 3, 3)), torch.randn(1, 3, 6, 6)
    low, other = qsr.quantize(net, 4), qsr.quantize(net, 2)
    other.load_state_dict(low.state_dict())  # without step sizes yet
    qsr.calibrate(low, x)
    with pytest.raises(ValueError, match="has 2 bits, and the step size to be loaded .* 4 bits"):
        other.load_state_dict(low.state_dict())
    other = qsr.quantize(net, 4)
    of_before = {n: v.clamp(max=1) if "extra" in n else v for n, v in low.state_dict().items()}
    other.load_state_dict(of_before)  # whose states do not tell the width
    assert torch.equal(other(x), low(x))
