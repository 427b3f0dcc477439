"""Training: what one step does, and runs that stop, break and go on."""

import dataclasses
import json
import signal

import pytest
import torch
from torch.nn import functional as F

import qsr
from qsr import train
from qsr.quantizer import Quantizer
from qsr.runs import checkpoints
from qsr.runs.checkpoints import list_checkpoints, load_checkpoint
from qsr.runs.fit import Run
from qsr.runs.log import read_log

CONV = qsr.quantsr_c(2, 4, blocks=4, features=8)
SWIN = qsr.quantsr_t(2, 4, blocks=2, features=4, layers=2, heads=2, window=4)
CONFIG = qsr.TrainConfig(
    steps=7, learning_rate=1e-3, checkpoint_every=3, clip_gradient=0.1, joint_from=0.3
)


class Noise:
    """Stands in for Patches: other random pictures at each step, the same at the same step.

    A test can hang something on a step: `events` maps a step to a function called before it.
    """

    identity = {}

    def __init__(self, scale=2, events=None):
        self.scale, self.events, self.batch_size = scale, events or {}, 2

    def draw(self, step, part=0, parts=1):
        self.events.pop(step, lambda: None)()
        return torch.tensor([step, part, parts])

    def cut(self, drawn):
        step, part, parts = drawn.tolist()
        generator = torch.Generator().manual_seed(step)
        hr = torch.rand(2, 3, 8 * self.scale, 8 * self.scale, generator=generator)
        hr = hr.chunk(parts)[part]
        return F.avg_pool2d(hr, self.scale), hr

    def batch(self, step):
        return self.cut(self.draw(step))


def network(config=CONV):
    torch.manual_seed(3)
    return qsr.QuantSR(config)


def calibrated(config=CONV):
    net = network(config)
    qsr.calibrate(net, Noise().batch(0)[0])
    return net


def same_weights(a, b):
    a, b = a.state_dict(), b.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    """{configuration: network after all steps of CONFIG in one go}."""
    nets = {}
    for config in (CONV, SWIN):
        nets[config] = network(config)
        qsr.fit(nets[config], Noise(), CONFIG, tmp_path_factory.mktemp("run"))
    return nets


# One step -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("config", [CONV, SWIN])
def test_the_gradients_of_a_joint_step_are_those_of_the_summed_loss(config):
    net = calibrated(config).double()
    lr, hr = (x.double() for x in Noise().batch(1))
    weights = (0.5, 0.3, 0.2)[: len(config.depths)]
    frozen = torch.optim.SGD(net.parameters(), lr=0.0)
    settings = qsr.TrainConfig(depth_weights=weights)
    losses = qsr.train_step(net, frozen, lr, hr, settings)
    stepwise = [p.grad.clone() for p in net.parameters()]

    each = [F.l1_loss(net(lr, net.plan(d)).float(), hr) for d in config.depths]
    total = sum(w * loss for w, loss in zip(weights, each, strict=True))
    summed = torch.autograd.grad(total, list(net.parameters()))
    for a, b in zip(stepwise, summed, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-12)
    assert losses["loss"] == pytest.approx(total.item())
    for depth, loss in zip(config.depths, each, strict=True):
        assert losses[f"loss_{depth}"] == pytest.approx(loss.item())


def test_one_step_is_one_step_of_adam_on_all_depths_with_equal_weights():
    net, twin = calibrated(), calibrated()
    lr, hr = Noise().batch(1)
    config = qsr.TrainConfig(learning_rate=1e-3)
    qsr.train_step(net, train.make_optimizer(net, config), lr, hr, config)
    optimizer = torch.optim.Adam(twin.parameters(), lr=1e-3, betas=(0.9, 0.99))
    (sum(F.l1_loss(twin(lr, twin.plan(d)), hr) for d in (4, 2, 1)) / 3).backward()
    optimizer.step()
    for a, b in zip(net.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=2e-5)


