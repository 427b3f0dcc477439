"""Every import goes down the levels of `qsr.system.layout`, at the top of a module or in it."""

import ast
import re
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

import qsr
from qsr.system.layout import LEVELS, NEVER, PACKAGE, core, modules, rooms, tree

ORDER = [name for level in LEVELS for name in level]
ROOT = PACKAGE.parent
ENTRIES = {"__init__", "__main__"}  # which gather what is below
OUTER = {"paper", "bench", "course", "cli", "export", "baselines"}  # what the core never imports
FOREIGN = {"torchvision", "pickle", "basicsr"}  # breaks installs; runs code on load; frozen


def imports(source: str, room: str = "") -> tuple[set[str], set[str]]:
    """(parts of qsr, other top-level packages) that this source imports anywhere."""
    inside, outside = set(), set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom):
            path = (node.module or "").split(".")
            if node.level:
                inside |= {room} if room and node.level == 1 else _first(path, node)
            elif path[0] == "qsr":
                inside |= _first(path[1:], node)
            else:
                outside.add(path[0])
        elif isinstance(node, ast.Import):
            for alias in node.names:
                top, *rest = alias.name.split(".")
                if top == "qsr":
                    inside.update(rest[:1] or ["__init__"])
                else:
                    outside.add(top)
    return inside, outside


def _first(path: list[str], node: ast.ImportFrom) -> set[str]:
    return {path[0]} if path and path[0] else {alias.name for alias in node.names}


def test_imports_are_found_wherever_they_stand():
    source = "from . import a, b\nfrom .c import x\nimport qsr.d\ndef f():\n    from qsr import e\n"
    assert imports(source + "    import torch.nn\n") == ({"a", "b", "c", "d", "e"}, {"torch"})
    source = "from . import a\nfrom .b import c\nfrom .. import d\nfrom ..e.f import g\n"
    assert imports(source, room="room")[0] == {"room", "d", "e"}


def test_the_map_names_what_is_there_and_nothing_else():
    there = {p.stem for p in PACKAGE.glob("*.py")} | {p.parent.name for p in PACKAGE.glob("*/*.py")}
    assert there - ENTRIES == set(ORDER)
    assert len(ORDER) == len(set(ORDER)) == len(core()) + len(rooms())


@pytest.mark.parametrize("name", ORDER)
def test_a_part_imports_only_parts_below_it(name):
    room = name if name in rooms() else ""
    below = {*ORDER[: ORDER.index(name)], room} - {""}
    for path in modules(name):
        inside, outside = imports(path.read_text(), room)
        assert not outside & FOREIGN, path
        assert inside <= below, f"{path} imports {sorted(inside - below)}"
        assert not inside & set(NEVER.get(name, ())), path


@pytest.mark.parametrize("name", core())
def test_the_core_imports_nothing_that_stands_around_it(name):
    assert not imports(modules(name)[0].read_text())[0] & OUTER


def test_kernels_never_import_networks():
    for path in modules("integer"):
        if path.stem in ("kernels", "bitplanes", "reference"):
            assert not imports(path.read_text(), "integer")[0] & {"config", "backbone", "train"}


def test_the_readme_shows_the_map():
    shown = (ROOT / "README.md").read_text().split("<!-- layout -->")[1].split("<!-- /layout")[0]
    assert textwrap.dedent(shown).strip().splitlines() == list(tree())


def test_the_page_for_contributors_shows_the_levels():
    rows = re.findall(r"^\| (`.*?) \|", (ROOT / "CONTRIBUTING.md").read_text(), re.MULTILINE)
    levels = [tuple(re.findall(r"`(\w+)`", row)) for row in rows]
    assert [level for level in levels if set(level) & set(ORDER)] == list(LEVELS)


# What `import qsr` gives --------------------------------------------------------------------------


def test_public_names_are_the_same_for_python_and_for_type_checkers():
    tree = ast.parse((PACKAGE / "__init__.py").read_text())
    (checking,) = [n for n in tree.body if isinstance(n, ast.If)]
    named = {f"{n.module}.{a.name}": a.asname for n in checking.body for a in n.names}
    lazy = {f"{room}.{name}": name for room, names in qsr.NAMES.items() for name in names.split()}
    assert named == lazy | {place: name for name, place in qsr.MODULES.items()}


@pytest.mark.parametrize("name", [n for names in qsr.NAMES.values() for n in names.split()])
def test_each_public_name_is_there_when_asked_for(name):
    assert getattr(qsr, name).__name__ == name
    assert name in dir(qsr)


def test_public_modules_have_one_copy_by_both_names():
    source = (
        "import sys, qsr.kernels\nfrom qsr.data import Patches\nfrom qsr import reference\n"
        "assert qsr.kernels is sys.modules['qsr.integer.kernels'] is sys.modules['qsr.kernels']\n"
        "assert Patches is qsr.Patches and reference.__name__ == 'qsr.integer.reference'"
    )
    assert subprocess.run([sys.executable, "-c", source], cwd=ROOT).returncode == 0


@pytest.mark.parametrize("line", ["import qsr", "import qsr; qsr.nothing"])
def test_importing_qsr_does_not_wait_for_torch(line):
    source = f"import sys\ntry:\n    {line}\nexcept AttributeError:\n    pass\n"
    source += "sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", source], cwd=ROOT).returncode == 0


def test_a_name_that_is_not_there_is_an_attribute_error():
    with pytest.raises(AttributeError, match="'qsr' has no attribute 'nothing'"):
        qsr.nothing  # noqa: B018


def test_every_module_can_be_imported_alone():
    names = [".".join(p.relative_to(ROOT).with_suffix("").parts) for p in PACKAGE.rglob("*.py")]
    names = [n for n in names if not n.endswith(("__main__", "__init__", "fused_triton"))]
    source = f"import importlib\nfor name in {names!r}:\n    importlib.import_module(name)"
    assert subprocess.run([sys.executable, "-c", source], cwd=ROOT).returncode == 0
    assert Path(qsr.__file__).parent == PACKAGE
