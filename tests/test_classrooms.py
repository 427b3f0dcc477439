"""Binder, Codespaces and containers: each calls the same targets of make, and does nothing else.

`python -m tests.classrooms` does what they do, in a new home, and runs a notebook; some minutes.
"""

import json
import os
import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
DOCKER = (ROOT / "Dockerfile").read_text()
BINDER = (ROOT / ".binder/postBuild").read_text()
DEVCONTAINER = json.loads((ROOT / ".devcontainer/devcontainer.json").read_text())
CALLS = {  # of make
    "Dockerfile": re.findall(r"^RUN make (\w+)", DOCKER, re.M) + ["lab"],
    "Binder": re.findall(r"^make (\w+)", BINDER, re.M),
    "devcontainer": re.findall(r"make (\w+)", DEVCONTAINER["postCreateCommand"]),
}


@pytest.mark.parametrize("place", CALLS)
def test_a_classroom_is_made_by_targets_that_make_knows(place):
    assert "classroom" in CALLS[place]
    for target in CALLS[place]:
        dry = subprocess.run(["make", "-n", target], cwd=ROOT, capture_output=True, text=True)
        assert dry.returncode == 0, dry.stderr


def test_a_container_starts_jupyterlab_where_others_can_reach_it():
    command = json.loads(re.search(r"^CMD (.*)$", DOCKER, re.M)[1])
    dry = subprocess.run(
        [*command[:1], "-n", *command[1:]], cwd=ROOT, capture_output=True, text=True
    )
    assert re.search(r"jupyter lab .*--ip=0\.0\.0\.0 --no-browser\n", dry.stdout, re.DOTALL)
    assert "EXPOSE 8888" in DOCKER and DEVCONTAINER["forwardPorts"] == [8888]


def test_every_classroom_has_what_make_asks_for():
    wanted = set((ROOT / ".binder/apt.txt").read_text().split())
    installed = set(re.search(r"--no-install-recommends ([^\n\\]*)", DOCKER)[1].split())
    assert wanted == {"g++", "make"} <= installed
    assert DEVCONTAINER["build"]["target"] in re.findall(r"^FROM \S+ AS (\w+)$", DOCKER, re.M)
    assert (ROOT / ".binder/runtime.txt").read_text() == "python-3.11\n"


@pytest.mark.parametrize("index", [None, "", "file:///mine"])
def test_binder_takes_torch_for_the_processor_unless_told_otherwise(tmp_path, index):
    program = '#!/bin/sh\necho "$(basename $0) $* with $PIP_EXTRA_INDEX_URL" >> log\n'
    for path in (tmp_path / "bin/make", tmp_path / ".venv/bin/python"):
        path.parent.mkdir(parents=True)
        path.write_text(program)
        path.chmod(0o755)
    env = {**os.environ, "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}"}
    env.pop("PIP_EXTRA_INDEX_URL", None)
    env |= {} if index is None else {"PIP_EXTRA_INDEX_URL": index}
    subprocess.run([ROOT / ".binder/postBuild"], cwd=tmp_path, env=env, check=True)
    taken = re.search(r"PIP_EXTRA_INDEX_URL=(\S+)", DOCKER)[1] if index is None else index
    assert taken == DEVCONTAINER["containerEnv"]["PIP_EXTRA_INDEX_URL"] or index is not None
    assert (tmp_path / "log").read_text().splitlines() == [
        f"make classroom with {taken}",
        f"python -m ipykernel install --user with {taken}",
    ]
