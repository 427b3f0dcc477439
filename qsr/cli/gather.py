"""Which pictures `qsr upscale IN... OUT` means, and where each goes.

A folder stands for the pictures in it. Whatever else lies there is left out: hidden files (macOS
puts a `._x.jpg` beside each x.jpg) and what this very call writes there without a word, the rest is
counted, so that one line can say what was not done. Formats that are read only are written as PNG.
The order of the pictures is that of their names, so that machines which share a folder by
`--shard` have the same list.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ..images.formats import FORMATS, READ_ONLY
from .pipe import StandardInput

SUFFIXES = (*FORMATS, *READ_ONLY)
Source = Path | StandardInput
Job = tuple[Source, Path]


@dataclass(frozen=True)
class Naming:
    """Names in a folder: a.jpg becomes a, `suffix` and .`format`, or .jpg where that is empty.

    >>> str(Naming("_x4", "webp").target(Path("out/a.jpg"))), str(Naming().target(Path("a.tif")))
    ('out/a_x4.webp', 'a.png')
    """

    suffix: str = ""
    format: str = ""

    def target(self, path: Path) -> Path:
        kept = ".png" if path.suffix.lower() in READ_ONLY else path.suffix
        return path.with_name(
            path.stem + self.suffix + (f".{self.format}" if self.format else kept)
        )


@dataclass(frozen=True)
class Plan:
    """jobs: (source, target); with `piped` the one target only names what goes to standard output.
    left_out: how many files of each suffix, and folders as "folder".
    """

    jobs: list[Job]
    piped: bool = False
    left_out: Counter[str] = field(default_factory=Counter)

    def __str__(self) -> str:
        """What was left out, in one line; nothing if nothing was."""
        rows = [f"{n} {what}" for what, n in self.left_out.most_common() if what != "folder"]
        line = f"left out, as no pictures by their suffix: {', '.join(rows)}" if rows else ""
        if folders := self.left_out["folder"]:
            line += f"{'; ' if line else 'left out: '}{folders} folder(s), see --recursive"
        return line


def plan(
    inputs: Sequence[str], output: str, recursive: bool = False, naming: Naming = Naming()
) -> Plan:
    """One picture goes to one file, anything else into a folder, with `recursive` in the same tree.
    `-` is standard input, alone, and standard output, of one picture.

    Raises ValueError for several pictures and one file, for a folder without pictures, for two
    pictures that would get one name, and for a naming where OUT names the file.
    """
    _check_suffix(naming.suffix)
    single = len(inputs) == 1 and not Path(inputs[0]).is_dir()
    if "-" in inputs and not single:
        raise ValueError("`-` is one picture, from standard input; name it alone.")
    if output == "-":
        if not single or naming.suffix:
            raise ValueError("standard output takes one picture, without --suffix; name a folder.")
        return Plan([(_source(inputs[0]), Path(f"standard output.{naming.format or 'png'}"))], True)
    place = Path(output)
    if single and (inputs[0] == "-" or not place.is_dir()):
        if place.is_dir():
            raise ValueError(f"{place} is a folder, and standard input has no name; name a file.")
        if naming != Naming():
            raise ValueError(f"OUT, {place}, is the name of the picture; leave out --suffix and "
                             "--format, or name a folder that is there.")  # fmt: skip
        return Plan([(_source(inputs[0]), place)])
    if place.exists() and not place.is_dir():
        raise ValueError(f"{place} is a file; several pictures go to a folder. Name one.")
    return _into_folder(inputs, place, recursive, naming)


def _into_folder(inputs: Sequence[str], output: Path, recursive: bool, naming: Naming) -> Plan:
    jobs: list[tuple[Path, Path]] = []
    left_out: Counter[str] = Counter()
    for path in map(Path, inputs):
        found = [path]
        if path.is_dir():
            found = sorted(_pictures(path, output, recursive, left_out))
            if not found:
                raise ValueError(
                    f"{path} has no pictures ({', '.join(SUFFIXES)}); name a folder that has some."
                )
        root = path if path.is_dir() else path.parent
        jobs += [(source, naming.target(output / source.relative_to(root))) for source in found]
    # In a folder that is IN and OUT at once, what an earlier call made of a picture is none.
    made = {os.path.abspath(target) for source, target in jobs if source != target}
    jobs = [job for job in jobs if os.path.abspath(job[0]) not in made]
    for target, count in Counter(target for _, target in jobs).items():
        if count > 1:
            raise ValueError(f"two inputs are called {target.name}; enlarge them into two folders.")
    return Plan(list(jobs), left_out=left_out)


def share(jobs: list[Job], shard: str) -> list[Job]:
    """Every N-th job from the K-th on, for "K/N": a job array's K = 1 to N are all jobs, once.

    >>> [share(list("abcdefg"), f"{k}/3") for k in (1, 2, 3)]
    [['a', 'd', 'g'], ['b', 'e'], ['c', 'f']]
    """
    found = re.fullmatch(r"(\d+)/(\d+)", shard)
    number, count = map(int, found.groups()) if found else (0, 0)
    if not 1 <= number <= count:
        raise ValueError(f"`--shard` is {shard}; it is K/N, with K from 1 to N, as 3/8.")
    return jobs[number - 1 :: count]


def _check_suffix(suffix: str) -> None:
    if Path(f"a{suffix}").name != f"a{suffix}" or "\0" in suffix:
        raise ValueError(f"`--suffix` is {suffix!r}; it is put to the name of a file, without `/`.")


def _source(name: str) -> Source:
    return StandardInput() if name == "-" else Path(name)


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
