"""What of a step of training a CUDA graph records, looked at on the CPU, and who records it when.

A recorded step is replayed without Python. So it must read no value back, which would be one value
for ever, and take none along from the host: on a GPU either stops the recording. (`x.to(device)`
is not seen here, where there is one device; numbers that become tensors are.)
"""

import contextlib
import warnings
from importlib.util import find_spec

import pytest
import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

import qsr
from qsr.objective import Objective
from qsr.quantizer import QUANTIZERS
from qsr.system import fused, graphs
from qsr.train import Stage, make_optimizer

aten = torch.ops.aten
READS = {
    aten._local_scalar_dense, aten.item, aten.nonzero, aten.masked_select, aten.equal,
    aten.is_nonzero, aten._unique2, aten.unique_consecutive,
}  # fmt: skip
COPIES = {aten.lift_fresh, aten.lift}  # what torch.tensor([...]) makes of numbers of the host
METHODS = {"item", "tolist", "numpy", "cpu", "cuda", "__bool__", "__float__", "__int__"} | {
    "__index__", "__array__", "new_tensor", "from_numpy", "pin_memory",
}  # fmt: skip


class HostLooks(AssertionError):
    """The step did what a graph cannot hold."""


class NoKernelsSeen(TorchDispatchMode):
    """Refuses operators that read a value on the host, or bring one from there."""

    def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
        name = operator.overloadpacket
        masked = name in (aten.index, aten.index_put, aten.index_put_) and any(
            index is not None and index.dtype == torch.bool for index in args[1]
        )
        if name in READS | COPIES or masked:
            raise HostLooks(str(operator))
        return operator(*args, **(kwargs or {}))


