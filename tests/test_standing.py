"""How far a student is stands in the notebooks, and nowhere else."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

import qsr.course


def notebook(path: Path, **checks: str) -> None:
    cells = [{"cell_type": "markdown", "metadata": {}, "source": "a word"}]
    for answer, printed in checks.items():
        output = {"output_type": "stream", "text": [printed]}
        cell = {"cell_type": "code", "metadata": {"tags": ["check"]}, "outputs": [output]}
        cells.append({**cell, "source": ["qsr.check(\n", f"    {answer}, None, exercises.x)"]})
    path.write_text(json.dumps({"cells": cells}))


def test_progress_counts_what_is_correct_and_names_the_next_exercise(tmp_path, capsys):
    notebook(tmp_path / "00.ipynb", my_a="my_a: correct\n", my_b="round: correct\n")
    notebook(tmp_path / "01.ipynb", my_c="my_c: not attempted yet\n", my_d="my_d: correct\n")
    notebook(tmp_path / "02.ipynb", my_e="Not yet: it is correct only for 2\n", my_f="")
    (tmp_path / "03.ipynb").write_text("{")
    qsr.course.progress(tmp_path)
    assert capsys.readouterr().out == "3 of 6 solved, next: my_c in 01 (as last saved)\n"
    for name in ("01", "02"):
        (tmp_path / f"{name}.ipynb").unlink()
    qsr.course.progress(tmp_path)
    assert capsys.readouterr().out == "2 of 2 solved, all are done (as last saved)\n"


def test_the_course_as_it_is_handed_out_has_nothing_solved(capsys):
    tutorials = Path(__file__).parents[1] / "tutorials"
    qsr.course.progress(tutorials)
    told = capsys.readouterr().out
    assert told.startswith("0 of ") and "next: my_error in 00_enlarge_a_photo" in told


def test_a_folder_without_exercises_is_told(tmp_path):
    with pytest.raises(ValueError, match="holds no notebooks with exercises"):
        qsr.course.progress(tmp_path)


def test_asking_for_progress_does_not_wait_for_torch():
    check = "import qsr.course, sys; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", check]).returncode == 0
