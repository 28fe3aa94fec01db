"""Released packages of trainers, which lie beside the environment (scripts/environment).

They ask for other versions of what the environment holds, so nothing sees them but the tests
that ask. What a release imports and these tests never call (Ray, pandas, datasets: half a
gigabyte) is stood in for while it is imported; what is called is the release itself.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.abc
import importlib.machinery
import os
import sys
import types
from pathlib import Path

import pytest

_NEVER_CALLED = ("ray", "pandas", "datasets")


class _Names(types.ModuleType):
    """A module in which every name is a class that can do nothing."""

    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        if name == "remote":
            return lambda *args, **options: args[0] if args else lambda cls: cls
        value = type(name, (), {})
        setattr(self, name, value)
        return value


class _StandIns(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    def find_spec(self, name, path, target=None):
        if name.partition(".")[0] in _NEVER_CALLED:
            return importlib.machinery.ModuleSpec(name, self, is_package=True)
        return None

    def create_module(self, spec):
        return _Names(spec.name)

    def exec_module(self, module):
        pass


def _folder(name: str) -> Path:
    folder = Path(os.environ.get("ROUTEREPLAY_TEST_TRAINERS", "nowhere")) / name
    if not folder.is_dir():
        pytest.skip(
            f"{name} is not in ROUTEREPLAY_TEST_TRAINERS; ./scripts/environment puts it there"
        )
    return folder


@contextlib.contextmanager
def _importable(folder: Path):
    finder = _StandIns()
    before = set(sys.modules)
    sys.path.append(str(folder))
    sys.meta_path.insert(0, finder)
    try:
        yield
    finally:
        sys.meta_path.remove(finder)
        sys.path.remove(str(folder))
        # Whoever asks next whether Ray is installed must hear the truth.
        for name in set(sys.modules) - before:
            if name.partition(".")[0] in _NEVER_CALLED:
                del sys.modules[name]


def verl(*modules: str) -> list[types.ModuleType]:
    """Return modules of verl 0.9.1."""
    with _importable(_folder("verl")):
        return [importlib.import_module(name) for name in modules]


def art(*modules: str) -> list[types.ModuleType]:
    """Return modules of openpipe-art 0.5.23 that run on any Python.

    The packages' own `__init__` need Python 3.12 and are not run.
    """
    folder = _folder("art")
    for name in ("art", "art.preprocessing"):
        package = sys.modules.setdefault(name, types.ModuleType(name))
        package.__path__ = [str(folder.joinpath(*name.split(".")))]
    return [importlib.import_module(name) for name in modules]
