"""How long an exercise takes: the waiting measured, the thinking estimated.

    .venv/bin/python -m tests.minutes tutorials/*.ipynb      the table of docs/instructors.md

Runs notebooks and takes processor seconds, which are what a free core takes, whatever else runs on
the machine: until an exercise is reached from the top, and of its check with the solution. What a
student thinks no machine can measure: those minutes are an estimate, by the lines of a solution and
by what has to be understood first.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from copy import deepcopy
from pathlib import Path

import nbformat
from nbclient import NotebookClient

from qsr.course.student import source_of, tags

THINKING = {  # minutes, estimated
    "my_error": 5,
    "my_twice": 5,
    "my_depth": 8,
    "my_slope": 8,
    "my_votes": 10,
    "my_thresholds": 10,
    "my_dorefa": 8,
    "my_alpha_gradient": 12,
    "my_best_step": 12,
    "my_body": 10,
    "my_keep": 6,
    "my_step": 12,
    "my_greedy": 15,
    "my_regions": 6,
    "my_pairs": 10,
    "my_scores": 10,
    "my_bias": 6,
    "my_sign_dot": 6,
    "my_reach": 10,
    "my_intensity": 10,
    "my_suspects": 12,
    "my_saving": 5,
    "my_gap": 12,
    "my_bytes": 6,
    "my_start": 6,
    "my_memory": 12,
    "my_share": 8,
}
THINKING_IN = {("07", "my_slope"): 6, ("08", "my_step"): 15}  # names that two notebooks have


def estimate(number: str, answer: str) -> int:
    """Minutes of thinking, by the number of a notebook and the name of an answer."""
    return THINKING_IN.get((number, answer)) or THINKING[answer]


def rows(path: Path) -> Iterator[tuple[str, str, float, float, int]]:
    """(notebook, answer, seconds until it, seconds of its check, minutes of thinking) of each."""
    notebook = nbformat.read(path, 4)
    clock = nbformat.v4.new_code_cell("import time\n\nprint(time.process_time())")
    cells: list[dict] = []
    for cell in notebook.cells:
        around = {"exercise": [clock, cell], "check": [clock, cell, clock]}
        kind = next((tag for tag in around if tag in tags(cell)), None)
        cells += deepcopy(around[kind]) if kind else [cell]
    notebook.cells = cells
    here = {"metadata": {"path": str(path.parent)}}
    NotebookClient(notebook, timeout=3600, resources=here).execute()
    times = [float(c.outputs[0].text) for c in notebook.cells if c.source == clock.source]
    number = path.stem.partition("_")[0]
    checks = [source_of(cell) for cell in notebook.cells if "check" in tags(cell)]
    for i, check in enumerate(checks):
        reached, before, after = times[3 * i : 3 * i + 3]
        answer = re.search(r"check\(\s*(\w+)", check)[1]
        yield number, answer, reached, after - before, estimate(number, answer)


def main(paths: list[str]) -> None:
    print("| exercise | answer | s until it | s of its check | min of thinking, estimated |")
    print("|---|---|---:|---:|---:|")
    for path in map(Path, paths):
        for number, answer, until, check, minutes in rows(path):
            print(f"| {number} | `{answer}` | {until:.0f} | {check:.1f} | {minutes} |", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
