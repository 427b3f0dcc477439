"""Records of trained networks: what was trained, how, and what it scores; one JSON file each.

Weights are large and age; what a table says about them should outlive them. A record holds the
network and its training configuration, data, seed, commit, steps, device and seconds, how the score
on held-out pictures rose, and the scores of every test picture at every depth. Those of a quantised
network are the scores of its packed form, which is what runs.

    make_record(folder of a run, call)     score the run's best network on held-out pictures
    make_record("bicubic-x4")              interpolation, which has nothing to train
    read_records()                         those of this checkout, in docs/results
    in_words(record, records)              how a network was made, for its model card
"""

from __future__ import annotations

import datetime
import json
import os
import statistics
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from ..backbone import QuantSR
from ..baselines.cadyq import Patchwise
from ..config import NetworkConfig, preset
from ..images.data import EMBEDDED, list_sets
from ..infer import Model
from ..integer.packing import pack
from ..models.file import config_to_json
from ..quantizer import QUANTIZERS
from ..runs.checkpoints import find_best, list_checkpoints, load_checkpoint
from ..runs.log import read_log
from ..schedule import TrainConfig
from ..scores import Scores, evaluate
from ..system.files import replacing
from ..system.machine import machine
from ..system.version import __version__

RESULTS = Path(__file__).parents[2] / "docs" / "results"  # of a checkout
TEST_SETS = ("Set5", "Set14", "B100", "Urban100", "Manga109")  # the paper's
BICUBIC = "bicubic-x"
PAPER_STEPS = TrainConfig().steps


def sets_here() -> list[str]:
    """The paper's test sets that QSR_DATA has, and "embedded"."""
    there = list_sets()
    return [name for name in (*TEST_SETS, EMBEDDED) if name in there]


def read_records(folder: str | os.PathLike | None = None) -> dict[str, dict]:
    """{name: record} of a folder (None: docs/results of this checkout; empty if there is none).

    Raises ValueError (one line) for a file that is no record.
    """
    paths = sorted(Path(folder or RESULTS).glob("*.json"))
    return {record["name"]: record for record in map(read_record, paths)}


