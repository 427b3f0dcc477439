"""Networks that others wrote: that ours are theirs, before anything is said about them."""

import json
from pathlib import Path

import numpy as np
import peers
import pytest
import torch

SIZES = {"rlfn": [(15, 17), (40, 33), (64, 48)], "smfanet": [(8, 8), (40, 24), (64, 48)]}


@pytest.fixture(scope="module", params=peers.PEERS)
def name(request):
    if peers.folder() is None:
        pytest.skip("needs the files of other networks: set QSR_PEERS")
    return request.param


@torch.no_grad()
def test_a_network_that_others_wrote_computes_what_its_file_does(name):
    ort = pytest.importorskip("onnxruntime")
    session = ort.InferenceSession(
        peers.folder() / f"{name}-x4.onnx", providers=["CPUExecutionProvider"]
    )
    net = peers.load(name)
    for height, width in SIZES[name.split("-")[0]]:
        lr = torch.rand(1, 3, height, width)
        (theirs,) = session.run(None, {"lr": lr.numpy()})
        assert np.abs(net(lr).numpy() - theirs).max() < 1e-5, (height, width)


def test_a_file_that_is_not_there_is_named(monkeypatch, tmp_path):
    pytest.importorskip("onnx")
    monkeypatch.setenv("QSR_PEERS", str(tmp_path))
    with pytest.raises(ValueError, match=r"rlfn-s-x4\.onnx; set QSR_PEERS"):
        peers.load("rlfn-s")


@pytest.mark.parametrize(("kind", "side"), [(peers.RLFN, 15), (peers.SMFANet, 16)])
def test_without_its_file_a_network_still_enlarges_by_four(kind, side):
    assert kind(8, blocks=1)(torch.rand(2, 3, side, side)).shape == (2, 3, 4 * side, 4 * side)


RECORDS = Path(__file__).parent.parent / "docs/results/tuned"  # of `python -m tests.tuned`


@pytest.mark.skipif(not RECORDS.exists(), reason="docs/results: only in a checkout")
@pytest.mark.parametrize("path", sorted(RECORDS.glob("*.json")), ids=lambda path: path.stem)
def test_a_record_says_what_was_lost_and_what_it_depends_on(path):
    record = json.loads(path.read_text())
    loss = {
        name: record["float"]["Set5"]["psnr_y"] - record[name]["Set5"]["psnr_y"]
        for name in ("calibrated", "tuned")
        if name in record
    }
    assert loss["calibrated"] < {4: 3.5, 8: 0.1}[record["bits"]]
    assert "tuned" not in loss or loss["tuned"] < 0.6
    assert not {"Set5", "Set14", "B100"} & set(record["data"]["sets"])
    assert record["layers"] and record["data"]["seed"] and record["torch"]
