"""A folder of submitted notebooks -> points for each exercise: `qsr grade FOLDER --key key.json`.

Each submission is run in a process of its own (`attempt`), with limits of time and memory, a folder
and a HOME of its own, and no network where the system has namespaces. Its checks are ours: the
tests of `qsr.course.exercises`, with inputs drawn from the seed in a file that only the instructor
has. What ends a process ends one exercise; the others are asked in a new one.

This keeps accidents away from each other and from the machine. It is no sandbox: code that means
harm has the rights of whoever grades. Grade on a machine that may be lost, or in a container.
"""

from __future__ import annotations

import contextlib
import csv
import functools
import json
import os
import secrets
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

from . import exercises, submission
from .claims import Exercise

START = 120  # seconds until Python, torch and the imports of a notebook are there, at most


@dataclass(frozen=True)
class Key:
    """What only the instructor has: the seed of the inputs, points by exercise, and the year whose
    numbers the tasks had (None: the usual ones)."""

    seed: int
    points: dict[str, float]
    year: int | None = None

    def exercises(self) -> list[Exercise]:
        """Those that bring points, in the order of the course."""
        return [one for one in exercises.every() if one.name in self.points]


@dataclass(frozen=True)
class Limits:
    """For each submission: seconds for an exercise, and GB of memory (address space)."""

    seconds: float = 30
    memory: float = 8


@dataclass(frozen=True)
class Result:
    """What became of one exercise."""

    exercise: Exercise
    points: float
    said: str


@dataclass(frozen=True)
class Grade:
    """What became of one student's submission; remarks are about whole notebooks."""

    student: str
    results: tuple[Result, ...]
    remarks: tuple[str, ...] = ()

    @property
    def total(self) -> float:
        """All points."""
        return sum(result.points for result in self.results)


def read_key(path: str | os.PathLike) -> Key:
    """Read a file of `new_key`. Raises ValueError (one line) for another file."""
    try:
        raw = json.loads(Path(path).read_text(encoding="utf-8"))
        points = {str(n): float(p) for n, p in raw["points"].items()}
        key = Key(int(raw["seed"]), points, raw.get("year") and int(raw["year"]))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} is no key ({type(error).__name__}): {error}.") from None
    unknown = set(key.points) - {one.name for one in exercises.every()}
    if unknown or not key.points:
        raise ValueError(
            f"{path} has points for {', '.join(sorted(unknown)) or 'nothing'}; exercises are "
            f"{', '.join(one.name for one in exercises.every())}."
        )
    return key


def new_key(path: str | os.PathLike, notebooks: Sequence[str]) -> Key:
    """Write a key with a seed of its own and a point for each exercise of these notebooks."""
    points = {one.name: 1.0 for one in exercises.every() if one.notebook in notebooks}
    if not points:
        raise ValueError(
            "no notebook of the course is among these; name the folder of all of them."
        )
    key = Key(secrets.randbits(48), points)
    text = json.dumps(asdict(key), indent=1) + "\n"
    Path(path).write_text(text, encoding="utf-8")
    return key


def submissions(folder: str | os.PathLike) -> dict[str, list[Path]]:
    """Notebooks by student: those in a folder of the student's name, or one file of that name.

    Raises ValueError (one line) if there is none.
    """
    root = Path(folder)
    found: dict[str, list[Path]] = {}
    for path in sorted(root.rglob("*.ipynb")):
        parts = path.relative_to(root).parts
        if any(part.startswith(".") for part in parts):  # .ipynb_checkpoints
            continue
        found.setdefault(parts[0] if parts[1:] else path.stem, []).append(path)
    if not found:
        raise ValueError(f"{folder} holds no notebooks (*.ipynb); name the folder of submissions.")
    return found


def notebooks_in(paths: Sequence[Path]) -> tuple[dict[str, list[dict]], list[str]]:
    """The code cells of a student's files by notebook of the course, and remarks on the others."""
    cells: dict[str, list[dict]] = {}
    remarks = []
    for path in paths:
        try:
            code = submission.read(path)
        except ValueError as error:
            remarks.append(f"{path.name}: {error}")
            continue
        name = submission.notebook_of(code) or next(
            (one.notebook for one in exercises.every() if one.notebook in path.stem), None
        )
        if name is None:
            remarks.append(f"{path.name}: it has no answer of any notebook of the course")
        else:
            cells.setdefault(name, []).extend(code)
    return cells, remarks


def grade(student: str, paths: Sequence[Path], key: Key, limits: Limits = Limits()) -> Grade:
    """Grade one student's files."""
    cells, remarks = notebooks_in(paths)
    given: dict[str, submission.Answer] = {}
    for name, of_one in cells.items():
        every = [one for one in exercises.every() if one.notebook == name]
        given |= {answer.exercise.name: answer for answer in submission.answers(of_one, every)}
    asked = [(name, given[name].source) for name in key.points if name in given]
    said = _asked([(name, source) for name, source in asked if source], key, limits)
    results = []
    for one in key.exercises():
        passed, words = said.get(one.name, (False, ""))
        remark = given[one.name].remark if one.name in given else "the notebook was not handed in"
        both = "; ".join(filter(None, (words.removesuffix("."), remark)))
        results.append(Result(one, passed * key.points[one.name], both))
    return Grade(student, tuple(results), tuple(remarks))


