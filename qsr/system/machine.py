"""What machine this is."""

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
