"""The paper's tables, computed again and laid beside what was printed.

A table here is data (the printed cells, as strings, so that their digits are known), a function
that computes rows, and one that writes them as text or JSON. Nothing is tuned to agree: a cell that
does not agree is marked, and a note says what most likely happened.

    table2()    compression: parameters and operations under each rule of `qsr.complexity`
"""

from __future__ import annotations

import json as json_format
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from decimal import ROUND_DOWN, ROUND_HALF_UP, Decimal
from typing import Literal

from ..config import NetworkConfig, quantsr_c, quantsr_t, srresnet, swinir_s
from . import report
from .costs import RULES, Complexity, Rule, complexity

Verdict = Literal["=", "~", "!"]
INPUT = (256, 256)  # "their input sizes are 3x256x256": the low-resolution picture
SCALE = 4  # as the caption says; the rules "printed" and "stated" count x2 whatever it is


# What the paper prints ---------------------------------------------------------------------------


@dataclass(frozen=True)
class PrintedCosts:
    """A row of Table 2, digit for digit: thousands of parameters, 1e9 operations, savings in %.

    psnr: dB in Table 2; psnr_table1: the same network's value for Set5 x4 in Table 1.
    """

    method: str
    bits: int
    blocks: int
    parameters: str
    parameters_saved: str
    ops: str
    ops_saved: str
    psnr: str
    psnr_table1: str


TABLE2 = tuple(
    PrintedCosts(method, int(bits), int(blocks), *cells)
    for method, bits, blocks, *cells in (
        line.split()
        for line in """
        SRResNet  32 16 1367 0     90.1  0     32.16 32.16
        QuantSR-C  4 32 451  67.0  29.9  66.9  32.17 32.17
        QuantSR-C  4 16 303  77.8  20.2  77.5  32.00 32.00
        QuantSR-C  4  8 230  83.1  15.4  82.9  31.75 31.75
        QuantSR-C  2 32 170  87.6  11.5  87.2  31.48 31.47
        QuantSR-C  2 16 161  88.2  10.9  87.9  31.30 31.30
        QuantSR-C  2  8 156  88.6  10.6  88.3  31.04 31.04
        SwinIR_S  32  4 930  0     56.47 0     32.44 32.44
        QuantSR-T  4  4 154  83.37 9.39  83.37 32.18 32.18
        QuantSR-T  4  2 98.8 89.38 6.03  89.32 32.02 32.02
        QuantSR-T  4  1 71.0 92.36 4.34  92.31 31.97 31.79
        QuantSR-T  2  4 50.2 94.60 3.08  94.55 31.53 31.53
        QuantSR-T  2  2 46.8 94.97 2.87  94.92 31.45 31.45
        QuantSR-T  2  1 45.1 95.15 2.77  95.09 31.26 31.26
        """.strip().splitlines()
    )
)

# Why a cell deviates: (method, bits, blocks, column) -> one sentence.
EXPLANATIONS = {
    ("QuantSR-C", 4, 32, "ops_saved"): (
        "1 - 29.9 / 90.1 is 66.8 %; no rounding of the two gives 66.9."
    ),
    ("QuantSR-T", 4, 4, "parameters_saved"): (
        "1 - 154 / 930 is 83.44 %; 83.37 is the saving in operations, copied."
    ),
    ("QuantSR-C", 2, 32, "psnr"): "Table 1 has 31.47 for the same network.",
    ("QuantSR-T", 4, 1, "psnr"): "Table 1 has 31.79 for the same network; two digits swapped.",
}

NOTES = (
    "Scale: the caption says x4, sizes and operations are those of the x2 networks (one upsampling "
    "stage; SwinIR's last convolution 60 -> 12). Only the 930K of SwinIR_S are its x4 total, and "
    "its quantised rows are 930K times the fraction left at x2.",
    "Header: it says Urban100; the values below it are those of Set5 x4 in Table 1.",
    "Factor: the text says that b bits count b/32. The 4-bit rows do (1/8), the 2-bit rows count "
    "1/128 instead of 1/16, as if 1/16 had been applied to the 4-bit figure. See 'stated'.",
    "Savings: some are rounded (1 - 161 / 1367 = 88.22 as 88.2), some cut short (1 - 230 / 1367 = "
    "83.17 as 83.1), some computed from the rounded numbers; ~ marks cells that agree so.",
    "Left out by the table: products inside attention, biases of quantised layers (C), step sizes, "
    "tau, shortcuts, norms, position tables. 'honest' counts them, at x4.",
    "At x4 the full-precision upsampler and last convolution are most of what is left of "
    "SRResNet's operations ('honest'); they are one linear map, and as the 5x5 convolution that it "
    "is, it costs a tenth ('collapsed'). Savings there are against a full-precision network whose "
    "tail is collapsed as well.",
)


