"""The loader: it finds or builds the native code, or says in one line why not.

Each test runs a fresh Python, because a process loads the native code once.
"""

import hashlib
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from qsr import collapse, infer, quantizer
from qsr.integer import bitplanes, kernels, lifetimes, packed_swin, program, reference, tail
from qsr.system import native

ROOT = native.PACKAGE.parent

# A small convolution by whatever is there, compared with the reference.
SCRIPT = """
import torch
from qsr import kernels
from qsr.system import native
a = torch.randint(0, 16, (1, 5, 6, 70), dtype=torch.uint8)
w = torch.randint(-8, 8, (3, 3, 3, 70), dtype=torch.int8)
a, w = kernels.pack_codes(a, bits=4, signed=False), kernels.pack_codes(w, bits=4, signed=True)
same = torch.equal(kernels.conv2d(a, w, 1, 1), kernels.conv2d(a, w, 1, 1, "reference"))
print(native.load().how, same, ",".join(kernels.available()))
"""


def environment(root=ROOT, **changes):
    kept = {k: v for k, v in os.environ.items() if k not in ("QSR_NATIVE", "QSR_CACHE", "CXX")}
    return {**kept, "PYTHONPATH": str(root), **{k: str(v) for k, v in changes.items()}}


def run(code=SCRIPT, root=ROOT, **changes):
    """A Python of its own that runs `code`, with these environment variables changed."""
    return subprocess.run(
        [sys.executable, "-c", code],
        env=environment(root, **changes),
        cwd=root,
        capture_output=True,
        text=True,
        timeout=300,
    )


def test_off_is_the_reference_and_the_status_says_why():
    done = run(SCRIPT + "print(native.load().reason)", QSR_NATIVE="off")
    assert done.stdout.splitlines() == ["reference True reference", "QSR_NATIVE is off"]
    assert done.stderr == ""  # the user asked for it


def test_nothing_is_compiled_or_loaded_at_import():
    code = (
        "import qsr.kernels; from qsr.system import native; print(native.load.cache_info().misses)"
    )
    done = run(code, QSR_NATIVE="require", CXX="/nonexistent/c++")
    assert done.stdout.strip() == "0", done.stderr


