"""Ctrl-C and SIGTERM at any moment of a process: one line, and the exit code that says which."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
ENDS = {signal.SIGINT: (130, "qsr: interrupted\n"), signal.SIGTERM: (143, "qsr: terminated\n")}
BEGUN = """
import sys
from qsr.__main__ import main
print("begun", flush=True)
sys.exit(main())
"""


def start(*arguments):
    """Start the command line in a new process; returns it when Python itself has started."""
    job = subprocess.Popen(
        [sys.executable, "-c", BEGUN, *arguments],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # as from a terminal
    )
    assert job.stdout.readline() == "begun\n"
    return job


@pytest.mark.parametrize("number", ENDS)
@pytest.mark.parametrize("delay", [0.05, 0.2, 0.5, 1, 2])
def test_a_signal_in_the_first_seconds_is_one_line(number, delay):
    job = start("info")
    time.sleep(delay)
    job.send_signal(number)
    out, err = job.communicate()
    done = [(0, ""), (-number, "")] if "cpu" in out.lower() else []  # it had printed all it had
    assert (job.returncode, err) in (ENDS[number], *done), (err, out)