# What we compute ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Cell:
    """A printed cell beside our value.

    verdict: "=" our value rounds to the printed one; "~" it agrees when cut short, or when computed
    from the paper's own rounded numbers; "!" it does not, and `why` says what happened.
    """

    printed: str
    ours: float
    verdict: Verdict
    why: str = ""


@dataclass(frozen=True)
class CountedRow:
    """A row of Table 2 with its cells judged and its network counted under each rule.

    saved: rule -> share of (parameters, operations) saved, %, against the full-precision network
    under the same rule.
    """

    printed: PrintedCosts
    cells: dict[str, Cell]
    costs: dict[Rule, Complexity]
    saved: dict[Rule, tuple[float, float]]


def judge(printed: str, ours: float, recomputed: float | None = None) -> Verdict:
    """How `ours` agrees with the printed digits; recomputed: from the paper's rounded numbers.

    >>> judge("66.8", 66.84), judge("71.0", 71.06), judge("66.9", 66.80)
    ('=', '~', '!')
    """
    target = Decimal(printed)

    def agrees(value: float, rounding: str) -> bool:
        return Decimal(repr(value)).quantize(target, rounding) == target

    if agrees(ours, ROUND_HALF_UP):
        return "="
    others = [ours] if recomputed is None else [ours, recomputed]
    close = any(agrees(value, how) for value in others for how in (ROUND_DOWN, ROUND_HALF_UP))
    return "~" if close else "!"


def table2_rows() -> Iterator[CountedRow]:
    """The rows of Table 2, each with its cells judged. Seconds: each network is walked twice."""
    for printed in TABLE2:
        config = _config(printed)
        costs = {rule: complexity(config, INPUT, rule, printed.blocks) for rule in RULES}
        if printed.bits == 32:  # the reference of the rows below it
            full_printed, full = printed, costs
        saved = {
            rule: (
                _saved(costs[rule].parameters, full[rule].parameters),
                _saved(costs[rule].ops, full[rule].ops),
            )
            for rule in RULES
        }
        yield CountedRow(printed, _judged(printed, full_printed, costs, saved), costs, saved)


def _config(row: PrintedCosts) -> NetworkConfig:
    if row.bits == 32:
        return {"SRResNet": srresnet, "SwinIR_S": swinir_s}[row.method](SCALE)
    return {"QuantSR-C": quantsr_c, "QuantSR-T": quantsr_t}[row.method](SCALE, row.bits)


def _saved(cost: float, full: float) -> float:
    return 100 * (1 - cost / full)


def _judged(
    printed: PrintedCosts,
    full: PrintedCosts,
    costs: dict[Rule, Complexity],
    saved: dict[Rule, tuple[float, float]],
) -> dict[str, Cell]:
    """The five number cells of a row. PSNR is compared with the paper's own Table 1."""
    ours = {
        "parameters": costs["printed"].parameters / 1e3,
        "parameters_saved": saved["printed"][0],
        "ops": costs["printed"].ops / 1e9,
        "ops_saved": saved["printed"][1],
        "psnr": float(printed.psnr_table1),
    }
    recomputed = {
        f"{name}_saved": _saved(float(getattr(printed, name)), float(getattr(full, name)))
        for name in ("parameters", "ops")
    }
    cells = {}
    for name, value in ours.items():
        text = getattr(printed, name)
        verdict = judge(text, value, recomputed.get(name))
        why = EXPLANATIONS.get((printed.method, printed.bits, printed.blocks, name), "")
        cells[name] = Cell(text, value, verdict, why)
    return cells


# Writing -----------------------------------------------------------------------------------------