@pytest.mark.parametrize(
    ("compiler", "reason"),
    [("/nonexistent/c++", "no C++ compiler ('/nonexistent/c++' not found)"), ("false", "failed")],
)
def test_without_a_working_compiler_there_is_one_warning_and_the_right_result(
    compiler, reason, tmp_path, package_copy
):
    done = run(root=package_copy, CXX=compiler, QSR_CACHE=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "reference True reference"
    warnings = [line for line in done.stderr.splitlines() if "UserWarning" in line]
    assert len(warnings) == 1, done.stderr
    assert reason in warnings[0]
    assert "apt-get install g++" in warnings[0]
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("mode", ["require", "jit", "aot"])
def test_a_way_that_is_asked_for_by_name_raises_when_it_fails(mode, tmp_path, package_copy):
    done = run(root=package_copy, CXX="/nonexistent/c++", QSR_CACHE=tmp_path, QSR_NATIVE=mode)
    assert done.returncode == 1
    assert f"RuntimeError: QSR_NATIVE is {mode}" in done.stderr.splitlines()[-1]


def test_an_unknown_mode_is_refused():
    done = run(QSR_NATIVE="fast")
    assert "ValueError: QSR_NATIVE is 'fast'" in done.stderr.splitlines()[-1]


def test_an_unusable_cache_folder_is_said_and_survived(tmp_path, package_copy):
    in_the_way = tmp_path / "file"
    in_the_way.write_text("")
    done = run(root=package_copy, QSR_CACHE=in_the_way / "cache")
    assert done.stdout.splitlines()[-1] == "reference True reference", done.stderr
    assert "set QSR_CACHE" in done.stderr


def test_a_build_of_other_sources_is_not_used(package_copy):
    # The loader must not even open it: these bytes are no library.
    (package_copy / "qsr" / "_ops.abi3.so").write_bytes(b"qsr-source-hash:0123456789abcdef")
    done = run(root=package_copy, QSR_NATIVE="aot")
    assert "was compiled from other sources" in done.stderr.splitlines()[-1]


def test_a_changed_source_changes_the_hash(package_copy):
    code = "from qsr.system import native; print(native.source_hash())"
    before = run(code, root=package_copy).stdout
    with (package_copy / "csrc" / "format.h").open("a") as file:
        file.write("\n")
    after = run(code, root=package_copy).stdout
    assert before == f"{native.source_hash()}\n"
    assert re.fullmatch("[0-9a-f]{16}\n", after)
    assert after != before


def test_every_source_is_built():
    listed = {*native.OPS_SOURCES, *native.BIND_SOURCES, *native.CUDA_SOURCES}
    there = [p for p in native.CSRC.rglob("*") if p.suffix in (".cpp", ".cu")]
    assert listed == {p.relative_to(native.CSRC).as_posix() for p in there}


def test_kernels_never_see_torch():
    for path in native.CSRC.rglob("*"):
        if path.suffix in (".cpp", ".h") and path.parent.name != "torch":
            assert "torch/" not in path.read_text(), path.name


def test_the_facts_are_those_of_this_processor():
    if not native.load().native:
        pytest.skip("no native code here")
    facts = native.facts()
    assert facts.threads in {os.cpu_count(), len(os.sched_getaffinity(0))}
    flags = re.search(r"^flags\s*: (.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    if platform.machine() != "x86_64" or flags is None:
        assert facts.features == {}
    else:
        known = {"avx512vnni": "avx512_vnni"}  # what Linux calls it
        flags = flags[1].split()
        assert {"popcnt", "avx2", "avx512vnni"} <= set(facts.features)
        for name, there in facts.features.items():
            assert there is (known.get(name, name) in flags), name


MIRRORED = [  # constants of C++, and the same in Python
    ("format.h", "kFormatVersion", bitplanes.FORMAT_VERSION),
    ("format.h", "kWordBits", bitplanes.WORD_BITS),
    ("kernels.h", "kFloatLanes", kernels.FLOAT_LANES),
    ("network/conv.h", "kMapTile", lifetimes.TILE),
    ("torch/ops_cuda.cpp", "kProgramChannels", program.MAP_CHANNELS),
    ("network/swin.h", "kRowLanes", reference.LANES),
    ("network/tail.h", "kTailRows", infer.TAIL_TILE),
    ("network/tail.h", "kTailClasses", len(collapse.SHOWN)),
    ("network/tail_kernel.h", "kReach", collapse.REACH),
    ("torch/ops_network.cpp", "kTailLanes", tail.OUT_LANES),
    ("torch/ops_swin.cpp", "kNever", packed_swin.NEVER),
    ("torch/ops_train.cpp", "kMinStep", quantizer.MIN_STEP_SIZE),
]


@pytest.mark.parametrize(("file", "name", "value"), MIRRORED, ids=[name for _, name, _ in MIRRORED])
def test_a_number_that_python_repeats_is_that_of_the_sources(file, name, value):
    found = re.findall(rf"\b{name} = ([-+.\w]+?)f?[,;]", (native.CSRC / file).read_text())
    assert [float(number) for number in found] == [value]


def test_codes_have_as_many_bits_as_the_kernels_know():
    most = int(re.search(r"kMaxBits = (\d+)", (native.CSRC / "format.h").read_text())[1])
    assert quantizer.QuantSpec(most).bits == most
    with pytest.raises(ValueError, match=f"`bits` is {most + 1}"):
        quantizer.QuantSpec(most + 1)


# A core of one function builds in two seconds, by the same code as the real one.
SMALL = """
import json, sys
from qsr.system import native
native.OPS_SOURCES, native.BIND_SOURCES = ("small.cpp",), ()
native.FAKES.clear()
status = native.load()
print(json.dumps([status.how, status.path, status.reason]))
"""

SAYS_ITS_SOURCES = r"""
#define QSR_STRING(x) #x
#define QSR_QUOTE(x) QSR_STRING(x)
extern "C" const char hash[] = "qsr-source-hash:" QSR_QUOTE(QSR_SOURCE_HASH);
"""


@pytest.fixture
def small_core(package_copy):
    """A package whose core is quickly built: `small_core(code, **environment)` runs it there."""
    if shutil.which("c++") is None:
        pytest.skip("no C++ compiler here")
    (package_copy / "csrc" / "small.cpp").write_text(SAYS_ITS_SOURCES)
    cache = package_copy.parent / "cache"

    def start(code=SMALL, inside=(), **changes):
        changes = {"QSR_NATIVE": "jit", "QSR_CACHE": cache, **changes}
        known = environment(package_copy, **{k: v for k, v in changes.items() if v is not None})
        for name in [name for name, value in changes.items() if value is None]:
            known.pop(name, None)
        return subprocess.Popen(
            [*inside, sys.executable, "-c", code], env=known, cwd=package_copy, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip

    start.cache = cache
    return start


def loaded(process):
    """(how, path of the library, whether this process built it); the test fails if neither."""
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    how, path, _ = json.loads(out.splitlines()[-1])
    return how, Path(path), "building" in err


def test_a_path_with_blanks_and_quotes_is_a_path(small_core, tmp_path):
    (tmp_path / "clone").rename(tmp_path / "My 'own' \"Project\"")
    root = tmp_path / "My 'own' \"Project\""
    code = (
        f"import os; os.chdir({str(root)!r}); import sys; sys.path.insert(0, os.getcwd())" + SMALL
    )
    (tmp_path / "clone").mkdir()  # where the process starts
    how, path, built = loaded(small_core(code, QSR_CACHE=root / "a cache"))
    assert (how, path.parent.parent, built) == ("jit", root / "a cache", True)


@pytest.mark.parametrize(
    "changes",
    [{"CXX": ""}, {"PATH": None}, {"CXX": "env c++"}, {"MAX_JOBS": "many"}],
    ids=["CXX is empty", "PATH is not set", "CXX is two words", "MAX_JOBS is no number"],
)
def test_an_odd_environment_builds_all_the_same(small_core, changes):
    how, _, built = loaded(small_core(**changes))
    assert (how, built) == ("jit", True)


def test_temporary_files_need_not_be_executable(small_core, tmp_path):
    mount = f"mount -t tmpfs -o noexec tmpfs {tmp_path / 'noexec'} && "
    (tmp_path / "noexec").mkdir()
    inside = ["unshare", "--map-root-user", "--mount", "sh", "-c", mount + 'exec "$@"', "sh"]
    if subprocess.run([*inside, "true"], capture_output=True).returncode:
        pytest.skip("no file system can be mounted here")
    assert loaded(small_core(inside=inside, TMPDIR=tmp_path / "noexec"))[0] == "jit"


def test_a_user_without_a_home_is_told_to_name_a_cache(small_core):
    unknown = "import pwd\ndef nobody(uid): raise KeyError(uid)\npwd.getpwuid = nobody\n" + SMALL
    out, err = small_core(
        unknown, HOME=None, XDG_CACHE_HOME=None, QSR_CACHE=None, QSR_NATIVE="auto"
    ).communicate(timeout=100)
    assert json.loads(out)[0] == "reference"
    assert "there is no home folder for the cache; set QSR_CACHE" in err
    assert "Traceback" not in err


def test_a_cache_that_holds_the_library_is_only_read(small_core):
    loaded(small_core())
    for lock in small_core.cache.glob("*.lock"):
        lock.unlink()
    before = {p: p.stat().st_mtime_ns for p in small_core.cache.rglob("*")}
    how, _, built = loaded(small_core())
    assert (how, built) == ("jit", False)
    assert {p: p.stat().st_mtime_ns for p in small_core.cache.rglob("*")} == before


def truncate(library):
    library.write_bytes(library.read_bytes()[:-100])


def let_everybody_write(library):
    library.chmod(0o777)


def give_away(library):
    if os.getuid() != 0:
        pytest.skip("only root can give a file away")
    os.chown(library, 12345, -1)


def forget_the_sums(library):
    (library.parent / native.SUMS).unlink()


def come_from_other_sources(library):
    other = re.sub(rb"(qsr-source-hash:)\w{16}", rb"\g<1>0123456789abcdef", library.read_bytes())
    library.write_bytes(other)
    sums = {library.name: hashlib.sha256(other).hexdigest()}
    (library.parent / native.SUMS).write_text(json.dumps(sums))


HARMS = [truncate, let_everybody_write, give_away, forget_the_sums, come_from_other_sources]


@pytest.mark.parametrize("harm", HARMS, ids=lambda f: f.__name__)
def test_a_library_that_somebody_touched_is_built_again_and_never_loaded(small_core, harm):
    _, library, _ = loaded(small_core())
    whole = library.read_bytes()
    harm(library)
    how, again, built = loaded(small_core())
    assert (how, again, built) == ("jit", library, True)
    assert again.read_bytes() == whole
    assert library.stat().st_uid == os.getuid()
    assert not library.stat().st_mode & 0o002


def test_a_cache_that_everybody_can_write_is_refused(small_core):
    small_core.cache.mkdir()
    small_core.cache.chmod(0o777)
    _, err = small_core().communicate(timeout=100)
    assert "can be written by everybody; set QSR_CACHE" in err.splitlines()[-1]


CLEAN = """
from qsr.system import native
print(*native.clean_cache())
"""


def test_a_cache_is_emptied_of_what_was_compiled_and_of_nothing_else(small_core):
    _, library, _ = loaded(small_core())
    size = sum(p.stat().st_size for p in library.parent.iterdir())
    (small_core.cache / "tmpabcd1234").mkdir()  # what a killed build leaves
    (small_core.cache / "mine.txt").write_text("keep me")
    out, err = small_core(CLEAN).communicate(timeout=100)
    assert out == f"{small_core.cache} 1 {size}\n" and err == ""
    assert [p.name for p in small_core.cache.iterdir()] == ["mine.txt"]
    (small_core.cache / "mine.txt").unlink()
    for _ in range(2):  # a cache that is not there is clean
        assert small_core(CLEAN).communicate(timeout=100)[0] == f"{small_core.cache} 0 0\n"
        small_core.cache.exists() and small_core.cache.rmdir()
    assert loaded(small_core())[2]


def test_a_compiler_that_refuses_is_quoted(small_core, package_copy):
    (package_copy / "csrc" / "small.cpp").write_text("#error the moon is full\n")
    _, err = small_core().communicate(timeout=100)
    assert "error: #error the moon is full" in err.splitlines()[-1]


def test_a_killed_build_leaves_nothing_in_the_way_and_four_at_once_make_one(small_core, tmp_path):
    slow = tmp_path / "slow"
    slow.write_text('#!/bin/sh\nsleep 2\nexec c++ "$@"\n')
    slow.chmod(0o755)
    killed = small_core(CXX=slow)
    assert "building" in killed.stderr.readline()
    deadline = time.monotonic() + 60
    while not list(small_core.cache.glob("tmp*/objects*")) and time.monotonic() < deadline:
        time.sleep(0.01)
    killed.kill()
    killed.communicate()
    left = list(small_core.cache.glob("tmp*"))
    assert left, "the build was over before it could be killed"
    for folder in left:  # what an hour would do
        os.utime(folder, (time.time() - 7200,) * 2)

    four = [loaded(process) for process in [small_core(CXX=slow) for _ in range(4)]]
    assert [how for how, _, _ in four] == ["jit"] * 4
    assert sum(built for _, _, built in four) == 1
    assert not list(small_core.cache.glob("tmp*"))


@pytest.fixture
def package_copy(tmp_path):
    """The package and its sources in a place of their own, without anything compiled."""
    root = tmp_path / "clone"
    ignored = shutil.ignore_patterns("*.so", "__pycache__", "pictures", "files")
    shutil.copytree(ROOT / "qsr", root / "qsr", ignore=ignored)
    shutil.copytree(ROOT / "csrc", root / "csrc")
    return root
