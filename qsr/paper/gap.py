"""Limitation (1) of the paper: at 2 bits a network drops. By how much here, and what narrowed it.

The paper's QuantSR-C 2/2 with 16 blocks is 0.86 dB below its full precision at x4 on Set5, and its
authors name that drop as the first limitation of their method. Everything here is computed from
records, so it changes with the model that comes with qsr:

    drops()        gap of each 2/2 record of QuantSR-C at x4 to full precision, at each depth
    steps()        pairs of records that differ in one thing, and by how much the gap shrank

A gap to one's own full precision flatters when that is weak. So a network that was trained from an
earlier SRResNet stands in the table twice: below the one it came from, and below today's.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from . import baselines, report
from .baselines_report import Result, results
from .records import RESULTS, TEST_SETS, read_records
from .table1 import TABLE1, paper_gap

NETWORK, FULL = "quantsr-c-x4-w2a2", "srresnet-x4"
EARLIER = "2026-11-25"  # docs/results/gap: the first models, of which records were replaced
SETS = TEST_SETS[:3]  # those that records have


@dataclass(frozen=True)
class Drop:
    """dB below full precision, {set: gap}, of a network with so many of its blocks. source: where
    both are recorded."""

    network: str
    blocks: str
    gaps: Mapping[str, float]
    source: str


@dataclass(frozen=True)
class Step:
    """Gaps, dB, before and after one change, mean over sets. where: network and sets. source: the
    records."""

    what: str
    before: float
    after: float
    where: str
    source: str


def drops(folder: Path = RESULTS) -> list[Drop]:
    """The paper's, then ours: the earlier network below both full precisions, and today's."""
    found, first = read_records(folder), read_records(folder / "gap")
    now, full = found.get(NETWORK), found.get(FULL)
    old, old_full = first.get(f"{NETWORK}-{EARLIER}"), first.get(f"{FULL}-{EARLIER}")
    listed = list(_printed())
    if old and old_full:
        own = f"ours of {EARLIER}, below its own full precision"
        listed += _gaps(own, old, old_full, f"gap/{NETWORK}-{EARLIER}")
    if old and full:
        listed += _gaps(
            f"the same, below that of {full['date']}", old, full, f"gap/{NETWORK}-{EARLIER}, {FULL}"
        )
    if now and full and not _same(now, old):
        listed += _gaps(f"ours of {now['date']}", now, full, f"{NETWORK}, {FULL}")
    return listed


def _same(now: Mapping, old: Mapping | None) -> bool:
    """Whether the record is still that of the earlier network."""
    return old is not None and (now["date"], now["steps"]) == (old["date"], old["steps"])


def _printed() -> Iterator[Drop]:
    for row in TABLE1:
        if row.name == NETWORK:
            gaps = {name: gap for name in SETS if (gap := paper_gap(row, name)) is not None}
            yield Drop("the paper's", f"{row.blocks} of 32", gaps, "supplement, Table 1")


def _gaps(network: str, record: Mapping, full: Mapping, source: str) -> Iterator[Drop]:
    best = {row["set"]: row["psnr_y"] for row in full["scores"]}
    of = record["network"]["blocks"]
    by_depth: dict[int, dict[str, float]] = {}
    for row in record["scores"]:
        if row["set"] in SETS and row["set"] in best:
            by_depth.setdefault(row["blocks"], {})[row["set"]] = best[row["set"]] - row["psnr_y"]
    for blocks, gaps in by_depth.items():
        yield Drop(network, f"{blocks} of {of}", gaps, source)


# What narrowed it ---------------------------------------------------------------------------------


def steps(folder: Path = RESULTS) -> list[Step]:
    """Changes that have a record of both sides: of the ablation, of the equal terms of `baselines`,
    and of the models."""
    return [*_of_ablation(folder), *_of_baselines(folder), *_of_models(folder)]


def _of_ablation(folder: Path) -> Iterator[Step]:
    means = {}
    for name in ("full-precision-32", "rlq-2", "rlq-relative-2"):
        files = sorted((folder / "ablation").glob(f"{name}-seed*.json"))
        runs = [json.loads(path.read_text())["psnr_y"] for path in files]
        if not runs:
            return
        means[name] = statistics.fmean(statistics.fmean(run.values()) for run in runs)
    full, plain, relative = means.values()
    yield Step(
        "step sizes and tau trained at their own scale",
        full - plain,
        full - relative,
        "x2, 4 blocks of 32 features, 3 seeds",
        "ablation/rlq-2, rlq-relative-2",
    )


def _of_baselines(folder: Path) -> Iterator[Step]:
    of = {(r.method, r.bits): r for r in results(baselines.read(folder / "baselines"))}
    full, rlq = of.get(("full precision", "")), of.get(("RLQ", "2/2"))
    if full is None or rlq is None:
        return
    for method in baselines.METHODS:
        other = of.get((method, "2/2"))
        if other is not None and other is not rlq:
            yield Step(
                f"RLQ instead of {method}",
                _overall([full]) - _overall([other]),
                _overall([full]) - _overall([rlq]),
                "x4, 16 blocks, equal terms",
                f"baselines/{method.lower()}-w2*, rlq-w2a2",
            )


def _overall(of: Iterable[Result]) -> float:
    return statistics.fmean(r.overall(seed) for r in of for seed in r.runs)


def _of_models(folder: Path) -> Iterator[Step]:
    listed = [d for d in drops(folder) if d.blocks == "16 of 32" and "paper" not in d.network]
    if len(listed) == 3:
        _, before, after = listed
        yield Step(
            "a better start and teacher, and more steps",
            statistics.fmean(before.gaps.values()),
            statistics.fmean(after.gaps.values()),
            "x4, 16 of 32 blocks, below the same full precision",
            f"{before.source}; {NETWORK}",
        )


# In letters ---------------------------------------------------------------------------------------


def text(folder: Path = RESULTS) -> str:
    """Both tables in Markdown, and the number that counts in a sentence."""
    listed, narrowed = drops(folder), steps(folder)
    gaps = [
        (d.network, d.blocks, *(f"{d.gaps[s]:.2f}" if s in d.gaps else "-" for s in SETS), d.source)
        for d in listed
    ]
    parts = [
        "dB below full precision, PSNR-Y, QuantSR-C 2/2 at x4:",
        report.markdown(("network", "blocks", *SETS, "record"), gaps, right=2, aligned=True),
        sentence(listed),
    ]
    if narrowed:
        rows = [
            (s.what, f"{s.before:.2f}", f"{s.after:.2f}", f"{s.before - s.after:+.2f}", s.where,
             s.source)
            for s in narrowed
        ]  # fmt: skip
        head = ("step", "before", "after", "narrowed by", "where", "records")
        parts += [
            "What narrowed it, dB below full precision as mean of the sets:",
            report.markdown(head, rows, aligned=True),
        ]
    return "\n\n".join(parts)


def sentence(listed: Sequence[Drop]) -> str:
    """The gap of today's model with 16 blocks on Set5 beside the paper's."""
    of = [d for d in listed if d.blocks == "16 of 32" and "Set5" in d.gaps]
    paper = next(d for d in of if d.network == "the paper's").gaps["Set5"]
    ours = [d for d in of if d.network != "the paper's"]
    if not ours:
        return f"The paper has {paper:.2f} dB with 16 blocks on Set5; we have no record yet."
    gap = ours[-1].gaps["Set5"]
    verdict = "narrower" if gap < paper else "wider"
    return (
        f"With 16 blocks on Set5 the model that comes with qsr is {gap:.2f} dB below full "
        f"precision, the paper's {paper:.2f} dB: {verdict} by {abs(paper - gap):.2f} dB."
    )


def as_json(folder: Path = RESULTS) -> str:
    """Plain data: drops and steps."""
    listed = drops(folder)
    data = {
        "drops": [{**vars(d), "gaps": dict(d.gaps)} for d in listed],
        "steps": [vars(s) for s in steps(folder)],
        "sentence": sentence(listed),
    }
    return json.dumps(data, indent=1)
