"""Scores on photographs that training held out, and on sets that chose nothing, beside Table 1.

Who looks at Set5 after every experiment has chosen by Set5 in the end. So the models that come with
qsr are scored once more on pictures that no table prints: every tenth picture of the sets they
learned from, which `images.data` holds back. Not one of them was learned from. Twenty of them, cut
to their middle, said which step of a run to keep; here they are all, and whole. Urban100 and
Manga109, the other two sets of the paper, chose nothing at all; they are scored where QSR_DATA has
them.

Scores are kept as records, one for each model with the sha256 of its file: those of another file of
the same name do not count.

    measure(name)      score one model, or bicubic-x2 and -x4
    text(results)      the table, from records
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from ..images.data import Pair, held_out, list_sets, pairs
from ..models import zoo
from ..scores import evaluate
from ..system.machine import machine
from . import records, report
from .table1 import method_and_bits, scale_of
from .terms import TRAINING_SETS

RESULTS = records.RESULTS / "heldout"
HELD_OUT = "held out"
COLUMNS = (HELD_OUT, "Urban100", "Manga109")
WHOLE = 10**6  # lr pixels, and pictures: more than there are


def rows() -> list[str]:
    """Names of what is scored: bicubic and the models, x2 before x4, full precision last."""
    names = [f"{records.BICUBIC}2", f"{records.BICUBIC}4", *zoo.names()]
    return sorted(names, key=lambda name: (scale_of(name), "w" in name.partition("-x")[2], name))


def can_measure() -> bool:
    """Whether QSR_DATA has the sets that hold pictures out."""
    return set(TRAINING_SETS) <= set(list_sets())


def pictures(column: str, scale: int) -> Iterable[Pair] | None:
    """The pairs of a column; None where they are not here."""
    if column != HELD_OUT:
        return pairs(column, scale) if column in list_sets() else None
    return held_out(TRAINING_SETS, scale, WHOLE, WHOLE) if can_measure() else None


def measure(name: str) -> dict:
    """Score a model at each of its depths, or bicubic, on the columns that are here: a record."""
    scale, is_model = scale_of(name), not name.startswith(records.BICUBIC)
    model = zoo.load(name) if is_model else "bicubic"
    depths = zoo.card(name)["depths"] if is_model else [None]
    scores = []
    for column in COLUMNS:
        if (there := pictures(column, scale)) is not None:
            scores += [
                records.score_row(n, column, evaluate(model, there, scale, n, progress=True))
                for n in depths
            ]
    file = {"sha256": zoo.card(name)["sha256"]} if is_model else {}
    where = {"data": list(TRAINING_SETS), "device": machine()["cpu"]}
    return {**records.origin(name), **file, **where, "scores": scores}


def valid(name: str, record: Mapping | None) -> bool:
    """Whether a record is of the file that comes with qsr now."""
    if record is None or name.startswith(records.BICUBIC):
        return record is not None
    return record.get("sha256") == zoo.card(name)["sha256"]


def complete(results: str | os.PathLike | None = None) -> Iterator[Path]:
    """Measure what has no valid record, and yield each record as it is there.

    Raises ValueError if the pictures are not here.
    """
    if not can_measure():
        raise ValueError(
            f"QSR_DATA lacks one of {', '.join(TRAINING_SETS)}, whose held-out pictures are "
            "scored; set it to a folder that has them under train/."
        )
    found = records.read_records(RESULTS if results is None else results)
    for name in rows():
        if not valid(name, found.get(name)):
            yield records.write_record(measure(name), RESULTS if results is None else results)


@dataclass(frozen=True)
class Line:
    """A network at one depth. cells: {column: (PSNR-Y, SSIM-Y, pictures)}. why: if it has none."""

    name: str
    blocks: int | None
    cells: Mapping[str, tuple[float, float, int]]
    why: str = ""

    @property
    def label(self) -> str:
        """As in Table 1: "QuantSR-C 4/4 x4"."""
        method, bits = method_and_bits(self.name)
        return " ".join([method, *([] if bits == "-/-" else [bits]), f"x{scale_of(self.name)}"])


def lines(results: str | os.PathLike | None = None) -> list[Line]:
    """What there is, from records."""
    found = records.read_records(RESULTS if results is None else results)
    table = []
    for name in rows():
        record = found.get(name)
        if record is None or not valid(name, record):
            why = "not measured" if record is None else "not measured since the model was replaced"
            table.append(Line(name, None, {}, why))
            continue
        by_depth: dict[int | None, dict[str, tuple[float, float, int]]] = {}
        for row in record["scores"]:
            cell = row["psnr_y"], row["ssim_y"], len(row["pictures"])
            by_depth.setdefault(row["blocks"], {})[row["set"]] = cell
        table += [Line(name, blocks, cells) for blocks, cells in by_depth.items()]
    return table


def text(results: str | os.PathLike | None = None) -> str:
    """The table in Markdown, with what it rests on."""
    table = lines(results)
    shown = [
        (
            line.label,
            "-" if line.blocks is None else line.blocks,
            *(_cell(line, column) for column in COLUMNS),
        )
        for line in table
    ]
    counts = {line.cells[HELD_OUT][2] for line in table if HELD_OUT in line.cells}
    many = f"{', '.join(map(str, sorted(counts)))} photographs" if counts else "photographs"
    trained = records.read_records()
    notes = [
        f"PSNR-Y in dB / SSIM-Y. Held out: {many}, every tenth of {', '.join(TRAINING_SETS)}, "
        "whole. No network learned from them; the middles of twenty chose the step that a run "
        "kept.",
        "No data: the set is not under QSR_DATA. To measure: qsr reproduce heldout --measure.",
        *(
            f"{name}: {records.how_trained(trained[name])}."
            for name in zoo.names()
            if "seconds" in trained.get(name, {})
        ),
    ]
    head = ("network", "blocks", *COLUMNS)
    return "\n\n".join(
        [report.markdown(head, shown, right=2, aligned=True), "\n".join(report.notes(notes, 108))]
    )


def _cell(line: Line, column: str) -> str:
    if column in line.cells:
        psnr, ssim, _ = line.cells[column]
        return f"{psnr:.2f}/{ssim:.4f}"
    return line.why if line.why and column == HELD_OUT else "no data"
