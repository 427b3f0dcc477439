"""A packed network of any class runs by its plan, bit for bit as layer by layer."""

import contextlib
import copy
import functools
import pickle
from concurrent.futures import ThreadPoolExecutor

import peers
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

import qsr
from qsr.integer import plan_reference
from qsr.integer.executor import Executor
from qsr.integer.planned import Running

# Networks that somebody brings --------------------------------------------------------------------


class DnCNN(nn.Module):
    """Convolutions and ReLU in a row, and what they find is taken away from the picture."""

    def __init__(self, channels=20, depth=4):
        super().__init__()
        layers = [nn.Conv2d(3, channels, 3, padding=1), nn.ReLU(inplace=True)]
        for _ in range(depth - 2):
            layers += [nn.Conv2d(channels, channels, 3, padding=1), nn.ReLU(inplace=True)]
        self.body = nn.Sequential(*layers, nn.Conv2d(channels, 3, 3, padding=1))

    def forward(self, x):
        return x - self.body(x)


class SmallRLFN(peers.RLFN):
    """With attention from few channels far apart, back to size and multiplied."""

    def __init__(self):
        super().__init__(24, narrow=8, blocks=2)


class UNet(nn.Module):
    """Down by max pooling and a stride, up by nearest and pixel shuffle, with skip connections."""

    def __init__(self, features=16):
        super().__init__()
        f = features

        def conv(i, o, **options):
            return nn.Sequential(nn.Conv2d(i, o, 3, padding=1, **options), nn.PReLU(o))

        self.a = conv(3, f)
        self.b = conv(f, 2 * f)
        self.c = conv(2 * f, 3 * f, stride=2)
        self.up1 = nn.Sequential(nn.Conv2d(3 * f, 8 * f, 1), nn.PixelShuffle(2))
        self.d = conv(4 * f, 20)
        self.up2 = nn.Upsample(scale_factor=2)
        self.e = conv(20 + f, f)
        self.last = nn.Conv2d(f, 3, 3, padding=1)
        self.pool = nn.MaxPool2d(2)

    def forward(self, x):
        a = self.a(x)
        b = self.b(self.pool(a))
        d = self.d(torch.cat([self.up1(self.c(b)), b], 1))
        return x + self.last(self.e(torch.cat([self.up2(d), a], dim=1)))


class Odds(nn.Module):
    """What else there is: groups, dilation, constants, parts, a layer that runs twice."""

    def __init__(self):
        super().__init__()
        self.gain = nn.Parameter(torch.tensor(1.7))
        self.first = nn.Conv2d(5, 32, 3, padding=1)
        self.twice = nn.Conv2d(16, 16, 3, padding=1, groups=4)
        self.deep = nn.Conv2d(32, 12, (1, 3), padding=(0, 2), stride=(2, 1), bias=False)
        self.join = nn.Conv2d(24, 7, 1)

    def forward(self, x):
        left, right = torch.chunk(F.relu(self.first(x)), 2, dim=1)
        left = self.twice(self.twice(left) * self.gain) - 0.25
        y = self.deep(torch.cat((left, right), 1))
        y = y * y + 0.5 * y
        return self.join(torch.cat((F.leaky_relu(y, 0.1), 2 - y), 1)), left


class Parts(nn.Module):
    """Split at any channel, and padded by what lies at the edges."""

    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(3, 23, 3, padding=1)
        self.a, self.b = nn.Conv2d(5, 6, 3), nn.Conv2d(11, 6, (3, 1))
        self.d, self.e = nn.Conv2d(15, 6, 1), nn.Conv2d(7, 6, 5)
        self.pad = nn.ReflectionPad2d((2, 2, 1, 3))
        self.last = nn.Conv2d(12, 3, 1)

    def forward(self, x):
        y = F.relu(self.first(x))
        a, b, c = torch.split(y, [5, 11, 7], dim=1)
        eights = y.split(8, dim=1)
        a = self.a(F.pad(a, (1, 1, 1, 1), mode="reflect"))
        b = self.b(F.pad(b, (0, 0, 2, 0), mode="replicate"))
        d = self.d(torch.cat([eights[1], c], 1))
        e = self.e(self.pad(eights[2]))
        return self.last(torch.cat([a + b, d * e], 1))


