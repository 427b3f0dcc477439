"""The options of `qsr reproduce`, without torch: `reproduce` does the work."""

from __future__ import annotations

import argparse

from ..paper import terms
from .common import add_commands, later, let_run
from .making import add_training

FIGURES = {
    1: "Step sizes of weights while a network trains.",
    2: "tau of inputs while a network trains.",
    3: "What phi does to gradients (trains a small network).",
    4: "Features of DoReFa and QuantSR at 4 and 2 bits.",
    5: "Crops at 4 bits, side by side.",
    6: "More crops at 4 bits.",
    7: "Crops at 2 bits, side by side.",
    8: "More crops at 2 bits.",
}


def add_reproduce(sub: argparse.ArgumentParser) -> None:
    """The commands of `qsr reproduce`."""
    helps = {
        "table1": "PSNR and SSIM of all networks, printed and ours.",
        "table2": "Parameters and operations, under four counting rules.",
        "ablation": "Quantizers on equal terms, trained here.",
        "baselines": "DoReFa, PAMS, CADyQ, LSQ and RLQ on equal terms, at the size of Table 1.",
    }
    helps |= {
        "heldout": "The models on photographs that training held out, beside Table 1.",
        "cards": "The models that come with qsr, scored again: does each card say what it should?",
        "gap": "How far 2 bits are below full precision, and what narrowed that.",
    }
    helps |= {f"figure{number}": what for number, what in FIGURES.items()}
    subs = add_commands(sub, helps)
    _add_table1(subs["table1"])
    let_run(subs["table2"], later("reproduce.run_table2"))
    _add_ablation(subs["ablation"])
    _add_baselines(subs["baselines"])
    _add_heldout(subs["heldout"])
    _add_cards(subs["cards"])
    let_run(subs["gap"], later("reproduce.run_gap"))
    for number in FIGURES:
        _add_figure(subs[f"figure{number}"], number)


def _add_ablation(sub: argparse.ArgumentParser) -> None:
    let_run(sub, later("reproduce.run_ablation"))
    sub.add_argument(
        "--out", metavar="FOLDER", default="runs/ablation", help="records (%(default)s)"
    )
    sub.add_argument(
        "--data", nargs="+", metavar="SET", default=["T91", "General100"], help="training sets"
    )
    sub.add_argument("--steps", type=int, default=1500, help="of each run (%(default)s)")
    sub.add_argument("--seeds", type=int, default=3, help="runs of each method (%(default)s)")
    sub.add_argument(
        "--sets", nargs="+", metavar="SET", default=list(terms.ABLATION_SETS), help="test sets"
    )
    sub.add_argument("--methods", nargs="+", metavar="NAME", default=[], help="fewer of them")


def _add_baselines(sub: argparse.ArgumentParser) -> None:
    let_run(sub, later("reproduce.run_baselines"))
    sub.set_defaults(threads=1)  # one of the terms
    sub.add_argument("--results", metavar="FOLDER", help="records (docs/results/baselines)")
    sub.add_argument("--figure", metavar="FOLDER", help="also draw it, for light and dark pages")
    group = sub.add_argument_group("training", "One row after the other; the same call goes on.")
    group.add_argument("--train", action="store_true", help="first train rows without a record")
    group.add_argument(
        "--rows", nargs="+", default=[], metavar="NAME", help="or patterns: 'rlq-*' (all)"
    )
    group.add_argument("--init", metavar="MODEL", help="the full-precision start of all rows")
    group.add_argument("--teacher", metavar="MODEL", help="of all rows (the start)")
    group.add_argument(
        "--out", metavar="FOLDER", default=str(terms.BASELINE_RUNS), help="runs (%(default)s)"
    )
    group.add_argument("--steps", type=int, help=f"of each row ({terms.BASELINE_STEPS})")
    group.add_argument("--data", nargs="+", metavar="SET", help="training sets (the terms')")
    group.add_argument("--sets", nargs="+", metavar="SET", help="test sets (those that are here)")
    group.add_argument("--max-seconds", type=float, metavar="S", help="stop the row, resumable")


def _add_heldout(sub: argparse.ArgumentParser) -> None:
    let_run(sub, later("reproduce.run_heldout"))
    sub.add_argument("--results", metavar="FOLDER", help="records (docs/results/heldout)")
    sub.add_argument(
        "--measure", action="store_true", help="first score models without a record of their file"
    )


def _add_cards(sub: argparse.ArgumentParser) -> None:
    let_run(sub, later("reproduce.run_cards"))
    sub.add_argument(
        "--rows", nargs="+", default=[], metavar="NAME", help="models, or patterns: '*-x4*' (all)"
    )
    sub.add_argument(
        "--sets", nargs="+", default=[], metavar="SET", help="sets (of each card, those here)"
    )
    sub.add_argument(
        "--write", action="store_true", help="also write each card anew, with all of its sets"
    )


def _add_table1(sub: argparse.ArgumentParser) -> None:
    let_run(sub, later("reproduce.run_table1"))
    sub.add_argument("--markdown", action="store_true", help="print the table in Markdown")
    sub.add_argument(
        "--rows", nargs="+", default=[], metavar="NAME", help="rows, or patterns: '*-x4*' (all)"
    )
    sub.add_argument(
        "--results", metavar="FOLDER", help="records of trained networks (docs/results)"
    )
    sub.add_argument(
        "--train",
        action="store_true",
        help="first train these rows, as `qsr train` in OUT/ROW, and write their records",
    )
    sub.add_argument("--out", metavar="FOLDER", help="where --train keeps its runs")
    add_training(sub, sub.add_argument_group("network (--train)"))


def _add_figure(sub: argparse.ArgumentParser, number: int) -> None:
    let_run(sub, later("reproduce.run_figure"))
    sub.set_defaults(number=number)
    sub.add_argument(
        "--out", metavar="FOLDER", default="figures", help="for the PNG file (%(default)s)"
    )
    page = sub.add_mutually_exclusive_group()
    page.add_argument("--dark", action="store_true", help="also a file for dark pages")
    page.add_argument(
        "--transparent", action="store_true", help="one file that can be read on both"
    )
    if number <= 2:
        help = "of `qsr train`, with its log.jsonl (a short run in docs/results)"
        sub.add_argument("--run", metavar="FOLDER", dest="folder", help=help)
    if number >= 4:
        help = "zoo models or .qsr files (seed 0 of --runs, then all of the zoo)"
        sub.add_argument("--model", nargs="+", metavar="NAME", help=help)
        help = "of `reproduce baselines --train`, with DoReFa, PAMS and CADyQ (%(default)s)"
        sub.add_argument("--runs", metavar="FOLDER", default=str(terms.BASELINE_RUNS), help=help)
