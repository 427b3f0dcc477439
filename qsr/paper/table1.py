"""Table 1 of QuantSR's supplement: every printed cell, and beside it what we measured.

What is ours comes from, in this order,

    a model that comes with qsr    its packed file, scored here where QSR_DATA has the set, else as
                                   its card says
    a record                       of a network that was trained by this library (`records`)
    bicubic                        computed, or from its record

and a row of the paper is compared with nothing but its own network: 8 of the 32 blocks of
QuantSR-C are not 8 blocks of a network that has 16. Networks of other sizes, and other quantizers,
have lines of their own below, with nothing printed beside them.

Other training pictures than the paper's give other decibels in full precision already. So each
quantised network is also compared with our own full-precision one that was trained on the same
pictures, where there is a record of both: the gap says what the low bits cost.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from tqdm.auto import tqdm

from ..config import preset
from ..images.data import list_sets
from ..models import zoo
from ..scores import evaluate
from .records import BICUBIC, TEST_SETS, read_records
from .rows import fitting

Origin = Literal["measured", "card", "record"]
ATTENTION = "-attn"  # of names: the attention products are quantised too, as in no row of the paper

# What the paper prints ----------------------------------------------------------------------------


@dataclass(frozen=True)
class PrintedScores:
    """A row of Table 1. name: as `qsr.preset` has it, or bicubic-xS. cells: {set: (PSNR, SSIM)},
    digit for digit."""

    name: str
    blocks: int | None
    cells: dict[str, tuple[str, str]]

    @property
    def scale(self) -> int:
        return scale_of(self.name)

    @property
    def of(self) -> int | None:
        """Blocks of the network, of which `blocks` run."""
        return None if self.blocks is None else preset(self.name).blocks


_PRINTED = """
bicubic-x2 - 33.66 0.9299 30.24 0.8688 29.56 0.8431 26.88 0.8403 30.80 0.9339
srresnet-x2 16 38.00 0.9605 33.59 0.9171 32.19 0.8997 32.11 0.9282 38.56 0.9770
swinir-s-x2 4 38.14 0.9611 33.86 0.9206 32.31 0.9012 32.76 0.9340 39.12 0.9783
quantsr-c-x2-w4a4 32 38.04 0.9606 33.66 0.9185 32.22 0.9002 32.19 0.9296 38.90 0.9776
quantsr-c-x2-w4a4 16 37.97 0.9603 33.53 0.9176 32.15 0.8993 31.91 0.9268 38.67 0.9772
quantsr-c-x2-w4a4 8 37.80 0.9597 33.35 0.9158 32.04 0.8979 31.46 0.9221 38.25 0.9762
quantsr-t-x2-w4a4 4 38.10 0.9604 33.65 0.9186 32.21 0.8998 32.20 0.9295 38.85 0.9774
quantsr-t-x2-w4a4 2 37.93 0.9602 33.51 0.9173 32.14 0.8991 31.88 0.9262 38.55 0.9768
quantsr-t-x2-w4a4 1 37.80 0.9596 33.31 0.9155 32.01 0.8973 31.39 0.9207 38.19 0.9759
quantsr-c-x2-w2a2 32 37.70 0.9594 33.21 0.9148 31.96 0.8970 31.11 0.9189 37.93 0.9754
quantsr-c-x2-w2a2 16 37.57 0.9589 33.09 0.9136 31.84 0.8954 30.77 0.9149 37.60 0.9745
quantsr-c-x2-w2a2 8 37.32 0.9579 32.88 0.9114 31.68 0.8930 30.29 0.9087 37.01 0.9729
quantsr-t-x2-w2a2 4 37.55 0.9587 33.12 0.9143 31.89 0.8958 30.96 0.9172 37.61 0.9745
quantsr-t-x2-w2a2 2 37.44 0.9583 33.02 0.9134 31.83 0.8952 30.82 0.9156 37.40 0.9740
quantsr-t-x2-w2a2 1 37.33 0.9576 32.89 0.9119 31.71 0.8933 30.48 0.9112 37.04 0.9730
bicubic-x4 - 28.42 0.8104 26.00 0.7027 25.96 0.6675 23.14 0.6577 24.89 0.7866
srresnet-x4 16 32.16 0.8951 28.60 0.7822 27.58 0.7364 26.11 0.7870 30.46 0.9089
swinir-s-x4 4 32.44 0.8976 28.77 0.7858 27.69 0.7406 26.47 0.7980 30.92 0.9151
quantsr-c-x4-w4a4 32 32.17 0.8943 28.60 0.7821 27.59 0.7368 26.12 0.7885 30.52 0.9082
quantsr-c-x4-w4a4 16 32.00 0.8924 28.50 0.7799 27.52 0.7342 25.88 0.7807 30.15 0.9040
quantsr-c-x4-w4a4 8 31.75 0.8894 28.35 0.7763 27.42 0.7307 25.59 0.7700 29.73 0.8985
quantsr-t-x4-w4a4 4 32.18 0.8941 28.63 0.7822 27.59 0.7367 26.11 0.7871 30.49 0.9087
quantsr-t-x4-w4a4 2 32.02 0.8922 28.52 0.7795 27.52 0.7343 25.89 0.7797 30.20 0.9051
quantsr-t-x4-w4a4 1 31.79 0.8891 28.36 0.7757 28.37 0.7301 27.41 0.7687 29.69 0.8982
quantsr-c-x4-w2a2 32 31.47 0.8849 28.19 0.7725 27.31 0.7277 25.29 0.7604 29.16 0.8897
quantsr-c-x4-w2a2 16 31.30 0.8819 28.08 0.7694 27.23 0.7246 25.13 0.7537 28.81 0.8844
quantsr-c-x4-w2a2 8 31.04 0.8771 27.87 0.7643 27.11 0.7202 24.85 0.7423 28.21 0.8743
quantsr-t-x4-w2a2 4 31.53 0.8845 28.16 0.7715 27.28 0.7274 25.26 0.7609 29.06 0.8898
quantsr-t-x4-w2a2 2 31.45 0.8832 28.11 0.7703 27.25 0.7261 25.18 0.7575 28.89 0.8871
quantsr-t-x4-w2a2 1 31.26 0.8801 27.97 0.7665 27.15 0.7223 24.99 0.7490 28.52 0.8801
"""


def scale_of(name: str) -> int:
    """By how much a row enlarges: 2 of "bicubic-x2"."""
    return int(name.partition("-x")[2][0])


def _parse(line: str) -> PrintedScores:
    name, blocks, *cells = line.split()
    pairs = zip(cells[::2], cells[1::2], strict=True)
    count = None if blocks == "-" else int(blocks)
    return PrintedScores(name, count, dict(zip(TEST_SETS, pairs, strict=True)))


TABLE1 = tuple(_parse(line) for line in _PRINTED.strip().splitlines())

# (name, blocks, set) -> (the PSNR that belongs there, if it is known; what happened).
MISPRINTS: dict[tuple[str, int | None, str], tuple[str | None, str]] = {
    ("quantsr-t-x4-w4a4", 1, "B100"): (
        "27.41",
        "28.37 would be above the network of 4 blocks (27.59); the PSNR of this row slipped by one "
        "column, and that of B100, 27.41, stands under Urban100. Its SSIM, 0.7301, is in place.",
    ),
    ("quantsr-t-x4-w4a4", 1, "Urban100"): (
        None,
        "27.41 is the PSNR of B100; that of Urban100 is lost. QuantSR-C of 8 blocks, which has "
        "about the same SSIM (0.7700 against 0.7687), has 25.59.",
    ),
}


def intended(row: PrintedScores, name: str) -> tuple[float | None, float]:
    """(PSNR, SSIM) that a cell should hold: as printed, misprints put right; None if it is lost."""
    printed, ssim = row.cells[name]
    psnr, _ = MISPRINTS.get((row.name, row.blocks, name), (printed, ""))
    return None if psnr is None else float(psnr), float(ssim)


# What is ours -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Score:
    """Means over a set, PSNR-Y in dB and SSIM-Y, and where they come from."""

    psnr: float
    ssim: float
    origin: Origin


@dataclass(frozen=True)
class Measured:
    """What one of our networks scores at one depth.

    name: of the model or record. blocks run, of so many (None: bicubic). record: how it was
    trained, where there is one.
    """

    name: str
    blocks: int | None
    of: int | None
    cells: dict[str, Score]
    record: Mapping = field(default_factory=dict)

    @property
    def data(self) -> tuple[str, ...] | None:
        """Names of the sets it was trained on."""
        data = self.record.get("data")
        return None if data is None else tuple(data)

    @property
    def steps(self) -> int | None:
        """How many it was trained for."""
        return self.record.get("steps")

    @property
    def finished(self) -> bool | None:
        """Whether its last fifth gained less than 0.02 dB on held-out pictures."""
        gained = (self.record.get("validation") or {}).get("gained_in_last_fifth")
        return None if gained is None else gained < 0.02


def chosen_rows(patterns: Sequence[str] = ()) -> tuple[PrintedScores, ...]:
    """The rows whose names fit one of the patterns (`*-x4*`); none given: all. A name with -attn
    stands for the rows of the network without it, which the paper has.

    Raises ValueError for a pattern that fits no row.

    >>> [row.blocks for row in chosen_rows(["quantsr-t-x4-w2a2"])]
    [4, 2, 1]
    """
    plain = [pattern.removesuffix(ATTENTION) for pattern in patterns]
    refusal = "no row of Table 1 is called {pattern}; rows are {names}."
    named = fitting((row.name for row in TABLE1), plain, refusal)
    return tuple(row for row in TABLE1 if row.name in named)


def networks(patterns: Sequence[str] = ()) -> list[str]:
    """The names of the networks that rows speak of, each once, -attn as it was asked for.

    >>> networks(["quantsr-t-x4-w2a2", "quantsr-t-x4-w4a4-attn"])
    ['quantsr-t-x4-w2a2', 'quantsr-t-x4-w4a4-attn']
    """
    found = []
    for pattern in patterns or ["*"]:
        suffix = ATTENTION if pattern.endswith(ATTENTION) else ""
        found += [row.name + suffix for row in chosen_rows([pattern])]
    return list(dict.fromkeys(found))


def measure(
    rows: Sequence[PrintedScores], records: Mapping[str, dict], here: bool = True
) -> list[Measured]:
    """What we have for these rows, networks of other sizes or quantizers too.

    records: as `read_records` gives them. here: score models and bicubic on the sets that QSR_DATA
    has; else, and on other sets, cards and records are believed. Progress goes to stderr.
    """
    names = list(dict.fromkeys(row.name for row in rows))
    sets = [name for name in TEST_SETS if here and name in list_sets()]
    found: list[Measured] = []
    for name in zoo.names():
        if any(_belongs(name, row) for row in names):
            found += _from_model(name, sets, records)
    models = {(ours.name, ours.of) for ours in found}
    for name, record in records.items():
        of = record.get("network", {}).get("blocks")
        known = (name, of) in models or name.startswith(BICUBIC)  # a file is better than a record
        if not known and any(_belongs(name, row) for row in names):
            found += _from_record(record)
    for name in names:
        if name.startswith(BICUBIC) and (sets or name in records):
            found.append(_bicubic(name, sets, records.get(name)))
    return found


def _belongs(name: str, row: str) -> bool:
    """Whether a model or record has the name of a row, or is a variant of it."""
    return name == row or name.startswith(f"{row}-")


def _from_model(name: str, sets: Sequence[str], records: Mapping[str, dict]) -> Iterator[Measured]:
    model, card = zoo.load(name), zoo.card(name)
    depths = model.config.depths
    bar = tqdm(total=len(depths) * len(sets), desc=name, unit="set", disable=not sets)
    with bar:
        for blocks in depths:
            believed = card["scores"].get(str(blocks), {})
            there = [(s, *believed[s]) for s in TEST_SETS if s in believed]
            cells = {s: Score(psnr, ssim, "card") for s, psnr, ssim in there}
            for s in sets:
                scores = evaluate(model, s, blocks=blocks)
                cells[s] = Score(scores.psnr_y, scores.ssim_y, "measured")
                bar.update()
            record = records.get(name, {})
            same = record.get("network", {}).get("blocks") == model.config.blocks
            yield Measured(name, blocks, model.config.blocks, cells, record if same else {})


def _from_record(record: dict) -> Iterator[Measured]:
    by_depth: dict[int | None, dict[str, Score]] = {}
    for row in record["scores"]:
        cells = by_depth.setdefault(row["blocks"], {})
        if row["set"] in TEST_SETS:
            cells[row["set"]] = Score(row["psnr_y"], row["ssim_y"], "record")
    of = record.get("network", {}).get("blocks")
    for blocks, cells in by_depth.items():
        yield Measured(record["name"], blocks, of, cells, record)


def _bicubic(name: str, sets: Sequence[str], record: dict | None) -> Measured:
    cells = {} if record is None else next(_from_record(record)).cells
    for s in tqdm(sets, desc=name, unit="set", disable=not sets):
        scores = evaluate("bicubic", s, int(name.removeprefix(BICUBIC)))
        cells[s] = Score(scores.psnr_y, scores.ssim_y, "measured")
    return Measured(name, None, None, cells)


# Beside each other --------------------------------------------------------------------------------


@dataclass(frozen=True)
class Gap:
    """dB below our own full-precision network of the same data. counts: that one had at least as
    many steps and was trained to its end; else the gap flatters."""

    psnr: float
    counts: bool


@dataclass(frozen=True)
class Line:
    """A row of the table with ours. printed: None for a network that the paper lacks; ours: None
    for one that we lack, and why. gaps: {set: below our own full precision}."""

    name: str
    blocks: int | None
    of: int | None
    printed: PrintedScores | None
    ours: Measured | None
    why: str
    gaps: Mapping[str, Gap]

    @property
    def scale(self) -> int:
        return scale_of(self.name)

    @property
    def label(self) -> str:
        """A name for people: "QuantSR-C 4/4, 16 of 32 blocks"."""
        method, bits = method_and_bits(self.name)
        if self.blocks is None or self.of is None:
            return method
        some = "" if self.blocks == self.of else f" of {self.of}"
        return f"{method} {bits}, {self.blocks}{some} block{'s' if self.of > 1 else ''}"

    def difference(self, name: str) -> tuple[float, float] | None:
        """Ours minus printed (PSNR, SSIM), misprints put right; None where one is missing."""
        score = self.ours and self.ours.cells.get(name)
        if self.printed is None or not score:
            return None
        psnr, ssim = intended(self.printed, name)
        return None if psnr is None else (score.psnr - psnr, score.ssim - ssim)


def method_and_bits(name: str) -> tuple[str, str]:
    """What a row is called in the paper, and its bits.

    >>> method_and_bits("quantsr-c-x2-w4a4"), method_and_bits("quantsr-c-x2-w4a4-16-blocks-pams")
    (('QuantSR-C', '4/4'), ('PAMS (C)', '4/4'))
    """
    family, _, rest = name.partition("-x")
    if "-w" not in rest:
        names = {"bicubic": "Bicubic", "srresnet": "SRResNet", "swinir-s": "SwinIR_S"}
        return names[family], "-/-" if family == "bicubic" else "32/32"
    widths, *others = rest[3:].split("-")
    letter = family[-1].upper()
    quantizers = {"lsq": "LSQ", "pams": "PAMS", "dorefa": "DoReFa"}
    named = [f"{quantizers[other]} ({letter})" for other in others if other in quantizers]
    method = named[0] if named else f"QuantSR-{letter}"
    return (f"{method} attn" if "attn" in others else method), widths.replace("a", "/")


def lines(
    rows: Sequence[PrintedScores], measured: Sequence[Measured], records: Mapping[str, dict]
) -> list[Line]:
    """The printed rows in their order, each with ours; our other networks after those of their
    name. records: where full precision is looked up that is not measured."""
    left = {(m.name, m.blocks, m.of): m for m in measured}
    result = []

    def add(key: tuple[str, int | None, int | None], printed: PrintedScores | None) -> None:
        ours = left.pop(key, None)
        why = "" if ours or printed is None else _why(printed, measured)
        result.append(Line(*key, printed, ours, why, _gaps(ours, measured, records)))

    for i, row in enumerate(rows):
        add((row.name, row.blocks, row.of), row)
        if i + 1 == len(rows) or rows[i + 1].name != row.name:
            for key in [key for key in left if _belongs(key[0], row.name)]:
                add(key, None)
    return result


def _why(row: PrintedScores, measured: Sequence[Measured]) -> str:
    """Why a row has nothing of ours."""
    if row.name.startswith(BICUBIC):
        return "no data: set QSR_DATA"
    others = sorted({m.of for m in measured if m.name == row.name and m.of is not None})
    if others:
        return f"not run: our network has {' and '.join(map(str, others))} blocks, see below"
    return "not run: our compute went to other rows first"


def _gaps(
    ours: Measured | None, measured: Sequence[Measured], records: Mapping[str, dict]
) -> dict[str, Gap]:
    """{set: gap to our own full-precision network trained on the same pictures}."""
    if ours is None:
        return {}
    name = full_precision(ours.name)
    full = next((m for m in measured if m.name == name), None)
    if full is None and name is not None and name in records:
        full = next(_from_record(records[name]))
    if full is None or ours.data is None or full.data is None:
        return {}
    if sorted(ours.data) != sorted(full.data):
        return {}
    counts = bool(full.finished) and (full.steps or 0) >= (ours.steps or 0)
    return {
        s: Gap(full.cells[s].psnr - score.psnr, counts)
        for s, score in ours.cells.items()
        if s in full.cells
    }


def full_precision(name: str) -> str | None:
    """The row of the full-precision network that a quantised one is compared with.

    >>> full_precision("quantsr-t-x4-w2a2"), full_precision("srresnet-x4")
    ('swinir-s-x4', None)
    """
    for family, plain in (("quantsr-c", "srresnet"), ("quantsr-t", "swinir-s")):
        if name.startswith(f"{family}-x"):
            return f"{plain}-x{scale_of(name)}"
    return None


def paper_gap(row: PrintedScores, name: str) -> float | None:
    """dB by which the paper's own row is below its full-precision network on a set."""
    full = next((r for r in TABLE1 if r.name == full_precision(row.name)), None)
    if full is None:
        return None
    (psnr, _), (best, _) = intended(row, name), intended(full, name)
    return None if psnr is None or best is None else best - psnr


def table1(
    patterns: Sequence[str] = (),
    results: str | os.PathLike | None = None,
    here: bool = True,
) -> list[Line]:
    """The lines of Table 1. patterns: names of rows, as `chosen_rows`; results: the folder of
    records (None: docs/results); here: as `measure`. `table1_report` writes them."""
    rows, records = chosen_rows(patterns), read_records(results)
    return lines(rows, measure(rows, records, here), records)