class Enlarged(nn.Module):
    """Transposed convolutions, whose outputs share taps or do not, between layers."""

    def __init__(self):
        super().__init__()
        up = nn.ConvTranspose2d
        self.first = nn.Conv2d(3, 6, 3, padding=1)
        self.a = up(6, 5, 2, stride=2)
        self.b = up(6, 4, 4, stride=2, padding=1, groups=2)
        self.c = up(6, 7, 3, stride=2, padding=1, output_padding=1, bias=False)
        self.d = up(8, 4, 9, stride=3, padding=4, output_padding=2)
        self.join, self.last = nn.Conv2d(16, 8, 3, padding=1), nn.Conv2d(4, 3, 3, padding=1)
        self.apart = up(8, 3, 3, stride=2)

    def forward(self, x):
        y = F.relu(self.first(x))
        y = self.join(torch.cat([self.a(y), self.b(y), self.c(y)], 1))
        return self.last(self.d(y)), self.apart(y)


class Resized(nn.Module):
    """Averages and bilinear interpolation, in the ways that they are written."""

    def __init__(self, f=6):
        super().__init__()
        self.convs = nn.ModuleList(nn.Conv2d(3 if i == 0 else f, f, 3, padding=1) for i in range(6))
        self.less = nn.AvgPool2d(3, 2, 1, count_include_pad=False)
        self.twice = nn.Upsample(scale_factor=2, mode="bilinear", align_corners=True)
        self.gate = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(f, f, 1), nn.Sigmoid())
        self.last = nn.Conv2d(2 * f, 3, 1)

    def forward(self, x):
        a = F.relu(self.convs[0](x))
        b = self.convs[1](F.avg_pool2d(a, (2, 3), stride=(2, 1), padding=(0, 1)))
        c = self.convs[2](self.less(b))
        d = b + F.interpolate(c, b.shape[-2:], mode="bilinear")
        d = self.twice(self.convs[3](d)) * self.gate(a)
        d = F.interpolate(self.convs[4](d), size=(a.size(2), a.size(3)), mode="bilinear")
        mean = a.mean(dim=(2, 3), keepdim=True)
        return self.last(torch.cat([d - a, self.convs[5](mean - d)], 1))


class Rows(nn.Module):
    """Linear layers on [..., channels]."""

    def __init__(self):
        super().__init__()
        self.norm = nn.LayerNorm(20)
        self.fc1, self.fc2 = nn.Linear(20, 50), nn.Linear(50, 20)

    def forward(self, x):
        return x + self.fc2(F.relu(self.fc1(self.norm(x))))


class Transformer(nn.Module):
    """Patches of 4 x 4 pixels as rows, attention among them, and back."""

    def __init__(self, features=24, layers=2):
        super().__init__()
        self.embed = nn.Conv2d(3, features, 4, stride=4)
        self.norms = nn.ModuleList(nn.LayerNorm(features) for _ in range(2 * layers))
        self.attentions = nn.ModuleList(
            nn.MultiheadAttention(features, 4, batch_first=True) for _ in range(layers)
        )
        self.mlps = nn.ModuleList(
            nn.Sequential(
                nn.Linear(features, 2 * features), nn.GELU(), nn.Linear(2 * features, features)
            )
            for _ in range(layers)
        )
        self.last = nn.Linear(features, 48)

    def forward(self, x):
        patches = self.embed(x)
        rows = patches.flatten(2).transpose(1, 2)
        for i, (attention, mlp) in enumerate(zip(self.attentions, self.mlps, strict=True)):
            y = self.norms[2 * i](rows)
            rows = rows + attention(y, y, y, need_weights=False)[0]
            rows = rows + mlp(self.norms[2 * i + 1](rows))
        n, height, width = x.shape[0], patches.shape[2], patches.shape[3]
        rows = self.last(rows).transpose(1, 2).reshape(n, 48, height, width)
        return x + F.pixel_shuffle(rows, 4)


NETWORKS = {
    "dncnn": (DnCNN, (2, 3, 9, 13)),
    "rlfn": (SmallRLFN, (1, 3, 26, 23)),
    "u-net": (UNet, (1, 3, 12, 8)),
    "odds": (Odds, (2, 5, 7, 6)),
    "resized": (Resized, (2, 3, 11, 14)),
    "parts": (Parts, (2, 3, 8, 9)),
    "enlarged": (Enlarged, (2, 3, 6, 5)),
    "rows": (Rows, (2, 3, 20)),
    "transformer": (Transformer, (2, 3, 8, 12)),
}


