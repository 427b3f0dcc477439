"""The page docs/cluster.md: what it says of several machines, on one."""

import json
import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from qsr.images import data

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs/cluster.md").read_text()
ONE = {**os.environ, "PYTHONPATH": f"{ROOT}:{os.environ.get('PYTHONPATH', '')}"}
ONE |= {"OMP_NUM_THREADS": "1"}
TINY = "--preset quantsr-c-x2-w4a4 --network-blocks 2 --features 4 --patch 8 --batch 2 --steps 2"


def test_two_nodes_of_torchrun_train_one_network(tmp_path):
    assert "torchrun --nnodes 2 --node-rank 0 --nproc-per-node 4 --master-addr NODE0" in PAGE
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nnodes", "2"]
    torchrun += ["--nproc-per-node", "1", "--master-addr", "127.0.0.1", "--master-port", port]
    train = ["-m", "qsr.cli", "train", "--out", "run", *TINY.split()]
    nodes = [
        subprocess.Popen(
            [*torchrun, "--node-rank", str(rank), *train], cwd=tmp_path, env=ONE,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for rank in range(2)
    ]  # fmt: skip
    said = [node.communicate(timeout=300) for node in nodes]
    assert [node.returncode for node in nodes] == [0, 0], said
    state = json.loads((tmp_path / "run/step-00000002/state.json").read_text())
    assert state["step"] == 2 and (tmp_path / "run/model.qsr").exists()
    assert said[1][0] == "", "only rank 0 speaks"


def test_dask_enlarges_a_folder_by_shares_and_goes_on_where_it_stopped(tmp_path):
    pytest.importorskip("distributed", reason="needs Dask: pip install -e '.[cluster]'")
    (program,) = re.findall(r"^```python\n(.*?)^```", PAGE, re.M | re.S)
    program = program.replace("SHARES = 1000", "SHARES = 3")
    program = program.replace("threads_per_worker=1", "n_workers=2, threads_per_worker=1")
    assert "SHARES = 3" in program and "n_workers=2" in program
    (tmp_path / "program.py").write_text(program)
    for number in range(5):
        (tmp_path / "photos" / str(number % 2)).mkdir(parents=True, exist_ok=True)
        with Image.open(data.PICTURES / "coffee.png") as picture:
            small = picture.crop((number, 0, number + 16, 16))
        small.save(tmp_path / "photos" / str(number % 2) / f"{number}.png")
    (tmp_path / "photos/0/bad.png").write_text("no picture")

    def start():
        done = subprocess.run(
            [sys.executable, "program.py"], cwd=tmp_path, env=ONE, capture_output=True, text=True,
            timeout=300,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return done.stdout.splitlines()[-1]

    assert re.fullmatch(r"shares with pictures that failed: \[\d\]", start())
    made = {p.name: p.stat().st_mtime_ns for p in tmp_path.glob("large/*/*.png")}
    assert sorted(made) == [f"{number}.png" for number in range(5)]
    (tmp_path / "photos/0/bad.png").unlink()
    assert start() == "shares with pictures that failed: none"
    assert made == {p.name: p.stat().st_mtime_ns for p in tmp_path.glob("large/*/*.png")}