def test_relative_steps_are_adam_on_the_logarithm_of_a_step_and_on_tau_in_steps():
    config = qsr.TrainConfig(learning_rate=1e-3, quantizer_rate=30.0, relative_steps=True)
    net, twin = calibrated(), calibrated()
    qsr.train_step(net, train.make_optimizer(net, config), *Noise().batch(1), config)
    frozen = torch.optim.SGD(twin.parameters(), 0.0)
    qsr.train_step(twin, frozen, *Noise().batch(1), qsr.TrainConfig())
    values = dict(twin.named_parameters())
    for name, value in values.items():
        if not name.endswith(("step_size", "tau")):
            continue
        step = values[name.replace("tau", "step_size")].detach()
        change = torch.zeros_like(value, requires_grad=True)
        change.grad = step * value.grad
        torch.optim.Adam([change], lr=0.03, betas=config.betas).step()
        expected = step * change.exp() if name.endswith("size") else value + step * change
        torch.testing.assert_close(net.get_parameter(name), expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("quantizer", [None, "lsq", "pams", "dorefa", "cadyq"])
def test_relative_steps_train_networks_without_tau_or_without_quantizers(quantizer):
    small = {"blocks": 1, "depths": (1,), "features": 4}
    config = qsr.srresnet(2, blocks=1, features=4)
    if quantizer is not None:
        config = qsr.quantsr_c(2, 8, quantizer=quantizer, **small)
    net = calibrated(config)
    before = {name: value.detach().clone() for name, value in net.named_parameters()}
    options = qsr.TrainConfig(relative_steps=True)
    qsr.train_step(net, train.make_optimizer(net, options), *Noise().batch(1), options)
    for name, value in net.named_parameters():
        assert not torch.equal(value, before[name]) or value.grad is None or not value.grad.any()
        assert value.isfinite().all()


def test_relative_steps_keep_step_sizes_above_zero_where_a_large_rate_takes_them_below():
    for relative in (False, True):
        net = calibrated()
        config = qsr.TrainConfig(learning_rate=0.1, relative_steps=relative)
        optimizer = train.make_optimizer(net, config)
        for step in range(3):
            qsr.train_step(net, optimizer, *Noise().batch(step), config)
        sizes = [m.step_size.min() for m in net.modules() if isinstance(m, qsr.Quantizer)]
        assert (min(sizes) > 0) == relative


def test_without_joint_training_only_the_deepest_network_learns():
    net = calibrated()
    losses = qsr.train_step(
        net, torch.optim.SGD(net.parameters(), 0.0), *Noise().batch(1), qsr.TrainConfig(joint=False)
    )
    assert losses.keys() == {"loss_4", "loss", "psnr", "gradient"}


def test_the_gradient_is_clipped_to_its_norm():
    net = calibrated()
    config = qsr.TrainConfig(clip_gradient=1e-3)
    qsr.train_step(net, torch.optim.SGD(net.parameters(), 0.0), *Noise().batch(1), config)
    norm = torch.stack([p.grad.norm() for p in net.parameters()]).norm()
    assert norm.item() == pytest.approx(1e-3, rel=1e-2)


def test_a_loss_that_is_not_finite_is_refused_and_touches_no_weight():
    net = calibrated()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    optimizer = torch.optim.Adam(net.parameters())
    lr, hr = Noise().batch(1)
    hr[0, 0, 0, 0] = float("nan")
    with pytest.raises(ValueError, match="the loss is nan; training diverged"):
        qsr.train_step(net, optimizer, lr, hr, qsr.TrainConfig())
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert not optimizer.state


@pytest.mark.parametrize("relative", [False, True])
def test_a_stage_takes_no_step_from_the_first_gradient_on_that_is_not_finite(relative):
    config = qsr.TrainConfig(relative_steps=relative, clip_gradient=0.1)
    net = calibrated()
    optimizer = train.make_optimizer(net, config)
    stage = train.Stage(net, optimizer, config)
    good, (lr, hr) = Noise().batch(1), Noise().batch(2)
    assert not stage.broke(stage(*good).tolist())
    memory = [value.clone() for state in optimizer.state.values() for value in state.values()]
    before = {name: value.clone() for name, value in net.state_dict().items()}
    rows = [stage(lr, hr * float("nan")).tolist(), stage(*good).tolist()]
    assert [row[-1] for row in rows] == [1, 2] and all(stage.broke(row) for row in rows)
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    after = [value for state in optimizer.state.values() for value in state.values()]
    assert all(torch.equal(a, b) for a, b in zip(memory, after, strict=True))


@pytest.mark.parametrize("per_channel", [False, True])
def test_in_16_bits_layers_multiply_codes_and_only_their_sums_are_rounded(per_channel):
    conv = qsr.QConv2d(8, 6, 3, padding=1, bits=4, per_channel=per_channel)
    linear = qsr.QLinear(8, 6, bits=(2, 8), per_channel=per_channel)
    product = qsr.QMatmul(bits=4)
    x, rows = 5 * torch.randn(2, 8, 7, 7), torch.randn(3, 5, 8)
    qsr.calibrate(conv, x), qsr.calibrate(linear, rows)
    product.left_quantizer.calibrate(rows), product.right_quantizer.calibrate(rows)
    for layer, inputs, (a, b), sums in (
        (conv, (x,), (conv.input_quantizer, conv.weight_quantizer), _conv_sums),
        (linear, (rows,), (linear.input_quantizer, linear.weight_quantizer), _linear_sums),
        (product, (rows, rows.mT), (product.left_quantizer, product.right_quantizer), _products),
    ):
        with torch.autocast("cpu", torch.bfloat16):
            y = layer(*inputs)
        right = inputs[1] if layer is product else layer.weight
        exact = sums(a.codes(inputs[0]).double(), b.codes(right).double())
        scale = a.step(inputs[0]) * b.step(right)
        if per_channel and layer is not product:
            scale = scale.view(-1, 1, 1) if layer is conv else scale.view(-1)
        bias = 0 if layer is product else layer.bias
        bias = bias.view(-1, 1, 1) if layer is conv else bias
        assert y.dtype == torch.float32
        torch.testing.assert_close(y, exact.bfloat16().float() * scale + bias)


def _conv_sums(x, weight):
    return F.conv2d(x, weight, padding=1)


def _linear_sums(x, weight):
    return F.linear(x, weight)


def _products(a, b):
    return a @ b


def test_a_step_in_16_bits_has_nearly_the_gradient_of_one_in_32():
    grads = []
    for precision in ("float32", "bfloat16"):
        net = calibrated()
        config = qsr.TrainConfig(precision=precision)
        qsr.train_step(net, torch.optim.SGD(net.parameters(), 0.0), *Noise().batch(1), config)
        grads.append(torch.cat([p.grad.flatten() for p in net.parameters()]))
    assert F.cosine_similarity(*grads, dim=0) > 0.995


def test_depth_weights_must_match_the_depths():
    net = calibrated()
    optimizer = torch.optim.SGD(net.parameters(), 0.0)
    with pytest.raises(ValueError, match=r"\(4, 2, 1\), one weight each"):
        qsr.train_step(net, optimizer, *Noise().batch(1), qsr.TrainConfig(depth_weights=(1,)))


# Schedules and configuration ----------------------------------------------------------------------


def test_the_cosine_schedule_falls_from_the_learning_rate_to_nearly_zero():
    config = qsr.TrainConfig(steps=100, learning_rate=2.0, schedule="cosine")
    rates = [config.learning_rate_at(step) for step in range(100)]
    assert rates[0] == 2.0
    assert rates[50] == pytest.approx(1.0)
    assert rates[25] == pytest.approx(1 + 2**-0.5)
    assert 0 < rates[99] < 1e-3
    assert rates == sorted(rates, reverse=True)


def test_the_halving_schedule_is_that_of_the_paper():
    config = qsr.TrainConfig()
    assert config.learning_rate_at(249_999) == 2e-4
    assert config.learning_rate_at(250_000) == 1e-4
    twice = qsr.TrainConfig(steps=8, learning_rate=1.0, halve_at=(0.5, 0.75))
    assert [twice.learning_rate_at(step) for step in (3, 4, 5, 6, 7)] == [1, 0.5, 0.5, 0.25, 0.25]


def test_warmup_rises_to_the_learning_rate_and_never_starts_at_zero():
    config = qsr.TrainConfig(steps=100, learning_rate=1.0, warmup=4)
    assert [config.learning_rate_at(step) for step in range(5)] == [0.25, 0.5, 0.75, 1, 1]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("steps", 0),
        ("learning_rate", 0.0),
        ("learning_rate", float("nan")),
        ("schedule", "linear"),
        ("precision", "float16"),
        ("checkpoint_every", 0),
        ("keep", 0),
        ("warmup", -1),
        ("clip_gradient", 0.0),
    ],
)
def test_configurations_that_make_no_run_are_refused(field, value):
    with pytest.raises(ValueError, match=f"`{field}` is"):
        qsr.TrainConfig(**{field: value})


