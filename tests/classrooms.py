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
import urllib.request
from pathlib import Path

from tests.test_wheel import ROOT, run


def main() -> None:
    engine = next(filter(None, map(shutil.which, ("docker", "podman"))), "no docker or podman here")
    print(
        f"images of Docker, Binder and Codespaces: not built ({engine}); what they run:", flush=True
    )
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
            serve, cwd=clone, env={**os.environ, **own}, stderr=subprocess.PIPE, text=True,
            start_new_session=True,
        )  # fmt: skip
        try:
            assert lab.stderr is not None
            address = next(filter(None, (re.search(r"http://127\S+", s) for s in lab.stderr)))[0]
            with urllib.request.urlopen(address, timeout=60) as page:
                assert b"JupyterLab" in page.read()
        finally:
            os.killpg(lab.pid, signal.SIGTERM)
            lab.wait()
        print(f"JupyterLab: {time.monotonic() - start:.0f} s to its page", flush=True)


if __name__ == "__main__":
    main()
