"""The options of commands that make models: `qsr train | convert | pack | data`.

Without torch, so that help is there at once: `train` does the work.
"""

from __future__ import annotations

import argparse
import dataclasses
from typing import Literal, get_args, get_origin, get_type_hints

from ..images.formats import SPLITS
from ..schedule import TrainConfig
from .arguments import DEFAULT_MODEL
from .common import add_commands, later, let_run

METHODS = ("rlq", "lsq", "pams", "dorefa", "cadyq")  # names of `quantizer.QUANTIZERS`

# train --------------------------------------------------------------------------------------------


def add_train(sub: argparse.ArgumentParser) -> None:
    """The options of `qsr train`."""
    let_run(sub, later("train.run_train"), json=False)
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
    network.add_argument("--quantizer", choices=METHODS, help="other than rlq")
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
        "--fit-tail",
        action="store_true",
        help="then find the best tail in closed form: --init has another scale",
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


# convert ------------------------------------------------------------------------------------------


def add_convert(sub: argparse.ArgumentParser) -> None:
    """The options of `qsr convert`."""
    let_run(sub, later("train.run_convert"))
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


# pack ---------------------------------------------------------------------------------------------


def add_pack(sub: argparse.ArgumentParser) -> None:
    """The options of `qsr pack`."""
    let_run(sub, later("train.run_pack"), json=False)
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


# data ---------------------------------------------------------------------------------------------


def add_data(sub: argparse.ArgumentParser) -> None:
    """The commands of `qsr data`."""
    helps = {
        "list": "List sets: those that qsr finds, or those named.",
        "pack": "Pack sets into one file that can be named wherever a set can.",
    }
    listing, packing = add_commands(sub, helps).values()
    let_run(listing, later("train.run_data_list"), threads=False)
    listing.add_argument(
        "sets", nargs="*", metavar="SET", help="sets, folders or packed files (all under QSR_DATA)"
    )
    let_run(packing, later("train.run_data_pack"), threads=False)
    packing.add_argument("output", metavar="OUT", help="the packed .zip file")
    packing.add_argument("sets", nargs="+", metavar="SET", help="sets, folders or packed files")
    packing.add_argument(
        "--max-mb", type=float, metavar="N", help="leave out pictures, so that OUT has at most N MB"
    )
    packing.add_argument(
        "--split", choices=SPLITS, default="all", help="which pictures (%(default)s)"
    )
    packing.add_argument("--overwrite", action="store_true", help="replace an existing file")
