"""The command `qsr reproduce`: tables and figures of the paper."""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from ..paper import (
    ablation,
    baselines,
    baselines_report,
    figures,
    gap,
    heldout,
    records,
    table1,
    table1_report,
    table2,
)
from ..runs.checkpoints import list_checkpoints, load_checkpoint
from ..system import distributed
from .arguments import check_writable
from .common import Json, Lines, add_commands, as_json, let_run, remark
from .networks import check_device, load_network
from .train import add_training, parse_network, parse_training, train_here

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
        "gap": "How far 2 bits are below full precision, and what narrowed that.",
    }
    helps |= {f"figure{number}": what for number, what in FIGURES.items()}
    subs = add_commands(sub, helps)
    _add_table1(subs["table1"])
    let_run(subs["table2"], _reproduce_table2)
    _add_ablation(subs["ablation"])
    _add_baselines(subs["baselines"])
    _add_heldout(subs["heldout"])
    let_run(subs["gap"], _gap)
    for number in FIGURES:
        _add_figure(subs[f"figure{number}"], number)


def _reproduce_table2(args: argparse.Namespace) -> Lines:
    text = table2.table2(json=args.json)
    yield Json(text) if args.json else text


def _add_ablation(sub: argparse.ArgumentParser) -> None:
    let_run(sub, _ablation)
    sub.add_argument(
        "--out", metavar="FOLDER", default="runs/ablation", help="records (%(default)s)"
    )
    sub.add_argument(
        "--data", nargs="+", metavar="SET", default=["T91", "General100"], help="training sets"
    )
    sub.add_argument("--steps", type=int, default=1500, help="of each run (%(default)s)")
    sub.add_argument("--seeds", type=int, default=3, help="runs of each method (%(default)s)")
    sub.add_argument(
        "--sets", nargs="+", metavar="SET", default=list(ablation.SETS), help="test sets"
    )
    sub.add_argument("--methods", nargs="+", metavar="NAME", default=[], help="fewer of them")


def _ablation(args: argparse.Namespace) -> Lines:
    for name in ("steps", "seeds"):
        if getattr(args, name) < 1:
            raise ValueError(f"`--{name}` is {getattr(args, name)}; it is 1 or more.")
    check_writable(Path(args.out))
    rows = ablation.ablation(args.out, args.data, args.steps, args.seeds, args.methods, args.sets)
    yield as_json(rows)
    yield ablation.table(rows)


def _add_baselines(sub: argparse.ArgumentParser) -> None:
    let_run(sub, _baselines)
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
        "--out", metavar="FOLDER", default=str(baselines.RUNS), help="runs (%(default)s)"
    )
    terms = baselines.TERMS
    group.add_argument("--steps", type=int, default=terms.steps, help="of each row (%(default)s)")
    group.add_argument("--data", nargs="+", metavar="SET", default=terms.data, help="training sets")
    group.add_argument("--sets", nargs="+", metavar="SET", help="test sets (those that are here)")
    group.add_argument("--max-seconds", type=float, metavar="S", help="stop the row, resumable")


def _baselines(args: argparse.Namespace) -> Lines:
    if args.train:
        for path in _train_baselines(args):
            remark(str(path))
    found = baselines.read(args.results)
    yield Json(baselines_report.as_json(found))
    yield baselines_report.text(found)
    if args.figure is not None:
        check_writable(Path(args.figure))
        for name, dark in (("baselines.png", False), ("baselines_dark.png", True)):
            figure = baselines_report.draw(found, dark)
            yield str(figures.write_png(figure, Path(args.figure) / name))


def _train_baselines(args: argparse.Namespace) -> Iterable[Path]:
    if args.init is None:
        raise ValueError(
            "--train needs --init, the full-precision network that all rows start from: "
            "zoo:srresnet-x4, or a trained .qsr file."
        )
    check_writable(Path(args.out))
    check_writable(Path(args.results or baselines.RESULTS))
    start = baselines.Start(args.init, load_network(args.init))
    teacher = baselines.Start(args.teacher or args.init, load_network(args.teacher or args.init))
    terms = replace(baselines.TERMS, steps=args.steps, data=tuple(args.data))
    rows = baselines.chosen_rows(args.rows)
    return baselines.run(
        rows, start, teacher, args.out, terms, args.results, args.sets, args.max_seconds
    )


