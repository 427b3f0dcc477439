"""A packed network in a file that has its graph: loaded without its class, to the bit the same."""

import copy
import functools
import json
import pickle
import warnings

import peers
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import save_file
from test_plan import NETWORKS, Centred, DnCNN, Normalised, Squeeze, Styled, packed, ready, same
from test_plan_file import change_somewhere
from torch import nn
from torch.nn import functional as F

import qsr
from qsr.integer import graph_json
from qsr.models.file import digest


class Mixed(nn.Module):
    """Float layers and functions of many kinds around few packed layers."""

    def __init__(self):
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.Hardswish())
        self.body = nn.Conv2d(8, 8, 3, padding=1)
        self.norm, self.act = nn.GroupNorm(2, 8), nn.PReLU(8)
        self.down = nn.Conv2d(8, 8, 3, stride=2, padding="valid")
        self.gain = nn.Parameter(torch.rand(8, 1, 1))
        self.last = nn.Conv2d(8, 12, 3, padding=1, padding_mode="replicate")
        self.register_buffer("mean", torch.rand(1, 3, 1, 1))
        self.unused = nn.Linear(3, 3)

    def forward(self, x):
        y = self.act(self.norm(self.body(self.first(x - self.mean))))
        far = F.interpolate(self.down(F.pad(y, (1, 1, 1, 1))), size=y.shape[-2:], mode="bicubic")
        rows = torch.softmax(far.flatten(2).transpose(1, 2), dim=-1)
        y = y + rows.transpose(1, 2).view(y.shape) * self.gain
        y = self.last(torch.roll(y, (1, -1), (2, 3))[..., :, :].clamp(-3, 3))
        return F.pixel_shuffle(y, 2), {"down": 2}["down"] * x.mean(1)


