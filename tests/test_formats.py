"""Assignments for nbgrader and otter hold every exercise, and what solves it only between marks.

That the tools themselves grade them rightly is tests/graders.py's part (`make soak`).
"""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from qsr.course import exercises, formats
from qsr.course.student import source_of

TUTORIALS = sorted((Path(__file__).parents[1] / "tutorials").glob("*.ipynb"))
KNOWN = [p for p in TUTORIALS if p.stem in {one.notebook for one in exercises.every()}]


@pytest.fixture(params=KNOWN, ids=lambda path: path.stem)
def path(request) -> Path:
    return request.param


def assignment(form: str, path: Path, year: int | None = None) -> dict:
    return formats.FORMATS[form](json.loads(path.read_text()), path.stem, 77, year)


def run(sources: list[str]) -> None:
    names: dict = {}
    for source in sources:
        exec(source, names)


def code(notebook: dict) -> list[str]:
    return [source_of(cell) for cell in notebook["cells"] if cell["cell_type"] == "code"]


@pytest.mark.parametrize("year", [None, 2027])
@pytest.mark.parametrize("form", formats.FORMATS)
def test_an_assignment_runs_as_it_is_made_with_the_solutions(form, path, year):
    run(code(assignment(form, path, year)))


@pytest.mark.parametrize("form", formats.FORMATS)
def test_the_assignments_of_a_year_differ_where_their_exercises_have_numbers(form, path):
    usual, new = (assignment(form, path, year)["cells"] for year in (None, 2027))
    varied = sum(bool(one.numbers) for one in exercises.every() if one.notebook == path.stem)
    tests = [source_of(c) for c in new if c["source"].count("require(")]
    assert sum(".of(2027)" in test for test in tests) == varied * (1 if form == "nbgrader" else 2)
    assert (usual != new) == bool(varied)


@pytest.mark.parametrize("form", formats.FORMATS)
def test_an_answer_that_is_cut_out_is_not_graded_as_one(form, path):
    sources = code(assignment(form, path))
    cut = [re.sub(r"#+ BEGIN SOL.*#+ END SOLUTION", "...", s, flags=re.S) for s in sources]
    assert sum(a != b for a, b in zip(sources, cut, strict=True)) >= 2
    for source in cut[1:]:
        if source.startswith("require("):
            with pytest.raises(AssertionError, match="gives None whatever"):
                run([cut[0], *(s for s in cut[1:] if s.startswith("def ")), source])


def test_the_marks_of_nbgrader_are_those_of_its_third_schema(path):
    cells = assignment("nbgrader", path)["cells"]
    about = [cell["metadata"]["nbgrader"] for cell in cells if cell["metadata"]]
    count = sum(one.notebook == path.stem for one in exercises.every())
    assert [one["solution"] for one in about] == [True, False] * count
    assert [one["grade"] for one in about] == [False, True] * count
    assert len({one["grade_id"] for one in about}) == 2 * count
    assert {one["schema_version"] for one in about} == {3}


def test_the_seed_of_the_hidden_tests_stands_only_between_marks(path):
    for source in code(assignment("nbgrader", path)):
        seen = re.sub(r"### BEGIN HIDDEN TESTS.*### END HIDDEN TESTS", "", source, flags=re.S)
        assert "77)" not in seen
    for source in code(assignment("otter", path)):
        assert source.startswith("# HIDDEN\n") == ("seed=77" in source)


def test_one_command_writes_all_of_them(tmp_path):
    for form, name in (("nbgrader", f"source/{KNOWN[0].stem}/{KNOWN[0].name}"), ("otter", None)):
        command = [sys.executable, "-m", "qsr.course.formats", form, tmp_path / form, KNOWN[0]]
        done = subprocess.run([*command, "--seed", "77"], capture_output=True, text=True)
        target = tmp_path / form / (name or KNOWN[0].name)
        assert (done.returncode, done.stdout) == (0, f"{target}\n"), done.stderr
        assert json.loads(target.read_text()) == assignment(form, KNOWN[0])
    (tmp_path / "bad.ipynb").write_text("{")
    done = subprocess.run([*command[:-1], tmp_path / "bad.ipynb"], capture_output=True, text=True)
    assert done.returncode == 1 and done.stderr.count("\n") == 1
