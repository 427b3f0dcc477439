"""`make gpu`, as far as it can run without a GPU: all of it, on the CPU, with tiny networks."""

import json
import os
import sys
import time

import pytest
import torch
from test_runs import same, state
from test_train import Noise

import qsr
from qsr.bench import gpu
from qsr.bench.gpu_stages import NET, STAGES, WAYS

CONFIG = qsr.TrainConfig(steps=6, learning_rate=1e-3, checkpoint_every=100)


def lines(out):
    return [json.loads(line) for line in (out / "gpu.jsonl").read_text().splitlines()]


def test_a_rehearsal_goes_through_every_stage_and_brings_trained_networks_home(tmp_path):
    assert gpu.main([str(tmp_path), "--rehearse"]) == 0
    found = lines(tmp_path)
    codes = {line["stage"]: line["code"] for line in found if "seconds" in line}
    assert codes == dict.fromkeys([*STAGES, "train tiny-c", "train tiny-srresnet"], 0)
    checks = {line["check"]: line for line in found if "check" in line}
    assert checks.keys() == {"fused values", "fused codes", "conv2d", "linear", "attention"}
    assert all(line["agrees"] for line in checks.values())
    steps = [line for line in found if line.get("net") == NET]
    assert [line["way"] for line in steps] == list(WAYS)
    assert all(line["ms"] > 0 and line["agrees"] for line in steps)
    assert [line["steps"] for line in found if line["stage"].startswith("home")] == [6, 4]
    assert qsr.load(tmp_path / "tiny-c.qsr").config.features == 8
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(files) <= gpu.FILES and all(path.parent == tmp_path for path in files)


def test_what_fails_or_hangs_is_a_line_and_no_end(tmp_path):
    began = time.monotonic()
    child = "import subprocess, sys; subprocess.run([sys.executable, '-c', 'while True: pass'])"
    assert not gpu.run_stage(tmp_path, "hangs", [sys.executable, "-c", child], 2.0)
    assert not gpu.run_stage(tmp_path, "fails", [sys.executable, "-c", "print(7); 1 / 0"], 60.0)
    assert not gpu.run_stage(tmp_path, "missing", [str(tmp_path / "none")], 60.0)
    assert gpu.run_stage(tmp_path, "works", [sys.executable, "-c", "print(8)"], 60.0)
    hangs, fails, missing, works = lines(tmp_path)
    assert hangs["code"] == "stopped at its limit" and time.monotonic() - began < 60
    assert fails["code"] == 1 and "7\n" in fails["tail"] and "ZeroDivisionError" in fails["tail"]
    assert "No such file" in missing["code"] and works["code"] == 0 and "tail" not in works


@pytest.mark.parametrize("part", [1000, 10**9])
def test_a_run_that_was_brought_home_goes_on_elsewhere_bit_for_bit(tmp_path, monkeypatch, part):
    monkeypatch.setattr(gpu, "PART", part)

    def network():
        torch.manual_seed(3)
        return qsr.QuantSR(qsr.quantsr_c(2, 4, blocks=2, depths=(2, 1), features=4))

    whole, here, there, out = (tmp_path / name for name in ("whole", "here", "there", "out"))
    out.mkdir()
    net = network()
    qsr.fit(net, Noise(), CONFIG, whole)
    for _ in range(2):
        qsr.fit(network(), Noise(), CONFIG, here, max_seconds=0)
    assert gpu.bring_home(out, "row", here)
    assert all(path.stat().st_size <= part for path in out.glob("row.tar.*"))
    gpu.unpack_run(out, "row", there)
    assert sorted(os.listdir(there)) == ["log.jsonl", "step-00000002"]
    other = network()
    qsr.fit(other, Noise(), CONFIG, there)
    assert same(state(net), state(other))


def test_a_run_without_a_checkpoint_is_a_line(tmp_path):
    assert not gpu.bring_home(tmp_path, "row", tmp_path / "none")
    assert "has no checkpoint" in lines(tmp_path)[0]["error"]


def test_the_fastest_way_on_quantised_networks_is_chosen():
    line = {"net": NET, "agrees": True}
    times = [{**line, "way": w, "ms": ms} for w, ms in zip(WAYS, (9, 5, 4, 6), strict=True)]
    others = [{**line, "net": "srresnet-x4", "way": "eager plain", "ms": 1}]
    others += [{"net": NET, "way": "graph fused", "error": "why"}]
    assert gpu.fastest(others + times) == "graph plain"
    times[2]["agrees"] = False  # fast, and wrong
    assert gpu.fastest(others + times) == "eager fused"
    assert gpu.fastest(others) == "graph fused"


def test_a_queue_is_names_with_options(tmp_path):
    queue = tmp_path / "queue.txt"
    queue.write_text("# what to train\n\na --data 'my pictures' --steps 3  # short\nb\n")
    assert gpu.read_queue(queue) == [
        ("a", ["--data", "my pictures", "--steps", "3"]),
        ("b", []),
    ]
    for row in ("../a", "b\nb", "x/y"):
        queue.write_text(row)
        with pytest.raises(ValueError, match="names of folders, each once"):
            gpu.read_queue(queue)