def _add_heldout(sub: argparse.ArgumentParser) -> None:
    let_run(sub, _heldout)
    sub.add_argument("--results", metavar="FOLDER", help="records (docs/results/heldout)")
    sub.add_argument(
        "--measure", action="store_true", help="first score models without a record of their file"
    )


def _heldout(args: argparse.Namespace) -> Lines:
    if args.measure:
        check_writable(Path(args.results or heldout.RESULTS))
        for path in heldout.complete(args.results):
            remark(str(path))
    yield as_json([vars(line) for line in heldout.lines(args.results)])
    yield heldout.text(args.results)


def _gap(args: argparse.Namespace) -> Lines:
    yield Json(gap.as_json())
    yield gap.text()


def _add_table1(sub: argparse.ArgumentParser) -> None:
    let_run(sub, _reproduce_table1)
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


def _reproduce_table1(args: argparse.Namespace) -> Lines:
    if args.train:
        for line in _train_rows(args):
            remark(line)
        if distributed.rank() > 0:
            return
    lines = table1.table1(args.rows, args.results)
    yield Json(table1_report.as_json(lines))
    yield table1_report.markdown(lines) if args.markdown else table1_report.text(lines)


def _train_rows(args: argparse.Namespace) -> Lines:
    """Train and score each row that is named, and write its record; what is done is not repeated
    but for the scores. Yields what was written."""
    if args.out is None or not args.rows:
        raise ValueError("--train needs --rows, and a folder for runs: --out.")
    if args.quantizer == "cadyq":
        raise ValueError(
            "CADyQ chooses its widths, so it is no row here; see `reproduce ablation`."
        )
    check_device(args.device)
    check_writable(Path(args.out))
    check_writable(Path(args.results or records.RESULTS))
    runs, train_config = args.out, parse_training(args)
    for name in table1.networks(args.rows):
        if name.startswith(records.BICUBIC):
            yield str(records.write_record(records.make_record(name), args.results))
            continue
        args.preset = name
        config = parse_network(args)
        args.out = str(Path(runs) / records.record_name(name, config))
        with distributed.started(args.device) as device:
            yield from train_here(args, config, train_config, device)
            if distributed.rank() > 0:
                continue
        _, state = load_checkpoint(list_checkpoints(args.out)[-1])
        if state["step"] < train_config.steps:  # --max-seconds; the run has said how to go on
            continue
        call = {key: getattr(args, key) for key in ("patch", "batch", "seed", "init", "teacher")}
        call |= {"data": [Path(name).name for name in args.data], "device": args.device}
        record = records.make_record(name, args.out, call)
        yield str(records.write_record(record, args.results))


def _add_figure(sub: argparse.ArgumentParser, number: int) -> None:
    let_run(sub, _reproduce_figure)
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
        sub.add_argument("--runs", metavar="FOLDER", default=str(baselines.RUNS), help=help)


def _reproduce_figure(args: argparse.Namespace) -> Lines:
    check_writable(Path(args.out))
    paths = []
    both: tuple[figures.Page, ...] = ("light", "dark")
    for page in (None,) if args.transparent else both[: 1 + args.dark]:
        if args.number <= 2:
            drawn = (figures.figure1, figures.figure2)[args.number - 1](args.folder, page)
        elif args.number == 3:
            drawn = figures.figure3(args.out, page)
        elif args.number == 4:
            networks = {b: figures.networks_here(b, args.model, args.runs) for b in (4, 2)}
            drawn = figures.figure4(networks, page)
        else:
            drawn = figures.comparison(args.number, args.model, page, runs=args.runs)
        suffix = "_dark" if page == "dark" else ""
        paths.append(figures.write(drawn, Path(args.out) / f"figure{args.number}{suffix}.png"))
    report = {"files": [str(path) for path in paths], "caption": drawn.caption}
    yield as_json({**report, "alt": drawn.alt, "numbers": drawn.numbers})
    yield from map(str, paths)
    yield drawn.caption
