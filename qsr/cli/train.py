"""What commands that make models do: `qsr train | convert | pack | data`.

Their options are those of `making`.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import warnings
from collections.abc import Sequence
from pathlib import Path

import torch

from ..backbone import QuantSR, load_weights
from ..calibration import calibrate
from ..config import QUANTIZERS, NetworkConfig, preset
from ..images.data import Pair, Patches, contents, held_out, list_sets, pack_sets, pairs
from ..integer.packing import PackedModel, pack
from ..models import zoo
from ..models.edsr import load_edsr
from ..models.file import config_to_json, describe, load_model, save
from ..paper import cards, records
from ..quantizer import Quantizer
from ..runs.checkpoints import list_checkpoints, load_checkpoint
from ..runs.fit import fit
from ..runs.linear_tail import fit_tail
from ..schedule import TrainConfig
from ..system import distributed
from .arguments import check_writable
from .common import Failed, Lines, as_json, complain, remark
from .networks import check_device, load_network, load_trained, refuse_models

TAIL_PIXELS = 200_000  # of lr, from which --fit-tail finds it; its unknowns are some hundreds

# train --------------------------------------------------------------------------------------------


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


def run_train(args: argparse.Namespace) -> Lines:
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
    if args.fit_tail and (args.init is None or args.init_tail_only):
        raise ValueError("`--fit-tail` is given without a body to fit it to; name one by --init.")
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
        if args.fit_tail:
            if not all(m.calibrated for m in net.modules() if isinstance(m, Quantizer)):
                calibrate(net, patches.batch(0)[0].cpu())
            crops = -(-TAIL_PIXELS // args.patch**2)
            error = _fit_tail(net, args.data, args.patch, crops, args.seed)
            remark(f"tail fitted on {crops} crops: {error:.3f} grey levels of error there")
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


def _fit_tail(net: QuantSR, data: Sequence[str], patch: int, crops: int, seed: int) -> float:
    """`fit_tail` on random crops of sets: the error there."""
    patches = Patches(data, net.config.scale, patch, 1, seed)
    drawn = (Pair(str(i), *patches.batch(i)) for i in range(crops))
    return fit_tail(net, drawn, progress=True)


# convert ------------------------------------------------------------------------------------------


def run_convert(args: argparse.Namespace) -> Lines:
    refuse_models([args.input], "`convert` takes weights of others; `--init` takes models")
    with warnings.catch_warnings(record=True) as missing:
        warnings.simplefilter("always")
        net = load_edsr(args.input, args.scale)
    note, error = f"weights of {Path(args.input).name}", None
    if missing:  # its tail
        error = _fit_tail(net, args.data, args.patch, args.crops, args.seed)
        note += f", tail by least squares from {args.crops} crops of {' '.join(args.data)}"
        yield f"tail fitted on {args.crops} crops: {error:.3f} grey levels of error there"
    save(args.output, net, note=note, overwrite=args.overwrite)
    yield f"{args.output}  {Path(args.output).stat().st_size:,} bytes"
    yield as_json({"file": args.output, "tail": "fitted" if missing else "read", "error": error})


# pack ---------------------------------------------------------------------------------------------


def run_pack(args: argparse.Namespace) -> Lines:
    output = Path(args.output)
    if output.suffix != ".qsr":
        raise ValueError(f"{output} has the suffix {output.suffix!r}; model files end in .qsr.")
    net = load_trained(args.input).eval()
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
        assert isinstance(model, (QuantSR, PackedModel))
        scores, agreed = cards.scored(model, args.sets), cards.compared(model, args.sets, net)
        yield str(zoo.write_card(output, model, card, scores, agreed))


def _words(card: str) -> str:
    """How a network was trained: as it is said, or from the record in a file."""
    if Path(card).suffix != ".json":
        return card
    return records.in_words(
        records.read_record(card), records.read_records(Path(card).resolve().parent)
    )


# data ---------------------------------------------------------------------------------------------


def run_data_list(args: argparse.Namespace) -> Lines:
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


def run_data_pack(args: argparse.Namespace) -> Lines:
    refuse_models([args.output, *args.sets], "`data pack` takes pictures; `qsr pack` takes models")
    counts = pack_sets(args.output, args.sets, args.max_mb, args.split, args.overwrite)
    size = Path(args.output).stat().st_size
    sets = {name: {"pictures": n, "of": of} for name, (n, of) in counts.items()}
    yield as_json({"file": args.output, "bytes": size, "sets": sets})
    for name, (n, of) in counts.items():
        yield f"{name}  {n} of {of} pictures"
    n, of = map(sum, zip(*counts.values(), strict=True))
    yield f"{args.output}  {n} of {of} pictures  {size / 1e6:.3f} MB"
