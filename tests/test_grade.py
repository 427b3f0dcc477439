"""A class is graded by its answers alone, whatever became of the notebooks around them."""

import csv
import json
from pathlib import Path

import pytest

from qsr.cli import main
from qsr.course import exercises, submission
from qsr.course.grade import Key, Limits, grade, grade_all, new_key, read_key, submissions, write
from qsr.course.student import source_of, tags, without_solutions

TUTORIALS = Path(__file__).parents[1] / "tutorials"
NAME = "01_redistribution_quantization"
ASKED = ("my_slope", "my_votes", "my_thresholds")
ORIGINAL = json.loads((TUTORIALS / f"{NAME}.ipynb").read_text())
SOLVED = {
    f"my_{source.split('def solution_')[1].split('(')[0]}": source.replace("solution_", "my_")
    for source in (source_of(c) for c in ORIGINAL["cells"] if "solution" in tags(c))
}
KEY = Key(4711, {"phi_slope": 1.0, "votes": 2.0, "thresholds": 1.0})
LIMITS = Limits(seconds=2)


def handed_in(*answers: str, tagged: bool = True) -> dict:
    """A student's copy with these sources in the places of the stubs; the rest are untouched."""
    notebook = without_solutions(ORIGINAL)
    stubs = [cell for cell in notebook["cells"] if "exercise" in tags(cell)]
    for cell, answer in zip(stubs, answers, strict=False):
        cell["source"] = answer
        if not tagged:
            cell["metadata"] = {}
    return notebook


def solved(**changes: str) -> dict:
    """All right but for some answers, by name."""
    return handed_in(*({**SOLVED, **changes}[name] for name in ASKED))


def deleted(name: str) -> dict:
    notebook = solved()
    notebook["cells"] = [c for c in notebook["cells"] if f"def {name}(" not in source_of(c)]
    return notebook


def copied_twice() -> dict:
    """The stub once more, below the answer."""
    notebook = solved()
    stub = next(c for c in without_solutions(ORIGINAL)["cells"] if "exercise" in tags(c))
    notebook["cells"].append(stub)
    return notebook


def with_edited_checks() -> dict:
    """Checks that praise everything, and wrong answers."""
    notebook = solved(my_votes="def my_votes(z, qmin, qmax):\n    return z.round() - z")
    for cell in notebook["cells"]:
        if "check" in tags(cell):
            cell["source"] = "print('my_votes: correct')"
            cell["outputs"] = [{"output_type": "stream", "text": "my_votes: correct"}]
    return notebook


def looks_up(name: str, body: str) -> dict:
    return solved(**{name: f"def {name}(*given):\n    {body}"})


