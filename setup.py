"""Builds the native core ahead of time where torch can be imported; the rest: pyproject.toml.

    pip install -e .                        isolated: no torch here, so no build; first use builds
    pip install --no-build-isolation -e .   with the torch of this environment: built now, unless
                                            QSR_NATIVE=jit asks for the build on first use

Torch is never a build requirement: an isolated build would fetch a second torch, possibly another
one than the one qsr runs with. Sources and flags are told once, in qsr/system/native.py, which also
builds on first use.
"""

import importlib.util
import os
import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext


def load_build_facts():
    """The module qsr/system/native.py without the package around it, which would import torch."""
    path = Path(__file__).parent / "qsr" / "system" / "native.py"
    spec = importlib.util.spec_from_file_location("qsr_native_build", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up by name
    spec.loader.exec_module(module)
    return module


def native_extensions() -> dict:
    """Arguments for setup(): the libraries, or nothing where torch or pybind11 is missing."""
    if os.environ.get("QSR_NATIVE") == "jit":
        return {}
    try:
        import pybind11  # noqa: F401
        import torch  # noqa: F401
    except ImportError as error:
        print(f"qsr: {error}; the native core is built on first use.", file=sys.stderr)
        return {}
    build = load_build_facts()
    options = {"qsr._ops": [build.TORCH_TARGET], "qsr._C": []}
    extensions = [
        # No Python API inside: one file for all Python versions.
        Extension("qsr._ops", list(build.OPS_SOURCES), py_limited_api=True),
        Extension("qsr._C", list(build.BIND_SOURCES)),
    ]
    if build.cuda_toolkit():
        options["qsr._cuda"] = [build.TORCH_TARGET, "-DUSE_CUDA"]
        extensions.append(Extension("qsr._cuda", list(build.CUDA_SOURCES), py_limited_api=True))

    class BuildCore(build_ext):
        def build_extension(self, extension):
            library = Path(self.get_ext_fullpath(extension.name)).absolute()
            library.parent.mkdir(parents=True, exist_ok=True)
            build.compile_library(library, extension.sources, options[extension.name])

    return {"ext_modules": extensions, "cmdclass": {"build_ext": BuildCore}}


setup(**native_extensions())
