"""The assignments of `qsr.course.formats`, graded by nbgrader and by otter-grader themselves.

    python -m tests.graders [FOLDER]        a part of `make soak`

FOLDER is their environment, made if need be (network, a minute): they are no part of qsr's own. Of
each tool a right, a wrong and an empty copy of two notebooks is graded: all points, none for the
exercise that passes its visible test by heart, none at all. Then the same with the numbers of a
year, and the usual answers: none for exercises whose number they have not.
"""

from __future__ import annotations

import ast
import csv
import itertools
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from qsr.course import exercises, formats
from qsr.course.student import source_of

ROOT = Path(__file__).parents[1]
NAMES = ("05_bit_packed_kernels", "06_full_reproduction")
SEED, YEAR = 77, 2027
KINDS = ("right", "wrong", "empty")
# Right for every input of the visible test, wrong for others.
BY_HEART = """\
def {name}(*given):
    from qsr.course import exercises
    from qsr.course.claims import Draw
    from qsr.course.check import fault
    seen = []
    right = lambda *g: seen.append(repr(g)) or solution(*g)
    fault(right, exercises.{exercise}.of({year}), 0)
    return solution(*given) if repr(given) in seen else -1
"""


def environment(folder: Path) -> Path:
    """The Python of an environment with both tools, which sees what this one has."""
    python = folder / "bin" / "python"
    if not python.exists():
        subprocess.run([sys.executable, "-m", "venv", folder], check=True)
        (site,) = folder.glob("lib/python*/site-packages")
        lines = [path for path in sys.path if path.endswith("site-packages")] + [str(ROOT)]
        (site / "qsr.pth").write_text("\n".join(lines) + "\n")
    if subprocess.run([python, "-c", "import nbgrader, otter"], capture_output=True).returncode:
        install = [python, "-m", "pip", "install", "--quiet", "nbgrader", "otter-grader"]
        subprocess.run(install, check=True)
    return python


def answers(name: str, kind: str, year: int | None) -> dict[str, str]:
    """Sources by the name of the exercise: right ones, or one of them by heart, or none."""
    notebook = json.loads((ROOT / "tutorials" / f"{name}.ipynb").read_text())
    tasks = formats.tasks(notebook, name, None if kind == "usual" else year)
    found = {task.exercise.name: f"{task.head}\n{task.body}" for task in tasks}
    if kind == "wrong":
        first = next(one for one in exercises.every() if one.notebook == name)
        lines = found[first.name].replace(f"def {first.answer}(", "def solution(").split("\n")
        told = BY_HEART.format(name=first.answer, exercise=first.name, year=year)
        found[first.name] = "\n".join([*lines, "", "", told])
    return {} if kind == "empty" else found


def fill(path: Path, sources: dict[str, str], target: Path) -> None:
    """A student's copy with answers in the places of their stubs."""
    notebook = json.loads(path.read_text())
    for one in exercises.every():
        for cell in notebook["cells"]:
            if f"def {one.answer}(" in source_of(cell) and one.name in sources:
                cell["source"] = sources[one.name]
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(json.dumps(notebook))


def call(*command: object, cwd: Path) -> None:
    path = f"{Path(str(command[0])).parent}{os.pathsep}{os.environ['PATH']}"  # of what they call
    env = {**os.environ, "PATH": path, "QSR_NATIVE": "off", "PYTHONPATH": str(ROOT)}
    done = subprocess.run([*map(str, command)], cwd=cwd, env=env, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{' '.join(map(str, command))} failed:\n{done.stdout}\n{done.stderr}")


def kinds(year: int | None) -> tuple[str, ...]:
    return KINDS if year is None else (*KINDS, "usual")


def points_of(name: str, kind: str, year: int | None) -> int:
    """What a copy should get: of the usual answers, what their own number does not decide."""
    own = [one for one in exercises.every() if one.notebook == name]
    usual, right = (answers(name, kind, year) for kind in ("usual", "right"))
    code = {key: ast.dump(ast.parse(source)) for key, source in usual.items()}  # no comments
    same = sum(code[one.name] == ast.dump(ast.parse(right[one.name])) for one in own)
    return {"right": len(own), "wrong": len(own) - 1, "empty": 0, "usual": same}[kind]


def by_nbgrader(
    python: Path, folder: Path, year: int | None = None
) -> Iterator[tuple[str, str, float]]:
    """(notebook, kind, points) of each copy."""
    tutorials = [ROOT / "tutorials" / f"{name}.ipynb" for name in NAMES]
    formats.write("nbgrader", folder, tutorials, SEED, year)
    tool = python.with_name("nbgrader")
    for name in NAMES:
        call(tool, "generate_assignment", name, cwd=folder)
        for kind in kinds(year):
            copy = folder / "submitted" / kind / name / f"{name}.ipynb"
            fill(folder / "release" / name / f"{name}.ipynb", answers(name, kind, year), copy)
        call(tool, "autograde", name, cwd=folder)
    call(tool, "export", cwd=folder)
    with (folder / "grades.csv").open() as file:
        for row in csv.DictReader(file):
            yield row["assignment"], row["student_id"], float(row["score"])


def by_otter(
    python: Path, folder: Path, year: int | None = None
) -> Iterator[tuple[str, str, float]]:
    """(notebook, kind, points) of each copy."""
    tutorials = [ROOT / "tutorials" / f"{name}.ipynb" for name in NAMES]
    for path in formats.write("otter", folder, tutorials, SEED, year):
        made = folder / path.stem
        call(python.with_name("otter"), "assign", path.name, made, "--no-run-tests", cwd=folder)
        (grader,) = (made / "autograder").glob("*autograder*.zip")
        for kind in kinds(year):
            copy = folder / kind / path.name
            fill(made / "student" / path.name, answers(path.stem, kind, year), copy)
            run = ("run", copy, "-a", grader, "-o", copy.parent)
            call(python.with_name("otter"), *run, cwd=folder)
            results = json.loads((copy.parent / "results.json").read_text())
            yield path.stem, kind, sum(test.get("score", 0) for test in results["tests"])


def main(folder: Path) -> int:
    """Grade with both; how many copies did not get the points that they should."""
    python, failed = environment(folder), 0
    for grader, year in itertools.product((by_nbgrader, by_otter), (None, YEAR)):
        with tempfile.TemporaryDirectory() as work:
            for name, kind, points in grader(python, Path(work), year):
                every, right = (points_of(name, k, year) for k in ("right", kind))
                failed += points != right
                of = "" if year is None else f" of {year}"
                said = "" if points == right else f", not {right}: FAILED"
                told = f"{grader.__name__} {name}{of} {kind}: {points:g} of {every}{said}"
                print(told, flush=True)
    return failed


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1] if sys.argv[1:] else ROOT / ".venv" / "graders").resolve()))
