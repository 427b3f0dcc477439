"""What is kept on disk: model files (.qsr) and training checkpoints (folders).

A `.qsr` file is a safetensors file whose metadata says what it is:

    format, format_version   "qsr", and the version of this layout
    kind                     "trained" (float weights, steps, tau; full precision perhaps in
                             float16) or "packed" (bit planes)
    family, config           which network, as JSON of its configuration
    sha256                   of all of this and the tensors, so that a damaged file is noticed
    note                     free text: data, steps, scores

Nothing in it is executed on load: no pickle, no code.

A training checkpoint is a folder of small files: weights and each optimiser moment as safetensors,
configuration and progress as JSON. Both kinds appear on disk whole or not at all (`files`).
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import hashlib
import json
import math
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from .backbone import ConvConfig, NetworkConfig, QuantSR, SwinConfig
from .files import replacing, replacing_folder
from .pack import PackedModel

FILE_VERSION = 1
FAMILIES = {"conv": ConvConfig, "swin": SwinConfig}
MOMENTS = ("step", "exp_avg", "exp_avg_sq")  # what Adam remembers of a parameter
CHECKPOINT_ERRORS = (OSError, KeyError, TypeError, ValueError, SafetensorError, RuntimeError)

# Configuration <-> JSON ---------------------------------------------------------------------------


def config_to_json(config: NetworkConfig) -> dict:
    """The configuration as a JSON object, with its family."""
    family = next(name for name, cls in FAMILIES.items() if type(config) is cls)
    return {"family": family, **dataclasses.asdict(config)}


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
    with replacing(path, overwrite=overwrite) as temporary, _disk_errors():
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
            raise ValueError(f"{name!r} has values that float16 has not; save without `half`.")
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
        model = PackedModel.empty(config) if packed else QuantSR(config)
        (model.network if packed else model).load_state_dict(tensors)
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise ValueError(
            f"{path} does not fit its own description ({_reason(error)}). Save the model again."
        ) from error
    return model.eval()


def _reason(error: Exception) -> str:
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
def _disk_errors() -> Iterator[None]:
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
        f"({str(error).splitlines()[0]}). Pickled checkpoints (.pt, .pth) are not loaded."
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


def save_checkpoint(
    folder: str | os.PathLike,
    net: QuantSR,
    optimizer: torch.optim.Optimizer,
    step: int,
    train_config: object,
    keep: int = 2,
    average: QuantSR | None = None,
    progress: Mapping[str, object] = MappingProxyType({}),
) -> Path:
    """Write `folder`/step-N: weights, their moving average if there is one, each optimiser moment,
    configuration, and what else the run remembers (`progress`, as JSON takes it).

    Older checkpoints beyond `keep` are removed after the new one is safe on the disk.
    """
    path = Path(folder) / f"step-{step:08d}"
    moments = _moments(net, optimizer)
    state = {**_described(net, step, train_config), **progress}
    with replacing_folder(path) as temporary, _disk_errors():
        save_file(_values(net), temporary / "weights.safetensors")
        if average is not None:
            save_file(_values(average), temporary / "average.safetensors")
        for name, tensors in moments.items():
            save_file(tensors, temporary / f"{name}.safetensors")
        (temporary / "state.json").write_text(json.dumps(state, indent=1) + "\n")
    _remove(list_checkpoints(folder)[:-keep])
    return path


def _remove(folders: Sequence[Path]) -> None:
    """Delete checkpoints; state.json first, so that one that is half gone does not count."""
    for folder in folders:
        (folder / "state.json").unlink()
        shutil.rmtree(folder)


def clear_unfinished(folder: str | os.PathLike) -> None:
    """Delete what a killed run left half-written or half deleted in its folder."""
    for kind in ("step", "best"):
        for path in Path(folder).glob(f".{kind}-*"):
            shutil.rmtree(path, ignore_errors=True)
        for path in Path(folder).glob(f"{kind}-*"):
            if not (path / "state.json").exists():
                shutil.rmtree(path, ignore_errors=True)


def _described(net: QuantSR, step: int, train_config: object) -> dict:
    return {
        "step": step,
        "network": config_to_json(net.config),
        "training": dataclasses.asdict(train_config),
        "torch": str(torch.__version__),
    }


def _values(net: QuantSR) -> dict[str, Tensor]:
    return {name: t.detach().cpu().contiguous() for name, t in net.state_dict().items()}


def save_best(
    folder: str | os.PathLike,
    net: QuantSR,
    step: int,
    train_config: object,
    depths: int,
    score: float,
    scores: dict[str, float],
) -> None:
    """Write `folder`/best-N: the network that did best on held-out pictures, without moments.

    depths: how many it is trained at; score: dB, the mean of `scores`. The one before is removed.
    """
    state = {**_described(net, step, train_config), "depths": depths, "score": score, **scores}
    with replacing_folder(Path(folder) / f"best-{step:08d}") as temporary, _disk_errors():
        save_file(_values(net), temporary / "weights.safetensors")
        (temporary / "state.json").write_text(json.dumps(state, indent=1) + "\n")
    _remove([path for path in _finished(folder, "best") if not path.name.endswith(f"{step:08d}")])


def find_best(folder: str | os.PathLike) -> Path | None:
    """The folder of a run's best network on held-out pictures, if it was scored."""
    return next(iter(_finished(folder, "best")[-1:]), None)


