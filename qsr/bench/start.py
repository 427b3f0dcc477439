"""`python -m qsr.bench.start`: how long one waits for the first word, in seconds.

Each line is a new process, started ROUNDS times; the least counts, since everything else that the
machine does only adds. On a busy machine look at the seconds of processor. "torch" says whether it
was imported, which is most of a wait.
"""

import os
import subprocess
import sys
import time

ROUNDS = 5
WAITS = {  # what is waited for: the arguments of Python
    "python alone": ["-c", "pass"],
    "import qsr": ["-c", "import qsr"],
    "qsr --help": ["-m", "qsr", "--help"],
    "qsr upscale --help": ["-m", "qsr", "upscale", "--help"],
    "qsr train --help": ["-m", "qsr", "train", "--help"],
    "qsr reproduce --help": ["-m", "qsr", "reproduce", "--help"],
    "qsr models": ["-m", "qsr", "models"],
}


def wait(arguments: list[str], rounds: int = ROUNDS) -> tuple[float, float, bool]:
    """(seconds that a process takes, seconds of processor, whether it imports torch)."""
    took, worked = [], []
    for _ in range(rounds):
        start, before = time.perf_counter(), os.times()
        subprocess.run([sys.executable, *arguments], stdout=subprocess.DEVNULL, check=True)
        after = os.times()
        took.append(time.perf_counter() - start)
        # Of children: user, system. Sums first: rounded, they never go down; differences may.
        worked.append((after[2] + after[3]) - (before[2] + before[3]))
    told = [sys.executable, "-X", "importtime", *arguments]
    imports = subprocess.run(told, capture_output=True, text=True, check=True).stderr
    return (
        min(took),
        min(worked),
        any(line.split("|")[-1].strip() == "torch" for line in imports.splitlines()),
    )


def main() -> None:
    print(f"{'':20} {'seconds':>7} {'processor':>9}")
    for name, arguments in WAITS.items():
        seconds, processor, torch = wait(arguments)
        print(f"{name:20} {seconds:7.2f} {processor:9.2f}{'  torch' if torch else ''}", flush=True)


if __name__ == "__main__":
    main()
