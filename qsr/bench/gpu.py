"""A GPU that is at hand for some minutes: build, test, train, and bring the weights home.

    make gpu OUT=folder ARGS="--seconds 400 -- --preset swinir-s-x4 --data train.zip"

Each stage is a process with a time limit of its own, writes what became of it as a line of
OUT/gpu.jsonl at once, and the next one goes on whatever that was. What follows `--` is for
`qsr train`. Its network, finished or not, comes out as OUT/trained.qsr, one small file to carry
home; the run itself stays in runs/gpu, where another call goes on. Nothing is installed: it runs
with the Python that is there.

This is the simplest form: training is eager, and nothing is timed. It has not run on a GPU yet.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

TAIL = 2000  # characters of a stage's output that are kept
BUILD = "from qsr.system import native; print(native.load())"
SAVE = (
    "import sys; from qsr.cli.arguments import load_network; from qsr.models.file import save; "
    "save(sys.argv[2], load_network(sys.argv[1]))"
)


def run_stage(name: str, command: Sequence[str], seconds: float, report: Path) -> bool:
    """Run a command for at most so long, add a line to the report, and say whether it succeeded."""
    start = time.monotonic()
    try:
        done = subprocess.run(
            command, timeout=seconds, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )
        code, output = done.returncode, done.stdout
    except subprocess.TimeoutExpired as error:
        code, output = None, error.stdout or b""
    except OSError as error:
        code, output = None, str(error).encode()
    tail = output.decode(errors="replace")[-TAIL:]
    line = {"stage": name, "code": code, "seconds": round(time.monotonic() - start, 1)}
    with report.open("a") as file:
        file.write(json.dumps({**line, "command": list(command), "tail": tail}) + "\n")
    print(json.dumps(line), flush=True)
    return code == 0


def main(argv: Sequence[str] | None = None) -> int:
    """Run all stages; 0 if all of them succeeded, else 1."""
    argv = list(sys.argv[1:] if argv is None else argv)
    split = argv.index("--") if "--" in argv else len(argv)
    parser = argparse.ArgumentParser(prog="make gpu", description=__doc__.split("\n")[0])
    parser.add_argument("out", type=Path, help="folder for the report and the weights")
    parser.add_argument("--seconds", type=float, default=400, help="of training (%(default)g)")
    parser.add_argument("--run", default="runs/gpu", help="folder of the run (%(default)s)")
    parser.add_argument("--device", default="cuda", help="of training (%(default)s)")
    parser.add_argument(
        "--tests", nargs="*", default=["tests"], help="pytest -m cuda (%(default)s)"
    )
    args, train = parser.parse_args(argv[:split]), argv[split + 1 :]
    args.out.mkdir(parents=True, exist_ok=True)
    report = args.out / "gpu.jsonl"
    python = [sys.executable]
    cli = [*python, "-m", "qsr.cli", "train", "--device", args.device, "--out", args.run]
    limit = ["--max-seconds", str(args.seconds), *train]
    save = [*python, "-c", SAVE, args.run, str(args.out / "trained.qsr")]
    stages = [
        ("build", [*python, "-c", BUILD], 120.0),
        ("tests", [*python, "-m", "pytest", "-q", "-m", "cuda", *args.tests], 120.0),
        ("train", [*cli, *limit], args.seconds + 120),
        ("weights", save, 60.0),
    ]
    if not args.tests:
        stages.pop(1)
    return int(not all([run_stage(*stage, report) for stage in stages]))


if __name__ == "__main__":
    sys.exit(main())
