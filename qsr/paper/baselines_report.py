"""The comparison of `baselines` as a table, a sentence for each method, and a figure.

The paper claims that QuantSR, whose quantizer is RLQ, is above every other method. A difference of
two runs means something when it is larger than what another seed gives: so each is held against the
spread over seeds of RLQ and LSQ at 2/2, largest - smallest, and what is within it is called no
order. The sentences are made from the numbers, whichever way they fall.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..course.viewers import PALETTE
from . import report
from .baselines import FULL, METHODS, OWN_SCALE, Row, all_rows
from .records import TEST_SETS

if TYPE_CHECKING:
    from matplotlib.figure import Figure

BITS = ("4/4", "2/2", "8/4-6-8")
# PSNR-Y on Set5, x4, of networks with this body, as printed. The main paper's table of all methods
# was not to be had: QuantSR-C is of the supplement's Table 1, PAMS as DDTB's authors trained it.
PRINTED = {
    ("full precision", ""): 32.16,
    ("RLQ", "4/4"): 32.00,
    ("RLQ", "2/2"): 31.30,
    ("PAMS", "4/4"): 31.59,
    ("PAMS", "2/2"): 29.51,
}
PRINTED_FROM = (
    "Printed: Set5 in the supplement's Table 1 (QuantSR-C with 16 of 32 blocks, SRResNet) and, for "
    "PAMS, in the README of DDTB; trained for far longer, so the order counts and not the "
    "distance. The supplement prints no other method."
)


@dataclass(frozen=True)
class Result:
    """A method at a width. runs: {seed: {set: PSNR-Y}}. minutes: of its runs. inputs: mean bits of
    inputs, where a method chooses them."""

    method: str
    bits: str
    runs: Mapping[int, Mapping[str, float]]
    minutes: tuple[float, ...] = ()
    inputs: float | None = None

    def mean(self, name: str) -> float:
        """Mean over seeds on a set, dB."""
        return statistics.fmean(run[name] for run in self.runs.values())

    def overall(self, seed: int) -> float:
        """Mean over sets of one run, dB."""
        return statistics.fmean(self.runs[seed].values())

    @property
    def spread(self) -> float | None:
        """Largest - smallest over seeds of the mean over sets, dB; None with one seed."""
        scores = [self.overall(seed) for seed in self.runs]
        return max(scores) - min(scores) if len(scores) > 1 else None

    def minus(self, other: Result) -> float | None:
        """Mean difference over sets and seeds that both have, dB: paired, since a seed is the same
        patches for all; None without one."""
        both = [seed for seed in self.runs if seed in other.runs]
        differences = [self.overall(seed) - other.overall(seed) for seed in both]
        return statistics.fmean(differences) if differences else None


def results(found: Mapping[str, Mapping]) -> list[Result]:
    """Full precision, then each method at 4/4, 2/2 and its own widths, as far as there are records;
    on the paper's sets that all of them have."""
    sets = sets_of(found)
    listed = []
    if FULL in found:
        listed.append(Result("full precision", "", {0: _scores(found[FULL], sets)}))
    for bits in BITS:
        for method in METHODS:
            rows = [r for r in all_rows() if (r.method, r.bits) == (method, bits)]
            there = {row.seed: found[row.name] for row in rows if row.name in found}
            if there:
                runs = {seed: _scores(record, sets) for seed, record in there.items()}
                minutes = tuple(record["seconds"] / 60 for record in there.values())
                listed.append(Result(method, bits, runs, minutes, _inputs(there.values(), sets)))
    return listed


def sets_of(found: Mapping[str, Mapping]) -> list[str]:
    """The paper's test sets that all records have."""
    each = [{row["set"] for row in record["scores"]} for record in found.values()]
    shared = set.intersection(*each) if each else set()
    return [name for name in TEST_SETS if name in shared] or sorted(shared)


def missing(found: Mapping[str, Mapping]) -> list[Row]:
    """Rows without a record."""
    return [row for row in all_rows() if row.name not in found]