# Whole runs ---------------------------------------------------------------------------------------


def test_the_loss_falls_on_the_embedded_pictures(tmp_path):
    data = qsr.Patches(scale=2, patch=12, batch=4)
    net = network()
    config = qsr.TrainConfig(
        steps=30, learning_rate=2e-3, log_every=10, joint_from=0, rank_by="given"
    )
    qsr.fit(net, data, config, tmp_path)
    log = read_log(tmp_path)
    assert [line["step"] for line in log] == [10, 20, 30]
    for name in ("loss", "loss_4", "loss_2", "loss_1"):
        assert log[-1][name] < log[0][name]
    lr, hr = data.batch(1000)
    untrained = network()
    qsr.calibrate(untrained, lr)
    with torch.no_grad():
        assert F.l1_loss(net(lr), hr) < 0.8 * F.l1_loss(untrained(lr), hr)


def test_an_uncalibrated_network_is_calibrated_on_the_first_batch(tmp_path):
    net = network()
    qsr.fit(net, Noise(), qsr.TrainConfig(steps=1, learning_rate=1e-12), tmp_path)
    expected = calibrated()
    for a, b in zip(net.parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-6)
    assert all(m.calibrated for m in net.modules() if isinstance(m, Quantizer))


@pytest.mark.parametrize("config", [CONV, SWIN])
def test_a_run_stopped_by_its_time_goes_on_bit_for_bit(tmp_path, uninterrupted, config):
    for done in range(1, 8):  # max_seconds=0: every call does one step and leaves a checkpoint
        net = network(config)
        path = qsr.fit(net, Noise(), CONFIG, tmp_path, max_seconds=0)
        assert path.name == f"step-{done:08d}"
    assert same_weights(net, uninterrupted[config])
    assert same_weights(load_checkpoint(path)[0], uninterrupted[config])


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_lets_the_step_and_a_checkpoint_finish_before_it_takes_effect(
    tmp_path, uninterrupted, number
):
    class Arrived(Exception):
        pass

    def arrive(number, frame):
        raise Arrived

    before = signal.signal(number, arrive)  # SIGTERM's own effect would end the tests too
    try:
        data = Noise(events={4: lambda: signal.raise_signal(number)})
        with pytest.raises(Arrived):
            qsr.fit(network(), data, CONFIG, tmp_path)
        assert signal.getsignal(number) is arrive
    finally:
        signal.signal(number, before)
    assert list_checkpoints(tmp_path)[-1].name == "step-00000005"
    net = network()
    qsr.fit(net, Noise(), CONFIG, tmp_path)
    assert same_weights(net, uninterrupted[CONV])


