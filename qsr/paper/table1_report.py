"""Table 1 as text, Markdown or JSON: the lines of `table1` in words and digits."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence

from . import report
from .records import TEST_SETS, how_trained
from .table1 import MISPRINTS, Line, Measured, Origin, method_and_bits, paper_gap, scale_of

MARKS: dict[Origin, str] = {"measured": " ", "card": "*", "record": "†"}
LEGEND = {
    "*": "from the card of the model, pictures not here",
    "†": "from a record in docs/results",
    "!": "misprint, see below",
    "?": "full precision had fewer steps, or was not trained to its end: the gap flatters",
}

NOTES = (
    "Bicubic: ours is made as networks get their pictures, in colour and rounded to 8 bits, the "
    "printed row on luma alone. And 1 of the 14 pictures of Set14 is grey; taken as luma directly "
    "it scores 1.32 dB less. Made that way, ours is within 0.01 dB of the print.",
    "16 of 32 blocks: the released code keeps 17 where the paper says 16, and 9 where it says 8 (a "
    "> where >= was meant). Ours keep exactly 16 and 8.",
    "A network is compared with the paper's of the same number of blocks in all. How each was "
    "trained: `qsr models`, and the records in docs/results.",
)


def text(table: Sequence[Line]) -> str:
    """The table for a terminal, at most 110 columns."""
    out = [
        "Table 1 of the QuantSR supplement, PSNR-Y in dB / SSIM-Y: as printed, and ours below.",
        *(f"{mark} {meaning}" for mark, meaning in LEGEND.items()),
    ]
    for scale, part in _by_scale(table):
        rows: list[tuple[str, ...]] = [(f"x{scale}", *TEST_SETS)]
        for line in part:
            first, *rest = _rows(line)
            rows.append((line.label, *first[1]))
            for what, cells in rest:
                missing = line.ours is None and what == "ours"
                rows.append((f"  {what}", *(["   " + line.why] if missing else cells)))
        out += ["", *report.text(rows, (34, *[15] * len(TEST_SETS)))]
    parts = ("How ours were trained", how(table)), ("Misprints", misprints(table)), ("Notes", NOTES)
    for title, items in parts:
        out += ["", title, *report.notes(items, 108)] if items else []
    return "\n".join(out)


def markdown(table: Sequence[Line]) -> str:
    """The table in Markdown, one for each scale, then what its marks and empty cells mean."""
    out: list[str] = []
    for scale, part in _by_scale(table):
        rows = []
        for line in part:
            label = line.label
            for what, cells in _rows(line):
                rows.append((label, what, *(c.strip().replace("*", "\\*") for c in cells)))
                label = ""
        out += [f"**×{scale}**, PSNR-Y in dB / SSIM-Y", ""]
        out += [report.markdown(("network", "", *TEST_SETS), rows, right=2), ""]
    marks = "; ".join(f"{mark.replace('*', chr(92) + '*')} {m}" for mark, m in LEGEND.items())
    out += [f"Marks: {marks}.", "", "Empty cells:", ""]
    out += [f"- {reason[0].upper()}{reason[1:]}." for reason in empty_cells(table)]
    trained, wrong = how(table), misprints(table)
    out += ["", "How ours were trained:", "", *(f"- {x}" for x in trained)] if trained else []
    out += ["", "Misprints:", "", *(f"- {line}" for line in wrong)] if wrong else []
    return "\n".join([*out, "", "Notes:", "", *(f"- {note}" for note in NOTES)])


def as_json(table: Sequence[Line]) -> str:
    """Plain data: a row for each line of the table."""
    return json.dumps({"rows": [_json_row(line) for line in table]}, indent=1)


def how(table: Sequence[Line]) -> list[str]:
    """Steps, pixels, minutes, device, seed and start of each of our networks that has a record."""
    found = {}
    for line in table:
        if line.ours is not None and "seconds" in line.ours.record:
            method, bits = method_and_bits(line.name)
            network = f"{method} {bits} x{line.scale}, {line.of} blocks"
            found[network] = f"{network}: {how_trained(line.ours.record)}."
    return list(found.values())


def misprints(table: Sequence[Line]) -> list[str]:
    """What is wrong in the printed cells of these lines, a sentence or two each."""
    there = {(line.name, line.blocks) for line in table if line.printed}
    found = []
    for (name, blocks, s), (_, why) in MISPRINTS.items():
        if (name, blocks) in there:
            method, bits = method_and_bits(name)
            found.append(f"{method} {bits} x{scale_of(name)}, {blocks} of 4 blocks, {s}: {why}")
    return found


def empty_cells(table: Sequence[Line]) -> list[str]:
    """Why cells of ours are empty: one line for each reason, with the networks it is about."""
    reasons: dict[str, dict[str, None]] = {}
    for line in table:
        if line.ours is None:
            network = f"{' '.join(method_and_bits(line.name))} x{line.scale}"
            reasons.setdefault(line.why, {})[network] = None
    found = [f"{why.replace(':', ',')}: {', '.join(rows)}" for why, rows in reasons.items()]
    missing = [s for s in TEST_SETS if all(s not in x.ours.cells for x in table if x.ours)]
    if missing and any(line.ours for line in table):
        found.append(f"no data, the pictures were not at hand: {', '.join(missing)}")
    return found


def _by_scale(table: Sequence[Line]) -> Iterator[tuple[int, list[Line]]]:
    parts: dict[int, list[Line]] = {}
    for line in table:
        parts.setdefault(line.scale, []).append(line)
    yield from parts.items()


def _rows(line: Line) -> Iterator[tuple[str, list[str]]]:
    """The rows of one line: what it is, and a cell for each set. Each cell ends in its mark."""
    if line.printed is not None:
        wrong = [(line.name, line.blocks, s) in MISPRINTS for s in TEST_SETS]
        pairs = zip(line.printed.cells.values(), wrong, strict=True)
        yield "printed", ["/".join(cell) + (" ", "!")[mark] for cell, mark in pairs]
    if line.ours is None:
        yield "ours", [line.why.partition(":")[0] + " "] * len(TEST_SETS)
        return
    steps = "" if line.ours.steps is None else f", {line.ours.steps:,} steps"
    yield f"ours{steps}", [_score(line.ours, s) for s in TEST_SETS]
    differences = [line.difference(s) for s in TEST_SETS]
    if any(differences):
        cells = ["" if d is None else f"{d[0]:+.2f}/{_no_zero(d[1])} " for d in differences]
        yield "ours - printed", cells
    if line.gaps:
        gaps = [line.gaps.get(s) for s in TEST_SETS]
        cells = ["" if g is None else f"{g.psnr:.2f}{' ' if g.counts else '?'}" for g in gaps]
        yield "below own full precision", cells
        if line.printed is not None:
            theirs = [paper_gap(line.printed, s) for s in TEST_SETS]
            yield "below it in the paper", ["" if g is None else f"{g:.2f} " for g in theirs]


def _no_zero(ssim: float) -> str:
    """+0.0012 as +.0012, which fits beside decibels."""
    return f"{ssim:+.4f}".replace("0.", ".", 1)


def _score(ours: Measured, name: str) -> str:
    score = ours.cells.get(name)
    if score is None:
        return "no data "
    return f"{score.psnr:.2f}/{score.ssim:.4f}{MARKS[score.origin]}"


def _json_row(line: Line) -> dict:
    cells = {}
    for s in TEST_SETS:
        score = line.ours.cells.get(s) if line.ours else None
        difference, gap = line.difference(s), line.gaps.get(s)
        misprint = MISPRINTS.get((line.name, line.blocks, s)) if line.printed else None
        cells[s] = {
            "printed": line.printed and list(line.printed.cells[s]),
            "misprint": misprint and {"psnr": misprint[0], "why": misprint[1]},
            "ours": score and [score.psnr, score.ssim],
            "origin": score.origin if score else ("no data" if line.ours else "not run"),
            "difference": difference and list(difference),
            "below_full_precision": gap and {"psnr": gap.psnr, "counts": gap.counts},
            "paper_below_full_precision": line.printed and paper_gap(line.printed, s),
        }
    return {
        "name": line.name,
        "blocks": line.blocks,
        "of": line.of,
        "in_paper": line.printed is not None,
        "why": line.why,
        "steps": line.ours and line.ours.steps,
        "data": line.ours and line.ours.data and list(line.ours.data),
        "training": line.ours and _training(line.ours.record),
        "sets": cells,
    }


def _training(record: Mapping) -> dict | None:
    """What a record says of a network's training, in numbers."""
    if "seconds" not in record:
        return None
    kept = {key: record[key] for key in ("steps", "patch", "batch", "seed", "seconds", "device")}
    return {**kept, "init": record.get("init"), "teacher": record.get("teacher")}
