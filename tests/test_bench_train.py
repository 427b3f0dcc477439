"""`qsr bench train`: what it compares, never how long it took."""

import json

import pytest
import torch

import qsr
from qsr import cli
from qsr.bench import training


def test_peak_memory_counts_what_is_alive_at_one_time():
    def step():
        a = torch.empty(1000)
        b = torch.empty(2000)
        del a
        return torch.empty(500), b

    assert training.peak_memory(step) == 4 * 3000


def test_the_joint_step_needs_the_memory_of_its_deepest_depth_and_fused_layers_less(tmp_path):
    config = qsr.quantsr_c(2, 4, blocks=4, features=16)
    # Large enough for activations to outweigh the gradients of the depths before the deepest.
    report = training.bench_train(config, patch=24, batch=4, rounds=1)
    rows = {row["name"]: row for row in report["rows"]}
    one, plain, joint = (
        rows[name]["memory"] for name in ("quantised", "quantised, plain PyTorch", "joint, 4/2/1")
    )
    assert one <= joint <= 1.1 * one
    assert one < 0.9 * plain
    assert all(row["best_ms"] > 0 for row in rows.values())
    assert "| joint, 4/2/1 |" in training.table(report)


def test_a_network_in_full_precision_is_refused():
    with pytest.raises(ValueError, match="`bits` is None"):
        training.bench_train(qsr.srresnet(2))


def test_the_command_prints_a_table_and_writes_json(capsys, tmp_path):
    path = tmp_path / "t.json"
    options = ["--size", "8", "--batch", "1", "--blocks", "2", "--rounds", "1"]
    assert cli.main(["bench", "train", *options, "--json", str(path)]) == 0
    assert "over full precision" in capsys.readouterr().out
    (report,) = json.loads(path.read_text())
    assert [row["name"] for row in report["rows"]][-1] == "joint, 2/1"
    assert cli.main(["bench", "train", "--batch", "0"]) == 2
    assert "`--batch` is 0" in capsys.readouterr().err
