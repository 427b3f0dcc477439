"""`python -m tests.kills`: kill whatever writes at random moments, and look at what it leaves.

Each command runs once to its end. Then it is killed (SIGKILL) again and again, at moments drawn
from its duration, every second time not before it is writing a file: what lies there then is whole
or named as temporary, and the same call ends with the bytes of the run that was not killed.
Processes are forked from one that has imported everything (`forkserver`), so that a kill hits the
work and not the imports.
"""

import argparse
import json
import multiprocessing
import os
import random
import signal
import sys
import time
from pathlib import Path

import torch
from PIL import Image

import qsr
from qsr import cli

TINY = "--preset quantsr-c-x2-w4a4 --network-blocks 2 --features 4 --patch 8 --batch 2 --seed 1"
TRAIN = f"train --out out/run --data photos {TINY} --steps 12 --checkpoint-every 2"
COMMANDS = {  # each writes into out/, and goes on or begins anew when it is called again
    "upscale": "upscale photos out --model packed.qsr --skip-existing",
    "train": f"{TRAIN} --validate-every 3",
    "pack": "pack trained.qsr out/packed.qsr --overwrite --card TEXT --sets photos",
    "export": "export --onnx trained.qsr out/model.onnx --overwrite --no-check",
    "data pack": "data pack out/photos.zip photos --overwrite",
    "save": "",  # not a command but `qsr.save`
}
TIMES = ("seconds", "images_per_s")  # what two runs of one training differ in


def prepare(folder: Path) -> None:
    """Pictures and models to begin with."""
    torch.manual_seed(0)
    net = qsr.QuantSR(qsr.quantsr_c(2, 4, blocks=2, features=4))
    qsr.calibrate(net, torch.rand(1, 3, 16, 16))
    qsr.save(folder / "trained.qsr", net.eval())
    qsr.save(folder / "packed.qsr", qsr.pack(net))
    (folder / "photos").mkdir()
    (folder / "out").mkdir()
    for i in range(4):
        values = torch.randint(256, (40 + i, 40, 3), dtype=torch.uint8)
        Image.fromarray(values.numpy()).save(folder / f"photos/{i}.png")


def work(name: str, folder: Path) -> None:
    """One call, in a process of its own."""
    torch.set_num_threads(1)
    os.environ.pop("QSR_DATA", None)  # photos is the folder here
    os.chdir(folder)
    sys.stdout = sys.stderr = open(os.devnull, "w")  # noqa: SIM115
    if name != "save":
        sys.exit(cli.main(COMMANDS[name].split()))
    net = qsr.load("./trained.qsr")
    for i in range(20):
        qsr.save(f"out/{i}.qsr", net)


def written(folder: Path) -> dict[str, bytes]:
    """What is there, by its name; of text about training all but the times."""
    found = {}
    for path in sorted((folder / "out").rglob("*")):
        if path.is_file():
            content = path.read_bytes()
            if path.name in ("state.json", "log.jsonl"):
                content = json.dumps(_timeless(content.decode())).encode()
            found[str(path.relative_to(folder))] = content
    return found


def unfinished(folder: Path) -> list[Path]:
    """What is being written, or was when its process died."""
    return list((folder / "out").rglob(".qsr-*"))


def _timeless(text: str) -> object:
    def without(values: dict) -> dict:
        return {key: value for key, value in values.items() if key not in TIMES}

    lines = text.splitlines() if text.startswith('{"') else [text]
    return [json.loads(line, object_hook=without) for line in lines]


def kill(name: str, folder: Path, kills: int, seed: int) -> str:
    """Kill a command `kills` times, in an empty folder -> what was seen; or AssertionError."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["torch", "onnx", "qsr.cli.use", "qsr.cli.train", __name__])
    whole, hurt = folder / "whole", folder / "hurt"
    for place in (whole, hurt):
        place.mkdir(parents=True)
        prepare(place)

    def start(place: Path, seconds: float | None = None, writing: bool = False) -> int | None:
        job = context.Process(target=work, args=(name, place))
        job.start()
        job.join(seconds)
        while writing and job.exitcode is None and not unfinished(place):
            time.sleep(1e-4)
        if job.exitcode is None:
            os.kill(job.pid, signal.SIGKILL)
            job.join()
        return job.exitcode

    assert start(hurt) == 0  # a first one, which loads what the next ones find loaded
    began = time.monotonic()
    assert start(whole) == 0
    duration, expected = time.monotonic() - began, written(whole)
    moments = random.Random(f"{seed} {name}")
    killed = partly = 0
    while killed < kills:
        for path in sorted((hurt / "out").rglob("*"), reverse=True):
            path.rmdir() if path.is_dir() else path.unlink()
        for _ in range(moments.randint(1, 3)):  # one call may be killed several times on its way
            moment, writing = moments.uniform(0.1, 1) * duration, moments.random() < 0.5
            killed += start(hurt, moment, writing) == -signal.SIGKILL
            left = written(hurt)
            partly += bool(unfinished(hurt))
            if name != "train":  # which holds earlier steps on its way
                for path, content in left.items():
                    whole_or_named = "/.qsr-" in path or content == expected.get(path)
                    assert whole_or_named, f"{path} is half-written"
        assert start(hurt) == 0
        assert written(hurt) == expected, f"after kill {killed} the result is another one"
    return f"{killed} kills, {partly} in the middle of a file"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.kills", description=__doc__)
    parser.add_argument("--kills", type=int, default=100, help="of each command (%(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("folder", type=Path, help="an empty folder to work in")
    args = parser.parse_args()
    for name in COMMANDS:
        print(f"{name}: {kill(name, args.folder / name, args.kills, args.seed)}", flush=True)


if __name__ == "__main__":
    main()
