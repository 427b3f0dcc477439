"""The command line: `qsr upscale | demo | train | evaluate | pack | export | data | bench | ...`.

Bad input gives one line on stderr and exit code 2; Ctrl-C exits with 130. Numbers go to stdout, as
text or with `--json`; progress and remarks go to stderr.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import os
import platform
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, get_args, get_origin, get_type_hints

import torch
from tqdm.auto import tqdm

from . import (
    __version__,
    _native,
    ablation,
    bench,
    bench_report,
    bench_train,
    distributed,
    figures,
    kernels,
    records,
    reproduce,
    table1,
    table1_report,
    zoo,
)
from .backbone import QUANTIZERS, NetworkConfig, QuantSR, load_weights, preset
from .checkpoint import (
    config_to_json,
    describe,
    find_best,
    list_checkpoints,
    load_checkpoint,
    load_model,
    save,
)
from .data import SPLITS, Patches, contents, held_out, list_sets, pack_sets, pairs
from .evaluate import agreement, evaluate
from .export import export_onnx
from .files import replacing
from .image import FORMATS, check_format, read, write
from .infer import DEFAULT_MEMORY, upscale_picture
from .pack import PackedModel, pack
from .runs import fit
from .train import RECIPES, TrainConfig
from .viz import demo

DEFAULT_MODEL = "quantsr-c-x4-w4a4"
OUT_OF_MEMORY = "out of memory; lower --memory (upscale), or --patch or --batch (train)."


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    args = _parser().parse_args(argv)
    try:
        if args.threads is not None:
            _set_threads(args.threads)
        return args.run(args) or 0
    except (ValueError, TypeError) as error:
        _complain(error)
    except BrokenPipeError:  # `qsr models | head` has seen enough; nothing to flush at exit either
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except OSError as error:
        _complain(error)
    except MemoryError:
        _complain(OUT_OF_MEMORY)
    except RuntimeError as error:
        if not isinstance(error, torch.OutOfMemoryError) and "allocate memory" not in str(error):
            raise
        _complain(OUT_OF_MEMORY)
    except KeyboardInterrupt:
        _complain("interrupted")
        return 130
    return 2


def _complain(what: object) -> None:
    """One line on stderr."""
    if isinstance(what, OSError):
        what = f"{what.filename or 'the system'}: {what.strerror or what}; check that place."
    line = (str(what).splitlines() or [type(what).__name__])[0]
    tqdm.write(f"qsr: {line}", file=sys.stderr)  # past a progress bar, if there is one


def _set_threads(threads: int) -> None:
    if threads < 1:
        raise ValueError(f"`--threads` is {threads}; it is 1 or more. Leave it out to use all.")
    torch.set_num_threads(threads)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="qsr", description="Low-bit super-resolution (QuantSR).")
    parser.add_argument("--version", action="version", version=f"qsr {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)

    def command(
        name: str, run, help: str, *, numbers: bool = False, threads: bool = True
    ) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=help, description=help)
        sub.set_defaults(run=run, threads=None)
        if threads:
            sub.add_argument("--threads", type=int, metavar="N", help="CPU threads (all)")
        if numbers:
            sub.add_argument("--json", action="store_true", help="print numbers as JSON")
        return sub

    _add_upscale(command)
    _add_demo(command)
    _add_evaluate(command)
    _add_train(command)
    _add_pack(command)
    _add_export(command)
    _add_data(command)
    _add_bench(command)
    _add_reproduce(command)
    command("models", _models, "List the models that come with qsr.", numbers=True)
    command("info", _info, "Say how qsr runs on this machine.", numbers=True)
    return parser


# upscale ------------------------------------------------------------------------------------------


def _add_upscale(command) -> None:
    sub = command("upscale", _upscale, "Enlarge pictures, or all pictures of folders.")
    sub.add_argument("inputs", nargs="+", metavar="IN", help="pictures or folders of pictures")
    sub.add_argument("output", metavar="OUT", help="a picture for one IN, else a folder")
    _add_model(sub)
    sub.add_argument(
        "--memory",
        type=float,
        default=DEFAULT_MEMORY,
        metavar="GB",
        help=f"working memory; larger pictures are done in strips ({DEFAULT_MEMORY:g})",
    )
    existing = sub.add_mutually_exclusive_group()
    existing.add_argument("--overwrite", action="store_true", help="replace existing files")
    existing.add_argument(
        "--skip-existing", action="store_true", help="leave out what is there (resume a folder)"
    )


def _add_model(sub: argparse.ArgumentParser) -> None:
    sub.add_argument(
        "--model",
        default=DEFAULT_MODEL,
        metavar="NAME",
        help=f"a name from `qsr models`, or a .qsr file ({DEFAULT_MODEL})",
    )
    sub.add_argument("--blocks", type=int, metavar="N", help="depth: how many blocks run (all)")


def _upscale(args: argparse.Namespace) -> int:
    jobs = _plan_upscale(args.inputs, Path(args.output))
    if args.skip_existing:
        jobs = [(source, target) for source, target in jobs if not target.exists()]
    elif not args.overwrite:
        there = [target for _, target in jobs if target.exists()]
        if there:
            raise ValueError(
                f"{there[0]} exists{f' (and {len(there) - 1} more)' if there[1:] else ''}; nothing "
                "was done. Pass --overwrite or --skip-existing, or name another output."
            )
    model = zoo.load(args.model)
    _check_blocks(model, args.blocks)
    many = len(jobs) > 1
    failed = 0
    bar = tqdm(jobs, unit="picture", disable=not many)
    for source, target in bar:
        bar.set_postfix_str(source.name)
        try:
            picture = read(source)
            check_format(picture, target, model.config.scale)  # before the work, not after it
            _check_writable(target.parent)
            picture = upscale_picture(
                picture, model, blocks=args.blocks, memory=args.memory, progress=True
            )
            target.parent.mkdir(parents=True, exist_ok=True)
            write(picture, target, overwrite=args.overwrite)
        except (ValueError, OSError) as error:  # one bad picture does not stop a folder
            failed += 1
            named = isinstance(error, OSError) or str(source) in str(error)
            _complain(error if named else f"{source}: {error}")
        else:
            height, width = picture.colour.shape[2:]
            tqdm.write(f"{target}  {width} x {height}", file=sys.stdout)
    if many and failed:
        _complain(f"{failed} of {len(jobs)} pictures failed.")
    return 2 if failed else 0


def _plan_upscale(inputs: Sequence[str], output: Path) -> list[tuple[Path, Path]]:
    """[(source, target)]: one file to one file, anything else into a folder."""
    folders = [Path(i) for i in inputs if Path(i).is_dir()]
    single = len(inputs) == 1 and not folders
    if single and not output.is_dir():
        return [(Path(inputs[0]), output)]
    if output.exists() and not output.is_dir():
        raise ValueError(f"{output} is a file; several pictures go to a folder. Name one.")
    sources: list[Path] = []
    for name in inputs:
        path = Path(name)
        found = [path]
        if path.is_dir():
            found = sorted(p for p in path.iterdir() if p.suffix.lower() in FORMATS)
            if not found:
                raise ValueError(
                    f"{path} has no pictures ({', '.join(FORMATS)}); name a folder that has some."
                )
        sources += found
    targets = [output / source.name for source in sources]
    if len(set(targets)) < len(targets):
        twice = next(t for t in targets if targets.count(t) > 1)
        raise ValueError(f"two inputs are called {twice.name}; enlarge them into two folders.")
    return list(zip(sources, targets, strict=True))


def _check_writable(folder: Path) -> None:
    """Raise ValueError if nothing can be written to a folder, there or to be made."""
    there = next(p for p in (folder, *folder.parents) if os.path.exists(p))
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        what = "is closed to writing" if there.is_dir() else "is no folder"
        raise ValueError(f"{there} {what}; name another output folder.")


def _check_blocks(model, blocks: int | None) -> None:
    if blocks is not None and not 1 <= blocks <= model.config.blocks:
        raise ValueError(
            f"`--blocks` is {blocks}; this model has 1 to {model.config.blocks} and was trained at "
            f"{', '.join(map(str, model.config.depths))}. Choose one of these."
        )


# demo, evaluate, models, info ---------------------------------------------------------------------


def _add_demo(command) -> None:
    sub = command(
        "demo", _demo, "Enlarge the bundled photograph with every model and depth.", numbers=True
    )
    sub.add_argument("--out", default="demo", metavar="FOLDER", help="where pictures go (demo)")


def _demo(args: argparse.Namespace) -> None:
    rows, figure = demo(args.out)
    if args.json:
        print(json.dumps({"rows": rows, "figure": str(figure)}, indent=1))
        return
    print(f"{'scale':5} {'model':22} {'blocks':>6} {'PSNR-Y':>9} {'bytes':>10} {'ms':>8}")
    for row in rows:
        print(
            f"x{row['scale']:<4} {row['model']:22} {row['blocks'] or '-':>6} "
            f"{row['psnr_y']:6.2f} dB {row['bytes'] or '-':>10} {row['ms']:8.1f}"
        )
    print(f"before and after: {figure}")


def _add_evaluate(command) -> None:
    sub = command("evaluate", _evaluate, "Score a model on test sets.", numbers=True)
    sub.add_argument("sets", nargs="+", metavar="SET", help="Set5, a folder, or 'embedded'")
    _add_model(sub)
    sub.add_argument("--scale", type=int, metavar="S", help="for --model bicubic")
    sub.add_argument("--each", action="store_true", help="print every picture")


def _evaluate(args: argparse.Namespace) -> None:
    model = args.model
    if model != "bicubic":
        model = zoo.load(model)
        _check_blocks(model, args.blocks)
    results = {}
    for name in args.sets:
        scores = evaluate(model, name, args.scale, args.blocks, progress=True)
        results[name] = vars(scores)
        if not args.json:
            print(f"{name:12} {scores}")
            if args.each:
                for row in zip(scores.names, scores.psnr_each, scores.ssim_each, strict=True):
                    print("  {:20} {:.3f} dB / {:.4f}".format(*row))
    if args.json:
        print(json.dumps({"model": args.model, "blocks": args.blocks, "sets": results}, indent=1))


def _models(args: argparse.Namespace) -> None:
    cards = [zoo.card(name) for name in zoo.names()]
    if args.json:
        print(json.dumps(cards, indent=1))
        return
    for card in cards:
        print(f"{card['name']}  x{card['scale']}  {card['bits']} bits  {card['bytes']:,} bytes")
        for depth, scores in card["scores"].items():
            row = "  ".join(
                f"{name} {psnr:.2f}/{ssim:.4f}" for name, (psnr, ssim) in scores.items()
            )
            print(f"  {depth:>2} blocks  {row}")
        print(f"  {card['training']}")
        print(f"  sha256 {card['sha256']}")


def _info(args: argparse.Namespace) -> None:
    status = _native.load()
    facts = _native.facts()
    report = {
        "qsr": __version__,
        "torch": str(torch.__version__),
        "python": platform.python_version(),
        "machine": platform.machine(),
        "threads": torch.get_num_threads(),
        "native": status.how,
        "library": status.path,
        "reason": status.reason,
        "advice": status.advice,
        "compiler": facts.compiler if facts else "",
        "cpu": [name for name, there in facts.cpu_features().items() if there] if facts else [],
        "kernels": {op: kernels.available(op) for op in kernels.NATIVE_OPS},
        "cuda": status.cuda or "no CUDA kernels: torch without CUDA, or no toolkit",
        "models": zoo.names(),
        "data": os.environ.get("QSR_DATA", "QSR_DATA is not set"),
    }
    if args.json:
        print(json.dumps(report, indent=1))
        return
    for name, value in report.items():
        if isinstance(value, dict):
            value = "; ".join(f"{key}: {', '.join(names)}" for key, names in value.items())
        elif isinstance(value, (list, tuple)):
            value = ", ".join(value)
        if value:
            print(f"{name:9} {value}")


def _actions(parent: argparse.ArgumentParser, threads: bool):
    """A function that adds a command below `parent`, each with --json, and --threads if asked."""
    actions = parent.add_subparsers(title="commands", metavar="COMMAND", required=True)

    def action(name: str, run, help: str) -> argparse.ArgumentParser:
        sub = actions.add_parser(name, help=help, description=help)
        sub.set_defaults(run=run)
        if threads:
            sub.add_argument("--threads", type=int, metavar="N", help="CPU threads (all)")
        sub.add_argument("--json", action="store_true", help="print numbers as JSON")
        return sub

    return action


def _add_reproduce(command) -> None:
    help = "Compute a table or a figure of the paper."
    action = _actions(command("reproduce", None, help, threads=False), threads=True)
    _add_table1(action)
    action("table2", _reproduce_table2, "Parameters and operations, under four counting rules.")
    _add_ablation(action)
    for number, what in FIGURES.items():
        sub = action(f"figure{number}", _reproduce_figure, what)
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
        if number >= 5:
            help = "zoo models or .qsr files (all of the zoo)"
            sub.add_argument("--model", nargs="+", metavar="NAME", help=help)


def _reproduce_table2(args: argparse.Namespace) -> None:
    print(reproduce.table2(json=args.json))


def _add_ablation(action) -> None:
    sub = action("ablation", _ablation, "Quantizers on equal terms, trained here.")
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


def _ablation(args: argparse.Namespace) -> None:
    for name in ("steps", "seeds"):
        if getattr(args, name) < 1:
            raise ValueError(f"`--{name}` is {getattr(args, name)}; it is 1 or more.")
    _check_writable(Path(args.out))
    runs = ablation.ablation(args.out, args.data, args.steps, args.seeds, args.methods, args.sets)
    print(json.dumps(runs, indent=1) if args.json else ablation.table(runs))


def _add_table1(action) -> None:
    sub = action("table1", _reproduce_table1, "PSNR and SSIM of all networks, printed and ours.")
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
    _add_training(sub, sub.add_argument_group("network (--train)"))


def _reproduce_table1(args: argparse.Namespace) -> None:
    if args.train:
        with contextlib.redirect_stdout(sys.stderr):
            _train_rows(args)
        if distributed.rank() > 0:
            return
    lines = table1.table1(args.rows, args.results)
    style = "as_json" if args.json else "markdown" if args.markdown else "text"
    print(getattr(table1_report, style)(lines))


def _train_rows(args: argparse.Namespace) -> None:
    """Train and score each row that is named, and write its record; what is done is not repeated
    but for the scores."""
    if args.out is None or not args.rows:
        raise ValueError("--train needs --rows, and a folder for runs: --out.")
    if args.quantizer == "cadyq":
        raise ValueError(
            "CADyQ chooses its widths, so it is no row here; see `reproduce ablation`."
        )
    _check_device(args.device)
    _check_writable(Path(args.out))
    _check_writable(Path(args.results or records.RESULTS))
    runs, train_config = args.out, _train_config(args)
    for name in table1.networks(args.rows):
        if name.startswith(records.BICUBIC):
            print(records.write_record(records.make_record(name), args.results))
            continue
        args.preset = name
        config = _network_config(args)
        args.out = str(Path(runs) / records.record_name(name, config))
        with distributed.started(args.device) as device:
            _train_here(args, config, train_config, device)
            if distributed.rank() > 0:
                continue
        _, state = load_checkpoint(list_checkpoints(args.out)[-1])
        if state["step"] < train_config.steps:  # --max-seconds; the run has said how to go on
            continue
        call = {key: getattr(args, key) for key in ("patch", "batch", "seed", "init", "teacher")}
        call |= {"data": [Path(name).name for name in args.data], "device": args.device}
        record = records.make_record(name, args.out, call)
        print(records.write_record(record, args.results))


FIGURES = {
    1: "Step sizes of weights while a network trains.",
    2: "tau of inputs while a network trains.",
    3: "What phi does to gradients (trains a small network).",
    4: "Features of DoReFa and QuantSR (trains small networks).",
    5: "Crops at 4 bits, side by side.",
    6: "More crops at 4 bits.",
    7: "Crops at 2 bits, side by side.",
    8: "More crops at 2 bits.",
}


def _reproduce_figure(args: argparse.Namespace) -> None:
    _check_writable(Path(args.out))
    paths = []
    for page in (None,) if args.transparent else ("light", "dark")[: 1 + args.dark]:
        if args.number <= 2:
            drawn = (figures.figure1, figures.figure2)[args.number - 1](args.folder, page)
        elif args.number == 3:
            drawn = figures.figure3(args.out, page)
        elif args.number == 4:
            drawn = figures.figure4(args.out, page, progress=True)
        else:
            drawn = figures.comparison(args.number, args.model, page)
        suffix = "_dark" if page == "dark" else ""
        paths.append(figures.write(drawn, Path(args.out) / f"figure{args.number}{suffix}.png"))
    if args.json:
        report = {"files": [str(path) for path in paths], "caption": drawn.caption}
        print(json.dumps({**report, "alt": drawn.alt, "numbers": drawn.numbers}, indent=1))
    else:
        print(*paths, drawn.caption, sep="\n")


# train, pack --------------------------------------------------------------------------------------


def _add_train(command) -> None:
    sub = command("train", _train, "Train a network; the same call resumes a stopped run.")
    sub.add_argument("--out", metavar="FOLDER", help="checkpoints, log and model.qsr")
    sub.add_argument(
        "--print-config", action="store_true", help="print the configuration and do nothing"
    )
    network = sub.add_argument_group("network")
    network.add_argument(
        "--preset", default=DEFAULT_MODEL, metavar="NAME", help=f"network ({DEFAULT_MODEL})"
    )
    _add_training(sub, network)


def _add_training(sub: argparse.ArgumentParser, network) -> None:
    """What is trained how on what, but for the preset. network: a group of sub's arguments."""
    network.add_argument("--quantizer", choices=list(QUANTIZERS), help="other than rlq")
    network.add_argument("--network-blocks", type=int, metavar="N", help="blocks of the network")
    network.add_argument("--depths", type=int, nargs="+", metavar="N", help="deepest first")
    network.add_argument("--features", type=int, metavar="N", help="width of the network")
    network.add_argument(
        "--per-channel", action="store_true", default=None, help="a weight step for each channel"
    )
    network.add_argument(
        "--layer-bits",
        nargs="+",
        metavar="LAYER=BITS",
        help="layers of other widths: 'blocks.0.*=8' or 'body_conv=8,4' (weights, inputs)",
    )
    network.add_argument(
        "--init",
        metavar="MODEL",
        help="start from the weights of a .qsr file, a run, or zoo:NAME, with a short warm-up",
    )
    network.add_argument(
        "--init-tail-only", action="store_true", help="copy the tail alone, as the released code"
    )
    network.add_argument(
        "--teacher", metavar="MODEL", help="network whose features are learned (--transfer)"
    )
    data = sub.add_argument_group("data")
    data.add_argument(
        "--data",
        nargs="+",
        default=["embedded"],
        metavar="SET",
        help="training sets, folders or packed files",
    )
    data.add_argument("--patch", type=int, default=48, help="side of the lr patches (48)")
    data.add_argument("--batch", type=int, default=16, help="patches a step, of all ranks (16)")
    data.add_argument("--seed", type=int, default=0, help="of weights and patches (0)")
    machine = sub.add_argument_group("machine")
    machine.add_argument("--max-seconds", type=float, metavar="S", help="stop in time, resumable")
    machine.add_argument("--device", default="cpu", help="cpu or cuda (cpu)")
    machine.add_argument("--tensorboard", action="store_true", help="write TensorBoard's files too")
    training = sub.add_argument_group("training", "In several processes: torchrun -m qsr.cli train")
    for option in dataclasses.fields(TrainConfig):
        _add_option(training, option)


