"""Modules that are importable by another name than their place: `import qsr.kernels`.

Python asks each finder for a module that is not loaded yet; the one here answers for the given
names with the module at its place. One module, two names: not a second copy of it.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Mapping
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import spec_from_loader
from types import ModuleType


class _Renamed(MetaPathFinder, Loader):
    def __init__(self, places: Mapping[str, str]) -> None:
        self.places = places

    def find_spec(self, name: str, path=None, target=None) -> ModuleSpec | None:
        return spec_from_loader(name, self) if name in self.places else None

    def create_module(self, spec: ModuleSpec) -> None:
        return None  # an empty one, for a moment

    def exec_module(self, module: ModuleType) -> None:
        # The import system takes what stands in sys.modules now.
        sys.modules[module.__name__] = importlib.import_module(self.places[module.__name__])


def follow(package: str, places: Mapping[str, str]) -> None:
    """Make `package`.name import `package`.place, for each name: place of `places`."""
    full = {f"{package}.{name}": f"{package}.{place}" for name, place in places.items()}
    sys.meta_path.append(_Renamed(full))
