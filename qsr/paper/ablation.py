"""Quantizers on equal terms: one small network, the same data, steps and seeds for each.

What a method is worth shows only beside another one trained alike. Here a QuantSR-C at x2, small
enough to train within two minutes on a CPU, is trained from the same random weights with each
quantizer, and RLQ once more with a part taken away:

    no tau     the shift of the activations stays 0
    no phi     the surrogate has slope 1 (sharpness 0)
    DQA        twice the blocks, trained at three depths, scored at the depth of the others

or with steps and tau that move at their own scale (`train.relative_step`), as LSQ once more:

    relative   --relative-steps --quantizer-rate 30

CADyQ chooses its own widths of activations, among 4, 6 and 8, patch by patch; its row says which it
chose on average. Teachers are left out: all learn from pictures alone.

Each run writes one JSON record, so a stopped ablation goes on where it was, and more seeds can be
added later. Scores are those of the last step; nothing is chosen by a test set.
"""

from __future__ import annotations

import dataclasses
import json
import os
import statistics
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tqdm.auto import tqdm

from ..backbone import QuantSR
from ..baselines.cadyq import Patchwise
from ..config import NetworkConfig, quantsr_c, srresnet
from ..images.data import Patches
from ..quantizer import QUANTIZERS
from ..runs.fit import fit
from ..schedule import TrainConfig
from ..scores import evaluate
from ..system.files import replacing
from . import report
from .terms import ABLATION_SETS as SETS

SCALE, BLOCKS, FEATURES = 2, 4, 32
RELATIVE_RATE = 30.0  # of steps and tau over that of weights


@dataclass(frozen=True)
class Variant:
    """One method at one width. tau: whether the shift of activations is trained. relative: whether
    steps and tau are trained at their own scale. bit_weight: price of the bits that CADyQ chooses.
    """

    method: str
    bits: int
    config: NetworkConfig
    tau: bool = True
    relative: bool = False
    bit_weight: float = 0.0

    @property
    def name(self) -> str:
        """A name for files: method and width."""
        return f"{self.method.replace(' ', '-').lower()}-{self.bits}"


