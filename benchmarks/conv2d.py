"""Speed of the integer convolution kernels: python benchmarks/conv2d.py [--size 128] [--threads 1]

64 -> 64 channels, 3x3, on a square picture, packed codes in, int32 sums out. All kernels of this
machine take turns, so that a change of the clock meets all of them; the best of several rounds
counts. Each output is compared with the others before anything is timed.
"""

import argparse
import time

import torch

from qsr import kernels


def operands(bits: int, size: int):
    """Random codes: activations [1, size, size, 64] and weights [64, 3, 3, 64], packed."""
    low, high = -(1 << (bits - 1)), 1 << (bits - 1)
    a = torch.randint(low, high, (1, size, size, 64), dtype=torch.int8)
    w = torch.randint(low, high, (64, 3, 3, 64), dtype=torch.int8)
    return kernels.pack_codes(a, bits=bits, signed=True), kernels.pack_codes(
        w, bits=bits, signed=True
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", type=int, default=128, help="side of the picture (128)")
    parser.add_argument("--rounds", type=int, default=7, help="timed rounds (7)")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads (1)")
    args = parser.parse_args()
    torch.manual_seed(0)
    torch.set_num_threads(args.threads)
    names = [name for name in kernels.available("conv2d") if name != kernels.REFERENCE]
    macs = args.size**2 * 64 * 64 * 9
    print(f"{args.size} x {args.size}, {args.threads} thread(s), best of {args.rounds}")
    for bits in (4, 3, 2):
        a, w = operands(bits, args.size)
        outputs = [kernels.conv2d(a, w, padding=1, kernel=name) for name in names]
        if not all(torch.equal(out, outputs[0]) for out in outputs):
            raise SystemExit(f"w{bits}a{bits}: the kernels disagree; nothing was timed.")
        best = dict.fromkeys(names, float("inf"))
        for _ in range(args.rounds):
            for name in names:
                began = time.perf_counter()
                kernels.conv2d(a, w, padding=1, kernel=name)
                best[name] = min(best[name], time.perf_counter() - began)
        slowest = max(best.values())
        for name in names:
            rate = macs / best[name] / 1e9
            print(
                f"w{bits}a{bits}  {name:8} {1e3 * best[name]:8.2f} ms {rate:7.1f} GMAC/s "
                f"{slowest / best[name]:6.2f}x"
            )


if __name__ == "__main__":
    main()