def packed(name, bits=4, skip=(), **options):
    """A network as training leaves it, packed."""
    torch.manual_seed(3)
    kind, shape = NETWORKS[name]
    low = qsr.quantize(kind(), bits, skip=skip, **options)
    qsr.calibrate(low, torch.randn(shape))
    with torch.no_grad():
        for key, p in low.named_parameters():
            if key.endswith(("tau", "step_size")):
                p.mul_(1 + 0.2 * torch.rand(p.shape)).add_(1e-3 + 0.1 * p.abs().mean())
    return qsr.pack(low)


def same(a, b):
    if isinstance(a, tuple):
        return len(a) == len(b) and all(map(same, a, b))
    return torch.equal(a, b)


class Slowly(Executor):
    """The steps of a plan by their definition."""

    def __init__(self, plan, network):
        self.plan, self.network = plan, network

    def __call__(self, inputs):
        return plan_reference.run(self.plan, self.network, inputs)


def run(net, x, executor):
    running = Running(net, net.plan)
    running.executors = {id(p): executor(p, net) for p in net.plan.plans}
    with torch.no_grad():
        return running(net, (x,))


@pytest.mark.parametrize("executor", [Slowly, Executor])
@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("bits", [4, (2, 3), 8])
def test_a_plan_gives_the_bits_of_the_layers(name, executor, bits):
    net, x = packed(name, bits), torch.randn(NETWORKS[name][1])
    assert net.plan.plans and not net.plan.reason
    assert same(run(net, x, executor), net.layer_by_layer(x))


@settings(deadline=None, max_examples=6)
@given(st.integers(1, 3), st.integers(9, 40), st.integers(9, 40), st.integers(1, 3))
def test_any_size_batch_and_number_of_threads_give_the_same_bits(n, height, width, threads):
    net = packed("dncnn")
    x = torch.randn(n, 3, height, width)
    expected = net.layer_by_layer(x)
    try:
        torch.set_num_threads(threads)
        assert torch.equal(net(x), expected)
        assert torch.equal(net(x.contiguous(memory_format=torch.channels_last)), expected)
    finally:
        torch.set_num_threads(1)


def test_several_threads_may_call_one_network_at_once():
    net = packed("u-net")
    xs = [torch.randn(1, 3, 8 + 4 * (i % 3), 12) for i in range(12)]
    expected = [net.layer_by_layer(x) for x in xs]
    with ThreadPoolExecutor(4) as pool:
        assert all(map(torch.equal, pool.map(net, xs), expected))


def test_a_result_is_new_memory_each_time():
    net, x = packed("dncnn"), torch.randn(1, 3, 10, 10)
    first = net(x)
    kept = first.clone()
    net(2 * x)
    assert torch.equal(first, kept)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -1e30])
def test_values_without_an_end_get_the_codes_of_the_layers(value):
    net, x = packed("dncnn"), torch.randn(1, 3, 9, 9)
    x[0, 1, 4, 4] = value
    assert torch.equal(net(x).isnan(), net.layer_by_layer(x).isnan())
    assert torch.equal(net(x).nan_to_num(), net.layer_by_layer(x).nan_to_num())


@pytest.mark.parametrize("attention_bits", [None, 8])
@pytest.mark.parametrize("options", [{}, {"kdim": 6, "vdim": 5}, {"bias": False}])
def test_a_packed_attention_is_the_quantised_one_without_its_weights(attention_bits, options):
    torch.manual_seed(2)
    low = qsr.quantize(nn.MultiheadAttention(8, 2, **options), 4, attention_bits=attention_bits)
    q = torch.randn(5, 2, 8)
    k, v = (torch.randn(4, 2, options.get(n, 8)) for n in ("kdim", "vdim"))
    qsr.calibrate(low, q, k, v)
    net = qsr.pack(low)
    for x, y in zip(net(q, k, v), low(q, k, v), strict=True):
        torch.testing.assert_close(x, y, rtol=0, atol=1e-5)
    assert not any("_proj_weight" in key for key in net.state_dict())
    assert not any(p.requires_grad for p in net.parameters())


# What a planned network still is ------------------------------------------------------------------