def variants() -> list[Variant]:
    """All rows of the ablation: full precision, then each method at 4 and 2 bits."""
    small: dict[str, Any] = {"blocks": BLOCKS, "depths": (BLOCKS,), "features": FEATURES}
    deep = {**small, "blocks": 2 * BLOCKS, "depths": (2 * BLOCKS, BLOCKS, BLOCKS // 2)}
    rows = [Variant("full precision", 32, srresnet(SCALE, blocks=BLOCKS, features=FEATURES))]
    for bits in (4, 2):
        rows += [
            Variant(name, bits, quantsr_c(SCALE, bits, quantizer=name.lower(), **small))
            for name in ("RLQ", "LSQ", "PAMS", "DoReFa")
        ]
    for bits in (4, 2):
        rows += [
            Variant("RLQ no tau", bits, quantsr_c(SCALE, bits, **small), tau=False),
            Variant("RLQ no phi", bits, quantsr_c(SCALE, bits, sharpness=0.0, **small)),
            Variant("RLQ DQA", bits, quantsr_c(SCALE, bits, **deep)),
        ]
    for bits in (4, 2):
        rows += [
            Variant(
                f"{name} relative",
                bits,
                quantsr_c(SCALE, bits, quantizer=name.lower(), **small),
                relative=True,
            )
            for name in ("RLQ", "LSQ")
        ]
    chooses = quantsr_c(SCALE, 8, quantizer="cadyq", **small)
    price = QUANTIZERS["cadyq"].recipe["bit_weight"]
    return [*rows, Variant("CADyQ", 8, chooses, bit_weight=price)]


def network(variant: Variant, seed: int) -> QuantSR:
    """The network of a variant before training; all of a seed have the same weights."""
    torch.manual_seed(seed)
    net = QuantSR(variant.config)
    if not variant.tau:
        for name, parameter in net.named_parameters():
            parameter.requires_grad_(not name.endswith("tau"))
    return net


def run(variant: Variant, patches: Patches, steps: int, sets: Sequence[str] = SETS) -> dict:
    """Train one variant and score it: the record, as JSON takes it. The seed is that of patches."""
    began = time.monotonic()
    net = network(variant, patches.seed)
    config = TrainConfig(
        steps=steps, learning_rate=5e-4, schedule="cosine", warmup=min(100, steps), keep=1,
        checkpoint_every=steps, bit_weight=variant.bit_weight, relative_steps=variant.relative,
        quantizer_rate=RELATIVE_RATE if variant.relative else 1.0,
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        fit(net, patches, config, folder)
    bits: list[float] = []  # that CADyQ chose for each picture
    if variant.config.quantizer == "cadyq":
        patchwise = Patchwise(net)
        scores = {name: evaluate(patchwise, name, SCALE) for name in sets}
        bits = patchwise.bits
    else:
        scores = {name: evaluate(net.eval(), name, blocks=BLOCKS) for name in sets}
    return {
        **({"mean_bits": statistics.fmean(bits)} if bits else {}),
        "method": variant.method,
        "bits": variant.bits,
        "seed": patches.seed,
        "steps": steps,
        "data": patches.sets,
        "psnr_y": {name: score.psnr_y for name, score in scores.items()},
        "ssim_y": {name: score.ssim_y for name, score in scores.items()},
        "seconds": round(time.monotonic() - began, 1),
        "threads": torch.get_num_threads(),
        "config": dataclasses.asdict(variant.config),
    }


def ablation(
    folder: str | os.PathLike,
    data: Sequence[str],
    steps: int = 1500,
    seeds: int = 3,
    methods: Sequence[str] = (),
    sets: Sequence[str] = SETS,
) -> list[dict]:
    """Run what is missing of all variants and seeds 0, 1, .. and return all records.

    methods: names of `variants()`; empty: all. Raises ValueError for an unknown one, or if
    `folder` holds a record of other data or steps.
    """
    known = {variant.method: None for variant in variants()}
    for method in methods:
        if method not in known:
            raise ValueError(f"`--methods` has {method!r}; there are {', '.join(known)}.")
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    chosen = [v for v in variants() if not methods or v.method in methods]
    records = []
    for seed in range(seeds):  # a seed of all before the next: what there is can be compared
        patches = None
        for variant in tqdm(chosen, f"seed {seed}", unit="run"):
            path = folder / f"{variant.name}-seed{seed}.json"
            if not path.exists():
                patches = patches or Patches(data, SCALE, patch=24, batch=8, seed=seed)
                record = run(variant, patches, steps, sets)
                with replacing(path) as temporary:
                    Path(temporary).write_text(json.dumps(record, indent=1) + "\n")
            record = json.loads(path.read_text())
            scored = list(record["psnr_y"])
            if (record["steps"], record["data"], scored) != (steps, list(data), list(sets)):
                raise ValueError(
                    f"{path} was run for {record['steps']} steps on {', '.join(record['data'])} "
                    f"and scored on {', '.join(scored)}; choose the same or another folder."
                )
            records.append(record)
    return records


def table(records: Sequence[dict]) -> str:
    """Markdown: mean and spread (largest - smallest) over seeds of PSNR-Y on each set, and of the
    difference from RLQ of the same width (else of 4 bits) and seed, mean of the sets. Differences
    are paired because a seed is the start and the patches of all methods: what it gives or takes,
    it gives to all.
    """
    groups: dict[tuple[str, int], dict[int, dict]] = {}
    for record in records:
        groups.setdefault((record["method"], record["bits"]), {})[record["seed"]] = record
    sets = list(records[0]["psnr_y"])
    lines = []
    for (method, bits), runs in groups.items():
        cells = [_spread([run["psnr_y"][name] for run in runs.values()]) for name in sets]
        base = groups.get(("RLQ", bits), groups.get(("RLQ", 4), {}))
        differences = [_mean(run) - _mean(base[seed]) for seed, run in runs.items() if seed in base]
        gap = _spread(differences, "+.3f") if differences and base is not runs else "-"
        chosen = [run["mean_bits"] for run in runs.values() if "mean_bits" in run]
        width = f"8, {_spread(chosen)}" if chosen else bits
        lines.append((method, width, *cells, gap, len(runs)))
    return report.markdown(("method", "bits", *sets, "minus RLQ", "seeds"), lines)


def _spread(values: Sequence[float], style: str = ".2f") -> str:
    """The mean, and in brackets largest - smallest."""
    several = f" ({max(values) - min(values):{style.lstrip('+')}})" if len(values) > 1 else ""
    return f"{statistics.fmean(values):{style}}{several}"


def _mean(run: dict) -> float:
    """dB, over sets."""
    return statistics.fmean(run["psnr_y"].values())
