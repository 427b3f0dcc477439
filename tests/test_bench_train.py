"""`qsr bench train`: what it compares, never how long it took."""

import collections
import json

import pytest
import torch

import qsr
from qsr import cli
from qsr.bench import training
from qsr.system import native


def test_peak_memory_counts_what_is_alive_at_one_time():
    def step():
        a = torch.empty(1000)
        b = torch.empty(2000)
        del a
        return torch.empty(500), b

    assert training.peak_memory(step) == 4 * 3000


def kept_for_backward(config, once) -> int:
    """The most bytes that autograd keeps at one moment of a step, each storage once."""
    torch.manual_seed(0)
    net, lr, hr = qsr.QuantSR(config), torch.rand(2, 3, 12, 12), torch.rand(2, 3, 24, 24)
    qsr.calibrate(net, lr)
    alive, most = collections.Counter(), 0

    class Kept:
        def __init__(self, tensor):
            nonlocal most
            storage = tensor.untyped_storage()
            self.tensor, self.key = tensor, (storage.data_ptr(), storage.nbytes())
            alive[self.key] += 1
            most = max(most, sum(size for _, size in +alive))

        def __del__(self):
            alive[self.key] -= 1

    options = qsr.TrainConfig(joint=not once)
    optimizer = training.make_optimizer(net, options)
    with torch.autograd.graph.saved_tensors_hooks(Kept, lambda kept: kept.tensor):
        qsr.train_step(net, optimizer, lr, hr, options)
    return most


def test_a_joint_step_keeps_what_its_deepest_depth_keeps_and_fused_layers_less(monkeypatch):
    config = qsr.quantsr_c(2, 4, blocks=4, features=16)
    one = kept_for_backward(config, once=True)
    assert kept_for_backward(config, once=False) == one
    monkeypatch.setattr(native, "load", lambda: native.Status("reference"))
    assert 0 < one < kept_for_backward(config, once=True)


def test_a_swin_network_keeps_less_where_attention_is_fused(monkeypatch):
    config = qsr.swinir_s(2, blocks=1)
    fused = kept_for_backward(config, once=True)
    monkeypatch.setattr(native, "load", lambda: native.Status("reference"))
    assert fused < 0.8 * kept_for_backward(config, once=True)


def test_another_quantizer_is_refused():
    with pytest.raises(ValueError, match="`quantizer` is 'lsq'"):
        training.bench_train(qsr.quantsr_c(2, quantizer="lsq"))


def test_gradients_that_are_too_far_off_are_not_timed():
    g = torch.arange(1.0, 100.0)
    firsts = {"float32, plain PyTorch": g, "float32": g, "bfloat16, plain PyTorch": 1.01 * g}
    apart = training._agreement({n: (1.0, x) for n, x in {**firsts, "bfloat16": 1.01 * g}.items()})
    assert apart["float32"] == 0 and apart["bfloat16"] == pytest.approx(0.01, rel=1e-3)
    for worse in ({"bfloat16": 1.02 * g}, {"bfloat16": torch.nan * g}, {"float32": 1.001 * g}):
        answers = {**firsts, "bfloat16": 1.01 * g, **worse}
        with pytest.raises(RuntimeError, match=f"the gradient in {next(iter(worse))} is"):
            training._agreement({n: (1.0, x) for n, x in answers.items()})


def test_of_a_network_in_full_precision_the_command_times_both_precisions(capsys):
    options = ["--preset", "swinir-s-x2", "--size", "8", "--batch", "1", "--blocks", "1"]
    assert cli.main(["bench", "train", *options, "--rounds", "1"]) == 0
    out = capsys.readouterr().out
    assert "| bfloat16, plain PyTorch |" in out and "| bfloat16 " in out and "| float32 " in out


def test_the_command_prints_a_table_and_writes_json(capsys, tmp_path):
    path = tmp_path / "t.json"
    options = ["--size", "8", "--batch", "1", "--blocks", "2", "--rounds", "1"]
    assert cli.main(["bench", "train", *options, "--json", str(path)]) == 0
    out = capsys.readouterr().out
    assert "over full precision" in out and "| joint, 2/1 |" in out
    (report,) = json.loads(path.read_text())
    assert all(row["best_ms"] > 0 and row["memory"] > 0 for row in report["rows"])
    assert [row["name"] for row in report["rows"]][-2:] == ["joint, 2/1", "joint, collapsed tail"]
    assert cli.main(["bench", "train", "--batch", "0"]) == 2
    assert "`--batch` is 0" in capsys.readouterr().err
