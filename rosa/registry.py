"""A registry of named things. Each is one file in a package's folder and registers itself when it is imported."""

from __future__ import annotations

import importlib
import pkgutil
import sys
from typing import Generic, TypeVar

T = TypeVar("T")


class Registry(Generic[T]):
    """Things of one kind by name: adaptation methods, data sets, metrics, figures.

    Args:
        package: the package whose folder has one file per thing (``__name__`` in its ``__init__``). Sub-packages and
            files that begin with an underscore are shared parts and register nothing.
        kind: the word for one thing in messages.
    """

    def __init__(self, package: str, kind: str) -> None:
        self.package, self.kind = package, kind
        self._items: dict[str, T] = {}

    def add(self, item: T, *names: str) -> None:
        """Make ``item`` known under each of ``names``. Raises ValueError for a name that is taken."""
        for name in names:
            if name in self._items:
                raise ValueError(f"two {self.kind}s are named {name!r}")
            self._items[name] = item

    def names(self) -> list[str]:
        """The names of the package's files, without importing them."""
        found = pkgutil.iter_modules(sys.modules[self.package].__path__)
        return [module.name for module in found if not module.ispkg and not module.name.startswith("_")]

    def all(self) -> dict[str, T]:
        """Everything registered by the files of the package, in alphabetical order of the names."""
        for name in self.names():
            importlib.import_module(f"{self.package}.{name}")
        return dict(sorted(self._items.items()))