def read_record(path: str | os.PathLike) -> dict:
    """The record in one file. Raises ValueError (one line) for a file that is none."""
    try:
        record = json.loads(Path(path).read_text())
        _ = record["name"], [(r["blocks"], r["set"], r["psnr_y"]) for r in record["scores"]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is no record of a network ({error}). Remove it.") from error
    return record


def record_name(name: str, config: NetworkConfig) -> str:
    """The name of a record: that of the preset, and in what the network differs from it.

    >>> from qsr import quantsr_c
    >>> record_name("quantsr-c-x4-w4a4", quantsr_c(4, 4, blocks=16, quantizer="pams"))
    'quantsr-c-x4-w4a4-16-blocks-pams'
    """
    usual = preset(name)
    for field in ("blocks", "features"):
        if getattr(config, field) != getattr(usual, field):
            name += f"-{getattr(config, field)}-{field}"
    return name if config.quantizer == usual.quantizer else f"{name}-{config.quantizer}"


def make_record(
    name: str,
    run: str | os.PathLike | None = None,
    call: Mapping[str, Any] | None = None,
    sets: Sequence[str] | None = None,
) -> dict:
    """Score the finished run in the folder `run` and say how it was made, as JSON takes it.

    name: "bicubic-x2" or "bicubic-x4", which have no run, or the preset that was trained. call:
    what a run does not remember: "data" (names of sets), "patch", "batch", "seed", "init",
    "teacher", "device". sets: test sets (None: those that are here). The network is the one that
    did best on held-out pictures, else the last. Raises ValueError if there is no such run, or it
    is not finished.
    """
    made = origin(name)
    sets = sets_here() if sets is None else sets
    if name.startswith(BICUBIC):
        scale = int(name.removeprefix(BICUBIC))
        return {**made, "scores": [score_row(None, s, evaluate("bicubic", s, scale)) for s in sets]}
    if run is None:
        raise ValueError(f"`run` is None; {name!r} was trained: name the folder of its run.")
    net, state, chosen = best_network(run)
    training, done = state["training"], state["step"]
    depths = net.config.depths if training["joint"] else net.config.depths[:1]
    call = dict(call or {})
    for key in ("init", "teacher"):  # a name, not a place of one machine
        call[key] = Path(call[key]).name.removeprefix("zoo:") if call.get(key) else None
    device = str(call.pop("device", "cpu"))
    return {
        **made,
        "name": record_name(name, net.config),
        **call,
        "steps": done,
        "device": _device(device),
        "seconds": round(state["seconds"]),
        "weights": chosen,
        "validation": _validation(read_log(run), net.config.blocks, done),
        "torch": state["torch"],
        "network": config_to_json(net.config),
        "training": training,
        "scores": score(net, depths, sets),
    }


def origin(name: str) -> dict:
    """The first entries of a record: its name, and by which qsr and when it is made."""
    today = datetime.date.today().isoformat()
    return {"name": name, "qsr": __version__, "commit": _commit(), "date": today}


def best_network(run: str | os.PathLike) -> tuple[QuantSR, dict, str]:
    """(the best network of a finished run, its state at the end, how that network was chosen)."""
    checkpoints = list_checkpoints(run)
    if not checkpoints:
        raise ValueError(f"{run} holds no checkpoint; name the folder of a run.")
    net, state = load_checkpoint(checkpoints[-1])
    done, steps = state["step"], state["training"]["steps"]
    if done < steps:
        raise ValueError(
            f"{run} has done {done} of {steps} steps; the same call goes on. A record is made at "
            "the end."
        )
    best = find_best(run)
    if best is None:
        return net, state, "the last step"
    net, best_state = load_checkpoint(best)
    return net, state, f"step {best_state['step']}, by held-out pictures"


def write_record(record: Mapping[str, Any], folder: str | os.PathLike | None = None) -> Path:
    """Write a record as NAME.json (None: into docs/results of this checkout) and return its path.

    One line for each entry, and for each set of its scores, so that a change is seen in a diff.
    Raises ValueError for a place that can't be written.
    """
    path = Path(folder or RESULTS) / f"{record['name']}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = []
    for key, value in record.items():
        text = json.dumps(value)
        if key == "scores":
            text = "[\n  " + ",\n  ".join(map(json.dumps, value)) + "\n ]"
        lines.append(f" {json.dumps(key)}: {text}")
    with replacing(path) as temporary:
        temporary.write_text("{\n" + ",\n".join(lines) + "\n}\n")
    return path


def in_words(record: Mapping, others: Mapping[str, Mapping] | None = None) -> str:
    """How the network of a record was trained, in sentences: data, budget, seed, device.

    others: {name: record}, in which the steps of the network that it started from are looked up.
    Raises ValueError for a record of something that was not trained.
    """
    if "training" not in record:
        raise ValueError(f"{record.get('name')!r} was not trained; name the record of a network.")
    network, training, others = record["network"], record["training"], others or {}
    depths = network["depths"] if training["joint"] else network["depths"][:1]
    ran = ", ".join(map(str, depths))
    deep = f", trained at depths {ran}" if len(depths) > 1 else ""
    source, start = record.get("init"), "from random weights"
    if source:
        steps = others.get(source, {}).get("steps")
        start = f"from {source}" + (f" (itself {steps:,} steps)" if steps else "")
    patch, share = record["patch"], training["distill"]
    taught = ""
    if record.get("teacher") and share:
        taught = f", {share:.0%} of the loss against the pictures of {record['teacher']}"
    if training.get("relative_steps"):
        taught += ", steps and tau trained at their own scale"
    if training.get("collapsed_tail"):
        taught += ", the tail as one convolution on what is inside patches"
    return (
        f"{network['blocks']} blocks{deep}. Data: {', '.join(record['data'])}; every tenth picture "
        f"held out. {record['steps']:,} steps of {record['batch']} patches {patch}x{patch}, {start}"
        f"{taught}; seed {record['seed']}; {record['seconds'] / 60:.0f} minutes on "
        f"{record['device']}. Weights: {record['weights']}. "
        f"The paper's schedule has {PAPER_STEPS:,} steps of 16 patches 48x48."
    )


def how_trained(record: Mapping) -> str:
    """Budget, device, seed and start of a record in one line."""
    pixels = record["steps"] * record["batch"] * record["patch"] ** 2 / 1e6
    return (
        f"{record['steps']:,} steps, {pixels:.1f} million lr pixels, "
        f"{record['seconds'] / 60:.0f} minutes on {record['device']}, seed {record['seed']}, from "
        f"{record.get('init') or 'random weights'}"
    )


def score(net: QuantSR, depths: Sequence[int], sets: Sequence[str]) -> list[dict]:
    """A row for each depth and set, of the network as it runs: packed, or in full precision; where
    pictures choose their widths (CADyQ), patch by patch at full depth, with the mean of the bits.
    """
    config = net.eval().config
    if config.bits is not None and not QUANTIZERS[config.quantizer].one_grid:
        return [_patchwise_row(net, name) for name in sets]
    model: Model = net if config.bits is None else pack(net)
    return [
        score_row(n, s, evaluate(model, s, blocks=n, progress=True)) for n in depths for s in sets
    ]


def _patchwise_row(net: QuantSR, name: str) -> dict:
    run = Patchwise(net)
    row = score_row(net.config.blocks, name, evaluate(run, name, net.config.scale, progress=True))
    return {**row, "mean_bits": round(statistics.fmean(run.bits), 4)}


def score_row(blocks: int | None, name: str, scores: Scores) -> dict:
    """Scores of one depth on one set, as records have them."""
    return {
        "blocks": blocks,
        "set": name,
        "psnr_y": round(scores.psnr_y, 5),
        "ssim_y": round(scores.ssim_y, 6),
        "pictures": list(scores.names),
        "psnr_each": [round(value, 3) for value in scores.psnr_each],
        "ssim_each": [round(value, 5) for value in scores.ssim_each],
    }


def _validation(log: Sequence[dict], blocks: int, steps: int) -> dict | None:
    """PSNR-Y of held-out pictures at the deepest depth: the best, and what the last fifth of the
    steps added to it; None where nothing was held out."""
    scores = [(x["step"], x[f"validation_{blocks}"]) for x in log if f"validation_{blocks}" in x]
    if not scores:
        return None
    best = max(score for _, score in scores)
    before = max((score for step, score in scores if step <= 0.8 * steps), default=None)
    gained = None if before is None else round(best - before, 4)
    return {"psnr_y": round(best, 4), "gained_in_last_fifth": gained}


def _commit() -> str | None:
    """The commit of this checkout, with -dirty if files differ from it; None outside of one."""
    root = Path(__file__).parents[2]
    git = ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=9"]
    if not (root / ".git").exists():  # installed, perhaps inside of another project's checkout
        return None
    try:
        return subprocess.run(git, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def _device(name: str) -> str:
    if name.startswith("cuda"):
        return torch.cuda.get_device_name(name)
    threads = torch.get_num_threads()
    return f"{machine()['cpu']}, {threads} thread{'s' if threads > 1 else ''}"
