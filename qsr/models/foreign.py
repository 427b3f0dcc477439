"""Weights that others wrote: tensors by their names, and nothing else.

A .pth file is a pickle, which can run code when it is read; torch's `weights_only` reads tensors
and plain containers and refuses the rest (docs/decisions/0013).
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor


def read_tensors(path: str | os.PathLike, whose: str, keys: Sequence[str]) -> dict[str, Tensor]:
    """The tensors of a .pth or .safetensors file; what else stands beside them is left out.

    keys: names under which they may be wrapped, perhaps in one another, the first that is there
    counts. whose: "a QuantSR checkpoint", for messages. Raises ValueError (one line) if the file is
    missing or damaged, holds code, or no tensors by name.
    """
    if not os.path.isfile(path):
        raise ValueError(f"{path} is no file; name the .pth file of {whose}.")
    found: Any
    try:
        if Path(path).suffix == ".safetensors":
            found = load_file(path)
        else:
            found = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # whatever a foreign file provokes
        raise ValueError(
            f"{path} is damaged or holds more than tensors ({type(error).__name__}), and qsr runs "
            "no code that comes with weights. Fetch it again, or from its authors."
        ) from error
    while isinstance(found, dict):
        inner = next((found[k] for k in keys if isinstance(found.get(k), dict)), None)
        if inner is None:
            break
        found = inner
    named = found if isinstance(found, dict) else {"": None}
    tensors = {str(name): value for name, value in named.items() if isinstance(value, Tensor)}
    if named and not tensors:
        raise ValueError(
            f"{path} has no tensors by name, directly or under {', '.join(map(repr, keys))}. "
            "Name the file of a network, not that of a training state."
        )
    return {name.removeprefix("module."): value for name, value in tensors.items()}
