"""The map of the package, as code: which room may import which.

qsr is a small core and rooms around it. The core, the modules directly in `qsr/`, is the idea: a
quantizer, layers and blocks of them, a network, its training, its use. Rooms hold what surrounds
it. A module imports only from levels before its own; inside a level from those written before it;
inside a room as that room likes. So training does not know that packing exists, kernels know
neither networks nor training, and everything can be read, and tested, from the ground up.

`tests/test_layering.py` holds every import to it, and README shows it as printed by

    python -m qsr.system.layout
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

LEVELS = (
    ("system",),
    ("quantizer", "images"),
    ("layers", "blocks", "baselines"),
    ("config", "backbone"),
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


def tree() -> Iterator[str]:
    """Lines: each part with its lines of code and text, and the first of its docstring."""
    yield f"qsr/            {_lines(core()):6,} lines in the core, {_lines(rooms()):,} in rooms"
    for name in core():
        yield _line(f"{name}.py", name)
    for name in rooms():
        yield _line(f"{name}/", name)


def _line(shown: str, name: str) -> str:
    files = modules(name)
    first = next((p for p in files if p.name == "__init__.py"), files[0])
    says = ast.get_docstring(ast.parse(first.read_text())) or ""
    return f"  {shown:14}{_lines([name]):6,}  {says.splitlines()[0]}"


def _lines(names) -> int:
    return sum(len(p.read_text().splitlines()) for name in names for p in modules(name))


if __name__ == "__main__":
    print("\n".join(tree()))
