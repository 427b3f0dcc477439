"""The benchmark of GPUs, rehearsed on the CPU: who takes part, what must agree, what it prints."""

import json

import pytest
import torch

import qsr
from qsr import cli
from qsr.bench import cuda, engine
from qsr.integer import kernels

SMALL = {"blocks": 2, "depths": (2, 1), "features": 8}


@pytest.fixture(scope="module")
def rows():
    net = engine.random_network(qsr.quantsr_c(2, 4, **SMALL), 16)
    return cuda.bench_network(net, 16, rounds=1, device="cpu", compiled=False)


def test_a_packed_network_meets_half_precision_with_either_tail(rows):
    assert [(row.name, row.tail) for row in rows[1:]] == [
        ("cudnn-fp16", "ordinary"),
        ("cudnn-fp16", "collapsed"),
    ]
    assert all(row.best_ms > 0 and row.agrees.endswith(" dB") for row in rows)


def test_every_convolution_is_compared_and_timed():
    found = cuda.bench_kernel(9, rounds=1, device="cpu")
    *ours, half = found
    assert {row.name.split()[0] for row in ours} == set(kernels.native_rows("conv2d"))
    assert all(row.agrees == "exact" or "does not run" in row.note for row in ours)
    assert half.name == "cudnn-fp16" and half.best_ms > 0


def test_a_contender_that_disagrees_or_fails_has_no_time_and_a_reason():
    right, wrong = torch.zeros(2), torch.full((2,), 2.0)

    def broken():
        raise RuntimeError("no such engine")

    def agrees(out):
        return cuda._agrees(out, right, 35.0)

    contenders = [
        (cuda.Row("a"), lambda: right, agrees),
        (cuda.Row("b"), lambda: wrong, agrees),
        (cuda.Row("c"), lambda: wrong * torch.nan, agrees),
        (cuda.Row("d"), broken, agrees),
    ]
    found = cuda.time_all(iter(contenders), torch.device("cpu"), rounds=1)
    assert [row.best_ms is not None for row in found] == [True, False, False, False]
    assert [row.note for row in found][1:] == [
        "-6.0 dB, less than 35: not timed",
        "nan dB, less than 35: not timed",
        "no such engine",
    ]


def test_the_table_and_the_file_hold_all_rows(rows, tmp_path):
    table = cuda.markdown("a title", [*rows, cuda.Row("x", note="broken")], "cpu")
    assert "a rehearsal on the CPU" in table and "- x: broken" in table
    assert all(f"{row.best_ms:.3f}" in table for row in rows)
    cuda.write_json({"a title": rows}, tmp_path / "x.json", "cpu")
    kept = json.loads((tmp_path / "x.json").read_text())["tables"]["a title"]
    assert [row["best_ms"] for row in kept] == [row.best_ms for row in rows]


@pytest.mark.parametrize(
    "more", [["layer"], ["train"], ["--peers", "none"], ["--threads", "2"], ["--plot", "x.png"]]
)
def test_what_is_not_timed_on_a_gpu_is_refused_by_name(more, monkeypatch, capsys):
    monkeypatch.setattr("qsr.cli.bench.check_device", lambda name: None)
    assert cli.main(["bench", *more, "--device", "cuda"]) == 2
    captured = capsys.readouterr()
    assert captured.err.count("\n") == 1 and f"no {more[0]}." in captured.err


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_the_command_says_so_in_one_line(capsys):
    assert cli.main(["bench", "--device", "cuda"]) == 2
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err.count("\n") == 1 and "`--device`" in captured.err
