"""Files that are there whole or not at all, and what killed processes leave behind."""

import os
import subprocess
import sys
import time

import pytest

from qsr.system import files
from qsr.system.files import replacing, replacing_folder

KILLED = """
import os, signal, sys
from qsr.system.files import replacing, replacing_folder
make = replacing_folder if sys.argv[2] == "folder" else replacing
with make(sys.argv[1]) as temporary:
    if temporary.is_dir():
        (temporary / "half").write_text("half")
    else:
        temporary.write_text("half")
    print(temporary.name, flush=True)
    if sys.argv[3] == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    sys.stdin.readline()
"""


def other_process(path, kind="file", then="die"):
    """Another process that writes to `path` -> (the process, the name of its temporary file)."""
    job = subprocess.Popen(
        [sys.executable, "-c", KILLED, str(path), kind, then],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    return job, job.stdout.readline().strip()


@pytest.fixture(autouse=True)
def a_new_process():
    files._clear_once.cache_clear()  # what a process has looked at, it does not look at again


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_what_a_killed_process_left_is_removed_by_the_next_that_writes_there(tmp_path, kind):
    job, left = other_process(tmp_path / "a", kind)
    job.wait()
    assert [path.name for path in tmp_path.iterdir()] == [left]
    with replacing(tmp_path / "b") as temporary:
        temporary.write_text("whole")
    assert [path.name for path in tmp_path.iterdir()] == ["b"]


def test_what_a_running_process_writes_is_left_alone(tmp_path):
    job, name = other_process(tmp_path / "a", then="wait")
    with replacing(tmp_path / "b") as temporary:
        temporary.write_text("whole")
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([name, "b"])
    job.communicate("\n")
    assert (tmp_path / "a").read_text() == "half"


def test_of_other_machines_only_what_is_a_day_old_is_removed(tmp_path):
    names = [".qsr-00000000-1-new", ".qsr-00000000-1-old", ".qsr-mine", ".other-1-2-3", "photo.png"]
    for name in names:
        (tmp_path / name).write_text("")
        if name != names[0]:
            os.utime(tmp_path / name, (time.time() - 2 * files.DAY,) * 2)
    with replacing_folder(tmp_path / "b"):
        pass
    assert {path.name for path in tmp_path.iterdir()} == {"b", *names} - {names[1]}


def test_a_name_may_be_as_long_as_names_can_be(tmp_path):
    for make, first in ((replacing, "a"), (replacing_folder, "b")):
        path = tmp_path / (first + "ü" * 127)  # 255 bytes
        with make(path) as temporary:
            assert len(os.fsencode(temporary.name)) < 50
        assert path.exists()
