"""Which pictures `qsr upscale IN... OUT` means, and where each goes.

A folder stands for the pictures in it. Whatever else lies there is left out: hidden files (macOS
puts a `._x.jpg` beside each x.jpg) without a word, the rest is counted, so that one line can say
what was not done. Formats that are read only are written as PNG.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ..images.picture import FORMATS

READ_ONLY = (".tif", ".tiff", ".bmp", ".gif", ".avif")
SUFFIXES = (*FORMATS, *READ_ONLY)


@dataclass(frozen=True)
class Plan:
    """jobs: (source, target). left_out: how many files of each suffix, and folders as "folder"."""

    jobs: list[tuple[Path, Path]]
    left_out: Counter[str] = field(default_factory=Counter)

    def __str__(self) -> str:
        """What was left out, in one line; nothing if nothing was."""
        rows = [f"{n} {what}" for what, n in self.left_out.most_common() if what != "folder"]
        line = f"left out, as no pictures by their suffix: {', '.join(rows)}" if rows else ""
        if folders := self.left_out["folder"]:
            line += f"{'; ' if line else 'left out: '}{folders} folder(s), see --recursive"
        return line


def plan(inputs: Sequence[str], output: Path, recursive: bool = False) -> Plan:
    """One file goes to one file, anything else into a folder, with `recursive` in the same tree.

    Raises ValueError for several pictures and one file, for a folder without pictures, and for two
    pictures that would get one name.
    """
    folders = [Path(i) for i in inputs if Path(i).is_dir()]
    single = len(inputs) == 1 and not folders
    if single and not output.is_dir():
        return Plan([(Path(inputs[0]), output)])
    if output.exists() and not output.is_dir():
        raise ValueError(f"{output} is a file; several pictures go to a folder. Name one.")
    done = Plan([])
    for name in inputs:
        path = Path(name)
        found = [path]
        if path.is_dir():
            found = sorted(_pictures(path, output, recursive, done.left_out))
            if not found:
                raise ValueError(
                    f"{path} has no pictures ({', '.join(SUFFIXES)}); name a folder that has some."
                )
        root = path if path.is_dir() else path.parent
        done.jobs.extend((source, _target(output / source.relative_to(root))) for source in found)
    for target, count in Counter(target for _, target in done.jobs).items():
        if count > 1:
            raise ValueError(f"two inputs are called {target.name}; enlarge them into two folders.")
    return done


def _target(path: Path) -> Path:
    return path.with_suffix(".png") if path.suffix.lower() in READ_ONLY else path


def _pictures(
    folder: Path, output: Path, recursive: bool, left_out: Counter[str]
) -> Iterator[Path]:
    """The pictures in a folder, and with `recursive` below it, but none of the output folder."""
    for place, folders, names in os.walk(folder):
        folders[:] = [
            name
            for name in folders
            if not name.startswith(".") and (Path(place) / name).resolve() != output.resolve()
        ]
        if not recursive:
            left_out["folder"] += len(folders)
            folders.clear()
        for name in names:
            suffix = Path(name).suffix.lower()
            if name.startswith("."):
                continue
            if suffix in SUFFIXES:
                yield Path(place) / name
            else:
                left_out[suffix or "without suffix"] += 1
