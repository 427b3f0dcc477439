"""What several commands are given: a model and its depth, a folder to write to. Without torch."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

DEFAULT_MODEL = "quantsr-c-x4-w4a4"


def add_model(sub: argparse.ArgumentParser) -> argparse._MutuallyExclusiveGroup:
    """The options --model and --blocks; returns the group of those that --blocks excludes."""
    sub.add_argument(
        "--model",
        default=DEFAULT_MODEL,
        metavar="NAME",
        help=f"a name from `qsr models`, or a .qsr file ({DEFAULT_MODEL})",
    )
    depth = sub.add_mutually_exclusive_group()
    depth.add_argument("--blocks", type=int, metavar="N", help="depth: how many blocks run (all)")
    return depth


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
