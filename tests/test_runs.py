"""Runs: scores on held-out pictures, moving averages, several processes, and kills."""

import math
import multiprocessing
import os
import random
import signal
import socket
import time

import pytest
import torch
from safetensors.torch import load_file
from test_train import Noise
from torch import distributed as dist

import qsr
from qsr.images.data import held_out, make_pair, textures
from qsr.runs import fit as runs
from qsr.runs.checkpoints import find_best, list_checkpoints, load_checkpoint
from qsr.runs.log import read_log
from qsr.system import distributed
from qsr.train import decay_at, update_average

CONV = qsr.quantsr_c(2, 4, blocks=4, features=8)
CONFIG = qsr.TrainConfig(
    steps=12, learning_rate=2e-3, checkpoint_every=4, validate_every=4, log_every=2, ema=0.9
)


def network(config=CONV):
    torch.manual_seed(3)
    return qsr.QuantSR(config)


def patches(batch=4):
    return qsr.Patches("embedded", scale=2, patch=8, batch=batch)


@pytest.fixture(scope="module")
def pairs():
    return held_out("embedded", scale=2, side=16)


def state(net):
    return {name: value.clone() for name, value in net.state_dict().items()}


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


# Two stages, scores, averages ---------------------------------------------------------------------


def test_the_deepest_network_learns_alone_until_blocks_are_ranked(tmp_path):
    net = network()
    qsr.fit(net, patches(), CONFIG, tmp_path)
    lines = {line["step"]: line for line in read_log(tmp_path)}
    assert "loss_4" in lines[6] and "loss_2" not in lines[6]  # joint_from is 0.5
    assert {"loss_4", "loss_2", "loss_1"} <= lines[8].keys()


def test_the_order_of_blocks_is_that_of_the_shortcuts_when_all_depths_begin(tmp_path):
    net = network()
    qsr.fit(net, patches(), CONFIG, tmp_path, max_seconds=0)  # one step, then stop
    with torch.no_grad():
        for i, block in enumerate(net.blocks):
            block.shortcut.scale.fill_((0.9, 0.2, 1.3, 0.4)[i])
    runs._rank(net, patches(), CONFIG)
    assert net.order == (1, 3, 0, 2)
    runs._rank(net, patches(), qsr.TrainConfig(rank_by="given"))
    assert net.order == (1, 3, 0, 2)
    runs._rank(net, patches(), qsr.TrainConfig(rank_by="sensitivity"))
    assert net.order == qsr.rank_blocks(net, *patches().batch(300_000))


def test_the_best_network_on_held_out_pictures_is_kept(tmp_path, pairs):
    qsr.fit(network(), patches(), CONFIG, tmp_path, validation=pairs)
    scored = [line for line in read_log(tmp_path) if "validation" in line]
    assert [line["step"] for line in scored] == [4, 8, 12]
    joint = [line for line in scored if "validation_1" in line]
    best = max(joint, key=lambda line: line["validation"])
    folder = find_best(tmp_path)
    assert folder.name == f"best-{best['step']:08d}"
    net, kept = load_checkpoint(folder)
    for depth in net.config.depths:
        score = qsr.evaluate(net, pairs, blocks=depth).psnr_y
        assert score == pytest.approx(best[f"validation_{depth}"], abs=1e-6)
        assert score == pytest.approx(kept[f"validation_{depth}"], abs=1e-9)


def test_the_average_moves_by_its_decay_and_copies_what_is_no_parameter():
    net, average = network(), network()
    lr = patches().batch(0)[0]
    qsr.calibrate(net, lr)
    before = state(average)
    net.block_order.copy_(torch.tensor([3, 1, 2, 0]))
    update_average(average, net, torch.tensor(0.5))
    for name, p in net.named_parameters():
        expected = 0.5 * before[name] + 0.5 * p
        torch.testing.assert_close(average.get_parameter(name), expected)
    assert average.order == (3, 1, 2, 0)
    config = qsr.TrainConfig(ema=0.999)
    assert [decay_at(config, step) for step in (0, 8, 100_000)] == [0.1, 0.5, 0.999]


def test_the_average_of_a_run_is_calibrated_and_resumes_exactly(tmp_path):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    qsr.fit(network(), patches(), CONFIG, whole)
    for _ in range(CONFIG.steps):
        qsr.fit(network(), patches(), CONFIG, parts, max_seconds=0)
    files = [list_checkpoints(f)[-1] / "average.safetensors" for f in (whole, parts)]
    a, b = (load_file(file) for file in files)
    assert same(a, b)
    net = network()
    net.load_state_dict(a)
    assert torch.isfinite(net(patches().batch(0)[0])).all()


def test_the_log_of_a_run_that_goes_on_has_each_step_once(tmp_path):
    for _ in range(CONFIG.steps):
        qsr.fit(network(), patches(), CONFIG, tmp_path, max_seconds=0)
    lines = read_log(tmp_path)
    assert [line["step"] for line in lines] == list(range(1, CONFIG.steps + 1))
    quantizers = lines[-1]["quantizers"]["blocks.0.conv1.input_quantizer"]
    assert quantizers["step"] > 0 and quantizers["tau_min"] <= quantizers["tau_max"]
    assert lines[-1]["seconds"] >= lines[0]["seconds"] > 0
    assert all(math.isfinite(line["loss"]) for line in lines)


