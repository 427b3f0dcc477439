"""A disk that is full, or closed to writing: each writer says so in one line and leaves nothing."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from kills import TINY, prepare

ROOT = Path(__file__).parent.parent
WRITERS = [
    "upscale photos disk/sr --model packed.qsr",
    "upscale photos/0.png disk/sr.png --model packed.qsr",
    f"train --out disk/run --data photos {TINY} --steps 2",
    "pack trained.qsr disk/packed.qsr",
    "export --onnx trained.qsr disk/model.onnx --no-check",
    "data pack disk/photos.zip photos",
    "reproduce figure1 --out disk",
]
CALLS = """
import sys
from pathlib import Path
from qsr.cli import main
for call in sys.argv[1:]:
    code = main(call.split())
    left = [path.name for path in Path("disk").rglob("*") if path.is_file()]
    print("exit", code, left, file=sys.stderr, flush=True)
"""
STATES = {  # of a file system of 2 MB: how it becomes so, and what is left on it
    "full": ("dd if=/dev/zero of=disk/filler bs=4096 2>/dev/null; true", ["filler"]),
    "closed": ("mount -o remount,ro disk", []),
}


@pytest.mark.parametrize("state", STATES)
def test_a_disk_that_takes_nothing_gives_one_line_and_is_left_as_it_was(tmp_path, state):
    prepare(tmp_path)
    (tmp_path / "disk").mkdir()
    change, left = STATES[state]
    mount = f'mount -t tmpfs -o size=2m tmpfs disk && {{ {change}; }} && exec "$@"'
    inside = ["unshare", "--map-root-user", "--mount", "sh", "-c", mount, "sh"]
    if subprocess.run([*inside, "true"], cwd=tmp_path, capture_output=True).returncode:
        pytest.skip("no file system can be mounted here")
    done = subprocess.run(
        [*inside, sys.executable, "-c", CALLS, *WRITERS],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT), "QSR_DATA": ""},
        capture_output=True,
        text=True,
    )
    assert "Traceback" not in done.stderr
    ends = [line for line in done.stderr.splitlines() if line.startswith("exit")]
    several = f"exit 1 {left}"  # of a folder of pictures some failed, here all
    assert ends == [several] + [f"exit 2 {left}"] * (len(WRITERS) - 1), done.stderr
