"""Files that are there whole or not at all.

A program can be killed, a disk can fill up, a power cord can be pulled. Whatever qsr writes, it
writes beside its destination, flushes to the disk, and then renames: the rename is atomic, so a
reader sees the old file or the new one, never half of one.

What a killed process leaves beside a destination is named .qsr-PLACE-PID-RANDOM, where PLACE says
on which machine PID counts. The next process that writes there removes it if no such process runs.
"""

from __future__ import annotations

import contextlib
import functools
import os
import platform
import re
import shutil
import tempfile
import time
import zlib
from collections.abc import Iterator
from pathlib import Path

DAY = 86400  # seconds; nobody writes that long without a byte, wherever the process is


@contextlib.contextmanager
def replacing(path: str | os.PathLike, *, overwrite: bool = True) -> Iterator[Path]:
    """A temporary file to write to, which becomes `path` if the block ends without an error.

    Raises ValueError (one line) if `path` exists and `overwrite` is False, or if the folder can't
    be written to or the disk is full. After any error `path` is as it was.
    """
    path = Path(path)
    with _told_plainly(path):
        _refuse_existing(path, overwrite)
        _clear_once(path.parent.resolve())
        handle, name = tempfile.mkstemp(prefix=_prefix(), dir=path.parent)
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
        _clear_once(path.parent.resolve())
        temporary = Path(tempfile.mkdtemp(prefix=_prefix(), dir=path.parent))
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


def clear_unfinished(folder: str | os.PathLike) -> None:
    """Remove what processes that were killed left half-written in a folder.

    Only what this module named: by a process of this machine that is dead, or by any other (before
    a restart, in a container, on another machine with the same disk) and a day old.
    """
    for path in Path(folder).glob(".qsr-*"):
        name = re.fullmatch(r"(\.qsr-[0-9a-f]{8}-)(\d+)-.*", path.name)
        # Another process may have removed it a moment ago, or it may be another user's.
        with contextlib.suppress(OSError):
            if name and (
                time.time() - path.stat().st_mtime > DAY
                or (name[1] == _place() and not _runs(int(name[2])))
            ):
                shutil.rmtree(path) if path.is_dir() else path.unlink()


@functools.lru_cache(maxsize=1000)
def _clear_once(folder: Path) -> None:
    """Once in a process: a folder of pictures is not listed again for each picture."""
    clear_unfinished(folder)


def _place() -> str:
    """Where process numbers count: a start of a machine, and on Linux a container on it."""
    where = platform.node()
    with contextlib.suppress(OSError):
        boot = Path("/proc/sys/kernel/random/boot_id").read_text()
        where = boot + os.readlink("/proc/self/ns/pid")
    return f".qsr-{zlib.crc32(where.encode()):08x}-"


def _prefix() -> str:
    """Of temporary names: short, since a destination's own name may be as long as names can be."""
    return f"{_place()}{os.getpid()}-"


def _runs(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):  # another user's, or no number of a process
        pass
    return True


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
