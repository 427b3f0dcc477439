"""Model files (.qsr): trained or packed networks on the disk.

A `.qsr` file is a safetensors file whose metadata says what it is:

    format, format_version   "qsr", and the version of this layout
    kind                     "trained" (float weights, steps, tau; full precision perhaps in
                             float16) or "packed" (bit planes)
    family, config           which network, as JSON of its configuration
    sha256                   of all of this and the tensors, so that a damaged file is noticed
    note                     free text: data, steps, scores

Nothing in it is executed on load: no pickle, no code. It appears on disk whole or not at all.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from .. import baselines as baselines  # whose quantizers a file may name
from ..backbone import QuantSR
from ..config import ConvConfig, NetworkConfig, SwinConfig
from ..integer.packing import PackedModel
from ..system.errors import first_line
from ..system.files import replacing

FILE_VERSION = 1
FAMILIES = {cls.family: cls for cls in (ConvConfig, SwinConfig)}

# Configuration <-> JSON ---------------------------------------------------------------------------


def config_to_json(config: NetworkConfig) -> dict:
    """The configuration as a JSON object, with its family."""
    return {"family": config.family, **dataclasses.asdict(config)}


def config_from_json(data: dict) -> NetworkConfig:
    """The inverse of `config_to_json`. Raises ValueError for a family or field it does not know."""
    data = dict(data)
    family = data.pop("family", None)
    if family not in FAMILIES:
        raise ValueError(
            f"the network family is {family!r}; this version knows {', '.join(FAMILIES)}. "
            "Update qsr, or check the file."
        )
    known = {field.name for field in dataclasses.fields(FAMILIES[family])}
    unknown = sorted(set(data) - known)
    if unknown:
        raise ValueError(
            f"the configuration has the field {unknown[0]!r}, which this version does not know. "
            "Update qsr, or check the file."
        )
    return FAMILIES[family](**data)


# Model files --------------------------------------------------------------------------------------


def save(
    path: str | os.PathLike,
    model: QuantSR | PackedModel,
    note: str = "",
    overwrite: bool = True,
    half: bool = False,
) -> None:
    """Write a trained or packed network to a .qsr file.

    half: weights in float16, half the bytes; for full precision only, since a learned step that is
    rounded gives other codes. Raises TypeError for any other module, ValueError if the file can't
    be written, or `half` does not fit: a quantised network, or weights beyond float16's range.
    """
    if isinstance(model, PackedModel):
        kind, network = "packed", model.network
    elif isinstance(model, QuantSR):
        kind, network = "trained", model
    else:
        raise TypeError(
            f"`model` is a {type(model).__name__}; .qsr files hold a QuantSR or its packed form. "
            "Save the state_dict() of your own module with safetensors."
        )
    tensors = {name: t.detach().cpu().contiguous() for name, t in network.state_dict().items()}
    if half:
        tensors = _halved(tensors, network.config)
    metadata = {
        "format": "qsr",
        "format_version": str(FILE_VERSION),
        "kind": kind,
        "config": json.dumps(config_to_json(network.config)),
        "note": note,
    }
    metadata["sha256"] = digest(metadata, tensors)
    with replacing(path, overwrite=overwrite) as temporary, disk_errors():
        save_file(tensors, temporary, metadata)


def _halved(tensors: dict[str, Tensor], config: NetworkConfig) -> dict[str, Tensor]:
    if config.bits is not None:
        raise ValueError(
            "`half` is for full precision; rounding the steps of a quantised network would change "
            "its codes. Pack it instead, which makes it smaller still."
        )
    largest = torch.finfo(torch.float16).max
    for name, t in tensors.items():
        if t.is_floating_point() and not (t.abs() <= largest).all():
            raise ValueError(f"{name!r} has values that float16 cannot hold; save without `half`.")
    return {name: t.half() if t.is_floating_point() else t for name, t in tensors.items()}


def load_model(path: str | os.PathLike) -> QuantSR | PackedModel:
    """Read a .qsr file: a QuantSR ("trained") or a PackedModel ("packed"), in eval mode, on CPU.

    Raises ValueError (one line) if the file is missing, damaged, foreign, or of another version.
    """
    metadata, tensors = _read_safetensors(path)
    if metadata.get("format") != "qsr":
        raise ValueError(f"{path} is a safetensors file but no qsr model: it does not say so.")
    if metadata.get("format_version") != str(FILE_VERSION):
        raise ValueError(
            f"{path} has format version {metadata.get('format_version')!r}; this version of qsr "
            f"reads {FILE_VERSION}. Update qsr, or pack the model again."
        )
    if metadata.get("sha256") != digest(metadata, tensors):
        raise ValueError(f"{path} is damaged: its checksum does not match. Fetch it again.")
    try:
        config = config_from_json(json.loads(metadata["config"]))
        if metadata["kind"] not in ("trained", "packed"):
            raise ValueError(f"its kind is {metadata['kind']!r}")
        packed = metadata["kind"] == "packed"
        model: QuantSR | PackedModel = PackedModel.empty(config) if packed else QuantSR(config)
        (model.network if isinstance(model, PackedModel) else model).load_state_dict(tensors)
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise ValueError(
            f"{path} does not fit its own description ({reason(error)}). Save the model again."
        ) from error
    return model.eval()


def reason(error: Exception) -> str:
    """The line of an error that says what is wrong: load_state_dict has a title line first."""
    lines = str(error).splitlines() or [type(error).__name__]
    return lines[min(1, len(lines) - 1)].strip().rstrip(".")


def describe(path: str | os.PathLike) -> dict[str, str]:
    """The metadata of a .qsr file without its tensors."""
    try:
        with safe_open(path, framework="pt") as file:
            return dict(file.metadata() or {})
    except (OSError, SafetensorError) as error:
        raise _unreadable(path, error) from error


def _read_safetensors(path: str | os.PathLike) -> tuple[dict[str, str], dict[str, Tensor]]:
    try:
        with safe_open(path, framework="pt") as file:
            names = file.keys()
            return dict(file.metadata() or {}), {name: file.get_tensor(name) for name in names}
    except (OSError, SafetensorError) as error:
        raise _unreadable(path, error) from error


@contextlib.contextmanager
def disk_errors() -> Iterator[None]:
    """Make an OSError of the error that safetensors has of its own when the disk is full."""
    try:
        yield
    except SafetensorError as error:
        raise OSError(errno.EIO, str(error)) from error


def _unreadable(path: str | os.PathLike, error: Exception) -> ValueError:
    if not Path(path).exists():
        return ValueError(
            f"{path} does not exist; `qsr models` lists the names that come with qsr."
        )
    if Path(path).is_dir():
        return ValueError(f"{path} is a folder; name a .qsr file in it.")
    return ValueError(
        f"{path} is no qsr model: it cannot be read as safetensors "
        f"({first_line(error)}). Pickled checkpoints (.pt, .pth) are not loaded."
    )


def digest(metadata: dict[str, str], tensors: dict[str, Tensor]) -> str:
    """sha256 of a .qsr file's contents: metadata and tensors, each in the order of the names."""
    described = {key: value for key, value in metadata.items() if key != "sha256"}
    digest = hashlib.sha256(json.dumps(described, sort_keys=True).encode())
    for name in sorted(tensors):
        tensor = tensors[name].contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


# Training checkpoints -----------------------------------------------------------------------------