def test_a_second_ctrl_c_ends_the_run_at_once(tmp_path):
    def twice():
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)

    # A shell starts what runs in the background with Ctrl-C ignored.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            qsr.fit(network(), Noise(events={4: twice}), CONFIG, tmp_path)
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, before)
    assert [p.name for p in list_checkpoints(tmp_path)] == ["step-00000003"]


class Killed(BaseException):
    """A process that is killed runs nothing more; neither does this one."""


def kill():
    raise Killed


@pytest.mark.parametrize("step", [0, 2, 3, 5])
def test_a_run_killed_between_checkpoints_repeats_its_last_steps(tmp_path, uninterrupted, step):
    with pytest.raises(Killed):
        qsr.fit(network(), Noise(events={step: kill}), CONFIG, tmp_path)
    assert len(list_checkpoints(tmp_path)) == step // 3
    net = network()
    qsr.fit(net, Noise(), CONFIG, tmp_path)
    assert same_weights(net, uninterrupted[CONV])


def test_a_run_killed_while_it_writes_a_checkpoint_goes_on_from_the_one_before(
    tmp_path, uninterrupted, monkeypatch
):
    save_file = checkpoints.save_file

    def killed_at_step_6(tensors, path):
        if path.name == "exp_avg.safetensors" and list_checkpoints(tmp_path):
            path.write_bytes(b"half")
            raise Killed
        save_file(tensors, path)

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(checkpoints, "save_file", killed_at_step_6)
        qsr.fit(network(), Noise(), CONFIG, tmp_path)
    assert [p.name for p in list_checkpoints(tmp_path)] == ["step-00000003"]
    net = network()
    qsr.fit(net, Noise(), CONFIG, tmp_path)
    assert same_weights(net, uninterrupted[CONV])


