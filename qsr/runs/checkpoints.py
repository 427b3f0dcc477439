"""Training checkpoints: all that a run needs to go on as if it had never stopped.

A checkpoint is a folder of small files: weights, their moving average and each optimiser moment as
safetensors, configuration and progress as JSON. It appears on disk whole or not at all, and older
ones are removed after it is safe there. `best-N`, beside them, is the network that did best on
held-out pictures.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import json
import math
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ..backbone import QuantSR
from ..models.file import config_from_json, config_to_json, network_of, reason
from ..schedule import TrainConfig
from ..system.files import replacing_folder

MOMENTS = ("step", "exp_avg", "exp_avg_sq")  # what Adam remembers of a parameter
CHECKPOINT_ERRORS = (OSError, KeyError, TypeError, ValueError, SafetensorError, RuntimeError)


def save_checkpoint(
    folder: str | os.PathLike,
    net: nn.Module,
    optimizer: torch.optim.Optimizer,
    step: int,
    train_config: TrainConfig,
    keep: int = 2,
    average: nn.Module | None = None,
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


def clear_half_deleted(folder: str | os.PathLike) -> None:
    """Delete what is left of checkpoints where a run was killed while it removed them."""
    for kind in ("step", "best"):
        for path in Path(folder).glob(f"{kind}-*"):
            if not (path / "state.json").exists():
                shutil.rmtree(path, ignore_errors=True)


def _described(net: nn.Module, step: int, train_config: TrainConfig) -> dict:
    network = config_to_json(net.config) if isinstance(net, QuantSR) else type(net).__name__
    return {
        "step": step,
        "network": network,
        "training": dataclasses.asdict(train_config),
        "torch": str(torch.__version__),
    }


@contextlib.contextmanager
def _disk_errors() -> Iterator[None]:
    """Make an OSError of the error that safetensors has of its own when the disk is full."""
    try:
        yield
    except SafetensorError as error:
        raise OSError(errno.EIO, str(error)) from error


def _values(net: nn.Module) -> dict[str, Tensor]:
    return {name: t.detach().cpu().contiguous() for name, t in net.state_dict().items()}


def save_best(
    folder: str | os.PathLike,
    net: nn.Module,
    step: int,
    train_config: TrainConfig,
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
    state, tensors = load_state(path)
    try:
        net = network_of(config_from_json(state["network"]), tensors)
    except CHECKPOINT_ERRORS as error:
        raise _incomplete(path, error) from error
    return net, state


def load_state(path: str | os.PathLike) -> tuple[dict, dict[str, Tensor]]:
    """(state.json, weights) of one checkpoint folder, of whatever network. Errors as above."""
    try:
        state = json.loads((Path(path) / "state.json").read_text())
        return state, load_file(Path(path) / "weights.safetensors")
    except CHECKPOINT_ERRORS as error:
        raise _incomplete(path, error) from error


def load_average(path: str | os.PathLike, average: nn.Module) -> None:
    """Restore the moving average of weights from a checkpoint folder.

    Raises ValueError (one line) if it is missing or damaged.
    """
    try:
        average.load_state_dict(load_file(Path(path) / "average.safetensors"))
    except CHECKPOINT_ERRORS as error:
        raise _incomplete(path, error) from error


def load_optimizer(
    path: str | os.PathLike, net: nn.Module, optimizer: torch.optim.Optimizer
) -> None:
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
                    if any(moments[key][name].shape != p.shape for key in MOMENTS[1:]):
                        raise ValueError(f"its moments of {name!r} have another shape")
                    # Like p also in its memory layout: fused Adam walks over both side by side.
                    like = {key: p for key in MOMENTS} | {"step": moments["step"][name]}
                    optimizer.state[p] = {
                        key: torch.empty_like(like[key], device=p.device).copy_(tensors[name])
                        for key, tensors in moments.items()
                    }
    except CHECKPOINT_ERRORS as error:
        raise _incomplete(path, error) from error


def _incomplete(path: str | os.PathLike, error: Exception) -> ValueError:
    return ValueError(
        f"{path} is no complete checkpoint ({reason(error)}). "
        "Remove this folder, and the run goes on from the one before."
    )


def _moments(net: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, dict[str, Tensor]]:
    """{"exp_avg": {parameter name: tensor}, ...}: the optimiser's memory by parameter name."""
    moments: dict[str, dict[str, Tensor]] = {name: {} for name in MOMENTS}
    for name, p in net.named_parameters():
        for key, value in optimizer.state.get(p, {}).items():
            moments[key][name] = value.detach().cpu().contiguous()
    return moments
