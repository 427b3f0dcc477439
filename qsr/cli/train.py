"""Commands that make models: `qsr train | convert | pack | data`."""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
import warnings
from pathlib import Path
from typing import Literal, get_args, get_origin, get_type_hints

import torch

from ..backbone import QuantSR, load_weights
from ..config import QUANTIZERS, NetworkConfig, TrainConfig, preset
from ..images.data import SPLITS, Pair, Patches, contents, held_out, list_sets, pack_sets, pairs
from ..integer.packing import PackedModel, pack
from ..models import zoo
from ..models.edsr import load_edsr
from ..models.file import config_to_json, describe, load_model, save
from ..paper import records
from ..runs.checkpoints import list_checkpoints, load_checkpoint
from ..runs.fit import fit
from ..runs.linear_tail import fit_tail
from ..scores import agreement, evaluate
from ..system import distributed
from .arguments import DEFAULT_MODEL, check_writable
from .common import Failed, Lines, add_commands, as_json, complain, let_run
from .networks import check_device, load_network, refuse_models

AGREED = 20  # pictures of a set on which a packed network is compared with its training graph

# train --------------------------------------------------------------------------------------------


def add_train(sub: argparse.ArgumentParser) -> None:
    """The options of `qsr train`."""
    let_run(sub, _train, json=False)
    sub.add_argument("--out", metavar="FOLDER", help="checkpoints, log and model.qsr")
    sub.add_argument(
        "--print-config", action="store_true", help="print the configuration and do nothing"
    )
    network = sub.add_argument_group("network")
    network.add_argument(
        "--preset", default=DEFAULT_MODEL, metavar="NAME", help=f"network ({DEFAULT_MODEL})"
    )
    add_training(sub, network)


def add_training(sub: argparse.ArgumentParser, network) -> None:
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
    machine.add_argument(
        "--graph",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="let a GPU record a step as a CUDA graph (on)",
    )
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


