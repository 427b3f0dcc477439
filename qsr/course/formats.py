"""The exercises of the course as assignments of nbgrader and of otter-grader.

    python -m qsr.course.formats nbgrader build/nbgrader tutorials/*.ipynb
    python -m qsr.course.formats otter build/otter tutorials/*.ipynb

Both tools run all of a notebook, so an assignment holds what exercises need and no training: title,
imports, and each task with its stub, its hint and two tests. One is seen by students, with the
inputs of the notebook; one is not, with inputs drawn from another seed (`--seed`). `--year 2027`
gives tasks, solutions and tests the numbers of a year, as `make student YEAR=2027` does.
"""

from __future__ import annotations

import argparse
import ast
import json
import os
import secrets
import sys
import textwrap
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from . import exercises
from .claims import Exercise
from .student import of_year, source_of, tags

POINTS = 1


@dataclass(frozen=True)
class Task:
    """An exercise as the cells of a notebook tell it: what is asked, a hint, head and body."""

    exercise: Exercise
    text: str
    hint: str
    head: str
    body: str

    def test(self, seed: str) -> str:
        """The call that holds an answer to its test; a stub is no answer."""
        varied = self.exercise.numbers and self.exercise.year is not None
        year = f".of({self.exercise.year})" if varied else ""
        return f"require({self.exercise.answer}, exercises.{self.exercise.name}{year}{seed})"


def tasks(notebook: dict, name: str, year: int | None = None) -> Iterator[Task]:
    """The exercises of a notebook, with their solutions under the names of answers."""
    cells = of_year(notebook, year)["cells"]
    stubs = [i for i, cell in enumerate(cells) if "exercise" in tags(cell)]
    asked = [one.of(year) for one in exercises.every() if one.notebook == name]
    for i, exercise in zip(stubs, asked, strict=True):
        hint = source_of(cells[i + 1]) if "hint" in tags(cells[i + 1]) else ""
        solution = next(source_of(cell) for cell in cells[i:] if "solution" in tags(cell))
        (function,) = (n for n in ast.parse(solution).body if isinstance(n, ast.FunctionDef))
        lines = solution.splitlines()
        first = function.body[0].lineno - 1
        while lines[first - 1].strip().startswith("#"):  # a comment on top belongs to the body
            first -= 1
        head = "\n".join(lines[function.lineno - 1 : first])
        head = head.replace(function.name, exercise.answer, 1)
        body = "\n".join(lines[first : function.end_lineno])
        yield Task(exercise, source_of(cells[i - 1]), hint, head, body)


def _start(notebook: dict) -> list[dict]:
    """The title and the imports."""
    title = source_of(notebook["cells"][0]).split("\n")[0]
    imports = next(source_of(c) for c in notebook["cells"] if c.get("id") == "imports")
    kinds = (ast.Import, ast.ImportFrom)
    body = [ast.unparse(n) for n in ast.parse(imports).body if isinstance(n, kinds)]
    body.append("from qsr.course.check import require")
    return [_cell("title", title, "markdown"), _cell("imports", "\n".join(body))]


def nbgrader(notebook: dict, name: str, seed: int, year: int | None = None) -> dict:
    """A notebook for nbgrader's folder `source`: solutions and hidden tests between its marks."""
    cells = _start(notebook)
    for task in tasks(notebook, name, year):
        key = task.exercise.name
        answer = textwrap.indent(
            f"### BEGIN SOLUTION\n{textwrap.dedent(task.body)}\n### END SOLUTION", "    "
        )
        hidden = f"### BEGIN HIDDEN TESTS\n{task.test(f', seed={seed}')}\n### END HIDDEN TESTS"
        cells += [
            _cell(f"{key}-task", "\n\n".join(filter(None, (task.text, task.hint))), "markdown"),
            _cell(key, f"{task.head}\n{answer}", solution=True),
            _cell(f"{key}-test", f"{task.test('')}\n{hidden}", grade=True),
        ]
    return {**notebook, "cells": cells}


def otter(notebook: dict, name: str, seed: int, year: int | None = None) -> dict:
    """A notebook for `otter assign`: its raw cells mark what is a question, an answer, a test."""
    cells = [_cell("config", "# ASSIGNMENT CONFIG\nexport_cell: false", "raw"), *_start(notebook)]
    for task in tasks(notebook, name, year):
        key = task.exercise.name
        answer = textwrap.indent(
            f"# BEGIN SOLUTION\n{textwrap.dedent(task.body)}\n# END SOLUTION", "    "
        )
        marks = iter(range(9))
        for source, kind in (
            (f"# BEGIN QUESTION\nname: {key}\npoints: {POINTS}\nall_or_nothing: true", "raw"),
            ("\n\n".join(filter(None, (task.text, task.hint))), "markdown"),
            ("# BEGIN SOLUTION", "raw"),
            (f"{task.head}\n{answer}", "code"),
            ("# END SOLUTION", "raw"),
            ("# BEGIN TESTS", "raw"),
            (task.test(""), "code"),
            (f"# HIDDEN\n{task.test(f', seed={seed}')}", "code"),
            ("# END TESTS", "raw"),
            ("# END QUESTION", "raw"),
        ):
            cells.append(_cell(f"{key}-{next(marks, 9)}", source, kind))
    return {**notebook, "cells": cells}


FORMATS: dict[str, Callable[[dict, str, int, int | None], dict]] = {
    "nbgrader": nbgrader,
    "otter": otter,
}


def write(
    form: str,
    folder: str | os.PathLike,
    notebooks: Sequence[str | os.PathLike],
    seed: int,
    year: int | None = None,
) -> list[Path]:
    """Write the assignments; nbgrader's into source/NAME/NAME.ipynb, otter's into NAME.ipynb."""
    written = []
    for path in map(Path, notebooks):
        try:
            notebook = json.loads(path.read_text(encoding="utf-8"))
            made = FORMATS[form](notebook, path.stem, seed, year)
        except (OSError, ValueError) as error:
            raise ValueError(f"{path}: {error}") from error
        place = Path("source", path.stem, path.name) if form == "nbgrader" else Path(path.name)
        target = Path(folder) / place
        target.parent.mkdir(parents=True, exist_ok=True)
        text = json.dumps(made, indent=1, ensure_ascii=False) + "\n"
        target.write_text(text, encoding="utf-8")
        written.append(target)
    return written


def _cell(
    key: str, source: str, kind: str = "code", *, solution: bool = False, grade: bool = False
) -> dict:
    cell: dict = {"cell_type": kind, "id": key.replace("_", "-"), "metadata": {}, "source": source}
    if kind == "code":
        cell |= {"outputs": [], "execution_count": None}
    if solution or grade:
        about = {"schema_version": 3, "grade_id": key, "solution": solution, "grade": grade}
        about |= {"locked": grade, "task": False} | ({"points": POINTS} if grade else {})
        cell["metadata"] = {"nbgrader": about}
    return cell


def _main() -> None:
    parser = argparse.ArgumentParser(prog="qsr.course.formats", description=__doc__)
    parser.add_argument("form", choices=FORMATS)
    parser.add_argument("folder")
    parser.add_argument("notebooks", nargs="+")
    parser.add_argument(
        "--seed", type=int, default=secrets.randbits(48), help="(another each time)"
    )
    parser.add_argument("--year", type=int, help="whose numbers the tasks have (the usual ones)")
    args = parser.parse_args()
    try:
        for path in write(args.form, args.folder, args.notebooks, args.seed, args.year):
            print(path)
    except (OSError, ValueError) as error:
        sys.exit(f"qsr.course.formats: {error}")


if __name__ == "__main__":
    _main()