HARD_CODED = """\
def my_slope(u, k):
    import qsr
    from qsr.course.claims import Draw
    from qsr.course import exercises
    from qsr.quantizer import phi_slope
    draw = Draw(0)
    known = [draw.real(0.1, 0.8), draw.real(1.2, 3.0), draw.real(3.0, 9.0), draw.real(0.5, 4.0)]
    return phi_slope(u, k) if k in (1.0, *known) else 0 * u
"""
# Each trick: the notebook, its points for slope, votes and thresholds, what the student is told.
CLASS = {
    "all right": (solved(), (1, 2, 1), "correct"),
    "nothing": (handed_in(), (0, 0, 0), "not attempted"),
    "one wrong": (
        looks_up("my_slope", "return given[0]"),
        (0, 2, 1),
        "at the threshold, k = 1, it is 1.0820: it is 0.5, not 1.082",
    ),
    "a loop without end": (
        looks_up("my_votes", "while True: pass"),
        (1, 0, 1),
        "it was not done after 2 seconds",
    ),
    "sys.exit": (looks_up("my_slope", "import sys; sys.exit(0)"), (0, 2, 1), "it leaves Python"),
    "os._exit": (
        looks_up("my_slope", "import os; os._exit(0)"),
        (0, 2, 1),
        "ended its process (0)",
    ),
    "a signal": (
        looks_up("my_votes", "import os; os.kill(os.getpid(), 9)"),
        (1, 0, 1),
        "ended its process (-9)",
    ),
    "too much memory": (
        looks_up("my_votes", "return bytearray(10**11)"),
        (1, 0, 1),
        "MemoryError",
    ),
    "exit in its cell": (
        solved(my_slope=SOLVED["my_slope"] + "\nraise SystemExit"),
        (1, 2, 1),
        "correct",
    ),
    "a trial below the answer": (
        solved(my_slope=SOLVED["my_slope"] + "\nprint(my_slope(x, BITS))\n%timeit 1"),
        (1, 2, 1),
        "correct",
    ),
    "a deleted cell": (deleted("my_votes"), (1, 0, 1), "no cell defines my_votes"),
    "a renamed function": (
        solved(my_votes=SOLVED["my_votes"].replace("my_votes", "myvotes")),
        (1, 2, 1),
        "the function is called myvotes here, not my_votes",
    ),
    "a cell and its copy": (copied_twice(), (1, 2, 1), "2 cells define my_slope"),
    "checks that were edited": (with_edited_checks(), (1, 0, 1), "z = -2.6 votes -2.0"),
    "answers without their tags": (
        handed_in(*(SOLVED[name] for name in ASKED), tagged=False),
        (1, 2, 1),
        "correct",
    ),
    "no Python": (solved(my_slope="def my_slope(u, k:"), (0, 2, 1), "is no Python"),
    "a name of the notebook": (
        looks_up("my_slope", "return phi_of_the_notebook(*given)"),
        (0, 2, 1),
        "name 'phi_of_the_notebook' is not defined",
    ),
    "the drawn inputs of the notebook by heart": (solved(my_slope=HARD_CODED), (0, 2, 1), "u = "),
    "an error of its own": (
        looks_up("my_thresholds", "raise BaseException('no')"),
        (1, 2, 0),
        "BaseException: no",
    ),
    "a lambda": (solved(my_slope="my_slope = lambda u, k: u"), (0, 2, 1), "it is 0.5, not 1.082"),
}


def submitted(folder: Path, notebooks: dict[str, dict]) -> Path:
    for student, notebook in notebooks.items():
        (folder / student).mkdir(parents=True)
        (folder / student / "my work.ipynb").write_text(json.dumps(notebook))
    return folder


@pytest.fixture(scope="module")
def graded(tmp_path_factory) -> dict:
    """A class of 40: every trick, and as many students who have not begun."""
    notebooks = {what: trick[0] for what, trick in CLASS.items()}
    notebooks |= {f"nobody {n}": handed_in() for n in range(40 - len(CLASS))}
    assert len(notebooks) == 40
    folder = submitted(tmp_path_factory.mktemp("class"), notebooks)
    return {one.student: one for one in grade_all(folder, KEY, LIMITS, jobs=2)}


@pytest.mark.parametrize("what", CLASS)
def test_a_submission_gets_its_points_and_is_told_why(graded, what):
    _, points, words = CLASS[what]
    one = graded[what]
    assert tuple(result.points for result in one.results) == points
    assert one.total == sum(points)
    assert any(words in result.said for result in one.results), one.results


def test_an_answer_has_no_network_and_a_home_of_its_own(tmp_path):
    probe = (
        "import os, socket; from pathlib import Path; assert not list(Path.home().iterdir()); "
        "assert Path.cwd() == Path.home(); assert 'SECRET' not in os.environ; "
        "names = [name for _, name in socket.if_nameindex()]; raise ValueError(names)"
    )
    (one,) = grade_all(submitted(tmp_path, {"a": looks_up("my_slope", probe)}), KEY, LIMITS)
    assert one.results[0].said.startswith("ValueError: ['lo'")


def test_another_notebook_and_another_file_are_told_and_not_graded(tmp_path):
    for name, text in {"a.ipynb": "{", "b.ipynb": "[]", "c.ipynb": '{"cells": []}'}.items():
        (tmp_path / name).write_text(text)
    empty = handed_in()
    empty["cells"] = [c for c in empty["cells"] if c["cell_type"] == "markdown"]
    (tmp_path / f"{NAME}.ipynb").write_text(json.dumps(empty))
    found = submissions(tmp_path)
    one = grade("x", [path for paths in found.values() for path in paths], KEY)
    assert one.total == 0
    assert [remark.split(":")[0] for remark in one.remarks] == ["a.ipynb", "b.ipynb", "c.ipynb"]
    assert {result.said for result in one.results} == {f"no cell defines {n}" for n in ASKED}
    lost = grade("x", [tmp_path / "a.ipynb"], KEY)
    assert {result.said for result in lost.results} == {"the notebook was not handed in"}


