"""A GPU that is at hand for some minutes, without warning: one command does all, once.

    make gpu OUT=folder ARGS="--queue queue.txt --carried folder"

Stages, each a process with a time limit of its own:

    build    what machine this is; the native core and the CUDA operators             90 s
    tests    pytest -m cuda                                                           60 s
    check    fused passes and packed operators against their definitions, their times 60 s
    speed    ms a step: eager and as a graph, in plain PyTorch and with fused passes  60 s
    train    rows of the queue, the fastest way, for the seconds that are left
             its network and last checkpoint come into OUT

Each result is a line of OUT/gpu.jsonl as soon as it is known, and the next stage goes on whatever
became of the one before. Nothing is installed: it runs with the Python that is there, from the
sources, and says what is missing.

A line of the queue is a name and options of `qsr train`; empty lines and those with # are none. The
first row that is not finished is trained, then the next one. What an earlier call brought home goes
on if `--carried` names its folder: a run travels as NAME.tar.00, .01, ..., none above 16 MB, beside
NAME.qsr, its network. OUT holds at most 8 files.

`--rehearse` is the same on the CPU with tiny networks, in half a minute.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import shlex
import signal
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from ..backbone import QuantSR
from ..config import srresnet
from ..images.data import PICTURES, pack_sets
from ..models.file import save
from ..runs.checkpoints import find_best, list_checkpoints, load_checkpoint
from ..system.errors import first_line
from .gpu_stages import NET, STAGES, WAYS, write

LIMITS = {"build": 90.0, "tests": 60.0, "check": 60.0, "speed": 60.0}  # seconds of a stage
HOME = 25.0  # seconds that are kept for the last checkpoint, and to bring it home
LEAST = 15.0  # seconds below which no row is begun
TAIL = 2000  # characters of the output of a stage that failed
PART = 16_000_000  # bytes of a file in OUT, at most
FILES = 8  # in OUT, at most
ROW = 5  # of one row: the largest network, and a run of it with a moving average in 4 parts


def main(argv: Sequence[str] | None = None) -> int:
    """Run all stages; 0 if all of them succeeded, else 1."""
    parser = argparse.ArgumentParser(prog="make gpu", description=__doc__.split("\n")[0])
    parser.add_argument("out", type=Path, help="folder for the report, weights and checkpoints")
    parser.add_argument("--queue", type=Path, help="file of rows to train")
    parser.add_argument("--carried", type=Path, help="folder that an earlier call brought home")
    parser.add_argument("--runs", type=Path, default=Path("runs/gpu"), help="(%(default)s)")
    parser.add_argument("--seconds", type=float, default=540, help="of all stages (%(default)g)")
    parser.add_argument("--device", default="cuda", help="cuda or cpu (%(default)s)")
    parser.add_argument("--rehearse", action="store_true", help="on the CPU, with tiny networks")
    args = parser.parse_args(argv)
    args.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        if args.rehearse:
            args.device = "cpu"
            if args.queue is None:
                args.queue, args.runs = _pack_kit(Path(folder)), Path(folder, "runs")
        return int(not all(list(_stages(args))))


def report(out: Path) -> list[dict]:
    """The lines so far, but for those that a stage was stopped in."""
    found = []
    for line in (out / "gpu.jsonl").read_text().splitlines():
        with contextlib.suppress(ValueError):
            found.append(json.loads(line))
    return found


# The stages, from outside -------------------------------------------------------------------------


def _stages(args: argparse.Namespace) -> Iterator[bool]:
    """Run one stage after the other, and say of each whether it succeeded."""
    began, patience = time.monotonic(), 10 if args.rehearse else 1  # a busy machine is no fault

    def left() -> float:
        return patience * args.seconds - (time.monotonic() - began)

    rows = read_queue(args.queue) if args.queue else []
    options = ["--device", args.device, *(["--tiny"] if args.rehearse else [])]
    for name in STAGES:
        command = [sys.executable, "-m", "qsr.bench.gpu_stages", str(args.out), name, *options]
        yield run_stage(args.out, name, command, min(patience * LIMITS[name], left()))
    way = fastest(report(args.out))
    environment = {"QSR_NATIVE": "off"} if way.endswith("plain") else {}
    for name, options in rows:
        folder = args.runs / name
        unpack_run(args.carried, name, folder)
        seconds = left() - HOME
        if seconds < LEAST or (folder / "model.qsr").exists():
            continue
        others = [path for path in args.out.iterdir() if not path.name.startswith(f"{name}.")]
        if len(others) + ROW > FILES:
            why = f"its files and those in OUT might be more than {FILES}"
            write(args.out, {"stage": f"train {name}", "skipped": why})
            break
        command = [sys.executable, "-m", "qsr.cli", "train", "--out", str(folder), *options]
        command += ["--device", args.device, "--max-seconds", f"{seconds:.0f}"]
        command += [] if way.startswith("graph") else ["--no-graph"]
        yield run_stage(args.out, f"train {name}", command, left(), environment)
        yield bring_home(args.out, name, folder)


def run_stage(
    out: Path, name: str, command: Sequence[str], seconds: float, environment: dict | None = None
) -> bool:
    """Run a command for at most so long, add a line to the report, and say whether it succeeded.

    What it started goes when it does, or when its time is over.
    """
    began = time.monotonic()
    with tempfile.TemporaryFile() as output:
        try:
            process = subprocess.Popen(
                command,
                stdout=output,
                stderr=subprocess.STDOUT,
                env={**os.environ, "TQDM_DISABLE": "1", **(environment or {})},
                start_new_session=True,
            )
            try:
                code: int | str = process.wait(max(1.0, seconds))
            except subprocess.TimeoutExpired:
                code = "stopped at its limit"
            finally:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        except OSError as error:
            code = str(error)
        output.seek(0)
        tail = output.read().decode(errors="replace")[-TAIL:]
    line = {"stage": name, "code": code, "seconds": round(time.monotonic() - began, 1)}
    write(out, line if code == 0 else {**line, "command": shlex.join(command), "tail": tail})
    return code == 0


# The queue, and what travels ----------------------------------------------------------------------


def read_queue(path: Path) -> list[tuple[str, list[str]]]:
    """(name, options of `qsr train`) of each row.

    Raises ValueError for a name that is no name of a folder, or that comes twice.
    """
    rows = [shlex.split(line, comments=True) for line in path.read_text().splitlines()]
    names = [row[0] for row in rows if row]
    for name in names:
        if Path(name).name != name or names.count(name) > 1:
            raise ValueError(f"{path} has the row {name!r}; rows have names of folders, each once.")
    return [(row[0], row[1:]) for row in rows if row]


def fastest(lines: Sequence[dict]) -> str:
    """Which of WAYS took the least time on quantised networks and computed the same as the others;
    a graph of fused passes, if none was timed.
    """
    good = [line for line in lines if line.get("net") == NET and line.get("agrees")]
    times = {line["way"]: line["ms"] for line in good}
    return min(times, key=lambda way: times[way], default=WAYS[-1])


def bring_home(out: Path, name: str, folder: Path) -> bool:
    """Put a run's network and what it goes on from into `out`; say whether that succeeded."""
    try:
        checkpoints = list_checkpoints(folder)
        if not checkpoints:
            raise ValueError(f"{folder} has no checkpoint.")
        _, state = load_checkpoint(checkpoints[-1])
        best, _ = load_checkpoint(find_best(folder) or checkpoints[-1])
        save(out / f"{name}.qsr", best, note=name, overwrite=True)
        pack_run(folder, out, name)
        files = {path.name: path.stat().st_size for path in sorted(out.iterdir())}
        line: dict = {"steps": state["step"], "files": files}
    except (OSError, ValueError) as error:
        line = {"error": first_line(error)}
    write(out, {"stage": f"home {name}", **line})
    return "error" not in line


