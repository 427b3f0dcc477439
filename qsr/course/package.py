"""The course in one file for students, who have no checkout: notebooks, qsr's source, one command.

    python -m qsr.course.package build/qsr-course.zip tutorials/*.ipynb        (make student)

Unpacked, `python3 start.py` sets up an environment beside the notebooks and opens them. The data of
the course, pictures and models, are part of qsr. The pages that the notebooks link to come along.
Nothing in the file solves an exercise, and the same checkout always gives the same bytes.
"""

from __future__ import annotations

import json
import os
import sys
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from ..system.files import replacing
from . import student
from .student import arguments, linked_to, links

ROOT = Path(__file__).parents[2]
FOLDER = "qsr-course"
# What pip needs to install qsr from its source, and to compile the native core on first use.
SOURCES = ("qsr", "csrc", "setup.py", "pyproject.toml", "README.md", "LICENSE")
LEFT_OUT = {".so", ".pyd", ".pyc"}

README = """\
The course of qsr, with exercises that check themselves.

    python3 start.py          (Windows: py start.py)

needs Python 3.11 or newer and a network the first time, takes some minutes then, and opens the
notebooks. A C++ compiler is used where there is one; without it all but notebook 05 runs, slowly.

Work in the folder `notebooks`, and hand in the notebooks with your answers. An answer may use what
its notebook imports and what stands in its own cell.
"""

START = '''\
"""Set up the course beside this file, once, and open it: python3 start.py"""
import os
import subprocess
import sys

if sys.version_info < (3, 11):
    sys.exit("The course needs Python 3.11 or newer; this is " + sys.version.split()[0] + ".")

import venv
from pathlib import Path

HERE = Path(__file__).resolve().parent
HOME = HERE / ".venv"
PYTHON = HOME / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
READY = HOME / "ready"
NOTEBOOKS = HERE / "notebooks"


def run(*arguments):
    done = subprocess.run([str(PYTHON), "-m", *map(str, arguments)], cwd=NOTEBOOKS)
    if done.returncode:
        sys.exit("'" + " ".join(map(str, arguments)) + "' failed; what it said stands above.")


if not READY.exists():
    print("Setting up the course in", HOME, "(some minutes, once)")
    try:
        venv.create(HOME, with_pip=True)
    except subprocess.CalledProcessError:
        sys.exit("This Python can make no environment. Debian: apt-get install python3-venv")
    run("pip", "install", "--quiet", "-e", str(HERE / "source") + "[lab]")
    run("jupyter", "trust", *sorted(NOTEBOOKS.glob("*.ipynb")))
    READY.touch()
if "--no-open" not in sys.argv:
    root = "--ServerApp.root_dir=" + str(HERE)  # so that what notebooks link to can be opened
    run("jupyter", "lab", root, "--LabApp.default_url=/lab/tree/notebooks")
'''


def contents(
    notebooks: Sequence[str | os.PathLike], year: int | None = None
) -> Iterator[tuple[str, bytes]]:
    """The files of the package: names and bytes. Errors as `student.read`."""
    yield "README.txt", README.encode()
    yield "start.py", START.encode()
    linked = set()
    for path in map(Path, notebooks):
        notebook = student.read(path, year)
        linked |= {link for link in links(notebook) if link.startswith("docs/")}
        text = json.dumps(linked_to(notebook, "../source"), indent=1, ensure_ascii=False) + "\n"
        yield f"notebooks/{path.name}", text.encode()
    for part in (*SOURCES, *sorted(linked)):
        top = ROOT / part
        for path in sorted(top.rglob("*")) if top.is_dir() else [top]:
            if path.is_file() and path.suffix not in LEFT_OUT:
                yield f"source/{path.relative_to(ROOT).as_posix()}", path.read_bytes()


def write(
    archive: str | os.PathLike, notebooks: Sequence[str | os.PathLike], year: int | None = None
) -> int:
    """Write the package; how many files are in it. Raises ValueError (one line)."""
    if not (ROOT / "csrc").is_dir():
        raise ValueError(f"{ROOT} is no checkout of qsr; the package is made from one.")
    files = dict(contents(notebooks, year))
    Path(archive).parent.mkdir(parents=True, exist_ok=True)
    with replacing(Path(archive)) as temporary, zipfile.ZipFile(temporary, "w") as packed:
        for name, data in files.items():
            about = zipfile.ZipInfo(f"{FOLDER}/{name}")  # of 1980: the same bytes on every day
            about.external_attr = 0o644 << 16
            packed.writestr(about, data, zipfile.ZIP_DEFLATED)
    return len(files)


if __name__ == "__main__":
    if len(sys.argv) < 3:
        sys.exit("usage: python -m qsr.course.package FILE.zip NOTEBOOK ... [YEAR]")
    try:
        count = write(*arguments(sys.argv[1:]))
        print(f"{sys.argv[1]}: {count} files, {Path(sys.argv[1]).stat().st_size / 1e6:.1f} MB")
    except (OSError, ValueError) as error:
        sys.exit(f"qsr.course.package: {error}")