def test_every_notebook_of_the_course_is_known_by_its_answers():
    for path in sorted(TUTORIALS.glob("*.ipynb")):
        if path.stem in {one.notebook for one in exercises.every()}:
            cells = [c for c in json.loads(path.read_text())["cells"] if c["cell_type"] == "code"]
            assert submission.notebook_of(cells) == path.stem


def test_the_command_writes_a_table_and_feedback_and_makes_a_key(tmp_path, capsys):
    folder = submitted(tmp_path / "in", {"=ann": handed_in(), "bob": handed_in()})
    key, out = tmp_path / "key.json", tmp_path / "out" / "grades.csv"
    assert main(["grade", str(folder), "--key", str(key), "--out", str(out)]) == 0
    said = capsys.readouterr()
    assert "2 students, 0.0 points on average" in said.out
    assert "keep it to yourself" in said.err
    assert read_key(key).points == dict.fromkeys(KEY.points, 1.0)
    with out.open(newline="") as file:
        rows = list(csv.reader(file))
    assert rows[0] == ["student", *(f"01 {name}" for name in ASKED), "total", "remarks"]
    assert [row[0] for row in rows[1:]] == ["'=ann", "bob"]
    assert "`my_slope`: 0. not attempted" in (out.parent / "grades_feedback/bob.md").read_text()
    assert main(["grade", str(folder), "--key", str(key), "--out", str(out)]) == 0
    assert "keep it to yourself" not in capsys.readouterr().err


def test_a_key_may_name_the_year_whose_numbers_the_tasks_had(tmp_path):
    year = next(y for y in range(2027, 2099) if exercises.intensity.of(y).chosen()["width"] == 512)
    notebook = json.loads((TUTORIALS / "05_bit_packed_kernels.ipynb").read_text())
    cells = without_solutions(notebook)["cells"]
    (stub,) = (c for c in cells if "def my_intensity(" in source_of(c))
    stub["source"] = (
        "def my_intensity(rows, bits):\n"
        "    return rows * 512**2 / ((rows + 512) * 512 * bits / 8 + rows * 512 * 4)"
    )
    folder = submitted(tmp_path / "in", {"ann": {**notebook, "cells": cells}})
    (paths,) = submissions(folder).values()
    written = tmp_path / "key.json"
    for of, points in ((None, 0.0), (year, 1.0)):
        written.write_text(json.dumps({"seed": 1, "points": {"intensity": 1}, "year": of}))
        assert grade("ann", paths, read_key(written), LIMITS).total == points


def test_what_cannot_be_graded_is_refused_in_one_line(tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    key = tmp_path / "key.json"
    key.write_text('{"seed": 1, "points": {"slope": 1}}')
    folder = submitted(tmp_path / "in", {"bob": handed_in()})
    for arguments, words in (
        ([tmp_path / "empty", "--key", tmp_path / "new.json"], "holds no notebooks"),
        ([folder, "--key", key], "has points for slope; exercises are grey_levels"),
        ([folder, "--key", __file__], "is no key"),
        ([folder, "--key", key, "--seconds", "0"], "`--seconds` is 0; it is 1 or more"),
        ([folder, "--key", key, "--memory", "nan"], "`--memory` is nan"),
    ):
        assert main(["grade", *map(str, arguments)]) == 2
        error = capsys.readouterr().err
        assert words in error and error.count("\n") == 1
    with pytest.raises(ValueError, match="no notebook of the course"):
        new_key(tmp_path / "new.json", ["08"])


def test_the_help_says_the_limits(capsys):
    with pytest.raises(SystemExit):
        main(["grade", "--help"])
    told = capsys.readouterr().out
    assert f"for one exercise ({Limits().seconds})" in told
    assert f"for one student ({Limits().memory})" in told


def test_a_student_may_not_write_formulas_into_the_table(tmp_path):
    one = grade("-1+2", [], KEY)
    write([one], tmp_path / "grades.csv")
    assert (tmp_path / "grades.csv").read_text().splitlines()[1].startswith("'-1+2,0,0,0,0")