class Sound(nn.Module):
    """Convolutions of rows."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv1d(2, 6, 5, stride=2, padding=2), nn.Conv1d(6, 2, 3)

    def forward(self, x):
        return self.b(torch.relu(self.a(x)))


class Attentive(nn.Module):
    """Attention with biases of keys, and products of activations in 8 bits."""

    def __init__(self):
        super().__init__()
        options = {"add_bias_kv": True, "add_zero_attn": True}
        self.attention = nn.MultiheadAttention(8, 2, **options)

    def forward(self, x):
        return self.attention(x, x, x)


class Spread(nn.Module):
    """Contrast by powers, the largest of channels, constants that are made in the forward."""

    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 3, 1)
        self.register_buffer("hidden", torch.rand(8, 1, 1), persistent=False)

    def forward(self, x):
        y = self.first(x)
        spread = ((y - y.mean((2, 3), keepdim=True)) ** 2).sum((2, 3), keepdim=True).pow(0.5)
        y = y * spread.expand_as(y) + y.max(1, keepdim=True)[0] * self.hidden
        y = (
            self.last(F.dropout(y, 0.5, self.training))
            + torch.tensor([0.5, 0.4, 0.3])[:, None, None]
        )
        return torch.clamp_(torch.repeat_interleave(y, 2, dim=1), 0, 1)


SKIPPED = {"mixed": ["first.0", "down", "last", "unused"], "smfanet": ["to_feat"]}
OTHERS = {
    "mixed": (Mixed, (2, 3, 8, 9)),
    "smfanet": (lambda: peers.SMFANet(8, blocks=1), (1, 3, 16, 24)),
    "rlfn with float attention": (lambda: peers.RLFN(16, 8, 2), (1, 3, 15, 15)),
    "squeeze": (Squeeze, (1, 3, 5, 6)),
    "normalised": (Normalised, (2, 3, 4, 4)),
    "centred": (Centred, (2, 3, 5, 6)),
    "spread": (Spread, (2, 3, 5, 6)),
    "sound": (Sound, (2, 2, 20)),
    "attentive": (Attentive, (5, 2, 8)),
}
SKIPPED["rlfn with float attention"] = ["conv_1", "*.esa", "upsampler"]
ANY = [(1, 1), (7, 13), (61, 45)]
SIZES = {
    **dict.fromkeys(("dncnn", "odds", "mixed", "squeeze", "normalised", "spread"), ANY),
    "u-net": [(4, 4), (8, 12), (60, 44)],
    "parts": [(4, 4), (7, 13), (61, 45)],
    "enlarged": ANY,
    "resized": [(4, 4), (7, 13), (61, 45)],
    "transformer": [(4, 4), (8, 12), (60, 44)],
    "rlfn": [(15, 15), (17, 23), (61, 45)],
    "rlfn with float attention": [(15, 15), (17, 23), (61, 45)],
    "smfanet": [(8, 8), (16, 24), (64, 40)],
}


@functools.cache
def network(name):
    torch.manual_seed(4)
    if name in NETWORKS:
        return packed(name, (3, 4))
    kind, shape = OTHERS[name]
    more = {"attention_bits": 8} if name == "attentive" else {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what is skipped is meant to stay
        return ready(kind(), torch.randn(shape), skip=SKIPPED.get(name, ()), **more)


def inputs_of(name):
    *_, shape = {**NETWORKS, **OTHERS}[name]
    if name not in SIZES:
        yield torch.randn(shape)
    for n in (1, 2):
        for size in SIZES.get(name, ()):
            yield torch.randn(n, shape[1], *size)


@pytest.mark.parametrize("name", [*NETWORKS, *OTHERS])
def test_a_file_is_enough_to_run_a_network_to_the_bit(name, tmp_path):
    net, path = network(name), tmp_path / "m.qsr"
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # one would say that the class is needed
        qsr.save(path, net)
    again = qsr.load(path)
    assert str(again.plan) == str(net.plan)
    qsr.save(tmp_path / "again.qsr", again)
    assert path.read_bytes() == (tmp_path / "again.qsr").read_bytes()
    for x in inputs_of(name):
        expected = net.layer_by_layer(x)
        assert same(net(x), expected), x.shape
        assert same(again(x), expected), x.shape
        assert same(again.layer_by_layer(x), expected), x.shape


def test_constants_that_are_no_state_are_in_the_file_and_not_asked_of_the_network(tmp_path):
    net, path, x = network("spread"), tmp_path / "m.qsr", torch.randn(1, 3, 4, 4)
    qsr.save(path, net)
    assert "hidden" not in net.state_dict()
    into = Spread()
    into.hidden = net.hidden
    assert torch.equal(qsr.load(path, into=qsr.quantize(into, 4))(x), net(x))


def test_without_its_file_and_class_a_network_can_still_be_copied(tmp_path):
    qsr.save(tmp_path / "m.qsr", network("dncnn"))
    net, x = qsr.load(tmp_path / "m.qsr"), torch.randn(1, 3, 7, 5)
    for twin in (copy.deepcopy(net), pickle.loads(pickle.dumps(net))):
        assert torch.equal(twin(x), net(x)) and twin.plan.plans


def test_values_that_turn_out_to_differ_in_size_are_joined_after_loading_too(tmp_path):
    x, style = torch.randn(2, 3, 7, 9), torch.randn(2, 3, 1, 9)
    net = ready(Styled(), x, style)
    qsr.save(tmp_path / "m.qsr", net)
    assert torch.equal(qsr.load(tmp_path / "m.qsr")(x, style), net(x, style))


# What cannot be in a file -------------------------------------------------------------------------


class Asked(nn.Module):
    def __init__(self, then):
        super().__init__()
        self.conv, self.then = nn.Conv2d(3, 3, 3, padding=1), then
        self.register_buffer("hidden", torch.full((3, 1, 1), torch.inf), persistent=False)
        self.lstm = nn.LSTM(4, 4)

    def forward(self, x):
        return self.then(self, self.conv(x))


@pytest.mark.parametrize(
    ("then", "words"),
    [
        (lambda net, y: torch.linalg.norm(y), "the node 'linalg_norm' calls .*norm, which files"),
        (lambda net, y: y.cumsum(1), "the node 'cumsum' calls the method 'cumsum', which files"),
        (lambda net, y: y + net.hidden, "the node 'hidden' reads 'hidden', which is no finite"),
        (
            lambda net, y: net.lstm(y[0]),
            "the node 'lstm' calls a layer LSTM, which files do not hold",
        ),
        (lambda net, y: F.interpolate(y, size=(500, 5)), "the node 'interpolate' has '500'"),
        (lambda net, y: y.sum(dtype=torch.float32), "the node 'sum_1' has 'torch.float32'"),
        (lambda net, y: {"y": y}, "the node 'output' has .*which no argument may be"),
        (lambda net, y: y if y.shape[2] > 3 else 2 * y, "cannot be traced after 'gt'"),
    ],
)
@pytest.mark.filterwarnings("ignore:the network runs layer by layer")
@pytest.mark.filterwarnings("ignore:quantize leaves")
def test_a_network_whose_graph_is_no_data_says_which_node_and_needs_its_class(
    then, words, tmp_path
):
    x, path = torch.randn(1, 3, 4, 4), tmp_path / "m.qsr"
    low = qsr.quantize(Asked(then), 4)
    qsr.calibrate(low, x)
    net = qsr.pack(low)
    with pytest.warns(UserWarning, match=f"into=network\\): .*{words}"):
        qsr.save(path, net)
    with pytest.raises(ValueError, match=f"not in the file .*{words}.* into=") as error:
        qsr.load(path)
    assert "\n" not in str(error.value)
    assert str(qsr.load(path, into=low)(x)) == str(net(x))


# What stands in a file ----------------------------------------------------------------------------


def changed(path, change):
    """The file with another graph and a checksum that fits."""
    with safe_open(path, "pt") as file:
        metadata = dict(file.metadata())
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    graph = json.loads(metadata["graph"])
    change(graph, tensors)
    metadata["graph"] = json.dumps(graph)
    metadata["sha256"] = digest(metadata, tensors)
    save_file(tensors, path, metadata)


def node(graph, name):
    return next(n for n in graph["nodes"] if n["name"] == name)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda g, t: node(g, "add").update(function="os.system"), "'os.system', which is not kn"),
        (lambda g, t: node(g, "flatten").update(method="__reduce__"), "'__reduce__', which is not"),
        (lambda g, t: node(g, "flatten").update(args=[0, 2]), "'flatten', which is not known"),
        (lambda g, t: node(g, "roll").update(args=[{"node": "last"}]), "'last', which is not ther"),
        (lambda g, t: node(g, "gain").update(tensor="training"), "'training', which is not known"),
        (lambda g, t: node(g, "add").update(name="x"), "a node is called 'x'"),
        (lambda g, t: node(g, "add").update(name="a;b"), "a node is called 'a;b'"),
        (lambda g, t: node(g, "roll").update(options={"out": {"node": "x"}}), "'torch.roll', wh"),
        (
            lambda g, t: node(g, "pad")["args"].__setitem__(1, [9999] * 4),
            "has '9999', which no arg",
        ),
        (lambda g, t: g["layers"]["down"].update(kind="LSTM"), "there is no operator 'LSTM'"),
        (lambda g, t: g["layers"]["down"].update(device=None), "has no option 'device'"),
        (lambda g, t: g["layers"]["down"].update(stride=1000), "has '1000', which no argument"),
        (lambda g, t: g["layers"]["down"].update(in_channels=4), "'down.weight' has the shape"),
        (lambda g, t: g["layers"].pop("down"), "'down', which is not known"),
        (lambda g, t: t.update({"down.bias": t["down.bias"].double()}), "'down.bias' is torch.fl"),
        (lambda g, t: t["first.1.scale"].fill_(float("nan")), "values that are not finite"),
        (lambda g, t: t.pop("mean"), "the node 'mean' calls 'mean', which is not known"),
        (lambda g, t: g.update(version=7), "its version is 7, not 1"),
    ],
)
def test_a_graph_that_does_not_fit_is_refused_though_its_checksum_is_right(change, words, tmp_path):
    path = tmp_path / "m.qsr"
    qsr.save(path, network("mixed"))
    changed(path, change)
    with pytest.raises(ValueError, match=f"does not fit its own description .*{words}") as error:
        qsr.load(path)
    assert "\n" not in str(error.value)


def test_sizes_that_grow_without_end_are_stopped_when_they_run(tmp_path):
    """Each number is small, and 40 squarings of one make a number that fills the memory."""
    path = tmp_path / "m.qsr"
    qsr.save(path, network("transformer"))

    def square(graph, tensors):
        at = graph["nodes"].index(node(graph, "getitem_2")) + 1
        for i in range(40):
            of = {"node": f"more_{i - 1}" if i else "getitem_2"}
            call = {"name": f"more_{i}", "function": "operator.mul", "args": [of, of if i else 999]}
            graph["nodes"].insert(at + i, call)
        graph["result"] = [graph["result"], {"node": "more_39"}]

    changed(path, square)
    with pytest.raises(ValueError, match="cannot run on .*sizes become too large"):
        qsr.load(path)(torch.randn(1, 3, 8, 12))


def test_what_a_picture_does_not_fit_is_one_line(tmp_path):
    qsr.save(tmp_path / "m.qsr", network("dncnn"))
    net = qsr.load(tmp_path / "m.qsr")
    for x in (torch.randn(1, 4, 8, 8), torch.randn(3), None):
        with pytest.raises(ValueError, match="the stored DnCNN cannot run on ") as error:
            net(x)
        assert "\n" not in str(error.value)


def test_a_network_without_regions_runs_layer_by_layer_from_its_file_too(tmp_path):
    x = torch.randn(1, 3, 6, 6)
    low = qsr.quantize(DnCNN(), 4, quantizer=qsr.DoReFa)
    qsr.calibrate(low, x)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        net = qsr.pack(low)
    qsr.save(tmp_path / "m.qsr", net)
    assert torch.equal(qsr.load(tmp_path / "m.qsr")(x), net(x))


GRAPHS = functools.cache(lambda name: describe_graph(network(name)))


def describe_graph(net):
    return json.dumps(graph_json.describe(net.traced(), net)), frozenset(net.state_dict())


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.sampled_from(["x", "zeros"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner),
    max_leaves=4,
)


@settings(deadline=None, max_examples=200)
@given(st.data())
def test_whatever_a_file_says_is_a_graph_or_a_line(data):
    text, tensors = GRAPHS(data.draw(st.sampled_from(("mixed", "attentive", "resized"))))
    described = json.loads(text)
    change_somewhere(described, data, JSON)
    try:
        graph, _ = graph_json.read(described, tensors)
    except ValueError as error:
        assert str(error).startswith("the graph is not one: ") and "\n" not in str(error)
    else:
        assert list(graph.nodes)[-1].op == "output"


class Recursive(nn.Module):
    """One layer under two names, in a container and beside it."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 3, 3, padding=1), nn.ReLU())
        self.again = self.body[0]

    def forward(self, x):
        return self.again(self.body(x))


def test_a_layer_with_two_names_is_in_the_file_once(tmp_path):
    x = torch.randn(1, 3, 6, 5)
    low = qsr.quantize(Recursive(), 4)
    qsr.calibrate(low, x)
    net = qsr.pack(low)
    qsr.save(tmp_path / "a.qsr", net)
    assert torch.equal(qsr.load(tmp_path / "a.qsr")(x), net(x))
    into = qsr.load(tmp_path / "a.qsr", into=qsr.quantize(Recursive(), 4))
    assert torch.equal(into(x), net(x)) and into.again is into.body[0]


def test_a_hook_is_code_and_not_in_a_file(tmp_path):
    x = torch.randn(1, 3, 6, 5)
    low = qsr.quantize(nn.Sequential(nn.Conv2d(3, 3, 3), nn.Conv2d(3, 3, 1)), 4)
    low.register_forward_pre_hook(lambda module, args: (2 * args[0],))
    qsr.calibrate(low, x)
    net = qsr.pack(low)
    with pytest.warns(UserWarning, match="'the network' has a hook, which is code"):
        qsr.save(tmp_path / "a.qsr", net)
    assert torch.equal(qsr.load(tmp_path / "a.qsr", into=low)(x), net(x))