class NoMethods(TorchFunctionMode):
    """Refuses what reads a tensor of the CPU past the dispatcher, as `tolist` does."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if getattr(function, "__name__", "") in METHODS:
            raise HostLooks(function.__name__)
        return function(*args, **(kwargs or {}))


@contextlib.contextmanager
def nobody_looks():
    with NoMethods(), NoKernelsSeen():
        yield


@pytest.mark.parametrize(
    "look",
    [
        lambda x: x.sum().item(),
        lambda x: x.tolist(),
        lambda x: float(x[0]),
        lambda x: bool(x.sum() > 0),
        lambda x: x[x > 0],
        lambda x: x.nonzero(),
        lambda x: x * torch.tensor([1.0, 2.0]),
        lambda x: x.new_tensor([1.0]),
        lambda x: x.cpu(),
        lambda x: x.numpy(),
        lambda x: torch.equal(x, x),
    ],
)
def test_each_kind_of_look_is_seen(look):
    x = torch.ones(2)
    with nobody_looks(), pytest.raises(HostLooks):
        look(x)


# The step -----------------------------------------------------------------------------------------

CONV = {"blocks": 2, "depths": (2, 1), "features": 8}
SWIN = {**CONV, "layers": 2, "heads": 2, "window": 4}
DATA = qsr.Patches("embedded", scale=2, patch=8, batch=2)


def networks():
    """One of each family and quantizer that there are, and those without."""
    yield "srresnet", qsr.srresnet(2, blocks=2, features=8)
    yield "swinir", qsr.swinir_s(2, blocks=2, features=8, layers=2, heads=2, window=4)
    for name, quantizer in QUANTIZERS.items():
        bits = 8 if quantizer.least_bits[1] > 4 else 4
        yield f"c {name}", qsr.quantsr_c(2, bits, quantizer=name, **CONV)
        if not quantizer.convolutions_only:
            attention = {} if quantizer.narrow else {"attention_bits": bits}
            yield f"t {name}", qsr.quantsr_t(2, bits, quantizer=name, **attention, **SWIN)
    yield "c per channel", qsr.quantsr_c(2, 4, per_channel=True, **CONV)


OPTIONS = {
    "steps of its own": qsr.TrainConfig(
        relative_steps=True, ema=0.9, clip_gradient=0.1, distill=0.5
    ),
    "in 16 bits": qsr.TrainConfig(
        transfer=1.0, transfer_blocks=1.0, bit_weight=1e-4, precision="bfloat16", accumulate=2
    ),
}


class NoKernel:
    """In the place of a Triton kernel: started, and does nothing."""

    def __getitem__(self, grid):
        return lambda *arguments, **options: None


def use(kernels, monkeypatch):
    """What passes over memory: in C++, in plain PyTorch, or on a GPU what is around the kernels."""
    if kernels == "definition":
        monkeypatch.setattr(fused, "_kernels", lambda device: None)
    elif kernels == "triton":
        if not find_spec("triton"):
            pytest.skip("needs Triton: pip install triton")
        from qsr.system import fused_triton

        for name in ("_forward", "_backward"):
            monkeypatch.setattr(fused_triton, name, NoKernel())
        monkeypatch.setattr(fused, "_kernels", lambda device: fused_triton)


@pytest.mark.parametrize("kernels", ["native", "definition", "triton"])
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("config", [pytest.param(c, id=name) for name, c in networks()])
def test_a_step_reads_nothing_and_takes_nothing_along(config, options, kernels, monkeypatch):
    torch.manual_seed(0)
    net, teacher = qsr.QuantSR(config), qsr.QuantSR(qsr.srresnet(2, blocks=2, features=8))
    qsr.calibrate(net, DATA.batch(0)[0]) if config.bits else None
    objective = Objective(net, options, teacher)
    average = qsr.QuantSR(config) if options.ema else None
    if average is not None:
        average.load_state_dict(net.state_dict())
    optimizer = make_optimizer(net, options)
    stage = Stage(net, optimizer, options, objective=objective, average=average)
    stage.prepare(0)
    drawn = DATA.draw(0)
    use(kernels, monkeypatch)
    stage(*DATA.cut(drawn))  # the first steps are not recorded: they make the optimiser's memory
    with nobody_looks():
        row = stage(*DATA.cut(drawn))
    assert len(row) == len(config.depths) + 3


# Recording ----------------------------------------------------------------------------------------


class FakeCuda:
    """What `graphs` uses of torch.cuda. A recording does nothing, a replay calls `replayed`."""

    def __init__(self, fails=False):
        self.fails, self.done, self.ahead = fails, [], 0

    def Stream(self, device):
        return self

    def current_stream(self, device):
        return self

    def wait_stream(self, other):
        pass

    def record_event(self):
        self.ahead += 1
        return self

    def synchronize(self, device=None):
        """Of an event, or of the device."""
        if device is None:
            self.ahead -= 1
        else:
            self.done.append("synchronize")

    def stream(self, stream):
        return contextlib.nullcontext()

    def CUDAGraph(self):
        return self

    @contextlib.contextmanager
    def graph(self, graph, stream):
        self.done.append("record")
        try:
            yield
            if self.fails:
                raise RuntimeError("operation not permitted when stream is capturing\nmore")
        except RuntimeError:
            raise RuntimeError("the recording was ended by an error") from None
        finally:
            self.done.append("recorded")

    def replay(self):
        self.done.append("replay")


def calls(monkeypatch, cuda, count):
    """(what was called in turn, what was told) by so many calls of a recorded function."""
    told = []
    for name in ("Stream", "current_stream", "synchronize", "stream", "CUDAGraph", "graph"):
        monkeypatch.setattr(torch.cuda, name, getattr(cuda, name))

    def function():
        cuda.done.append("function")
        return torch.zeros(3)

    repeat = graphs.recorded(function, torch.device("cuda"), told.append)
    for _ in range(count):
        assert repeat().shape == (3,)
        assert cuda.ahead <= graphs.AHEAD
    return cuda.done, told


def test_a_function_is_recorded_once_after_some_calls_and_then_replayed(monkeypatch):
    done, told = calls(monkeypatch, FakeCuda(), 6)
    recording = ["record", "function", "recorded"]
    assert done == ["function"] * graphs.FIRST + recording + ["replay"] * 3
    assert told == []


def test_what_cannot_be_recorded_runs_as_it_is_and_says_so_once(monkeypatch):
    done, told = calls(monkeypatch, FakeCuda(fails=True), 6)
    recording = ["record", "function", "recorded", "synchronize"]
    assert done == ["function"] * graphs.FIRST + recording + ["function"] * 3
    assert len(told) == 1 and "not permitted when stream is capturing" in told[0]
    assert "\n" not in told[0]


def test_on_the_cpu_the_function_itself_runs_and_nothing_is_said():
    def function():
        return torch.zeros(())

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert graphs.recorded(function, torch.device("cpu"), pytest.fail) is function
