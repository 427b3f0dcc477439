"""Ctrl-C and SIGTERM: the end at once while modules load or go, an exception while a command works.

Python's own answer to Ctrl-C is an exception wherever it is, and to SIGTERM the end on the spot. In
the middle of an import the first becomes a page of other modules' names, or C code makes an import
error of it; nothing is open then, so the process just ends, with one line. Later every signal is an
exception, so that each `finally` runs and no temporary file stays.
"""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Callable, Iterator
from typing import Any

WORDS = {signal.SIGINT: "interrupted", signal.SIGTERM: "terminated"}


class Stopped(KeyboardInterrupt):
    """A signal asked this process to end. code: what it exits with, as a shell counts."""

    def __init__(self, number: int) -> None:
        super().__init__(WORDS[signal.Signals(number)])
        self.code = 128 + number


def leave(number: int, frame: object) -> None:
    """End the process with one line."""
    os.write(2, f"qsr: {WORDS[signal.Signals(number)]}\n".encode())
    os._exit(128 + number)


def stop(number: int, frame: object) -> None:
    """Raise `Stopped`; if that takes too long, a second signal ends the process."""
    signal.signal(number, leave)
    raise Stopped(number)


def answer_by(answer: Callable[[int, object], None]) -> dict[int, Any]:
    """Answer the signals by `leave` or `stop` from now on; returns what answered them before.

    In the main thread only, as Python has it. A signal that is ignored (nohup, a shell's
    background) stays so.
    """
    previous: dict[int, Any] = {}
    with contextlib.suppress(ValueError):  # not the main thread
        for number in WORDS:
            if signal.getsignal(number) is not signal.SIG_IGN:
                previous[number] = signal.signal(number, answer)
    return previous


@contextlib.contextmanager
def answered_by(answer: Callable[[int, object], None]) -> Iterator[None]:
    """`answer_by` for a while."""
    previous = answer_by(answer)
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