def _scores(record: Mapping, sets: Sequence[str]) -> dict[str, float]:
    scores = {row["set"]: row["psnr_y"] for row in record["scores"]}
    return {name: scores[name] for name in sets}


def _inputs(there, sets: Sequence[str]) -> float | None:
    rows = [row for record in there for row in record["scores"] if row["set"] in sets]
    chosen = [row["mean_bits"] for row in rows if "mean_bits" in row]
    return statistics.fmean(chosen) if chosen else None


# In letters ---------------------------------------------------------------------------------------


def text(found: Mapping[str, Mapping]) -> str:
    """Table, sentences, terms and what is missing, for a terminal or a page in Markdown."""
    listed, sets = results(found), sets_of(found)
    head = ("method", "bits", *sets, "minus RLQ", "below full precision", "printed", "seeds", "min")
    parts = [report.markdown(head, _rows(listed, sets), right=2, aligned=True)] if found else []
    notes = [*sentences(listed), *_terms(found)]
    return "\n\n".join([*parts, "\n".join(report.notes(notes, 108))])


def _rows(listed: Sequence[Result], sets: Sequence[str]) -> Iterator[tuple]:
    of = {(r.method, r.bits): r for r in listed}
    full = of.get(("full precision", ""))
    for r in listed:
        base = of.get(("RLQ", r.bits))
        ahead = None if base is None or base is r else r.minus(base)
        lost = None if full is None or full is r else _overall(full) - _overall(r)
        printed = PRINTED.get((r.method, r.bits))
        bits = r.bits if r.inputs is None else f"{r.bits}, inputs {r.inputs:.1f}"
        yield (
            r.method,
            bits or "32/32",
            *(f"{r.mean(name):.2f}{_spread(r, name)}" for name in sets),
            "-" if ahead is None else f"{ahead:+.3f}",
            "-" if lost is None else f"{lost:.2f}",
            "-" if printed is None else f"{printed:.2f}",
            len(r.runs) if r is not full else "-",
            f"{sum(r.minutes):.0f}" if r.minutes else "-",
        )


def _overall(r: Result) -> float:
    return statistics.fmean(r.overall(seed) for seed in r.runs)


def _spread(r: Result, name: str) -> str:
    """In brackets, largest - smallest over seeds."""
    scores = [run[name] for run in r.runs.values()]
    return f" ({max(scores) - min(scores):.2f})" if len(scores) > 1 else ""


def sentences(listed: Sequence[Result]) -> list[str]:
    """For each method and width beside RLQ: is RLQ above it, as the paper says?"""
    spreads = [r.spread for r in listed if r.spread is not None]
    noise = max(spreads) if spreads else None
    of = {(r.method, r.bits): r for r in listed}
    said = []
    for r in listed:
        base = of.get(("RLQ", r.bits))
        ahead = None if base is None or base is r else r.minus(base)
        if ahead is not None:
            said.append(_sentence(r, ahead, noise))
    return said


def _sentence(r: Result, ahead: float, noise: float | None) -> str:
    where = f"{r.method} {r.bits}"
    told = f"{abs(ahead):.3f} dB {'above' if ahead > 0 else 'below'} RLQ"
    if noise is None:
        return f"{where} is {told}; how much another seed changes is not known yet, so no verdict."
    if abs(ahead) <= noise:
        verdict = f"no order: seeds alone spread over {noise:.3f} dB"
    elif ahead < 0:
        verdict = f"the paper's order holds, seeds spread over {noise:.3f} dB"
    else:
        verdict = f"the paper's order does not hold, seeds spread over {noise:.3f} dB"
    several = len(r.runs) > 1
    note = "" if several or r.method == "RLQ" else " (one seed of this row)"
    more = "" if r.inputs is None else f", with inputs of {r.inputs:.1f} bits on average"
    return f"{where} is {told}{more}: {verdict}{note}."