def test_a_network_keeps_its_class_its_attributes_and_its_weights():
    net = packed("odds")
    assert isinstance(net, Odds) and net.gain.item() == pytest.approx(1.7)
    assert {"gain", "first.weight", "join.scale"} <= set(net.state_dict())


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda net: pickle.loads(pickle.dumps(net))])
def test_a_copy_runs_by_a_plan_of_its_own(duplicate):
    net, x = packed("dncnn"), torch.randn(1, 3, 6, 5)
    twin = duplicate(net)
    assert type(twin) is type(net) and twin.plan.plans
    with torch.no_grad():
        net.body[0].bias.add_(1)
    assert not torch.equal(twin(x), net(x))


def test_values_that_change_after_the_first_call_reach_the_plan():
    net, other = packed("dncnn"), packed("dncnn", 3)
    x = torch.randn(1, 3, 6, 5)
    before = net(x)
    with torch.no_grad():
        net.body[2].bias.add_(0.5)
    assert not torch.equal(net(x), before)
    net.body[2].load_state_dict(net.body[2].state_dict())  # now the layer knows it as well
    assert torch.equal(net(x), net.layer_by_layer(x))
    net.body[0] = other.body[0]
    assert torch.equal(net(x), net.layer_by_layer(x))
    net.body[4].set_extra_state(torch.tensor([1]))  # codes between two layers get another sign
    assert torch.equal(net(x), net.layer_by_layer(x))


def test_who_hooks_a_layer_gets_the_layers():
    net, x, seen = packed("dncnn"), torch.randn(1, 3, 6, 5), []
    expected = net(x)
    hook = net.body[2].register_forward_hook(lambda *_: seen.append(1))
    assert torch.equal(net(x), expected) and seen == [1]
    hook.remove()
    assert torch.equal(net(x), expected) and seen == [1]


class Options(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 3)

    def forward(self, x, gain=None, flip=False):
        y = self.conv(x.flip(-1) if flip else x)
        return y if gain is None else y * gain


def ready(net, *inputs, **options):
    low = qsr.quantize(net, 4, **options)
    qsr.calibrate(low, *inputs)
    return qsr.pack(low)


def test_optional_arguments_and_other_types_run_layer_by_layer():
    x = torch.randn(1, 3, 6, 6)
    net = ready(Options(), x)
    plain = net(x)
    assert torch.equal(net(x, 2.0), 2 * plain)
    assert torch.equal(net(x, flip=True), net.layer_by_layer(x.flip(-1)))
    assert torch.equal(net(x.double().float()), plain) and net(x.bfloat16()).dtype == torch.float32


class Squeeze(nn.Module):
    """Channel attention: one number a channel, whatever the size of the picture."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 24, 3, padding=1), nn.Conv2d(24, 3, 3, padding=1)
        self.gate = nn.Conv2d(24, 24, 1)

    def forward(self, x):
        y = self.a(x)
        return self.b(y * torch.sigmoid(self.gate(y.mean((2, 3), keepdim=True))))


def test_a_number_a_channel_is_multiplied_in_a_region():
    x = torch.randn(2, 3, 7, 9)
    net = ready(Squeeze(), x)
    assert torch.equal(net(x), net.layer_by_layer(x))
    assert len(net.plan.plans) == 1 and net.plan.coverage == 1
    one = torch.randn(1, 3, 1, 1)
    assert torch.equal(net(one), net.layer_by_layer(one))


class Styled(nn.Module):
    """Two inputs, of any sizes that PyTorch joins."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = (nn.Conv2d(3, 3, 3, padding=1) for _ in range(3))

    def forward(self, x, style):
        return self.c(self.a(x) * torch.sigmoid(self.b(style)))


def test_a_transposed_convolution_is_in_a_region_where_layers_read_it():
    (plan,) = packed("enlarged").plan.plans
    assert {"a", "b", "c", "d"} < set(plan.layers) and "apart" not in plan.layers


@pytest.mark.parametrize("name", ["resized", "parts"])
def test_what_lies_between_packed_layers_is_in_one_region(name):
    assert len(packed(name).plan.plans) == 1 and packed(name).plan.coverage == 1


class Joined(nn.Module):
    """PyTorch's sums over channels, whose last bits depend on the memory format."""

    def __init__(self, channels):
        super().__init__()
        self.first, self.side = nn.Conv2d(channels, 60, 1), nn.Conv2d(20, 20, 1)
        self.last = nn.Conv2d(60, 60, 1)

    def forward(self, x):
        a, b = self.first(x).split([20, 40], 1)
        return F.normalize(self.last(torch.cat([self.side(a), b], 1)))


