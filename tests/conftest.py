"""What all tests share: a fixed seed, and the real pictures where there are any."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

# Tests are small: a second thread only waits, 15 times as long where the machine has other work.
torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def fixed_seed() -> None:
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def qsr_data() -> Path:
    """The folder QSR_DATA of `qsr.data`; tests that ask for it are skipped where it is not set."""
    root = os.environ.get("QSR_DATA")
    if not root:
        pytest.skip("needs the real test sets: set QSR_DATA")
    return Path(root)


@pytest.fixture(scope="session")
def site(tmp_path_factory) -> Path:
    """The site, built as `make docs` builds it: any warning is an error."""
    folder = tmp_path_factory.mktemp("docs") / "site"
    root = Path(__file__).parent.parent
    build = subprocess.run(  # with --quiet, --strict would not hear of warnings either
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", folder],
        cwd=root,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1", "PYTHONPATH": str(root)},
        capture_output=True,
        text=True,
    )
    assert build.returncode == 0, build.stdout + build.stderr
    return folder
