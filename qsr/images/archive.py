"""One file of pictures: sets packed to be copied to another machine.

It is a plain zip whose entries are stored, not compressed again: the pictures' own bytes, numbered,
and `index.json`, which says what each is:

    {"format": "qsr pictures", "version": 1, "pictures": [
      {"file": "001.png", "set": "T91", "name": "t1.png", "split": "train"}, ...]}

split: "train" or "validation", as the set itself was divided. A smaller file of the same set holds
back the same pictures, so that what a network never saw stays unseen.

Pictures are read from the zip into memory. Nothing is unpacked, so no name inside it ever becomes a
path on the disk.
"""

from __future__ import annotations

import io
import json
import math
import os
import struct
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from tqdm.auto import tqdm

from ..system.errors import first_line
from ..system.files import replacing
from .formats import FORMATS

FORMAT, VERSION, INDEX = "qsr pictures", 1, "index.json"

# Bytes at most: of a picture's two headers in the zip, and of all that is there once.
_HEADERS, _ONCE = 200, 500

# What zipfile and json raise on files that are damaged, encrypted or made by others.
_DAMAGE = (
    zipfile.BadZipFile,
    OSError,
    EOFError,
    ValueError,
    LookupError,
    TypeError,
    RuntimeError,
    OverflowError,
    struct.error,
)


@dataclass(frozen=True)
class Member:
    """A picture inside a packed file; `images.reading.read` reads it as it reads a path."""

    archive: zipfile.ZipFile
    info: zipfile.ZipInfo
    name: str  # of the file that was packed

    @property
    def stem(self) -> str:
        return PurePosixPath(self.name).stem

    @property
    def suffix(self) -> str:
        return PurePosixPath(self.name).suffix

    def open(self, mode: str = "rb") -> io.BytesIO:
        """Its bytes, checked. Raises ValueError (one line) if they are damaged."""
        try:
            return io.BytesIO(self.archive.read(self.info))
        except _DAMAGE as error:
            raise ValueError(f"{self} is damaged ({first_line(error)}); copy it again.") from error

    def __str__(self) -> str:
        return f"{self.archive.filename}/{self.info.filename}"


@dataclass(frozen=True)
class Source:
    """A picture that is not loaded yet. file: what `images.reading.read` takes."""

    file: Path | Member
    set: str
    split: str  # "train" or "validation"


def read(path: str | os.PathLike) -> list[Source]:
    """The pictures of a packed file, in its order; each is read when it is opened.

    Raises ValueError (one line) for anything that `write` did not make, or that is damaged.
    """
    path = Path(path)
    try:
        archive = zipfile.ZipFile(path)
    except _DAMAGE as error:
        raise _refused(path, error) from error
    try:
        return _sources(archive, path.stat().st_size)
    except _DAMAGE as error:
        archive.close()
        raise _refused(path, error) from error


def write(
    path: str | os.PathLike,
    sources: Sequence[Source],
    inspect: Callable[[Source], object] = lambda source: None,
    *,
    overwrite: bool = False,
) -> None:
    """Pack pictures, whole or not at all; the same pictures give the same bytes.

    inspect: called with each picture before it is packed; what it raises ends the packing. Raises
    ValueError (one line) if `path` exists and `overwrite` is False, or can't be written.
    """
    rows = _rows(sources)
    index = {"format": FORMAT, "version": VERSION, "pictures": rows}
    bar = tqdm(sources, desc="packing", unit="picture", disable=len(sources) < 50)
    with replacing(path, overwrite=overwrite) as temporary, zipfile.ZipFile(temporary, "w") as out:
        # A ZipInfo has a date of its own, 1980, and stores.
        out.writestr(zipfile.ZipInfo(INDEX), _json(index))
        for row, source in zip(rows, bar, strict=True):
            inspect(source)
            with source.file.open("rb") as file:
                out.writestr(zipfile.ZipInfo(row["file"]), file.read())


def select(sources: Sequence[Source], limit: float) -> list[Source]:
    """As many pictures as pack into `limit` bytes, evenly over each set, in the order given.

    Deterministic, and a smaller limit takes a part of what a larger one takes. Raises ValueError
    (one line) if not even the first fits.
    """
    seen: dict[str, int] = {}
    keys = []
    for source in sources:
        number = seen[source.set] = seen.get(source.set, -1) + 1
        # Multiples of the golden ratio, modulo 1, below any threshold are evenly spaced.
        keys.append(number * (math.sqrt(5) - 1) / 2 % 1)
    order = sorted(range(len(sources)), key=keys.__getitem__)
    rows = _rows(sources)
    total, taken = _ONCE, []
    for i in order:
        total += size(sources[i].file) + len(_json(rows[i])) + _HEADERS
        if total > limit:
            break
        taken.append(i)
    if not taken:
        raise ValueError(
            f"{sources[order[0]].file} alone takes {total / 1e6:.3f} MB and the limit is "
            f"{limit / 1e6:g} MB; raise it."
        )
    return [sources[i] for i in sorted(taken)]


def size(file: Path | Member) -> int:
    """Bytes of a picture file."""
    return file.info.file_size if isinstance(file, Member) else file.stat().st_size


def _rows(sources: Sequence[Source]) -> list[dict[str, str]]:
    digits = len(str(len(sources)))
    return [
        {
            "file": f"{number:0{digits}}{source.file.suffix.lower()}",
            "set": _printable(source.set),
            "name": _printable(source.file.name),
            "split": source.split,
        }
        for number, source in enumerate(sources, 1)
    ]


def _sources(archive: zipfile.ZipFile, length: int) -> list[Source]:
    """The index of a zip of `length` bytes, each claim of it checked; raises one of _DAMAGE."""
    infos = {info.filename: info for info in archive.infolist()}
    stored = all(
        info.compress_type == zipfile.ZIP_STORED
        and info.compress_size == info.file_size
        and not info.flag_bits & 1  # encrypted
        for info in infos.values()
    )
    if INDEX not in infos or not stored or sum(i.file_size for i in infos.values()) > length:
        raise ValueError("it has no index.json, or is compressed")
    index = json.loads(archive.read(INDEX))
    if index["format"] != FORMAT:
        raise ValueError("its index.json is another format")
    if index["version"] != VERSION:
        raise ValueError(f"its version is {index['version']!r}, and this qsr reads {VERSION}")
    sources = []
    for row in index["pictures"]:
        member = Member(archive, infos.pop(row["file"]), row["name"])
        sound = row["split"] in ("train", "validation") and member.suffix.lower() in FORMATS
        if not sound or not (row["file"] + row["name"] + row["set"]).isprintable():
            raise ValueError(f"its index.json is wrong about {row['file']!r}")
        sources.append(Source(member, row["set"], row["split"]))
    if not sources or infos.keys() != {INDEX} or len(archive.infolist()) != len(sources) + 1:
        raise ValueError("its index.json does not list what is in it")
    return sources


def _json(what: object) -> str:
    return json.dumps(what, separators=(",", ":"))


def _printable(text: str) -> str:
    return "".join(c if c.isprintable() else "_" for c in text)


def _refused(path: Path, error: Exception) -> ValueError:
    return ValueError(
        f"{path} is no file made by `qsr data pack`, or is damaged ({first_line(error)}); copy it "
        "again, or name a set or a folder."
    )
