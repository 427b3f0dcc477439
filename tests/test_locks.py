"""What `make` installs and opens: locked packages, and a JupyterLab that asks for its token."""

import re
import subprocess
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
EXTRAS = PROJECT["project"]["optional-dependencies"]
PIN = re.compile(
    r"^([\w.-]+)==([\w.]+)((?: ;[^\\\n]*)?)((?: \\\n    --hash=sha256:[0-9a-f]{64})+)$", re.M
)


def asked(extra: str) -> list[Requirement]:
    """What an environment needs directly, and the extras that this extra names."""
    found = [Requirement(line) for line in PROJECT["project"]["dependencies"] if extra != "tools"]
    waiting = [Requirement(f"quantsr[{extra}]")]
    while waiting:
        one = waiting.pop()
        if one.name != "quantsr":
            found.append(one)
        groups = EXTRAS if extra != "tools" else PROJECT["dependency-groups"]
        waiting += [Requirement(line) for name in one.extras if one.name == "quantsr"
                    for line in groups[name]]  # fmt: skip
    return found


@pytest.mark.parametrize("extra", ["lab", "docs", "test", "bench", "tools"])
def test_a_lock_holds_all_that_is_asked_for_by_hash_and_no_place(extra):
    text = (ROOT / f".locks/{extra}.txt").read_text()
    pins = {canonicalize_name(name): version for name, version, _, _ in PIN.findall(text)}
    lines = [line for line in text.splitlines() if not line.startswith(("#", "    --hash="))]
    assert len(lines) == len(PIN.findall(text)) and "://" not in text
    for wanted in asked(extra):
        if wanted.name == "torch":  # by its version alone, see .locks/torch.txt
            torch = (ROOT / ".locks/torch.txt").read_text()
            assert wanted.specifier.contains(re.search(r"^torch==(\S+)$", torch, re.M)[1])
            assert "torch" not in pins
        else:
            assert wanted.specifier.contains(pins[canonicalize_name(wanted.name)]), wanted


def test_locks_are_made_for_the_oldest_python_that_qsr_takes():
    """Debian 12 has 3.11.2, for which a lock that was made for 3.11.5 has packages too new."""
    dry = subprocess.run(
        ["make", "-n", "lock"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    oldest = PROJECT["project"]["requires-python"].removeprefix(">=")
    assert set(re.findall(r"--python-version (\S+)", dry.stdout)) == {f"{oldest}.0"}


def test_jupyterlab_keeps_its_token_and_its_address():
    dry = subprocess.run(
        ["make", "-n", "lab"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    (call,) = (line for line in dry.stdout.splitlines() if "jupyter lab " in line)
    settings = dry.stdout[dry.stdout.index("overrides.json") - 500 :]
    for word in ("token", "password", "xsrf", "origin", "--ip", "remote", "IdentityProvider"):
        assert word not in call and word not in settings
