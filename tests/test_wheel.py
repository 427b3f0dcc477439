"""What pip installs holds all that a clone has: every module, the models, the pictures."""

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """The wheel, unpacked; built where torch cannot be imported, so nothing is compiled."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"  # a copy: what setuptools leaves behind would be in later wheels
    shutil.copytree(ROOT / "qsr", source / "qsr", ignore=shutil.ignore_patterns("*.so"))
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    (folder / "torch.py").write_text("raise ImportError('not here')\n")
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-index"]
    command += ["--no-build-isolation", "--wheel-dir", folder, source]
    built = subprocess.run(
        command,
        env={**os.environ, "PYTHONPATH": str(folder)},
        cwd=folder,
        capture_output=True,
        text=True,
    )
    assert built.returncode == 0, built.stderr
    with zipfile.ZipFile(next(folder.glob("*.whl"))) as archive:
        archive.extractall(folder / "site")
    return folder / "site"


def test_the_wheel_has_every_file_of_the_package(wheel):
    ignored = {"__pycache__", ".so"}

    def files(root: Path) -> set[str]:
        found = (p.relative_to(root) for p in (root / "qsr").rglob("*") if p.is_file())
        return {str(p) for p in found if not ignored & {p.parent.name, p.suffix}}

    assert files(wheel) == files(ROOT)


def test_every_module_of_the_wheel_can_be_imported(wheel):
    names = [".".join(p.relative_to(wheel).with_suffix("").parts) for p in wheel.rglob("*.py")]
    names = [n for n in names if not n.endswith(("__main__", "fused_triton"))]
    source = (
        f"import importlib, qsr\nfor name in {names!r}:\n    importlib.import_module(name)\n"
        f"assert qsr.__file__.startswith({str(wheel)!r}), qsr.__file__"
    )
    env = {**os.environ, "PYTHONPATH": str(wheel)}
    done = subprocess.run([sys.executable, "-c", source], env=env, cwd=wheel, capture_output=True)
    assert done.returncode == 0, done.stderr.decode()