@pytest.mark.parametrize("channels", [1, 2])
def test_pytorch_gets_values_in_the_memory_format_that_layers_give_them(channels):
    x = torch.randn(1, channels, 40, 44)
    net = ready(Joined(channels), x)
    assert [len(plan.layers) for plan in net.plan.plans] == [3]
    assert torch.equal(net(x), net.layer_by_layer(x))


class Normalised(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 1)

    def forward(self, x):
        y = self.conv(x)
        return F.normalize(y) + self.conv(y)


def test_an_option_that_is_none_writes_over_nothing():
    x = torch.randn(1, 3, 4, 4)
    net = ready(Normalised(), x)
    assert net.plan.plans and torch.equal(net(x), net.layer_by_layer(x))


def test_values_of_other_sizes_are_joined_by_pytorch():
    x, style = torch.randn(2, 3, 7, 9), torch.randn(2, 3, 1, 9)
    net = ready(Styled(), x, style)
    assert len(net.plan.plans) == 1
    assert torch.equal(net(x, style), net.layer_by_layer(x, style))
    assert len(net.plan.plans) == 3


class Scaled(nn.Module):
    """Batch normalisation, and parameters that are one number for each channel."""

    def __init__(self):
        super().__init__()
        self.first, self.norm = nn.Conv2d(3, 20, 3, padding=1), nn.BatchNorm2d(20)
        self.last = nn.Conv2d(20, 3, 1)
        self.gain = nn.Parameter(torch.rand(1, 20, 1, 1))
        self.register_buffer("mean", torch.rand(3, 1, 1))
        with torch.no_grad():
            for value in (self.norm.weight, self.norm.bias, self.norm.running_var):
                value.uniform_(0.5, 2)
            self.norm.running_mean.normal_()

    def forward(self, x):
        y = torch.relu(self.norm(self.first(x)))
        return self.last(y * self.gain) + self.mean


def test_what_has_a_number_for_each_channel_is_in_the_finish_of_a_layer():
    original, x, y = Scaled(), torch.randn(2, 3, 9, 7), torch.randn(1, 20, 4, 5)
    net = ready(original, x)
    (plan,) = net.plan.plans
    assert [step.op for step in plan.steps] == ["float", "conv", "conv"]
    assert torch.equal(net(x), net.layer_by_layer(x))
    torch.testing.assert_close(net.norm(y), original.norm.eval()(y))


class Across(nn.Module):
    """A PReLU of rows has a slope for each of the second dimension, which is no channel of them."""

    def __init__(self, *shape):
        super().__init__()
        self.a, self.act, self.b = nn.Linear(3, 12), nn.PReLU(12), nn.Linear(12, 3)
        self.gain = nn.Parameter(torch.rand(shape))
        nn.init.uniform_(self.act.weight)

    def forward(self, x):
        return self.b(self.act(self.a(x)) * self.gain)


@pytest.mark.parametrize("shape", [(12,), (1, 1, 1, 1), (2, 1, 1), (1, 2, 1, 1)])
def test_a_parameter_means_the_dimension_that_pytorch_takes_it_for(shape):
    x = torch.randn(2, 12, 3)
    net = ready(Across(*shape), x)
    assert net.plan.plans and torch.equal(net(x), net.layer_by_layer(x))


