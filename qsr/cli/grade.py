"""`qsr grade`: points for a folder of submitted notebooks."""

from __future__ import annotations

import argparse
import time
from pathlib import Path

from tqdm.auto import tqdm

from ..course.grade import Limits, grade_all, new_key, notebooks_in, read_key, submissions, summary
from ..course.grade import write as write_grades
from .arguments import check_writable
from .common import Lines, as_json, remark


def run_grade(args: argparse.Namespace) -> Lines:
    """Grade, and write what comes of it."""
    for option, least in (("seconds", 1), ("memory", 2), ("jobs", 1)):
        value = getattr(args, option)
        if value is not None and not value >= least:
            raise ValueError(f"`--{option}` is {value:g}; it is {least} or more.")
    given = submissions(args.folder)
    check_writable(Path(args.out).parent)
    check_writable(Path(args.key).parent)
    if Path(args.key).exists():
        key = read_key(args.key)
    else:
        key = new_key(args.key, [n for paths in given.values() for n in notebooks_in(paths)[0]])
        remark(f"qsr: wrote {args.key}, with a seed of its own; keep it, and keep it to yourself")
    began = time.perf_counter()
    given_limits = {n: getattr(args, n) for n in ("seconds", "memory") if getattr(args, n)}
    limits = Limits(**given_limits)
    running = grade_all(args.folder, key, limits, args.jobs)
    grades = list(tqdm(running, total=len(given), unit="student"))
    feedback = write_grades(grades, args.out)
    yield from summary(grades)
    yield f"{args.out}, and feedback in {feedback}; {time.perf_counter() - began:.0f} s"
    yield as_json(
        [
            {
                "student": one.student,
                "total": one.total,
                "points": {result.exercise.name: result.points for result in one.results},
                "said": {result.exercise.name: result.said for result in one.results},
                "remarks": one.remarks,
            }
            for one in grades
        ]
    )
