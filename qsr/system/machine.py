"""What machine this is, and how many threads it takes."""

from __future__ import annotations

import contextlib
import importlib.metadata
import os
import platform
from pathlib import Path

from . import native
from .version import __version__


def machine() -> dict[str, str]:
    """The processor and the versions that take part."""
    cpu = platform.processor() or platform.machine()
    with contextlib.suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        fields = dict(line.split("\t: ", 1) for line in lines if "\t: " in line)
        keys = ("model name", "cpu family\t", "model\t")
        name, family, model = (fields.get(key.strip(), fields.get(key, "?")) for key in keys)
        cpu = f"{name.strip()}, family {family}, model {model}"
    facts = native.facts()
    features = [] if facts is None else [n for n, there in facts.features.items() if there]
    found = {"cpu": cpu, "cores": str(os.cpu_count()), "features": " ".join(features)}
    found |= {"qsr": __version__, "python": platform.python_version()}
    for package in ("torch", "onnxruntime", "openvino", "nncf", "ncnn"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[package] = importlib.metadata.version(package)
    return found


def check_threads(threads: int, name: str = "threads") -> None:
    """Raise ValueError unless 1 <= threads <= four times the processors that the machine has.

    More only wait for each other, and OpenMP ends the process when it can't start so many.
    """
    most = 4 * (os.cpu_count() or 1)
    if not 1 <= threads <= most:
        raise ValueError(
            f"`{name}` is {threads}; it is 1 to {most}, four times what this machine has. Leave it "
            "out for the default."
        )
