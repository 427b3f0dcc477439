"""The answers in a notebook that a student handed in, whatever became of the notebook around them.

Only answers are taken, cells that define the function an exercise asks for. Checks, outputs and all
else may have been changed, and do not count. An answer gets what the notebook imports and what its
own cell defines, nothing more: no training and no picture of the notebook has to be made again.
"""

from __future__ import annotations

import ast
import json
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from . import exercises
from .claims import Exercise
from .student import source_of, tags


@dataclass(frozen=True)
class Answer:
    """The source of one answer, and a remark for its author; without source there is none."""

    exercise: Exercise
    source: str = ""
    remark: str = ""


def read(path: str | os.PathLike) -> list[dict]:
    """The code cells of a notebook. Raises ValueError (one line) for what is no notebook."""
    try:
        notebook = json.loads(Path(path).read_text(encoding="utf-8"))
        cells = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
        for cell in cells:
            source_of(cell), tags(cell)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"it is no notebook that can be read ({type(error).__name__})") from None
    return cells


def notebook_of(cells: Sequence[dict]) -> str | None:
    """The notebook of the course whose answers these cells define most of, if there is one."""
    defined = {name for cell in cells for name in definitions(cell)}
    counts: dict[str, int] = {}
    for one in exercises.every():
        counts[one.notebook] = counts.get(one.notebook, 0) + (one.answer in defined)
    best = max(counts, key=lambda name: counts[name])
    return best if counts[best] else None


def answers(cells: Sequence[dict], asked: Sequence[Exercise]) -> Iterator[Answer]:
    """An answer to each exercise of one notebook, in their order.

    A cell tagged `exercise` goes before others that define the function. Of several, the last that
    is more than a stub counts. Where each exercise still has its tagged cell, one whose function
    has another name is taken for the exercise at its place.
    """
    cells = [cell for cell in cells if not tags(cell) & {"check", "solution"}]
    tagged = [cell for cell in cells if "exercise" in tags(cell)]
    for place, one in enumerate(asked):
        found = [c for c in tagged if one.answer in definitions(c)]
        found = found or [c for c in cells if one.answer in definitions(c)]
        begun = [c for c in found if not _is_stub(c, one.answer)]
        if found and not begun:
            yield Answer(one, remark="not attempted")
            continue
        if found:
            several = f"{len(found)} cells define {one.answer}; the last one that was begun counts"
            yield Answer(one, _with_imports(begun[-1], cells), several if found[1:] else "")
            continue
        alone = definitions(tagged[place]) if len(tagged) == len(asked) else []
        if len(alone) == 1:
            renamed = f"\n{one.answer} = {alone[0]}"
            remark = f"the function is called {alone[0]} here, not {one.answer}"
            yield Answer(one, _with_imports(tagged[place], cells) + renamed, remark)
        else:
            yield Answer(one, remark=_missing(cells, one.answer))


def _with_imports(cell: dict, cells: Sequence[dict]) -> str:
    """The source of a cell, below the imports of the whole notebook whose names it has."""
    source = python(cell)
    words = set(re.findall(r"\w+", source))
    lines = []
    for node in (node for other in cells if other is not cell for node in _body(other)):
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            bound = {(name.asname or name.name).split(".")[0] for name in node.names}
            if bound & words:
                lines.append(ast.unparse(node))
    return "\n".join([*lines, source])


def definitions(cell: dict) -> list[str]:
    """The names that a cell defines at its top level: functions, and what is assigned."""
    found = []
    for node in _body(cell):
        if isinstance(node, ast.FunctionDef):
            found.append(node.name)
        elif isinstance(node, ast.Assign):
            found += [target.id for target in node.targets if isinstance(target, ast.Name)]
    return found


def python(cell: dict) -> str:
    """The source of a cell without the lines that are for IPython."""
    return re.sub(r"^( *)[%!].*", r"\1pass", source_of(cell), flags=re.M)


def _body(cell: dict) -> list[ast.stmt]:
    try:
        return ast.parse(python(cell)).body
    except (SyntaxError, ValueError):  # ValueError: null bytes
        return []


def _is_stub(cell: dict, name: str) -> bool:
    """Whether the function does nothing but raise NotImplementedError, below a text perhaps."""
    functions = [n for n in _body(cell) if isinstance(n, ast.FunctionDef) and n.name == name]
    if not functions:
        return False
    *before, last = functions[-1].body
    texts = all(isinstance(n, ast.Expr) and isinstance(n.value, ast.Constant) for n in before)
    return texts and isinstance(last, ast.Raise) and "NotImplementedError" in ast.unparse(last)


def _missing(cells: Sequence[dict], name: str) -> str:
    """Why there is no answer: no cell has it, or one that can't be read as Python."""
    for cell in cells:
        if re.search(rf"\b{name}\b\s*[(=]", source_of(cell)):
            try:
                ast.parse(python(cell))
            except (SyntaxError, ValueError) as error:
                line = getattr(error, "text", None) or ""
                return f"the cell of {name} is no Python: {error.args[0]}: {line.strip()}"
    return f"no cell defines {name}"
