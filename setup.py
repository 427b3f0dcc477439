"""What pyproject.toml cannot say: C++ sources go into the package, and the compiled core with them.

    pip install .                         isolated: no torch, so sources alone; first use builds
    pip install --no-build-isolation .    with the torch of this environment: built now, unless
                                          QSR_NATIVE=jit asks for the build on first use
    make wheel                            QSR_NATIVE=aot: a wheel with the core, or an error

Torch is never a build requirement: an isolated build would fetch a second torch, possibly another
one than the one qsr runs with. Sources and flags are told once, in qsr/system/native.py, in whose
cache everything is compiled, so nothing is compiled twice.

One wheel serves every CPython: the operators know no Python. `qsr._C`, facts about the processor,
is compiled for this Python and those that QSR_PYTHONS names; another Python does without it.
"""

import functools
import importlib.util
import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

from setuptools import Distribution, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_py import build_py

ASK = (
    "import sysconfig as s; print(s.get_path('include'), s.get_config_var('EXT_SUFFIX'), sep='\\n')"
)


@functools.cache
def native():
    """The module qsr/system/native.py without the package around it, which would import torch."""
    path = Path(__file__).parent / "qsr" / "system" / "native.py"
    spec = importlib.util.spec_from_file_location("qsr_native_build", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up by name
    spec.loader.exec_module(module)
    return module


@functools.cache
def compiles_core() -> bool:
    """Whether the core is compiled now; where it should be and cannot, one line says why."""
    mode = os.environ.get("QSR_NATIVE", "auto")
    if mode in ("jit", "off"):
        return False
    try:
        import filelock  # noqa: F401
        import pybind11  # noqa: F401
        import torch  # noqa: F401

        missing = native().missing_compiler()
    except ImportError as error:
        missing = str(error)
    if missing and mode == "aot":
        sys.exit(f"qsr: QSR_NATIVE is aot and the native core cannot be compiled ({missing})")
    if missing:
        print(f"qsr: {missing}; the native core is built on first use.", file=sys.stderr)
    return not missing


class Package(Distribution):
    """A package for one kind of machine if the core is in it."""

    def has_ext_modules(self):
        return compiles_core()


class BuildPackage(build_py):
    """Copies the modules, the C++ sources, and the core if it can be compiled."""

    def run(self):
        if not self.editable_mode:  # a module that was removed since would be in the wheel
            shutil.rmtree(self.build_lib, ignore_errors=True)
        super().run()
        package = Path(self.build_lib, "qsr")
        core = native().cached_library().parent if compiles_core() else None
        if self.editable_mode:  # the clone has the sources, and the cache has the core
            return
        shutil.copytree(native().CSRC, package / "csrc", dirs_exist_ok=True)
        if core is not None:
            for library in core.glob("*.so"):
                suffix = sysconfig.get_config_var("EXT_SUFFIX") if library.stem == "_C" else ".so"
                shutil.copy(library, package / f"{library.stem}{suffix}")
            for python in os.environ.get("QSR_PYTHONS", "").split():
                compile_for(python, package)


def compile_for(python: str, package: Path) -> None:
    """Compile `qsr._C` for another CPython."""
    said = subprocess.run([python, "-c", ASK], capture_output=True, text=True)
    if said.returncode:
        sys.exit(f"qsr: {python!r} of QSR_PYTHONS does not run; name one by its path.")
    include, suffix = said.stdout.splitlines()
    library = package / f"_C{suffix}"
    native().compile_library(library, native().BIND_SOURCES, [f"-I{include}"])


class OneForEveryPython(bdist_wheel):
    """A wheel with the core fits one kind of machine and any CPython."""

    def get_tag(self):
        python, abi, platform = super().get_tag()
        return (python, abi, platform) if self.root_is_pure else ("py3", "none", platform)


setup(distclass=Package, cmdclass={"build_py": BuildPackage, "bdist_wheel": OneForEveryPython})
