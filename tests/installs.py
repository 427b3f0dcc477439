"""`python -m tests.installs [PYTHON ...]`: install into new environments, torch from the index.

With the wheel of `make wheel` (made here where dist/ has none), for this Python and every one that
is named: no compiler on PATH, the compiled core. With this Python also what compiles at first use:
`pip install` of the clone and of its last commit, both in isolated builds. Each must enlarge a
picture; seconds and sizes are printed. Some gigabytes are written, and removed.
"""

import json
import os
import sys
import tempfile
import time
from pathlib import Path

from qsr.images.data import PICTURES
from tests.test_wheel import ROOT, build, run


def install(python: str, what: str, **environment: str) -> None:
    """A new environment with this requirement; a row of what came of it."""
    with tempfile.TemporaryDirectory() as folder:
        start = time.monotonic()
        run(python, "-m", "venv", "new", cwd=folder)
        programs = Path(folder, "new", "bin")
        run(programs / "python", "-m", "pip", "install", "--quiet", what, cwd=folder)
        installed = time.monotonic()
        environment |= {"QSR_NATIVE": "require", "QSR_CACHE": str(Path(folder, "cache"))}
        about = json.loads(run(programs / "qsr", "info", "--json", cwd=folder, **environment))
        picture = str(PICTURES / "coffee.png")
        run(programs / "qsr", "upscale", picture, "large.png", cwd=folder, **environment)
        size = sum(p.stat().st_size for p in Path(folder, "new").rglob("*") if not p.is_symlink())
        print(
            f"{Path(what).name}  Python {about['python']}, torch {about['torch']}, core "
            f"{about['native']}: {installed - start:.0f} s to install, {size / 1e9:.2f} GB, "
            f"{time.monotonic() - installed:.0f} s to the first picture",
            flush=True,
        )


def main(pythons: list[str]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        wheel = next(iter(sorted(ROOT.glob("dist/quantsr-*.whl"))), None)
        wheel = wheel or build(ROOT, Path(folder), QSR_NATIVE="aot")
        for python in (sys.executable, *pythons):
            install(python, str(wheel), PATH="/nonexistent")
        install(sys.executable, str(ROOT))
        install(sys.executable, f"git+file://{ROOT}")


if __name__ == "__main__":
    os.environ.pop("PYTHONPATH", None)
    main(sys.argv[1:])
