"""`python -m tests.classrooms`: what Binder and containers do, in a new clone with a new home.

The clone of the last commit gets its environment by .binder/postBuild; the first notebook is run by
the kernel that this has left for any Jupyter; then JupyterLab is started as the container does and
asked for its page. A row for each: what, seconds. Torch comes from wherever pip finds it here. The
images themselves need an engine of containers and are not built; what they run inside is.
"""

import json
import os
import re
import shutil
import signal
import subprocess
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path

from tests.test_wheel import ROOT, run


def runs(engine: str) -> bool:
    """Whether an engine of containers answers here."""
    asked = [engine, "info"]
    return bool(shutil.which(engine)) and not subprocess.run(asked, capture_output=True).returncode


def page(address: str, seconds: float = 60) -> bytes:
    """What a server answers, which prints its address a moment before it listens."""
    until = time.monotonic() + seconds
    while True:
        try:
            with urllib.request.urlopen(address, timeout=seconds) as answer:
                return answer.read()
        except urllib.error.URLError:
            if time.monotonic() > until:
                raise
            time.sleep(0.2)


def main() -> None:
    engine = next(filter(runs, ("docker", "podman")), "no docker or podman runs here")
    print(f"images of Docker, Binder, Codespaces: not built ({engine}); what they run:", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        home, clone = Path(folder, "home"), Path(folder, "home", "qsr")
        home.mkdir()
        run("git", "clone", "--quiet", ROOT, clone, cwd=folder)
        own = {"HOME": str(home), "PIP_EXTRA_INDEX_URL": "", "MAKEFLAGS": ""}
        own |= {"QSR_CACHE": "", "XDG_CACHE_HOME": ""}
        start = time.monotonic()
        run(clone / ".binder/postBuild", cwd=clone, **own)
        size = sum(p.stat().st_size for p in home.rglob("*") if p.is_file() and not p.is_symlink())
        print(f"made: {time.monotonic() - start:.0f} s, {size / 1e9:.2f} GB", flush=True)

        kernel = home / ".local/share/jupyter/kernels/python3/kernel.json"
        assert json.loads(kernel.read_text())["argv"][0] == str(clone / ".venv/bin/python")
        start = time.monotonic()
        execute = ["nbconvert", "--to", "notebook", "--execute", "--stdout"]
        notebook = clone / "tutorials/00_enlarge_a_photo.ipynb"
        run(clone / ".venv/bin/jupyter", *execute, notebook, cwd=home, **own)
        print(f"{notebook.name}: {time.monotonic() - start:.0f} s", flush=True)

        start = time.monotonic()
        serve = ["make", "lab", "ARGS=--ip=127.0.0.1 --no-browser --port=0"]
        lab = subprocess.Popen(
            serve, cwd=clone, env={**os.environ, **own}, stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE, text=True, start_new_session=True,
        )  # fmt: skip
        try:
            assert lab.stderr is not None
            address = next(filter(None, (re.search(r"http://127\S+", s) for s in lab.stderr)))[0]
            assert b"JupyterLab" in page(address)
        finally:
            os.killpg(lab.pid, signal.SIGTERM)
            lab.wait()
        print(f"JupyterLab: {time.monotonic() - start:.0f} s to its page", flush=True)


if __name__ == "__main__":
    main()
