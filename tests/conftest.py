"""What all tests share: a fixed seed, the built site, and the real pictures where there are any.

`make test` runs files side by side with pytest-xdist (--dist loadfile): what is in one file, also
the cells of a notebook, runs in order in one process, a worker.
"""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import filelock
import hypothesis
import matplotlib
import pytest
import torch

# Tests are small: a second thread only waits, 15 times as long where the machine has other work.
torch.set_num_threads(1)

# On a busy machine any example may take long, and none is wrong for it.
hypothesis.settings.register_profile("qsr", deadline=None)
hypothesis.settings.load_profile("qsr")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest files begin first, so that at the end no worker waits for another."""

    def turn(item: pytest.Item) -> int:
        if item.get_closest_marker("browser"):
            return 0
        return 1 if item.path.suffix == ".ipynb" else 2

    items.sort(key=turn)


@pytest.fixture(autouse=True)
def fixed_seed() -> None:
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def own_style() -> Iterator[None]:
    """Cells of notebooks set the style of figures, but not of those in the tests that follow."""
    with matplotlib.rc_context():
        yield


@pytest.fixture(scope="session")
def qsr_data() -> Path:
    """The folder QSR_DATA of `qsr.data`; tests that ask for it are skipped where it is not set."""
    root = os.environ.get("QSR_DATA")
    if not root:
        pytest.skip("needs the real test sets: set QSR_DATA")
    return Path(root)


@pytest.fixture(scope="session")
def site(tmp_path_factory) -> Path:
    """The site, built as `make docs` builds it, once for all workers: any warning is an error."""
    shared = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        shared = shared.parent
    folder, root = shared / "site", Path(__file__).parent.parent
    with filelock.FileLock(shared / "site.lock"):
        if not folder.exists():
            draft = shared / "draft"
            build = subprocess.run(  # with --quiet, --strict would not hear of warnings either
                [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", draft],
                cwd=root,
                env={**os.environ, "NO_MKDOCS_2_WARNING": "1", "PYTHONPATH": str(root)},
                capture_output=True,
                text=True,
            )
            assert build.returncode == 0, build.stdout + build.stderr
            draft.rename(folder)
    return folder