def test_tensorboard_gets_scalars_and_histograms(tmp_path):
    accumulator = pytest.importorskip(
        "tensorboard.backend.event_processing.event_accumulator", reason="needs tensorboard"
    )
    qsr.fit(network(), patches(), CONFIG, tmp_path, tensorboard=True)
    events = accumulator.EventAccumulator(str(tmp_path))
    events.Reload()
    tags = events.Tags()
    assert {"loss", "learning_rate"} <= set(tags["scalars"])
    assert "tau/blocks.0.conv1.input_quantizer" in tags["histograms"]


# Pieces and processes -----------------------------------------------------------------------------


def test_a_batch_in_pieces_gives_the_step_of_the_whole_batch():
    grads = []
    for pieces in (1, 2, 4):
        net = network()
        qsr.calibrate(net, patches().batch(0)[0])
        config = qsr.TrainConfig(accumulate=pieces)
        optimizer = torch.optim.SGD(net.parameters(), 0.0)
        qsr.train_step(net, optimizer, *patches().batch(1), config)
        grads.append({name: p.grad.clone() for name, p in net.named_parameters()})
    for other in grads[1:]:
        for name, grad in grads[0].items():
            torch.testing.assert_close(other[name], grad, rtol=1e-3, atol=1e-6, msg=name)


def _rank(rank, size, port, folder, max_steps):
    """One process of `size`."""
    torch.set_num_threads(1)
    os.environ.update(
        WORLD_SIZE=str(size), RANK=str(rank), LOCAL_RANK=str(rank), MASTER_ADDR="127.0.0.1",
        MASTER_PORT=str(port),
    )  # fmt: skip
    with distributed.started("cpu"):
        seconds = None if max_steps is None else 0
        for _ in range(max_steps or 1):
            net = network()
            qsr.fit(net, patches(), CONFIG, folder, max_seconds=seconds)


def train_on(ranks, folder, max_steps=None):
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["qsr", __name__])
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    jobs = [
        context.Process(target=_rank, args=(r, ranks, port, folder, max_steps))
        for r in range(ranks)
    ]
    for job in jobs:
        job.start()
    for job in jobs:
        job.join(120)
    assert [job.exitcode for job in jobs] == [0] * ranks
    return load_checkpoint(list_checkpoints(folder)[-1])


def close(a, b, tolerance=2e-3):
    """Adam divides by the root of its own gradient, which enlarges rounding where that is small."""
    a, b = a.state_dict(), b.state_dict()
    for name in a:
        torch.testing.assert_close(
            a[name].float(), b[name].float(), rtol=0.02, atol=tolerance, msg=name
        )


@pytest.mark.skipif(not dist.is_gloo_available(), reason="torch without gloo")
def test_two_ranks_train_the_network_that_one_process_trains(tmp_path):
    alone, _ = train_on(1, tmp_path / "one")
    together, state = train_on(2, tmp_path / "two")
    assert state["step"] == CONFIG.steps
    close(alone, together)
    losses = [[line["loss"] for line in read_log(tmp_path / name)] for name in ("one", "two")]
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)


@pytest.mark.skipif(not dist.is_gloo_available(), reason="torch without gloo")
def test_a_run_goes_on_with_another_number_of_ranks(tmp_path):
    alone, _ = train_on(1, tmp_path / "one")
    for ranks, steps, done in ((1, 2, 2), (2, 3, 5), (1, None, CONFIG.steps)):
        mixed, state = train_on(ranks, tmp_path / "mixed", steps)
        assert state["step"] == done
    close(alone, mixed)


# Kills --------------------------------------------------------------------------------------------


def _train(folder):
    torch.set_num_threads(1)
    config = qsr.TrainConfig(steps=60, learning_rate=2e-3, checkpoint_every=3, joint_from=0.3)
    picture = make_pair("zone", textures(24)["zone"], 2)
    qsr.fit(network(), Noise(), config, folder, validation=[picture])


def test_a_run_that_is_killed_twenty_times_ends_bit_for_bit_where_one_that_was_not_ends(tmp_path):
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["qsr", __name__])

    def start(folder):
        job = context.Process(target=_train, args=(folder,))
        job.start()
        return job

    began = time.monotonic()
    job = start(tmp_path / "whole")
    job.join(120)
    seconds = time.monotonic() - began
    assert job.exitcode == 0
    kills, moments = 0, random.Random(0)
    folder = tmp_path / "killed"
    while kills < 20:
        job = start(folder)
        job.join(moments.uniform(0.3, 0.7) * seconds)
        if job.exitcode is None:
            os.kill(job.pid, signal.SIGKILL)
            kills += 1
        job.join(120)
        if job.exitcode == 0:  # it got to its end before enough kills: once more from the start
            assert same_run(folder, tmp_path / "whole")
            folder = tmp_path / f"killed-{kills}"
    job = start(folder)
    job.join(120)
    assert job.exitcode == 0
    assert same_run(folder, tmp_path / "whole")
    assert not list(folder.glob(".*"))  # nothing half-written is left


def same_run(a, b):
    """Weights, moments, best network and log (but for times) of two finished runs."""
    for kind in ("step", "best"):
        folders = [sorted(f.glob(f"{kind}-*"))[-1] for f in (a, b)]
        assert folders[0].name == folders[1].name
        for file in folders[0].glob("*.safetensors"):
            mine, theirs = (load_file(f / file.name) for f in folders)
            assert same(mine, theirs), file.name
    timed = ("seconds", "images_per_s")
    logs = [
        [{key: v for key, v in line.items() if key not in timed} for line in read_log(folder)]
        for folder in (a, b)
    ]
    return logs[0] == logs[1]
