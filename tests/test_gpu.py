"""The stages of `make gpu`, as far as they can run without a GPU."""

import json

import qsr
from qsr.bench.gpu import main

TRAIN = ["--", "--preset", "quantsr-c-x2-w4a4", "--network-blocks", "2", "--depths", "2", "1"]
TRAIN += ["--features", "8", "--patch", "8", "--batch", "2", "--threads", "1"]


def test_a_stage_that_fails_does_not_keep_the_others_and_the_weights_come_out(tmp_path):
    # No tests are called so: pytest ends with an error, training goes on.
    arguments = [
        str(tmp_path),
        "--run",
        str(tmp_path / "run"),
        "--seconds",
        "2",
        "--device",
        "cpu",
        "--tests",
        "none.py",
    ]
    assert main([*arguments, *TRAIN]) == 1
    lines = [json.loads(line) for line in (tmp_path / "gpu.jsonl").read_text().splitlines()]
    assert [line["stage"] for line in lines] == ["build", "tests", "train", "weights"]
    assert [line["code"] == 0 for line in lines] == [True, False, True, True]
    assert qsr.load(tmp_path / "trained.qsr").config.features == 8