def _terms(found: Mapping[str, Mapping]) -> Iterator[str]:
    """What all rows share, where they were made, and which are missing."""
    runs = {name: record for name, record in found.items() if name != FULL}
    if found:
        one = next(iter(found.values()))
        pixels = one["steps"] * one["batch"] * one["patch"] ** 2 / 1e6
        yield (
            f"All rows: 16 blocks at x4, {one['steps']:,} steps of {one['batch']} patches "
            f"{one['patch']}x{one['patch']} ({pixels:.1f} million lr pixels) of "
            f"{', '.join(one['data'])}; from the full-precision {one['init']['file']} (weights "
            f"{one['init']['weights'][:12]}), half of the loss against the pictures of "
            f"{one['teacher']['file']} ({one['teacher']['weights'][:12]}). The network kept is the "
            "best on held-out pictures. Means over seeds, in brackets largest - smallest; minus "
            "RLQ: mean of the sets, paired by seed; min: minutes of all seeds."
        )
        rate = OWN_SCALE["quantizer_rate"]
        yield (
            f"Own settings: RLQ and LSQ with relative steps at rate {rate:.0f}; PAMS and CADyQ as "
            "their recipes say, CADyQ's convolutions in float32, since its pictures have no common "
            "grid; DoReFa's range is not learned."
        )
    for device in dict.fromkeys(record["device"] for record in runs.values()):
        names = [name for name, record in runs.items() if record["device"] == device]
        yield f"On {device}: {', '.join(names)}."
    yield PRINTED_FROM
    left = missing(found)
    if left:
        yield f"Not run yet: {', '.join(row.name for row in left)}."


def as_json(found: Mapping[str, Mapping]) -> str:
    """Plain data: each result, the sentences, the names of missing rows."""
    listed = results(found)
    rows = [
        {
            "method": r.method,
            "bits": r.bits,
            "psnr_y": {str(seed): dict(run) for seed, run in r.runs.items()},
            "mean_bits_of_inputs": r.inputs,
            "spread": r.spread,
            "printed_set5": PRINTED.get((r.method, r.bits)),
            "minutes": list(r.minutes),
        }
        for r in listed
    ]
    left = [row.name for row in missing(found)]
    return json.dumps({"rows": rows, "sentences": sentences(listed), "missing": left}, indent=1)


# As a figure --------------------------------------------------------------------------------------


def draw(found: Mapping[str, Mapping], dark: bool = False) -> Figure:
    """How far each method is below full precision, mean of the sets; a dot for each seed, a bar to
    their mean. Methods without a record keep their line, with "not run".

    Raises ValueError without full precision and one row.
    """
    from .figures import new_figure  # which draws with matplotlib

    listed = results(found)
    of = {(r.method, r.bits): r for r in listed}
    full = of.get(("full precision", ""))
    if full is None or len(listed) < 2:
        raise ValueError(
            "there is no record of full precision and a row yet; train some first: qsr reproduce "
            "baselines --train."
        )
    widths = [bits for bits in BITS if bits != "8/4-6-8"]
    figure, axes = new_figure("dark" if dark else "light", (8, 2.6), ncols=len(widths), sharey=True)
    colours = dict(zip(METHODS, ("grey", "yellow", "purple", "blue", "red"), strict=True))
    marks = dict(zip(METHODS, "svD^o", strict=True))  # so that colour is not all that tells
    for ax, bits in zip(axes, widths, strict=True):
        ink = ax.xaxis.label.get_color()
        for y, method in enumerate(METHODS):
            r = of.get((method, bits))
            if r is None:
                ax.text(0, y, " not run", va="center", color=ink, fontsize=9)
                continue
            lost = [_overall(full) - r.overall(seed) for seed in r.runs]
            style = {"color": PALETTE[colours[method]]}
            ax.plot([0, statistics.fmean(lost)], [y, y], lw=3, alpha=0.5, **style)
            ax.plot(lost, [y] * len(lost), marks[method], ms=7, mec=ink, **style)
        ax.set(title=f"{bits} bits", xlabel="dB below full precision", yticks=range(len(METHODS)))
        ax.set_yticklabels(METHODS)
        ax.set_ylim(-0.6, len(METHODS) - 0.4)
        ax.axvline(0, color=ink, lw=1)
    return figure
