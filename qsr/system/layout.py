"""The map of the package, as code: which room may import which.

qsr is a small core and rooms around it. The core, the modules directly in `qsr/`, is the idea: a
quantizer, layers and blocks of them, a network, its training, its use. Rooms hold what surrounds
it. A module imports only from levels before its own; inside a level from those written before it;
inside a room as that room likes. So training does not know that packing exists, kernels know
neither networks nor training, and everything can be read, and tested, from the ground up.

`tests/test_layering.py` holds every import to it, and README shows it. With lines of code:

    python -m qsr.system.layout
"""

from __future__ import annotations

import ast
from collections.abc import Iterator, Sequence
from pathlib import Path

LEVELS = (
    ("system",),
    ("quantizer", "images"),
    ("layers", "convert", "equalization", "calibration", "blocks", "baselines"),
    ("schedule", "config", "collapse", "backbone"),
    ("objective", "train", "integer"),
    ("infer",),
    ("scores", "models", "export"),
    ("runs", "course"),
    ("paper", "bench"),
    ("cli",),
)
# Beyond the levels: who never imports whom directly, whatever the order.
NEVER = {
    "train": ("integer",),
    "objective": ("integer",),
    "runs": ("integer",),
    "baselines": ("integer",),
}
PACKAGE = Path(__file__).parents[1]


def core() -> tuple[str, ...]:
    """The modules of the core, from the ground up."""
    return tuple(n for level in LEVELS for n in level if (PACKAGE / f"{n}.py").exists())


def rooms() -> tuple[str, ...]:
    """The rooms, from the ground up."""
    return tuple(n for level in LEVELS for n in level if (PACKAGE / n).is_dir())


def modules(name: str) -> list[Path]:
    """The files of a room, or the one of a module of the core."""
    folder = PACKAGE / name
    return sorted(folder.glob("*.py")) if folder.is_dir() else [PACKAGE / f"{name}.py"]


def tree(lines: bool = False) -> Iterator[str]:
    """Each part with the first line of its docstring; `lines`: and how many it has."""
    counted = f" {_lines(core()):6,} lines in the core, {_lines(rooms()):,} in rooms"
    yield "qsr/".ljust(15) + counted if lines else "qsr/"
    for name in (*core(), *rooms()):
        shown = f"  {name}/" if name in rooms() else f"  {name}.py"
        count = f" {_lines([name]):6,}" if lines else ""
        yield f"{shown:15}{count}  {_says(modules(name))}"


def _says(files: Sequence[Path]) -> str:
    first = next((p for p in files if p.name == "__init__.py"), files[0])
    return (ast.get_docstring(ast.parse(first.read_text())) or "").split("\n")[0]


def _lines(names: Sequence[str]) -> int:
    return sum(len(p.read_text().splitlines()) for name in names for p in modules(name))


if __name__ == "__main__":
    print("\n".join(tree(lines=True)))
