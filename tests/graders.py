"""The assignments of `qsr.course.formats`, graded by nbgrader and by otter-grader themselves.

    python -m tests.graders [FOLDER]        a part of `make soak`

FOLDER is their environment, made if need be (network, a minute): they are no part of qsr's own. Of
each tool a right, a wrong and an empty copy of two notebooks is graded: all points, none for the
exercise that passes its visible test by heart, none at all.
"""

from __future__ import annotations

import csv
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
SEED = 77
# Right for every input of the visible test, wrong for others.
BY_HEART = """\
def {name}(*given):
    from qsr.course import exercises
    from qsr.course.claims import Draw
    from qsr.course.check import fault
    seen = []
    right = lambda *g: seen.append(repr(g)) or solution(*g)
    fault(right, exercises.{exercise}, 0)
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


def answers(name: str, kind: str) -> dict[str, str]:
    """Sources by the name of the exercise: right ones, or one of them by heart, or none."""
    notebook = json.loads((ROOT / "tutorials" / f"{name}.ipynb").read_text())
    found = {
        task.exercise.name: f"{task.head}\n{task.body}" for task in formats.tasks(notebook, name)
    }
    if kind == "wrong":
        first = next(one for one in exercises.every() if one.notebook == name)
        lines = found[first.name].replace(f"def {first.answer}(", "def solution(").split("\n")
        told = BY_HEART.format(name=first.answer, exercise=first.name)
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


def by_nbgrader(python: Path, folder: Path) -> Iterator[tuple[str, str, float]]:
    """(notebook, kind, points) of each copy."""
    tutorials = [ROOT / "tutorials" / f"{name}.ipynb" for name in NAMES]
    formats.write("nbgrader", folder, tutorials, SEED)
    tool = python.with_name("nbgrader")
    for name in NAMES:
        call(tool, "generate_assignment", name, cwd=folder)
        for kind in ("right", "wrong", "empty"):
            copy = folder / "submitted" / kind / name / f"{name}.ipynb"
            fill(folder / "release" / name / f"{name}.ipynb", answers(name, kind), copy)
        call(tool, "autograde", name, cwd=folder)
    call(tool, "export", cwd=folder)
    with (folder / "grades.csv").open() as file:
        for row in csv.DictReader(file):
            yield row["assignment"], row["student_id"], float(row["score"])


def by_otter(python: Path, folder: Path) -> Iterator[tuple[str, str, float]]:
    """(notebook, kind, points) of each copy."""
    tutorials = [ROOT / "tutorials" / f"{name}.ipynb" for name in NAMES]
    for path in formats.write("otter", folder, tutorials, SEED):
        made = folder / path.stem
        call(python.with_name("otter"), "assign", path.name, made, "--no-run-tests", cwd=folder)
        (grader,) = (made / "autograder").glob("*autograder*.zip")
        for kind in ("right", "wrong", "empty"):
            copy = folder / kind / path.name
            fill(made / "student" / path.name, answers(path.stem, kind), copy)
            run = ("run", copy, "-a", grader, "-o", copy.parent)
            call(python.with_name("otter"), *run, cwd=folder)
            results = json.loads((copy.parent / "results.json").read_text())
            yield path.stem, kind, sum(test.get("score", 0) for test in results["tests"])


def main(folder: Path) -> int:
    """Grade with both; how many copies did not get the points that they should."""
    python, failed = environment(folder), 0
    for grader in (by_nbgrader, by_otter):
        with tempfile.TemporaryDirectory() as work:
            for name, kind, points in grader(python, Path(work)):
                every = sum(one.notebook == name for one in exercises.every())
                right = {"right": every, "wrong": every - 1, "empty": 0}[kind]
                failed += points != right
                said = "" if points == right else f", not {right}: FAILED"
                print(f"{grader.__name__} {name} {kind}: {points:g} of {every}{said}", flush=True)
    return failed


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1] if sys.argv[1:] else ROOT / ".venv" / "graders").resolve()))
