"""Time of a packed QuantSR-T by parts, beside PyTorch's full-precision SwinIR_S in the same run.

    python -m qsr.bench.swin [--size 128] [--threads 1] [--kernel auto]

Weights are random: they change no time. Best of several repetitions, milliseconds.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial

import torch

from ..backbone import QuantSR
from ..calibration import calibrate
from ..config import quantsr_t, swinir_s
from ..integer.packing import pack
from ..integer.program_swin import SwinProgram, _FloatConv
from ..system.machine import check_threads
from .engine import timed


def best_ms(work: Callable[[], object], repeats: int) -> float:
    """The shortest of `repeats` runs after one to warm up."""
    work()
    run = timed(work)
    return 1e3 * min(run() for _ in range(repeats))


@torch.inference_mode()
def measure(size: int, kernel: str, attention_bits: int | None) -> None:
    """Print the time of a network x4, of its parts, and of the full-precision one."""
    config = quantsr_t(4, 4, attention_bits=attention_bits)
    net = QuantSR(config)
    calibrate(net, torch.rand(1, 3, 32, 32))
    program = SwinProgram(pack(net).network, kernel)
    lr, plan = torch.rand(1, 3, size, size), net.plan()
    eager = QuantSR(swinir_s(4)).eval()
    rounds = [(best_ms(lambda: eager(lr), 1), best_ms(lambda: program(lr, plan), 5)) for _ in "123"]
    float_ms, packed_ms = (min(times) for times in zip(*rounds, strict=True))

    codes, residual, stream = buffers = program.buffers(size, size)
    program.features(lr[0], plan, buffers)
    _, layers, conv = program.blocks[0]
    body_conv = program.body_conv
    assert conv is not None and isinstance(body_conv, _FloatConv)  # whole, and as in the paper
    half = config.blocks * config.layers // 2
    parts = {
        "layers": half * sum(best_ms(partial(program._layer, k, stream), 9) for k in layers[:2]),
        "3x3 convolutions": config.blocks
        * best_ms(lambda: program._conv(conv, stream, residual, 0.0, codes), 9),
        "norms": 2 * best_ms(lambda: program._norm(program.norm_in, stream, residual), 9),
        "body_conv": best_ms(lambda: body_conv(stream[None]), 9),
        "tail": best_ms(lambda: program.tail(stream), 9),
    }
    name = "w4a4" if attention_bits is None else "w4a4-attn"
    print(f"{name} ({program.kernel}): {packed_ms:.0f} ms; PyTorch eager fp32 {float_ms:.0f} ms; "
          f"ratio {float_ms / packed_ms:.2f}")  # fmt: skip
    for part, ms in parts.items():
        print(f"    {part:18} {ms:7.1f} ms  {100 * ms / packed_ms:4.0f} %")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", type=int, default=128, help="height and width of the lr picture")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--kernel", default="auto")
    arguments = parser.parse_args()
    check_threads(arguments.threads, "--threads")
    torch.set_num_threads(arguments.threads)
    for attention_bits in (4, None):
        measure(arguments.size, arguments.kernel, attention_bits)


if __name__ == "__main__":
    main()
