"""The methods that the paper compares, on equal terms and at the size of Table 1.

A table of published numbers compares code, data and patience as much as methods. Here DoReFa, PAMS,
CADyQ, LSQ and RLQ quantise one network, SRResNet of 16 blocks at x4, from the same full-precision
weights, with the same teacher, pictures, patches and number of steps: all of that is `Terms`. What
differs is what a method's paper asks for, and its quantizer brings (`Quantizer.recipe`): attention
maps of the teacher and the learning rate of clips for PAMS, these and a price on bits for CADyQ.
RLQ and LSQ train their steps at their own scale (decision 14), without which they hardly move.

A row is a method at a width, with a seed, which is that of the patches: all start from one network.
CADyQ chooses widths of inputs; besides its own, 4, 6 and 8 bits with weights of 8, it stands at 4/4
with 2, 4 and 6, and at 2/2 with 2, 3 and 4, which is more than 2 (decision 12).

    run(row, ...)                  train a row to its end, or go on, and write its record
    read(folder)                   the records there are, which must share their terms

`baselines_report` compares them. QuantSR-C of Table 1 is another network, 16 of 32 blocks trained
with three depths for longer, so nothing of the zoo is in this table.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ..backbone import QuantSR, load_weights
from ..config import NetworkConfig, preset
from ..images.data import Patches, held_out
from ..models.file import config_to_json, digest, save
from ..quantizer import QUANTIZERS
from ..runs.checkpoints import load_checkpoint
from ..runs.fit import fit
from ..schedule import TrainConfig
from . import records
from .rows import fitting
from .terms import BASELINE_STEPS, TRAINING_SETS

SCALE = 4
FULL = "full-precision"  # the record of what all rows start from
METHODS = ("DoReFa", "PAMS", "CADyQ", "LSQ", "RLQ")  # in the order of the paper's figures, RLQ last
RESULTS = records.RESULTS / "baselines"
# At their own scale, as the models that come with qsr; other methods as their recipes say.
OWN_SCALE = {"relative_steps": True, "quantizer_rate": 30.0}


@dataclass(frozen=True)
class Row:
    """One run: a method at a width and with a seed. network: name of its preset.

    >>> Row("CADyQ", "4/4", "quantsr-c-x4-w4a6").name
    'cadyq-w4a6-seed0'
    """

    method: str
    bits: str  # what the paper's tables call it
    network: str
    seed: int = 0

    @property
    def name(self) -> str:
        """A name for files and for --rows."""
        return f"{self.method.lower()}-{self.network.rpartition('-')[2]}-seed{self.seed}"


def all_rows() -> tuple[Row, ...]:
    """Every row, in the order in which they are trained: 2/2 first, where methods differ most, and
    more seeds of RLQ and LSQ there, which say how much a difference means."""

    def seed(bits: str, number: int, methods: Sequence[str]) -> list[Row]:
        width = bits[0]
        inputs = {"CADyQ": {"4": "6", "2": "4"}[width]}
        return [
            Row(m, bits, f"quantsr-c-x{SCALE}-w{width}a{inputs.get(m, width)}", number)
            for m in methods
        ]

    several = ("RLQ", "LSQ")
    return (
        *seed("2/2", 0, METHODS[::-1]),
        *seed("2/2", 1, several),
        *seed("2/2", 2, several),
        *seed("4/4", 0, METHODS[::-1]),
        Row("CADyQ", "8/4-6-8", f"quantsr-c-x{SCALE}-w8a8"),
    )


def chosen_rows(patterns: Sequence[str] = ()) -> tuple[Row, ...]:
    """The rows whose names fit one of the patterns; none given: all.

    Raises ValueError for a pattern that fits no row.

    >>> [row.name for row in chosen_rows(["rlq-*-seed2", "cadyq-w8a8-*"])]
    ['rlq-w2a2-seed2', 'cadyq-w8a8-seed0']
    """
    rows = all_rows()
    refusal = "no row is called {pattern}; rows are {names}."
    named = fitting((row.name for row in rows), patterns, refusal)
    return tuple(row for row in rows if row.name in named)


@dataclass(frozen=True)
class Terms:
    """What all rows share. steps of `batch` patches of patch x patch lr pixels, from `data`."""

    steps: int = BASELINE_STEPS
    data: tuple[str, ...] = TRAINING_SETS
    patch: int = 24
    batch: int = 8
    blocks: int = 16
    features: int = 64

    def network(self, row: Row) -> NetworkConfig:
        """The network of a row."""
        return preset(
            row.network,
            blocks=self.blocks,
            depths=(self.blocks,),
            features=self.features,
            quantizer=row.method.lower(),
        )

    def training(self, row: Row) -> TrainConfig:
        """How a row is trained: what its method asks for, and the rest for all alike."""
        own: Mapping[str, Any] = QUANTIZERS[row.method.lower()].recipe
        return TrainConfig(
            **(own or (OWN_SCALE if row.method in ("RLQ", "LSQ") else {})),
            steps=self.steps,
            learning_rate=3e-4,
            schedule="cosine",
            warmup=self.steps // 50,
            joint=False,
            distill=0.5,
            ema=0.999,
            precision="bfloat16",
            validate_every=500,
            checkpoint_every=500,
        )


TERMS = Terms()


@dataclass(frozen=True)
class Start:
    """A full-precision network that rows start from or learn from. file: where it came from."""

    file: str
    net: QuantSR

    @property
    def described(self) -> dict[str, str]:
        """Its file and the sha256 of its weights, as records have it."""
        return {"file": Path(self.file).name, "weights": digest({}, self.net.state_dict())}


def run(
    rows: Iterable[Row],
    start: Start,
    teacher: Start,
    runs: str | os.PathLike,
    terms: Terms = TERMS,
    results: str | os.PathLike | None = None,
    sets: Sequence[str] | None = None,
    max_seconds: float | None = None,
) -> Iterable[Path]:
    """Train what is missing of the rows, one after the other, and yield each record as it is there.

    A row whose record is in `results` (None: docs/results/baselines) is not trained again; one that
    was stopped goes on from its last checkpoint in `runs`/NAME, where its weights are kept at the
    end as model.qsr. max_seconds: of each row, resumable. sets: to be scored on (None: those that
    are here). Raises ValueError if a record has other terms.
    """
    results = RESULTS if results is None else results
    shared = _shared(start, teacher, terms)
    _check_shared({**read(results), "this call": {**shared, "scores": []}})
    if not (Path(results) / f"{FULL}.json").exists():
        yield _record_start(start, shared, sets, results)
    pictures = None
    for row in rows:
        if (Path(results) / f"{row.name}.json").exists():
            continue
        folder = Path(runs) / row.name
        pictures = pictures or Patches(terms.data, SCALE, terms.patch, terms.batch)
        patches = copy.copy(pictures)  # which shares the pictures
        patches.seed = row.seed
        torch.manual_seed(row.seed)
        net = QuantSR(terms.network(row))
        load_weights(net, start.net)
        config, validation = terms.training(row), held_out(terms.data, SCALE)
        last = fit(net, patches, config, folder, max_seconds, validation, teacher.net)
        if load_checkpoint(last)[1]["step"] < terms.steps:
            continue  # max_seconds; `fit` has said how to go on
        record = records.make_record(row.network, folder, {"seed": row.seed}, sets)
        own = {"name": row.name, "method": row.method, "bits": row.bits}
        path = records.write_record({**own, **record, **own, **shared}, results)
        best = records.best_network(folder)[0]
        save(folder / "model.qsr", best, note=f"{row.name}, {terms.steps} steps", overwrite=True)
        yield path


def _shared(start: Start, teacher: Start, terms: Terms) -> dict:
    """What the records of a comparison must have in common."""
    return {
        "steps": terms.steps,
        "data": [Path(name).name for name in terms.data],
        "patch": terms.patch,
        "batch": terms.batch,
        "init": start.described,
        "teacher": teacher.described,
    }


def _record_start(
    start: Start, shared: Mapping, sets: Sequence[str] | None, results: str | os.PathLike
) -> Path:
    """Score the full-precision network itself."""
    scores = records.score(
        start.net, start.net.config.depths[:1], records.sets_here() if sets is None else sets
    )
    network = config_to_json(start.net.config)
    made = {**records.origin(FULL), **shared, "network": network, "scores": scores}
    return records.write_record(made, results)


def read(folder: str | os.PathLike | None = None) -> dict[str, dict]:
    """{name: record} of a comparison (None: docs/results/baselines).

    Raises ValueError if two of them were made on other terms, or one is none of its rows.
    """
    found = records.read_records(RESULTS if folder is None else folder)
    known = {FULL, *(row.name for row in all_rows())}
    for name in found:
        if name not in known:
            raise ValueError(f"{name!r} is no row of this comparison; keep its record elsewhere.")
    _check_shared(found)
    return found


def _check_shared(found: Mapping[str, Mapping]) -> None:
    (first, terms), *others = found.items() or [("", {})]
    for name, record in others:
        for key in ("steps", "data", "patch", "batch", "init", "teacher"):
            if record.get(key) != terms.get(key):
                raise ValueError(
                    f"`{key}` is {terms.get(key)!r} in the record of {first} and "
                    f"{record.get(key)!r} in {name}; rows are compared on equal terms. Keep one of "
                    "them in another folder (--results)."
                )
