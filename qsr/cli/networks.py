"""Networks and devices that commands are given by name."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import torch

from .. import baselines  # noqa: F401  whose quantizers configurations name
from ..backbone import QuantSR
from ..integer.packing import PackedModel
from ..integer.stored import StoredNetwork
from ..integer.unpacking import unpack
from ..models import zoo
from ..models.enlarger import Enlarger
from ..runs.checkpoints import find_best, list_checkpoints, load_checkpoint

Enlarging = QuantSR | PackedModel | Enlarger  # what makes large pictures of small ones


def load_network(name: str) -> QuantSR:
    """A network that can be trained by its file, zoo:NAME, checkpoint, or run: its best network on
    held-out pictures, else its last. A packed QuantSR is unpacked."""
    model = _of_run(name) if Path(name).is_dir() else load_quantsr(name)
    return unpack(model) if isinstance(model, PackedModel) else model


def load_trained(name: str) -> QuantSR:
    """The same as training left it. Raises ValueError for what is packed."""
    model = _of_run(name) if Path(name).is_dir() else zoo.load(name)
    if not isinstance(model, QuantSR):
        raise ValueError(f"{name} is packed already; name what training left, or copy it.")
    return model


def _of_run(name: str) -> QuantSR:
    folder = find_best(name) or (list_checkpoints(name) or [Path(name)])[-1]
    if not (folder / "state.json").exists():
        raise ValueError(f"{name} holds no checkpoint; name the folder of a run, or a .qsr file.")
    return load_checkpoint(folder)[0]


def load_quantsr(name: str) -> QuantSR | PackedModel:
    """A model by its name or file, where only a QuantSR will do, packed or not."""
    model = zoo.load(name)
    if isinstance(model, StoredNetwork):
        raise ValueError(
            f"{name} holds a packed {model.class_name}, and this command takes a QuantSR; name one "
            "of `qsr models`, or its file."
        )
    return model


def load_enlarging(name: str) -> Enlarging:
    """A model by its name or file that enlarges pictures; also a packed network of any class."""
    model = zoo.load(name)
    return Enlarger.of(model, name) if isinstance(model, StoredNetwork) else model


def refuse_models(names: Sequence[str], wanted: str) -> None:
    """Raise ValueError if one of the names is that of a model, where something else is wanted."""
    for name in names:
        if name.removeprefix("zoo:") in zoo.names() and not os.path.exists(name):
            raise ValueError(f"{name} is a model that comes with qsr, and {wanted}.")


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
