"""What several commands are given: a model and its depth, a device, a folder to write to."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from pathlib import Path

import torch

from ..backbone import QuantSR
from ..integer.packing import PackedModel
from ..models import zoo
from ..runs.checkpoints import find_best, list_checkpoints, load_checkpoint

DEFAULT_MODEL = "quantsr-c-x4-w4a4"


def add_model(sub: argparse.ArgumentParser) -> None:
    """The options --model and --blocks."""
    sub.add_argument(
        "--model",
        default=DEFAULT_MODEL,
        metavar="NAME",
        help=f"a name from `qsr models`, or a .qsr file ({DEFAULT_MODEL})",
    )
    sub.add_argument("--blocks", type=int, metavar="N", help="depth: how many blocks run (all)")


def load_network(name: str) -> QuantSR:
    """A trained network by its file, zoo:NAME, checkpoint, or run: its best network on held-out
    pictures, else its last."""
    if Path(name).is_dir():
        folder = find_best(name) or (list_checkpoints(name) or [Path(name)])[-1]
        if not (folder / "state.json").exists():
            raise ValueError(
                f"{name} holds no checkpoint; name the folder of a run, or a .qsr file."
            )
        return load_checkpoint(folder)[0]
    model = zoo.load(name)
    if isinstance(model, PackedModel):
        raise ValueError(
            f"{name} is packed already, and packed weights can't be trained; use a trained file."
        )
    return model


def refuse_models(names: Sequence[str], wanted: str) -> None:
    """Raise ValueError if one of the names is that of a model, where something else is wanted."""
    for name in names:
        if name.removeprefix("zoo:") in zoo.names() and not os.path.exists(name):
            raise ValueError(f"{name} is a model that comes with qsr, and {wanted}.")


def check_writable(folder: Path) -> None:
    """Raise ValueError if nothing can be written to a folder, there or to be made."""
    there = next(p for p in (folder, *folder.parents) if os.path.exists(p))
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        what = "is closed to writing" if there.is_dir() else "is no folder"
        raise ValueError(f"{there} {what}; name another output folder.")


def check_blocks(model, blocks: int | None) -> None:
    """Raise ValueError if the model has not as many blocks."""
    if blocks is not None and not 1 <= blocks <= model.config.blocks:
        raise ValueError(
            f"`--blocks` is {blocks}; this model has 1 to {model.config.blocks} and was trained at "
            f"{', '.join(map(str, model.config.depths))}. Choose one of these."
        )


def check_device(name: str) -> None:
    """Raise ValueError if torch does not know the device, or it is not here."""
    try:
        there = torch.device(name).type == "cpu" or torch.cuda.is_available()
    except RuntimeError:
        there = False
    if not there:
        raise ValueError(
            f"`--device` is {name!r}, which this machine or this build of torch lacks. Use cpu."
        )
