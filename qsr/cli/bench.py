"""What `qsr bench` does; its options are in `options`."""

from __future__ import annotations

import argparse
import functools
import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

from ..backbone import QuantSR
from ..bench import cuda, curve, engine, layers, redraw, steps, training
from ..bench.report import markdown, write_figure, write_json, write_twins
from ..config import preset
from ..models import zoo
from ..models.enlarger import Enlarger
from ..models.file import load_regions
from ..system.files import replacing
from ..system.machine import check_threads
from .arguments import check_blocks, check_writable
from .common import Lines, complain, remark
from .networks import Enlarging, check_device, load_enlarging
from .options import BENCH_PRESETS


def run_bench(args: argparse.Namespace) -> Lines:
    slow = args.what in ("network", "train")
    rounds = (5 if slow else 20) if args.rounds is None else args.rounds
    check_device(args.device)
    on_gpu = args.device != "cpu"
    usual = 24 if args.what == "train" else 256 if on_gpu else 128
    size = usual if args.size is None else args.size
    for count in args.counts:
        check_threads(count, "--threads")
    sizes = {"size": size, "batch": args.batch, "rounds": rounds}
    for name, value in sizes.items():
        if value < 1:
            raise ValueError(f"`--{name}` is {value}; it is 1 or more.")
    for path in (args.file, args.plot):
        if path is not None:
            check_writable(Path(path).parent)
    if args.plot is not None and (args.what != "network" or Path(args.plot).suffix != ".png"):
        raise ValueError(f"`--plot` is {args.plot}; it draws networks, into a .png file.")
    if args.redraw is not None:
        if args.plot is None:
            raise ValueError("`--redraw` draws a file; name the picture: --plot FILE.png.")
        given = {"--model": args.model, "--peer-onnx": args.peer_onnx, "--json": args.file}
        if idle := [name for name, value in given.items() if value is not None]:
            raise ValueError(f"`--redraw` measures nothing, so there is no {idle[0]}.")
        yield " ".join(map(str, redraw.redraw(args.redraw, args.plot)))
        return
    if args.peer_onnx is not None:
        yield from _bench_curve(args, size, rounds)
        return
    if args.steps:
        yield from _bench_steps(args, size, rounds)
        return
    if on_gpu:
        yield from _bench_cuda(args, size, rounds)
        return
    if args.what == "train":
        yield from _bench_train(args, size, rounds)
        return
    if args.what == "layers":
        yield from _bench_layers(args, size, rounds)
        return
    models = _bench_models(args, size) if args.what == "network" else {}
    own = {name: m for name, m in models.items() if not isinstance(m, Enlarger)}
    if args.what != "network":
        report = engine.bench_local(args.what, size, args.counts, rounds)
    elif len(own) < len(models):
        report = _bench_stored(args, models, size, rounds)
    else:
        chosen, missing = engine.choose_peers(args.peers)
        if missing:
            complain(missing)
        report = engine.bench_network(
            own,
            size,
            args.counts,
            rounds,
            chosen,
            args.blocks,
            depths=args.plot is not None,
        )
    if args.file is not None:
        write_json(report, args.file)
    if args.plot is not None:
        remark(" ".join(map(str, write_figure(report, args.plot))))
    yield markdown(report)


def _bench_stored(
    args: argparse.Namespace, models: Mapping[str, Enlarging], size: int, rounds: int
) -> engine.Report:
    (name, model), *more = models.items()
    if more or not isinstance(model, Enlarger):
        raise ValueError("a packed network of your own is timed alone; name one --model.")
    return engine.bench_stored(name, model, size, args.counts, rounds)


def _bench_steps(args: argparse.Namespace, size: int, rounds: int) -> Lines:
    if not args.model or args.device != "cpu" or args.what != "network" or args.plot is not None:
        raise ValueError("`--steps` times plans on the processor; name files by --model.")
    for name in args.model:
        plans, layers = load_regions(zoo.find(name))
        for count in args.counts:
            timed = steps.time_steps(plans, layers, size, count, rounds)
            yield f"{Path(name).stem}, regions for {size} x {size} pixels, {count} thread(s)"
            yield steps.table(timed)


