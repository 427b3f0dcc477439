"""`-`: a picture from standard input, and one to standard output."""

from __future__ import annotations

import contextlib
import io
import shutil
import sys
import tempfile
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path


class StandardInput:
    """What is piped in, read once and opened as often as a file."""

    name = "standard input"

    def __str__(self) -> str:
        return self.name

    @cached_property
    def _content(self) -> bytes:
        return sys.stdin.buffer.read()

    def open(self, mode: str = "rb") -> io.BytesIO:
        return io.BytesIO(self._content)


def check_standard_output() -> None:
    """Raise ValueError if bytes would end on a screen."""
    if sys.stdout.isatty():
        raise ValueError("standard output is a terminal; send it to a file: > large.png")


@contextlib.contextmanager
def to_standard_output(name: Path) -> Iterator[Path]:
    """A file of this name to be written; then, if nothing failed, its bytes go on."""
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder) / name
        with (Path(folder) / name).open("rb") as file:
            shutil.copyfileobj(file, sys.stdout.buffer)
            sys.stdout.buffer.flush()
