"""A module imports only modules before it in this list, at its top or lazily.

So training does not know that packing exists, kernels know neither models nor training, and every
module can be read, and tested, from the ground up.
"""

import ast
from pathlib import Path

import pytest

import qsr

NAMES = """
    files image archive _native fake_quantize_triton fake_quantize quantizer bitplanes metrics data
    layers baselines cadyq reference kernels blocks depth backbone official complexity tail
    program_conv program_swin pack checkpoint distill infer zoo evaluate export peers bench
    bench_report distributed runlog train runs bench_train ablation records table1 table1_report
    viewers viz figures course student reproduce _cli_common _cli_use _cli_train _cli_bench
    _cli_reproduce cli
"""
ORDER = NAMES.split()
MODULES = sorted(Path(qsr.__file__).parent.glob("*.py"))
FOREIGN = {"torchvision", "pickle", "basicsr"}  # breaks installs; runs code on load; frozen


def imports(source: str) -> tuple[set[str], set[str]]:
    """(modules of qsr, other top-level packages) that this source imports anywhere."""
    inside, outside = set(), set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom):
            path = (node.module or "").split(".")
            if node.level or path[0] == "qsr":
                path = path if node.level else path[1:]
                named = [alias.name for alias in node.names]
                inside.update([path[0]] if path and path[0] else named)
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


def test_imports_are_found_wherever_they_stand():
    source = "from . import a, b\nfrom .c import x\nimport qsr.d\ndef f():\n    from qsr import e\n"
    assert imports(source + "    import torch.nn\n") == ({"a", "b", "c", "d", "e"}, {"torch"})


def test_every_module_has_its_place_in_the_order():
    names = {path.stem for path in MODULES} - {"__init__", "__main__"}
    assert names <= set(ORDER), "put the new module where it belongs in ORDER"


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.stem)
def test_a_module_imports_only_what_lies_below_it(path):
    inside, outside = imports(path.read_text())
    assert not outside & FOREIGN
    if path.stem in ORDER:
        below = {*ORDER[: ORDER.index(path.stem)], "__version__"}  # a constant, no module
        above = sorted(inside - below)
        assert not above, f"{path.name} imports {', '.join(above)}, which lie above it"
