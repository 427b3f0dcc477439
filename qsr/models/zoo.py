"""Pretrained models inside the package: `qsr.load("quantsr-c-x4-w4a4")` works offline.

Each is a .qsr file in this folder's `files/`: packed, or in full precision with weights in float16.
It has a card of the same name in JSON that says how it was made, what it scores, and the sha256 of
the file, which is checked on loading. Those in full precision are what QuantSR-C was trained
from: something to compare with, and to start from (`qsr train --init zoo:srresnet-x4`).
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import overload

from torch import nn

from ..backbone import QuantSR
from ..infer import Model
from ..integer.packing import PackedModel
from ..layers import split_bits
from ..system.files import replacing
from .file import load_model, load_network

FOLDER = Path(__file__).parent / "files"
FULL = "32/32"  # bits on the card of a network in full precision; its file rounds weights to 16


def names() -> tuple[str, ...]:
    """Names of the models that come with qsr, sorted."""
    return tuple(sorted(path.stem for path in FOLDER.glob("*.qsr")))


def path_of(name: str) -> Path:
    """The file of a model that comes with qsr. Raises ValueError for an unknown name."""
    if name not in names():
        raise ValueError(
            f"no model is called {name!r}; there are {', '.join(names()) or 'none'}, "
            "or name a .qsr file."
        )
    return FOLDER / f"{name}.qsr"


def card(name: str) -> dict:
    """How a model was made and what it scores: the contents of its JSON card.

    Raises ValueError for an unknown name, or if the card is missing or damaged.
    """
    path = path_of(name).with_suffix(".json")
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} is missing or damaged. Install qsr again.") from error


def write_card(
    path: str | os.PathLike,
    model: Model,
    training: str,
    scores: Mapping[int, Mapping],
    agreements: Mapping[str, object],
) -> Path:
    """Write the JSON card of a model file and return its path.

    model: what the file holds. training: data, steps, seeds and device in words. scores: {depth:
    {set: an object with psnr_y and ssim_y}}. agreements: {set: how the packed network differs from
    its training graph on some pictures}; empty in full precision, which is not packed.
    """
    path = Path(path)
    config = model.config
    contents = {
        "name": path.stem,
        "scale": config.scale,
        "bits": FULL if config.bits is None else "/".join(map(str, split_bits(config.bits))),
        "depths": config.depths,
        "bytes": path.stat().st_size,
        "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        "training": training,
        "scores": {
            str(depth): {name: [round(s.psnr_y, 3), round(s.ssim_y, 4)] for name, s in sets.items()}
            for depth, sets in scores.items()
        },
        "packed_minus_trained": {
            name: {key: float(f"{value:.3g}") for key, value in vars(a).items()}
            for name, a in agreements.items()
        },
    }
    card_path = path.with_suffix(".json")
    with replacing(card_path) as temporary:
        temporary.write_text(json.dumps(contents, indent=1) + "\n")
    return card_path


def find(name: str | os.PathLike) -> Path:
    """The file of a model: NAME or zoo:NAME of one that comes with qsr, else a path.

    Raises ValueError (one line) if it is neither a name nor looks like a file.
    """
    plain, path = str(name).removeprefix("zoo:"), Path(name)
    if plain in names():
        return path_of(plain)
    if path.suffix == ".qsr" and path.stem in names() and not path.exists():
        raise ValueError(
            f"{path} does not exist; {path.stem!r}, without .qsr, is the model that comes with qsr."
        )
    if path.suffix == ".qsr" or os.sep in str(name) or path.exists():
        return path
    return path_of(plain)  # says which there are


@overload
def load(name: str | os.PathLike) -> QuantSR | PackedModel: ...
@overload
def load(name: str | os.PathLike, *, into: nn.Module) -> nn.Module: ...
def load(name: str | os.PathLike, *, into: nn.Module | None = None) -> nn.Module:
    """A model by its name in the zoo, or from a .qsr file; in eval mode, on the CPU.

    A file of a network of your own gives a `StoredNetwork`, which computes what that network did,
    unless its graph cannot be in a file. into: for any such file, the network as qsr.quantize makes
    it, with the options that it had when it was packed, to get its class back; see
    `file.load_network`.
    Raises ValueError (one line) for an unknown name, or a file that is missing, damaged, foreign or
    of another format version.
    """
    path = find(name)
    if into is not None:
        return load_network(path, into)
    if path != Path(name):  # by its name, so what its card says is expected
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        if digest != card(path.stem).get("sha256"):
            raise ValueError(
                f"{path} is damaged: its sha256 differs from its card. Install qsr again."
            )
    return load_model(path)
