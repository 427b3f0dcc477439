"""One packed network, many callers: threads, processes and event loops get the bytes of one caller.

Every test compares with pictures that were enlarged one by one, by a network of the same values.
"""

import asyncio
import contextlib
import ctypes
import gc
import itertools
import multiprocessing
import os
import pickle
import random
import shlex
import shutil
import subprocess
import sys
import threading
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from functools import cache
from pathlib import Path

import pytest
import torch
from torch.utils.data import DataLoader, Dataset

import qsr
from qsr.infer import strips
from qsr.integer.program import Idle
from qsr.system import native

torch.set_num_threads(1)
CONFIGS = {
    "C": qsr.quantsr_c(2, 4, features=8, blocks=4, depths=(4, 2, 1)),
    "T": qsr.quantsr_t(2, 4, blocks=2, features=8, layers=2, heads=2, window=4),
    "T, attention": qsr.quantsr_t(
        4, 4, blocks=2, features=8, layers=2, heads=2, window=4, attention_bits=4
    ),
    "layer by layer": qsr.quantsr_c(2, 4, features=8, blocks=2, quantize_body_conv=False),
}


@cache
def trained(name):
    torch.manual_seed(5)
    net = qsr.QuantSR(CONFIGS[name])
    qsr.calibrate(net, torch.rand(1, 3, 16, 16))
    return net.eval()


@cache
def work(name):
    """[(lr, blocks, memory)]: sizes and depths mixed, as one piece and in strips."""
    draw, depths = random.Random(7), CONFIGS[name].depths
    sizes = [(40, 40)] * 4 + [(7, 13), (90, 9), (1, 1), (33, 57)]
    unit = qsr.pack(trained(name)).pixel_bytes * 9 * 4 / 1e9  # a strip of 4 rows, 9 pixels wide
    tasks = []
    for height, width in sizes:
        blocks = draw.choice(depths)
        lr = torch.rand(1, 3, height, width)
        memory = 20 * unit if width == 9 else 2.0  # less than 90 rows
        tasks.append((lr, blocks, memory))
    return tasks


def enlarged(task, model):
    lr, blocks, memory = task
    return qsr.upscale(lr, model, blocks=blocks, memory=memory)


@cache
def one_by_one(name):
    model = qsr.pack(trained(name))
    return [enlarged(task, model) for task in work(name)]


def assert_same(got, expected):
    assert [torch.equal(a, b) for a, b in zip(got, expected, strict=True)] == [True] * len(got)


# Threads ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("threads", [1, 2, 4, 16])
@pytest.mark.parametrize("name", CONFIGS)
def test_threads_that_share_a_network_get_the_bytes_of_one_by_one(name, threads):
    expected = one_by_one(name)
    model, turns = qsr.pack(trained(name)), random.Random(threads)
    order = [turns.randrange(len(expected)) for _ in range(48)]
    with ThreadPoolExecutor(threads) as pool:
        got = list(pool.map(lambda i: enlarged(work(name)[i], model), order))
    assert_same(got, [expected[i] for i in order])


@pytest.mark.parametrize("name", ["C", "T"])
def test_some_of_that_work_is_done_in_strips(name):
    model = qsr.pack(trained(name))
    lr, blocks, memory = work(name)[5]
    assert len(strips(*lr.shape[2:], model.config, blocks, memory, model.pixel_bytes)) > 1


@pytest.mark.parametrize("name", ["C", "T"])
def test_a_network_that_threads_meet_unplanned_is_planned_once(name, monkeypatch):
    model, together, plans = qsr.pack(trained(name)), threading.Barrier(8), []
    plan = model._planned
    monkeypatch.setattr(model, "_planned", lambda: plans.append(1) or plan())

    def call():
        together.wait()
        return enlarged(work(name)[0], model)

    with ThreadPoolExecutor(8) as pool:
        got = [future.result() for future in [pool.submit(call) for _ in range(8)]]
    assert_same(got, one_by_one(name)[:1] * 8)
    assert len(plans) == 1


