"""`qsr grade`: points for a folder of submitted notebooks."""

from __future__ import annotations

import argparse
import time
from pathlib import Path

from tqdm.auto import tqdm

from ..course.grade import Limits, grade_all, new_key, notebooks_in, read_key, submissions, summary
from ..course.grade import write as write_grades
from .arguments import check_writable
from .common import Lines, as_json, let_run, remark


def add_grade(sub: argparse.ArgumentParser) -> None:
    """The options of `qsr grade`."""
    let_run(sub, _grade, threads=False)
    sub.add_argument(
        "folder",
        metavar="FOLDER",
        help="of submissions: a folder for each student, or a notebook for each",
    )
    sub.add_argument(
        "--out", default="grades.csv", help="the table; feedback lies beside it (%(default)s)"
    )
    sub.add_argument(
        "--key",
        required=True,
        metavar="FILE",
        help="seed and points, which students do not have; written if it is not there, with a "
        "point for each exercise of the notebooks in FOLDER",
    )
    sub.add_argument(
        "--seconds",
        type=float,
        default=Limits.seconds,
        metavar="N",
        help="for one exercise (%(default)s)",
    )
    sub.add_argument(
        "--memory",
        type=float,
        default=Limits.memory,
        metavar="GB",
        help="for one student (%(default)s)",
    )
    sub.add_argument("--jobs", type=int, metavar="N", help="students at a time (all processors)")


def _grade(args: argparse.Namespace) -> Lines:
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
    limits = Limits(args.seconds, args.memory)
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