def best_score(folder: str | os.PathLike) -> tuple[int, float]:
    """(number of depths, dB) of `find_best`; (0, -inf) if there is none."""
    path = find_best(folder)
    if path is None:
        return 0, -math.inf
    try:
        state = json.loads((path / "state.json").read_text())
        return state["depths"], state["score"]
    except CHECKPOINT_ERRORS as error:
        raise _incomplete(path, error) from error


def list_checkpoints(folder: str | os.PathLike) -> list[Path]:
    """Complete checkpoints in `folder`, oldest first."""
    return _finished(folder, "step")


def _finished(folder: str | os.PathLike, kind: str) -> list[Path]:
    return sorted(p.parent for p in Path(folder).glob(f"{kind}-*/state.json"))


def load_checkpoint(path: str | os.PathLike) -> tuple[QuantSR, dict]:
    """(network, state) of one checkpoint folder; state is its state.json.

    Raises ValueError (one line) if something is missing or damaged.
    """
    try:
        state = json.loads((Path(path) / "state.json").read_text())
        net = QuantSR(config_from_json(state["network"]))
        net.load_state_dict(load_file(Path(path) / "weights.safetensors"))
    except CHECKPOINT_ERRORS as error:
        raise _incomplete(path, error) from error
    return net, state


def load_average(path: str | os.PathLike, average: QuantSR) -> None:
    """Restore the moving average of weights from a checkpoint folder.

    Raises ValueError (one line) if it is missing or damaged.
    """
    try:
        average.load_state_dict(load_file(Path(path) / "average.safetensors"))
    except CHECKPOINT_ERRORS as error:
        raise _incomplete(path, error) from error


def load_optimizer(path: str | os.PathLike, net: QuantSR, optimizer: torch.optim.Optimizer) -> None:
    """Restore Adam's moments and step counts of `net`'s parameters from a checkpoint folder.

    Raises ValueError (one line) if something is missing or damaged.
    """
    names = {id(p): name for name, p in net.named_parameters()}
    try:
        moments = {name: load_file(Path(path) / f"{name}.safetensors") for name in MOMENTS}
        if len({frozenset(tensors) for tensors in moments.values()}) > 1:
            raise ValueError("its moments are of different parameters")
        for group in optimizer.param_groups:
            for p in group["params"]:
                name = names[id(p)]
                if name in moments["step"]:
                    # Like p also in its memory layout: fused Adam walks over both side by side.
                    optimizer.state[p] = {
                        key: torch.empty_like(p if key != "step" else tensors[name]).copy_(
                            tensors[name]
                        )
                        for key, tensors in moments.items()
                    }
    except CHECKPOINT_ERRORS as error:
        raise _incomplete(path, error) from error


def _incomplete(path: str | os.PathLike, error: Exception) -> ValueError:
    return ValueError(
        f"{path} is no complete checkpoint ({_reason(error)}). "
        "Remove this folder, and the run goes on from the one before."
    )


def _moments(net: QuantSR, optimizer: torch.optim.Optimizer) -> dict[str, dict[str, Tensor]]:
    """{"exp_avg": {parameter name: tensor}, ...}: the optimiser's memory by parameter name."""
    moments: dict[str, dict[str, Tensor]] = {name: {} for name in MOMENTS}
    for name, p in net.named_parameters():
        for key, value in optimizer.state.get(p, {}).items():
            moments[key][name] = value.detach().cpu().contiguous()
    return moments