def test_a_network_that_one_thread_packs_does_not_touch_what_others_compute():
    class Net(torch.nn.Sequential):  # whose forward torch.fx goes into, as into anybody's
        def forward(self, x):
            for layer in self:
                x = layer(x) * self[0].bias.mean()
            return x

    net, x = Net(torch.nn.Conv2d(3, 3, 3, padding=1)), torch.rand(1, 3, 6, 5)
    low = qsr.quantize(net, 4)
    qsr.calibrate(low, x)
    done = threading.Event()

    def compute():
        expected, calls = net(x), 0
        while calls < 50 or not done.is_set():
            assert torch.equal(net(x), expected) and torch.rand(1) < 1
            calls += 1

    with ThreadPoolExecutor(2) as pool:
        others = [pool.submit(compute) for _ in range(2)]
        try:
            plans = [qsr.pack(low).plan for _ in range(30)]
        finally:
            done.set()
        for other in others:
            other.result()
    assert all(plan.plans for plan in plans)


def test_each_thread_may_have_its_own_number_of_torch_threads():
    model = qsr.pack(trained("C"))

    def call(threads):
        torch.set_num_threads(threads)
        return [enlarged(task, model) for task in work("C")]

    try:
        with ThreadPoolExecutor(3) as pool:
            for got in pool.map(call, [1, 2, 3]):
                assert_same(got, one_by_one("C"))
    finally:
        torch.set_num_threads(1)


def test_a_trained_network_that_looks_at_the_picture_may_be_shared_too():
    config = qsr.quantsr_c(2, 8, features=4, blocks=2, quantizer="cadyq")
    net = qsr.QuantSR(config)
    qsr.calibrate(net, torch.rand(1, 3, 16, 16))
    pictures = [torch.rand(1, 3, 12, 12) * (i + 1) / 8 for i in range(8)]
    expected = [qsr.upscale(lr, net.eval()) for lr in pictures]
    with ThreadPoolExecutor(4) as pool:
        assert_same(list(pool.map(lambda lr: qsr.upscale(lr, net), pictures)), expected)


def test_an_event_loop_may_hand_its_pictures_to_threads():
    model = qsr.pack(trained("T"))

    async def main():
        calls = [asyncio.to_thread(enlarged, task, model) for task in work("T")]
        return await asyncio.gather(*calls)

    assert_same(asyncio.run(main()), one_by_one("T"))


# Buffers ------------------------------------------------------------------------------------------


def test_idle_buffers_are_used_again_dropped_with_another_size_and_bounded():
    idle, first, second = Idle(), (torch.zeros(1),), (torch.zeros(2),)
    assert idle.take((4, 4)) is None
    idle.give((4, 4), first)
    assert idle.take((4, 4)) is first and idle.take((4, 4)) is None
    idle.give((4, 4), first)
    idle.give((4, 5), second)
    assert idle.take((4, 4)) is None  # the last given has another size and is gone
    assert idle.take((4, 4)) is first
    for _ in range(os.cpu_count() + 5):
        idle.give((4, 4), first)
    assert sum(idle.take((4, 4)) is first for _ in range(os.cpu_count() + 5)) == os.cpu_count()


