"""Files that are there whole or not at all.

A program can be killed, a disk can fill up, a power cord can be pulled. Whatever qsr writes, it
writes beside its destination, flushes to the disk, and then renames: the rename is atomic, so a
reader sees the old file or the new one, never half of one.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def replacing(path: str | os.PathLike, *, overwrite: bool = True) -> Iterator[Path]:
    """A temporary file to write to, which becomes `path` if the block ends without an error.

    Raises ValueError (one line) if `path` exists and `overwrite` is False, or if the folder can't
    be written to or the disk is full. After any error `path` is as it was.
    """
    path = Path(path)
    with _told_plainly(path):
        _refuse_existing(path, overwrite)
        # A name may have 255 bytes; 200 of it leave room for what makes it another one.
        start = os.fsdecode(os.fsencode(path.name)[:200])
        handle, name = tempfile.mkstemp(prefix=f".{start}.", dir=path.parent)
        os.close(handle)
        temporary = Path(name)
        try:
            yield temporary
            _flush(temporary)
            os.chmod(temporary, 0o666 & ~_umask())  # mkstemp made it private
            _refuse_existing(path, overwrite)
            os.replace(temporary, path)
            _flush(path.parent)
        finally:
            temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def replacing_folder(path: str | os.PathLike) -> Iterator[Path]:
    """A temporary folder to fill, which becomes `path` if the block ends without an error.

    An existing `path` is replaced. Errors as `replacing`.
    """
    path = Path(path)
    with _told_plainly(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
        try:
            yield temporary
            for file in temporary.iterdir():
                _flush(file)
            _flush(temporary)
            os.chmod(temporary, 0o777 & ~_umask())
            if path.exists():  # a folder can't be replaced in one step: move the old one away first
                old = temporary.with_name(temporary.name + ".old")
                os.replace(path, old)
                os.replace(temporary, path)
                shutil.rmtree(old)
            else:
                os.replace(temporary, path)
            _flush(path.parent)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


def _refuse_existing(path: Path, overwrite: bool) -> None:
    if path.is_dir():
        raise ValueError(f"{path} is a folder; name a file in it.")
    if path.exists() and not overwrite:
        raise ValueError(
            f"{path} exists and is not overwritten unless asked; ask to overwrite it "
            "(overwrite=True, --overwrite), or name another file."
        )


@contextlib.contextmanager
def _told_plainly(path: Path) -> Iterator[None]:
    """Turn an OSError of the file system into one line that names the file and the way out."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise ValueError(
            f"cannot write {path}: {reason}. Nothing was changed; check the folder and its space."
        ) from error


def _flush(path: Path) -> None:
    """fsync a file, or a folder where the system allows that."""
    try:
        handle = os.open(path, os.O_RDONLY)
    except PermissionError:
        return
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