class Cascade(nn.Module):
    """What two layers read, of which one comes after something that runs in PyTorch."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(32, 16, 1)
        self.last = nn.Conv2d(48, 3, 1)

    def forward(self, x):
        a = self.a(x)
        both = torch.cat([a, F.relu6(a)], 1)
        return self.last(torch.cat([both, F.hardswish(self.b(both))], 1))


def test_a_concatenation_that_another_region_reads_too_is_made_by_pytorch():
    x = torch.randn(1, 3, 9, 7)
    net = ready(Cascade(), x)
    assert len(net.plan.plans) == 3 and torch.equal(net(x), net.layer_by_layer(x))


class Centred(Options):
    """As SwinIR has its mean, which is no buffer and follows the picture to its type."""

    def __init__(self):
        super().__init__()
        self.mean = torch.tensor([0.4, 0.5, 0.6]).view(1, 3, 1, 1)

    def forward(self, x):
        self.mean = self.mean.type_as(x)
        return self.conv(x - self.mean) + self.mean


def test_a_forward_that_moves_a_constant_is_traced_and_the_constant_stays():
    x = torch.randn(2, 3, 6, 5)
    net = ready(Centred(), x)
    assert len(net.plan.plans) == 1 and isinstance(net.mean, torch.Tensor)
    assert torch.equal(net(x), net.layer_by_layer(x))


class Branch(Options):
    def forward(self, x):
        return self.conv(x) if x.shape[-1] > 8 else x


class Overwritten(Options):
    def forward(self, x):
        y = self.conv(x)
        torch.narrow(y, 1, 0, 2).mul_(2)
        return y


class Aliased(Options):
    def forward(self, x):
        y = self.conv(x)
        z = F.dropout(y, 0.5, self.training)
        z += 1
        return y


class Mixed(Options):
    def forward(self, x):
        with torch.autocast("cpu", torch.bfloat16):
            y = torch.matmul(x, x.transpose(2, 3))
        return self.conv(y.float())


class Remembering(Options):
    last = None

    def forward(self, x):
        self.last = self.conv(x) if self.last is None else self.conv(x) + self.last
        return self.last


class Collecting(Options):
    def __init__(self):
        super().__init__()
        self.seen = []

    def forward(self, x):
        self.seen.append(self.conv(x))
        return self.seen[-1] * len(self.seen)


class Counting(Options):
    def __init__(self):
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x):
        self.calls += 1
        return self.conv(x) * self.calls


class Random(Options):
    def forward(self, x):
        return self.conv(x) + torch.rand(())


@pytest.mark.parametrize(
    ("kind", "why"),
    [(Remembering, "'last'"), (Collecting, "a list"), (Counting, "a buffer"), (Random, "random")],
)
def test_a_forward_that_is_another_the_next_time_runs_layer_by_layer(kind, why):
    x = torch.randn(1, 3, 9, 9)
    low = qsr.quantize(kind(), 4)
    qsr.calibrate(low, x)
    with pytest.warns(UserWarning, match=f"runs layer by layer: its forward .*{why}"):
        net = qsr.pack(low)
    torch.manual_seed(0)
    expected = [low(x) for _ in range(3)]
    torch.manual_seed(0)
    for y in expected:
        torch.testing.assert_close(net(x), y)


@pytest.mark.parametrize(
    ("kind", "why"),
    [
        (Branch, "cannot be traced after 'gt'"),
        (Overwritten, "'mul_' works in place on 'narrow', which has views"),
        (Aliased, "'iadd' works in place on 'dropout', which has views"),
        (Mixed, "its forward switches autocast"),
    ],
)
def test_what_cannot_be_planned_says_so_in_one_line_and_runs(kind, why):
    x = torch.randn(1, 3, 9, 9)
    with pytest.warns(UserWarning, match=f"runs layer by layer: .*{why}"):
        net = ready(kind(), x)
    assert not net.plan.plans and why in str(net.plan)
    assert torch.equal(copy.deepcopy(net)(x), net.layer_by_layer(x))


def test_a_named_kernel_runs_layer_by_layer():
    low = qsr.quantize(DnCNN(), 4)
    x = torch.randn(1, 3, 6, 5)
    qsr.calibrate(low, x)
    assert torch.equal(qsr.pack(low, "reference")(x), qsr.pack(low)(x))


# What is shown ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("net", "skip"),
    [
        (peers.RLFN(48), ["conv_1", "upsampler", "*.esa.*"]),
        (UNet(features=32), ["a.0", "last"]),
    ],
)
def test_most_products_are_in_integer_regions(net, skip):
    x = torch.rand(1, 3, 24, 24)
    net = ready(net, x, skip=skip)
    assert 0.9 < net.plan.coverage < 1
    assert torch.equal(net(x), net.layer_by_layer(x))


def test_a_plan_can_be_read():
    shown = str(packed("u-net").plan).splitlines()
    assert shown[0].split() == ["step", "then", "shape", "bits", "kernel", "buffer", "MMAC", "KB"]
    (row,) = (line for line in shown if " up1.0 " in line)
    assert "32x32x128" in row and "4/4" in row and " 6.3 " in row
    assert "100.0% of the products" in shown[-1]


class InPlace(nn.Module):
    """As people save memory: what is overwritten was read before, or is read again."""

    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Conv2d(3, 20, 3, padding=1), nn.Conv2d(20, 3, 1)
        self.blocks = nn.ModuleList([nn.Conv2d(20, 20, 3, padding=1) for _ in range(2)])
        self.act = nn.ReLU(inplace=True)

    def forward(self, x):
        height = x.shape[2]
        height += 1
        y = self.first(x)
        for block in self.blocks:
            y += block(y)
        z = y + F.leaky_relu(y, 0.1, True)
        y = z + self.act(z) + F.hardswish(z).permute(0, 1, 3, 2).mul_(height).transpose(2, 3)
        return self.last(y).mul_(0.5).clamp_(0, 1)


def test_operations_in_place_are_planned_where_nothing_sees_their_memory_from_elsewhere():
    x = torch.randn(2, 3, 9, 7)
    net = ready(InPlace(), x)
    assert net.plan.plans and torch.equal(net(x), net.layer_by_layer(x))


class Planes(nn.Module):
    """A blur of each channel by itself, by a view that only planes have; slices of channels."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 20, 1), nn.Conv2d(12, 20, 1)
        self.last = nn.Conv2d(20, 3, 1)

    def forward(self, x):
        n, _, height, width = x.shape
        y = self.a(x)
        y = self.b(y[:, 4:16]) + self.b(y[:, -12:]) + self.b(y[:, :12, ...])
        blurred = F.max_pool2d(y.view(n * 20, 1, height, width), 3, 1, 1).view(y.shape)
        return self.last(blurred)