def test_a_finished_run_is_left_as_it_is(tmp_path):
    config = qsr.TrainConfig(steps=2, checkpoint_every=1, keep=1)
    first = qsr.fit(network(), Noise(), config, tmp_path)
    net = network()
    assert qsr.fit(net, Noise(), config, tmp_path) == first
    assert list_checkpoints(tmp_path) == [first]
    assert same_weights(net, load_checkpoint(first)[0])


class Broken(Noise):
    """The pictures of step 4 are not finite."""

    def cut(self, drawn):
        lr, hr = super().cut(drawn)
        return lr, hr * (float("inf") if drawn[0] == 4 else 1)


DIVERGED = "step 5: .* diverged: the pictures .* The last checkpoint is kept"


def test_a_run_that_diverges_keeps_its_last_checkpoint(tmp_path):
    with pytest.raises(ValueError, match=DIVERGED):
        qsr.fit(network(), Broken(), CONFIG, tmp_path)
    net, state = load_checkpoint(list_checkpoints(tmp_path)[-1])
    assert state["step"] == 3
    assert all(p.isfinite().all() for p in net.parameters())


def test_a_run_that_looks_seldom_stops_late_at_the_weights_before_it_diverged(tmp_path):
    config = dataclasses.replace(CONFIG, checkpoint_every=100, joint_from=0, rank_by="given")
    early, late = (Run(network(), Broken(), config, tmp_path / name) for name in ("a", "b"))
    late.looks_every = 6  # as on a GPU
    for run, steps in ((early, 5), (late, 6)):
        for _ in range(steps - 1):
            run.step()
            run.write()
        run.step()
        with pytest.raises(ValueError, match=DIVERGED):
            run.write()
        run.close()
    assert same_weights(early.net, late.net)
    assert not list_checkpoints(tmp_path / "b")


@pytest.mark.parametrize(
    ("net", "data", "config", "words"),
    [
        (CONV, Noise(), qsr.TrainConfig(steps=8, learning_rate=1e-3), "`steps` is 7, not 8"),
        (CONV, Noise(), qsr.TrainConfig(steps=7), "`learning_rate` is 0.001, not 0.0002"),
        (SWIN, Noise(), CONFIG, "another network"),
        (CONV, Noise(scale=4), CONFIG, "scale 4"),
    ],
)
def test_a_folder_of_another_run_is_refused(tmp_path, net, data, config, words):
    path = qsr.fit(network(), Noise(), CONFIG, tmp_path, max_seconds=0)
    with pytest.raises(ValueError) as raised:
        qsr.fit(network(net), data, config, tmp_path)
    assert words in str(raised.value) and "\n" not in str(raised.value)
    assert list_checkpoints(tmp_path) == [path]


@pytest.mark.parametrize("training", [None, {"steps": 7, "dropout": 0.1}, {"steps": 0}])
def test_a_checkpoint_of_another_version_is_refused_in_one_line(tmp_path, training):
    path = qsr.fit(network(), Noise(), CONFIG, tmp_path, max_seconds=0)
    state = json.loads((path / "state.json").read_text())
    state["training"] = training
    (path / "state.json").write_text(json.dumps(state))
    with pytest.raises(ValueError) as raised:
        qsr.fit(network(), Noise(), CONFIG, tmp_path)
    assert "\n" not in str(raised.value)