def _bench_curve(args: argparse.Namespace, size: int, rounds: int) -> Lines:
    if args.what != "network" or args.device != "cpu" or len(args.counts) > 1:
        raise ValueError("`--peer-onnx` times networks on the CPU, at one number of threads.")
    found = {Path(n).stem: load_enlarging(n) for n in args.model or zoo.names()}
    packed = {name: net for name, net in found.items() if not isinstance(net, QuantSR)}
    if args.model is None:
        scale = curve.OnnxFile.read(args.peer_onnx[0]).scale
        packed = {name: net for name, net in packed.items() if net.config.scale == scale}
    report = curve.bench_curve(packed, args.peer_onnx, args.data, size, args.counts[0], rounds)
    if args.file is not None:
        with replacing(args.file) as temporary:
            temporary.write_text(json.dumps(asdict(report), indent=1) + "\n")
    if args.plot is not None:
        drawn = write_twins(functools.partial(curve.figure, report), args.plot)
        remark(" ".join(map(str, drawn)))
    yield curve.markdown(report)


def _bench_cuda(args: argparse.Namespace, size: int, rounds: int) -> Lines:
    options = {"--plot": args.plot is None, "--peers": args.peers == ["all"]}
    options |= {"--threads": args.counts == [1], args.what: args.what in ("network", "kernel")}
    for name, fits in options.items():
        if not fits:
            raise ValueError(
                f"`--device {args.device}` times networks and kernels; it has no {name}."
            )
    where = f"{size} x {size} pixels in, {args.device}"
    reports = {}
    if args.what == "kernel":
        title = f"3x3 convolution, 64 -> 64 channels, {where}"
        reports[title] = cuda.bench_kernel(size, rounds, args.device)
        yield cuda.markdown(title, reports[title], args.device)
    for name, model in _bench_models(args, size).items() if args.what == "network" else ():
        if isinstance(model, Enlarger):
            raise ValueError(f"{name} is a packed network of your own, which runs on the CPU.")
        title = f"{name}, {where}"
        reports[title] = cuda.bench_network(model, size, rounds, args.blocks, args.device)
        yield cuda.markdown(title, reports[title], args.device)
    if args.file is not None:
        cuda.write_json(reports, args.file, args.device)


def _bench_layers(args: argparse.Namespace, size: int, rounds: int) -> Lines:
    reports = []
    for threads in args.counts:
        reports.append(layers.bench_layers(size, threads, rounds))
        yield layers.table(reports[-1])
    if args.file is not None:
        with replacing(args.file) as temporary:
            rows = [report.as_dict() for report in reports]
            temporary.write_text(json.dumps(rows, indent=1) + "\n")


def _bench_train(args: argparse.Namespace, size: int, rounds: int) -> Lines:
    reports = []
    for name in args.preset[:1] if args.preset is BENCH_PRESETS else args.preset:
        config = preset(name) if args.blocks is None else preset(name, blocks=args.blocks)
        options = (size, args.batch, args.counts, rounds, args.precision)
        reports.append(training.bench_train(config, *options))
        yield training.table(reports[-1])
    if args.file is not None:
        with replacing(args.file) as temporary:
            temporary.write_text(json.dumps(reports, indent=1) + "\n")


def _bench_models(args: argparse.Namespace, size: int) -> dict[str, Enlarging]:
    """{name: network}: from files or the zoo, else calibrated with random weights."""
    models: dict[str, Enlarging] = {}
    if args.model:
        models |= {Path(name).stem: load_enlarging(name) for name in args.model}
        for model in models.values():
            check_blocks(model, args.blocks)
        return models
    for name in args.preset:
        blocks = args.blocks or (4 if "-t-" in name else 16)
        config = preset(name, blocks=blocks)
        if config.bits is None:
            raise ValueError(f"{name} has no bits, so there is nothing to pack; name a quantsr-*.")
        models[name] = engine.random_network(config, size)
    return models
