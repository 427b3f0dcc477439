"""Fuzzing: whatever a file says, one line or a result, in time, in memory.

Each kind (`kinds.py`) makes small valid files, changes them at random, and gives them to the
library as a user would. A case ends in one of these ways:

    taken       it was read, and what it describes ran
    refused     ValueError of one line
    error       any other exception, or a ValueError of several lines
    memory      it took more than 1 GB
    hang        it took more than 20 s
    crash       the process died

Only the first two are right. Case n of a seed is always the same, so that a finding can be had
again: `python -m tests.fuzz KIND --seed S --first N --cases 1`. Cases run in a process of their
own, which is started anew behind a case that killed it.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import resource
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

HANG = 20.0  # seconds
MEMORY = 1 << 20  # KB that a case may add to the process's peak
ADDRESSES = 8 << 30  # bytes of address space, so that a claim of terabytes fails at once


@dataclass
class Findings:
    """What became of the cases of one kind: counts by outcome, and each wrong one in words."""

    kind: str
    counts: Counter = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)


def fuzz(kind: str, seed: int, first: int, cases: int, seconds: float) -> Findings:
    """Try cases `first`, `first` + 1, ... of a kind: so many, or as many as fit into `seconds`."""
    found, until = Findings(kind), time.monotonic() + seconds
    following = first
    while following < first + cases and time.monotonic() < until:
        following = _one_process(found, seed, following, first + cases, until)
    return found


def _one_process(found: Findings, seed: int, first: int, end: int, until: float) -> int:
    """Run cases in one process as long as it lives and there is time; the number of the next."""
    code = f"from {__name__} import work; work({found.kind!r}, {seed}, {first}, {end})"
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        cwd=Path(__file__).parents[__name__.count(".") + 1],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert process.stdout is not None
    running, ended = first, "crash"

    def stop() -> None:
        nonlocal ended
        ended = "hang"
        process.kill()

    timer = threading.Timer(10 * HANG, stop)  # it makes its files first
    timer.start()
    for line in process.stdout:
        word, rest = line.split(maxsplit=1)
        timer.cancel()
        if word == "case" and time.monotonic() > until:
            process.kill()
            return int(rest)
        if word == "case":
            running = int(rest)
        else:
            outcome, words = json.loads(rest)
            found.counts[outcome] += 1
            if words:
                found.wrong.append(f"{outcome}: seed {seed}, case {running}: {words}")
            running += 1
        timer = threading.Timer(HANG, stop)
        timer.start()
    timer.cancel()
    process.wait()
    if running < end:
        found.counts[ended] += 1
        found.wrong.append(f"{ended}: seed {seed}, case {running}: exit {process.returncode}")
    return running + 1


def work(kind: str, seed: int, first: int, end: int) -> None:
    """The inside of such a process: run cases, and say of each that it begins and how it ended."""
    from .kinds import KINDS

    if "ASAN_OPTIONS" not in os.environ:  # a sanitizer takes terabytes of addresses
        resource.setrlimit(resource.RLIMIT_AS, (ADDRESSES, ADDRESSES))
    with tempfile.TemporaryDirectory() as folder:
        attempt = KINDS[kind](Path(folder))
        for number in range(first, end):
            print(f"case {number}", flush=True)
            before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            outcome, words = _outcome(attempt, random.Random(f"{kind} {seed} {number}"))
            grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
            if grown > MEMORY:
                outcome, words = "memory", f"{grown / MEMORY:.1f} GB"
            print("outcome " + json.dumps([outcome, words]), flush=True)


def _outcome(attempt, rng: random.Random) -> tuple[str, str]:
    with contextlib.redirect_stdout(sys.stderr):
        try:
            attempt(rng)
        except ValueError as error:
            lines = str(error).splitlines()
            return ("refused", "") if len(lines) == 1 else ("error", repr(error)[:300])
        except Exception as error:
            return "error", repr(error)[:300]
    return "taken", ""
