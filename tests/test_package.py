"""What students get needs no checkout, solves nothing, and starts with one command."""

import ast
import json
import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from qsr.course import package
from qsr.course.student import source_of, tags

ROOT = Path(__file__).parents[1]
TUTORIALS = sorted((ROOT / "tutorials").glob("*.ipynb"))


@pytest.fixture(scope="module")
def unpacked(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("package")
    package.write(folder / "course.zip", TUTORIALS)
    with zipfile.ZipFile(folder / "course.zip") as archive:
        archive.extractall(folder)
    return folder / package.FOLDER


def test_it_has_every_notebook_without_solutions_and_without_their_outputs(unpacked):
    assert sorted(p.name for p in (unpacked / "notebooks").iterdir()) == [p.name for p in TUTORIALS]
    for path in (unpacked / "notebooks").iterdir():
        text = path.read_text()
        assert "solution_" not in text and "the solution passes" not in text
        for cell in json.loads(text)["cells"]:
            if tags(cell) & {"exercise", "check", "live"}:
                assert cell["outputs"] == []


def test_what_its_notebooks_link_to_is_in_it(unpacked):
    found = 0
    for path in (unpacked / "notebooks").iterdir():
        for cell in json.loads(path.read_text())["cells"]:
            if cell["cell_type"] == "markdown":
                for link in re.findall(r"\]\(([^)#:]+)\)", source_of(cell)):
                    assert (path.parent / link).exists(), f"{path.name}: {link}"
                    found += link.startswith("../source/")
    assert found > 5


def test_its_source_is_the_whole_package_and_runs_by_itself(unpacked, tmp_path):
    def files(root: Path) -> set[str]:
        found = (p for part in ("qsr", "csrc") for p in (root / part).rglob("*") if p.is_file())
        return {str(p.relative_to(root)) for p in found if p.suffix not in package.LEFT_OUT}

    source = unpacked / "source"
    assert files(source) == files(ROOT)
    assert {p.name for p in source.iterdir()} == {*package.SOURCES, "docs"}
    check = (
        "import qsr; from qsr.course import exercises; from qsr.images.data import photo; "
        "from qsr.models import zoo; assert zoo.names(); photo(); "
        f"assert qsr.__file__.startswith({str(source)!r}); "
        "qsr.check(lambda db: 255 / 10 ** (db / 20), None, exercises.grey_levels)"
    )
    env = {**os.environ, "PYTHONPATH": str(source)}
    done = subprocess.run([sys.executable, "-c", check], env=env, cwd=tmp_path, capture_output=True)
    assert (done.returncode, done.stdout) == (0, b"my_error: correct\n"), done.stderr.decode()


def test_the_one_command_sets_up_once_and_opens_the_notebooks(unpacked, tmp_path):
    """With a Python for it that only writes down what it is asked to do."""
    asked = tmp_path / "asked"
    inside = unpacked / ".venv" / "bin"
    inside.mkdir(parents=True)
    fake = inside / "python"
    fake.write_text(f'#!/bin/sh\necho "$@" >> "{asked}"\n')
    fake.chmod(0o755)
    start = (unpacked / "start.py").read_text().replace("venv.create(HOME, with_pip=True)", "None")
    (unpacked / "start.py").write_text(start)
    for _ in range(2):
        done = subprocess.run([sys.executable, unpacked / "start.py"], cwd=tmp_path)
        assert done.returncode == 0
    install, trust, *opened = asked.read_text().splitlines()
    assert install == f"-m pip install --quiet -e {unpacked / 'source'}[lab]"
    assert trust.startswith("-m jupyter trust") and trust.count(".ipynb") == len(TUTORIALS)
    where = "--LabApp.default_url=/lab/tree/notebooks"
    lab = f"-m jupyter lab --ServerApp.root_dir={unpacked} {where}"
    assert opened == [lab] * 2


def test_an_old_python_can_read_the_command_and_is_told_what_is_needed():
    ast.parse(package.START, feature_version=(3, 4))
    assert package.START.index("sys.version_info") < package.START.index("import venv")


def test_the_same_checkout_gives_the_same_bytes(tmp_path):
    for name in ("a.zip", "b.zip"):
        package.write(tmp_path / name, TUTORIALS[:1])
    assert (tmp_path / "a.zip").read_bytes() == (tmp_path / "b.zip").read_bytes()


def test_what_cannot_be_packed_is_told_in_one_line(tmp_path):
    (tmp_path / "bad.ipynb").write_text("{")
    command = [sys.executable, "-m", "qsr.course.package", str(tmp_path / "x.zip")]
    for more, words in (([], "usage:"), ([str(tmp_path / "bad.ipynb")], "bad.ipynb: Expecting")):
        done = subprocess.run([*command, *more], capture_output=True, text=True, cwd=ROOT)
        assert done.returncode == 1
        assert words in done.stderr and done.stderr.count("\n") == 1
    assert not (tmp_path / "x.zip").exists()
