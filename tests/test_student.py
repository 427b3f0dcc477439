"""Notebooks for students hold no solution, lose nothing else, and run from top to bottom."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from qsr.course import exercises
from qsr.course.student import (
    links,
    of_year,
    source_of,
    tags,
    without_solution,
    without_solutions,
    write,
)

TUTORIALS = Path(__file__).parents[1] / "tutorials"


def cell(source: str, *tags: str, kind: str = "code") -> dict:
    made = {"cell_type": kind, "id": "-".join(tags) or "plain", "source": source}
    made["metadata"] = {"tags": list(tags)} if tags else {}
    if kind == "code":
        made |= {"outputs": [{"output_type": "stream", "text": ["out"]}], "execution_count": 3}
    return made


def notebook() -> dict:
    cells = [
        cell("# Rounding, 2\u202f½ ≈ 2", kind="markdown"),
        cell("import qsr"),
        cell("def my_round(x):\n    raise NotImplementedError", "exercise"),
        cell("The even neighbour.", "solution", kind="markdown"),
        cell("def solution_round(x):\n    y = round(x)\n    return y", "solution"),
        cell(
            "def test_round(f):\n    assert f(2.5) == 2, 'a tie: ½ → even'\n\n\n"
            "qsr.check(\n    my_round, solution_round, test_round,\n"
            "    mistake=lambda x: int(x + 0.5),\n)",
            "check",
        ),
        cell("y = 4"),
    ]
    return {"cells": cells, "metadata": {}, "nbformat": 4, "nbformat_minor": 5}


def run(notebook: dict, **replaced: str) -> None:
    """Execute the code cells in order; {id: source} stands for what a student wrote."""
    names: dict = {}
    for one in notebook["cells"]:
        if one["cell_type"] == "code":
            exec(replaced.get(one["id"], source_of(one)), names)


def test_solutions_and_the_outputs_of_exercises_are_gone_and_all_else_stays():
    before = notebook()
    after = without_solutions(before)
    assert before == notebook(), "the original is untouched"
    assert [c["id"] for c in after["cells"]] == ["plain", "plain", "exercise", "check", "plain"]
    assert "solution" not in json.dumps(after)
    for one in after["cells"]:
        if tags(one) & {"exercise", "check"}:
            assert (one["outputs"], one["execution_count"]) == ([], None)
    for index, old in ((0, 0), (1, 1), (4, 6)):
        assert after["cells"][index] == before["cells"][old]


def test_a_notebook_for_students_runs_before_and_after_an_exercise_is_solved(capsys):
    after = without_solutions(notebook())
    run(after)
    assert capsys.readouterr().out == "my_round: not attempted yet\n"
    run(after, exercise="my_round = round")
    assert capsys.readouterr().out == "round: correct\n"
    with pytest.raises(AssertionError, match="a tie: ½ → even"):
        run(after, exercise="def my_round(x):\n    return int(x + 0.5)")


def test_the_solution_of_every_check_becomes_none_wherever_it_stands():
    source = (
        "# ½ é\n'é'; check(a, sol.ve(\n  1), t, mistake=m)\nqsr.check(solution=x, mistake=m,"
        " yours=a, test=t); other(a, b)"
    )
    assert without_solution(source) == (
        "# ½ é\n'é'; check(a, None, t, mistake=m)\nqsr.check(solution=None, mistake=m,"
        " yours=a, test=t); other(a, b)"
    )


def test_a_check_cell_without_a_check_is_refused():
    bad = notebook()
    bad["cells"][5]["source"] = "print('forgotten')"
    with pytest.raises(ValueError, match="cell check is tagged `check` and calls no qsr.check"):
        without_solutions(bad)


@pytest.mark.parametrize("user", [1, 2, 5, 6])
def test_a_solution_that_others_use_is_refused(user):
    bad = notebook()
    bad["cells"][user]["source"] += "\nsolution_round(1)"
    with pytest.raises(ValueError, match="cell .* has the name solution_round, which a solution"):
        without_solutions(bad)


def test_words_and_lines_for_ipython_are_no_names():
    good = notebook()
    good["cells"][1]["source"] = "if 0:\n    %pip install solution_round\nprint('solution_round')"
    assert without_solutions(good)["cells"][1] == good["cells"][1]


def test_notebooks_are_written_into_a_folder_of_their_own(tmp_path):
    source = tmp_path / "a.ipynb"
    text = json.dumps(notebook())
    source.write_text(text)
    (path,) = write(tmp_path / "new" / "student", [source])
    assert path == tmp_path / "new" / "student" / "a.ipynb"
    assert json.loads(path.read_text()) == without_solutions(notebook())
    assert write(path.parent, [source]) == [path]
    with pytest.raises(ValueError, match="a.ipynb would be replaced by its own copy"):
        write(tmp_path, [source])
    assert source.read_text() == text


def test_an_instructor_has_the_solutions_of_a_year(tmp_path):
    solved = json.loads((TUTORIALS / "06_full_reproduction.ipynb").read_text())
    year = next(y for y in range(2027, 2099) if exercises.saving.of(y).chosen()["full"] == 16)
    (path,) = write(tmp_path, [TUTORIALS / "06_full_reproduction.ipynb"], year, solutions=True)
    made = json.loads(path.read_text())
    assert len(made["cells"]) == len(solved["cells"])
    (solution,) = (source_of(c) for c in made["cells"] if "def solution_saving" in source_of(c))
    assert "(1 - bits / 16)" in solution
    (check,) = (source_of(c) for c in made["cells"] if "check(my_saving" in source_of(c))
    assert check == f"qsr.check(my_saving, solution_saving, exercises.saving.of({year}))"


def test_links_of_a_copy_lead_to_the_files_of_the_checkout(tmp_path):
    linking = notebook()
    linking["cells"][0]["source"] = "See [a](../docs/a.md#b), [c](c.ipynb), [`d`](../qsr/d.py)."
    (tmp_path / "tutorials").mkdir()
    source = tmp_path / "tutorials" / "a.ipynb"
    source.write_text(json.dumps(linking))
    assert links(linking) == ["docs/a.md", "qsr/d.py"]
    (path,) = write(tmp_path / "build" / "student", [source])
    moved = source_of(json.loads(path.read_text())["cells"][0])
    assert moved == "See [a](../../docs/a.md#b), [c](c.ipynb), [`d`](../../qsr/d.py)."


def test_the_tasks_of_a_year_have_its_numbers_and_their_checks_ask_for_them():
    year = next(y for y in range(2027, 2099) if exercises.intensity.of(y).chosen()["width"] == 512)
    plain = [
        cell("1024 stays here.", kind="markdown"),
        cell("A layer of 1024 → 1024 gets 10240 rows.", kind="markdown"),
        cell("def my_intensity(rows, bits):\n    raise NotImplementedError", "exercise"),
        cell("rows · 1024 · 1024", "hint", kind="markdown"),
        cell("qsr.check(my_intensity, None, exercises.intensity)", "check"),
        cell("And 1024 here.", kind="markdown"),
    ]
    solved = [*plain[:4], cell("rows * 1024", "solution"), *plain[4:]]
    made = of_year({"cells": plain}, year)["cells"]
    assert [source_of(c) for c in made] == [
        "1024 stays here.",
        "A layer of 512 → 512 gets 10240 rows.",
        source_of(plain[2]),
        "rows · 512 · 512",
        f"qsr.check(my_intensity, None, exercises.intensity.of({year}))",
        "And 1024 here.",
    ]
    assert source_of(of_year({"cells": solved}, year)["cells"][4]) == "rows * 512"
    assert of_year({"cells": plain}, None) == {"cells": plain}


def test_the_command_tells_what_it_wrote_and_what_it_could_not_read(tmp_path):
    (tmp_path / "a.ipynb").write_text(json.dumps(notebook()))
    command = [sys.executable, "-W", "error", "-m", "qsr.course.student", str(tmp_path / "out")]
    done = subprocess.run([*command, str(tmp_path / "a.ipynb")], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == f"{tmp_path / 'out' / 'a.ipynb'}\n"
    (tmp_path / "b.ipynb").write_text("{")
    for arguments, words in (([str(tmp_path / "b.ipynb")], "b.ipynb: Expecting"), ([], "usage:")):
        done = subprocess.run([*command, *arguments], capture_output=True, text=True)
        assert done.returncode == 1
        assert words in done.stderr and done.stderr.count("\n") == 1