def pack_run(folder: Path, out: Path, name: str) -> None:
    """Write what a run goes on from, its log, last checkpoint and best network, as out/name.tar.00,
    .01, ... of at most PART bytes; of a finished one, which never goes on, log and model.qsr.
    """
    for old in out.glob(f"{name}.tar.*"):
        old.unlink()
    model = folder / "model.qsr"
    taken = [model] if model.exists() else [list_checkpoints(folder)[-1], find_best(folder)]
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w") as archive:
        for path in (folder / "log.jsonl", *taken):
            if path is not None:
                archive.add(path, path.name)
    whole = data.getvalue()
    for number, start in enumerate(range(0, len(whole), PART)):
        (out / f"{name}.tar.{number:02}").write_bytes(whole[start : start + PART])


def unpack_run(carried: Path | None, name: str, folder: Path) -> None:
    """Put the run that `pack_run` wrote into `folder`, if there is one, and none is there yet."""
    parts = sorted(carried.glob(f"{name}.tar.*")) if carried else []
    if parts and not folder.exists():
        folder.mkdir(parents=True)
        whole = io.BytesIO(b"".join(part.read_bytes() for part in parts))
        with tarfile.open(fileobj=whole) as archive:
            archive.extractall(folder, filter="data")


def _pack_kit(folder: Path) -> Path:
    """The queue of a rehearsal; a packed file to train on, and weights to start from, beside it."""
    pack_sets(folder / "train.zip", PICTURES, max_mb=1.0)
    net = QuantSR(srresnet(2, blocks=2, features=8))
    save(folder / "start.qsr", net)
    options = "--patch 8 --batch 2 --threads 1 --log-every 2 --validate-every 1000"
    data = f"--data {shlex.quote(str(folder / 'train.zip'))} {options}"
    tiny = "--preset quantsr-c-x2-w4a4 --network-blocks 2 --depths 2 1 --features 8"
    start = f"--init {shlex.quote(str(folder / 'start.qsr'))}"
    rows = [
        f"tiny-c {tiny} {start} {data} --steps 6 --precision bfloat16 --relative-steps",
        f"tiny-srresnet --preset srresnet-x2 --network-blocks 1 --features 8 {data} --steps 4",
    ]
    queue = folder / "queue.txt"
    queue.write_text("# two rows\n" + "\n".join(rows) + "\n")
    return queue


if __name__ == "__main__":
    sys.exit(main())