def test_the_buffers_of_a_call_that_fails_are_not_used_again(monkeypatch):
    model, lr = qsr.pack(trained("C")), torch.rand(1, 3, 8, 8)
    expected = model(lr)
    with monkeypatch.context() as broken:
        broken.setattr(model.program, "tail", lambda features: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            model(lr)
    assert torch.equal(model(lr), expected)


def resident():
    """Bytes of memory that this process holds."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="no /proc")
@pytest.mark.parametrize("name", ["C", "T"])
def test_ten_thousand_calls_of_four_threads_hold_no_more_memory_than_a_thousand(name):
    model = qsr.pack(trained(name))
    pictures = [torch.rand(1, 3, h, w) for h, w in itertools.product((4, 8, 12), (5, 8))]

    def call(count):
        for i in range(count):
            model(pictures[i * 7 % len(pictures)], blocks=1)

    def held_after(count):
        threads = [threading.Thread(target=call, args=(count // 4,)) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        gc.collect()
        with contextlib.suppress(AttributeError):  # glibc keeps up to 200 MB for threads to come
            ctypes.CDLL(None).malloc_trim(0)
        return resident()

    before = held_after(1000)
    grown = held_after(10_000) - before
    # 0.3 MB were measured; one workspace a call would be 39 KB times 9,000.
    assert grown < 4e6, f"{grown / 1e6:.1f} MB"


class HeapUse(ctypes.Structure):
    """`struct mallinfo2` of glibc."""

    names = "arena ordblks smblks hblks hblkhd usmblks fsmblks uordblks fordblks keepcost"
    _fields_ = [(name, ctypes.c_size_t) for name in names.split()]  # noqa: RUF012


def heap_in_use():
    """Bytes that are allocated and not freed, whatever Python knows of them."""
    gc.collect()
    ask = ctypes.CDLL(None).mallinfo2
    ask.restype = HeapUse
    told = ask()
    return told.uordblks + told.hblkhd


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallinfo2"), reason="no glibc of 2.33 or later")
@pytest.mark.parametrize("name", ["C", "T", "T, attention", "layer by layer", "not packed"])
def test_a_call_leaves_nothing_on_the_heap(name):
    """PyTorch's texts between operators and Python, if not minded, each leave 48 bytes."""
    net = trained("T") if name == "not packed" else qsr.pack(trained(name))
    lr = torch.rand(1, 3, 8, 8)

    def after(calls):
        with torch.no_grad():
            for _ in range(calls):
                net(lr)
        return heap_in_use()

    first = after(50)
    assert after(500) - first < 500 * 16


# Processes ----------------------------------------------------------------------------------------

FORK = """
import os, signal, sys, threading, torch, qsr
torch.set_num_threads(2)
net = qsr.QuantSR(qsr.quantsr_c(2, 4, features=8, blocks=2))
qsr.calibrate(net, torch.rand(1, 3, 16, 16))
model, lr = qsr.pack(net.eval()), torch.rand(1, 3, 120, 120)
expected = model(lr)
stop = threading.Event()
def busy():
    while not stop.is_set():
        model(lr)
threads = [threading.Thread(target=busy) for _ in range(3)]
for thread in threads:
    thread.start()
wrong = 0
for _ in range(5):
    child = os.fork()
    if child == 0:
        signal.alarm(60)  # a child that waits for ever dies of it
        os._exit(0 if torch.equal(model(lr), expected) else 1)
    wrong += os.waitpid(child, 0)[1] != 0
stop.set()
for thread in threads:
    thread.join()
assert torch.equal(model(lr), expected)
print("wrong:", wrong)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
def test_a_child_forked_between_calls_of_threads_gets_the_same_bytes():
    """In a Python of its own: OpenMP's threads are what a child lacks."""
    done = subprocess.run([sys.executable, "-c", FORK], capture_output=True, text=True, timeout=400)
    assert done.stdout == "wrong: 0\n", done.stderr


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
def test_a_child_forked_while_a_thread_plans_the_network_does_not_wait_for_ever(monkeypatch):
    model, planning = qsr.pack(trained("C")), threading.Event()
    lr, plan = work("C")[0][0], model._planned
    expected = qsr.pack(trained("C"))(lr)

    def slowly():
        planning.set()
        threading.Event().wait(0.5)
        return plan()

    monkeypatch.setattr(model, "_planned", slowly)
    thread = threading.Thread(target=model, args=(lr,))
    thread.start()
    planning.wait()
    child = os.fork()  # waits until the network is planned
    if child == 0:
        os._exit(0 if torch.equal(model(lr), expected) else 1)
    thread.join()
    assert os.waitpid(child, 0)[1] == 0


def enlarge_all(pickled, name):
    """What a spawned worker does: by bytes, for a failure to be told by the test."""
    torch.set_num_threads(1)
    return [enlarged(task, pickle.loads(pickled)).numpy() for task in work(name)]


@pytest.mark.slow
def test_spawned_workers_take_a_network_along_and_get_the_same_bytes():
    pickled = [pickle.dumps(qsr.pack(trained(name))) for name in ("C", "T")]
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(2, mp_context=context) as pool:
        for name, got in zip("CT", pool.map(enlarge_all, pickled, "CT"), strict=True):
            assert_same([torch.from_numpy(sr) for sr in got], one_by_one(name))


class Enlarged(Dataset):
    """A data set whose pictures a packed network enlarges, in the worker that asks."""

    def __init__(self, model, pictures):
        self.model, self.pictures = model, pictures

    def __len__(self):
        return len(self.pictures)

    def __getitem__(self, i):
        return qsr.upscale(self.pictures[i], self.model)


@pytest.mark.parametrize("method", ["fork", pytest.param("spawn", marks=pytest.mark.slow)])
def test_the_workers_of_a_data_loader_get_the_same_bytes(method):
    if method not in multiprocessing.get_all_start_methods():
        pytest.skip(f"no {method} here")
    model, pictures = qsr.pack(trained("C")), torch.rand(6, 3, 20, 30)
    expected = [qsr.upscale(picture, model) for picture in pictures]
    loader = DataLoader(
        Enlarged(model, pictures), batch_size=None, num_workers=2, multiprocessing_context=method
    )
    assert_same(list(loader), expected)


def test_the_native_code_is_loaded_once_by_threads_that_ask_together():
    code = """
import threading
from concurrent.futures import ThreadPoolExecutor
from qsr.system import native
together = threading.Barrier(8)
with ThreadPoolExecutor(8) as pool:
    loaded = pool.map(lambda _: (together.wait(), native.load(), native.facts()), range(8))
    print(len({id(status) for _, status, _ in loaded}))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=400)
    assert done.stdout == "1\n", done.stderr
    assert native.load() is native.load()


# ThreadSanitizer ----------------------------------------------------------------------------------

PORTABLE = (
    "network/executor.cpp",
    "network/conv_portable.cpp",
    "network/maps_portable.cpp",
    "network/tail_portable.cpp",
    "network/swin_portable.cpp",
    "conv2d/float.cpp",
)
FASTER = (
    "network/conv_winograd_vnni.cpp",
    "network/conv_direct_vnni.cpp",
    "network/conv_winograd_avx2.cpp",
    "network/conv_direct_avx2.cpp",
    "network/maps_avx512.cpp",
    "network/maps_avx2.cpp",
    "network/tail_avx512.cpp",
    "network/tail_avx2.cpp",
    "network/swin_vnni.cpp",
    "network/swin_avx2.cpp",
)
ALL_ROWS = bool(os.environ.get("QSR_ALL_ROWS"))  # the long form, `make test-threads`


def sanitized(folder):
    """The program of threads_without_torch.cpp under ThreadSanitizer."""
    compiler = shlex.split(os.environ.get("CXX", "c++"))
    if shutil.which(compiler[0]) is None:
        pytest.skip("no C++ compiler here")
    # Most of the short form is compiling; intrinsics with constants need an optimiser.
    options = ["-O1", "-DQSR_ALL_ROWS"] if ALL_ROWS else ["-O0"]
    options += ["-std=c++20", "-g1", "-fsanitize=thread", "-ffp-contract=off", "-Wno-psabi"]
    main, program = Path(__file__).with_name("threads_without_torch.cpp"), folder / "threads"
    sources = [native.CSRC / name for name in PORTABLE + FASTER * ALL_ROWS]
    command = [*compiler, *options, f"-I{native.CSRC}", main, *sources, "-o", program]
    done = subprocess.run(command, capture_output=True, text=True)
    if "tsan" in done.stderr:  # not every compiler comes with the sanitizer's library
        pytest.skip("this compiler has no ThreadSanitizer")
    assert done.returncode == 0, done.stderr
    return program


@pytest.mark.slow
def test_the_thread_sanitizer_finds_no_race_between_calls_and_would_find_one(tmp_path):
    program = sanitized(tmp_path)
    size = ["8", "20"] if ALL_ROWS else ["3", "1"]
    apart = subprocess.run([program, *size], capture_output=True, text=True)
    if "unexpected memory mapping" in apart.stderr:  # the system scatters it more than TSan knows
        pytest.skip("ThreadSanitizer does not start on this system")
    assert apart.returncode == 0, apart.stdout + apart.stderr
    assert "portable: same bytes" in apart.stdout and "WARNING" not in apart.stderr
    shared = subprocess.run([program, "3", "1", "shared"], capture_output=True, text=True)
    assert shared.returncode != 0 and "data race" in shared.stderr