def parse_training(args: argparse.Namespace) -> TrainConfig:
    """The training configuration that the options give, over the recipe of their quantizer."""
    given = {o.name: getattr(args, o.name) for o in dataclasses.fields(TrainConfig)}
    given = {name: value for name, value in given.items() if value is not None}
    recipe = QUANTIZERS[args.quantizer].recipe if args.quantizer else {}
    config = TrainConfig(**{**recipe, **given})
    if args.init and args.warmup is None:
        config = dataclasses.replace(config, warmup=min(1000, config.steps // 50))
    return config


def parse_network(args: argparse.Namespace) -> NetworkConfig:
    """The network that --preset and the options that change it give."""
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


def _train(args: argparse.Namespace) -> Lines:
    config, train_config = parse_network(args), parse_training(args)
    if args.print_config:
        named = ("data", "patch", "batch", "seed", "init", "teacher")
        parts = {
            "network": config_to_json(config),
            "training": dataclasses.asdict(train_config),
            "call": {name: getattr(args, name) for name in named},
        }
        yield json.dumps(parts, indent=1)
        return
    if args.out is None:
        raise ValueError("`--out` is not given; name a folder for checkpoints and the result.")
    check_device(args.device)
    check_writable(Path(args.out))
    with distributed.started(args.device) as device:
        yield from train_here(args, config, train_config, device)


def train_here(
    args: argparse.Namespace, config: NetworkConfig, train_config: TrainConfig, device: torch.device
) -> Lines:
    """One process's part of a run, which is all of it where there is one; yields what it wrote."""
    refuse_models(args.data, "`--data` takes pictures; `--init` takes models")
    data = (args.data, config.scale)
    patches = Patches(*data, args.patch, args.batch, args.seed, device=device)
    torch.manual_seed(args.seed)
    net = QuantSR(config)
    if args.init and not list_checkpoints(args.out):
        load_weights(net, load_network(args.init), args.init_tail_only)
    teacher = None if args.teacher is None else load_network(args.teacher).to(device)
    path = fit(
        net.to(device),
        patches,
        train_config,
        args.out,
        args.max_seconds,
        held_out(*data),
        teacher,
        args.tensorboard,
        args.graph,
    )
    if distributed.rank() > 0:
        return
    yield str(path)
    _, state = load_checkpoint(path)
    if state["step"] == train_config.steps:
        best = load_network(args.out)
        model = Path(args.out) / "model.qsr"
        save(model, best, note=f"{args.preset}, {' '.join(patches.sets)}, {state['step']} steps")
        yield str(model)


# convert ------------------------------------------------------------------------------------------


def add_convert(sub: argparse.ArgumentParser) -> None:
    """The options of `qsr convert`."""
    let_run(sub, _convert)
    sub.add_argument("input", metavar="IN", help="a .pth or .safetensors file of EDSR-baseline")
    sub.add_argument(
        "output", metavar="OUT", help="the trained .qsr file, for --init and --teacher"
    )
    sub.add_argument("--scale", type=int, default=4, help="of the network (4)")
    sub.add_argument("--overwrite", action="store_true", help="replace an existing file")
    fit = sub.add_argument_group("tail", "Found in closed form where IN has none of that scale.")
    fit.add_argument(
        "--data", nargs="+", default=["embedded"], metavar="SET", help="training sets (embedded)"
    )
    fit.add_argument("--crops", type=int, default=150, help="pictures to find it from (150)")
    fit.add_argument("--patch", type=int, default=52, help="side of their lr, in pixels (52)")
    fit.add_argument("--seed", type=int, default=0, help="of the crops (0)")


def _convert(args: argparse.Namespace) -> Lines:
    refuse_models([args.input], "`convert` takes weights of others; `--init` takes models")
    with warnings.catch_warnings(record=True) as missing:
        warnings.simplefilter("always")
        net = load_edsr(args.input, args.scale)
    note, error = f"weights of {Path(args.input).name}", None
    if missing:  # its tail
        patches = Patches(args.data, args.scale, args.patch, 1, args.seed)
        crops = (Pair(str(i), *patches.batch(i)) for i in range(args.crops))
        error = fit_tail(net, crops, progress=True)
        note += f", tail by least squares from {args.crops} crops of {' '.join(patches.sets)}"
        yield f"tail fitted on {args.crops} crops: {error:.3f} grey levels of error there"
    save(args.output, net, note=note, overwrite=args.overwrite)
    yield f"{args.output}  {Path(args.output).stat().st_size:,} bytes"
    yield as_json({"file": args.output, "tail": "fitted" if missing else "read", "error": error})


# pack ---------------------------------------------------------------------------------------------


def add_pack(sub: argparse.ArgumentParser) -> None:
    """The options of `qsr pack`."""
    let_run(sub, _pack, json=False)
    sub.add_argument(
        "input", metavar="IN", help="a trained .qsr file, the folder of a run, or zoo:NAME"
    )
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


def _pack(args: argparse.Namespace) -> Lines:
    output = Path(args.output)
    if output.suffix != ".qsr":
        raise ValueError(f"{output} has the suffix {output.suffix!r}; model files end in .qsr.")
    net = load_network(args.input).eval()
    note = "" if Path(args.input).is_dir() else describe(zoo.find(args.input)).get("note", "")
    card = None
    if args.card is not None:  # what can't be written or scored is told before anything is
        card = _words(args.card)
        for name in args.sets:
            next(iter(pairs(name, net.config.scale)))
    full = net.config.bits is None
    save(output, net if full else pack(net), note=note, overwrite=args.overwrite, half=full)
    yield f"{output}  {output.stat().st_size:,} bytes"
    if card is not None:
        model = load_model(output)  # what the file holds: in full precision, rounded weights
        scores = {
            depth: {name: evaluate(model, name, blocks=depth, progress=True) for name in args.sets}
            for depth in model.config.depths
        }
        agreed: dict[str, object] = {}
        if isinstance(model, PackedModel):
            for name in args.sets:  # both layer by layer, so of a part of a large set
                some = itertools.islice(pairs(name, net.config.scale), AGREED)
                agreed[name] = agreement(net, model, some)
        yield str(zoo.write_card(output, model, card, scores, agreed))


def _words(card: str) -> str:
    """How a network was trained: as it is said, or from the record in a file."""
    if Path(card).suffix != ".json":
        return card
    return records.in_words(
        records.read_record(card), records.read_records(Path(card).resolve().parent)
    )


# data ---------------------------------------------------------------------------------------------


def add_data(sub: argparse.ArgumentParser) -> None:
    """The commands of `qsr data`."""
    helps = {
        "list": "List sets: those that qsr finds, or those named.",
        "pack": "Pack sets into one file that can be named wherever a set can.",
    }
    listing, packing = add_commands(sub, helps).values()
    let_run(listing, _data_list, threads=False)
    listing.add_argument(
        "sets", nargs="*", metavar="SET", help="sets, folders or packed files (all under QSR_DATA)"
    )
    let_run(packing, _data_pack, threads=False)
    packing.add_argument("output", metavar="OUT", help="the packed .zip file")
    packing.add_argument("sets", nargs="+", metavar="SET", help="sets, folders or packed files")
    packing.add_argument(
        "--max-mb", type=float, metavar="N", help="leave out pictures, so that OUT has at most N MB"
    )
    packing.add_argument(
        "--split", choices=SPLITS, default="all", help="which pictures (%(default)s)"
    )
    packing.add_argument("--overwrite", action="store_true", help="replace an existing file")


def _data_list(args: argparse.Namespace) -> Lines:
    rows, failed = [], False
    for name in args.sets or list_sets():
        try:
            rows += contents(name)
        except ValueError as error:  # one bad set does not hide the others
            failed = True
            complain(error)
    yield as_json(rows)
    if rows:
        yield f"{'set':20} {'pictures':>8} {'held out':>8} {'megapixels':>10} {'MB':>8}"
    for row in rows:
        yield "{set:20} {pictures:8} {held_out:8} {megapixels:10.1f} {mb:8.1f}".format_map(row)
    if failed:
        raise Failed


def _data_pack(args: argparse.Namespace) -> Lines:
    refuse_models([args.output, *args.sets], "`data pack` takes pictures; `qsr pack` takes models")
    counts = pack_sets(args.output, args.sets, args.max_mb, args.split, args.overwrite)
    size = Path(args.output).stat().st_size
    sets = {name: {"pictures": n, "of": of} for name, (n, of) in counts.items()}
    yield as_json({"file": args.output, "bytes": size, "sets": sets})
    for name, (n, of) in counts.items():
        yield f"{name}  {n} of {of} pictures"
    n, of = map(sum, zip(*counts.values(), strict=True))
    yield f"{args.output}  {n} of {of} pictures  {size / 1e6:.3f} MB"