def test_a_view_that_the_network_has_by_planes_it_has_channels_last_too():
    x = torch.randn(3, 3, 8, 6)
    net = ready(Planes(), x)
    assert torch.equal(net(x), net.layer_by_layer(x))
    assert len([step for plan in net.plan.plans for step in plan.steps if step.op == "conv"]) == 5


class Viewed(Options):
    def forward(self, x):
        return self.conv(self.conv.bias.view(1, 3, 1, 1) * x)


def test_a_plan_is_shown_as_it_will_run_before_it_ran():
    x = torch.randn(1, 3, 9, 9)
    net = ready(Viewed(), x)
    before = str(net.plan)
    net(x)
    assert str(net.plan) == before and " 126x126x3 " in before


def test_a_transposed_convolution_multiplies_each_pixel_that_it_reads_once():
    net = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), nn.ConvTranspose2d(16, 3, 4, 2, 1))
    net = ready(net, torch.randn(1, 3, 9, 9))
    (row,) = (line.split() for line in str(net.plan).splitlines() if line.startswith("layer"))
    assert row[1:4] == ["1", "256x256", "4/4"] and row[-1] == f"{16 * 3 * 4**2 * 128**2 / 1e6:.1f}"
    assert net.plan.coverage == 9 / (9 + 16)


class Mapped(Options):
    def forward(self, x, noise):
        return self.conv(torch.cat([x[:, :2], noise.view(-1, 1, 1, 1).expand_as(x[:, :1])], 1))


def test_of_inputs_whose_sizes_cannot_be_guessed_one_line_says_so():
    inputs = torch.randn(2, 3, 9, 9), torch.randn(2, 1)
    net = ready(Mapped(), *inputs)
    assert torch.equal(net(*inputs), net.layer_by_layer(*inputs))
    with pytest.raises(ValueError, match="does not take inputs of [^\n]*$"):
        _ = net.plan.coverage


# Tables that nobody should trust ------------------------------------------------------------------


PACKED = functools.cache(packed)


@pytest.mark.parametrize("name", ["u-net", "resized", "parts", "enlarged"])
@settings(deadline=None, max_examples=150)
@given(data=st.data())
def test_changed_tables_are_refused_or_run_and_never_read_outside(name, data):
    (plan,) = PACKED(name).plan.plans
    run = Executor(plan, PACKED(name))
    inputs, steps = [torch.zeros(8, 8, 3)], len(plan.steps)
    numbers, workspace, outputs = run.prepare(inputs)
    numbers = numbers.clone()
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(numbers) - 1))
        numbers[at] = data.draw(
            st.sampled_from([-1, 0, 1, 2, 16, 63, 64, 1 << 20, 1 << 40, 1 << 62])
            | st.integers(-3, 100)
        )
    with contextlib.suppress(ValueError, RuntimeError):
        run.run(inputs, numbers, workspace, outputs, 0, steps)
