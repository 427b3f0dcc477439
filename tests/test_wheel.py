"""What pip installs: all that a clone has, and where it was compiled before, without a compiler."""

import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest
from PIL import Image

from qsr.images import data
from qsr.integer import kernels
from qsr.system import native

ROOT = Path(__file__).parent.parent
BUILD = ("setup.py", "pyproject.toml", "MANIFEST.in", "README.md", "CHANGELOG.md", "CITATION.cff")


def run(*command, cwd, **environment):
    """Run a command with these environment variables changed -> its output; it must not fail."""
    kept = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "QSR_NATIVE")}
    done = subprocess.run(
        list(map(str, command)),
        env={**kept, **environment},
        cwd=cwd,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def build(source: Path, folder: Path, **environment) -> Path:
    """The wheel of a folder with setup.py."""
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-index"]
    command += ["--no-build-isolation", "--wheel-dir", folder, source]
    run(*command, cwd=source.parent, **environment)
    return next(folder.glob("*.whl"))


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    """A clone without what builds leave behind: it would be in later wheels."""
    folder = tmp_path_factory.mktemp("clone")
    shutil.copytree(ROOT / "qsr", folder / "qsr", ignore=shutil.ignore_patterns("*.so"))
    shutil.copytree(ROOT / "csrc", folder / "csrc")
    for name in (*BUILD, "LICENSE"):
        shutil.copy(ROOT / name, folder)
    return folder


@pytest.fixture(scope="module")
def wheel(source, tmp_path_factory) -> Path:
    """The wheel, unpacked; built as in an isolated build, where no torch is, so without a core."""
    folder = tmp_path_factory.mktemp("wheel")
    (folder / "torch.py").write_text("raise ImportError('not here')\n")
    made = build(source, folder, PYTHONPATH=str(folder))
    assert made.name.endswith("-py3-none-any.whl")
    with zipfile.ZipFile(made) as archive:
        archive.extractall(folder / "site")
    return folder / "site"


@pytest.fixture(scope="module")
def compiled(source, tmp_path_factory) -> Path:
    """The wheel with the core, which was compiled before: `make test` begins with that."""
    if not native.load().native:
        pytest.skip("no native code here")
    return build(source, tmp_path_factory.mktemp("compiled"), QSR_NATIVE="aot")


def test_python_started_beside_a_clone_named_qsr_finds_the_package_and_not_the_clone(
    source, tmp_path
):
    clone, editable = tmp_path / "qsr", tmp_path / "editable"
    clone.symlink_to(source)
    editable.mkdir()
    make = f"from setuptools import build_meta; build_meta.build_editable({str(editable)!r})"
    run(sys.executable, "-c", make, cwd=clone, QSR_NATIVE="jit")
    with zipfile.ZipFile(next(editable.glob("*.whl"))) as archive:
        archive.extractall(editable)
    # As in site-packages: its .pth files are obeyed, and it is searched after the current folder.
    # This Python's own are not (-S): qsr may be installed there too.
    ask = f"import site; site.addsitedir({str(editable)!r}); import qsr; print(qsr.__file__)"
    found = run(sys.executable, "-S", "-c", ask, cwd=tmp_path).strip()
    assert Path(found).resolve() == (source / "qsr" / "__init__.py").resolve()


def environment(folder: Path, wheel: Path) -> Path:
    """A new environment with this wheel, which sees what is installed here -> its programs."""
    venv.create(folder, with_pip=False, symlinks=True)
    site = next(folder.glob("lib/python*/site-packages"))
    (site / "see.pth").write_text(sysconfig.get_path("purelib") + "\n")
    pip = [sys.executable, "-m", "pip", "--python", folder / "bin" / "python", "install"]
    run(*pip, "--quiet", "--no-deps", "--no-index", wheel, cwd=folder)
    return folder / "bin"


@pytest.fixture(scope="module")
def programs(compiled, tmp_path_factory) -> Path:
    return environment(tmp_path_factory.mktemp("environment") / "of mine", compiled)


def files(root: Path, where: str) -> set[str]:
    ignored = {"__pycache__", ".so"}
    found = (p.relative_to(root) for p in (root / where).rglob("*") if p.is_file())
    return {str(p) for p in found if not ignored & {p.parent.name, p.suffix}}


def test_the_wheel_has_every_file_of_the_package_and_the_sources_of_the_core(wheel):
    sources = {f"qsr/{name}" for name in files(ROOT, "csrc")}
    assert files(wheel, "qsr") == files(ROOT, "qsr") | sources


def test_every_module_of_the_wheel_can_be_imported(wheel):
    names = [".".join(p.relative_to(wheel).with_suffix("").parts) for p in wheel.rglob("*.py")]
    names = [n for n in names if not n.endswith(("__main__", "fused_triton"))]
    code = (
        f"import importlib, qsr\nfor name in {names!r}:\n    importlib.import_module(name)\n"
        f"assert qsr.__file__.startswith({str(wheel)!r}), qsr.__file__"
    )
    run(sys.executable, "-c", code, cwd=wheel, PYTHONPATH=str(wheel))


def test_the_sources_in_a_wheel_are_compiled_as_those_of_a_clone(wheel):
    code = "from qsr.system import native; print(native.source_hash(), native.CSRC)"
    said = run(sys.executable, "-c", code, cwd=wheel, PYTHONPATH=str(wheel))
    assert said == f"{native.source_hash()} {wheel / 'qsr' / 'csrc'}\n"


def test_a_wheel_made_from_the_sdist_is_the_same(wheel, source, tmp_path):
    code = "from setuptools import build_meta; build_meta.build_sdist('made')"
    shutil.copytree(source, tmp_path / "clone")
    run(sys.executable, "-c", code, cwd=tmp_path / "clone")
    shutil.unpack_archive(next((tmp_path / "clone/made").glob("quantsr-*.tar.gz")), tmp_path)
    made = build(next(tmp_path.glob("quantsr-*")), tmp_path / "wheel", QSR_NATIVE="jit")
    with zipfile.ZipFile(made) as archive:
        assert {n for n in archive.namelist() if n.startswith("qsr/")} == files(wheel, "qsr")


def test_with_a_core_there_is_one_wheel_for_every_python_of_this_machine(compiled):
    assert re.fullmatch(r"quantsr-[\d.]+-py3-none-\w+\.whl", compiled.name)
    assert not compiled.name.endswith("-any.whl")
    with zipfile.ZipFile(compiled) as archive:
        libraries = {n for n in archive.namelist() if n.endswith(".so")}
    assert {"qsr/_ops.so", f"qsr/_C{sysconfig.get_config_var('EXT_SUFFIX')}"} <= libraries


def test_the_core_asks_for_nothing_newer_than_what_pytorch_asks_for(compiled, tmp_path):
    # manylinux_2_28, which `make wheel` has auditwheel check: glibc 2.28 and gcc 8's libstdc++.
    if shutil.which("objdump") is None or sys.platform != "linux":
        pytest.skip("needs objdump")
    allowed = {"GLIBC": (2, 28), "GLIBCXX": (3, 4, 24), "CXXABI": (1, 3, 11)}
    with zipfile.ZipFile(compiled) as archive:
        archive.extractall(tmp_path)
    for library in tmp_path.glob("qsr/*.so"):
        symbols = run("objdump", "-T", library, cwd=tmp_path)
        asked = re.findall(r"\((GLIBC|GLIBCXX|CXXABI)_([\d.]+)\)", symbols)
        assert asked
        for name, version in asked:
            assert tuple(map(int, version.split("."))) <= allowed[name], (library.name, version)


def test_a_wheel_enlarges_a_picture_where_no_compiler_is(programs, tmp_path):
    bare = {"PATH": str(programs), "QSR_NATIVE": "require", "QSR_CACHE": str(tmp_path / "cache")}
    assert not any(shutil.which(name, path=bare["PATH"]) for name in ("c++", "g++", "cc", "ninja"))
    about = json.loads(run("qsr", "info", "--json", cwd=tmp_path, **bare))
    assert about["native"] == "aot" and about["library"].startswith(str(programs.parent))
    assert about["cpu"] and about["kernels"]["conv2d"] == list(kernels.available("conv2d"))
    Image.open(data.PICTURES / "coffee.png").crop((40, 40, 88, 72)).save(tmp_path / "small.png")
    run("qsr", "upscale", "small.png", "large.png", cwd=tmp_path, **bare)
    here = [sys.executable, "-m", "qsr", "upscale", "small.png", "here.png"]
    run(*here, cwd=tmp_path, PYTHONPATH=str(ROOT))
    assert (tmp_path / "large.png").read_bytes() == (tmp_path / "here.png").read_bytes()
    assert not (tmp_path / "cache").exists()


def test_another_python_goes_without_the_facts_that_were_compiled_for_this_one(programs, tmp_path):
    (facts,) = programs.parent.glob("lib/python*/site-packages/qsr/_C.*.so")
    facts.rename(tmp_path / "away")
    try:
        about = json.loads(run(programs / "qsr", "info", "--json", cwd=tmp_path))
    finally:
        (tmp_path / "away").rename(facts)
    assert about["native"] == "aot" and about["cpu"] == []


def test_uninstalling_leaves_nothing_behind(compiled, tmp_path):
    programs = environment(tmp_path / "environment", compiled)
    run(programs / "python", "-c", "import qsr.cli", cwd=tmp_path)  # which compiles modules
    pip = [sys.executable, "-m", "pip", "--python", programs / "python"]
    run(*pip, "uninstall", "--yes", "--quiet", "quantsr", cwd=tmp_path)
    site = next((tmp_path / "environment").glob("lib/python*/site-packages"))
    assert [p.name for p in site.iterdir()] == ["see.pth"]
    assert not (programs / "qsr").exists()