def _add_option(group, option: dataclasses.Field) -> None:
    """A flag for a field of TrainConfig, without a default: what is not given is not set."""
    flag, kind = f"--{option.name.replace('_', '-')}", get_type_hints(TrainConfig)[option.name]
    shown = " ".join(map(str, d)) if isinstance(d := option.default, tuple) else d
    help = f"{option.metadata['help']} ({shown})"
    if kind is bool:
        group.add_argument(flag, action=argparse.BooleanOptionalAction, default=None, help=help)
    elif get_origin(kind) is Literal:
        group.add_argument(flag, choices=get_args(kind), help=help)
    elif get_origin(kind) is tuple:
        group.add_argument(flag, nargs="+", type=get_args(kind)[0], metavar="N", help=help)
    else:
        number = kind if kind in (int, float) else float  # float | None
        group.add_argument(flag, type=number, metavar="N", help=help)


def _train_config(args: argparse.Namespace) -> TrainConfig:
    given = {o.name: getattr(args, o.name) for o in dataclasses.fields(TrainConfig)}
    given = {name: value for name, value in given.items() if value is not None}
    config = TrainConfig(**{**RECIPES.get(args.quantizer, {}), **given})
    if args.init and args.warmup is None:
        config = dataclasses.replace(config, warmup=min(1000, config.steps // 50))
    return config


def _network_config(args: argparse.Namespace) -> NetworkConfig:
    changes = {
        "blocks": args.network_blocks,
        "depths": args.depths,
        "features": args.features,
        "quantizer": args.quantizer,
        "per_channel": args.per_channel,
        "layer_bits": [_layer_bits(text) for text in args.layer_bits or ()] or None,
    }
    return preset(args.preset, **{k: v for k, v in changes.items() if v is not None})


def _layer_bits(text: str) -> tuple[str, int | tuple[int, ...]]:
    name, _, widths = text.partition("=")
    try:
        bits = tuple(map(int, widths.split(",")))
    except ValueError:
        bits = ()
    if len(bits) not in (1, 2):
        raise ValueError(
            f"`--layer-bits` has {text!r}; it is LAYER=BITS or LAYER=WEIGHTS,INPUTS, for example "
            "body_conv=8,4."
        )
    return name, bits[0] if len(bits) == 1 else bits


def _train(args: argparse.Namespace) -> None:
    config, train_config = _network_config(args), _train_config(args)
    if args.print_config:
        named = ("data", "patch", "batch", "seed", "init", "teacher")
        parts = {
            "network": config_to_json(config),
            "training": dataclasses.asdict(train_config),
            "call": {name: getattr(args, name) for name in named},
        }
        print(json.dumps(parts, indent=1))
        return
    if args.out is None:
        raise ValueError("`--out` is not given; name a folder for checkpoints and the result.")
    _check_device(args.device)
    _check_writable(Path(args.out))
    with distributed.started(args.device) as device:
        _train_here(args, config, train_config, device)


def _train_here(
    args: argparse.Namespace, config: NetworkConfig, train_config: TrainConfig, device: torch.device
) -> None:
    """One process's part of a run, which is all of it where there is one."""
    data = (args.data, config.scale)
    patches = Patches(*data, args.patch, args.batch, args.seed, device=device)
    torch.manual_seed(args.seed)
    net = QuantSR(config)
    if args.init and not list_checkpoints(args.out):
        load_weights(net, _network(args.init), args.init_tail_only)
    teacher = None if args.teacher is None else _network(args.teacher).to(device)
    path = fit(
        net.to(device),
        patches,
        train_config,
        args.out,
        args.max_seconds,
        held_out(*data),
        teacher,
        args.tensorboard,
    )
    if distributed.rank() > 0:
        return
    print(path)
    _, state = load_checkpoint(path)
    if state["step"] == train_config.steps:
        best = _network(args.out)
        model = Path(args.out) / "model.qsr"
        save(model, best, note=f"{args.preset}, {' '.join(patches.sets)}, {state['step']} steps")
        print(model)


def _check_device(name: str) -> None:
    try:
        there = torch.device(name).type == "cpu" or torch.cuda.is_available()
    except RuntimeError:
        there = False
    if not there:
        raise ValueError(
            f"`--device` is {name!r}, which this machine or this build of torch has not. Use cpu."
        )


def _network(name: str) -> QuantSR:
    """A trained network by its file, zoo:NAME, checkpoint, or run: its best network on held-out
    pictures, else its last."""
    if Path(name).is_dir():
        folder = find_best(name) or (list_checkpoints(name) or [Path(name)])[-1]
        if not (folder / "state.json").exists():
            raise ValueError(
                f"{name} holds no checkpoint; name the folder of a run, or a .qsr file."
            )
        return load_checkpoint(folder)[0]
    model = zoo.load(name.removeprefix("zoo:"))
    if isinstance(model, PackedModel):
        raise ValueError(
            f"{name} is packed, and packed weights can't be trained; use a trained file."
        )
    return model


def _add_pack(command) -> None:
    sub = command(
        "pack", _pack, "Pack a trained network into a small .qsr file; full precision as float16."
    )
    sub.add_argument("input", metavar="IN", help="a trained .qsr file, or the folder of a run")
    sub.add_argument("output", metavar="OUT", help="the packed .qsr file")
    sub.add_argument("--overwrite", action="store_true", help="replace an existing file")
    sub.add_argument(
        "--card",
        metavar="TEXT",
        help="also write OUT's model card (.json): how it was trained, in words or as the record "
        "of `reproduce table1 --train` (a .json file), and its scores",
    )
    sub.add_argument(
        "--sets", nargs="+", default=["embedded"], metavar="SET", help="sets that the card scores"
    )


def _pack(args: argparse.Namespace) -> None:
    output = Path(args.output)
    if output.suffix != ".qsr":
        raise ValueError(f"{output} has the suffix {output.suffix!r}; model files end in .qsr.")
    net = _network(args.input).eval()
    note = "" if Path(args.input).is_dir() else describe(args.input).get("note", "")
    card = None
    if args.card is not None:  # what can't be written or scored is told before anything is
        card = _words(args.card)
        for name in args.sets:
            next(iter(pairs(name, net.config.scale)))
    full = net.config.bits is None
    save(output, net if full else pack(net), note=note, overwrite=args.overwrite, half=full)
    print(f"{output}  {output.stat().st_size:,} bytes")
    if card is not None:
        model = load_model(output)  # what the file holds: in full precision, rounded weights
        scores = {
            depth: {name: evaluate(model, name, blocks=depth, progress=True) for name in args.sets}
            for depth in model.config.depths
        }
        agreed = {} if full else {name: agreement(net, model, name) for name in args.sets}
        print(zoo.write_card(output, model, card, scores, agreed))


def _words(card: str) -> str:
    """How a network was trained: as it is said, or from the record in a file."""
    if Path(card).suffix != ".json":
        return card
    return records.in_words(
        records.read_record(card), records.read_records(Path(card).resolve().parent)
    )


def _add_export(command) -> None:
    sub = command(
        "export", _export, "Write a model as ONNX, for pictures of any size.", numbers=True
    )
    sub.add_argument("--onnx", action="store_true", required=True, help="the format of OUT")
    sub.add_argument(
        "model",
        metavar="MODEL",
        help="a name from `qsr models`, a .qsr file, or the folder of a run",
    )
    sub.add_argument("output", metavar="OUT", help="the .onnx file")
    sub.add_argument("--blocks", type=int, metavar="N", help="depth: how many blocks (all)")
    sub.add_argument(
        "--no-check", action="store_true", help="do not compare the file with qsr in onnxruntime"
    )
    sub.add_argument("--overwrite", action="store_true", help="replace an existing file")


def _export(args: argparse.Namespace) -> None:
    output = Path(args.output)
    if output.suffix != ".onnx":
        raise ValueError(f"{output} has the suffix {output.suffix!r}; ONNX files end in .onnx.")
    model = _network(args.model).eval() if Path(args.model).is_dir() else zoo.load(args.model)
    _check_blocks(model, args.blocks)
    matches = export_onnx(
        model, output, args.blocks, check=not args.no_check, overwrite=args.overwrite
    )
    size = output.stat().st_size
    if args.json:
        rows = [vars(match) for match in matches]
        print(json.dumps({"file": str(output), "bytes": size, "onnxruntime": rows}, indent=1))
        return
    print(f"{output}  {size:,} bytes")
    for match in matches:
        print(f"  {match}")


# data ---------------------------------------------------------------------------------------------


def _add_data(command) -> None:
    help = "List sets of pictures, or pack some into one file."
    action = _actions(command("data", None, help, threads=False), threads=False)
    sub = action("list", _data_list, "List sets: those that qsr finds, or those named.")
    sub.add_argument(
        "sets", nargs="*", metavar="SET", help="sets, folders or packed files (all under QSR_DATA)"
    )
    sub = action(
        "pack", _data_pack, "Pack sets into one file that can be named wherever a set can."
    )
    sub.add_argument("output", metavar="OUT", help="the packed .zip file")
    sub.add_argument("sets", nargs="+", metavar="SET", help="sets, folders or packed files")
    sub.add_argument(
        "--max-mb", type=float, metavar="N", help="leave out pictures, so that OUT has at most N MB"
    )
    sub.add_argument("--split", choices=SPLITS, default="all", help="which pictures (%(default)s)")
    sub.add_argument("--overwrite", action="store_true", help="replace an existing file")


def _data_list(args: argparse.Namespace) -> int:
    rows, failed = [], 0
    for name in args.sets or list_sets():
        try:
            rows += contents(name)
        except ValueError as error:  # one bad set does not hide the others
            failed = 2
            _complain(error)
    if args.json:
        print(json.dumps(rows, indent=1))
        return failed
    if rows:
        print(f"{'set':20} {'pictures':>8} {'held out':>8} {'megapixels':>10} {'MB':>8}")
    for row in rows:
        print("{set:20} {pictures:8} {held_out:8} {megapixels:10.1f} {mb:8.1f}".format_map(row))
    return failed


def _data_pack(args: argparse.Namespace) -> None:
    counts = pack_sets(args.output, args.sets, args.max_mb, args.split, args.overwrite)
    size = Path(args.output).stat().st_size
    if args.json:
        sets = {name: {"pictures": n, "of": of} for name, (n, of) in counts.items()}
        print(json.dumps({"file": args.output, "bytes": size, "sets": sets}, indent=1))
        return
    for name, (n, of) in counts.items():
        print(f"{name}  {n} of {of} pictures")
    n, of = map(sum, zip(*counts.values(), strict=True))
    print(f"{args.output}  {n} of {of} pictures  {size / 1e6:.3f} MB")


# bench --------------------------------------------------------------------------------------------

BENCH_PRESETS = ["quantsr-c-x4-w4a4", "quantsr-c-x4-w2a2"]


def _add_bench(command) -> None:
    sub = command(
        "bench", _bench, "Time kernels, a layer, or networks beside other engines.", threads=False
    )
    sub.add_argument(
        "what", nargs="?", choices=["kernel", "layer", "network", "train"], default="network"
    )
    models = sub.add_mutually_exclusive_group()
    models.add_argument("--model", nargs="+", metavar="NAME", help="zoo models, or .qsr files")
    models.add_argument(
        "--preset",
        nargs="+",
        default=BENCH_PRESETS,
        metavar="NAME",
        help=f"networks with random weights ({', '.join(BENCH_PRESETS)})",
    )
    sub.add_argument(
        "--blocks", type=int, metavar="N", help="depth (all; of presets 16, of QuantSR-T 4)"
    )
    sub.add_argument("--size", type=int, metavar="N", help="side of the input (128; train 24)")
    sub.add_argument("--batch", type=int, default=8, metavar="N", help="patches a step (train: 8)")
    sub.add_argument(
        "--precision", choices=["float32", "bfloat16"], default="float32", help="of training"
    )
    sub.add_argument(
        "--rounds", type=int, metavar="N", help="turns of each (network and train 5, else 20)"
    )
    sub.add_argument(
        "--threads",
        dest="counts",
        nargs="+",
        type=int,
        default=[1],
        metavar="N",
        help="one or several numbers of CPU threads (1)",
    )
    sub.add_argument(
        "--peers", nargs="+", default=["all"], metavar="NAME", help="all, none or names (all)"
    )
    sub.add_argument("--json", metavar="FILE", help="also write all numbers there")
    sub.add_argument(
        "--plot", metavar="FILE.png", help="also draw networks, the zoo's depths among them"
    )


def _bench(args: argparse.Namespace) -> None:
    slow = args.what in ("network", "train")
    rounds = (5 if slow else 20) if args.rounds is None else args.rounds
    size = (24 if args.what == "train" else 128) if args.size is None else args.size
    sizes = {"size": size, "batch": args.batch, "rounds": rounds, "threads": min(args.counts)}
    for name, value in sizes.items():
        if value < 1:
            raise ValueError(f"`--{name}` is {value}; it is 1 or more.")
    for path in (args.json, args.plot):
        if path is not None:
            _check_writable(Path(path).parent)
    if args.plot is not None and (args.what != "network" or Path(args.plot).suffix != ".png"):
        raise ValueError(f"`--plot` is {args.plot}; it draws networks, into a .png file.")
    if args.what == "train":
        return _bench_train(args, size, rounds)
    if args.what != "network":
        report = bench.bench_local(args.what, size, args.counts, rounds)
    else:
        chosen, remark = bench.choose_peers(args.peers)
        if remark:
            _complain(remark)
        models = _bench_models(args, size)
        report = bench.bench_network(
            models,
            size,
            args.counts,
            rounds,
            chosen,
            args.blocks,
            depths=args.plot is not None,
        )
    if args.json is not None:
        bench_report.write_json(report, args.json)
    if args.plot is not None:
        print(*bench_report.write_figure(report, args.plot), file=sys.stderr)
    print(bench_report.markdown(report))


def _bench_train(args: argparse.Namespace, size: int, rounds: int) -> None:
    reports = []
    for name in args.preset[:1] if args.preset is BENCH_PRESETS else args.preset:
        config = preset(name) if args.blocks is None else preset(name, blocks=args.blocks)
        options = (size, args.batch, args.counts, rounds, args.precision)
        reports.append(bench_train.bench_train(config, *options))
        print(bench_train.table(reports[-1]))
    if args.json is not None:
        with replacing(args.json) as temporary:
            temporary.write_text(json.dumps(reports, indent=1) + "\n")


def _bench_models(args: argparse.Namespace, size: int) -> dict[str, QuantSR | PackedModel]:
    """{name: network}: from files or the zoo, else calibrated with random weights."""
    if args.model:
        models = {Path(name).stem: zoo.load(name) for name in args.model}
        for model in models.values():
            _check_blocks(model, args.blocks)
        return models
    models = {}
    for name in args.preset:
        blocks = args.blocks or (4 if "-t-" in name else 16)
        config = preset(name, blocks=blocks)
        if config.bits is None:
            raise ValueError(f"{name} has no bits, so there is nothing to pack; name a quantsr-*.")
        models[name] = bench.random_network(config, size)
    return models


if __name__ == "__main__":
    sys.exit(main())
