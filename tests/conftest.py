"""What all tests share: a fixed seed, and the real pictures where there are any."""

import os
from pathlib import Path

import pytest
import torch


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
