"""The one loader of the native code, and the one place that says how to build it.

Three ways, tried in this order; `QSR_NATIVE` (auto, aot, jit, off, require) narrows them:

    aot        the library that was compiled when qsr was installed
    jit        the same sources, compiled once into the user's cache when first needed
    reference  no native code: the slow definition in PyTorch, with a warning that says why

Nothing is compiled at import. setup.py loads this file by its path, before qsr or torch need be
there, so it imports neither at its top.

A build happens in a fresh folder under a lock that the kernel frees when its holder dies, and is
renamed into place: a killed build or two at once do no harm. What lies in the cache is loaded only
if it is whole and nobody else can have put it there. (torch's own loader waits for ever on the lock
file of a killed build, loads what it finds, and cannot build under a path with a blank.)
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import importlib.util
import json
import os
import re
import shlex
import shutil
import stat
import subprocess
import sys
import sysconfig
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

PACKAGE = Path(__file__).resolve().parents[1]  # qsr/
# Where a wheel has the C++ sources, or else a clone.
CSRC = PACKAGE / "csrc" if (PACKAGE / "csrc").is_dir() else PACKAGE.parent / "csrc"
OLDEST_GLIBC = "torch/oldest_glibc.cpp"  # part of both libraries
OPS_SOURCES = (
    "network/conv_winograd_vnni.cpp",
    "network/conv_direct_vnni.cpp",
    "network/conv_winograd_avx2.cpp",
    "network/conv_direct_avx2.cpp",
    "network/conv_portable.cpp",
    "network/maps_avx512.cpp",
    "network/maps_avx2.cpp",
    "network/maps_portable.cpp",
    "conv2d/bytes.cpp",
    "conv2d/table.cpp",
    "conv2d/vpopcnt.cpp",
    "conv2d/scalar.cpp",
    "conv2d/float.cpp",
    "conv2d/quantize_pack.cpp",
    "conv2d/pack.cpp",
    "bench/ceiling.cpp",
    "dispatch.cpp",
    "network/tail_avx512.cpp",
    "network/tail_avx2.cpp",
    "network/tail_portable.cpp",
    "torch/ops.cpp",
    "torch/ops_layer.cpp",
    "torch/ops_network.cpp",
    "network/executor.cpp",
    "torch/ops_plan.cpp",
    "train/fake_quantize.cpp",
    "torch/ops_train.cpp",
    "train/swin_step_bf16.cpp",
    "train/swin_step_avx2.cpp",
    "train/swin_step_portable.cpp",
    "torch/ops_swin_step.cpp",
    "network/swin_vnni.cpp",
    "network/swin_avx2.cpp",
    "network/swin_portable.cpp",
    "torch/ops_swin.cpp",
    OLDEST_GLIBC,
)
BIND_SOURCES = ("torch/bind.cpp", OLDEST_GLIBC)
CUDA_SOURCES = (
    "cuda/conv2d.cu",
    "cuda/linear.cu",
    "cuda/attention.cu",
    "cuda/imma.cu",
    "torch/ops_cuda.cpp",
)
TORCH_TARGET = "-DTORCH_TARGET_VERSION=0x020a000000000000"  # stable ABI of torch 2.10
# -ffp-contract=off: a * b + c must round twice, as the reference does; no -march=native: kernels
# choose their instruction set at run time; -g0: Python's own flags ask for debug information;
# -fno-trapping-math: nobody reads the exception flags, and with them gcc 12 makes no AVX2 vectors
# of `a > b ? a : b`.
FLAGS = ("-O3", "-g0", "-ffp-contract=off", "-fno-trapping-math", "-fvisibility=hidden")
# -fmad=false is -ffp-contract=off in nvcc's words; the other lets device code call constexpr
# functions.
NVCC_FLAGS = ("-O3", "-fmad=false", "--expt-relaxed-constexpr")
# Operators that write into their arguments and return nothing; programs call them as they are.
IN_PLACE = ("run_imma", "run_plan", "tail")
# What torch.compile and torch.export run to learn of shapes, by the name of an operator
# (`add_fakes`).
FAKES: dict[str, Callable[..., Any]] = dict.fromkeys(IN_PLACE, lambda *arguments, **options: None)
MODES = ("auto", "aot", "jit", "off", "require")
SUMS = "sha256.json"  # of the libraries in a folder of the cache, by their names


@dataclass(frozen=True)
class Status:
    """How the native code was loaded. how: "aot", "jit" or "reference"."""

    how: str
    path: str = ""
    reason: str = ""  # why not something better
    advice: str = ""  # what to do about it
    cuda: str = ""  # path of the CUDA kernels, if there are any

    @property
    def native(self) -> bool:
        return self.how != "reference"


class Processor(Protocol):
    """What csrc/torch/bind.cpp knows of the processor."""

    features: dict[str, bool]  # instruction set extensions, and whether they are there
    threads: int  # that the hardware runs at once


def source_hash() -> str:
    """sha256 (16 hex digits) of all sources and flags; empty where the sources are not there."""
    if not CSRC.is_dir():
        return ""
    digest = hashlib.sha256(" ".join((*FLAGS, *NVCC_FLAGS)).encode())
    for path in sorted(CSRC.rglob("*")):
        if path.suffix in (".h", ".cpp", ".cu"):
            digest.update(str(path.relative_to(CSRC)).encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:16]


def flags() -> list[str]:
    """Compiler flags of both modules, the source hash and QSR_CXXFLAGS among them."""
    return [*FLAGS, *_more_flags(), f"-I{CSRC}", f"-DQSR_SOURCE_HASH={source_hash()}"]


def _more_flags() -> list[str]:
    """Further compiler flags from the environment, for sanitizers and experiments."""
    return shlex.split(os.environ.get("QSR_CXXFLAGS", ""))


def cuda_toolkit() -> str:
    """Where the CUDA toolkit for this torch is; "" without one or without CUDA in torch."""
    import torch
    from torch.utils.cpp_extension import CUDA_HOME

    return CUDA_HOME if torch.version.cuda and CUDA_HOME else ""


@functools.cache
def load() -> Status:
    """Load the native operators, once per process and by one thread; see the module docstring.

    Raises ValueError for an unknown QSR_NATIVE, RuntimeError if it is `require`, `aot` or `jit` and
    that way fails. Otherwise a failure gives the reference and one warning.
    """
    from .once import SETTING_UP  # not at the top: setup.py loads this file without the package

    with SETTING_UP:
        return _load()


@functools.cache  # threads that come into `load` together get here one after the other
def _load() -> Status:
    mode = os.environ.get("QSR_NATIVE") or "auto"
    if mode not in MODES:
        raise ValueError(f"QSR_NATIVE is {mode!r}; it is one of {', '.join(MODES)}.")
    if mode == "off":
        return Status("reference", reason="QSR_NATIVE is off", advice="unset QSR_NATIVE")
    reasons = []
    for how, find in (("aot", _find_aot), ("jit", cached_library)):
        if mode in (how, "auto", "require"):
            try:
                return _open(how, find())
            except Unusable as error:
                reasons.append(f"{how}: {error}")
    reason = "; ".join(reasons)
    advice = "install a C++ compiler (Debian: apt-get install g++), then run `qsr info`"
    if mode != "auto":
        raise RuntimeError(f"QSR_NATIVE is {mode} and the native code is missing ({reason})")
    warnings.warn(
        f"qsr runs without its native code, exact but slow ({reason}); {advice}", stacklevel=3
    )
    return Status("reference", reason=reason, advice=advice)


def rows(op: str, bits: int = 1) -> tuple[str, ...]:
    """Names of the native kernels that run `op` on this processor, best first; () without any.

    op, bits: see `available` of csrc/kernels.h.
    """
    return _rows(op, bits) if load().native else ()


@functools.cache  # of a text that an operator returns, PyTorch leaves a copy on the heap, each time
def _rows(op: str, bits: int) -> tuple[str, ...]:
    import torch

    names = torch.ops.qsr_native.available(op, bits)
    return tuple(names.split(",")) if names else ()


@functools.cache
def facts() -> Processor | None:
    """What qsr._C knows of this processor, or None without native code."""
    from .once import SETTING_UP

    with SETTING_UP:
        return _facts()


@functools.cache
def _facts() -> Processor | None:
    status = load()
    if not status.native:
        return None
    folder = Path(status.path).parent
    names = (f"_C{sysconfig.get_config_var('EXT_SUFFIX')}", "_C.so")  # aot, jit
    path = next((folder / name for name in names if (folder / name).exists()), None)
    if path is None:
        return None
    spec = importlib.util.spec_from_file_location("qsr._C", path)
    assert spec is not None and spec.loader is not None  # ".so" has a loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.processor()


class Unusable(Exception):
    """Why one way to the libraries does not work, in one line."""


def _open(how: str, path: Path) -> Status:
    import torch

    try:
        torch.ops.load_library(path)
    except OSError as error:
        raise Unusable(f"{path} does not load ({str(error).splitlines()[0]})") from error
    if hasattr(os, "register_at_fork"):
        # GNU's OpenMP waits for ever in a child for the threads that only its parent had; PyTorch's
        # own forked workers compute in one thread for that reason too.
        os.register_at_fork(after_in_child=lambda: torch.set_num_threads(1))
    _register(FAKES)
    cuda = next(iter(sorted(path.parent.glob("_cuda*.so"))), None)
    if cuda is not None and torch.version.cuda:
        try:
            torch.ops.load_library(cuda)
        except OSError as error:
            raise Unusable(f"{cuda} does not load ({str(error).splitlines()[0]})") from error
        return Status(how, str(path), cuda=str(cuda))
    return Status(how, str(path))


def add_fakes(**fakes: Callable[..., Any]) -> None:
    """More `FAKES`, of a module that calls operators with results. It may be imported before the
    library is there or after it.
    """
    import torch

    FAKES.update(fakes)
    _register({op: fake for op, fake in fakes.items() if hasattr(torch.ops.qsr_native, op)})


def _register(fakes: dict[str, Callable[..., Any]]) -> None:
    import torch

    for op, fake in fakes.items():
        torch.library.register_fake(f"qsr_native::{op}", fake)


def _find_aot() -> Path:
    """The library compiled at installation, if it was made from the sources that are here."""
    path = next(iter(sorted(PACKAGE.glob("_ops*.so"))), None)
    if path is None:
        raise Unusable("not compiled at installation")
    expected = source_hash()
    if expected and not _is_made_from(path.read_bytes(), expected):
        raise Unusable(f"{path.name} was compiled from other sources; install again")
    return path


def _cache_folder() -> Path:
    chosen = os.environ.get("QSR_CACHE")
    if chosen:
        return Path(chosen)
    base = os.environ.get("XDG_CACHE_HOME")
    try:
        return (Path(base) if base else Path.home() / ".cache") / "qsr"
    except RuntimeError as error:  # HOME is not set, and the system does not know the user
        raise Unusable("there is no home folder for the cache; set QSR_CACHE") from error


def cached_library() -> Path:
    """The operators' library in the user's cache, others beside it; compiled unless it is there.

    Raises Unusable where that cannot be done.
    """
    import filelock
    import torch

    if not CSRC.is_dir():
        raise Unusable("the C++ sources are not there; install again")
    more = shlex.join(_more_flags())
    described = f"{torch.__version__} {sys.implementation.cache_tag} {shlex.join(_compiler())} "
    described += more + cuda_toolkit()
    key = f"{source_hash()}-{hashlib.sha256(described.encode()).hexdigest()[:16]}"
    folder = _cache_folder() / key
    try:
        why = _why_not_to_trust(folder)  # asked without the lock: a cache may be there to read only
        if why:
            folder.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            with filelock.FileLock(folder.parent / f"{key}.lock"):
                if _why_not_to_trust(folder):
                    _compile_into(folder)
                why = _why_not_to_trust(folder)
        if why:
            raise Unusable(f"{why}; set QSR_CACHE to a folder that is yours alone")
    except OSError as error:
        raise Unusable(
            f"the cache {folder.parent} cannot be used ({error.strerror}); set QSR_CACHE"
        ) from error
    return folder / "_ops.so"


def clean_cache() -> tuple[Path, int, int]:
    """Remove what was compiled into the cache -> (the folder, how many builds, how many bytes).

    Nothing else that lies there, and the folder itself if it is empty then. A build that goes on is
    waited for. Raises OSError for a cache that cannot be written to.
    """
    import filelock

    folder, builds, size = _cache_folder(), 0, 0
    for path in sorted(folder.glob("*")) if folder.is_dir() else ():
        key = re.fullmatch(r"([0-9a-f]{16}-[0-9a-f]{16})(\.lock)?", path.name)
        if key is None or path.is_symlink():
            continue
        lock = folder / f"{key[1]}.lock"
        with filelock.FileLock(lock):
            if (build := folder / key[1]).is_dir():
                builds += 1
                size += sum(p.stat().st_size for p in build.rglob("*"))
                shutil.rmtree(build)
        lock.unlink(missing_ok=True)
    for left in folder.glob("tmp????????"):  # of builds that were killed
        shutil.rmtree(left)
    if folder.is_dir() and not any(folder.iterdir()):
        folder.rmdir()
    return folder, builds, size


def _why_not_to_trust(folder: Path) -> str:
    """Why the libraries in `folder` must not be loaded; "" where they can be.

    A library in a cache runs as the user who loads it. So it must be whole (the sums are beside
    it), nobody but that user or root may have been able to put it there, and it must say that it
    was made from the sources that its folder names: sources can change while a compiler reads them.
    """
    try:
        sums = json.loads((folder / SUMS).read_text())
        for path in (folder.parent, folder, *(folder / name for name in sums)):
            about = path.stat()
            if about.st_uid not in (os.getuid(), 0):
                return f"{path} belongs to another user"
            if about.st_mode & 0o002 and not about.st_mode & stat.S_ISVTX:
                return f"{path} can be written by everybody"
        for name, expected in sums.items():
            library = (folder / name).read_bytes()
            if hashlib.sha256(library).hexdigest() != expected:
                return f"{folder / name} is damaged"
            if name == "_ops.so" and not _is_made_from(library, folder.name.partition("-")[0]):
                return f"{folder / name} was compiled from other sources"
    except (OSError, ValueError, AttributeError):
        return f"{folder} is not complete"
    return "" if "_ops.so" in sums else f"{folder} is not complete"


def _is_made_from(library: bytes, sources: str) -> bool:
    """Whether a library says that it was compiled from the sources with this hash."""
    return f"qsr-source-hash:{sources}".encode() in library


def _compile_into(folder: Path) -> None:
    """Build all libraries in a folder beside `folder`, then give it that name."""
    if missing_compiler():
        raise Unusable(missing_compiler())
    print("qsr: building the native core once, about 20 seconds ...", file=sys.stderr, flush=True)
    for left in folder.parent.glob("tmp*"):  # of builds that were killed
        if time.time() - left.stat().st_mtime > 3600:
            shutil.rmtree(left, ignore_errors=True)
    work = Path(tempfile.mkdtemp(prefix="tmp", dir=folder.parent))
    try:
        compile_library(work / "_ops.so", OPS_SOURCES, [TORCH_TARGET])
        with contextlib.suppress(BuildError):  # no Python.h: the kernels work without the facts
            compile_library(work / "_C.so", BIND_SOURCES, [])
        if cuda_toolkit():
            try:
                compile_library(work / "_cuda.so", CUDA_SOURCES, [TORCH_TARGET, "-DUSE_CUDA"])
            except BuildError as error:
                print(
                    f"qsr: the CUDA kernels do not compile ({error}); "
                    "CUDA tensors run on the reference.",
                    file=sys.stderr,
                )
        sums = {
            path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in work.glob("*.so")
        }
        (work / SUMS).write_text(json.dumps(sums))
        if folder.exists():  # not to be trusted, or this build would not be
            folder.rename(work / "before")
        shutil.rmtree(work / "before", ignore_errors=True)
        work.rename(folder)
    except BuildError as error:
        raise Unusable(f"the build failed ({error})") from error
    finally:
        shutil.rmtree(work, ignore_errors=True)


class BuildError(Exception):
    """What the compiler or the linker says is wrong, in one line."""


def compile_library(library: Path, sources: Sequence[str | Path], options: Sequence[str]) -> None:
    """Compile `sources` (paths from csrc), several at a time, and link them into `library`.

    Torch's own loader writes a ninja file in which a blank in a path is a border between paths, so
    that nothing can be built under "My Projects". Here every command is a list, and no shell reads
    it. Raises BuildError.
    """
    from concurrent.futures import ThreadPoolExecutor

    import pybind11
    from torch.utils import cpp_extension

    cuda = any(Path(source).suffix == ".cu" for source in sources)
    device = "cuda" if cuda else "cpu"
    headers = [*cpp_extension.include_paths(device), pybind11.get_include()]
    headers.append(sysconfig.get_paths()["include"])
    shared = ["-std=c++20", *options, *(f"-I{path}" for path in headers)]
    commands = {
        ".cpp": [*_compiler(), "-fPIC", *flags(), *shared],
        ".cu": [
            os.path.join(cuda_toolkit(), "bin", "nvcc"), "-Xcompiler", "-fPIC",
            *(cpp_extension._get_cuda_arch_flags() if cuda else ()),
            *NVCC_FLAGS, f"-I{CSRC}", *shared,
        ],
    }  # fmt: skip
    names = ["c10", "torch_cpu", "torch"]
    if cuda:
        names += ["c10_cuda", "torch_cuda", "cudart"]
    folders = [f"-L{path}" for path in cpp_extension.library_paths(device)]

    with tempfile.TemporaryDirectory(prefix="objects", dir=library.parent) as objects:

        def compile_one(number: int, source: str | Path) -> str:
            made = os.path.join(objects, f"{number}.o")
            command = commands[Path(source).suffix]
            _run([*command, "-c", os.fspath(CSRC / source), "-o", made])
            return made

        with ThreadPoolExecutor(_jobs()) as pool:
            made = list(pool.map(compile_one, range(len(sources)), sources))
        undefined = ["-undefined", "dynamic_lookup"] if sys.platform == "darwin" else []
        libraries = [f"-l{name}" for name in names]
        linker = [*_compiler(), "-shared", *undefined, *_more_flags()]
        _run([*linker, *made, *folders, *libraries, "-o", os.fspath(library)])


def missing_compiler() -> str:
    """In a few words that there is no C++ compiler; "" if there is one."""
    there = shutil.which(_compiler()[0])
    return "" if there else f"no C++ compiler ({shlex.join(_compiler())!r} not found)"


def _compiler() -> list[str]:
    """The C++ compiler as the start of a command; CXX may be "ccache g++", or there and empty."""
    return shlex.split(os.environ.get("CXX", "")) or ["c++"]


def _jobs() -> int:
    """How many compilers run at once: MAX_JOBS, as for torch's extensions, or one a processor."""
    chosen = os.environ.get("MAX_JOBS", "")
    return max(1, int(chosen) if chosen.isdecimal() else os.cpu_count() or 1)


def _run(command: Sequence[str]) -> None:
    """Run a compiler or linker. Raises BuildError with the line that says what is wrong."""
    try:
        paths = {"PATH": os.environ.get("PATH") or os.defpath}  # gcc looks there for its parts
        done = subprocess.run(
            command, env={**os.environ, **paths}, capture_output=True, text=True, errors="replace"
        )
    except OSError as error:
        raise BuildError(f"{command[0]} does not start ({error.strerror})") from error
    if done.returncode:
        lines = done.stderr.splitlines() or [f"{command[0]} ended with {done.returncode}"]
        raise BuildError(
            next((line for line in lines if "error" in line.lower()), lines[0]).strip()
        )
