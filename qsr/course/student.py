"""Notebooks for students: the tutorials without their solutions.

    python -m qsr.course.student build/student tutorials/*.ipynb        (make student)
    python -m qsr.course.student build/student tutorials/*.ipynb 2027   (make student YEAR=2027)
    python -m qsr.course.student --solutions build/instructor tutorials/*.ipynb 2027

Cells are told by their tags. `solution` cells are left out. In `check` cells the solution becomes
None: `qsr.check(mine, None, exercises.it)`. `exercise` and `check` cells lose their outputs, and so
do those that a kernel has to draw (`live`). All else stays as it is, and the notebook runs from top
to bottom before an exercise is attempted. Links to the checkout's files lead there from the copy.
`--solutions` keeps them: whoever hands out the numbers of a year wants its solutions too.
"""

from __future__ import annotations

import ast
import copy
import json
import os
import re
import symtable
import sys
from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path

from ..system.files import replacing
from . import exercises


def without_solutions(notebook: dict) -> dict:
    """A copy of a notebook (nbformat 4, parsed JSON) for students.

    Raises ValueError (one line, with the cell's id) for a `check` cell without a check, or if a
    name that a solution defines stands anywhere but in a check.
    """
    notebook = copy.deepcopy(notebook)
    solutions = [cell for cell in notebook["cells"] if "solution" in tags(cell)]
    notebook["cells"] = [cell for cell in notebook["cells"] if "solution" not in tags(cell)]
    defined = {
        symbol.get_name()
        for cell in solutions
        if cell["cell_type"] == "code"
        for symbol in symtable.symtable(source_of(cell), "solution", "exec").get_symbols()
        if symbol.is_assigned() or symbol.is_imported()
    }
    for cell in notebook["cells"]:
        if cell["cell_type"] != "code":
            continue
        where = f"cell {cell.get('id', '?')}"
        if "check" in tags(cell):
            _write_source(cell, without_solution(source_of(cell), where))
        if tags(cell) & {"check", "exercise", "live"}:
            cell["outputs"], cell["execution_count"] = [], None
        used = defined & _names_in(source_of(cell))
        if used:
            raise ValueError(
                f"{where} has the name {', '.join(sorted(used))}, which a solution defines and "
                "students do not have; define it elsewhere, or name it otherwise in the solution."
            )
    return notebook


def of_year(notebook: dict, year: int | None) -> dict:
    """A copy of a notebook whose tasks and solutions have the numbers of a year, and whose checks
    ask for them.

    The text is the same for None, and for exercises without numbers.
    """
    notebook = copy.deepcopy(notebook)
    cells = notebook["cells"] if year is not None else []
    named = {one.name: one.of(year) for one in exercises.every() if one.numbers}
    task: list[dict] = []  # the cells since the last check
    for cell in cells:
        if "check" not in tags(cell):
            task.append(cell)
            continue
        for name in re.findall(r"exercises\.(\w+)", source_of(cell)):
            if name in named:
                stub = next(i for i, one in enumerate(task) if "exercise" in tags(one))
                for one in (*task[stub - 1 : stub], *task[stub + 1 :]):
                    _write_source(one, named[name].retold(source_of(one)))
                asked = source_of(cell).replace(f"exercises.{name}", f"exercises.{name}.of({year})")
                _write_source(cell, asked)
        task = []
    return notebook


LINK = re.compile(r"\]\(\.\./([^)#\s]+)")  # in Markdown, to a file of the checkout


def links(notebook: dict) -> list[str]:
    """The files of the checkout that a tutorial links to, such as docs/log.md."""
    texts = (source_of(cell) for cell in notebook["cells"] if cell["cell_type"] == "markdown")
    return [path for text in texts for path in LINK.findall(text)]


def linked_to(notebook: dict, checkout: str) -> dict:
    """A copy of a notebook whose links to files of the checkout lead there from another folder.

    checkout: the way to it from there, as it stands in an address ("../source").
    """
    notebook = copy.deepcopy(notebook)
    for cell in notebook["cells"]:
        if cell["cell_type"] == "markdown" and LINK.search(source_of(cell)):
            _write_source(cell, LINK.sub(lambda link: f"]({checkout}/{link[1]}", source_of(cell)))
    return notebook


