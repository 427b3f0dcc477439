"""Builds the native core ahead of time where torch can be imported; the rest: pyproject.toml.

    pip install -e .                        isolated: no torch here, so no build; first use builds
    pip install --no-build-isolation -e .   with the torch of this environment: built now

Torch is never a build requirement: an isolated build would fetch a second torch, possibly another
one than the one qsr runs with. Sources and flags are told once, in qsr/system/native.py, which also
builds on first use.
"""

import importlib.util
import sys
from pathlib import Path

from setuptools import Extension, setup


def load_build_facts():
    """The module qsr/system/native.py without the package around it, which would import torch."""
    path = Path(__file__).parent / "qsr" / "system" / "native.py"
    spec = importlib.util.spec_from_file_location("qsr_native_build", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up by name
    spec.loader.exec_module(module)
    return module


def native_extensions() -> dict:
    """Arguments for setup(): both libraries, or nothing where torch or pybind11 is missing."""
    try:
        import pybind11
        from torch.utils.cpp_extension import BuildExtension, CppExtension, CUDAExtension
    except ImportError as error:
        print(f"qsr: {error}; the native core is built on first use.", file=sys.stderr)
        return {}
    build = load_build_facts()
    operators = CppExtension(
        "qsr._ops",
        [f"csrc/{source}" for source in build.OPS_SOURCES],
        extra_compile_args=[*build.flags(), build.TORCH_TARGET],
        py_limited_api=True,  # no Python API inside: one file for all Python versions
    )
    facts = Extension(
        "qsr._C",
        [f"csrc/{source}" for source in build.BIND_SOURCES],
        include_dirs=[pybind11.get_include()],
        extra_compile_args=build.flags(),
        language="c++",
    )
    extensions = [operators, facts]
    if build.cuda_toolkit():
        cuda = CUDAExtension(
            "qsr._cuda",
            [f"csrc/{source}" for source in build.CUDA_SOURCES],
            extra_compile_args={
                "cxx": [*build.flags(), build.TORCH_TARGET, "-DUSE_CUDA"],
                "nvcc": [*build.NVCC_FLAGS, f"-I{build.CSRC}", build.TORCH_TARGET, "-DUSE_CUDA"],
            },
            py_limited_api=True,
        )
        extensions.append(cuda)
    return {"ext_modules": extensions, "cmdclass": {"build_ext": BuildExtension}}


setup(**native_extensions())