def grade_all(
    folder: str | os.PathLike, key: Key, limits: Limits = Limits(), jobs: int | None = None
) -> Iterator[Grade]:
    """Grade the students of a folder, `jobs` at a time (all processors), by their names."""
    with ThreadPoolExecutor(jobs or os.cpu_count()) as pool:
        one = functools.partial(grade, key=key, limits=limits)
        given = submissions(folder)
        yield from pool.map(one, given.keys(), given.values())


def write(grades: Sequence[Grade], path: str | os.PathLike) -> Path:
    """Write a table (CSV), and beside it a folder with a page of feedback for each student."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    feedback = path.with_name(f"{path.stem}_feedback")
    feedback.mkdir(exist_ok=True)
    columns = [f"{r.exercise.number} {r.exercise.answer}" for r in grades[0].results]
    with path.open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow(["student", *columns, "total", "remarks"])
        for one in grades:
            points = [f"{result.points:g}" for result in one.results]
            row = [one.student, *points, f"{one.total:g}", "; ".join(one.remarks)]
            table.writerow([_inert(value) for value in row])
            page = "\n".join(_feedback(one)) + "\n"
            (feedback / f"{one.student}.md").write_text(page, encoding="utf-8")
    return feedback


def summary(grades: Sequence[Grade]) -> Iterator[str]:
    """How a class did: a line for all, and one for each exercise."""
    mean = sum(one.total for one in grades) / len(grades)
    yield f"{len(grades)} students, {mean:.1f} points on average"
    for results in zip(*(one.results for one in grades), strict=True):
        solved = sum(result.points > 0 for result in results)
        exercise = results[0].exercise
        yield f"  {exercise.number:3} {exercise.answer:18} solved by {solved} of {len(grades)}"


def _feedback(grade: Grade) -> Iterator[str]:
    yield f"# {grade.student}: {grade.total:g} points"
    yield ""
    for result in grade.results:
        name = f"{result.exercise.notebook}, `{result.exercise.answer}`"
        yield f"- {name}: {result.points:g}. {result.said}"
    for remark in grade.remarks:
        yield f"- {remark}"


def _inert(value: str) -> str:
    """A cell that no spreadsheet takes for a formula: a student may choose the name of a file."""
    return f"'{value}" if value[:1] in ("=", "+", "-", "@") else value


def _asked(
    answers: Sequence[tuple[str, str]], key: Key, limits: Limits
) -> dict[str, tuple[bool, str]]:
    """{name: (passed, what is said)}; a process that ends is followed by another for the rest."""
    said: dict[str, tuple[bool, str]] = {}
    left = list(answers)
    while left:
        job = {"seed": key.seed, "year": key.year, "answers": left}
        lines, why = _process(job, limits)
        if not lines:
            raise ValueError(f"no answer could be asked: {why}; see that --memory is enough.")
        said |= {line["name"]: (line["passed"], line["said"]) for line in lines if "name" in line}
        begun = [line["begins"] for line in lines if "begins" in line][-1]
        said.setdefault(begun, (False, why))
        left = [(name, source) for name, source in left if name not in said]
    return said


def _process(job: dict, limits: Limits) -> tuple[list[dict], str]:
    """Run one process: the lines that it wrote, and what is said of the last if it did not end."""
    with tempfile.TemporaryDirectory(prefix="qsr-grade-", ignore_cleanup_errors=True) as folder:
        home, out = Path(folder) / "home", Path(folder) / "out"
        home.mkdir()
        out.touch()
        kept = ("PATH", "LD_LIBRARY_PATH", "SYSTEMROOT", "LANG")
        env = {name: os.environ[name] for name in kept if name in os.environ}
        env["PYTHONPATH"] = str(Path(__file__).parents[2])  # where this qsr is
        env |= {"HOME": str(home), "USERPROFILE": str(home), "TMPDIR": str(home)}
        env |= {"OMP_NUM_THREADS": "1", "QSR_NATIVE": "off", "MPLBACKEND": "agg"}
        child = subprocess.Popen(
            [*_without_network(), sys.executable, "-P", "-m", "qsr.course.attempt", str(out)],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            cwd=home,
            env=env,
            start_new_session=True,
        )
        told = json.dumps({**job, "seconds": limits.seconds, "memory": limits.memory}).encode()
        why = f"it was not done after {limits.seconds:g} seconds"
        try:
            _, error = child.communicate(told, START + (limits.seconds + 1) * len(job["answers"]))
            if child.returncode != 1:  # 1 is the clock's, or that of an error of ours
                why = f"it ended its process ({child.returncode})"
            if not out.stat().st_size:
                why = (error.decode(errors="replace").strip().splitlines() or [why])[-1]
        except subprocess.TimeoutExpired:
            why += ", and could not be stopped"
        finally:
            _end(child)
        return list(_lines(out)), why


def _lines(out: Path) -> Iterator[dict]:
    for line in out.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            yield json.loads(line)
        except ValueError:  # cut off where the process ended
            return


def _end(child: subprocess.Popen) -> None:
    """End a process and those that it started."""
    if hasattr(os, "killpg"):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)
    child.kill()
    child.wait()


@functools.cache
def _without_network() -> tuple[str, ...]:
    """The command that takes the network away, where the system has one and permits it."""
    command = ("unshare", "--map-root-user", "--net")
    try:
        done = subprocess.run([*command, "true"], capture_output=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return ()
    return command if done.returncode == 0 else ()
