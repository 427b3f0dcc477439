"""What `qsr reproduce` does: tables and figures of the paper.

The options are those of `tables`.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from ..models import zoo
from ..paper import (
    ablation,
    baselines,
    baselines_report,
    cards,
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
from .common import Json, Lines, as_json, remark
from .networks import check_device, load_network
from .train import parse_network, parse_training, train_here


def run_table2(args: argparse.Namespace) -> Lines:
    text = table2.table2(json=args.json)
    yield Json(text) if args.json else text


def run_ablation(args: argparse.Namespace) -> Lines:
    for name in ("steps", "seeds"):
        if getattr(args, name) < 1:
            raise ValueError(f"`--{name}` is {getattr(args, name)}; it is 1 or more.")
    check_writable(Path(args.out))
    rows = ablation.ablation(args.out, args.data, args.steps, args.seeds, args.methods, args.sets)
    yield as_json(rows)
    yield ablation.table(rows)


def run_baselines(args: argparse.Namespace) -> Lines:
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
    terms = baselines.TERMS
    if args.steps is not None:
        terms = replace(terms, steps=args.steps)
    if args.data is not None:
        terms = replace(terms, data=tuple(args.data))
    rows = baselines.chosen_rows(args.rows)
    return baselines.run(
        rows, start, teacher, args.out, terms, args.results, args.sets, args.max_seconds
    )


def run_heldout(args: argparse.Namespace) -> Lines:
    if args.measure:
        check_writable(Path(args.results or heldout.RESULTS))
        for path in heldout.complete(args.results):
            remark(str(path))
    yield as_json([vars(line) for line in heldout.lines(args.results)])
    yield heldout.text(args.results)


def run_cards(args: argparse.Namespace) -> Lines:
    if args.write:
        check_writable(zoo.FOLDER)
    lines = list(cards.again(cards.chosen(args.rows), args.sets, args.write))
    yield as_json([{**vars(line), "difference": line.difference} for line in lines])
    yield cards.text(lines)


def run_gap(args: argparse.Namespace) -> Lines:
    yield Json(gap.as_json())
    yield gap.text()


def run_table1(args: argparse.Namespace) -> Lines:
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


def run_figure(args: argparse.Namespace) -> Lines:
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