def table2(json: bool = False) -> str:
    """Table 2 of the supplement as text (at most 110 columns), or as JSON, under every rule."""
    rows = tuple(table2_rows())
    if json:
        return json_format.dumps(_table2_json(rows), indent=2)
    return "\n".join(
        [
            "Table 2 of the QuantSR supplement, counted again on the real networks.",
            f"Low-resolution input 3x{INPUT[0]}x{INPUT[1]}; 'printed' and 'stated' count the x2 "
            f"networks, 'honest' and 'collapsed' x{SCALE}.",
            "= rounds to the printed cell   ~ agrees cut short or from the paper's rounded numbers"
            "   ! does not agree",
            "",
            "Parameters, thousands of 32 bit (saved %)",
            *_costs_block(rows, "parameters", 0, 1e3),
            "",
            "Operations, 1e9 multiply-accumulates of 32 bit (saved %)",
            *_costs_block(rows, "ops", 1, 1e9),
            "",
            f"What the x{SCALE} networks hold and do, unweighted: numbers, bytes, and 1e9 products",
            *_contents_block(rows),
            "",
            "PSNR, dB: Table 2 beside Table 1 (Set5 x4)",
            *_psnr_block(rows),
            "",
            "Cells that do not agree",
            *(f"  {_label(row)} {name}: {cell.why}" for row, name, cell in _deviations(rows)),
            "",
            "Notes",
            *report.notes(NOTES),
        ]
    )


def _label(row: CountedRow) -> str:
    bits = f"{row.printed.bits}/{row.printed.bits}"
    return f"{row.printed.method:<9} {bits:>5} {row.printed.blocks:>2}"


def _costs_block(
    rows: Iterable[CountedRow], name: Literal["parameters", "ops"], index: int, unit: float
) -> Iterator[str]:
    lines: list[tuple[str, ...]] = [("", "paper", *RULES)]
    for row in rows:
        value, saved = row.cells[name], row.cells[f"{name}_saved"]
        paper = f"{value.printed + value.verdict:>8} {f'({saved.printed})' + saved.verdict:>8}"
        ours = (
            f"{getattr(row.costs[rule], name) / unit:>8.2f} {f'({row.saved[rule][index]:.2f})':>8}"
            for rule in RULES
        )
        lines.append((_label(row), paper, *ours))
    return report.text(lines, [18] * len(lines[0]))


def _contents_block(rows: Iterable[CountedRow]) -> Iterator[str]:
    yield from report.text([("", "honest", "collapsed")], (18, 46, 46))
    lines: list[tuple[str, ...]] = [("", *("numbers", "bytes", "on floats", "on codes") * 2)]
    for row in rows:
        cells = []
        for cost in (row.costs["honest"], row.costs["collapsed"]):
            cells += [f"{cost.elements:,}", f"{cost.bytes:,}"]
            cells += [f"{macs / 1e9:.2f}" for macs in (cost.float_macs, cost.quantised_macs)]
        lines.append((_label(row), *cells))
    yield from report.text(lines, (18, *(12, 12, 11, 11) * 2))


def _psnr_block(rows: Iterable[CountedRow]) -> Iterator[str]:
    cells = ((row, row.cells["psnr"]) for row in rows)
    lines = ((_label(r), c.printed + c.verdict, r.printed.psnr_table1) for r, c in cells)
    return report.text(lines, (18, 18, 9))


def _deviations(rows: Iterable[CountedRow]) -> Iterator[tuple[CountedRow, str, Cell]]:
    for row in rows:
        for name, cell in row.cells.items():
            if cell.verdict == "!":
                yield row, name, cell


def _table2_json(rows: Iterable[CountedRow]) -> dict:
    """Plain data: the printed row, its judged cells, and the cost under each rule."""
    return {
        "input": [3, *INPUT],
        "rows": [
            {
                **asdict(row.printed),
                "cells": {name: asdict(cell) for name, cell in row.cells.items()},
                "rules": {
                    rule: {
                        "parameters": cost.parameters,
                        "parameters_saved": row.saved[rule][0],
                        "ops": cost.ops,
                        "ops_saved": row.saved[rule][1],
                        "elements": cost.elements,
                        "bytes": cost.bytes,
                        "float_macs": cost.float_macs,
                        "quantised_macs": cost.quantised_macs,
                    }
                    for rule, cost in row.costs.items()
                },
            }
            for row in rows
        ],
        "notes": list(NOTES),
    }
