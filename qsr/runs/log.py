"""The diary of a training run: log.jsonl, and TensorBoard's files where they are asked for.

One JSON object a line: what was measured at a step, and at every checkpoint the step size of each
quantizer and the range of its tau. From these the figures of their evolution are drawn
(QuantSR's supplement, Figures 1 and 2). A run that goes on after a crash drops the lines of the
steps that it repeats.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path

from torch import nn

from ..quantizer import Quantizer
from ..system.files import replacing

NAME = "log.jsonl"


def read_log(folder: str | os.PathLike) -> list[dict]:
    """The lines of a run's log, oldest first; a last line cut off by a crash is left out."""
    path = Path(folder) / NAME
    lines = []
    for line in path.read_text().splitlines() if path.exists() else []:
        try:
            lines.append(json.loads(line))
        except ValueError:
            continue
    return lines


def quantizer_state(net: nn.Module) -> dict[str, dict[str, float]]:
    """{name: {"step": mean step size, "tau_min", "tau_mean", "tau_max"}}, units of its input."""
    found = {}
    for name, quantizer in net.named_modules():
        if isinstance(quantizer, Quantizer):
            found[name] = {"step": quantizer.step_size.detach().mean().item()}
            tau = getattr(quantizer, "tau", None)
            if tau is not None:
                tau = tau.detach()
                values = {"min": tau.min(), "mean": tau.mean(), "max": tau.max()}
                found[name] |= {f"tau_{key}": value.item() for key, value in values.items()}
    return found


class RunLog:
    """Writes the log of the run in `folder`, whose first `start` steps are done. last: the step of
    its last line.

    Raises ValueError if tensorboard is True and the package is missing.
    """

    def __init__(self, folder: str | os.PathLike, start: int, tensorboard: bool = False) -> None:
        self.path = Path(folder) / NAME
        kept = [line for line in read_log(folder) if line["step"] <= start]
        self.last = kept[-1]["step"] if kept else 0
        if self.path.exists():
            with replacing(self.path) as temporary:
                temporary.write_text("".join(json.dumps(line) + "\n" for line in kept))
        self.board = _summary_writer(folder, start) if tensorboard else None

    def write(self, step: int, values: Mapping[str, float], net: nn.Module | None = None) -> None:
        """One line: values, and the quantizers of `net` if it is given."""
        line: dict = {"step": step, **{k: round(v, 6) for k, v in values.items()}}
        if net is not None:
            line["quantizers"] = quantizer_state(net)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with open(self.path, "a") as file:
                file.write(json.dumps(line) + "\n")
        except OSError as error:
            raise OSError(error.errno, error.strerror, str(self.path)) from error
        if self.board is not None:
            for name, value in values.items():
                self.board.add_scalar(name, value, step)
            for name, quantizer in [] if net is None else net.named_modules():
                if isinstance(quantizer, Quantizer):
                    self.board.add_scalar(f"step/{name}", quantizer.step_size.mean(), step)
                    if getattr(quantizer, "tau", None) is not None:
                        self.board.add_histogram(f"tau/{name}", quantizer.tau, step)

    def close(self) -> None:
        """Finish TensorBoard's file."""
        if self.board is not None:
            self.board.close()


def _summary_writer(folder: str | os.PathLike, start: int):
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise ValueError(
            "TensorBoard's files were asked for and the package is missing: "
            "pip install -e '.[tensorboard]' in a clone of qsr, or leave them out (log.jsonl holds "
            "the same numbers)."
        ) from error
    return SummaryWriter(str(folder), purge_step=start + 1)