def without_solution(source: str, where: str = "the source") -> str:
    """The code of a check cell with None for the solution of each call of check.

    Raises ValueError if there is none.

    >>> without_solution("qsr.check(mine, theirs, test, mistake=wrong)")
    'qsr.check(mine, None, test, mistake=wrong)'
    """
    arguments = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call) and _is_check(node.func):
            arguments += [k.value for k in node.keywords if k.arg == "solution"] or node.args[1:2]
    if not arguments:
        raise ValueError(f"{where} is tagged `check` and calls no qsr.check(yours, solution, ...).")
    code = source.encode()  # ast counts bytes
    starts = [0, *accumulate(map(len, code.splitlines(keepends=True)))]
    for argument in sorted(arguments, key=lambda a: (a.lineno, a.col_offset), reverse=True):
        last, column = argument.end_lineno, argument.end_col_offset
        assert last is not None and column is not None  # what was parsed has an end
        begin = starts[argument.lineno - 1] + argument.col_offset
        end = starts[last - 1] + column
        code = code[:begin] + b"None" + code[end:]
    return code.decode()


def read(path: str | os.PathLike, year: int | None = None, solutions: bool = False) -> dict:
    """The notebook of a file in a year, without its solutions unless they are asked for.

    Raises ValueError (one line) with its name.
    """
    try:
        notebook = of_year(json.loads(Path(path).read_text(encoding="utf-8")), year)
        return notebook if solutions else without_solutions(notebook)
    except (OSError, ValueError) as error:
        raise ValueError(f"{path}: {error}") from error


def write(
    folder: str | os.PathLike,
    notebooks: Sequence[str | os.PathLike],
    year: int | None = None,
    solutions: bool = False,
) -> list[Path]:
    """Write the notebooks without solutions into the folder, made if need be; their new paths.

    year: whose numbers stand in the tasks, None for the usual ones. solutions: the instructor's
    copies, which keep them. Files of these names are replaced. Raises ValueError (one line) if a
    file cannot be read or written, or for a notebook that `without_solutions` refuses.
    """
    folder = Path(folder)
    written = []
    for path in map(Path, notebooks):
        if path.parent.resolve() == folder.resolve():
            raise ValueError(f"{path} would be replaced by its own copy; name a folder.")
        checkout = os.path.relpath(path.resolve().parents[1], folder.resolve())
        made = linked_to(read(path, year, solutions), Path(checkout).as_posix())
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ValueError(f"{folder}: {error}") from error
        with replacing(folder / path.name) as temporary:
            text = json.dumps(made, indent=1, ensure_ascii=False) + "\n"
            temporary.write_text(text, encoding="utf-8")
        written.append(folder / path.name)
    return written


def arguments(given: Sequence[str]) -> tuple[str, list[str], int | None]:
    """Of a command: where to, the notebooks, and the year if the last one is a number."""
    year = int(given[-1]) if given[-1].isdigit() else None
    return given[0], list(given[1:] if year is None else given[1:-1]), year


def tags(cell: dict) -> set[str]:
    """The tags of a cell."""
    return set(cell["metadata"].get("tags", ()))


def source_of(cell: dict) -> str:
    """The text of a cell, which the format allows in one string or in lines."""
    return "".join(cell["source"])


def _write_source(cell: dict, source: str) -> None:
    cell["source"] = source.splitlines(keepends=True)


def _names_in(source: str) -> set[str]:
    """The variables, functions and classes that a cell's code names."""
    python = re.sub(r"^( *)[%!].*", r"\1pass", source, flags=re.M)  # lines for IPython
    return {node.id for node in ast.walk(ast.parse(python)) if isinstance(node, ast.Name)}


def _is_check(function: ast.expr) -> bool:
    name = function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")
    return name == "check"


if __name__ == "__main__":
    given = [argument for argument in sys.argv[1:] if argument != "--solutions"]
    if len(given) < 2:
        sys.exit("usage: python -m qsr.course.student [--solutions] FOLDER NOTEBOOK ... [YEAR]")
    try:
        for new in write(*arguments(given), solutions="--solutions" in sys.argv):
            print(new)
    except ValueError as error:
        sys.exit(f"qsr.course.student: {error}")
