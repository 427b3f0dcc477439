"""Slides are made from the notebooks, show what a hall needs, and fetch nothing."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from qsr.course import slides
from qsr.course.student import source_of

ROOT = Path(__file__).parent.parent
TUTORIALS = sorted((ROOT / "tutorials").glob("*.ipynb"))


def cell(source: str, *tags: str, shows: str = "") -> dict:
    kind = "markdown" if source.startswith(("#", "Text")) else "code"
    made = {"cell_type": kind, "id": "x", "metadata": {"tags": list(tags)}, "source": source}
    if kind == "code":
        text = {"output_type": "stream", "name": "stdout", "text": shows}
        made |= {"outputs": [text] if shows else [], "execution_count": 1}
    return made


def test_headings_begin_slides_and_what_no_hall_needs_is_left_out():
    long = "\n".join(f"x = {i}" for i in range(40))
    cells = [
        cell("# Title"),
        cell("print('install')", "install"),
        cell("import qsr"),
        cell("Text."),
        cell("y = 1", shows="one"),
        cell(long),
        cell(long, shows="long"),
        cell("draw()", "folded", shows="folded"),
        cell("slider", "live", shows="live"),
        cell("## Next"),
        cell("## Exercises"),
        cell("def my_answer(): ...", "exercise"),
    ]
    made = slides.slides_of({"cells": cells, "metadata": {}, "nbformat": 4, "nbformat_minor": 5})
    kinds = [(source_of(c)[:6], c["metadata"]["slideshow"]["slide_type"]) for c in made["cells"]]
    assert kinds == [
        ("# Titl", "slide"),
        ("Text.", "subslide"),
        ("y = 1", "-"),
        ("x = 0\n", "subslide"),
        ("draw()", "subslide"),
        ("## Nex", "slide"),
    ]
    hidden = [c["metadata"].get("transient") == {"remove_source": True} for c in made["cells"]]
    assert hidden == [False, False, False, True, True, False]
    assert "transient" not in cells[6]["metadata"], "the notebook is untouched"


def test_the_pages_need_nothing_but_the_folder_beside_them(tmp_path):
    (path,) = slides.write(tmp_path, TUTORIALS[:1])
    page = path.read_text()
    named = re.findall(r"(?:src|href)=\"([^\"#][^\"]*)\"", page)
    beside = [name for name in named if not name.startswith("data:")]
    assert len(beside) >= 5
    for name in beside:
        assert name.startswith(("../", "0")) or (tmp_path / name).exists(), name
    assert not re.search(r"<(script|link)[^>]*(src|href)=\"https?:|import mermaid", page)
    assert "NotImplementedError" not in page and "solution_" not in page


def test_what_cannot_be_made_is_told_in_one_line(tmp_path):
    (tmp_path / "bad.ipynb").write_text("{")
    command = [sys.executable, "-m", "qsr.course.slides", str(tmp_path / "out")]
    for more, words in (([], "usage:"), ([str(tmp_path / "bad.ipynb")], "bad.ipynb: Expecting")):
        done = subprocess.run([*command, *more], capture_output=True, text=True, cwd=ROOT)
        assert done.returncode == 1
        assert words in done.stderr and done.stderr.count("\n") == 1


@pytest.mark.parametrize("path", TUTORIALS, ids=lambda path: path.stem)
def test_every_notebook_has_slides(path):
    made = slides.slides_of(json.loads(path.read_text()))
    kinds = [c["metadata"]["slideshow"]["slide_type"] for c in made["cells"]]
    assert kinds[0] == "slide" and kinds.count("slide") >= 4
